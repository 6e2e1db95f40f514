//! A third end: one queue pair more at the server, from another process, and one COMPARE_AND_SWAP on the client's counter.
//!
//! It takes back what a message of the client's put there, as a program does that releases a lock which another one holds. It owns no judgement: it says
//! whether it swapped, and the memory is the server's to judge.

use crate::args::{Api, Local, Params};
use crate::layout::Layout;
use crate::predict::{Direction, Plan};
use crate::session::{say, Parts};
use crate::setup::{exchange, meet, receive_params, route, SetupError};
use crate::side::{Endpoint, Note, Side};
use crate::verbs::{CqWish, Qp, QpWish, Region, SendRequest, Verbs};
use shift_abi::*;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// One operation, and no receive.
const WISH: QpWish = QpWish { send_wrs: 1, receive_wrs: 1, sges: 1, inline: 0 };
/// First packet numbers, of the server's queue pair and of the third end's.
const PSNS: (u32, u32) = (0x00_7000, 0x00_3000);
/// It is told when within this, and what it posts completes.
const LIMIT: Duration = Duration::from_secs(60);
/// There is nothing to wait on that every kernel has.
const POLL: Duration = Duration::from_millis(1);

/// The server's half: a queue pair more, which goes the way of all others in the end.
///
/// # Errors
/// Nobody comes, or a verb fails.
pub fn admit(parts: &mut Parts, listen: SocketAddr, local: &Local) -> Result<(), SetupError> {
    let mut side = Side::accept(listen, LIMIT)?;
    let params = &parts.ground.params;
    side.send(&Note::Params(Box::new(params.clone())))?;
    let qp = parts.verbs.qp(None, WISH)?;
    qp.init()?;
    let (gid_index, gid) = parts.verbs.gid(local.gid_index)?;
    let shared = &parts.ground.shared;
    let endpoint = Endpoint { gid, addr: shared.addr(0), rkey: shared.rkey(), qps: vec![(qp.number(), PSNS.0)] };
    let theirs = exchange(&mut side, endpoint)?;
    qp.connect(route(params, &parts.verbs, gid_index, PSNS.0, of(&theirs)?)?)?;
    meet(&mut side)?;
    parts.qps.push(qp);
    Ok(())
}

/// The third end; its exit status.
///
/// # Errors
/// The server is not there, or a verb fails.
pub fn run(connect: SocketAddr, undo: &Path, local: &Local) -> Result<u8, SetupError> {
    let mut side = Side::connect(connect, Duration::from_secs(local.connect_timeout))?;
    let params = receive_params(&mut side)?;
    let wish = CqWish { cqe: 1, split: false, waiting: None, api: Api::Plain, hears: false };
    let mut verbs = Verbs::open(local.dev.as_deref(), local.port, wish)?;
    let (gid_index, gid) = verbs.gid(local.gid_index)?;
    let landing = verbs.region(8, IBV_ACCESS_LOCAL_WRITE)?;
    let mut qp = verbs.qp(None, WISH)?;
    qp.init()?;
    let endpoint = Endpoint { gid, addr: 0, rkey: 0, qps: vec![(qp.number(), PSNS.1)] };
    let server = exchange(&mut side, endpoint)?;
    qp.connect(route(&params, &verbs, gid_index, PSNS.1, of(&server)?)?)?;
    meet(&mut side)?;
    say(&format!("THIRD qpn={}", qp.number()));
    let number = wait_for(undo)?;
    let swapped = take_back(&mut verbs, &mut qp, &landing, &server, (&params, number))?;
    say(&serde_json::json!({ "third": true, "message": number, "swapped": swapped }).to_string());
    verbs.close(vec![qp], None, vec![landing])?;
    Ok(u8::from(!swapped))
}

/// Whether the counter held what message `number` puts there; then it holds what was there before.
fn take_back(
    verbs: &mut Verbs,
    qp: &mut Qp,
    landing: &Region,
    server: &Endpoint,
    (params, number): (&Params, u64),
) -> Result<bool, SetupError> {
    let plan = Plan::new(params, 0, Direction::ClientToServer);
    let (after, before) = (plan.counter_before(number + 1), plan.counter_before(number));
    let request = SendRequest {
        wr_id: number,
        opcode: IBV_WR_ATOMIC_CMP_AND_SWP,
        flags: IBV_SEND_SIGNALED,
        at: 0,
        len: 8,
        sges: 1,
        imm: 0,
        remote_addr: server.addr + Layout::new(params).counter(0),
        rkey: server.rkey,
        operands: (after, before),
    };
    qp.post_send(landing, &[request]).map_err(|(_, error)| error)?;
    let (until, mut wcs) = (Instant::now() + LIMIT, Vec::new());
    while verbs.poll(&mut wcs)? == 0 {
        if Instant::now() >= until {
            return Err(SetupError::Params("the third end's operation never completed".to_owned()));
        }
        std::thread::sleep(POLL);
    }
    if let Some(failed) = wcs.iter().find(|wc| wc.status != IBV_WC_SUCCESS) {
        return Err(SetupError::Params(format!("the third end's operation ended with {:?}", failed.status)));
    }
    let mut seen = [0; 8];
    landing.read(0, &mut seen);
    Ok(u64::from_ne_bytes(seen) == after)
}

fn wait_for(file: &Path) -> Result<u64, SetupError> {
    let until = Instant::now() + LIMIT;
    loop {
        match std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
            Some(number) => return Ok(number),
            None if Instant::now() >= until => {
                return Err(SetupError::Params(format!("no number in {}", file.display())))
            }
            None => std::thread::sleep(POLL),
        }
    }
}

/// GID and queue pair of an end that has one.
fn of(end: &Endpoint) -> Result<([u8; 16], (u32, u32)), SetupError> {
    let qp = end.qps.first().copied();
    qp.map(|qp| (end.gid, qp)).ok_or_else(|| SetupError::Peer(Some(Note::Endpoint(end.clone()))))
}
