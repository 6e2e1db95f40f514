//! The names of things: types, not integers, so that an epoch is never taken for a packet number.
//!
//! Everything here is plain data. Arithmetic on packet sequence numbers lives here too, because 24 bits wrap (InfiniBand
//! Architecture Specification, "Packet Sequence Numbers": all PSN comparisons are modulo 2^24).

use core::fmt;
use core::ops::{Add, Sub};

/// A point in time or a span of it, microseconds of a monotonic clock that the caller owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    /// The longest span; a deadline that far away never passes.
    pub const MAX: Self = Self(u64::MAX);

    /// A span given in milliseconds; spans too long for the type become [`Micros::MAX`].
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1000
    }

    /// The span from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Micros {
    type Output = Self;
    fn add(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ms", self.0 / 1000, self.0 % 1000)
    }
}

/// One instance of a process: drawn at random when the process first opens a device, so a restart is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u64);

/// One end of a connection: one life of one QP, from RESET to RESET, in one process instance.
///
/// Two claims of one epoch are ordered by it, so there are no ties. A QP that is connected to itself has two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// The process instance.
    pub process: ProcessId,
    /// A number that the process gives to each life of a QP and never again.
    pub life: u32,
    /// 0, or 1 for the second side of a QP connected to itself.
    pub side: u8,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}.{}", self.process.0, self.life, self.side)
    }
}

/// A path of a connection: a local (device, port, GID) with a remote one, both able to carry the queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathId(pub u8);

impl PathId {
    /// The path whose objects the application made.
    pub const PRIMARY: Self = Self(0);
    /// The first path of the shim's own.
    pub const STANDBY: Self = Self(1);
}

/// Standbys that a queue pair may have at most: the other NICs of a host that has eight.
pub const MAX_STANDBYS: usize = 7;
/// Paths that it may have in its life at most: a pair of ends that does not carry is given up for another one, and keeps its number.
pub const MAX_PATHS: usize = 32;

/// One of the objects at one end in which the receives of a shared receive queue may lie: 0 is the application's, the others are the shim's own, one on each
/// standby of its device. Which path leads there is another matter for each queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(pub u8);

/// Sites that there may be at most.
pub const MAX_SITES: usize = 1 + MAX_STANDBYS;

impl Site {
    /// The application's object.
    pub const PRIMARY: Self = Self(0);

    /// The object on the standby of that slot.
    #[must_use]
    pub const fn of_slot(slot: u8) -> Self {
        Self(slot.saturating_add(1))
    }

    /// The slot of its standby.
    #[must_use]
    pub const fn slot(self) -> Option<u8> {
        self.0.checked_sub(1)
    }

    /// Something for each of them.
    pub fn list<T>(mut of: impl FnMut(Self) -> T) -> [T; MAX_SITES] {
        core::array::from_fn(|at| of(Self(at as u8)))
    }

    /// All that there may be.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..MAX_SITES as u8).map(Self)
    }

    /// What is known of it, of a list by sites.
    pub fn of<T>(self, list: &[T; MAX_SITES]) -> Option<&T> {
        list.get(usize::from(self.0))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot() {
            None => f.write_str("the first device"),
            Some(slot) => write!(f, "standby {slot}"),
        }
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path {}", self.0)
    }
}

/// The number of migrations that a connection went through. It names the incarnation too: one QP object between one
/// connect and the next. Epoch 0 is the application's own connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of the application's own connect.
    pub const FIRST: Self = Self(0);

    /// The epoch after this one; the last one has no successor and stays (2^32 migrations are never reached).
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// The place of a work request in its send queue, counted from the first post and never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WrSeq(pub u64);

impl fmt::Display for WrSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A packet sequence number as it stands on the wire: 24 bits, wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Psn(u32);

impl Psn {
    /// How many different PSNs there are.
    pub const COUNT: u64 = 1 << 24;
    /// How far the first PSNs of two epochs of one path lie apart. Odd, so that it takes 2^24 epochs until one recurs;
    /// 2^22, so that what a short-lived incarnation still has in flight lies outside the window of the next three. A long-lived one has moved its
    /// window anywhere: its path is used again only after the packet lifetime.
    const EPOCH_STRIDE: u32 = 0x0040_0001;

    /// The low 24 bits of `value`.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00ff_ffff)
    }

    /// The number, below 2^24.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The first PSN with which a path whose base is `self` sends in `epoch`. Not for epoch 0: its PSNs are the application's.
    #[must_use]
    pub const fn in_epoch(self, epoch: Epoch) -> Self {
        Self::new(self.0.wrapping_add(epoch.0.wrapping_mul(Self::EPOCH_STRIDE)))
    }
}

impl fmt::Display for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// A packet sequence number that does not wrap: the low 24 bits are those on the wire, the rest counts the wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Psn64(pub u64);

impl Psn64 {
    /// The number as it stands on the wire.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the mask leaves 24 bits")]
    pub const fn wire(self) -> Psn {
        Psn((self.0 & 0x00ff_ffff) as u32)
    }

    /// The first number from `self` on that looks like `psn` on the wire.
    #[must_use]
    pub const fn first_at_or_after(self, psn: Psn) -> Self {
        let ahead = (psn.0.wrapping_sub(self.wire().0)) & 0x00ff_ffff;
        Self(self.0.saturating_add(ahead as u64))
    }
}

impl Add<u64> for Psn64 {
    type Output = Self;
    fn add(self, packets: u64) -> Self {
        Self(self.0.saturating_add(packets))
    }
}

impl Sub for Psn64 {
    type Output = u64;
    /// Packets from `earlier` to `self`; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<Psn> for Psn64 {
    fn from(psn: Psn) -> Self {
        Self(u64::from(psn.0))
    }
}

/// A path MTU in bytes: one of the five that the InfiniBand specification knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mtu(u32);

impl Mtu {
    /// The smallest one.
    pub const MIN: Self = Self(256);
    /// The largest one.
    pub const MAX: Self = Self(4096);

    /// `bytes` if it is 256, 512, 1024, 2048 or 4096.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        match bytes {
            256 | 512 | 1024 | 2048 | 4096 => Some(Self(bytes)),
            _ => None,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Packets that `bytes` of payload take: at least one, for a message without payload is a packet too.
    #[must_use]
    pub const fn packets(self, bytes: u32) -> u64 {
        let whole = bytes.div_ceil(self.0) as u64;
        if whole == 0 {
            1
        } else {
            whole
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// What one attempt at a migration is called, from CLAIM to CONFIRM.
///
/// The derived order is that of claims: by epoch, then owner, then attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// The epoch that the connection gets.
    pub epoch: Epoch,
    /// Who claims.
    pub owner: EndpointId,
    /// Counts the claims of this owner; an attempt given up is never revived.
    pub attempt: u32,
    /// The path that the connection moves to.
    pub target: PathId,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} by {} attempt {}", self.epoch, self.target, self.owner, self.attempt)
    }
}
