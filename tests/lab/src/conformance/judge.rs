//! The theorems' predicates on a trace of the real stack. An answer is what is wrong, in words.

use shift_models::theorems::linearizable::{is_linearizable, Call};
use shift_models::theorems::memory::{Op, Outcome, CELLS, DATA};
use shift_models::theorems::sliding::Buffers;
use shift_models::theorems::trace::{executions, memory_after, view, Event, REUSED};

use super::trace::Trace;

/// What a judge says.
pub type Verdict = Result<(), String>;

/// Theorem 2: no operation took effect twice.
///
/// # Errors
/// The first that did.
pub fn at_most_once(trace: &Trace) -> Verdict {
    let times = |op: &usize| executions(&trace.events, *op as u8);
    match (0..trace.ops.len()).find(|op| times(op) > 1) {
        None => Ok(()),
        Some(op) => Err(format!("operation {op} took effect {} times", times(&op))),
    }
}

/// Theorem 2, and what its observer sees: the atomics that were answered, and the word in the end, could have happened one after another, each once; and no
/// sender was told of a success whose result never came.
///
/// # Errors
/// What is not so.
pub fn atomics(trace: &Trace) -> Verdict {
    at_most_once(trace)?;
    let word = memory_after(&trace.events, &trace.ops)[DATA];
    let lost = |op: u8| trace.events.contains(&Event::AckLost(op));
    let completion = |op: u8| {
        let told = |event: &Event| {
            if let Event::Completion(of, outcome) = event {
                (*of == op).then_some(*outcome)
            } else {
                None
            }
        };
        trace.events.iter().find_map(told)
    };
    let mut calls = Vec::new();
    for (nth, op) in trace.ops.iter().enumerate() {
        let number = nth as u8;
        let executed = executions(&trace.events, number) > 0;
        let told = completion(number);
        if told.is_some() && (!executed || lost(number)) {
            return Err(format!("operation {nth} is a success, and its result never came"));
        }
        let begun = 2 * nth as u32;
        calls.extend(executed.then(|| Call { op: *op, from: begun, answer: told.map(|outcome| (begun + 1, outcome)) }));
    }
    let end = 2 * trace.ops.len() as u32;
    calls.push(Call::answered(Op::Read(DATA), end, end + 1, Outcome::Value(word)));
    if is_linearizable([0; CELLS], &calls) {
        Ok(())
    } else {
        Err(format!("no order of the operations gives what was told, and {word} in the end"))
    }
}

/// Queue sliding: message `i` is in receive `i`, each once.
///
/// # Errors
/// What lies where.
pub fn aligned(trace: &Trace) -> Verdict {
    let messages = trace.ops.len();
    let executed = |event: &Event| if let Event::Execute(op, _) = event { Some(usize::from(*op)) } else { None };
    let taken: Vec<usize> = trace.events.iter().filter_map(executed).collect();
    let mut holds: Vec<Option<usize>> = taken.iter().copied().map(Some).collect();
    // The receiver posts one for each message.
    let receives = messages.max(holds.len());
    holds.resize(receives, None);
    let buffers = Buffers { holds, left: receives - taken.len(), not_ready: taken.len() > messages };
    if buffers.are_aligned(messages) {
        return Ok(());
    }
    let odd = (0..receives).find(|nth| buffers.holds.get(*nth) != Some(&Some(*nth)));
    Err(format!("{} receives were taken by {messages} messages; first of another message: {odd:?}", taken.len()))
}

/// Theorem 1: the consumer put something else where it consumed a WRITE, and that is still there.
///
/// # Errors
/// The first operation whose old value is back.
pub fn no_ghosts(trace: &Trace) -> Verdict {
    for op in 0..trace.ops.len() as u8 {
        let mut own = Vec::new();
        for event in trace.events.iter().filter(|event| matches!(event, Event::Execute(of, _) if *of == op)) {
            own.push(*event);
            if own.len() == 1 {
                own.extend([Event::Consume(op, 0), Event::Reuse(op, REUSED)]);
            }
        }
        let left = memory_after(&own, &trace.ops)[DATA];
        if !own.is_empty() && left != REUSED {
            return Err(format!("operation {op} is back in memory that its consumer had used again"));
        }
    }
    Ok(())
}

/// Theorem 1's premise: to the sender the two runs are the same, and to the receiver they are not.
///
/// # Errors
/// Where they differ, or what they have in common.
pub fn indistinguishable(one: &Trace, other: &Trace) -> Verdict {
    let (seen, also) = (view(&one.events), view(&other.events));
    if seen != also {
        let odd = seen.iter().zip(&also).position(|(a, b)| a != b);
        return Err(format!("the sender's views have {} and {} events and differ at {odd:?}", seen.len(), also.len()));
    }
    let executed = |trace: &Trace| (0..trace.ops.len() as u8).map(|op| executions(&trace.events, op)).sum::<usize>();
    let memories = [one, other].map(|trace| memory_after(&trace.events, &trace.ops));
    if executed(one) == executed(other) || memories[0] == memories[1] {
        return Err(format!("both receivers executed the same: {} operations, {memories:?}", executed(one)));
    }
    Ok(())
}
