//! Arming: from two connected queue pairs to a connection that survives the death of its path.
//!
//! Each end offers its standby; each connects its own, probes the path, and says so. Armed is a path of which both ends said that.
//! Every message is idempotent, and comes once over each network. So nothing is answered because it came twice: an offer is said again
//! until the peer has said anything to this end, readiness at a slow pace while the peer's is missing, both over a new connection.

use shift_proto::frame::{ArmConfirm, Frame, Offer, PathOffer, StandbyOffer};
use shift_proto::id::{Micros, PathId, ProcessId};
use shift_proto::migrate::{Input, Machine, Stage};

use crate::choice::{offered, pair, PeerStandby};
use crate::datapath::{Errno, PathEnd, Standby};
use crate::mirror::Mirror;
use crate::probes::{Outcome, Want};
use crate::qp::{end_of, PathState, Qp, Remote};
use crate::stall;
use crate::world::World;

/// First wait for the peer's offer; it doubles up to [`LAST_OFFER_US`].
const FIRST_OFFER_US: u64 = 50_000;
/// A peer that is connected but not yet in RTS.
const LAST_OFFER_US: u64 = 1_000_000;
/// How often an offer that comes again is acknowledged.
const ACK_US: u64 = 20_000;
/// How often the own readiness is said again to a peer that has not said its own.
const CONFIRM_US: u64 = 500_000;
/// Pace of probes before a path is armed.
const ARMING_PACE_US: u64 = 200_000;
/// Pace of probes of a path that failed one.
const DEAD_PACE_US: u64 = 1_000_000;
/// Pace of probes while a path is sought.
const SEEK_PACE_US: u64 = 50_000;
/// Failed probes in a row that disarm a path: one may be a lost packet on a busy link.
const FAILURES_TO_DISARM: u32 = 3;
/// `IBV_ACCESS_REMOTE_ATOMIC`.
const REMOTE_ATOMIC: u32 = 1 << 3;

impl Qp {
    /// The process at the other end is known: the standby is made and offered.
    pub fn handle_found(&mut self, world: &mut World, process: ProcessId, now: Micros) {
        if self.process.is_some() {
            return;
        }
        self.process = Some(process);
        self.heard_here = self.is_own_peer();
        self.prepare(world, now);
        self.offer_wait_us = FIRST_OFFER_US;
        self.send_offer(world, now);
    }

    /// The queue pair stays unprotected, for a reason of this end.
    pub fn refuse(&mut self, world: &mut World, reason: &str, now: Micros) {
        if self.refused.is_some() {
            return;
        }
        self.refused = Some(reason.to_owned());
        self.tell_unprotected(world, reason, now);
        self.withdraw(world, now);
    }

    /// Says why it is not protected at this moment, and keeps it for whoever asks.
    pub fn tell_unprotected(&mut self, world: &mut World, reason: &str, now: Micros) {
        self.reason = Some(reason.to_owned());
        world.tell_unprotected(self.facts.qpn, self.facts.device, reason, now);
    }

    /// Nothing will be migrated from now on; the peer is told.
    pub fn withdraw(&mut self, world: &mut World, now: Micros) {
        for path in self.path_ids() {
            self.disarm(world, path, now);
        }
        self.mask(world, false);
        if self.process.is_some() {
            self.heard_here = self.is_own_peer();
            self.send_offer(world, now);
        }
    }

    fn prepare(&mut self, world: &mut World, now: Micros) {
        if self.own.is_some() || self.refused.is_some() {
            return;
        }
        if let Err(reason) = world.data.standbys_of(self.facts.device) {
            return self.refuse(world, &reason.to_string(), now);
        }
        match world.data.prepare_standbys(self.life) {
            Ok(prepared) => {
                world.know_device(prepared.primary.gid, self.facts.device);
                for standby in &prepared.standbys {
                    world.know_device(standby.end.gid, standby.choice.device);
                }
                for reason in &prepared.lacking {
                    world.tell_lacking(self.facts.device, reason, now);
                }
                let device = self.facts.device;
                if let Some(state) = self.path_mut(PathId::PRIMARY) {
                    state.device = Some(device);
                }
                self.own = Some(prepared);
            }
            // A program may destroy a queue pair sooner than it can be protected.
            Err(reason) if reason.is_destroyed() => {}
            Err(reason) => self.refuse(world, &reason.to_string(), now),
        }
    }

    /// Says the own standbys, as they were said before or are now.
    pub fn send_offer(&mut self, world: &mut World, now: Micros) {
        let Some(process) = self.process else {
            return;
        };
        if self.own.is_none() && self.refused.is_none() {
            // It was destroyed before it had a standby; the peer hears of its end, not that there is no protection.
            self.offer_due = Micros::MAX;
            return;
        }
        if let (None, Some(own)) = (&self.pairing.said, &self.own) {
            self.pairing.said = Some(StandbyOffer {
                revision: 0,
                standbys: offered(&own.standbys),
                paths: Vec::new(),
                is_first_gone: world.removals.has(self.facts.device),
                primary_mtu: own.primary.mtu,
                primary_psn_base: own.primary.psn_base,
                // Depths as on the primary: each end makes its standby by the values of its own primary.
                access: if world.data.atomics_hold(self.life) { REMOTE_ATOMIC } else { 0 },
            });
        }
        let standby = self.pairing.said.clone().filter(|_| self.refused.is_none());
        let (own, peer) = (self.own_address(), self.peer_address());
        world.send(process, Frame::Offer(Offer { from: self.me, device: self.facts.device.0, own, peer, standby }));
        self.offer_due = now + Micros(self.offer_wait_us.max(FIRST_OFFER_US));
        self.offer_wait_us = (self.offer_wait_us * 2).clamp(FIRST_OFFER_US, LAST_OFFER_US);
    }

    /// The peer's offer. Its process was checked before.
    pub fn handle_offer(&mut self, world: &mut World, process: ProcessId, offer: &Offer, now: Micros) {
        self.handle_found(world, process, now);
        if self.process != Some(process) {
            if self.remote.is_some() {
                return;
            }
            // Nothing was heard of the one that the directory named: it was the wrong one, or it has ended.
            self.process = Some(process);
            self.offer_wait_us = FIRST_OFFER_US;
            self.send_offer(world, now);
        }
        let known = self.is_own_peer() || self.remote.is_some_and(|r| r.end == offer.from);
        if self.machine.is_some() && !known {
            // Another life of the peer's queue pair: this end's connection is the old one's.
            return;
        }
        let end = if self.is_own_peer() { Mirror::end_of(self.me) } else { offer.from };
        self.remote = Some(Remote { end, device: offer.device });
        // One that was overtaken on its way, over another network, is none.
        let revision = |offer: &Offer| offer.standby.as_ref().map(|standby| standby.revision);
        let newest = self.heard.as_ref().and_then(revision);
        let is_past = revision(offer).zip(newest).is_some_and(|(revision, newest)| revision < newest);
        let news = !is_past && self.heard.as_ref() != Some(offer);
        if news {
            self.heard = Some(offer.clone());
        }
        if offer.standby.as_ref().is_some_and(|standby| standby.is_first_gone && news) {
            // Where rails do not reach one another, an own standby on the first device is what could reach the other's new one.
            world.data.stand_in(self.facts.device);
        }
        match &offer.standby {
            Some(standby) if news => self.meet(world, standby, now),
            None if news => self.handle_peer_refuses(world, now),
            Some(_) | None => {}
        }
        if news || now >= self.ack_due {
            // What is said of the path in use arms and disarms nothing: it only shows that the offer was heard.
            self.ack_due = now + Micros(ACK_US);
            self.send_confirm(world, self.current(), now);
        }
    }

    fn handle_peer_refuses(&mut self, world: &mut World, now: Micros) {
        for path in self.path_ids() {
            self.disarm(world, path, now);
        }
        let settled = self.machine.as_ref().is_none_or(|m| m.epoch() == shift_proto::id::Epoch::FIRST);
        if settled {
            self.mask(world, false);
        }
        if self.refused.is_none() {
            let reason = "the peer does not protect it; its log says why";
            self.tell_unprotected(world, reason, now);
        }
    }

    /// Both ends offered: the standbys are paired and connected, and all paths are probed.
    fn meet(&mut self, world: &mut World, offer: &StandbyOffer, now: Micros) {
        let (Some(own), Some(remote)) = (self.own.clone(), self.remote) else {
            return;
        };
        if self.refused.is_some() {
            return;
        }
        if self.machine.is_some() {
            return self.hear_later(world, offer, now);
        }
        if offer.access & REMOTE_ATOMIC == 0 {
            world.data.forbid_atomics(self.life);
        }
        // Each end was told at RTR from which PSN the other sends; from which it sends itself, it may not know yet.
        let peer_primary =
            end_of(&PathOffer { address: self.peer_address(), mtu: offer.primary_mtu, psn_base: own.primary.psn_base });
        let own_primary = PathEnd { psn_base: offer.primary_psn_base, ..own.primary };
        let gids = (own_primary.gid, peer_primary.gid);
        let pairs = pair(gids, &own.standbys, &PeerStandby::of(offer), self.me > remote.end);
        self.add_standbys(world, &pairs, now);
        self.machine = Some(Machine::new(self.me, remote.end, world.config.deadlines));
        if let (Some(machine), Some(_)) = (&mut self.machine, self.facts.group) {
            machine.fix();
        }
        self.mirror = self.is_own_peer().then(|| Mirror::new(self.me, world.config.deadlines));
        if let Some(state) = self.path_mut(PathId::PRIMARY) {
            (state.ends, state.probe_due) = (Some((own_primary, peer_primary)), now);
        }
        self.choose(world);
        self.pairing.first = self.paths.len();
        self.path_ids().skip(1).for_each(|path| self.note_unarmed(world, path, now));
        self.tick_paths(world, now);
    }

    /// Makes the paths of the shim's own.
    fn add_standbys(&mut self, world: &mut World, pairs: &[(Standby, PeerStandby)], now: Micros) {
        self.paths.truncate(1);
        let slots: Vec<u8> = pairs.iter().map(|(own, _)| own.slot).collect();
        world.data.arrange(self.life, &slots);
        let lost = &self.lost;
        self.paths.extend(
            pairs.iter().map(|(own, peer)| PathState { connects_ahead: true, ..PathState::of(own, peer, lost, now) }),
        );
    }

    /// A path that answers for the first time is connected for the next epoch, so that a migration need not; not before, for of a dead one the kernel looks
    /// for the other end for a second. `false`: it cannot be used, or not yet.
    fn connect_ahead(&mut self, world: &mut World, path: PathId, now: Micros) -> bool {
        let is_awaited = self.path(path).filter(|state| state.connects_ahead && !state.is_given_up);
        let Some((slots, (own, peer))) = is_awaited.and_then(|state| Some((state.slots, state.ends?))) else {
            return true;
        };
        let current = self.current();
        let is_in_use = current != PathId::PRIMARY && self.path(current).is_some_and(|state| state.slots.0 == slots.0);
        let is_at_rest = self.machine.as_ref().is_some_and(|machine| machine.state().stage == Stage::Running);
        if is_in_use || !is_at_rest {
            return path == current;
        }
        let epoch = self.next_epoch();
        let psns = (own.psn_base.in_epoch(epoch), peer.psn_base.in_epoch(epoch));
        let connected = world.data.connect(self.life, path, epoch, &peer, psns.0, psns.1);
        if connected != Err(Errno::DESTROYED) {
            self.note_connected(world, path, connected, now);
        }
        connected.is_ok()
    }

    fn note_connected(&mut self, world: &mut World, path: PathId, connected: Result<(), Errno>, now: Micros) {
        if let Some(state) = self.path_mut(path) {
            state.connects_ahead = false;
            // Without ends it is never tried; its number stays its own, as it does at the peer.
            state.ends = state.ends.filter(|_| connected.is_ok());
        }
        if let (Err(error), true) = (connected, self.paths.iter().skip(1).all(|state| state.ends.is_none())) {
            self.refuse(world, &format!("its standby cannot be connected to the peer's ({error})"), now);
        }
    }

    /// Says everything again: a new connection to the peer stands. The offer comes first: it shows whose connection it is.
    pub fn resync(&mut self, world: &mut World, now: Micros) {
        self.send_offer(world, now);
        self.say_ready(world, now);
    }

    pub fn say_ready(&mut self, world: &mut World, now: Micros) {
        for path in self.path_ids() {
            if self.path(path).is_some_and(|s| s.own_ready) {
                self.send_confirm(world, path, now);
            }
        }
    }

    /// What a probe of one of its paths found.
    pub fn handle_outcome(&mut self, world: &mut World, outcome: &Outcome, now: Micros) {
        for path in self.path_ids() {
            if self.probe_key(path).is_none_or(|(key, _)| key != outcome.key) {
                continue;
            }
            if !outcome.was_tried {
                self.note_silent(world, path, outcome, now);
            } else if outcome.answered {
                self.note_alive(path, outcome.started, now);
                self.handle_answered(world, path, outcome.started, now);
            } else {
                self.handle_unanswered(world, path, now);
                self.note_silent(world, path, outcome, now);
            }
        }
    }

    fn handle_answered(&mut self, world: &mut World, path: PathId, started: Micros, now: Micros) {
        let (seeking, sought) = (self.seek, self.group.sought);
        let interval = Micros(u64::try_from(world.config.probe_interval.as_micros()).unwrap_or(u64::MAX));
        let interval = self.pace_of_return(world, path).map_or(interval, |pace| pace.min(interval));
        if path == PathId::PRIMARY && path != self.current() {
            self.plans.hold_down.note_answer(started);
        }
        let is_usable = self.connect_ahead(world, path, now);
        let Some(state) = self.path_mut(path) else {
            return;
        };
        let news = is_usable && !state.own_ready;
        (state.own_ready, state.failures, state.wanted) = (is_usable, 0, false);
        let is_heard_again = std::mem::take(&mut state.is_silent);
        state.answered = state.answered.max(Some(started));
        let is_wanted_anew = seeking.is_some() || sought.is_some_and(|since| started < since);
        state.probe_due = now + if is_wanted_anew { Micros(SEEK_PACE_US) } else { interval };
        if is_heard_again {
            let name = self.path_name(world, path);
            log::debug!("qp {:#x}: the path {} to {} answers", self.facts.qpn, name.device, name.peer_gid);
        }
        if news {
            self.send_confirm(world, path, now);
            self.arm(world, path, now);
        }
        if seeking.is_some_and(|since| started >= since) {
            self.hear_answer(world, path, now);
        }
    }

    fn handle_unanswered(&mut self, world: &mut World, path: PathId, now: Micros) {
        let seeking = self.seek.is_some();
        let current = self.current() == path;
        if path == PathId::PRIMARY {
            self.plans.hold_down.note_bad();
        }
        let Some(state) = self.path_mut(path) else {
            return;
        };
        state.failures = state.failures.saturating_add(1);
        let fails = state.failures >= FAILURES_TO_DISARM && !seeking && !current;
        let lost = fails && state.own_ready;
        let news = fails && !state.is_silent;
        state.is_silent |= fails;
        if lost {
            state.own_ready = false;
            self.send_confirm(world, path, now);
            self.disarm(world, path, now);
        }
        if lost || news {
            let name = self.path_name(world, path);
            let reason = format!("no answer on the path {} to {}; it is tried on", name.device, name.peer_gid);
            self.tell_no_target(world, &reason, now);
        }
    }

    /// A path is no target: without another one the queue pair is not protected.
    pub fn tell_no_target(&mut self, world: &mut World, reason: &str, now: Micros) {
        match self.next_path() {
            Some(other) => {
                let other = self.path_name(world, other).device;
                world.tell_instead(&format!("{reason}; {other} stands by"), now);
            }
            None => self.tell_unprotected(world, reason, now),
        }
    }

    /// Says whether that path carries data, and may be moved to.
    pub fn send_confirm(&mut self, world: &mut World, path: PathId, now: Micros) {
        let (Some(process), Some(remote)) = (self.process, self.remote) else {
            return;
        };
        // What is said of the path in use moves nobody.
        let of_group = || self.site_of(path).is_some_and(|site| site.of(&self.group.is_able) == Some(&true));
        let is_able = path == self.current() || self.facts.group.is_none() || of_group();
        let is_able = is_able && !self.is_path_closed(world, path);
        let (from, own_peer) = (self.me, self.is_own_peer());
        let Some(state) = self.path_mut(path) else {
            return;
        };
        state.confirm_due = now + Micros(CONFIRM_US);
        let armed = state.own_ready && is_able;
        if own_peer {
            state.peer_ready = armed;
            return;
        }
        world.send(process, Frame::ArmConfirm(ArmConfirm { from, to: remote.end, path, armed }));
    }

    /// The peer said whether a path carries its data.
    pub fn handle_confirm(&mut self, world: &mut World, confirm: &ArmConfirm, now: Micros) {
        if self.remote.is_none_or(|r| r.end != confirm.from) {
            return;
        }
        self.note_met(now);
        if !std::mem::replace(&mut self.heard_here, true) {
            // What was said before the peer knew this end was lost on it.
            self.say_ready(world, now);
        }
        let Some(state) = self.path_mut(confirm.path) else {
            return;
        };
        // Said again, and not only come again over another network.
        let repeated = state.peer_ready && confirm.armed && now.since(state.heard).0 >= CONFIRM_US / 2;
        let known = state.peer_ready && confirm.armed;
        (state.peer_ready, state.heard) = (confirm.armed, now);
        if !confirm.armed {
            self.disarm(world, confirm.path, now);
        } else if repeated {
            // Who says it again has not heard this end.
            if self.path(confirm.path).is_some_and(|s| s.own_ready) {
                self.send_confirm(world, confirm.path, now);
            }
        } else if !known {
            self.arm(world, confirm.path, now);
        }
    }

    /// Both ends said that the path carries their data.
    pub fn arm(&mut self, world: &mut World, path: PathId, now: Micros) {
        // The path that it is on counts as armed with any other; by itself it protects nothing.
        // A peer that gave up since it said that the path is good would not follow.
        let given_up = self.heard.as_ref().is_some_and(|offer| offer.standby.is_none());
        if self.refused.is_some() || given_up || path == self.current() || self.is_path_closed(world, path) {
            return;
        }
        let Some(state) = self.path_mut(path).filter(|s| s.own_ready && s.peer_ready && !s.armed) else {
            return;
        };
        state.armed = true;
        self.note_carries();
        self.feed_mirror(world, now, Input::PathArmed(path));
        self.feed(world, now, Input::PathArmed(path));
        self.protect(world, path, now);
    }

    /// Faults are masked, as soon as those of the queue pairs that receive with it can be.
    pub fn protect(&mut self, world: &mut World, path: PathId, now: Micros) {
        let first = !self.masked;
        self.mask(world, true);
        if !self.masked {
            return;
        }
        if !std::mem::replace(&mut self.was_protected, true) {
            world.audit.sums.add(|totals| totals.protected += 1);
        }
        let (from, to) = (self.path_name(world, self.current()), self.path_name(world, path));
        let again = if first { "" } else { " again" };
        let words = format!("{} -> {} with peer {}{again}", from.device, to.device, from.peer_gid);
        world.tell_protected(words, now);
    }

    /// The connection may not move there any more.
    pub fn disarm(&mut self, world: &mut World, path: PathId, now: Micros) {
        let Some(state) = self.path_mut(path).filter(|s| s.armed) else {
            return;
        };
        state.armed = false;
        self.note_unarmed(world, path, now);
        self.feed_mirror(world, now, Input::PathDisarmed(path));
        self.feed(world, now, Input::PathDisarmed(path));
        self.unmask_if_alone(world);
    }

    /// On its first path and with nothing to move to, a fault is the application's, at once.
    pub fn unmask_if_alone(&mut self, world: &World) {
        if self.machine.as_ref().is_some_and(|m| !m.is_armed()) && self.is_quiet() && self.current() == PathId::PRIMARY
        {
            self.mask(world, false);
        }
    }

    /// The connection left a path that is dead: it is to prove itself anew.
    pub fn left_path(&mut self, world: &mut World, path: PathId, now: Micros) {
        if let Some(state) = self.path_mut(path) {
            (state.own_ready, state.peer_ready) = (false, false);
            (state.wanted, state.probe_due) = (false, now + Micros(DEAD_PACE_US));
        }
        self.disarm(world, path, now);
    }

    /// Paths are sought from now on: every one is probed at once.
    pub fn start_seek(&mut self, world: &mut World, now: Micros) {
        (self.seek, self.answers_due) = (Some(now), None);
        for path in &mut self.paths {
            (path.wanted, path.probe_due) = (false, now);
        }
        self.tick_paths(world, now);
    }

    /// What was sought is found, or not needed any more.
    pub fn stop_seek(&mut self, world: &mut World) {
        (self.seek, self.answers_due) = (None, None);
        let keys: Vec<_> = self.path_ids().filter_map(|path| self.probe_key(path)).map(|(key, _)| key).collect();
        world.probes.slow_down(DEAD_PACE_US, |key| keys.contains(key));
    }

    /// Somebody who receives with it is in fault: whether its own paths answer is looked at once, too.
    pub fn probe_for_group(&mut self, world: &mut World, before: Option<Micros>, now: Micros) {
        if self.seek.is_some() || before == self.group.sought || self.peer_gone {
            return;
        }
        if self.group.sought.is_none() {
            return self.stop_seek(world);
        }
        for path in &mut self.paths {
            (path.wanted, path.probe_due) = (false, now);
        }
        self.tick_paths(world, now);
    }

    /// One path is probed at once.
    pub fn probe_now(&mut self, world: &mut World, path: PathId, now: Micros) {
        debug_assert!(!self.peer_gone, "there is nobody to answer");
        if let Some(state) = self.path_mut(path) {
            (state.wanted, state.probe_due) = (false, now);
        }
        self.tick_paths(world, now);
    }

    /// Wants the probes and says the confirmations that are due.
    pub fn tick_paths(&mut self, world: &mut World, now: Micros) {
        if self.process.is_some() && now >= self.offer_due && !self.heard_here {
            self.send_offer(world, now);
        }
        self.tick_answers(world, now);
        for path in self.path_ids() {
            let seeking = self.seek.is_some() || self.group.sought.is_some();
            let suspected = path == self.current() && self.is_suspected();
            let key = self.probe_key(path);
            let Some(state) = self.path_mut(path).filter(|state| !state.is_given_up) else {
                continue;
            };
            if state.device.is_some_and(|device| world.removals.is_let_go(device)) {
                state.probe_due = Micros::MAX;
            }
            if let Some((key, device)) = key.filter(|_| !state.wanted && now >= state.probe_due) {
                state.wanted = true;
                let pace = match (seeking || suspected, state.own_ready) {
                    (true, _) => SEEK_PACE_US,
                    (false, true) => DEAD_PACE_US,
                    (false, false) => ARMING_PACE_US,
                };
                let patience_us = if suspected { stall::patience(world.probes.round_trip(&key)).0 } else { 0 };
                let limit_us = world.config.deadlines.probe.0.max(patience_us);
                world.probes.want(key, device, Want { from: now, pace_us: pace, limit_us });
            }
            if state.own_ready && !state.peer_ready && now >= state.confirm_due {
                self.send_confirm(world, path, now);
            }
        }
    }

    /// When [`Qp::tick_paths`] is due.
    pub fn paths_due(&self) -> Option<Micros> {
        let offer = (self.process.is_some() && !self.heard_here).then_some(self.offer_due);
        let is_due = |s: &&PathState| s.ends.is_some() && !s.wanted && !s.is_given_up;
        let probes = self.paths.iter().filter(is_due).map(|s| s.probe_due);
        let confirms = self.paths.iter().filter(|s| s.own_ready && !s.peer_ready).map(|s| s.confirm_due);
        offer.into_iter().chain(probes).chain(confirms).chain(self.answers_due).filter(|due| *due != Micros::MAX).min()
    }
}
