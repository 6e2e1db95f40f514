//! What has to be so when a run is over.

use shift_proto::id::Epoch;
use shift_proto::migrate::{Attempt, Stage};

use super::World;

impl World {
    pub(super) fn judge_the_end(&mut self) {
        let states = [self.ends[0].machine.state(), self.ends[1].machine.state()];
        let picture = || format!("{} / {}", states[0], states[1]);
        if self.hands.dead.contains(&true) {
            return self.judge_survivor();
        }
        for side in 0..2 {
            assert!(!self.ends[side].seek, "still seeking at the end: {}", picture());
        }
        let quiet = |side: usize| self.ends[side].application_error && !self.ends[side].surfaced;
        let idle = |side: usize| states[side].attempt == Attempt::Idle;
        match (states[0].stage, states[1].stage) {
            (Stage::Running, Stage::Running) => {
                let machines = [&self.ends[0].machine, &self.ends[1].machine];
                assert!(idle(0) && idle(1), "an attempt never ended: {}", picture());
                assert_eq!(machines[0].tuple(), machines[1].tuple(), "two ends in two epochs: {}", picture());
                assert!(!self.ends[0].in_error && !self.ends[1].in_error, "an error is masked for ever: {}", picture());
                assert!(!self.ends[0].stopped && !self.ends[1].stopped, "posts are held for ever: {}", picture());
                let epoch = machines[0].epoch();
                let confirmed = epoch == Epoch(0) || self.ends.iter().all(|end| end.confirmed == Some(epoch));
                assert!(confirmed, "a confirmation is missing: {}", picture());
                assert!(
                    machines.iter().all(|machine| machine.deadline().is_none()),
                    "a timer runs for ever: {}",
                    picture()
                );
                self.mark("both running");
            }
            (Stage::Dead | Stage::Gone, Stage::Dead | Stage::Gone) => self.mark("both ended"),
            (Stage::Running, Stage::Gone) if idle(0) && !self.ends[0].in_error => self.mark("one gone, one running"),
            (Stage::Gone, Stage::Running) if idle(1) && !self.ends[1].in_error => self.mark("one gone, one running"),
            (Stage::Running, Stage::Dead) if quiet(1) && !self.ends[0].in_error => {
                self.mark("one errored, one running")
            }
            (Stage::Dead, Stage::Running) if quiet(0) && !self.ends[1].in_error => {
                self.mark("one errored, one running")
            }
            _ => panic!("somebody waits for ever: {}", picture()),
        }
    }

    /// A peer that died leaves nothing waiting: nothing masked, nothing held.
    fn judge_survivor(&mut self) {
        let Some(side) = self.hands.dead.iter().position(|dead| !dead) else {
            return self.mark("both died");
        };
        let end = &self.ends[side];
        let state = end.machine.state();
        assert!(!end.seek, "still seeking a path to the dead: {state}");
        match state.stage {
            Stage::Dead | Stage::Gone => self.mark("survivor ended"),
            Stage::Running => {
                assert!(state.attempt == Attempt::Idle, "an attempt never ended: {state}");
                assert!(!end.in_error && !end.stopped, "an error is masked, or posts are held, for ever: {state}");
                self.mark("survivor runs");
            }
            _ => panic!("it waits for the dead for ever: {state}"),
        }
    }
}
