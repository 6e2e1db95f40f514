//! Asynchronous events: what the application hears of its devices and queue pairs beside completions.
//!
//! A fault that is masked is not told: the events of it are withheld, and told after all if an application that has no shim would still be right to hear of
//! them. An error that is surfaced is told as QP_FATAL.
//!
//! `ibv_context::async_fd` stays libibverbs' own: rdma-core hands that very number to the kernel whenever it makes a CQ, QP, SRQ or WQ, also from inside of a
//! provider's own functions (`mlx5dv_create_qp`), and the kernel takes no other kind of file there. So events are judged where the
//! application takes them; a thread that sleeps in `ibv_get_async_event` sleeps on a descriptor of ours too.
//!
//! Acknowledgement: what is withheld is acknowledged at once, so that no destroy waits for it; for each event that goes out of our queue one is taken
//! off what libibverbs counts as acknowledged, as with completion events (`cold::channel`).

use crate::cold::{bell, qp, twin};
use crate::lives;
use crate::process::{self, Inside};
use crate::real;
use crate::shadow::{QpShadow, Raw, Stance};
use crate::tables::PtrTable;
use crate::wait::{self, errno};
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};
use shift_abi::*;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Contexts whose events are filtered.
static CONTEXTS: PtrTable<Events> = PtrTable::new();

/// How often a thread that waits looks whether what is withheld is to be told.
const TICK_MS: c_int = 100;

/// The events of one context of the application.
pub struct Events {
    context: Raw<ibv_context>,
    /// Readable while the queue is not empty. Of whoever holds `state`.
    wake: OwnedFd,
    /// Queue pairs on it that are not recorded: they are hit by every fault.
    foreign: AtomicU32,
    /// Of who takes events. Outermost: taken with no other lock held.
    taking: Mutex<()>,
    state: Mutex<State>,
}

/// Innermost lock but for the mutex of a QP of libibverbs'; nobody waits while holding it.
#[derive(Default)]
struct State {
    /// Due, in order; acknowledged towards the kernel, or unknown to it.
    queue: VecDeque<ibv_async_event>,
    /// PORT_ERR of each port, and DEVICE_FATAL, that were not told.
    withheld: Vec<Withheld>,
    /// Events of queue pairs whose fault is being masked.
    of_qps: Vec<Withheld>,
}

struct Withheld {
    event: ibv_async_event,
    since: Instant,
    /// Of a queue pair: the epoch that it was in.
    epoch: u32,
    /// Of a port: every queue pair that it concerned works elsewhere.
    is_masked: bool,
}

// SAFETY: the pointers in events are handles (see `Raw`).
unsafe impl Send for State {}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Tell,
    Withhold,
    Drop,
}

/// What [`take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// An event; it was written to the caller's place.
    Event,
    /// None at this moment.
    Nothing,
    /// The device is broken; errno says how.
    Failed,
}

/// A context was opened and is one of those that are protected.
pub fn begin(context: *mut ibv_context) {
    // SAFETY: it makes a descriptor, or says -1.
    let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if wake < 0 {
        log::warn!("asynchronous events are not filtered: no descriptor (errno {})", errno());
        return;
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let wake = unsafe { OwnedFd::from_raw_fd(wake) };
    let events = Events {
        context: Raw(context),
        wake,
        foreign: AtomicU32::new(0),
        taking: Mutex::new(()),
        state: Mutex::new(State::default()),
    };
    CONTEXTS.insert(context, Arc::new(events));
}

/// It is being closed.
pub fn end(context: *mut ibv_context) {
    CONTEXTS.remove(context);
}

/// A queue pair that is not recorded was made there (true), or is being destroyed.
pub fn count_foreign(context: *mut ibv_context, is_new: bool) {
    let Some(events) = CONTEXTS.get(context) else { return };
    if is_new {
        events.foreign.fetch_add(1, Ordering::Relaxed);
    } else {
        // One that was recorded once, and is not any more, was not counted.
        let _ = events.foreign.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }
}

/// The application destroys this queue pair: no event of it goes out any more.
pub fn forget_qp(qp: *mut ibv_qp) {
    // SAFETY: the QP is live until its destroy runs.
    let context = unsafe { (*qp).context };
    let Some(events) = CONTEXTS.get(context) else { return };
    let mut state = events.state();
    state.queue.retain(|event| qp_of(event) != Some(qp));
    state.of_qps.retain(|withheld| qp_of(&withheld.event) != Some(qp));
    events.show(&state);
}

/// The application destroys this shared receive queue.
pub fn forget_srq(srq: *mut ibv_srq) {
    // SAFETY: the SRQ is live until its destroy runs.
    let context = unsafe { (*srq).context };
    let Some(events) = CONTEXTS.get(context) else { return };
    let mut state = events.state();
    state.queue.retain(|event| srq_of(event) != Some(srq));
    events.show(&state);
}

/// The receives of an SRQ that has moved went below its limit; who calls keeps it from being destroyed.
pub fn limit_reached(srq: *mut ibv_srq) {
    // SAFETY: the caller keeps the SRQ.
    let context = unsafe { (*srq).context };
    let Some(events) = CONTEXTS.get(context) else { return };
    let mut state = events.state();
    let element = ibv_async_element { srq };
    state.queue.push_back(ibv_async_event { element, event_type: IBV_EVENT_SRQ_LIMIT_REACHED });
    events.show(&state);
}

/// The shared receive queue that an event is about.
fn srq_of(event: &ibv_async_event) -> Option<*mut ibv_srq> {
    if !matches!(event.event_type, IBV_EVENT_SRQ_LIMIT_REACHED | IBV_EVENT_SRQ_ERR) {
        return None;
    }
    // SAFETY: of an event of these types this member was written.
    Some(unsafe { event.element.srq })
}

/// An error was surfaced: the queue pair is in ERR, as the application is to believe it got there.
pub fn surfaced(qp: &QpShadow) {
    tell_of(qp, IBV_EVENT_QP_FATAL);
}

/// The queue pair is in ERR for the application, and receives nothing more: LAST_WQE_REACHED comes of its own object, so that a thread that sleeps on
/// libibverbs' descriptor wakes. Of one that still works there it comes by itself.
pub fn last_receive_is_back(qp: &QpShadow) {
    if qp.srq.is_some() && !qp.last_wqe_told.load(Ordering::Relaxed) && !twin::raise_last_wqe(qp) {
        tell_of(qp, IBV_EVENT_QP_LAST_WQE_REACHED);
    }
}

/// It is told once: soft-RoCE says it again for every packet that comes after it.
fn at_first(qp: &QpShadow, kind: ibv_event_type) -> Verdict {
    if kind == IBV_EVENT_QP_LAST_WQE_REACHED {
        if qp.last_wqe_told.swap(true, Ordering::Relaxed) {
            return Verdict::Drop;
        }
        log::debug!("QP 0x{:06x}: LAST_WQE_REACHED is told", qp.qpn);
    }
    Verdict::Tell
}

/// An event of a twin that the application waits for: it moved its queue pair to ERR, and the last of its receives is back.
pub fn of_twin(event: &ibv_async_event) {
    if event.event_type == IBV_EVENT_SRQ_LIMIT_REACHED {
        return srq_of(event).into_iter().for_each(crate::cold::srq::twin_reached_its_limit);
    }
    let Some(twin) = qp_of(event).filter(|_| event.event_type == IBV_EVENT_QP_LAST_WQE_REACHED) else { return };
    // SAFETY: the queue pair of an event that is not acknowledged is live.
    let life = unsafe { (*twin).qp_context } as usize as u32;
    let found = lives::arc(life).filter(|qp| matches!(qp.stance(), Stance::Passing | Stance::Surfaced));
    if let Some(qp) = found {
        last_receive_is_back(&qp);
    }
}

/// Puts an event of a queue pair into the queue, unless the application is destroying it.
fn tell_of(qp: &QpShadow, kind: ibv_event_type) {
    let cold = qp.cold();
    if !cold.alive || at_first(qp, kind) != Verdict::Tell {
        return;
    }
    // SAFETY: the life is not over, and who ends it needs the lock that is held.
    let context = unsafe { (*qp.qp.0).context };
    let Some(events) = CONTEXTS.get(context) else { return };
    let mut state = events.state();
    // What the NIC said of it is the same news.
    state.of_qps.retain(|held| qp_of(&held.event) != Some(qp.qp.0) || held.event.event_type != kind);
    state.queue.push_back(of_qp(qp.qp.0, kind));
    events.show(&state);
}

const fn of_qp(qp: *mut ibv_qp, kind: ibv_event_type) -> ibv_async_event {
    ibv_async_event { element: ibv_async_element { qp }, event_type: kind }
}

/// The queue pair that an event is about.
fn qp_of(event: &ibv_async_event) -> Option<*mut ibv_qp> {
    let is_of_qp = matches!(
        event.event_type,
        IBV_EVENT_QP_FATAL
            | IBV_EVENT_QP_REQ_ERR
            | IBV_EVENT_QP_ACCESS_ERR
            | IBV_EVENT_COMM_EST
            | IBV_EVENT_SQ_DRAINED
            | IBV_EVENT_PATH_MIG
            | IBV_EVENT_PATH_MIG_ERR
            | IBV_EVENT_QP_LAST_WQE_REACHED
    );
    if !is_of_qp {
        return None;
    }
    // SAFETY: of an event of these types this member was written.
    Some(unsafe { event.element.qp })
}

fn port_of(event: &ibv_async_event) -> c_int {
    // SAFETY: of the events of ports this member was written; of DEVICE_FATAL libibverbs writes it too.
    unsafe { event.element.port_num }
}

impl Events {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor is readable exactly while something is in the queue.
    fn show(&self, state: &State) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are writable; the descriptor does not block.
        unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
        if !state.queue.is_empty() {
            count = 1;
            // SAFETY: eight bytes are readable; a count of one never blocks.
            unsafe { libc::write(self.wake.as_raw_fd(), (&raw const count).cast(), 8) };
        }
    }

    fn take_event(&self) -> Result<Option<ibv_async_event>, c_int> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.reconsider();
        if let Some(event) = self.pop() {
            return Ok(Some(event));
        }
        while self.has_real() {
            let mut event = ibv_async_event::zeroed();
            // SAFETY: the context is open while its events are taken; something is there, and only who holds `taking` takes it.
            if unsafe { real::ibv_get_async_event(self.context.0, &mut event) } != 0 {
                return Err(errno());
            }
            match self.judge(&event) {
                Verdict::Tell => return Ok(Some(event)),
                Verdict::Drop => {}
                Verdict::Withhold => self.withhold(event),
            }
            // SAFETY: the event was just got and is acknowledged once.
            unsafe { real::ibv_ack_async_event(&mut event) };
        }
        Ok(None)
    }

    fn pop(&self) -> Option<ibv_async_event> {
        let mut state = self.state();
        let event = state.queue.pop_front()?;
        self.show(&state);
        report(&event);
        Some(event)
    }

    /// The application may have left the descriptor blocking.
    fn has_real(&self) -> bool {
        // SAFETY: the context is open.
        let fd = unsafe { (*self.context.0).async_fd };
        let mut wish = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: the array is one long.
        (unsafe { libc::poll(&mut wish, 1, 0) }) > 0
    }

    fn withhold(&self, event: ibv_async_event) {
        log::debug!("{:?} is withheld while its fault is being masked", event.event_type);
        let of_qp = qp_of(&event);
        let qp = of_qp.and_then(|raw| qp::QPS.get_arc(raw));
        let epoch = qp.map_or(0, |qp| qp.rq.epoch.load(Ordering::Relaxed));
        let withheld = Withheld { event, since: Instant::now(), epoch, is_masked: false };
        let mut state = self.state();
        if of_qp.is_some() {
            state.of_qps.push(withheld);
        } else {
            state.withheld.push(withheld);
        }
    }

    fn judge(&self, event: &ibv_async_event) -> Verdict {
        match event.event_type {
            IBV_EVENT_PORT_ERR | IBV_EVENT_DEVICE_FATAL => match self.exposure() {
                Exposure::Exposed => Verdict::Tell,
                Exposure::Protected | Exposure::Moved => Verdict::Withhold,
            },
            IBV_EVENT_PORT_ACTIVE => self.judge_active(port_of(event)),
            IBV_EVENT_QP_FATAL | IBV_EVENT_QP_LAST_WQE_REACHED => {
                let Some(raw) = qp_of(event).filter(|raw| !bell::is_bell(*raw)) else { return Verdict::Drop };
                qp::QPS.get_arc(raw).map_or(Verdict::Tell, |qp| judge_of_qp(&qp, event.event_type))
            }
            _ => Verdict::Tell,
        }
    }

    /// A port is up again. As far as the application knows it may never have been down.
    fn judge_active(&self, port: c_int) -> Verdict {
        let mut state = self.state();
        let before = state.withheld.len();
        state.withheld.retain(|held| held.event.event_type != IBV_EVENT_PORT_ERR || port_of(&held.event) != port);
        if state.withheld.len() == before {
            Verdict::Tell
        } else {
            Verdict::Drop
        }
    }

    /// Tells what was withheld and should be told after all; forgets what was masked.
    fn reconsider(&self) {
        let holds_ports = {
            let state = self.state();
            if state.withheld.is_empty() && state.of_qps.is_empty() {
                return;
            }
            !state.withheld.is_empty()
        };
        // Not under the lock of the state: it looks into queue pairs.
        let exposure = if holds_ports { self.exposure() } else { Exposure::Moved };
        let patience = process::get().map_or(0, |process| process.config.deadlines.patience.0);
        let mut guard = self.state();
        let state = &mut *guard;
        state.withheld.retain_mut(|held| {
            held.is_masked = exposure == Exposure::Moved;
            let is_late = exposure == Exposure::Protected && held.since.elapsed() > Duration::from_micros(patience);
            let tell = is_late || exposure == Exposure::Exposed;
            if tell {
                state.queue.push_back(held.event);
            }
            !tell
        });
        // Under the lock that a destroy of the queue pair needs before it goes on: so its shadow is there.
        state.of_qps.retain(|held| {
            let qp = qp_of(&held.event).and_then(|raw| qp::QPS.get_arc(raw));
            match qp.map_or(Verdict::Drop, |qp| judge_again(&qp, held)) {
                Verdict::Withhold => return true,
                Verdict::Tell => state.queue.push_back(held.event),
                Verdict::Drop => {}
            }
            false
        });
        self.show(state);
    }

    /// Whether a fault of the device reaches the application.
    fn exposure(&self) -> Exposure {
        if self.foreign.load(Ordering::Relaxed) > 0 {
            return Exposure::Exposed;
        }
        let all = lives::all();
        let found = all.iter().filter_map(|qp| exposure_of(qp, self.context.0));
        found.max().unwrap_or(Exposure::Exposed)
    }
}

/// How the queue pairs of a context stand towards a fault of their device; the worst is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exposure {
    /// All work elsewhere.
    Moved,
    /// All that are hit are protected; some are still there.
    Protected,
    /// One is hit and not protected; or there is none at all.
    Exposed,
}

/// Of one queue pair; `None` if a fault changes nothing for it, or it is of another context.
fn exposure_of(qp: &QpShadow, context: *mut ibv_context) -> Option<Exposure> {
    let cold = qp.cold();
    if !cold.alive || cold.incarnations.is_empty() {
        return None;
    }
    // SAFETY: the life is not over, and who ends it needs the lock that is held.
    if unsafe { (*qp.qp.0).context } != context {
        return None;
    }
    match qp.stance() {
        Stance::Surfaced => Some(Exposure::Exposed),
        // It had its error before.
        Stance::Passing => None,
        Stance::Recording | Stance::Armed | Stance::Masking if cold.path != 0 => Some(Exposure::Moved),
        Stance::Armed | Stance::Masking => Some(Exposure::Protected),
        Stance::Recording => Some(Exposure::Exposed),
    }
}

/// A NIC that says that a queue pair is broken has no work of it to flush if it is silent for so long.
const SILENT: Duration = Duration::from_secs(1);

fn judge_again(qp: &QpShadow, held: &Withheld) -> Verdict {
    let kind = held.event.event_type;
    match qp.stance() {
        Stance::Recording | Stance::Passing => at_first(qp, kind),
        Stance::Surfaced if kind == IBV_EVENT_QP_FATAL => Verdict::Drop,
        Stance::Surfaced => at_first(qp, kind),
        Stance::Masking => Verdict::Withhold,
        Stance::Armed if qp.rq.epoch.load(Ordering::Relaxed) != held.epoch => Verdict::Drop,
        Stance::Armed if held.since.elapsed() > SILENT => at_first(qp, kind),
        Stance::Armed => Verdict::Withhold,
    }
}

/// What becomes of an event of a recorded queue pair's own object.
fn judge_of_qp(qp: &QpShadow, kind: ibv_event_type) -> Verdict {
    match qp.stance() {
        // It works elsewhere, and what its fence stirred up here is heard late.
        Stance::Recording | Stance::Armed if qp.cold().path != 0 => Verdict::Drop,
        Stance::Armed | Stance::Masking => Verdict::Withhold,
        // It was told when the error was.
        Stance::Surfaced if kind == IBV_EVENT_QP_FATAL => Verdict::Drop,
        Stance::Recording | Stance::Passing | Stance::Surfaced => at_first(qp, kind),
    }
}

/// An event that the kernel did not count goes out: the destroy of its queue pair has to wait for its acknowledgement too.
fn report(event: &ibv_async_event) {
    let (mutex, completed) = match (qp_of(event), srq_of(event)) {
        (Some(qp), _) => {
            // SAFETY: the event was in the queue of a context whose state is locked, and a destroy takes it out of there first.
            let mutex = unsafe { &raw mut (*qp).mutex };
            // SAFETY: as above.
            (mutex, unsafe { &raw mut (*qp).events_completed })
        }
        (None, Some(srq)) => {
            // SAFETY: as above.
            let mutex = unsafe { &raw mut (*srq).mutex };
            // SAFETY: as above.
            (mutex, unsafe { &raw mut (*srq).events_completed })
        }
        (None, None) => return,
    };
    // SAFETY: libibverbs initialized the mutex.
    unsafe { libc::pthread_mutex_lock(mutex) };
    // SAFETY: under the mutex this is the only access.
    let count = unsafe { &mut *completed };
    *count = count.wrapping_sub(1);
    // SAFETY: locked above.
    unsafe { libc::pthread_mutex_unlock(mutex) };
}

/// What a thread that wants an event sleeps on.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// libibverbs' own, or [`wait::NONE`]: the context is none of those that are protected.
    pub real: c_int,
    /// Ours.
    pub wake: c_int,
    /// How long it sleeps at most, in milliseconds; -1: for ever.
    pub patience: c_int,
}

/// See [`Descriptors`].
///
/// # Safety
/// The context is open.
#[inline(never)]
pub unsafe fn descriptors(context: *mut ibv_context) -> Descriptors {
    // A forked child has no agent, and nothing is masked.
    let Some(events) = CONTEXTS.get(context).filter(|_| process::get().is_some()) else {
        return Descriptors { real: wait::NONE, wake: wait::NONE, patience: -1 };
    };
    let state = events.state();
    let undecided = !state.of_qps.is_empty() || state.withheld.iter().any(|held| !held.is_masked);
    // SAFETY: the caller's context is open.
    let real = unsafe { (*context).async_fd };
    Descriptors { real, wake: events.wake.as_raw_fd(), patience: if undecided { TICK_MS } else { -1 } }
}

/// Takes one event, if there is one to be told.
///
/// # Safety
/// The context is open; the place is writable.
#[inline(never)]
pub unsafe fn take(context: *mut ibv_context, event: *mut ibv_async_event) -> Taken {
    let taken = wait::without_cancellation(|| {
        let _inside = Inside::enter();
        let take = || CONTEXTS.get(context).map_or(Ok(None), Events::take_event);
        catch_unwind(AssertUnwindSafe(take)).unwrap_or(Err(libc::EIO))
    });
    match taken {
        Ok(Some(found)) => {
            // SAFETY: the caller's place is writable.
            unsafe { event.write(found) };
            Taken::Event
        }
        Ok(None) => Taken::Nothing,
        Err(errno) => {
            wait::set_errno(errno);
            Taken::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(event_type: ibv_event_type, port_num: c_int) -> ibv_async_event {
        ibv_async_event { element: ibv_async_element { port_num }, event_type }
    }

    fn events() -> Events {
        // SAFETY: it makes a descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        // SAFETY: nobody else has it.
        let wake = unsafe { OwnedFd::from_raw_fd(fd) };
        let context = Raw(core::ptr::null_mut());
        Events {
            context,
            wake,
            foreign: AtomicU32::new(0),
            taking: Mutex::new(()),
            state: Mutex::new(State::default()),
        }
    }

    fn is_readable(events: &Events) -> bool {
        let mut wish = libc::pollfd { fd: events.wake.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the array is one long.
        (unsafe { libc::poll(&mut wish, 1, 0) }) == 1
    }

    #[test]
    fn a_port_that_was_not_told_to_be_down_is_not_told_to_be_up() {
        let events = events();
        assert_eq!(events.judge_active(1), Verdict::Tell);
        events.withhold(port(IBV_EVENT_PORT_ERR, 1));
        assert_eq!(events.judge_active(2), Verdict::Tell);
        assert_eq!(events.judge_active(1), Verdict::Drop);
        assert_eq!(events.judge_active(1), Verdict::Tell);
    }

    #[test]
    fn without_a_protected_queue_pair_every_event_is_told() {
        let events = events();
        assert_eq!(events.judge(&port(IBV_EVENT_PORT_ERR, 1)), Verdict::Tell);
        assert_eq!(events.judge(&port(IBV_EVENT_DEVICE_FATAL, 0)), Verdict::Tell);
        assert_eq!(events.judge(&port(IBV_EVENT_SM_CHANGE, 1)), Verdict::Tell);
    }

    #[test]
    fn what_was_withheld_is_told_once_nothing_is_protected_any_more() {
        let events = events();
        events.withhold(port(IBV_EVENT_PORT_ERR, 1));
        assert!(!is_readable(&events));
        events.reconsider();
        assert!(is_readable(&events));
        assert_eq!(events.pop().map(|event| event.event_type), Some(IBV_EVENT_PORT_ERR));
        assert!(!is_readable(&events) && events.pop().is_none());
    }
}
