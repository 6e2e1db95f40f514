//! The shadow rings: what the application posted and has not seen completed.
//!
//! Owns: the slots of one send or receive queue and their two ends. A slot is written by the one poster of its queue
//! before `tail` passes it (Release), read by the poller and the agent after they saw that tail (Acquire) or the
//! completion of it, and free again once `head` passed it. So readers need no lock: between head and tail a slot does
//! not change, but for the words marked as the agent's (only while the queue is held) and the marks (atomic bits).
//!
//! Every word is a relaxed atomic: plain loads and stores in machine code, and no undefined behaviour if a reader is wrong.

use crate::atomics::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering::*};

/// The entry asked for a completion (or the queue signals all).
pub const APP_SIGNALLED: u16 = 1 << 0;
/// The NIC was asked for a completion.
pub const NIC_SIGNALLED: u16 = 1 << 1;
/// Recorded while the queue was held: no NIC has seen it.
pub const HELD: u16 = 1 << 2;
/// Proven executed by the peer's report: complete, to be given out in its turn.
pub const DONE: u16 = 1 << 3;
/// Came back with an error of a path fault; not complete.
pub const FLUSHED: u16 = 1 << 4;
/// The payload was copied at post and lies in the queue's copies.
pub const COPIED: u16 = 1 << 5;
/// Under its policy, unknown means error.
pub const UNKNOWN_IS_ERROR: u16 = 1 << 6;
/// IBV_SEND_FENCE.
pub const FENCED: u16 = 1 << 7;
/// IBV_SEND_SOLICITED.
pub const SOLICITED: u16 = 1 << 8;
/// Its latest posting is in the ledger already (it was replayed by a plan).
pub const IN_LEDGER: u16 = 1 << 9;
/// The application's buffer was its own again when post returned: only the copy may be sent.
pub const INLINE: u16 = 1 << 10;
/// The provider refused it and did not say so by `bad_wr`: the NIC may have it. It counts as posted, and is not posted again on that path.
pub const DOUBTFUL: u16 = 1 << 11;

/// One send work request, 64 bytes.
#[derive(Default)]
#[repr(C, align(64))]
pub struct SendSlot {
    /// The application's.
    pub wr_id: AtomicU64,
    /// Of WRITE and READ.
    pub remote_addr: AtomicU64,
    /// First scatter/gather element.
    pub addr: AtomicU64,
    /// Its length in bytes.
    pub sge_len: AtomicU32,
    /// Its key.
    pub lkey: AtomicU32,
    /// The peer's key.
    pub rkey: AtomicU32,
    /// Immediate data as it lies in memory.
    pub imm: AtomicU32,
    /// Bytes over all elements.
    pub bytes: AtomicU32,
    /// Low half of the packet number at which this entry begins on its incarnation.
    pub psn: AtomicU32,
    /// Signalled entries posted before it.
    pub signals_before: AtomicU32,
    /// The incarnation that it was posted on last. The agent's while the queue is held.
    pub epoch: AtomicU32,
    /// Bits above.
    pub marks: AtomicU16,
    /// `ibv_wr_opcode`, all below 256.
    pub opcode: AtomicU8,
    /// Elements.
    pub sges: AtomicU8,
}

#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<SendSlot>() == 64);

/// One receive work request, 32 bytes.
#[derive(Default)]
#[repr(C, align(32))]
pub struct RecvSlot {
    /// The application's.
    pub wr_id: AtomicU64,
    /// First scatter/gather element.
    pub addr: AtomicU64,
    /// Its length in bytes.
    pub sge_len: AtomicU32,
    /// Its key.
    pub lkey: AtomicU32,
    /// Elements.
    pub sges: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<RecvSlot>() == 32);

/// A ring of slots with its two ends, as sequence numbers that never wrap.
pub struct Ring<S> {
    slots: Box<[S]>,
    mask: u64,
    /// Next sequence number to be written. Release by the poster, pairs with the Acquire of every reader.
    tail: AtomicU64,
    /// Oldest sequence number in use. Release by who retires, pairs with the poster's Acquire in `has_room`.
    head: AtomicU64,
}

impl<S: Default> Ring<S> {
    /// A ring that holds at least `entries`.
    pub fn with_room_for(entries: u32) -> Self {
        let size = entries.max(1).next_power_of_two();
        let slots: Box<[S]> = (0..size).map(|_| S::default()).collect();
        Self { slots, mask: u64::from(size) - 1, tail: AtomicU64::new(0), head: AtomicU64::new(0) }
    }
}

impl<S> Ring<S> {
    /// The slot of `seq`; the caller knows that it is in use or about to be.
    #[inline]
    #[allow(clippy::indexing_slicing, reason = "the mask is the length less one, so the bound holds by construction")]
    pub fn slot(&self, seq: u64) -> &S {
        &self.slots[(seq & self.mask) as usize]
    }

    /// Slots in all.
    #[inline]
    pub fn size(&self) -> u64 {
        self.mask + 1
    }

    /// Index of `seq` among the slots.
    #[inline]
    pub fn index(&self, seq: u64) -> usize {
        (seq & self.mask) as usize
    }

    /// Is there room for entry `seq`?
    #[inline]
    pub fn has_room(&self, seq: u64) -> bool {
        seq - self.head.load(Acquire) <= self.mask
    }

    /// Next sequence number.
    #[inline]
    pub fn tail(&self) -> u64 {
        self.tail.load(Acquire)
    }

    /// Oldest in use.
    #[inline]
    pub fn head(&self) -> u64 {
        self.head.load(Acquire)
    }

    /// Publishes (or, for a refused post, takes back) entries: the poster's.
    #[inline]
    pub fn set_tail(&self, seq: u64) {
        self.tail.store(seq, Release);
    }

    /// Retires every entry below `seq`: the right of who holds the lock of the queue's CQ.
    #[inline]
    pub fn set_head(&self, seq: u64) {
        self.head.store(seq, Release);
    }
}

impl SendSlot {
    /// Are these bits set?
    #[inline]
    pub fn has(&self, marks: u16) -> bool {
        self.marks.load(Relaxed) & marks != 0
    }

    /// Sets bits.
    #[inline]
    pub fn mark(&self, marks: u16) {
        self.marks.fetch_or(marks, Relaxed);
    }

    /// Clears bits.
    #[inline]
    pub fn unmark(&self, marks: u16) {
        self.marks.fetch_and(!marks, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_has_room_again_when_its_head_moves() {
        let ring = Ring::<RecvSlot>::with_room_for(3);
        assert_eq!(ring.size(), 4);
        ring.set_tail(4);
        assert!(ring.has_room(3));
        assert!(!ring.has_room(4));
        ring.set_head(1);
        assert!(ring.has_room(4));
        assert_eq!(ring.index(4), 0);
    }
}
