//! The words, places and pauses of what threads share on the post and poll path: the machine's, or in a build with `--cfg loom` loom's (see
//! `shift_control::atomics`), under which `hot/models.rs` runs.

pub use shift_control::atomics::*;

#[cfg(not(loom))]
mod machine {
    use core::cell::UnsafeCell;

    /// What one thread at a time visits, by a rule that its owner keeps.
    pub struct Place<T>(UnsafeCell<T>);

    /// For as long as it lives somebody visits.
    pub struct Visit<T>(core::marker::PhantomData<*mut T>);

    impl<T> Place<T> {
        /// Holds a value.
        pub const fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        /// Begins.
        #[inline]
        pub fn visit(&self) -> Visit<T> {
            Visit(core::marker::PhantomData)
        }

        /// Where the value is, for who visits.
        #[inline]
        pub fn at(&self, _visit: &Visit<T>) -> *mut T {
            self.0.get()
        }
    }

    impl<T> Visit<T> {
        /// Ends before it is dropped.
        #[inline]
        pub fn end(&mut self) {}
    }

    /// Waits for another thread.
    #[inline]
    pub fn pause() {
        core::hint::spin_loop();
    }

    /// Lets other threads run.
    pub fn give_way() {
        std::thread::yield_now();
    }

    /// Whether this thread yields to none of lower priority.
    pub fn is_real_time() -> bool {
        // SAFETY: of the calling thread; it has no other condition.
        let policy = unsafe { libc::sched_getscheduler(0) };
        matches!(policy & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO | libc::SCHED_RR)
    }

    /// What a thread that waits sleeps at once, in nanoseconds.
    const DOZE_NS: i64 = 50_000;

    /// Lets every other thread run. No place of cancellation: that would unwind the application's thread through frames that it must not leave so.
    #[cfg(not(miri))]
    pub fn doze() {
        let errno = crate::wait::errno();
        let time = libc::timespec { tv_sec: 0, tv_nsec: DOZE_NS };
        // SAFETY: the time is readable, and none is asked for that is left.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, core::ptr::null_mut::<libc::timespec>()) };
        crate::wait::set_errno(errno);
    }

    /// Miri knows no such call.
    #[cfg(miri)]
    pub fn doze() {
        std::thread::sleep(core::time::Duration::from_nanos(DOZE_NS.unsigned_abs()));
    }

    /// Says which thread this is; no thread is 0.
    #[inline]
    pub fn this_thread() -> usize {
        // SAFETY: a function without conditions. No thread is 0.
        unsafe { libc::pthread_self() as usize }
    }
}

#[cfg(loom)]
mod modelled {
    /// What one thread at a time visits: loom fails where two do, or one that does not know what the one before did.
    pub struct Place<T>(loom::cell::UnsafeCell<T>);

    // SAFETY: loom fails where two threads are inside.
    unsafe impl<T: Send> Sync for Place<T> {}

    /// For as long as it lives somebody visits.
    pub struct Visit<T>(Option<loom::cell::MutPtr<T>>);

    impl<T> Place<T> {
        pub fn new(value: T) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        pub fn visit(&self) -> Visit<T> {
            Visit(Some(self.0.get_mut()))
        }

        pub fn at(&self, visit: &Visit<T>) -> *mut T {
            // SAFETY: only the address is taken; who follows it says why it may.
            visit.0.as_ref().map_or(core::ptr::null_mut(), |visit| core::ptr::from_mut(unsafe { visit.deref() }))
        }
    }

    impl<T> Visit<T> {
        pub fn end(&mut self) {
            self.0 = None;
        }
    }

    pub fn pause() {
        loom::thread::yield_now();
    }

    pub fn give_way() {
        loom::thread::yield_now();
    }

    pub fn doze() {
        loom::thread::yield_now();
    }

    pub fn is_real_time() -> bool {
        false
    }

    /// All threads of a model are one of the machine's.
    pub fn this_thread() -> usize {
        let mut words = format!("{:?}", loom::thread::current().id());
        words.retain(|digit| digit.is_ascii_digit());
        1 + words.parse::<usize>().unwrap_or(0)
    }
}

#[cfg(not(loom))]
pub use machine::*;
#[cfg(loom)]
pub use modelled::*;
