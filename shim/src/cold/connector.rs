//! Connects probe QPs where nobody waits.
//!
//! On the way to RTR the kernel looks up the Ethernet address of the other end, and waits a second for it if nobody answers (*S*: `ib_resolve_eth_dmac`;
//! *M*: 1.00 to 1.04 s each time on a rail whose cable is out). A path that is dead is tried again every second: the agent would do nothing else.
//!
//! Some threads, started by the first QPs and gone when nothing is to be connected.

use crate::cold::device::as_agent;
use crate::cold::probe::Objects;
use crate::cold::rail::Rail;
use crate::cold::twin;
use shift_abi::*;
use shift_control::agent::spawn;
use shift_control::datapath::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Threads at once: as many paths may be dead without keeping others from being connected at once.
const MOST_THREADS: usize = 8;
/// Of [`Connection`]: under way. What is not negative is the errno of the latest try.
const UNDER_WAY: i32 = -1;

/// How far a QP is connected. Written by the agent when it begins, then by the thread that connects; Release there pairs with Acquire of the agent,
/// which uses the QP afterwards.
#[derive(Default)]
pub struct Connection(AtomicI32);

impl Connection {
    /// What became of the latest try; `None`: it is under way.
    pub fn outcome(&self) -> Option<Result<(), Errno>> {
        match self.0.load(Ordering::Acquire) {
            UNDER_WAY => None,
            0 => Some(Ok(())),
            errno => Some(Err(Errno(errno))),
        }
    }

    fn note(&self, errno: i32) {
        self.0.store(errno, Ordering::Release);
    }
}

struct Job {
    rail: Arc<Rail>,
    /// What is not needed any more is not connected.
    objects: Weak<Objects>,
    attr: ibv_qp_attr,
}

struct List {
    jobs: VecDeque<Job>,
    threads: usize,
}

static LIST: Mutex<List> = Mutex::new(List { jobs: VecDeque::new(), threads: 0 });

/// Begins to connect, by way of RESET; [`Connection::outcome`] tells the end. EBUSY: that is under way already.
pub fn begin(rail: &Arc<Rail>, objects: &Arc<Objects>, attr: ibv_qp_attr) -> Result<(), Errno> {
    if objects.connection.outcome().is_none() {
        return Err(Errno(libc::EBUSY));
    }
    objects.connection.note(UNDER_WAY);
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.jobs.push_back(Job { rail: Arc::clone(rail), objects: Arc::downgrade(objects), attr });
    if list.threads < MOST_THREADS {
        list.threads += usize::from(spawn("shift-connector", run).is_ok());
    }
    if list.threads == 0 {
        // No thread can be had.
        let own = list.jobs.pop_back();
        drop(list);
        own.into_iter().for_each(connect);
    }
    Ok(())
}

fn run() {
    while let Some(job) = next() {
        as_agent(|| connect(job));
    }
}

/// The oldest one; without one the thread is over.
fn next() -> Option<Job> {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    let job = list.jobs.pop_front();
    if job.is_none() {
        list.threads -= 1;
    }
    job
}

fn connect(mut job: Job) {
    // Held until the objects are let go of: they are destroyed before the context is closed.
    let Some(_open) = job.rail.presence.keep_open() else { return };
    let Some(objects) = job.objects.upgrade() else { return };
    let connected = twin::to_state_by_steps(objects.qp, &mut job.attr, IBV_QPS_RTS);
    objects.connection.note(connected.map_or_else(|Errno(errno)| errno.max(1), |()| 0));
}
