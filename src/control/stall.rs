//! The stall trigger: a path that says nothing is found by a probe of the shim's own.
//!
//! Some faults never give a completion: soft-RoCE retries for ever at retry_cnt 7, and a fenced atomic whose acknowledgement was lost
//! never completes. So where work is outstanding and nothing progresses for the stall deadline, the current path is probed, on the shim's own
//! queue pair: a receiver that answers RNR for minutes is no dead path. Dead is a path whose probe fails **and** whose peer's process
//! was heard while it was in the air, with time left for an answer: if nothing of that host answers it is the host, and moving would not help.
//!
//! How long a probe has follows from how long answers on this path took so far ([`patience`]): the NIC sends it again every 67 ms, so that on a
//! path that loses some packets enough of them can be answered in time, and a slow path is no dead one.

use shift_proto::frame::Frame;
use shift_proto::id::{Micros, PathId, WrSeq};
use shift_proto::migrate::{Attempt, Cause, Input, Stage};

use crate::probes::Outcome;
use crate::qp::Qp;
use crate::round_trip::RoundTrip;
use crate::world::World;

/// What it takes to condemn a path: one probe that nobody answered, or two that could not even be connected anew.
const FAILURES: u32 = 2;
/// Longest time to the next probe of a queue that stands still on a healthy path.
const SLOWEST_US: u64 = 200_000;
/// A probe has so much more time than an answer on its path may take: the NIC sends it five times, and one of them is to come through where a
/// tenth of them is lost.
const TRIES_US: u64 = 300_000;
/// More than that no path is given: the NIC of a probe itself gives up after half of it.
const MOST_PROBE_US: u64 = 1_000_000;
/// So long before a probe failed the peer's process was heard: it slept, or its host, and had time to answer since.
const LEAST_ALIVE_US: u64 = 200_000;

/// How long an answer is waited for on a path that stands still.
pub(crate) fn patience(round_trip: RoundTrip) -> Micros {
    Micros(round_trip.bound().0.saturating_add(TRIES_US).min(MOST_PROBE_US))
}

/// A send queue with work outstanding.
#[derive(Debug)]
pub(crate) struct Stall {
    /// The oldest request.
    oldest: WrSeq,
    /// It was first seen then, or the path last proved itself then.
    since: Micros,
    /// Probes that were answered meanwhile: the next one comes later.
    answered: u32,
    /// The path is being probed since then.
    suspected: Option<Micros>,
    /// When the peer's process was first seen to have said something since.
    alive: Option<Micros>,
    failures: u32,
}

impl Qp {
    /// Looks whether the send queue moved; a probe is wanted if it stands still for too long.
    pub fn watch_progress(&mut self, world: &mut World, now: Micros) {
        let Some(oldest) = self.oldest_waiting(world) else {
            self.stall = None;
            return;
        };
        // On a slow path a request takes long without anything being wrong.
        let bound = self.probe_key(self.current()).map_or(Micros(0), |(key, _)| world.probes.round_trip(&key).bound());
        let pace_us = world.config.deadlines.stall.0.max(bound.0.min(SLOWEST_US));
        let heard = |since| self.process.is_some_and(|p| world.peers.is_heard_since(&world.links, p, since));
        let is_heard = self.stall.as_ref().and_then(|stall| stall.suspected).is_some_and(heard);
        let stall = match &mut self.stall {
            Some(stall) if stall.oldest == oldest => stall,
            moved => moved.insert(Stall { oldest, since: now, answered: 0, suspected: None, alive: None, failures: 0 }),
        };
        if is_heard && stall.suspected.is_some() {
            stall.alive.get_or_insert(now);
        }
        let wait_us = pace_us.saturating_mul(1 << stall.answered.min(10)).min(SLOWEST_US.max(pace_us));
        if stall.suspected.is_none() && now.since(stall.since).0 >= wait_us {
            (stall.suspected, stall.alive, stall.failures) = (Some(now), None, 0);
            self.probe_now(world, self.current(), now);
            // Its next word must not have to wait for the heartbeat, whose interval is the operator's.
            if let Some(process) = self.process.filter(|_| !self.is_own_peer()) {
                world.send(process, Frame::Ping { stamp: now.0 });
            }
        }
    }

    /// The oldest request, if it is the path's turn to do something about it.
    fn oldest_waiting(&self, world: &World) -> Option<WrSeq> {
        let state = self.machine.as_ref()?.state();
        let settled = matches!((state.stage, state.attempt), (Stage::Running | Stage::Replaying, Attempt::Idle));
        if !self.masked || self.peer_gone || self.seek.is_some() || !settled {
            return None;
        }
        let oldest = world.data.retired_below(self.life);
        (oldest < world.data.next_seq(self.life)).then_some(oldest)
    }

    /// The current path is being probed because nothing moves.
    pub fn is_suspected(&self) -> bool {
        self.stall.as_ref().is_some_and(|stall| stall.suspected.is_some())
    }

    /// A probe that was posted at `started` was answered.
    pub fn note_alive(&mut self, path: PathId, started: Micros, now: Micros) {
        if path != self.current() {
            return;
        }
        if let Some(stall) = self.stall.as_mut().filter(|s| s.suspected.is_some_and(|since| started >= since)) {
            (stall.suspected, stall.since) = (None, now);
            stall.answered = stall.answered.saturating_add(1);
        }
    }

    /// A probe of the path failed. The path is given up, if the peer's process is there.
    pub fn note_silent(&mut self, world: &mut World, path: PathId, outcome: &Outcome, now: Micros) {
        if path != self.current() {
            return;
        }
        let Some(stall) = self.stall.as_mut() else {
            return;
        };
        if stall.suspected.is_none_or(|since| outcome.started < since) {
            return;
        }
        stall.failures = stall.failures.saturating_add(if outcome.was_tried { FAILURES } else { 1 });
        let had_time = |alive: Micros| outcome.ended.since(alive).0 >= LEAST_ALIVE_US;
        let peer_is_there = stall.alive.is_some_and(had_time) || self.process == Some(world.me);
        if stall.failures >= FAILURES && peer_is_there {
            self.stall = None;
            self.cause = Some(Cause::Stalled);
            self.update_hold(world, now);
            self.feed(world, now, Input::Fault { cause: Cause::Stalled, fatal: false });
        }
    }

    /// This process had no processor for a while: an answer may be here that no part of it has seen, so what was silent has its time anew.
    pub fn doubt_silence(&mut self, now: Micros) {
        if let Some(stall) = self.stall.as_mut().filter(|stall| stall.alive.is_some()) {
            stall.alive = Some(now);
        }
    }

    /// This process slept: nobody stood still.
    pub fn forgive_stall(&mut self) {
        self.stall = None;
    }
}
