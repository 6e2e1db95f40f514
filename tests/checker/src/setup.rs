//! From the command line to connected queue pairs: open the device, tell the peer, hear from it, connect.

use crate::args::{AsyncUse, Local, Mode, Params, Polling, Ways};
use crate::ground::Ground;
use crate::layout::Layout;
use crate::pool::Pool;
use crate::predict::{mix, Direction, Plan, POISON};
use crate::receiver::Receiver;
use crate::sabotage::Sabotage;
use crate::sender::Sender;
use crate::session::Parts;
use crate::side::{Endpoint, Note, Side};
use crate::trigger::Trigger;
use crate::verbs::{CqWish, Qp, QpWish, Region, Route, Srq, VerbError, Verbs, Waiting};
use shift_abi::*;
use std::io;
use std::time::{Duration, Instant};

/// How often a device that is waited for is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(20);

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that was connected to.
    Server,
    /// The one that chose the run.
    Client,
}

impl End {
    const fn sends(self) -> Direction {
        match self {
            End::Client => Direction::ClientToServer,
            End::Server => Direction::ServerToClient,
        }
    }

    const fn receives(self) -> Direction {
        match self {
            End::Client => Direction::ServerToClient,
            End::Server => Direction::ClientToServer,
        }
    }
}

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A verb failed.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// The side channel failed.
    #[error("side channel: {0}")]
    Side(#[from] io::Error),
    /// The peer said something else than was due.
    #[error("the peer said {0:?}")]
    Peer(Option<Note>),
    /// The parameters contradict one another.
    #[error("{0}")]
    Params(String),
}

/// What an end has made before it knows the peer.
struct Opened {
    verbs: Verbs,
    srq: Option<Srq>,
    qps: Vec<Qp>,
    psns: Vec<u32>,
    local: Region,
    shared: Region,
    gid_index: u8,
    endpoint: Endpoint,
}

/// How long the peer may take for each step of the exchange.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// Takes the parameters from the client.
pub fn receive_params(side: &mut Side) -> Result<Params, SetupError> {
    let note = expect_note(side)?;
    let Note::Params(params) = note else {
        return Err(SetupError::Peer(Some(note)));
    };
    params.check().map_err(SetupError::Params)?;
    Ok(*params)
}

/// Sets up one end and waits until the other is ready.
pub fn prepare(
    end: End,
    params: Params,
    local: &Local,
    mut side: Side,
    sabotage: Option<Sabotage>,
    trigger: Option<Trigger>,
) -> Result<Parts, SetupError> {
    let verbs_tell = local.verbs_tell;
    let opened = open(end, &params, local)?;
    let peer = exchange(&mut side, opened.endpoint.clone())?;
    connect(&params, &opened, &peer)?;
    let senders = senders(end, &params, sabotage);
    let mut receivers = receivers(end, &params);
    let Opened { verbs, srq, qps, local, shared, .. } = opened;
    let layout = Layout::new(&params);
    let ground = Ground { params, layout, local, shared, peer };
    for (receiver, qp) in receivers.iter_mut().zip(&qps) {
        receiver.prepare(&ground, qp)?;
    }
    let pool = srq.map(|srq| Pool::new(srq, &ground, &receivers)).transpose()?;
    meet(&mut side)?;
    let commit = sabotage.map(|sabotage| sabotage.commit);
    Ok(Parts { verbs, qps, ground, side, senders, receivers, pool, trigger, commit, verbs_tell })
}

/// Where either end is to be found; each has as many queue pairs as the other.
pub(crate) fn exchange(side: &mut Side, own: Endpoint) -> Result<Endpoint, SetupError> {
    let count = own.qps.len();
    side.send(&Note::Endpoint(own))?;
    let note = expect_note(side)?;
    let Note::Endpoint(theirs) = note else {
        return Err(SetupError::Peer(Some(note)));
    };
    if theirs.qps.len() == count {
        Ok(theirs)
    } else {
        Err(SetupError::Peer(Some(Note::Endpoint(theirs))))
    }
}

/// Waits until the other is ready too.
pub(crate) fn meet(side: &mut Side) -> Result<(), SetupError> {
    side.send(&Note::Ready)?;
    let note = expect_note(side)?;
    if note == Note::Ready {
        Ok(())
    } else {
        Err(SetupError::Peer(Some(note)))
    }
}

fn senders(end: End, params: &Params, sabotage: Option<Sabotage>) -> Vec<Sender> {
    let sends = end == End::Client || params.direction == Ways::Both;
    let sender = |qp| {
        // One error is enough: the first queue pair commits it.
        Sender::new(params, qp, Plan::new(params, qp, end.sends()), sabotage.filter(|_| qp == 0))
    };
    (0..params.qps).filter(|_| sends).map(sender).collect()
}

fn receivers(end: End, params: &Params) -> Vec<Receiver> {
    let receives = end == End::Server || params.direction == Ways::Both;
    let receiver = |qp| Receiver::new(qp, Plan::new(params, qp, end.receives()));
    (0..params.qps).filter(|_| receives).map(receiver).collect()
}

/// Opens the device; one that is not there yet, or has no GID yet, is waited for as long as that was asked.
fn open_in_time(local: &Local, wish: CqWish) -> Result<(Verbs, (u8, [u8; 16])), VerbError> {
    let until = Instant::now() + Duration::from_secs(local.device_timeout);
    loop {
        let opened = Verbs::open(local.dev.as_deref(), local.port, wish);
        let found = opened.and_then(|verbs| verbs.gid(local.gid_index).map(|gid| (verbs, gid)));
        if found.is_ok() || Instant::now() >= until {
            return found;
        }
        // There is nothing to wait on that every kernel has.
        std::thread::sleep(DEVICE_POLL);
    }
}

fn open(end: End, params: &Params, local: &Local) -> Result<Opened, SetupError> {
    let layout = Layout::new(params);
    let receives = |qp| if params.mode(qp).takes_receives() { layout.receives() as u32 } else { 0 };
    // Exactly what may be there at once: a completion too many overruns it.
    let cqe = (0..params.qps).map(|qp| params.depth + receives(qp)).sum();
    let waiting = match params.poll {
        Polling::Spin | Polling::Sleepy => None,
        Polling::Event => Some(Waiting::Thread),
        Polling::Epoll => Some(Waiting::Epoll),
    };
    let hears = params.async_events != AsyncUse::Ignore;
    let wish = CqWish { cqe, split: params.split_cqs, waiting, api: params.api, hears };
    let (verbs, (gid_index, gid)) = open_in_time(local, wish)?;
    let own = verbs.region(layout.local_bytes(), IBV_ACCESS_LOCAL_WRITE)?;
    let shared = verbs.region(layout.shared_bytes(), shared_access(&params.modes))?;
    own.fill(0, layout.local_bytes(), POISON);
    shared.fill(0, layout.shared_bytes(), POISON);
    let all_receives = (0..params.qps).map(receives).sum::<u32>().max(1);
    let srq = params.srq.then(|| verbs.srq(all_receives)).transpose()?;
    let (mut qps, mut psns) = (Vec::new(), Vec::new());
    for number in 0..params.qps {
        let receive_wrs = receives(number).max(1);
        let wish = QpWish { send_wrs: params.depth, receive_wrs, sges: params.sges, inline: params.inline };
        let qp = verbs.qp(srq.as_ref(), wish)?;
        qp.init()?;
        qps.push(qp);
        psns.push(params.psn.unwrap_or_else(|| psn(params.seed, end, number)));
    }
    let numbers = qps.iter().map(Qp::number).zip(psns.iter().copied()).collect();
    let endpoint = Endpoint { gid, addr: shared.addr(0), rkey: shared.rkey(), qps: numbers };
    Ok(Opened { verbs, srq, qps, psns, local: own, shared, gid_index, endpoint })
}

fn shared_access(modes: &[Mode]) -> u32 {
    let base = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    if modes.iter().any(|mode| mode.has_atomics()) {
        base | IBV_ACCESS_REMOTE_ATOMIC
    } else {
        base
    }
}

pub(crate) fn psn(seed: u64, end: End, qp: u16) -> u32 {
    let side = u64::from(end == End::Server);
    (mix(seed ^ mix(0x50_534e ^ u64::from(qp) << 1 ^ side)) & 0xff_ffff) as u32
}

fn connect(params: &Params, opened: &Opened, peer: &Endpoint) -> Result<(), SetupError> {
    for ((qp, &psn), &theirs) in opened.qps.iter().zip(&opened.psns).zip(&peer.qps) {
        qp.connect(route(params, &opened.verbs, opened.gid_index, psn, (peer.gid, theirs))?)?;
    }
    Ok(())
}

/// To a queue pair of a peer, by GID, number and first packet number.
pub(crate) fn route(
    params: &Params,
    verbs: &Verbs,
    gid_index: u8,
    psn: u32,
    (peer_gid, (peer_qpn, peer_psn)): ([u8; 16], (u32, u32)),
) -> Result<Route, VerbError> {
    let (reads, served_reads) = verbs.read_depths()?;
    Ok(Route {
        gid_index,
        peer_gid,
        peer_qpn,
        peer_psn,
        psn,
        mtu: ibv_mtu::from_bytes(params.mtu).unwrap_or(IBV_MTU_1024),
        timeout: params.timeout,
        retry_cnt: params.retry_cnt,
        rnr_retry: params.rnr_retry,
        reads,
        served_reads,
    })
}

pub(crate) fn expect_note(side: &mut Side) -> Result<Note, SetupError> {
    match side.wait(STEP_LIMIT)? {
        Some(Note::Failed(why)) => Err(SetupError::Peer(Some(Note::Failed(why)))),
        Some(note) => Ok(note),
        None => Err(SetupError::Peer(None)),
    }
}
