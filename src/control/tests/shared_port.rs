//! Several processes of one host share the well-known port: who holds it may die at any moment, and what a child inherits or another
//! namespace has is nobody's business here. The other processes of these tests are this test program once more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fabric::speaker::Speaker;
use fabric::{config, connect_hosts, eventually, exactly, gid, stays, Fabric, Kind, Process, Watch};
use shift_control::channel::Terms;
use shift_control::config::DEFAULT_PORT;
use shift_control::datapath::Gid;
use shift_control::inherited;
use shift_proto::frame::{Frame, QpAddress};

/// Set for another process of a test: network and process of the test, and what it is to do.
const ROLE: &str = "SHARED_PORT_TEST_ROLE";
/// A new holder is there within this.
const TAKEN_OVER: Duration = Duration::from_secs(1);
/// The port of the test of namespaces, whose processes listen on all addresses.
const NAMESPACE_PORT: u16 = 17_473;

/// The same test in another process.
fn again(test: &str, role: &str, through: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let words: Vec<_> = through.iter().map(std::ffi::OsStr::new).chain([own.as_os_str()]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", test]).env(ROLE, role).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What this process is to do, if it is another process of that test.
fn role() -> Option<(u8, u32)> {
    let role = std::env::var(ROLE).ok()?;
    let (net, owner) = role.split_once(' ').unwrap();
    Some((net.parse().unwrap(), owner.parse().unwrap()))
}

fn is_answered(fabric: &Fabric, host: usize) -> bool {
    let site = SocketAddr::new(fabric.address(host).into(), DEFAULT_PORT);
    TcpStream::connect_timeout(&site, Duration::from_millis(100)).is_ok()
}

/// A process of its own that holds the port of host 2, and can be killed.
fn holder(fabric: &Fabric, net: u8) -> Child {
    let test = "a_holder_that_is_killed_is_replaced_within_a_second_and_disturbs_nothing";
    let child = again(test, &format!("{net} {}", std::process::id()), &[]).spawn().unwrap();
    eventually("the other process holds the port", || is_answered(fabric, 2));
    child
}

fn pair(a: &Process, life: u32, b: &Process) {
    connect_hosts(a, 1, life, b, 2, life);
}

#[test]
fn a_holder_that_is_killed_is_replaced_within_a_second_and_disturbs_nothing() {
    if let Some((net, owner)) = role() {
        let _holder = Fabric::of(net, owner).process_with(9, 2, config(), Ok(()));
        // Its end is a kill.
        loop {
            std::thread::park();
        }
    }
    // At once, and at moments of an arming that takes some 30 ms.
    for (net, after_ms) in (1..).zip([0, 3, 10, 25]) {
        kill_during_arming(net, Duration::from_millis(after_ms));
    }
}

fn kill_during_arming(net: u8, after: Duration) {
    let fabric = Fabric::new(net);
    let mut holder = holder(&fabric, net);
    let a = fabric.process(1, config());
    let members: Vec<Process> = (20..24).map(|id| fabric.process_with(id, 2, config(), Ok(()))).collect();
    for (life, member) in (1..).zip(&members) {
        pair(&a, life, member);
    }
    let armed = |lives: std::ops::RangeInclusive<u32>| {
        lives.into_iter().all(|life| a.is_armed(life) && members[(life as usize - 1) % 4].is_armed(life))
    };
    eventually("all are armed", || armed(1..=4));
    // Four more are being armed when the holder is killed.
    for (life, member) in (5..).zip(&members) {
        pair(&a, life, member);
    }
    std::thread::sleep(after);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let killed = Watch::start();
    eventually("another process holds the port", || {
        assert!(armed(1..=4), "what was armed is disturbed");
        is_answered(&fabric, 2)
    });
    assert!(killed.served() < TAKEN_OVER, "after {:?}", killed.elapsed());
    eventually("those that were being armed are armed too", || armed(1..=8));
    assert!(killed.served() < 2 * TAKEN_OVER, "after {:?}", killed.elapsed());
    // A newcomer is found at the new holder, and every message reaches the process that it was for.
    pair(&a, 9, &members[3]);
    eventually("a newcomer is armed", || a.is_armed(9) && members[3].is_armed(9));
    fabric.set_rail(0, false);
    for life in 1..=8 {
        a.post(life, 100 + life, Kind::Send);
        a.fail(life);
    }
    eventually("all is delivered", || (1..=8).all(|life| a.is_done(life)));
    for life in 1..=8 {
        assert_eq!(members[(life as usize - 1) % 4].received(life), [100 + life]);
    }
}

#[test]
fn processes_on_both_hosts_find_their_partners() {
    let fabric = Fabric::new(20);
    let on = |host: usize| -> Vec<Process> {
        (0..8).map(|id| fabric.process_with(10 * host + id, host, config(), Ok(()))).collect()
    };
    let (left, right) = (on(1), on(2));
    // In another order on the other side.
    for (at, process) in left.iter().enumerate() {
        let partner = &right[(at * 3 + 1) % 8];
        connect_hosts(process, 1, at as u32 + 1, partner, 2, at as u32 + 1);
    }
    let armed = |at: usize| {
        let life = at as u32 + 1;
        left[at].is_armed(life) && right[(at * 3 + 1) % 8].is_armed(life)
    };
    eventually("all are armed", || (0..8).all(armed));
    // The holders of both hosts leave in an orderly way.
    left[0].events.goodbye();
    right[0].events.goodbye();
    let rest = (0..8).filter(|at| *at != 0 && (at * 3 + 1) % 8 != 0);
    stays("those that are armed", 400, || rest.clone().all(armed));
}

/// A process of the same user says that it has a queue pair that is not its own: whoever asks is led astray, but not for good.
#[test]
fn a_wrong_answer_of_the_directory_is_mended_by_the_owners_own_offer() {
    let fabric = Fabric::new(50);
    let range = exactly(&[("SHIFT_PORT_RANGE", "21001-21001")]);
    let a = fabric.process(1, config());
    let holder = fabric.process_with(20, 2, config(), Ok(()));
    eventually("the port is held", || is_answered(&fabric, 2));
    let (right, wrong) = (fabric.process_with(21, 2, config(), Ok(())), fabric.process_with(22, 2, range, Ok(())));
    let qpn = 0x101;
    let claim = Frame::Owner { address: QpAddress { gid: gid(2, 0).0, qpn }, port: Some(21_001) };
    let name = format!("{}-{DEFAULT_PORT}", fabric.directory(2));
    let socket = UnixAddr::from_abstract_name(name).unwrap();
    // The holder has the port a moment before the socket.
    eventually("others may register", || UnixStream::connect_addr(&socket).is_ok());
    let liar = UnixStream::connect_addr(&socket).unwrap();
    let mut liar = Speaker::new(liar, &Terms::default());
    fabric::connect_with((&a, 1, 1), (&right, 2, 1), || {
        let site = TcpStream::connect((fabric.address(2), DEFAULT_PORT)).unwrap();
        let mut site = Speaker::new(site, &Terms::default());
        eventually("the owner is known", || asked(&mut site, &gid(2, 0), qpn).is_some());
        liar.send(&claim);
        eventually("the liar is believed", || asked(&mut site, &gid(2, 0), qpn) == Some(21_001));
    });
    eventually("both ends are armed", || a.is_armed(1) && right.is_armed(1));
    drop((holder, wrong));
}

/// The operator opened one range in the firewall for all.
#[test]
fn the_well_known_port_within_the_range_is_left_to_all() {
    let fabric = Fabric::new(51);
    let variables = [("SHIFT_PORT", "17475"), ("SHIFT_PORT_RANGE", "17475-17477")];
    let config = || exactly(&variables);
    let on = |host: usize| [0, 1].map(|id| fabric.process_with(10 * host + id, host, config(), Ok(())));
    let (left, right) = (on(1), on(2));
    for (life, (a, b)) in (1..).zip(left.iter().zip(&right)) {
        connect_hosts(a, 1, life, b, 2, life);
    }
    eventually("all are armed", || {
        (1..).zip(left.iter().zip(&right)).all(|(life, (a, b))| a.is_armed(life) && b.is_armed(life))
    });
}

/// Somebody has the port and the local socket, and closes whoever registers.
#[test]
fn a_holder_that_takes_nobody_is_not_asked_in_a_storm() {
    let fabric = Fabric::new(52);
    let _port = TcpListener::bind((fabric.address(2), DEFAULT_PORT)).unwrap();
    let name = UnixAddr::from_abstract_name(format!("{}-{DEFAULT_PORT}", fabric.directory(2))).unwrap();
    let local = UnixListener::bind_addr(&name).unwrap();
    local.set_nonblocking(true).unwrap();
    let member = fabric.process_with(20, 2, config(), Ok(()));
    fabric::connect_to(&member, 1, 9, 1);
    let mut tries = 0;
    stays("a few tries", 1_000, || {
        tries += usize::from(local.accept().is_ok());
        tries < 10
    });
    assert!(tries > 2, "it goes on trying: {tries}");
}

/// What the directory says of a queue pair.
fn asked(site: &mut Speaker<TcpStream>, gid: &Gid, qpn: u32) -> Option<u16> {
    site.send(&Frame::Ask(QpAddress { gid: gid.0, qpn }));
    let Some(Frame::Owner { port, .. }) = site.next() else { panic!("another answer") };
    port
}

#[test]
fn a_process_of_another_network_namespace_does_not_meet_the_holder() {
    let config = || exactly(&[("SHIFT_PORT", &NAMESPACE_PORT.to_string())]);
    if let Some((net, owner)) = role() {
        let _process = Fabric::of(net, owner).process_on_two_networks(2, config());
        let listens = || {
            let tables =
                ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|t| std::fs::read_to_string(t).unwrap_or_default());
            let port = format!(":{NAMESPACE_PORT:04X}");
            // In state 0A (listening), with a socket of this process: there is no other in a fresh namespace.
            tables.iter().flat_map(|t| t.lines()).any(|l| l.contains(" 0A ") && l.contains(&port))
        };
        let fresh = std::fs::read_link("/proc/self/ns/net").unwrap()
            != std::fs::read_link(format!("/proc/{owner}/ns/net")).unwrap();
        assert!(fresh, "the namespace is the test's own");
        eventually("this process holds the port of its namespace", listens);
        return;
    }
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let ways: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--map-root-user", "--net"]];
    let works = |way: &&&[&str]| {
        let probe = Command::new(way[0]).args(&way[1..]).args(["readlink", "/proc/self/ns/net"]).output();
        probe.is_ok_and(|out| {
            out.status.success() && String::from_utf8_lossy(&out.stdout).trim() != own.to_string_lossy()
        })
    };
    let Some(way) = ways.iter().find(works) else {
        eprintln!("this machine makes no network namespaces: nothing was tested");
        return;
    };
    let fabric = Fabric::new(30);
    let _holder = fabric.process_on_two_networks(1, config());
    let site = SocketAddr::new(fabric.address(1).into(), NAMESPACE_PORT);
    eventually("this process holds the port", || TcpStream::connect(site).is_ok());
    let test = "a_process_of_another_network_namespace_does_not_meet_the_holder";
    let role = format!("30 {}", std::process::id());
    assert!(again(test, &role, way).status().unwrap().success(), "with a namespace of its own it is its holder");
    assert!(!again(test, &role, &[]).status().unwrap().success(), "the test can fail");
}

#[test]
fn every_socket_of_the_agent_is_closed_by_exec_and_known_to_a_forked_child() {
    let fabric = Fabric::new(40);
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    connect_hosts(&a, 1, 1, &b, 2, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    let listed: Vec<i32> = inherited::descriptors().collect();
    let mut sockets = 0;
    for fd in &listed {
        // Other tests of this process close theirs meanwhile.
        let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
            continue;
        };
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
        const CLOEXEC: u32 = 0o2_000_000;
        assert!(u32::from_str_radix(flags, 8).unwrap() & CLOEXEC != 0, "descriptor {fd} is inherited by exec");
        sockets += 1;
    }
    // Of each process its listener, the well-known one, the local one, and one end of the connection.
    assert!(sockets >= 8, "{sockets} sockets are listed");
}
