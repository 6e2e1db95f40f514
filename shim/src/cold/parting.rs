//! Taking apart what this library has on a standby whose device is gone, so that whoever removes the device waits for the program alone.
//!
//! Nothing works there any more: the agent saw to it, and goes on: all of this is a thread's of its own. What must hold: everything is out of its place before anything is destroyed, and what a thread took
//! out of its place just before is not used any more by then ([`GRACE`]).

use crate::cold::device::as_agent;
use crate::cold::rail::Rail;
use crate::cold::{channel, cq, mr, pd, presence, qp, reaper, srq, twin};
use crate::hot::poll;
use crate::lives;
use crate::shadow::{PdShadow, QpShadow, Raw, TwinMr};
use crate::tables::GRACE;
use shift_abi::*;
use shift_control::agent::spawn;
use shift_proto::id::MAX_PATHS;
use std::sync::Arc;

/// In how many steps that time is waited for.
const STEPS: u32 = 100;

/// All that was there.
#[derive(Default)]
struct Remains {
    qps: Vec<(Raw<ibv_qp>, u8, Arc<QpShadow>)>,
    srqs: Vec<Raw<ibv_srq>>,
    cqs: Vec<Raw<ibv_cq>>,
    channels: Vec<Raw<ibv_comp_channel>>,
    regions: Vec<Raw<ibv_mr>>,
    domains: Vec<Raw<ibv_pd>>,
}

/// The slot of that device; a PD has at most one of each.
fn slot_on(pd: &PdShadow, device: u16) -> Option<u8> {
    pd.present().into_iter().find(|twin| twin.device == device).map(|twin| twin.slot)
}

/// Has everything taken out of its place and destroyed a while later, and the rail's context closed after that.
pub fn begin(rail: Arc<Rail>) {
    if let Err(error) = spawn("shift-parting", move || part_with(&rail)) {
        log::warn!("what is left on a device that is gone stays until the process ends ({error})");
    }
}

fn part_with(rail: &Rail) {
    if !presence::shut(rail) {
        return;
    }
    if !rail.presence.is_standby() {
        presence::close(rail);
        return;
    }
    let remains = as_agent(|| Remains::of(rail));
    // In steps: of the time for which the whole process is stopped, in which no thread goes on either, they count one at most.
    (0..STEPS).for_each(|_| std::thread::sleep(GRACE / STEPS));
    remains.destroy(rail);
}

/// Takes out the twin of a queue pair; it touches no memory from here on.
fn part(shadow: &QpShadow, slot: u8) -> Option<Raw<ibv_qp>> {
    let mut cold = shadow.cold();
    let gone = cold.twins.get_mut(usize::from(slot))?.take()?;
    for path in (1..MAX_PATHS as u8).filter(|path| cold.slot(*path) == Some(slot)).collect::<Vec<_>>() {
        twin::disconnect(&mut cold, path);
    }
    if twin::to_state(gone.qp, IBV_QPS_RESET) != 0 {
        twin::to_error(gone.qp);
    }
    if shadow.srq.is_some() {
        // What it took before is the application's; it takes no more once it is gone.
        poll::sweep(&shadow.recv_cq);
        twin::receives_no_more(shadow, slot, gone.qp);
    }
    Some(gone.qp)
}

impl Remains {
    /// Takes everything out of its place. The rail is closed for whoever comes now.
    fn of(rail: &Rail) -> Self {
        let mut remains = Self::default();
        for shadow in lives::all() {
            if let Some(slot) = slot_on(&shadow.pd, rail.id) {
                remains.qps.extend(part(&shadow, slot).map(|twin| (twin, slot, Arc::clone(&shadow))));
                remains.regions.extend(qp::take_registration(&shadow, 1 + usize::from(slot)));
            }
        }
        remains.srqs = srq::part_twins(rail.id);
        remains.cqs = cq::part(rail.id);
        remains.channels = channel::part(rail.id);
        for domain in pd::all() {
            let Some(slot) = slot_on(&domain, rail.id) else { continue };
            // From here on nothing is registered there.
            remains.domains.extend(domain.part(slot).map(|twin| twin.pd));
            let of_slot = |region: &Arc<crate::shadow::MrShadow>| region.twin(slot).and_then(TwinMr::take);
            remains.regions.extend(mr::of_pd(&domain).iter().filter_map(of_slot));
        }
        mr::void_caches();
        remains
    }

    fn destroy(self, rail: &Rail) {
        self.qps.into_iter().for_each(|(twin, slot, shadow)| reaper::destroy_twin(twin, slot, shadow));
        self.srqs.into_iter().for_each(reaper::destroy_srq);
        self.cqs.into_iter().for_each(reaper::destroy_cq);
        self.channels.into_iter().for_each(reaper::destroy_channel);
        self.regions.into_iter().for_each(reaper::dereg_mr);
        self.domains.into_iter().for_each(reaper::dealloc_pd);
        presence::close(rail);
        log::debug!("{} is taken apart", rail.name);
    }
}
