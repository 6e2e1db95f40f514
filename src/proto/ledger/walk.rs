//! The walk over the ledger in posting order: what each entry's fate is, and where it ends.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::evidence::Record;
use super::{Action, Op, State, Step, Stop, StopReason};
use crate::id::WrSeq;
use crate::policy::{decide, Reason, Verdict};

/// Where the walk ends in an error; `found` is what an earlier one found, and only something earlier replaces it.
///
/// An unknown WRITE is not replayed in front of a stop: the application would be told of an error while bytes of a buffer
/// that it may have reused already are written behind its back.
pub(super) fn stop(records: &BTreeMap<WrSeq, Record>, found: Option<Stop>) -> Option<Stop> {
    let by_table = verdicts(records).into_iter().find_map(|(seq, verdict)| match verdict {
        Verdict::Error(reason) => Some(Stop { seq, why: StopReason::Table(reason) }),
        Verdict::Complete | Verdict::Replay | Verdict::ReplayFromProven => None,
    });
    let stop = match (found, by_table) {
        (Some(found), Some(now)) if now.seq < found.seq => now,
        (Some(found), _) => found,
        (None, now) => now?,
    };
    let unknown_write = records.range(..stop.seq).find(|(_, record)| is_unknown_write(record));
    Some(unknown_write.map_or(stop, |(seq, _)| Stop { seq: *seq, why: StopReason::Table(Reason::WriteBeforeStop) }))
}

/// What to do with the entries before the stop, which is the earliest that [`stop`] found.
pub(super) fn steps_before(records: &BTreeMap<WrSeq, Record>, stop: Option<Stop>) -> Vec<Step> {
    let before = verdicts(records).into_iter().take_while(|(seq, _)| stop.is_none_or(|stop| *seq < stop.seq));
    let mut steps = Vec::new();
    for (seq, verdict) in before {
        let Some(record) = records.get(&seq) else { return steps };
        let action = match verdict {
            Verdict::Complete => Action::Complete,
            Verdict::Replay => Action::Replay { offset: 0 },
            Verdict::ReplayFromProven => Action::Replay { offset: record.proven_offset() },
            Verdict::Error(_) => return steps,
        };
        steps.push(Step { seq, action, evidence: record.evidence() });
    }
    steps
}

fn is_unknown_write(record: &Record) -> bool {
    record.entry.op == Op::Write && record.facts(false).state == State::Unknown
}

/// The table's answer for every entry. Walked from the end, because a READ's fate hangs on what is behind it.
fn verdicts(records: &BTreeMap<WrSeq, Record>) -> Vec<(WrSeq, Verdict)> {
    let mut later_fenced_possibly_begun = false;
    let mut verdicts = Vec::with_capacity(records.len());
    for (seq, record) in records.iter().rev() {
        verdicts.push((*seq, decide(record.entry.op, record.facts(later_fenced_possibly_begun))));
        later_fenced_possibly_begun |= record.entry.fenced && record.entry.op != Op::Read && record.possibly_begun();
    }
    verdicts.reverse();
    verdicts
}
