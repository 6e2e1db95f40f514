//! What a poll says where completions are not the application's, where a provider fails, and where another thread sleeps.

use super::extended_tests::Queue2;
use super::poll::{self, poll_cq};
use super::poll_ex;
use super::tag::{Queue, Tag};
use super::tests::{request, Bench, PROVIDER, QPN};
use crate::cold::channel::ChannelShadow;
use crate::cold::notify;
use crate::shadow::*;
use core::ffi::c_int;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use shift_abi::*;
use std::sync::Arc;

/// Posts unsignalled READs, each of which completes all the same, and a signalled SEND behind them.
fn post_behind(bench: &Bench, unsignalled: u64, wr_id: u64) {
    let first = bench.qp.sq.ring.tail();
    for _ in 0..unsignalled {
        assert_eq!(bench.post(&mut [request(7, IBV_WR_RDMA_READ, 0)]), (0, None));
    }
    bench.post_signalled(wr_id);
    give(bench, first..first + unsignalled + 1);
}

/// The NIC completes these requests.
fn give(bench: &Bench, entries: std::ops::Range<u64>) {
    PROVIDER.with_borrow_mut(|provider| {
        provider.completions.extend(entries.map(|seq| {
            let mut wc = ibv_wc::zeroed();
            (wc.wr_id, wc.qp_num) = (Tag::new(bench.qp.life, Queue::Send, 0, seq).0, QPN);
            wc
        }));
    });
}

/// What one poll for so many gives, or the number that says what is wrong.
fn polled(cq: &CqShadow, entries: usize) -> Result<Vec<u64>, c_int> {
    let mut out = vec![ibv_wc::zeroed(); entries];
    // SAFETY: the array has room for `entries`.
    let count = unsafe { poll_cq(cq, entries as c_int, out.as_mut_ptr()) };
    usize::try_from(count).map(|count| out[..count].iter().map(|wc| wc.wr_id).collect()).map_err(|_| count)
}

/// What one extended poll gives.
fn started(queue: Raw<ibv_cq_ex>) -> Result<Vec<u64>, c_int> {
    let mut attr = ibv_poll_cq_attr::zeroed();
    // SAFETY: the queue is the test's own, and outlives its threads.
    let start = unsafe { (*queue.0).start_poll }.expect("it was hooked");
    // SAFETY: as above.
    let end = unsafe { (*queue.0).end_poll }.expect("it was hooked");
    // SAFETY: as above.
    match unsafe { start(queue.0, &mut attr) } {
        0 => {}
        errno => return Err(errno),
    }
    // SAFETY: as above.
    let wr_id = unsafe { (*queue.0).wr_id };
    // SAFETY: as above.
    unsafe { end(queue.0) };
    Ok(vec![wr_id])
}

#[test]
fn completions_that_the_application_does_not_get_do_not_make_its_queue_look_empty() {
    for entries in [1, 2, 16] {
        for unsignalled in [1, 2, 3, 15, 16, 17, 33] {
            let bench = Bench::new();
            post_behind(&bench, unsignalled, 42);
            assert_eq!(polled(&bench.qp.send_cq, entries), Ok(vec![42]), "{entries} behind {unsignalled}");
            assert_eq!(bench.qp.sq.ring.head(), unsignalled + 1);
        }
    }
}

#[test]
fn a_poll_gives_as_many_as_there_are_whatever_lies_between_them() {
    let bench = Bench::new();
    for (unsignalled, wr_id) in [(1, 1), (3, 2), (0, 3), (5, 4)] {
        post_behind(&bench, unsignalled, wr_id);
    }
    assert_eq!(polled(&bench.qp.send_cq, 3), Ok(vec![1, 2, 3]), "fewer would say that the queue is empty");
    assert_eq!(polled(&bench.qp.send_cq, 3), Ok(vec![4]));
}

#[test]
fn an_extended_poll_finds_what_lies_behind_a_batch_that_is_not_the_application_s() {
    for unsignalled in [1, 15, 16, 17, 32, 33] {
        let queue = Queue2::new(poll_ex::OF_WC);
        post_behind(&queue.bench, unsignalled, 42);
        assert_eq!((queue.start(), queue.wr_id()), (0, 42), "behind {unsignalled}");
        post_behind(&queue.bench, unsignalled.min(20), 43);
        assert_eq!((queue.next(), queue.wr_id()), (0, 43), "next, behind {unsignalled}");
        assert_eq!(queue.next(), libc::ENOENT);
        queue.end();
    }
}

#[test]
fn a_queue_that_broke_says_so_once_it_is_empty() {
    let queue = Queue2::new(poll_ex::OF_WC);
    let cq = &*queue.bench.qp.send_cq;
    PROVIDER.with_borrow_mut(|provider| provider.is_broken = true);
    post_behind(&queue.bench, 2, 42);
    assert_eq!((polled(cq, 1), polled(cq, 1)), (Ok(vec![42]), Err(-1)));
    post_behind(&queue.bench, 2, 43);
    assert_eq!((polled(cq, 2), polled(cq, 2)), (Ok(vec![43]), Err(-1)));
    assert_eq!(queue.start(), libc::EIO);
    cq.attention.fetch_or(UNLOCKED, Relaxed);
    assert_eq!((polled(cq, 1), queue.start()), (Err(-1), libc::EIO));
    PROVIDER.with_borrow_mut(|provider| provider.is_broken = false);
    assert_eq!((polled(cq, 1), queue.start()), (Ok(vec![]), libc::ENOENT));
}

#[test]
fn where_queue_pairs_without_a_shadow_complete_too_the_provider_is_asked_under_the_lock() {
    let queue = Queue2::new(poll_ex::OF_WC);
    let cq = Arc::clone(&queue.bench.qp.send_cq);
    let foreign = QPN + 1;
    cq.inner.lock().foreign.push(foreign);
    cq.attention.fetch_or(FOREIGN, Relaxed);
    let looked = std::rc::Rc::new(core::cell::Cell::new(0));
    let (count, seen) = (std::rc::Rc::clone(&looked), Arc::clone(&cq));
    PROVIDER.with_borrow_mut(|provider| {
        provider.completions.extend((0..3).map(|wr_id| {
            let mut wc = ibv_wc::zeroed();
            (wc.wr_id, wc.qp_num) = (wr_id, foreign);
            wc
        }));
        provider.at_poll = Some(Box::new(move || {
            assert!(seen.inner.try_lock().is_none(), "a sweep could overtake this poll");
            count.set(count.get() + 1);
        }));
    });
    assert_eq!(polled(&cq, 1), Ok(vec![0]));
    poll::sweep(&cq);
    assert_eq!((queue.start(), queue.wr_id()), (0, 1));
    queue.end();
    assert_eq!(polled(&cq, 8), Ok(vec![2]));
    assert!(looked.get() >= 2);
    PROVIDER.with_borrow_mut(|provider| provider.at_poll = None);
}

#[test]
fn what_a_sweep_has_in_its_hand_does_not_make_a_queue_look_empty() {
    for is_extended in [false, true] {
        let queue = Queue2::new(poll_ex::OF_WC);
        let cq = Arc::clone(&queue.bench.qp.send_cq);
        post_behind(&queue.bench, 0, 42);
        let (say, hear) = std::sync::mpsc::channel();
        let (hear, early) = (std::rc::Rc::new(hear), std::rc::Rc::new(core::cell::OnceCell::new()));
        let (seen, asked) = (Arc::clone(&cq), Raw(queue.raw()));
        let (heard, found) = (std::rc::Rc::clone(&hear), std::rc::Rc::clone(&early));
        let at_poll = move || {
            let (say, seen, asked) = (say.clone(), Arc::clone(&seen), asked);
            // What the provider has is this thread's alone: the other finds nothing.
            std::thread::spawn(move || say.send(if is_extended { started(asked) } else { polled(&seen, 1) }));
            let _ = found.set(heard.recv_timeout(std::time::Duration::from_millis(50)));
        };
        PROVIDER.with_borrow_mut(|provider| provider.at_poll = Some(Box::new(at_poll)));
        poll::sweep(&cq);
        assert_eq!(early.get(), Some(&Err(std::sync::mpsc::RecvTimeoutError::Timeout)), "it waits for the sweep");
        assert_eq!(hear.recv(), Ok(Ok(vec![42])));
        assert!(!poll::has_stash(&cq));
        PROVIDER.with_borrow_mut(|provider| provider.at_poll = None);
    }
}

/// A queue with a channel of no library.
fn sleeper() -> (Queue2, Arc<ChannelShadow>) {
    let queue = Queue2::on(poll_ex::OF_WC, true);
    let channel = queue.bench.qp.send_cq.channel.clone().expect("it was given one");
    (queue, channel)
}

#[test]
fn what_an_extended_poll_took_and_did_not_give_out_wakes_who_armed_since() {
    let (queue, channel) = sleeper();
    let cq = &*queue.bench.qp.send_cq;
    for kind in [notify::ANY, notify::SOLICITED] {
        post_behind(&queue.bench, 0, 1);
        cq.armed.store(kind, SeqCst);
        assert_eq!((queue.start(), channel.due()), (0, 0), "nothing was left");
        queue.end();
    }
    cq.armed.store(notify::ANY, SeqCst);
    (0..3).for_each(|wr_id| post_behind(&queue.bench, 0, wr_id));
    assert_eq!((queue.start(), channel.due()), (0, 1), "two are in the stash, where another thread did not see them");
    queue.end();
    assert_eq!((queue.start(), channel.due()), (0, 1), "one event for each arming");
    queue.end();
}

#[test]
fn an_event_of_an_earlier_arming_does_not_end_a_later_one() {
    let (queue, channel) = sleeper();
    let qp = &queue.bench.qp;
    let cq = &*qp.send_cq;
    cq.armed.store(notify::ANY, SeqCst);
    notify::heard(cq);
    poll::stash_error(cq, &mut cq.inner.lock(), qp, 9, IBV_WC_WR_FLUSH_ERR);
    assert_eq!(channel.due(), 1, "no NIC tells of it");
    poll::stash_error(cq, &mut cq.inner.lock(), qp, 10, IBV_WC_WR_FLUSH_ERR);
    assert_eq!(channel.due(), 1);
    assert_eq!(polled(cq, 4), Ok(vec![9, 10]));
    // In the usual course an event comes, the rest of a batch waits in the stash, and nobody is told twice.
    cq.armed.store(notify::ANY, SeqCst);
    notify::heard(cq);
    (0..3).for_each(|wr_id| post_behind(&queue.bench, 0, wr_id));
    assert_eq!((queue.start(), channel.due()), (0, 1));
    queue.end();
}

/// Another poller took the second one from the provider, and stands still with it while the program posts on.
#[test]
fn a_late_flush_is_of_its_own_request_or_of_none() {
    for (posted_behind, late) in [(0, Some(11)), (1, None)] {
        let bench = Bench::new();
        let ids = |seen: Vec<ibv_wc>| seen.iter().map(|wc| wc.wr_id).collect::<Vec<_>>();
        (10..13).for_each(|wr_id| bench.post_signalled(wr_id));
        assert_eq!(ids(bench.complete(&[(0, IBV_WC_REM_ACCESS_ERR), (2, IBV_WC_WR_FLUSH_ERR)])), [10, 12]);
        let last = bench.qp.sq.ring.size() + posted_behind;
        (3..=last).for_each(|seq| bench.post_signalled(10 + seq));
        assert_eq!(ids(bench.complete(&[(1, IBV_WC_WR_FLUSH_ERR)])), late.into_iter().collect::<Vec<_>>());
        assert_eq!(ids(bench.complete(&[(last, IBV_WC_WR_FLUSH_ERR)])), [10 + last]);
    }
}
