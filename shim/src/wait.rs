//! Waiting for a descriptor on the application's own thread.
//!
//! Owns: the only calls of this library in which an application's thread sleeps for an event. It may be cancelled there (rping cancels its event thread), and then
//! the C library unwinds the stack through these frames: so from the exported function down to [`poll`] nothing is to be dropped and nothing
//! is caught. Around everything else cancellation is put off ([`without_cancellation`]).

use core::ffi::c_int;

extern "C-unwind" {
    fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int;
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// `PTHREAD_CANCEL_DISABLE` of pthread.h.
const CANCEL_DISABLE: c_int = 1;
/// No descriptor: `poll` looks past it.
pub const NONE: c_int = -1;

/// Sleeps until one of both descriptors is readable or broken, or for so many milliseconds (-1: for ever). `false`: a signal came, and the call that
/// waits ends with EINTR.
pub fn until_readable(first: c_int, second: c_int, patience: c_int) -> bool {
    let of = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [of(first), of(second)];
    loop {
        // SAFETY: the array is writable and as long as is said.
        let count = unsafe { poll(fds.as_mut_ptr(), 2, patience) };
        if count >= 0 || errno() != libc::EINTR {
            return true;
        }
        if !signals_restart() {
            set_errno(libc::EINTR);
            return false;
        }
    }
}

/// Whether every handler of this process restarts what it interrupted: then the read that the real function sleeps in would go on, which `poll` never does.
fn signals_restart() -> bool {
    (1..=libc::SIGRTMAX()).all(|signal| {
        let mut action = core::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the place for the present action is writable; none is set.
        if unsafe { libc::sigaction(signal, core::ptr::null(), action.as_mut_ptr()) } != 0 {
            return true;
        }
        // SAFETY: all zeros are a valid action, and the call above wrote one.
        let action = unsafe { action.assume_init() };
        matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) || action.sa_flags & libc::SA_RESTART != 0
    })
}

/// Runs what a cancellation must not cut off: it is carried out at the next place where this thread sleeps.
pub fn without_cancellation<R>(run: impl FnOnce() -> R) -> R {
    let mut before = 0;
    // SAFETY: the place for the old state is writable.
    unsafe { pthread_setcancelstate(CANCEL_DISABLE, &mut before) };
    let result = run();
    // SAFETY: the state is the one that the call above gave; a place for the present one is required by older C libraries.
    unsafe { pthread_setcancelstate(before, &mut before) };
    result
}

/// Whether the application made this descriptor non-blocking.
pub fn is_nonblocking(fd: c_int) -> bool {
    // SAFETY: fcntl on a number; of a closed one it says so.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// Makes a descriptor of this library's own non-blocking. Returns errno.
pub fn set_nonblocking(fd: c_int) -> c_int {
    // SAFETY: fcntl on a descriptor of our own.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return errno();
    }
    0
}

/// This thread's errno.
pub fn errno() -> c_int {
    // SAFETY: it has no precondition.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the C library gives a valid place for each thread.
    unsafe { place.read() }
}

/// Sets it.
pub fn set_errno(value: c_int) {
    // SAFETY: it has no precondition.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { place.write(value) };
}
