//! A machine on a bench: its clock is turned by hand and its effects are looked at.

use shift_proto::id::{EndpointId, Epoch, Micros, PathId, ProcessId, Tuple};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::migrate::{
    Attempt, Cause, Deadlines, Effect, Handshake, Input, Machine, Phase, Stage, StateName, Surfaced,
};

pub const ME: EndpointId = EndpointId { process: ProcessId(2), life: 1, side: 0 };
pub const BIGGER: EndpointId = EndpointId { process: ProcessId(3), life: 1, side: 0 };
pub const SMALLER: EndpointId = EndpointId { process: ProcessId(1), life: 1, side: 0 };

pub const FATAL: Input = Input::Fault { cause: Cause::RetryExceeded, fatal: true };
pub const SUSPECT: Input = Input::Fault { cause: Cause::Stalled, fatal: false };

#[derive(Clone)]
pub struct Bench {
    pub machine: Machine,
    pub now: Micros,
    pub peer: EndpointId,
}

impl Bench {
    pub fn new(peer: EndpointId) -> Self {
        let mut bench = Self { machine: Machine::new(ME, peer, Deadlines::default()), now: Micros(1_000_000), peer };
        bench.give(Input::PathArmed(PathId(0)));
        bench.give(Input::PathArmed(PathId(1)));
        bench
    }

    /// Effects without the time line.
    pub fn give(&mut self, input: Input) -> Vec<Effect> {
        self.give_all(input).into_iter().filter(|effect| !matches!(effect, Effect::Phase(_))).collect()
    }

    pub fn give_all(&mut self, input: Input) -> Vec<Effect> {
        self.machine.handle(self.now, input);
        std::iter::from_fn(|| self.machine.poll_effect()).collect()
    }

    pub fn hear(&mut self, message: Handshake) -> Vec<Effect> {
        self.give(Input::Frame(message))
    }

    /// Turns the clock to the next timer and ticks, until that time.
    pub fn wait(&mut self, span: Micros) -> Vec<Effect> {
        let until = self.now + span;
        let mut effects = Vec::new();
        while let Some(due) = self.machine.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            effects.extend(self.give(Input::Tick));
            assert!(self.machine.deadline().is_none_or(|next| next > self.now), "it does not get on");
        }
        self.now = until;
        effects
    }

    pub fn stage(&self) -> Stage {
        self.machine.state().stage
    }

    pub fn attempt(&self) -> Attempt {
        self.machine.state().attempt
    }

    pub fn theirs(&self, epoch: u32, attempt: u32) -> Tuple {
        Tuple { epoch: Epoch(epoch), owner: self.peer, attempt, target: PathId(1) }
    }

    pub fn claim(&self, epoch: u32, attempt: u32) -> Handshake {
        Handshake::Claim { tuple: self.theirs(epoch, attempt), cause: Cause::PortDown }
    }

    pub fn commit(&self, epoch: u32, attempt: u32) -> Handshake {
        Handshake::Commit { tuple: self.theirs(epoch, attempt) }
    }

    pub fn tuple(&self) -> Tuple {
        self.machine.tuple().unwrap()
    }

    pub fn peer_report(&self, fenced: bool) -> Handshake {
        Handshake::Report { tuple: self.tuple(), fenced, reports: reports() }
    }

    pub fn fenced(&mut self, complete: bool) -> Vec<Effect> {
        self.give(Input::Fenced { reports: reports(), complete })
    }

    /// Claims the other path and gives the tuple.
    pub fn reach_claiming(&mut self) -> Tuple {
        self.try_claim().expect("a claim")
    }

    fn try_claim(&mut self) -> Option<Tuple> {
        self.give(SUSPECT);
        let other = PathId(1 - self.machine.path().0);
        let effects = self.give(Input::PathAnswered(other));
        effects.iter().find_map(|effect| match effect {
            Effect::Send(Handshake::Claim { tuple, .. }) => Some(*tuple),
            _ => None,
        })
    }

    pub fn reach_accepted(&mut self) -> Tuple {
        let claim = self.claim(self.machine.epoch().0 + 1, 1);
        self.hear(claim.clone());
        self.give(Input::Excluded);
        assert_eq!(self.attempt(), Attempt::Accepted);
        claim.tuple().unwrap()
    }

    /// From Running to that stage of a migration that the peer owns.
    pub fn reach_stage(&mut self, stage: Stage) {
        let commit = self.commit(self.machine.epoch().0 + 1, 1);
        match stage {
            Stage::Running => {
                self.reach_stage(Stage::Replaying);
                self.give(Input::Retired);
            }
            Stage::Fencing => {
                self.hear(commit);
                self.give(Input::Excluded);
            }
            Stage::Fenced => {
                self.reach_stage(Stage::Fencing);
                self.fenced(true);
            }
            Stage::Settling => {
                self.reach_stage(Stage::Fencing);
                self.fenced(false);
                let report = self.peer_report(true);
                self.hear(report);
            }
            Stage::Reposting => {
                self.reach_stage(Stage::Fenced);
                let report = self.peer_report(true);
                self.hear(report);
            }
            Stage::Ready => {
                self.reach_stage(Stage::Reposting);
                self.give(Input::Reposted);
            }
            Stage::Replaying => {
                self.reach_stage(Stage::Ready);
                let ready = Handshake::Ready { tuple: self.tuple() };
                self.hear(ready);
            }
            Stage::Dead => {
                self.reach_stage(Stage::Ready);
                self.hear(Handshake::Dead { epoch: Epoch(1) });
            }
            Stage::Gone => {
                self.give(Input::Destroyed);
            }
        }
        assert_eq!(self.stage(), stage);
    }

    /// Puts the attempt of a planned move beside Running. `false`: there is none.
    pub fn reach_planned(&mut self, attempt: Attempt) -> bool {
        let claim = Handshake::Claim { tuple: self.theirs(1, 1), cause: Cause::Planned };
        match attempt {
            Attempt::Idle | Attempt::Seeking | Attempt::Draining => return false,
            Attempt::Claiming => drop(self.claim_by_plan()),
            Attempt::Committing => return false,
            Attempt::Accepting => drop(self.hear(claim)),
            Attempt::Holding | Attempt::Accepted => {
                self.hear(claim);
                self.give(Input::Excluded);
                if attempt == Attempt::Accepted {
                    self.give(Input::Drained);
                }
            }
        }
        self.attempt() == attempt
    }

    /// The same of a planned move of the group.
    pub fn reach_mustered(&mut self, attempt: Attempt) -> bool {
        self.hold();
        match attempt {
            Attempt::Draining => {}
            Attempt::Claiming => {
                self.give(Input::Drained);
                self.give(Input::Depart);
            }
            Attempt::Holding | Attempt::Accepted => {
                if attempt == Attempt::Accepted {
                    self.give(Input::Drained);
                }
                let tuple = self.theirs(1, 1);
                self.hear(Handshake::Claim { tuple, cause: Cause::Muster });
            }
            Attempt::Idle | Attempt::Seeking | Attempt::Committing | Attempt::Accepting => return false,
        }
        self.attempt() == attempt
    }

    /// Holds for its group, with nobody posting.
    pub fn hold(&mut self) {
        self.give(Input::Muster(PathId(1)));
        self.give(Input::Excluded);
    }

    /// Drains and claims the other path by plan.
    pub fn claim_by_plan(&mut self) -> Tuple {
        self.give(Input::Move(PathId(1)));
        self.give(Input::Excluded);
        let effects = self.give(Input::Drained);
        match sent(&effects)[..] {
            [Handshake::Claim { tuple, cause: Cause::Planned }] => tuple,
            _ => panic!("{effects:?}"),
        }
    }

    /// Puts that attempt beside a live stage. `false`: the two do not go together.
    pub fn reach_attempt(&mut self, attempt: Attempt) -> bool {
        let next = self.machine.epoch().0 + 1;
        match attempt {
            Attempt::Idle => {}
            Attempt::Seeking => drop(self.give(SUSPECT)),
            Attempt::Draining => {
                let other = PathId(1 - self.machine.path().0);
                self.give(Input::Move(other));
            }
            Attempt::Claiming => drop(self.try_claim()),
            Attempt::Committing => {
                if let Some(tuple) = self.try_claim() {
                    self.hear(Handshake::Accept { tuple });
                }
            }
            Attempt::Holding => {
                self.give(Input::Hold(true));
                let claim = self.claim(next, 1);
                self.hear(claim);
            }
            Attempt::Accepting | Attempt::Accepted => {
                let claim = self.claim(next, 1);
                self.hear(claim);
                if attempt == Attempt::Accepted {
                    self.give(Input::Excluded);
                }
            }
        }
        self.attempt() == attempt
    }
}

pub fn reports() -> Vec<IncarnationReport> {
    vec![IncarnationReport { epoch: Epoch(0), path: PathId(0), proof: Proof::Count, receives: 4, fenced: true }]
}

/// The messages among the effects.
pub fn sent(effects: &[Effect]) -> Vec<Handshake> {
    let message = |effect: &Effect| match effect {
        Effect::Send(message) => Some(message.clone()),
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

pub fn surfaced(effects: &[Effect]) -> Option<Surfaced> {
    effects.iter().find_map(|effect| match effect {
        Effect::Surface { why } => Some(*why),
        _ => None,
    })
}

pub fn phases(effects: &[Effect]) -> Vec<Phase> {
    let phase = |effect: &Effect| match effect {
        Effect::Phase(phase) => Some(*phase),
        _ => None,
    };
    effects.iter().filter_map(phase).collect()
}

pub fn running() -> StateName {
    StateName { stage: Stage::Running, attempt: Attempt::Idle }
}
