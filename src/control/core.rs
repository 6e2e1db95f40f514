//! One round of the agent's loop: what came in goes to the queue pair, the peer or the probe that it is for.
//!
//! Order matters in a round: events of the shim first, so that a fault of an incarnation that is being left is never taken for one
//! of the next; then frames; then everything that is due.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use shift_proto::frame::{Frame, Key, Offer, QpAddress};
use shift_proto::id::{EndpointId, Micros, PathId, ProcessId};
use shift_proto::migrate::{Handshake, Input, Stage};

use crate::admin::Admin;
use crate::audit::{self, Sums};
use crate::clock;
use crate::datapath::{ConnectionFacts, DeviceId, Event, Gid, QpLife};
use crate::directory::Directory;
use crate::discovery::{self, Discovery};
use crate::drains::{self, Drains};
use crate::gray;
use crate::groups::Groups;
use crate::keys::PeerKeys;
use crate::links::{LinkEvent, LinkId, Watched};
use crate::peers::PeerEvent;
use crate::qp::Qp;
use crate::record::Outcome;
use crate::registry::Owned;
use crate::rendezvous::Rendezvous;
use crate::status::{Answer, Request, Status};
use crate::world::World;

/// Queue pairs of one process; further ones are not protected.
const MAX_QPS: usize = 65_536;
/// How often queues that the application does not poll are looked at.
const SWEEP_US: u64 = 20_000;
/// The same while a migration waits for completions.
const BUSY_SWEEP_US: u64 = 1_000;
/// Pace while a migration is under way.
const FAST: Duration = Duration::from_micros(200);
/// A path is sought at that pace too, for so long: a standby that works has answered by then.
const SHORT_SEEK_US: u64 = 20_000;
/// Pace while a probe is in the air or a path is sought.
const BRISK_US: u64 = 1_000;
/// Time that one round spends on queue pairs before it looks at the network again: peers take silence for death, and a replay may take long.
const SLICE_US: u64 = 50_000;
/// A program that ends before its peer was found is told why it was unprotected if it sought for at least this long.
const LEAST_SEARCH_US: u64 = 200_000;
/// A pause of the loop beyond this means that this process slept (a debugger, a suspended guest), not its peers.
const SLEPT_US: u64 = 500_000;
/// One beyond this, where there is something to sweep, that others had the processor: what came in meanwhile may not have been looked at.
const HELD_UP_US: u64 = 100_000;

/// Everything that the agent owns.
pub(crate) struct Core {
    pub(crate) world: World,
    pub(crate) directory: Directory,
    pub(crate) discovery: Discovery,
    /// The directory of the job, if there is one.
    pub(crate) rendezvous: Option<Rendezvous>,
    admin: Admin,
    pub(crate) qps: BTreeMap<QpLife, Qp>,
    pub(crate) lives: BTreeMap<(Gid, u32), QpLife>,
    groups: Groups,
    /// Peers of a queue pair of this process; nobody else is told anything, or heard.
    pub(crate) trusted: BTreeSet<ProcessId>,
    /// Those of them that were told the keys of this process.
    told_keys: BTreeSet<ProcessId>,
    /// By the queue pair that is offered to and the one that is offered; of a candidate with its connection.
    pub(crate) early: BTreeMap<(Owned, Owned), (Offer, Option<LinkId>)>,
    /// The first queue pair for which the last round had no time.
    behind: Option<QpLife>,
    swept: Micros,
    last_turn: Micros,
    /// Queue pairs came or went: who is still needed is to be found out.
    pub(crate) stale: bool,
}

impl Core {
    pub fn new(mut world: World, directory: Directory, rendezvous: Option<Rendezvous>) -> Self {
        let admin = Admin::open(&mut world.links, world.me);
        // Read when it can be told: what is written down later is told too.
        world.drains = Drains::read(Path::new(drains::DIRECTORY));
        Self {
            world,
            directory,
            discovery: Discovery::default(),
            rendezvous,
            admin,
            qps: BTreeMap::new(),
            lives: BTreeMap::new(),
            groups: Groups::default(),
            trusted: BTreeSet::new(),
            told_keys: BTreeSet::new(),
            early: BTreeMap::new(),
            behind: None,
            swept: Micros(0),
            last_turn: clock::now(),
            stale: false,
        }
    }

    /// Waits for what is due or comes in, then takes the events and does everything.
    pub fn turn(&mut self, take_events: impl FnOnce(&mut Vec<Event>)) -> io::Result<()> {
        let incoming = self.wait()?;
        let now = clock::now();
        self.notice_sleep(now);
        let mut events = Vec::new();
        take_events(&mut events);
        for event in events {
            self.handle_event(event, now);
        }
        for event in incoming {
            self.handle_link(event, now);
        }
        self.tick(now);
        self.deliver(now);
        Ok(())
    }

    /// Says goodbye to every peer; the process ends.
    pub fn goodbye(&mut self) {
        self.tell_failures(clock::now(), Micros(LEAST_SEARCH_US));
        self.world.flush_news(Micros::MAX);
        self.world.peers.goodbye(&mut self.world.links);
        self.rendezvous.iter().for_each(Rendezvous::end);
        if let Some(line) = self.world.links.strangers.summary() {
            log::info!("{line}");
        }
    }

    /// What all queue pairs came to so far.
    pub fn sums(&self) -> Sums {
        self.world.audit.sums.clone()
    }

    fn answer_admin(&mut self, now: Micros) {
        let Self { admin, world, qps, .. } = self;
        let gray = world.gray_rails();
        let World { links, audit, data, config, me, drains, .. } = world;
        let mut is_changed = false;
        let view = |request: &Request| {
            is_changed |= match request {
                Request::Status => false,
                Request::Drain { device } => drains.set(device, true),
                Request::Undrain { device } => drains.set(device, false),
            };
            Answer::Status(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                program: audit::program(),
                process: format!("{:016x}", me.0),
                keyed: config.job_key.is_some(),
                queue_pairs: qps.values().map(|qp| qp.status(&**data)).chain(audit.unrecorded(&**data)).collect(),
                totals: audit.sums.now(),
                drained: drains.names(),
                gray: gray.clone(),
            })
        };
        admin.handle_ready(links, view);
        if is_changed {
            log::info!("drained rails: {}", self.world.drains.names().join(", "));
            self.qps.values_mut().for_each(|qp| qp.handle_drains(&mut self.world, now));
        }
    }

    /// After a mistake of the agent: every fault is the application's from now on.
    pub fn give_up(&mut self) {
        for (life, qp) in &self.qps {
            self.world.data.set_armed(*life, false);
            // An error that the shim keeps, or a post that waits for a key of the standby, would wait for ever.
            let is_left = qp.machine.as_ref().is_some_and(|m| m.state().stage != Stage::Running);
            let waits = self.world.data.in_error(*life) || is_left || qp.current() != PathId::PRIMARY;
            if waits {
                self.world.data.surface(*life, None);
            } else if !qp.is_quiet() {
                // Nothing was fenced: the connection is healthy, or will have its own error.
                self.world.data.release(*life);
            }
        }
    }

    fn wait(&mut self) -> io::Result<Vec<LinkEvent>> {
        if self.behind.is_some() {
            return self.world.links.poll(Some(Duration::ZERO));
        }
        let recent = Micros(clock::now().0.saturating_sub(SHORT_SEEK_US));
        if self.qps.values().any(|q| !matches!(q.job, crate::qp::Job::Idle) || q.seek.is_some_and(|at| at > recent)) {
            let incoming = self.world.links.poll(Some(Duration::ZERO))?;
            if incoming.is_empty() {
                std::thread::sleep(FAST);
            }
            return Ok(incoming);
        }
        let now = clock::now();
        let timeout = self.deadline(now).map(|due| Duration::from_micros(due.since(now).0));
        self.world.links.poll(timeout)
    }

    fn deadline(&self, now: Micros) -> Option<Micros> {
        let machines = self.qps.values().filter_map(Qp::machine_due);
        let paths = self.qps.values().filter_map(Qp::paths_due);
        let plans = self.qps.values().filter_map(|q| q.plans_due(now));
        let pairs = self.qps.values().filter_map(Qp::pairs_due);
        let brisk = self.qps.values().any(|q| !q.is_quiet());
        let masked = self.qps.values().any(|q| q.masked);
        let others = [
            self.groups.due(now),
            self.world.removals.due(),
            brisk.then_some(now + Micros(BRISK_US)),
            self.world.probes.deadline(now),
            masked.then_some(self.swept + Micros(SWEEP_US)),
            (!self.world.loopback.is_empty()).then_some(now),
            self.directory.deadline(),
            self.discovery.deadline(),
            self.world.peers.deadline(),
            self.world.news_due(),
            self.world.links.has_ungreeted().then_some(now + Micros(SLEPT_US / 2)),
        ];
        machines.chain(paths).chain(plans).chain(pairs).chain(others.into_iter().flatten()).min()
    }

    fn notice_sleep(&mut self, now: Micros) {
        let expected_us = SLEPT_US;
        if now.since(self.last_turn).0 > expected_us && self.qps.values().any(|q| q.masked) {
            self.world.links.forgive_silence(now);
            self.world.peers.forgive_silence(now);
            self.world.probes.forgive_slowness();
            self.qps.values_mut().for_each(Qp::forgive_stall);
        } else if now.since(self.last_turn).0 > HELD_UP_US {
            self.qps.values_mut().for_each(|qp| qp.doubt_silence(now));
        }
        self.last_turn = now;
    }

    fn tick(&mut self, now: Micros) {
        self.directory.tick(&mut self.world.links, now);
        self.discovery.tick(&mut self.world.links, now);
        self.locate_listed(now);
        self.world.peers.tick(&mut self.world.links, now);
        self.deliver(now);
        let data = self.world.data.clone();
        for outcome in self.world.probes.tick(&*data, now) {
            log::trace!("probe {outcome:?}");
            for qp in self.qps.values_mut() {
                qp.handle_outcome(&mut self.world, &outcome, now);
            }
        }
        self.tend_removals(now);
        self.tick_qps(now);
        self.groups.tend(&mut self.qps, &mut self.world, now);
        self.sweep(now);
        if std::mem::take(&mut self.stale) | std::mem::take(&mut self.world.has_unused) {
            self.forget_unused();
        }
        for (peer, frame) in self.world.probes.take_frames() {
            self.world.send(peer, frame);
        }
        self.tell_failures(now, discovery::PATIENCE);
        self.world.flush_news(now);
    }

    /// In turn, beginning with those that had to wait.
    fn tick_qps(&mut self, now: Micros) {
        let first = self.behind.take().unwrap_or(QpLife(0));
        let until = clock::now() + Micros(SLICE_US);
        let bounds = [(Bound::Included(first), Bound::Unbounded), (Bound::Unbounded, Bound::Excluded(first))];
        for bound in bounds {
            for (life, qp) in self.qps.range_mut(bound) {
                if clock::now() > until {
                    self.behind = Some(*life);
                    return;
                }
                qp.tick(&mut self.world, now);
            }
        }
    }

    fn sweep(&mut self, now: Micros) {
        let pace = if self.qps.values().any(Qp::is_retiring) { BUSY_SWEEP_US } else { SWEEP_US };
        if now.since(self.swept).0 >= pace && self.qps.values().any(|q| q.masked) {
            self.swept = now;
            self.world.data.sweep();
            for qp in self.qps.values_mut() {
                qp.watch_progress(&mut self.world, now);
            }
            gray::tend(&self.qps, &mut self.world, now);
        }
    }

    fn tell_failures(&mut self, now: Micros, patience: Micros) {
        let directory = self.rendezvous.as_ref().map(Rendezvous::words);
        for failure in self.discovery.take_failures(now, patience, directory.as_deref()) {
            for qp in self.qps.values_mut().filter(|q| q.peer_address() == failure.sought) {
                qp.tell_unprotected(&mut self.world, &failure.reason, now);
            }
        }
    }

    /// Peers, probes and searches that no queue pair needs any more.
    fn forget_unused(&mut self) {
        let mut keys = BTreeSet::new();
        let mut processes = BTreeSet::new();
        for qp in self.qps.values() {
            keys.extend(qp.path_ids().filter_map(|p| qp.probe_key(p)).map(|(key, _)| key));
            processes.extend(qp.process);
        }
        let data = self.world.data.clone();
        self.world.probes.keep_only(&*data, &keys);
        self.world.peers.keep_wanted(&mut self.world.links, &processes);
        self.trusted.retain(|p| processes.contains(p) || self.world.peers.knows(*p));
    }

    fn handle_event(&mut self, event: Event, now: Micros) {
        log::trace!("event {event:?}");
        match event {
            Event::DeviceOpened { device, async_fd } => {
                match self.world.links.watch(async_fd, Watched::Device(device.0)) {
                    Ok(watch) => self.world.removals.note_watch(device, watch),
                    Err(error) => {
                        log::warn!("port events of {} are not seen ({error})", self.world.data.device_name(device));
                    }
                }
            }
            Event::Connected { qp, facts } => self.handle_connected(qp, facts, now),
            Event::Unrecorded { device, qpn, reason } => self.world.audit.add(device, qpn, reason.0),
            Event::UnrecordedGone { device, qpn } => self.world.audit.remove(device, qpn),
            Event::Unprotected { qp, reason } => self.with(qp, |q, world| {
                q.refused = Some(reason.0);
                q.withdraw(world, now);
            }),
            Event::Fatal { qp, epoch, status } => {
                let now_ns = clock::now_ns();
                self.with(qp, |q, world| q.handle_fatal(world, epoch, status, now, now_ns));
            }
            Event::ApplicationError { qp } => self.with(qp, |q, world| q.handle_application_error(world, now)),
            Event::Destroyed { qp } => self.handle_destroyed(qp, now),
            Event::Held { qp } => self.with(qp, |q, _| q.held = true),
            Event::StandbyCame { device } => {
                let on_it = self.qps.values_mut().filter(|qp| qp.facts.device == device);
                on_it.for_each(|qp| qp.handle_grown(&mut self.world, now));
            }
            Event::SlotLost { qp, slot } => self.with(qp, |q, world| q.handle_slot_lost(world, slot, now)),
            Event::KeyAdded { device, rkey, standby_rkeys } => {
                for (key, standby_rkey) in self.world.own_keys.add(device, rkey, standby_rkeys) {
                    self.own_peer_keys().handle_add(key, standby_rkey);
                    self.tell_peers(&Frame::KeyAdd { key, standby_rkey });
                }
            }
            Event::KeyExtended { device, rkey, slot, standby_rkey } => {
                if let Some(key) = self.world.own_keys.extend(device, rkey, slot, standby_rkey) {
                    self.own_peer_keys().handle_add(key, standby_rkey);
                    self.tell_peers(&Frame::KeyAdd { key, standby_rkey });
                }
            }
            Event::KeyUnprotected { device, rkey } => self.world.own_keys.add_unprotected(device, rkey),
            Event::KeyRemoved { device, rkey } => {
                let key = self.world.own_keys.remove(device, rkey, self.told_keys.clone());
                if let Some(key) = key {
                    self.own_peer_keys().handle_del(key);
                    self.tell_peers(&Frame::KeyDel(key));
                }
                if key.is_none_or(|key| !self.world.own_keys.awaits(key)) {
                    self.world.data.withdrawal_confirmed(device, rkey);
                }
            }
            Event::Port { device, up } => self.handle_port(device, up, now),
        }
    }

    pub(crate) fn with(&mut self, life: QpLife, act: impl FnOnce(&mut Qp, &mut World)) {
        if let Some(qp) = self.qps.get_mut(&life) {
            act(qp, &mut self.world);
        }
    }

    /// To those that were told the keys.
    fn tell_peers(&mut self, frame: &Frame) {
        let World { peers, links, .. } = &mut self.world;
        self.told_keys.iter().for_each(|process| peers.send(links, *process, frame));
    }

    /// Two queue pairs of this process may be connected to each other: it is its own peer too.
    fn own_peer_keys(&mut self) -> &mut PeerKeys {
        self.world.peer_keys.entry(self.world.me).or_default()
    }

    fn handle_port(&mut self, device: DeviceId, up: bool, now: Micros) {
        let state = if up { "up" } else { "down" };
        log::info!("port of {} is {state}", self.world.data.device_name(device));
        for qp in self.qps.values_mut() {
            qp.handle_port(&mut self.world, device, up, now);
        }
    }

    fn handle_connected(&mut self, life: QpLife, facts: ConnectionFacts, now: Micros) {
        if self.qps.len() >= MAX_QPS || self.qps.contains_key(&life) {
            return;
        }
        let mut qp = Qp::new(self.world.me, life, facts, self.world.config.deadlines.hold_down);
        if qp.facts.group.is_some() {
            // Whether the receives of its group may be posted is to be judged anew.
            let others = self.qps.values_mut().filter(|other| other.facts.group == qp.facts.group);
            others.for_each(|other| other.group.open = None);
        }
        self.world.audit.sums.add(|totals| totals.queue_pairs += 1);
        let own = qp.own_address();
        self.directory.add(&mut self.world.links, Gid(own.gid), own.qpn);
        self.lives.insert(key_of(own), life);
        self.rendezvous.iter().for_each(|r| r.publish(key_of(own)));
        match self.world.data.standbys_of(qp.facts.device) {
            Ok(standbys) => {
                self.world.tell_first(qp.facts.device, &standbys, now);
                self.seek_peer(&mut qp, now);
            }
            Err(reason) => qp.refuse(&mut self.world, &reason.to_string(), now),
        }
        self.qps.insert(life, qp);
        self.stale = true;
        self.meet_early_offer(life, now);
    }

    fn handle_destroyed(&mut self, life: QpLife, now: Micros) {
        self.with(life, |q, world| {
            q.feed(world, now, Input::Destroyed);
            q.finish_record(world, Outcome::Destroyed);
        });
        let Some(qp) = self.qps.remove(&life) else {
            return;
        };
        qp.forget_choice(&mut self.world);
        let own = qp.own_address();
        self.directory.remove(&mut self.world.links, Gid(own.gid), own.qpn);
        if self.lives.get(&key_of(own)) == Some(&life) {
            self.lives.remove(&key_of(own));
        }
        self.discovery.stop(&mut self.world.links, qp.peer_address());
        if let Some(rendezvous) = &mut self.rendezvous {
            rendezvous.forget(key_of(own), key_of(qp.peer_address()));
        }
        self.stale = true;
    }

    fn handle_link(&mut self, event: LinkEvent, now: Micros) {
        let links = &mut self.world.links;
        match event {
            LinkEvent::Accepted(link) => drop(self.directory.accepted(links, link)),
            LinkEvent::Connected(link) => {
                if !self.discovery.connected(links, link, now) {
                    self.world.peers.handle_connected(links, link);
                }
            }
            LinkEvent::Received(link, frame) => {
                if links.is_open(link) {
                    self.handle_received(link, frame, now);
                }
            }
            LinkEvent::Watched(Watched::Device(device)) => self.world.data.read_async(DeviceId(device)),
            LinkEvent::Watched(Watched::Admin) => self.answer_admin(now),
            LinkEvent::Watched(Watched::Interfaces) => {
                let changes = self.world.interfaces.changes();
                changes.into_iter().for_each(|(device, up)| self.handle_port(device, up, now));
            }
            LinkEvent::Closed(link, ending) => {
                self.directory.closed(link, ending, now);
                if !self.discovery.closed(link, ending, now) {
                    self.world.peers.handle_closed(links, link, ending, now);
                }
            }
        }
        self.deliver(now);
    }

    fn handle_received(&mut self, link: LinkId, frame: Frame, now: Micros) {
        let links = &mut self.world.links;
        if let Frame::Ask(address) = frame {
            let port = self.directory.owner(Gid(address.gid), address.qpn);
            links.send(link, &Frame::Owner { address, port });
        } else if self.directory.knows(link) {
            self.directory.handle(links, link, &frame);
        } else if let Frame::Owner { address, port } = frame {
            let source = self.discovery.source_of(address);
            if let Some(at) = self.discovery.handle_owner(link, address, port) {
                self.world.peers.locate(links, at, source, None, now);
            }
        } else {
            self.world.peers.handle_frame(links, link, frame, now);
        }
    }

    /// What the peers' connections and this process itself brought.
    fn deliver(&mut self, now: Micros) {
        loop {
            let events = self.world.peers.take_events();
            if events.is_empty() {
                break;
            }
            for event in events {
                self.handle_peer(event, now);
            }
        }
        // What this process says to itself in answer has its turn in the next round.
        for frame in std::mem::take(&mut self.world.loopback) {
            let me = self.world.me;
            self.handle_frame(me, frame, now);
        }
    }

    fn handle_peer(&mut self, event: PeerEvent, now: Micros) {
        match event {
            PeerEvent::Located(address, process) => self.handle_located(address, process, now),
            PeerEvent::NotLocated(address, reason) => self.discovery.lost(address, &reason, now),
            PeerEvent::Joined(process, link) => {
                if self.told_keys.contains(&process) {
                    self.world.own_keys.frames().for_each(|frame| self.world.links.send(link, &frame));
                }
                for qp in self.qps.values_mut().filter(|q| q.process == Some(process)) {
                    qp.resync(&mut self.world, now);
                }
                self.stale = true;
            }
            PeerEvent::Frame(process, frame) => self.handle_frame(process, frame, now),
            PeerEvent::Candidate(link, offer) => self.handle_offer(offer, Some(link), now),
            PeerEvent::Gone(process) => self.handle_gone(process, now),
            PeerEvent::Silent(process) => {
                for qp in self.qps.values_mut().filter(|q| q.process == Some(process)) {
                    qp.feed(&mut self.world, now, Input::Unreachable);
                }
            }
        }
    }

    fn handle_gone(&mut self, process: ProcessId, now: Micros) {
        log::debug!("peer process {:016x} is gone", process.0);
        for qp in self.qps.values_mut().filter(|q| q.process == Some(process)) {
            qp.handle_peer_gone(&mut self.world, now);
            self.world.data.peer_left(qp.life);
        }
        let data = self.world.data.clone();
        self.world.probes.forget_peer(&*data, process);
        self.world.peer_keys.remove(&process);
        for (device, rkey) in self.world.own_keys.forget_peer(process) {
            data.withdrawal_confirmed(device, rkey);
        }
        data.void_remote_keys();
        self.told_keys.remove(&process);
        self.stale = true;
    }

    fn handle_frame(&mut self, process: ProcessId, frame: Frame, now: Micros) {
        let offers = matches!(&frame, Frame::Offer(offer) if offer.from.process == process);
        if !offers && !self.trusted.contains(&process) && process != self.world.me {
            log::debug!("{:016x} is the peer of no queue pair, what it says is not heard", process.0);
            return;
        }
        match frame {
            Frame::Offer(offer) if offer.from.process == process => self.handle_offer(offer, None, now),
            Frame::ArmConfirm(confirm) if confirm.from.process == process => {
                self.with_end(process, confirm.to, |q, world| q.handle_confirm(world, &confirm, now));
            }
            Frame::Migration { number, to, from, msg } if from.process == process => {
                if self.world.peers.is_new(process, number) {
                    self.handle_message(to, from, msg, now);
                }
            }
            Frame::KeyAdd { key, standby_rkey } => {
                self.world.peer_keys.entry(process).or_default().handle_add(key, standby_rkey);
            }
            Frame::KeyDel(key) => self.handle_key_del(process, key),
            Frame::KeyDelAck(key) => {
                if self.world.own_keys.handle_confirmed(process, key) {
                    self.world.data.withdrawal_confirmed(DeviceId(key.device), key.rkey);
                }
            }
            Frame::KeyAsk { device, rkey } => {
                let state = self.world.own_keys.state(device, rkey);
                self.world.send(process, Frame::KeyAnswer { device, rkey, state });
            }
            Frame::KeyAnswer { device, rkey, state } => {
                self.world.peer_keys.entry(process).or_default().handle_answer(device, rkey, state);
            }
            Frame::Probe(probe) => {
                let World { data, probes, devices, .. } = &mut self.world;
                probes.handle_frame(&**data, process, &probe, |gid| devices.get(gid).copied(), now);
            }
            Frame::Offer(_) | Frame::ArmConfirm(_) | Frame::Migration { .. } => {
                log::debug!("a frame of {:016x} speaks for somebody else", process.0);
            }
            Frame::Hello(_)
            | Frame::Ask(_)
            | Frame::Owner { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Goodbye => {}
        }
    }

    fn handle_key_del(&mut self, process: ProcessId, key: Key) {
        self.world.peer_keys.entry(process).or_default().handle_del(key);
        // Before the confirmation: once it is out the peer may give the number to other memory.
        self.world.data.void_remote_keys();
        self.world.send(process, Frame::KeyDelAck(key));
    }

    /// The queue pair `to`, if its peer is `process`.
    fn with_end(&mut self, process: ProcessId, to: EndpointId, act: impl FnOnce(&mut Qp, &mut World)) {
        if let Some(qp) = self.qps.get_mut(&QpLife(to.life)).filter(|q| q.me == to && q.process == Some(process)) {
            act(qp, &mut self.world);
        }
    }

    fn handle_message(&mut self, to: EndpointId, from: EndpointId, msg: Handshake, now: Micros) {
        let known = self.qps.get(&QpLife(to.life)).is_some_and(|q| q.me == to);
        if !known {
            // Its application destroyed it; the peer named it, so it was here.
            if to.process == self.world.me && msg != Handshake::Gone {
                self.world.send_message(from.process, from, to, Handshake::Gone);
            }
            return;
        }
        self.with_end(from.process, to, |q, world| {
            if q.remote.is_some_and(|r| r.end == from) {
                q.note_report(&msg, now);
                let is_gone = msg == Handshake::Gone;
                q.handle_message(world, msg, now);
                if is_gone {
                    world.data.peer_left(q.life);
                }
            }
        });
    }

    /// A process that has offered knows this end as its peer: it is told what memory there is here.
    pub(crate) fn tell_keys(&mut self, process: ProcessId) {
        if process != self.world.me && self.told_keys.insert(process) {
            let World { peers, links, own_keys, .. } = &mut self.world;
            own_keys.frames().for_each(|frame| peers.send(links, process, &frame));
        }
    }
}

pub(crate) fn key_of(address: QpAddress) -> (Gid, u32) {
    (Gid(address.gid), address.qpn)
}
