//! Protection domains and their twins.

use crate::cold::{device, rail, reaper, tell};
use crate::real;
use crate::shadow::{PdShadow, Raw, StandbyPd};
use crate::tables::{PtrTable, Roll};
use core::ffi::c_int;
use shift_abi::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// PDs of the application.
pub static PDS: PtrTable<PdShadow> = PtrTable::new();

/// `ibv_alloc_pd`.
///
/// # Safety
/// As `ibv_alloc_pd`.
pub unsafe fn alloc(context: *mut ibv_context) -> *mut ibv_pd {
    // SAFETY: passed on.
    let pd = unsafe { real::ibv_alloc_pd(context) };
    if pd.is_null() {
        return pd;
    }
    if let Some(shadow) = device::device_of(context) {
        let shadow = Arc::new(PdShadow::new(shadow.device, twins_of(shadow.device)));
        PDS.insert(pd, Arc::clone(&shadow));
        remember(&shadow);
    }
    pd
}

/// All PDs of the application that have twins.
static ALL: Roll<PdShadow> = Roll::new();

fn remember(shadow: &Arc<PdShadow>) {
    if shadow.standbys.is_err() {
        return;
    }
    ALL.enter(shadow);
    // Who lets go of a device closes it first, and looks for PDs then: one of the two sees this one.
    for twin in shadow.twins() {
        let is_closed = rail::by_id(twin.device).is_none_or(|rail| rail.presence.keep_open().is_none());
        if is_closed {
            shadow.part(twin.slot).into_iter().for_each(|twin| reaper::dealloc_pd(twin.pd));
        }
    }
}

/// All of them.
pub fn all() -> Vec<Arc<PdShadow>> {
    ALL.all()
}

/// Parent domains: what is made on one is protected through the PD it leads to, whose twin is its twin. Of each: has it a thread domain?
static PARENTS: Mutex<BTreeMap<usize, bool>> = Mutex::new(BTreeMap::new());

fn parents() -> MutexGuard<'static, BTreeMap<usize, bool>> {
    PARENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A parent domain was made.
pub fn parent(parent: *mut ibv_pd, domain: *mut ibv_pd, has_thread: bool) {
    let Some(shadow) = PDS.get_arc(domain) else { return };
    parents().insert(parent as usize, has_thread);
    PDS.insert(parent, shadow);
}

/// Is this a parent domain whose objects one thread at a time uses, without a lock of the provider's?
pub fn has_thread_domain(domain: *mut ibv_pd) -> bool {
    !domain.is_null() && parents().get(&(domain as usize)).copied().unwrap_or(false)
}

/// One on each standby that grants one.
fn twins_of(device: u16) -> Result<Vec<StandbyPd>, String> {
    let primary = rail::by_id(device).ok_or("its device is unknown")?;
    let standbys = rail::standbys_of(&primary)?;
    let (mut twins, mut refused) = (Vec::new(), String::new());
    for standing in &standbys {
        // SAFETY: a rail's context is open for ever.
        let pd = unsafe { real::ibv_alloc_pd(standing.rail.context.0) };
        if pd.is_null() {
            refused = format!("{} refused a protection domain", standing.rail.name);
            tell::once(&refused, &refused);
        } else {
            twins.push(StandbyPd { slot: standing.slot, device: standing.rail.id, pd: Raw(pd) });
        }
    }
    if twins.is_empty() {
        return Err(refused);
    }
    Ok(twins)
}

/// `ibv_dealloc_pd`.
///
/// # Safety
/// As `ibv_dealloc_pd`.
pub unsafe fn dealloc(pd: *mut ibv_pd) -> c_int {
    let shadow = PDS.remove(pd);
    shadow.iter().for_each(|shadow| shadow.set_freed(true));
    let as_parent = parents().remove(&(pd as usize));
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_dealloc_pd(pd) };
    let Some(shadow) = shadow else { return errno };
    if errno != 0 {
        shadow.set_freed(false);
        PDS.insert(pd, shadow);
        parents().extend(as_parent.map(|has_thread| (pd as usize, has_thread)));
    } else if as_parent.is_some() {
        shadow.set_freed(false);
        // The twin is that of the PD it leads to.
    } else {
        shadow.present().into_iter().for_each(|twin| reaper::dealloc_pd(twin.pd));
    }
    errno
}

/// `ibv_unimport_pd`: its structure goes. It has no shadow of its own, but one that was freed by other ways may have lain at its address.
///
/// # Safety
/// As `ibv_unimport_pd`.
pub unsafe fn unimport(pd: *mut ibv_pd) {
    PDS.remove(pd);
    // SAFETY: passed on.
    unsafe { real::ibv_unimport_pd(pd) };
}
