//! The QP on the standby, and bringing either path's QP to RTS for an epoch.

use crate::cold::{caps, cq, rail, srq};
use crate::real;
use crate::shadow::{Connected, QpCold, QpShadow, Raw, Source, Stance, TwinQp};
use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;
use shift_control::datapath::{Choice, DeviceId, Errno, Gid, PathEnd, Prepared, Standby, Unprotected};
use shift_proto::id::{Micros, Mtu, Psn, MAX_PATHS};
use std::time::Duration;

/// Makes the QPs on the standbys, if they are not made, and says what the peer has to know of all paths.
pub fn prepare(qp: &QpShadow) -> Result<Prepared, Unprotected> {
    prepare_or_say(qp).map_err(Unprotected)
}

fn prepare_or_say(qp: &QpShadow) -> Result<Prepared, String> {
    qp.pd.standbys.as_ref().map_err(Clone::clone)?;
    let primary = rail::by_id(qp.device).ok_or("its device is unknown")?;
    let standings = rail::standbys_of(&primary)?;
    let mut cold = qp.cold();
    if !cold.alive {
        return Err(Unprotected::destroyed().0);
    }
    let gid = primary_gid(qp, &cold)?;
    let mtu = cold.attr.path_mtu.bytes().and_then(Mtu::new).ok_or("its path MTU is unknown")?;
    (cold.gid, cold.mtu) = (Some(gid), Some(mtu));
    let psn_base = Psn::new(cold.attr.rq_psn);
    let (mut standbys, mut lacking) = (Vec::new(), Vec::new());
    // One that came later than the PD serves it once all that was registered is there.
    let is_there = |slot| qp.pd.is_ready(slot) && qp.pd.twin(slot).is_some();
    for standing in standings.iter().filter(|standing| is_there(standing.slot)) {
        let slot = standing.slot;
        if let Some(lack) = qp.srq.as_ref().and_then(|_| srq::lack_on(&standing.rail)) {
            lacking.push(lack);
            continue;
        }
        match offer(qp, &mut cold, slot, &standing.rail) {
            Ok(twin) => {
                let choice = Choice { device: DeviceId(standing.rail.id), rank: standing.rank };
                standbys.push(Standby { slot, choice, end: PathEnd { psn_base, ..twin } });
            }
            Err(reason) => lacking.push(reason),
        }
    }
    if standbys.is_empty() {
        return Err(lacking.into_iter().next().unwrap_or_else(|| "it has no standby".to_owned()));
    }
    let primary = PathEnd { qpn: qp.qpn, gid: Gid(gid.gid.raw), mtu, psn_base };
    Ok(Prepared { primary, standbys, lacking })
}

/// What is offered in one slot, but for the packet numbers.
fn offer(qp: &QpShadow, cold: &mut QpCold, slot: u8, standby: &rail::Rail) -> Result<PathEnd, String> {
    if !qp.pd.is_whole(slot) {
        return Err(format!("memory is not registered on {}", standby.name));
    }
    let known = cold.twins.get(usize::from(slot)).copied().flatten();
    let object = match known {
        Some(twin) => twin.qp,
        None => create(qp, cold, slot, standby)?,
    };
    // It is kept whatever is lacking: it goes with the QP.
    let mut twin = TwinQp { qp: object, gid: None, mtu: None };
    if let Some(place) = cold.twins.get_mut(usize::from(slot)) {
        *place = Some(twin);
    }
    let gid = standby_gid(qp, cold, standby)?;
    let port = standby.port_attr().ok_or_else(|| format!("{} does not say what its port is", standby.name))?;
    let active =
        port.active_mtu.bytes().and_then(Mtu::new).ok_or_else(|| format!("the MTU of {} is unknown", standby.name))?;
    // Never more than the program asked for: it may know of a fabric that carries less than the ports say, and a probe has no payload.
    let mtu = cold.mtu.map_or(active, |primary| active.min(primary));
    let started = (cold.attr.max_rd_atomic, standby.attr.max_qp_init_rd_atom);
    let answered = (cold.attr.max_dest_rd_atomic, standby.attr.max_qp_rd_atom);
    if let Some((depth, limit)) = [started, answered].into_iter().find(|(depth, limit)| *limit < i32::from(*depth)) {
        return Err(format!("{} allows {limit} READs and atomics at once where the QP has {depth}", standby.name));
    }
    (twin.gid, twin.mtu) = (Some(gid), Some(mtu));
    if let Some(place) = cold.twins.get_mut(usize::from(slot)) {
        *place = Some(twin);
    }
    // SAFETY: the twin is this library's own and lives as long as the cold part names it.
    let qpn = unsafe { (*object.0).qp_num };
    Ok(PathEnd { qpn, gid: Gid(gid.gid.raw), mtu, psn_base: Psn::new(0) })
}

/// From now on paths have these slots, the first of this library's own the first one.
pub fn arrange(qp: &QpShadow, slots: &[u8]) {
    let mut cold = qp.cold();
    for (place, slot) in cold.slots.iter_mut().zip(slots) {
        *place = *slot;
    }
}

/// The device of a path.
pub fn device(qp: &QpShadow, cold: &QpCold, path: u8) -> Option<u16> {
    match cold.slot(path) {
        None => Some(qp.device),
        Some(slot) => qp.pd.twin(slot).map(|standby| standby.device),
    }
}

fn create(qp: &QpShadow, cold: &QpCold, slot: u8, standby: &rail::Rail) -> Result<Raw<ibv_qp>, String> {
    let domain = qp.pd.twin(slot).ok_or_else(|| format!("{} refused a protection domain", standby.name))?;
    let send_cq = cq::twin(&qp.send_cq, standby, slot)?;
    let recv_cq = cq::twin(&qp.recv_cq, standby, slot)?;
    let mut init = cold.init;
    init.send_cq = send_cq.0;
    init.recv_cq = recv_cq.0;
    if let Some(srq) = &qp.srq {
        init.srq = srq::twin(srq, standby, slot)?.0;
    }
    init.cap = qp.cap;
    // By which an event of it finds the QP; nobody else looks there.
    init.qp_context = qp.life as usize as *mut core::ffi::c_void;
    // SAFETY: PD and CQs are this library's own and live; `init` is writable.
    let twin = unsafe { real::ibv_create_qp(domain.pd.0, &mut init) };
    if twin.is_null() {
        return Err(format!("{} refused a queue pair like it ({})", standby.name, std::io::Error::last_os_error()));
    }
    if let Some(lack) = lacks(&qp.cap, &init.cap) {
        crate::cold::reaper::destroy_qp(Raw(twin));
        return Err(format!("{} grants {lack}", standby.name));
    }
    if qp.srq.is_some() {
        // SAFETY: the QP was just made.
        let number = unsafe { (*twin).qp_num };
        qp.recv_cq.inner.lock().receivers.insert((Source::Twin(slot), number), qp.life);
    }
    Ok(Raw(twin))
}

/// Completions of that twin, which was taken out of its place, lead to no queue pair of an SRQ any more.
pub fn receives_no_more(qp: &QpShadow, slot: u8, twin: Raw<ibv_qp>) {
    // SAFETY: the twin is this library's own, and the reaper has not got it yet.
    let number = unsafe { (*twin.0).qp_num };
    qp.recv_cq.inner.lock().receivers.remove(&(Source::Twin(slot), number));
}

/// What the standby grants less of than the application may use.
fn lacks(wanted: &ibv_qp_cap, granted: &ibv_qp_cap) -> Option<String> {
    let pairs = [
        ("send requests", wanted.max_send_wr, granted.max_send_wr),
        ("receives", wanted.max_recv_wr, granted.max_recv_wr),
        ("send elements", wanted.max_send_sge, granted.max_send_sge),
        ("receive elements", wanted.max_recv_sge, granted.max_recv_sge),
        ("bytes inline", wanted.max_inline_data, granted.max_inline_data),
    ];
    pairs
        .into_iter()
        .find(|(_, wanted, granted)| granted < wanted)
        .map(|(what, wanted, granted)| format!("{granted} {what} where the QP has {wanted}"))
}

fn primary_gid(qp: &QpShadow, cold: &QpCold) -> Result<ibv_gid_entry, String> {
    // Chosen once: the device may be gone by now.
    if let Some(known) = cold.gid {
        return Ok(known);
    }
    let rail = rail::by_id(qp.device).ok_or("its device is unknown")?;
    rail.gid_at(cold.attr.ah_attr.port_num, cold.attr.ah_attr.grh.sgid_index)
        .ok_or_else(|| "its source GID is gone".to_owned())
}

fn standby_gid(qp: &QpShadow, cold: &QpCold, standby: &rail::Rail) -> Result<ibv_gid_entry, String> {
    let like = primary_gid(qp, cold)?;
    standby
        .gid_like(&like.gid, Some(like.gid_type))
        .ok_or_else(|| format!("{} has no GID of the kind that the QP uses", standby.name))
}

/// The QP object of a path.
pub fn object(qp: &QpShadow, cold: &QpCold, path: u8) -> Option<Raw<ibv_qp>> {
    if path == 0 {
        Some(qp.qp)
    } else {
        cold.twin(path).map(|twin| twin.qp)
    }
}

/// The end of a path that this side connects from.
struct Local {
    /// Index of the source GID, looked up by value: it may have changed.
    gid_index: u8,
    port: u8,
    mtu: Mtu,
}

fn local_of(qp: &QpShadow, cold: &QpCold, path: u8) -> Option<Local> {
    let rail = device(qp, cold, path).and_then(rail::by_id)?;
    // As offered, whatever the port says by now: both ends count packets by it.
    let (chosen, mtu, port) = if path == 0 {
        (cold.gid?, cold.mtu?, cold.attr.ah_attr.port_num)
    } else {
        let twin = cold.twin(path)?;
        (twin.gid?, twin.mtu?, rail.port)
    };
    let gid = rail.gid_again(&chosen, port)?;
    Some(Local { gid_index: u8::try_from(gid.gid_index).ok()?, port, mtu })
}

/// RESET, INIT, RTR, RTS.
pub fn connect(qp: &QpShadow, path: u8, epoch: u32, peer: &PathEnd, own_psn: Psn, peer_psn: Psn) -> Result<(), Errno> {
    let mut cold = qp.cold();
    let slot = usize::from(path);
    if cold.connected.get(slot).copied().flatten().is_some_and(|connected| connected.epoch == epoch) {
        return Ok(());
    }
    let gone = Errno(libc::ENODEV);
    if !cold.alive || !qp.may_move() {
        return Err(gone);
    }
    let object = object(qp, &cold, path).ok_or(gone)?;
    let local = local_of(qp, &cold, path).ok_or(gone)?;
    let mut attr = caps::applied(&cold.attr);
    attr.port_num = local.port;
    attr.ah_attr.port_num = local.port;
    attr.ah_attr.grh.sgid_index = local.gid_index;
    attr.ah_attr.grh.dgid.raw = peer.gid.0;
    attr.dest_qp_num = peer.qpn;
    let mtu = local.mtu.min(peer.mtu).bytes();
    attr.path_mtu = ibv_mtu::from_bytes(mtu).ok_or(Errno(libc::EINVAL))?;
    attr.sq_psn = own_psn.value();
    attr.rq_psn = peer_psn.value();
    disconnect(&mut cold, path);
    let last = if cold.attr.qp_state == IBV_QPS_RTS { IBV_QPS_RTS } else { IBV_QPS_RTR };
    let site = cold.site(path);
    if qp.srq.is_some() {
        qp.begins_to_take(site);
    }
    if let Err(error) = to_state_by_steps(object, &mut attr, last) {
        if qp.srq.is_some() && to_state(object, IBV_QPS_RESET) == 0 {
            qp.takes_no_more(site);
        }
        return Err(error);
    }
    if let Some(connected) = cold.connected.get_mut(slot) {
        *connected = Some(Connected { epoch, own_psn: own_psn.value(), mtu });
    }
    Ok(())
}

/// Forgets what the object of a path is connected for. It may be that of several paths.
pub fn disconnect(cold: &mut QpCold, path: u8) {
    let slot = cold.slot(path);
    for other in (0..MAX_PATHS as u8).filter(|other| cold.slot(*other) == slot).collect::<Vec<_>>() {
        if let Some(connected) = cold.connected.get_mut(usize::from(other)) {
            *connected = None;
        }
    }
}

/// How long the NIC of a QP goes on retrying: 4.096 us * 2^timeout per try (IBA 11.2.4.2, "Local ACK timeout"). `None`: for ever, which is timeout 0,
/// and retry_cnt 7 on soft-RoCE.
pub fn retry_budget(qp: &QpShadow) -> Option<Micros> {
    let attr = caps::applied(&qp.cold().attr);
    let rxe = rail::by_id(qp.device).is_some_and(|rail| rail.is_rxe());
    if attr.timeout == 0 || (rxe && attr.retry_cnt == 7) {
        return None;
    }
    let one_try_ns = 4096_u64 << attr.timeout.min(31);
    Some(Micros(one_try_ns / 1000 * (u64::from(attr.retry_cnt) + 1)))
}

/// Whether an atomic that arrives over one path excludes one that arrives over another at the same time, from whatever peer.
pub fn atomics_hold(qp: &QpShadow) -> bool {
    let standbys = qp.pd.present().into_iter().map(|standby| standby.device);
    let mut devices = std::iter::once(qp.device).chain(standbys);
    devices.all(|device| rail::by_id(device).is_some_and(|rail| rail.is_atomic_host_wide()))
}

/// The application's RTR to RTS: the QPs that were brought to RTR for it follow. So they do with what it changes later. Returns errno.
pub fn send_as_well(qp: &QpShadow, given: &ibv_qp_attr, mask: u32) -> c_int {
    let mut cold = qp.cold();
    let is_first = cold.attr.qp_state == IBV_QPS_RTR;
    crate::cold::qp::merge(&mut cold.attr, given, mask);
    let bits = if is_first { TO_RTS } else { IBV_QP_STATE | mask & (IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER) };
    for path in 0..MAX_PATHS as u8 {
        // The application's own object is its own as long as it was never fenced.
        let ours = path != 0 || qp.sq.epoch.load(Relaxed) != 0;
        let connected = cold.connected.get(usize::from(path)).copied().flatten();
        let (Some(connected), Some(object), true) = (connected, object(qp, &cold, path), ours) else { continue };
        let mut attr = caps::applied(&cold.attr);
        attr.sq_psn = connected.own_psn;
        attr.qp_state = IBV_QPS_RTS;
        let errno = modify(object, &mut attr, bits);
        if errno != 0 {
            return errno;
        }
    }
    0
}

const TO_RTS: u32 =
    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;

/// Brings a QP of any state to `last` (RTR or RTS) with these attributes.
pub fn to_state_by_steps(qp: Raw<ibv_qp>, attr: &mut ibv_qp_attr, last: ibv_qp_state) -> Result<(), Errno> {
    let steps = [
        (IBV_QPS_RESET, IBV_QP_STATE),
        (IBV_QPS_INIT, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
        (
            IBV_QPS_RTR,
            IBV_QP_STATE
                | IBV_QP_AV
                | IBV_QP_PATH_MTU
                | IBV_QP_DEST_QPN
                | IBV_QP_RQ_PSN
                | IBV_QP_MAX_DEST_RD_ATOMIC
                | IBV_QP_MIN_RNR_TIMER,
        ),
        (IBV_QPS_RTS, TO_RTS),
    ];
    for (state, mask) in steps.into_iter().filter(|(state, _)| *state <= last) {
        attr.qp_state = state;
        let errno = modify(qp, attr, mask);
        if errno != 0 {
            return Err(Errno(errno));
        }
    }
    Ok(())
}

/// Moves a QP to a state that needs nothing else. Returns errno.
pub fn to_state(qp: Raw<ibv_qp>, state: ibv_qp_state) -> c_int {
    let mut attr = ibv_qp_attr::zeroed();
    attr.qp_state = state;
    modify(qp, &mut attr, IBV_QP_STATE)
}

/// Has the application's own object say LAST_WQE_REACHED where its receives went through another: a QP that is moved from INIT to ERR has none to wait for. It
/// takes nothing in either state. `false`: it cannot.
pub fn raise_last_wqe(qp: &QpShadow) -> bool {
    let cold = qp.cold();
    let is_in_use = cold.path == 0 && qp.stance() == Stance::Passing;
    if !cold.alive || is_in_use {
        return true;
    }
    let mut attr = cold.attr;
    let is_raised = to_state_by_steps(qp.qp, &mut attr, IBV_QPS_INIT).is_ok() && to_state(qp.qp, IBV_QPS_ERR) == 0;
    log::debug!("QP 0x{:06x} is to say LAST_WQE_REACHED: {is_raised}", qp.qpn);
    is_raised
}

/// How long the agent waits for a call of the application's that has a CQ of the QP: a dying NIC may keep that for a minute.
const PATIENCE: Duration = Duration::from_millis(50);

/// Changes a QP of the application or of this library. Returns errno.
fn modify(qp: Raw<ibv_qp>, attr: &mut ibv_qp_attr, mask: u32) -> c_int {
    let state = (mask & IBV_QP_STATE != 0).then_some(attr.qp_state);
    // SAFETY: the QP is live (its owner is locked by the caller, or it is this library's own); `attr` is readable.
    let mut change = || unsafe { real::ibv_modify_qp(qp.0, attr, mask as c_int) };
    match crate::cold::qp::QPS.get(qp.0) {
        Some(shadow) => {
            let shown = state_of(qp);
            let errno = crate::cold::qp::changing(shadow, state, PATIENCE, change);
            show_state(qp, shown);
            errno
        }
        None => change(),
    }
}

/// What a QP says its state is. libibverbs writes there what it was last told, and programs read it: UCX looks before each post.
fn state_of(qp: Raw<ibv_qp>) -> ibv_qp_state {
    // SAFETY: the QP is live, as in `modify`.
    let place = unsafe { &raw const (*qp.0).state };
    // SAFETY: as above; an enumeration of C is read as its number.
    unsafe { place.read_volatile() }
}

/// Makes the application's QP say a state: the one that the application gave it.
pub fn show_state(qp: Raw<ibv_qp>, state: ibv_qp_state) {
    // SAFETY: the QP is live, as in `modify`.
    let place = unsafe { &raw mut (*qp.0).state };
    // SAFETY: as above; its lock does not guard this field, which libibverbs writes without it.
    unsafe { place.write_volatile(state) };
}

/// Moves a QP to ERR; a refusal means that it is of no use already.
pub fn to_error(qp: Raw<ibv_qp>) {
    let errno = to_state(qp, IBV_QPS_ERR);
    if errno != 0 {
        log::debug!("a QP could not be moved to ERR (errno {errno})");
    }
}
