//! One request in many, timed: from its post to the last poll that found it incomplete.
//!
//! The agent wishes for one per queue, some times a second; who posts next stamps it, who polls its completion ends it. So a post and a completion cost one
//! load and a compare more, and the clock is the processor's counter: no system call. How long a request was out is known between two polls only; both are told.

use super::ring::NIC_SIGNALLED;
use crate::atomics::{AtomicU32, AtomicU64, Ordering::*};
use crate::shadow::{CqShadow, Poster, QpShadow, TIMED};
use shift_proto::gray::Sample;
use std::sync::OnceLock;
use std::time::Instant;

/// Values of `Timed::state` beside the sequence number of what is being timed.
const IDLE: u64 = u64::MAX;
const WANTED: u64 = u64::MAX - 1;
const DONE: u64 = u64::MAX - 2;
/// The processor's counter is compared with the clock over that time at least, before it counts.
const LEAST_NS: u128 = 50_000_000;

/// Of one send queue. Whoever changes `state` has written what belongs to it before (Release), and whoever acts on it reads after (Acquire). From
/// WANTED it is the poster's, from a number the poller's, from DONE the agent's.
pub struct Timed {
    state: AtomicU64,
    epoch: AtomicU32,
    bytes: AtomicU32,
    behind: AtomicU32,
    /// Ticks: of the post, of the last poll that did not find it complete, of the one that did.
    posted: AtomicU64,
    incomplete: AtomicU64,
    complete: AtomicU64,
}

impl Timed {
    /// Nothing is wished for.
    pub fn new() -> Self {
        Self {
            state: AtomicU64::new(IDLE),
            epoch: AtomicU32::new(0),
            bytes: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            posted: AtomicU64::new(0),
            incomplete: AtomicU64::new(0),
            complete: AtomicU64::new(0),
        }
    }

    /// For who posts, before the provider has it.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.state.load(Relaxed) == WANTED
    }

    /// For who accounts for that completion.
    #[inline]
    pub fn is(&self, seq: u64) -> bool {
        self.state.load(Relaxed) == seq
    }
}

/// Stamps the last request from `begin` on that the NIC will signal, if there is one.
#[cold]
pub fn begin(qp: &QpShadow, poster: &Poster, begin: u64) {
    let (timed, ring) = (&qp.sq.timed, &qp.sq.ring);
    let tail = ring.tail();
    let Some(seq) = (begin..tail).rev().find(|seq| ring.slot(*seq).has(NIC_SIGNALLED)) else { return };
    timed.epoch.store(poster.epoch, Relaxed);
    timed.bytes.store(ring.slot(seq).bytes.load(Relaxed), Relaxed);
    timed.behind.store((seq + 1).saturating_sub(ring.head()) as u32, Relaxed);
    qp.send_cq.attention.fetch_or(TIMED, Relaxed);
    timed.posted.store(ticks(), Relaxed);
    timed.state.store(seq, Release);
}

/// It is complete.
#[cold]
pub fn end(qp: &QpShadow) {
    let (timed, cq) = (&qp.sq.timed, &*qp.send_cq);
    timed.complete.store(ticks(), Relaxed);
    timed.incomplete.store(cq.looked.load(Relaxed), Relaxed);
    cq.attention.fetch_and(!TIMED, Relaxed);
    timed.state.store(DONE, Release);
}

/// When a poll begins, if something is being timed.
#[inline]
pub fn look(attention: u32) -> Option<u64> {
    (attention & TIMED != 0).then(ticks)
}

/// That poll found nothing more.
#[cold]
pub fn found_nothing(cq: &CqShadow, looked: u64) {
    cq.looked.store(looked, Relaxed);
}

/// For the agent: what was timed since it asked last. It wishes for the next one.
pub fn take(qp: &QpShadow) -> Option<(u32, Sample)> {
    let Noted { epoch, bytes, behind, posted, incomplete, complete } = noted(qp)?;
    let (least_ns, most_ns) =
        (nanoseconds(incomplete.saturating_sub(posted))?, nanoseconds(complete.checked_sub(posted)?)?);
    Some((epoch, Sample { bytes, behind, least_ns, most_ns }))
}

/// What was noted of a request, in ticks.
pub(super) struct Noted {
    epoch: u32,
    bytes: u32,
    pub(super) behind: u32,
    posted: u64,
    incomplete: u64,
    complete: u64,
}

/// The same before it is judged.
pub(super) fn noted(qp: &QpShadow) -> Option<Noted> {
    let timed = &qp.sq.timed;
    match timed.state.load(Acquire) {
        WANTED => return None,
        IDLE => {
            timed.state.store(WANTED, Release);
            return None;
        }
        DONE => {}
        // Its completion was none that ends it: an error, or of an earlier incarnation. The poster and the poller leave it alone from then on.
        seq if seq < qp.sq.ring.head() && timed.epoch.load(Relaxed) != qp.sq.epoch.load(Relaxed) => {
            timed.state.store(WANTED, Release);
            return None;
        }
        _ => return None,
    }
    let [posted, incomplete, complete] = [&timed.posted, &timed.incomplete, &timed.complete].map(|at| at.load(Relaxed));
    let (bytes, behind) = (timed.bytes.load(Relaxed), timed.behind.load(Relaxed));
    let epoch = timed.epoch.load(Relaxed);
    timed.state.store(WANTED, Release);
    Some(Noted { epoch, bytes, behind, posted, incomplete, complete })
}

/// The processor's counter, which runs at one pace on all processors that this library supports.
#[cfg(not(miri))]
#[inline]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of x86-64, and only reads; that a process may use it is the kernel's default, on which the C library relies too.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let now: u64;
        // SAFETY: the register is readable by every process: the vDSO's clock is made of it.
        unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) now, options(nomem, nostack)) };
        now
    }
}

/// Miri knows no such instruction.
#[cfg(miri)]
fn ticks() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// How long so many ticks are, by what passed since the first question.
fn nanoseconds(count: u64) -> Option<u64> {
    static BEGAN: OnceLock<(u64, Instant)> = OnceLock::new();
    let (tick, instant) = BEGAN.get_or_init(|| (ticks(), Instant::now()));
    let (passed, elapsed) = (ticks().checked_sub(*tick)?, instant.elapsed().as_nanos());
    let is_known = elapsed >= LEAST_NS && passed > 0;
    is_known.then(|| (u128::from(count) * elapsed / u128::from(passed)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot::tests::Bench;
    use shift_abi::IBV_WC_SUCCESS;
    use std::thread::sleep;
    use std::time::Duration;

    fn settle() {
        nanoseconds(0);
        sleep(Duration::from_millis(60));
    }

    #[test]
    fn a_request_is_timed_when_one_is_wished_for_and_for_as_long_as_it_was_seen_to_be_out() {
        settle();
        let bench = Bench::new();
        bench.post_signalled(0);
        assert!(take(&bench.qp).is_none() && bench.qp.sq.timed.is_wanted(), "nobody asked before");
        bench.post_signalled(1);
        bench.post_signalled(2);
        assert!(bench.complete(&[(0, IBV_WC_SUCCESS)]).len() == 1 && take(&bench.qp).is_none(), "that was another one");
        sleep(Duration::from_millis(10));
        assert!(bench.complete(&[]).is_empty());
        assert_eq!(bench.complete(&[(1, IBV_WC_SUCCESS), (2, IBV_WC_SUCCESS)]).len(), 2);
        let (epoch, sample) = take(&bench.qp).expect("the second one");
        assert_eq!((epoch, sample.behind), (0, 2));
        assert!(
            (10_000_000..1_000_000_000).contains(&sample.least_ns) && sample.most_ns >= sample.least_ns,
            "{sample:?}"
        );
    }

    #[test]
    fn what_a_program_does_between_two_polls_is_no_time_that_the_request_was_out_for_certain() {
        settle();
        let bench = Bench::new();
        take(&bench.qp);
        bench.post_signalled(0);
        assert!(bench.complete(&[]).is_empty());
        sleep(Duration::from_millis(20));
        assert_eq!(bench.complete(&[(0, IBV_WC_SUCCESS)]).len(), 1);
        let (_, sample) = take(&bench.qp).expect("it was timed");
        assert!(sample.least_ns < 10_000_000 && sample.most_ns >= 20_000_000, "{sample:?}");
        assert!(bench.qp.sq.timed.is_wanted(), "the next one is");
    }
}
