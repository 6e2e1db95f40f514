//! What one end has to say in the end: one JSON object.

use crate::judge::{Gap, Tally};
use serde::Serialize;
use shift_abi::ibv_wc;

/// Everything that an end learns while it runs.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What was wrong.
    pub tally: Tally,
    /// Error completions, in order; the first [`Verdict::TOLD`] of them.
    pub errors: Vec<ErrorSeen>,
    /// Queue pairs that ended in an error, as they may where the run says so.
    pub fallen: Vec<Fallen>,
    /// How many error completions there were.
    pub error_count: u64,
    /// When the first one came.
    pub first_error_ns: Option<u64>,
    /// The longest time without a success.
    pub gap: Gap,
    /// Messages posted.
    pub sent: u64,
    /// Messages whose work request is known to be complete.
    pub acked: u64,
    /// Messages received and verified.
    pub received: u64,
    /// Bytes posted and bytes verified.
    pub bytes: u64,
    /// Completion events that came.
    pub events: u64,
    /// Asynchronous events that came.
    pub async_events: Vec<String>,
}

/// A queue pair that ended in an error, as one end saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallen {
    /// The queue pair, counted from 0.
    pub qp: u16,
    /// What moved its messages.
    pub mode: crate::args::Mode,
    /// The first message that did not complete.
    pub acked: u64,
    /// The first message that was not posted.
    pub posted: u64,
    /// At the receiver of atomics: all below this message took effect, and none from it on.
    pub counted: Option<u64>,
}

/// One error completion.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorSeen {
    /// C's name of the status.
    pub status: String,
    /// Its number.
    pub code: u32,
    /// The provider's own error.
    pub vendor_err: u32,
    /// The queue pair, counted from 0.
    pub qp: u16,
    /// `send` or `receive`.
    pub queue: &'static str,
    /// The how-manieth work request of that queue.
    pub wr: u64,
    /// When it was polled, CLOCK_MONOTONIC.
    pub t: u64,
}

impl Verdict {
    /// Error completions told one by one; more are counted only.
    const TOLD: usize = 40;

    /// Notes an error completion.
    pub fn error(&mut self, wc: &ibv_wc, qp: u16, queue: &'static str, wr: u64, now_ns: u64) {
        self.error_count += 1;
        self.first_error_ns.get_or_insert(now_ns);
        if self.errors.len() < Self::TOLD {
            self.errors.push(ErrorSeen {
                status: format!("{:?}", wc.status),
                code: wc.status.0,
                vendor_err: wc.vendor_err,
                qp,
                queue,
                wr,
                t: now_ns,
            });
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything was done.
    Done,
    /// This end or the peer gave up.
    GaveUp(String),
    /// No progress within the deadline.
    Deadline,
}

/// The JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    checker: &'static str,
    pass: bool,
    modes: Vec<crate::args::Mode>,
    seed: u64,
    qps: u16,
    messages: u64,
    sent: u64,
    acked: u64,
    received: u64,
    bytes: u64,
    events: u64,
    async_events: Vec<String>,
    #[serde(flatten)]
    tally: Tally,
    fallen: Vec<Fallen>,
    errors: Vec<ErrorSeen>,
    error_count: u64,
    first_error_ns: Option<u64>,
    longest_gap_ms: Option<f64>,
    gap_start_ns: Option<u64>,
    first_success_after_gap_ns: Option<u64>,
    started_ns: u64,
    ended_ns: u64,
    deadline: bool,
    why: Option<String>,
}

impl Report {
    /// The report of an end that ran from `started_ns` to `ended_ns`.
    #[must_use]
    pub fn new(
        checker: &'static str,
        params: &crate::args::Params,
        verdict: Verdict,
        ending: &Ending,
        (started_ns, ended_ns): (u64, u64),
    ) -> Self {
        let gap = verdict.gap.longest();
        Self {
            checker,
            pass: *ending == Ending::Done && verdict.tally.is_clean() && verdict.error_count == 0,
            modes: params.modes.clone(),
            seed: params.seed,
            qps: params.qps,
            messages: params.messages,
            sent: verdict.sent,
            acked: verdict.acked,
            received: verdict.received,
            bytes: verdict.bytes,
            events: verdict.events,
            async_events: verdict.async_events,
            tally: verdict.tally,
            fallen: verdict.fallen,
            errors: verdict.errors,
            error_count: verdict.error_count,
            first_error_ns: verdict.first_error_ns,
            longest_gap_ms: gap.as_ref().map(|gap| (gap.end - gap.start) as f64 / 1e6),
            gap_start_ns: gap.as_ref().map(|gap| gap.start),
            first_success_after_gap_ns: gap.as_ref().map(|gap| gap.end),
            started_ns,
            ended_ns,
            deadline: *ending == Ending::Deadline,
            why: match ending {
                Ending::Done => None,
                Ending::GaveUp(why) => Some(why.clone()),
                Ending::Deadline => Some(format!("no progress for {} s", params.deadline)),
            },
        }
    }

    /// The exit status that says the same.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match (self.pass, self.deadline) {
            (true, _) => 0,
            (false, true) => 3,
            (false, false) => 1,
        }
    }
}
