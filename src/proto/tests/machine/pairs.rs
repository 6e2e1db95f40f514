//! Every state with every event: the tables are complete, the machine does what they say, and nothing else.

use std::collections::BTreeSet;

use shift_proto::id::{EndpointId, Epoch, Micros, PathId, Tuple};
use shift_proto::migrate::{
    rule, Attempt, Cause, Effect, Event, Goal, Handshake, Input, Rule, Stage, StateName, ATTEMPTS, TRANSITIONS,
};

use crate::bench::{reports, Bench, BIGGER, FATAL, SMALLER, SUSPECT};

#[test]
fn every_event_has_one_row_in_its_place() {
    let rows: Vec<_> = TRANSITIONS.iter().map(|row| row.event).collect();
    assert_eq!(rows, Event::ALL);
    let by_attempt: Vec<_> =
        TRANSITIONS.iter().filter(|row| row.rules.contains(&Rule::ByAttempt)).map(|row| row.event).collect();
    let attempts: Vec<_> = ATTEMPTS.iter().map(|row| row.event).collect();
    assert_eq!(by_attempt, attempts);
    assert!(ATTEMPTS.iter().all(|row| !row.rules.contains(&Rule::ByAttempt)));
    for (place, stage) in Stage::ALL.iter().enumerate() {
        assert_eq!(*stage as usize, place);
    }
    for (place, attempt) in Attempt::ALL.iter().enumerate() {
        assert_eq!(*attempt as usize, place);
    }
}

#[test]
fn every_rule_stands_somewhere_in_the_tables() {
    let stages = TRANSITIONS.iter().flat_map(|row| row.rules);
    let attempts = ATTEMPTS.iter().flat_map(|row| row.rules);
    let used: Vec<_> = stages.chain(attempts).collect();
    for rule in Rule::ALL {
        assert!(used.contains(rule), "{rule:?}");
    }
}

/// Where a rule may lead. `None` of the stage: it stays; the attempts are those that may follow.
fn may_lead_to(rule: Rule, from: StateName) -> (Vec<Stage>, Vec<Attempt>) {
    use Attempt::{Accepted, Accepting, Claiming, Committing, Draining, Holding, Idle, Seeking};
    let stay = (vec![from.stage], vec![from.attempt]);
    let end = |stage| (vec![stage], vec![Idle]);
    let at = |stages: &[Stage]| ([stages, &[from.stage]].concat(), vec![from.attempt]);
    match rule {
        Rule::Ignore
        | Rule::ByAttempt
        | Rule::AnswerDead
        | Rule::AnswerGone
        | Rule::RecallCommit
        | Rule::RepeatCommit
        | Rule::RepeatReport
        | Rule::KeepReport
        | Rule::KeepReady
        | Rule::TakeConfirm
        | Rule::KeepConfirm
        | Rule::HearDead
        | Rule::StopTelling
        | Rule::Arm
        | Rule::NoteReplayed
        | Rule::NoteProgress
        | Rule::Resend
        | Rule::TakeWait => stay,
        Rule::Adopt => (vec![Stage::Fencing], vec![Idle]),
        Rule::TakeReport => at(&[Stage::Reposting, Stage::Settling, Stage::Dead]),
        Rule::TakeFence | Rule::GiveUpFence => at(&[Stage::Fenced, Stage::Settling, Stage::Reposting, Stage::Dead]),
        Rule::Settle => at(&[Stage::Fencing, Stage::Reposting]),
        Rule::TakeRepost => at(&[Stage::Ready, Stage::Replaying]),
        Rule::TakeReady => at(&[Stage::Replaying]),
        Rule::Resume => at(&[Stage::Running]),
        Rule::FollowDead
        | Rule::SurfacePeerGone
        | Rule::SurfaceUnreachable
        | Rule::SurfaceRepost
        | Rule::SurfaceReplay
        | Rule::SurfaceStop
        | Rule::SurfaceExchange
        | Rule::SurfacePatience
        | Rule::SurfaceApplication
        | Rule::SurfaceLeftBehind
        | Rule::Withdraw => end(Stage::Dead),
        Rule::Vanish => end(Stage::Gone),
        Rule::LosePeer => (vec![Stage::Running, Stage::Dead], vec![Idle]),
        Rule::LoseContact => (vec![from.stage], vec![from.attempt, Idle, Seeking]),
        Rule::NoteFault => {
            // Of a planned attempt an unplanned one is made.
            let next = match from.attempt {
                Idle | Draining => vec![Seeking, Claiming],
                Seeking => vec![Seeking, Claiming],
                Claiming | Committing => vec![from.attempt, Seeking],
                Holding => vec![Holding, Accepting, Accepted],
                Accepting | Accepted => vec![from.attempt],
            };
            let unchanged = (from.attempt == Idle).then_some(Idle);
            (vec![from.stage], next.into_iter().chain(unchanged).collect())
        }
        Rule::FollowGroup => (
            vec![from.stage, Stage::Replaying],
            vec![from.attempt, if from.attempt == Idle { Seeking } else { from.attempt }, Seeking],
        ),
        Rule::StayWithGroup => (vec![from.stage, Stage::Replaying], vec![from.attempt, Idle]),
        Rule::NoteHold => (vec![from.stage], vec![from.attempt, Claiming]),
        Rule::Plan => (vec![from.stage], vec![Idle, Draining]),
        Rule::Muster => (vec![from.stage], vec![Idle, Draining]),
        Rule::Depart => (vec![from.stage], vec![Draining, Claiming]),
        Rule::Dismiss => (vec![from.stage, Stage::Replaying], vec![from.attempt, Idle, Seeking]),
        Rule::NoteDrained => match from.attempt {
            Draining => (vec![from.stage], vec![Draining, Claiming]),
            Holding => (vec![from.stage], vec![Holding, Accepted]),
            Idle | Seeking | Claiming | Committing | Accepting | Accepted => stay,
        },
        Rule::Disarm => {
            let ends =
                if matches!(from.attempt, Draining | Claiming | Committing) { vec![Idle, Seeking] } else { vec![] };
            (vec![from.stage], [vec![from.attempt], ends].concat())
        }
        Rule::NoteExcluded => match from.attempt {
            Committing => (vec![Stage::Fencing, from.stage], vec![Idle, Seeking]),
            Accepting => (vec![from.stage], vec![Accepted, Holding]),
            Idle | Seeking | Draining | Claiming | Holding | Accepted => stay,
        },
        Rule::Consider | Rule::Contest | Rule::Reconsider => {
            (vec![from.stage, Stage::Replaying], vec![from.attempt, Idle, Seeking, Holding, Accepting, Accepted])
        }
        Rule::TakeAccept => (vec![from.stage, Stage::Fencing], vec![Claiming, Committing, Idle, Seeking]),
        Rule::Target => (vec![from.stage], vec![Seeking, Claiming, Idle]),
        Rule::Heal => (vec![from.stage], vec![from.attempt, Idle]),
        Rule::ClaimNow => (vec![from.stage], vec![Seeking, Claiming]),
        Rule::TakeRefuse | Rule::TakeCancel => (vec![from.stage, Stage::Replaying], vec![from.attempt, Idle, Seeking]),
        Rule::PutOff => (vec![from.stage], vec![Holding]),
        Rule::GiveUp | Rule::Lapse => (vec![from.stage, Stage::Replaying], vec![Idle, Seeking]),
    }
}

/// Every state that a machine of either order gets into on its usual ways.
fn states() -> Vec<(StateName, Bench)> {
    let mut states = Vec::new();
    for peer in [SMALLER, BIGGER] {
        for stage in Stage::ALL {
            for attempt in Attempt::ALL {
                let mut bench = Bench::new(peer);
                if stage != Stage::Running {
                    bench.reach_stage(stage);
                }
                if bench.reach_attempt(attempt) {
                    states.push((bench.machine.state(), bench));
                }
                let (mut planned, mut mustered) = (Bench::new(peer), Bench::new(peer));
                if stage == Stage::Running && planned.reach_planned(attempt) {
                    states.push((planned.machine.state(), planned));
                }
                if stage == Stage::Running && mustered.reach_mustered(attempt) {
                    states.push((mustered.machine.state(), mustered));
                }
            }
        }
        let mut bench = Bench::new(peer);
        bench.reach_stage(Stage::Running);
        states.push((bench.machine.state(), bench));
    }
    states
}

/// Every input that may belong to the event in that state.
fn inputs(event: Event, bench: &Bench) -> Vec<Input> {
    let epoch = bench.machine.epoch().0;
    let tuples = |epochs: &[u32], owner: EndpointId| -> Vec<Tuple> {
        let tuple = |epoch: &u32, attempt, path| Tuple { epoch: Epoch(*epoch), owner, attempt, target: PathId(path) };
        epochs.iter().flat_map(|epoch| [tuple(epoch, 1, 1), tuple(epoch, 2, 0), tuple(epoch, 1, 7)]).collect()
    };
    let (new, old) = ([epoch + 1, epoch + 2], [epoch, epoch.saturating_sub(1)]);
    let me = crate::bench::ME;
    let frames =
        |tuples: Vec<Tuple>, make: fn(Tuple) -> Handshake| tuples.into_iter().map(make).map(Input::Frame).collect();
    let claim = |tuple| Handshake::Claim { tuple, cause: Cause::Flushed };
    let own: Vec<_> = bench.machine.tuple().into_iter().collect();
    match event {
        Event::Claim => frames(tuples(&new, bench.peer), claim),
        Event::OldClaim => frames(tuples(&old, bench.peer), claim),
        Event::Accept => frames(tuples(&new, me), |tuple| Handshake::Accept { tuple }),
        Event::OldAccept => {
            frames([tuples(&old, me), own.into_iter().filter(|tuple| tuple.owner == me).collect()].concat(), |tuple| {
                Handshake::Accept { tuple }
            })
        }
        Event::Refuse => frames(tuples(&new, me), |tuple| Handshake::Refuse { tuple }),
        Event::Wait => frames(tuples(&new, me), |tuple| Handshake::Wait { tuple }),
        Event::Commit => frames(tuples(&new, bench.peer), |tuple| Handshake::Commit { tuple }),
        Event::OldCommit => frames(tuples(&old, bench.peer), |tuple| Handshake::Commit { tuple }),
        Event::Cancel => frames(tuples(&new, bench.peer), |tuple| Handshake::Cancel { tuple }),
        Event::OldCancel => frames(tuples(&old, bench.peer), |tuple| Handshake::Cancel { tuple }),
        Event::Report => {
            let report = |tuple, fenced, reports| Input::Frame(Handshake::Report { tuple, fenced, reports });
            own.into_iter()
                .flat_map(|tuple| {
                    [report(tuple, true, reports()), report(tuple, false, reports()), report(tuple, false, vec![])]
                })
                .collect()
        }
        Event::Ready => frames(own, |tuple| Handshake::Ready { tuple }),
        Event::Confirm => {
            let confirm = |tuple, seen| Input::Frame(Handshake::Confirm { tuple, seen });
            own.into_iter().flat_map(|tuple| [confirm(tuple, true), confirm(tuple, false)]).collect()
        }
        Event::Stray => frames(tuples(&[epoch + 1], bench.peer), |tuple| Handshake::Ready { tuple }),
        Event::Dead => vec![
            Input::Frame(Handshake::Dead { epoch: Epoch(epoch) }),
            Input::Frame(Handshake::Surface { tuple: tuples(&new, me)[0] }),
        ],
        Event::Gone => vec![Input::Frame(Handshake::Gone)],
        Event::PathArmed => vec![Input::PathArmed(PathId(0)), Input::PathArmed(PathId(3))],
        Event::PathDisarmed => vec![Input::PathDisarmed(PathId(0)), Input::PathDisarmed(PathId(3))],
        Event::Fault => vec![SUSPECT, FATAL],
        Event::PathAnswered => {
            vec![Input::PathAnswered(PathId(0)), Input::PathAnswered(PathId(1)), Input::PathAnswered(PathId(9))]
        }
        Event::Excluded => vec![Input::Excluded],
        Event::NotExcluded => vec![Input::NotExcluded],
        Event::Hold => vec![Input::Hold(true), Input::Hold(false)],
        Event::Fenced => {
            let fenced = |complete, reports| Input::Fenced { complete, reports };
            vec![fenced(true, reports()), fenced(false, reports()), fenced(true, reports().repeat(99))]
        }
        Event::Reposted => vec![Input::Reposted],
        Event::RepostFailed => vec![Input::RepostFailed],
        Event::Replayed => vec![Input::Replayed],
        Event::ReplayFailed => vec![Input::ReplayFailed],
        Event::Progress => vec![Input::Progress],
        Event::Retired => vec![Input::Retired],
        Event::StopReached => vec![Input::StopReached],
        Event::ApplicationError => vec![Input::ApplicationError],
        Event::Destroyed => vec![Input::Destroyed],
        Event::Follow => {
            let goal = |path, above| Input::Follow(Goal { path: PathId(path), above: Epoch(above) });
            vec![goal(0, 0), goal(1, 0), goal(9, 0), goal(0, 9), goal(1, 9)]
        }
        Event::Stay => vec![Input::Stay],
        Event::Move => vec![Input::Move(PathId(0)), Input::Move(PathId(1)), Input::Move(PathId(9))],
        Event::Muster => vec![Input::Muster(PathId(0)), Input::Muster(PathId(1)), Input::Muster(PathId(9))],
        Event::Depart => vec![Input::Depart],
        Event::Dismiss => vec![Input::Dismiss],
        Event::Drained => vec![Input::Drained],
        Event::LeftBehind => vec![Input::LeftBehind],
        Event::Unreachable => vec![Input::Unreachable],
        // Timers have a test of their own.
        Event::ClaimOver
        | Event::ExcludeOver
        | Event::PauseOver
        | Event::PlanOver
        | Event::FenceOver
        | Event::SettleOver
        | Event::ExchangeOver
        | Event::PatienceOver
        | Event::ResendDue => Vec::new(),
    }
}

#[test]
fn every_state_does_with_every_event_what_the_table_says() {
    let mut reached = BTreeSet::new();
    let mut pairs = 0;
    for (state, bench) in states() {
        reached.insert(state);
        for event in Event::ALL {
            for input in inputs(*event, &bench) {
                pairs += 1;
                check_pair(state, &bench, *event, input);
            }
        }
    }
    assert_eq!(reached, possible_states(), "the test does not reach what it should");
    assert!(pairs > 2500, "{pairs}");
}

fn check_pair(state: StateName, bench: &Bench, event: Event, input: Input) {
    let mut bench = bench.clone();
    let effects = bench.give(input.clone());
    let after = bench.machine.state();
    let rule = rule(state, event);
    let (stages, attempts) = may_lead_to(rule, state);
    let context = format!("{state} with {input:?}: {rule:?} led to {after} with {effects:?}");
    let ended = after.stage == Stage::Dead && after.attempt == Attempt::Idle;
    assert!(stages.contains(&after.stage) && (ended || attempts.contains(&after.attempt)), "{context}");
    if matches!(rule, Rule::Ignore) {
        assert!(effects.is_empty(), "{context}");
    }
    if matches!(state.stage, Stage::Dead | Stage::Gone) {
        assert!(
            effects.iter().all(|effect| matches!(
                effect,
                Effect::Send(Handshake::Dead { .. } | Handshake::Gone | Handshake::Surface { .. })
            )),
            "{context}"
        );
    }
    let surfaces = effects.iter().filter(|effect| matches!(effect, Effect::Surface { .. })).count();
    let told = effects.iter().any(|effect| matches!(effect, Effect::Send(Handshake::Dead { .. })));
    assert!(surfaces == 0 || (surfaces == 1 && after.stage == Stage::Dead && told), "{context}");
    let released = effects.contains(&Effect::Release);
    assert!(!released || after.stage == state.stage || after.stage == Stage::Dead, "resumes after COMMIT: {context}");
    if let Some(due) = bench.machine.deadline() {
        assert!(due >= bench.now || after == state, "a timer in the past: {context}");
    }
}

/// Dead and Gone have no attempt. While the posters are out for the fence nothing waits to have them out or holds.
fn possible_states() -> BTreeSet<StateName> {
    let mut possible = BTreeSet::new();
    for stage in Stage::ALL {
        for attempt in Attempt::ALL {
            let free = match stage {
                Stage::Running => true,
                Stage::Replaying => attempt != Attempt::Draining,
                Stage::Fencing | Stage::Fenced | Stage::Settling | Stage::Reposting | Stage::Ready => {
                    !matches!(attempt, Attempt::Draining | Attempt::Committing | Attempt::Accepting | Attempt::Holding)
                }
                Stage::Dead | Stage::Gone => attempt == Attempt::Idle,
            };
            if free {
                possible.insert(StateName { stage, attempt });
            }
        }
    }
    possible
}

/// An end that hears nothing and is told nothing any more comes to rest: on its path, or with an error.
#[test]
fn every_state_ends_by_its_deadlines_alone() {
    for (state, mut bench) in states() {
        bench.give(Input::Hold(false));
        let mut ticks = 0;
        let limit = bench.now + Micros::from_millis(120_000);
        while let Some(due) = bench.machine.deadline().filter(|due| *due < limit) {
            bench.now = due.max(bench.now);
            let before = bench.machine.state();
            bench.give(Input::Tick);
            assert!(bench.machine.deadline().is_none_or(|next| next > bench.now), "{before} does not get on");
            ticks += 1;
        }
        let after = bench.machine.state();
        let rests = matches!(after.stage, Stage::Running | Stage::Dead | Stage::Gone);
        assert!(rests, "{state} stays in {after} after {ticks} ticks");
        let sought = matches!(after.attempt, Attempt::Idle | Attempt::Seeking);
        assert!(sought, "{state} stays in {after}");
    }
}
