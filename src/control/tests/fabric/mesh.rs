//! Several processes, connected as a test wants them, some of which receive through one shared queue.

use shift_control::status::Request;

use super::admin::{ask, names};
use super::{config_of, connect_grouped, eventually, Fabric, Kind, Process};

/// The one group of each process that has one.
pub const SRQ: Option<u32> = Some(900);

/// Each process with its queue pairs: number and process at the other end.
pub struct Mesh {
    pub fabric: Fabric,
    pub hosts: Vec<Process>,
    /// The local sockets of their agents.
    names: Vec<String>,
    pub pairs: Vec<[(usize, u32); 2]>,
}

impl Mesh {
    /// All hosts connected with all others, each receiving through one shared queue.
    pub fn full(net: u8, count: usize) -> Self {
        let mut mesh = Self::of(net, count);
        for a in 0..count {
            for b in a + 1..count {
                mesh.connect((a, SRQ), (b, SRQ));
            }
        }
        mesh
    }

    pub fn of(net: u8, count: usize) -> Self {
        Self::with(net, count, &[])
    }

    /// With deadlines of its own. What goes back by plan is not what such a test is about.
    pub fn with(net: u8, count: usize, variables: &[(&str, &str)]) -> Self {
        let mut mesh = Self::empty(net);
        let variables = [&[("SHIFT_FAILBACK", "0")], variables].concat();
        mesh.hosts = (0..count).map(|host| mesh.fabric.process(host + 1, config_of(&variables))).collect();
        mesh
    }

    /// One that goes back soon. Of such there is one at a time: its agents are known by their sockets.
    pub fn planned(net: u8, count: usize) -> Self {
        let mut mesh = Self::empty(net);
        for host in 0..count {
            let before = names();
            mesh.hosts.push(mesh.fabric.process(host + 1, config_of(&[("SHIFT_HOLD_DOWN_MS", "300")])));
            eventually("it listens", || {
                mesh.names.extend(names().into_iter().find(|name| !before.contains(name)));
                mesh.names.len() > host
            });
        }
        mesh
    }

    fn empty(net: u8) -> Self {
        Self { fabric: Fabric::new(net), hosts: Vec::new(), names: Vec::new(), pairs: Vec::new() }
    }

    /// All hosts connected with all others, the first two twice, each with these standbys.
    pub fn with_standbys(mut self, standbys: &[&[usize]]) -> Self {
        for (host, rails) in (1..).zip(standbys) {
            self.fabric.lock().standbys.insert(host, rails.to_vec());
        }
        let count = self.hosts.len();
        for a in 0..count {
            for b in a + 1..count {
                self.connect((a, SRQ), (b, SRQ));
            }
        }
        self.connect((0, SRQ), (1, SRQ));
        self.is_armed();
        self
    }

    /// The rail dies, and the first queue pair notices it.
    pub fn die(&self, rail: usize) {
        self.fabric.set_rail(rail, false);
        let [(host, life), _] = self.pairs[0];
        self.hosts[host].fail(life);
    }

    /// The operator of a host drains a rail, or lets it be used again.
    pub fn drain(&self, host: usize, device: &str, drained: bool) {
        let device = device.to_owned();
        let request = if drained { Request::Drain { device } } else { Request::Undrain { device } };
        let line = [serde_json::to_vec(&request).unwrap(), b"\n".to_vec()].concat();
        assert!(ask(&self.names[host], &line).is_some());
    }

    /// No end is on that path, or was given an error.
    pub fn have_all_left(&self, path: u8) -> bool {
        self.all(|host, life| host.qp(life, |q| q.path != path && !q.surfaced))
    }

    /// Every end is on that path, at work.
    pub fn are_all_on(&self, path: u8) -> bool {
        self.all(|host, life| host.qp(life, |q| q.path == path && q.is_running() && !q.surfaced))
    }

    /// The first pair moves, and with it its groups.
    pub fn moves(&self) {
        let [(_, _), (peer, life)] = self.pairs[0];
        self.fabric.set_rail(0, false);
        self.hosts[peer].fail(life);
        self.has_moved_whole();
    }

    pub fn connect(&mut self, (a, a_group): (usize, Option<u32>), (b, b_group): (usize, Option<u32>)) {
        let life = u32::try_from(self.pairs.len()).unwrap() + 1;
        connect_grouped((&self.hosts[a], life, a_group), (&self.hosts[b], life, b_group));
        self.pairs.push([(a, life), (b, life)]);
    }

    pub fn ends(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.pairs.iter().flatten().copied()
    }

    /// The rails on which they are.
    pub fn rails(&self) -> impl Iterator<Item = usize> + '_ {
        self.ends().map(|(host, life)| self.hosts[host].qp(life, super::Qp::rail))
    }

    pub fn all(&self, holds: impl Fn(&Process, u32) -> bool) -> bool {
        self.ends().all(|(host, life)| holds(&self.hosts[host], life))
    }

    pub fn post(&self, messages: std::ops::Range<u32>) {
        for message in messages {
            self.ends().for_each(|(host, life)| self.hosts[host].post(life, message, Kind::Send));
        }
    }

    pub fn is_armed(&self) {
        eventually("every end is armed", || self.all(Process::is_armed));
    }

    pub fn has_moved_whole(&self) {
        eventually("every end has moved", || self.all(|host, life| host.qp(life, |q| q.path == 1)));
    }

    pub fn has_everything(&self, messages: u32) {
        eventually("all is delivered", || self.all(Process::is_done));
        for (host, life) in self.ends() {
            assert_eq!(self.hosts[host].received(life), (0..messages).collect::<Vec<u32>>(), "at {host}, {life}");
            assert!(self.hosts[host].qp(life, |q| !q.surfaced && q.reposts == 1), "at {host}, {life}");
        }
    }
}

/// Each end says the next thing.
pub struct Talk<'a> {
    mesh: &'a Mesh,
    next: u32,
}

impl<'a> Talk<'a> {
    pub fn new(mesh: &'a Mesh) -> Self {
        Self { mesh, next: 0 }
    }

    pub fn go_on(&mut self) {
        self.mesh.post(self.next..self.next + 1);
        self.next += 1;
    }

    pub fn until_all_are_on(&mut self, path: u8) {
        eventually("all are there", || {
            self.go_on();
            self.mesh.are_all_on(path)
        });
    }

    /// Nobody is on that rail any more, and all are on one and the same; its number.
    pub fn until_all_have_left(&mut self, rail: usize) -> usize {
        let mut found = rail;
        eventually("all have left together", || {
            self.go_on();
            found = self.mesh.rails().next().unwrap();
            let is_there = |host: &Process, life| host.qp(life, |q| q.is_running() && q.rail() == found);
            found != rail && self.mesh.all(is_there)
        });
        found
    }

    /// Every message arrived once and in order, and nobody was given an error.
    pub fn ends_well(&self) {
        eventually("all is delivered", || self.mesh.all(Process::is_done));
        let all: Vec<u32> = (0..self.next).collect();
        assert!(self.mesh.all(|host, life| host.received(life) == all && host.qp(life, |q| !q.surfaced)));
    }
}
