//! The hot path on a provider that only remembers: what is handed over, what is recorded, what makes a QP unprotected.

use super::poll_ex::CqEx;
use super::post::post_send;
use super::ring::*;
use super::tag::{Queue, Tag};
use super::wr::QpEx;
use crate::atomics::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering::Relaxed};
use crate::shadow::*;
use core::ffi::c_int;
use shift_abi::*;
use shift_control::datapath::{Errno, RemoteKey, RemoteKeys, ReplayProgress};
use shift_proto::id::WrSeq;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Provider {
    pub(super) posted: Vec<ibv_send_wr>,
    /// What was inline, and how many elements each receive had.
    pub(super) inlined: Vec<Vec<u8>>,
    received: Vec<c_int>,
    pub(super) completions: VecDeque<ibv_wc>,
    /// How many requests it takes before it refuses one with ENOMEM.
    pub(super) room: Option<usize>,
    /// It takes what it is given, and says that it failed.
    doorbell_fails: bool,
    /// Is called at each poll.
    pub(super) at_poll: Option<Box<dyn Fn()>>,
    /// It has nothing more to give, and says that the CQ is broken.
    pub(super) is_broken: bool,
}

thread_local! {
    pub(super) static PROVIDER: RefCell<Provider> = RefCell::default();
}

unsafe extern "C" fn take_send(_qp: *mut ibv_qp, mut wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    PROVIDER.with_borrow_mut(|provider| {
        while !wr.is_null() {
            if provider.room == Some(0) {
                // SAFETY: the caller passes a writable place.
                unsafe { *bad = wr };
                return libc::ENOMEM;
            }
            provider.room = provider.room.map(|room| room - 1);
            // SAFETY: the caller passes a chain of live requests.
            let request = unsafe { *wr };
            provider.posted.push(request);
            if request.send_flags & IBV_SEND_INLINE != 0 {
                provider.inlined.push(payload(&request));
            }
            wr = request.next;
        }
        if provider.doorbell_fails {
            libc::ENOMEM
        } else {
            0
        }
    })
}

unsafe extern "C" fn take_recv(_qp: *mut ibv_qp, wr: *mut ibv_recv_wr, _bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: the caller passes a request.
    let elements = unsafe { (*wr).num_sge };
    PROVIDER.with_borrow_mut(|provider| provider.received.push(elements));
    0
}

/// The payload of a request of at most one element, as an inline one is read at post.
fn payload(wr: &ibv_send_wr) -> Vec<u8> {
    if wr.num_sge == 0 {
        return Vec::new();
    }
    // SAFETY: the list of a request that is being posted is readable.
    let sge = unsafe { *wr.sg_list };
    // SAFETY: so is the element of an inline one.
    unsafe { std::slice::from_raw_parts(sge.addr as *const u8, sge.length as usize) }.to_vec()
}

unsafe extern "C" fn give_completions(_cq: *mut ibv_cq, entries: c_int, out: *mut ibv_wc) -> c_int {
    PROVIDER.with_borrow_mut(|provider| {
        if let Some(look) = &provider.at_poll {
            look();
        }
        let count = provider.completions.len().min(usize::try_from(entries).unwrap_or(0));
        for (at, wc) in provider.completions.drain(..count).enumerate() {
            // SAFETY: the caller's array has room for `entries`.
            unsafe { out.wrapping_add(at).write(wc) };
        }
        if provider.is_broken && count == 0 {
            return -1;
        }
        count as c_int
    })
}

pub(super) const QPN: u32 = 0x11;
/// Under loom each word costs, and a ring of two goes round soon.
const DEPTH: u32 = if cfg!(loom) { 2 } else { 64 };
pub(super) const CAP: ibv_qp_cap =
    ibv_qp_cap { max_send_wr: DEPTH, max_recv_wr: DEPTH, max_send_sge: 2, max_recv_sge: 2, max_inline_data: 64 };
pub(crate) const OPS: ProviderOps = ProviderOps {
    post_send: take_send,
    post_recv: take_recv,
    poll_cq: give_completions,
    req_notify_cq: None,
    post_srq_recv: None,
};

pub(crate) struct Bench {
    pub(crate) qp: Arc<QpShadow>,
}

impl Bench {
    /// A QP of 64 sends that signals only what it is asked to.
    pub(crate) fn new() -> Self {
        Self::of((core::ptr::null_mut(), None), (core::ptr::null_mut(), None))
    }

    /// The same with objects that an application could name, and what is extended of them.
    pub(super) fn of(pair: (*mut ibv_qp, Option<QpEx>), queue: (*mut ibv_cq, Option<CqEx>)) -> Self {
        Self::on(pair, queue, None)
    }

    /// The same on a completion channel.
    pub(super) fn on(
        pair: (*mut ibv_qp, Option<QpEx>),
        queue: (*mut ibv_cq, Option<CqEx>),
        channel: Option<Arc<crate::cold::channel::ChannelShadow>>,
    ) -> Self {
        PROVIDER.with_borrow_mut(|provider| *provider = Provider::default());
        Self::over(OPS, pair, queue, channel)
    }

    /// The same over a provider's functions.
    pub(super) fn over(
        ops: ProviderOps,
        pair: (*mut ibv_qp, Option<QpEx>),
        queue: (*mut ibv_cq, Option<CqEx>),
        channel: Option<Arc<crate::cold::channel::ChannelShadow>>,
    ) -> Self {
        let pd = PdShadow::new(0, Err("none".into()));
        let cq = Arc::new(CqShadow {
            cq: Raw(queue.0),
            ops,
            has_channel: false,
            channel,
            armed: AtomicU8::new(0),
            late: AtomicBool::new(false),
            refused: None,
            ex: queue.1,
            attention: AtomicU32::new(TAGGED),
            polls: AtomicU32::new(0),
            polls_seen: AtomicU32::new(0),
            looked: AtomicU64::new(0),
            inner: crate::spin::SpinCell::new(CqInner::default()),
        });
        let mut init = ibv_qp_init_attr::zeroed();
        init.cap = CAP;
        let life = crate::lives::next();
        let mut qp = QpShadow::new(life, Raw(pair.0), QPN, Arc::new(pd), &init, (Arc::clone(&cq), cq), None, ops);
        qp.ex = pair.1.map(Arc::new);
        let qp = Arc::new(qp);
        crate::lives::begin(&qp);
        Self { qp }
    }

    /// Posts a chain; gives errno and the index of `bad_wr`.
    pub(super) fn post(&self, requests: &mut [ibv_send_wr]) -> (c_int, Option<usize>) {
        let first = requests.as_mut_ptr();
        for at in 1..requests.len() {
            requests[at - 1].next = first.wrapping_add(at);
        }
        let mut bad = core::ptr::null_mut();
        // SAFETY: the chain was just linked; `bad` is writable.
        let errno = unsafe { post_send(&self.qp, first, &mut bad) };
        let index = (!bad.is_null()).then(|| (bad as usize - first as usize) / size_of::<ibv_send_wr>());
        (errno, index)
    }

    /// Posts one signalled send.
    pub(crate) fn post_signalled(&self, wr_id: u64) {
        assert_eq!(self.post(&mut [request(wr_id, IBV_WR_SEND, IBV_SEND_SIGNALED)]), (0, None));
    }

    pub(super) fn posted(&self) -> Vec<ibv_send_wr> {
        PROVIDER.with_borrow(|provider| provider.posted.clone())
    }

    /// The NIC completes these entries; what the application then polls.
    pub(super) fn complete(&self, entries: &[(u64, ibv_wc_status)]) -> Vec<ibv_wc> {
        PROVIDER.with_borrow_mut(|provider| {
            provider.completions.extend(entries.iter().map(|(seq, status)| {
                let mut wc = ibv_wc::zeroed();
                wc.wr_id = Tag::new(self.qp.life, Queue::Send, 0, *seq).0;
                (wc.status, wc.qp_num) = (*status, QPN);
                wc
            }));
        });
        let mut out = [ibv_wc::zeroed(); 32];
        // SAFETY: the array has room for 32.
        let count = unsafe { super::poll::poll_cq(&self.qp.send_cq, 32, out.as_mut_ptr()) };
        out[..count as usize].to_vec()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _inner = self.qp.send_cq.inner.lock();
        crate::lives::end(self.qp.life);
    }
}

pub(super) fn request(wr_id: u64, opcode: ibv_wr_opcode, flags: u32) -> ibv_send_wr {
    let mut wr = ibv_send_wr::zeroed();
    (wr.wr_id, wr.opcode, wr.send_flags) = (wr_id, opcode, flags);
    wr
}

fn atomic(wr_id: u64, opcode: ibv_wr_opcode, sge: &mut ibv_sge) -> ibv_send_wr {
    let mut wr = request(wr_id, opcode, 0);
    (wr.sg_list, wr.num_sge) = (sge, 1);
    wr.wr.atomic = ibv_wr_atomic { remote_addr: 0x1000, compare_add: 7, swap: 9, rkey: 0x55 };
    wr
}

const PROTECTED: [ibv_wr_opcode; 7] = [
    IBV_WR_SEND,
    IBV_WR_SEND_WITH_IMM,
    IBV_WR_RDMA_WRITE,
    IBV_WR_RDMA_WRITE_WITH_IMM,
    IBV_WR_RDMA_READ,
    IBV_WR_ATOMIC_CMP_AND_SWP,
    IBV_WR_ATOMIC_FETCH_AND_ADD,
];

#[test]
fn seven_opcodes_are_protected_and_every_other_is_named_once_and_still_posted() {
    let others = [
        IBV_WR_LOCAL_INV,
        IBV_WR_BIND_MW,
        IBV_WR_SEND_WITH_INV,
        IBV_WR_TSO,
        IBV_WR_DRIVER1,
        IBV_WR_ATOMIC_WRITE,
        ibv_wr_opcode(77),
    ];
    for opcode in PROTECTED.into_iter().chain(others) {
        let name = format!("{opcode:?}");
        let bench = Bench::new();
        assert_eq!(bench.post(&mut [request(1, opcode, 0), request(2, opcode, 0)]), (0, None), "{name}");
        assert_eq!(bench.posted().len(), 2, "{name} is passed on");
        let why = bench.qp.unprotected.get();
        assert_eq!(why.is_none(), PROTECTED.contains(&opcode), "{name}: {why:?}");
        assert!(why.is_none_or(|why| why.contains(&name)), "{why:?}");
    }
    let bench = Bench::new();
    bench.post(&mut [request(1, IBV_WR_SEND_WITH_INV, 0)]);
    assert!(bench.qp.unprotected.get().is_some_and(|why| why.contains("invalidation")));
}

#[test]
fn an_atomic_is_signalled_takes_one_packet_and_keeps_its_operands() {
    let bench = Bench::new();
    let mut sge = ibv_sge { addr: 0x2000, length: 8, lkey: 3 };
    let mut chain = [
        atomic(1, IBV_WR_ATOMIC_FETCH_AND_ADD, &mut sge),
        atomic(2, IBV_WR_ATOMIC_CMP_AND_SWP, &mut sge),
        request(3, IBV_WR_SEND, IBV_SEND_SIGNALED | IBV_SEND_FENCE),
    ];
    assert_eq!(bench.post(&mut chain), (0, None));
    assert!(bench.posted().iter().all(|wr| wr.send_flags & IBV_SEND_SIGNALED != 0));
    assert!(bench.posted()[2].send_flags & IBV_SEND_FENCE != 0, "the NIC keeps the order");
    assert!(bench.qp.sq.ring.slot(2).has(FENCED), "and so does the ledger");
    for seq in [0, 1] {
        let slot = bench.qp.sq.ring.slot(seq);
        assert_eq!((slot.psn.load(Relaxed), slot.bytes.load(Relaxed), slot.rkey.load(Relaxed)), (seq as u32, 8, 0x55));
        assert_eq!(slot.remote_addr.load(Relaxed), 0x1000);
        assert_eq!(bench.qp.sq.copies.get().map(|copies| copies.operands(seq as usize)), Some([7, 9]));
        assert!(!slot.has(COPIED), "operands are no payload");
    }
    // The application asked for one completion and gets one.
    let seen = bench.complete(&[(0, IBV_WC_SUCCESS), (1, IBV_WC_SUCCESS), (2, IBV_WC_SUCCESS)]);
    assert_eq!(seen.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [3]);
}

#[test]
fn atomics_that_do_not_exclude_one_another_at_the_peer_unprotect_whichever_comes_first() {
    let mut sge = ibv_sge { addr: 0x2000, length: 8, lkey: 3 };
    let bench = Bench::new();
    crate::cold::tell::forbid_atomics(&bench.qp);
    assert!(bench.qp.unprotected.get().is_none(), "nothing is wrong before one is posted");
    bench.post(&mut [atomic(1, IBV_WR_ATOMIC_FETCH_AND_ADD, &mut sge)]);
    assert!(bench.qp.unprotected.get().is_some());

    let bench = Bench::new();
    bench.post(&mut [atomic(1, IBV_WR_ATOMIC_CMP_AND_SWP, &mut sge)]);
    assert!(bench.qp.unprotected.get().is_none());
    crate::cold::tell::forbid_atomics(&bench.qp);
    assert!(bench.qp.unprotected.get().is_some());
}

#[test]
fn what_the_provider_refuses_of_a_chain_is_taken_back_and_named() {
    let bench = Bench::new();
    PROVIDER.with_borrow_mut(|provider| provider.room = Some(18));
    // Longer than a batch, so the refusal is in the second one.
    let mut chain: Vec<ibv_send_wr> =
        (0..24).map(|at| request(at, IBV_WR_SEND, if at % 4 == 3 { IBV_SEND_SIGNALED } else { 0 })).collect();
    assert_eq!(bench.post(&mut chain), (libc::ENOMEM, Some(18)));
    assert_eq!((bench.qp.sq.ring.tail(), bench.posted().len()), (18, 18));
    {
        let poster = bench.qp.sq.poster.lock();
        assert_eq!((poster.psn_next, poster.consuming, poster.signals), (18, 18, 4));
    }
    PROVIDER.with_borrow_mut(|provider| provider.room = None);
    assert_eq!(bench.post(&mut chain[18..]), (0, None), "the application posts the rest again");
    let tags: Vec<u64> = bench.posted().iter().map(|wr| Tag(wr.wr_id).seq(0)).collect();
    assert_eq!(tags, (0..24).collect::<Vec<u64>>(), "in order, none twice, none left out");
    let posted = bench.posted();
    let signalled = posted.iter().enumerate().filter(|(_, wr)| wr.send_flags & IBV_SEND_SIGNALED != 0);
    let entries: Vec<(u64, ibv_wc_status)> = signalled.map(|(at, _)| (at as u64, IBV_WC_SUCCESS)).collect();
    let seen = bench.complete(&entries);
    assert_eq!(seen.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [3, 7, 11, 15, 19, 23]);
    assert_eq!(bench.qp.sq.ring.head(), 24);
}

#[test]
fn an_exclusion_holds_sends_and_lets_receives_flow() {
    let bench = Bench::new();
    assert!(crate::cold::replay::exclude(&bench.qp));
    assert_eq!(bench.qp.sq.poster.lock().mode, PostMode::Held);
    assert_eq!(bench.qp.rq.poster.lock().mode, PostMode::Direct);
    assert_eq!(bench.post(&mut [request(1, IBV_WR_SEND, IBV_SEND_SIGNALED)]), (0, None));
    assert!(bench.posted().is_empty() && bench.qp.sq.ring.slot(0).has(HELD));
    crate::cold::replay::release(&bench.qp);
    assert_eq!((bench.posted().len(), bench.qp.sq.poster.lock().mode), (1, PostMode::Direct));
}

/// None is known.
struct NoKeys;

impl RemoteKeys for NoKeys {
    fn remote(&self, _: u32) -> RemoteKey {
        RemoteKey::Unknown
    }
}

#[test]
fn what_a_provider_may_have_taken_when_it_said_that_it_failed_is_not_posted_again() {
    let bench = Bench::new();
    assert!(crate::cold::replay::exclude(&bench.qp));
    bench.post_signalled(7);
    bench.post_signalled(8);
    PROVIDER.with_borrow_mut(|provider| provider.doorbell_fails = true);
    crate::cold::replay::release(&bench.qp);
    PROVIDER.with_borrow_mut(|provider| provider.doorbell_fails = false);
    // The agent tries again, and hears that it is to end in an error.
    let refused = ReplayProgress::Refused { seq: WrSeq(0), error: Errno(libc::EIO) };
    assert_eq!(crate::cold::replay::post_held(&bench.qp, &NoKeys), refused);
    assert_eq!(bench.posted().len(), 1, "neither it again nor what is behind it");
    {
        let poster = bench.qp.sq.poster.lock();
        assert_eq!((poster.psn_next, poster.consuming, poster.signals), (1, 1, 1), "it counts as posted");
    }
    assert!(!bench.qp.sq.ring.slot(0).has(HELD) && bench.qp.sq.ring.slot(1).has(HELD));
    // Should it come back all the same it is complete, and what is behind it may follow.
    assert_eq!(bench.complete(&[(0, IBV_WC_SUCCESS)]).iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [7]);
    assert_eq!(crate::cold::replay::post_held(&bench.qp, &NoKeys), ReplayProgress::Done);
    assert_eq!(bench.posted().len(), 2);
}

#[test]
fn the_fence_waits_for_signalled_sends_and_for_what_no_flush_vouches_for() {
    let bench = Bench::new();
    bench.qp.stand(Stance::Masking);
    bench.post(&mut [
        request(0, IBV_WR_SEND, 0),
        request(1, IBV_WR_SEND, IBV_SEND_SIGNALED),
        request(2, IBV_WR_SEND, 0),
    ]);
    let is_back = || crate::cold::fence::are_sends_back(&bench.qp, 3);
    assert!(!is_back());
    // Flushed behind the first one, which was acknowledged without a completion.
    bench.complete(&[(1, IBV_WC_WR_FLUSH_ERR)]);
    assert!(!is_back(), "the last one may still complete");
    bench.complete(&[(2, IBV_WC_WR_FLUSH_ERR)]);
    assert!(is_back());

    let bench = Bench::new();
    bench.qp.stand(Stance::Masking);
    bench.post(&mut [request(0, IBV_WR_SEND, IBV_SEND_SIGNALED), request(1, IBV_WR_SEND, 0)]);
    bench.complete(&[(1, IBV_WC_WR_FLUSH_ERR)]);
    assert!(!crate::cold::fence::are_sends_back(&bench.qp, 2), "a signalled one gives a completion of its own");
}

#[test]
fn a_fence_stops_waiting_for_completions_at_its_deadline() {
    let began = std::time::Instant::now();
    let drain = std::time::Duration::from_millis(200);
    let fence = Fence { drained_by: began + drain, in_error: true, send_tail: 1, recv_tail: 0, stopped: None };
    assert!(!fence.is_over(began + drain / 2) && fence.is_over(began + drain));
}

fn with_payload(mut wr: ibv_send_wr, sge: &mut ibv_sge) -> ibv_send_wr {
    (wr.sg_list, wr.num_sge) = (sge, 1);
    wr
}

#[test]
fn small_payloads_are_snapshotted_but_not_behind_a_fence_that_they_wait_for() {
    let buffer = [7_u8; 64];
    let at = buffer.as_ptr() as u64;
    let mut sge = ibv_sge { addr: at, length: 64, lkey: 0x30 };
    let bench = Bench::new();
    let key = super::keys::LocalKey { lkey: 0x30, twin: 0x31, is_alone: false, readable: (at, 64) };
    bench.qp.sq.poster.lock().keys.learn_local(key);
    for (flags, copied) in [(0, true), (IBV_SEND_FENCE, false), (IBV_SEND_FENCE | IBV_SEND_INLINE, true)] {
        let seq = bench.qp.sq.ring.tail();
        assert_eq!(bench.post(&mut [with_payload(request(1, IBV_WR_SEND, flags), &mut sge)]), (0, None));
        assert_eq!(bench.qp.sq.ring.slot(seq).has(COPIED), copied, "flags {flags}");
    }
}

#[test]
fn held_inline_data_is_posted_inline_from_its_copy_and_too_much_of_it_is_refused() {
    let mut buffer = [7_u8; 65];
    let mut sge = ibv_sge { addr: buffer.as_mut_ptr() as u64, length: 64, lkey: 0 };
    let bench = Bench::new();
    assert!(crate::cold::replay::exclude(&bench.qp));
    let inline = request(1, IBV_WR_SEND, IBV_SEND_INLINE | IBV_SEND_SIGNALED);
    assert_eq!(bench.post(&mut [with_payload(inline, &mut sge)]), (0, None));
    sge.length = 65;
    assert_eq!(bench.post(&mut [with_payload(inline, &mut sge)]), (libc::EINVAL, Some(0)));
    // The application may use its buffer again.
    buffer.fill(9);
    crate::cold::replay::release(&bench.qp);
    assert_eq!(PROVIDER.with_borrow(|provider| provider.inlined.clone()), [[7_u8; 64]]);
}

#[test]
fn an_element_without_a_byte_needs_no_key_on_the_standby() {
    let mut nothing = ibv_sge { addr: 0, length: 0, lkey: 0 };
    let bench = Bench::new();
    for (poster, sges) in [(true, 32), (false, 32)] {
        if poster {
            let mut poster = bench.qp.sq.poster.lock();
            poster.translate = true;
            poster.sges.reserve(sges);
        } else {
            let mut poster = bench.qp.rq.poster.lock();
            poster.translate = true;
            poster.sges.reserve(sges);
        }
    }
    assert_eq!(bench.post(&mut [with_payload(request(1, IBV_WR_SEND, 0), &mut nothing)]), (0, None));
    assert_eq!(bench.posted().iter().map(|wr| wr.num_sge).collect::<Vec<_>>(), [0]);
    let mut receive = ibv_recv_wr { wr_id: 1, next: core::ptr::null_mut(), sg_list: &mut nothing, num_sge: 1 };
    // SAFETY: one live request; `bad` may be NULL.
    let errno = unsafe { super::post::post_recv(&bench.qp, &mut receive, core::ptr::null_mut()) };
    assert_eq!((errno, PROVIDER.with_borrow(|provider| provider.received.clone())), (0, vec![0]));
}

#[test]
fn an_error_of_the_application_s_behind_a_flush_of_the_other_queue_is_given_to_it() {
    let bench = Bench::new();
    bench.qp.stand(Stance::Armed);
    bench.post(&mut [
        request(10, IBV_WR_SEND, IBV_SEND_SIGNALED),
        request(11, IBV_WR_SEND, IBV_SEND_SIGNALED),
        request(12, IBV_WR_SEND, IBV_SEND_SIGNALED),
    ]);
    // The flush of the receive queue was polled first.
    bench.qp.stand(Stance::Masking);
    let seen = bench.complete(&[(0, IBV_WC_SUCCESS), (1, IBV_WC_REM_ACCESS_ERR), (2, IBV_WC_WR_FLUSH_ERR)]);
    let seen: Vec<_> = seen.iter().map(|wc| (wc.wr_id, wc.status)).collect();
    assert_eq!(seen, [(10, IBV_WC_SUCCESS), (11, IBV_WC_REM_ACCESS_ERR)]);
    // The agent gives the application the rest.
    crate::cold::replay::surface(&bench.qp, None);
    let rest = bench.complete(&[]);
    assert_eq!(rest.iter().map(|wc| (wc.wr_id, wc.status)).collect::<Vec<_>>(), [(12, IBV_WC_WR_FLUSH_ERR)]);
}

/// After a migration the second of three is complete by proof; no NIC has it.
fn with_the_second_proven() -> Bench {
    let bench = Bench::new();
    bench.qp.stand(Stance::Armed);
    bench.post(&mut [10, 11, 12].map(|wr_id| request(wr_id, IBV_WR_SEND, IBV_SEND_SIGNALED)));
    bench.qp.sq.mixed_until.store(3, Relaxed);
    bench.qp.sq.mixed.store(true, Relaxed);
    bench.qp.sq.ring.slot(2).signals_before.store(1, Relaxed);
    bench
}

#[test]
fn what_is_proven_completes_once_too_where_an_error_of_the_application_s_comes_before_it_or_behind_it() {
    let brief = |seen: Vec<ibv_wc>| seen.iter().map(|wc| (wc.wr_id, wc.status)).collect::<Vec<_>>();
    // A READ is repeated, and the peer has let go of the memory, for it has what was sent behind it.
    for last in [vec![(2, IBV_WC_WR_FLUSH_ERR)], vec![]] {
        let bench = with_the_second_proven();
        bench.qp.sq.ring.slot(1).mark(DONE);
        let mut seen = brief(bench.complete(&[(0, IBV_WC_REM_ACCESS_ERR)]));
        seen.extend(brief(bench.complete(&last)));
        let all = [(10, IBV_WC_REM_ACCESS_ERR), (11, IBV_WC_WR_FLUSH_ERR), (12, IBV_WC_WR_FLUSH_ERR)];
        assert_eq!(seen, all[..2 + last.len()]);
    }
    // It is found proven after what is before it has completed.
    let bench = with_the_second_proven();
    let mut seen = brief(bench.complete(&[(0, IBV_WC_SUCCESS)]));
    bench.qp.sq.ring.slot(1).mark(DONE);
    seen.extend(brief(bench.complete(&[(2, IBV_WC_REM_ACCESS_ERR)])));
    assert_eq!(seen, [(10, IBV_WC_SUCCESS), (11, IBV_WC_SUCCESS), (12, IBV_WC_REM_ACCESS_ERR)]);
    // It is found proven when the error was given out already.
    let bench = with_the_second_proven();
    let mut seen = brief(bench.complete(&[(0, IBV_WC_REM_ACCESS_ERR)]));
    bench.qp.sq.ring.slot(1).mark(DONE);
    super::poll::retire_front(&bench.qp);
    seen.extend(brief(bench.complete(&[(2, IBV_WC_WR_FLUSH_ERR)])));
    assert_eq!(seen, [(10, IBV_WC_REM_ACCESS_ERR), (11, IBV_WC_WR_FLUSH_ERR), (12, IBV_WC_WR_FLUSH_ERR)]);
}

#[test]
fn what_no_nic_was_given_and_what_is_proven_is_at_no_risk() {
    let mut sge = ibv_sge { addr: 0, length: 8, lkey: 0x30 };
    let bench = Bench::new();
    bench.post(&mut [atomic(1, IBV_WR_ATOMIC_FETCH_AND_ADD, &mut sge)]);
    let at_risk = || crate::cold::replay::could_end_in_error(&bench.qp);
    assert!(at_risk());
    bench.qp.sq.ring.slot(0).mark(DONE);
    assert!(!at_risk());
    assert!(crate::cold::replay::exclude(&bench.qp));
    bench.post(&mut [atomic(2, IBV_WR_ATOMIC_FETCH_AND_ADD, &mut sge)]);
    assert!(!at_risk());
}

#[test]
fn a_completion_that_only_looks_like_one_of_ours_is_passed_on() {
    let bench = Bench::new();
    let mut raw = ibv_wc::zeroed();
    // The wr_id of a QP that was made past the library happens to be a tag; its QP number is another.
    (raw.wr_id, raw.qp_num) = (Tag::new(bench.qp.life, Queue::Send, 0, 0).0, QPN + 1);
    PROVIDER.with_borrow_mut(|provider| provider.completions.push_back(raw));
    let seen = bench.complete(&[]);
    assert_eq!(seen.iter().map(|wc| (wc.wr_id, wc.qp_num)).collect::<Vec<_>>(), [(raw.wr_id, QPN + 1)]);
}
