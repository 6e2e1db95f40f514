//! The tag that travels as `wr_id` through the provider and names the entry that a completion is of.
//!
//! With a tag a completion is matched exactly, whatever the provider leaves out or repeats: order alone would
//! misattribute everything behind one lost completion (a CQ that overran, soft-RoCE, lost 1 of 8).

/// 24 bits: which QP of this process.
const LIFE_BITS: u32 = 24;
/// 7 bits: the epoch, so that what an old incarnation still says is not taken for news.
const EPOCH_BITS: u32 = 7;

const SEQ_SHIFT: u32 = 0;
const EPOCH_SHIFT: u32 = 32;
const QUEUE_SHIFT: u32 = EPOCH_SHIFT + EPOCH_BITS;
const LIFE_SHIFT: u32 = QUEUE_SHIFT + 1;

/// How many QPs may live at once; the life number is taken modulo this.
pub const LIVES: u32 = 1 << LIFE_BITS;

/// Which queue of the QP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The send queue.
    Send,
    /// The receive queue.
    Receive,
}

/// `life:24 | queue:1 | epoch:7 | seq:32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

impl Tag {
    /// The tag of entry `seq`.
    #[inline]
    pub const fn new(life: u32, queue: Queue, epoch: u32, seq: u64) -> Self {
        let queue = match queue {
            Queue::Send => 0,
            Queue::Receive => 1,
        };
        let epoch = (epoch & ((1 << EPOCH_BITS) - 1)) as u64;
        let life = (life & (LIVES - 1)) as u64;
        Self((seq & 0xffff_ffff) << SEQ_SHIFT | epoch << EPOCH_SHIFT | queue << QUEUE_SHIFT | life << LIFE_SHIFT)
    }

    /// The QP.
    #[inline]
    pub const fn life(self) -> u32 {
        (self.0 >> LIFE_SHIFT) as u32
    }

    /// The queue.
    #[inline]
    pub const fn queue(self) -> Queue {
        if self.0 >> QUEUE_SHIFT & 1 == 0 {
            Queue::Send
        } else {
            Queue::Receive
        }
    }

    /// Is this of epoch `epoch`, as far as 7 bits tell? Old incarnations are drained long before 128 migrations passed.
    #[inline]
    pub const fn is_of_epoch(self, epoch: u32) -> bool {
        (self.0 >> EPOCH_SHIFT) as u32 & ((1 << EPOCH_BITS) - 1) == epoch & ((1 << EPOCH_BITS) - 1)
    }

    /// The full sequence number: the one nearest at or above `floor` with these 32 low bits.
    /// `floor` is the oldest entry of a ring far smaller than 2^32.
    #[inline]
    pub const fn seq(self, floor: u64) -> u64 {
        floor + ((self.0 as u32).wrapping_sub(floor as u32)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_back_what_it_was_made_of() {
        let tag = Tag::new(0xab_cdef, Queue::Receive, 200, 0x7_ffff_fffe);
        assert_eq!(tag.life(), 0xab_cdef);
        assert_eq!(tag.queue(), Queue::Receive);
        assert!(tag.is_of_epoch(200));
        assert!(!tag.is_of_epoch(201));
        assert_eq!(tag.seq(0x7_ffff_fff0), 0x7_ffff_fffe);
    }

    #[test]
    fn a_sequence_number_survives_the_wrap_of_its_low_half() {
        let tag = Tag::new(1, Queue::Send, 0, 0x1_0000_0003);
        assert_eq!(tag.seq(0xffff_fffd), 0x1_0000_0003);
    }
}
