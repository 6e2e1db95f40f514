//! Does the wire agree with the shim on what was executed? From the log of the wire it follows, request by request, what the receiving NIC
//! must have done of each incarnation of a queue pair; the shim's record says what it held proven. The two must be equal.
//!
//! The NIC executes requests in the order of their packet numbers (IBA 9.7): one that arrives with the number that is due is executed, one
//! that is answered "receiver not ready" is not, and what was acknowledged was executed, whatever became of the acknowledgement. The log has
//! every packet of both directions, lost or not, so nothing of this is the shim's word. It owns no other judgement: whether an
//! application saw the right thing is the checking application's.

use std::collections::BTreeMap;

use serde_json::{json, Value};

use crate::evidence::Evidence;
use crate::place::{Host, Rail};
use crate::trouble::{Result, Trouble};
use crate::wire::log::Record;
use crate::wire::packet::{opcode, Bth};

/// A rail as the scenario made it; nothing of this is the shim's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Path MTU that both ends can carry there.
    pub mtu: u32,
    /// The packet number of a fence is told as it is.
    pub is_exact: bool,
}

/// Requests of all migrations that were compared, by what was done of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Migrations of which a record was compared.
    pub queue_pairs: u64,
    /// Incarnations but the first of which the packet number was compared.
    pub later: u64,
    /// Requests that the wire says were executed, and the shim too.
    pub executed: u64,
    /// In part.
    pub partial: u64,
    /// Of those in part, on a later incarnation.
    pub later_partial: u64,
    /// Not at all.
    pub not_executed: u64,
    /// Queue pairs with requests that were executed, and not known to be when the error came.
    pub with_executed: u64,
    /// Of which the shim said that it does not know: only where it had no proof.
    pub unknown: u64,
}

impl Agreement {
    /// For figures.
    pub fn in_words(&self) -> Value {
        json!({
            "queue_pairs": self.queue_pairs,
            "later_incarnations": self.later,
            "executed": self.executed,
            "partial": self.partial,
            "later_partial": self.later_partial,
            "not_executed": self.not_executed,
            "with_executed": self.with_executed,
            "unknown": self.unknown,
        })
    }
}

/// Compares each record, of both hosts, with the log.
///
/// # Errors
/// [`Trouble::Judged`] names the first request, or packet number, on which they differ.
pub fn judge(log: &[Record], evidence: &Evidence, paths: [Path; 2]) -> Result<Agreement> {
    let mut agreement = Agreement::default();
    for host in Host::ALL {
        for record in evidence.of(host) {
            if let Some(moved) = Moved::read(record) {
                moved.judge(log, host, paths, &mut agreement).map_err(|why| {
                    let epoch = &record["epoch"];
                    Trouble::judged(format!(
                        "the wire and the shim do not agree, qp {:#x} of {host:?}, epoch {epoch}: {why}",
                        moved.qpn
                    ))
                })?;
            }
        }
    }
    Ok(agreement)
}

/// A record of a migration, as far as it is compared.
#[derive(Debug)]
struct Moved<'a> {
    qpn: u32,
    reported: Vec<Reported<'a>>,
    requests: &'a [Value],
}

/// What the other end said of one incarnation.
#[derive(Debug)]
struct Reported<'a> {
    epoch: u32,
    path: usize,
    own_qpn: u32,
    peer_qpn: u32,
    proof: &'a str,
    rq_psn: Option<u32>,
}

/// What the wire says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    All,
    /// So many packets of it.
    Part(u32),
    Nothing,
}

/// A request, and what the wire says of it.
#[derive(Debug)]
struct Judged<'a> {
    request: &'a Value,
    done: Done,
    /// MTU of the path that it was last posted on.
    mtu: u32,
    /// The byte from which it was posted there.
    from: u32,
    is_later: bool,
}

impl<'a> Moved<'a> {
    /// None if nothing was reported: no plan was made.
    fn read(record: &'a Value) -> Option<Moved<'a>> {
        let reported = record.get("reported")?.as_array()?.iter().map(Reported::read);
        let reported = reported.collect::<Option<Vec<Reported>>>().filter(|reported| !reported.is_empty())?;
        Some(Moved { qpn: number(record, "qpn")?, reported, requests: record.get("requests")?.as_array()? })
    }

    fn judge(
        &self,
        log: &[Record],
        host: Host,
        paths: [Path; 2],
        agreement: &mut Agreement,
    ) -> std::result::Result<(), String> {
        let mut due = BTreeMap::new();
        for reported in &self.reported {
            let path = paths.get(reported.path).ok_or("a path of which the lab has no rail")?;
            let Some(expected) = self.expected(log, host, reported, path) else { continue };
            if let Some(said) = reported.rq_psn.filter(|said| path.is_exact && *said != expected) {
                let epoch = reported.epoch;
                return Err(format!(
                    "the receiver said of epoch {epoch} that it expects {said:06x}, by the wire it expects {expected:06x}"
                ));
            }
            agreement.later += u64::from(reported.epoch > 0);
            due.insert(reported.epoch, (expected, path.mtu));
        }
        if due.is_empty() {
            return Ok(());
        }
        agreement.queue_pairs += 1;
        let is_exact = self
            .reported
            .iter()
            .all(|reported| reported.proof == "psn" && paths.get(reported.path).is_some_and(|path| path.is_exact));
        let (mut lost, mut stopped, mut any_executed) = (None, None, false);
        for request in self.requests {
            let Some(judged) = judged(request, &due)? else { continue };
            judged.compare(is_exact, agreement)?;
            any_executed |= judged.done == Done::All;
            if request["action"] == "error" {
                stopped = stopped.or(Some(request));
            }
            let atomic = request["op"] == "fetch_add" || request["op"] == "compare_swap";
            if atomic && judged.done == Done::All && request["landed"] != true {
                lost = lost.or(Some(request));
            }
            judged.compare_action(is_exact).filter(|_| stopped.is_none()).map_or(Ok(()), Err)?;
        }
        agreement.with_executed += u64::from(any_executed);
        // Where the proof is exact, an error is due for a result that is lost and for nothing else.
        if is_exact && lost.map(|request| &request["seq"]) != stopped.map(|request| &request["seq"]) {
            return Err(format!("the first result that is lost is of {lost:?}, the first error is of {stopped:?}"));
        }
        Ok(())
    }

    /// By the wire, the packet number that the receiver of an incarnation expected in the end.
    fn expected(&self, log: &[Record], host: Host, reported: &Reported, path: &Path) -> Option<u32> {
        let here = || self.requests.iter().filter(|request| epoch_of(request) == Some(reported.epoch));
        let reads = here().filter(|request| request["op"] == "read");
        let spans = reads.filter_map(|read| Some((posted(read)?.1, packets(read, path.mtu)?))).collect();
        // Where it came back to a path, a later incarnation has the same queue pairs, and numbers 2^22 away for each epoch.
        let near = match reported.epoch {
            0 => None,
            _ => Some(here().find_map(posted).map(|(_, psn)| psn).or(reported.rq_psn.filter(|_| path.is_exact))?),
        };
        let rail = *Rail::ALL.get(reported.path)?;
        expected(log, &Flow { rail, host, qpn: reported.own_qpn, peer_qpn: reported.peer_qpn, near }, &spans)
    }
}

impl<'a> Reported<'a> {
    fn read(reported: &'a Value) -> Option<Reported<'a>> {
        Some(Reported {
            epoch: number(reported, "epoch")?,
            path: number(reported, "path")? as usize,
            own_qpn: number(reported, "own_qpn")?,
            peer_qpn: number(reported, "peer_qpn")?,
            proof: reported.get("proof")?.as_str()?,
            rq_psn: number(reported, "rq_psn"),
        })
    }
}

/// None for a request that was last posted on an incarnation of which nothing is known.
fn judged<'a>(request: &'a Value, due: &BTreeMap<u32, (u32, u32)>) -> std::result::Result<Option<Judged<'a>>, String> {
    let from = number(request, "posted_from").unwrap_or(0);
    let Some((epoch, first)) = posted(request) else {
        return Ok(Some(Judged { request, done: Done::Nothing, mtu: 1, from, is_later: false }));
    };
    let Some((expected, mtu)) = due.get(&epoch).copied() else { return Ok(None) };
    let packets = packets(request, mtu).ok_or("a request without length")?;
    Ok(Some(Judged { request, done: done(first, packets, expected), mtu, from, is_later: epoch > 0 }))
}

impl Judged<'_> {
    /// What the shim held proven is so; with an exact proof it knows everything.
    fn compare(&self, is_exact: bool, agreement: &mut Agreement) -> std::result::Result<(), String> {
        let (request, done) = (self.request, self.done);
        let state = request["state"].as_str().unwrap_or("?");
        let (right, counter) = match (state, done) {
            ("executed", Done::All) => (true, &mut agreement.executed),
            // Executed on an incarnation before, and done again because its result was lost.
            ("executed", _) => (self.is_later && request["op"] == "read", &mut agreement.executed),
            ("partial", Done::Part(_)) => (true, &mut agreement.partial),
            // In part on an incarnation before.
            ("partial", Done::Nothing) => (self.is_later, &mut agreement.partial),
            ("not_executed", Done::Nothing) => (true, &mut agreement.not_executed),
            // By receive count a message that did not complete is not executed, though some of its data may lie there.
            ("not_executed", Done::Part(_)) => (!is_exact, &mut agreement.not_executed),
            ("unknown", _) => (!is_exact, &mut agreement.unknown),
            _ => (false, &mut agreement.unknown),
        };
        *counter += 1;
        agreement.later_partial += u64::from(self.is_later && matches!(done, Done::Part(_)));
        if right {
            Ok(())
        } else {
            Err(format!("by the wire {done:?} was executed of {request}"))
        }
    }

    /// What was done about a request in front of the first error; a text if it is not what follows from what was executed.
    fn compare_action(&self, is_exact: bool) -> Option<String> {
        if !is_exact {
            return None;
        }
        let request = self.request;
        let (op, action) = (request["op"].as_str()?, request["action"].as_str()?);
        let offset = number(request, "offset")?;
        let due = match (op, self.done) {
            ("read" | "fetch_add" | "compare_swap", Done::All) if request["landed"] == true => ("complete", 0),
            ("read", _) => ("replay", 0),
            (_, Done::All) => ("complete", 0),
            ("write", Done::Part(packets)) => ("replay", self.from + packets * self.mtu),
            ("write", Done::Nothing) => ("replay", self.from),
            _ => ("replay", 0),
        };
        ((action, offset) != due).then(|| format!("due was {due:?} for {request}"))
    }
}

fn number(value: &Value, name: &str) -> Option<u32> {
    value.get(name)?.as_u64()?.try_into().ok()
}

/// The incarnation that a request was last posted on, and its first packet number there.
fn posted(request: &Value) -> Option<(u32, u32)> {
    let posting = request.get("posted")?.as_array()?;
    let at = |index: usize| posting.get(index)?.as_u64()?.try_into().ok();
    Some((at(0)?, at(1)?))
}

fn epoch_of(request: &Value) -> Option<u32> {
    posted(request).map(|(epoch, _)| epoch)
}

/// Packets of what was posted last of a request: of a WRITE it may be a remainder.
fn packets(request: &Value, mtu: u32) -> Option<u32> {
    let bytes = number(request, "bytes")?.saturating_sub(number(request, "posted_from").unwrap_or(0));
    let atomic = request["op"] == "fetch_add" || request["op"] == "compare_swap";
    Some(if atomic { 1 } else { bytes.div_ceil(mtu).max(1) })
}

const PSN_BITS: u32 = 24;
/// How far the first packet numbers of two incarnations on one path lie apart, at least.
const EPOCH_PSNS: i32 = 1 << 22;

/// How far `psn` lies ahead of `from`, negative if behind.
fn ahead(from: u32, psn: u32) -> i32 {
    let shift = 32 - PSN_BITS;
    ((psn.wrapping_sub(from) << shift) as i32) >> shift
}

fn behind(psn: u32, packets: u32) -> u32 {
    psn.wrapping_add(packets) & ((1 << PSN_BITS) - 1)
}

fn done(first: u32, packets: u32, due: u32) -> Done {
    match ahead(first, due) {
        i32::MIN..=0 => Done::Nothing,
        executed if (executed as u32) < packets => Done::Part(executed as u32),
        _ => Done::All,
    }
}

/// The requests of one incarnation.
#[derive(Debug)]
struct Flow {
    rail: Rail,
    host: Host,
    qpn: u32,
    peer_qpn: u32,
    /// A packet number of it; none: its first request is the first of all.
    near: Option<u32>,
}

/// The packet number that the receiver of these requests expects in the end; none if there were no requests. `reads`: packets that the
/// responses of READs take, by first number, where they are known.
fn expected(log: &[Record], flow: &Flow, reads: &BTreeMap<u32, u32>) -> Option<u32> {
    let of = |from: Host, to: u32| {
        move |record: &&Record| {
            record.link == flow.rail.link()
                && record.from == from
                && record.packet.roce.is_some_and(|bth| bth.qpn == to && bth.is_response() == (from != flow.host))
        }
    };
    let requests = || log.iter().filter(of(flow.host, flow.peer_qpn)).filter_map(|record| record.packet.roce);
    let is_near = |bth: &Bth| flow.near.is_none_or(|near| ahead(near, bth.psn).abs() < EPOCH_PSNS / 2);
    let first = requests().find(is_near)?.psn;
    let is_of_it = |bth: &Bth| (-1..EPOCH_PSNS / 2).contains(&ahead(first, bth.psn));
    let starts = first_numbers(requests().filter(is_of_it));
    let mut due = first;
    // What was due when each number came last.
    let mut arrivals = BTreeMap::new();
    let mine = |record: &&Record| of(flow.host, flow.peer_qpn)(record) || of(flow.host.peer(), flow.qpn)(record);
    for record in log.iter().filter(mine) {
        let Some(bth) = record.packet.roce.filter(is_of_it) else { continue };
        if bth.is_refusal() {
            // In error from the packet on that it refuses: what came behind it while the NAK was under way was not executed. (Soft-RoCE refuses a READ that
            // is sent again if the request before was one of no bytes.)
            return Some(arrivals.get(&bth.psn).copied().unwrap_or(due));
        }
        if bth.is_response() {
            due = answered(due, &bth);
        } else if record.fate.went_on() {
            arrivals.insert(bth.psn, due);
            if bth.psn == due {
                let is_read = bth.opcode == opcode::READ_REQUEST;
                due = behind(due, if is_read { read_packets(bth.psn, reads, &starts) } else { 1 });
            }
        }
    }
    Some(due)
}

/// An answer was sent: a positive one says what was executed, one that says "not ready" what was not.
fn answered(due: u32, bth: &Bth) -> u32 {
    let positive = bth.opcode != opcode::ACK || bth.aeth >> 29 == 0;
    if bth.is_receiver_not_ready() && ahead(bth.psn, due) > 0 {
        bth.psn
    } else if positive && ahead(due, bth.psn) >= 0 {
        behind(bth.psn, 1)
    } else {
        due
    }
}

/// The numbers of first transmissions, in order: what is sent again lies behind the newest.
fn first_numbers(requests: impl Iterator<Item = Bth>) -> Vec<u32> {
    let mut starts: Vec<u32> = Vec::new();
    for bth in requests {
        if starts.last().is_none_or(|last| ahead(*last, bth.psn) > 0) {
            starts.push(bth.psn);
        }
    }
    starts
}

/// Packets of a READ's response: as its length says, or up to the request behind it.
fn read_packets(psn: u32, reads: &BTreeMap<u32, u32>, starts: &[u32]) -> u32 {
    let next = || starts.iter().find(|start| ahead(psn, **start) > 0).map(|start| ahead(psn, *start) as u32);
    reads.get(&psn).copied().or_else(next).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::log::Fate;
    use crate::wire::packet::{parse, sample};

    const QPN: u32 = 0x21;
    const PEER: u32 = 0x42;

    fn request(code: u8, psn: u32, fate: Fate) -> Record {
        let packet = parse(&sample::roce4(code, PEER, psn, &[]));
        Record { at_ns: 0, link: Rail::Zero.link(), from: Host::A, packet, length: 64, fate, rule: None }
    }

    fn answer(code: u8, psn: u32, syndrome: u8) -> Record {
        let packet = parse(&sample::roce4(code, QPN, psn, &[syndrome, 0, 0, 1]));
        Record { from: Host::B, packet, ..request(0, 0, Fate::Dropped) }
    }

    fn listed(seq: u64, op: &str, bytes: u32, psn: u32, state: &str, (action, offset): (&str, u32)) -> Value {
        json!({ "seq": seq, "op": op, "bytes": bytes, "fenced": false, "posted": [0, psn], "state": state, "landed": false,
            "proven_offset": offset, "action": action, "offset": offset })
    }

    /// A WRITE of three packets is acknowledged; a READ of two is executed and its response lost; of a WRITE of three packets two arrive; a
    /// SEND does not.
    fn log() -> Vec<Record> {
        let passed = Fate::Passed;
        vec![
            request(0x06, 0xff_fffe, passed),
            request(0x07, 0xff_ffff, passed),
            request(0x08, 0, passed),
            answer(opcode::ACK, 0, 0x1f),
            request(opcode::READ_REQUEST, 1, passed),
            request(0x06, 3, passed),
            request(0x07, 4, passed),
            request(0x08, 5, Fate::Dropped),
            request(0x04, 6, passed),
            request(opcode::READ_REQUEST, 1, passed),
        ]
    }

    fn evidence(rq_psn: u32, requests: Vec<Value>) -> Evidence {
        let reported = [
            json!({ "epoch": 0, "path": 0, "own_qpn": QPN, "peer_qpn": PEER, "proof": "psn", "rq_psn": rq_psn, "receives": 0, "fenced": true }),
        ];
        Evidence::of_records([(Host::A, json!({ "qpn": QPN, "reported": reported, "requests": requests }))])
    }

    fn right() -> Vec<Value> {
        vec![
            listed(1, "read", 2000, 1, "executed", ("replay", 0)),
            listed(2, "write", 3000, 3, "partial", ("replay", 2048)),
            listed(3, "send", 10, 6, "not_executed", ("replay", 0)),
        ]
    }

    fn judged(log: &[Record], rq_psn: u32, requests: Vec<Value>) -> std::result::Result<Agreement, String> {
        judge(log, &evidence(rq_psn, requests), [Path { mtu: 1024, is_exact: true }; 2]).map_err(|why| why.to_string())
    }

    #[test]
    fn a_record_that_says_what_the_wire_says_is_right() {
        let counted = Agreement {
            queue_pairs: 1,
            executed: 1,
            partial: 1,
            not_executed: 1,
            with_executed: 1,
            ..Agreement::default()
        };
        assert_eq!(judged(&log(), 5, right()), Ok(counted));
    }

    #[test]
    fn a_later_incarnation_on_the_same_path_is_not_the_first() {
        let later = [request(0x04, (2 << 22) + 7, Fate::Passed), request(0x04, (2 << 22) + 8, Fate::Passed)];
        let log = [log(), later.to_vec()].concat();
        assert!(judged(&log, 5, right()).is_ok());
    }

    #[test]
    fn a_doctored_record_is_found() {
        assert!(judged(&log(), 6, right()).unwrap_err().contains("expects 000006"));
        for (at, name, value) in [
            (0, "state", json!("not_executed")),
            (1, "state", json!("executed")),
            (1, "offset", json!(1024)),
            (1, "offset", json!(0)),
            (2, "state", json!("executed")),
            (2, "state", json!("unknown")),
            (2, "action", json!("complete")),
            (2, "action", json!("error")),
            (0, "action", json!("complete")),
        ] {
            let mut requests = right();
            requests[at][name] = value;
            assert!(judged(&log(), 5, requests.clone()).is_err(), "{requests:?}");
        }
    }

    #[test]
    fn a_result_that_is_lost_and_nothing_else_is_an_error() {
        let log = [request(opcode::FETCH_ADD, 7, Fate::Passed), request(opcode::FETCH_ADD, 8, Fate::Passed)];
        let lost = |first: &str, second: &str| {
            vec![
                listed(1, "fetch_add", 8, 7, "executed", (first, 0)),
                listed(2, "fetch_add", 8, 8, "executed", (second, 0)),
            ]
        };
        assert!(judged(&log, 9, lost("error", "error")).is_ok());
        assert!(judged(&log, 9, lost("replay", "error")).is_err());
        assert!(judged(&log, 9, lost("complete", "error")).is_err());
        let mut landed = lost("complete", "error");
        landed[0]["landed"] = json!(true);
        assert!(judged(&log, 9, landed).is_ok());
    }

    #[test]
    fn what_the_receiver_was_not_ready_for_is_not_executed_and_what_it_answered_is() {
        let log = [
            request(0x04, 1, Fate::Passed),
            request(0x04, 2, Fate::Passed),
            answer(opcode::ACK, 1, 0x2c),
            request(0x04, 1, Fate::Passed),
        ];
        let send = |state: &str, action: &str, psn| vec![listed(1, "send", 10, psn, state, (action, 0))];
        assert!(judged(&log[..3], 1, send("not_executed", "replay", 1)).is_ok());
        assert!(judged(&log, 2, send("executed", "complete", 1)).is_ok());
        assert!(judged(&log, 2, send("not_executed", "replay", 2)).is_ok());
        // Answered: so the copy that was under way when it was not ready has been executed.
        let answered = [&log[..3], &[answer(opcode::ACK, 1, 0x1f)]].concat();
        assert!(judged(&answered, 2, send("executed", "complete", 1)).is_ok());
    }

    #[test]
    fn behind_what_the_receiver_refuses_nothing_is_executed() {
        let log = [
            request(opcode::READ_REQUEST, 1, Fate::Passed),
            request(0x04, 3, Fate::Passed),
            request(opcode::READ_REQUEST, 1, Fate::Passed),
            request(0x04, 4, Fate::Passed),
            answer(opcode::ACK, 1, 0x62),
            request(0x04, 4, Fate::Passed),
        ];
        let send = |psn, state: &str, action: &str| vec![listed(1, "send", 10, psn, state, (action, 0))];
        assert!(judged(&log, 4, send(3, "executed", "complete")).is_ok());
        assert!(judged(&log, 4, send(4, "not_executed", "replay")).is_ok());
        assert!(judged(&log, 5, send(4, "executed", "complete")).is_err());
        // One that only asks for what is missing refuses nothing.
        let asked = [&log[..4], &[answer(opcode::ACK, 1, 0x60)]].concat();
        assert!(judged(&asked, 5, send(4, "executed", "complete")).is_ok());
    }
}
