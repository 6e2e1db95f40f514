//! The agent's view of the shim: each method finds the QP of that life and does one thing to it.

use crate::cold::device::as_agent;
use crate::cold::{cm, fence, growth, mr, presence, probe, rail, replay, slice, tell, twin};
use crate::hot::{poll, timed};
use crate::lives;
use crate::shadow::{QpShadow, Stance};
use core::sync::atomic::Ordering;
use shift_control::counters;
use shift_control::datapath::*;
use shift_proto::gray::Sample;
use shift_proto::id::{Epoch, Micros, PathId, Psn, WrSeq};
use shift_proto::ledger::{Ledger, Plan};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The data path of this process.
#[derive(Default)]
pub struct Shim {
    probes: probe::Probes,
    /// QPs that the sweep looks at: those that are, or were, armed.
    armed: Mutex<BTreeMap<u32, ()>>,
}

impl Shim {
    /// One without probes.
    pub fn new() -> Self {
        Self::default()
    }

    fn of(qp: QpLife) -> Option<Arc<QpShadow>> {
        lives::arc(qp.0)
    }

    /// Calls `visit` with the living QP; `otherwise` if the application ended it meanwhile.
    #[track_caller]
    fn with<R>(qp: QpLife, otherwise: R, visit: impl FnOnce(&QpShadow) -> R) -> R {
        match Self::of(qp) {
            Some(qp) => as_agent(|| visit(&qp)),
            None => otherwise,
        }
    }
}

const GONE: Errno = Errno::DESTROYED;

impl DataPath for Shim {
    fn agent_began(&self) {
        slice::shorten();
    }

    fn standbys_of(&self, primary: DeviceId) -> Result<Vec<Choice>, Unprotected> {
        as_agent(|| {
            let rail = rail::by_id(primary.0).ok_or_else(|| Unprotected("its device is unknown".to_owned()))?;
            let standbys = rail::standbys_of(&rail).map_err(Unprotected)?;
            Ok(standbys.iter().map(|one| Choice { device: DeviceId(one.rail.id), rank: one.rank }).collect())
        })
    }

    fn seek_standbys(&self) {
        as_agent(growth::seek);
    }

    fn stand_in(&self, device: DeviceId) {
        if rail::stand_in(device.0) {
            growth::look_again();
        }
    }

    fn device_name(&self, device: DeviceId) -> String {
        rail::by_id(device.0).map(|rail| rail.name.clone()).unwrap_or_default()
    }

    fn prepare_standbys(&self, qp: QpLife) -> Result<Prepared, Unprotected> {
        Self::with(qp, Err(Unprotected::destroyed()), |qp| {
            if let Some(reason) = qp.unprotected.get() {
                return Err(Unprotected(reason.clone()));
            }
            twin::prepare(qp)
        })
    }

    fn arrange(&self, qp: QpLife, slots: &[u8]) {
        Self::with(qp, (), |qp| twin::arrange(qp, slots));
    }

    fn atomics_hold(&self, qp: QpLife) -> bool {
        Self::with(qp, false, twin::atomics_hold)
    }

    fn forbid_atomics(&self, qp: QpLife) {
        Self::with(qp, (), tell::forbid_atomics);
    }

    fn connect(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        peer: &PathEnd,
        own_psn: Psn,
        peer_psn: Psn,
    ) -> Result<(), Errno> {
        Self::with(qp, Err(GONE), |qp| {
            let connected = twin::connect(qp, path.0, epoch.0, peer, own_psn, peer_psn);
            // It may have been destroyed meanwhile.
            connected.map_err(|error| if qp.cold().alive { error } else { GONE })
        })
    }

    fn set_armed(&self, qp: QpLife, armed: bool) {
        Self::with(qp, (), |shadow| {
            if armed && shadow.unprotected.get().is_none() {
                shadow.step(Stance::Recording, Stance::Armed);
                self.armed.lock().unwrap_or_else(PoisonError::into_inner).insert(qp.0, ());
            } else {
                shadow.step(Stance::Armed, Stance::Recording);
            }
        });
    }

    fn exclude(&self, qp: QpLife) -> bool {
        Self::with(qp, true, replay::exclude)
    }

    fn drain(&self, qp: QpLife, keys: &dyn RemoteKeys) -> bool {
        // Of one that was destroyed nothing is waited for.
        Self::with(qp, true, |qp| replay::drain(qp, keys))
    }

    fn release(&self, qp: QpLife) {
        Self::with(qp, (), replay::release);
    }

    fn fence(&self, qp: QpLife, drain: Micros) {
        Self::with(qp, (), |qp| fence::begin(qp, drain));
    }

    fn poll_fence(&self, qp: QpLife) -> FenceProgress {
        Self::with(qp, FenceProgress::Failed(Vec::new()), fence::poll)
    }

    fn admit(&self, qp: QpLife, ledger: &mut Ledger) {
        Self::with(qp, (), |qp| replay::admit(qp, ledger));
    }

    fn repost(&self, qp: QpLife, path: PathId, epoch: Epoch, round: Round) -> Result<usize, Errno> {
        Self::with(qp, Err(GONE), |qp| replay::repost(qp, path.0, epoch.0, round))
    }

    fn replay(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        plan: &Plan,
        ledger: &mut Ledger,
        keys: &dyn RemoteKeys,
    ) -> ReplayProgress {
        Self::with(qp, ReplayProgress::Refused { seq: WrSeq(0), error: GONE }, |qp| {
            replay::replay(qp, path.0, epoch.0, plan, ledger, keys)
        })
    }

    fn post_held(&self, qp: QpLife, keys: &dyn RemoteKeys) -> ReplayProgress {
        Self::with(qp, ReplayProgress::Done, |qp| replay::post_held(qp, keys))
    }

    fn surface(&self, qp: QpLife, status: Option<u32>) {
        Self::with(qp, (), |qp| replay::surface_and_say(qp, status));
    }

    fn peer_left(&self, qp: QpLife) {
        Self::with(qp, (), cm::peer_left);
    }

    fn retired_below(&self, qp: QpLife) -> WrSeq {
        Self::with(qp, WrSeq(u64::MAX), |qp| WrSeq(qp.sq.ring.head()))
    }

    fn next_seq(&self, qp: QpLife) -> WrSeq {
        Self::with(qp, WrSeq(0), |qp| WrSeq(qp.sq.ring.tail()))
    }

    fn take_sample(&self, qp: QpLife) -> Option<(Epoch, Sample)> {
        Self::with(qp, None, timed::take).map(|(epoch, sample)| (Epoch(epoch), sample))
    }

    fn port_counters(&self, device: DeviceId) -> Option<PortCounters> {
        counters::read(Path::new(counters::DEVICES), &self.device_name(device))
    }

    fn could_end_in_error(&self, qp: QpLife) -> bool {
        Self::with(qp, false, replay::could_end_in_error)
    }

    fn retry_budget(&self, qp: QpLife) -> Option<Micros> {
        Self::with(qp, None, twin::retry_budget)
    }

    fn in_error(&self, qp: QpLife) -> bool {
        Self::with(qp, false, |qp| qp.first_error.load(Ordering::Relaxed) != 0)
    }

    fn void_remote_keys(&self) {
        mr::void_caches();
    }

    fn withdrawal_confirmed(&self, device: DeviceId, rkey: u32) {
        mr::withdrawal_confirmed(device.0, rkey);
    }

    fn forget(&self, qp: QpLife, below: Epoch) {
        Self::with(qp, (), |qp| {
            let mut cold = qp.cold();
            cold.reports.retain(|report| report.epoch >= below);
        });
    }

    fn forget_incarnations(&self, qp: QpLife, below: Epoch) {
        Self::with(qp, (), |qp| {
            let mut cold = qp.cold();
            cold.incarnations.retain(|incarnation| !incarnation.closed || incarnation.epoch >= below.0);
        });
    }

    fn sweep(&self) {
        let lives: Vec<u32> = self.armed.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for life in lives {
            let Some(qp) = lives::arc(life) else {
                self.armed.lock().unwrap_or_else(PoisonError::into_inner).remove(&life);
                continue;
            };
            as_agent(|| sweep_qp(&qp));
        }
    }

    fn read_async(&self, device: DeviceId) {
        if let Some(rail) = rail::by_id(device.0) {
            as_agent(|| rail::read_async(&rail));
        }
    }

    fn removed(&self) -> Vec<DeviceId> {
        presence::removed().into_iter().map(DeviceId).collect()
    }

    fn let_go(&self, device: DeviceId) {
        presence::let_go(device.0);
    }

    fn probe_open(&self, device: DeviceId, like: Gid) -> Result<(ProbeId, PathEnd), Errno> {
        as_agent(|| self.probes.open(device, like))
    }

    fn probe_connect(
        &self,
        probe: ProbeId,
        peer: &PathEnd,
        own_psn: Psn,
        peer_psn: Psn,
        patience: Micros,
    ) -> Result<(), Errno> {
        as_agent(|| self.probes.connect(probe, peer, (own_psn, peer_psn), patience))
    }

    fn probe_start(&self, probe: ProbeId) -> Result<(), Errno> {
        as_agent(|| self.probes.start(probe))
    }

    fn probe_connected(&self, probe: ProbeId) -> Option<Result<(), Errno>> {
        self.probes.connected(probe)
    }

    fn probe_poll(&self, probe: ProbeId) -> ProbeState {
        as_agent(|| self.probes.poll(probe))
    }

    fn probe_abandon(&self, probe: ProbeId) {
        as_agent(|| self.probes.abandon(probe));
    }

    fn probe_close(&self, probe: ProbeId) {
        as_agent(|| self.probes.close(probe));
    }
}

/// Looks at the CQs of one QP if it has work outstanding and the application did not poll since the last time.
fn sweep_qp(qp: &QpShadow) {
    let outstanding = qp.sq.ring.head() != qp.sq.ring.tail() || qp.rq.ring.head() != qp.rq.ring.tail();
    if !outstanding {
        return;
    }
    for cq in [&qp.send_cq, &qp.recv_cq] {
        let polls = cq.polls.load(Ordering::Relaxed);
        if cq.polls_seen.swap(polls, Ordering::Relaxed) == polls {
            poll::sweep(cq);
        }
    }
}
