//! How a connection becomes a peer's: greetings, candidates, and what two processes exchange where they meet.
//!
//! With a job key whoever is heard at all is of this job and greets as a peer. Without one a connection that comes in is a
//! candidate's, until it shows the token of a known process from an address of that process, or offers for a queue pair from
//! the address that its GID is ([`Peers::admit`]); one that was dialed counts where a GID or the directory led to it, or with the token.
//! Neither makes somebody a process that is known already: that one is asked for its token, or for an address that it told.

use std::net::{IpAddr, SocketAddr};

use shift_proto::frame::{Frame, Hello};
use shift_proto::id::{Micros, ProcessId};

use crate::acquaintance::Acquaintance;
use crate::address::{canonical, MAX_ADDRESSES};
use crate::arrivals::Arrivals;
use crate::links::{LinkId, Links};
use crate::peers::{PeerEvent, Peers, Process, Reach, Token, NO_TOKEN};
use crate::round_trip::RoundTrip;
use crate::strangers::Refusal;

/// Processes of one job that one process may meet; a queue pair to one more stays unprotected.
const MAX_PROCESSES: usize = 4096;
/// Connections to one process: one per network, and as many while they are being replaced.
const MAX_LINES: usize = 2 * MAX_ADDRESSES;

/// Somebody who greeted, and has yet to show that it is anybody's peer.
pub(crate) struct Candidate {
    pub process: ProcessId,
    /// On its connection: what it showed, or was drawn for it.
    pub token: Token,
    pub shown: bool,
    pub remote: Option<IpAddr>,
    pub addresses: Vec<SocketAddr>,
}

impl Peers {
    /// A candidate lives as long as its connection may be without a greeting: its offer comes again.
    pub(crate) fn handle_candidate(&mut self, links: &mut Links, link: LinkId, frame: Frame) {
        let Some(candidate) = self.candidates.get(&link) else {
            return links.turn_away(link, Refusal::Frame);
        };
        match frame {
            Frame::Offer(offer) if offer.from.process == candidate.process => {
                self.events.push(PeerEvent::Candidate(link, offer));
            }
            // It must not take this process for dead meanwhile.
            Frame::Ping { stamp } => links.send(link, &Frame::Pong { stamp }),
            Frame::Goodbye => {
                self.candidates.remove(&link);
                links.close(link);
            }
            Frame::Pong { .. } => {}
            Frame::Hello(_)
            | Frame::Ask(_)
            | Frame::Owner { .. }
            | Frame::Offer(_)
            | Frame::ArmConfirm(_)
            | Frame::KeyAdd { .. }
            | Frame::KeyDel(_)
            | Frame::KeyDelAck(_)
            | Frame::KeyAsk { .. }
            | Frame::KeyAnswer { .. }
            | Frame::Probe(_)
            | Frame::Migration { .. } => {
                if !self.is_familiar(link) {
                    links.strangers.note(Refusal::Frame, links.remote(link));
                }
            }
        }
    }

    /// The candidate may be a peer that is a step ahead: one that is met over another connection, or was before and is no longer
    /// known. What it says does not count, and is no attack either.
    pub fn is_familiar(&self, link: LinkId) -> bool {
        let is_known = |c: &Candidate| self.acquaintance(c.process).is_some_and(|known| known.comes_from(c.remote));
        self.candidates.get(&link).is_some_and(|c| c.shown || is_known(c))
    }

    /// The address at the other end of a candidate's connection.
    pub fn candidate_at(&self, link: LinkId) -> Option<IpAddr> {
        self.candidates.get(&link).and_then(|c| c.remote)
    }

    /// The candidate's connection comes from the address of a queue pair's GID, and it offers for that queue pair: it is met.
    /// `false`: it is turned away.
    pub fn admit(&mut self, links: &mut Links, link: LinkId, now: Micros) -> bool {
        let Some(candidate) = self.candidates.remove(&link) else {
            return false;
        };
        let id = candidate.process;
        if !self.has_room(id) {
            links.turn_away(link, Refusal::Crowded);
            return false;
        }
        if self.is_posed_as(id, candidate.token, candidate.remote) {
            links.turn_away(link, Refusal::Address);
            return false;
        }
        self.meet(id, candidate.token, candidate.remote, &candidate.addresses, now);
        self.join(links, link, id, None, now);
        // It may have come over its other networks before.
        let Some(known) = self.acquaintance(id) else {
            return true;
        };
        let is_it = |c: &Candidate| c.process == id && c.shown && known.shares(c.token) && known.comes_from(c.remote);
        let others = self.candidates.iter().filter(|(_, c)| is_it(c));
        let others: Vec<LinkId> = others.map(|(link, _)| *link).collect();
        for link in others {
            self.candidates.remove(&link);
            self.join(links, link, id, None, now);
        }
        true
    }

    /// The process is known, and this one shows neither a token of it nor comes from where it said that it may come from. At the
    /// address of one peer there may be others who use the name of another.
    fn is_posed_as(&self, id: ProcessId, token: Token, at: Option<IpAddr>) -> bool {
        self.acquaintance(id).is_some_and(|known| !known.shares(token) && !known.comes_from(at))
    }

    pub(crate) fn hello(&self, token: Token) -> Hello {
        Hello {
            process: self.me,
            token,
            addresses: self.own_addresses.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// `Err`: not one of ours, to be closed; and why, if that is worth a word.
    pub(crate) fn handle_hello(
        &mut self,
        links: &mut Links,
        link: LinkId,
        hello: Hello,
        now: Micros,
    ) -> Result<(), Option<Refusal>> {
        if self.lines.contains_key(&link) || self.candidates.contains_key(&link) {
            return Ok(());
        }
        if hello.process == self.me {
            return Err(None);
        }
        match self.dials.get(&link).map(|d| (d.address, d.expects, d.listed)) {
            Some((address, None, Some(listed))) if listed != hello.process => {
                self.dials.remove(&link);
                let reason = format!("another process listens at {address}");
                self.events.push(PeerEvent::NotLocated(address, reason));
                Err(None)
            }
            Some((address, expects, _)) => self.handle_answer(links, link, &hello, address, expects, now),
            None => self.handle_greeting(links, link, hello, now),
        }
    }

    /// Whoever was dialed greets. Where a GID led there it is met; else it has to be the one that told the address.
    fn handle_answer(
        &mut self,
        links: &mut Links,
        link: LinkId,
        hello: &Hello,
        address: SocketAddr,
        expects: Option<ProcessId>,
        now: Micros,
    ) -> Result<(), Option<Refusal>> {
        let ip = Some(canonical(address.ip()));
        if let Some(expected) = expects.filter(|e| *e != hello.process) {
            self.dials.remove(&link);
            self.handle_wrong_process(links, expected, Some(address), now);
            return Err(None);
        }
        if !self.has_room(hello.process) {
            return Err(Some(Refusal::Crowded));
        }
        if expects.is_none() && !links.is_keyed() && self.is_posed_as(hello.process, hello.token, ip) {
            return Err(Some(Refusal::Address));
        }
        match self.processes.get(&hello.process).filter(|_| expects.is_some()) {
            Some(known) if !links.is_keyed() && !known.acquaintance.shares(hello.token) => {
                return Err(Some(Refusal::Token))
            }
            Some(_) => {}
            None => self.meet(hello.process, hello.token, ip, &hello.addresses, now),
        }
        self.dials.remove(&link);
        self.join(links, link, hello.process, Some(address), now);
        Ok(())
    }

    fn handle_greeting(
        &mut self,
        links: &mut Links,
        link: LinkId,
        hello: Hello,
        now: Micros,
    ) -> Result<(), Option<Refusal>> {
        let shown = hello.token != NO_TOKEN;
        let remote = links.remote(link).map(|a| canonical(a.ip()));
        // A token that everybody knows is worse than no peer.
        let token = if shown { hello.token } else { (self.draw_token)().map_err(|_| None)? };
        let known = self.acquaintance(hello.process);
        let is_peer = links.is_keyed() || shown && is_proven(known, token, remote)?;
        if is_peer && !self.has_room(hello.process) {
            return Err(Some(Refusal::Crowded));
        }
        links.send(link, &Frame::Hello(self.hello(token)));
        if is_peer {
            self.meet(hello.process, token, remote, if links.is_keyed() { &hello.addresses } else { &[] }, now);
            self.join(links, link, hello.process, None, now);
        } else {
            let (process, addresses) = (hello.process, hello.addresses);
            self.candidates.insert(link, Candidate { process, token, shown, remote, addresses });
        }
        Ok(())
    }

    fn has_room(&self, id: ProcessId) -> bool {
        match self.processes.get(&id) {
            Some(known) => known.lines.len() < MAX_LINES,
            None => self.processes.len() < MAX_PROCESSES,
        }
    }

    /// What two processes exchange where they meet: the token, and where else each listens.
    fn meet(&mut self, id: ProcessId, token: Token, at: Option<IpAddr>, told: &[SocketAddr], now: Micros) {
        let process = self.processes.entry(id).or_insert_with(|| Process {
            acquaintance: self.parted.take(id),
            lines: Vec::new(),
            reaches: Vec::new(),
            suspected: None,
            pinged: now,
            wanted: false,
            arrivals: Arrivals::default(),
            round_trip: RoundTrip::default(),
        });
        process.acquaintance.learn(token, at, told);
        let Process { acquaintance, reaches, .. } = process;
        for address in &acquaintance.listens {
            if !reaches.iter().any(|r| r.address == *address) {
                reaches.push(Reach::new(*address, now));
            }
        }
    }
}

/// Whether who shows this token is the known process; `false`: that is yet to be seen, by its offer.
fn is_proven(known: Option<&Acquaintance>, token: Token, at: Option<IpAddr>) -> Result<bool, Refusal> {
    match known {
        None => Ok(false),
        Some(known) => match (known.shares(token), known.comes_from(at)) {
            (true, true) => Ok(true),
            // Drawn for a connection whose offer has not come, or is forgotten here: it shows itself anew.
            (false, true) => Ok(false),
            (true, false) => Err(Refusal::Address),
            (false, false) => Err(Refusal::Token),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use std::collections::BTreeSet;
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::address::HostNetwork;
    use crate::channel::Terms;
    use crate::links::Draw;

    fn greeted(draw_token: Draw) -> (Result<(), Option<Refusal>>, Peers) {
        let mut peers = Peers::new(ProcessId(1), Arc::new(HostNetwork), 1, Micros(1), draw_token);
        let (mut links, _waker) = Links::new(Terms::default(), || Ok([7; 16])).unwrap();
        let greeted = greet(&mut peers, &mut links, 1, NO_TOKEN);
        (greeted, peers)
    }

    /// Process 2 greets over a connection of this number.
    fn greet(peers: &mut Peers, links: &mut Links, link: usize, token: Token) -> Result<(), Option<Refusal>> {
        let hello = Hello { process: ProcessId(2), token, addresses: Vec::new(), version: "a test".to_owned() };
        peers.handle_hello(links, LinkId::of(link), hello, Micros(1))
    }

    #[test]
    fn a_known_process_is_proven_by_token_and_address_and_one_that_lost_the_token_shows_itself_anew() {
        let [there, elsewhere] = ["10.0.0.2", "10.0.0.9"].map(|at| Some(at.parse::<IpAddr>().unwrap()));
        let mut known = Acquaintance::default();
        known.learn([5; 16], there, &[]);
        assert_eq!(is_proven(None, [5; 16], there), Ok(false));
        assert_eq!(is_proven(Some(&known), [5; 16], there), Ok(true));
        assert_eq!(is_proven(Some(&known), [8; 16], there), Ok(false));
        assert_eq!(is_proven(Some(&known), [8; 16], elsewhere), Err(Refusal::Token));
        assert_eq!(is_proven(Some(&known), [5; 16], elsewhere), Err(Refusal::Address));
    }

    #[test]
    fn who_was_forgotten_and_did_not_end_is_known_again_by_what_it_shared() {
        let (_, mut peers) = greeted(|| Ok([9; 16]));
        let (mut links, _waker) = Links::new(Terms::default(), || Ok([7; 16])).unwrap();
        let told = ["10.0.0.2:7".parse::<SocketAddr>().unwrap()];
        peers.meet(ProcessId(2), [5; 16], None, &told, Micros(1));
        peers.keep_wanted(&mut links, &BTreeSet::new());
        assert!(!peers.knows(ProcessId(2)));
        // It dials again with what it has, or is dialed and shows what it has.
        assert!(peers.acquaintance(ProcessId(2)).is_some_and(|known| known.shares([5; 16])));
        peers.meet(ProcessId(2), [6; 16], None, &[], Micros(2));
        let known = peers.processes.get(&ProcessId(2)).unwrap();
        assert!(known.acquaintance.shares([5; 16]) && known.acquaintance.shares([6; 16]));
        assert_eq!(known.reaches.iter().map(|reach| reach.address).collect::<Vec<_>>(), told);
    }

    #[test]
    fn without_random_bytes_nobody_becomes_a_candidate_with_a_token_that_everybody_knows() {
        let (greeted_well, peers) = greeted(|| Ok([9; 16]));
        assert!(greeted_well == Ok(()) && peers.candidates.values().all(|c| c.token == [9; 16]));
        let (refused, peers) = greeted(|| Err(io::Error::other("none")));
        assert!(refused == Err(None) && peers.candidates.is_empty());
    }

    #[test]
    fn a_peer_may_come_from_a_link_local_address_that_it_told_but_is_not_sought_there() {
        let (_, mut peers) = greeted(|| Ok([9; 16]));
        let told = ["[fe80::7]:7", "10.0.0.7:7"].map(|address| address.parse::<SocketAddr>().unwrap());
        peers.meet(ProcessId(3), [3; 16], None, &told, Micros(1));
        let known = peers.processes.get(&ProcessId(3)).unwrap();
        assert!(told.iter().all(|address| known.acquaintance.comes_from(Some(address.ip()))));
        assert_eq!(known.reaches.iter().map(|reach| reach.address).collect::<Vec<_>>(), told.get(1..).unwrap());
        assert!(!peers.is_posed_as(ProcessId(3), NO_TOKEN, Some(told[0].ip())));
        assert!(peers.is_posed_as(ProcessId(3), NO_TOKEN, None) && !peers.is_posed_as(ProcessId(3), [3; 16], None));
    }
}
