//! Queue pairs: which are recorded, what the application sets, and how a life ends.

use crate::cold::{asynchronous, caps, cq, device, pd, rail, reaper, replay, settle, srq, tell, twin};
use crate::hot::poll;
use crate::hot::srq::SrqShadow;
use crate::hot::wr::QpEx;
use crate::lives;
use crate::process;
use crate::real;
use crate::shadow::*;
use crate::tables::{retire, PtrTable};
use core::ffi::c_int;
use core::sync::atomic::Ordering;
use shift_abi::*;
use shift_control::datapath::Event;
use shift_control::datapath::{ConnectionFacts, DeviceId, Gid, GroupId, QpLife};
use shift_proto::id::{Mtu, Site, MAX_STANDBYS};
use std::sync::Arc;
use std::time::Duration;

/// QPs of the application that are recorded.
pub static QPS: PtrTable<QpShadow> = PtrTable::new();
/// QPs of the application that are not, and of which that was said.
static OTHERS: PtrTable<u8> = PtrTable::new();

/// `ibv_create_qp`.
///
/// # Safety
/// As `ibv_create_qp`.
pub unsafe fn create(pd: *mut ibv_pd, init: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: passed on.
    let qp = unsafe { real::ibv_create_qp(pd, init) };
    if qp.is_null() || process::get().is_none() {
        return qp;
    }
    // SAFETY: the call above succeeded, so `init` is readable; the library wrote the granted sizes into it.
    let init = unsafe { init.read() };
    protect(qp, pd, &init, None);
    qp
}

/// Records a QP that was just made, or says why not.
pub fn protect(qp: *mut ibv_qp, pd: *mut ibv_pd, init: &ibv_qp_init_attr, ex: Option<QpEx>) {
    // SAFETY: the QP was just made.
    let qpn = unsafe { (*qp).qp_num };
    let ex = ex.map(Arc::new);
    if let Err(reason) = shadows_of(pd, init).and_then(|shadows| begin(qp, qpn, init, shadows, ex.clone())) {
        if let Some(ex) = ex {
            ex.unhook();
        }
        pass_through(qp, init, &reason);
    }
}

/// A QP that is not recorded: its completions are the application's as they come, and it is said why.
pub fn pass_through(qp: *mut ibv_qp, init: &ibv_qp_init_attr, reason: &str) {
    // SAFETY: the QP is live.
    let qpn = unsafe { (*qp).qp_num };
    mark_foreign(init, qpn);
    // One that lay at this address, of a thread that is about to return from its destroy.
    QPS.remove(qp);
    OTHERS.insert(qp, Arc::new(0));
    // SAFETY: as above.
    asynchronous::count_foreign(unsafe { (*qp).context }, true);
    tell::unrecorded(device_of(qp), qpn, reason.to_owned());
    srq::note_stranger(init.srq, qpn, reason);
}

/// A QP that has no shadow is being used. One that this library did not see being made is said to be unprotected, too.
#[inline]
pub fn notice(qp: *mut ibv_qp) {
    if OTHERS.get(qp).is_none() {
        first_seen(qp);
    }
}

#[cold]
fn first_seen(qp: *mut ibv_qp) {
    let device = device_of(qp);
    if process::get().is_none() || device.is_none() || !OTHERS.insert(qp, Arc::new(0)) {
        return;
    }
    // SAFETY: the application uses the QP, so it is live.
    let qpn = unsafe { (*qp).qp_num };
    tell::unrecorded(device, qpn, "nothing was seen of its making: another library, or an import, made it".to_owned());
}

/// It was said by other words why this QP is not protected.
pub fn named(qp: *mut ibv_qp) {
    OTHERS.insert(qp, Arc::new(0));
}

/// The device of a QP of the application, if it was opened under the shim.
fn device_of(qp: *mut ibv_qp) -> Option<u16> {
    // SAFETY: the QP is live: it was just made, or the application's destroy has yet to run.
    let context = unsafe { (*qp).context };
    device::device_of(context).map(|shadow| shadow.device)
}

/// What a recorded QP stands on.
struct Shadows {
    pd: Arc<PdShadow>,
    send_cq: Arc<CqShadow>,
    recv_cq: Arc<CqShadow>,
    srq: Option<Arc<SrqShadow>>,
}

/// The shadows of what the QP uses, or why it cannot be protected.
fn shadows_of(pd: *mut ibv_pd, init: &ibv_qp_init_attr) -> Result<Shadows, String> {
    if init.qp_type != IBV_QPT_RC {
        return Err(format!("its type is {:?}; only RC is", init.qp_type));
    }
    let pd = pd::PDS.get_arc(pd).ok_or("its PD was not made through ibv_alloc_pd")?;
    if let Err(why) = &pd.standbys {
        return Err(why.clone());
    }
    if let Some(why) = pd.unprotected.get() {
        return Err((*why).to_owned());
    }
    if rail::has_no_locks(pd.device) {
        return Err(
            "MLX5_SINGLE_THREADED takes the locks away that its provider and the shim's own thread need".to_owned()
        );
    }
    let cq_of = |raw: *mut ibv_cq| {
        let shadow = cq::CQS.get_arc(raw).ok_or("its CQ was not made through ibv_create_cq")?;
        if let Some(why) = shadow.refused {
            return Err(why);
        }
        if shadow.has_channel {
            return Err("its CQ has a completion channel that the shim does not know");
        }
        Ok(shadow)
    };
    let srq = if init.srq.is_null() { None } else { Some(srq_of(init.srq, &pd)?) };
    Ok(Shadows { pd, send_cq: cq_of(init.send_cq)?, recv_cq: cq_of(init.recv_cq)?, srq })
}

fn srq_of(raw: *mut ibv_srq, pd: &PdShadow) -> Result<Arc<SrqShadow>, String> {
    if !srq::is_wanted() {
        return Err("it receives through an SRQ".to_owned());
    }
    if let Some(why) = srq::lack_of(pd) {
        return Err(why);
    }
    let srq = srq::SRQS.get_arc(raw).ok_or("its SRQ was not made through ibv_create_srq")?;
    match srq.unprotected.get() {
        Some(reason) => Err(reason.clone()),
        None => Ok(srq),
    }
}

/// Begins a life.
fn begin(
    qp: *mut ibv_qp,
    qpn: u32,
    init: &ibv_qp_init_attr,
    shadows: Shadows,
    ex: Option<Arc<QpEx>>,
) -> Result<(), String> {
    let Shadows { pd, send_cq, recv_cq, srq } = shadows;
    let cap = flushable(init, srq.is_some());
    grow_cqs(&send_cq, &recv_cq, &cap)?;
    let room = (Arc::clone(&send_cq), Arc::clone(&recv_cq));
    for cq in [&send_cq, &recv_cq] {
        let mut inner = cq.inner.lock();
        inner.foreign.retain(|foreign| *foreign != qpn);
        cq.attention.fetch_or(TAGGED, Ordering::Relaxed);
    }
    let ops = send_cq.ops;
    let mut shadow = QpShadow::new(lives::next(), Raw(qp), qpn, pd, init, (send_cq, recv_cq), srq, ops);
    shadow.ex = ex;
    let shadow = Arc::new(shadow);
    if !QPS.insert(qp, Arc::clone(&shadow)) {
        shrink_cqs(&room.0, &room.1, &cap);
        return Err("this process has more QPs than the shim can keep apart".to_owned());
    }
    lives::begin(&shadow);
    if let Some(srq) = &shadow.srq {
        room.1.inner.lock().receivers.insert((Source::Own, qpn), shadow.life);
        room.1.attention.fetch_or(SHARED, Ordering::Relaxed);
        srq::join(srq, &shadow);
        // Another thread may have brought a stranger meanwhile, and did not see this one.
        if let Some(reason) = srq.unprotected.get() {
            tell::unprotect(&shadow, reason.clone());
        }
    }
    Ok(())
}

/// What a fault may flush into its CQs: of an SRQ's receives none.
const fn flushable(init: &ibv_qp_init_attr, is_shared: bool) -> ibv_qp_cap {
    let mut cap = init.cap;
    if is_shared {
        cap.max_recv_wr = 0;
    }
    cap
}

fn grow_cqs(send_cq: &Arc<CqShadow>, recv_cq: &Arc<CqShadow>, cap: &ibv_qp_cap) -> Result<(), String> {
    if Arc::ptr_eq(send_cq, recv_cq) {
        return cq::grow(send_cq, cap.max_send_wr.saturating_add(cap.max_recv_wr));
    }
    cq::grow(send_cq, cap.max_send_wr)?;
    cq::grow(recv_cq, cap.max_recv_wr).inspect_err(|_| cq::shrink(send_cq, cap.max_send_wr))
}

fn shrink_cqs(send_cq: &Arc<CqShadow>, recv_cq: &Arc<CqShadow>, cap: &ibv_qp_cap) {
    if Arc::ptr_eq(send_cq, recv_cq) {
        return cq::shrink(send_cq, cap.max_send_wr.saturating_add(cap.max_recv_wr));
    }
    cq::shrink(send_cq, cap.max_send_wr);
    cq::shrink(recv_cq, cap.max_recv_wr);
}

/// Completions of this QP are passed through as they are.
fn mark_foreign(init: &ibv_qp_init_attr, qpn: u32) {
    // Receives of an SRQ that is recorded come with tags, also where none of the CQ's queue pairs is.
    let attention = if srq::SRQS.get(init.srq).is_some() { FOREIGN | SHARED } else { FOREIGN };
    for raw in [init.send_cq, init.recv_cq] {
        let Some(cq) = cq::CQS.get(raw) else { continue };
        let mut inner = cq.inner.lock();
        inner.gone.retain(|(gone, _)| *gone != qpn);
        if !inner.foreign.contains(&qpn) {
            inner.foreign.push(qpn);
        }
        cq.attention.fetch_or(attention, Ordering::Relaxed);
        drop(inner);
        if let Err(why) = cq::grow(cq, 0) {
            tell::once(
                &format!("a CQ that protected queue pairs share with others may overrun at a fault: {why}"),
                "room of a shared CQ",
            );
        }
    }
}

/// Whether what lies in the SRQ of a QP that is not recorded, if it has one, is what the program posted. After a move it is not, and what the program posts goes
/// elsewhere: messages would be written into memory that is used for something else.
fn has_receives(qp: *mut ibv_qp) -> bool {
    // SAFETY: the application changes a live QP.
    let is_at_home = srq::SRQS.get(unsafe { (*qp).srq }).is_none_or(settle::is_at_home);
    if !is_at_home {
        let reason = "its SRQ's receives are on the standby, where it is not";
        tell::once(&format!("a queue pair that is not protected cannot be connected: {reason}"), reason);
    }
    is_at_home
}

/// `ibv_modify_qp`.
///
/// # Safety
/// As `ibv_modify_qp`.
pub unsafe fn modify(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    let bits = mask as u32;
    let Some(shadow) = QPS.get_arc(qp) else {
        // SAFETY: passed on.
        let change = || unsafe { real::ibv_modify_qp(qp, attr, mask) };
        // SAFETY: the application passes a readable structure.
        let state = (bits & IBV_QP_STATE != 0).then(|| unsafe { (*attr).qp_state });
        if state == Some(IBV_QPS_RTR) && !has_receives(qp) {
            return libc::ETIMEDOUT;
        }
        let is_reset = state == Some(IBV_QPS_RESET);
        return if is_reset { among_cqs_of(qp, change) } else { change() };
    };
    // SAFETY: the application passes a readable structure.
    let state = if bits & IBV_QP_STATE != 0 { Some(unsafe { (*attr).qp_state }) } else { None };
    if matches!(state, Some(IBV_QPS_ERR | IBV_QPS_RESET)) {
        end_by_application(&shadow);
    }
    if state == Some(IBV_QPS_ERR) && (has_moved(&shadow) || shadow.stance() == Stance::Surfaced) {
        // Everything was flushed; the object itself may be in RESET, from where the kernel allows no ERR.
        if shadow.srq.is_some() && shadow.stance() == Stance::Surfaced {
            asynchronous::last_receive_is_back(&shadow);
        } else {
            twin::to_error(shadow.qp);
        }
        twin::show_state(shadow.qp, IBV_QPS_ERR);
        // SAFETY: as above.
        merge(&mut shadow.cold().attr, &unsafe { attr.read() }, bits);
        return 0;
    }
    if matches!(state, None | Some(IBV_QPS_RTS)) && has_moved(&shadow) {
        // SAFETY: as above.
        let errno = twin::send_as_well(&shadow, &unsafe { attr.read() }, bits);
        if let (0, Some(state)) = (errno, state) {
            twin::show_state(shadow.qp, state);
        }
        return errno;
    }
    let mut has_entered = false;
    if let (Some(IBV_QPS_RTR), Some(srq)) = (state, &shadow.srq) {
        // SAFETY: as above.
        has_entered = match enter_srq(&shadow, srq, &unsafe { attr.read() }) {
            Ok(is_first) => is_first,
            Err(errno) => return errno,
        };
    }
    // SAFETY: as above.
    let mut lowered = caps::lowered(&shadow, unsafe { &*attr }, bits);
    let given = lowered.as_mut().map_or(attr, core::ptr::from_mut);
    // SAFETY: passed on.
    let change = || unsafe { real::ibv_modify_qp(qp, given, mask) };
    let errno = changing(&shadow, state, Duration::MAX, change);
    if errno != 0 {
        if has_entered {
            shadow.takes_no_more(Site::PRIMARY);
        }
        // Reset meanwhile, for the others of its SRQ: then its completions are all there.
        let was_set_aside = state == Some(IBV_QPS_ERR) && shadow.srq.is_some() && shadow.stance() == Stance::Surfaced;
        if was_set_aside {
            asynchronous::last_receive_is_back(&shadow);
            twin::show_state(shadow.qp, IBV_QPS_ERR);
        }
        return if was_set_aside { 0 } else { errno };
    }
    // SAFETY: as above.
    let given = unsafe { attr.read() };
    match state {
        Some(IBV_QPS_RESET) => renew(qp, &shadow),
        Some(IBV_QPS_RTR) => {
            merge(&mut shadow.cold().attr, &given, bits);
            connected(&shadow);
        }
        Some(IBV_QPS_RTS) => {
            // RTR to RTS. RTS to RTS and SQD to RTS change other things, and the NIC counts on.
            if bits & IBV_QP_SQ_PSN != 0 {
                begin_sending(&shadow, &given);
            }
            let errno = twin::send_as_well(&shadow, &given, bits);
            if errno != 0 {
                tell::unprotect(&shadow, format!("its standby refused RTS (errno {errno})"));
            }
        }
        _ => merge(&mut shadow.cold().attr, &given, bits),
    }
    0
}

/// Runs a call that changes the state of the application's own object, with what a provider may touch beside it kept from others. Returns errno: EBUSY if
/// another call had it for longer than `patience`.
pub fn changing(
    qp: &QpShadow,
    state: Option<ibv_qp_state>,
    patience: Duration,
    change: impl FnOnce() -> c_int,
) -> c_int {
    let change = || match &qp.ex {
        Some(ex) => ex.across(change),
        None => change(),
    };
    if state == Some(IBV_QPS_RESET) {
        return cq::among(qp.send_cq.cq.0, qp.recv_cq.cq.0, patience, change).unwrap_or(libc::EBUSY);
    }
    change()
}

/// On a path that the receives of its SRQ have left it must not take what still lies there. Says whether it was not connected before; or errno: that of a
/// peer that does not answer, which a program has to expect here.
fn enter_srq(qp: &QpShadow, srq: &SrqShadow, given: &ibv_qp_attr) -> Result<bool, c_int> {
    let gid = rail::by_id(qp.device).and_then(|rail| rail.gid_at(given.ah_attr.port_num, given.ah_attr.grh.sgid_index));
    settle::enter(srq, qp, gid.as_ref()).map_err(|error| {
        log::warn!(
            "QP 0x{:06x} cannot be connected: receives of its SRQ, which moved, are still on this path ({error})",
            qp.qpn
        );
        libc::ETIMEDOUT
    })
}

/// Its primary was fenced: what the application sees is not the state of its own object any more.
pub fn has_moved(qp: &QpShadow) -> bool {
    qp.sq.epoch.load(Ordering::Relaxed) != 0 || qp.stance() == Stance::Masking
}

/// From here on the application's posts have packet numbers.
fn begin_sending(qp: &QpShadow, given: &ibv_qp_attr) {
    let first_psn = u64::from(given.sq_psn & 0xff_ffff);
    let mut cold = qp.cold();
    if let Some(first) = cold.incarnations.first_mut().filter(|first| first.epoch == 0 && !first.closed) {
        (first.completed, first.posted) = (first_psn, first_psn);
    }
    qp.sq.poster.lock().psn_next = first_psn;
}

/// The application's own ERR or RESET: what comes back from now on is its own doing.
fn end_by_application(qp: &QpShadow) {
    match qp.stance() {
        Stance::Surfaced | Stance::Passing => {}
        Stance::Recording => qp.stand(Stance::Passing),
        Stance::Armed if !has_moved(qp) && is_direct(qp) => qp.stand(Stance::Passing),
        // In the middle of a migration, or on the standby: what is out is nowhere any more, or not where the call goes.
        Stance::Armed | Stance::Masking => replay::surface(qp, Some(IBV_WC_WR_FLUSH_ERR.0)),
    }
    tell::application_error(qp);
    let twins = qp.cold().twins;
    twins.into_iter().flatten().for_each(|twin| twin::to_error(twin.qp));
}

fn is_direct(qp: &QpShadow) -> bool {
    qp.sq.poster.lock().mode == PostMode::Direct
}

/// After RESET a QP is another one: a new life, so that nothing of the old one can be meant.
fn renew(qp: *mut ibv_qp, old: &Arc<QpShadow>) {
    let init = old.cold().init;
    let shadows = Shadows {
        pd: Arc::clone(&old.pd),
        send_cq: Arc::clone(&old.send_cq),
        recv_cq: Arc::clone(&old.recv_cq),
        srq: old.srq.clone(),
    };
    end(old);
    process::tell(Event::Destroyed { qp: QpLife(old.life) });
    withdraw_copies(old);
    // Other threads find the old life, in which nothing is posted any more, until the new one takes its place.
    retire(Arc::clone(old));
    if let Err(reason) = begin(qp, old.qpn, &init, shadows, old.ex.clone()) {
        if let Some(ex) = &old.ex {
            ex.unhook();
        }
        pass_through(qp, &init, &reason);
    }
}

/// Copies what the mask names.
pub fn merge(known: &mut ibv_qp_attr, given: &ibv_qp_attr, mask: u32) {
    macro_rules! take {
        ($($bit:ident => $($field:ident),+;)*) => { $( if mask & $bit != 0 { $( known.$field = given.$field; )+ } )* };
    }
    take! {
        IBV_QP_STATE => qp_state;
        IBV_QP_ACCESS_FLAGS => qp_access_flags;
        IBV_QP_PKEY_INDEX => pkey_index;
        IBV_QP_PORT => port_num;
        IBV_QP_AV => ah_attr;
        IBV_QP_PATH_MTU => path_mtu;
        IBV_QP_TIMEOUT => timeout;
        IBV_QP_RETRY_CNT => retry_cnt;
        IBV_QP_RNR_RETRY => rnr_retry;
        IBV_QP_RQ_PSN => rq_psn;
        IBV_QP_SQ_PSN => sq_psn;
        IBV_QP_MAX_QP_RD_ATOMIC => max_rd_atomic;
        IBV_QP_MAX_DEST_RD_ATOMIC => max_dest_rd_atomic;
        IBV_QP_MIN_RNR_TIMER => min_rnr_timer;
        IBV_QP_DEST_QPN => dest_qp_num;
    }
}

/// The QP reached RTR: it has a peer. Some never go further, and only receive (the server of perftest's write test).
fn connected(qp: &Arc<QpShadow>) {
    let mut cold = qp.cold();
    let Some(mtu) = cold.attr.path_mtu.bytes().and_then(Mtu::new) else { return };
    cold.incarnations = vec![Incarnation {
        epoch: 0,
        path: 0,
        mtu: mtu.bytes(),
        completed: 0,
        posted: 0,
        completed_receives: 0,
        posted_receives: 0,
        closed: false,
    }];
    let own_psn = cold.attr.sq_psn;
    cold.connected = Default::default();
    if let Some(first) = cold.connected.first_mut() {
        *first = Some(Connected { epoch: 0, own_psn, mtu: mtu.bytes() });
    }
    qp.sq.poster.lock().mtu_shift = mtu.bytes().trailing_zeros();
    let facts = facts_of(qp, &cold.attr, mtu);
    drop(cold);
    match facts {
        Ok(facts) if qp.unprotected.get().is_none() => {
            process::tell(Event::Connected { qp: QpLife(qp.life), facts });
        }
        Ok(_) => leave_group(qp, "it was unprotected before it was connected"),
        Err(reason) => {
            leave_group(qp, &reason);
            tell::unprotect(qp, reason);
        }
    }
}

/// The agent does not know it, and it takes receives of its SRQ: nobody else of that is protected either.
fn leave_group(qp: &QpShadow, why: &str) {
    if let Some(srq) = &qp.srq {
        srq::note_stranger(srq.srq.0, qp.qpn, why);
    }
}

fn facts_of(qp: &QpShadow, attr: &ibv_qp_attr, mtu: Mtu) -> Result<ConnectionFacts, String> {
    if attr.ah_attr.is_global == 0 {
        return Err("its path has no GID".to_owned());
    }
    let rail = rail::by_id(qp.device).ok_or("its device is unknown")?;
    let gid = rail
        .gid_at(attr.ah_attr.port_num, attr.ah_attr.grh.sgid_index)
        .ok_or("its source GID is not in the table of the device")?;
    Ok(ConnectionFacts {
        device: DeviceId(qp.device),
        qpn: qp.qpn,
        gid: Gid(gid.gid.raw),
        netdev: netdev_name(gid.ndev_ifindex),
        peer_qpn: attr.dest_qp_num,
        peer_gid: Gid(attr.ah_attr.grh.dgid.raw),
        mtu,
        group: qp.srq.as_ref().map(|srq| GroupId(srq.life)),
    })
}

fn netdev_name(index: u32) -> String {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the array has IF_NAMESIZE bytes, as the function asks.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return String::new();
    }
    std::ffi::CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `ibv_query_qp`: a QP that moved looks to the application as if it had not.
///
/// # Safety
/// As `ibv_query_qp`.
pub unsafe fn query(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int, init: *mut ibv_qp_init_attr) -> c_int {
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_query_qp(qp, attr, mask, init) };
    let Some(shadow) = QPS.get(qp).filter(|_| errno == 0) else { return errno };
    let moved = has_moved(shadow);
    // On the standby an error that the application got is not to be seen in its own object.
    let ended = match shadow.stance() {
        Stance::Surfaced => true,
        Stance::Passing => moved,
        Stance::Recording | Stance::Armed | Stance::Masking => false,
    };
    // SAFETY: the call above filled the structure.
    let seen = unsafe { &mut *attr };
    if !moved && !ended {
        caps::hide(seen, || shadow.cold().attr);
        return 0;
    }
    let known = shadow.cold().attr;
    // The object in use has other ones, and one that was fenced may say nothing of them; packet numbers are those that the application set.
    let all = !(IBV_QP_STATE | IBV_QP_CAP);
    merge(seen, &known, all);
    seen.cap = shadow.cap;
    seen.path_mig_state = IBV_MIG_MIGRATED;
    seen.qp_state = if ended { IBV_QPS_ERR } else { known.qp_state };
    seen.cur_qp_state = seen.qp_state;
    0
}

/// `ibv_destroy_qp`.
///
/// # Safety
/// As `ibv_destroy_qp`.
pub unsafe fn destroy(qp: *mut ibv_qp) -> c_int {
    // SAFETY: passed on.
    let destroy = || unsafe { real::ibv_destroy_qp(qp) };
    let Some(shadow) = QPS.get_arc(qp) else {
        forget_foreign(qp);
        asynchronous::forget_qp(qp);
        // SAFETY: the QP is live until the call below.
        asynchronous::count_foreign(unsafe { (*qp).context }, false);
        return among_cqs_of(qp, destroy);
    };
    end(&shadow);
    // After the end of its life, from where on nothing more is put into the queue.
    asynchronous::forget_qp(qp);
    process::tell(Event::Destroyed { qp: QpLife(shadow.life) });
    let init = shadow.cold().init;
    let errno = among_cqs_of(qp, destroy);
    withdraw_copies(&shadow);
    if errno == 0 {
        srq::part(&shadow, Some(Site::PRIMARY));
        QPS.remove_this(qp, &shadow);
        return 0;
    }
    // It is still there, and the program goes on with it.
    retire(Arc::clone(&shadow));
    if let Some(ex) = &shadow.ex {
        ex.unhook();
    }
    pass_through(qp, &init, "it was about to be destroyed, and could not be");
    errno
}

/// Runs a call that resets or destroys the application's QP.
fn among_cqs_of(qp: *mut ibv_qp, change: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the QP is live until the call.
    let send_cq = unsafe { (*qp).send_cq };
    // SAFETY: as above.
    let recv_cq = unsafe { (*qp).recv_cq };
    cq::among(send_cq, recv_cq, Duration::MAX, change).unwrap_or(libc::EBUSY)
}

fn forget_foreign(qp: *mut ibv_qp) {
    OTHERS.remove(qp);
    // SAFETY: the QP is live until the application's destroy runs; its lock is not touched.
    let qpn = unsafe { (*qp).qp_num };
    if let Some(device) = device_of(qp) {
        process::tell(Event::UnrecordedGone { device: DeviceId(device), qpn });
    }
    // SAFETY: as above.
    let send_cq = unsafe { (*qp).send_cq };
    // SAFETY: as above.
    let recv_cq = unsafe { (*qp).recv_cq };
    for raw in [send_cq, recv_cq] {
        if let Some(cq) = cq::CQS.get(raw) {
            cq.inner.lock().foreign.retain(|foreign| *foreign != qpn);
        }
    }
}

/// Ends a life: nobody posts in it any more when this returns, and no completion leads to it. Only who calls verbs on the QP still finds it.
fn end(shadow: &Arc<QpShadow>) {
    let twins = {
        let mut cold = shadow.cold();
        cold.alive = false;
        shadow.sq.poster.lock().mode = PostMode::Gone;
        shadow.rq.poster.lock().mode = PostMode::Gone;
        if shadow.srq.is_some() {
            // What it has received is the application's, on whatever path, and it receives no more: the agent hears of the end before the object is gone.
            poll::sweep(&shadow.recv_cq);
            settle::leave(shadow, &mut cold);
        }
        let twins: Vec<(u8, Raw<ibv_qp>)> =
            (0..).zip(core::mem::take(&mut cold.twins)).filter_map(|(slot, twin)| Some((slot, twin?.qp))).collect();
        for (_, twin) in &twins {
            // Destroying it may take long; from here on it touches no memory any more, as after any destroy.
            if twin::to_state(*twin, IBV_QPS_RESET) != 0 {
                twin::to_error(*twin);
            }
        }
        twins
    };
    if shadow.srq.is_some() {
        leave_srq(shadow, &twins);
    }
    {
        let (mut send, mut recv) = lock_cqs(shadow);
        lives::end(shadow.life);
        bury(&shadow.send_cq, &mut send, shadow);
        if let Some(recv) = &mut recv {
            bury(&shadow.recv_cq, recv, shadow);
        }
    }
    shrink_cqs(&shadow.send_cq, &shadow.recv_cq, &flushable(&shadow.cold().init, shadow.srq.is_some()));
    twins.into_iter().for_each(|(slot, twin)| reaper::destroy_twin(twin, slot, Arc::clone(shadow)));
    (1..=MAX_STANDBYS).filter_map(|place| take_registration(shadow, place)).for_each(reaper::dereg_mr);
}

/// Completions lead to it no more.
fn leave_srq(shadow: &QpShadow, twins: &[(u8, Raw<ibv_qp>)]) {
    srq::part(shadow, None);
    shadow.recv_cq.inner.lock().receivers.remove(&(Source::Own, shadow.qpn));
    twins.iter().for_each(|(slot, twin)| twin::receives_no_more(shadow, *slot, *twin));
}

/// Withdraws the registration of the QP's copies on the application's PD, which it may free next: so not by the reaper. The QP that used it is
/// gone, or in RESET.
fn withdraw_copies(shadow: &QpShadow) {
    if let Some(mr) = take_registration(shadow, 0) {
        // SAFETY: the registration is this library's own and was taken out of its place; nobody uses it any more.
        unsafe { real::ibv_dereg_mr(mr.0) };
    }
}

/// The registration of the QP's copies on the primary (0) or in a slot (1 more), to be withdrawn.
pub fn take_registration(shadow: &QpShadow, place: usize) -> Option<Raw<ibv_mr>> {
    let mr = shadow.sq.copies.get()?.registrations.get(place)?.swap(core::ptr::null_mut(), Ordering::AcqRel);
    (!mr.is_null()).then_some(Raw(mr))
}

fn bury(cq: &CqShadow, inner: &mut CqInner, shadow: &QpShadow) {
    poll::purge(cq, inner, shadow.life);
    if inner.gone.len() >= GONE {
        inner.gone.pop_front();
    }
    inner.gone.push_back((shadow.qpn, shadow.life));
}

/// In a forked child: no agent, so every fault is the application's.
pub fn disarm_all() {
    lives::visit_alone(|qp| {
        qp.step(Stance::Armed, Stance::Recording);
    });
}
