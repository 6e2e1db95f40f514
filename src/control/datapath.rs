//! The border between the control side and the data path.
//!
//! The shim implements [`DataPath`]; the agent is its only caller. Everything here is plain data: no verbs pointer
//! crosses the border, a QP is named by the number of its life in this process. The other direction is a channel
//! of [`Event`]s that application threads fill and never wait on.
//!
//! Rules that hold for every method: it is called on the agent's thread only, it never blocks on an application thread
//! or on the network, and after it failed the data path is as it was before the call unless its text says otherwise.

use shift_proto::gray::{Counts, Sample};
use shift_proto::id::{Epoch, Micros, Mtu, PathId, Psn, WrSeq, MAX_STANDBYS};
use shift_proto::ledger::{IncarnationReport, Ledger, Plan};

/// One life of one QP in this process, from RESET to RESET; never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpLife(pub u32);

/// One shared receive queue of the application; never used again. All queue pairs that receive through it move together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// A move of the receives of one group, never used again for another one; a later one is greater. 0: none so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Round(pub u64);

/// A device as the shim knows it: index into its table of opened devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u16);

/// A probe QP of the shim's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeId(pub u32);

/// A GID, network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid(pub [u8; 16]);

/// An errno of the provider, kept as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {0}")]
pub struct Errno(pub i32);

impl Errno {
    /// The QP was destroyed; its [`Event::Destroyed`] is on its way.
    pub const DESTROYED: Self = Self(nix::libc::ENOENT);
}

/// What identifies the application's connection and what a standby has to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Device of the primary path.
    pub device: DeviceId,
    /// The application's QP number.
    pub qpn: u32,
    /// Source GID of the primary path, by value.
    pub gid: Gid,
    /// Network interface behind `gid` ("eth1"), for link-local scope; empty if unknown.
    pub netdev: String,
    /// The remote QP number given at RTR.
    pub peer_qpn: u32,
    /// The remote GID given at RTR.
    pub peer_gid: Gid,
    /// Path MTU of the primary.
    pub mtu: Mtu,
    /// The shared receive queue that it receives through, if it has one.
    pub group: Option<GroupId>,
}

/// One end of a path, as the other end has to know it to connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathEnd {
    /// QP number.
    pub qpn: u32,
    /// GID, by value.
    pub gid: Gid,
    /// Largest path MTU this end can use there, bytes.
    pub mtu: Mtu,
    /// Base of the PSNs this end sends with on that path; the PSN of an epoch derives from it. Of the primary, `prepare_standbys` gives what this end
    /// expects of the peer (rq_psn of its RTR): the application's own sq_psn is often not known before RTS.
    pub psn_base: Psn,
}

/// Why a QP is not protected, in words for the operator. The first line names the variable or the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unprotected(pub String);

impl Unprotected {
    const DESTROYED: &'static str = "it was destroyed";

    /// The QP was destroyed; its [`Event::Destroyed`] is on its way.
    pub fn destroyed() -> Self {
        Self(Self::DESTROYED.to_owned())
    }

    /// Nothing is to be told of it.
    pub fn is_destroyed(&self) -> bool {
        self.0 == Self::DESTROYED
    }
}

/// A device that may stand by for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The device.
    pub device: DeviceId,
    /// The lower the better; those of one rank are as good as one another, and queue pairs are spread over them.
    pub rank: u8,
}

/// A standby that is ready to be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Its place in [`DataPath::standbys_of`].
    pub slot: u8,
    /// What it is.
    pub choice: Choice,
    /// This end of its path.
    pub end: PathEnd,
}

/// The ends that a QP has to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Of the application's own path.
    pub primary: PathEnd,
    /// Of the standbys, in the order of their slots; never empty.
    pub standbys: Vec<Standby>,
    /// Why others are none.
    pub lacking: Vec<String>,
}

/// rkeys of one registration on the standbys of its device, by slot; `None`: it is not there.
pub type StandbyKeys = [Option<u32>; MAX_STANDBYS];

/// What a fence found so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceProgress {
    /// Work is still out; ask again.
    Pending,
    /// The recipe completed: one report per incarnation since the last `forget`, newest last.
    Fenced(Vec<IncarnationReport>),
    /// The recipe cannot complete (the provider refused); the successes drained are in the reports, nothing else is proven.
    Failed(Vec<IncarnationReport>),
}

/// What the kernel has counted of a port, since ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets sent.
    pub packets: u64,
    /// Times that requesters began to send again.
    pub resent: u64,
    /// Answers that said "receiver not ready".
    pub not_ready: u64,
    /// Bytes both ways, or packets.
    pub amount: u64,
}

impl PortCounters {
    /// What came since; `None`: the counters began anew.
    pub fn since(&self, before: &Self) -> Option<Counts> {
        Some(Counts {
            packets: self.packets.checked_sub(before.packets)?,
            resent: self.resent.checked_sub(before.resent)?,
            not_ready: self.not_ready.checked_sub(before.not_ready)?,
            amount: self.amount.checked_sub(before.amount)?,
        })
    }
}

/// Answer of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// Not answered yet.
    Pending,
    /// The data round trip completed.
    Answered,
    /// The probe QP reported an error (a `wc.status`); it must be connected anew before the next probe.
    Failed(u32),
}

/// Answer of the peer's key table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteKey {
    /// The key on the standby.
    Known(u32),
    /// Not known here: the peer has to be asked.
    Unknown,
    /// The peer said that there is no such key.
    Absent,
}

/// How the data path finds the peer's standby keys while it replays.
pub trait RemoteKeys {
    /// The key by which the peer's standby knows the memory that `rkey` names on the primary.
    fn remote(&self, rkey: u32) -> RemoteKey;
}

/// What became of a replay or of held posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayProgress {
    /// Everything is posted; the QP posts directly on its new path.
    Done,
    /// This entry needs the peer's standby key for this rkey; call again when it is known.
    NeedsKey {
        /// The entry.
        seq: WrSeq,
        /// The peer's key on its primary.
        rkey: u32,
    },
    /// The new path's queue is full; call again after completions.
    Full,
    /// It has taken its time, and there is more; call again.
    More,
    /// This entry cannot be posted, now or later.
    Refused {
        /// The entry.
        seq: WrSeq,
        /// Why.
        error: Errno,
    },
}

/// What the agent asks of the shim. See the module's rules.
pub trait DataPath: Send + Sync {
    /// The calling thread is the agent's, and does nothing else from now on.
    fn agent_began(&self) {}
    /// The standbys of `primary`, in their slots, or why there is none.
    fn standbys_of(&self, primary: DeviceId) -> Result<Vec<Choice>, Unprotected>;
    /// Name of a device ("rxe0").
    fn device_name(&self, device: DeviceId) -> String;

    /// Looks for standbys that came since the objects of the application were made, and makes their objects there, on another thread: see [`Event::StandbyCame`].
    fn seek_standbys(&self) {}
    /// The device is to be a standby of its own too: the other end of its rail was replaced, and what may reach the new one is not the application's own QP.
    fn stand_in(&self, _device: DeviceId) {}

    /// Makes the QP's standby objects (PD, CQs, QP in RESET) on each of its standbys. Idempotent; there may be more standbys than before, or fewer.
    fn prepare_standbys(&self, qp: QpLife) -> Result<Prepared, Unprotected>;
    /// Which slot is which path: the first one path 1, and so on. Before the first of them is connected; later there may be more of them.
    fn arrange(&self, qp: QpLife, slots: &[u8]);
    /// Atomics that arrive at this end over one path exclude those of the other: both devices are atomic against the whole host.
    fn atomics_hold(&self, qp: QpLife) -> bool;
    /// At the peer they do not: the first atomic that was or will be posted makes the QP unprotected.
    fn forbid_atomics(&self, qp: QpLife);
    /// Brings `path` of the QP to RTS towards `peer` for `epoch`: own first PSN and expected PSN as given. Idempotent per epoch.
    fn connect(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        peer: &PathEnd,
        own_psn: Psn,
        peer_psn: Psn,
    ) -> Result<(), Errno>;
    /// From now on faults of the QP are masked (true) or the application's (false).
    fn set_armed(&self, qp: QpLife, armed: bool);

    /// Stops posting on the current path: later posts are recorded and held. `false`: a poster is inside; ask again.
    fn exclude(&self, qp: QpLife) -> bool;
    /// After an exclusion: everything that was posted to a NIC is complete; what is held does not count. Of a queue whose end gives no completion the
    /// first request that is held goes out, with a signal, for the end to be heard of.
    fn drain(&self, qp: QpLife, keys: &dyn RemoteKeys) -> bool;
    /// Ends an exclusion before any fence: held posts go to the current path, in order.
    fn release(&self, qp: QpLife);
    /// Begins the fence of the current incarnation (excluded before). Errors that it causes are kept from the application.
    /// Work that is still out `drain` after ERR is not waited for.
    fn fence(&self, qp: QpLife, drain: Micros);
    /// Drains; to be asked until it is not pending.
    fn poll_fence(&self, qp: QpLife) -> FenceProgress;
    /// Writes the outstanding send entries and the incarnations they were posted on into the ledger (those it does not have yet),
    /// and what landed since.
    fn admit(&self, qp: QpLife, ledger: &mut Ledger);
    /// Posts the receives that were not consumed on `path`, in order, once per epoch. Those of a shared receive queue once per round, for all its queue pairs:
    /// the first of them that is asked in a new round takes back what lies in its object of that path and posts all that has not completed, also where
    /// that is the path that the receives were on. Every other one is fenced by then. `EBUSY`: one still takes receives; ask again.
    fn repost(&self, qp: QpLife, path: PathId, epoch: Epoch, round: Round) -> Result<usize, Errno>;
    /// Executes the plan on `path` for `epoch`, as far as it gets, and after it the held posts; records the new postings in the ledger.
    /// Idempotent: goes on where it stopped. With a stop in the plan, held posts stay held.
    fn replay(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        plan: &Plan,
        ledger: &mut Ledger,
        keys: &dyn RemoteKeys,
    ) -> ReplayProgress;
    /// Posts what is held because of an unknown key or a full queue, in order.
    fn post_held(&self, qp: QpLife, keys: &dyn RemoteKeys) -> ReplayProgress;
    /// Completes the first entry that is not retired with `status` and flushes it and all behind it, receives too; the QP stays in error.
    /// `status` is a `wc.status`; `None`: the error the NIC gave first, else RETRY_EXC_ERR.
    fn surface(&self, qp: QpLife, status: Option<u32>);
    /// The peer's queue pair is gone for good, as its process says, or with it.
    fn peer_left(&self, _qp: QpLife) {}
    /// Every entry below this sequence number is retired (its completion was given out or is ready to be).
    fn retired_below(&self, qp: QpLife) -> WrSeq;
    /// Every entry below this sequence number was posted.
    fn next_seq(&self, qp: QpLife) -> WrSeq;
    /// Something outstanding could end in an error (atomics, WRITEs under policy error).
    fn could_end_in_error(&self, qp: QpLife) -> bool;
    /// How long the NIC goes on retrying before it gives up, from the QP's timeout and retry_cnt; `None`: for ever.
    fn retry_budget(&self, qp: QpLife) -> Option<Micros>;
    /// The application's own QP object is in ERR or beyond (a fatal completion was seen).
    fn in_error(&self, qp: QpLife) -> bool;
    /// A peer withdrew keys, or is gone: translations that the data path remembers are void.
    fn void_remote_keys(&self);
    /// Every peer confirmed that this key of ours is withdrawn: the number may be given out again.
    fn withdrawal_confirmed(&self, device: DeviceId, rkey: u32);
    /// The peer needs no report of incarnations below this epoch any more.
    fn forget(&self, qp: QpLife, below: Epoch);
    /// No entry of the ledger was posted on an incarnation below this epoch any more.
    fn forget_incarnations(&self, qp: QpLife, below: Epoch);
    /// How long a request took that was timed since the last call, and on which incarnation; another one is timed from now on.
    fn take_sample(&self, _qp: QpLife) -> Option<(Epoch, Sample)> {
        None
    }
    /// What the kernel counts of the device's port.
    fn port_counters(&self, _device: DeviceId) -> Option<PortCounters> {
        None
    }
    /// Looks at every CQ with outstanding work of protected QPs that the application has not polled lately; may send events.
    fn sweep(&self);
    /// Reads what the async fd of the shim's own context of that device has (see [`Event::DeviceOpened`]); sends [`Event::Port`]. Never blocks.
    fn read_async(&self, device: DeviceId);

    /// Devices that were removed since this was asked last. Nothing may be wrong with them yet: their drivers may wait for those who have them open.
    fn removed(&self) -> Vec<DeviceId> {
        Vec::new()
    }
    /// Nothing is asked of a device any more that was removed, and no QP of a standby is in use there: the shim destroys and closes what it has of it.
    fn let_go(&self, _device: DeviceId) {}

    /// A probe QP on the device that is the given path of that QP. Both ends open one.
    fn probe_open(&self, device: DeviceId, like: Gid) -> Result<(ProbeId, PathEnd), Errno>;
    /// (Re)connects a probe QP. Its NIC goes on trying for `patience` at least.
    fn probe_connect(
        &self,
        probe: ProbeId,
        peer: &PathEnd,
        own_psn: Psn,
        peer_psn: Psn,
        patience: Micros,
    ) -> Result<(), Errno>;
    /// Posts one probe: a zero-length WRITE on the shim's own QP.
    fn probe_start(&self, probe: ProbeId) -> Result<(), Errno>;
    /// Whether it is connected; `None`: not yet. A kernel that has to find out where the other end is may take a second.
    fn probe_connected(&self, probe: ProbeId) -> Option<Result<(), Errno>>;
    /// Asks for the answer.
    fn probe_poll(&self, probe: ProbeId) -> ProbeState;
    /// Nobody waits for the answer any more: the NIC is to stop trying, long before the QP is connected anew.
    fn probe_abandon(&self, _probe: ProbeId) {}
    /// Destroys the probe QP, off this thread if it may block.
    fn probe_close(&self, probe: ProbeId);
}

/// What the data path tells the agent.
#[derive(Clone, Debug)]
pub enum Event {
    /// The shim opened a device for itself; `async_fd` is non-blocking and readable when `DataPath::read_async` has something to do.
    DeviceOpened {
        /// The device.
        device: DeviceId,
        /// Of the shim's own context; stays open as long as the process lives.
        async_fd: std::os::fd::RawFd,
    },
    /// The QP reached RTS (both RTR and RTS attributes known): it may be armed.
    Connected {
        /// The QP.
        qp: QpLife,
        /// Its connection.
        facts: ConnectionFacts,
    },
    /// The QP uses something that is not protected; it was reported already.
    Unprotected {
        /// The QP.
        qp: QpLife,
        /// The reason.
        reason: Unprotected,
    },
    /// There is a further standby for what was made on that device before.
    StandbyCame {
        /// The device of the application's objects.
        device: DeviceId,
    },
    /// Memory that the QP may use is not on that standby: nothing of it may go there. It was reported already.
    SlotLost {
        /// The QP.
        qp: QpLife,
        /// The slot.
        slot: u8,
    },
    /// A QP was made that is not recorded at all; it was reported already.
    Unrecorded {
        /// Its device.
        device: DeviceId,
        /// Its number.
        qpn: u32,
        /// The reason.
        reason: Unprotected,
    },
    /// It was destroyed, or is recorded from now on.
    UnrecordedGone {
        /// Its device.
        device: DeviceId,
        /// Its number.
        qpn: u32,
    },
    /// A completion or flush that is a fault of the path; it is kept from the application.
    Fatal {
        /// The QP.
        qp: QpLife,
        /// The incarnation that it is of.
        epoch: Epoch,
        /// `wc.status` of the first error.
        status: u32,
    },
    /// An error that is the application's own (RNR, REM_*, LOC_*, its own ERR or RESET): passed on, no migration from now on.
    ApplicationError {
        /// The QP.
        qp: QpLife,
    },
    /// The application destroyed the QP.
    Destroyed {
        /// The QP.
        qp: QpLife,
    },
    /// Posts are held because of an unknown key or a full queue: `post_held` is wanted.
    Held {
        /// The QP.
        qp: QpLife,
    },
    /// A memory region exists on the primary and on standbys.
    KeyAdded {
        /// Device of the application's registration.
        device: DeviceId,
        /// rkey there.
        rkey: u32,
        /// rkeys on the standbys, by slot.
        standby_rkeys: StandbyKeys,
    },
    /// A memory region exists on a further standby.
    KeyExtended {
        /// Device of the application's registration.
        device: DeviceId,
        /// rkey there.
        rkey: u32,
        /// The standby's slot.
        slot: u8,
        /// rkey on the standby.
        standby_rkey: u32,
    },
    /// A memory region exists on the primary only: a peer that asks is told so, instead of that there is none.
    KeyUnprotected {
        /// Device of the application's registration.
        device: DeviceId,
        /// rkey there.
        rkey: u32,
    },
    /// A memory region is gone (its standby registration, if it had one, already is).
    KeyRemoved {
        /// Device of the application's registration.
        device: DeviceId,
        /// rkey there.
        rkey: u32,
    },
    /// The port of a device changed, as its async events say.
    Port {
        /// The device.
        device: DeviceId,
        /// Up again, or down.
        up: bool,
    },
}
