//! What becomes of a work request whose path died: the decision table as one pure function, and the policy that the
//! operator may set where the table leaves a choice.
//!
//! The table rests on three theorems of "A Formal Verification of Failover Impossibility" about a sender that cannot tell
//! "packet lost" from "executed, acknowledgement lost": no rule over that view is both safe and live ("Indistinguishability
//! of Packet Loss and ACK Loss"), a repeated atomic takes effect twice ("Non-Idempotency of Atomic Operations"), and reading
//! remote memory does not settle it ("Consensus Hierarchy Barrier"). So what is posted again needs proof of what the
//! receiver did, or be an operation whose repetition is declared harmless.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::ledger::{IncarnationReport, Op, Proof, State};

/// What to do with a request whose execution is unknown, where the table leaves that to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnUnknown {
    /// Post it again: right where the consumer waits for a later notification before it looks.
    Replay,
    /// Give the application an error: right where the consumer polls the written memory itself.
    Error,
}

/// What is known of one entry when its fate is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What is proven of its execution.
    pub state: State,
    /// Of a READ or atomic: its result is in the requester's memory.
    pub landed: bool,
    /// The policy that held when it was posted.
    pub unknown: OnUnknown,
    /// Not every incarnation it was posted on proves that none of it was executed (of a SEND: that it did not complete).
    pub possibly_begun: bool,
    /// That holds of a later fenced request other than a READ.
    pub later_fenced_possibly_begun: bool,
}

/// The table's answer for one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect: the application gets its success, nothing is posted.
    Complete,
    /// Post all of it again.
    Replay,
    /// Post it again from the offset up to which its execution is proven.
    ReplayFromProven,
    /// It must not be posted again and cannot be called complete: the walk stops here.
    Error(Reason),
}

/// Why the walk over the ledger stops at an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A SEND of which nobody knows whether it consumed a receive.
    SendUnknown,
    /// A WRITE_WITH_IMM of which nobody knows whether it consumed a receive.
    WriteImmUnknown,
    /// A WRITE_WITH_IMM that may have placed data, under `write=error`.
    WriteImmBegun,
    /// A WRITE of unknown execution, under `write=error`.
    WriteUnknown,
    /// A WRITE of unknown execution in front of an entry that ends in an error.
    WriteBeforeStop,
    /// A READ without its result, behind which a fenced request may have begun to change what it would read.
    ReadFenced,
    /// A READ without its result that may have been executed, under `read=error`.
    ReadBegun,
    /// An atomic that was executed and whose result is lost.
    AtomicResultLost,
    /// An atomic of unknown execution.
    AtomicUnknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SendUnknown => "it is not known whether the SEND consumed a receive",
            Self::WriteImmUnknown => "it is not known whether the WRITE_WITH_IMM consumed a receive",
            Self::WriteImmBegun => "the WRITE_WITH_IMM may have placed data and the policy is error",
            Self::WriteUnknown => "it is not known whether the WRITE was executed and the policy is error",
            Self::WriteBeforeStop => {
                "it is not known whether the WRITE was executed and a later request ends in an error"
            }
            Self::ReadFenced => "the READ has no result and a fenced request behind it may have begun",
            Self::ReadBegun => "the READ has no result, may have been executed and the policy is error",
            Self::AtomicResultLost => "the atomic was executed and its result is lost",
            Self::AtomicUnknown => "it is not known whether the atomic was executed",
        })
    }
}

/// The decision table.
#[must_use]
pub const fn decide(op: Op, facts: Facts) -> Verdict {
    match op {
        Op::Send | Op::SendImm => decide_send(facts.state),
        Op::WriteImm => decide_write_imm(facts),
        Op::Write => decide_write(facts),
        Op::Read => decide_read(facts),
        Op::FetchAdd | Op::CompareSwap => decide_atomic(facts),
    }
}

const fn decide_send(state: State) -> Verdict {
    match state {
        State::Executed => Verdict::Complete,
        State::Partial | State::NotExecuted => Verdict::Replay,
        State::Unknown => Verdict::Error(Reason::SendUnknown),
    }
}

/// Data of a WRITE_WITH_IMM that did not complete may lie in the receiver's memory: to place it twice is what
/// `write=error` forbids.
const fn decide_write_imm(facts: Facts) -> Verdict {
    match (facts.state, facts.unknown, facts.possibly_begun) {
        (State::Executed, _, _) => Verdict::Complete,
        (State::Unknown, _, _) => Verdict::Error(Reason::WriteImmUnknown),
        (State::Partial, OnUnknown::Error, _) | (State::NotExecuted, OnUnknown::Error, true) => {
            Verdict::Error(Reason::WriteImmBegun)
        }
        (State::Partial | State::NotExecuted, OnUnknown::Replay, _) | (State::NotExecuted, OnUnknown::Error, false) => {
            Verdict::Replay
        }
    }
}

const fn decide_write(facts: Facts) -> Verdict {
    match (facts.state, facts.unknown) {
        (State::Executed, _) => Verdict::Complete,
        (State::Partial | State::NotExecuted, _) | (State::Unknown, OnUnknown::Replay) => Verdict::ReplayFromProven,
        (State::Unknown, OnUnknown::Error) => Verdict::Error(Reason::WriteUnknown),
    }
}

/// A READ changes nothing at the responder, so its execution does not matter; what matters is whether its result arrived
/// and whether a second run could see what the application ordered behind it.
const fn decide_read(facts: Facts) -> Verdict {
    if facts.landed {
        Verdict::Complete
    } else if facts.later_fenced_possibly_begun {
        Verdict::Error(Reason::ReadFenced)
    } else {
        match (facts.unknown, facts.possibly_begun) {
            (OnUnknown::Error, true) => Verdict::Error(Reason::ReadBegun),
            (OnUnknown::Replay, _) | (OnUnknown::Error, false) => Verdict::Replay,
        }
    }
}

const fn decide_atomic(facts: Facts) -> Verdict {
    if facts.landed {
        return Verdict::Complete;
    }
    match facts.state {
        State::Executed => Verdict::Error(Reason::AtomicResultLost),
        State::NotExecuted => Verdict::Replay,
        // An atomic is one packet and cannot be half done; should a report say so, nothing is known.
        State::Partial | State::Unknown => Verdict::Error(Reason::AtomicUnknown),
    }
}

/// Whether a request could end in an error if its path died now, however good the proofs are: what makes an end wait for
/// its NIC's own retries before it fences.
#[must_use]
pub const fn could_end_in_error(op: Op, unknown: OnUnknown) -> bool {
    match op {
        Op::FetchAdd | Op::CompareSwap => true,
        Op::Write | Op::WriteImm | Op::Read => matches!(unknown, OnUnknown::Error),
        Op::Send | Op::SendImm => false,
    }
}

/// How many items `SHIFT_POLICY` may have; more are a mistake, and the list is walked at every post.
pub const MAX_ITEMS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Write { at_most: Option<u32> },
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    scope: Scope,
    unknown: OnUnknown,
}

/// The operator's policy, `SHIFT_POLICY`: a list of items of which the first that matches a request decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    items: Vec<Item>,
}

/// Why a text is no policy. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for PolicyError {}

impl Policy {
    /// Reads `item[,item]`, item = `write=replay|error`, `write<=BYTES=replay|error`, `read=replay|error`. Blank text is the
    /// default, `write=replay,read=replay`.
    ///
    /// # Errors
    /// The text names something else, or an operation that no policy may decide.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut items = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self { items });
        }
        for word in text.split(',') {
            if items.len() == MAX_ITEMS {
                return Err(PolicyError(alloc::format!(
                    "the policy has more than {MAX_ITEMS} items: merge some of them"
                )));
            }
            items.push(parse_item(word.trim())?);
        }
        Ok(Self { items })
    }

    /// What holds for a request of that kind and size. To be asked at post and kept with the request.
    #[must_use]
    pub fn at_post(&self, op: Op, bytes: u32) -> OnUnknown {
        let matching = self.items.iter().find(|item| item.scope.covers(op, bytes));
        matching.map_or(OnUnknown::Replay, |item| item.unknown)
    }
}

impl Scope {
    const fn covers(self, op: Op, bytes: u32) -> bool {
        match (self, op) {
            (Self::Write { at_most: None }, Op::Write | Op::WriteImm) | (Self::Read, Op::Read) => true,
            (Self::Write { at_most: Some(limit) }, Op::Write | Op::WriteImm) => bytes <= limit,
            (Self::Write { .. }, Op::Read)
            | (Self::Read, Op::Write | Op::WriteImm)
            | (_, Op::Send | Op::SendImm | Op::FetchAdd | Op::CompareSwap) => false,
        }
    }
}

fn parse_item(item: &str) -> Result<Item, PolicyError> {
    let Some((subject, action)) = item.rsplit_once('=') else {
        return Err(PolicyError(alloc::format!(
            "\"{item}\" is no policy item: write it as write=replay, write<=BYTES=error or read=error"
        )));
    };
    let scope = parse_scope(item, subject.trim())?;
    let unknown = match action.trim() {
        "replay" => OnUnknown::Replay,
        "error" => OnUnknown::Error,
        other => {
            return Err(PolicyError(alloc::format!("\"{other}\" in \"{item}\" is no action: use replay or error")))
        }
    };
    Ok(Item { scope, unknown })
}

fn parse_scope(item: &str, subject: &str) -> Result<Scope, PolicyError> {
    let (name, limit) = match subject.split_once("<=") {
        Some((name, limit)) => (name.trim(), Some(limit.trim())),
        None => (subject, None),
    };
    match (name, limit) {
        ("write", None) => Ok(Scope::Write { at_most: None }),
        ("write", Some(limit)) => match limit.parse() {
            Ok(bytes) => Ok(Scope::Write { at_most: Some(bytes) }),
            Err(_) => Err(PolicyError(alloc::format!(
                "\"{limit}\" in \"{item}\" is no size: give bytes, as in write<=4096=error"
            ))),
        },
        ("read", None) => Ok(Scope::Read),
        ("read", Some(_)) => {
            Err(PolicyError(alloc::format!("\"{item}\": a READ has no size limit: use read=replay or read=error")))
        }
        _ => Err(refused(item, name)),
    }
}

fn refused(item: &str, name: &str) -> PolicyError {
    let reason = match name {
        "send" => "a SEND takes effect exactly once: each consumes one receive, and a second one would shift every message behind it into the wrong buffer",
        "write_imm" => "a WRITE_WITH_IMM consumes one receive and takes effect exactly once; for its data it follows the write item of its size, so set that",
        "atomic" => "a repeated atomic breaks linearizability, so one that is not proven unexecuted is never posted again",
        _ => return PolicyError(alloc::format!("\"{name}\" in \"{item}\" is no operation that a policy decides: use write, write<=BYTES or read")),
    };
    PolicyError(alloc::format!("\"{item}\" is refused, remove it: {reason}"))
}

/// `SHIFT_PROOF`: the best level of proof that reports may claim. For trust in a provider, and for tests of the weaker levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProofCap {
    /// Whatever the provider allows.
    #[default]
    Psn,
    /// At most the receive count.
    Count,
    /// Nothing but what the sender saw, and the successes that the receiver drained.
    Sender,
}

impl ProofCap {
    /// Reads `psn`, `count` or `sender`; blank text is the default, `psn`.
    ///
    /// # Errors
    /// The text is something else.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        match text.trim() {
            "" | "psn" => Ok(Self::Psn),
            "count" => Ok(Self::Count),
            "sender" => Ok(Self::Sender),
            other => Err(PolicyError(alloc::format!("\"{other}\" is no level of proof: use psn, count or sender"))),
        }
    }

    /// The report with no better proof than the cap allows. Successes drained count at every level.
    #[must_use]
    pub const fn limit(self, report: IncarnationReport) -> IncarnationReport {
        let proof = match (self, report.proof) {
            (Self::Psn, proof)
            | (Self::Count | Self::Sender, proof @ Proof::None)
            | (Self::Count, proof @ Proof::Count) => proof,
            (Self::Count, Proof::Psn(_)) => Proof::Count,
            (Self::Sender, Proof::Psn(_) | Proof::Count) => Proof::None,
        };
        IncarnationReport { proof, ..report }
    }
}
