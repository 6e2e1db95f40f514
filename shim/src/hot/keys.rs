//! Translations of keys that a queue used lately, so that a post on a standby looks nothing up in a shared table.

use crate::cold::mr;

/// Keys a queue remembers the translation of: a power of two; NCCL uses a handful per connection.
const KEYS: usize = 16;

/// Translations of keys that this queue used lately, direct-mapped.
///
/// Valid as long as `generation` is the process's: any withdrawal of a key anywhere empties it.
pub struct KeyCache {
    generation: u64,
    /// Of the standby whose keys these are.
    slot: u8,
    local: [LocalKey; KEYS],
    remote: [(u32, u32); KEYS],
}

/// What is known of an lkey.
#[derive(Clone, Copy)]
pub struct LocalKey {
    /// The application's key; 0 = no entry (no provider gives out key 0).
    pub lkey: u32,
    /// The twin's key in the slot that was asked for; 0 = no twin there.
    pub twin: u32,
    /// It has no twin anywhere.
    pub is_alone: bool,
    /// Memory that may be read: first address and bytes (0 bytes: none).
    pub readable: (u64, u64),
}

const NO_KEY: LocalKey = LocalKey { lkey: 0, twin: 0, is_alone: true, readable: (0, 0) };

impl KeyCache {
    /// An empty one.
    pub const fn new() -> Self {
        Self { generation: 0, slot: 0, local: [NO_KEY; KEYS], remote: [(0, 0); KEYS] }
    }

    /// From now on the keys of a path from the standby in that slot are wanted. The peer's end of it may be another one than before, where its memory has
    /// other keys.
    pub fn go_to(&mut self, slot: u8) {
        // No generation of the process's: at the next look everything is forgotten.
        (self.slot, self.generation) = (slot, 0);
    }

    /// The slot whose keys these are.
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    #[inline]
    pub fn refresh(&mut self) {
        let generation = mr::generation();
        if self.generation != generation {
            self.local = [NO_KEY; KEYS];
            self.remote = [(0, 0); KEYS];
            self.generation = generation;
        }
    }

    /// What is known of `lkey`; never waits.
    #[inline]
    pub fn local(&mut self, device: u16, lkey: u32) -> Option<LocalKey> {
        let place = self.local.get_mut(key_index(lkey))?;
        if place.lkey != lkey {
            *place = mr::local_key(device, lkey, self.slot)?;
        }
        Some(*place)
    }

    /// The peer's standby key for `rkey`, if this queue learned it.
    #[inline]
    pub fn remote(&self, rkey: u32) -> Option<u32> {
        let (known, twin) = *self.remote.get(key_index(rkey))?;
        (known == rkey && twin != 0).then_some(twin)
    }

    /// As if the key had been looked up.
    #[cfg(test)]
    pub fn learn_local(&mut self, key: LocalKey) {
        self.refresh();
        if let Some(place) = self.local.get_mut(key_index(key.lkey)) {
            *place = key;
        }
    }

    /// As `remote`, for the agent: an entry of another generation does not count.
    pub fn known_remote(&mut self, rkey: u32) -> Option<u32> {
        self.refresh();
        self.remote(rkey)
    }

    /// Learns a translation from the agent.
    pub fn learn_remote(&mut self, rkey: u32, twin: u32) {
        self.refresh();
        if let Some(place) = self.remote.get_mut(key_index(rkey)) {
            *place = (rkey, twin);
        }
    }

    /// The twin's key for `lkey`. May wait for a writer of the table, who is never out of the processor for long: a wrong "unknown" would be an error.
    pub fn twin_of(&mut self, device: u16, lkey: u32) -> Option<u32> {
        let known = self.known(device, lkey)?;
        (known.twin != 0).then_some(known.twin)
    }

    /// Whether any standby has it. May wait, as [`KeyCache::twin_of`].
    pub fn has_twin(&mut self, device: u16, lkey: u32) -> bool {
        self.known(device, lkey).is_some_and(|known| !known.is_alone)
    }

    fn known(&mut self, device: u16, lkey: u32) -> Option<LocalKey> {
        self.refresh();
        self.local(device, lkey).or_else(|| mr::local_key_waiting(device, lkey, self.slot))
    }
}

#[inline]
const fn key_index(key: u32) -> usize {
    (key ^ key >> 8) as usize % KEYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_s_keys_were_on_one_path_is_forgotten_on_the_next_also_from_the_same_standby() {
        let mut keys = KeyCache::new();
        keys.go_to(0);
        keys.learn_remote(7, 70);
        assert_eq!(keys.known_remote(7), Some(70));
        // The first path in between asks for no keys.
        keys.go_to(0);
        assert_eq!(
            keys.known_remote(7),
            None,
            "70 is the key of one of the peer's standbys, and this path may lead to another"
        );
    }
}
