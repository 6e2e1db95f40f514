//! From a queue pair to its peer: who is sought, who was found, and whose offer counts.
//!
//! A GID, the well-known port and the directory lead to processes; that one of them has the queue pair is what its offer says, and an
//! offer counts only from where the peer has to be.

use std::net::{IpAddr, SocketAddr};

use shift_proto::frame::{Offer, QpAddress};
use shift_proto::id::{Micros, ProcessId};

use crate::address::{canonical, with_port};
use crate::core::{key_of, Core};
use crate::datapath::{Gid, QpLife};
use crate::links::LinkId;
use crate::qp::Qp;
use crate::rendezvous::Rendezvous;
use crate::strangers::Refusal;
use crate::world::World;

/// Offers for queue pairs that the application has not connected yet.
const MAX_EARLY_OFFERS: usize = 1024;

impl Core {
    pub(crate) fn seek_peer(&mut self, qp: &mut Qp, now: Micros) {
        let peer = qp.peer_address();
        if let Some(other) = self.lives.get(&key_of(peer)).copied() {
            let me = self.world.me;
            qp.handle_found(&mut self.world, me, now);
            self.with(other, |other, world| other.handle_found(world, me, now));
            self.discovery.stop(&mut self.world.links, qp.own_address());
            return;
        }
        let host = self.world.network.peer_address(&qp.facts.peer_gid, &qp.facts.netdev);
        if host.is_none() && self.rendezvous.is_none() {
            let reason =
                "the remote GID is no IP address, so the peer's process cannot be found; SHIFT_DIRECTORY names another way";
            return qp.refuse(&mut self.world, reason, now);
        }
        let source = self.world.network.peer_address(&qp.facts.gid, &qp.facts.netdev).map(|a| a.ip());
        let site = host.map(|host| with_port(host, self.world.config.port));
        self.discovery.seek(peer, site, source, now);
        self.rendezvous.iter().for_each(|r| r.seek(key_of(peer)));
    }

    pub(crate) fn meet_early_offer(&mut self, life: QpLife, now: Micros) {
        let key = self.qps.get(&life).map(|q| (key_of(q.own_address()), key_of(q.peer_address())));
        if let Some((offer, candidate)) = key.and_then(|key| self.early.remove(&key)) {
            self.handle_offer_for(life, &offer, candidate, now);
        }
    }

    /// Dials where the directory leads to: all of it at once, for of a host's networks some may be dead.
    pub(crate) fn locate_listed(&mut self, now: Micros) {
        let World { peers, links, .. } = &mut self.world;
        for ((gid, qpn), entry) in self.rendezvous.as_mut().map(Rendezvous::take_found).unwrap_or_default() {
            if self.discovery.list(QpAddress { gid: gid.0, qpn }, &entry) {
                entry.addresses.iter().for_each(|at| peers.locate(links, *at, None, Some(entry.process), now));
            }
        }
    }

    pub(crate) fn handle_located(&mut self, address: SocketAddr, process: ProcessId, now: Micros) {
        self.trusted.insert(process);
        self.world.peers.set_wanted(process);
        for sought in self.discovery.sought_at(address, process) {
            for qp in self.qps.values_mut().filter(|q| q.peer_address() == sought) {
                qp.handle_found(&mut self.world, process, now);
            }
            self.discovery.stop(&mut self.world.links, sought);
        }
        self.stale = true;
    }

    /// An offer of a peer, or of a candidate on its connection.
    pub(crate) fn handle_offer(&mut self, offer: Offer, candidate: Option<LinkId>, now: Micros) {
        if let Some(life) = self.lives.get(&key_of(offer.peer)).copied() {
            return self.handle_offer_for(life, &offer, candidate, now);
        }
        let key = (key_of(offer.peer), key_of(offer.own));
        let at_home = candidate.is_none_or(|link| {
            // Of a link-local GID the interface is not known yet; the address is looked at once it is.
            let host = self.world.network.peer_address(&Gid(offer.own.gid), "");
            let is_at = |host: SocketAddr| self.world.peers.candidate_at(link) == Some(canonical(host.ip()));
            self.rendezvous.is_some() || host.is_none_or(is_at)
        });
        if self.early.len() >= MAX_EARLY_OFFERS {
            let links = &self.world.links;
            self.early.retain(|_, (_, candidate)| candidate.is_none_or(|link| links.is_open(link)));
        }
        if at_home && (self.early.len() < MAX_EARLY_OFFERS || self.early.contains_key(&key)) {
            self.early.insert(key, (offer, candidate));
        }
    }

    /// An offer counts if it names the connection as the application does, and with a job key. Without one it has to come over a
    /// connection of the address that is the queue pair's remote GID, or from the process that did so before.
    pub(crate) fn handle_offer_for(&mut self, life: QpLife, offer: &Offer, candidate: Option<LinkId>, now: Micros) {
        let process = offer.from.process;
        let Some(qp) = self.qps.get_mut(&life).filter(|q| q.peer_address() == offer.own) else {
            return;
        };
        let World { network, peers, links, me, .. } = &mut self.world;
        let host = network.peer_address(&qp.facts.peer_gid, &qp.facts.netdev).map(|host| canonical(host.ip()));
        let sought = key_of(qp.peer_address());
        let lists = |is_there: &dyn Fn(IpAddr) -> bool| {
            self.rendezvous.as_ref().is_some_and(|r| r.lists(sought, process, is_there))
        };
        let at_home = match candidate {
            // A queue pair has one peer: nobody else of that host is met by naming it.
            Some(_) if qp.remote.is_some_and(|known| known.end.process != process) => false,
            Some(link) if host.is_some() && peers.candidate_at(link) == host => true,
            Some(link) => lists(&|address| peers.candidate_at(link) == Some(address)),
            None if qp.process == Some(process) || process == *me || links.is_keyed() => true,
            None if host.is_some_and(|host| peers.is_met_at(process, host)) => true,
            None => lists(&|address| peers.is_met_at(process, address)),
        };
        if !at_home {
            log::debug!("an offer for qp {:#x} does not come from its peer's host", qp.facts.qpn);
            // Of a peer that is not looked up yet nothing can be said: it offers again.
            let is_known = self.rendezvous.as_ref().is_none_or(|r| r.has(sought));
            let is_strange = |link: &LinkId| is_known && links.is_open(*link) && !peers.is_familiar(*link);
            if let Some(link) = candidate.filter(is_strange) {
                links.strangers.note(Refusal::Frame, links.remote(link));
            }
            return;
        }
        if candidate.is_some_and(|link| !peers.admit(links, link, now)) {
            return;
        }
        peers.set_wanted(process);
        qp.handle_offer(&mut self.world, process, offer, now);
        let (sought, is_peer) = (qp.peer_address(), qp.process == Some(process));
        if qp.process.is_some() && self.discovery.seeks(sought) {
            self.discovery.stop(&mut self.world.links, sought);
        }
        if is_peer {
            self.rendezvous.iter().for_each(|r| r.stop(key_of(sought)));
            self.trusted.insert(process);
            self.tell_keys(process);
        }
        self.stale = true;
    }
}
