//! What processes say to each other, and how it looks in bytes.
//!
//! This module owns the frames of wire version 1, their bounds and their codec. It refuses to own the connection, its
//! peers and what a frame means. What must hold: every sequence of bytes decodes to a frame or to a typed error, without
//! a panic and without memory beyond [`MAX_FRAME`]; what was encoded decodes to the same.
//!
//! On a byte stream an [`Opening`] comes first; then each frame follows its length: [`Frame::encode_prefixed`] and
//! [`split_prefixed`].

mod codec;
mod message;
mod opening;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;

use crate::id::{EndpointId, Mtu, PathId, ProcessId, Psn};
pub use crate::migrate::{Handshake, MAX_REPORTS};
pub use opening::{Opening, Versions, MAC, OPENING};

/// The wire version of these frames.
pub const WIRE_VERSION: u8 = 1;
/// The wire versions that this code speaks.
pub const SPOKEN: Versions = Versions { oldest: WIRE_VERSION, newest: WIRE_VERSION };
/// The longest frame, without its length prefix.
pub const MAX_FRAME: usize = 65_536;
/// Bytes of the length prefix on a stream.
pub const PREFIX: usize = 4;
/// Addresses in a [`Hello`]: more networks than a host of the kind has.
pub const MAX_ADDRESSES: usize = 32;
/// Bytes of the version string in a [`Hello`].
pub const MAX_VERSION: usize = 64;

/// A GID as it stands in a GRH, network byte order.
pub type GidBytes = [u8; 16];

/// The first frame between two processes, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender.
    pub process: ProcessId,
    /// The random token of the process pair; zero until it was exchanged.
    pub token: [u8; 16],
    /// Where else the sender listens. At most [`MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// The sender's version, for the log. At most [`MAX_VERSION`] bytes.
    pub version: String,
}

/// Who owns a QP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QpAddress {
    /// GID of the port.
    pub gid: GidBytes,
    /// QP number.
    pub qpn: u32,
}

/// One end of a path, as the other end has to know it to connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOffer {
    /// The QP.
    pub address: QpAddress,
    /// Largest path MTU that this end can use.
    pub mtu: Mtu,
    /// Base of the PSNs with which it sends; see [`Psn::in_epoch`].
    pub psn_base: Psn,
}

/// A standby: its end of a path, to be paired with one of the other end's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOffer {
    /// The sender's number of it, below [`MAX_STANDBYS`](crate::id::MAX_STANDBYS), by which its key frames name it too.
    pub slot: u8,
    /// The end.
    pub end: PathOffer,
}

/// Which ends a path is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPair {
    /// Its number, 1 or more and below [`MAX_PATHS`](crate::id::MAX_PATHS): never another pair's.
    pub path: PathId,
    /// The sender's slot.
    pub own: u8,
    /// The receiver's.
    pub peer: u8,
}

/// What an end has to offer beside the application's own path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyOffer {
    /// Counts the offers of the sender that differ: of two the one with the larger number counts.
    pub revision: u32,
    /// The standbys, the one that the sender would rather have first. At least one in the first offer, at most [`MAX_STANDBYS`](crate::id::MAX_STANDBYS).
    pub standbys: Vec<SlotOffer>,
    /// The paths that are kept ready from now on, said by the end with the larger id. Empty: those that follow from both first offers.
    pub paths: Vec<PathPair>,
    /// The device of the first path is gone at the sender, for good: whoever is alone on its rail would need another end there.
    pub is_first_gone: bool,
    /// MTU of the primary path.
    pub primary_mtu: Mtu,
    /// The PSN that the sender expects first of the receiver on the primary path: the base of the receiver's PSNs there, for epochs after the first.
    pub primary_psn_base: Psn,
    /// What the sender's standbys permit as its primary does, in the bits of `qp_access_flags`: so far only IBV_ACCESS_REMOTE_ATOMIC, if
    /// atomics that arrive over different paths exclude one another.
    pub access: u32,
}

/// What an end says when its QP reaches RTS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The sender's end.
    pub from: EndpointId,
    /// The device of the primary path as the sender's key frames name it.
    pub device: u16,
    /// The sender's QP.
    pub own: QpAddress,
    /// The QP that it is connected to.
    pub peer: QpAddress,
    /// What to move to; `None`: it is not protected.
    pub standby: Option<StandbyOffer>,
}

/// A path is armed at the sender, or is not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmConfirm {
    /// The sender's end.
    pub from: EndpointId,
    /// The receiver's end.
    pub to: EndpointId,
    /// The path.
    pub path: PathId,
    /// Whether it is armed.
    pub armed: bool,
}

/// A memory region of the sender's: its rkeys recur, so they carry a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The device of the application's registration, as the sender numbers them, below 256; of what is said of one standby, 256 times its slot more.
    pub device: u16,
    /// The rkey there.
    pub rkey: u32,
    /// Counts the registrations of the process.
    pub generation: u32,
}

/// What an end knows of a key that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It is registered on the standby too.
    Known {
        /// Counts the registrations of the process.
        generation: u32,
        /// The rkey on the standby.
        standby_rkey: u32,
    },
    /// It is registered, but not on the standby: what uses it is not protected.
    Unprotected,
    /// There is no such key.
    Absent,
}

/// A step in the setup of two probe QPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeStep {
    /// The sender's QP waits to be connected; the receiver is to make one of its own on the device of `peer_gid`.
    Offer,
    /// Here it is, connected.
    Accept,
    /// There is none: no such device.
    Refuse,
    /// The pair is not needed any more.
    Close,
}

/// Setup of a pair of probe QPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The pair, numbered by the end that offered.
    pub pair: u64,
    /// Counts the connects of the pair.
    pub generation: u32,
    /// The step.
    pub step: ProbeStep,
    /// The sender's QP.
    pub own: PathOffer,
    /// The GID at the other end that it wants to reach.
    pub peer_gid: GidBytes,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First between two processes.
    Hello(Hello),
    /// Who owns that QP?
    Ask(QpAddress),
    /// Answer to [`Frame::Ask`].
    Owner {
        /// The QP that was asked for.
        address: QpAddress,
        /// Where its process listens; `None`: nobody here has it.
        port: Option<u16>,
    },
    /// A QP wants to be armed.
    Offer(Offer),
    /// A path was armed or disarmed.
    ArmConfirm(ArmConfirm),
    /// A memory region exists.
    KeyAdd {
        /// The key.
        key: Key,
        /// Its rkey on the standby.
        standby_rkey: u32,
    },
    /// It does not any more.
    KeyDel(Key),
    /// [`Frame::KeyDel`] was heard.
    KeyDelAck(Key),
    /// What is that key of yours?
    KeyAsk {
        /// The receiver's device.
        device: u16,
        /// The rkey there.
        rkey: u32,
    },
    /// Answer to [`Frame::KeyAsk`].
    KeyAnswer {
        /// The sender's device.
        device: u16,
        /// The rkey there.
        rkey: u32,
        /// What it is.
        state: KeyState,
    },
    /// Setup of probe QPs.
    Probe(Probe),
    /// Are you there?
    Ping {
        /// Comes back in the answer.
        stamp: u64,
    },
    /// Yes.
    Pong {
        /// As it came.
        stamp: u64,
    },
    /// The sender's process ends in an orderly way.
    Goodbye,
    /// A message of a migration.
    Migration {
        /// Counts such frames of the sender's process, from 1: the copies that go out on several connections have one number.
        number: u64,
        /// The receiver's end.
        to: EndpointId,
        /// The sender's end.
        from: EndpointId,
        /// The message.
        msg: Handshake,
    },
}

/// Why bytes are no frame, or a frame cannot be bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameError {
    /// The bytes end before the frame does.
    Short,
    /// Bytes are left over behind it.
    Trailing,
    /// It is longer than [`MAX_FRAME`].
    TooLong,
    /// A list or text in it is longer than its bound.
    TooMany,
    /// A wire version that this code does not speak.
    Version(u8),
    /// No frame has that number.
    Kind(u8),
    /// A field has a value that it cannot have.
    Value(&'static str),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the frame is cut off"),
            Self::Trailing => f.write_str("there are bytes behind the frame"),
            Self::TooLong => write!(f, "the frame is longer than {MAX_FRAME} bytes"),
            Self::TooMany => f.write_str("a list in the frame is too long"),
            Self::Version(version) => {
                write!(f, "wire version {version} is not spoken here (this is version {WIRE_VERSION})")
            }
            Self::Kind(kind) => write!(f, "no frame has the number {kind}"),
            Self::Value(field) => write!(f, "the field \"{field}\" has no such value"),
        }
    }
}

impl core::error::Error for FrameError {}

impl Frame {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// A list or text in it is longer than its bound; `out` is as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        codec::encode(self, out)
    }

    /// Appends the frame behind its length, as it goes on a stream.
    ///
    /// # Errors
    /// As [`Frame::encode`].
    pub fn encode_prefixed(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes)?;
        let length = u32::try_from(bytes.len()).map_err(|_| FrameError::TooLong)?;
        out.extend_from_slice(&length.to_le_bytes());
        out.append(&mut bytes);
        Ok(())
    }

    /// Reads exactly one frame, without a prefix.
    ///
    /// # Errors
    /// The bytes are no frame of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        codec::decode(bytes)
    }
}

/// The first frame's bytes in what came in on a stream, and how much of it they and their prefix take up. `None`: it is not
/// all there yet. `bound`: the longest that is taken, [`MAX_FRAME`] or less for a stranger, and [`MAC`] more where there is one.
///
/// # Errors
/// [`FrameError::TooLong`]: the stream is of no use any more.
pub fn split_prefixed(stream: &[u8], bound: usize) -> Result<Option<(&[u8], usize)>, FrameError> {
    let Some((prefix, rest)) = stream.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).map_err(|_| FrameError::TooLong)?;
    if length > bound {
        return Err(FrameError::TooLong);
    }
    Ok(rest.get(..length).map(|bytes| (bytes, PREFIX + length)))
}
