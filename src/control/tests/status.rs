//! What a process says of itself on its local socket, and to whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use fabric::admin::{ask, connect_admin, names};
use fabric::{config, connect, eventually, Fabric, Kind};
use serial_test::serial;
use shift_control::datapath::{DeviceId, Event, QpLife, Unprotected};
use shift_control::status::{Answer, QueuePair, Status};

/// The status of the agent that has a queue pair of this number.
fn status_with(qpn: u32) -> Option<Status> {
    names().iter().find_map(|name| match ask(name, b"{\"request\":\"status\"}\n") {
        Some(Answer::Status(status)) if status.queue_pairs.iter().any(|qp| qp.qpn == qpn) => Some(status),
        Some(Answer::Status(_)) => None,
        other => panic!("{name}: {other:?}"),
    })
}

fn only(status: &Status, qpn: u32) -> QueuePair {
    status.queue_pairs.iter().find(|qp| qp.qpn == qpn).unwrap().clone()
}

#[test]
#[serial]
fn a_status_names_the_path_and_the_reason_of_each_queue_pair_and_adds_up() {
    let fabric = Fabric::new(60);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    connect(&a, 1, &b, 2);
    let reason = "its type is UD; only RC is";
    let unrecorded = |qpn| Event::Unrecorded { device: DeviceId(0), qpn, reason: Unprotected(reason.to_owned()) };
    a.events.send(unrecorded(0x777));
    a.events.send(unrecorded(0x778));
    a.events.send(Event::UnrecordedGone { device: DeviceId(0), qpn: 0x778 });
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(2));
    let status = status_with(0x101).unwrap();
    let (protected, not) = (only(&status, 0x101), only(&status, 0x777));
    assert!(protected.protected && protected.reason.is_none() && protected.path == protected.device);
    assert!(protected.standby.is_some_and(|standby| standby != protected.device) && protected.epoch == 0);
    assert_eq!((not.protected, not.reason.as_deref()), (false, Some(reason)));
    assert_eq!((status.queue_pairs.len(), status.totals.queue_pairs, status.totals.protected), (2, 3, 1));

    a.post(1, 0, Kind::Send);
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Send);
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    eventually("the migration is counted", || status_with(0x101).is_some_and(|status| status.totals.migrations == 1));
    let status = status_with(0x101).unwrap();
    let moved = only(&status, 0x101);
    assert!(moved.path != moved.device && moved.epoch == 1, "{moved:?}");
    assert_eq!((status.totals.replayed, status.totals.surfaced), (1, 0));

    a.events.send(Event::Unprotected { qp: QpLife(1), reason: Unprotected("it posts IBV_WR_BIND_MW".to_owned()) });
    eventually("the reason is shown", || {
        let qp = only(&status_with(0x101).unwrap(), 0x101);
        !qp.protected && qp.reason.as_deref() == Some("it posts IBV_WR_BIND_MW")
    });
}

#[test]
#[serial]
fn garbage_idle_connections_and_other_users_are_turned_away_and_the_next_one_is_answered() {
    let fabric = Fabric::new(61);
    let before = names();
    let a = fabric.process(1, config());
    let b = fabric.process(2, config());
    connect(&a, 0x31, &b, 0x32);
    eventually("both ends are armed", || a.is_armed(0x31) && b.is_armed(0x32));
    let name = names().into_iter().find(|name| !before.contains(name)).unwrap();
    assert!(matches!(ask(&name, b"{\"request\":\"dance\"}\n"), Some(Answer::Error(_))));
    assert!(matches!(ask(&name, b"\xff\n"), Some(Answer::Error(_))));
    // More than any request: the connection ends, with or without a reset for what was not read.
    let mut flood = connect_admin(&name);
    let flooded = (0..1000).any(|_| flood.write_all(&[b'x'; 1024]).is_err());
    assert!(flooded, "an endless request is read for ever");
    let idle: Vec<UnixStream> = (0..100).map(|_| connect_admin(&name)).collect();
    assert!(matches!(ask(&name, b"{\"request\":\"status\"}\n"), Some(Answer::Status(_))));
    drop(idle);
    another_user_hears_nothing(&name);
}

/// Only root can be somebody else.
fn another_user_hears_nothing(name: &str) {
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.connect(b'\\0' + sys.argv[1].encode())\n\
        try:\n    s.sendall(b'{\"request\":\"status\"}\\n')\n    answer = s.recv(1)\n\
        except (BrokenPipeError, ConnectionResetError):\n    answer = b''\n\
        sys.exit(7 if answer == b'' else 8)\n";
    let ask_as = |uid| Command::new("python3").args(["-c", script, name]).uid(uid).status().unwrap().code();
    if nix::unistd::geteuid().is_root() {
        assert_eq!((ask_as(0), ask_as(65534)), (Some(8), Some(7)));
    }
}
