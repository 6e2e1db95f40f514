//! Probe QPs: a path is asked on this library's own QP, never on the application's, where a receiver that is slow to post looks like a dead path.
//!
//! A probe is a zero-length WRITE: it needs no memory and no receive, only that the QP allows remote writes, which ours do.

use crate::cold::connector::{self, Connection};
use crate::cold::{rail, reaper, twin};
use crate::real;
use crate::shadow::Raw;
use core::ffi::c_int;
use shift_abi::*;
use shift_control::datapath::{DeviceId, Errno, Gid, PathEnd, ProbeId, ProbeState};
use shift_proto::id::{Micros, Mtu, Psn};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// 4.096 us * 2^14 = 67 ms: the shortest that does not expire on a healthy loaded soft-RoCE guest.
const LEAST_TIMEOUT: u8 = 14;
/// The longest there is (IBA 9.9.2.4.1): hours.
const MOST_TIMEOUT: u8 = 31;
/// Retries: six more tries, so that a few lost packets do not condemn a path, and the NIC does not give up before the agent does. 7 would be for ever
/// on soft-RoCE.
const RETRIES: u8 = 6;
/// Requests a probe QP holds: one is out at a time, the rest is slack for a failed one that was not polled.
const DEPTH: u32 = 4;
/// Probe QPs of one process: one per peer process and device pair and side; a job of 1,000 peers on 2 rails stays below.
const PROBES: usize = 8192;

struct Probe {
    rail: Arc<rail::Rail>,
    objects: Arc<Objects>,
    gid: Gid,
    started: u64,
}

/// What a probe is made of. Destroyed when neither the probe nor a thread that connects it needs it any more.
pub struct Objects {
    pub qp: Raw<ibv_qp>,
    cq: Raw<ibv_cq>,
    pub connection: Connection,
}

impl Drop for Objects {
    fn drop(&mut self) {
        reaper::destroy_qp(self.qp);
        reaper::destroy_cq(self.cq);
    }
}

/// All probe QPs. Of the agent, which is the only caller.
#[derive(Default)]
pub struct Probes {
    table: Mutex<(u32, HashMap<u32, Probe>)>,
}

impl Probes {
    fn with<R>(&self, probe: ProbeId, visit: impl FnOnce(&mut Probe) -> R) -> Option<R> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.1.get_mut(&probe.0).map(visit)
    }

    /// Makes one on `device`, with a source GID equal to `like`, or of its kind.
    pub fn open(&self, device: DeviceId, like: Gid) -> Result<(ProbeId, PathEnd), Errno> {
        let refused = Errno(libc::ENODEV);
        let rail = rail::by_id(device.0).ok_or(refused)?;
        let like = ibv_gid { raw: like.0 };
        let entry =
            rail.gid_by_value(&like.raw).or_else(|| rail.gid_like(&like, Some(IBV_GID_TYPE_ROCE_V2))).ok_or(refused)?;
        let pd = rail.own_pd().ok_or(refused)?;
        let mtu = rail.port_attr().and_then(|port| port.active_mtu.bytes()).and_then(Mtu::new).ok_or(refused)?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.1.len() >= PROBES {
            return Err(Errno(libc::ENOSPC));
        }
        // SAFETY: a rail's context is open for ever.
        let cq = unsafe {
            real::ibv_create_cq(rail.context.0, 2 * DEPTH as c_int, core::ptr::null_mut(), core::ptr::null_mut(), 0)
        };
        if cq.is_null() {
            return Err(last_errno());
        }
        let mut init = ibv_qp_init_attr::zeroed();
        init.send_cq = cq;
        init.recv_cq = cq;
        init.qp_type = IBV_QPT_RC;
        init.cap =
            ibv_qp_cap { max_send_wr: DEPTH, max_recv_wr: 1, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
        // SAFETY: PD and CQ are this library's own and live.
        let qp = unsafe { real::ibv_create_qp(pd.0, &mut init) };
        if qp.is_null() {
            let errno = last_errno();
            reaper::destroy_cq(Raw(cq));
            return Err(errno);
        }
        // SAFETY: the QP was just made.
        let qpn = unsafe { (*qp).qp_num };
        table.0 += 1;
        let id = table.0;
        let gid = Gid(entry.gid.raw);
        let objects = Arc::new(Objects { qp: Raw(qp), cq: Raw(cq), connection: Connection::default() });
        table.1.insert(id, Probe { rail, objects, gid, started: 0 });
        Ok((ProbeId(id), PathEnd { qpn, gid, mtu, psn_base: Psn::new(qpn << 8) }))
    }

    /// Begins to (re)connect one, with the own and the peer's first packet number; its NIC goes on trying for `patience` at least.
    pub fn connect(&self, probe: ProbeId, peer: &PathEnd, psns: (Psn, Psn), patience: Micros) -> Result<(), Errno> {
        self.with(probe, |probe| probe.connect(peer, psns, patience)).unwrap_or(Err(Errno(libc::ENOENT)))
    }

    /// Whether it is connected; `None`: not yet.
    pub fn connected(&self, probe: ProbeId) -> Option<Result<(), Errno>> {
        self.with(probe, |probe| probe.objects.connection.outcome()).unwrap_or(Some(Err(Errno(libc::ENOENT))))
    }

    /// Asks the path.
    pub fn start(&self, probe: ProbeId) -> Result<(), Errno> {
        self.with(probe, Probe::start).unwrap_or(Err(Errno(libc::ENOENT)))
    }

    /// What it answered to the latest `start`.
    pub fn poll(&self, probe: ProbeId) -> ProbeState {
        self.with(probe, |probe| probe.poll()).unwrap_or(ProbeState::Failed(IBV_WC_GENERAL_ERR.0))
    }

    /// Has the NIC stop trying. To RESET from the midst of its retries takes soft-RoCE seconds, in which the whole host stands still; from ERR it does not.
    pub fn abandon(&self, probe: ProbeId) {
        self.with(probe, |probe| {
            if probe.objects.connection.outcome().is_some() {
                twin::to_error(probe.objects.qp);
            }
        });
    }

    /// Gives one up.
    pub fn close(&self, probe: ProbeId) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.1.remove(&probe.0);
    }
}

fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// The shortest timeout with which all tries together take that long.
fn timeout_for(patience: Micros) -> u8 {
    let all_tries_us = |timeout: u8| (4096_u64 << timeout) / 1000 * (u64::from(RETRIES) + 1);
    (LEAST_TIMEOUT..MOST_TIMEOUT).find(|timeout| all_tries_us(*timeout) >= patience.0).unwrap_or(MOST_TIMEOUT)
}

impl Probe {
    fn connect(&mut self, peer: &PathEnd, (own_psn, peer_psn): (Psn, Psn), patience: Micros) -> Result<(), Errno> {
        let entry = self.rail.gid_by_value(&self.gid.0).ok_or(Errno(libc::ENODEV))?;
        let mtu = self
            .rail
            .port_attr()
            .and_then(|port| port.active_mtu.bytes())
            .and_then(Mtu::new)
            .ok_or(Errno(libc::ENODEV))?;
        let mut attr = ibv_qp_attr::zeroed();
        attr.port_num = self.rail.port;
        attr.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
        attr.path_mtu = ibv_mtu::from_bytes(mtu.min(peer.mtu).bytes()).ok_or(Errno(libc::EINVAL))?;
        attr.dest_qp_num = peer.qpn;
        attr.rq_psn = peer_psn.value();
        attr.sq_psn = own_psn.value();
        attr.min_rnr_timer = 12;
        attr.timeout = timeout_for(patience);
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = RETRIES;
        attr.ah_attr.is_global = 1;
        attr.ah_attr.port_num = self.rail.port;
        attr.ah_attr.grh.dgid.raw = peer.gid.0;
        attr.ah_attr.grh.sgid_index = u8::try_from(entry.gid_index).unwrap_or(0);
        attr.ah_attr.grh.hop_limit = 64;
        connector::begin(&self.rail, &self.objects, attr)
    }

    fn start(&mut self) -> Result<(), Errno> {
        self.started += 1;
        let mut wr = ibv_send_wr::zeroed();
        wr.wr_id = self.started;
        wr.opcode = IBV_WR_RDMA_WRITE;
        wr.send_flags = IBV_SEND_SIGNALED;
        let mut bad = core::ptr::null_mut();
        // SAFETY: the QP is this library's own and live; the request lives across the call.
        let errno = unsafe { (self.rail.ops.post_send)(self.objects.qp.0, &mut wr, &mut bad) };
        if errno == 0 {
            Ok(())
        } else {
            Err(Errno(errno))
        }
    }

    fn poll(&mut self) -> ProbeState {
        loop {
            let mut wc = ibv_wc::zeroed();
            // SAFETY: the CQ is this library's own and live; there is room for one.
            let taken = unsafe { (self.rail.ops.poll_cq)(self.objects.cq.0, 1, &mut wc) };
            if taken <= 0 {
                return ProbeState::Pending;
            }
            if wc.wr_id == self.started {
                return if wc.status == IBV_WC_SUCCESS {
                    ProbeState::Answered
                } else {
                    ProbeState::Failed(wc.status.0)
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nic_of_a_probe_goes_on_for_as_long_as_the_probe_may_take() {
        // 67, 134, 268 ms a try, seven tries.
        for (patience_ms, timeout) in [(0, 14), (200, 14), (469, 14), (470, 15), (1000, 16), (u64::MAX / 1000, 31)] {
            assert_eq!(timeout_for(Micros::from_millis(patience_ms)), timeout, "{patience_ms} ms");
        }
    }
}
