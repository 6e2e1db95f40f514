//! The stall trigger: a path that says nothing is found by a probe of the shim's own.
//!
//! Some faults never give a completion: soft-RoCE retries for ever at retry_cnt 7, and a fenced atomic whose acknowledgement was lost
//! never completes. So where work is outstanding and nothing progresses for the stall deadline, the current path is probed, on the shim's own
//! queue pair: a receiver that answers RNR for minutes is no dead path. Dead is a path whose probes fail **and** whose peer's process
//! was heard meanwhile: if nothing of that host answers it is the host, and moving would not help.

use shift_proto::frame::Frame;
use shift_proto::id::{Micros, PathId, WrSeq};
use shift_proto::migrate::{Attempt, Cause, Input, Stage};

use crate::qp::Qp;
use crate::world::World;

/// Probes in a row that have to fail: one may be lost on a busy link.
const FAILURES: u32 = 2;
/// Longest time to the next probe of a queue that stands still on a healthy path. With the two probes after it, and theirs to the standby, a path that
/// falls silent is left within 3 s.
const SLOWEST_US: u64 = 800_000;
/// A probe of a path under suspicion has at least that long: a slow path is no dead one. The shim's probe gives up after about 270 ms without
/// any answer of its NIC, so a path that drops everything is found sooner.
pub(crate) const LEAST_PROBE_US: u64 = 500_000;

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
    failures: u32,
}

impl Qp {
    /// Looks whether the send queue moved; a probe is wanted if it stands still for too long.
    pub fn watch_progress(&mut self, world: &mut World, now: Micros) {
        let Some(oldest) = self.oldest_waiting(world) else {
            self.stall = None;
            return;
        };
        let pace_us = world.config.deadlines.stall.0;
        let stall = match &mut self.stall {
            Some(stall) if stall.oldest == oldest => stall,
            moved => moved.insert(Stall { oldest, since: now, answered: 0, suspected: None, failures: 0 }),
        };
        let wait_us = pace_us.saturating_mul(1 << stall.answered.min(10)).min(SLOWEST_US.max(pace_us));
        if stall.suspected.is_none() && now.since(stall.since).0 >= wait_us {
            (stall.suspected, stall.failures) = (Some(now), 0);
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

    /// A probe of the path failed. After a few the path is given up, if the peer's process is there.
    pub fn note_silent(&mut self, world: &mut World, path: PathId, started: Micros, now: Micros) {
        if path != self.current() {
            return;
        }
        let Some(stall) = self.stall.as_mut() else {
            return;
        };
        let Some(since) = stall.suspected.filter(|since| started >= *since) else {
            return;
        };
        stall.failures = stall.failures.saturating_add(1);
        let peer_is_there = self.process.is_some_and(|p| world.peers.is_heard_since(&world.links, p, since));
        if stall.failures >= FAILURES && peer_is_there {
            self.stall = None;
            self.cause = Some(Cause::Stalled);
            self.update_hold(world, now);
            self.feed(world, now, Input::Fault { cause: Cause::Stalled, fatal: false });
        }
    }

    /// This process slept: nobody stood still.
    pub fn forgive_stall(&mut self) {
        self.stall = None;
    }
}
