//! Models of what threads share on the post and poll path, under loom: the code of this crate in every interleaving of a few threads with at most two
//! preemptions (three where that is quick), and in every outcome that the orders of its accesses allow. `ci/loom` runs them.
//!
//! Each says which orders it needs, and is its own negative control: every order that it meets is left out in turn, and then it must fail, or must not
//! (`shift_control::atomics`). Of the device one thing is taken for granted: what was written before a request was given to it is seen
//! by who got its completion, as a driver's barriers have it.

use super::post::post_send;
use super::tests::{request, Bench, OPS};
use super::{poll, timed};
use crate::atomics::{holds, AtomicU64, Ordering, Place};
use crate::cold::replay;
use crate::shadow::{PostMode, ProviderOps, QpShadow, Stance};
use crate::spin::{HeldCell, SpinCell};
use crate::tables::PtrTable;
use core::ffi::c_int;
use loom::thread::{spawn, yield_now};
use shift_abi::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// The cell's.
const ENTRY: [&str; 2] = ["self.word.swap(TAKEN", "leave(&self.word"];

/// A device that completes each request as soon as it is asked.
struct Device {
    /// Tags of what it has to complete, and how that ends.
    out: VecDeque<(u64, ibv_wc_status)>,
    given: u64,
    status: ibv_wc_status,
    /// What orders a post before the poll of its completion.
    barrier: Option<Arc<AtomicU64>>,
}

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device { out: VecDeque::new(), given: 0, status: IBV_WC_SUCCESS, barrier: None }) };
}

fn barrier() -> Arc<AtomicU64> {
    DEVICE.with_borrow(|device| device.barrier.clone()).expect("a model made it")
}

unsafe extern "C" fn take_send(_qp: *mut ibv_qp, mut wr: *mut ibv_send_wr, _bad: *mut *mut ibv_send_wr) -> c_int {
    barrier().fetch_or(1, Ordering::Release);
    DEVICE.with_borrow_mut(|device| {
        while !wr.is_null() {
            // SAFETY: the caller passes a chain of live requests.
            let request = unsafe { *wr };
            device.out.push_back((request.wr_id, device.status));
            device.given += 1;
            wr = request.next;
        }
    });
    0
}

unsafe extern "C" fn give_completions(_cq: *mut ibv_cq, entries: c_int, out: *mut ibv_wc) -> c_int {
    barrier().fetch_or(0, Ordering::Acquire);
    DEVICE.with_borrow_mut(|device| {
        let count = device.out.len().min(usize::try_from(entries).unwrap_or(0));
        for (at, (tag, status)) in device.out.drain(..count).enumerate() {
            let mut wc = ibv_wc::zeroed();
            (wc.wr_id, wc.status, wc.qp_num) = (tag, status, super::tests::QPN);
            // SAFETY: the caller's array has room for `entries`.
            unsafe { out.wrapping_add(at).write(wc) };
        }
        count as c_int
    })
}

/// A QP of two sends on that device.
fn bench(status: ibv_wc_status) -> Bench {
    let barrier = Some(Arc::new(AtomicU64::new(0)));
    DEVICE.set(Device { out: VecDeque::new(), given: 0, status, barrier });
    let ops = ProviderOps { post_send: take_send, poll_cq: give_completions, ..OPS };
    Bench::over(ops, (core::ptr::null_mut(), None), (core::ptr::null_mut(), None), None)
}

/// Posts an atomic whose operands say which one it is; errno.
fn post(qp: &QpShadow, number: u64) -> c_int {
    let mut wr = request(number, IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_SEND_SIGNALED);
    wr.wr.atomic = ibv_wr_atomic { remote_addr: 0x1000, compare_add: number, swap: number, rkey: 0x55 };
    let mut bad = core::ptr::null_mut();
    // SAFETY: a chain of one live request; `bad` is writable.
    unsafe { post_send(qp, &mut wr, &mut bad) }
}

fn poll_one(qp: &QpShadow) -> Option<ibv_wc> {
    let mut wc = ibv_wc::zeroed();
    // SAFETY: there is room for one.
    let count = unsafe { poll::poll_cq(&qp.send_cq, 1, &mut wc) };
    (count == 1).then_some(wc)
}

/// What the agent reads of the entries that are out, without a lock: each is whole.
fn read_entries(qp: &QpShadow) {
    let ring = &qp.sq.ring;
    for seq in ring.head()..ring.tail() {
        let number = ring.slot(seq).wr_id.load(Ordering::Relaxed);
        assert_eq!(number, seq, "the entry of another turn");
        let operands = qp.sq.copies.get().map(|copies| copies.operands(ring.index(seq)));
        assert_eq!(operands, Some([number; 2]), "the operands of another entry");
    }
}

#[test]
fn one_thread_at_a_time_is_inside_of_a_cell_and_sees_what_the_one_before_left() {
    holds(3, &ENTRY, || {
        let cell = Arc::new(SpinCell::new(0));
        let others: Vec<_> = (0..2)
            .map(|at| {
                let cell = Arc::clone(&cell);
                spawn(move || {
                    let entered = if at == 0 { cell.try_lock() } else { None };
                    *entered.unwrap_or_else(|| cell.lock()) += 1;
                })
            })
            .collect();
        others.into_iter().for_each(|other| other.join().expect("it ends"));
        assert_eq!(*cell.lock(), 2);
    });
}

#[test]
fn who_stayed_inside_of_a_cell_keeps_others_out_until_it_leaves_by_a_later_call() {
    holds(3, &ENTRY, || {
        let cell = Arc::new(HeldCell::new(0));
        let other = Arc::clone(&cell);
        let other = spawn(move || {
            assert!(other.resume().is_none(), "it is not inside");
            *other.lock() += 1;
        });
        let mut inside = cell.lock();
        *inside += 1;
        inside.stay();
        let mut again = cell.resume().expect("it stayed");
        *again += 1;
        drop(again);
        assert!(cell.resume().is_none(), "it left");
        other.join().expect("it ends");
        assert_eq!(*cell.lock(), 3);
    });
}

#[test]
fn a_shadow_is_found_whole_or_not_at_all() {
    holds(3, &["slot.key.load(Ordering::Acquire)", "slot.key.store(key"], || {
        let table = Arc::new(PtrTable::<Place<u32>>::new());
        // Its room is made once, by a cell of the standard library that loom does not know.
        assert!(table.insert(0x2000 as *const u8, Arc::new(Place::new(0))));
        let object = 0x1000 as *const u8;
        let reader = Arc::clone(&table);
        let other = spawn(move || {
            if let Some(place) = reader.get(0x1000 as *const u8) {
                let visit = place.visit();
                // SAFETY: nobody else visits; loom says so if not.
                assert_eq!(unsafe { *place.at(&visit) }, 7);
            }
        });
        let place = Place::new(0);
        let visit = place.visit();
        // SAFETY: as above.
        unsafe { *place.at(&visit) = 7 };
        drop(visit);
        assert!(table.insert(object, Arc::new(place)));
        other.join().expect("it ends");
        drop(table.remove(object));
    });
}

#[test]
fn posts_are_recorded_in_the_order_in_which_the_device_gets_them() {
    holds(2, &ENTRY, || {
        let bench = bench(IBV_WC_SUCCESS);
        let qp = Arc::clone(&bench.qp);
        let other = spawn(move || assert_eq!(post(&qp, 1), 0));
        assert_eq!(post(&bench.qp, 0), 0);
        other.join().expect("it ends");
        let first = poll_one(&bench.qp).expect("both are complete");
        let second = poll_one(&bench.qp).expect("both are complete");
        let mut numbers = [first.wr_id, second.wr_id];
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1]);
        assert_eq!(bench.qp.sq.poster.lock().psn_next, 2);
        assert_eq!(bench.qp.sq.ring.head(), 2);
    });
}

#[test]
fn completions_come_once_in_order_and_entries_are_whole_while_the_ring_goes_round() {
    holds(
        2,
        &[
            "barrier().fetch_or(",
            "self.head.load(Acquire) <=",
            "self.head.store(",
            "self.tail.load(",
            "self.tail.store(",
            "self.word.swap(TAKEN",
            "leave(&self.word",
        ],
        || {
            let bench = bench(IBV_WC_SUCCESS);
            let qp = Arc::clone(&bench.qp);
            let poster = spawn(move || {
                for number in 0..3 {
                    while post(&qp, number) == libc::ENOMEM {
                        yield_now();
                    }
                }
            });
            let mut seen = 0;
            while seen < 3 {
                // While posts are not held a poster that finds its ring full retires entries too.
                let inner = bench.qp.send_cq.inner.lock();
                read_entries(&bench.qp);
                drop(inner);
                match poll_one(&bench.qp) {
                    Some(wc) => {
                        assert_eq!((wc.wr_id, wc.status), (seen, IBV_WC_SUCCESS));
                        seen += 1;
                    }
                    None => yield_now(),
                }
            }
            poster.join().expect("it ends");
        },
    );
}

#[test]
fn after_the_exclusion_of_posters_the_device_gets_nothing_and_every_other_post_is_held() {
    holds(2, &ENTRY, || {
        let bench = bench(IBV_WC_SUCCESS);
        let qp = Arc::clone(&bench.qp);
        let poster = spawn(move || (0..2).for_each(|number| assert_eq!(post(&qp, number), 0)));
        while !replay::exclude(&bench.qp) {
            yield_now();
        }
        let given = DEVICE.with_borrow(|device| device.given);
        read_entries(&bench.qp);
        poster.join().expect("it ends");
        let ring = &bench.qp.sq.ring;
        assert_eq!(bench.qp.sq.poster.lock().mode, PostMode::Held);
        assert_eq!(DEVICE.with_borrow(|device| device.given), given, "the device got another one");
        assert_eq!(ring.tail(), 2);
        for seq in 0..2 {
            assert_eq!(ring.slot(seq).has(super::ring::HELD), seq >= given);
        }
    });
}

#[test]
fn an_error_is_masked_or_the_applications_and_both_threads_know_which() {
    holds(3, &[], || {
        let bench = bench(IBV_WC_RETRY_EXC_ERR);
        bench.qp.stand(Stance::Armed);
        assert_eq!(post(&bench.qp, 0), 0);
        let qp = Arc::clone(&bench.qp);
        let agent = spawn(move || qp.step(Stance::Armed, Stance::Recording));
        let error = poll_one(&bench.qp);
        let is_disarmed = agent.join().expect("it ends");
        match error {
            Some(wc) => {
                assert_eq!(wc.status, IBV_WC_RETRY_EXC_ERR);
                assert!(is_disarmed && bench.qp.stance() == Stance::Passing);
            }
            None => assert!(!is_disarmed && bench.qp.stance() == Stance::Masking),
        }
    });
}

#[test]
fn a_request_that_is_timed_is_told_with_what_was_noted_of_it() {
    holds(2, &["barrier().fetch_or(", "timed.state.store(DONE", "match timed.state.load("], || {
        let bench = bench(IBV_WC_SUCCESS);
        assert!(timed::take(&bench.qp).is_none(), "the first one is wished for");
        let qp = Arc::clone(&bench.qp);
        let poster = spawn(move || assert_eq!(post(&qp, 0), 0));
        let qp = Arc::clone(&bench.qp);
        let poller = spawn(move || {
            while poll_one(&qp).is_none() {
                yield_now();
            }
        });
        let qp = Arc::clone(&bench.qp);
        let agent = spawn(move || {
            let noted = timed::noted(&qp);
            assert!(noted.as_ref().is_none_or(|noted| noted.behind == 1), "what the poster noted");
            noted.is_some()
        });
        poster.join().expect("it ends");
        poller.join().expect("it ends");
        let is_told = agent.join().expect("it ends");
        assert!(is_told || timed::noted(&bench.qp).is_some(), "it was timed");
    });
}
