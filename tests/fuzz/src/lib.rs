//! What reads bytes from outside, each as a function of any bytes that must return: frames, connections, the environment, the policy, and the requests of
//! the local socket. `tests/corpus.rs` runs them over the inputs in `corpus/`, `ci/fuzz` looks for more of those.

#![allow(clippy::panic, clippy::expect_used, reason = "this is how a fuzzer is told")]

use std::collections::VecDeque;

use shift_control::channel::{Channel, Terms};
use shift_control::config::Config;
use shift_control::job_key::JobKey;
use shift_control::status::Request;
use shift_proto::frame::{split_prefixed, Frame, Opening, MAX_FRAME};
use shift_proto::ledger::Op;
use shift_proto::policy::{Policy, ProofCap};

/// Must return, whatever the bytes are.
pub type Target = fn(&[u8]);

/// Name and function of each.
pub const TARGETS: [(&str, Target); 6] = [
    ("frames", frames),
    ("channel", channel),
    ("conversation", conversation),
    ("configuration", configuration),
    ("policy", policy),
    ("requests", requests),
];

/// The one of that name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

/// A frame, a stream of prefixed frames, an opening: what is understood is said again in bytes that mean the same.
pub fn frames(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again).expect("a frame that was read is within its bounds");
        assert_eq!(Frame::decode(&again).as_ref(), Ok(&frame));
    }
    let mut rest = bytes;
    while let Ok(Some((body, used))) = split_prefixed(rest, MAX_FRAME) {
        assert!(body.len() <= MAX_FRAME && used <= rest.len(), "more than there is");
        let _ = Frame::decode(body);
        rest = rest.get(used..).unwrap_or_default();
    }
    if let Ok(Some(opening)) = Opening::decode(bytes) {
        assert_eq!(Opening::decode(&opening.encode()), Ok(Some(opening)));
    }
}

/// A connection that gets these bytes in pieces: the first byte says how long they are, and on what terms. What it is given more than once it takes as often.
pub fn channel(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let key = (how & KEYED != 0).then(|| JobKey::new(b"one of these"));
    let mut channel = Channel::new(&Terms { key, ..Terms::default() }, how & 0x40 != 0, [7; 16]);
    let (mut input, mut output) = (Vec::new(), VecDeque::new());
    channel.start(&mut output);
    for piece in bytes.chunks(usize::from(how & 0x3f) + 1) {
        input.extend_from_slice(piece);
        let before = input.len();
        if channel.receive(&mut input, MAX_FRAME, &mut output, drop).is_err() {
            return;
        }
        assert!(input.len() <= before, "bytes that did not come");
    }
}

/// What an honest end of the same job sends, one bit of it changed on the way or none. The first byte says who dialed, with what keys, and how long the pieces
/// are; the next two where the change is; the rest are bodies, a byte of length before each.
pub fn conversation(bytes: &[u8]) {
    let Some(([how, low, high], rest)) = bytes.split_first_chunk() else { return };
    let bodies = bodies(rest);
    let (mut teller, mut hearer) = introduced(*how);
    let (mut wire, mut ends) = (VecDeque::new(), Vec::new());
    for body in &bodies {
        teller.send(body, &mut wire);
        ends.push(wire.len());
    }
    let mut wire = Vec::from(wire);
    let bit = usize::from(u16::from_le_bytes([*low, *high]));
    let changed = bit.checked_sub(8).map(|bit| bit / 8).filter(|at| *at < wire.len());
    if let Some(byte) = changed.and_then(|at| wire.get_mut(at)) {
        *byte ^= 1 << (bit % 8);
    }
    let (mut input, mut heard) = (Vec::new(), Vec::new());
    for piece in wire.chunks(usize::from(how & 0x0f) + 1) {
        input.extend_from_slice(piece);
        if hearer.receive(&mut input, MAX_FRAME, &mut VecDeque::new(), |frame| heard.push(frame)).is_err() {
            break;
        }
    }
    let intact = ends.iter().filter(|end| changed.is_none_or(|at| **end <= at)).count();
    let said: Vec<Frame> = bodies.iter().take(intact).map_while(|body| Frame::decode(body).ok()).collect();
    // Without a key a change is the network's to find, and any frame may have become another.
    if changed.is_none() || how & KEYED != 0 {
        assert_eq!(heard, said, "not what was said");
    }
}

const KEYED: u8 = 0x80;

/// Two ends that have said their openings, and shown their keys where they have some: who tells, who hears.
fn introduced(how: u8) -> (Channel, Channel) {
    let key = |bit: u8, secret: &[u8]| (how & bit != 0).then(|| JobKey::new(secret));
    let plain = Terms { key: key(KEYED, b"one of these"), ..Terms::default() };
    // Who begins to rotate has the key that all have as the older one.
    let rotating = Terms { key: key(KEYED, b"another"), older: plain.key.clone(), ..Terms::default() };
    let dialed = how & 0x40 != 0;
    let mut teller = Channel::new(&plain, dialed, [1; 16]);
    let mut hearer = Channel::new(if how & 0x20 != 0 { &rotating } else { &plain }, !dialed, [2; 16]);
    let (mut told, mut answered) = (VecDeque::new(), VecDeque::new());
    teller.start(&mut told);
    hearer.start(&mut answered);
    while !(told.is_empty() && answered.is_empty()) {
        let took = hearer.receive(&mut told.drain(..).collect(), MAX_FRAME, &mut answered, drop);
        took.expect("an honest end is heard");
        let took = teller.receive(&mut answered.drain(..).collect(), MAX_FRAME, &mut told, drop);
        took.expect("an honest end is heard");
    }
    assert!(teller.is_open() && hearer.is_open(), "two ends of one job do not meet");
    (teller, hearer)
}

/// What lies behind bytes that say how long it is; the last may be shorter.
fn bodies(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while let Some((length, behind)) = rest.split_first() {
        let (body, others) = behind.split_at(usize::from(*length).min(behind.len()));
        bodies.push(body);
        rest = others;
    }
    bodies
}

/// The environment, a variable a line. Files are not read.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let pairs = pairs.filter(|(name, _)| *name != "SHIFT_JOB_KEY_FILE");
    match Config::from_env(pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))) {
        Ok(config) => {
            config.deadlines.check().expect("a configuration that is taken holds what its deadlines must");
            let _ = config.event_file_of(7);
        }
        Err(errors) => assert!(errors.iter().all(|error| !error.wanted.is_empty()), "a refusal without a reason"),
    }
}

/// A policy, asked about every kind of request, and a level of proof.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let _ = ProofCap::parse(text);
    if let Ok(policy) = Policy::parse(text) {
        for op in Op::ALL {
            for size in [0, 1, 63, 64, 65, u32::MAX] {
                let _ = policy.at_post(op, size);
            }
        }
        assert_eq!(Policy::parse(&format!(" {text} ")), Ok(policy), "blanks around it mean nothing");
    }
}

/// A line of the local socket.
pub fn requests(bytes: &[u8]) {
    if let Ok(request) = Request::read(bytes) {
        let again = serde_json::to_vec(&request).expect("a request has a form");
        assert_eq!(Request::read(&again), Ok(request));
    }
}
