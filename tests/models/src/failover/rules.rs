//! The world as a model: what holds in each of its states, what has to be seen, where a run may end, and how it is drawn.

use shift_proto::id::Epoch;
use shift_proto::ledger::Op;
use shift_proto::migrate::{Attempt, Handshake, Stage};

use super::world::{Step, World};
use super::{lockstep, Setting};
use crate::explorer::draw::Drawn;
use crate::explorer::{Invariant, Model, Sometimes};

impl World {
    /// Both ends run, nothing is under way, everything is complete.
    #[must_use]
    pub fn is_at_rest(&self, setting: &Setting) -> bool {
        let is_calm = |side: usize| {
            let end = &self.ends[side];
            let state = end.machine.state();
            (state.stage, state.attempt) == (Stage::Running, Attempt::Idle)
                && !end.in_error
                && !end.is_stopped
                && end.retired == setting.wants[side].len()
                && end.polled == self.received(side)
        };
        is_calm(0) && is_calm(1) && self.ends[0].machine.tuple() == self.ends[1].machine.tuple()
    }

    fn has_ended(&self) -> bool {
        let stages = [0, 1].map(|side| self.ends[side].machine.state().stage);
        let is_over = |side: usize| matches!(stages[side], Stage::Dead | Stage::Gone);
        let is_left = |side: usize| {
            stages[side] == Stage::Running && !self.ends[side].in_error && stages[1 - side] == Stage::Gone
        };
        (is_over(0) && is_over(1)) || is_left(0) || is_left(1)
    }
}

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn initial(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Step>) {
        world.steps(self, actions);
    }

    fn next(&self, world: &World, action: &Step) -> Option<World> {
        let mut next = world.clone();
        next.take(self, action);
        Some(next)
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![
            Invariant { name: "the safety rule", broken: |_, world| world.wrong.clone() },
            Invariant {
                name: "every message that was completed at its sender completes at its receiver",
                broken: |setting, world| {
                    let expected = |side: usize| {
                        setting.wants[1 - side].iter().filter(|want| want.op.consumes_receive()).count() as u64
                    };
                    let lost = (0..2).find(|side| {
                        world.is_at_rest(setting)
                            && world.ends[0].machine.epoch() > Epoch::FIRST
                            && world.ends[*side].polled != expected(*side)
                    })?;
                    Some(format!("5: end {lost} took {} receives of {}", world.ends[lost].polled, expected(lost)))
                },
            },
        ]
    }

    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        if self.deaf.contains(&true) {
            return vec![Sometimes {
                name: "claims were made, nobody moved, and everything is complete",
                seen: |setting, world| {
                    let has_claimed = world.ends.iter().any(|end| end.claims > 0);
                    world.is_at_rest(setting) && has_claimed && world.ends[0].machine.epoch() == Epoch::FIRST
                },
            }];
        }
        let mut sights: Vec<Sometimes<Self>> = Vec::new();
        if self.faults + self.suspects + self.moves > 0 {
            sights.push(Sometimes {
                name: "both ends run on another path and everything is complete",
                seen: |setting, world| world.is_at_rest(setting) && world.ends[0].machine.epoch() > Epoch::FIRST,
            });
        }
        if self.faults + self.suspects > 1 && self.claims > 1 {
            sights.push(Sometimes {
                name: "they moved twice",
                seen: |setting, world| world.is_at_rest(setting) && world.ends[0].machine.epoch() > Epoch(1),
            });
        }
        let has_atomic = self.wants[0].iter().any(|want| matches!(want.op, Op::FetchAdd | Op::CompareSwap));
        if self.faults > 0 && has_atomic {
            sights.push(Sometimes { name: "an error was surfaced", seen: |_, world| world.ends[0].is_surfaced });
        }
        if self.posters > 0 {
            sights.push(Sometimes {
                name: "an end waits for a poster to leave before it fences",
                seen: |_, world| {
                    world.ends.iter().any(|end| end.is_asked && end.machine.state().stage == Stage::Fencing)
                },
            });
        }
        if self.cuts > 0 {
            sights.push(Sometimes {
                name: "what was lost in mid-migration is said again, and everything is complete",
                seen: |setting, world| {
                    world.is_at_rest(setting)
                        && world.ends[0].machine.epoch() > Epoch::FIRST
                        && world.budget.has_cut()
                        && world.deaf == [false; 2]
                },
            });
        }
        if self.failing_fences > 0 {
            sights.push(Sometimes {
                name: "one end could not fence and the packet lifetime was waited for",
                seen: |_, world| world.ends.iter().any(|end| end.machine.state().stage == Stage::Settling),
            });
        }
        sights
    }

    fn is_end(&self, world: &World) -> bool {
        let is_bound = world.ends.iter().any(|end| end.is_seeking && end.claims >= self.claims);
        world.is_at_rest(self) || world.has_ended() || is_bound || world.wrong.is_some()
    }

    fn lanes(&self) -> Vec<String> {
        vec!["end A".to_string(), "end B".to_string()]
    }

    fn draw(&self, before: &World, action: &Step, after: &World) -> Vec<Drawn> {
        let mut drawn = vec![self.draw_step(before, action)];
        for side in 0..2 {
            let states = [before, after].map(|world| world.ends[side].machine.state().to_string());
            if states[0] != states[1] {
                drawn.push(Drawn::At(side, format!("  now {}", states[1])));
            }
        }
        let objects = before.objects.iter().zip(&after.objects).filter(|_| self.refines);
        let words = objects.filter_map(|(before, after)| lockstep::words(before, after));
        drawn.extend(words.map(|words| Drawn::Line(format!("that is {words}"))));
        if let (Some(wrong), true) = (&after.wrong, self.refines) {
            drawn.push(Drawn::Line(wrong.clone()));
        }
        drawn
    }
}

impl Setting {
    fn draw_step(&self, before: &World, action: &Step) -> Drawn {
        let of_line = |number: usize, words: &str| {
            let line = &before.lines[number];
            format!("{words} {}, {}", line.epoch, line.path)
        };
        let request = |number: usize| {
            let line = &before.lines[number];
            let wants = &self.wants[line.sender];
            line.next(wants).map_or(String::new(), |next| format!("{:?} #{}", wants[next.want].op, next.want))
        };
        match action {
            Step::Deliver(letter) => {
                let letter = &before.letters[*letter];
                Drawn::Across(1 - letter.to, letter.to, words(&letter.message))
            }
            Step::Execute(line) => Drawn::At(
                1 - before.lines[*line].sender,
                of_line(*line, &format!("its NIC executes a packet of {} of", request(*line))),
            ),
            Step::Land(line) => Drawn::At(before.lines[*line].sender, of_line(*line, "its NIC has a result of")),
            Step::Complete(line) => Drawn::At(before.lines[*line].sender, of_line(*line, "sees a completion of")),
            Step::LoseCompletion(line) => {
                Drawn::At(1 - before.lines[*line].sender, of_line(*line, "the completion of a receive vanishes,"))
            }
            Step::Poll(side) => Drawn::At(*side, "the application takes a receive".to_string()),
            Step::Look(want) => Drawn::At(1, format!("the consumer takes what #{want} wrote")),
            Step::Post(side) => Drawn::At(*side, format!("posts #{}", before.ends[*side].posted)),
            Step::Fail(side) => Drawn::At(*side, "retries exceeded: its queue pair is in ERR".to_string()),
            Step::Suspect(side) => Drawn::At(*side, "its port is down".to_string()),
            Step::Answer(side, path) => Drawn::At(*side, format!("{path} answers a probe")),
            Step::Fence(side) => Drawn::At(*side, "its fence is done".to_string()),
            Step::FenceFails(side) => Drawn::At(*side, "its fence fails".to_string()),
            Step::Move(side, path) => Drawn::At(*side, format!("is to move to {path}")),
            Step::Drained(side) => Drawn::At(*side, "its sends are complete".to_string()),
            Step::Pass(side, timer) => Drawn::At(*side, format!("a deadline passes: {timer:?}")),
            Step::PassHold(side) => Drawn::At(*side, "the hold is over".to_string()),
            Step::Resume(side) => Drawn::At(*side, "the claim deadline passes, and it goes back".to_string()),
            Step::Enter(side) => Drawn::At(*side, "a poster goes inside".to_string()),
            Step::Leave(side) => Drawn::At(*side, "the poster leaves".to_string()),
            Step::Cut(side) => Drawn::At(*side, "nothing reaches it any more".to_string()),
            Step::Heal(side) => Drawn::At(*side, "it hears again".to_string()),
            Step::Destroy(side) => Drawn::At(*side, "the application destroys its queue pair".to_string()),
        }
    }
}

fn words(message: &Handshake) -> String {
    let tuple = message.tuple().map_or(String::new(), |t| {
        format!(" ({}, {}, {})", t.epoch, t.target, ["A", "B"][usize::from(t.owner.process.0 != 10)])
    });
    let name = match message {
        Handshake::Claim { .. } => "CLAIM",
        Handshake::Accept { .. } => "ACCEPT",
        Handshake::Refuse { .. } => "REFUSE",
        Handshake::Wait { .. } => "WAIT",
        Handshake::Commit { .. } => "COMMIT",
        Handshake::Cancel { .. } => "CANCEL",
        Handshake::Report { reports, .. } => {
            return format!("REPORT{tuple} {:?}", reports.iter().map(|r| (r.epoch.0, r.receives)).collect::<Vec<_>>())
        }
        Handshake::Ready { .. } => "READY",
        Handshake::Confirm { seen: false, .. } => "CONFIRM",
        Handshake::Confirm { seen: true, .. } => "CONFIRM seen",
        Handshake::Dead { .. } => "DEAD",
        Handshake::Surface { .. } => "SURFACE",
        Handshake::Gone => "GONE",
        Handshake::Muster { .. } => "MUSTER",
    };
    format!("{name}{tuple}")
}
