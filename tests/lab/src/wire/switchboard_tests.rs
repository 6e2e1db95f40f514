//! A switchboard on loopback, with sockets in place of QEMUs: what goes in, what comes out, and when a port counts as down.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::super::packet::{opcode, sample};
use super::super::rule::Rule;
use super::*;

/// A switchboard with a client at each end of rail 0.
struct Bench {
    board: Switchboard,
    a: TcpStream,
    b: TcpStream,
    unread: Vec<u8>,
    dir: std::path::PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Bench {
    fn new(name: &str) -> Bench {
        let dir = std::env::temp_dir().join(format!("shift-lab-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut board = Switchboard::open(&dir.join("control"), &dir.join("log")).unwrap();
        let ready = board.ready().unwrap();
        let connect = |host| {
            let port = ready.ports.iter().find(|(link, each, _)| (*link, *each) == (Link::Rail0, host)).unwrap().2;
            TcpStream::connect(("127.0.0.1", port)).unwrap()
        };
        let (a, b) = (connect(Host::A), connect(Host::B));
        b.set_nonblocking(true).unwrap();
        run_for(&mut board, 20);
        Bench { board, a, b, unread: Vec::new(), dir }
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.a.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
            self.a.write_all(frame).unwrap();
        }
    }

    fn receive(&mut self, millis: u64) -> Vec<Vec<u8>> {
        run_for(&mut self.board, millis);
        let _ = self.b.read_to_end(&mut self.unread);
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some((frame, next)) = next_frame(&self.unread, at).unwrap() {
            frames.push(frame.to_vec());
            at = next;
        }
        self.unread.drain(..at);
        frames
    }
}

fn run_for(board: &mut Switchboard, millis: u64) {
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        board.turn(Some(end)).unwrap();
    }
}

fn writes(psns: impl IntoIterator<Item = u32>) -> Vec<Vec<u8>> {
    psns.into_iter().map(|psn| sample::roce4(opcode::WRITE_ONLY, 17, psn, &[psn as u8; 64])).collect()
}

#[test]
fn without_a_rule_nothing_is_lost_or_reordered() {
    let mut bench = Bench::new("plain");
    let frames = writes(0..500);
    bench.send(&frames);
    assert_eq!(bench.receive(100), frames);
}

#[test]
fn a_rule_drops_exactly_what_it_names() {
    let mut bench = Bench::new("drop");
    let id = bench
        .board
        .rules
        .add(Rule::on(Link::Rail0, Action::Drop).from(Host::A).opcodes(&[opcode::WRITE_ONLY]).psn(3, 5).after(1));
    bench.send(&writes(0..10));
    assert_eq!(bench.receive(50), writes([0, 1, 2, 3, 6, 7, 8, 9]));
    assert_eq!(bench.board.rules.hits(id).unwrap().acted, 2);
}

#[test]
fn a_rule_with_all_behind_drops_the_rest_of_its_flow_and_nothing_else() {
    let mut bench = Bench::new("behind");
    bench.board.rules.add(Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::MIDDLES).and_behind());
    let frame = |opcode, qpn, psn| sample::roce4(opcode, qpn, psn, &[psn as u8; 64]);
    bench.send(&writes(0..2));
    bench.send(&[frame(0x06, 17, 2), frame(0x07, 17, 3), frame(0x08, 17, 4), frame(0x0a, 18, 5), frame(0x0a, 17, 6)]);
    let passed: Vec<_> = writes(0..2).into_iter().chain([frame(0x06, 17, 2), frame(0x0a, 18, 5)]).collect();
    assert_eq!(bench.receive(50), passed);
}

#[test]
fn held_frames_go_on_when_released_and_not_before() {
    let mut bench = Bench::new("hold");
    let id = bench.board.rules.add(Rule::on(Link::Rail0, Action::Hold).psn(1, 2));
    bench.send(&writes(0..4));
    assert_eq!(bench.receive(50), writes([0, 3]));
    bench.board.obey(Order::Release(id)).unwrap();
    assert_eq!(bench.receive(50), writes([1, 2]));
}

#[test]
fn removing_a_rule_drops_what_it_holds() {
    let mut bench = Bench::new("remove");
    let id = bench.board.rules.add(Rule::on(Link::Rail0, Action::Hold));
    bench.send(&writes(0..4));
    assert!(bench.receive(50).is_empty());
    bench.board.obey(Order::Remove(id)).unwrap();
    bench.send(&writes(4..6));
    assert_eq!(bench.receive(50), writes([4, 5]));
    assert_eq!(bench.board.kept_bytes, 0);
}

#[test]
fn delay_reorder_duplicate_and_corrupt_do_just_that() {
    let mut bench = Bench::new("others");
    let rail0 = |action, psn| Rule::on(Link::Rail0, action).psn(psn, psn);
    for rule in [
        rail0(Action::Delay(400_000), 0),
        rail0(Action::Reorder(2), 1),
        rail0(Action::Duplicate, 4),
        rail0(Action::Corrupt, 6),
    ] {
        bench.board.rules.add(rule);
    }
    bench.send(&writes(0..7));
    let mut early = writes([2, 3, 1, 4, 4, 5]);
    let mut corrupted = writes([6]).remove(0);
    corrupted[54] ^= 0x5a;
    early.push(corrupted);
    assert_eq!(bench.receive(100), early);
    assert_eq!(bench.receive(500), writes([0]));
}

#[test]
fn a_port_that_takes_nothing_is_down_and_comes_back() {
    let mut bench = Bench::new("down");
    let frame = sample::roce4(opcode::WRITE_ONLY, 17, 0, &[7; 4000]);
    let mut sender = bench.a.try_clone().unwrap();
    let sent = frame.clone();
    let sending = std::thread::spawn(move || {
        for _ in 0..20_000 {
            sender.write_all(&(sent.len() as u32).to_be_bytes()).unwrap();
            sender.write_all(&sent).unwrap();
        }
    });
    let end = Instant::now() + Duration::from_secs(20);
    let taken = |board: &Switchboard| board.meter.counts().flow(Link::Rail0, Host::A).frames;
    while taken(&bench.board) < 20_000 && Instant::now() < end {
        bench.board.turn(Some(Instant::now() + Duration::from_millis(10))).unwrap();
    }
    sending.join().unwrap();
    let flow = bench.board.meter.counts().flow(Link::Rail0, Host::A);
    assert_eq!(flow.frames, 20_000);
    let mut arrived = 0;
    // Every receive makes room, and the port takes frames again.
    for _ in 0..5 {
        let frames = bench.receive(50);
        assert!(frames.iter().all(|each| *each == frame));
        arrived += frames.len() as u64;
    }
    assert!(flow.dropped > 0);
    assert_eq!(arrived + flow.dropped, 20_000);
    let last = writes([9]);
    bench.send(&last);
    assert_eq!(bench.receive(100), last);
}
