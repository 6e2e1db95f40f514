//! What a send queue keeps beside its ring, made at the first post that needs it: elements beyond the first, and copied payloads.
//!
//! Owns: the memory. Who may touch which slot when is the ring's rule (`hot/ring.rs`).

use crate::atomics::AtomicU64;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};
use shift_abi::{ibv_mr, ibv_sge};
use shift_proto::id::MAX_STANDBYS;
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};

/// Scatter/gather elements beyond the first, `stride` a slot.
pub struct MoreSges {
    stride: usize,
    words: Box<[[AtomicU64; 2]]>,
}

impl MoreSges {
    /// Room for `slots` entries of up to `max_sge` elements.
    pub fn new(slots: u64, max_sge: u32) -> Self {
        let stride = max_sge.saturating_sub(1) as usize;
        let count = stride * usize::try_from(slots).unwrap_or(0);
        Self { stride, words: (0..count).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect() }
    }

    /// Writes element `nth` (from 1) of the slot with index `slot`.
    pub fn set(&self, slot: usize, nth: usize, sge: ibv_sge) {
        if let Some([addr, rest]) = self.words.get(slot * self.stride + nth - 1) {
            addr.store(sge.addr, Ordering::Relaxed);
            rest.store(u64::from(sge.length) << 32 | u64::from(sge.lkey), Ordering::Relaxed);
        }
    }

    /// Reads it.
    pub fn get(&self, slot: usize, nth: usize) -> ibv_sge {
        let Some([addr, rest]) = self.words.get(slot * self.stride + nth - 1) else { return ibv_sge::zeroed() };
        let rest = rest.load(Ordering::Relaxed);
        ibv_sge { addr: addr.load(Ordering::Relaxed), length: (rest >> 32) as u32, lkey: rest as u32 }
    }
}

/// Copied payloads, `stride` bytes a slot. Written by the poster before the slot is published, as the slot is.
///
/// Pages of its own: they may be registered, and after `ibv_fork_init` a registered page is taken away from forked children (MADV_DONTFORK), with
/// whatever else lies in it.
pub struct Copies {
    /// Bytes per slot.
    pub stride: usize,
    bytes: NonNull<u8>,
    layout: Layout,
    /// Whoever touches a slot: loom looks that it is one at a time.
    #[cfg(loom)]
    visited: Box<[crate::atomics::Place<()>]>,
    /// Its registrations on the primary and then in each slot of the standbys, made when a replay needs one.
    pub registrations: [AtomicPtr<ibv_mr>; 1 + MAX_STANDBYS],
}

// SAFETY: a slot's bytes are written only by the poster, under its cell, before the ring publishes the slot, and read only
// between that and the slot's retirement, as the ring's rule for slots says.
unsafe impl Sync for Copies {}
// SAFETY: plain bytes.
unsafe impl Send for Copies {}

impl Copies {
    /// Room for `slots` payloads of up to `stride` bytes.
    pub fn new(slots: u64, stride: u32) -> Self {
        let stride = (stride as usize).next_multiple_of(8);
        let count = stride * usize::try_from(slots).unwrap_or(0);
        // SAFETY: asks for a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let layout = Layout::from_size_align(count.next_multiple_of(page).max(page), page);
        let layout = layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<u64>()));
        // SAFETY: the size is not 0.
        let bytes = unsafe { alloc_zeroed(layout) };
        Self {
            stride,
            bytes: NonNull::new(bytes).unwrap_or_else(|| handle_alloc_error(layout)),
            layout,
            #[cfg(loom)]
            visited: (0..slots).map(|_| crate::atomics::Place::new(())).collect(),
            registrations: [const { AtomicPtr::new(core::ptr::null_mut()) }; 1 + MAX_STANDBYS],
        }
    }

    /// Where the payload of the slot with this index begins.
    pub fn at(&self, slot: usize) -> *mut u8 {
        self.whole().0.wrapping_add(slot * self.stride)
    }

    /// Keeps the operands of an atomic.
    pub fn set_operands(&self, slot: usize, operands: [u64; 2]) {
        #[cfg(loom)]
        let _visit = self.visited[slot].visit();
        // SAFETY: a slot has at least 64 bytes, a multiple of 8 from the beginning of the room, and is the poster's until it is published.
        unsafe { self.at(slot).cast::<[u64; 2]>().write_unaligned(operands) };
    }

    /// The operands of the atomic in a slot that is published and not retired.
    pub fn operands(&self, slot: usize) -> [u64; 2] {
        #[cfg(loom)]
        let _visit = self.visited[slot].visit();
        // SAFETY: as above; between publication and retirement nobody writes the slot.
        unsafe { self.at(slot).cast::<[u64; 2]>().read_unaligned() }
    }

    /// The whole room, to be registered.
    pub fn whole(&self) -> (*mut u8, usize) {
        (self.bytes.as_ptr(), self.layout.size())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; nobody has a slot when the queue is dropped.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) };
    }
}
