//! Bytes on their way to one port: whole frames with their length prefixes, and how far the first of them has gone.
//!
//! A frame that has begun is always finished, whatever is dropped, so the stream never loses its framing.

use super::packet::be32;

/// Bytes of the length prefix of a frame.
pub const PREFIX_BYTES: usize = 4;

/// Queue of one port.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    head: usize,
    begun_left: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues a frame.
    pub fn push(&mut self, frame: &[u8]) {
        if self.head > (1 << 20) || self.is_empty() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        self.bytes.extend((frame.len() as u32).to_be_bytes());
        self.bytes.extend(frame);
    }

    /// What to write next.
    pub fn pending(&self) -> &[u8] {
        self.bytes.get(self.head..).unwrap_or(&[])
    }

    /// `taken` bytes were written.
    pub fn advance(&mut self, mut taken: usize) {
        while taken > 0 {
            if self.begun_left == 0 {
                self.begun_left = self.frame_at(self.head);
            }
            let step = taken.min(self.begun_left);
            self.head += step;
            self.begun_left -= step;
            taken -= step;
        }
    }

    /// Drops every frame that has not begun and hands each to `lost`.
    pub fn drop_waiting(&mut self, mut lost: impl FnMut(&[u8])) {
        let keep_to = self.head + self.begun_left;
        let mut at = keep_to;
        while at < self.bytes.len() {
            let next = at + self.frame_at(at);
            lost(self.bytes.get(at + PREFIX_BYTES..next).unwrap_or(&[]));
            at = next;
        }
        self.bytes.truncate(keep_to);
    }

    fn frame_at(&self, at: usize) -> usize {
        let left = self.bytes.len().saturating_sub(at);
        be32(&self.bytes, at).map_or(left, |length| (length as usize + PREFIX_BYTES).min(left)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begun_frame_survives_a_drop_and_framing_is_kept() {
        let mut outbox = Outbox::default();
        for frame in [&[1u8; 10][..], &[2; 20], &[3; 30]] {
            outbox.push(frame);
        }
        outbox.advance(14 + 7);
        let mut lost = Vec::new();
        outbox.drop_waiting(|frame| lost.push(frame.to_vec()));
        assert_eq!(lost, [vec![3; 30]]);
        assert_eq!(outbox.pending(), [2; 17]);
        outbox.advance(17);
        assert!(outbox.is_empty());
        outbox.push(&[4; 3]);
        assert_eq!(outbox.pending(), [0, 0, 0, 3, 4, 4, 4]);
        outbox.drop_waiting(|frame| lost.push(frame.to_vec()));
        assert!(outbox.is_empty());
        assert_eq!(lost.len(), 2);
    }
}
