//! A forked child that inherits all descriptors of the program and does nothing with them.

use std::io;

/// Forks it and returns its process id. It is to be killed by whoever asked for it.
///
/// # Errors
/// fork fails.
pub fn fork_idle_child() -> io::Result<i32> {
    // SAFETY: the child calls nothing but async-signal-safe functions.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => idle(),
        child => Ok(child),
    }
}

fn idle() -> ! {
    // Whoever reads the program's output waits for the end of it.
    for descriptor in 0..3 {
        // SAFETY: closes a descriptor of this process; nothing here uses it any more.
        unsafe { libc::close(descriptor) };
    }
    loop {
        // SAFETY: waits for a signal and touches nothing.
        unsafe { libc::pause() };
    }
}
