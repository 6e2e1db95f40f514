//! What lies in memory at the end of a fence, set against the packet number with which the fence ended.
//!
//! Below the shim, tests/preload sees the packet numbers of each fence and shows them here, while the queue pair is in
//! RESET and nothing of the standby has been written yet. The plan says which bytes each packet brings: so memory shows
//! how many packets were executed, and the number must be exactly that.

use crate::args::{Mode, Params};
use crate::layout::Layout;
use crate::predict::{Plan, POISON};
use crate::receiver::Receiver;
use crate::session::{say, Parts};
use crate::verbs::{watch_fences, FenceSeen, Window};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What was seen of all fences of this end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fences {
    /// First fences of queue pairs of this program.
    seen: u64,
    /// The number is what memory shows, and not all messages had come.
    right: u64,
    /// The same, but everything had come before: they prove nothing.
    idle: u64,
    /// Memory holds more than the number says.
    too_low: u64,
    /// Memory holds less.
    too_high: u64,
    /// A packet lies there in part.
    torn: u64,
    /// Packets were executed between ERR and RESET, or while ERR was set.
    executing: u64,
    /// The number right after ERR was another one.
    early_wrong: u64,
    /// The wrong ones in words, the first of them.
    findings: Vec<String>,
}

/// How the number compares with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Right,
    TooLow,
    TooHigh,
    Torn,
}

/// What lies where a packet's bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    Whole,
    Nothing,
    Piece,
    /// The packet has no byte by which it could be told.
    Untold,
}

/// Stands beside the run, and is called by the thread that fences.
struct Witness {
    mtu: u32,
    messages: u64,
    layout: Layout,
    shared: Window,
    flows: Vec<Flow>,
    fences: Mutex<Fences>,
}

struct Flow {
    qpn: u32,
    mode: Mode,
    plan: Plan,
    /// Messages below were verified and poisoned by the receiver.
    consumed: AtomicU64,
    /// Its first fence was seen. What a further one ends began in the middle of the plan.
    fenced: AtomicBool,
}

impl Flow {
    const fn new(qpn: u32, mode: Mode, plan: Plan) -> Self {
        Self { qpn, mode, plan, consumed: AtomicU64::new(0), fenced: AtomicBool::new(false) }
    }
}

static WITNESS: OnceLock<Witness> = OnceLock::new();

/// How long the receiver may take to say what it has consumed.
const PATIENCE: Duration = Duration::from_millis(300);
const FINDINGS: usize = 20;

/// Watches the fences of a run from now on; an error if the library below the shim is not there.
pub fn start(parts: &Parts) -> Result<(), String> {
    let params = &parts.ground.params;
    can_witness(params)?;
    let flows = (0..).zip(&parts.qps).zip(&parts.receivers);
    let flows = flows.map(|((at, qp), receiver)| Flow::new(qp.number(), params.mode(at), receiver.plan()));
    let witness = Witness {
        mtu: params.mtu,
        messages: params.messages,
        layout: parts.ground.layout.clone(),
        shared: parts.ground.shared.window(),
        flows: flows.collect(),
        fences: Mutex::default(),
    };
    WITNESS.set(witness).map_err(|_| "fences are watched already".to_owned())?;
    watch_fences(seen)
}

fn can_witness(params: &Params) -> Result<(), String> {
    if !params.modes.iter().all(|mode| matches!(mode, Mode::Write | Mode::Send | Mode::Fadd)) {
        return Err("--watch-fences knows the modes write, send and fadd".to_owned());
    }
    if params.size.min == 0 {
        return Err("--watch-fences needs messages of a byte at least: others leave no trace in memory".to_owned());
    }
    Ok(())
}

/// The receivers went on.
pub fn publish(receivers: &[Receiver]) {
    let Some(witness) = WITNESS.get() else { return };
    for (flow, receiver) in witness.flows.iter().zip(receivers) {
        flow.consumed.store(receiver.consumed(), Ordering::Release);
    }
}

/// Says what was seen, if fences are watched.
pub fn tell() {
    let Some(witness) = WITNESS.get() else { return };
    let fences = witness.fences.lock().unwrap_or_else(PoisonError::into_inner);
    say(&format!("FENCES {}", serde_json::to_string(&*fences).unwrap_or_default()));
}

fn seen(fence: FenceSeen) {
    if let Some(witness) = WITNESS.get() {
        witness.judge(fence);
    }
}

impl Witness {
    fn judge(&self, fence: FenceSeen) {
        let Some((number, flow)) = (0..).zip(&self.flows).find(|(_, flow)| flow.qpn == fence.qpn) else { return };
        if flow.fenced.swap(true, Ordering::Relaxed) {
            return;
        }
        let packets = u64::from(fence.told.wrapping_sub(fence.first) & 0xff_ffff);
        let mut judgement = self.compare(number, flow, packets);
        let mut waited = Duration::ZERO;
        // What was consumed is poisoned before it is published.
        while judgement == Judgement::TooHigh && waited < PATIENCE {
            const STEP: Duration = Duration::from_millis(2);
            std::thread::sleep(STEP);
            waited += STEP;
            judgement = self.compare(number, flow, packets);
        }
        let (message, _) = self.place(flow, packets);
        let mut fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        fences.seen += 1;
        fences.executing += u64::from(fence.last != fence.before);
        fences.early_wrong += u64::from(fence.last != fence.early);
        *match judgement {
            Judgement::Right if message < self.messages => &mut fences.right,
            Judgement::Right => &mut fences.idle,
            Judgement::TooLow => &mut fences.too_low,
            Judgement::TooHigh => &mut fences.too_high,
            Judgement::Torn => &mut fences.torn,
        } += 1;
        if judgement != Judgement::Right && fences.findings.len() < FINDINGS {
            let consumed = flow.consumed.load(Ordering::Acquire);
            fences.findings.push(format!("{judgement:?} at message {message}, {consumed} consumed: {fence:?}"));
        }
    }

    /// Packets of a message.
    fn span(&self, flow: &Flow, message: u64) -> u64 {
        u64::from(flow.plan.message(message).len.div_ceil(self.mtu).max(1))
    }

    /// The message and the packet of it that follow after so many packets.
    fn place(&self, flow: &Flow, packets: u64) -> (u64, u64) {
        let mut left = packets;
        for message in 0..self.messages {
            let span = self.span(flow, message);
            if left < span {
                return (message, left);
            }
            left -= span;
        }
        (self.messages, left)
    }

    fn compare(&self, number: u16, flow: &Flow, packets: u64) -> Judgement {
        if flow.mode == Mode::Fadd {
            return self.compare_counter(number, flow, packets);
        }
        let (message, packet) = self.place(flow, packets);
        let next = if message < self.messages { self.lies(number, flow, message, packet) } else { Lies::Nothing };
        let last = match (packet.checked_sub(1), message.checked_sub(1)) {
            (Some(packet), _) => self.lies(number, flow, message, packet),
            (None, Some(before)) if flow.consumed.load(Ordering::Acquire) <= before => {
                self.lies(number, flow, before, self.span(flow, before) - 1)
            }
            (None, _) => Lies::Untold,
        };
        match (last, next) {
            (Lies::Piece, _) | (_, Lies::Piece) => Judgement::Torn,
            (_, Lies::Whole) => Judgement::TooLow,
            (Lies::Nothing, _) => Judgement::TooHigh,
            (Lies::Whole | Lies::Untold, Lies::Nothing | Lies::Untold) => Judgement::Right,
        }
    }

    fn compare_counter(&self, number: u16, flow: &Flow, packets: u64) -> Judgement {
        let mut bytes = [0; 8];
        self.shared.read(self.layout.counter(number), &mut bytes);
        let counter = u64::from_ne_bytes(bytes);
        if counter == flow.plan.counter_before(packets) {
            return Judgement::Right;
        }
        let later = (packets + 1..=self.messages).any(|atomics| counter == flow.plan.counter_before(atomics));
        if later {
            Judgement::TooLow
        } else {
            Judgement::TooHigh
        }
    }

    fn lies(&self, number: u16, flow: &Flow, message: u64, packet: u64) -> Lies {
        let len = u64::from(flow.plan.message(message).len);
        let from = packet * u64::from(self.mtu);
        let bytes = len.min(from + u64::from(self.mtu)).saturating_sub(from) as usize;
        let slot = match flow.mode {
            // Every message takes a receive, so the counters of both are the same.
            Mode::Send => self.layout.receive_slot(number, message),
            Mode::Write
            | Mode::WriteImm
            | Mode::Read
            | Mode::Mixed
            | Mode::MixedAtomic
            | Mode::FaddSend
            | Mode::Relay
            | Mode::Fadd
            | Mode::Cas => self.layout.ring_slot(number, message),
        };
        let (mut there, mut due) = (vec![0; bytes], vec![0; bytes]);
        self.shared.read(slot + from, &mut there);
        flow.plan.payload(message).fill(from, &mut due);
        let clean = |bytes: &[u8]| bytes.iter().all(|&byte| byte == POISON);
        match (clean(&due), clean(&there), there == due) {
            (true, _, _) => Lies::Untold,
            (false, true, _) => Lies::Nothing,
            (false, false, true) => Lies::Whole,
            (false, false, false) => Lies::Piece,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::SizeRange;
    use crate::predict::Direction;

    /// One flow of messages of 3000 bytes and a memory in which the first `packets` packets lie.
    fn after(mode: Mode, packets: u64) -> (Witness, Vec<u8>) {
        let size = SizeRange { min: 3000, max: 3000 };
        let params = Params { modes: vec![mode], size, messages: 20, depth: 16, mtu: 1024, ..Params::for_tests() };
        let layout = Layout::new(&params);
        let mut memory = vec![POISON; layout.shared_bytes() as usize];
        let plan = Plan::new(&params, 0, Direction::ClientToServer);
        let counter = layout.counter(0) as usize;
        memory[counter..counter + 8].copy_from_slice(&plan.counter_before(packets).to_ne_bytes());
        for packet in 0..packets {
            let (message, from) = (packet / 3, packet % 3 * 1024);
            let slot = if mode == Mode::Send { layout.receive_slot(0, message) } else { layout.ring_slot(0, message) };
            let (at, end) = ((slot + from) as usize, (slot + (from + 1024).min(3000)) as usize);
            plan.payload(message).fill(from, &mut memory[at..end]);
        }
        let flows = vec![Flow::new(7, mode, plan)];
        let shared = Window::of_test(&memory);
        let fences = Mutex::default();
        (Witness { mtu: 1024, messages: 20, layout, shared, flows, fences }, memory)
    }

    fn judged(mode: Mode, packets: u64, told: u64) -> Judgement {
        let (witness, _memory) = after(mode, packets);
        witness.compare(0, &witness.flows[0], told)
    }

    #[test]
    fn a_number_is_right_or_too_low_or_too_high() {
        for mode in [Mode::Write, Mode::Send, Mode::Fadd] {
            for packets in 2..14 {
                assert_eq!(judged(mode, packets, packets), Judgement::Right, "{mode:?} {packets}");
                assert_eq!(judged(mode, packets, packets - 1), Judgement::TooLow, "{mode:?} {packets}");
                assert_eq!(judged(mode, packets, packets + 1), Judgement::TooHigh, "{mode:?} {packets}");
            }
        }
    }

    #[test]
    fn what_was_consumed_is_missed_by_nobody() {
        let (witness, mut memory) = after(Mode::Write, 6);
        let slot = witness.layout.ring_slot(0, 1) as usize;
        memory[slot..slot + 3000].fill(POISON);
        assert_eq!(witness.compare(0, &witness.flows[0], 6), Judgement::TooHigh);
        witness.flows[0].consumed.store(2, Ordering::Release);
        assert_eq!(witness.compare(0, &witness.flows[0], 6), Judgement::Right);
    }

    #[test]
    fn a_piece_of_a_packet_is_seen() {
        let (witness, mut memory) = after(Mode::Send, 7);
        let slot = witness.layout.receive_slot(0, 2) as usize;
        memory[slot + 1023] = POISON;
        assert_eq!(witness.compare(0, &witness.flows[0], 7), Judgement::Torn);
    }

    #[test]
    fn a_fence_behind_the_last_message_is_idle() {
        let (witness, _memory) = after(Mode::Fadd, 20);
        witness.judge(FenceSeen { qpn: 7, first: 0xff_fff8, before: 12, early: 12, last: 12, told: 12 });
        let fences = witness.fences.lock().expect("nobody panicked").clone();
        assert_eq!((fences.seen, fences.idle, fences.right), (1, 1, 0));
    }
}
