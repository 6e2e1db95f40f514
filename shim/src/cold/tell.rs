//! What the data path has to say: to the agent as events, to the person as one line per reason.

use crate::cold::reaper;
use crate::process;
use crate::shadow::{QpShadow, Stance};
use core::sync::atomic::Ordering;
use shift_abi::{ibv_wc_status, ibv_wr_opcode, IBV_WR_BIND_MW, IBV_WR_FLUSH, IBV_WR_LOCAL_INV, IBV_WR_SEND_WITH_INV};
use shift_control::datapath::Event;
use shift_control::datapath::{DeviceId, QpLife, Unprotected};
use shift_proto::id::Epoch;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// How many different reasons are said in one process; beyond it somebody makes them up (a bound against a flood).
const REASONS: usize = 64;

/// The first error of a masked fault of the incarnation of that epoch; later ones of the same incarnation are not told again.
#[cold]
pub fn fatal(qp: &QpShadow, status: ibv_wc_status, epoch: u32) {
    // A starved poller may come with a flush of an incarnation that was left meanwhile.
    if epoch == qp.rq.epoch.load(Ordering::Relaxed) {
        let _ = qp.first_error.compare_exchange(0, status.0 + 1, Ordering::Relaxed, Ordering::Relaxed);
    }
    if qp.fatal_told.swap(epoch + 1, Ordering::Relaxed) != epoch + 1 {
        process::tell(Event::Fatal { qp: QpLife(qp.life), epoch: Epoch(epoch), status: status.0 });
    }
}

/// In `first_error`: the application has got its error, what is left are flushes.
pub const ERROR_GIVEN: u32 = u32::MAX;

/// Behind errors that are being masked comes one that is the application's: it gets it, and flushes for the rest.
#[cold]
pub fn application_error_behind(qp: &QpShadow, epoch: u32) {
    if epoch == qp.rq.epoch.load(Ordering::Relaxed) {
        qp.first_error.store(ERROR_GIVEN, Ordering::Relaxed);
    }
    application_error(qp);
}

/// An error that the application gets: no migration from now on.
#[cold]
pub fn application_error(qp: &QpShadow) {
    process::tell(Event::ApplicationError { qp: QpLife(qp.life) });
}

/// A message that its NIC took came in a receive that is posted elsewhere by now: it is lost, and the peer believes that it arrived. This must not be, and is
/// not passed over: the queue pair gets its error. Not here, where its CQ is locked.
#[cold]
pub fn lost(qp: &QpShadow) {
    if qp.may_move() && !qp.lost.swap(true, Ordering::Relaxed) {
        log::error!(
            "QP 0x{:06x} received through its SRQ what is posted elsewhere by now: it ends in an error",
            qp.qpn
        );
        application_error(qp);
        reaper::surface(qp.life);
    }
}

/// Posts wait for the agent.
#[cold]
pub fn held(qp: &QpShadow) {
    process::tell(Event::Held { qp: QpLife(qp.life) });
}

/// The QP posted something that cannot be migrated: from this moment it is unprotected.
#[cold]
pub fn unprotect_opcode(qp: &QpShadow, opcode: ibv_wr_opcode) {
    if qp.unprotected.get().is_none() {
        let why = match opcode {
            IBV_WR_SEND_WITH_INV | IBV_WR_LOCAL_INV | IBV_WR_BIND_MW => {
                "an invalidation or a memory window would hold on one of the two paths only"
            }
            _ => "which is not among the protected opcodes",
        };
        unprotect(qp, format!("it posts {}, {why}", name_of(opcode)));
    }
}

/// Newer opcodes than the header that the constants are compared with have their names here.
fn name_of(opcode: ibv_wr_opcode) -> String {
    if opcode == IBV_WR_FLUSH {
        return "IBV_WR_FLUSH".to_owned();
    }
    format!("{opcode:?}")
}

/// The peer's devices are atomic each by itself only: once the connection moved, an atomic could slip between the halves of another.
pub fn forbid_atomics(qp: &QpShadow) {
    qp.atomics.forbidden.store(true, Ordering::SeqCst);
    if qp.atomics.posted.load(Ordering::SeqCst) {
        unprotect_atomics(qp);
    }
}

/// An atomic is being posted.
pub fn atomic(qp: &QpShadow) {
    if !qp.atomics.posted.load(Ordering::Relaxed) {
        qp.atomics.posted.store(true, Ordering::SeqCst);
    }
    if qp.atomics.forbidden.load(Ordering::SeqCst) {
        unprotect_atomics(qp);
    }
}

#[cold]
fn unprotect_atomics(qp: &QpShadow) {
    if qp.unprotected.get().is_none() {
        unprotect(qp, "it posts atomics, and those of the peer's two devices do not exclude one another".to_owned());
    }
}

/// A QP is not recorded at all: it is passed through.
pub fn unrecorded(device: Option<u16>, qpn: u32, reason: String) {
    once(&format!("QP 0x{qpn:06x} is not protected: {reason}"), &reason);
    if let Some(device) = device {
        process::tell(Event::Unrecorded { device: DeviceId(device), qpn, reason: Unprotected(reason) });
    }
}

/// Says once why this QP is unprotected, and makes its faults the application's again.
#[cold]
pub fn unprotect(qp: &QpShadow, reason: String) {
    if qp.unprotected.set(reason.clone()).is_ok() {
        qp.step(Stance::Armed, Stance::Recording);
        once(&format!("QP 0x{:06x} is not protected: {reason}", qp.qpn), &reason);
        process::tell(Event::Unprotected { qp: QpLife(qp.life), reason: Unprotected(reason) });
    }
}

/// Logs `line` unless a line for the same reason was logged.
pub fn once(line: &str, reason: &str) {
    static SAID: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let said = said.get_or_insert_with(HashSet::new);
    if said.len() < REASONS && said.insert(reason.to_owned()) {
        log::warn!("{line}");
    }
}
