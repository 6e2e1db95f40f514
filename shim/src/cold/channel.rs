//! Completion channels: what the application sleeps on, though completions come from two devices and from this library itself.
//!
//! The application gets an `ibv_comp_channel` of ours. Its descriptor is an epoll set of the real channel's, those of the twins' channels on the standbys, and,
//! while an event of our own making waits, one that is always readable. Whoever takes an event takes it in that order: ours, the real
//! channel's, the twins'. So nothing stands between the NIC and a thread that sleeps: no thread of ours has to run first.
//!
//! Acknowledgement: `ibv_destroy_cq` waits until as many events were acknowledged as the kernel counted. It does not count those of the twins and ours, so for
//! each that goes out one is taken off what libibverbs counts as acknowledged. Then its own functions wait for all of them.
//!
//! Refuses to own: when an event is due (`cold::notify`).

use crate::cold::rail::{self, Rail};
use crate::cold::{cq, device, notify, reaper, tell};
use crate::process::Inside;
use crate::real;
use crate::shadow::Raw;
use crate::tables::{PtrTable, Roll};
use crate::wait::{self, errno};
use core::ffi::{c_int, c_void};
use shift_abi::*;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Channels of ours, by the pointer that the application has.
pub static CHANNELS: PtrTable<ChannelShadow> = PtrTable::new();

/// A channel of the application.
pub struct ChannelShadow {
    /// What the application has: memory of this library's own.
    ours: Raw<ibv_comp_channel>,
    /// libibverbs' own, which the kernel knows. Non-blocking.
    real: Raw<ibv_comp_channel>,
    state: Mutex<State>,
}

/// Innermost lock: whoever holds it takes at most the mutex of a CQ of libibverbs', and never waits.
struct State {
    /// The epoll set; `None` once the channel is destroyed.
    epoll: Option<OwnedFd>,
    /// CQs of the application that use the channel and are not being destroyed.
    cqs: BTreeSet<usize>,
    /// CQs of which an event of our own making is due.
    ready: VecDeque<Raw<ibv_cq>>,
    /// The always readable descriptor is in the set.
    is_shown: bool,
    /// The channels of the twins, one on each standby. Non-blocking.
    twins: Vec<(u16, Raw<ibv_comp_channel>)>,
}

/// What [`take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// An event; it was written to the caller's places.
    Event,
    /// None at this moment.
    Nothing,
    /// The channel is broken; errno says how.
    Failed,
}

impl ChannelShadow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel that libibverbs and the kernel know.
    pub fn real(&self) -> *mut ibv_comp_channel {
        self.real.0
    }

    /// A CQ was made on the real channel: to the application it is on ours.
    pub fn adopt(&self, cq: *mut ibv_cq) {
        // SAFETY: the CQ was just made and nobody else has it yet.
        unsafe { (*cq).channel = self.ours.0 };
        self.count_reference();
        self.rejoin(cq, false);
    }

    /// libibverbs takes one off this number when a CQ on the channel is destroyed, under the same mutex.
    fn count_reference(&self) {
        // SAFETY: the channel is not destroyed while a CQ is made on it.
        let context = unsafe { (*self.ours.0).context };
        // SAFETY: the context of a live channel is open.
        let mutex = unsafe { &raw mut (*context).mutex };
        // SAFETY: libibverbs initialized the mutex.
        unsafe { libc::pthread_mutex_lock(mutex) };
        // SAFETY: under the mutex this is the only access.
        unsafe { (*self.ours.0).refcnt += 1 };
        // SAFETY: locked above.
        unsafe { libc::pthread_mutex_unlock(mutex) };
    }

    /// The application destroys this CQ: nothing more is told of it. Returns whether something was about to be.
    pub fn leave(&self, cq: *mut ibv_cq) -> bool {
        let mut state = self.state();
        state.cqs.remove(&(cq as usize));
        let before = state.ready.len();
        state.ready.retain(|ready| ready.0 != cq);
        let had = state.ready.len() != before;
        state.show();
        had
    }

    /// It was not destroyed after all.
    pub fn rejoin(&self, cq: *mut ibv_cq, raise: bool) {
        self.state().cqs.insert(cq as usize);
        if raise {
            self.raise(cq);
        }
    }

    /// Makes an event of this CQ.
    pub fn raise(&self, cq: *mut ibv_cq) {
        let mut state = self.state();
        if state.cqs.contains(&(cq as usize)) {
            state.ready.push_back(Raw(cq));
            state.show();
        }
    }

    /// The channel for the twins of its CQs, made at first need.
    pub fn twin_on(self: &Arc<Self>, standby: &Rail) -> Result<*mut ibv_comp_channel, String> {
        let mut state = self.state();
        if let Some((_, twin)) = state.twins.iter().find(|(device, _)| *device == standby.id) {
            return Ok(twin.0);
        }
        // SAFETY: a rail's context is open for ever.
        let twin = unsafe { real::ibv_create_comp_channel(standby.context.0) };
        if twin.is_null() {
            return Err(format!("{} refused a completion channel ({})", standby.name, std::io::Error::last_os_error()));
        }
        // SAFETY: the channel was just made.
        let fd = unsafe { (*twin).fd };
        let joined = match wait::set_nonblocking(fd) {
            0 => state.set(libc::EPOLL_CTL_ADD, fd),
            errno => Err(errno),
        };
        if let Err(errno) = joined {
            reaper::destroy_channel(Raw(twin));
            return Err(format!("a completion channel on {} cannot be waited for (errno {errno})", standby.name));
        }
        state.twins.push((standby.id, Raw(twin)));
        drop(state);
        TWINNED.enter(self);
        Ok(twin)
    }

    /// Takes out the twin on a device that is gone: nobody waits for it from here on.
    fn part(&self, device: u16) -> Option<Raw<ibv_comp_channel>> {
        let mut state = self.state();
        let at = state.twins.iter().position(|(on, _)| *on == device)?;
        let (_, twin) = state.twins.remove(at);
        // SAFETY: the twins' channel was this state's until the line above, and is destroyed by who gets it.
        let fd = unsafe { (*twin.0).fd };
        if let Err(errno) = state.set(libc::EPOLL_CTL_DEL, fd) {
            log::debug!("the channel of a device that is gone was not waited for (errno {errno})");
        }
        Some(twin)
    }

    fn take_event(&self) -> Result<Option<*mut ibv_cq>, c_int> {
        if let Some(cq) = self.state().pop_own() {
            return Ok(Some(cq));
        }
        let (mut cq, mut context) = (core::ptr::null_mut(), core::ptr::null_mut());
        // SAFETY: the real channel is live as long as ours is; it does not block; both places are writable.
        if unsafe { real::ibv_get_cq_event(self.real.0, &mut cq, &mut context) } == 0 {
            heard(cq);
            return Ok(Some(cq));
        }
        match errno() {
            libc::EAGAIN | libc::EINTR => Ok(self.state().pop_twin()),
            errno => self.state().lose_real(self.real, errno),
        }
    }
}

/// Channels that have, or had, twins.
static TWINNED: Roll<ChannelShadow> = Roll::new();

/// Takes the twins on a device that is gone out of all channels.
pub fn part(device: u16) -> Vec<Raw<ibv_comp_channel>> {
    TWINNED.all().iter().filter_map(|channel| channel.part(device)).collect()
}

impl State {
    fn set(&self, operation: c_int, fd: RawFd) -> Result<(), c_int> {
        let Some(epoll) = &self.epoll else { return Err(libc::EBADF) };
        let mut wish = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the descriptors are this library's own; `wish` is readable.
        let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &mut wish) };
        if done == 0 {
            Ok(())
        } else {
            Err(errno())
        }
    }

    /// The set is readable while an event of our own waits.
    fn show(&mut self) {
        let wanted = !self.ready.is_empty();
        if wanted == self.is_shown || self.epoll.is_none() {
            return;
        }
        let operation = if wanted { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_DEL };
        match always_readable().and_then(|fd| self.set(operation, fd)) {
            Ok(()) => self.is_shown = wanted,
            Err(errno) => log::error!("a completion event cannot be shown (errno {errno})"),
        }
    }

    fn pop_own(&mut self) -> Option<*mut ibv_cq> {
        let cq = self.ready.pop_front()?.0;
        self.show();
        report(cq);
        Some(cq)
    }

    fn pop_twin(&mut self) -> Option<*mut ibv_cq> {
        (0..self.twins.len()).find_map(|at| self.pop_twin_at(at))
    }

    fn pop_twin_at(&mut self, at: usize) -> Option<*mut ibv_cq> {
        let (_, channel) = *self.twins.get(at)?;
        let channel = channel.0;
        loop {
            let (mut twin, mut context) = (core::ptr::null_mut(), core::ptr::null_mut());
            // SAFETY: the twins' channel lives until this state lets go of it; it does not block; both places are writable.
            if unsafe { real::ibv_get_cq_event(channel, &mut twin, &mut context) } != 0 {
                if !matches!(errno(), libc::EAGAIN | libc::EINTR) {
                    self.lose_twin(channel);
                }
                return None;
            }
            // SAFETY: the event was just got: whoever destroys the twin waits for this.
            unsafe { real::ibv_ack_cq_events(twin, 1) };
            // The context of a twin is the CQ of the application that it belongs to.
            let cq: *mut ibv_cq = context.cast();
            if self.cqs.contains(&(cq as usize)) {
                heard(cq);
                report(cq);
                return Some(cq);
            }
        }
    }

    /// The primary device is gone. Where there are twins the queue pairs go on there, or end in errors of this library's own: a program that
    /// sleeps for these is not woken by an error of the channel.
    fn lose_real(&mut self, channel: Raw<ibv_comp_channel>, errno: c_int) -> Result<Option<*mut ibv_cq>, c_int> {
        if self.twins.is_empty() {
            return Err(errno);
        }
        // SAFETY: the real channel is live as long as ours is.
        let fd = unsafe { (*channel.0).fd };
        if self.set(libc::EPOLL_CTL_DEL, fd).is_ok() {
            log::warn!("a completion channel broke (errno {errno}); events come from the standby from now on");
        }
        Ok(self.pop_twin())
    }

    /// The standby device is gone: its channel would be readable for ever.
    fn lose_twin(&mut self, channel: *mut ibv_comp_channel) {
        // SAFETY: the channel is this library's own and live.
        let fd = unsafe { (*channel).fd };
        if self.set(libc::EPOLL_CTL_DEL, fd).is_ok() {
            log::warn!("the completion channel on the standby broke");
        }
    }
}

/// An event that the kernel did not count goes out: `ibv_destroy_cq` has to wait for its acknowledgement too.
fn report(cq: *mut ibv_cq) {
    // SAFETY: the CQ is a member of the channel whose state is locked, so nobody destroys it meanwhile.
    let mutex = unsafe { &raw mut (*cq).mutex };
    // SAFETY: libibverbs initialized the mutex.
    unsafe { libc::pthread_mutex_lock(mutex) };
    // SAFETY: under the mutex this is the only access.
    let completed = unsafe { &mut (*cq).comp_events_completed };
    *completed = completed.wrapping_sub(1);
    // SAFETY: locked above.
    unsafe { libc::pthread_mutex_unlock(mutex) };
}

/// The application is about to hear of this CQ from a NIC.
fn heard(cq: *mut ibv_cq) {
    if let Some(shadow) = cq::CQS.get_arc(cq) {
        notify::heard(&shadow);
    }
}

/// One for all channels, made with the first; nobody reads it.
fn always_readable() -> Result<RawFd, c_int> {
    static FD: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(fd) = FD.get() {
        return Ok(fd.as_raw_fd());
    }
    // SAFETY: it makes a descriptor or says -1.
    let fd = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let made = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(FD.get_or_init(|| made).as_raw_fd())
}

/// `ibv_create_comp_channel`.
///
/// # Safety
/// As `ibv_create_comp_channel`.
pub unsafe fn create(context: *mut ibv_context) -> *mut ibv_comp_channel {
    // SAFETY: passed on.
    let real = unsafe { real::ibv_create_comp_channel(context) };
    let Some(shadow) = device::device_of(context).filter(|_| !real.is_null()) else { return real };
    // Without a standby no QP is protected: the channel is left as it is.
    if rail::by_id(shadow.device).is_none_or(|rail| rail::standbys_of(&rail).is_err()) {
        return real;
    }
    wrap(context, Raw(real)).unwrap_or_else(|errno| {
        let reason = format!("no descriptor for a completion channel (errno {errno})");
        tell::once(&format!("queue pairs whose CQ has a channel are not protected: {reason}"), &reason);
        real
    })
}

fn wrap(context: *mut ibv_context, real: Raw<ibv_comp_channel>) -> Result<*mut ibv_comp_channel, c_int> {
    // Without it no event of our own could ever be shown.
    always_readable()?;
    // SAFETY: it makes a descriptor or says -1.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(errno());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let owned = unsafe { OwnedFd::from_raw_fd(epoll) };
    let state =
        State { epoll: Some(owned), cqs: BTreeSet::new(), ready: VecDeque::new(), is_shown: false, twins: Vec::new() };
    // SAFETY: the real channel was just made.
    let fd = unsafe { (*real.0).fd };
    state.set(libc::EPOLL_CTL_ADD, fd)?;
    let ours = Box::into_raw(Box::new(ibv_comp_channel { context, fd: epoll, refcnt: 0 }));
    let shadow = ChannelShadow { ours: Raw(ours), real, state: Mutex::new(state) };
    // What changes the real channel comes last: the application gets that one if something fails.
    let failed = if CHANNELS.insert(ours, Arc::new(shadow)) {
        match wait::set_nonblocking(fd) {
            0 => return Ok(ours),
            errno => {
                CHANNELS.remove(ours);
                errno
            }
        }
    } else {
        libc::ENOMEM
    };
    // SAFETY: the box was leaked above and given to nobody.
    drop(unsafe { Box::from_raw(ours) });
    Err(failed)
}

/// `ibv_destroy_comp_channel`.
///
/// # Safety
/// As `ibv_destroy_comp_channel`.
pub unsafe fn destroy(channel: *mut ibv_comp_channel) -> c_int {
    let Some(shadow) = CHANNELS.get_arc(channel) else {
        // SAFETY: passed on.
        return unsafe { real::ibv_destroy_comp_channel(channel) };
    };
    // SAFETY: the application destroys a live channel, and no CQ on it meanwhile.
    if unsafe { (*channel).refcnt } != 0 {
        return libc::EBUSY;
    }
    CHANNELS.remove(channel);
    let (epoll, twins) = {
        let mut state = shadow.state();
        (state.epoll.take(), core::mem::take(&mut state.twins))
    };
    drop(epoll);
    twins.into_iter().for_each(|(_, twin)| reaper::destroy_channel(twin));
    // It counted the CQs that were made; those that were destroyed were counted on ours.
    // SAFETY: no CQ is on the channel any more, so nobody else touches the field.
    unsafe { (*shadow.real.0).refcnt = 0 };
    // SAFETY: the real channel was made by libibverbs and is destroyed once.
    let errno = unsafe { real::ibv_destroy_comp_channel(shadow.real.0) };
    // SAFETY: it was leaked when the channel was made, and is in no table any more.
    drop(unsafe { Box::from_raw(channel) });
    errno
}

/// Our channel behind the pointer that the application gives to a CQ.
pub fn given(channel: *mut ibv_comp_channel) -> Option<Arc<ChannelShadow>> {
    if channel.is_null() {
        return None;
    }
    CHANNELS.get_arc(channel)
}

/// The descriptor of a channel of ours, or [`wait::NONE`]. Drops nothing and panics nowhere: see [`wait`].
///
/// # Safety
/// The channel is live.
pub unsafe fn descriptor(channel: *mut ibv_comp_channel) -> c_int {
    if CHANNELS.get(channel).is_none() {
        return wait::NONE;
    }
    // SAFETY: the caller's channel is live.
    unsafe { (*channel).fd }
}

/// Takes one event of a channel of ours, if there is one.
///
/// # Safety
/// The channel is live; both places are writable.
#[inline(never)]
pub unsafe fn take(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, cq_context: *mut *mut c_void) -> Taken {
    let taken = wait::without_cancellation(|| {
        let _inside = Inside::enter();
        let take = || CHANNELS.get(channel).map_or(Ok(None), ChannelShadow::take_event);
        catch_unwind(AssertUnwindSafe(take)).unwrap_or(Err(libc::EIO))
    });
    match taken {
        Ok(Some(found)) => {
            // SAFETY: the caller's place is writable.
            unsafe { cq.write(found) };
            // SAFETY: the CQ is live until the event is acknowledged.
            let context = unsafe { (*found).cq_context };
            // SAFETY: the caller's place is writable.
            unsafe { cq_context.write(context) };
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
impl ChannelShadow {
    /// Of these CQs, and of no library: only events of our own come out of it.
    pub fn of(cqs: &[*mut ibv_cq]) -> Arc<Self> {
        let cqs = cqs.iter().map(|cq| *cq as usize).collect();
        let state = State { epoll: None, cqs, ready: VecDeque::new(), is_shown: false, twins: Vec::new() };
        Arc::new(Self { ours: Raw(core::ptr::null_mut()), real: Raw(core::ptr::null_mut()), state: Mutex::new(state) })
    }

    /// How many events of our own wait.
    pub fn due(&self) -> usize {
        self.state().ready.len()
    }
}
