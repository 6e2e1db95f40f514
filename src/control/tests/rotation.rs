//! Two agents with a job key that is rotated under them, host by host, while their queue pair carries messages; at each step their connections die and are
//! made anew. Nothing is told, nothing moves, and in the end only who has the new key is heard.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use fabric::speaker::{dial, hello, Speaker};
use fabric::{config_of, connect, eventually, lines, Fabric, Kind, Process};
use shift_control::channel::{Mismatch, Terms};
use shift_control::config::DEFAULT_PORT;
use shift_control::job_key::JobKey;
use shift_control::Config;
use shift_proto::frame::Frame;

const OLD: &[u8] = b"the key of the job before the rotation";
const NEW: &[u8] = b"the key of the job behind the rotation";
/// Silence for so long ends a connection.
const HEARTBEAT_MS: &str = "500";
/// Of the stranger.
const ELSEWHERE: usize = 99;

/// The files of one host.
struct Keys {
    folder: PathBuf,
}

impl Keys {
    fn of(host: usize) -> Self {
        let folder = std::env::temp_dir().join(format!("shift-rotation-{}-{host}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let keys = Self { folder };
        keys.write("key", OLD);
        keys
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    /// `cp -p KEY KEY.old`
    fn keep(&self) {
        self.write("key.old", &fs::read(self.path("key")).unwrap());
    }

    /// `mv NEW KEY`
    fn replace(&self) {
        self.write("new", NEW);
        fs::rename(self.path("new"), self.path("key")).unwrap();
    }

    /// `rm KEY.old`
    fn forget(&self) {
        fs::remove_file(self.path("key.old")).unwrap();
    }

    fn config(&self) -> Config {
        let file = self.path("key").to_string_lossy().into_owned();
        config_of(&[
            ("SHIFT_JOB_KEY_FILE", file.as_str()),
            ("SHIFT_HEARTBEAT_MS", HEARTBEAT_MS),
            ("SHIFT_STALL_MS", "400"),
        ])
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// As /proc/net/tcp has it.
fn written(address: Ipv4Addr) -> String {
    format!("{:08X}", u32::from_le_bytes(address.octets()))
}

/// The connections between two hosts that stand, by local address and port, remote address and port.
fn standing(fabric: &Fabric, hosts: [usize; 2]) -> BTreeSet<(String, String)> {
    let [one, other] = hosts.map(|host| written(fabric.address(host)));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (*fields.get(3)? == "01").then(|| (fields[1].to_owned(), fields[2].to_owned()))
    });
    lines.filter(|(near, far)| near.starts_with(&one) && far.starts_with(&other)).collect()
}

/// One agent stands still until the other has ended their connections; then they have others.
fn made_anew(fabric: &Fabric, stopped: &Process) {
    let between = || standing(fabric, [1, 2]);
    let before = between();
    assert!(!before.is_empty(), "two agents that talk have a connection");
    stopped.suspend(true);
    eventually("the connections end", || between().is_disjoint(&before));
    stopped.suspend(false);
    eventually("there are others", || !between().is_empty() && between().is_disjoint(&before));
}

/// What somebody with such a key is told by a host: its greeting, or why not.
fn heard_with(fabric: &Fabric, host: usize, key: &[u8]) -> Result<(), Option<Mismatch>> {
    let site = SocketAddr::new(fabric.address(host).into(), DEFAULT_PORT);
    let terms = Terms { key: Some(JobKey::new(key)), ..Terms::default() };
    let mut speaker: Speaker<TcpStream> = Speaker::new(dial(fabric.address(ELSEWHERE), site), &terms);
    speaker.send(&hello(7, [0; 16]));
    match speaker.next() {
        Some(Frame::Hello(_)) => Ok(()),
        other => Err(speaker.mismatch.filter(|_| other.is_none())),
    }
}

#[test]
fn two_agents_whose_key_is_rotated_under_traffic_notice_nothing_and_end_with_the_new_key_alone() {
    lines::keep();
    let (fabric, keys) = (Fabric::new(1), [Keys::of(1), Keys::of(2)]);
    let (a, b) = (fabric.process(1, keys[0].config()), fabric.process(2, keys[1].config()));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    let mut sent = 0;
    // Each step at each host in turn, and all connections anew behind each.
    let steps: [fn(&Keys); 3] = [Keys::keep, Keys::replace, Keys::forget];
    for (at, step) in steps.into_iter().enumerate() {
        for host in [at % 2, 1 - at % 2] {
            step(&keys[host]);
            made_anew(&fabric, [&a, &b][(at + host) % 2]);
            for end in [&a, &b] {
                end.post(1, sent, Kind::Send);
            }
            sent += 1;
            eventually("the messages arrive", || a.is_done(1) && b.is_done(1));
            assert!([&a, &b].iter().all(|end| end.is_armed(1) && end.qp(1, |q| q.path == 0 && q.reposts == 0)));
        }
    }
    // On a loaded machine an agent may stand still for longer than a connection may that it has just made.
    let alarms: Vec<_> = lines::alarms().into_iter().filter(|line| !line.contains("said nothing valid")).collect();
    assert_eq!(alarms, Vec::<String>::new());
    assert_eq!(lines::with(&["one key is valid"]).len(), 2, "each has read its file again");

    for host in [1, 2] {
        assert_eq!(heard_with(&fabric, host, NEW), Ok(()));
        assert_eq!(heard_with(&fabric, host, OLD), Err(Some(Mismatch::OtherKey)));
    }
    fabric.set_rail(0, false);
    a.post(1, sent, Kind::Send);
    a.fail(1);
    eventually("the fault is survived", || a.is_done(1));
    assert_eq!(b.received(1), (0..=sent).collect::<Vec<u32>>());
    assert!(a.qp(1, |q| q.path == 1 && !q.surfaced) && b.qp(1, |q| q.path == 1 && !q.surfaced));
}
