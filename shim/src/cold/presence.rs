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
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// One entry for each device of the kernel's verbs.
const CLASS: &str = "/sys/class/infiniband_verbs";

/// What is known of a rail's device.
#[derive(Default)]
pub struct Presence {
    /// Its entry and that one's inode; `None`: nothing can be known of it.
    entry: Option<(PathBuf, u64)>,
    gone: AtomicBool,
    told: AtomicBool,
    /// Objects of queue pairs may be on it, which have to go before the context does. Who sets it looks at `closed` after that, and who closes looks at it
    /// after that: one of the two sees the other.
    is_standby: AtomicBool,
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

    /// From here on objects of queue pairs may be on it. `false`: it is closed.
    pub fn engage(&self) -> bool {
        self.is_standby.store(true, Ordering::Relaxed);
        self.keep_open().is_some()
    }

    /// Whether there may be any.
    pub fn is_standby(&self) -> bool {
        self.is_standby.load(Ordering::Relaxed)
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
    rail::by_id(id).into_iter().for_each(parting::begin);
}

/// Closes it for whoever comes from here on. Who uses the context is waited for, and may look for a rail: so the table is free meanwhile. `false`: it was
/// closed before, or receives are on it.
pub fn shut(rail: &Rail) -> bool {
    !srq::is_on(rail.id) && rail.presence.close()
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

    /// Who registers on a standby may take seconds, and a probe of a device that dies as long as that does.
    #[test]
    fn who_lets_go_of_a_device_waits_for_nobody_that_uses_it() {
        let presence = Presence::default();
        assert!(presence.close());
        let rail = rail::tests::entered(crate::hot::tests::OPS, presence);
        let used = rail.presence.closed.read();
        let (let_go_of, lets_go) = std::sync::mpsc::channel();
        let id = rail.id;
        std::thread::spawn(move || {
            let_go(id);
            let_go_of.send(())
        });
        assert_eq!(lets_go.recv_timeout(std::time::Duration::from_secs(10)), Ok(()));
        // Somebody else waits for who uses it.
        while rail.presence.closed.try_read().is_ok() {
            std::thread::yield_now();
        }
        drop(used);
    }

    /// Who registers on a standby has its context open, and looks for the rail to name it where that fails, as it does when the device goes.
    #[test]
    fn while_a_context_that_is_used_is_waited_for_rails_are_found() {
        let presence = Presence::default();
        // So that nothing is there to be destroyed.
        assert!(presence.close());
        let rail = rail::tests::entered(crate::hot::tests::OPS, presence);
        let (found, finds) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let used = rail.presence.closed.read();
            scope.spawn(|| let_go(rail.id));
            // Nobody else gets in once somebody waits to close it.
            while rail.presence.closed.try_read().is_ok() {
                std::thread::yield_now();
            }
            let id = rail.id;
            scope.spawn(move || found.send(rail::by_id(id).is_some()));
            let is_found = finds.recv_timeout(std::time::Duration::from_secs(10));
            drop(used);
            assert_eq!(is_found, Ok(true));
        });
    }
}
