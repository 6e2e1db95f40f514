//! A run with NCCL's work requests, on lanes that carry data one way each.
//!
//! Of a lane the receiver posts an empty receive and writes a clear-to-send entry into the sender's memory; the sender, who makes no verbs call
//! while it waits for one, writes data and notifies; the receiver makes the data visible by a READ on a queue pair of its own, and checks
//! every byte. Owns the loop, the side channel and the verdict; the two ends of a lane are in `sender` and `receiver`.

mod memory;
mod receiver;
mod sender;

use crate::args::{Local, Params, Ways};
use crate::judge::Kind;
use crate::report::{Ending, Report, Verdict};
use crate::session::say;
use crate::setup::{exchange, meet, psn, route, End, SetupError};
use crate::side::{Endpoint, Note, Side};
use crate::trigger::Trigger;
use crate::verbs::{monotonic_ns, CqWish, Qp, QpWish, Verbs};
use memory::{Lane, Place};
use receiver::LaneReceiver;
use sender::LaneSender;
use shift_abi::*;
use std::time::Duration;

/// A second of the clock.
const SECOND_NS: u64 = 1_000_000_000;
/// NCCL's queue pairs have room for twice as many requests as it has under way.
const SEND_QUEUE: u32 = 2;

/// One end of a run.
struct Run {
    verbs: Verbs,
    qps: Vec<Qp>,
    flush_qps: Vec<Qp>,
    place: Place,
    senders: Vec<LaneSender>,
    receivers: Vec<LaneReceiver>,
    side: Side,
    verdict: Verdict,
    events: u64,
    trigger: Option<Trigger>,
}

/// Sets up one end, runs it, and prints its report.
///
/// # Errors
/// The verbs or the peer refuse.
pub fn run(end: End, params: &Params, local: &Local, side: Side, trigger: Option<Trigger>) -> Result<u8, SetupError> {
    let name = match end {
        End::Server => "server",
        End::Client => "client",
    };
    let mut run = prepare(end, params, local, side, trigger)?;
    let started = monotonic_ns();
    say(&format!("STARTED {name} t={started}"));
    let ending = run.drive(params);
    run.verdict.events = run.events;
    let ended = monotonic_ns();
    let done = ending == Ending::Done;
    let report = Report::new(name, params, std::mem::take(&mut run.verdict), &ending, (started, ended));
    say(&serde_json::to_string(&report).map_err(std::io::Error::from)?);
    if done {
        run.close()?;
    }
    Ok(report.exit_status())
}

/// Whether the data of a lane goes from this end.
fn sends(end: End, params: &Params, lane: u16) -> bool {
    let from_client = params.direction == Ways::One || lane.is_multiple_of(2);
    from_client == (end == End::Client)
}

fn prepare(
    end: End,
    params: &Params,
    local: &Local,
    mut side: Side,
    trigger: Option<Trigger>,
) -> Result<Run, SetupError> {
    let lanes = u32::from(params.qps);
    // Sends, receives and flushes of every lane.
    let cqe = lanes * params.depth * (SEND_QUEUE + 2);
    let wish = CqWish { cqe, split: false, waiting: None, api: params.api, hears: true };
    let verbs = Verbs::open(local.dev.as_deref(), local.port, wish)?;
    let (gid_index, gid) = verbs.gid(local.gid_index)?;
    let access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    let place = Place::new(params, |bytes| verbs.region(bytes, access))?;
    let wish = QpWish { send_wrs: params.depth * SEND_QUEUE, receive_wrs: params.depth, sges: 1, inline: 0 };
    let make = |_| -> Result<Qp, SetupError> {
        let qp = verbs.qp(None, wish)?;
        qp.init()?;
        Ok(qp)
    };
    let qps = (0..params.qps).map(make).collect::<Result<Vec<_>, _>>()?;
    let receives = (0..params.qps).filter(|lane| !sends(end, params, *lane));
    let flush_qps = receives.map(make).collect::<Result<Vec<_>, _>>()?;
    let psns: Vec<u32> = (0..params.qps).map(|qp| psn(params.seed, end, qp)).collect();
    let numbers = qps.iter().map(Qp::number).zip(psns.iter().copied()).collect();
    let (addr, rkey) = (place.shared.addr(0), place.shared.rkey());
    let peer = exchange(&mut side, Endpoint { gid, addr, rkey, qps: numbers })?;
    for ((qp, &psn), &theirs) in qps.iter().zip(&psns).zip(&peer.qps) {
        qp.connect(route(params, &verbs, gid_index, psn, (peer.gid, theirs))?)?;
    }
    for qp in &flush_qps {
        qp.connect(route(params, &verbs, gid_index, 0, (gid, (qp.number(), 0)))?)?;
    }
    let lane = |number| Lane { number, params: params.clone(), peer: peer.clone() };
    let all = 0..params.qps;
    let senders = all.clone().filter(|each| sends(end, params, *each)).map(|each| LaneSender::new(lane(each)));
    let receivers = all.filter(|each| !sends(end, params, *each)).map(|each| LaneReceiver::new(lane(each)));
    let (senders, receivers) = (senders.collect(), receivers.collect());
    let verdict = Verdict::default();
    let mut run = Run { verbs, qps, flush_qps, place, senders, receivers, side, verdict, events: 0, trigger };
    for receiver in &mut run.receivers {
        receiver.prepare(&run.place, &mut run.qps)?;
    }
    meet(&mut run.side)?;
    Ok(run)
}

impl Run {
    fn drive(&mut self, params: &Params) -> Ending {
        let ended = self.transfer(params);
        let ending = match ended {
            Ok(true) => Ending::Done,
            Ok(false) => Ending::Deadline,
            Err(why) => Ending::GaveUp(why),
        };
        for receiver in &self.receivers {
            receiver.missing(&mut self.verdict);
        }
        for sender in &self.senders {
            sender.missing(&mut self.verdict);
        }
        if ending != Ending::Done {
            let _ = self.side.send(&Note::Failed(format!("{ending:?}")));
        }
        ending
    }

    /// To the end of both sides; false if nothing moved for too long.
    fn transfer(&mut self, params: &Params) -> Result<bool, String> {
        let (mut progress, mut settled_at) = (monotonic_ns(), None);
        let (mut peer_finished, mut told) = (false, false);
        loop {
            let now = monotonic_ns();
            let mut moved = self.poll(now)?;
            moved |= self.post(params)?;
            self.read_news()?;
            while let Some(note) = self.side.poll().map_err(|e| format!("the peer is gone: {e}"))? {
                if note != Note::Finished {
                    return Err(format!("the peer said {note:?}"));
                }
                peer_finished = true;
            }
            if moved {
                progress = now;
            }
            let finished =
                self.senders.iter().all(LaneSender::is_done) && self.receivers.iter().all(LaneReceiver::is_done);
            if finished && !told {
                told = true;
                self.side.send(&Note::Finished).map_err(|e| e.to_string())?;
            }
            if finished && peer_finished {
                let until = *settled_at.get_or_insert(now + params.settle_ms * 1_000_000);
                if now >= until {
                    self.receivers.iter().for_each(|receiver| receiver.settled(&self.place, &mut self.verdict));
                    return Ok(true);
                }
            } else if now - progress > params.deadline * SECOND_NS {
                return Ok(false);
            }
            if !moved {
                std::thread::yield_now();
            }
        }
    }

    fn poll(&mut self, now: u64) -> Result<bool, String> {
        let mut wcs = Vec::new();
        self.verbs.poll(&mut wcs).map_err(|e| e.to_string())?;
        for wc in &wcs {
            if wc.status != IBV_WC_SUCCESS {
                self.verdict.error(wc, 0, "either", wc.wr_id, now);
                return Err(format!("a completion with {:?} on qp {:#x}", wc.status, wc.qp_num));
            }
            self.verdict.gap.success(now);
            self.completed(wc)?;
        }
        Ok(!wcs.is_empty())
    }

    fn completed(&mut self, wc: &ibv_wc) -> Result<(), String> {
        let Run { senders, receivers, qps, flush_qps, place, verdict, .. } = self;
        if let Some(index) = flush_qps.iter().position(|qp| qp.number() == wc.qp_num) {
            let receiver = receivers.get_mut(index).ok_or("a flush of nobody")?;
            receiver.flushed(wc, place, verdict);
            return Ok(());
        }
        let Some(lane) = qps.iter().position(|qp| qp.number() == wc.qp_num) else {
            verdict.tally.count(Kind::CompletionWrong, || format!("of queue pair {:#x}", wc.qp_num));
            return Ok(());
        };
        if let Some(sender) = senders.iter_mut().find(|each| usize::from(each.number()) == lane) {
            sender.completed(wc, verdict);
        }
        let receiver = receivers.iter_mut().enumerate().find(|(_, each)| usize::from(each.number()) == lane);
        if let Some((index, receiver)) = receiver {
            let flush_qp = flush_qps.get_mut(index).ok_or("no queue pair to flush with")?;
            receiver.completed(wc, place, flush_qp, verdict)?;
        }
        Ok(())
    }

    fn post(&mut self, params: &Params) -> Result<bool, String> {
        let mut moved = false;
        let Run { senders, receivers, qps, place, verdict, trigger, .. } = self;
        let fired = trigger.as_mut().map_or(Ok(true), Trigger::fired)?;
        let gate = params.pause_before_message.filter(|_| !fired);
        for sender in senders {
            let qp = qps.get_mut(usize::from(sender.number())).ok_or("no such lane")?;
            moved |= sender.step(place, qp, gate, verdict)?;
        }
        for receiver in receivers {
            let qp = qps.get_mut(usize::from(receiver.number())).ok_or("no such lane")?;
            moved |= receiver.step(place, qp)?;
        }
        Ok(moved)
    }

    /// What NCCL takes for the end: anything but news of a port.
    fn read_news(&mut self) -> Result<(), String> {
        const OF_A_PORT: [ibv_event_type; 4] =
            [IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR, IBV_EVENT_GID_CHANGE, IBV_EVENT_COMM_EST];
        for came in self.verbs.came().map_err(|e| e.to_string())? {
            if !OF_A_PORT.iter().any(|kind| came == format!("{kind:?}")) {
                return Err(format!("a fatal event: {came}"));
            }
            self.events += 1;
        }
        Ok(())
    }

    /// All but the device, whose events a thread takes to the end, as NCCL's does.
    fn close(self) -> Result<(), SetupError> {
        for qp in self.qps.into_iter().chain(self.flush_qps) {
            qp.destroy()?;
        }
        Ok(())
    }
}

/// How long a torn clear-to-send entry may look torn: a packet is written in microseconds.
const TORN: Duration = Duration::from_secs(1);
