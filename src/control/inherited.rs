//! What a forked child inherits of the agent's sockets, and must not keep: an open copy of a dead parent's socket makes the parent look
//! silent to its peers, and keeps the well-known port from the next holder.
//!
//! Owns the list of descriptors and nothing else. The child closes them and never shuts a connection down: that would end the
//! parent's too. exec closes them by itself (CLOEXEC). What must hold: a number leaves the list before its descriptor is closed, so
//! that a child never closes something else that got the same number. A fork between the birth of a socket and its entry here leaves
//! the child one copy; the heartbeat then finds the dead parent.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use crate::admin::MAX_SESSIONS;
use crate::links::MAX_CONNECTIONS;

/// All connections, and the listeners: the process's own port, the well-known one, the local sockets; and the kernel's word of interfaces.
const MAX_DESCRIPTORS: usize = MAX_CONNECTIONS + MAX_SESSIONS + 8;
/// No descriptor.
const FREE: RawFd = -1;

/// Each slot has one writer at a time, its [`Own`]; the only reader is the one thread of a forked child, which has a copy of all this
/// memory as it was at the fork, so relaxed accesses do.
static DESCRIPTORS: [AtomicI32; MAX_DESCRIPTORS] = [const { AtomicI32::new(FREE) }; MAX_DESCRIPTORS];

/// A socket that a forked child does not keep.
#[derive(Debug)]
pub struct Own<T> {
    // Dropped in this order.
    _slot: Slot,
    socket: T,
}

#[derive(Debug)]
struct Slot(Option<&'static AtomicI32>);

impl<T: AsRawFd> Own<T> {
    /// Enters the socket into the list.
    pub fn new(socket: T) -> Self {
        let fd = socket.as_raw_fd();
        let take = |slot: &&AtomicI32| slot.compare_exchange(FREE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        Self { _slot: Slot(DESCRIPTORS.iter().find(take)), socket }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(FREE, Ordering::Relaxed);
        }
    }
}

impl<T> Deref for Own<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.socket
    }
}

impl<T> DerefMut for Own<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.socket
    }
}

/// The descriptors that a child forked now would have to close.
pub fn descriptors() -> impl Iterator<Item = RawFd> {
    DESCRIPTORS.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|fd| *fd != FREE)
}

/// Closes this child's copies. Only for the child of a fork, where no agent runs; async-signal-safe.
pub fn close_all() {
    for slot in &DESCRIPTORS {
        let fd = slot.swap(FREE, Ordering::Relaxed);
        if fd != FREE {
            // Nothing can be done about a failure, and nobody told.
            let _ = nix::unistd::close(fd);
        }
    }
}
