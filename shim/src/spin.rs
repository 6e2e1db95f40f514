//! The one lock of the hot path: a word that is exchanged once to enter and stored once to leave.
//!
//! Owns: [`SpinCell`], [`HeldCell`] for what C enters and leaves in two calls, and what a [`Waiter`] does. Sections are short and never sleep, so a waiter spins, and yields its processor after a while
//! in case the holder was preempted (one-CPU guests and containers). Refuses to own: a queue. But a program that polls without a pause is inside nearly all the time, and is
//! preempted there nearly every time: on the same processor nobody else would ever find the cell free. So who has waited long says so, and who leaves lets it run.
//! A real-time thread yields to none of lower priority, and the agent is one, with which every poster and poller shares a cell: so it sleeps in the end.

use crate::atomics::{
    doze, give_way, is_real_time, leave, pause, this_thread, AtomicU32, AtomicUsize, Ordering, Place, Visit,
};
use core::ops::{Deref, DerefMut};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Left out only for the control of ci/sanitizers.
const ENTER: Ordering = if cfg!(weakened) { Ordering::Relaxed } else { Ordering::Acquire };

/// Spins before the processor is yielded: about a microsecond, longer than any section takes on a running thread.
const SPINS_BEFORE_YIELD: u32 = 64;

/// Turns before a real-time thread sleeps: some hundred microseconds.
const TURNS_BEFORE_SLEEP: u32 = 64 * SPINS_BEFORE_YIELD;

/// One thread of `SpinCell::yielding`: it has yielded its processor.
const YIELDS: u32 = 1;
/// The same: it has slept.
const SLEEPS: u32 = 1 << 16;

/// One who waits in a loop for another thread, whatever the priorities of both and however few processors there are.
#[derive(Default)]
pub struct Waiter {
    turns: u32,
    is_real_time: Option<bool>,
}

/// What it does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Spin,
    Yield,
    Sleep,
}

impl Waiter {
    /// Passes some time.
    #[cold]
    pub fn turn(&mut self) {
        self.next().pass();
    }

    fn next(&mut self) -> Turn {
        self.turns = self.turns.saturating_add(1);
        if self.turns > TURNS_BEFORE_SLEEP && *self.is_real_time.get_or_insert_with(is_real_time) {
            Turn::Sleep
        } else if self.turns.is_multiple_of(SPINS_BEFORE_YIELD) {
            Turn::Yield
        } else {
            Turn::Spin
        }
    }
}

impl Turn {
    fn pass(self) {
        match self {
            Self::Spin => pause(),
            Self::Yield => give_way(),
            Self::Sleep => doze(),
        }
    }
}

/// A value that one thread at a time may touch.
///
/// `word` is FREE or TAKEN. The Acquire exchange of [`SpinCell::lock`] pairs with the Release store of the guard's drop.
pub struct SpinCell<T> {
    word: AtomicU32,
    /// Threads that have yielded their processor, or slept, and are still not inside. Relaxed: it orders nothing, and who misses it once sees it the next time.
    yielding: AtomicU32,
    value: Place<T>,
}

// SAFETY: the word lets one thread at a time reach the value, so sharing the cell only ever moves access between threads.
unsafe impl<T: Send> Sync for SpinCell<T> {}

impl<T> SpinCell<T> {
    /// A free cell.
    pub fn new(value: T) -> Self {
        Self { word: AtomicU32::new(FREE), yielding: AtomicU32::new(0), value: Place::new(value) }
    }

    /// Enters, spinning while another thread is inside.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        if self.word.swap(TAKEN, ENTER) != FREE {
            self.wait(Waiter::default());
        }
        self.inside()
    }

    /// Enters if nobody is inside.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Not `then_some`: a guard that is made and dropped at once would let everybody in.
        (self.word.swap(TAKEN, ENTER) == FREE).then(|| self.inside())
    }

    /// For who holds the word.
    #[inline]
    fn inside(&self) -> SpinGuard<'_, T> {
        SpinGuard { cell: self, visit: self.value.visit() }
    }

    #[cold]
    fn wait(&self, mut waiter: Waiter) {
        let mut told = 0;
        loop {
            // The look spares the other processors' caches and decides nothing; loom may keep giving it what is past.
            let is_free = cfg!(loom) || self.word.load(Ordering::Relaxed) == FREE;
            if is_free && self.word.swap(TAKEN, ENTER) == FREE {
                break;
            }
            let turn = waiter.next();
            let tells = match turn {
                Turn::Spin => 0,
                Turn::Yield => YIELDS,
                Turn::Sleep => SLEEPS,
            };
            if tells > told {
                self.yielding.fetch_add(tells - told, Ordering::Relaxed);
                told = tells;
            }
            turn.pass();
        }
        if told != 0 {
            self.yielding.fetch_sub(told, Ordering::Relaxed);
        }
    }

    /// For who holds the word, which it gives up. Afterwards the cell may be gone.
    #[inline]
    fn leave(&self) {
        let awaited = self.yielding.load(Ordering::Relaxed);
        leave(&self.word, FREE);
        if awaited != 0 {
            let_in(awaited);
        }
    }
}

/// Access to the value; leaves when dropped.
pub struct SpinGuard<'a, T> {
    cell: &'a SpinCell<T>,
    visit: Visit<T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists only while this thread holds the word, so nobody else has a reference.
        unsafe { &*self.cell.value.at(&self.visit) }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes it the only reference derived from this guard.
        unsafe { &mut *self.cell.value.at(&self.visit) }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.visit.end();
        self.cell.leave();
    }
}

/// Lets who has waited long run: it may have no other processor. Who sleeps finds the cell free when it wakes.
#[cold]
fn let_in(awaited: u32) {
    if awaited < SLEEPS {
        give_way();
    } else {
        doze();
    }
}

/// A cell that C enters in one call and leaves in a later one. It knows whose it is, so that a call out of turn finds nothing.
pub struct HeldCell<T> {
    cell: SpinCell<T>,
    /// The thread that is inside, or 0. Relaxed: a thread only ever looks for itself, and nobody else stores that.
    owner: AtomicUsize,
}

impl<T> HeldCell<T> {
    /// A free cell.
    pub fn new(value: T) -> Self {
        Self { cell: SpinCell::new(value), owner: AtomicUsize::new(0) }
    }

    /// Enters, spinning while another thread is inside.
    #[inline]
    pub fn lock(&self) -> HeldGuard<'_, T> {
        self.own(self.cell.lock())
    }

    /// Enters if nobody is inside.
    #[inline]
    pub fn try_lock(&self) -> Option<HeldGuard<'_, T>> {
        Some(self.own(self.cell.try_lock()?))
    }

    fn own<'a>(&'a self, inside: SpinGuard<'a, T>) -> HeldGuard<'a, T> {
        self.owner.store(this_thread(), Ordering::Relaxed);
        HeldGuard { inside, owner: &self.owner }
    }

    /// The guard of this thread, if it is inside already: it entered by an earlier call and stayed.
    #[inline]
    pub fn resume(&self) -> Option<HeldGuard<'_, T>> {
        (self.owner.load(Ordering::Relaxed) == this_thread())
            .then(|| HeldGuard { inside: self.cell.inside(), owner: &self.owner })
    }
}

/// Access to the value; leaves when dropped.
pub struct HeldGuard<'a, T> {
    inside: SpinGuard<'a, T>,
    owner: &'a AtomicUsize,
}

impl<T> HeldGuard<'_, T> {
    /// Stays inside: [`HeldCell::resume`] gets the guard back.
    #[inline]
    pub fn stay(mut self) {
        self.inside.visit.end();
        core::mem::forget(self);
    }
}

impl<T> Deref for HeldGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inside
    }
}

impl<T> DerefMut for HeldGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inside
    }
}

impl<T> Drop for HeldGuard<'_, T> {
    /// The cell is left after this, by the guard inside.
    #[inline]
    fn drop(&mut self) {
        self.owner.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_is_inside() {
        // Miri runs a thousand times slower.
        let turns = if cfg!(miri) { 100 } else { 10_000 };
        let cell = SpinCell::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..turns {
                        let mut value = cell.lock();
                        let seen = *value;
                        *value = seen + 1;
                    }
                });
            }
        });
        assert_eq!(*cell.lock(), 4 * turns);
    }

    /// The calling thread and those that it spawns run on one processor; Miri knows none.
    #[cfg(not(miri))]
    fn stay_on_one_processor() {
        let mut all = core::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: the set is writable and as long as is said; the thread is the calling one.
        assert_eq!(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), all.as_mut_ptr()) }, 0);
        // SAFETY: all zeros are a set, and the call above wrote one.
        let all = unsafe { all.assume_init() };
        // SAFETY: the number is below that of the set's bits.
        let may_run_on = |processor: &usize| unsafe { libc::CPU_ISSET(*processor, &all) };
        let first = (0..libc::CPU_SETSIZE as usize).find(may_run_on).unwrap();
        // SAFETY: all zeros are a set.
        let mut one: libc::cpu_set_t = unsafe { core::mem::zeroed() };
        // SAFETY: as above.
        unsafe { libc::CPU_SET(first, &mut one) };
        // SAFETY: the set is as long as is said; the thread is the calling one.
        assert_eq!(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one) }, 0);
    }

    #[test]
    #[cfg(not(miri))]
    fn who_is_inside_nearly_all_the_time_keeps_nobody_out_on_its_processor() {
        const ENTRIES: usize = 15;
        stay_on_one_processor();
        let (cell, turns, done) = (SpinCell::new(()), AtomicU32::new(0), AtomicU32::new(0));
        let so_far = || turns.load(Ordering::Relaxed);
        let mut missed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) == 0 {
                    let inside = cell.lock();
                    (0..1000).for_each(|_| pause());
                    turns.fetch_add(1, Ordering::Relaxed);
                    drop(inside);
                }
            });
            let missed: Vec<u32> = (0..ENTRIES)
                .map(|_| {
                    let before = so_far();
                    while so_far() < before + 10 {
                        give_way();
                    }
                    let before = so_far();
                    drop(cell.lock());
                    so_far() - before
                })
                .collect();
            done.store(1, Ordering::Relaxed);
            missed
        });
        missed.sort_unstable();
        assert!(missed[ENTRIES / 2] <= 4, "entries of the other one meanwhile: {missed:?}");
    }

    /// How often this thread of the process slept of its own accord; a yield is none.
    #[cfg(not(miri))]
    fn sleeps(thread: u32) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    }

    /// Else the holder never goes on if the waiter is above it and on its processor.
    #[test]
    #[cfg(not(miri))]
    fn a_real_time_thread_that_waits_for_long_sleeps_and_who_leaves_lets_it_in() {
        let cell = SpinCell::new(());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let inside = cell.lock();
            scope.spawn(|| {
                // SAFETY: a call without conditions.
                let thread = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
                assert_eq!(tell.send((thread, sleeps(thread))), Ok(()));
                cell.wait(Waiter { turns: 0, is_real_time: Some(true) });
                drop(cell.inside());
            });
            let (thread, before) = told.recv().unwrap();
            let began = std::time::Instant::now();
            while sleeps(thread) == before && began.elapsed() < std::time::Duration::from_secs(20) {
                give_way();
            }
            let after = sleeps(thread);
            assert!(cell.yielding.load(Ordering::Relaxed) >= SLEEPS);
            // SAFETY: a call without conditions.
            let this = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
            let slept = sleeps(this);
            drop(inside);
            assert!(sleeps(this) > slept, "it gives who sleeps the time to wake");
            assert!(before.is_some() && after > before, "{before:?}, then {after:?}");
        });
        assert_eq!(cell.yielding.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_stays_inside_is_inside_until_it_leaves_by_a_later_call_and_nobody_else_is() {
        let cell = HeldCell::new(1);
        assert!(cell.resume().is_none(), "nobody is inside");
        cell.lock().stay();
        assert!(cell.try_lock().is_none());
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(cell.resume().is_none(), "it is another thread's"));
        });
        let entered = cell.resume().map(|mut inside| {
            *inside = 2;
            inside.stay();
        });
        assert!(entered.is_some(), "this thread stayed inside above");
        drop(cell.resume());
        assert!(cell.resume().is_none(), "it left");
        assert_eq!(cell.try_lock().map(|value| *value), Some(2));
    }

    #[test]
    fn a_taken_cell_refuses_a_second_entry() {
        let cell = SpinCell::new(());
        let inside = cell.lock();
        assert!(cell.try_lock().is_none());
        assert!(cell.try_lock().is_none(), "a refusal leaves it taken");
        drop(inside);
        assert!(cell.try_lock().is_some());
    }
}
