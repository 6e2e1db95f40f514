//! What must happen, computed from a seed: every message, every byte, every work request's name.
//!
//! Pure: both ends compute the same without talking. Owns the message plan and the byte streams; refuses to own any
//! judgement of what really came.

use crate::args::{Mode, Params};

/// What memory holds where nothing may have been written.
pub const POISON: u8 = 0xa5;

/// The finalizer of splitmix64: a bijection of the 64-bit words in which every input bit moves every output bit.
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The inverse of [`mix`].
#[must_use]
pub const fn unmix(x: u64) -> u64 {
    let x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    (x ^ (x >> 30) ^ (x >> 60)).wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

/// A queue of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The send queue.
    Send,
    /// The receive queue.
    Receive,
}

/// Which work request a `wr_id` names. As a `wr_id` it is scrambled, so that all 64 bits carry meaning and whoever
/// mangles one is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrName {
    /// On which queue.
    pub queue: Queue,
    /// Of which queue pair, counted from 0.
    pub qp: u16,
    /// The how-manieth work request on that queue, counted from 0.
    pub counter: u64,
}

impl WrName {
    const COUNTER_BITS: u32 = 47;

    /// The `wr_id` of this work request in a run with this seed.
    #[must_use]
    pub const fn wr_id(self, seed: u64) -> u64 {
        let queue = match self.queue {
            Queue::Send => 0,
            Queue::Receive => 1,
        };
        let counter = self.counter & ((1 << Self::COUNTER_BITS) - 1);
        mix((queue << 63 | (self.qp as u64) << Self::COUNTER_BITS | counter) ^ mix(seed))
    }

    /// The work request that a `wr_id` names; one that was never given out names something absurd.
    #[must_use]
    pub const fn from_wr_id(wr_id: u64, seed: u64) -> Self {
        let packed = unmix(wr_id) ^ mix(seed);
        Self {
            queue: if packed >> 63 == 0 { Queue::Send } else { Queue::Receive },
            qp: (packed >> Self::COUNTER_BITS) as u16,
            counter: packed & ((1 << Self::COUNTER_BITS) - 1),
        }
    }
}

/// A pseudo-random byte stream that can be entered anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: u64,
    /// Where its byte 0 lies in the stream of that key.
    begins: u64,
}

impl Stream {
    /// The stream with this key.
    #[must_use]
    pub const fn new(key: u64) -> Self {
        Self { key, begins: 0 }
    }

    /// The same from its byte `at` on.
    #[must_use]
    pub const fn skip(self, at: u64) -> Self {
        Self { key: self.key, begins: self.begins + at }
    }

    /// The bytes of the stream from its byte `from` on.
    fn bytes(self, from: u64) -> impl Iterator<Item = u8> {
        let from = self.begins + from;
        let first_word = from / 8;
        let skip = (from % 8) as usize;
        let words = first_word..;
        words.flat_map(move |word| mix(self.key.wrapping_add(word.wrapping_mul(2))).to_le_bytes()).skip(skip)
    }

    /// Fills `out` with the stream from its byte `from` on.
    pub fn fill(self, from: u64, out: &mut [u8]) {
        let begins = self.begins + from;
        if begins.is_multiple_of(8) {
            for (word, chunk) in (begins / 8..).zip(out.chunks_mut(8)) {
                let bytes = mix(self.key.wrapping_add(word.wrapping_mul(2))).to_le_bytes();
                for (to, byte) in chunk.iter_mut().zip(bytes) {
                    *to = byte;
                }
            }
            return;
        }
        for (to, byte) in out.iter_mut().zip(self.bytes(from)) {
            *to = byte;
        }
    }

    /// Where `seen` first differs from the stream's bytes from `from` on, if it does.
    #[must_use]
    pub fn first_difference(self, from: u64, seen: &[u8]) -> Option<usize> {
        let mut expected = [0; 256];
        for (block, chunk) in seen.chunks(expected.len()).enumerate() {
            let at = block * expected.len();
            let expected = expected.get_mut(..chunk.len())?;
            self.fill(from + at as u64, expected);
            if expected != chunk {
                return chunk.iter().zip(expected.iter()).position(|(a, b)| a != b).map(|i| at + i);
            }
        }
        None
    }
}

/// What a message is moved by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// RDMA WRITE into the peer's ring.
    Write,
    /// RDMA WRITE with immediate data into the peer's ring.
    WriteImm,
    /// SEND.
    Send,
    /// SEND with immediate data.
    SendImm,
    /// RDMA READ of the peer's source area.
    Read,
    /// FETCH_AND_ADD on the peer's counter.
    FetchAdd,
    /// COMPARE_AND_SWAP on the peer's counter.
    CompareSwap,
}

impl Op {
    /// Whether the peer's NIC takes a posted receive for it.
    #[must_use]
    pub const fn consumes_receive(self) -> bool {
        matches!(self, Op::WriteImm | Op::Send | Op::SendImm)
    }

    /// Whether the receiver is shown immediate data.
    #[must_use]
    pub const fn has_imm(self) -> bool {
        matches!(self, Op::WriteImm | Op::SendImm)
    }

    /// Whether its bytes go to the peer's ring.
    #[must_use]
    pub const fn fills_ring(self) -> bool {
        matches!(self, Op::Write | Op::WriteImm)
    }

    /// Whether its result lands in the requester's own memory.
    #[must_use]
    pub const fn lands_here(self) -> bool {
        matches!(self, Op::Read | Op::FetchAdd | Op::CompareSwap)
    }
}

/// One message, as planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number in its flow, from 0.
    pub number: u64,
    /// What moves it.
    pub op: Op,
    /// Its length in bytes.
    pub len: u32,
    /// Its immediate data in host byte order, where the operation has any.
    pub imm: u32,
    /// Where in the peer's source area a READ begins, in bytes.
    pub source_at: u32,
    /// Whether it is to go inline if there is room for that.
    pub wants_inline: bool,
}

/// From whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client is the sender.
    ClientToServer,
    /// The server is the sender.
    ServerToClient,
}

/// The plan of one flow: all messages of one queue pair in one direction.
#[derive(Clone, Debug)]
pub struct Plan {
    mode: Mode,
    size_min: u32,
    size_max: u32,
    mtu: u32,
    source_bytes: u32,
    key: u64,
}

impl Plan {
    /// The plan of queue pair `qp` (counted from 0) in one direction.
    #[must_use]
    pub fn new(params: &Params, qp: u16, direction: Direction) -> Self {
        let side = match direction {
            Direction::ClientToServer => 0,
            Direction::ServerToClient => 1,
        };
        Self {
            mode: params.mode(qp),
            size_min: params.size.min,
            size_max: params.size.max,
            mtu: params.mtu,
            source_bytes: params.source_bytes(),
            key: mix(params.seed ^ mix(u64::from(qp) << 1 | side)),
        }
    }

    /// Message `number`.
    #[must_use]
    pub fn message(&self, number: u64) -> Message {
        let dice = self.dice(self.pair_of(number));
        let op = self.op(number, dice);
        let len = match op {
            Op::FetchAdd | Op::CompareSwap => 8,
            // As often small enough to be snapshotted, if the shim took it for a payload that is there already.
            Op::Read | Op::Send if self.mode == Mode::Relay && dice >> 20 & 1 == 0 => {
                ((dice >> 24 & 63) as u32 + 1).clamp(self.size_min, self.size_max)
            }
            Op::Write | Op::WriteImm | Op::Send | Op::SendImm | Op::Read => self.len(mix(dice)),
        };
        let source_room = u64::from(self.source_bytes - len) + 1;
        Message {
            number,
            op,
            len,
            imm: (number as u32) ^ self.imm_key(),
            source_at: (mix(dice ^ 3) % source_room) as u32,
            wants_inline: dice >> 32 & 3 != 3,
        }
    }

    /// The number whose message has this immediate data and is nearest to `near`.
    #[must_use]
    pub fn number_of_imm(&self, imm: u32, near: u64) -> u64 {
        let offset = (imm ^ self.imm_key()).wrapping_sub(near as u32) as i32;
        near.wrapping_add_signed(i64::from(offset))
    }

    /// The READ whose result message `number` sends on, if it does.
    #[must_use]
    pub fn relayed(&self, number: u64) -> Option<Message> {
        (self.mode == Mode::Relay && number % 2 == 1).then(|| self.message(number - 1))
    }

    /// Relaying, the READ of a pair has its number; all other messages are alone.
    fn pair_of(&self, number: u64) -> u64 {
        if self.mode == Mode::Relay {
            number & !1
        } else {
            number
        }
    }

    /// The bytes of message `number`.
    #[must_use]
    pub fn payload(&self, number: u64) -> Stream {
        if let Some(read) = self.relayed(number) {
            return self.source().skip(read.source_at.into());
        }
        Stream::new(mix(self.key ^ mix(number ^ (1 << 62))))
    }

    /// The bytes of the area that the READs of this flow read.
    #[must_use]
    pub const fn source(&self) -> Stream {
        Stream::new(mix(self.key ^ 0x0005_0eed))
    }

    /// The value of the peer's counter before message `number`, when every atomic below took effect once.
    #[must_use]
    pub fn counter_before(&self, number: u64) -> u64 {
        match self.mode {
            Mode::Cas if number == 0 => 0,
            Mode::Cas => mix(self.key ^ number),
            Mode::MixedAtomic | Mode::FaddSend => self.addend().wrapping_mul(self.atomics_below(number)),
            Mode::Write | Mode::WriteImm | Mode::Send | Mode::Read | Mode::Mixed | Mode::Relay | Mode::Fadd => {
                self.addend().wrapping_mul(number)
            }
        }
    }

    /// Messages below `number` that are atomics.
    fn atomics_below(&self, number: u64) -> u64 {
        (0..number).filter(|&each| self.op(each, self.dice(each)) == Op::FetchAdd).count() as u64
    }

    /// What every FETCH_AND_ADD of this flow adds; odd, so that 2^64 of them differ.
    #[must_use]
    pub const fn addend(&self) -> u64 {
        mix(self.key ^ 0xadd) | 1
    }

    const fn dice(&self, number: u64) -> u64 {
        mix(self.key ^ mix(number))
    }

    const fn imm_key(&self) -> u32 {
        mix(self.key ^ 0x1111) as u32
    }

    fn op(&self, number: u64, dice: u64) -> Op {
        let coin = dice >> 8 & 1 == 0;
        match self.mode {
            Mode::Write => Op::Write,
            Mode::WriteImm => Op::WriteImm,
            Mode::Send if coin => Op::SendImm,
            Mode::Send => Op::Send,
            Mode::Read => Op::Read,
            Mode::Relay if number.is_multiple_of(2) => Op::Read,
            Mode::FaddSend if number.is_multiple_of(2) => Op::FetchAdd,
            Mode::Relay | Mode::FaddSend => Op::Send,
            Mode::Fadd => Op::FetchAdd,
            Mode::Cas => Op::CompareSwap,
            Mode::MixedAtomic if dice >> 16 & 3 == 0 => Op::FetchAdd,
            Mode::Mixed | Mode::MixedAtomic => match dice & 3 {
                0 => Op::Write,
                1 => Op::WriteImm,
                2 if coin => Op::SendImm,
                2 => Op::Send,
                _ => Op::Read,
            },
        }
    }

    /// One length in eight is one at which implementations break: none, one byte, about one MTU, the ends of the range.
    fn len(&self, dice: u64) -> u32 {
        let span = u64::from(self.size_max - self.size_min) + 1;
        let uniform = self.size_min + (dice % span) as u32;
        let edge = match dice >> 40 & 0x3f {
            0 => 0,
            1 => 1,
            2 => self.mtu - 1,
            3 => self.mtu,
            4 => self.mtu + 1,
            5 => self.size_min,
            6 => self.size_max,
            7 => 2 * self.mtu,
            _ => uniform,
        };
        edge.clamp(self.size_min, self.size_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::SizeRange;
    use proptest::prelude::*;

    fn plan(mode: Mode) -> Plan {
        let params = Params { modes: vec![mode], size: SizeRange { min: 0, max: 9000 }, ..Params::for_tests() };
        Plan::new(&params, 3, Direction::ClientToServer)
    }

    proptest! {
        #[test]
        fn every_wr_id_names_exactly_one_work_request(seed: u64, qp: u16, counter in 0u64..1 << 47, receive: bool) {
            let queue = if receive { Queue::Receive } else { Queue::Send };
            let name = WrName { queue, qp, counter };
            prop_assert_eq!(WrName::from_wr_id(name.wr_id(seed), seed), name);
        }

        #[test]
        fn a_stream_reads_the_same_from_anywhere(key: u64, from in 0u64..5000, len in 0usize..600) {
            let mut whole = vec![0; 6000];
            Stream::new(key).fill(0, &mut whole);
            let mut part = vec![0; len];
            Stream::new(key).fill(from, &mut part);
            prop_assert_eq!(&part[..], &whole[from as usize..from as usize + len]);
            prop_assert_eq!(Stream::new(key).first_difference(from, &part), None);
        }

        #[test]
        fn one_changed_byte_is_found_where_it_is(key: u64, from in 0u64..99, len in 1usize..900, at: usize) {
            let at = at % len;
            let mut bytes = vec![0; len];
            Stream::new(key).fill(from, &mut bytes);
            bytes[at] ^= 0x10;
            prop_assert_eq!(Stream::new(key).first_difference(from, &bytes), Some(at));
        }

        #[test]
        fn immediate_data_finds_its_message_again(number in 1000u64..1 << 40, away in -1000i64..1000) {
            let plan = plan(Mode::WriteImm);
            let near = number.wrapping_add_signed(away);
            prop_assert_eq!(plan.number_of_imm(plan.message(number).imm, near), number);
        }
    }

    #[test]
    fn mixed_mode_has_every_operation_and_the_edge_lengths() {
        let plan = plan(Mode::Mixed);
        let messages: Vec<_> = (0..4000).map(|n| plan.message(n)).collect();
        for op in [Op::Write, Op::WriteImm, Op::Send, Op::SendImm, Op::Read] {
            assert!(messages.iter().filter(|m| m.op == op).count() > 200, "{op:?}");
        }
        for len in [0, 1, 1023, 1024, 1025, 2048, 9000] {
            assert!(messages.iter().any(|m| m.len == len), "{len}");
        }
        assert!(messages.iter().all(|m| m.source_at + m.len <= 18_000 + 128 && m.len <= 9000));
    }

    #[test]
    fn a_relayed_message_is_what_was_read() {
        let plan = plan(Mode::Relay);
        let mut small = 0;
        for read in (0..200).step_by(2).map(|number| plan.message(number)) {
            let sent = plan.message(read.number + 1);
            assert_eq!((read.op, sent.op, sent.len), (Op::Read, Op::Send, read.len));
            assert_eq!(plan.relayed(sent.number), Some(read));
            let (mut bytes, mut due) = (vec![0; sent.len as usize], vec![0; sent.len as usize]);
            plan.payload(sent.number).fill(0, &mut bytes);
            plan.source().fill(read.source_at.into(), &mut due);
            assert_eq!(bytes, due);
            small += u32::from(sent.len <= 64);
        }
        assert!((20..80).contains(&small), "{small}");
    }

    #[test]
    fn the_two_directions_and_the_queue_pairs_differ() {
        let params = Params::for_tests();
        let mut first_words: Vec<u64> = Vec::new();
        for qp in 0..20 {
            for direction in [Direction::ClientToServer, Direction::ServerToClient] {
                let mut word = [0; 8];
                Plan::new(&params, qp, direction).payload(0).fill(0, &mut word);
                first_words.push(u64::from_le_bytes(word));
            }
        }
        first_words.sort_unstable();
        first_words.dedup();
        assert_eq!(first_words.len(), 40);
    }

    #[test]
    fn the_counter_moves_by_what_the_atomics_do_to_it() {
        let fadd = plan(Mode::Fadd);
        assert_eq!(fadd.counter_before(0), 0);
        assert_eq!(fadd.counter_before(8), fadd.counter_before(7).wrapping_add(fadd.addend()));
        assert_ne!(plan(Mode::Cas).counter_before(1), 0);
        let mixed = plan(Mode::MixedAtomic);
        for number in 0..200 {
            let grows = mixed.message(number).op == Op::FetchAdd;
            let by = if grows { mixed.addend() } else { 0 };
            assert_eq!(mixed.counter_before(number + 1), mixed.counter_before(number).wrapping_add(by));
        }
        assert!((20..100).contains(&mixed.atomics_below(200)));
    }
}
