//! Destroys this library's own objects, and does what else cannot be done where it is found to be due, where nobody waits: after a link went down, destroying a QP of soft-RoCE may take a minute.
//!
//! One thread at a time, started by the first object and gone when its list is empty; objects go in the order in which they came, so a
//! QP is gone before its CQ and its PD.

use crate::cold::device::as_agent;
use crate::cold::{replay, srq};
use crate::lives;
use crate::real;
use crate::shadow::{QpShadow, Raw};
use shift_abi::*;
use shift_control::agent::spawn;
use shift_proto::id::Site;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

enum Corpse {
    Qp(Raw<ibv_qp>),
    /// With what its requests may still read: the copies of the shadow.
    Twin(Raw<ibv_qp>, u8, Arc<QpShadow>),
    Cq(Raw<ibv_cq>),
    Channel(Raw<ibv_comp_channel>),
    Mr(Raw<ibv_mr>),
    Srq(Raw<ibv_srq>),
    Pd(Raw<ibv_pd>),
    Context(Raw<ibv_context>),
    /// A queue pair that gets an error.
    Broken(u32),
}

struct List {
    corpses: VecDeque<Corpse>,
    running: bool,
}

static LIST: Mutex<List> = Mutex::new(List { corpses: VecDeque::new(), running: false });

/// Destroys a QP of this library's own.
pub fn destroy_qp(qp: Raw<ibv_qp>) {
    add(Corpse::Qp(qp));
}

/// Destroys the twin in that slot, and lets go of its shadow after that.
pub fn destroy_twin(qp: Raw<ibv_qp>, slot: u8, shadow: Arc<QpShadow>) {
    add(Corpse::Twin(qp, slot, shadow));
}

/// Destroys a CQ of this library's own.
pub fn destroy_cq(cq: Raw<ibv_cq>) {
    add(Corpse::Cq(cq));
}

/// Destroys a completion channel of this library's own.
pub fn destroy_channel(channel: Raw<ibv_comp_channel>) {
    add(Corpse::Channel(channel));
}

/// Destroys an SRQ of this library's own.
pub fn destroy_srq(srq: Raw<ibv_srq>) {
    add(Corpse::Srq(srq));
}

/// Withdraws a registration of this library's own.
pub fn dereg_mr(mr: Raw<ibv_mr>) {
    add(Corpse::Mr(mr));
}

/// Frees a PD of this library's own.
pub fn dealloc_pd(pd: Raw<ibv_pd>) {
    add(Corpse::Pd(pd));
}

/// Closes a context of this library's own, on which nothing is left.
pub fn close(context: Raw<ibv_context>) {
    add(Corpse::Context(context));
}

/// Gives a queue pair its error, where nothing is locked.
pub fn surface(life: u32) {
    add(Corpse::Broken(life));
}

fn add(corpse: Corpse) {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.corpses.push_back(corpse);
    if !list.running {
        // Where no thread can be had the list grows until one can, or until the kernel takes all at exit.
        list.running = spawn("shift-reaper", run).is_ok();
    }
}

fn run() {
    loop {
        let corpse = {
            let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(corpse) = list.corpses.pop_front() else {
                list.running = false;
                return;
            };
            corpse
        };
        as_agent(|| bury(&corpse));
    }
}

fn bury(corpse: &Corpse) {
    let errno = match corpse {
        // SAFETY: the object is this library's own, was handed over once and is used by nobody else any more.
        Corpse::Qp(qp) => unsafe { real::ibv_destroy_qp(qp.0) },
        Corpse::Twin(qp, slot, shadow) => {
            log::trace!("destroying the twin of QP 0x{:06x}", shadow.qpn);
            // SAFETY: as above.
            let errno = unsafe { real::ibv_destroy_qp(qp.0) };
            if errno == 0 {
                srq::part(shadow, Some(Site::of_slot(*slot)));
            }
            errno
        }
        // SAFETY: as above.
        Corpse::Cq(cq) => unsafe { real::ibv_destroy_cq(cq.0) },
        // SAFETY: as above.
        Corpse::Channel(channel) => unsafe { real::ibv_destroy_comp_channel(channel.0) },
        // SAFETY: as above.
        Corpse::Mr(mr) => unsafe { real::ibv_dereg_mr(mr.0) },
        // SAFETY: as above.
        Corpse::Srq(srq) => unsafe { real::ibv_destroy_srq(srq.0) },
        // SAFETY: as above.
        Corpse::Pd(pd) => unsafe { real::ibv_dealloc_pd(pd.0) },
        // SAFETY: as above.
        Corpse::Context(context) => unsafe { real::ibv_close_device(context.0) },
        Corpse::Broken(life) => {
            lives::arc(*life).into_iter().for_each(|qp| replay::surface_and_say(&qp, None));
            0
        }
    };
    if errno != 0 {
        log::debug!("an own object could not be destroyed (errno {errno}); the kernel frees it at exit");
    }
}
