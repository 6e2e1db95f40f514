//! The extended interfaces on a provider that only remembers: what is collected, what is posted, what a reader says.

use super::poll_ex::{self, CqEx};
use super::ring::*;
use super::tag::{Queue, Tag};
use super::tests::{Bench, CAP, PROVIDER, QPN};
use super::wr::QpEx;
use crate::cold::{channel::ChannelShadow, cq::CQS, qp::QPS, replay};
use crate::shadow::*;
use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// What the provider's own functions were called with, and what its `wr_complete` answers.
    static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static ANSWER: RefCell<c_int> = const { RefCell::new(0) };
}

fn called(pair: *mut ibv_qp_ex, what: &str) {
    // SAFETY: the queue pair is the test's own.
    let wr_id = unsafe { (*pair).wr_id };
    CALLS.with_borrow_mut(|calls| calls.push(format!("{what} {}", Tag(wr_id).seq(0))));
}

unsafe extern "C" fn start(_pair: *mut ibv_qp_ex) {
    CALLS.with_borrow_mut(|calls| calls.push("start".into()));
}
unsafe extern "C" fn complete(_pair: *mut ibv_qp_ex) -> c_int {
    CALLS.with_borrow_mut(|calls| calls.push("complete".into()));
    ANSWER.with_borrow(|answer| *answer)
}
unsafe extern "C" fn refuse(_pair: *mut ibv_qp_ex) -> c_int {
    libc::EINVAL
}
unsafe extern "C" fn plain(pair: *mut ibv_qp_ex) {
    called(pair, "send");
}
unsafe extern "C" fn keyed(pair: *mut ibv_qp_ex, key: u32) {
    called(pair, &format!("key {key}"));
}
unsafe extern "C" fn remote(pair: *mut ibv_qp_ex, rkey: u32, at: u64) {
    called(pair, &format!("remote {rkey} {at}"));
}
unsafe extern "C" fn remote_imm(pair: *mut ibv_qp_ex, rkey: u32, at: u64, imm: u32) {
    called(pair, &format!("remote {rkey} {at} imm {imm}"));
}
unsafe extern "C" fn add(pair: *mut ibv_qp_ex, rkey: u32, at: u64, by: u64) {
    called(pair, &format!("add {rkey} {at} {by}"));
}
unsafe extern "C" fn swap(pair: *mut ibv_qp_ex, rkey: u32, at: u64, compare: u64, by: u64) {
    called(pair, &format!("swap {rkey} {at} {compare} {by}"));
}
unsafe extern "C" fn write_eight(pair: *mut ibv_qp_ex, rkey: u32, at: u64, value: *const c_void) {
    // SAFETY: the caller gives eight bytes.
    called(pair, &format!("write {rkey} {at} {}", unsafe { value.cast::<u64>().read_unaligned() }));
}
unsafe extern "C" fn flush(pair: *mut ibv_qp_ex, rkey: u32, at: u64, len: usize, kind: u8, level: u8) {
    called(pair, &format!("flush {rkey} {at} {len} {kind} {level}"));
}
unsafe extern "C" fn bind(pair: *mut ibv_qp_ex, _mw: *mut ibv_mw, rkey: u32, _info: *const ibv_mw_bind_info) {
    called(pair, &format!("bind {rkey}"));
}
unsafe extern "C" fn element(pair: *mut ibv_qp_ex, lkey: u32, at: u64, len: u32) {
    called(pair, &format!("element {lkey} {at} {len}"));
}
unsafe extern "C" fn elements(pair: *mut ibv_qp_ex, count: usize, _list: *const ibv_sge) {
    called(pair, &format!("elements {count}"));
}
unsafe extern "C" fn inline(pair: *mut ibv_qp_ex, _at: *mut c_void, len: usize) {
    called(pair, &format!("inline {len}"));
}
unsafe extern "C" fn inlines(pair: *mut ibv_qp_ex, count: usize, _list: *const ibv_data_buf) {
    called(pair, &format!("inlines {count}"));
}
unsafe extern "C" fn abort(_pair: *mut ibv_qp_ex) {}
unsafe extern "C" fn address(_pair: *mut ibv_qp_ex, _ah: *mut ibv_ah, _qpn: u32, _qkey: u32) {}

/// Gives an object functions of its provider.
macro_rules! provide {
    ($object:expr, $($member:ident = $function:ident),*) => { $( $object.$member = Some($function); )* };
}

/// As a newer header than this project's lays it out.
#[repr(C)]
struct Newer {
    pair: ibv_qp_ex,
    wr_flush: Option<wr_flush_fn>,
}

/// An object as C has it: who finds its pointer writes into it, which no box would bear.
struct Made<T>(*mut T);

impl<T> Made<T> {
    fn new(object: T) -> Self {
        Self(Box::into_raw(Box::new(object)))
    }
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        // SAFETY: of a box, and the test is over.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A queue pair whose provider has all functions.
struct Pair {
    bench: Bench,
    made: Made<Newer>,
}

impl Pair {
    fn new() -> Self {
        let mut made = Newer { pair: ibv_qp_ex::zeroed(), wr_flush: Some(flush) };
        let pair = &mut made.pair;
        provide!(pair, wr_start = start, wr_complete = complete, wr_abort = abort, wr_set_ud_addr = address);
        provide!(pair, wr_send = plain, wr_send_imm = keyed, wr_send_inv = keyed, wr_local_inv = keyed);
        provide!(
            pair,
            wr_rdma_write = remote,
            wr_rdma_read = remote,
            wr_rdma_write_imm = remote_imm,
            wr_bind_mw = bind
        );
        provide!(pair, wr_atomic_fetch_add = add, wr_atomic_cmp_swp = swap, wr_atomic_write = write_eight);
        provide!(pair, wr_set_sge = element, wr_set_sge_list = elements);
        provide!(pair, wr_set_inline_data = inline, wr_set_inline_data_list = inlines);
        let made = Made::new(made);
        let raw = made.0.cast::<ibv_qp_ex>();
        // SAFETY: the queue pair was just made.
        let ex = unsafe { QpEx::hook(raw, CAP, true) };
        let bench = Bench::of((raw.cast(), Some(ex)), (core::ptr::null_mut(), None));
        assert!(QPS.insert(raw, Arc::clone(&bench.qp)));
        CALLS.with_borrow_mut(Vec::clear);
        ANSWER.with_borrow_mut(|answer| *answer = 0);
        Self { bench, made }
    }

    fn raw(&self) -> *mut ibv_qp_ex {
        self.made.0.cast()
    }

    fn ring(&self) -> &Ring<SendSlot> {
        &self.bench.qp.sq.ring
    }

    fn name(&self, wr_id: u64, flags: c_uint) -> *mut ibv_qp_ex {
        name(self.raw(), wr_id, flags)
    }

    fn why(&self) -> Option<&str> {
        self.bench.qp.unprotected.get().map(String::as_str)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        QPS.remove(self.raw());
    }
}

/// Sets what the next request is called, as a program does.
fn name(pair: *mut ibv_qp_ex, wr_id: u64, flags: c_uint) -> *mut ibv_qp_ex {
    // SAFETY: the queue pair lives as long as the test.
    unsafe { (*pair).wr_id = wr_id };
    // SAFETY: as above.
    unsafe { (*pair).wr_flags = flags };
    pair
}

/// Calls a function of the queue pair as the inline functions of verbs.h do.
macro_rules! wr {
    ($pair:expr, $op:ident $(, $arg:expr)*) => {{
        let pair: *mut ibv_qp_ex = $pair;
        // SAFETY: the queue pair lives as long as the test.
        let function = unsafe { (*pair).$op }.expect("the provider has it");
        // SAFETY: as above; what is pointed to lives across the call.
        unsafe { function(pair $(, $arg)*) }
    }};
}

#[test]
fn what_is_collected_is_posted_as_one_chain_at_complete_and_not_before() {
    let pair = Pair::new();
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, IBV_SEND_SIGNALED), wr_rdma_write, 0x11, 0x1000);
    wr!(pair.raw(), wr_set_sge, 5, 0x2000, 700);
    let mut bytes = *b"to be sent";
    wr!(pair.name(2, IBV_SEND_FENCE | IBV_SEND_SOLICITED), wr_send_imm, 77);
    let [first, second] =
        [(0, 3), (5, 5)].map(|(at, length)| ibv_data_buf { addr: (&raw mut bytes[at]).cast(), length });
    wr!(pair.raw(), wr_set_inline_data_list, 2, [first, second].as_ptr());
    bytes.fill(b'x');
    wr!(pair.name(3, 0), wr_rdma_read, 0x12, 0x3000);
    let two = [(0x100, 10), (0x200, 20)].map(|(addr, length)| ibv_sge { addr, length, lkey: 6 });
    wr!(pair.raw(), wr_set_sge_list, 2, two.as_ptr());
    wr!(pair.name(4, IBV_SEND_SIGNALED), wr_atomic_cmp_swp, 0x13, 0x4000, 8, 9);
    wr!(pair.raw(), wr_set_sge, 5, 0x5000, 8);
    wr!(pair.name(5, 0), wr_atomic_fetch_add, 0x13, 0x4000, 3);
    wr!(pair.raw(), wr_set_sge, 5, 0x5000, 8);
    wr!(pair.name(6, IBV_SEND_SIGNALED), wr_rdma_write_imm, 0x14, 0x6000, 78);
    assert_eq!((pair.bench.posted().len(), pair.ring().tail()), (0, 0), "nothing before complete");
    assert_eq!(wr!(pair.raw(), wr_complete), 0);

    let posted = pair.bench.posted();
    let opcodes: Vec<_> = posted.iter().map(|wr| wr.opcode).collect();
    let write_read = [IBV_WR_RDMA_WRITE, IBV_WR_SEND_WITH_IMM, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_CMP_AND_SWP];
    assert_eq!(opcodes[..4], write_read);
    assert_eq!(opcodes[4..], [IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WR_RDMA_WRITE_WITH_IMM]);
    assert_eq!(posted.iter().map(|wr| wr.num_sge).collect::<Vec<_>>(), [1, 1, 2, 1, 1, 0]);
    assert_eq!((posted[1].imm.raw(), posted[5].imm.raw()), (77, 78));
    assert_eq!(PROVIDER.with_borrow(|provider| provider.inlined.clone()), [b"to  sent"]);
    assert!(posted[1].send_flags & (IBV_SEND_FENCE | IBV_SEND_SOLICITED) == IBV_SEND_FENCE | IBV_SEND_SOLICITED);
    let slots: Vec<_> = (0..6).map(|seq| pair.ring().slot(seq)).collect();
    assert_eq!(slots.iter().map(|slot| slot.wr_id.load(Relaxed)).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(slots.iter().map(|slot| slot.bytes.load(Relaxed)).collect::<Vec<_>>(), [700, 8, 30, 8, 8, 0]);
    assert_eq!(slots[0].rkey.load(Relaxed), 0x11);
    let app: Vec<_> = slots.iter().map(|slot| slot.has(APP_SIGNALLED)).collect();
    assert_eq!(app, [true, false, false, true, false, true]);
    assert!(pair.why().is_none(), "all of it is protected");
}

#[test]
fn an_aborted_chain_leaves_nothing_behind() {
    let pair = Pair::new();
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, 0), wr_send);
    wr!(pair.raw(), wr_abort);
    wr!(pair.raw(), wr_start);
    wr!(pair.name(2, 0), wr_send);
    assert_eq!(wr!(pair.raw(), wr_complete), 0);
    assert_eq!((pair.bench.posted().len(), pair.ring().slot(0).wr_id.load(Relaxed)), (1, 2));
    wr!(pair.raw(), wr_start);
    assert_eq!(wr!(pair.raw(), wr_complete), 0, "an empty chain");
}

#[test]
fn of_a_chain_all_is_posted_or_nothing() {
    let pair = Pair::new();
    let chain = |count: u64| {
        wr!(pair.raw(), wr_start);
        (0..count).for_each(|wr_id| wr!(pair.name(wr_id, 0), wr_send));
    };
    let outcome = || (wr!(pair.raw(), wr_complete), pair.bench.posted().len());
    chain(65);
    assert_eq!(outcome(), (libc::ENOMEM, 0), "longer than the queue");
    chain(1);
    wr!(pair.raw(), wr_set_inline_data, [0_u8; 65].as_mut_ptr().cast(), 65);
    chain_rest(&pair);
    assert_eq!(outcome(), (libc::ENOMEM, 0), "too much inline in its midst");
    chain(1);
    let three = [ibv_sge { addr: 1, length: 1, lkey: 1 }; 3];
    wr!(pair.raw(), wr_set_sge_list, 3, three.as_ptr());
    chain_rest(&pair);
    assert_eq!(outcome(), (libc::ENOMEM, 0), "too many elements in its midst");
    chain(60);
    assert_eq!(outcome(), (0, 60));
    chain(5);
    assert_eq!(outcome(), (libc::ENOMEM, 60), "no room for the last of it");
    assert_eq!(pair.ring().tail(), 60);
    chain(4);
    assert_eq!(outcome(), (0, 64));
}

/// More requests behind one that is wrong.
fn chain_rest(pair: &Pair) {
    wr!(pair.name(8, 0), wr_send);
    wr!(pair.name(9, 0), wr_rdma_write, 1, 2);
}

#[test]
fn what_post_send_has_no_form_for_takes_its_chain_to_the_provider_and_is_named_once() {
    let pair = Pair::new();
    let value = 42_u64;
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, IBV_SEND_SIGNALED), wr_rdma_write, 7, 100);
    wr!(pair.raw(), wr_set_sge, 5, 200, 4);
    wr!(pair.name(2, IBV_SEND_SIGNALED), wr_atomic_write, 7, 104, (&raw const value).cast());
    // SAFETY: the queue pair lives as long as the test.
    let flush = unsafe { (*pair.made.0).wr_flush }.expect("the provider has it");
    // SAFETY: as `wr!`.
    unsafe { flush(pair.name(3, IBV_SEND_SIGNALED), 7, 100, 12, 1, 2) };
    wr!(pair.name(4, 0), wr_send_inv, 99);
    assert_eq!(wr!(pair.raw(), wr_complete), 0);
    let calls = CALLS.with_borrow(Clone::clone);
    let expected = [
        "start",
        "remote 7 100 0",
        "element 5 200 4 0",
        "write 7 104 42 1",
        "flush 7 100 12 1 2 2",
        "key 99 3",
        "complete",
    ];
    assert_eq!(calls, expected);
    assert!(pair.bench.posted().is_empty());
    assert!(pair.why().is_some_and(|why| why.contains("IBV_WR_ATOMIC_WRITE")), "{:?}", pair.why());
    // SAFETY: the queue pair is the test's own.
    assert_eq!(unsafe { (*pair.raw()).wr_id }, 4, "the program's own fields are as it left them");
    // Its completions are known by their tags.
    let tag = |seq| Tag::new(pair.bench.qp.life, Queue::Send, 0, seq).0;
    let seen = pair.bench.complete(&[(0, IBV_WC_SUCCESS), (1, IBV_WC_SUCCESS), (2, IBV_WC_SUCCESS)]);
    assert_eq!(seen.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [1, 2, 3], "not {:x}", tag(0));

    ANSWER.with_borrow_mut(|answer| *answer = libc::EINVAL);
    wr!(pair.raw(), wr_start);
    wr!(pair.name(5, 0), wr_atomic_write, 7, 104, (&raw const value).cast());
    assert_eq!(wr!(pair.raw(), wr_complete), libc::EINVAL);
    assert_eq!(pair.ring().tail(), 4, "what the provider refused is taken back");
}

type Builds = fn(*mut ibv_qp_ex);

#[test]
fn every_other_opcode_is_posted_as_it_is_and_named() {
    let others: [(&str, Builds); 4] = [
        ("IBV_WR_FLUSH", |pair| {
            // SAFETY: the queue pair was granted flush, and lives as long as the test.
            let flush = unsafe { wr_flush_slot(pair).read() }.expect("the provider has it");
            // SAFETY: as `wr!`.
            unsafe { flush(pair, 1, 2, 3, 0, 0) };
        }),
        ("SEND_WITH_INV", |pair| wr!(pair, wr_send_inv, 9)),
        ("LOCAL_INV", |pair| wr!(pair, wr_local_inv, 9)),
        ("BIND_MW", |pair| wr!(pair, wr_bind_mw, core::ptr::null_mut(), 9, &ibv_mw_bind_info::zeroed())),
    ];
    for (opcode, build) in others {
        let pair = Pair::new();
        wr!(pair.raw(), wr_start);
        build(pair.name(1, IBV_SEND_SIGNALED));
        assert_eq!(wr!(pair.raw(), wr_complete), 0, "{opcode}");
        let calls = CALLS.with_borrow(Clone::clone);
        assert_eq!((calls.len(), pair.bench.posted().len()), (3, 0), "{opcode} is passed on: {calls:?}");
        assert!(pair.why().is_some_and(|why| why.contains(opcode)), "{:?}", pair.why());
    }
}

#[test]
fn an_open_start_keeps_no_exclusion_waiting_and_what_follows_is_held_whole() {
    let pair = Pair::new();
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, IBV_SEND_SIGNALED), wr_send);
    assert!(replay::exclude(&pair.bench.qp), "the agent does not wait for the application");
    wr!(pair.name(2, IBV_SEND_SIGNALED), wr_send);
    assert_eq!(wr!(pair.raw(), wr_complete), 0);
    assert!(pair.bench.posted().is_empty() && pair.ring().slot(1).has(HELD));
    wr!(pair.raw(), wr_start);
    wr!(pair.name(3, 0), wr_send);
    wr!(pair.name(4, 0), wr_local_inv, 9);
    assert_eq!((wr!(pair.raw(), wr_complete), pair.ring().tail()), (libc::ENOMEM, 2), "no half of it is recorded");
    replay::release(&pair.bench.qp);
    assert_eq!(pair.bench.posted().len(), 2);
}

#[test]
fn chains_of_two_threads_do_not_mix() {
    let pair = Pair::new();
    let raw = Raw(pair.raw());
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            scope.spawn(move || {
                let raw = raw;
                for chain in 0..10 {
                    wr!(raw.0, wr_start);
                    for nth in 0..3 {
                        wr!(name(raw.0, (thread << 32) | (chain * 3 + nth), 0), wr_send);
                        std::thread::yield_now();
                    }
                    assert_eq!(wr!(raw.0, wr_complete), 0);
                }
            });
        }
    });
    let names: Vec<u64> = (0..60).map(|seq| pair.ring().slot(seq).wr_id.load(Relaxed)).collect();
    assert!(names.chunks(3).all(|chain| chain[1] == chain[0] + 1 && chain[2] == chain[0] + 2), "{names:x?}");
    let of = |thread| names.iter().filter(|name| **name >> 32 == thread).map(|name| *name & 0xff).collect::<Vec<_>>();
    assert_eq!((of(0), of(1)), ((0..30).collect(), (0..30).collect()));
}

#[test]
fn a_provider_that_puts_its_own_complete_back_is_hooked_again() {
    let pair = Pair::new();
    let ex = pair.bench.qp.ex.as_deref().expect("it is extended");
    // SAFETY: the queue pair is the test's own.
    let complete_of = || unsafe { (*pair.raw()).wr_complete }.map(|function| function as usize);
    let ours = complete_of();
    // As mlx5 does at RESET and RTS.
    // SAFETY: the queue pair is the test's own.
    ex.across(|| unsafe { (*pair.raw()).wr_complete = Some(refuse) });
    assert_eq!(complete_of(), ours, "after a change that is seen");
    // SAFETY: as above.
    unsafe { (*pair.raw()).wr_complete = Some(refuse) };
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, 0), wr_send);
    assert_eq!((complete_of(), wr!(pair.raw(), wr_complete)), (ours, 0), "and after one that is not");
    ex.unhook();
    assert_eq!(complete_of(), Some(refuse as *const () as usize), "the provider's newest one comes back");
}

/// A queue pair whose completions are polled piece by piece.
pub(super) struct Queue2 {
    pub(super) bench: Bench,
    queue: Made<ibv_cq_ex>,
}

thread_local! {
    /// The stamp of the next completion.
    static STAMP: RefCell<u64> = const { RefCell::new(0) };
}

unsafe extern "C" fn poll_start(queue: *mut ibv_cq_ex, _attr: *mut ibv_poll_cq_attr) -> c_int {
    let Some(wc) = PROVIDER.with_borrow_mut(|provider| provider.completions.pop_front()) else { return libc::ENOENT };
    STAMP.with_borrow_mut(|stamp| *stamp += 1);
    // SAFETY: the queue is the test's own.
    unsafe { (*queue).wr_id = wc.wr_id };
    // SAFETY: as above.
    unsafe { (*queue).status = wc.status };
    0
}
unsafe extern "C" fn poll_next(_queue: *mut ibv_cq_ex) -> c_int {
    libc::ENOENT
}
unsafe extern "C" fn poll_end(_queue: *mut ibv_cq_ex) {}
unsafe extern "C" fn number(_queue: *mut ibv_cq_ex) -> u32 {
    QPN
}
unsafe extern "C" fn opcode(_queue: *mut ibv_cq_ex) -> ibv_wc_opcode {
    IBV_WC_SEND
}
unsafe extern "C" fn flags(_queue: *mut ibv_cq_ex) -> c_uint {
    0
}
unsafe extern "C" fn stamp(_queue: *mut ibv_cq_ex) -> u64 {
    STAMP.with_borrow(|stamp| *stamp)
}

impl Queue2 {
    pub(super) fn new(wc_flags: u64) -> Self {
        Self::on(wc_flags, false)
    }

    /// The same, with a channel of no library if wanted.
    pub(super) fn on(wc_flags: u64, has_channel: bool) -> Self {
        STAMP.with_borrow_mut(|stamp| *stamp = 0);
        let mut queue = ibv_cq_ex::zeroed();
        provide!(queue, start_poll = poll_start, next_poll = poll_next, end_poll = poll_end, read_opcode = opcode);
        provide!(queue, read_vendor_err = number, read_wc_flags = flags, read_byte_len = number, read_qp_num = number);
        provide!(queue, read_completion_ts = stamp);
        let queue = Made::new(queue);
        let raw = queue.0;
        // SAFETY: the queue was just made.
        let ex = unsafe { CqEx::new(raw, wc_flags) };
        let channel = has_channel.then(|| ChannelShadow::of(&[raw.cast()]));
        let bench = Bench::on((core::ptr::null_mut(), None), (raw.cast(), ex), channel);
        assert!(CQS.insert(raw, Arc::clone(&bench.qp.send_cq)));
        // SAFETY: as above.
        unsafe { poll_ex::hook(raw) };
        Self { bench, queue }
    }

    pub(super) fn raw(&self) -> *mut ibv_cq_ex {
        self.queue.0
    }

    /// Posts so many signalled sends, and completes them.
    fn complete(&self, count: u64) {
        let begin = self.bench.qp.sq.ring.tail();
        for at in begin..begin + count {
            self.bench.post_signalled(100 + at);
        }
        self.give(begin..begin + count);
    }

    pub(super) fn give(&self, entries: std::ops::Range<u64>) {
        PROVIDER.with_borrow_mut(|provider| {
            provider.completions.extend(entries.map(|seq| {
                let mut wc = ibv_wc::zeroed();
                wc.wr_id = Tag::new(self.bench.qp.life, Queue::Send, 0, seq).0;
                (wc.qp_num, wc.byte_len, wc.vendor_err) = (QPN, 700 + seq as u32, 5);
                wc
            }));
        });
    }

    pub(super) fn start(&self) -> c_int {
        let mut attr = ibv_poll_cq_attr::zeroed();
        // SAFETY: the queue lives as long as the test.
        let start = unsafe { (*self.raw()).start_poll }.expect("hooked");
        // SAFETY: as above.
        unsafe { start(self.raw(), &mut attr) }
    }

    pub(super) fn next(&self) -> c_int {
        // SAFETY: the queue lives as long as the test.
        let next = unsafe { (*self.raw()).next_poll }.expect("hooked");
        // SAFETY: as above.
        unsafe { next(self.raw()) }
    }

    pub(super) fn end(&self) {
        // SAFETY: the queue lives as long as the test.
        let end = unsafe { (*self.raw()).end_poll }.expect("hooked");
        // SAFETY: as above.
        unsafe { end(self.raw()) };
    }

    pub(super) fn wr_id(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.raw()).wr_id }
    }
}

impl Drop for Queue2 {
    fn drop(&mut self) {
        CQS.remove(self.raw());
    }
}

macro_rules! read {
    ($queue:expr, $reader:ident) => {{
        // SAFETY: the queue lives as long as the test.
        let reader = unsafe { (*$queue.raw()).$reader }.expect("the provider has it");
        // SAFETY: as above.
        unsafe { reader($queue.raw()) }
    }};
}

mod safety;

#[test]
fn an_extended_poll_gives_what_ibv_poll_cq_gives_one_by_one() {
    let queue = Queue2::new(poll_ex::OF_WC);
    assert_eq!(queue.start(), libc::ENOENT);
    queue.complete(20);
    assert_eq!(queue.start(), 0);
    let mut seen = vec![];
    loop {
        seen.push(queue.wr_id());
        assert_eq!((read!(queue, read_qp_num), read!(queue, read_opcode)), (QPN, IBV_WC_SEND));
        assert_eq!(u64::from(read!(queue, read_byte_len)), 600 + queue.wr_id());
        if seen.len() == 18 {
            break;
        }
        assert_eq!(queue.next(), 0);
    }
    queue.end();
    // What the poll left is the next one's, whichever it is.
    let rest = queue.bench.complete(&[]);
    seen.extend(rest.iter().map(|wc| wc.wr_id));
    assert_eq!(seen, (100..120).collect::<Vec<_>>());
    assert_eq!(queue.start(), libc::ENOENT);
    queue.complete(1);
    assert_eq!((queue.start(), queue.next()), (0, libc::ENOENT));
    queue.end();
    assert_eq!(queue.bench.qp.sq.ring.head(), 21);
}

#[test]
fn an_open_poll_keeps_no_sweep_waiting_and_is_not_disturbed_by_one() {
    let queue = Queue2::new(poll_ex::OF_WC);
    queue.complete(1);
    assert_eq!(queue.start(), 0);
    queue.complete(2);
    super::poll::sweep(&queue.bench.qp.send_cq);
    assert_eq!(queue.bench.qp.sq.ring.head(), 3, "the agent accounts for all");
    assert_eq!((queue.wr_id(), read!(queue, read_byte_len)), (100, 700));
    assert_eq!((queue.next(), queue.wr_id(), read!(queue, read_byte_len)), (0, 101, 701));
    queue.end();
}

#[test]
fn stamps_come_with_their_completions_whoever_took_them() {
    let queue = Queue2::new(poll_ex::OF_WC | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
    queue.complete(3);
    assert_eq!((queue.start(), queue.wr_id(), read!(queue, read_completion_ts)), (0, 100, 1));
    queue.complete(1);
    super::poll::sweep(&queue.bench.qp.send_cq);
    assert_eq!(
        queue.wr_id(),
        100,
        "what the provider's own poll would write is the application's while its poll is open"
    );
    queue.end();
    super::poll::sweep(&queue.bench.qp.send_cq);
    assert_eq!(queue.bench.qp.sq.ring.head(), 4, "once it is closed, the agent sees all");
    let stamps: Vec<_> = (0..3)
        .map(|_| {
            assert_eq!(queue.start(), 0);
            let stamped = (queue.wr_id(), read!(queue, read_completion_ts));
            queue.end();
            stamped
        })
        .collect();
    assert_eq!(stamps, [(101, 2), (102, 3), (103, 4)]);
}

#[test]
fn a_queue_that_has_no_lock_is_polled_under_the_shims() {
    let queue = Queue2::new(poll_ex::OF_WC);
    let cq = Arc::clone(&queue.bench.qp.send_cq);
    cq.attention.fetch_or(UNLOCKED, Relaxed);
    let looked = std::rc::Rc::new(core::cell::Cell::new(0));
    let count = std::rc::Rc::clone(&looked);
    let seen = Arc::clone(&cq);
    queue.complete(2);
    PROVIDER.with_borrow_mut(|provider| {
        provider.at_poll = Some(Box::new(move || {
            assert!(seen.inner.try_lock().is_none(), "nobody else is inside of the provider");
            count.set(count.get() + 1);
        }));
    });
    assert_eq!((queue.start(), queue.wr_id()), (0, 100));
    queue.end();
    assert_eq!(queue.bench.complete(&[]).len(), 1);
    super::poll::sweep(&cq);
    assert!(looked.get() >= 2);
    PROVIDER.with_borrow_mut(|provider| provider.at_poll = None);
}
