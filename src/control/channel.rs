//! What makes a stream of bytes a connection of this job: the opening, the agreed wire version, and with a job key the MAC
//! of each frame.
//!
//! Knows no socket. With a job key each connection has two keys of its own, one for each direction, derived from the job
//! key and from all that both ends said in their openings, their fresh nonces included; each MAC covers the number of its
//! frame. So a frame of another connection, of the past, of the other direction, one that comes twice or out of order, and
//! one whose opening was tampered with are all the same: not one of this connection. It stands here and not beside the
//! frames in the protocol crate, because that one depends on nothing and knows no randomness.
//!
//! What must hold: without [`Channel::is_open`] nothing of a peer is believed and nothing is told to it.

use std::collections::VecDeque;

use shift_proto::frame::{split_prefixed, Frame, Opening, Versions, MAC, OPENING, SPOKEN};

use crate::job_key::JobKey;

/// On what terms this process talks to others.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The secret of the job, if it has one.
    pub key: Option<JobKey>,
    /// The one before it, while both are valid.
    pub older: Option<JobKey>,
    /// The wire versions that are spoken.
    pub versions: Versions,
}

impl Default for Terms {
    fn default() -> Self {
        Self { key: None, older: None, versions: SPOKEN }
    }
}

/// Why a connection is none of this job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Bytes that are no opening, or no frame.
    Malformed,
    /// A MAC that is not that of the next frame of this connection.
    Forged,
    /// The other end has another job key.
    OtherKey,
    /// This end has a job key, the other has none.
    PeerHasNoKey,
    /// The other end has a job key, this one has none.
    PeerHasKey,
    /// The other end speaks none of the own wire versions.
    OtherVersions {
        /// The other end's.
        theirs: Versions,
        /// This end's.
        own: Versions,
    },
}

/// One direction of a connection.
#[derive(Debug)]
struct Seal {
    key: [u8; blake3::KEY_LEN],
    frames: u64,
}

impl Seal {
    fn new(key: &JobKey, direction: &[u8], openings: &[u8]) -> Self {
        Self { key: key.derive(&[direction, openings].concat()), frames: 0 }
    }

    /// Whether this is the MAC of the first frame, the proof that an end has the key: then it was that. It may come twice: who begins to rotate has the same
    /// key in both files for a while.
    fn takes_proof(&mut self, mac: &[u8; MAC]) -> bool {
        let is_it = self.mac(0, &[]) == blake3::Hash::from_bytes(*mac);
        self.frames = self.frames.max(is_it.into());
        is_it
    }

    /// The MAC of the next frame. Compared as [`blake3::Hash`], in constant time.
    fn next(&mut self, body: &[u8]) -> blake3::Hash {
        let mac = self.mac(self.frames, body);
        self.frames = self.frames.wrapping_add(1);
        mac
    }

    fn mac(&self, number: u64, body: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&number.to_le_bytes());
        hasher.update(body);
        hasher.finalize()
    }
}

#[derive(Debug)]
struct Seals {
    sent: Seal,
    received: Seal,
}

/// What each end shows of its keys, before any frame.
#[derive(Debug)]
struct Proofs {
    /// Of each own key, the newest first.
    own: Vec<Seals>,
    /// Proofs of the other end that are still to come.
    to_come: u8,
    /// For each that came, newest first: which own key it is of.
    theirs: Vec<Option<usize>>,
}

impl Proofs {
    /// The first of the dialing end's keys that the other one has too: both ends come to the same.
    fn agreed(mut self, dialed: bool) -> Option<Seals> {
        let mut common = self.theirs.into_iter().flatten();
        let best = if dialed { common.min() } else { common.next() };
        best.map(|best| self.own.swap_remove(best))
    }
}

#[derive(Debug)]
enum State {
    /// The other end's opening is not there yet.
    Opening,
    /// Both openings are known; the other end has yet to show which keys it has.
    Proving(Proofs),
    Open,
}

/// One connection's worth of it.
#[derive(Debug)]
pub struct Channel {
    own: Opening,
    /// The newest first.
    keys: Vec<JobKey>,
    dialed: bool,
    state: State,
    seals: Option<Seals>,
    /// Frames to be sent once it is open, each with its prefix.
    waiting: Vec<u8>,
}

impl Channel {
    /// A connection that was dialed, or came in. `nonce`: fresh random bytes.
    pub fn new(terms: &Terms, dialed: bool, nonce: [u8; 16]) -> Self {
        let keys: Vec<JobKey> = terms.key.iter().chain(&terms.older).cloned().collect();
        let own = Opening { versions: terms.versions, keyed: !keys.is_empty(), two_keys: keys.len() > 1, nonce };
        Self { own, keys, dialed, state: State::Opening, seals: None, waiting: Vec::new() }
    }

    /// Says the first word, if it is this end's.
    pub fn start(&self, output: &mut VecDeque<u8>) {
        if self.dialed {
            output.extend(self.own.encode());
        }
    }

    /// Both ends are of one job and speak one version.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Bytes that wait for it to open.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sends the bytes of a frame, or keeps them until it is open.
    pub fn send(&mut self, body: &[u8], output: &mut VecDeque<u8>) {
        if self.is_open() {
            self.seal(body, output);
        } else {
            self.waiting.extend(length_of(body, 0));
            self.waiting.extend_from_slice(body);
        }
    }

    /// Takes all that is complete off the front of `input`; answers go to `output`. `bound`: the longest frame that is taken.
    ///
    /// # Errors
    /// The connection is to be closed, after `output` was sent: it tells the other end why.
    pub fn receive(
        &mut self,
        input: &mut Vec<u8>,
        bound: usize,
        output: &mut VecDeque<u8>,
        mut each: impl FnMut(Frame),
    ) -> Result<(), Mismatch> {
        let mut used = 0;
        let result = self.take_all(input, &mut used, bound, output, &mut each);
        input.drain(..used.min(input.len()));
        result
    }

    fn take_all(
        &mut self,
        input: &[u8],
        used: &mut usize,
        bound: usize,
        output: &mut VecDeque<u8>,
        each: &mut impl FnMut(Frame),
    ) -> Result<(), Mismatch> {
        if matches!(self.state, State::Opening) {
            let Some(theirs) = Opening::decode(input).map_err(|_| Mismatch::Malformed)? else {
                return Ok(());
            };
            *used = OPENING;
            self.handle_opening(theirs, input.get(..OPENING).unwrap_or_default(), output)?;
        }
        let trailer = if self.keys.is_empty() { 0 } else { MAC };
        loop {
            let rest = input.get(*used..).unwrap_or_default();
            let Some((bytes, taken)) = split_prefixed(rest, bound + trailer).map_err(|_| Mismatch::Malformed)? else {
                return Ok(());
            };
            if matches!(self.state, State::Proving(_)) {
                self.handle_proof(bytes, output)?;
                *used += taken;
                continue;
            }
            let body = self.verify(bytes)?;
            *used += taken;
            match Frame::decode(body) {
                Ok(frame) => each(frame),
                Err(error) => {
                    log::debug!("a connection is closed: {error}");
                    return Err(Mismatch::Malformed);
                }
            }
        }
    }

    fn handle_opening(&mut self, theirs: Opening, bytes: &[u8], output: &mut VecDeque<u8>) -> Result<(), Mismatch> {
        if !self.dialed {
            output.extend(self.own.encode());
        }
        if self.own.versions.agreed(theirs.versions).is_none() {
            return Err(Mismatch::OtherVersions { theirs: theirs.versions, own: self.own.versions });
        }
        match (self.keys.is_empty(), theirs.keyed) {
            (false, false) => return Err(Mismatch::PeerHasNoKey),
            (true, true) => return Err(Mismatch::PeerHasKey),
            (true, false) => self.open(None, output),
            (false, true) => self.prove(theirs, bytes, output),
        }
        Ok(())
    }

    /// Shows which keys this end has, whatever the other one turns out to have.
    fn prove(&mut self, theirs: Opening, bytes: &[u8], output: &mut VecDeque<u8>) {
        let own = self.own.encode();
        let both = if self.dialed { [&own, bytes].concat() } else { [bytes, &own].concat() };
        let seals = |key: &JobKey| {
            let (dialer, dialed) = (Seal::new(key, b"dialer", &both), Seal::new(key, b"dialed", &both));
            let (sent, received) = if self.dialed { (dialer, dialed) } else { (dialed, dialer) };
            Seals { sent, received }
        };
        let mut own: Vec<Seals> = self.keys.iter().map(seals).collect();
        for seals in &mut own {
            append(&[], Some(&mut seals.sent), output);
        }
        let to_come = 1 + u8::from(theirs.two_keys);
        self.state = State::Proving(Proofs { own, to_come, theirs: Vec::new() });
    }

    fn handle_proof(&mut self, bytes: &[u8], output: &mut VecDeque<u8>) -> Result<(), Mismatch> {
        let State::Proving(proofs) = &mut self.state else { return Err(Mismatch::Malformed) };
        let mac: &[u8; MAC] = bytes.try_into().map_err(|_| Mismatch::Malformed)?;
        let of = proofs.own.iter_mut().position(|seals| seals.received.takes_proof(mac));
        proofs.theirs.push(of);
        proofs.to_come -= 1;
        if proofs.to_come > 0 {
            return Ok(());
        }
        let State::Proving(proofs) = std::mem::replace(&mut self.state, State::Opening) else {
            return Err(Mismatch::Malformed);
        };
        let seals = proofs.agreed(self.dialed).ok_or(Mismatch::OtherKey)?;
        self.open(Some(seals), output);
        Ok(())
    }

    fn verify<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Mismatch> {
        let Some(seals) = &mut self.seals else {
            return Ok(bytes);
        };
        let (body, mac) = bytes.split_last_chunk::<MAC>().ok_or(Mismatch::Malformed)?;
        if seals.received.next(body) == blake3::Hash::from_bytes(*mac) {
            return Ok(body);
        }
        Err(Mismatch::Forged)
    }

    fn open(&mut self, seals: Option<Seals>, output: &mut VecDeque<u8>) {
        (self.state, self.seals) = (State::Open, seals);
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = waiting.as_slice();
        while let Ok(Some((body, taken))) = split_prefixed(rest, usize::MAX) {
            self.seal(body, output);
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    fn seal(&mut self, body: &[u8], output: &mut VecDeque<u8>) {
        append(body, self.seals.as_mut().map(|seals| &mut seals.sent), output);
    }
}

fn append(body: &[u8], seal: Option<&mut Seal>, output: &mut VecDeque<u8>) {
    let mac = seal.map(|seal| seal.next(body));
    let trailer = mac.as_ref().map_or(&[][..], |mac| mac.as_bytes());
    output.extend(length_of(body, trailer.len()));
    output.extend(body);
    output.extend(trailer);
}

/// A body has at most [`shift_proto::frame::MAX_FRAME`] bytes.
fn length_of(body: &[u8], trailer: usize) -> [u8; 4] {
    u32::try_from(body.len() + trailer).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use shift_proto::frame::{MAX_FRAME, PREFIX};

    use super::*;

    struct End {
        channel: Channel,
        output: VecDeque<u8>,
        input: Vec<u8>,
        frames: Vec<Frame>,
        result: Result<(), Mismatch>,
    }

    impl End {
        fn new(terms: &Terms, dialed: bool, nonce: u8) -> Self {
            let channel = Channel::new(terms, dialed, [nonce; 16]);
            let mut output = VecDeque::new();
            channel.start(&mut output);
            Self { channel, output, input: Vec::new(), frames: Vec::new(), result: Ok(()) }
        }

        fn send(&mut self, stamp: u64) {
            let mut body = Vec::new();
            Frame::Ping { stamp }.encode(&mut body).unwrap();
            self.channel.send(&body, &mut self.output);
        }

        fn hear(&mut self, bytes: &[u8]) {
            self.input.extend_from_slice(bytes);
            let frames = &mut self.frames;
            self.result = self.channel.receive(&mut self.input, MAX_FRAME, &mut self.output, |f| frames.push(f));
        }

        fn said(&mut self) -> Vec<u8> {
            self.output.drain(..).collect()
        }

        fn stamps(&self) -> Vec<u64> {
            let stamp = |f: &Frame| if let Frame::Ping { stamp } = f { *stamp } else { u64::MAX };
            self.frames.iter().map(stamp).collect()
        }
    }

    fn keyed(bytes: &[u8]) -> Terms {
        Terms { key: Some(JobKey::new(bytes)), ..Terms::default() }
    }

    fn versions(oldest: u8, newest: u8) -> Terms {
        Terms { versions: Versions { oldest, newest }, ..Terms::default() }
    }

    /// Two keys at once, the newest first.
    fn rotating(newest: &[u8], older: &[u8]) -> Terms {
        Terms { older: Some(JobKey::new(older)), ..keyed(newest) }
    }

    #[test]
    fn while_keys_are_rotated_everybody_with_one_in_common_is_heard() {
        let [first, both, second] = [keyed(b"one"), rotating(b"two", b"one"), keyed(b"two")];
        let swapped = rotating(b"one", b"two");
        let twice = rotating(b"one", b"one");
        let pairs = [(&first, &both), (&both, &both), (&both, &second), (&both, &swapped), (&swapped, &swapped)];
        for (a, b) in pairs.into_iter().chain([(&first, &twice), (&twice, &twice), (&twice, &both)]) {
            for (a, b) in [(a, b), (b, a)] {
                assert_eq!(met(a, b), (Ok(()), Ok(())));
            }
        }
        assert_eq!(met(&first, &second), (Err(Mismatch::OtherKey), Err(Mismatch::OtherKey)));
        let others = rotating(b"three", b"four");
        assert_eq!(met(&both, &others), (Err(Mismatch::OtherKey), Err(Mismatch::OtherKey)));
        assert_eq!(met(&both, &Terms::default()), (Err(Mismatch::PeerHasNoKey), Err(Mismatch::PeerHasKey)));
    }

    #[test]
    fn of_two_keys_the_newest_that_both_have_is_used() {
        let (mut a, mut b) = pair(&rotating(b"two", b"one"), &rotating(b"two", b"one"));
        talk(&mut a, &mut b);
        let key = |end: &End| end.channel.seals.as_ref().map(|seals| seals.sent.key).unwrap();
        let seal =
            |channel: &Channel, direction: &[u8], both: &[u8]| channel.keys[0].derive(&[direction, both].concat());
        let both = [a.channel.own.encode(), b.channel.own.encode()].concat();
        assert_eq!(key(&a), seal(&a.channel, b"dialer", &both));
        assert_eq!(key(&b), seal(&b.channel, b"dialed", &both));
    }

    fn pair(a: &Terms, b: &Terms) -> (End, End) {
        (End::new(a, true, 1), End::new(b, false, 2))
    }

    /// Lets both talk until neither has anything to say; every byte comes alone.
    fn talk(a: &mut End, b: &mut End) {
        let tell = |from: &mut End, to: &mut End| {
            for byte in from.said() {
                if to.result.is_ok() {
                    to.hear(&[byte]);
                }
            }
        };
        for _ in 0..8 {
            tell(a, b);
            tell(b, a);
        }
    }

    fn met(a: &Terms, b: &Terms) -> (Result<(), Mismatch>, Result<(), Mismatch>) {
        let (mut a, mut b) = pair(a, b);
        a.send(1);
        talk(&mut a, &mut b);
        assert_eq!(a.channel.is_open() && b.channel.is_open(), !b.frames.is_empty());
        (a.result, b.result)
    }

    #[test]
    fn with_one_key_and_without_any_frames_go_both_ways() {
        for terms in [keyed(b"one"), Terms::default()] {
            let (mut a, mut b) = pair(&terms, &terms);
            a.send(1);
            b.send(2);
            talk(&mut a, &mut b);
            a.send(3);
            b.send(4);
            talk(&mut a, &mut b);
            assert_eq!((a.stamps(), b.stamps()), (vec![2, 4], vec![1, 3]));
            assert!(a.channel.is_open() && b.channel.is_open() && a.channel.waiting() == 0);
        }
    }

    #[test]
    fn who_has_another_key_or_none_is_told_from_both_sides() {
        use Mismatch::{OtherKey, PeerHasKey, PeerHasNoKey};
        assert_eq!(met(&keyed(b"one"), &keyed(b"two")), (Err(OtherKey), Err(OtherKey)));
        assert_eq!(met(&keyed(b"one"), &Terms::default()), (Err(PeerHasNoKey), Err(PeerHasKey)));
        assert_eq!(met(&Terms::default(), &keyed(b"one")), (Err(PeerHasKey), Err(PeerHasNoKey)));
    }

    #[test]
    fn the_older_version_is_agreed_and_where_there_is_none_both_know_which_is_which() {
        assert_eq!(met(&versions(1, 2), &versions(1, 1)), (Ok(()), Ok(())));
        assert_eq!(met(&versions(1, 1), &versions(0, 1)), (Ok(()), Ok(())));
        for (own, other) in [((1, 1), (2, 3)), ((1, 1), (0, 0))] {
            let (own, other) = (versions(own.0, own.1), versions(other.0, other.1));
            let told =
                |own: &Terms, other: &Terms| Err(Mismatch::OtherVersions { theirs: other.versions, own: own.versions });
            assert_eq!(met(&own, &other), (told(&own, &other), told(&other, &own)));
        }
    }

    #[test]
    fn nothing_but_openings_is_said_before_the_other_end_has_shown_the_key() {
        let (mut a, _) = pair(&keyed(b"one"), &keyed(b"one"));
        a.send(1);
        assert_eq!(a.said().len(), OPENING);
        a.hear(&Opening { versions: SPOKEN, keyed: true, two_keys: false, nonce: [9; 16] }.encode());
        assert_eq!(a.said().len(), PREFIX + MAC);
        assert!(!a.channel.is_open() && a.channel.waiting() > 0);
    }

    /// Two ends that talk, and all that the dialing one has said so far, frame by frame.
    fn recorded(terms: &Terms) -> (End, End, Vec<Vec<u8>>) {
        let (mut a, mut b) = pair(terms, terms);
        talk(&mut a, &mut b);
        let frames = (0..3).map(|stamp| {
            a.send(stamp);
            a.said()
        });
        let frames = frames.collect();
        (a, b, frames)
    }

    #[test]
    fn a_repeated_a_skipped_and_an_exchanged_frame_are_refused() {
        let (_, mut b, frames) = recorded(&keyed(b"one"));
        b.hear(&frames[0]);
        assert_eq!(b.result, Ok(()));
        b.hear(&frames[0]);
        assert_eq!(b.result, Err(Mismatch::Forged));
        let (_, mut b, frames) = recorded(&keyed(b"one"));
        b.hear(&frames[1]);
        assert_eq!((b.result, b.frames.len()), (Err(Mismatch::Forged), 0));
    }

    #[test]
    fn a_frame_of_the_other_direction_is_refused() {
        let (mut a, mut b, frames) = recorded(&keyed(b"one"));
        a.hear(&frames[0]);
        assert_eq!(a.result, Err(Mismatch::Forged));
        b.send(7);
        let said = b.said();
        b.hear(&said);
        assert_eq!(b.result, Err(Mismatch::Forged));
    }

    #[test]
    fn a_connection_that_was_recorded_says_nothing_to_another_one() {
        let terms = keyed(b"one");
        let (mut a, mut b) = pair(&terms, &terms);
        a.send(1);
        let mut tape = a.said();
        b.hear(&tape);
        a.hear(&b.said());
        tape.extend(a.said());
        let mut again = End::new(&terms, false, 3);
        again.hear(&tape);
        assert_eq!((again.result, again.frames.len()), (Err(Mismatch::OtherKey), 0));
        let mut control = End::new(&terms, false, 2);
        control.hear(&tape);
        assert_eq!((control.result, control.stamps()), (Ok(()), vec![1]), "the tape itself is good");
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let (_, _, frames) = recorded(&keyed(b"one"));
        for at in PREFIX..frames[0].len() {
            let (_, mut b, mut frames) = recorded(&keyed(b"one"));
            frames[0][at] ^= 1;
            b.hear(&frames[0]);
            assert_eq!((b.result, b.frames.len()), (Err(Mismatch::Forged), 0));
        }
    }

    #[test]
    fn an_opening_that_was_changed_on_the_way_is_noticed() {
        for at in [8, 9, 11, 12, OPENING - 1] {
            let terms = Terms { versions: Versions { oldest: 0, newest: 1 }, ..keyed(b"one") };
            let (mut a, mut b) = pair(&terms, &terms);
            let mut opening = a.said();
            opening[at] ^= 1;
            b.hear(&opening);
            a.hear(&b.said());
            b.hear(&a.said());
            assert!(!b.channel.is_open(), "byte {at} was changed");
        }
    }

    #[test]
    fn garbage_and_lengths_beyond_the_bound_are_refused_at_once() {
        let (mut a, mut b) = pair(&Terms::default(), &Terms::default());
        b.hear(b"G");
        assert_eq!(b.result, Err(Mismatch::Malformed));
        a.hear(&Opening { versions: SPOKEN, keyed: false, two_keys: false, nonce: [9; 16] }.encode());
        a.hear(&u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes());
        assert_eq!(a.result, Err(Mismatch::Malformed));
        let (mut a, mut b, _) = recorded(&keyed(b"one"));
        a.hear(&[31, 0, 0, 0]);
        a.hear(&[0; 31]);
        assert_eq!(a.result, Err(Mismatch::Malformed), "shorter than a MAC");
        b.hear(&[u32::MAX.to_le_bytes()].concat());
        assert_eq!(b.result, Err(Mismatch::Malformed));
    }

    #[test]
    fn frames_of_another_version_are_refused() {
        for version in [0, 2, 255] {
            let (mut a, mut b) = pair(&Terms::default(), &Terms::default());
            talk(&mut a, &mut b);
            b.hear(&[2, 0, 0, 0, version, 14]);
            assert_eq!((b.result, b.frames.len()), (Err(Mismatch::Malformed), 0));
        }
    }
}
