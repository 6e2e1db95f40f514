//! The deadlines that the agent keeps itself, each as it passes: stall, probe, key lookup, heartbeat. Those of the handshake pass in virtual
//! time in `src/proto/tests/machine/deadlines.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::Duration;

use fabric::cable::{Cable, Cut, Edge, Step, Way};
use fabric::{connect, eventually, Fabric, Kind, Process, Watch};

/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(2);

fn armed(net: u8, variables: &[(&str, &str)]) -> (Fabric, Cable, Process, Process) {
    let (fabric, cable) = (Fabric::new(net), Cable::new(net));
    let [a, b] = [1, 2].map(|host| fabric.process_on_cable(host, Cable::config(variables)));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, cable, a, b)
}

/// `done` comes `after_ms` later, not before, and not much later either.
fn passes(what: &str, after_ms: u64, done: impl FnMut() -> bool) {
    let since = Watch::start();
    eventually(what, done);
    let (took, due) = (since.elapsed(), Duration::from_millis(after_ms));
    assert!(took + Duration::from_millis(20) >= due, "{what} after {took:?} already, due after {due:?}");
    assert!(since.served() < due + SLACK, "{what} after {took:?}, due after {due:?}");
}

#[test]
fn outstanding_work_without_progress_has_its_path_probed() {
    let (fabric, _cable, a, b) = armed(1, &[("SHIFT_STALL_MS", "400"), ("SHIFT_PROBE_MS", "50")]);
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Send);
    passes("the path is found dead and left", 400, || a.is_done(1));
    assert_eq!(b.received(1), [1]);
}

#[test]
fn a_probe_of_which_nothing_is_heard_at_all_ends_at_its_deadline() {
    let (fabric, _cable, a, b) = armed(2, &[("SHIFT_STALL_MS", "50"), ("SHIFT_PROBE_MS", "700")]);
    fabric.lock().probes_never_fail = true;
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Send);
    // It takes more than one probe to condemn a path.
    passes("the path counts as dead", 700, || a.is_done(1));
    assert_eq!(b.received(1), [1]);
}

#[test]
fn an_unknown_key_that_nobody_answers_for_ends_in_an_error_at_its_deadline() {
    let long = [("SHIFT_EXCHANGE_MS", "8000"), ("SHIFT_HEARTBEAT_MS", "8000"), ("SHIFT_KEY_LOOKUP_MS", "600")];
    let (fabric, cable, a, b) = armed(3, &long);
    // The question is asked in the replay, which begins with the peer's READY.
    cable.cut_at(Cut { step: Step::Ready, sender: 2, edge: Edge::After, way: Way::From(2) });
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Write { rkey: 9 });
    a.fail(1);
    eventually("the replay", || cable.moment().is_some());
    passes("the request ends", 600, || a.qp(1, |q| q.surfaced));
    assert!(b.qp(1, |q| q.written.is_empty()));
}

#[test]
fn silence_beyond_the_heartbeat_deadline_is_a_peer_out_of_reach() {
    let (fabric, cable, a, b) = armed(4, &[("SHIFT_HEARTBEAT_MS", "400"), ("SHIFT_EXCHANGE_MS", "8000")]);
    cable.cut_at(Cut { step: Step::Commit, sender: 1, edge: Edge::After, way: Way::Both });
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Send);
    a.fail(1);
    let mut cut = None;
    eventually("the commit", || {
        cut = cable.moment();
        cut.is_some()
    });
    let (cut, mut first) = (cut.unwrap(), None);
    eventually("both ends surface, long before the exchange deadline", || {
        let ends = [&a, &b].map(|end| end.qp(1, |q| q.surfaced));
        if ends.contains(&true) {
            first.get_or_insert(cut.elapsed());
        }
        ends == [true, true]
    });
    // The last word came a moment before the cut.
    assert!(first.unwrap() > Duration::from_millis(300), "silent after {first:?} already");
    assert!(cut.served() < Duration::from_millis(400) + SLACK, "after {:?}", cut.elapsed());
}
