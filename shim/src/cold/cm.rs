//! Connections of librdmacm: the end of one that moved.
//!
//! The messages of the connection manager go by the rail on which the connection was made, wherever it is by now: on a dead one the peer's
//! disconnect never comes, and the own one is answered after 64 s. So where a connection has moved, what the control connection says of the peer's
//! queue pair is told as RDMA_CM_EVENT_DISCONNECTED. Once: what the connection manager says later is left out.
//!
//! The event channel's descriptor stays librdmacm's own, which writes its commands to it. So a thread that sleeps in `rdma_get_cm_event` is woken, and a
//! program that waits for the descriptor by itself is not.

use crate::cold::{qp, rail};
use crate::process;
use crate::real;
use crate::shadow::{QpShadow, Stance};
use crate::tables::PtrTable;
use crate::wait::{self, errno};
use core::ffi::{c_int, c_void};
use shift_abi::{ibv_context, ibv_qp, IBV_PORT_ACTIVE};
use shift_control::datapath::{Event, QpLife};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// RDMA_CM_EVENT_DISCONNECTED of rdma_cma.h.
const DISCONNECTED: u32 = 10;

/// `struct rdma_event_channel`.
#[repr(C)]
pub struct RdmaEventChannel {
    fd: c_int,
}

/// The beginning of `struct rdma_cm_id`.
#[repr(C)]
pub struct RdmaCmId {
    verbs: *mut ibv_context,
    channel: *mut RdmaEventChannel,
    context: *mut c_void,
    qp: *mut ibv_qp,
}

/// `struct rdma_cm_event`; the parameters of a DISCONNECTED are all zero.
#[repr(C)]
pub struct RdmaCmEvent {
    id: *mut RdmaCmId,
    listen_id: *mut RdmaCmId,
    event: u32,
    status: c_int,
    param: [u64; 8],
}

/// An event channel of the application.
struct Channel {
    /// Readable while something of ours waits for it. Of whoever holds the lock of [`CM`].
    wake: OwnedFd,
    /// Of who takes events of the connection manager: between asking whether there is one and taking it.
    taking: Mutex<()>,
}

static CHANNELS: PtrTable<Channel> = PtrTable::new();

/// A connection, by the address of its id.
struct Known {
    qp: usize,
    channel: usize,
    /// Its end was told.
    is_over: bool,
    /// The application has ended it, and waits for the peer's answer.
    is_left: bool,
}

struct Cm {
    known: BTreeMap<usize, Known>,
    /// Ids whose end is due, and their channels.
    due: VecDeque<(usize, usize)>,
    /// Events of ours that the application has: event and id.
    given: BTreeSet<(usize, usize)>,
}

static CM: Mutex<Cm> = Mutex::new(Cm { known: BTreeMap::new(), due: VecDeque::new(), given: BTreeSet::new() });
/// An event of ours was acknowledged.
static ACKNOWLEDGED: Condvar = Condvar::new();

fn cm() -> MutexGuard<'static, Cm> {
    CM.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cm {
    fn leave(&mut self, id: usize) {
        if let Some(known) = self.known.get_mut(&id) {
            known.is_left = true;
        }
    }

    fn end(&mut self, id: usize) {
        let Some(known) = self.known.get_mut(&id).filter(|known| !known.is_over) else { return };
        known.is_over = true;
        let channel = known.channel;
        self.due.push_back((id, channel));
        self.show(channel);
    }

    /// The connection of a queue pair whose peer is gone, if the peer's own word for it may not come: the queue pair is away from where the connection was
    /// made, or the word that this end is waiting for may have been lost.
    fn ended_with(&self, qp: usize, is_away: bool) -> Option<usize> {
        let found = self.known.iter().find(|(_, known)| known.qp == qp);
        found.filter(|(_, known)| is_away || known.is_left).map(|(id, _)| *id)
    }

    fn show(&self, channel: usize) {
        let Some(found) = CHANNELS.get_arc(channel as *const RdmaEventChannel) else { return };
        let is_due = self.due.iter().any(|(_, of)| *of == channel);
        let fd = found.wake.as_raw_fd();
        let mut count = 0_u64;
        // SAFETY: eight bytes are writable; the descriptor does not block.
        unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
        count = u64::from(is_due);
        if is_due {
            // SAFETY: eight bytes are readable; a count of one never blocks.
            unsafe { libc::write(fd, (&raw const count).cast(), 8) };
        }
    }

    fn take(&mut self, channel: usize) -> Option<*mut RdmaCmEvent> {
        let at = self.due.iter().position(|(_, of)| *of == channel)?;
        let (id, _) = self.due.remove(at)?;
        self.show(channel);
        let event = RdmaCmEvent {
            id: id as *mut RdmaCmId,
            listen_id: core::ptr::null_mut(),
            event: DISCONNECTED,
            status: 0,
            param: [0; 8],
        };
        let event = Box::into_raw(Box::new(event));
        self.given.insert((event as usize, id));
        Some(event)
    }
}

/// The peer's queue pair is gone, as the peer says itself.
pub fn peer_left(qp: &QpShadow) {
    let is_away = qp::has_moved(qp) && qp.stance() != Stance::Surfaced;
    let mut cm = cm();
    if let Some(id) = cm.ended_with(qp.qp.0 as usize, is_away) {
        cm.end(id);
    }
}

/// `rdma_disconnect`.
///
/// # Safety
/// As `rdma_disconnect`.
pub unsafe fn disconnect(id: *mut RdmaCmId) -> c_int {
    // SAFETY: the application's id is live.
    let qp = unsafe { (*id).qp };
    let protected = qp::QPS.get_arc(qp).filter(|shadow| qp::has_moved(shadow) || shadow.stance() == Stance::Armed);
    let lost = protected.as_ref().filter(|shadow| qp::has_moved(shadow) || !has_port(shadow));
    if protected.is_some() {
        cm().leave(id as usize);
    }
    if let Some(shadow) = lost {
        // The peer hears of it by the control connection, and its answer would not come. Before the queue pair is in ERR, of which nobody is told.
        process::tell(Event::Destroyed { qp: QpLife(shadow.life) });
    }
    // SAFETY: passed on.
    let result = unsafe { real::rdma_disconnect(id) };
    if result == 0 && lost.is_some() {
        cm().end(id as usize);
    }
    result
}

/// The port that its messages go by works.
fn has_port(qp: &QpShadow) -> bool {
    let attr = rail::by_id(qp.pd.device).and_then(|rail| rail.port_attr());
    attr.is_none_or(|attr| attr.state == IBV_PORT_ACTIVE)
}

/// `rdma_destroy_id`.
///
/// # Safety
/// As `rdma_destroy_id`.
pub unsafe fn destroy_id(id: *mut RdmaCmId) -> c_int {
    {
        let mut cm = cm();
        let known = cm.known.remove(&(id as usize));
        cm.due.retain(|(of, _)| *of != id as usize);
        if let Some(known) = known {
            cm.show(known.channel);
        }
        // As the real one waits for the events that the kernel counted.
        while cm.given.iter().any(|(_, of)| *of == id as usize) {
            cm = ACKNOWLEDGED.wait(cm).unwrap_or_else(PoisonError::into_inner);
        }
    }
    // SAFETY: passed on.
    unsafe { real::rdma_destroy_id(id) }
}

/// `rdma_ack_cm_event`.
///
/// # Safety
/// As `rdma_ack_cm_event`.
pub unsafe fn acknowledge(event: *mut RdmaCmEvent) -> c_int {
    {
        let mut cm = cm();
        let ours = cm.given.range((event as usize, 0)..=(event as usize, usize::MAX)).next().copied();
        if let Some(ours) = ours {
            cm.given.remove(&ours);
            // SAFETY: it was leaked in `take` and is in no list any more.
            drop(unsafe { Box::from_raw(event) });
            ACKNOWLEDGED.notify_all();
            return 0;
        }
    }
    // SAFETY: passed on.
    unsafe { real::rdma_ack_cm_event(event) }
}

/// `rdma_destroy_event_channel`.
///
/// # Safety
/// As `rdma_destroy_event_channel`.
pub unsafe fn destroy_channel(channel: *mut RdmaEventChannel) {
    CHANNELS.remove(channel);
    // SAFETY: passed on.
    unsafe { real::rdma_destroy_event_channel(channel) }
}

/// What a thread that wants an event sleeps on: librdmacm's descriptor and ours, or [`wait::NONE`] for both where nothing is protected.
///
/// # Safety
/// The channel is live.
#[inline(never)]
pub unsafe fn descriptors(channel: *mut RdmaEventChannel) -> (c_int, c_int) {
    if channel.is_null() || process::get().is_none() {
        return (wait::NONE, wait::NONE);
    }
    // SAFETY: the caller's channel is live.
    let real = unsafe { (*channel).fd };
    if let Some(known) = CHANNELS.get(channel) {
        return (real, known.wake.as_raw_fd());
    }
    // SAFETY: it makes a descriptor, or says -1.
    let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if wake < 0 {
        return (wait::NONE, wait::NONE);
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let owned = unsafe { OwnedFd::from_raw_fd(wake) };
    if CHANNELS.insert(channel, Arc::new(Channel { wake: owned, taking: Mutex::new(()) })) {
        (real, wake)
    } else {
        (wait::NONE, wait::NONE)
    }
}

/// What [`take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// An event; it was written to the caller's place.
    Event,
    /// None at this moment.
    Nothing,
    /// librdmacm's own failure; errno says which.
    Failed,
}

/// Takes one event, if there is one. This thread is not marked as inside of libibverbs: librdmacm connects queue pairs in here.
///
/// # Safety
/// The channel is live; the place is writable.
#[inline(never)]
pub unsafe fn take(channel: *mut RdmaEventChannel, event: *mut *mut RdmaCmEvent) -> Taken {
    wait::without_cancellation(|| {
        let Some(known) = CHANNELS.get_arc(channel) else { return Taken::Failed };
        let _taking = known.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = cm().take(channel as usize);
        if let Some(found) = ours {
            // SAFETY: the caller's place is writable.
            unsafe { event.write(found) };
            return Taken::Event;
        }
        // SAFETY: the caller's channel is live.
        while is_readable(unsafe { (*channel).fd }) {
            // SAFETY: passed on.
            if unsafe { real::rdma_get_cm_event(channel, event) } != 0 {
                let again = matches!(errno(), libc::EAGAIN | libc::EINTR);
                return if again { Taken::Nothing } else { Taken::Failed };
            }
            // SAFETY: the call above wrote it.
            let found = unsafe { event.read() };
            // SAFETY: as above.
            if unsafe { learn(found) } {
                return Taken::Event;
            }
            // SAFETY: the event was just got and goes to nobody.
            unsafe { real::rdma_ack_cm_event(found) };
        }
        Taken::Nothing
    })
}

fn is_readable(fd: c_int) -> bool {
    let mut wish = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the array is one long.
    (unsafe { libc::poll(&mut wish, 1, 0) }) > 0
}

/// What an event of the connection manager says of its connection; `false`: it was told already.
///
/// # Safety
/// The event was just got.
unsafe fn learn(event: *mut RdmaCmEvent) -> bool {
    // SAFETY: the caller's event is live.
    let event = unsafe { &*event };
    let (id, kind) = (event.id, event.event);
    if id.is_null() {
        return true;
    }
    // SAFETY: the id of an event that is not acknowledged is live.
    let found = unsafe { &*id };
    let (qp, channel) = (found.qp as usize, found.channel as usize);
    let mut cm = cm();
    let known = cm.known.entry(id as usize).or_insert(Known { qp, channel, is_over: false, is_left: false });
    (known.qp, known.channel) = (qp, channel);
    if kind != DISCONNECTED {
        return true;
    }
    !std::mem::replace(&mut known.is_over, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_connection_is_told_once() {
        let mut cm = Cm { known: BTreeMap::new(), due: VecDeque::new(), given: BTreeSet::new() };
        cm.known.insert(0x10, Known { qp: 0x20, channel: 0x30, is_over: false, is_left: false });
        cm.end(0x10);
        cm.end(0x10);
        let event = cm.take(0x30);
        assert!(event.is_some_and(|event| cm.given.contains(&(event as usize, 0x10))));
        assert!(cm.take(0x30).is_none());
    }

    #[test]
    fn who_ended_a_connection_hears_that_the_peer_is_gone_and_nobody_else_whose_connection_is_where_it_was_made() {
        let mut cm = Cm { known: BTreeMap::new(), due: VecDeque::new(), given: BTreeSet::new() };
        cm.known.insert(0x10, Known { qp: 0x20, channel: 0x30, is_over: false, is_left: false });
        assert_eq!((cm.ended_with(0x20, false), cm.ended_with(0x20, true)), (None, Some(0x10)));
        cm.leave(0x10);
        assert_eq!((cm.ended_with(0x20, false), cm.ended_with(0x21, true)), (Some(0x10), None));
    }

    #[test]
    fn an_event_goes_to_its_own_channel() {
        let mut cm = Cm { known: BTreeMap::new(), due: VecDeque::new(), given: BTreeSet::new() };
        cm.known.insert(0x10, Known { qp: 0x20, channel: 0x30, is_over: false, is_left: false });
        cm.end(0x10);
        assert!(cm.take(0x31).is_none());
        assert!(cm.take(0x30).is_some());
    }
}
