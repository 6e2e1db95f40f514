//! What a rail carries, and who may have taken shared receives when they are posted anew.

use shift_control::datapath::{QpLife, Round};

use super::State;

impl State {
    /// Receives of a group are posted on another device only when nobody takes one on the old one any more.
    pub(super) fn post_shared_receives(&mut self, process: usize, qp: QpLife, path: u8, round: Round) {
        let Some(group) = self.qps[&(process, qp)].group else { return };
        let device = self.qps[&(process, qp)].device_of(path);
        let (home, known) = self.homes.insert((process, group), (device, round)).unwrap_or_default();
        if round == known {
            assert_eq!(home, device, "a move to another device has a round of its own");
            return;
        }
        let others = self.qps.iter().filter(|((at, life), q)| *at == process && *life != qp && q.group == Some(group));
        for ((_, life), other) in others {
            let is_out = other.fenced
                || other.surfaced
                || (home != device && other.device_of(other.path) == device && other.late);
            assert!(is_out, "queue pair {} of process {process} still takes receives on path {}", life.0, other.path);
        }
    }

    /// Whether what a host sends from a rail reaches the other host on that rail.
    pub(super) fn carries(&self, ends: [(usize, usize); 2]) -> bool {
        let [(host, rail), (_, peer_rail)] = ends;
        let wire = if host == 1 { [rail, peer_rail] } else { [peer_rail, rail] };
        let is_wired = if self.wires.is_empty() { rail == peer_rail } else { self.wires.contains(&wire) };
        is_wired && ends.iter().all(|(host, rail)| self.rail_up[*rail] && !self.dead_ports.contains(&(*host, *rail)))
    }
}
