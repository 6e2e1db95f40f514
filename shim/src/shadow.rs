//! The shadow objects: what this library knows beside each object of the application.
//!
//! Owns: their fields and who may touch which. Lock order, outermost first: `QpShadow::cold`, then `SrqShadow::cold` (from which other QPs' `cold` is only
//! tried), then `QpEx`'s cell, then the posters' cells
//! (`SendQueue::poster`, `RecvQueue::poster`, `SrqShadow::poster`), then `CqEx`'s cell, then `CqShadow::inner`, from which `CqEx`'s is only tried, then
//! `SrqShadow::slots`, then the state of a `ChannelShadow`, then the mutex of a CQ of libibverbs'; `QpEx::provider` is held across nothing. Two CQs of one QP
//! are locked in the order of their addresses ([`lock_cqs`]); no other two cells of one kind are ever held together.

use crate::atomics::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use crate::cold::channel::ChannelShadow;
use crate::copies::{Copies, MoreSges};
pub use crate::domain::{MrFacts, MrShadow, PdShadow, StandbyPd, TwinMr};
use crate::hot::poll_ex::{CqEx, CqReads, MoreWc};
use crate::hot::ring::{RecvSlot, Ring, SendSlot};
use crate::hot::srq::SrqShadow;
use crate::hot::wr::QpEx;
use crate::spin::{SpinCell, SpinGuard};
use shift_abi::*;
use shift_proto::id::{Mtu, Psn, MAX_PATHS, MAX_STANDBYS};
use shift_proto::ledger::IncarnationReport;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// A pointer to an object of libibverbs that this library may hand to libibverbs from any of its threads.
pub struct Raw<T>(pub *mut T);

impl<T> Clone for Raw<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Raw<T> {}

// SAFETY: verbs objects may be used from any thread (libibverbs is thread safe); who holds a `Raw` only passes it on.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Raw<T> {}

/// The provider's own functions of one opened context, as they were before its table was patched.
#[derive(Clone, Copy)]
pub struct ProviderOps {
    /// `ops.post_send`.
    pub post_send: post_send_fn,
    /// `ops.post_recv`.
    pub post_recv: post_recv_fn,
    /// `ops.poll_cq`.
    pub poll_cq: poll_cq_fn,
    /// `ops.req_notify_cq`.
    pub req_notify_cq: Option<req_notify_cq_fn>,
    /// `ops.post_srq_recv`; a device may have no shared receive queues.
    pub post_srq_recv: Option<post_srq_recv_fn>,
}

/// A context that the application opened.
pub struct ContextShadow {
    /// The provider's own functions.
    pub ops: ProviderOps,
    /// Those of the extended table.
    pub extended: crate::cold::extended::ExtendedOps,
    /// The device: index into [`crate::cold::rail`]'s table.
    pub device: u16,
}

/// There are completions in the stash, or parked ones.
pub const STASH: u32 = 1 << 0;
/// A QP of this CQ works on its standby: its twin has to be polled too.
pub const TWIN: u32 = 1 << 1;
/// Tagged QPs use this CQ: completions have to be looked at.
pub const TAGGED: u32 = 1 << 2;
/// QPs without a shadow use it too: their numbers are in `CqInner::foreign`.
pub const FOREIGN: u32 = 1 << 3;
/// Its provider has no lock for it (single-threaded, or of a thread domain): whoever calls the provider holds `inner`.
pub const UNLOCKED: u32 = 1 << 4;
/// QPs that receive through an SRQ complete here: it is polled under its lock.
pub const SHARED: u32 = 1 << 5;
/// A call that resizes it, or takes a QP's completions out of it, runs in the provider: who polls finds nothing, and waits for nobody. Of UNLOCKED ones.
pub const IN_CALL: u32 = 1 << 6;
/// The program knows where its entries lie (`mlx5dv_init_obj`), so it must not be resized. Set once.
pub const MAPPED: u32 = 1 << 7;
/// A request that completes here is being timed. Set by its poster, cleared by who polls it.
pub const TIMED: u32 = 1 << 8;

/// A CQ of the application.
pub struct CqShadow {
    /// The application's object.
    pub cq: Raw<ibv_cq>,
    /// Its context's own functions.
    pub ops: ProviderOps,
    /// It has a completion channel that this library does not know: its QPs are not protected.
    pub has_channel: bool,
    /// Its completion channel, if that is one of ours.
    pub channel: Option<Arc<ChannelShadow>>,
    /// What the application asked for and got no event of yet: 0, or constants of `cold::notify`. SeqCst, for the handshakes described there.
    pub armed: AtomicU8,
    /// Completions that had waited for their predecessor went to the stash. Under `inner`.
    pub late: AtomicBool,
    /// Why no QP of it can be protected.
    pub refused: Option<&'static str>,
    /// `ibv_start_poll` and its readers, where it was made for them.
    pub ex: Option<CqEx>,
    /// Bits above. Written under `inner`, read without (Relaxed: a stale value delays by one poll).
    pub attention: AtomicU32,
    /// Polls of the application, roughly (plain increments): tells the sweep that somebody looks.
    pub polls: AtomicU32,
    /// `polls` at the last sweep. Of the agent.
    pub polls_seen: AtomicU32,
    /// When the last poll that found no more began, for `hot::timed`. Of pollers.
    pub looked: AtomicU64,
    /// What pollers and the agent share.
    pub inner: SpinCell<CqInner>,
}

/// What is behind the lock of a CQ. The holder also owns the completion side of every queue that completes here.
#[derive(Default)]
pub struct CqInner {
    /// The twins on the standbys, once a QP needs them.
    pub twins: Vec<TwinCq>,
    /// How the application moderates its events.
    pub moderation: Option<ibv_modify_cq_attr>,
    /// Room asked of the provider for the application's CQ and its twin.
    pub entries: u32,
    /// Room that the application asked for.
    pub asked: u32,
    /// Finished completions, in order.
    pub stash: VecDeque<StashedWc>,
    /// Raw completions whose predecessor is still in the hands of another thread.
    pub parked: Vec<(ibv_wc, Source, MoreWc)>,
    /// QP numbers of QPs without a shadow.
    pub foreign: Vec<u32>,
    /// Recorded QPs that were destroyed lately, number and life: what is left of them in the provider's CQ is dropped.
    pub gone: VecDeque<(u32, u32)>,
    /// Recorded QPs that receive through an SRQ, by the number that completions have, with their lives.
    pub receivers: HashMap<(Source, u32), u32>,
    /// Depths of the QPs that use this CQ, summed: the room that flushes may need.
    pub depth: u32,
    /// The application destroyed the CQ.
    pub destroyed: bool,
}

/// A CQ of this library's own.
#[derive(Clone, Copy)]
pub struct TwinCq {
    /// Of the standby.
    pub slot: u8,
    /// Its device.
    pub device: u16,
    /// The CQ.
    pub cq: Raw<ibv_cq>,
    /// Its provider's function.
    pub poll: poll_cq_fn,
    /// Its readers, where completions carry more than `ibv_wc` holds.
    pub reads: Option<CqReads>,
}

impl CqInner {
    /// Room that the application's CQ has to have.
    pub fn needed(&self) -> u32 {
        let of_others = if self.foreign.is_empty() { 0 } else { self.asked };
        self.depth.saturating_add(of_others)
    }
}

/// How many destroyed QP numbers a CQ remembers; a CQ that is polled at all forgets them long before.
pub const GONE: usize = 256;

/// Locks both CQs of a QP.
pub fn lock_cqs(qp: &QpShadow) -> (SpinGuard<'_, CqInner>, Option<SpinGuard<'_, CqInner>>) {
    let (send, recv) = (&*qp.send_cq, &*qp.recv_cq);
    if core::ptr::eq(send, recv) {
        return (send.inner.lock(), None);
    }
    if core::ptr::from_ref(send) < core::ptr::from_ref(recv) {
        let first = send.inner.lock();
        (first, Some(recv.inner.lock()))
    } else {
        let second = recv.inner.lock();
        (send.inner.lock(), Some(second))
    }
}

/// A finished completion and the QP it belongs to (so that destroying the QP can purge it).
pub struct StashedWc {
    /// As the application gets it.
    pub wc: ibv_wc,
    /// The QP.
    pub life: u32,
    /// What only an extended CQ says.
    pub more: MoreWc,
}

// SAFETY: completions are plain data; the raw pointers inside are handles (see `Raw`).
unsafe impl Send for CqInner {}

/// Which provider CQ a raw completion came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The application's CQ.
    Own,
    /// Its twin in that slot.
    Twin(u8),
}

/// Where a QP stands towards its faults. See [`QpShadow::stance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stance {
    /// Recorded, faults are the application's.
    Recording = 0,
    /// Recorded, faults are masked.
    Armed = 1,
    /// A fault is being masked: errors are counted and kept.
    Masking = 2,
    /// The application saw an error of its own: everything is passed on.
    Passing = 3,
    /// An error was surfaced: the rest was flushed by us, the NIC's completions are dropped.
    Surfaced = 4,
}

impl Stance {
    const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::Recording,
            1 => Self::Armed,
            2 => Self::Masking,
            3 => Self::Passing,
            _ => Self::Surfaced,
        }
    }
}

/// A QP of the application that is recorded.
pub struct QpShadow {
    /// Its number in tags.
    pub life: u32,
    /// The application's object.
    pub qp: Raw<ibv_qp>,
    /// `qp_num` of it: what every completion says.
    pub qpn: u32,
    /// Its PD.
    pub pd: Arc<PdShadow>,
    /// Device of the primary.
    pub device: u16,
    /// As granted.
    pub cap: ibv_qp_cap,
    /// `sq_sig_all` of the application.
    pub signals_all: bool,
    /// CQ of its sends.
    pub send_cq: Arc<CqShadow>,
    /// CQ of its receives.
    pub recv_cq: Arc<CqShadow>,
    /// What it receives through instead of a queue of its own.
    pub srq: Option<Arc<SrqShadow>>,
    /// The application was told LAST_WQE_REACHED, which comes once in a life.
    pub last_wqe_told: AtomicBool,
    /// Sites in which its object may take receives of its SRQ, as bits: from before its RTR until it was swept after RESET, or destroyed.
    pub takes: AtomicU8,
    /// A message was lost to it, and it is being surfaced.
    pub lost: AtomicBool,
    stance: AtomicU8,
    /// Epoch of the incarnation of which a fatal completion was told to the agent last, plus one; 0 = none.
    pub fatal_told: AtomicU32,
    /// Status of the first error that was kept from the application, plus one; 0 = none.
    pub first_error: AtomicU32,
    /// Send side.
    pub sq: SendQueue,
    /// Receive side.
    pub rq: RecvQueue,
    /// Everything that only control verbs and the agent touch.
    pub cold: Mutex<QpCold>,
    /// Whether it uses atomics, and may.
    pub atomics: Atomics,
    /// Why it is not protected, said once.
    pub unprotected: OnceLock<String>,
    /// `ibv_wr_*`, where it was made for them.
    pub ex: Option<Arc<QpEx>>,
}

/// Each flag is set once. Who sets one looks at the other afterwards (SeqCst), so one of the two sees both.
#[derive(Default)]
pub struct Atomics {
    /// The application posted one.
    pub posted: AtomicBool,
    /// The peer's two devices are atomic each by itself only.
    pub forbidden: AtomicBool,
}

impl QpShadow {
    /// A new life.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of the QP that was just made")]
    pub fn new(
        life: u32,
        qp: Raw<ibv_qp>,
        qpn: u32,
        pd: Arc<PdShadow>,
        init: &ibv_qp_init_attr,
        cqs: (Arc<CqShadow>, Arc<CqShadow>),
        srq: Option<Arc<SrqShadow>>,
        ops: ProviderOps,
    ) -> Self {
        let device = pd.device;
        let own_receives = if srq.is_some() { 0 } else { init.cap.max_recv_wr };
        let target = Target { qp, post_send: ops.post_send };
        Self {
            life,
            qp,
            qpn,
            pd,
            device,
            cap: init.cap,
            signals_all: init.sq_sig_all != 0,
            send_cq: cqs.0,
            recv_cq: cqs.1,
            srq,
            last_wqe_told: AtomicBool::new(false),
            takes: AtomicU8::new(0),
            lost: AtomicBool::new(false),
            stance: AtomicU8::new(Stance::Recording as u8),
            fatal_told: AtomicU32::new(0),
            first_error: AtomicU32::new(0),
            sq: SendQueue::new(init.cap, target),
            rq: RecvQueue::new(own_receives, RecvTarget { qp, post_recv: ops.post_recv }),
            cold: Mutex::new(QpCold::new(init)),
            atomics: Atomics::default(),
            unprotected: OnceLock::new(),
            ex: None,
        }
    }

    /// Where it stands.
    #[inline]
    pub fn stance(&self) -> Stance {
        Stance::from_raw(self.stance.load(Ordering::Acquire))
    }

    /// Moves from one stance to another; `false` if it stood elsewhere.
    pub fn step(&self, from: Stance, to: Stance) -> bool {
        self.stance.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Moves to a stance from wherever it stands.
    pub fn stand(&self, to: Stance) {
        self.stance.store(to as u8, Ordering::Release);
    }

    /// The application has seen no error of it: only then may the agent bring a path of it to life.
    pub fn may_move(&self) -> bool {
        !matches!(self.stance(), Stance::Surfaced | Stance::Passing)
    }

    /// The cold part. A panic while it was held leaves data that the fail-open paths tolerate, so poison is ignored.
    pub fn cold(&self) -> std::sync::MutexGuard<'_, QpCold> {
        self.cold.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What posting does at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostMode {
    /// Recorded and posted.
    Direct,
    /// Recorded; the agent posts it.
    Held,
    /// Recorded and flushed at once: the QP is in error for the application.
    Flushing,
    /// The application destroys or resets the QP: nobody posts any more, the agent least of all.
    Gone,
}

/// Where sends go.
#[derive(Clone, Copy)]
pub struct Target {
    /// The QP object of the current path.
    pub qp: Raw<ibv_qp>,
    /// Its provider's function.
    pub post_send: post_send_fn,
}

/// Where receives go.
#[derive(Clone, Copy)]
pub struct RecvTarget {
    /// The QP object of the current path.
    pub qp: Raw<ibv_qp>,
    /// Its provider's function.
    pub post_recv: post_recv_fn,
}

/// The send queue's shadow.
pub struct SendQueue {
    /// What was posted.
    pub ring: Ring<SendSlot>,
    /// Elements beyond the first of each slot, made by the first post that has some.
    pub more_sges: OnceLock<MoreSges>,
    /// Room for copied payloads, made by the first post that needs it.
    pub copies: OnceLock<Copies>,
    /// The posters' side.
    pub poster: SpinCell<Poster>,
    /// Signalled entries of this incarnation whose completion was accounted for. Of the holder of the send CQ's lock.
    pub signals_seen: AtomicU32,
    /// An error was accounted for on this incarnation: flushes need not be in the order of signals any more.
    pub errored: AtomicBool,
    /// Entries between head and tail may be marked DONE, or signalled by the application without a signal of the NIC.
    pub mixed: AtomicBool,
    /// While `mixed`: it ends when head reaches this.
    pub mixed_until: AtomicU64,
    /// Current epoch: completions tagged with another are of an old incarnation.
    pub epoch: AtomicU32,
    /// One request that is timed.
    pub timed: crate::hot::timed::Timed,
}

/// What the one posting thread owns.
pub struct Poster {
    /// What to do with a post.
    pub mode: PostMode,
    /// Where to.
    pub target: Target,
    /// Keys have to be translated (the target is the standby).
    pub translate: bool,
    /// The epoch of the current incarnation.
    pub epoch: u32,
    /// Packet number after the last posted entry, on the current incarnation.
    pub psn_next: u64,
    /// Receive-consuming entries posted on the current incarnation.
    pub consuming: u64,
    /// NIC-signalled entries posted.
    pub signals: u32,
    /// Unsignalled entries since the last signalled one.
    pub unsignalled_run: u32,
    /// After so many one is signalled by us.
    pub signal_every: u32,
    /// MTU of the current incarnation, as a shift.
    pub mtu_shift: u32,
    /// Translations that were needed lately.
    pub keys: crate::hot::keys::KeyCache,
    /// Room for the translated elements of one batch.
    pub sges: Vec<ibv_sge>,
}

// SAFETY: the raw pointers inside (of the scratch chain) are only used under the poster's cell by the thread that filled them.
unsafe impl Send for Poster {}

/// Unsignalled entries between two that are signalled by us: the queue must not fill up with what gives no completion.
pub fn signal_pace(cap: &ibv_qp_cap) -> u32 {
    (cap.max_send_wr / 2).max(1)
}

impl SendQueue {
    fn new(cap: ibv_qp_cap, target: Target) -> Self {
        let depth = cap.max_send_wr.max(1);
        Self {
            ring: Ring::with_room_for(depth),
            more_sges: OnceLock::new(),
            copies: OnceLock::new(),
            poster: SpinCell::new(Poster {
                mode: PostMode::Direct,
                target,
                translate: false,
                epoch: 0,
                psn_next: 0,
                consuming: 0,
                signals: 0,
                unsignalled_run: 0,
                signal_every: signal_pace(&cap),
                mtu_shift: 10,
                keys: crate::hot::keys::KeyCache::new(),
                sges: Vec::new(),
            }),
            signals_seen: AtomicU32::new(0),
            errored: AtomicBool::new(false),
            mixed: AtomicBool::new(false),
            mixed_until: AtomicU64::new(0),
            epoch: AtomicU32::new(0),
            timed: crate::hot::timed::Timed::new(),
        }
    }
}

/// The receive queue's shadow.
pub struct RecvQueue {
    /// What was posted.
    pub ring: Ring<RecvSlot>,
    /// Elements beyond the first.
    pub more_sges: OnceLock<MoreSges>,
    /// The posters' side.
    pub poster: SpinCell<RecvPoster>,
    /// Successes on the current incarnation. Of the holder of the receive CQ's lock.
    pub received: AtomicU64,
    /// Receives that came back unused since the fence began.
    pub flushed: AtomicU64,
    /// Current epoch of the receive side.
    pub epoch: AtomicU32,
}

/// What the one thread that posts receives owns.
pub struct RecvPoster {
    /// What to do with a post.
    pub mode: PostMode,
    /// Where to.
    pub target: RecvTarget,
    /// Keys have to be translated.
    pub translate: bool,
    /// The epoch of the current incarnation.
    pub epoch: u32,
    /// First receive that was recorded while the queue was held, since it was held.
    pub held_from: u64,
    /// Translations that were needed lately.
    pub keys: crate::hot::keys::KeyCache,
    /// Room for translated elements.
    pub sges: Vec<ibv_sge>,
}

// SAFETY: as for `Poster`.
unsafe impl Send for RecvPoster {}

impl RecvQueue {
    fn new(depth: u32, target: RecvTarget) -> Self {
        Self {
            ring: Ring::with_room_for(depth.max(1)),
            more_sges: OnceLock::new(),
            poster: SpinCell::new(RecvPoster {
                mode: PostMode::Direct,
                target,
                translate: false,
                epoch: 0,
                held_from: 0,
                keys: crate::hot::keys::KeyCache::new(),
                sges: Vec::new(),
            }),
            received: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            epoch: AtomicU32::new(0),
        }
    }
}

/// What only control verbs and the agent touch, under one lock that is never held across a wait.
pub struct QpCold {
    /// Attributes as the application set them so far.
    pub attr: ibv_qp_attr,
    /// The application has not destroyed (or reset) it.
    pub alive: bool,
    /// As the application asked, for the twin.
    pub init: ibv_qp_init_attr,
    /// What is offered on the standbys, by slot.
    pub twins: [Option<TwinQp>; MAX_STANDBYS],
    /// The slot of each path of this library's own: path 1 comes first.
    pub slots: [u8; MAX_PATHS - 1],
    /// What each path is connected for.
    pub connected: [Option<Connected>; MAX_PATHS],
    /// The path in use.
    pub path: u8,
    /// Source GID of the first path, chosen once: its index may differ whenever it is used.
    pub gid: Option<ibv_gid_entry>,
    /// Path MTU that was offered to the peer with it.
    pub mtu: Option<Mtu>,
    /// Reports of earlier incarnations that the peer may still need.
    pub reports: Vec<IncarnationReport>,
    /// Incarnations that entries of the ledger may have been posted on.
    pub incarnations: Vec<Incarnation>,
    /// The fence under way.
    pub fence: Option<Fence>,
    /// The epoch for which receives were reposted.
    pub reposted: Option<u32>,
    /// It ended in an error, and its last completions are waited for, since then.
    pub aside: Option<Instant>,
    /// The epoch whose incarnation the send side was set up for.
    pub sending: u32,
    /// Reposting under way: its epoch, and the next receive to be posted, so that a second try posts none twice.
    pub repost_next: Option<(u32, u64)>,
    /// Replay under way: next sequence number to be posted on the new path.
    pub replay_next: u64,
}

/// A QP of this library's own.
#[derive(Clone, Copy)]
pub struct TwinQp {
    /// The QP.
    pub qp: Raw<ibv_qp>,
    /// Its source GID, as of the first path.
    pub gid: Option<ibv_gid_entry>,
    /// See `gid`.
    pub mtu: Option<Mtu>,
}

/// A path at RTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The epoch it is connected for.
    pub epoch: u32,
    /// First PSN of this end.
    pub own_psn: u32,
    /// Bytes.
    pub mtu: u32,
}

/// One incarnation, as the sender has to know it to read the peer's report.
#[derive(Clone, Copy, Debug)]
pub struct Incarnation {
    /// Its epoch.
    pub epoch: u32,
    /// Its path.
    pub path: u8,
    /// Bytes.
    pub mtu: u32,
    /// Packet number after the last completed entry, frozen at its fence.
    pub completed: u64,
    /// Packet number after the last posted entry, frozen at its fence.
    pub posted: u64,
    /// Receive-consuming entries that completed on it, frozen at its fence.
    pub completed_receives: u64,
    /// Receive-consuming entries that were posted on it, frozen at its fence.
    pub posted_receives: u64,
    /// The fence is over: the numbers above are final.
    pub closed: bool,
}

/// A fence under way.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    /// Then it goes on without the completions that are still missing.
    pub drained_by: Instant,
    /// The provider accepted ERR.
    pub in_error: bool,
    /// Entries posted on the incarnation when it began.
    pub send_tail: u64,
    /// Receives posted on it.
    pub recv_tail: u64,
    /// It is in RESET; what the responder expected next.
    pub stopped: Option<Psn>,
}

// SAFETY: the attribute structures hold raw pointers that are only passed on to libibverbs (see `Raw`).
unsafe impl Send for QpCold {}

impl QpCold {
    /// The slot of a path; `None`: it is the application's own.
    pub fn slot(&self, path: u8) -> Option<u8> {
        let at = usize::from(path).checked_sub(1)?;
        self.slots.get(at).copied()
    }

    /// What is offered on a path of this library's own.
    pub fn twin(&self, path: u8) -> Option<TwinQp> {
        self.slot(path).and_then(|slot| self.twins.get(usize::from(slot)).copied().flatten())
    }

    /// Source GID of a path.
    pub fn gid_of(&self, path: u8) -> Option<ibv_gid_entry> {
        if path == 0 {
            self.gid
        } else {
            self.twin(path).and_then(|twin| twin.gid)
        }
    }

    fn new(init: &ibv_qp_init_attr) -> Self {
        Self {
            attr: ibv_qp_attr::zeroed(),
            alive: true,
            init: *init,
            twins: [None; MAX_STANDBYS],
            slots: core::array::from_fn(|at| at as u8),
            connected: [None; MAX_PATHS],
            path: 0,
            gid: None,
            mtu: None,
            reports: Vec::new(),
            incarnations: Vec::new(),
            fence: None,
            reposted: None,
            aside: None,
            sending: 0,
            repost_next: None,
            replay_next: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a QP of depth 512 with one element a request, beside the copies, which only a QP has that posts inline or small payloads.
    #[test]
    fn a_protected_qp_of_depth_512_costs_at_most_64_kib() {
        let depth = 512_u32;
        let sends = Ring::<SendSlot>::with_room_for(depth).size() as usize * size_of::<SendSlot>();
        let receives = Ring::<RecvSlot>::with_room_for(depth).size() as usize * size_of::<RecvSlot>();
        let scratch = 2 * crate::hot::post::BATCH * size_of::<ibv_sge>();
        let extended = crate::hot::wr::bytes_at_first();
        let total = size_of::<QpShadow>() + sends + receives + scratch + extended;
        assert!(total <= 64 << 10, "{total} bytes");
    }
}
