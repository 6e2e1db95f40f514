//! Which object of the application has which shadow.
//!
//! Owns: [`PtrTable`], from a pointer that libibverbs gave out to the shadow of it, and [`Lives`], from the number in a
//! tag to the QP. Both are read on every post and poll without a lock. Refuses to own: the shadows' lifetime rules beyond this one:
//! a reader that got a shadow got a counted reference or holds the lock named at the method.

use crate::atomics::{AtomicPtr, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Slots of a table: 64 Ki objects of one kind, most jobs have a few hundred. Beyond it an object is passed through unprotected.
const SLOTS: usize = if cfg!(loom) { 4 } else { 1 << 16 };
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
/// only inside of the destroying call. That is what keeps the returned reference valid. A QP that is reset gets another shadow while others may post:
/// the one before is kept for [`GRACE`] by [`retire`].
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
                // object, which by the rules of verbs does not run beside a call that uses it, or later (see the type's text).
                // Acquire pairs with the swap of an `insert` that replaces it.
                return unsafe { slot.shadow.load(Ordering::Acquire).as_ref() };
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

    /// Remembers a shadow, in the place of one that the object had before (who may still be read is the caller's to [`retire`]). `false`: the table
    /// is full around there, the object stays without one.
    pub fn insert<K>(&self, object: *const K, shadow: Arc<T>) -> bool {
        let _writer = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.slots.get_or_init(|| {
            (0..SLOTS)
                .map(|_| Slot { key: AtomicUsize::new(0), shadow: AtomicPtr::new(core::ptr::null_mut()) })
                .collect()
        });
        let key = object as usize;
        let holds = |slot: &&Slot<T>, keys: [usize; 2]| keys.contains(&slot.key.load(Ordering::Relaxed));
        if let Some(slot) = self.probe(key).find(|slot| holds(slot, [key; 2])) {
            let before = slot.shadow.swap(Arc::into_raw(shadow).cast_mut(), Ordering::AcqRel);
            // SAFETY: an earlier `insert` stored it from `Arc::into_raw`; the swap makes this the only place that takes it back.
            drop((!before.is_null()).then(|| unsafe { Arc::from_raw(before) }));
            return true;
        }
        let Some(slot) = self.probe(key).find(|slot| holds(slot, [0, TOMBSTONE])) else { return false };
        slot.shadow.store(Arc::into_raw(shadow).cast_mut(), Ordering::Relaxed);
        slot.key.store(key, Ordering::Release);
        true
    }

    /// Forgets this shadow of `object`, which is gone: its address may be another one's by now, whose shadow stays.
    pub fn remove_this<K>(&self, object: *const K, shadow: &Arc<T>) {
        let _writer = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.get(object).is_some_and(|found| core::ptr::eq(found, &**shadow)) {
            drop(self.take(object));
        }
    }

    /// Forgets the shadow of `object` and gives it back.
    pub fn remove<K>(&self, object: *const K) -> Option<Arc<T>> {
        let _writer = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.take(object)
    }

    /// By who holds `writers`.
    fn take<K>(&self, object: *const K) -> Option<Arc<T>> {
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

/// Shadows that have something in common, as long as they live. One that is entered twice is listed twice.
pub struct Roll<T>(Mutex<Vec<Weak<T>>>);

impl<T> Roll<T> {
    /// Nobody yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Enters one.
    pub fn enter(&self, shadow: &Arc<T>) {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|other| other.strong_count() != 0);
        all.push(Arc::downgrade(shadow));
    }

    /// All that live.
    pub fn all(&self) -> Vec<Arc<T>> {
        let all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

/// How long what is out of its place is kept for who found it there: longer than any thread stands between two of its own instructions.
pub const GRACE: Duration = Duration::from_secs(10);

/// Shadows that were replaced while somebody may have read them, with the times.
static RETIRED: Mutex<VecDeque<(Instant, Arc<dyn Send + Sync>)>> = Mutex::new(VecDeque::new());

/// Keeps a shadow that is being replaced until nobody can hold a reference to it any more.
pub fn retire<T: Send + Sync + 'static>(shadow: Arc<T>) {
    let now = Instant::now();
    let mut retired = RETIRED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let over = retired.partition_point(|(since, _)| now.duration_since(*since) > GRACE);
    let gone: Vec<_> = retired.drain(..over).collect();
    retired.push_back((now, shadow));
    drop(retired);
    drop(gone);
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

    #[test]
    fn an_address_that_is_used_again_has_one_shadow_the_newest() {
        let table = PtrTable::<u32>::new();
        let object = Box::new(0_u64);
        let at = &raw const *object;
        let [first, second] = [1, 2].map(Arc::new);
        assert!(table.insert(at, Arc::clone(&first)) && table.insert(at, Arc::clone(&second)));
        assert_eq!((table.get(at), Arc::strong_count(&first)), (Some(&2), 1));
        table.remove_this(at, &first);
        assert_eq!(table.get(at), Some(&2), "it is another object's by now");
        table.remove_this(at, &second);
        assert_eq!((table.get(at), Arc::strong_count(&second)), (None, 1));
        retire(Arc::clone(&second));
        retire(first);
        assert_eq!(Arc::strong_count(&second), 2, "kept for those who may be reading it");
    }
}
