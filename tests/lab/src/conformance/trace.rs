//! From the wire's log of one queue pair that moved once, and its sender's report, to a trace.
//!
//! A message is the packets from a first to a last one, in the order of their numbers. It was executed where the receiver answered it: soft-RoCE
//! answers the last packet of every message, and the log has the answers that were lost too. On a rail the requests of one opcode class are the
//! application's; what the standby carried are the last messages of all that were posted, since the queue goes on where it stopped.

use std::collections::{BTreeMap, BTreeSet};

use shift_models::theorems::memory::{execute, Memory, Op, Outcome, CELLS, DATA};
use shift_models::theorems::trace::Event;

use crate::place::{Host, Rail};
use crate::trouble::{Result, Trouble};
use crate::wire::log::Record;
use crate::wire::packet::{opcode, Bth};

/// Operations have the numbers of a byte, and so do the values that atomics leave behind.
pub const LONGEST: u64 = 250;
/// Ethernet, IPv4, UDP, BTH, RETH and checksum: a WRITE of no bytes, which is a probe.
const EMPTY_WRITE: u32 = 78;

/// What the queue pair does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// WRITEs of some bytes each.
    Write,
    /// SENDs, or WRITEs with immediate data: each consumes a receive.
    Notify,
    /// FETCH_AND_ADD.
    FetchAdd,
    /// COMPARE_AND_SWAP, each from what the one before left.
    CompareSwap,
    /// FETCH_AND_ADD, and a SEND behind each.
    AddThenSend,
}

impl Kind {
    fn opcodes(self) -> &'static [u8] {
        match self {
            Kind::Write => &[0x06, 0x07, 0x08, opcode::WRITE_ONLY],
            Kind::Notify => &[0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x09, opcode::WRITE_ONLY_IMM],
            Kind::FetchAdd => &[opcode::FETCH_ADD],
            Kind::CompareSwap => &[opcode::COMPARE_SWAP],
            Kind::AddThenSend => &[opcode::FETCH_ADD, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05],
        }
    }

    /// As the theorems have it: one cell, and values that tell the operations apart.
    fn op(self, nth: u8) -> Op {
        match self {
            Kind::Write => Op::Write(DATA, nth.wrapping_add(10)),
            Kind::AddThenSend if nth % 2 == 1 => Op::Notify,
            Kind::Notify => Op::Notify,
            Kind::FetchAdd | Kind::AddThenSend => Op::FetchAdd(DATA, 1),
            Kind::CompareSwap => Op::CompareSwap(DATA, nth, nth.wrapping_add(1)),
        }
    }

    fn is_of_it(self, record: &Record, bth: &Bth) -> bool {
        self.opcodes().contains(&bth.opcode) && (self != Kind::Write || record.length > EMPTY_WRITE)
    }
}

/// What the sender says of its queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Messages that it posted.
    pub posted: u64,
    /// The first that did not complete, if the queue pair ended in an error.
    pub fell_at: Option<u64>,
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// What the queue pair does.
    pub kind: Kind,
    /// Where it went from rail 0.
    pub standby: Rail,
    /// A third endpoint, on another queue pair, took the compare-and-swap of that number back while rail 0 was in use.
    pub undone: Option<u8>,
}

impl Run {
    /// To rail 1, and nobody else.
    pub fn of(kind: Kind) -> Run {
        Run { kind, standby: Rail::One, undone: None }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The events, in the order of the wire; what only the application knows is last.
    pub events: Vec<Event>,
    /// The operations, in posting order.
    pub ops: Vec<Op>,
    /// How many of them the standby carried.
    pub on_standby: usize,
    /// A third endpoint's operation is the last one: it takes that one back.
    pub undone: Option<u8>,
}

impl Trace {
    /// The third endpoint's operation, if there is one.
    pub fn third(&self) -> Option<u8> {
        self.undone.map(|_| self.ops.len() as u8 - 1)
    }
}

/// A message on one rail, by places in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Carried {
    sent_at: usize,
    arrived: bool,
    /// Where the receiver first answered it, and whether an answer arrived.
    answered: Option<(usize, bool)>,
}

/// Makes the trace.
///
/// # Errors
/// More messages than have a number, or the log and the report cannot be of one run.
pub fn convert(log: &[Record], run: Run, told: Told) -> Result<Trace> {
    let Run { kind, standby, undone } = run;
    if told.posted > LONGEST {
        return Err(Trouble::judged(format!("{} messages are too many for a trace", told.posted)));
    }
    let posted = told.posted as usize;
    let (first, second) = (carried(log, Rail::Zero, kind), carried(log, standby, kind));
    let from = posted.checked_sub(second.len()).filter(|from| second.is_empty() || *from <= first.len());
    let from = from.filter(|_| first.len() <= posted).ok_or_else(|| {
        Trouble::judged(format!(
            "{posted} messages were posted, rail 0 carried {}, and the standby {}",
            first.len(),
            second.len()
        ))
    })?;
    let mut ops: Vec<Op> = (0..posted).map(|nth| kind.op(nth as u8)).collect();
    let mut found = Found::default();
    if let Some(undone) = undone {
        let third = third(log, kind).ok_or_else(|| Trouble::judged("the log has no operation of a third endpoint"))?;
        found.note(posted as u8, &third);
        ops.push(Op::CompareSwap(DATA, undone.wrapping_add(1), undone));
    }
    for (nth, message) in
        first.iter().enumerate().chain(second.iter().enumerate().map(|(nth, each)| (from + nth, each)))
    {
        found.note(nth as u8, message);
    }
    Ok(Trace { events: found.in_order(&ops, told), ops, on_standby: second.len(), undone })
}

/// Events with the place in the log at which they happened.
#[derive(Debug, Default)]
struct Found {
    events: Vec<(usize, u8, Event)>,
    sent: BTreeSet<u8>,
}

/// Stands in for a value until it is known what memory was.
const LATER: Outcome = Outcome::Acknowledged;

impl Found {
    fn note(&mut self, op: u8, message: &Carried) {
        let mut push = |at, rank, event| self.events.push((at, rank, event));
        if self.sent.insert(op) {
            push(message.sent_at, 1, Event::Send(op));
        }
        let arrived = if message.arrived { Event::Receive(op) } else { Event::PacketLost(op) };
        push(message.sent_at, 2, arrived);
        if let Some((at, is_told)) = message.answered {
            push(at, 3, Event::Execute(op, LATER));
            push(at, 4, if is_told { Event::Completion(op, LATER) } else { Event::AckLost(op) });
        }
    }

    fn in_order(mut self, ops: &[Op], told: Told) -> Vec<Event> {
        self.events.sort_by_key(|(at, rank, _)| (*at, *rank));
        let completed = told.fell_at.unwrap_or(told.posted);
        let mut memory: Memory = [0; CELLS];
        let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
        let mut events = Vec::new();
        for (_, _, event) in self.events {
            if let Event::Execute(op, _) = event {
                let Some(what) = ops.get(usize::from(op)) else { continue };
                let (after, outcome) = execute(memory, *what);
                memory = after;
                last.insert(op, outcome);
                events.push(Event::Execute(op, outcome));
            } else if let Event::Completion(op, _) = event {
                let is_told = u64::from(op) < completed || u64::from(op) >= told.posted;
                if is_told && seen.insert(op) {
                    events.push(Event::Completion(op, last.get(&op).copied().unwrap_or(LATER)));
                }
            } else {
                events.push(event);
            }
        }
        // Of these the application heard from the shim, and not by an answer.
        let proven = (0..completed as u8).filter(|op| !seen.contains(op));
        events.extend(proven.map(|op| Event::Completion(op, last.get(&op).copied().unwrap_or(LATER))));
        events.extend((completed as u8..told.posted as u8).map(Event::Timeout));
        events
    }
}

/// The requests on a rail that are of that kind, with their places in the log.
fn requests(log: &[Record], rail: Rail, kind: Kind) -> impl Iterator<Item = (usize, &Record, Bth)> {
    let sent = log.iter().enumerate().filter(move |(_, record)| record.link == rail.link() && record.from == Host::A);
    sent.filter_map(|(at, record)| Some((at, record, record.packet.roce?)))
        .filter(move |(_, record, bth)| kind.is_of_it(record, bth))
}

/// The packet numbers of each queue pair that has such requests.
fn flows(log: &[Record], rail: Rail, kind: Kind) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut flows: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (_, _, bth) in requests(log, rail, kind) {
        flows.entry(bth.qpn).or_default().insert(bth.psn);
    }
    flows
}

/// The application's messages on a rail, in the order of their numbers.
fn carried(log: &[Record], rail: Rail, kind: Kind) -> Vec<Carried> {
    let flows = flows(log, rail, kind);
    let longest = flows.iter().max_by_key(|(_, numbers)| numbers.len());
    longest.map(|(qpn, _)| carried_to(log, rail, kind, *qpn)).unwrap_or_default()
}

/// The one operation of a third endpoint: on rail 0, to a queue pair that has no other.
fn third(log: &[Record], kind: Kind) -> Option<Carried> {
    let flows = flows(log, Rail::Zero, kind);
    let (qpn, _) = flows.iter().find(|(_, numbers)| flows.len() == 2 && numbers.len() == 1)?;
    carried_to(log, Rail::Zero, kind, *qpn).into_iter().next()
}

fn carried_to(log: &[Record], rail: Rail, kind: Kind, qpn: u32) -> Vec<Carried> {
    let mut packets: BTreeMap<i32, (u8, usize, bool)> = BTreeMap::new();
    let mut start = None;
    for (at, record, bth) in requests(log, rail, kind).filter(|(_, _, bth)| bth.qpn == qpn) {
        let number = ahead(*start.get_or_insert(bth.psn), bth.psn);
        let packet = packets.entry(number).or_insert((bth.opcode, at, false));
        packet.2 |= record.fate.went_on();
    }
    let Some(start) = start else { return Vec::new() };
    let answers = answers(log, rail, start, &packets);
    messages(&packets).into_iter().map(|message| message.carried(&answers)).collect()
}

/// From the first to the last packet, if the last one was sent.
struct Message {
    sent_at: usize,
    arrived: bool,
    last: Option<i32>,
    is_atomic: bool,
}

fn messages(packets: &BTreeMap<i32, (u8, usize, bool)>) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for (number, (code, at, arrived)) in packets {
        let begins = opcode::FIRSTS.contains(code) || is_only(*code);
        let ends = opcode::LASTS.contains(code) || is_only(*code);
        if begins || messages.is_empty() {
            let is_atomic = [opcode::FETCH_ADD, opcode::COMPARE_SWAP].contains(code);
            messages.push(Message { sent_at: *at, arrived: true, last: None, is_atomic });
        }
        let Some(message) = messages.last_mut() else { continue };
        message.arrived &= arrived;
        message.last = ends.then_some(*number).or(message.last);
    }
    messages
}

fn is_only(code: u8) -> bool {
    !opcode::FIRSTS.contains(&code) && !opcode::MIDDLES.contains(&code) && !opcode::LASTS.contains(&code)
}

/// A positive answer: its place, the number that it names, and whether it arrived.
type Answer = (usize, i32, bool);

fn answers(log: &[Record], rail: Rail, start: u32, packets: &BTreeMap<i32, (u8, usize, bool)>) -> Vec<Answer> {
    let sent = log.iter().enumerate().filter(|(_, record)| record.link == rail.link() && record.from == Host::B);
    let responses = sent.filter_map(|(at, record)| Some((at, record, record.packet.roce.filter(Bth::is_response)?)));
    let positive = responses.filter(|(_, _, bth)| bth.opcode != opcode::ACK || bth.aeth >> 29 == 0);
    positive
        .map(|(at, record, bth)| (at, ahead(start, bth.psn), record.fate.went_on()))
        .filter(|(at, number, _)| packets.get(number).is_some_and(|(_, sent_at, _)| sent_at < at))
        .collect()
}

impl Message {
    /// An answer is to everything up to its number; the result of an atomic comes with its own alone.
    fn carried(&self, answers: &[Answer]) -> Carried {
        let last = self.last.unwrap_or(i32::MAX);
        let mut covering = answers.iter().filter(|(_, number, _)| *number >= last);
        let first = covering.clone().map(|(at, ..)| *at).min();
        let is_told = covering.any(|(_, number, arrived)| *arrived && (!self.is_atomic || *number == last));
        Carried { sent_at: self.sent_at, arrived: self.arrived, answered: first.map(|at| (at, is_told)) }
    }
}

/// How far `psn` lies ahead of `from` in 24 bits, negative if behind.
fn ahead(from: u32, psn: u32) -> i32 {
    ((psn.wrapping_sub(from) << 8) as i32) >> 8
}

#[cfg(test)]
mod tests {
    use super::super::judge::{aligned, alike, at_most_once, atomics, indistinguishable, no_ghosts, third_survives};
    use super::*;
    use crate::wire::log::Fate;
    use crate::wire::packet::{parse, sample};

    fn packet(rail: Rail, from: Host, code: u8, psn: u32, fate: Fate) -> Record {
        let base = if from == Host::A { 0x20 } else { 0x30 };
        let qpn = base + u32::from(rail.link().number());
        let packet = parse(&sample::roce4(code, qpn, psn, &[0x1f, 0, 0, 0]));
        Record { at_ns: 0, link: rail.link(), from, packet, length: 100, fate, rule: None }
    }

    /// `sent` requests on a rail, of which the first `answered` are answered, each by itself; those answers from `told` on are lost.
    fn run(rail: Rail, code: u8, sent: u32, answered: u32, told: u32) -> Vec<Record> {
        let first = 0xff_fffe;
        let ack =
            if code == opcode::FETCH_ADD || code == opcode::COMPARE_SWAP { opcode::ATOMIC_ACK } else { opcode::ACK };
        let pair = |nth: u32| {
            let psn = (first + nth) & 0xff_ffff;
            let arrives = if nth < answered { Fate::Passed } else { Fate::Dropped };
            let comes = if nth < told { Fate::Passed } else { Fate::Dropped };
            let request = packet(rail, Host::A, code, psn, arrives);
            std::iter::once(request).chain((nth < answered).then(|| packet(rail, Host::B, ack, psn, comes)))
        };
        (0..sent).flat_map(pair).collect()
    }

    fn trace(log: &[Record], kind: Kind, posted: u64, fell_at: Option<u64>) -> Trace {
        convert(log, Run::of(kind), Told { posted, fell_at }).unwrap()
    }

    #[test]
    fn what_the_standby_repeats_is_found_and_what_it_goes_on_with_is_not() {
        for (kind, code) in [(Kind::Notify, opcode::SEND_ONLY), (Kind::FetchAdd, 0x14), (Kind::CompareSwap, 0x13)] {
            let first = run(Rail::Zero, code, 5, 4, 3);
            let right = [first.clone(), run(Rail::One, code, 2, 2, 2)].concat();
            let right = trace(&right, kind, 6, None);
            assert_eq!((at_most_once(&right), right.on_standby), (Ok(()), 2));
            let twice = trace(&[first, run(Rail::One, code, 3, 3, 3)].concat(), kind, 6, None);
            assert!(at_most_once(&twice).unwrap_err().contains("operation 3"));
            if kind == Kind::Notify {
                assert_eq!(aligned(&right), Ok(()));
                assert!(aligned(&twice).unwrap_err().contains("Some(4)"));
            } else {
                assert!(atomics(&right).unwrap_err().contains("operation 3 is a success"));
                assert!(atomics(&twice).is_err());
            }
        }
    }

    #[test]
    fn an_atomic_whose_result_is_lost_is_right_as_an_error() {
        let log = run(Rail::Zero, opcode::FETCH_ADD, 4, 4, 3);
        assert_eq!(atomics(&trace(&log, Kind::FetchAdd, 4, Some(3))), Ok(()));
        assert!(atomics(&trace(&log, Kind::FetchAdd, 4, None)).is_err());
    }

    #[test]
    fn a_write_that_is_executed_again_is_a_ghost() {
        let first = run(Rail::Zero, opcode::WRITE_ONLY, 4, 4, 3);
        let ends = [first.clone(), run(Rail::One, opcode::WRITE_ONLY, 2, 2, 2)].concat();
        assert_eq!(no_ghosts(&trace(&ends, Kind::Write, 6, None)), Ok(()));
        let again = [first, run(Rail::One, opcode::WRITE_ONLY, 3, 3, 3)].concat();
        assert!(no_ghosts(&trace(&again, Kind::Write, 6, None)).is_err());
    }

    #[test]
    fn a_lost_request_and_a_lost_answer_look_the_same_and_are_not() {
        let request = trace(&run(Rail::Zero, opcode::WRITE_ONLY, 4, 3, 3), Kind::Write, 4, Some(3));
        let answer = trace(&run(Rail::Zero, opcode::WRITE_ONLY, 4, 4, 3), Kind::Write, 4, Some(3));
        assert_eq!(indistinguishable(&request, &answer), Ok(()));
        assert!(indistinguishable(&request, &request).is_err());
        let later = trace(&run(Rail::Zero, opcode::WRITE_ONLY, 4, 4, 2), Kind::Write, 4, Some(2));
        assert!(indistinguishable(&request, &later).is_err());
    }

    #[test]
    fn a_log_and_a_report_of_different_runs_make_no_trace() {
        let (log, notify) = (run(Rail::Zero, opcode::SEND_ONLY, 4, 4, 4), Run::of(Kind::Notify));
        assert!(convert(&log, notify, Told { posted: 3, fell_at: None }).is_err());
        assert!(convert(&log, notify, Told { posted: LONGEST + 1, fell_at: None }).is_err());
        let gap = [log, run(Rail::One, opcode::SEND_ONLY, 2, 2, 2)].concat();
        assert!(convert(&gap, notify, Told { posted: 9, fell_at: None }).is_err());
    }

    /// Operation 3 was executed and its answer lost; then a third endpoint took it back.
    fn taken_back() -> Vec<Record> {
        let third = |from, code| {
            let packet =
                parse(&sample::roce4(code, if from == Host::A { 0x77 } else { 0x88 }, 0x3000, &[0x1f, 0, 0, 0]));
            Record { from, packet, ..packet_of_rail_0() }
        };
        let back = [third(Host::A, opcode::COMPARE_SWAP), third(Host::B, opcode::ATOMIC_ACK)];
        [run(Rail::Zero, opcode::COMPARE_SWAP, 4, 4, 3), back.to_vec()].concat()
    }

    fn packet_of_rail_0() -> Record {
        packet(Rail::Zero, Host::A, opcode::COMPARE_SWAP, 0, Fate::Passed)
    }

    fn undone(log: &[Record], posted: u64, fell_at: Option<u64>) -> Trace {
        convert(log, Run { undone: Some(3), ..Run::of(Kind::CompareSwap) }, Told { posted, fell_at }).unwrap()
    }

    #[test]
    fn what_a_third_endpoint_wrote_survives_an_error_and_not_a_second_execution() {
        let right = undone(&taken_back(), 4, Some(3));
        assert_eq!((third_survives(&right), atomics(&right)), (Ok(()), Ok(())));
        let again = [taken_back(), run(Rail::One, opcode::COMPARE_SWAP, 2, 2, 2)].concat();
        let again = undone(&again, 5, None);
        assert!(third_survives(&again).unwrap_err().contains("it left 3"));
        assert!(atomics(&again).is_err());
        assert!(convert(
            &run(Rail::Zero, opcode::COMPARE_SWAP, 4, 4, 3),
            Run { undone: Some(3), ..Run::of(Kind::CompareSwap) },
            Told { posted: 4, fell_at: Some(3) }
        )
        .is_err());
    }

    #[test]
    fn an_operation_that_was_taken_back_is_like_one_that_never_was() {
        let never = trace(&run(Rail::Zero, opcode::COMPARE_SWAP, 4, 3, 3), Kind::CompareSwap, 4, Some(3));
        let back = undone(&taken_back(), 4, Some(3));
        assert_eq!(alike(&back, &never), Ok(()));
        let stays = trace(&run(Rail::Zero, opcode::COMPARE_SWAP, 4, 4, 3), Kind::CompareSwap, 4, Some(3));
        assert!(alike(&stays, &never).unwrap_err().contains("memory"));
        assert!(alike(&never, &never).unwrap_err().contains("executed the same"));
    }

    #[test]
    fn a_message_that_is_known_to_be_there_gives_no_result_to_the_atomic_before_it() {
        let add = run(Rail::Zero, opcode::FETCH_ADD, 1, 1, 0);
        let mut send = run(Rail::Zero, opcode::SEND_ONLY, 2, 2, 0);
        send.drain(..2);
        let log = [add, send].concat();
        assert_eq!(atomics(&trace(&log, Kind::AddThenSend, 2, Some(0))), Ok(()));
        assert!(atomics(&trace(&log, Kind::AddThenSend, 2, None)).unwrap_err().contains("operation 0 is a success"));
    }
}
