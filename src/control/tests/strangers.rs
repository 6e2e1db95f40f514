//! Strangers, with a job key and without: what they say moves nothing, stops nothing and is told once; and two processes that do not
//! share a key, or a wire version, run unprotected and say which is which.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use fabric::speaker::{dial, hello, read_all, Speaker};
use fabric::{config, connect, connect_to, eventually, gid, lines, stays, Fabric, Kind, Process};
use shift_control::channel::{Mismatch, Terms};
use shift_control::config::DEFAULT_PORT;
use shift_control::datapath::{DeviceId, Event};
use shift_control::job_key::JobKey;
use shift_control::Config;
use shift_proto::frame::{Frame, Key, Offer, Opening, PathOffer, Probe, ProbeStep, QpAddress, Versions, SPOKEN};
use shift_proto::id::{EndpointId, Epoch, Mtu, PathId, ProcessId, Psn, Tuple};
use shift_proto::migrate::{Cause, Handshake};

/// The stranger's own process id.
const STRANGER: u64 = 7;
/// Its host, where no queue pair is connected to.
const ELSEWHERE: u8 = 99;

/// A fabric whose agents' lines are kept.
fn listened_to(net: u8) -> Fabric {
    lines::keep();
    Fabric::new(net)
}

/// Lines that hold all of these words.
fn told(words: &[&str]) -> usize {
    lines::with(words).len()
}

fn keyed(bytes: &[u8]) -> Config {
    Config { job_key: Some(JobKey::new(bytes)), ..config() }
}

fn speaking(oldest: u8, newest: u8) -> Config {
    Config { versions: Versions { oldest, newest }, ..config() }
}

fn terms(config: &Config) -> Terms {
    Terms { key: config.job_key.clone(), older: None, versions: config.versions }
}

fn pair(net: u8, config: &Config) -> (Fabric, Process, Process) {
    let fabric = listened_to(net);
    let (a, b) = (fabric.process(1, config.clone()), fabric.process(2, config.clone()));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b)
}

fn site(fabric: &Fabric, host: usize) -> SocketAddr {
    SocketAddr::new(fabric.address(host).into(), DEFAULT_PORT)
}

/// Somebody at an address of the test's network who speaks to the process that holds the port of `host`.
fn speaker(fabric: &Fabric, from: u8, host: usize, terms: &Terms) -> Speaker<TcpStream> {
    Speaker::new(dial(fabric.address(usize::from(from)), site(fabric, host)), terms)
}

/// The process id that the other end says of itself.
fn process_behind(speaker: &mut Speaker<TcpStream>) -> (ProcessId, [u8; 16]) {
    speaker.send(&hello(STRANGER, [0; 16]));
    let Some(Frame::Hello(hello)) = speaker.next() else { panic!("no greeting") };
    (hello.process, hello.token)
}

fn end(process: u64) -> EndpointId {
    EndpointId { process: ProcessId(process), life: 1, side: 0 }
}

fn offer(process: u64, own: usize, peer: usize) -> Frame {
    let address = |host| QpAddress { gid: gid(host, 0).0, qpn: 0x101 };
    Frame::Offer(Offer { from: end(process), device: 0, own: address(own), peer: address(peer), standby: None })
}

/// Everything that could move, stop or mislead the queue pair of `to`, said in the name of `from`.
fn attacks(to: ProcessId, from: u64) -> Vec<Frame> {
    let (to, from) = (end(to.0), end(from));
    let tuple = Tuple { epoch: Epoch(1), owner: from, attempt: 1, target: PathId::STANDBY };
    let messages = [
        Handshake::Claim { tuple, cause: Cause::Operator },
        Handshake::Commit { tuple },
        Handshake::Dead { epoch: Epoch(0) },
        Handshake::Surface { tuple },
        Handshake::Gone,
    ];
    let key = Key { device: 0, rkey: 7, generation: u32::MAX };
    let probe_end = PathOffer {
        address: QpAddress { gid: gid(1, 0).0, qpn: 5 },
        mtu: Mtu::new(1024).unwrap(),
        psn_base: Psn::new(1),
    };
    let probe = Probe { pair: 1, generation: 1, step: ProbeStep::Offer, own: probe_end, peer_gid: gid(2, 0).0 };
    let rest = [
        Frame::KeyAdd { key, standby_rkey: 666 },
        Frame::KeyDel(key),
        Frame::KeyAsk { device: 0, rkey: 7 },
        Frame::Probe(probe),
        Frame::Owner { address: QpAddress { gid: gid(1, 0).0, qpn: 0x101 }, port: Some(1) },
    ];
    (1..).zip(messages).map(|(number, msg)| Frame::Migration { number, to, from, msg }).chain(rest).collect()
}

/// The pair moves messages, survives the death of its rail, and nothing came twice.
fn still_works(fabric: &Fabric, a: &Process, b: &Process) {
    assert!(a.qp(1, |q| q.path == 0 && !q.surfaced) && b.qp(1, |q| q.path == 0 && !q.surfaced));
    (0..3).for_each(|message| a.post(1, message, Kind::Send));
    fabric.set_rail(0, false);
    (3..6).for_each(|message| a.post(1, message, Kind::Send));
    a.fail(1);
    eventually("all is delivered", || a.is_done(1));
    assert_eq!(b.received(1), (0..6).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 1 && !q.surfaced && q.reposts == 1));
}

#[test]
fn with_one_key_two_ends_arm_and_survive() {
    let (fabric, a, b) = pair(60, &keyed(b"the key of the job"));
    still_works(&fabric, &a, &b);
}

#[test]
fn two_ends_of_one_job_refuse_nothing_of_each_other() {
    for (net, config) in [(78, config()), (79, keyed(b"the key of the job"))] {
        let (fabric, a, b) = pair(net, &config);
        let refused = |host| told(&["refused, and counted", &fabric.address(host).to_string()]);
        stays("nobody is refused", 500, || refused(1) + refused(2) == 0);
        still_works(&fabric, &a, &b);
        assert_eq!(refused(1) + refused(2), 0);
    }
}

#[test]
fn without_the_same_key_both_ends_stay_unprotected_and_say_which_is_which() {
    for (net, first, second, said) in [
        (61, keyed(b"one key of a job"), keyed(b"another key"), ["it has another job key", "it has another job key"]),
        (62, keyed(b"one key of a job"), config(), ["it has no job key", "it has a job key"]),
    ] {
        let fabric = listened_to(net);
        let (a, b) = (fabric.process(1, first), fabric.process(2, second));
        connect(&a, 1, &b, 1);
        let by = |host: usize| fabric.address(host).to_string();
        // Who is unprotected names the other's address, and what the other has.
        eventually("both say it", || told(&[said[0], &by(2)]) == 1 && told(&[said[1], &by(1)]) == 1);
        stays("unarmed, and said once", 1500, || {
            !a.is_armed(1) && !b.is_armed(1) && told(&[said[0], &by(2)]) == 1 && told(&[said[1], &by(1)]) == 1
        });
    }
}

#[test]
fn the_older_wire_version_is_agreed_and_where_there_is_none_both_say_which_they_speak() {
    for (net, a, b) in [(63, speaking(1, 2), speaking(1, 1)), (64, speaking(1, 1), speaking(0, 1))] {
        let fabric = listened_to(net);
        let (a, b) = (fabric.process(1, a), fabric.process(2, b));
        connect(&a, 1, &b, 1);
        eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
        still_works(&fabric, &a, &b);
    }
    for (net, version) in [(65, 0), (66, 2)] {
        let fabric = listened_to(net);
        let (a, b) = (fabric.process(1, config()), fabric.process(2, speaking(version, version)));
        connect(&a, 1, &b, 1);
        let by = |host: usize| fabric.address(host).to_string();
        eventually("both say it", || {
            let [own, others] = [1, version].map(|version| format!("this process wire version {version};"));
            told(&[&format!("it speaks wire version {version}"), &own, &by(2)]) == 1
                && told(&["it speaks wire version 1", &others, &by(1)]) == 1
        });
        assert!(!a.is_armed(1) && !b.is_armed(1));
    }
}

#[test]
fn a_stranger_who_greets_is_told_nothing_and_heard_in_nothing() {
    let (fabric, a, b) = pair(67, &config());
    b.events.send(Event::KeyAdded { device: DeviceId(0), rkey: 7, standby_rkeys: fabric::on_first(70) });
    let mut stranger = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    let (process, _) = process_behind(&mut stranger);
    for frame in attacks(process, STRANGER) {
        stranger.send(&frame);
    }
    stranger.send(&offer(STRANGER, 1, 2));
    stranger.send(&Frame::Ping { stamp: 5 });
    // The answer to the last word is the first after the greeting: no key, no offer, no probe was said in between.
    assert_eq!(stranger.next(), Some(Frame::Pong { stamp: 5 }));
    stays("armed", 100, || a.is_armed(1) && b.is_armed(1));
    still_works(&fabric, &a, &b);
    let own = [&fabric.address(usize::from(ELSEWHERE)).to_string(), "spoke for a queue pair that is not theirs"];
    assert_eq!(told(&own), 1, "said once, however much it said");
}

#[test]
fn who_poses_as_a_known_process_is_not_believed() {
    let (fabric, a, b) = pair(68, &config());
    let (peer, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 1, &Terms::default()));
    let (victim, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 2, &Terms::default()));
    let mut guesser = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    guesser.send(&hello(peer.0, [9; 16]));
    assert_eq!(guesser.next(), None, "a token that nobody drew ends the connection");
    let mut poser = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    poser.send(&hello(peer.0, [0; 16]));
    assert!(matches!(poser.next(), Some(Frame::Hello(_))));
    for frame in attacks(victim, peer.0) {
        poser.send(&frame);
    }
    poser.send(&offer(peer.0, 1, 2));
    poser.send(&Frame::Goodbye);
    assert_eq!(poser.next(), None);
    stays("armed", 100, || a.is_armed(1) && b.is_armed(1));
    still_works(&fabric, &a, &b);
}

/// An offer from host 9 for the second queue pair of `host`.
fn second_offer(process: u64, host: usize) -> Frame {
    let (own, peer) = (QpAddress { gid: gid(9, 0).0, qpn: 0x101 }, QpAddress { gid: gid(host, 0).0, qpn: 0x102 });
    Frame::Offer(Offer { from: end(process), device: 0, own, peer, standby: None })
}

/// It reads until there is an offer, or until the other end closes.
fn is_met(speaker: &mut Speaker<TcpStream>) -> bool {
    std::iter::from_fn(|| speaker.next()).any(|frame| matches!(frame, Frame::Offer(_)))
}

#[test]
fn who_is_at_the_address_of_one_peer_does_not_become_another_one() {
    let (fabric, a, b) = pair(80, &config());
    let (peer, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 1, &Terms::default()));
    let (victim, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 2, &Terms::default()));
    connect_to(&b, 2, 9, 1);
    let mut poser = speaker(&fabric, 9, 2, &Terms::default());
    poser.send(&hello(peer.0, [0; 16]));
    assert!(matches!(poser.next(), Some(Frame::Hello(_))));
    poser.send(&second_offer(peer.0, 2));
    for frame in attacks(victim, peer.0) {
        poser.send(&frame);
    }
    poser.send(&Frame::Goodbye);
    assert!(!is_met(&mut poser), "the name is that of a process elsewhere");
    stays("armed", 100, || a.is_armed(1) && b.is_armed(1));
    assert_eq!(told(&["from an address that it had not told", &fabric.address(9).to_string()]), 1);
    // Under a name of its own it is the peer.
    let mut honest = speaker(&fabric, 9, 2, &Terms::default());
    honest.send(&hello(STRANGER, [0; 16]));
    honest.send(&second_offer(STRANGER, 2));
    assert!(is_met(&mut honest));
    still_works(&fabric, &a, &b);
}

#[test]
fn who_answers_at_the_address_of_one_peer_does_not_become_another_one() {
    let (fabric, a, b) = pair(81, &config());
    let (peer, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 1, &Terms::default()));
    let listen = |port| TcpListener::bind((fabric.address(9), port)).unwrap();
    let (holder, process) = (listen(DEFAULT_PORT), listen(0));
    let port = process.local_addr().unwrap().port();
    let accept = |listener: &TcpListener| {
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Speaker::answering(stream, &Terms::default())
    };
    connect_to(&b, 2, 9, 1);
    let mut site = accept(&holder);
    let mut answer = |name: u64| {
        let Some(Frame::Ask(address)) = site.next() else { panic!("it is not asked") };
        site.send(&Frame::Owner { address, port: Some(port) });
        let mut owner = accept(&process);
        assert!(matches!(owner.next(), Some(Frame::Hello(_))));
        owner.send(&hello(name, [9; 16]));
        if name == peer.0 {
            owner.send(&Frame::Goodbye);
        }
        owner
    };
    assert!(!is_met(&mut answer(peer.0)), "the name is that of a process elsewhere");
    stays("armed", 100, || a.is_armed(1) && b.is_armed(1));
    assert_eq!(told(&["from an address that it had not told", &fabric.address(9).to_string()]), 1);
    assert!(is_met(&mut answer(STRANGER)), "under a name of its own it is the peer");
    still_works(&fabric, &a, &b);
}

#[test]
fn a_process_that_nobody_met_yet_is_not_kept_out_by_one_that_uses_its_name() {
    let fabric = listened_to(69);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    let (name, _) = process_behind(&mut speaker(&fabric, ELSEWHERE, 1, &Terms::default()));
    let mut poser = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    poser.send(&hello(name.0, [0; 16]));
    assert!(matches!(poser.next(), Some(Frame::Hello(_))));
    for _ in 0..100 {
        poser.send(&offer(name.0, 1, 2));
        poser.send(&offer(name.0, usize::from(ELSEWHERE), 2));
    }
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    still_works(&fabric, &a, &b);
}

/// A peer on host 9 that the test plays: met by a connection from there, with its offer.
fn played_peer(fabric: &Fabric, terms: &Terms) -> (Speaker<TcpStream>, [u8; 16]) {
    let mut peer = speaker(fabric, 9, 2, terms);
    let (_, token) = process_behind(&mut peer);
    peer.send(&offer(STRANGER, 9, 2));
    while let Some(frame) = peer.next() {
        if matches!(frame, Frame::Offer(_)) {
            return (peer, token);
        }
    }
    panic!("the peer is not met");
}

#[test]
fn keys_are_told_to_the_peer_of_a_queue_pair_and_later_connections_need_token_and_address() {
    let fabric = listened_to(70);
    let b = fabric.process(2, config());
    b.events.send(Event::KeyAdded { device: DeviceId(0), rkey: 7, standby_rkeys: fabric::on_first(70) });
    connect_to(&b, 1, 9, 1);
    let (mut peer, token) = played_peer(&fabric, &Terms::default());
    let told_key = |speaker: &mut Speaker<TcpStream>| {
        while let Some(frame) = speaker.next() {
            if matches!(frame, Frame::KeyAdd { key, standby_rkey: 70 } if key.rkey == 7) {
                return true;
            }
        }
        false
    };
    assert!(told_key(&mut peer), "the peer is told");
    let mut second = speaker(&fabric, 9, 2, &Terms::default());
    second.send(&hello(STRANGER, token));
    assert!(told_key(&mut second), "so it is on a later connection");
    let mut elsewhere = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    elsewhere.send(&hello(STRANGER, token));
    assert!(!told_key(&mut elsewhere), "the token alone, from an address that was not told, is nothing");
    let mut wrong = speaker(&fabric, 9, 2, &Terms::default());
    wrong.send(&hello(STRANGER, [9; 16]));
    wrong.send(&Frame::Ping { stamp: 1 });
    assert!(matches!(wrong.next(), Some(Frame::Hello(_))), "it may be the peer");
    assert!(matches!(wrong.next(), Some(Frame::Pong { stamp: 1 })), "but is told nothing until its offer comes");
    let mut neither = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    neither.send(&hello(STRANGER, [9; 16]));
    assert!(neither.next().is_none(), "neither of both is turned away");
    let elsewhere = fabric.address(usize::from(ELSEWHERE)).to_string();
    assert_eq!(told(&["without its token", &elsewhere]), 1);
    assert_eq!(told(&["from an address that it had not told", &elsewhere]), 1);
    assert_eq!(told(&["refused", &format!("{},", fabric.address(9))]), 0);
}

#[test]
fn an_offer_from_another_address_than_the_gid_s_meets_nobody() {
    let fabric = listened_to(71);
    let b = fabric.process(2, config());
    connect_to(&b, 1, 9, 1);
    let mut stranger = speaker(&fabric, ELSEWHERE, 2, &Terms::default());
    process_behind(&mut stranger);
    for _ in 0..10 {
        stranger.send(&offer(STRANGER, 9, 2));
    }
    stranger.send(&Frame::Ping { stamp: 1 });
    assert_eq!(stranger.next(), Some(Frame::Pong { stamp: 1 }));
    played_peer(&fabric, &Terms::default());
}

#[test]
fn with_a_key_nothing_is_answered_to_who_does_not_have_it() {
    let (config, older) = (keyed(b"the key of the job"), Versions { oldest: 0, newest: 0 });
    let (fabric, a, b) = pair(72, &config);
    for (terms, why) in [
        (Terms::default(), Mismatch::PeerHasKey),
        (terms(&keyed(b"another job's key")), Mismatch::OtherKey),
        (Terms { versions: older, ..terms(&config) }, Mismatch::OtherVersions { theirs: SPOKEN, own: older }),
    ] {
        for host in [1, 2] {
            let mut stranger = speaker(&fabric, ELSEWHERE, host, &terms);
            stranger.send(&Frame::Ask(QpAddress { gid: gid(host, 0).0, qpn: 0x101 }));
            assert_eq!((stranger.next(), stranger.mismatch), (None, Some(why)));
        }
    }
    still_works(&fabric, &a, &b);
}

#[test]
fn with_a_key_what_was_recorded_moves_nothing_when_it_is_said_again() {
    let config = keyed(b"the key of the job");
    let (fabric, a, b) = pair(73, &config);
    // A member of the job, recorded while it says what would be believed.
    let mut member = speaker(&fabric, ELSEWHERE, 2, &terms(&config));
    let (process, _) = process_behind(&mut member);
    let question = Frame::Ask(QpAddress { gid: gid(2, 0).0, qpn: 0x101 });
    member.send(&question);
    assert!(matches!(member.next(), Some(Frame::Owner { port: Some(_), .. })), "with the key it is answered");
    for frame in attacks(process, STRANGER) {
        member.send(&frame);
    }
    // Not even a member moves a queue pair that is not its own.
    stays("armed", 100, || a.is_armed(1) && b.is_armed(1));
    let tape = member.tape.clone();
    let mut replayed = dial(fabric.address(99), site(&fabric, 2));
    std::io::Write::write_all(&mut replayed, &tape).unwrap();
    let answer = read_all(&mut replayed);
    assert!(answer.len() <= 64, "opening and proof, and no word more: {} bytes", answer.len());
    // The last frame once more on its own connection.
    let before = member.tape.len();
    member.send(&question);
    let again = member.tape[before..].to_vec();
    assert!(matches!(member.next(), Some(Frame::Owner { .. })));
    member.say(again);
    assert_eq!(member.next(), None);
    still_works(&fabric, &a, &b);
}

#[test]
fn a_flood_of_half_open_connections_keeps_no_peer_out() {
    for (net, config) in [(74, config()), (75, keyed(b"the key of the job"))] {
        let fabric = listened_to(net);
        let (a, b) = (fabric.process(1, config.clone()), fabric.process(2, config));
        let flood = |count| (0..count).map(|_| dial(fabric.address(99), site(&fabric, 2))).collect::<Vec<_>>();
        let mut held = flood(300);
        connect(&a, 1, &b, 1);
        held.extend(flood(300));
        eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
        held.extend(flood(100));
        let mut closed = 0;
        for stream in &mut held {
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            closed += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
        }
        assert!(closed >= 700 - 128 - 64, "only {closed} of 700 were closed");
        still_works(&fabric, &a, &b);
        assert_eq!(told(&["were too many at once", &fabric.address(99).to_string()]), 1);
    }
}

#[test]
fn garbage_huge_lengths_and_frames_of_other_versions_end_their_connection_only() {
    for (net, config) in [(76, config()), (77, keyed(b"the key of the job"))] {
        let (fabric, a, b) = pair(net, &config);
        let opening = Opening { versions: SPOKEN, keyed: config.job_key.is_some(), two_keys: false, nonce: [3; 16] }
            .encode()
            .to_vec();
        let tails: [&[u8]; 6] =
            [&[0xff; 4], &[1, 0, 1, 0, 1], &[2, 0, 0, 0, 0, 14], &[2, 0, 0, 0, 2, 14], &[2, 0, 0, 0, 1, 99], &[0; 64]];
        for tail in tails {
            let mut stream = dial(fabric.address(99), site(&fabric, 2));
            std::io::Write::write_all(&mut stream, &[&opening, tail].concat()).unwrap();
            let answer = read_all(&mut stream);
            assert!(answer.len() <= 64, "{tail:?} got {} bytes", answer.len());
        }
        // Cut off in the middle, and left so.
        let mut half = dial(fabric.address(99), site(&fabric, 2));
        std::io::Write::write_all(&mut half, &opening[..20]).unwrap();
        still_works(&fabric, &a, &b);
    }
}
