//! One run at one end: the only loop. It carries completions and notes to the flows and decides when the run is over.

use crate::args::{AsyncUse, Commit, Mode, Polling};
use crate::ground::Ground;
use crate::judge::Kind;
use crate::pollers::Second;
use crate::pool::Pool;
use crate::predict::{Queue, WrName};
use crate::receiver::Receiver;
use crate::report::{Ending, Verdict};
use crate::sender::{Pacer, Sender};
use crate::side::{Note, Side};
use crate::sleeper::Sleeper;
use crate::trigger::Trigger;
use crate::verbs::{monotonic_ns, Qp, Region, VerbError, Verbs};
use crate::witness;
use shift_abi::{ibv_wc, IBV_WC_SUCCESS};
use std::io::Write;
use std::time::Duration;

/// What makes up one end of a run: connected queue pairs, and a peer that is ready.
pub struct Parts {
    /// Device, protection domain and completion queue.
    pub verbs: Verbs,
    /// The queue pairs.
    pub qps: Vec<Qp>,
    /// What the flows stand on.
    pub ground: Ground,
    /// The side channel.
    pub side: Side,
    /// A sender per queue pair, or none.
    pub senders: Vec<Sender>,
    /// A receiver per queue pair, or none.
    pub receivers: Vec<Receiver>,
    /// The receives that all queue pairs share.
    pub pool: Option<Pool>,
    /// What ends a pause, at the end that decides it.
    pub trigger: Option<Trigger>,
    /// The error that is committed on purpose.
    pub commit: Option<Commit>,
    /// That the side channel closed says nothing: only verbs tell of the peer's end.
    pub verbs_tell: bool,
}

/// One end of a run.
pub struct Session {
    parts: Parts,
    pacer: Pacer,
    verdict: Verdict,
    wcs: Vec<ibv_wc>,
    second: Option<Second>,
    sleeper: Sleeper,
    phase: Phase,
    pause: Pause,
    stale_posted: bool,
    peer_finished: bool,
    peer_left: bool,
    started_ns: u64,
    progress_ns: u64,
    printed_ns: u64,
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Messages move.
    Running,
    /// This end has all; the peer may not.
    Finished,
    /// Both have all; watching for what must not come.
    Settling {
        /// When this end has watched enough.
        until_ns: u64,
    },
    /// This end watched to the end; the peer may not have.
    Leaving,
    /// Over.
    Over,
}

/// The pause, where one was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    /// This end's senders stand still, and the peer was told.
    own: bool,
    /// The peer's senders stand still.
    peer: bool,
    /// IDLE was printed.
    announced: bool,
    /// It is over.
    past: bool,
}

/// An error completion is followed by flushes: for so long they are collected.
const DRAIN_NS: u64 = 1_000_000_000;

/// A pause lasts no longer: whoever was to end it is gone.
const PAUSE_NS: u64 = 600 * SECOND_NS;

const SECOND_NS: u64 = 1_000_000_000;

impl Session {
    /// A run that starts now.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let now = monotonic_ns();
        Self {
            pacer: Pacer::new(parts.ground.params.rate, now),
            second: second_of(&parts),
            peer_left: parts.verbs_tell,
            parts,
            verdict: Verdict::default(),
            wcs: Vec::new(),
            sleeper: Sleeper::default(),
            phase: Phase::Running,
            pause: Pause::default(),
            stale_posted: false,
            peer_finished: false,
            started_ns: now,
            progress_ns: now,
            printed_ns: now,
        }
    }

    /// When it started.
    #[must_use]
    pub const fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Ending {
        loop {
            let now = monotonic_ns();
            let moved = match self.turn(now) {
                Ok(moved) => moved,
                Err(why) => return self.give_up(Ending::GaveUp(why)),
            };
            if self.phase == Phase::Over {
                return Ending::Done;
            }
            if let Some(ending) = self.trouble(now) {
                return self.give_up(ending);
            }
            self.print_progress(now);
            if !moved {
                self.rest();
            }
        }
    }

    /// One turn of the loop; whether anything happened.
    fn turn(&mut self, now: u64) -> Result<bool, String> {
        let noted = self.handle_notes(now)?;
        let polled = !self.sits_in_read() && self.handle_what_is_told(now)?;
        let looked = self.look(now);
        witness::publish(&self.parts.receivers);
        let posted = self.post(now)?;
        self.send_notes()?;
        self.pause_and_resume(now)?;
        self.hear()?;
        self.advance_phase(now)?;
        Ok(noted || polled || looked || posted)
    }

    /// Where the receiver looks at the memory itself: whether it found anything.
    fn look(&mut self, now: u64) -> bool {
        let Parts { ground, receivers, .. } = &mut self.parts;
        if !ground.params.reuse || self.phase != Phase::Running {
            return false;
        }
        let mut any = false;
        for (qp, receiver) in (0..).zip(receivers) {
            any |= ground.params.mode(qp) == Mode::Write && receiver.look(ground, &mut self.verdict);
        }
        if any {
            self.progress_ns = now;
        }
        any
    }

    /// Whether this end is a receiver that does nothing but wait for the sender's word.
    fn sits_in_read(&self) -> bool {
        self.parts.ground.params.receiver_waits && !self.parts.receivers.iter().all(Receiver::knows_total)
    }

    fn handle_notes(&mut self, now: u64) -> Result<bool, String> {
        let mut any = false;
        while let Some(note) = self.next_note()? {
            any = true;
            self.progress_ns = now;
            self.handle_note(note, now)?;
        }
        Ok(any)
    }

    fn next_note(&mut self) -> Result<Option<Note>, String> {
        const SIT: Duration = Duration::from_millis(100);
        let side = &mut self.parts.side;
        let sits = self.parts.ground.params.receiver_waits && !self.parts.receivers.iter().all(Receiver::knows_total);
        match if sits { side.wait(SIT) } else { side.poll() } {
            Ok(note) => Ok(note),
            Err(_) if self.peer_left => Ok(None),
            Err(e) => Err(format!("the peer is gone: {e}")),
        }
    }

    fn handle_note(&mut self, note: Note, now: u64) -> Result<(), String> {
        let Parts { ground, senders, receivers, .. } = &mut self.parts;
        let unknown = |qp: u16| format!("a note about queue pair {qp}");
        match note {
            Note::Credit { qp, released } => {
                senders.get_mut(usize::from(qp)).ok_or_else(|| unknown(qp))?.released(released);
            }
            Note::Done { qp, upto } => {
                let receiver = receivers.get_mut(usize::from(qp)).ok_or_else(|| unknown(qp))?;
                receiver.noticed(ground, upto, &mut self.verdict);
                // Where no completion tells a receiver of success, the sender's word does.
                self.verdict.gap.success(now);
            }
            Note::Total { qp, total } => {
                let receiver = receivers.get_mut(usize::from(qp)).ok_or_else(|| unknown(qp))?;
                receiver.ends_at(ground, total, &mut self.verdict);
            }
            Note::Fell { qp, acked, posted } => {
                let receiver = receivers.get_mut(usize::from(qp)).ok_or_else(|| unknown(qp))?;
                receiver.ends_in_error(ground, acked, posted, &mut self.verdict);
            }
            Note::Idle => self.pause.peer = true,
            Note::Resume => self.resume(now),
            Note::Finished => self.peer_finished = true,
            Note::Bye => self.peer_left = true,
            Note::Failed(why) => return Err(format!("the peer gave up: {why}")),
            Note::Params(_) | Note::Endpoint(_) | Note::Ready => return Err("a note out of turn".to_owned()),
        }
        Ok(())
    }

    /// Takes what asynchronous events told. A program like NCCL's ends at those that say that something is broken.
    fn hear(&mut self) -> Result<(), String> {
        const FATAL: [&str; 4] = ["CQ_ERR", "QP_FATAL", "DEVICE_FATAL", "PORT_ERR"];
        let came = self.parts.verbs.came().map_err(|e| e.to_string())?;
        let fatal = came.iter().find(|name| FATAL.iter().any(|fatal| name.ends_with(fatal))).cloned();
        self.verdict.async_events.extend(came);
        match fatal.filter(|_| self.parts.ground.params.async_events == AsyncUse::Fatal) {
            Some(event) => Err(format!("the event thread heard {event}")),
            None => Ok(()),
        }
    }

    /// An end that sleeps polls only once it was told to.
    fn handle_what_is_told(&mut self, now: u64) -> Result<bool, String> {
        match self.parts.verbs.heard(Duration::ZERO).transpose().map_err(|e| e.to_string())? {
            None => return self.handle_completions(now),
            // Each event is of one arming: it has to be armed anew.
            Some(true) => self.sleeper = Sleeper::Awake,
            Some(false) if self.sleeper == Sleeper::Asleep => return Ok(false),
            Some(false) => {}
        }
        let polled = self.handle_completions(now)?;
        let (next, arm) = self.sleeper.polled(usize::from(polled));
        self.sleeper = next;
        if arm {
            let solicited = self.parts.ground.params.solicited && self.parts.senders.is_empty();
            self.parts.verbs.arm(solicited).map_err(|e| e.to_string())?;
        }
        // What was just armed is looked at once more.
        Ok(polled || arm)
    }

    fn handle_completions(&mut self, now: u64) -> Result<bool, String> {
        let mut wcs = std::mem::take(&mut self.wcs);
        wcs.clear();
        let mut count = self.parts.verbs.poll(&mut wcs).map_err(|e| e.to_string())?;
        if let Some(second) = &mut self.second {
            wcs = second.sort(wcs)?;
            count = wcs.len();
        }
        for wc in &wcs {
            self.handle_completion(wc, now)?;
        }
        self.wcs = wcs;
        Ok(count > 0)
    }

    fn handle_completion(&mut self, wc: &ibv_wc, now: u64) -> Result<(), String> {
        let Parts { ground, qps, senders, receivers, pool, .. } = &mut self.parts;
        let (verdict, success) = (&mut self.verdict, wc.status == IBV_WC_SUCCESS);
        let name = WrName::from_wr_id(wc.wr_id, ground.params.seed);
        if let Some(pool) = pool.as_mut().filter(|_| name.queue == Queue::Receive && success) {
            self.progress_ns = now;
            verdict.gap.success(now);
            let at = qps.iter().position(|qp| qp.number() == wc.qp_num);
            let receiver = at.and_then(|at| receivers.get_mut(at));
            return pool.completed(ground, name, receiver, wc, verdict).map_err(|e| e.to_string());
        }
        let at = usize::from(name.qp);
        self.progress_ns = now;
        let Some(qp) = qps.get(at) else {
            verdict.tally.count(Kind::CompletionWrong, || format!("unknown wr_id: {wc:?}"));
            return Ok(());
        };
        let may_fail = ground.params.may_fail;
        if success {
            verdict.gap.success(now);
        } else if !may_fail {
            let queue = if name.queue == Queue::Send { "send" } else { "receive" };
            verdict.error(wc, name.qp, queue, name.counter, now);
        }
        match (name.queue, senders.get_mut(at), receivers.get_mut(at)) {
            (Queue::Send, Some(sender), _) if success => sender.completed(ground, qp, name.counter, wc, verdict),
            (Queue::Send, Some(sender), _) if may_fail => sender.fell(ground, name.counter, wc, verdict),
            (Queue::Send, Some(sender), _) => sender.failed(name.counter, verdict),
            (Queue::Receive, _, Some(receiver)) if success => {
                receiver.completed(ground, qp, name.counter, wc, verdict).map_err(|e| e.to_string())?;
            }
            (Queue::Receive, _, Some(receiver)) if may_fail => receiver.fell(name.counter, wc, verdict),
            (Queue::Receive, _, Some(receiver)) => receiver.failed(name.counter, verdict),
            (Queue::Send | Queue::Receive, _, _) => {
                verdict.tally.count(Kind::CompletionWrong, || format!("nothing was posted there: {wc:?}"));
            }
        }
        Ok(())
    }

    fn post(&mut self, now: u64) -> Result<bool, String> {
        let Parts { ground, qps, senders, .. } = &mut self.parts;
        if self.verdict.error_count > 0 || self.phase != Phase::Running {
            return Ok(false);
        }
        let over = ground.params.duration.is_some_and(|seconds| now - self.started_ns >= seconds * SECOND_NS);
        // Up to a pause all of them go: it begins when all stand before it.
        let turns = ground.params.turns && (self.pause.past || ground.params.pause_before_message.is_none());
        let mut any = false;
        for (sender, qp) in senders.iter_mut().zip(qps) {
            if over {
                sender.stop();
            }
            any |= sender.post(ground, qp, &mut self.pacer, now, &mut self.verdict)?;
            if turns && !sender.is_done() {
                break;
            }
        }
        Ok(any)
    }

    fn send_notes(&mut self) -> Result<(), String> {
        let Parts { ground, senders, receivers, .. } = &mut self.parts;
        let mut notes = Vec::new();
        for (qp, sender) in (0..).zip(senders) {
            notes.extend(sender.notice(&ground.params).map(|upto| Note::Done { qp, upto }));
            notes.extend(sender.total_due().map(|total| Note::Total { qp, total }));
            let fall = sender.fall_due(&ground.params, &mut self.verdict);
            notes.extend(fall.map(|(acked, posted)| Note::Fell { qp, acked, posted }));
        }
        for (qp, receiver) in (0..).zip(receivers) {
            notes.extend(receiver.credit(&ground.params).map(|released| Note::Credit { qp, released }));
        }
        notes.iter().try_for_each(|note| self.tell(note))
    }

    fn tell(&mut self, note: &Note) -> Result<(), String> {
        match self.parts.side.send(note) {
            Err(e) if !self.peer_left => Err(format!("the peer is gone: {e}")),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn pause_and_resume(&mut self, now: u64) -> Result<(), String> {
        let senders = &self.parts.senders;
        if !self.pause.own && !senders.is_empty() && senders.iter().all(Sender::is_paused) {
            self.pause.own = true;
            self.tell(&Note::Idle)?;
        }
        if self.parts.trigger.is_none() || !self.stands_still() {
            return Ok(());
        }
        if !self.pause.announced {
            self.pause.announced = true;
            say(&format!("IDLE sent={} t={now}", self.verdict.sent));
        }
        if self.parts.trigger.as_mut().map_or(Ok(false), Trigger::fired)? {
            self.tell(&Note::Resume)?;
            self.resume(now);
        }
        Ok(())
    }

    /// Whether every sender of both ends stands before the pause.
    fn stands_still(&self) -> bool {
        let own = self.pause.own || self.parts.senders.is_empty();
        let peer = self.pause.peer || self.parts.receivers.is_empty();
        !self.pause.past && own && peer
    }

    fn resume(&mut self, now: u64) {
        self.pause.past = true;
        self.verdict.gap.restart(now);
        self.progress_ns = now;
        self.pacer = Pacer::new(self.parts.ground.params.rate, now);
        self.parts.senders.iter_mut().for_each(Sender::resume);
        say(&format!("RESUMED sent={} t={now}", self.verdict.sent));
    }

    fn advance_phase(&mut self, now: u64) -> Result<(), String> {
        match self.phase {
            Phase::Running => self.finish(),
            Phase::Finished if self.peer_finished => {
                let settle_ns = self.parts.ground.params.settle_ms * 1_000_000;
                self.phase = Phase::Settling { until_ns: now + settle_ns };
                Ok(())
            }
            Phase::Settling { until_ns } if now >= until_ns => {
                self.close_flows();
                self.phase = Phase::Leaving;
                self.tell(&Note::Bye)
            }
            Phase::Leaving if self.peer_left => {
                self.phase = Phase::Over;
                Ok(())
            }
            Phase::Finished | Phase::Settling { .. } | Phase::Leaving | Phase::Over => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        let Parts { ground, qps, senders, receivers, commit, .. } = &mut self.parts;
        if !senders.iter().all(Sender::is_done) || !receivers.iter().all(Receiver::is_done) {
            return Ok(());
        }
        if *commit == Some(Commit::Stale) && !self.stale_posted {
            // The receiver has consumed all before it says so: then an old message is stale.
            if !self.peer_finished {
                return Ok(());
            }
            self.stale_posted = true;
            for (sender, qp) in senders.iter_mut().zip(qps) {
                sender.post_stale(ground, qp)?;
            }
            return Ok(());
        }
        self.phase = Phase::Finished;
        self.tell(&Note::Finished)
    }

    /// What ends the run though nothing failed in this turn.
    fn trouble(&self, now: u64) -> Option<Ending> {
        if self.verdict.first_error_ns.is_some_and(|first| now > first + DRAIN_NS) {
            return Some(Ending::GaveUp(format!("{} error completions", self.verdict.error_count)));
        }
        let limit = if self.stands_still() { PAUSE_NS } else { self.parts.ground.params.deadline * SECOND_NS };
        (now > self.progress_ns + limit).then_some(Ending::Deadline)
    }

    fn give_up(&mut self, ending: Ending) -> Ending {
        let why = match &ending {
            Ending::GaveUp(why) => why.clone(),
            Ending::Deadline | Ending::Done => "deadline".to_owned(),
        };
        say(&format!("GAVE-UP t={} {why}", monotonic_ns()));
        // The peer may be gone; then it needs no word.
        let _ = self.parts.side.send(&Note::Failed(why));
        self.close_flows();
        ending
    }

    fn close_flows(&mut self) {
        let Parts { ground, senders, receivers, .. } = &mut self.parts;
        for sender in senders {
            sender.close(ground, &mut self.verdict);
        }
        for receiver in receivers {
            receiver.close(ground, &mut self.verdict);
        }
    }

    fn rest(&mut self) {
        match self.parts.ground.params.poll {
            Polling::Spin => std::thread::yield_now(),
            Polling::Sleepy => std::thread::sleep(Duration::from_millis(1)),
            // Notes of the side channel come too.
            Polling::Event | Polling::Epoll => {
                if let Some(Ok(true)) = self.parts.verbs.heard(Duration::from_millis(1)) {
                    self.sleeper = Sleeper::Awake;
                }
            }
        }
    }

    fn print_progress(&mut self, now: u64) {
        let every_ns = self.parts.ground.params.progress_ms * 1_000_000;
        if every_ns == 0 || now < self.printed_ns + every_ns {
            return;
        }
        self.printed_ns = now;
        let Verdict { sent, acked, received, bytes, .. } = self.verdict;
        say(&format!("PROGRESS sent={sent} acked={acked} received={received} bytes={bytes} t={now}"));
    }

    /// Polls on for a while, though nothing is to come: whatever comes is told.
    pub fn linger(&mut self, limit: Duration) {
        let until = monotonic_ns() + limit.as_nanos() as u64;
        while monotonic_ns() < until {
            let now = monotonic_ns();
            match self.handle_what_is_told(now) {
                Ok(true) => {}
                Ok(false) => self.rest(),
                Err(why) => self.verdict.tally.count(Kind::CompletionWrong, || why),
            }
        }
    }

    /// What was learned.
    pub fn take_verdict(&mut self) -> Verdict {
        self.verdict.events = self.parts.verbs.events();
        std::mem::take(&mut self.verdict)
    }

    /// Closes all verbs objects, as a program does that ends normally.
    pub fn close(self) -> Result<(), VerbError> {
        drop(self.second);
        let Parts { verbs, qps, ground, pool, .. } = self.parts;
        let regions: Vec<Region> = vec![ground.local, ground.shared];
        verbs.close(qps, pool.map(Pool::into_srq), regions)
    }
}

fn second_of(parts: &Parts) -> Option<Second> {
    let params = &parts.ground.params;
    params.two_pollers.then(|| Second::start(parts.verbs.another_poller(), params.seed))
}

/// Prints a line at once. Whoever reads may be gone: that is no reason to stop.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
