//! What exists once per process: configuration, logger, agent; and the two ways of being inert.
//!
//! Nothing here happens before the first `ibv_open_device`: a program that never uses RDMA cannot tell that the library is there.

use crate::cold::datapath::Shim;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use shift_abi::*;
use shift_control::config::Config;
use shift_control::datapath::Event;
use shift_control::{Agent, EventSender};
use shift_proto::ledger::Op;
use shift_proto::policy::{OnUnknown, Policy};
use std::io::Write;
use std::sync::{Arc, OnceLock};

/// The running protection of this process.
pub struct Process {
    /// As the environment says.
    pub config: Config,
    events: EventSender,
}

static PROCESS: OnceLock<Option<Process>> = OnceLock::new();
static POLICY: OnceLock<Policy> = OnceLock::new();
/// Set in a forked child, which passes everything through and has no agent.
static CHILD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Inside of a call into libibverbs that this library makes or passes on: libibverbs and its providers call exported verbs themselves.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Held while this thread is inside of libibverbs.
pub struct Inside(());

impl Inside {
    /// `None`: this thread already is, so the call comes from libibverbs itself and is passed through.
    pub fn enter() -> Option<Self> {
        INSIDE.try_with(|inside| (!inside.replace(true)).then_some(Self(()))).ok().flatten()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // At thread exit the flag may be gone already; then nobody reads it either.
        let _ = INSIDE.try_with(|inside| inside.set(false));
    }
}

/// Starts everything, once. `None`: inert, and the reason was said.
pub fn start() -> Option<&'static Process> {
    PROCESS.get_or_init(begin).as_ref().filter(|_| !CHILD.load(Ordering::Relaxed))
}

/// The running protection, if it runs.
pub fn get() -> Option<&'static Process> {
    PROCESS.get()?.as_ref().filter(|_| !CHILD.load(Ordering::Relaxed))
}

/// A forked child, whose locks nobody may ever let go of.
pub fn is_child() -> bool {
    CHILD.load(Ordering::Relaxed)
}

/// Tells the agent; never waits.
pub fn tell(event: Event) {
    if let Some(process) = get() {
        process.events.send(event);
    }
}

fn begin() -> Option<Process> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let config = match Config::from_env(environment) {
        Ok(config) => config,
        Err(errors) => {
            start_logger("info");
            for error in errors {
                log::error!("{error}; the program runs unprotected");
            }
            return None;
        }
    };
    if config.disabled {
        return None;
    }
    start_logger(&config.log);
    let _ = POLICY.set(config.policy.clone());
    let events = match Agent::start(config.clone(), Arc::new(Shim::new())) {
        Ok(events) => events,
        Err(error) => {
            log::error!("the agent did not start ({error}); the program runs unprotected");
            return None;
        }
    };
    // SAFETY: both functions are `extern "C"`, take nothing and live as long as this library, which is never unloaded while threads of it run.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    // SAFETY: as above.
    unsafe { libc::atexit(at_exit) };
    Some(Process { config, events })
}

/// Lines carry the process and the seconds since the protection began: what a person compares between two hosts is the distance of lines.
fn start_logger(level: &str) {
    let pid = std::process::id();
    let began = std::time::Instant::now();
    let _ = env_logger::Builder::new()
        .parse_filters(level)
        .target(env_logger::Target::Stderr)
        .format(move |out, record| {
            writeln!(
                out,
                "shift-verbs[{pid}] {:.3} {}: {}",
                began.elapsed().as_secs_f64(),
                record.level().as_str().to_lowercase(),
                record.args()
            )
        })
        .try_init();
}

extern "C" fn in_child() {
    CHILD.store(true, Ordering::Relaxed);
    shift_control::inherited::close_all();
    crate::cold::qp::disarm_all();
}

extern "C" fn at_exit() {
    if let Some(process) = get() {
        let _ = std::panic::catch_unwind(|| process.events.goodbye());
    }
}

/// Under the policy, does an unknown fate of this entry mean an error?
#[inline]
pub fn unknown_is_error(opcode: ibv_wr_opcode, bytes: u32) -> bool {
    let (Some(policy), Some(op)) = (POLICY.get(), op_of(opcode)) else { return false };
    policy.at_post(op, bytes) == OnUnknown::Error
}

/// The protocol's name of an opcode; `None` for those it does not know.
#[inline]
pub const fn op_of(opcode: ibv_wr_opcode) -> Option<Op> {
    match opcode {
        IBV_WR_RDMA_WRITE => Some(Op::Write),
        IBV_WR_RDMA_WRITE_WITH_IMM => Some(Op::WriteImm),
        IBV_WR_SEND => Some(Op::Send),
        IBV_WR_SEND_WITH_IMM => Some(Op::SendImm),
        IBV_WR_RDMA_READ => Some(Op::Read),
        IBV_WR_ATOMIC_FETCH_AND_ADD => Some(Op::FetchAdd),
        IBV_WR_ATOMIC_CMP_AND_SWP => Some(Op::CompareSwap),
        _ => None,
    }
}
