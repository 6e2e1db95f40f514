//! Whether a rail's device is still there, and letting go of one that is not.
//!
//! Drivers differ (*S*: `ib_uverbs_remove_one`). One that can take a device from under its users says DEVICE_FATAL, and EIO to everything from then on.
//! The others, soft-RoCE of 6.12 among them, go on working for who has it open, say nothing, and keep whoever removes it waiting until everybody has
//! closed it. With both the device's entry in sysfs is gone at once; one that comes back has another inode. So that is looked at, and this library closes its
//! own context: nobody is to wait for that who would not without it.

use crate::cold::rail::{self, Rail};
use crate::cold::{parting, reaper, srq};
use shift_abi::*;
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// One entry for each device of the kernel's verbs.
const CLASS: &str = "/sys/class/infiniband_verbs";

/// What is known of a rail's device.
#[derive(Default)]
pub struct Presence {
    /// Its entry and that one's inode; `None`: nothing can be known of it.
    entry: Option<(PathBuf, u64)>,
    gone: AtomicBool,
    told: AtomicBool,
    /// Objects of queue pairs may be on it, which have to go before the context does.
    pub is_standby: AtomicBool,
    /// This library's own context of it is closed. Held for reading while that is used.
    closed: RwLock<bool>,
}

impl Presence {
    /// Of a device that was just opened.
    pub fn of(context: *mut ibv_context) -> Self {
        // SAFETY: the context was just opened and names its device.
        let device = unsafe { (*context).device };
        // SAFETY: a device outlives its contexts; the name is an array inside of it.
        let name = unsafe { &raw const (*device).dev_name };
        // SAFETY: libibverbs ends it with a NUL within the array.
        let name = unsafe { CStr::from_ptr(name.cast()) };
        let entry = Path::new(CLASS).join(&*name.to_string_lossy());
        Self::at(entry)
    }

    fn at(entry: PathBuf) -> Self {
        let inode = inode_of(&entry);
        Self { entry: inode.map(|inode| (entry, inode)), ..Self::default() }
    }

    /// Whether the device is gone. It is looked for; what was gone once does not come back, but another device may in its place.
    pub fn is_gone(&self) -> bool {
        let Some((entry, inode)) = &self.entry else { return false };
        // Where there is no directory either it is sysfs that is gone.
        let is_other = || inode_of(entry) != Some(*inode) && entry.parent().is_some_and(Path::exists);
        if !self.gone.load(Ordering::Relaxed) && is_other() {
            self.gone.store(true, Ordering::Relaxed);
        }
        self.gone.load(Ordering::Relaxed)
    }

    /// Keeps the context open while it is used; `None`: it is closed.
    pub fn keep_open(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        (!*closed).then_some(closed)
    }

    /// `false`: it was closed already.
    fn close(&self) -> bool {
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut *closed, true)
    }
}

fn inode_of(entry: &Path) -> Option<u64> {
    std::fs::symlink_metadata(entry).ok().map(|found| found.ino())
}

/// Rails whose device has gone since this was asked last.
pub fn removed() -> Vec<u16> {
    let is_new =
        |rail: &&std::sync::Arc<Rail>| rail.presence.is_gone() && !rail.presence.told.swap(true, Ordering::Relaxed);
    rail::rails().iter().filter(is_new).map(|rail| rail.id).collect()
}

/// The agent has nothing left on that rail, whose device is gone: this library's own context of it is closed, after the objects that are on it.
pub fn let_go(id: u16) {
    let rail = {
        // Under the lock under which a rail becomes a standby.
        let table = rail::rails();
        let Some(rail) = table.get(usize::from(id)) else { return };
        let is_standby = rail.presence.is_standby.load(Ordering::Relaxed);
        if is_standby && srq::is_on(id) || !rail.presence.close() {
            return;
        }
        if !is_standby {
            return close(rail);
        }
        Arc::clone(rail)
    };
    parting::begin(&rail);
}

/// Nothing is on it any more.
pub fn close(rail: &Rail) {
    rail.pd.get().copied().flatten().into_iter().for_each(reaper::dealloc_pd);
    reaper::close(rail.context);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_replaced_is_gone_for_good_and_what_was_never_seen_is_not() {
        let root = std::env::temp_dir().join(format!("shift-presence-{}", std::process::id()));
        let (entry, other) = (root.join("uverbs0"), root.join("other"));
        std::fs::create_dir_all(&root).unwrap_or_else(|error| unreachable!("{error}"));
        let make = |path: &Path| std::fs::write(path, "").unwrap_or_else(|error| unreachable!("{error}"));
        make(&entry);
        make(&other);
        let (there, never) = (Presence::at(entry.clone()), Presence::at(root.join("uverbs7")));
        assert!(!there.is_gone() && !never.is_gone());
        // Another one under its name.
        assert!(std::fs::rename(&other, &entry).is_ok() && there.is_gone());
        let second = Presence::at(entry.clone());
        assert!(!second.is_gone());
        // Without the directory nothing is known; what is gone stays so.
        let _ = std::fs::remove_dir_all(&root);
        assert!(there.is_gone() && !second.is_gone() && !never.is_gone());
    }

    #[test]
    fn a_context_is_closed_once_and_not_used_after_that() {
        let presence = Presence::default();
        assert!(presence.keep_open().is_some());
        assert!(presence.close() && !presence.close());
        assert!(presence.keep_open().is_none());
    }
}
