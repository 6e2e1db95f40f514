//! Two agents on loopback, each with a data path on the same fabric in memory: they meet, arm, migrate and part.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fabric::{config, connect, connect_hosts, eventually, exactly, own_port, stays, Fabric, Kind, Process, Watch};
use shift_control::config::DEFAULT_PORT;
use shift_control::datapath::{DeviceId, Event, QpLife, Unprotected};
use shift_control::Config;
use shift_proto::frame::{Frame, Hello, Opening, SPOKEN};
use shift_proto::id::{EndpointId, Epoch, PathId, ProcessId, Tuple};
use shift_proto::migrate::Handshake;

/// `IBV_WC_REM_ACCESS_ERR`.
const REM_ACCESS_ERR: u32 = 10;

fn armed_pair(net: u8) -> (Fabric, Process, Process) {
    let fabric = Fabric::new(net);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b)
}

fn send(from: &Process, messages: std::ops::Range<u32>) {
    for message in messages {
        from.post(1, message, Kind::Send);
    }
}

#[test]
fn two_ends_arm_and_every_message_survives_the_rail_once_and_in_order() {
    let (fabric, a, b) = armed_pair(1);
    send(&a, 0..10);
    fabric.lock().acks_lost[0] = true;
    send(&a, 10..13);
    assert_eq!(b.received(1).len(), 13);
    fabric.set_rail(0, false);
    send(&a, 13..20);
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    send(&a, 20..25);
    eventually("so are later messages", || a.is_done(1));
    assert_eq!(b.received(1), (0..25).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 1 && !q.surfaced && q.reposts == 1));
    assert!(b.qp(1, |q| q.path == 1 && !q.surfaced && q.reposts == 1));
}

#[test]
fn a_port_that_goes_down_at_the_receiver_moves_the_connection_without_any_completion() {
    let (fabric, a, b) = armed_pair(2);
    send(&a, 0..3);
    fabric.set_rail(0, false);
    send(&a, 3..6);
    b.events.send(Event::Port { device: DeviceId(0), up: false });
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(b.received(1), (0..6).collect::<Vec<u32>>());
}

#[test]
fn what_an_old_incarnation_still_says_is_no_fault_of_the_new_one() {
    let (fabric, a, b) = armed_pair(49);
    fabric.set_rail(0, false);
    send(&a, 0..3);
    a.fail(1);
    eventually("moved to the standby", || a.is_done(1) && b.qp(1, |q| q.path == 1));
    for end in [&a, &b] {
        end.events.send(Event::Fatal { qp: QpLife(1), epoch: Epoch(0), status: 5 });
    }
    stays("one migration", 300, || a.qp(1, |q| q.reposts == 1) && b.qp(1, |q| q.reposts == 1));
    send(&a, 3..6);
    eventually("it goes on", || a.is_done(1));
}

#[test]
fn a_fault_that_heals_moves_nothing() {
    let (_fabric, a, b) = armed_pair(3);
    send(&a, 0..3);
    a.events.send(Event::Port { device: DeviceId(0), up: false });
    stays("the path", 300, || a.qp(1, |q| q.path == 0) && b.qp(1, |q| q.path == 0));
    send(&a, 3..6);
    assert!(a.is_done(1));
}

#[test]
fn both_rails_gone_for_a_while_surface_nothing() {
    let (fabric, a, b) = armed_pair(4);
    fabric.set_rail(0, false);
    fabric.set_rail(1, false);
    send(&a, 0..4);
    a.fail(1);
    stays("nothing surfaces", 700, || !a.qp(1, |q| q.surfaced) && !b.qp(1, |q| q.surfaced));
    fabric.set_rail(0, true);
    eventually("all is delivered on the rail that is back", || a.is_done(1));
    assert_eq!(b.received(1), (0..4).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 0 && q.reposts == 1));
}

/// Until its fence the peer may send on it.
#[test]
fn a_path_is_connected_again_a_packet_lifetime_after_the_later_fence() {
    let (fabric, a, b) = armed_pair(31);
    fabric.lock().slow_fence = Some((2, Duration::from_millis(600)));
    fabric.set_rail(0, false);
    fabric.set_rail(1, false);
    send(&a, 0..4);
    a.fail(1);
    stays("no path", 100, || !a.is_done(1));
    fabric.set_rail(0, true);
    eventually("all is delivered on the rail that is back", || a.is_done(1));
    let (fenced, reposted) = (b.qp(1, |q| q.fenced_at.unwrap()), a.qp(1, |q| q.reposted_at.unwrap()));
    assert!(a.qp(1, |q| q.path == 0) && reposted > fenced);
    assert!(reposted - fenced >= Duration::from_millis(500), "{:?} after the peer's fence", reposted - fenced);
}

#[test]
fn a_rail_that_is_back_takes_the_next_fault() {
    let (fabric, a, b) = armed_pair(5);
    fabric.set_rail(0, false);
    send(&a, 0..3);
    a.fail(1);
    eventually("moved to the standby", || a.is_done(1));
    fabric.set_rail(0, true);
    // Until the first path is armed again a fault of the second has to wait for it; nothing may surface either way.
    fabric.set_rail(1, false);
    send(&a, 3..6);
    a.fail(1);
    eventually("moved back", || a.is_done(1));
    assert_eq!(b.received(1), (0..6).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 0 && !q.surfaced));
}

#[test]
fn a_rail_that_falls_silent_without_any_completion_is_left() {
    let (fabric, a, b) = armed_pair(40);
    send(&a, 0..3);
    fabric.set_rail(0, false);
    send(&a, 3..9);
    let start = Watch::start();
    eventually("all is delivered", || a.is_done(1));
    assert!(start.served() < Duration::from_secs(3), "a bound of 3 s: {:?}", start.elapsed());
    assert_eq!(b.received(1), (0..9).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 1 && !q.surfaced) && b.qp(1, |q| q.path == 1 && !q.surfaced));
}

#[test]
fn work_that_stands_still_on_a_path_that_answers_moves_nothing() {
    let (fabric, a, b) = armed_pair(41);
    // Only the application's acknowledgements are lost, as under a receiver that answers RNR: the probes are answered.
    fabric.lock().acks_lost[0] = true;
    send(&a, 0..3);
    stays("the path", 2500, || a.qp(1, |q| q.path == 0) && b.qp(1, |q| q.path == 0));
    fabric.lock().acks_lost[0] = false;
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(b.received(1), (0..3).collect::<Vec<u32>>());
}

#[test]
fn a_rail_that_falls_silent_together_with_its_peer_is_kept() {
    let (fabric, a, b) = armed_pair(42);
    b.suspend(true);
    fabric.set_rail(0, false);
    send(&a, 0..3);
    stays("the path", 2500, || a.qp(1, |q| q.path == 0 && !q.surfaced));
    b.suspend(false);
    fabric.set_rail(0, true);
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(b.received(1), (0..3).collect::<Vec<u32>>());
}

#[test]
fn a_peer_that_said_goodbye_leaves_the_error_to_the_application_at_once() {
    let (fabric, a, b) = armed_pair(6);
    b.events.goodbye();
    fabric.set_rail(0, false);
    send(&a, 0..1);
    a.fail(1);
    let start = Watch::start();
    eventually("the error is surfaced", || a.qp(1, |q| q.surfaced));
    assert!(start.served() < Duration::from_secs(1));
}

#[test]
fn a_peer_that_died_without_a_word_is_noticed() {
    let (fabric, a, b) = armed_pair(7);
    fabric.lock().panic_in_sweep = Some(2);
    eventually("its mistake disarmed it", || !b.is_armed(1));
    std::thread::sleep(Duration::from_millis(50));
    fabric.set_rail(0, false);
    send(&a, 0..1);
    a.fail(1);
    let start = Watch::start();
    eventually("the error is surfaced", || a.qp(1, |q| q.surfaced));
    assert!(start.served() < Duration::from_secs(2));
}

#[test]
fn without_a_peer_shim_nothing_is_masked() {
    let fabric = Fabric::new(8);
    let a = fabric.process(1, config());
    let b = fabric.process(3, config());
    b.events.goodbye();
    connect(&a, 1, &b, 1);
    stays("unarmed", 2500, || !a.is_armed(1));
}

#[test]
fn without_a_standby_at_one_end_neither_is_armed() {
    let fabric = Fabric::new(9);
    let a = fabric.process(1, config());
    let reason = Unprotected("SHIFT_STANDBY: there is no device rxe9".to_owned());
    let b = fabric.process_with(2, 2, config(), Err(reason));
    connect(&a, 1, &b, 1);
    stays("unarmed", 500, || !a.is_armed(1) && !b.is_armed(1));
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let fabric = Fabric::new(10);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    let mut strangers = Vec::new();
    for seed in 0u32..100 {
        let mut stream = loop {
            match TcpStream::connect((fabric.address(2), DEFAULT_PORT)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let bytes: Vec<u8> =
            (0..997u32).map(|i| (i.wrapping_mul(seed.wrapping_mul(2_654_435_761)) >> 11) as u8).collect();
        let _ = stream.write_all(&bytes);
        strangers.push(stream);
    }
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    send(&a, 0..3);
    assert_eq!(b.received(1).len(), 3);
}

#[test]
fn a_frame_longer_than_any_is_answered_with_the_end_of_the_connection() {
    let fabric = Fabric::new(11);
    let _a = fabric.process(1, config());
    let mut stream = loop {
        match TcpStream::connect((fabric.address(1), DEFAULT_PORT)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
}

#[test]
fn processes_that_share_a_host_are_told_apart() {
    let fabric = Fabric::new(12);
    let a = fabric.process(1, config());
    let first = fabric.process_with(20, 2, config(), Ok(()));
    let second = fabric.process_with(21, 2, config(), Ok(()));
    connect_hosts(&a, 1, 1, &first, 2, 1);
    connect_hosts(&a, 1, 2, &second, 2, 2);
    eventually("all four ends are armed", || a.is_armed(1) && a.is_armed(2) && first.is_armed(1) && second.is_armed(2));
    // The holder of the port leaves; the other one takes over and is found.
    first.events.goodbye();
    let third = fabric.process(3, config());
    connect_hosts(&third, 3, 3, &second, 2, 3);
    eventually("a newcomer finds the one that is left", || third.is_armed(3) && second.is_armed(3));
}

#[test]
fn two_queue_pairs_of_one_process_survive_too() {
    let fabric = Fabric::new(13);
    let a = fabric.process(1, config());
    connect(&a, 1, &a, 2);
    eventually("both ends are armed", || a.is_armed(1) && a.is_armed(2));
    fabric.set_rail(0, false);
    send(&a, 0..5);
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(a.received(2), (0..5).collect::<Vec<u32>>());
}

#[test]
fn remote_keys_are_translated_and_unknown_ones_asked_for() {
    let (fabric, a, b) = armed_pair(14);
    b.events.send(Event::KeyAdded { device: DeviceId(0), rkey: 7, standby_rkeys: fabric::on_first(70) });
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Write { rkey: 7 });
    a.fail(1);
    eventually("the write is done", || a.is_done(1));
    assert_eq!(b.qp(1, |q| q.written.clone()), vec![(1, 70)]);
}

#[test]
fn a_key_that_the_peer_does_not_have_ends_in_an_error() {
    let (fabric, a, b) = armed_pair(15);
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Write { rkey: 9 });
    a.fail(1);
    eventually("it is surfaced", || a.qp(1, |q| q.surfaced));
    assert!(b.qp(1, |q| q.written.is_empty()));
    assert_eq!(a.qp(1, |q| q.surfaced_at.1), Some(10), "REM_ACCESS_ERR, as on hardware");
}

#[test]
fn a_key_that_the_peers_standby_does_not_have_is_no_access_error() {
    let (fabric, a, b) = armed_pair(30);
    b.events.send(Event::KeyUnprotected { device: DeviceId(0), rkey: 9 });
    fabric.set_rail(0, false);
    a.post(1, 1, Kind::Write { rkey: 9 });
    a.fail(1);
    eventually("it is surfaced", || a.qp(1, |q| q.surfaced));
    assert!(b.qp(1, |q| q.written.is_empty()));
    assert_eq!(a.qp(1, |q| q.surfaced_at.1), None, "the error that the NIC gave, or RETRY_EXC_ERR");
}

#[test]
fn what_is_refused_ends_in_its_own_error_behind_what_is_before_it() {
    let (fabric, a, b) = armed_pair(26);
    fabric.set_rail(0, false);
    for message in 1..=3 {
        a.post(1, message, Kind::Send);
    }
    a.post(1, 4, Kind::Write { rkey: 9 });
    a.fail(1);
    eventually("it is surfaced", || a.qp(1, |q| q.surfaced));
    assert_eq!(a.qp(1, |q| q.surfaced_at), (3, Some(REM_ACCESS_ERR)));
    assert_eq!(b.received(1), [1, 2, 3]);
}

#[test]
fn a_destroyed_queue_pair_is_no_fault_of_the_path() {
    let (_fabric, a, b) = armed_pair(16);
    b.events.send(Event::Destroyed { qp: QpLife(1) });
    stays("nothing moves or surfaces", 300, || a.qp(1, |q| q.path == 0 && !q.surfaced));
}

#[test]
fn sixteen_queue_pairs_move_together() {
    let fabric = Fabric::new(17);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    for life in 1..=16 {
        connect(&a, life, &b, life);
    }
    eventually("all are armed", || (1..=16).all(|l| a.is_armed(l) && b.is_armed(l)));
    fabric.set_rail(0, false);
    for life in 1..=16 {
        for message in 0..5 {
            a.post(life, message, Kind::Send);
        }
        a.fail(life);
    }
    eventually("all is delivered", || (1..=16).all(|l| a.is_done(l)));
    for life in 1..=16 {
        assert_eq!(b.received(life), (0..5).collect::<Vec<u32>>());
    }
}

fn record_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("shift-control-{name}-{}.jsonl", std::process::id()))
}

/// The first record, once it is there; the file is gone afterwards.
fn first_record(file: &Path) -> serde_json::Value {
    eventually("a record is written", || std::fs::read_to_string(file).is_ok_and(|t| t.ends_with('\n')));
    let text = std::fs::read_to_string(file).unwrap();
    std::fs::remove_file(file).unwrap();
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

#[test]
fn each_migration_leaves_a_record() {
    let file = record_file("each");
    let fabric = Fabric::new(18);
    let recorded = exactly(&[("SHIFT_EVENT_FILE", &file.display().to_string())]);
    let (a, b) = (fabric.process(1, recorded), fabric.process(2, config()));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    fabric.lock().acks_lost[0] = true;
    send(&a, 0..3);
    fabric.set_rail(0, false);
    send(&a, 3..5);
    a.fail(1);
    let record = first_record(&file);
    assert_eq!(record["outcome"], "confirmed");
    assert_eq!((&record["proven"], &record["replayed"], &record["surfaced"]), (&3.into(), &2.into(), &0.into()));
    assert_eq!(record["proofs"]["receive_count"], 5);
    assert_eq!((&record["from"]["device"], &record["to"]["device"]), (&"fake0".into(), &"fake1".into()));
    for phase in ["trigger", "committed", "fenced", "reposted", "replayed", "resumed", "confirmed"] {
        assert!(record["phases_ns"][phase].is_u64(), "{phase} is missing in {record}");
    }
}

#[test]
fn the_agent_takes_no_signal_of_the_application() {
    let _pair = armed_pair(19);
    let mut agents = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim().to_owned();
        if field("Name:") != "shift-agent" {
            continue;
        }
        agents += 1;
        let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
        for signal in [1u32, 2, 10, 12, 14, 15, 17, 34, 64] {
            // 32 and 33 are the C library's own; 34 is the first that a program may use.
            assert!(blocked & (1 << (signal - 1)) != 0, "signal {signal} is not blocked: {blocked:x}");
        }
    }
    assert!(agents >= 2);
}

#[test]
fn a_queue_pair_connected_to_itself_survives_too() {
    let fabric = Fabric::new(20);
    let a = fabric.process(1, config());
    connect(&a, 1, &a, 1);
    eventually("it is armed", || a.is_armed(1));
    send(&a, 0..3);
    fabric.lock().acks_lost[0] = true;
    send(&a, 3..5);
    fabric.set_rail(0, false);
    send(&a, 5..8);
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    send(&a, 8..10);
    assert_eq!(a.received(1), (0..10).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 1 && !q.surfaced && q.reposts == 1));
}

#[test]
fn what_a_stranger_may_send_moves_nothing() {
    let (fabric, a, b) = armed_pair(21);
    let mut stream = TcpStream::connect((fabric.address(2), DEFAULT_PORT)).unwrap();
    let stranger = ProcessId(7);
    let hello = Hello { process: stranger, token: [0; 16], addresses: Vec::new(), version: "stranger".to_owned() };
    let from = EndpointId { process: stranger, life: 1, side: 0 };
    let mut bytes = Opening { versions: SPOKEN, keyed: false, two_keys: false, nonce: [7; 16] }.encode().to_vec();
    Frame::Hello(hello).encode_prefixed(&mut bytes).unwrap();
    for life in 0..4 {
        for process in (0..64).map(ProcessId) {
            let to = EndpointId { process, life, side: 0 };
            let tuple = Tuple { epoch: Epoch(1), owner: from, attempt: 1, target: PathId::STANDBY };
            Frame::Migration { number: 1, to, from, msg: Handshake::Commit { tuple } }
                .encode_prefixed(&mut bytes)
                .unwrap();
        }
    }
    Frame::Goodbye.encode_prefixed(&mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
    stays("the path", 200, || b.qp(1, |q| q.path == 0 && !q.surfaced) && b.is_armed(1));
    send(&a, 0..3);
    assert_eq!(b.received(1), (0..3).collect::<Vec<u32>>());
}

#[test]
fn what_comes_over_two_networks_counts_once() {
    let fabric = Fabric::new(22);
    let files = ["one", "other"].map(record_file);
    let config = |file: &Path| {
        // Nothing is lost here: what is sent again would be sent because this machine is slow, and is not to be counted.
        let recorded = exactly(&[("SHIFT_EVENT_FILE", &file.display().to_string()), ("SHIFT_RESEND_MS", "800")]);
        Config { port: own_port(), ..recorded }
    };
    let [a, b] = [1, 2].map(|host| fabric.process_on_two_networks(host, config(&files[host - 1])));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    // Little-endian hexadecimal of 127.1.22.x, the second network, in state 01 (established).
    let second =
        |line: &str| line.split_whitespace().nth(2).is_some_and(|r| r.contains("16017F:")) && line.contains(" 01 ");
    eventually("the second network is used", || {
        std::fs::read_to_string("/proc/self/net/tcp").is_ok_and(|sockets| sockets.lines().any(second))
    });
    fabric.set_rail(0, false);
    send(&a, 0..4);
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(b.received(1), (0..4).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.reposts == 1) && b.qp(1, |q| q.reposts == 1));
    // CLAIM, COMMIT, two reports, READY, two CONFIRMs, and the five that answer them; who answers each copy comes to 16 to 18.
    let messages: u64 = files.iter().filter_map(|file| first_record(file)["messages"].as_u64()).sum();
    assert_eq!(messages, 12, "for one migration");
}

/// A round that posts for all of them at once says nothing to the peer meanwhile, which takes silence for death.
#[test]
fn replays_that_take_long_are_not_all_done_in_one_round() {
    let fabric = Fabric::new(71);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    (1..=8).for_each(|qp| connect(&a, qp, &b, qp));
    eventually("all are armed", || (1..=8).all(|qp| a.is_armed(qp) && b.is_armed(qp)));
    fabric.lock().slow_replay = Some((1, Duration::from_millis(200)));
    fabric.set_rail(0, false);
    for qp in 1..=8 {
        a.post(qp, 0, Kind::Send);
        a.fail(qp);
    }
    eventually("all is delivered", || (1..=8).all(|qp| a.is_done(qp)));
    assert!((1..=8).all(|qp| !a.qp(qp, |q| q.surfaced) && !b.qp(qp, |q| q.surfaced)));
    assert_eq!(fabric.lock().in_a_row.1, 1);
}
