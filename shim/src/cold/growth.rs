//! Standbys that come after the objects of the application were made: they get the twins of these, so that what runs is protected again.
//!
//! Owns the thread that does it: registering memory may take as long as the program took for it, and neither the agent nor the program is to wait for that.
//! What must hold: from the moment at which a PD has its twin there every registration is made on it, and nothing goes there before those that were older
//! have followed ([`PdShadow::grow`]).

use crate::cold::device::as_agent;
use crate::cold::rail::{self, Rail, Standing};
use crate::cold::{mr, pd, reaper};
use crate::process;
use crate::real;
use crate::shadow::{PdShadow, Raw, StandbyPd};
use shift_control::agent::spawn;
use shift_control::datapath::{DeviceId, Event};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One entry for each device of the kernel's.
const CLASS: &str = "/sys/class/infiniband";
/// How long after a change of the devices standbys are looked for: a device is there before its users may open it.
const SETTLED: Duration = Duration::from_secs(15);

/// The devices that were seen last, by inode, and when they changed.
static SEEN: Mutex<Option<(BTreeSet<u64>, Instant)>> = Mutex::new(None);
static IS_GROWING: AtomicBool = AtomicBool::new(false);

/// Once a second, on the agent's thread.
pub fn seek() {
    if !has_changed() || IS_GROWING.load(Ordering::Acquire) {
        return;
    }
    let mut wanted = Vec::new();
    let pds = pd::all();
    let primaries: BTreeSet<u16> = pds.iter().map(|pd| pd.device).collect();
    for primary in primaries.into_iter().filter_map(rail::by_id) {
        let standings = rail::standbys_of(&primary).unwrap_or_default();
        for pd in pds.iter().filter(|pd| pd.device == primary.id && pd.unprotected.get().is_none()) {
            let lacking = standings.iter().filter(|standing| !pd.knows(standing.slot));
            wanted.extend(lacking.map(|standing| (Arc::clone(pd), standing.clone())));
        }
    }
    if wanted.is_empty() || IS_GROWING.swap(true, Ordering::AcqRel) {
        return;
    }
    if spawn("shift-growth", move || grow_all(&wanted)).is_err() {
        IS_GROWING.store(false, Ordering::Release);
    }
}

/// A device came or went lately, or is wanted that was not before.
fn has_changed() -> bool {
    let entries = std::fs::read_dir(Path::new(CLASS)).into_iter().flatten().flatten();
    let now: BTreeSet<u64> =
        entries.filter_map(|entry| std::fs::symlink_metadata(entry.path()).ok()).map(|found| found.ino()).collect();
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    match &*seen {
        Some((before, since)) if *before == now => since.elapsed() < SETTLED,
        _ => {
            *seen = Some((now, Instant::now()));
            true
        }
    }
}

/// Standbys are to be looked for though no device came.
pub fn look_again() {
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn grow_all(wanted: &[(Arc<PdShadow>, Standing)]) {
    for (pd, standing) in wanted {
        as_agent(|| grow(pd, standing));
    }
    let primaries: BTreeSet<u16> = wanted.iter().map(|(pd, _)| pd.device).collect();
    mr::void_caches();
    IS_GROWING.store(false, Ordering::Release);
    for device in primaries {
        process::tell(Event::StandbyCame { device: DeviceId(device) });
    }
}

fn grow(pd: &Arc<PdShadow>, standing: &Standing) {
    let (slot, standby): (u8, &Rail) = (standing.slot, &standing.rail);
    // Whoever lets go of it waits for this, if it goes again meanwhile.
    let Some(_open) = standby.presence.keep_open() else { return };
    // SAFETY: the context is open, and is kept so.
    let twin = unsafe { real::ibv_alloc_pd(standby.context.0) };
    if twin.is_null() {
        return log::debug!("{} refused a protection domain", standby.name);
    }
    let twin = StandbyPd { slot, device: standby.id, pd: Raw(twin) };
    if !pd.grow(twin) {
        return reaper::dealloc_pd(twin.pd);
    }
    let older = mr::of_pd(pd);
    let count = older.len();
    let are_there = older.iter().all(|region| mr::extend(pd, region, &twin));
    pd.grown(slot);
    log::debug!("{count} registrations followed to {}: {are_there}", standby.name);
}
