//! Which object of the application has which shadow.
//!
//! Owns: [`PtrTable`], from a pointer that libibverbs gave out to the shadow of it, and [`Lives`], from the number in a
//! tag to the QP. Both are read on every post and poll without a lock. Refuses to own: the shadows' lifetime rules beyond this one:
//! a reader that got a shadow got a counted reference or holds the lock named at the method.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Slots of a table: 64 Ki objects of one kind, most jobs have a few hundred. Beyond it an object is passed through unprotected.
const SLOTS: usize = 1 << 16;
/// How far from its home slot a key may lie: a probe that long touches two cache lines' worth of keys.
const REACH: usize = 32;
/// A slot that was used and is free again. No object lies at address 1.
const TOMBSTONE: usize = 1;

struct Slot<T> {
    /// The object's address, 0 (never used) or TOMBSTONE. Release by `insert`, after `shadow`; pairs with the Acquire of `get`.
    key: AtomicUsize,
    /// From `Arc::into_raw`.
    shadow: AtomicPtr<T>,
}

/// Address of an object -> its shadow.
///
/// The caller of `get` makes a verbs call on the object, so by the rules of verbs nobody destroys the object meanwhile: a shadow is removed
/// only inside of the destroying call. That is what keeps the returned reference valid.
pub struct PtrTable<T> {
    slots: OnceLock<Box<[Slot<T>]>>,
    writers: Mutex<()>,
}

impl<T: Send + Sync> PtrTable<T> {
    /// An empty table; its memory is taken at the first insert.
    pub const fn new() -> Self {
        Self { slots: OnceLock::new(), writers: Mutex::new(()) }
    }

    /// Objects are at least 16 bytes apart and often 4 KiB: fold the high bits in.
    #[inline]
    fn home(key: usize) -> usize {
        (key >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48
    }

    #[inline]
    fn probe(&self, key: usize) -> impl Iterator<Item = &Slot<T>> {
        let home = Self::home(key);
        let slots = self.slots.get().map_or(&[][..], |slots| slots);
        (0..REACH).filter_map(move |step| slots.get((home + step) % SLOTS))
    }

    /// The shadow of `object`, if it has one.
    #[inline]
    pub fn get<K>(&self, object: *const K) -> Option<&T> {
        let key = object as usize;
        for slot in self.probe(key) {
            let found = slot.key.load(Ordering::Acquire);
            if found == key {
                // SAFETY: the pointer came from `Arc::into_raw` and is dropped only inside of the call that destroys the
                // object, which by the rules of verbs does not run beside a call that uses it (see the type's text).
                return unsafe { slot.shadow.load(Ordering::Relaxed).as_ref() };
            }
            if found == 0 {
                return None;
            }
        }
        None
    }

    /// A counted reference to the shadow of `object`.
    pub fn get_arc<K>(&self, object: *const K) -> Option<Arc<T>> {
        let shadow: *const T = self.get(object)?;
        // SAFETY: `get` returned a live pointer from `Arc::into_raw`, so its count is at least one.
        unsafe { Arc::increment_strong_count(shadow) };
        // SAFETY: the count was raised for this reference on the line above.
        Some(unsafe { Arc::from_raw(shadow) })
    }

    /// Remembers a shadow. `false`: the table is full around there, the object stays without one.
    pub fn insert<K>(&self, object: *const K, shadow: Arc<T>) -> bool {
        let _writer = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.slots.get_or_init(|| {
            (0..SLOTS)
                .map(|_| Slot { key: AtomicUsize::new(0), shadow: AtomicPtr::new(core::ptr::null_mut()) })
                .collect()
        });
        let key = object as usize;
        for slot in self.probe(key) {
            let found = slot.key.load(Ordering::Relaxed);
            if found == 0 || found == TOMBSTONE {
                slot.shadow.store(Arc::into_raw(shadow).cast_mut(), Ordering::Relaxed);
                slot.key.store(key, Ordering::Release);
                return true;
            }
        }
        false
    }

    /// Forgets the shadow of `object` and gives it back.
    pub fn remove<K>(&self, object: *const K) -> Option<Arc<T>> {
        let _writer = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = object as usize;
        for slot in self.probe(key) {
            if slot.key.load(Ordering::Relaxed) == key {
                slot.key.store(TOMBSTONE, Ordering::Release);
                let shadow = slot.shadow.swap(core::ptr::null_mut(), Ordering::Relaxed);
                // SAFETY: `insert` stored it from `Arc::into_raw`; the swap makes this the only place that takes it back.
                return (!shadow.is_null()).then(|| unsafe { Arc::from_raw(shadow) });
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is wrong about its own array should panic")]
mod tests {
    use super::*;

    #[test]
    fn a_removed_object_is_not_found_and_its_neighbours_are() {
        let table = PtrTable::<u32>::new();
        let objects: Vec<Box<u64>> = (0..1000).map(Box::new).collect();
        for (value, object) in (0_u32..).zip(&objects) {
            assert!(table.insert(&raw const **object, Arc::new(value)));
        }
        assert_eq!(table.remove(&raw const *objects[500]).as_deref(), Some(&500));
        assert_eq!(table.get(&raw const *objects[500]), None);
        assert_eq!(table.get(&raw const *objects[501]), Some(&501));
        for object in &objects {
            table.remove(&raw const **object);
        }
        assert_eq!(table.get(&raw const *objects[501]), None);
    }
}
