//! Whether the agent's loop was woken and has not looked yet: so a thread that leaves a message makes a system call only where nobody did before it.

use crate::atomics::{AtomicBool, Ordering};

/// Set by who left a message, taken back by the loop before it looks. Both exchange (AcqRel): a loop that takes a nudge sees every message that was left
/// before it, and who finds one set knows that the loop has yet to look. A plain store of the loop's would see nothing of the message whose nudge it
/// overwrites.
#[derive(Debug)]
pub struct Nudge(AtomicBool);

impl Default for Nudge {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Nudge {
    /// For who left a message: the loop has to be woken.
    pub fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// For the loop, before it looks.
    pub fn take(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

#[cfg(all(test, loom))]
#[allow(clippy::unwrap_used, reason = "a model that fails should say where")]
mod tests {
    use super::*;
    use crate::atomics::{holds, AtomicUsize};
    use loom::sync::{Arc, Condvar, Mutex};

    /// The channel, of which no more is taken for granted than that who sees a message sees all of it; and the kernel's descriptor.
    #[derive(Default)]
    struct Agent {
        nudge: Nudge,
        messages: AtomicUsize,
        is_woken: Mutex<bool>,
        waker: Condvar,
    }

    #[test]
    fn no_message_is_left_lying_while_the_loop_sleeps() {
        holds(3, &["self.0.swap(true", "self.0.swap(false"], || {
            let agent = Arc::new(Agent::default());
            // Woken for an earlier message, and about to look.
            assert!(agent.nudge.is_first());
            let other = Arc::clone(&agent);
            let sender = loom::thread::spawn(move || {
                other.messages.fetch_add(1, Ordering::Relaxed);
                if other.nudge.is_first() {
                    *other.is_woken.lock().unwrap() = true;
                    other.waker.notify_one();
                }
            });
            agent.nudge.take();
            if agent.messages.load(Ordering::Relaxed) == 0 {
                let mut is_woken = agent.is_woken.lock().unwrap();
                while !*is_woken {
                    is_woken = agent.waker.wait(is_woken).unwrap();
                }
                drop(is_woken);
                agent.nudge.take();
                assert_eq!(agent.messages.load(Ordering::Relaxed), 1);
            }
            sender.join().unwrap();
        });
    }
}
