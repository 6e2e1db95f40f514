//! The first bytes on every connection, in the same form in every wire version.
//!
//! Each end says which wire versions it speaks, whether it has a job key, and a fresh random number. Who dials speaks first,
//! who was dialed only after that. What follows is frames of the version on which they agree; with a job key each of them
//! ends in a MAC of [`MAC`] bytes, and the first frame each way is empty, so that both know at once whether they share the
//! key. The layout stands here; the cryptography is the control crate's, since this crate depends on nothing.

use core::fmt;

use super::FrameError;

/// Bytes of an [`Opening`].
pub const OPENING: usize = 28;
/// Bytes of the MAC behind each frame where both ends have a job key.
pub const MAC: usize = 32;

const MAGIC: [u8; 8] = *b"shift-v\0";
const KEYED: u8 = 1;
/// Flag: it has an older job key beside.
const TWO_KEYS: u8 = 2;

/// The wire versions that an end speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
}

impl Versions {
    /// The newest version that both speak; `None`: there is none.
    pub fn agreed(self, other: Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "wire version {}", self.oldest)
        } else {
            write!(f, "wire versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// What an end says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The versions that it speaks.
    pub versions: Versions,
    /// Whether it has a job key.
    pub keyed: bool,
    /// Whether it has an older one beside: it proves both.
    pub two_keys: bool,
    /// Fresh for each connection: nothing that was said on another one is ever valid on this one.
    pub nonce: [u8; 16],
}

impl Opening {
    /// Its bytes.
    pub fn encode(&self) -> [u8; OPENING] {
        let mut bytes = [0; OPENING];
        let flags = if self.keyed { KEYED } else { 0 } | if self.two_keys { TWO_KEYS } else { 0 };
        let fields = [self.versions.oldest, self.versions.newest, flags, 0];
        let all = MAGIC.iter().chain(&fields).chain(&self.nonce);
        for (byte, value) in bytes.iter_mut().zip(all) {
            *byte = *value;
        }
        bytes
    }

    /// The opening at the front of what came in. `None`: it is not all there yet.
    ///
    /// # Errors
    /// It is none, however it goes on. Flags that a later version adds are ignored.
    pub fn decode(stream: &[u8]) -> Result<Option<Self>, FrameError> {
        if stream.iter().zip(&MAGIC).any(|(byte, wanted)| byte != wanted) {
            return Err(FrameError::Value("opening"));
        }
        let Some((_, rest)) = stream.split_first_chunk::<8>() else { return Ok(None) };
        let Some(([oldest, newest, flags, _], rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let Some((nonce, _)) = rest.split_first_chunk::<16>() else { return Ok(None) };
        if oldest > newest {
            return Err(FrameError::Value("opening"));
        }
        let versions = Versions { oldest: *oldest, newest: *newest };
        Ok(Some(Self { versions, keyed: flags & KEYED != 0, two_keys: flags & TWO_KEYS != 0, nonce: *nonce }))
    }
}
