//! The control connection cut, and either process killed, before and after each message of a migration: everything ends, resumed or
//! surfaced at both ends, and never later than its deadlines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fabric::cable::{Cable, Cut, Edge, Step, Way};
use fabric::{connect, eventually, Fabric, Kind, Process, Watch};
use shift_control::config::DEFAULT_PORT;

/// Deadlines short enough for hundreds of runs.
const SHORT: [(&str, &str); 9] = [
    ("SHIFT_PROBE_MS", "50"),
    ("SHIFT_CLAIM_MS", "300"),
    ("SHIFT_HOLD_MS", "100"),
    ("SHIFT_FENCE_MS", "300"),
    ("SHIFT_PACKET_LIFETIME_MS", "50"),
    ("SHIFT_EXCHANGE_MS", "1000"),
    ("SHIFT_PATIENCE_MS", "1500"),
    ("SHIFT_HEARTBEAT_MS", "500"),
    ("SHIFT_KEY_LOOKUP_MS", "300"),
];
/// Deadlines that a short cut does not reach on a busy machine either.
const LONG: [(&str, &str); 9] = [
    ("SHIFT_PROBE_MS", "50"),
    ("SHIFT_CLAIM_MS", "3000"),
    ("SHIFT_HOLD_MS", "100"),
    ("SHIFT_FENCE_MS", "300"),
    ("SHIFT_PACKET_LIFETIME_MS", "50"),
    ("SHIFT_EXCHANGE_MS", "10000"),
    ("SHIFT_PATIENCE_MS", "15000"),
    ("SHIFT_HEARTBEAT_MS", "5000"),
    ("SHIFT_KEY_LOOKUP_MS", "3000"),
];
/// How long a cut lasts that is none of the protocol's business.
const FLAP: Duration = Duration::from_millis(100);
/// The longest of these deadlines is patience; what is beside it is for the steps before and behind it.
const LIMIT: Duration = Duration::from_millis(1500 + 1500);
/// Runs at a time: they mostly wait. With all tests of this file at once they stay below 1024 descriptors.
const AT_ONCE: usize = 10;

/// The messages of a migration whose owner is host 1, in their order.
const STEPS: [(Step, u8); 9] = [
    (Step::Claim, 1),
    (Step::Accept, 2),
    (Step::Commit, 1),
    (Step::Report, 1),
    (Step::Report, 2),
    (Step::Ready, 1),
    (Step::Ready, 2),
    (Step::Confirm, 1),
    (Step::Confirm, 2),
];

fn cuts(ways: &[Way]) -> Vec<Cut> {
    let edges = [Edge::Before, Edge::After];
    let of = |(step, sender)| {
        edges.into_iter().flat_map(move |edge| ways.iter().map(move |way| Cut { step, sender, edge, way: *way }))
    };
    STEPS.into_iter().flat_map(of).collect()
}

/// Runs all of them, each on a network of its own.
fn run_all(first_net: u8, cuts: &[Cut], run: fn(u8, Cut)) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, cut)) = take(&next, cuts) {
                    // A failing thread names its case; the scope then fails the test.
                    let outcome = std::panic::catch_unwind(|| run(first_net + at, cut));
                    outcome.unwrap_or_else(|cause| {
                        eprintln!("failed: {cut:?}");
                        std::panic::resume_unwind(cause)
                    });
                }
            });
        }
    });
}

fn take(next: &AtomicUsize, cuts: &[Cut]) -> Option<(u8, Cut)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((u8::try_from(at).unwrap(), *cuts.get(at)?))
}

/// Host 1 sends three messages, then its rail dies under three more; the cable is cut at that step of the migration.
fn faulted(net: u8, cut: Cut, deadlines: &[(&str, &str)]) -> (Fabric, Cable, Process, Process) {
    let (fabric, cable) = (Fabric::new(net), Cable::new(net));
    let [a, b] = [1, 2].map(|host| fabric.process_on_cable(host, Cable::config(deadlines)));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    post(&a, 0..3);
    cable.cut_at(cut);
    fabric.set_rail(0, false);
    post(&a, 3..6);
    a.fail(1);
    eventually("the step", || cable.moment().is_some());
    (fabric, cable, a, b)
}

fn post(from: &Process, messages: std::ops::Range<u32>) {
    for message in messages {
        from.post(1, message, Kind::Send);
    }
}

fn within(what: &str, since: Watch, mut done: impl FnMut() -> bool) {
    eventually(what, &mut done);
    assert!(since.served() < LIMIT, "{what}: only after {:?}", since.elapsed());
}

fn is_surfaced(process: &Process) -> bool {
    process.qp(1, |q| q.surfaced)
}

fn all_is_delivered(a: &Process, b: &Process) -> bool {
    a.is_done(1) && !is_surfaced(a) && !is_surfaced(b) && b.received(1) == (0..6).collect::<Vec<u32>>()
}

/// It can go on by itself: on a path, with nobody kept out, or with its error given out.
fn has_ended(process: &Process) -> bool {
    process.qp(1, |q| q.surfaced || q.is_running())
}

#[test]
fn a_cut_that_is_shorter_than_the_deadlines_is_resumed_wherever_it_begins() {
    run_all(1, &cuts(&[Way::Both, Way::From(1), Way::From(2)]), |net, cut| {
        let (_fabric, cable, a, b) = faulted(net, cut, &LONG);
        let since = cable.moment().unwrap();
        std::thread::sleep(FLAP);
        cable.mend();
        within("all is delivered", since, || all_is_delivered(&a, &b));
        post(&a, 6..8);
        eventually("so are later messages", || a.is_done(1));
        assert_eq!(b.received(1), (0..8).collect::<Vec<u32>>());
    });
}

#[test]
fn a_cut_that_lasts_ends_at_both_ends_by_their_deadlines_wherever_it_begins() {
    run_all(60, &cuts(&[Way::Both, Way::From(1), Way::From(2)]), |net, cut| {
        let (_fabric, cable, a, b) = faulted(net, cut, &SHORT);
        let since = cable.moment().unwrap();
        within("the owner's end", since, || is_surfaced(&a) || all_is_delivered(&a, &b));
        within("the other's end", since, || has_ended(&b));
        let committed = !matches!(cut.step, Step::Claim | Step::Accept);
        assert!(
            committed || cut.way != Way::Both || !is_surfaced(&b),
            "nothing was committed, and its queue pair is well"
        );
        // What both have to know gets through once there is a network again.
        cable.mend();
        eventually("both ends agree", || (is_surfaced(&a) && is_surfaced(&b)) || all_is_delivered(&a, &b));
    });
}

#[test]
fn a_peer_that_is_killed_at_any_step_leaves_nobody_waiting() {
    run_all(120, &cuts(&[Way::Both]), |net, cut| {
        let (fabric, cable, a, b) = faulted(net, cut, &SHORT);
        let since = killed(&fabric, &cable, &b);
        within("the owner's end", since, || is_surfaced(&a) || (a.is_done(1) && has_ended(&a)));
        // Nothing of the dead peer's answers any more: the next fault is the application's.
        a.fail(1);
        within("the next error", since, || is_surfaced(&a));
    });
}

#[test]
fn an_owner_that_is_killed_at_any_step_leaves_nobody_waiting() {
    run_all(140, &cuts(&[Way::Both]), |net, cut| {
        let (fabric, cable, a, b) = faulted(net, cut, &SHORT);
        let since = killed(&fabric, &cable, &a);
        within("the other's end", since, || has_ended(&b));
        b.fail(1);
        within("the next error", since, || is_surfaced(&b));
    });
}

/// Kills a process while nothing of it gets through, and lets the other know what a network would tell it: what was sent before, and
/// a port that refuses.
fn killed(fabric: &Fabric, cable: &Cable, process: &Process) -> Watch {
    process.kill();
    let own = (fabric.address(process.host), DEFAULT_PORT);
    eventually("its ports are closed", || TcpStream::connect(own).is_err());
    cable.mend();
    Watch::start()
}
