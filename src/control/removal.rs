//! Devices that are removed while this process has them open.
//!
//! Where the driver takes the device away at once there is an event of it, and that is a fault like any other. Where it waits for its users nothing is
//! wrong with the device yet: the queue pairs leave it by plan, as they do a rail that is drained. In both cases it is no target from then on, and once
//! nobody is protected there the shim lets go of it. A device that comes back is another one, though of the same name.

use std::collections::BTreeMap;

use shift_proto::id::{Micros, PathId};

use crate::core::Core;
use crate::datapath::DeviceId;
use crate::qp::Qp;
use crate::world::World;

/// How often devices are looked for. An event of the device, and of its interface, comes at once; this is for those of which nothing is heard.
const LOOK_US: u64 = 1_000_000;

/// What was removed.
#[derive(Debug, Default)]
pub struct Removals {
    /// And whether this process has let go of it.
    gone: BTreeMap<DeviceId, bool>,
    /// The watch of each device's events.
    watches: BTreeMap<DeviceId, usize>,
    looked: Micros,
}

impl Removals {
    /// Whether that device was removed.
    pub fn has(&self, device: DeviceId) -> bool {
        self.gone.contains_key(&device)
    }

    /// Whether nothing is asked of it any more.
    pub fn is_let_go(&self, device: DeviceId) -> bool {
        self.gone.get(&device).copied().unwrap_or(false)
    }

    /// Events of the device are watched.
    pub fn note_watch(&mut self, device: DeviceId, watch: usize) {
        self.watches.insert(device, watch);
    }

    /// When [`Core::tend_removals`] is due.
    pub fn due(&self) -> Option<Micros> {
        (!self.watches.is_empty()).then_some(self.looked + Micros(LOOK_US))
    }
}

impl World {
    /// Why nothing is to move to that device, if nothing is.
    pub fn why_closed(&self, device: DeviceId) -> Option<&'static str> {
        if self.removals.has(device) {
            Some("was removed")
        } else {
            self.is_drained(device).then_some("is drained")
        }
    }
}

impl Core {
    /// Looks for the devices, and lets go of those that are gone.
    pub(crate) fn tend_removals(&mut self, now: Micros) {
        if self.world.removals.due().is_none_or(|due| now < due) {
            return;
        }
        self.world.removals.looked = now;
        for device in self.world.data.removed() {
            self.handle_removed(device, now);
        }
        self.world.data.seek_standbys();
        let held = self.world.removals.gone.iter().filter(|(_, is_let_go)| !**is_let_go).map(|(device, _)| *device);
        for device in held.collect::<Vec<_>>() {
            if !self.qps.values().any(|qp| qp.needs(device)) {
                self.let_go(device);
            }
        }
    }

    fn handle_removed(&mut self, device: DeviceId, now: Micros) {
        log::warn!(
            "{} was removed: what works there leaves it, and nothing goes there",
            self.world.data.device_name(device)
        );
        self.world.removals.gone.insert(device, false);
        self.world.devices.retain(|_, known| *known != device);
        for qp in self.qps.values_mut() {
            qp.handle_drains(&mut self.world, now);
            qp.hurry_pairs(now);
        }
    }

    /// Nothing of this process works there: whoever waits for it to be closed is not to wait for the shim.
    fn let_go(&mut self, device: DeviceId) {
        let World { removals, probes, links, data, .. } = &mut self.world;
        probes.forget_device(&**data, device);
        removals.watches.remove(&device).into_iter().for_each(|watch| links.unwatch(watch));
        data.let_go(device);
        removals.gone.insert(device, true);
        log::debug!("{} is let go", data.device_name(device));
    }
}

impl Qp {
    /// It is there, and its faults are masked; or there are objects of the shim's own that may be in use.
    fn needs(&self, device: DeviceId) -> bool {
        let is_there = |path| self.path(path).is_some_and(|state| state.device == Some(device));
        let is_own = self.path_ids().skip(1).any(is_there);
        let is_current = [self.current(), self.at].into_iter().any(is_there);
        is_current && (self.masked || self.current() != PathId::PRIMARY) || is_own && !self.is_quiet()
    }
}
