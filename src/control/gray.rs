//! Rails that fail without an error: what the ports count and how long completions take goes to the judge, what it finds to the operator.
//!
//! Owns the pace and the counters' last values; the judge is [`shift_proto::gray`]. Everything is read on the agent's thread, once a window, and of the
//! application's requests one is timed now and then (see `DataPath::take_sample`). Nothing is moved here: see [`crate::plans`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use shift_proto::gray::{Counts, News, Rails};
use shift_proto::id::{Micros, PathId};

use crate::config::GrayWish;
use crate::datapath::{DeviceId, PortCounters, QpLife};
use crate::qp::Qp;
use crate::status::Rail;
use crate::world::World;

/// Queue pairs of which a completion is taken in one sweep: a process may have tens of thousands.
const SAMPLED: usize = 32;

/// What is known of the rails of this process.
#[derive(Debug, Default)]
pub(crate) struct Gray {
    rails: Rails,
    last: BTreeMap<DeviceId, PortCounters>,
    opened: Option<Micros>,
    /// Whose completion was taken last.
    sampled: QpLife,
}

/// Takes completions; ends the window if it is over. To be called with every sweep.
pub(crate) fn tend(qps: &BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
    if world.config.gray == GrayWish::Off {
        return;
    }
    sample(qps, world);
    let window = world.config.gray_window;
    let Some(opened) = world.gray.opened.filter(|opened| now.since(*opened) < window + window) else {
        // The first one, or this process slept.
        count(qps, world);
        world.gray.opened = Some(now);
        return;
    };
    if now.since(opened) >= window {
        let counts = count(qps, world);
        world.gray.opened = Some(now);
        log::trace!("{counts:?}");
        for news in world.gray.rails.close(now, now.since(opened), &counts) {
            tell(world, news);
        }
    }
}

fn sample(qps: &BTreeMap<QpLife, Qp>, world: &mut World) {
    let after = (Bound::Excluded(world.gray.sampled), Bound::Unbounded);
    let is_due = |(_, qp): &(&QpLife, &Qp)| qp.masked && qp.is_quiet();
    let mut last = QpLife(0);
    for (life, qp) in qps.range(after).filter(is_due).take(SAMPLED) {
        last = *life;
        let taken = world.data.take_sample(*life);
        let is_current = |epoch| qp.machine.as_ref().is_some_and(|machine| machine.epoch() == epoch);
        let device = qp.path(qp.current()).and_then(|state| state.device);
        if let Some(((_, sample), device)) = taken.filter(|(epoch, _)| is_current(*epoch)).zip(device) {
            log::trace!("{device:?}: {sample:?}");
            world.gray.rails.note(device.0, sample);
        }
    }
    world.gray.sampled = last;
}

/// What the ports counted since the last time; nothing of those that began anew, or are gone.
fn count(qps: &BTreeMap<QpLife, Qp>, world: &mut World) -> BTreeMap<u16, Counts> {
    let paths = qps.values().filter(|qp| qp.masked).flat_map(|qp| qp.paths.iter());
    let devices: BTreeSet<DeviceId> = paths.filter_map(|path| path.device).collect();
    let mut counts = BTreeMap::new();
    let read = devices.iter().filter_map(|device| Some((*device, world.data.port_counters(*device)?))).collect();
    let before = std::mem::replace(&mut world.gray.last, read);
    for (device, counted) in &world.gray.last {
        if let Some(since) = before.get(device).and_then(|before| counted.since(before)) {
            counts.insert(device.0, since);
        }
    }
    counts
}

fn tell(world: &World, news: News) {
    let name = |device| world.data.device_name(DeviceId(device));
    match news {
        News::Gray(device, symptom) if world.config.gray == GrayWish::Migrate => {
            log::warn!("{} is failing without an error: {symptom}; connections leave it", name(device));
        }
        News::Gray(device, symptom) => {
            log::warn!(
                "{} is failing without an error: {symptom}; with SHIFT_GRAY=migrate connections leave it",
                name(device)
            );
        }
        News::Well(device) => log::info!("{} is well again", name(device)),
        News::Untried(device) => log::info!("{} was left for a while and may be tried again", name(device)),
    }
}

impl World {
    /// Rails that are failing, for `shiftctl`.
    pub fn gray_rails(&self) -> Vec<Rail> {
        let devices = self.gray.last.keys();
        let found = devices.filter_map(|device| Some((device, self.gray.rails.symptom(device.0)?)));
        found.map(|(device, what)| Rail { device: self.data.device_name(*device), symptom: what.to_string() }).collect()
    }
}

impl Qp {
    /// The rail of that path at this end is failing, or was a while ago, and the operator wants such a rail to be left.
    pub fn is_path_avoided(&self, world: &World, path: PathId, now: Micros) -> bool {
        let device = self.path(path).and_then(|state| state.device);
        let is_avoided = |device: DeviceId| world.gray.rails.is_avoided(device.0, now);
        world.config.gray == GrayWish::Migrate && device.is_some_and(is_avoided)
    }

    /// The same for a rail that is failing now.
    pub fn is_path_gray(&self, world: &World, path: PathId) -> bool {
        let device = self.path(path).and_then(|state| state.device);
        let is_gray = |device: DeviceId| world.gray.rails.symptom(device.0).is_some();
        world.config.gray == GrayWish::Migrate && device.is_some_and(is_gray)
    }
}
