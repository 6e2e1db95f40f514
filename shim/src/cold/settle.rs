//! The one move of a group's receives from one object of its SRQ to another, and who may take them.
//!
//! What must hold: receives are posted in a new place once, in order, when no queue pair can take them in the old one any more. Which can stands in
//! [`QpShadow::takes`], whatever the agent knows: the bit of a site is set before an object goes to RTR there, and cleared when it was swept after RESET, or is
//! gone. What lies in an object that the receives have left is taken out before anybody can be connected there, because its buffers have been used since.

use crate::cold::srq::{grow_twin, limit_of, set_limit, SrqCold};
use crate::cold::{rail, replay, twin, withdraw};
use crate::hot::poll;
use crate::hot::srq::{give, SrqShadow};
use crate::shadow::*;
use crate::spin::Waiter;
use core::sync::atomic::Ordering;
use shift_abi::*;
use shift_control::datapath::{Errno, Round};
use shift_proto::id::{Site, MAX_PATHS};
use std::sync::TryLockError;
use std::time::{Duration, Instant};

/// How long the completions of a queue pair that ended in an error are waited for before it is reset.
const ASIDE: Duration = Duration::from_millis(200);
/// How long a queue pair that is being connected waits until what its path was left with is taken out.
const CONNECTS: Duration = Duration::from_millis(500);

/// A move that has begun.
#[derive(Clone, Copy)]
pub struct Moving {
    /// Where to.
    site: Site,
    /// Receives that were posted from that one on, by their numbers, have yet to be posted there.
    from: u64,
}

impl Moving {
    /// They go there.
    pub fn is_to(&self, site: Site) -> bool {
        self.site == site
    }
}

impl QpShadow {
    /// Its object there may take receives of its SRQ from here on. `false`: so it was before.
    pub fn begins_to_take(&self, site: Site) -> bool {
        self.takes.fetch_or(1 << site.0, Ordering::AcqRel) & 1 << site.0 == 0
    }

    /// Its object there takes no receives of its SRQ any more.
    pub fn takes_no_more(&self, site: Site) {
        self.takes.fetch_and(!(1 << site.0), Ordering::AcqRel);
    }

    fn takes_in(&self, site: Site) -> bool {
        self.takes.load(Ordering::Acquire) & 1 << site.0 != 0
    }
}

impl QpCold {
    /// Where the receives of its SRQ lie when it is on that path.
    pub fn site(&self, path: u8) -> Site {
        self.slot(path).map_or(Site::PRIMARY, Site::of_slot)
    }
}

/// Posts what has not completed where that path leads, in order, once in that round, also where it lies there already: a receive that a message had taken in
/// part is in no queue. Goes on where it stopped. EBUSY: a queue pair still takes receives; EAGAIN: what lies there is being taken out.
pub fn settle(
    srq: &SrqShadow,
    own: &QpShadow,
    own_cold: &mut QpCold,
    (path, round): (u8, Round),
) -> Result<usize, Errno> {
    let site = own_cold.site(path);
    let mut cold = srq.cold();
    if cold.home == site && cold.round == round && cold.moving.is_none() {
        return Ok(0);
    }
    if srq.has_strangers.load(Ordering::Acquire) {
        // Nobody can say when it takes no receive any more.
        return Err(Errno(libc::EOPNOTSUPP));
    }
    keep_off(srq, &mut cold, Some((own, own_cold)), site)?;
    let gid = own_cold.gid_of(path);
    move_to(srq, &mut cold, (site, round), gid.as_ref())
}

fn move_to(
    srq: &SrqShadow,
    cold: &mut SrqCold,
    (site, round): (Site, Round),
    gid: Option<&ibv_gid_entry>,
) -> Result<usize, Errno> {
    if cold.moving.is_none_or(|moving| moving.site != site) {
        begin(srq, cold, site, gid)?;
    }
    let count = go_on(srq, cold)?;
    let limit = core::mem::take(&mut cold.limit);
    let from = core::mem::replace(&mut cold.home, site);
    cold.round = round;
    if let Some((old, _)) = object_of(srq, cold, from).filter(|_| from != site) {
        set_limit(old, 0);
    }
    if let Some((object, _)) = object_of(srq, cold, site).filter(|_| limit != 0) {
        set_limit(object, limit);
    }
    log::debug!("SRQ {}: {count} receives posted on {site}", srq.life);
    Ok(count)
}

/// From here on what was posted before is of an earlier generation, and posts wait until it is posted again.
fn begin(srq: &SrqShadow, cold: &mut SrqCold, site: Site, gid: Option<&ibv_gid_entry>) -> Result<(), Errno> {
    let posting = cold.moving.map_or(cold.home, |moving| moving.site);
    if let Some((from, _)) = object_of(srq, cold, cold.home) {
        cold.set_aside(limit_of(from));
    }
    if posting == site {
        mark_left(cold, site);
    }
    if cold.has_left(site) {
        empty(srq, cold, site, gid)?;
        if posting == site {
            // The application has posted there meanwhile.
            srq.poster.lock().held = true;
            mark_left(cold, site);
            if let Err(error) = empty(srq, cold, site, gid) {
                srq.poster.lock().held = false;
                return Err(error);
            }
        }
    }
    grow_twin(srq, cold, site)?;
    let (object, post) = object_of(srq, cold, site).ok_or(Errno(libc::ENODEV))?;
    let mut poster = srq.poster.lock();
    if posting != site {
        mark_left(cold, posting);
    }
    poster.held = true;
    poster.target = object;
    poster.post = post;
    poster.translate = site != Site::PRIMARY;
    site.slot().into_iter().for_each(|slot| poster.keys.go_to(slot));
    poster.generation += 1;
    srq.slots.lock().renew(poster.generation);
    cold.moving = Some(Moving { site, from: 0 });
    Ok(())
}

fn go_on(srq: &SrqShadow, cold: &mut SrqCold) -> Result<usize, Errno> {
    let Some(moving) = cold.moving.as_mut() else { return Ok(0) };
    let mut poster = srq.poster.lock();
    let left = srq.slots.lock().outstanding(moving.from);
    for (seq, at) in &left {
        let errno = give(srq, &mut poster, *at);
        if errno != 0 {
            return Err(Errno(errno));
        }
        moving.from = seq + 1;
    }
    poster.held = false;
    cold.moving = None;
    Ok(left.len())
}

/// What lies in that object is posted elsewhere, or anew.
fn mark_left(cold: &mut SrqCold, site: Site) {
    if let Some(left) = cold.left.get_mut(usize::from(site.0)) {
        *left = true;
    }
}

fn rail_of(srq: &SrqShadow, site: Site) -> Option<std::sync::Arc<rail::Rail>> {
    let device = match site.slot() {
        None => srq.device,
        Some(slot) => srq.pd.twin(slot)?.device,
    };
    rail::by_id(device)
}

fn object_of(srq: &SrqShadow, cold: &SrqCold, site: Site) -> Option<(Raw<ibv_srq>, post_srq_recv_fn)> {
    let object = if site == Site::PRIMARY { srq.srq } else { cold.twin(site)? };
    Some((object, rail_of(srq, site)?.ops.post_srq_recv?))
}

/// Takes out of an object what is posted in another by now.
fn empty(srq: &SrqShadow, cold: &mut SrqCold, site: Site, gid: Option<&ibv_gid_entry>) -> Result<(), Errno> {
    let (object, _) = object_of(srq, cold, site).ok_or(Errno(libc::ENODEV))?;
    let rail = rail_of(srq, site).ok_or(Errno(libc::ENODEV))?;
    let gid = gid.ok_or(Errno(libc::ENODEV))?;
    set_limit(object, 0);
    let under_way = cold.withdrawals.get_mut(usize::from(site.0)).ok_or(Errno(libc::ENODEV))?;
    let taken = withdraw::go_on(under_way, object, &rail, gid)?;
    log::debug!("SRQ {}: {taken} receives taken back from {}", srq.life, rail.name);
    if let Some(left) = cold.left.get_mut(usize::from(site.0)) {
        *left = false;
    }
    Ok(())
}

/// Whether a queue pair that is not recorded may take receives where they are made for it, on the primary: what lies there otherwise has been used since.
pub fn is_at_home(srq: &SrqShadow) -> bool {
    let cold = srq.cold();
    cold.home == Site::PRIMARY && !cold.is_half_way()
}

/// A queue pair is about to be connected on the primary, and is known to take receives there from here on. What the receives have left there must not be
/// taken; where a move was given up half-way because nobody is left, they are brought back. `false`: it was connected there before.
pub fn enter(srq: &SrqShadow, qp: &QpShadow, gid: Option<&ibv_gid_entry>) -> Result<bool, Errno> {
    let until = Instant::now() + CONNECTS;
    let mut waiter = Waiter::default();
    loop {
        match try_enter(srq, qp, gid) {
            Err(Errno(libc::EAGAIN | libc::EBUSY)) if Instant::now() < until => waiter.turn(),
            entered => return entered,
        }
    }
}

fn try_enter(srq: &SrqShadow, qp: &QpShadow, gid: Option<&ibv_gid_entry>) -> Result<bool, Errno> {
    let mut cold = srq.cold();
    let is_other =
        |other: &QpShadow| other.life != qp.life && other.may_move() && other.takes.load(Ordering::Acquire) != 0;
    let is_half_way = cold.home == Site::PRIMARY && cold.is_half_way();
    if is_half_way && srq.members().iter().any(|other| is_other(other)) {
        // Theirs is the move: who came in between would be the reason that nobody ends it.
        return Err(Errno(libc::EBUSY));
    }
    if is_half_way {
        keep_off(srq, &mut cold, None, Site::PRIMARY)?;
        let round = cold.round;
        move_to(srq, &mut cold, (Site::PRIMARY, round), gid)?;
    } else if cold.has_left(Site::PRIMARY) {
        empty(srq, &mut cold, Site::PRIMARY, gid)?;
    }
    Ok(qp.begins_to_take(Site::PRIMARY))
}

/// EBUSY while a queue pair takes receives elsewhere, or here since before a move that ends where it began. Those that ended in an error are reset here, and
/// so is what was connected for a move that went no further.
fn keep_off(
    srq: &SrqShadow,
    cold: &mut SrqCold,
    mut own: Option<(&QpShadow, &mut QpCold)>,
    site: Site,
) -> Result<(), Errno> {
    let is_again = cold.moving.is_none() && cold.home == site;
    let members = srq.members().clone();
    let mut are_off = true;
    // All of them, also behind one that is not: what they wait for passes at the same time.
    for qp in members.iter().filter(|qp| qp.takes.load(Ordering::Acquire) != 0) {
        are_off &= match &mut own {
            Some((own, own_cold)) if own.life == qp.life => is_off(qp, own_cold, (site, is_again)),
            // Who has it may wait for what this thread holds.
            _ => match qp.cold.try_lock() {
                Ok(mut its) => is_off(qp, &mut its, (site, is_again)),
                Err(TryLockError::Poisoned(its)) => is_off(qp, &mut its.into_inner(), (site, is_again)),
                Err(TryLockError::WouldBlock) => false,
            },
        };
    }
    if are_off {
        Ok(())
    } else {
        Err(Errno(libc::EBUSY))
    }
}

/// Whether it takes nothing that is posted anew.
fn is_off(qp: &QpShadow, its: &mut QpCold, (site, is_again): (Site, bool)) -> bool {
    let takes = |at: Site| qp.takes_in(at);
    match qp.stance() {
        _ if !its.alive => !is_again && Site::all().all(|at| at == site || !takes(at)),
        Stance::Surfaced => leave(qp, its),
        Stance::Passing => set_aside(qp, its),
        Stance::Recording | Stance::Armed | Stance::Masking => Site::all().all(|at| match takes(at) {
            false => true,
            true if at == site => !is_again || !runs(its, at),
            true => !runs(its, at) && stop(qp, its, at),
        }),
    }
}

/// Whether messages may come to it there: what was connected for a move waits until the receives are there.
fn runs(its: &QpCold, site: Site) -> bool {
    let Some(last) = its.incarnations.last() else { return true };
    let is_waiting = last.epoch != 0 && its.reposted != Some(last.epoch);
    !last.closed && its.site(last.path) == site && !is_waiting
}

/// Puts its object there to RESET. `false`: that failed, and it may take receives.
fn stop(qp: &QpShadow, its: &mut QpCold, site: Site) -> bool {
    let object = match site.slot() {
        None => Some(qp.qp),
        Some(slot) => its.twins.get(usize::from(slot)).copied().flatten().map(|twin| twin.qp),
    };
    let errno = object.map_or(0, |object| twin::to_state(object, IBV_QPS_RESET));
    if errno != 0 {
        log::warn!("QP 0x{:06x} could not be kept from the receives of its SRQ (errno {errno})", qp.qpn);
        return false;
    }
    if let Some(path) = (0..MAX_PATHS as u8).find(|path| its.site(*path) == site) {
        twin::disconnect(its, path);
    }
    let is_swept = poll::sweep(&qp.recv_cq);
    if is_swept {
        qp.takes_no_more(site);
    }
    is_swept
}

/// The receives of its SRQ go on without it: it takes none from here on, and what it took has completed. `false`: it may still take some.
pub fn leave(qp: &QpShadow, its: &mut QpCold) -> bool {
    for site in Site::all() {
        if qp.takes_in(site) {
            stop(qp, its, site);
        }
    }
    qp.takes.load(Ordering::Acquire) == 0
}

/// It ended in an error of the application's own. Once its completions are here, or were waited for long enough, nothing more comes from its object.
fn set_aside(qp: &QpShadow, its: &mut QpCold) -> bool {
    poll::sweep(&qp.send_cq);
    let since = *its.aside.get_or_insert_with(Instant::now);
    if qp.sq.ring.head() != qp.sq.ring.tail() && since.elapsed() < ASIDE {
        return false;
    }
    qp.stand(Stance::Surfaced);
    let is_off = leave(qp, its);
    replay::flush(qp, IBV_WC_WR_FLUSH_ERR);
    is_off
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomics::AtomicBool;
    use crate::cold::srq::{limit_elsewhere, SrqCold};
    use crate::hot::keys::KeyCache;
    use crate::hot::srq::{Slots, SrqPoster};
    use crate::hot::tests::Bench;
    use crate::spin::SpinCell;
    use std::cell::RefCell;
    use std::sync::{Arc, Mutex, OnceLock};

    thread_local! {
        /// Slots of the receives that the provider was given, and how many more it takes.
        static GIVEN: RefCell<(Vec<u64>, usize)> = const { RefCell::new((Vec::new(), usize::MAX)) };
    }

    unsafe extern "C" fn post(_: *mut ibv_srq, wr: *mut ibv_recv_wr, _: *mut *mut ibv_recv_wr) -> i32 {
        // SAFETY: the code under test passes a request.
        let tag = unsafe { (*wr).wr_id };
        GIVEN.with_borrow_mut(|(given, room)| {
            if *room == 0 {
                return libc::ENOMEM;
            }
            *room -= 1;
            given.push(tag & 0xffff);
            0
        })
    }

    fn try_post(srq: &SrqShadow) -> i32 {
        let mut wr = ibv_recv_wr { wr_id: 7, next: core::ptr::null_mut(), sg_list: core::ptr::null_mut(), num_sge: 0 };
        // SAFETY: the request lives across the call; nothing is asked of where it failed.
        unsafe { crate::hot::srq::post(srq, &mut wr, core::ptr::null_mut()) }
    }

    fn post_one(srq: &SrqShadow) {
        assert_eq!(try_post(srq), 0);
    }

    fn given() -> Vec<u64> {
        GIVEN.with_borrow_mut(|(given, _)| core::mem::take(given))
    }

    fn srq_of(qps: &[&Bench]) -> SrqShadow {
        let target = Raw(core::ptr::null_mut());
        let (keys, sges) = (KeyCache::new(), Vec::new());
        let poster = SrqPoster { target, post, translate: false, generation: 0, held: false, room: 4, keys, sges };
        SrqShadow {
            life: crate::lives::next(),
            srq: target,
            device: 0,
            pd: qps.first().map(|bench| Arc::clone(&bench.qp.pd)).unwrap_or_else(|| unreachable!("no queue pair")),
            max_sge: 1,
            poster: SpinCell::new(poster),
            slots: SpinCell::new(Slots::new(4, 1)),
            members: Mutex::new(qps.iter().map(|bench| Arc::clone(&bench.qp)).collect()),
            cold: Mutex::new(SrqCold::default()),
            unprotected: OnceLock::new(),
            has_strangers: AtomicBool::new(false),
        }
    }

    fn incarnation(epoch: u32, path: u8, closed: bool) -> Incarnation {
        Incarnation {
            epoch,
            path,
            mtu: 1024,
            completed: 0,
            posted: 0,
            completed_receives: 0,
            posted_receives: 0,
            closed,
        }
    }

    fn moves(srq: &SrqShadow, site: u8) -> Result<(), Errno> {
        keep_off(srq, &mut srq.cold(), None, Site(site))
    }

    const BUSY: Result<(), Errno> = Err(Errno(libc::EBUSY));

    #[test]
    fn receives_stay_where_they_are_while_any_queue_pair_may_take_one() {
        let (one, other) = (Bench::new(), Bench::new());
        let srq = srq_of(&[&one, &other]);
        assert_eq!(moves(&srq, 1), Ok(()));
        other.qp.takes.store(1, Ordering::Relaxed);
        assert_eq!(moves(&srq, 1), BUSY, "it is going to RTR, and nothing is written of it yet");
        other.qp.cold().incarnations = vec![incarnation(0, 0, false)];
        assert_eq!(moves(&srq, 1), BUSY, "it is connected there, whether the agent knows or not");
        other.qp.cold().alive = false;
        assert_eq!(moves(&srq, 1), BUSY, "its object is not gone yet");
        other.qp.takes_no_more(Site(0));
        let held = one.qp.cold();
        one.qp.takes.store(1, Ordering::Relaxed);
        assert_eq!(moves(&srq, 1), BUSY, "somebody is changing it");
        drop(held);
        one.qp.takes_no_more(Site(0));
        assert_eq!(moves(&srq, 1), Ok(()));
    }

    #[test]
    fn one_that_waits_for_its_last_completions_keeps_no_other_from_doing_so() {
        let (one, other) = (Bench::new(), Bench::new());
        let srq = srq_of(&[&one, &other]);
        for bench in [&one, &other] {
            bench.post_signalled(1);
            bench.qp.takes.store(1, Ordering::Relaxed);
            bench.qp.stand(Stance::Passing);
        }
        assert_eq!(moves(&srq, 1), BUSY);
        assert!(one.qp.cold().aside.is_some() && other.qp.cold().aside.is_some());
    }

    #[test]
    fn nobody_comes_in_while_a_move_of_others_is_half_way() {
        let (one, newcomer) = (Bench::new(), Bench::new());
        let srq = srq_of(&[&one, &newcomer]);
        one.qp.takes.store(2, Ordering::Relaxed);
        srq.cold().moving = Some(Moving { site: Site(1), from: 0 });
        assert_eq!(try_enter(&srq, &newcomer.qp, None), Err(Errno(libc::EBUSY)));
        assert!(!is_at_home(&srq), "nor anybody who is not recorded");
        srq.cold().moving = None;
        assert!(is_at_home(&srq));
        assert_eq!(try_enter(&srq, &newcomer.qp, None), Ok(true));
    }

    #[test]
    fn where_somebody_is_not_recorded_nothing_is_moved() {
        let bench = Bench::new();
        let srq = srq_of(&[&bench]);
        srq.has_strangers.store(true, Ordering::Relaxed);
        let moved = settle(&srq, &bench.qp, &mut bench.qp.cold(), (1, Round(1)));
        assert_eq!(moved, Err(Errno(libc::EOPNOTSUPP)));
        assert!(srq.cold().moving.is_none());
    }

    #[test]
    fn a_move_that_stops_half_way_goes_on_there_and_no_later_receive_overtakes() {
        let bench = Bench::new();
        let srq = srq_of(&[&bench]);
        (0..3).for_each(|_| post_one(&srq));
        assert_eq!(given(), [0, 1, 2]);
        {
            let mut poster = srq.poster.lock();
            (poster.held, poster.generation) = (true, 1);
            srq.slots.lock().renew(1);
        }
        let mut cold = srq.cold();
        cold.moving = Some(Moving { site: Site(1), from: 0 });
        GIVEN.with_borrow_mut(|(_, room)| *room = 1);
        assert_eq!(go_on(&srq, &mut cold), Err(Errno(libc::ENOMEM)));
        assert_eq!(given(), [0]);
        post_one(&srq);
        assert!(given().is_empty(), "it waits behind those that were posted before it");
        GIVEN.with_borrow_mut(|(_, room)| *room = usize::MAX);
        assert_eq!(go_on(&srq, &mut cold), Ok(3));
        assert_eq!(given(), [1, 2, 3]);
        assert!(cold.moving.is_none());
        assert_eq!(go_on(&srq, &mut cold), Ok(0));
    }

    /// A program may post until it is refused. A twin has room for more, and so has what is held.
    #[test]
    fn no_more_receives_are_posted_away_from_home_than_home_takes_back() {
        let bench = Bench::new();
        let srq = srq_of(&[&bench]);
        let fill = |most: usize| (0..most).take_while(|_| try_post(&srq) == 0).count();
        srq.poster.lock().translate = true;
        assert_eq!((fill(9), try_post(&srq)), (4, libc::ENOMEM));
        assert_eq!(given().len(), 4);
        srq.poster.lock().held = true;
        assert_eq!(try_post(&srq), libc::ENOMEM);
        // The program has asked for a larger one.
        srq.poster.lock().room = 6;
        srq.slots.lock().grow(9);
        assert_eq!(fill(9), 2);
        let mut poster = srq.poster.lock();
        (poster.translate, poster.held) = (false, false);
        drop(poster);
        assert_eq!(fill(3), 3, "at home the provider says how many it takes");
    }

    #[test]
    fn a_limit_that_is_set_while_a_move_has_stopped_half_way_goes_with_the_receives() {
        let bench = Bench::new();
        let srq = srq_of(&[&bench]);
        post_one(&srq);
        let mut cold = srq.cold();
        assert_eq!(limit_elsewhere(&srq, &mut cold, 3), None, "it is the object's own");
        cold.set_aside(3);
        cold.set_aside(0);
        assert_eq!(cold.limit, 3, "an object that was emptied has none");
        cold.moving = Some(Moving { site: Site(1), from: 0 });
        GIVEN.with_borrow_mut(|(_, room)| *room = 0);
        assert!(move_to(&srq, &mut cold, (Site(1), Round(1)), None).is_err());
        assert_eq!(limit_elsewhere(&srq, &mut cold, 5), Some(libc::EINVAL), "there is room for four");
        assert_eq!(limit_elsewhere(&srq, &mut cold, 2), Some(0));
        // It turns aside: the object that the receives leave has the limit of before.
        cold.set_aside(3);
        assert_eq!(cold.limit, 2);
        GIVEN.with_borrow_mut(|(_, room)| *room = usize::MAX);
        assert_eq!(move_to(&srq, &mut cold, (Site(1), Round(1)), None), Ok(1));
        assert_eq!((cold.home, cold.limit), (Site(1), 0), "it was handed on");
    }

    unsafe extern "C" fn say_empty(_: *mut ibv_cq, _: i32, out: *mut ibv_wc) -> i32 {
        let mut nothing_left = ibv_wc::zeroed();
        nothing_left.status = IBV_WC_RNR_RETRY_EXC_ERR;
        // SAFETY: the code under test has room for many.
        unsafe { out.write(nothing_left) };
        1
    }

    /// A move may turn aside while a standby is being emptied, and go to another one that has to be emptied too.
    #[test]
    fn emptying_one_standby_goes_on_there_and_says_nothing_of_another() {
        let ops = ProviderOps { post_srq_recv: Some(post), poll_cq: say_empty, ..crate::hot::tests::OPS };
        let standbys = [0, 1].map(|slot| StandbyPd {
            slot,
            device: rail::tests::entered(ops, Default::default()).id,
            pd: Raw(core::ptr::null_mut()),
        });
        let bench = Bench::new();
        let srq = SrqShadow { pd: Arc::new(PdShadow::new(0, Ok(standbys.to_vec()))), ..srq_of(&[&bench]) };
        let (mut objects, sites) = ([ibv_srq::zeroed(), ibv_srq::zeroed()], [0, 1].map(Site::of_slot));
        let mut cold = srq.cold();
        cold.twins.iter_mut().zip(&mut objects).for_each(|(place, object)| *place = Some(Raw(object)));
        sites.into_iter().for_each(|site| mark_left(&mut cold, site));
        let gid = ibv_gid_entry::zeroed();
        if let Some(first) = cold.withdrawals.get_mut(usize::from(sites[0].0)) {
            *first = Some(withdraw::Withdrawal::half_way());
        }
        assert!(empty(&srq, &mut cold, sites[1], Some(&gid)).is_err(), "without a device it cannot even begin");
        assert_eq!(sites.map(|site| cold.has_left(site)), [true; 2]);
        assert_eq!(empty(&srq, &mut cold, sites[0], Some(&gid)), Ok(()));
        assert_eq!(sites.map(|site| cold.has_left(site)), [false, true]);
    }

    #[test]
    fn to_post_again_in_the_same_place_waits_for_those_that_messages_come_to() {
        let bench = Bench::new();
        let srq = srq_of(&[&bench]);
        bench.qp.takes.store(1, Ordering::Relaxed);
        bench.qp.cold().incarnations = vec![incarnation(0, 0, false)];
        assert_eq!(moves(&srq, 0), BUSY, "it works there");
        bench.qp.cold().incarnations = vec![incarnation(0, 0, true), incarnation(2, 0, false)];
        assert_eq!(moves(&srq, 0), Ok(()), "it was connected anew, and waits for receives");
        bench.qp.cold().reposted = Some(2);
        assert_eq!(moves(&srq, 0), BUSY, "it has got them");
        srq.cold().home = Site(1);
        assert_eq!(moves(&srq, 0), Ok(()), "to where it is they may come from elsewhere");
    }
}
