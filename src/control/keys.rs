//! Remote keys: by which number does the peer's standby know the memory that an rkey names on its primary?
//!
//! rkeys recur after a deregistration, so each registration of a process has a generation, and frames may come twice and late:
//! what is known of a key only ever moves to a newer generation. A key that nobody told is asked for, never guessed.

use std::collections::{BTreeMap, BTreeSet};

use shift_proto::frame::{Frame, Key, KeyState};
use shift_proto::id::{Micros, ProcessId, MAX_STANDBYS};

use crate::datapath::{DeviceId, RemoteKey, RemoteKeys, StandbyKeys};

/// Keys of one peer process that are kept; further ones are asked for when they are used.
const MAX_KEYS: usize = 1 << 20;
/// Withdrawn keys that are remembered one by one; older ones are remembered as "everything up to this generation".
const MAX_WITHDRAWN: usize = 4096;
/// How long an answer may take until the question is sent again.
const REASK_US: u64 = 50_000;

/// How key frames name one standby of a device: see [`Key::device`].
pub const fn place_of(device: u16, slot: u8) -> u16 {
    device | (slot as u16) << 8
}

/// The device and the slot of such a name.
const fn device_and_slot(place: u16) -> (u16, usize) {
    (place & 0xff, (place >> 8) as usize)
}

/// The registrations of this process.
#[derive(Debug, Default)]
pub struct OwnKeys {
    /// Generation, and rkeys on the standbys; there may be none.
    keys: BTreeMap<(u16, u32), (u32, StandbyKeys)>,
    generation: u32,
    unconfirmed: BTreeMap<(u16, u32, u32), BTreeSet<ProcessId>>,
}

impl OwnKeys {
    /// A registration; what the peers have to be told.
    pub fn add(&mut self, device: DeviceId, rkey: u32, standby_rkeys: StandbyKeys) -> Vec<(Key, u32)> {
        self.enter(device, rkey, standby_rkeys);
        let key = Key { device: device.0, rkey, generation: self.generation };
        by_place(key, &standby_rkeys).collect()
    }

    /// A registration is on a further standby now; its name there. `None`: it is gone.
    pub fn extend(&mut self, device: DeviceId, rkey: u32, slot: u8, standby_rkey: u32) -> Option<Key> {
        let (generation, standby_rkeys) = self.keys.get_mut(&(device.0, rkey))?;
        *standby_rkeys.get_mut(usize::from(slot))? = Some(standby_rkey);
        Some(Key { device: place_of(device.0, slot), rkey, generation: *generation })
    }

    /// A registration that the standby does not have. Nobody needs to know before he asks.
    pub fn add_unprotected(&mut self, device: DeviceId, rkey: u32) {
        self.enter(device, rkey, StandbyKeys::default());
    }

    fn enter(&mut self, device: DeviceId, rkey: u32, standby_rkeys: StandbyKeys) {
        self.generation = self.generation.saturating_add(1);
        self.keys.insert((device.0, rkey), (self.generation, standby_rkeys));
    }

    /// A registration is gone; its name, which `peers` have to be told and to confirm.
    pub fn remove(&mut self, device: DeviceId, rkey: u32, peers: BTreeSet<ProcessId>) -> Option<Key> {
        let (generation, _) = self.keys.remove(&(device.0, rkey))?;
        if !peers.is_empty() {
            self.unconfirmed.insert((device.0, rkey, generation), peers);
        }
        Some(Key { device: device.0, rkey, generation })
    }

    /// A peer confirmed a withdrawal. `true`: it was the last one to do so.
    pub fn handle_confirmed(&mut self, peer: ProcessId, key: Key) -> bool {
        let id = (key.device, key.rkey, key.generation);
        let Some(waiting) = self.unconfirmed.get_mut(&id) else { return false };
        waiting.remove(&peer);
        let last = waiting.is_empty();
        if last {
            self.unconfirmed.remove(&id);
        }
        last
    }

    /// Whether some peer has still to confirm the withdrawal of this very registration.
    pub fn awaits(&self, key: Key) -> bool {
        self.unconfirmed.contains_key(&(key.device, key.rkey, key.generation))
    }

    /// A peer that is gone confirms nothing any more. The withdrawals that only it had to confirm.
    pub fn forget_peer(&mut self, peer: ProcessId) -> Vec<(DeviceId, u32)> {
        let mut confirmed = Vec::new();
        self.unconfirmed.retain(|(device, rkey, _), waiting| {
            waiting.remove(&peer);
            if waiting.is_empty() {
                confirmed.push((DeviceId(*device), *rkey));
            }
            !waiting.is_empty()
        });
        confirmed
    }

    /// Everything, as a peer that is met has to be told.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        let added = self.keys.iter().flat_map(|((device, rkey), (generation, standby_rkeys))| {
            let key = Key { device: *device, rkey: *rkey, generation: *generation };
            by_place(key, standby_rkeys).map(|(key, standby_rkey)| Frame::KeyAdd { key, standby_rkey })
        });
        let withdrawn = self.unconfirmed.keys().map(|(device, rkey, generation)| {
            Frame::KeyDel(Key { device: *device, rkey: *rkey, generation: *generation })
        });
        added.chain(withdrawn)
    }

    /// What a key is on a standby, for a peer that asks.
    pub fn state(&self, place: u16, rkey: u32) -> KeyState {
        let (device, slot) = device_and_slot(place);
        let Some((generation, standby_rkeys)) = self.keys.get(&(device, rkey)) else { return KeyState::Absent };
        match standby_rkeys.get(slot).copied().flatten() {
            Some(standby_rkey) => KeyState::Known { generation: *generation, standby_rkey },
            None => KeyState::Unprotected,
        }
    }
}

/// The names under which the peers know a registration, and what they know.
fn by_place(key: Key, standby_rkeys: &StandbyKeys) -> impl Iterator<Item = (Key, u32)> + '_ {
    let slots = (0_u8..).zip(standby_rkeys);
    slots.filter_map(move |(slot, rkey)| rkey.map(|rkey| (Key { device: place_of(key.device, slot), ..key }, rkey)))
}

#[derive(Clone, Copy, Debug)]
enum Known {
    Registered(u32),
    Withdrawn,
    /// The peer says that there is none.
    Absent,
    /// The peer says that its standby has none.
    Unprotected,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    first: Micros,
    last: Micros,
}

/// What is known of the registrations of one peer process.
#[derive(Debug, Default)]
pub struct PeerKeys {
    keys: BTreeMap<(u16, u32), (u32, Known)>,
    withdrawn: usize,
    forgotten_through: u32,
    asked: BTreeMap<(u16, u32), Asked>,
}

impl PeerKeys {
    /// The peer told a registration.
    pub fn handle_add(&mut self, key: Key, standby_rkey: u32) {
        if !self.is_past(key) && key.generation > self.forgotten_through {
            self.enter(key, Known::Registered(standby_rkey));
        }
    }

    /// Whether that registration is gone. What is said of the device counts for its standbys: a key that is withdrawn is withdrawn everywhere.
    fn is_past(&self, key: Key) -> bool {
        let (device, _) = device_and_slot(key.device);
        match self.keys.get(&(device, key.rkey)) {
            Some((generation, Known::Withdrawn | Known::Absent)) => *generation >= key.generation,
            Some((generation, Known::Registered(_) | Known::Unprotected)) => *generation > key.generation,
            None => false,
        }
    }

    /// The peer told that a registration is gone, from whatever device.
    pub fn handle_del(&mut self, key: Key) {
        let slots = 1..u8::try_from(MAX_STANDBYS).unwrap_or(u8::MAX);
        for place in slots.map(|slot| place_of(key.device, slot)) {
            // Of the first standby the withdrawal is remembered also if it came before the key.
            if self.keys.contains_key(&(place, key.rkey)) {
                self.enter(Key { device: place, ..key }, Known::Withdrawn);
            }
        }
        self.enter(key, Known::Withdrawn);
        if self.withdrawn > MAX_WITHDRAWN {
            let gone = |known: &Known| matches!(known, Known::Withdrawn);
            let newest = self.keys.values().filter(|(_, k)| gone(k)).map(|(generation, _)| *generation).max();
            self.forgotten_through = self.forgotten_through.max(newest.unwrap_or(0));
            self.keys.retain(|_, (_, known)| !gone(known));
            self.withdrawn = 0;
        }
    }

    /// The peer answered a question.
    pub fn handle_answer(&mut self, device: u16, rkey: u32, state: KeyState) {
        let newest = self.keys.get(&(device, rkey)).map_or(0, |(generation, _)| *generation);
        let (generation, known) = match state {
            KeyState::Known { generation, standby_rkey } => (generation, Known::Registered(standby_rkey)),
            KeyState::Unprotected => (newest, Known::Unprotected),
            KeyState::Absent => (newest, Known::Absent),
        };
        let key = Key { device, rkey, generation };
        if matches!(known, Known::Registered(_)) && self.is_past(key) {
            // The withdrawal has overtaken it. What there is now is still asked for.
            return;
        }
        // An answer to a question that nobody asked is a stranger's, or late.
        if self.asked.remove(&(device, rkey)).is_some() {
            self.enter(key, known);
        }
    }

    /// Whether a question is due for a key that is needed. `Err`: nobody answered within `limit`.
    pub fn ask(&mut self, device: u16, rkey: u32, now: Micros, limit: Micros) -> Result<Option<Frame>, ()> {
        if matches!(self.keys.get(&(device, rkey)), Some((_, Known::Unprotected))) {
            return Err(());
        }
        let fresh = Asked { first: now, last: Micros(0) };
        let asked = self.asked.entry((device, rkey)).or_insert(fresh);
        if now.since(asked.first) > limit {
            self.asked.remove(&(device, rkey));
            return Err(());
        }
        if asked.last != Micros(0) && now.since(asked.last).0 < REASK_US {
            return Ok(None);
        }
        asked.last = now;
        Ok(Some(Frame::KeyAsk { device, rkey }))
    }

    fn enter(&mut self, key: Key, known: Known) {
        let id = (key.device, key.rkey);
        let is_withdrawn = |k: &Known| usize::from(matches!(k, Known::Withdrawn));
        match self.keys.get(&id) {
            Some((generation, _)) if *generation > key.generation => return,
            // Of one generation the withdrawal comes last, whatever the order of arrival.
            Some((generation, Known::Withdrawn))
                if *generation == key.generation && matches!(known, Known::Registered(_) | Known::Withdrawn) =>
            {
                return;
            }
            Some(_) => {}
            None if self.keys.len() >= MAX_KEYS => return,
            None => {}
        }
        self.withdrawn += is_withdrawn(&known);
        if let Some((_, old)) = self.keys.insert(id, (key.generation, known)) {
            self.withdrawn = self.withdrawn.saturating_sub(is_withdrawn(&old));
        }
    }
}

/// The keys of one peer process for one of its devices.
#[derive(Debug)]
pub struct KeysOf<'a> {
    /// Everything known of the process.
    pub keys: Option<&'a PeerKeys>,
    /// Its device, as it numbers them.
    pub device: u16,
}

impl RemoteKeys for KeysOf<'_> {
    fn remote(&self, rkey: u32) -> RemoteKey {
        match self.keys.and_then(|k| k.keys.get(&(self.device, rkey))) {
            Some((_, Known::Registered(standby_rkey))) => RemoteKey::Known(*standby_rkey),
            Some((_, Known::Absent)) => RemoteKey::Absent,
            Some((_, Known::Withdrawn | Known::Unprotected)) | None => RemoteKey::Unknown,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    fn key(rkey: u32, generation: u32) -> Key {
        Key { device: 0, rkey, generation }
    }

    fn on_first(rkey: u32) -> StandbyKeys {
        let mut rkeys = StandbyKeys::default();
        rkeys[0] = Some(rkey);
        rkeys
    }

    fn told(peer: &mut PeerKeys, added: Vec<(Key, u32)>) {
        added.into_iter().for_each(|(key, standby_rkey)| peer.handle_add(key, standby_rkey));
    }

    fn remote(keys: &PeerKeys, rkey: u32) -> RemoteKey {
        KeysOf { keys: Some(keys), device: 0 }.remote(rkey)
    }

    #[test]
    fn a_registration_is_found_by_the_peer() {
        let (mut own, mut peer) = (OwnKeys::default(), PeerKeys::default());
        told(&mut peer, own.add(DeviceId(0), 7, on_first(70)));
        assert_eq!(remote(&peer, 7), RemoteKey::Known(70));
        assert_eq!(remote(&peer, 8), RemoteKey::Unknown);
    }

    #[test]
    fn each_standby_has_keys_of_its_own_and_a_withdrawal_is_of_all() {
        let (mut own, mut peer) = (OwnKeys::default(), PeerKeys::default());
        let on = |keys: &PeerKeys, slot| KeysOf { keys: Some(keys), device: place_of(3, slot) }.remote(7);
        let mut rkeys = on_first(70);
        rkeys[2] = Some(72);
        let added = own.add(DeviceId(3), 7, rkeys);
        told(&mut peer, added.clone());
        assert_eq!(
            [0, 1, 2].map(|slot| on(&peer, slot)),
            [RemoteKey::Known(70), RemoteKey::Unknown, RemoteKey::Known(72)]
        );
        assert_eq!(own.state(place_of(3, 1), 7), KeyState::Unprotected);
        assert!(matches!(own.state(place_of(3, 2), 7), KeyState::Known { standby_rkey: 72, .. }));
        peer.handle_del(own.remove(DeviceId(3), 7, BTreeSet::new()).unwrap());
        // They come again over another network, late.
        told(&mut peer, added);
        assert_eq!([0, 1, 2].map(|slot| on(&peer, slot)), [RemoteKey::Unknown; 3]);
        assert_eq!(own.state(place_of(3, 2), 7), KeyState::Absent);
    }

    #[test]
    fn a_withdrawal_that_overtakes_the_key_of_a_further_standby_counts() {
        let (mut own, mut peer) = (OwnKeys::default(), PeerKeys::default());
        let mut rkeys = StandbyKeys::default();
        rkeys[1] = Some(71);
        let added = own.add(DeviceId(0), 7, rkeys);
        peer.handle_del(own.remove(DeviceId(0), 7, BTreeSet::new()).unwrap());
        told(&mut peer, added);
        assert_eq!(KeysOf { keys: Some(&peer), device: place_of(0, 1) }.remote(7), RemoteKey::Unknown);
    }

    #[test]
    fn a_withdrawal_that_overtakes_an_answer_counts_on_every_standby() {
        for slot in 0..2 {
            let (place, limit) = (place_of(0, slot), Micros(1_000_000));
            let mut peer = PeerKeys::default();
            let on = |keys: &PeerKeys| KeysOf { keys: Some(keys), device: place }.remote(7);
            assert!(peer.ask(place, 7, Micros(1), limit).is_ok());
            peer.handle_del(key(7, 3));
            peer.handle_answer(place, 7, KeyState::Known { generation: 3, standby_rkey: 71 });
            assert_eq!(on(&peer), RemoteKey::Unknown);
            // It is asked on, until the same moment.
            assert_eq!(peer.ask(place, 7, Micros(60_000), limit), Ok(Some(Frame::KeyAsk { device: place, rkey: 7 })));
            assert_eq!(peer.ask(place, 7, Micros(1_000_002), limit), Err(()));
            // What was registered after that is another.
            assert!(peer.ask(place, 7, Micros(2_000_000), limit).is_ok());
            peer.handle_answer(place, 7, KeyState::Known { generation: 4, standby_rkey: 72 });
            assert_eq!(on(&peer), RemoteKey::Known(72));
        }
    }

    #[test]
    fn a_key_that_the_peer_says_is_gone_does_not_come_back_by_a_late_frame() {
        let mut peer = PeerKeys::default();
        peer.handle_add(key(7, 3), 70);
        peer.handle_del(key(7, 3));
        assert!(peer.ask(0, 7, Micros(1), Micros(10)).is_ok());
        peer.handle_answer(0, 7, KeyState::Absent);
        peer.handle_add(key(7, 3), 70);
        assert_eq!(remote(&peer, 7), RemoteKey::Absent);
        peer.handle_add(key(7, 4), 71);
        assert_eq!(remote(&peer, 7), RemoteKey::Known(71));
    }

    #[test]
    fn a_late_frame_of_an_old_generation_changes_nothing() {
        let mut peer = PeerKeys::default();
        peer.handle_add(key(7, 3), 73);
        peer.handle_add(key(7, 1), 71);
        peer.handle_del(key(7, 2));
        assert_eq!(remote(&peer, 7), RemoteKey::Known(73));
    }

    #[test]
    fn a_withdrawn_key_does_not_come_back_by_a_repeated_frame() {
        let mut peer = PeerKeys::default();
        peer.handle_add(key(7, 1), 71);
        peer.handle_del(key(7, 1));
        peer.handle_add(key(7, 1), 71);
        assert_eq!(remote(&peer, 7), RemoteKey::Unknown);
        peer.handle_add(key(7, 2), 72);
        assert_eq!(remote(&peer, 7), RemoteKey::Known(72));
    }

    #[test]
    fn nor_when_so_many_were_withdrawn_that_they_are_forgotten() {
        let mut peer = PeerKeys::default();
        for rkey in 0..=5000 {
            peer.handle_add(key(rkey, rkey + 1), 1);
            peer.handle_del(key(rkey, rkey + 1));
        }
        assert!(peer.keys.len() <= MAX_WITHDRAWN + 1);
        peer.handle_add(key(3, 4), 1);
        assert_eq!(remote(&peer, 3), RemoteKey::Unknown);
    }

    #[test]
    fn an_unknown_key_is_asked_for_until_the_deadline() {
        let mut peer = PeerKeys::default();
        let limit = Micros(1_000_000);
        let ask = Frame::KeyAsk { device: 0, rkey: 9 };
        assert_eq!(peer.ask(0, 9, Micros(1), limit), Ok(Some(ask.clone())));
        assert_eq!(peer.ask(0, 9, Micros(2), limit), Ok(None));
        assert_eq!(peer.ask(0, 9, Micros(60_000), limit), Ok(Some(ask)));
        assert_eq!(peer.ask(0, 9, Micros(1_000_002), limit), Err(()));
    }

    #[test]
    fn an_answer_counts_only_if_it_was_asked_for() {
        let mut peer = PeerKeys::default();
        peer.handle_answer(0, 9, KeyState::Absent);
        assert_eq!(remote(&peer, 9), RemoteKey::Unknown);
        assert!(peer.ask(0, 9, Micros(1), Micros(10)).is_ok());
        peer.handle_answer(0, 9, KeyState::Absent);
        assert_eq!(remote(&peer, 9), RemoteKey::Absent);
        peer.handle_add(key(9, 1), 90);
        assert_eq!(remote(&peer, 9), RemoteKey::Known(90));
    }

    #[test]
    fn a_registration_without_a_standby_is_not_told_and_not_denied() {
        let (mut own, mut peer) = (OwnKeys::default(), PeerKeys::default());
        let asked = |own: &OwnKeys, peer: &mut PeerKeys, at: u64| {
            assert!(peer.ask(0, 7, Micros(at), Micros(1_000)).is_ok());
            peer.handle_answer(0, 7, own.state(0, 7));
            (remote(peer, 7), peer.ask(0, 7, Micros(at), Micros(1_000)).is_ok())
        };
        own.add_unprotected(DeviceId(0), 7);
        assert_eq!(own.frames().count(), 0);
        // Neither a key nor the word that there is none: the request ends as one of which nobody knows.
        assert_eq!(asked(&own, &mut peer, 1), (RemoteKey::Unknown, false));
        peer.handle_del(own.remove(DeviceId(0), 7, BTreeSet::new()).unwrap());
        assert_eq!(asked(&own, &mut peer, 2).0, RemoteKey::Absent, "it is gone, and asked for anew");
        told(&mut peer, own.add(DeviceId(0), 7, on_first(70)));
        assert_eq!(remote(&peer, 7), RemoteKey::Known(70));
    }

    #[test]
    fn a_withdrawal_waits_for_every_peer() {
        let (a, b) = (ProcessId(1), ProcessId(2));
        let mut own = OwnKeys::default();
        own.add(DeviceId(0), 7, on_first(70));
        let deleted = own.remove(DeviceId(0), 7, BTreeSet::from([a, b])).unwrap();
        own.handle_confirmed(a, deleted);
        assert_eq!(own.frames().count(), 1);
        own.forget_peer(b);
        assert_eq!(own.frames().count(), 0);
        assert_eq!(own.state(0, 7), KeyState::Absent);
    }
}
