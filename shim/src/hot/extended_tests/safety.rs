//! What must not go wrong although a provider refuses, a program breaks the rules, or a call takes long.

use super::*;
use crate::cold::cq;
use std::time::Duration;

/// Collects so many signalled sends.
fn collect(pair: &Pair, count: u64) {
    wr!(pair.raw(), wr_start);
    (0..count).for_each(|wr_id| wr!(pair.name(wr_id, IBV_SEND_SIGNALED), wr_send));
}

/// Polls until there is nothing more.
fn polled(bench: &Bench) -> Vec<(u64, ibv_wc_status)> {
    let batches = std::iter::from_fn(|| Some(bench.complete(&[])).filter(|batch| !batch.is_empty()));
    batches.flatten().map(|wc| (wc.wr_id, wc.status)).collect()
}

#[test]
fn a_chain_that_is_refused_behind_its_beginning_ends_in_a_completion_and_not_in_an_errno() {
    for room in [1, 16, 20, 39] {
        let pair = Pair::new();
        PROVIDER.with_borrow_mut(|provider| provider.room = Some(room));
        collect(&pair, 40);
        assert_eq!(wr!(pair.raw(), wr_complete), 0, "a part is out, and an errno would have it posted again");
        assert_eq!(pair.bench.posted().len(), room);
        let seen = polled(&pair.bench);
        assert_eq!(seen.iter().map(|(wr_id, _)| *wr_id).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
        assert_eq!((seen[0].1, seen[39].1), (IBV_WC_LOC_QP_OP_ERR, IBV_WC_WR_FLUSH_ERR));
    }
    let pair = Pair::new();
    PROVIDER.with_borrow_mut(|provider| provider.room = Some(0));
    collect(&pair, 40);
    assert_eq!((wr!(pair.raw(), wr_complete), pair.ring().tail()), (libc::ENOMEM, 0), "nothing is out");
    assert!(polled(&pair.bench).is_empty());
}

#[test]
fn an_atomic_that_post_send_may_refuse_takes_its_chain_to_the_provider_or_is_refused_with_it() {
    let pair = Pair::new();
    let chain = |at: u64, length: u32| {
        wr!(pair.raw(), wr_start);
        wr!(pair.name(1, 0), wr_send);
        wr!(pair.name(2, 0), wr_atomic_fetch_add, 7, at, 1);
        wr!(pair.raw(), wr_set_sge, 5, 0x2000, length);
        wr!(pair.raw(), wr_complete)
    };
    for (at, length) in [(0x1004, 8), (0x1000, 4)] {
        CALLS.with_borrow_mut(Vec::clear);
        assert_eq!(chain(at, length), 0);
        let calls =
            CALLS.with_borrow(|calls| calls.iter().map(|call| call.split(' ').next().map(str::to_owned)).collect());
        let calls: Option<Vec<String>> = calls;
        assert_eq!(calls.unwrap_or_default(), ["start", "send", "add", "element", "complete"]);
    }
    assert!(pair.bench.posted().is_empty() && pair.why().is_none());
    assert!(replay::exclude(&pair.bench.qp));
    assert_eq!((chain(0x1004, 8), pair.ring().tail()), (libc::EINVAL, 4), "whole");
    assert_eq!((chain(0x1000, 8), pair.ring().tail()), (0, 6));
}

#[test]
fn of_several_setters_the_last_one_counts() {
    let pair = Pair::new();
    wr!(pair.raw(), wr_start);
    wr!(pair.name(1, 0), wr_send);
    wr!(pair.raw(), wr_set_inline_data, [1_u8; 8].as_mut_ptr().cast(), 8);
    wr!(pair.raw(), wr_set_sge, 5, 0x2000, 100);
    assert_eq!(wr!(pair.raw(), wr_complete), 0);
    let posted = pair.bench.posted();
    assert_eq!((posted[0].send_flags & IBV_SEND_INLINE, posted[0].num_sge), (0, 1));
    assert_eq!(pair.ring().slot(0).addr.load(Relaxed), 0x2000);
}

#[test]
fn calls_out_of_turn_find_nothing_and_disturb_nobody() {
    let pair = Pair::new();
    wr!(pair.name(1, 0), wr_send);
    wr!(pair.raw(), wr_abort);
    assert_eq!(wr!(pair.raw(), wr_complete), libc::EINVAL, "without a start");
    collect(&pair, 1);
    let raw = Raw(pair.raw());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let raw = raw;
            wr!(raw.0, wr_send);
            wr!(raw.0, wr_abort);
            assert_eq!(wr!(raw.0, wr_complete), libc::EINVAL, "the start was another thread's");
        });
    });
    assert_eq!((wr!(pair.raw(), wr_complete), pair.bench.posted().len()), (0, 1));

    let queue = Queue2::new(poll_ex::OF_WC);
    queue.complete(2);
    assert_eq!((queue.next(), queue.start()), (libc::ENOENT, 0), "next without a start");
    queue.end();
    queue.end();
    assert_eq!(read!(queue, read_byte_len), 0, "the poll is over");
    assert_eq!(queue.start(), 0);
    queue.end();
}

#[test]
fn a_change_waits_for_no_open_chain_and_what_it_put_back_is_hooked_at_once() {
    let pair = Pair::new();
    let ex = pair.bench.qp.ex.as_deref().expect("it is extended");
    // SAFETY: the queue pair is the test's own.
    let complete_of = || unsafe { (*pair.raw()).wr_complete }.map(|function| function as usize);
    let ours = complete_of();
    collect(&pair, 1);
    // As mlx5 does at RESET and RTS.
    // SAFETY: the queue pair is the test's own.
    ex.across(|| unsafe { (*pair.raw()).wr_complete = Some(refuse) });
    assert_eq!(complete_of(), ours);
    assert_eq!((wr!(pair.raw(), wr_complete), pair.bench.posted().len()), (0, 1));
}

#[test]
fn a_chain_that_was_open_when_its_queue_pair_got_another_life_is_left() {
    let pair = Pair::new();
    collect(&pair, 1);
    pair.bench.qp.sq.poster.lock().mode = PostMode::Gone;
    assert_eq!(wr!(pair.raw(), wr_complete), libc::EINVAL, "the QP is found for as long as its RESET runs");
    let ex = pair.bench.qp.ex.clone().expect("it is extended");
    let cqs = (Arc::clone(&pair.bench.qp.send_cq), Arc::clone(&pair.bench.qp.recv_cq));
    let mut init = ibv_qp_init_attr::zeroed();
    init.cap = CAP;
    let pd = Arc::clone(&pair.bench.qp.pd);
    let (life, ops) = (crate::lives::next(), cqs.0.ops);
    let mut renewed = QpShadow::new(life, pair.bench.qp.qp, QPN, pd, &init, cqs, None, ops);
    renewed.ex = Some(ex);
    assert!(QPS.insert(pair.raw(), Arc::new(renewed)));
    collect(&pair, 2);
    assert_eq!((wr!(pair.raw(), wr_complete), pair.bench.posted().len()), (0, 2));
}

#[test]
fn nobody_waits_for_a_call_that_has_a_queue_without_a_lock() {
    let queue = Queue2::new(poll_ex::OF_WC);
    let shadow = Arc::clone(&queue.bench.qp.send_cq);
    shadow.attention.fetch_or(UNLOCKED, Relaxed);
    queue.complete(2);
    {
        let _call = cq::alone(&shadow);
        super::super::poll::sweep(&shadow);
        assert_eq!((queue.start(), queue.bench.complete(&[]).len()), (libc::ENOENT, 0), "the provider is not asked");
        let raw: *const ibv_cq = queue.raw().cast();
        assert_eq!(cq::among(raw, raw, Duration::ZERO, || ()), None, "nor is a second call let in");
    }
    let raw: *const ibv_cq = queue.raw().cast();
    assert_eq!(cq::among(raw, raw, Duration::ZERO, || cq::is_in_call(&shadow)), Some(true));
    assert_eq!((queue.start(), queue.bench.complete(&[]).len()), (0, 1));
    queue.end();
}
