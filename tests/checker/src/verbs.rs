//! A thin wrapper around libibverbs, and the only place with `unsafe`.
//!
//! It does what a compiled C program does: it links libibverbs (see build.rs, also for how else it may be bound), and posts and polls through `context->ops`, as the
//! inline functions of verbs.h do. What must hold: objects are closed in the order of [`Verbs::close`], or not at all
//! (at exit the kernel takes them back); so everything made here is valid as long as it can be named.

#![allow(unsafe_code, reason = "calls of a C library; the rest of the program is safe Rust")]

mod asynchronous;
mod channel;
mod child;
mod extended;
mod fences;
mod memory;
mod poller;
mod queue;
mod shared;
mod waiter;

pub use asynchronous::AsyncEvents;
pub use channel::{Channel, Waiting};
pub use child::{fork_and_exec, fork_idle_child, fork_init, work_in_child};
pub use fences::{watch_fences, FenceSeen};
pub use memory::{Region, Window};
pub use poller::Poller;
pub use queue::{Qp, QpWish, ReceiveRequest, Route, SendRequest};
pub use shared::Srq;

use crate::args::{Api, GidIndex};
use shift_abi::*;
use std::ffi::{c_int, c_uint, CStr};
use std::io;
use std::ptr::{null_mut, NonNull};
use std::time::Duration;

extern "C" {
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device;
    fn ibv_free_device_list(list: *mut *mut ibv_device);
    fn ibv_get_device_name(device: *mut ibv_device) -> *const std::ffi::c_char;
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
    fn ibv_close_device(context: *mut ibv_context) -> c_int;
    fn ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int;
    fn _ibv_query_gid_ex(
        context: *mut ibv_context,
        port: u32,
        index: u32,
        entry: *mut ibv_gid_entry,
        flags: u32,
        entry_size: usize,
    ) -> c_int;
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
    fn ibv_create_cq(
        context: *mut ibv_context,
        cqe: c_int,
        cq_context: *mut std::ffi::c_void,
        channel: *mut ibv_comp_channel,
        vector: c_int,
    ) -> *mut ibv_cq;
    fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
}

/// A verb that failed: which, and with what errno.
#[derive(Debug, thiserror::Error)]
#[error("{verb}: {source}")]
pub struct VerbError {
    /// C's name of the verb.
    pub verb: &'static str,
    /// The errno.
    pub source: io::Error,
}

impl VerbError {
    fn last(verb: &'static str) -> Self {
        Self { verb, source: io::Error::last_os_error() }
    }

    fn with(verb: &'static str, errno: c_int) -> Self {
        Self { verb, source: io::Error::from_raw_os_error(errno) }
    }

    /// Whether a queue had no room.
    #[must_use]
    pub fn is_out_of_room(&self) -> bool {
        self.source.raw_os_error() == Some(libc::ENOMEM)
    }

    fn says(verb: &'static str, why: String) -> Self {
        Self { verb, source: io::Error::other(why) }
    }
}

/// The result of a verb.
pub type Result<T> = std::result::Result<T, VerbError>;

/// The `int` of verbs that return 0 or an errno.
fn check(verb: &'static str, errno: c_int) -> Result<()> {
    match errno {
        0 => Ok(()),
        errno => Err(VerbError::with(verb, errno.abs())),
    }
}

/// An opened device with one protection domain and one completion queue.
#[derive(Debug)]
pub struct Verbs {
    context: NonNull<ibv_context>,
    pd: NonNull<ibv_pd>,
    /// Of sends and of receives; the same one unless two were asked for.
    cqs: [NonNull<ibv_cq>; 2],
    port: u8,
    pollers: Vec<Poller>,
    channel: Option<Channel>,
    api: Api,
    events: Option<AsyncEvents>,
}

/// What completions are told by.
#[derive(Clone, Copy, Debug)]
pub struct CqWish {
    /// Entries of a completion queue.
    pub cqe: u32,
    /// One for sends and one for receives.
    pub split: bool,
    /// Events, and how they are waited for.
    pub waiting: Option<Waiting>,
    /// By which functions they are made and polled.
    pub api: Api,
    /// Asynchronous events are heard.
    pub hears: bool,
}

impl Verbs {
    /// Opens the named device, or the first one, with completion queues of exactly so many entries.
    pub fn open(name: Option<&str>, port: u8, wish: CqWish) -> Result<Self> {
        let context = open_device(name)?;
        // SAFETY: the context was just opened.
        let pd = unsafe { ibv_alloc_pd(context.as_ptr()) };
        let pd = NonNull::new(pd).ok_or_else(|| VerbError::last("ibv_alloc_pd"))?;
        let channel = wish.waiting.map(|waiting| Channel::new(context, waiting)).transpose()?;
        let api = wish.api;
        let first = create_cq(context, wish, channel.as_ref())?;
        let second = if wish.split { create_cq(context, wish, channel.as_ref())? } else { first };
        let cqs = [first, second];
        let pollers = cqs.iter().take(1 + usize::from(wish.split)).map(|cq| Poller::new(context, *cq, api)).collect();
        let events = wish.hears.then(|| AsyncEvents::start(context)).transpose()?;
        Ok(Self { context, pd, cqs, port, pollers, channel, api, events })
    }

    /// Where completions are told by events: whether one came within `patience`. `None`: they are not.
    pub fn heard(&mut self, patience: Duration) -> Option<Result<bool>> {
        self.channel.as_mut().map(|channel| channel.heard(patience))
    }

    /// Asks for an event of each queue's next completion, or of the next solicited one.
    pub fn arm(&self, solicited: bool) -> Result<()> {
        let Some(channel) = &self.channel else { return Ok(()) };
        self.pollers.iter().try_for_each(|poller| channel.arm(poller.cq(), solicited))
    }

    /// Asynchronous events that came since this was asked last.
    pub fn came(&self) -> Result<Vec<String>> {
        self.events.as_ref().map_or(Ok(Vec::new()), AsyncEvents::came)
    }

    /// Events that came so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.channel.as_ref().map_or(0, |channel| channel.events)
    }

    /// How many READs and atomics a queue pair of this device may have outstanding, as requester and as responder.
    pub fn read_depths(&self) -> Result<(u8, u8)> {
        let mut attr = ibv_device_attr::zeroed();
        // SAFETY: the context is open and the attributes are a writable structure of the type that the verb fills.
        let errno = unsafe { ibv_query_device(self.context.as_ptr(), &mut attr) };
        check("ibv_query_device", errno)?;
        let clamp = |value: c_int| u8::try_from(value.clamp(1, 16)).unwrap_or(1);
        Ok((clamp(attr.max_qp_init_rd_atom), clamp(attr.max_qp_rd_atom)))
    }

    /// The port's GID by the wish: its index and value.
    pub fn gid(&self, wish: GidIndex) -> Result<(u8, [u8; 16])> {
        match wish {
            GidIndex::At(index) => {
                let entry = self.gid_entry(index)?;
                Ok((index, entry.gid.raw))
            }
            GidIndex::Auto => (0..=u8::MAX)
                .filter_map(|index| Some((index, self.gid_entry(index).ok()?)))
                .find(|(_, entry)| entry.gid_type == IBV_GID_TYPE_ROCE_V2 && is_ipv4(entry.gid.raw))
                .map(|(index, entry)| (index, entry.gid.raw))
                .ok_or_else(|| VerbError::says("ibv_query_gid_ex", "no RoCEv2 GID of an IPv4 address".to_owned())),
        }
    }

    fn gid_entry(&self, index: u8) -> Result<ibv_gid_entry> {
        let mut entry = ibv_gid_entry::zeroed();
        let size = std::mem::size_of::<ibv_gid_entry>();
        // SAFETY: the context is open and the entry is a writable structure of the size that is told.
        let errno =
            unsafe { _ibv_query_gid_ex(self.context.as_ptr(), self.port.into(), index.into(), &mut entry, 0, size) };
        check("ibv_query_gid_ex", errno)?;
        Ok(entry)
    }

    /// Registers fresh memory; the access flags are `IBV_ACCESS_*`.
    pub fn region(&self, bytes: u64, access: c_uint) -> Result<Region> {
        Region::new(self.pd, bytes, access)
    }

    /// Makes a queue pair, in RESET, on the completion queue.
    pub fn qp(&self, srq: Option<&Srq>, wish: QpWish) -> Result<Qp> {
        let srq = srq.map_or(null_mut(), Srq::as_ptr);
        Qp::new((self.context, self.pd), self.cqs, srq, self.port, wish, self.api)
    }

    /// Makes a shared receive queue.
    pub fn srq(&self, receives: u32) -> Result<Srq> {
        Srq::new(self.pd, receives)
    }

    /// Appends the completions that are there to `out`, a batch at most; how many there were.
    pub fn poll(&mut self, out: &mut Vec<ibv_wc>) -> Result<usize> {
        self.pollers.iter_mut().try_fold(0, |count, poller| Ok(count + poller.poll(out)?))
    }

    /// Another poller of the same completion queue, for another thread; to be dropped before [`Verbs::close`].
    #[must_use]
    pub fn another_poller(&self) -> Poller {
        Poller::new(self.context, self.cqs[0], self.api)
    }

    /// Closes everything, queue pairs first.
    pub fn close(mut self, qps: Vec<Qp>, srq: Option<Srq>, regions: Vec<Region>) -> Result<()> {
        for qp in qps {
            qp.destroy()?;
        }
        srq.map_or(Ok(()), Srq::destroy)?;
        if let Some(channel) = &mut self.channel {
            channel.stop();
        }
        for poller in &self.pollers {
            // SAFETY: its queue pairs are destroyed.
            check("ibv_destroy_cq", unsafe { ibv_destroy_cq(poller.cq().as_ptr()) })?;
        }
        if let Some(channel) = self.channel {
            channel.close()?;
        }
        for region in regions {
            region.deregister()?;
        }
        // SAFETY: its queue pairs and registrations are gone.
        check("ibv_dealloc_pd", unsafe { ibv_dealloc_pd(self.pd.as_ptr()) })?;
        if let Some(events) = self.events.take() {
            events.stop();
        }
        // SAFETY: all its objects are gone, and `self` with the pointer is consumed.
        check("ibv_close_device", unsafe { ibv_close_device(self.context.as_ptr()) })
    }
}

fn create_cq(context: NonNull<ibv_context>, wish: CqWish, channel: Option<&Channel>) -> Result<NonNull<ibv_cq>> {
    let channel = channel.map_or(null_mut(), Channel::as_ptr);
    if wish.api != Api::Plain {
        return extended::create_cq(context, wish.cqe, channel);
    }
    let cqe = c_int::try_from(wish.cqe).map_err(|e| VerbError::says("ibv_create_cq", e.to_string()))?;
    // SAFETY: the context is open and the channel, if there is one, is of it; no context pointer is wanted.
    let cq = unsafe { ibv_create_cq(context.as_ptr(), cqe, null_mut(), channel, 0) };
    NonNull::new(cq).ok_or_else(|| VerbError::last("ibv_create_cq"))
}

fn is_ipv4(gid: [u8; 16]) -> bool {
    gid.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
}

fn open_device(name: Option<&str>) -> Result<NonNull<ibv_context>> {
    let mut count = 0;
    // SAFETY: the count is writable.
    let list = unsafe { ibv_get_device_list(&mut count) };
    if list.is_null() {
        return Err(VerbError::last("ibv_get_device_list"));
    }
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the list has `count` entries, and is neither changed nor freed before the end of this function.
    let devices = unsafe { std::slice::from_raw_parts(list, count) };
    let wanted = devices.iter().copied().find(|&device| name.is_none_or(|name| device_name(device) == name));
    let opened = wanted.map(|device| {
        // SAFETY: the device is of the list, which is not yet freed.
        NonNull::new(unsafe { ibv_open_device(device) }).ok_or_else(|| VerbError::last("ibv_open_device"))
    });
    // SAFETY: the list came from ibv_get_device_list; an opened device stays valid without it.
    unsafe { ibv_free_device_list(list) };
    let asked = name.unwrap_or("(any)");
    opened.unwrap_or_else(|| Err(VerbError::says("ibv_get_device_list", format!("no device {asked} among {count}"))))
}

fn device_name(device: *mut ibv_device) -> String {
    // SAFETY: the device is of a list that is not yet freed.
    let name = unsafe { ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: a device's name is a C string that lives as long as the device.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

/// CLOCK_MONOTONIC in nanoseconds: the clock that scenarios on the same host can compare with.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
