//! A second thread that polls the same completion queue, and the order that two pollers together lose.
//!
//! Each of two pollers gets completions in order, but nobody can tell what one got before the other. The counters in the
//! names of the work requests can: [`Order`] gives completions out by them. What comes twice goes out at once, and is
//! found out behind it; what never comes holds up all behind it, until the run's deadline.

use crate::predict::{Queue, WrName};
use crate::verbs::Poller;
use shift_abi::ibv_wc;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The second poller.
#[derive(Debug)]
pub struct Second {
    stop: Arc<AtomicBool>,
    got: Receiver<Result<ibv_wc, String>>,
    thread: Option<JoinHandle<()>>,
    order: Order,
}

impl Second {
    /// One that polls from now on.
    #[must_use]
    pub fn start(mut poller: Poller, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, got) = channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut wcs = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let polled = poller.poll(&mut wcs).map_err(|e| e.to_string());
                let failed = polled.is_err();
                let all = wcs.drain(..).map(Ok).chain(polled.err().map(Err));
                if all.map(|each| send.send(each)).any(|sent| sent.is_err()) || failed {
                    return;
                }
                std::thread::yield_now();
            }
        });
        Self { stop, got, thread: Some(thread), order: Order { seed, queues: HashMap::new() } }
    }

    /// Of what both pollers got, what is due.
    pub fn sort(&mut self, first: Vec<ibv_wc>) -> Result<Vec<ibv_wc>, String> {
        let mut due = Vec::new();
        for wc in self.got.try_iter().collect::<Vec<_>>() {
            self.order.put(wc?, &mut due);
        }
        for wc in first {
            self.order.put(wc, &mut due);
        }
        Ok(due)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It returns after a poll at most; that it panicked was told by itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The completions of each queue, by the counters of their work requests.
#[derive(Debug, Default)]
struct Order {
    seed: u64,
    queues: HashMap<(bool, u16), Line>,
}

/// One queue: the counter that is due, and what came too early.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    early: BTreeMap<u64, ibv_wc>,
}

impl Order {
    fn put(&mut self, wc: ibv_wc, due: &mut Vec<ibv_wc>) {
        let name = WrName::from_wr_id(wc.wr_id, self.seed);
        let line = self.queues.entry((name.queue == Queue::Send, name.qp)).or_default();
        if name.counter < line.next || line.early.contains_key(&name.counter) {
            due.push(wc);
            return;
        }
        line.early.insert(name.counter, wc);
        while let Some(wc) = line.early.remove(&line.next) {
            line.next += 1;
            due.push(wc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(counters: &[u64]) -> Vec<u64> {
        let mut order = Order { seed: 9, ..Order::default() };
        let mut due = Vec::new();
        for &counter in counters {
            let wr_id = WrName { queue: Queue::Send, qp: 3, counter }.wr_id(9);
            order.put(ibv_wc { wr_id, ..ibv_wc::zeroed() }, &mut due);
        }
        due.iter().map(|wc| WrName::from_wr_id(wc.wr_id, 9).counter).collect()
    }

    #[test]
    fn what_two_pollers_got_goes_out_in_posting_order() {
        assert_eq!(sorted(&[0, 3, 4, 1, 2, 5]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_comes_twice_goes_out_twice() {
        assert_eq!(sorted(&[0, 0, 2, 2, 1]), [0, 0, 2, 1, 2]);
    }

    #[test]
    fn what_never_comes_holds_up_what_is_behind_it() {
        assert_eq!(sorted(&[0, 2, 3]), [0]);
    }
}
