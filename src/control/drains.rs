//! Rails that an operator drains: no connection of this process is to be on one, or to go to one.
//!
//! A process is told on its local socket. What root drains holds for those that start later too: it is written down, one empty file for each
//! device, in [`DIRECTORY`], which each process reads when it opens its first device. Nothing here moves anything: see [`crate::plans`].

use std::collections::BTreeSet;
use std::path::Path;

use shift_proto::id::{Micros, PathId};

use crate::datapath::DeviceId;
use crate::qp::Qp;
use crate::world::World;

/// Where root writes down what is drained. It lies in memory: a host that boots has no drained rail.
pub const DIRECTORY: &str = "/run/shift-verbs/drained";
/// Names that are taken from a request, or from the directory: more than a host has devices.
const MOST: usize = 256;

/// The devices that are drained, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains(BTreeSet<String>);

impl Drains {
    /// What is written down; where there is no directory that is nothing.
    pub fn read(directory: &Path) -> Self {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        Self(entries.filter_map(|entry| entry.file_name().into_string().ok()).take(MOST).collect())
    }

    /// From now on the device is drained, or is not. `false`: it was so.
    pub fn set(&mut self, device: &str, drained: bool) -> bool {
        match drained {
            true => self.0.len() < MOST && self.0.insert(device.to_owned()),
            false => self.0.remove(device),
        }
    }

    /// Whether a device of that name is drained.
    pub fn has(&self, device: &str) -> bool {
        self.0.contains(device)
    }

    /// All of them.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

impl World {
    /// Whether an operator drains that device.
    pub fn is_drained(&self, device: DeviceId) -> bool {
        let any = !self.drains.0.is_empty();
        any && self.drains.has(&self.data.device_name(device))
    }
}

impl Qp {
    /// The rail of that path at this end is drained, or gone, or lacks memory.
    pub fn is_path_closed(&self, world: &World, path: PathId) -> bool {
        self.why_path_closed(world, path).is_some()
    }

    /// Why nothing is to go to that path, if nothing is.
    fn why_path_closed(&self, world: &World, path: PathId) -> Option<&'static str> {
        let state = self.path(path)?;
        let of_device = || state.device.and_then(|device| world.why_closed(device));
        state.is_lost.then_some("lacks memory that it may use").or_else(of_device)
    }

    /// Memory that it may use is not on the standby of that slot.
    pub fn handle_slot_lost(&mut self, world: &mut World, slot: u8, now: Micros) {
        // It may be known before the peer's standbys are; what was offered stays offered, for both ends pair alike.
        self.lost.push(slot);
        self.hurry_pairs(now);
        let there = self.paths.iter_mut().skip(1).filter(|state| state.slots.0 == slot);
        there.for_each(|state| state.is_lost = true);
        self.handle_drains(world, now);
    }

    /// What is drained, or there, has changed: a path that may not be used any more is no target, one that may is again.
    pub fn handle_drains(&mut self, world: &mut World, now: Micros) {
        let current = self.current();
        let kept = self.path_ids().filter(|path| self.path(*path).is_some_and(|state| !state.is_given_up));
        let others: Vec<PathId> = kept.filter(|path| *path != current).collect();
        for path in others {
            if self.is_path_closed(world, path) {
                self.close_path(world, path, now);
            } else if self.path(path).is_some_and(|state| state.own_ready && !state.armed) {
                self.send_confirm(world, path, now);
                self.arm(world, path, now);
                // The end that drained leads the connection back: the peer does not.
                self.probe_unless_gone(world, path, now);
            }
        }
        self.hurry_plans();
    }

    fn probe_unless_gone(&mut self, world: &mut World, path: PathId, now: Micros) {
        if !self.peer_gone {
            self.probe_now(world, path, now);
        }
    }

    /// The path is no target, and the peer hears of it.
    pub fn close_path(&mut self, world: &mut World, path: PathId, now: Micros) {
        let was_armed = self.path(path).is_some_and(|state| state.armed);
        self.send_confirm(world, path, now);
        self.disarm(world, path, now);
        if was_armed {
            let why = self.why_path_closed(world, path).unwrap_or("is closed");
            let reason = format!("{} {why}", self.path_name(world, path).device);
            self.tell_no_target(world, &reason, now);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_drained_and_no_directory_is_nothing() {
        let directory = std::env::temp_dir().join(format!("shift-drains-{}", std::process::id()));
        assert_eq!(Drains::read(&directory), Drains::default());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("rxe0"), "").unwrap();
        let mut drains = Drains::read(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(drains.names(), ["rxe0"]);
        assert!(!drains.set("rxe0", true) && drains.set("rxe1", true) && drains.set("rxe0", false));
        assert!(drains.has("rxe1") && !drains.has("rxe0"));
    }
}
