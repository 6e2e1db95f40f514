//! Processes find one another through a directory: a folder, or a Redis server that is started here. What is written there by whomever
//! leads to no wrong peer, and its death disturbs nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use fabric::{config, config_of, connect, connect_hosts, eventually, gid, stays, Fabric, Kind, Process};
use shift_control::Config;

/// A folder of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shift-rendezvous-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn config(&self) -> Config {
        using(&format!("file://{}", self.0.display()))
    }

    /// The files that name queue pairs.
    fn entries(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }

    /// Says that the process with that id listens there and has the queue pair of that life of a host.
    fn plant(&self, host: usize, life: u32, process: &str, at: SocketAddr) {
        let text = format!("{{\"form\":1,\"process\":\"{process}\",\"addresses\":[\"{at}\"]}}");
        fs::write(self.entry(host, life), text).unwrap();
    }

    fn entry(&self, host: usize, life: u32) -> PathBuf {
        let gid = gid(host, 0).0.map(|byte| format!("{byte:02x}")).concat();
        self.0.join(format!("{gid}-{:06x}", 0x100 + life))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn using(directory: &str) -> Config {
    with("SHIFT_DIRECTORY", directory, &[])
}

fn with(name: &str, value: &str, more: &[(&str, &str)]) -> Config {
    config_of(&[&[(name, value)], more].concat())
}

fn wait_armed(a: &Process, b: &Process, life: u32) {
    eventually("both ends are armed", || a.is_armed(life) && b.is_armed(life));
}

/// Rail 0 dies, and what was posted arrives.
fn survives(fabric: &Fabric, a: &Process, b: &Process, life: u32) {
    fabric.set_rail(0, false);
    a.post(life, 7, Kind::Send);
    a.fail(life);
    eventually("all is delivered", || a.is_done(life));
    assert_eq!(b.received(life), [7]);
    fabric.set_rail(0, true);
}

#[test]
fn peers_to_whom_no_gid_leads_find_one_another_in_a_folder_and_leave_nothing_there() {
    let (fabric, folder) = (Fabric::new(1), Folder::new("found"));
    let a = fabric.process_hidden(1, 1, folder.config());
    let b = fabric.process_hidden(2, 2, folder.config());
    connect(&a, 1, &b, 1);
    wait_armed(&a, &b, 1);
    assert_eq!(folder.entries(), 2);
    survives(&fabric, &a, &b, 1);
    a.events.goodbye();
    b.events.goodbye();
    assert_eq!(folder.entries(), 0, "nothing is left of processes that ended");
}

#[test]
fn without_a_directory_such_peers_are_named_and_stay_as_they_are() {
    let fabric = Fabric::new(2);
    let a = fabric.process_hidden(1, 1, config());
    let b = fabric.process_hidden(2, 2, config());
    connect(&a, 1, &b, 1);
    stays("nobody is armed", 300, || !a.is_armed(1) && !b.is_armed(1));
}

#[test]
fn peers_with_other_well_known_ports_find_one_another_in_a_folder() {
    let (fabric, folder) = (Fabric::new(3), Folder::new("ports"));
    let directory = format!("file://{}", folder.0.display());
    let on = |port| with("SHIFT_DIRECTORY", &directory, &[("SHIFT_PORT", port)]);
    let a = fabric.process(1, on("17601"));
    let b = fabric.process(2, on("17602"));
    connect(&a, 1, &b, 1);
    wait_armed(&a, &b, 1);
    survives(&fabric, &a, &b, 1);
}

#[test]
fn many_processes_of_one_host_find_their_partners() {
    let (fabric, folder) = (Fabric::new(4), Folder::new("many"));
    let left: Vec<Process> = (10..14).map(|id| fabric.process_hidden(id, 1, folder.config())).collect();
    let right: Vec<Process> = (20..24).map(|id| fabric.process_hidden(id, 2, folder.config())).collect();
    for (at, (a, b)) in left.iter().zip(right.iter().rev()).enumerate() {
        connect_hosts(a, 1, at as u32 + 1, b, 2, at as u32 + 1);
    }
    for (at, (a, b)) in left.iter().zip(right.iter().rev()).enumerate() {
        wait_armed(a, b, at as u32 + 1);
    }
    assert_eq!(folder.entries(), 8);
}

/// Of a process that crashed, of a port that somebody else has now, and of a process that lives but has no such queue pair any more.
#[test]
fn what_is_stale_costs_time_and_leads_to_no_wrong_peer() {
    let (fabric, folder) = (Fabric::new(5), Folder::new("stale"));
    let third = fabric.process_hidden(3, 3, folder.config());
    let fourth = fabric.process_hidden(4, 4, folder.config());
    connect(&third, 9, &fourth, 9);
    wait_armed(&third, &fourth, 9);
    let of_third = fs::read_to_string(folder.entry(3, 9)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&of_third).unwrap();
    let living: SocketAddr = value["addresses"][0].as_str().unwrap().parse().unwrap();
    let id = value["process"].as_str().unwrap().to_owned();

    let dead = TcpListener::bind((fabric.address(2), 0)).unwrap().local_addr().unwrap();
    let plants: [(u32, &str, SocketAddr); 3] =
        [(1, "00000000deadbeef", dead), (2, "00000000deadbeef", living), (3, &id, living)];
    for (life, process, at) in plants {
        folder.plant(2, life, process, at);
    }
    let a = fabric.process_hidden(1, 1, folder.config());
    let late = fabric.process_hidden(5, 5, folder.config());
    for (life, _, _) in plants {
        connect_hosts(&a, 1, life, &late, 2, life);
    }
    // The peer's own entries take their place, and it finds this end in any case.
    for (life, _, _) in plants {
        wait_armed(&a, &late, life);
    }
    assert!(third.is_armed(9) && fourth.is_armed(9));
    survives(&fabric, &a, &late, 3);
    assert!(third.received(9).is_empty());
}

#[test]
fn a_folder_that_comes_later_is_used_then() {
    let (fabric, folder) = (Fabric::new(6), Folder::new("later"));
    let inner = Folder(folder.0.join("inner"));
    let a = fabric.process_hidden(1, 1, inner.config());
    let b = fabric.process_hidden(2, 2, inner.config());
    connect(&a, 1, &b, 1);
    stays("nobody is armed", 300, || !a.is_armed(1) && !b.is_armed(1));
    fs::create_dir(&inner.0).unwrap();
    wait_armed(&a, &b, 1);
    // What is armed needs no folder.
    fs::remove_dir_all(&inner.0).unwrap();
    survives(&fabric, &a, &b, 1);
}

#[test]
fn a_folder_that_is_not_there_keeps_nobody_whom_the_gid_leads_to() {
    let fabric = Fabric::new(7);
    let a = fabric.process(1, using("file:///no/such/folder"));
    let b = fabric.process(2, using("file:///no/such/folder"));
    connect(&a, 1, &b, 1);
    wait_armed(&a, &b, 1);
    survives(&fabric, &a, &b, 1);
}

#[test]
fn garbage_in_a_folder_is_no_entry() {
    let (fabric, folder) = (Fabric::new(8), Folder::new("garbage"));
    fs::write(folder.entry(2, 1), "{\"form\":1").unwrap();
    fs::create_dir(folder.entry(2, 2)).unwrap();
    let a = fabric.process_hidden(1, 1, folder.config());
    let b = fabric.process_hidden(2, 2, folder.config());
    connect(&a, 3, &b, 3);
    connect(&a, 1, &b, 1);
    wait_armed(&a, &b, 3);
    wait_armed(&a, &b, 1);
}

#[test]
#[cfg(not(feature = "redis"))]
fn a_library_without_redis_says_so_and_goes_on_as_without_a_directory() {
    let fabric = Fabric::new(9);
    let a = fabric.process(1, using("redis://127.0.0.1"));
    let b = fabric.process(2, using("redis://127.0.0.1"));
    connect(&a, 1, &b, 1);
    wait_armed(&a, &b, 1);
}

/// Real servers; `scripts/setup.bash` installs them.
#[cfg(feature = "redis")]
mod redis {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use fabric::Watch;

    struct Server {
        child: Child,
        at: SocketAddr,
    }

    impl Server {
        fn start(at: SocketAddr, folder: &Path) -> Self {
            let (bind, port) = (at.ip().to_string(), at.port().to_string());
            let child = Command::new("redis-server")
                .args(["--bind", &bind, "--port", &port, "--save", "", "--appendonly", "no", "--dir"])
                .arg(folder)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is not installed; scripts/setup.bash installs it");
            let server = Self { child, at };
            eventually("the server answers", || server.keys().is_some());
            server
        }

        fn keys(&self) -> Option<usize> {
            let (host, port) = (self.at.ip().to_string(), self.at.port().to_string());
            let answer = Command::new("redis-cli").args(["-h", &host, "-p", &port, "dbsize"]).output().unwrap();
            String::from_utf8_lossy(&answer.stdout).trim().parse().ok()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn free_port(fabric: &Fabric) -> SocketAddr {
        TcpListener::bind((fabric.address(9), 0)).unwrap().local_addr().unwrap()
    }

    #[test]
    fn peers_find_one_another_through_a_server_that_may_die_and_come_back() {
        let (fabric, folder) = (Fabric::new(20), Folder::new("redis"));
        let at = free_port(&fabric);
        let server = Server::start(at, &folder.0);
        let url = format!("redis://{at}/1");
        let a = fabric.process_hidden(1, 1, using(&url));
        let b = fabric.process_hidden(2, 2, using(&url));
        connect(&a, 1, &b, 1);
        wait_armed(&a, &b, 1);
        drop(server);
        survives(&fabric, &a, &b, 1);
        connect(&a, 2, &b, 2);
        stays("without the server nobody is found", 300, || !a.is_armed(2) && !b.is_armed(2) && a.is_armed(1));
        let server = Server::start(at, &folder.0);
        wait_armed(&a, &b, 2);
        a.events.goodbye();
        b.events.goodbye();
        assert_eq!(server.keys(), Some(0), "nothing is left of processes that ended");
    }

    #[test]
    fn a_server_that_is_dead_from_the_start_keeps_nobody_whom_the_gid_leads_to() {
        let fabric = Fabric::new(21);
        let url = format!("redis://{}", free_port(&fabric));
        let a = fabric.process(1, using(&url));
        let b = fabric.process(2, using(&url));
        connect(&a, 1, &b, 1);
        wait_armed(&a, &b, 1);
        survives(&fabric, &a, &b, 1);
    }

    #[test]
    fn a_server_that_takes_connections_and_says_nothing_delays_nobody_else() {
        let fabric = Fabric::new(22);
        let mute = TcpListener::bind((fabric.address(9), 0)).unwrap();
        let url = format!("redis://{}", mute.local_addr().unwrap());
        let a = fabric.process(1, using(&url));
        let b = fabric.process(2, using(&url));
        let begun = Watch::start();
        connect(&a, 1, &b, 1);
        wait_armed(&a, &b, 1);
        assert!(begun.served() < std::time::Duration::from_secs(1), "after {:?}", begun.elapsed());
        survives(&fabric, &a, &b, 1);
    }

    #[test]
    fn what_others_keep_under_our_names_is_no_entry() {
        let (fabric, folder) = (Fabric::new(23), Folder::new("foreign"));
        let at = free_port(&fabric);
        let _server = Server::start(at, &folder.0);
        let key = |life| format!("shift-verbs:{}", folder.entry(2, life).file_name().unwrap().to_str().unwrap());
        let (host, port) = (at.ip().to_string(), at.port().to_string());
        for words in [["lpush", &key(1), "x"], ["set", &key(2), "{}"]] {
            let done = Command::new("redis-cli").args(["-h", &host, "-p", &port]).args(words).output().unwrap();
            assert!(done.status.success());
        }
        let a = fabric.process_hidden(1, 1, using(&format!("redis://{at}")));
        let b = fabric.process_hidden(2, 2, using(&format!("redis://{at}")));
        for life in [1, 2, 3] {
            connect(&a, life, &b, life);
        }
        for life in [1, 2, 3] {
            wait_armed(&a, &b, life);
        }
    }
}
