//! The searches that are run: which worlds, and which breach has to be found in which of them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use shift_proto::ledger::Op;

use super::{Control, Proven, Setting, Step, Want};
use crate::explorer::{Explorer, Liveness, Report};

/// A world by name.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is particular about it.
    pub name: &'static str,
    /// The world.
    pub setting: Setting,
}

/// A breach, the world in which it is looked for, and what is to be found.
#[derive(Clone, Debug)]
pub struct Breach {
    /// Its world has the breach in it.
    pub setting: Setting,
    /// Steps of the shortest run that shows it.
    pub steps: usize,
    /// The point of the safety rule that breaks, by its number or words.
    pub point: &'static str,
}

/// Searches a world to its end.
#[must_use]
pub fn search(setting: &Setting) -> Report<Step> {
    Explorer::new(setting).liveness(Liveness::EndReachable).run()
}

/// Searches many worlds, two at a time; the reports come in their order.
#[must_use]
pub fn search_all(settings: &[Setting]) -> Vec<Report<Step>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((nth, setting)) =
            Some(next.fetch_add(1, Relaxed)).and_then(|nth| Some((nth, settings.get(nth)?)))
        {
            done.push((nth, Explorer::new(setting).workers(1).liveness(Liveness::EndReachable).run()));
        }
        done
    };
    let mut all = thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = work();
        own.into_iter().chain(other.join().expect("a search that panics ends the check")).collect::<Vec<_>>()
    });
    all.sort_by_key(|(nth, _)| *nth);
    all.into_iter().map(|(_, report)| report).collect()
}

const fn want(op: Op) -> Want {
    Want::of(op)
}

/// Worlds with more than one fault at the sender of a list of requests.
#[must_use]
pub fn cases(is_long: bool) -> Vec<Case> {
    let send = [want(Op::Send)];
    let pair = [want(Op::Write), want(Op::Send)];
    let one = |wants: &[Want]| Setting::one_fault(wants);
    let three_paths = |wants: &[Want]| Setting { mtus: vec![1, 1, 1], claims: 2, ..one(wants) };
    let mut cases = vec![
        Case {
            name: "crossing claims: one end's retries are exceeded, either end's port goes down",
            setting: Setting { suspects: 1, ..one(&pair) },
        },
        Case { name: "ports go down twice, at either end", setting: Setting { faults: 0, suspects: 2, ..one(&pair) } },
        Case {
            name: "a second fault at any moment, on three paths",
            setting: Setting { faults: 2, ..three_paths(&[want(Op::Read), want(Op::Send)]) },
        },
        Case {
            name: "the same by counts alone",
            setting: Setting { faults: 2, proven: Proven::Count, ..three_paths(&pair) },
        },
        Case { name: "a fence that fails at either end", setting: Setting { failing_fences: 1, ..one(&pair) } },
        Case {
            name: "fences that fail twice, or are given up",
            setting: Setting { failing_fences: 2, lapses: 1, ..one(&pair) },
        },
        Case { name: "both ends send", setting: Setting { wants: [pair.to_vec(), send.to_vec()], ..one(&pair) } },
        Case { name: "a deadline of the exchange or of patience passes", setting: Setting { lapses: 1, ..one(&pair) } },
        Case { name: "a planned move", setting: Setting { faults: 0, moves: 1, posted: 1, ..one(&pair) } },
        Case {
            name: "a fault and a planned move in any order, as to return",
            setting: Setting { moves: 1, claims: 2, ..one(&send) },
        },
        Case { name: "either application destroys its queue pair", setting: Setting { destroys: 1, ..one(&pair) } },
        Case {
            name: "several packets, another MTU on the other path",
            setting: Setting { mtus: vec![1, 2], ..one(&[want(Op::Write).long(4), want(Op::Send).long(2)]) },
        },
        Case {
            name: "back to the smaller MTU",
            setting: Setting { mtus: vec![2, 1], ..one(&[want(Op::Write).long(4), want(Op::WriteImm).long(2)]) },
        },
        Case {
            name: "under policy error, posted one by one",
            setting: Setting { posted: 0, proven: Proven::Count, ..one(&[want(Op::Write).or_error(), want(Op::Send)]) },
        },
        Case {
            name: "a completion of a receive that vanished is noticed",
            setting: Setting { lost_completions: 1, ..one(&send) },
        },
    ];
    cases.extend([
        Case {
            name: "a poster that is inside, posts on, and leaves when it likes",
            setting: Setting { posters: 1, posted: 1, ..one(&pair) },
        },
        Case {
            name: "a poster that does not leave, and a fence that is given up",
            setting: Setting { posters: 1, failing_fences: 1, ..one(&send) },
        },
        Case { name: "what is said to either end is lost for a while", setting: Setting { cuts: 2, ..one(&send) } },
        Case {
            name: "one end hears nothing from before the claim on: no healthy queue pair ends",
            setting: Setting { faults: 0, suspects: 2, claims: 2, lapses: 2, deaf: [true, false], ..one(&send) },
        },
        Case {
            name: "and the other",
            setting: Setting { faults: 0, suspects: 2, claims: 2, lapses: 2, deaf: [false, true], ..one(&send) },
        },
    ]);
    if is_long {
        cases.extend([
            Case {
                name: "what is said is lost for a while, and a deadline of the exchange passes; both ends send",
                setting: Setting { cuts: 1, lapses: 1, wants: [pair.to_vec(), send.to_vec()], ..one(&pair) },
            },
            Case {
                name: "a fault, a port that goes down, and a deadline",
                setting: Setting { suspects: 1, lapses: 1, claims: 2, ..one(&send) },
            },
            Case {
                name: "two faults of two requests and a failing fence, on three paths",
                setting: Setting { faults: 2, failing_fences: 1, ..three_paths(&pair) },
            },
            Case {
                name: "a fault and a planned move, the second request at any time",
                setting: Setting { moves: 1, claims: 2, posted: 1, ..one(&[want(Op::Send), want(Op::Send)]) },
            },
            Case {
                name: "two faults and a planned return, on three paths",
                setting: Setting { faults: 2, moves: 1, claims: 3, ..three_paths(&send) },
            },
        ]);
    }
    cases
}

/// Every list of up to `longest` requests of six kinds, each plain, fenced or, up to two, unsignalled, with one fault at its sender, by packet numbers and by
/// counts. Of one request, and of two where it goes to three, also fenced and unsignalled.
pub fn lists(longest: usize) -> impl Iterator<Item = Setting> {
    let ops = [Op::Write, Op::WriteImm, Op::Send, Op::Read, Op::FetchAdd, Op::CompareSwap];
    let of_length = move |length: usize| {
        let forms = move |op: &Op| {
            let want = want(*op);
            let all = [want, want.fenced(), want.unsignalled(), want.fenced().unsignalled()];
            let count = if length > 2 {
                2
            } else if length == longest && length > 1 {
                3
            } else {
                4
            };
            all.into_iter().take(count)
        };
        let kinds: Vec<Want> = ops.iter().flat_map(forms).collect();
        let count = kinds.len().pow(length as u32);
        (0..count).map(move |number| {
            (0..length).map(|nth| kinds[number / kinds.len().pow(nth as u32) % kinds.len()]).collect::<Vec<_>>()
        })
    };
    let all = (1..=longest).flat_map(of_length);
    all.flat_map(|wants| [Proven::Psn, Proven::Count].map(|proven| Setting { proven, ..Setting::one_fault(&wants) }))
}

/// What is broken on purpose.
#[must_use]
pub fn breaches() -> Vec<Breach> {
    let of = |wants: &[Want], control: Control, steps: usize, point: &'static str| Breach {
        setting: Setting { refines: false, ..Setting::one_fault(wants).with(control) },
        steps,
        point,
    };
    let counted = |breach: Breach| Breach { setting: Setting { proven: Proven::Count, ..breach.setting }, ..breach };
    let twice = |breach: Breach| Breach {
        setting: Setting { faults: 2, claims: 2, mtus: vec![1, 1, 1], ..breach.setting },
        ..breach
    };
    let (send, write, read) = (want(Op::Send), want(Op::Write), want(Op::Read));
    let add = want(Op::FetchAdd);
    let mut breaches = vec![
        of(&[send], Control::NoCountExchange, 12, "1:"),
        of(&[send], Control::CountBeforeFence, 12, "1:"),
        of(&[add], Control::PsnBeforeFence, 12, "2:"),
        of(&[add], Control::PsnAfterErr, 12, "2:"),
        of(&[send], Control::NoFence, 12, "1:"),
        counted(of(&[send], Control::PolledCount, 12, "1:")),
        counted(of(&[add], Control::AtomicsReplayed, 12, "2:")),
        twice(of(&[send], Control::RepliesOfAnyEpoch, 17, "before the peer has posted")),
        of(&[send], Control::NoticesOfAnyEpoch, 11, "1:"),
        of(&[send], Control::ClaimsOfAnyEpoch, 9, "a split"),
        of(&[send, send], Control::ReceivesFromHead, 12, "1:"),
        of(&[send, send], Control::ReceivesTwice, 12, "1:"),
        of(&[send], Control::ReplayBeforeRepost, 8, "before the peer has posted"),
        twice(of(&[read, send], Control::FirstReportForgotten, 24, "1:")),
        twice(of(&[add], Control::BestReportOfAny, 24, "2:")),
        counted(twice(of(&[read, add], Control::StopForgotten, 20, "7:"))),
        of(&[read, add.fenced()], Control::FencedTakenAsUnexecuted, 14, "4:"),
        counted(of(&[read, write.fenced()], Control::ReadsBehindExecutedReplayed, 14, "4:")),
        of(&[read, write.fenced().long(2)], Control::ReadsBehindBegunReplayed, 14, "4:"),
        counted(of(&[write, add], Control::UnknownWriteBeforeStop, 11, "3:")),
        of(&[read, write], Control::CompletionOverRead, 2, "5:"),
        of(&[send], Control::Disagreement, 13, "5:"),
        of(&[write.long(4)], Control::NewMtu, 12, "5:"),
        of(&[write], Control::WindowBySqPsn, 12, "3:"),
        of(&[send], Control::FenceAtAccept, 4, "7:"),
        of(&[send], Control::LateCommitIgnored, 6, "although it heard COMMIT"),
        of(&[send], Control::ResumeAfterCommit, 5, "6:"),
        of(&[send], Control::EarlyFenceBinds, 11, "a split"),
        of(&[send], Control::ReportsDroppedEarly, 20, "7:"),
        of(&[send], Control::NothingSaidAgain, 9, "no end can be reached"),
        of(&[send], Control::DestroyIsFault, 3, "7:"),
        of(&[add], Control::HoldSkipped, 2, "7:"),
    ];
    for Breach { setting, .. } in &mut breaches {
        match setting.control {
            Some(Control::Disagreement) => setting.lost_completions = 1,
            Some(Control::NothingSaidAgain) => setting.cuts = 1,
            Some(Control::ClaimsOfAnyEpoch) => setting.suspects = 1,
            Some(Control::EarlyFenceBinds) => (setting.suspects, setting.mtus) = (1, vec![1, 1, 1]),
            Some(Control::BestReportOfAny) => setting.failing_fences = 1,
            Some(Control::NewMtu) => setting.mtus = vec![1, 2],
            Some(Control::ReportsDroppedEarly) => (setting.faults, setting.suspects, setting.claims) = (0, 2, 2),
            Some(Control::DestroyIsFault) => (setting.faults, setting.destroys) = (0, 1),
            Some(Control::HoldSkipped) => (setting.faults, setting.suspects) = (0, 1),
            _ => {}
        }
    }
    breaches.push(Breach {
        setting: Setting { polls_data: true, proven: Proven::Count, ..Setting::one_fault(&[write]) },
        steps: 13,
        point: "3: a ghost",
    });
    breaches
}

const INVALID: &str = "the object: an invalid push: NotPreempted, times[0] = 2, time(cache) = 1";

/// What no atomic distributed object does. In each an old leader's request is executed after the acceptor has promised the next term.
#[must_use]
pub fn invalid_pushes() -> Vec<Breach> {
    let of = |op: Op, control: Control, steps: usize| Breach {
        setting: Setting::one_fault(&[want(op)]).with(control),
        steps,
        point: INVALID,
    };
    vec![
        of(Op::Send, Control::NoFence, 7),
        of(Op::Send, Control::CountBeforeFence, 6),
        of(Op::FetchAdd, Control::PsnBeforeFence, 6),
        of(Op::FetchAdd, Control::PsnAfterErr, 7),
    ]
}
