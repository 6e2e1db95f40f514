//! Protection domains and registrations of the application, each with its twins on the standbys.
//!
//! Owns: which standby has all memory of a PD. A slot is the place of a device among the standbys of the primary, the same for every object.

use crate::shadow::Raw;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use shift_abi::*;
use std::sync::OnceLock;

/// A PD of the application and its twins on the standbys.
pub struct PdShadow {
    /// Its device.
    pub device: u16,
    /// The twins, in the order of their slots and at least one, or why there is none.
    pub standbys: Result<Vec<StandbyPd>, String>,
    /// Slots on which some registration is not, as bits, though others have it.
    lost: AtomicU8,
    /// Some registration has no twin: posts have to look which they use. Set once, read on every post (Relaxed: it is set before the key exists).
    pub lacks_twins: AtomicBool,
    /// Why no QP of it can be protected: the peer can reach memory that no standby has, and does not say when it uses it.
    pub unprotected: OnceLock<&'static str>,
}

impl PdShadow {
    /// One without registrations.
    pub const fn new(device: u16, standbys: Result<Vec<StandbyPd>, String>) -> Self {
        let (lost, lacks_twins) = (AtomicU8::new(0), AtomicBool::new(false));
        Self { device, standbys, lost, lacks_twins, unprotected: OnceLock::new() }
    }

    /// Its twins.
    pub fn twins(&self) -> &[StandbyPd] {
        self.standbys.as_deref().unwrap_or_default()
    }

    /// Its twin in that slot.
    pub fn twin(&self, slot: u8) -> Option<&StandbyPd> {
        self.twins().iter().find(|twin| twin.slot == slot)
    }

    /// The slot of its first twin: the only one that SRQs have.
    pub fn first_slot(&self) -> u8 {
        self.twins().first().map_or(0, |twin| twin.slot)
    }

    /// All registrations that have a twin at all have one there.
    pub fn is_whole(&self, slot: u8) -> bool {
        self.lost.load(Ordering::Acquire) & (1 << slot) == 0
    }

    /// Some registration is not there. `false`: so it was before.
    pub fn lose(&self, slot: u8) -> bool {
        self.lost.fetch_or(1 << slot, Ordering::AcqRel) & (1 << slot) == 0
    }
}

/// A PD of this library's own.
pub struct StandbyPd {
    /// Place of its device among the standbys of the primary.
    pub slot: u8,
    /// Device of the standby.
    pub device: u16,
    /// The PD.
    pub pd: Raw<ibv_pd>,
}

/// A registration of the application and its twins.
pub struct MrShadow {
    /// Its device.
    pub device: u16,
    /// The application's keys.
    pub lkey: u32,
    /// See `lkey`.
    pub rkey: u32,
    /// First address as the NIC sees it.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The processor may read it at that address: its payload may be snapshotted.
    pub readable: bool,
    /// The twins; empty if every standby refused it.
    pub twins: Vec<TwinMr>,
    /// First address as the application sees it.
    pub addr: usize,
    /// Access flags.
    pub access: u32,
    /// Its PD.
    pub pd: Raw<ibv_pd>,
    /// The memory is another device's.
    pub is_dmabuf: bool,
}

/// A registration of this library's own.
pub struct TwinMr {
    /// Of the standby.
    pub slot: u8,
    /// The registration.
    pub mr: Raw<ibv_mr>,
    /// Its local key.
    pub lkey: u32,
    /// Its remote key.
    pub rkey: u32,
}
