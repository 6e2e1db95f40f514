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
        // What has no result is a success by proof too.
        if told.is_some() && (!executed || (lost(number) && *op != Op::Notify)) {
            return Err(format!("operation {nth} is a success, and its result never came"));
        }
        // A third endpoint's is at the same time as the one that it takes back.
        let begun = 2 * trace.undone.filter(|_| trace.third() == Some(number)).map_or(nth as u32, u32::from);
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

/// Theorem 2 b: what a third endpoint left in the word is what the word holds.
///
/// # Errors
/// Its operation did not take place, or is undone.
pub fn third_survives(trace: &Trace) -> Verdict {
    let (Some(third), Some(left)) = (trace.third(), trace.undone) else {
        return Err("there is no third endpoint".into());
    };
    if !trace
        .events
        .iter()
        .any(|event| matches!(event, Event::Completion(of, Outcome::Swapped(true, _)) if *of == third))
    {
        return Err("the third endpoint did not swap".into());
    }
    let word = memory_after(&trace.events, &trace.ops)[DATA];
    if word == left {
        return Ok(());
    }
    Err(format!("what the third endpoint wrote is gone: it left {left}, the word is {word}"))
}

/// Theorem 3: to the sender the two runs are the same, and so is the memory that it could read; one executed what the other did not.
///
/// # Errors
/// Where they differ, or that they do not where they should.
pub fn alike(one: &Trace, other: &Trace) -> Verdict {
    let [seen, also] = [one, other].map(senders_view);
    if seen != also {
        let odd = seen.iter().zip(&also).position(|(a, b)| a != b);
        return Err(format!("the sender's views have {} and {} events and differ at {odd:?}", seen.len(), also.len()));
    }
    let words = [one, other].map(|trace| memory_after(&trace.events, &trace.ops)[DATA]);
    if words[0] != words[1] {
        return Err(format!("the memory differs: {words:?}"));
    }
    if executed(one) == executed(other) {
        return Err(format!("both receivers executed the same: {} operations", executed(one)));
    }
    Ok(())
}

/// Without what a third endpoint sees.
fn senders_view(trace: &Trace) -> Vec<Event> {
    let is_thirds = |event: &Event| match event {
        Event::Send(op) | Event::Completion(op, _) | Event::Timeout(op) => trace.third() == Some(*op),
        Event::PacketLost(_)
        | Event::Receive(_)
        | Event::Execute(..)
        | Event::AckLost(_)
        | Event::Consume(..)
        | Event::Reuse(..) => false,
    };
    view(&trace.events).into_iter().filter(|event| !is_thirds(event)).collect()
}

/// Of the sender's operations.
fn executed(trace: &Trace) -> usize {
    let own = (0..trace.ops.len() as u8).filter(|op| trace.third() != Some(*op));
    own.map(|op| executions(&trace.events, op)).sum()
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
    let memories = [one, other].map(|trace| memory_after(&trace.events, &trace.ops));
    if executed(one) == executed(other) || memories[0] == memories[1] {
        return Err(format!("both receivers executed the same: {} operations, {memories:?}", executed(one)));
    }
    Ok(())
}
