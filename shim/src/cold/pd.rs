//! Protection domains and their twins.

use crate::cold::{device, rail, reaper};
use crate::real;
use crate::shadow::{PdShadow, Raw, StandbyPd};
use crate::tables::PtrTable;
use core::ffi::c_int;
use core::sync::atomic::AtomicBool;
use shift_abi::*;
use std::sync::Arc;

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
        let standby = twin_of(shadow.device);
        let no = || AtomicBool::new(false);
        PDS.insert(
            pd,
            Arc::new(PdShadow { device: shadow.device, standby, lacks_twins: no(), lacks_remote_twins: no() }),
        );
    }
    pd
}

fn twin_of(device: u16) -> Result<StandbyPd, String> {
    let primary = rail::by_id(device).ok_or("its device is unknown")?;
    let standby = rail::standby_of(&primary)?;
    // SAFETY: a rail's context is open for ever.
    let pd = unsafe { real::ibv_alloc_pd(standby.context.0) };
    if pd.is_null() {
        return Err(format!("{} refused a protection domain", standby.name));
    }
    Ok(StandbyPd { device: standby.id, pd: Raw(pd) })
}

/// `ibv_dealloc_pd`.
///
/// # Safety
/// As `ibv_dealloc_pd`.
pub unsafe fn dealloc(pd: *mut ibv_pd) -> c_int {
    let shadow = PDS.remove(pd);
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_dealloc_pd(pd) };
    let Some(shadow) = shadow else { return errno };
    if errno != 0 {
        PDS.insert(pd, shadow);
    } else if let Ok(twin) = &shadow.standby {
        reaper::dealloc_pd(twin.pd);
    }
    errno
}
