//! Forked children: one that inherits all descriptors of the program and does nothing with them, one that becomes another
//! program, and one that does the program's work in its place.

use std::ffi::CStr;
use std::io;
use std::ptr::null;

#[link(name = "ibverbs")]
extern "C" {
    fn ibv_fork_init() -> std::ffi::c_int;
}

/// The program that a child becomes: any will do.
const OTHER: &CStr = c"/bin/true";

/// Asks libibverbs to keep registered memory from children.
///
/// # Errors
/// It cannot.
pub fn fork_init() -> io::Result<()> {
    // SAFETY: no precondition; called before anything else of libibverbs.
    match unsafe { ibv_fork_init() } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Forks: in the child it returns `None`, in the parent the exit status of the child once that has ended.
///
/// # Errors
/// fork fails, or the child was killed.
pub fn work_in_child() -> io::Result<Option<u8>> {
    // SAFETY: no thread runs yet, so the child may do whatever it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => wait_for(child).map(Some),
    }
}

/// Forks a child that becomes another program, and waits for that to end.
///
/// # Errors
/// fork fails, or the other program does.
pub fn fork_and_exec() -> io::Result<()> {
    let arguments = [OTHER.as_ptr(), null()];
    // SAFETY: the child calls nothing but async-signal-safe functions.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: the path and the arguments are C strings, the list of them ends with NULL.
            unsafe { libc::execv(OTHER.as_ptr(), arguments.as_ptr()) };
            // SAFETY: ends this child without any handler of the parent's.
            unsafe { libc::_exit(127) }
        }
        child => match wait_for(child)? {
            0 => Ok(()),
            status => Err(io::Error::other(format!("the child ended with {status}"))),
        },
    }
}

fn wait_for(child: i32) -> io::Result<u8> {
    let mut status = 0;
    // SAFETY: the status is writable.
    while unsafe { libc::waitpid(child, &mut status, 0) } != child {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFEXITED(status) {
        Ok(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    } else {
        Err(io::Error::other(format!("the child was ended by signal {}", libc::WTERMSIG(status))))
    }
}

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
