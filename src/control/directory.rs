//! Which process of this network namespace owns a queue pair.
//!
//! One process holds the well-known port and answers for all; the others register with it over an abstract Unix socket,
//! which has exactly the scope of the port. When the holder exits, its sockets close, and the first of the others to bind the
//! port takes over. Nothing armed depends on it: it only introduces processes to one another.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shift_proto::frame::{Frame, QpAddress};
use shift_proto::id::Micros;

use crate::datapath::Gid;
use crate::discovery::describe;
use crate::links::{Ending, LinkId, Links};
use crate::registry::{Claimed, Owned, Registry};
use crate::sockets::Listener;
use crate::strangers::Refusal;

/// How long until the port, or its holder, is tried again.
const RETRY_US: u64 = 200_000;
/// So often the name of the local socket may be taken before that is told: a holder that is just ending still has it.
const LOCAL_TRIES: u32 = 5;
/// So often neither the port nor a holder may be reached before that is told: a holder that ends is replaced sooner.
const SEEK_TRIES: u32 = 10;

enum Role {
    /// Neither the port nor its holder was reached; the next attempt is due then, if this process owns anything.
    Seeking(Micros),
    /// This process answers. Until it has the local socket too, others cannot register; that is tried again then.
    Holder(Option<Micros>),
    /// Another one answers, and is told over this connection since then.
    Member(LinkId, Micros),
}

/// This process's part in the directory.
pub struct Directory {
    role: Role,
    well_known: u16,
    listen_on: Vec<IpAddr>,
    local_name: String,
    own_port: u16,
    own: BTreeSet<Owned>,
    registered: Registry,
    members: BTreeSet<LinkId>,
    local_tries: u32,
    seek_tries: u32,
    /// So often in a row a holder ended the connection as soon as it stood.
    brief_stays: u32,
    told_mismatch: bool,
}

impl Directory {
    /// Nothing is bound before the first [`Directory::tick`].
    pub fn new(well_known: u16, own_port: u16, listen_on: Vec<IpAddr>, local_name: String) -> Self {
        Self {
            role: Role::Seeking(Micros(0)),
            well_known,
            listen_on,
            local_name,
            own_port,
            own: BTreeSet::new(),
            registered: Registry::default(),
            members: BTreeSet::new(),
            local_tries: 0,
            seek_tries: 0,
            brief_stays: 0,
            told_mismatch: false,
        }
    }

    /// This process owns the queue pair.
    pub fn add(&mut self, links: &mut Links, gid: Gid, qpn: u32) {
        self.own.insert((gid, qpn));
        self.register(links, gid, qpn, Some(self.own_port));
    }

    /// It does not any more.
    pub fn remove(&mut self, links: &mut Links, gid: Gid, qpn: u32) {
        self.own.remove(&(gid, qpn));
        self.register(links, gid, qpn, None);
    }

    fn register(&self, links: &mut Links, gid: Gid, qpn: u32, port: Option<u16>) {
        if let Role::Member(link, _) = self.role {
            links.send(link, &Frame::Owner { address: QpAddress { gid: gid.0, qpn }, port });
        }
    }

    /// The port of the process that owns the queue pair, as far as it is known here.
    pub fn owner(&self, gid: Gid, qpn: u32) -> Option<u16> {
        if self.own.contains(&(gid, qpn)) {
            return Some(self.own_port);
        }
        self.registered.owner((gid, qpn))
    }

    /// A connection came in. `true`: it is a local process that will register here.
    pub fn accepted(&mut self, links: &mut Links, link: LinkId) -> bool {
        if links.local_user(link).is_none() {
            return false;
        }
        self.members.insert(link);
        true
    }

    /// Whether the connection belongs to the directory.
    pub fn knows(&self, link: LinkId) -> bool {
        self.members.contains(&link) || matches!(self.role, Role::Member(holder, _) if holder == link)
    }

    /// A local process registers or withdraws a queue pair.
    pub fn handle(&mut self, links: &mut Links, link: LinkId, frame: &Frame) {
        let Frame::Owner { address, port } = frame else {
            return;
        };
        if !self.members.contains(&link) {
            return;
        }
        let Some(user) = links.local_user(link) else {
            return;
        };
        if !self.registered.admit(link, user) {
            self.members.remove(&link);
            return links.turn_away(link, Refusal::Crowded);
        }
        links.set_greeted(link);
        let key = (Gid(address.gid), address.qpn);
        let Some(port) = *port else {
            return self.registered.withdraw(key, link);
        };
        match self.registered.claim(key, link, user, port) {
            Claimed::First | Claimed::Behind { news: false, .. } => {}
            Claimed::Behind { owner, news: true } => log::warn!(
                "user {user} registers qp {:#x}, which user {owner} registered first and keeps; further ones are not told",
                address.qpn
            ),
            Claimed::Full => log::debug!("there is no room to register qp {:#x} of user {user}", address.qpn),
        }
    }

    /// A connection of the directory ended.
    pub fn closed(&mut self, link: LinkId, ending: Ending, now: Micros) {
        if self.members.remove(&link) {
            self.registered.forget(link);
        }
        let Role::Member(holder, since) = self.role else {
            return;
        };
        if holder != link {
            return;
        }
        let port = self.well_known;
        let refused = matches!(ending, Ending::Mismatch(_));
        if refused && !std::mem::replace(&mut self.told_mismatch, true) {
            let why = describe(ending);
            log::warn!("SHIFT_PORT={port}: the process that answers there for this host is of another job: {why}");
        }
        let brief = !refused && now.since(since).0 < RETRY_US;
        self.brief_stays = if brief { self.brief_stays.saturating_add(1) } else { 0 };
        if self.brief_stays == SEEK_TRIES {
            log::warn!(
                "SHIFT_PORT={port}: the process that answers there for this host takes no further one: peers cannot find the \
                 queue pairs of this process"
            );
        }
        // Who left is replaced at once; who is of another job, or takes no further process, may stay.
        let may_stay = refused || self.brief_stays > 1;
        self.role = Role::Seeking(if may_stay { now + Micros(RETRY_US) } else { now });
    }

    /// Takes the port, or finds who has it, if that is due.
    pub fn tick(&mut self, links: &mut Links, now: Micros) {
        if self.deadline().is_none_or(|due| now < due) {
            return;
        }
        let retry = now + Micros(RETRY_US);
        if matches!(self.role, Role::Holder(_)) {
            self.role = Role::Holder((!self.listen_local(links)).then_some(retry));
            return;
        }
        self.role = match self.hold(links) {
            Ok(()) => {
                log::debug!("this process answers on the well-known port {}", self.well_known);
                Role::Holder((!self.listen_local(links)).then_some(retry))
            }
            Err(error) => match self.join(links) {
                Some(holder) => Role::Member(holder, now),
                None => {
                    self.sought_in_vain(&error);
                    Role::Seeking(retry)
                }
            },
        };
        if !matches!(self.role, Role::Seeking(_)) {
            self.seek_tries = 0;
        }
    }

    /// The port cannot be had, and no shim of this namespace answers for it either.
    fn sought_in_vain(&mut self, error: &std::io::Error) {
        self.seek_tries = self.seek_tries.saturating_add(1);
        if self.seek_tries == SEEK_TRIES {
            let port = self.well_known;
            log::warn!(
                "SHIFT_PORT={port}: {error}, and who has it is no shim of this job: peers cannot find the queue pairs of this \
                 process; name a port that is free on every host, the same in the whole job"
            );
        }
    }

    /// When [`Directory::tick`] is due.
    pub fn deadline(&self) -> Option<Micros> {
        match self.role {
            Role::Seeking(due) => (due == Micros(0) || !self.own.is_empty()).then_some(due),
            Role::Holder(due) => due,
            Role::Member(..) => None,
        }
    }

    fn hold(&self, links: &mut Links) -> std::io::Result<()> {
        let public = Listener::bind(&self.listen_on, self.well_known)?;
        links.listen(public)
    }

    /// Without the local socket the other processes of the namespace stay unprotected; this one need not be.
    fn listen_local(&mut self, links: &mut Links) -> bool {
        let bound = Listener::bind_local(&self.local_name).and_then(|local| links.listen(local));
        self.local_tries += 1;
        if let Err(error) = bound.as_ref().map_err(ToString::to_string) {
            if self.local_tries == LOCAL_TRIES {
                let port = self.well_known;
                log::warn!(
                    "SHIFT_PORT={port}: other processes cannot register here, their QPs are unprotected ({error})"
                );
            }
        }
        bound.is_ok()
    }

    fn join(&self, links: &mut Links) -> Option<LinkId> {
        let holder = links.dial_local(&self.local_name).ok()?;
        for (gid, qpn) in &self.own {
            let address = QpAddress { gid: gid.0, qpn: *qpn };
            links.send(holder, &Frame::Owner { address, port: Some(self.own_port) });
        }
        Some(holder)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::channel::Terms;
    use crate::links::LinkEvent;

    #[test]
    fn processes_of_one_user_do_not_take_all_connections_of_the_holder() {
        let name = format!("shift-members-{}", std::process::id());
        let (mut links, _waker) = Links::new(Terms::default(), || Ok([7; 16])).unwrap();
        let mut directory = Directory::new(1, 2, Vec::new(), name.clone());
        links.listen(Listener::bind_local(&name).unwrap()).unwrap();
        let mut member = || {
            let dialed = links.dial_local(&name).unwrap();
            let accepted = loop {
                let events = links.poll(Some(Duration::from_secs(5))).unwrap();
                if let Some(link) =
                    events.iter().find_map(|e| if let LinkEvent::Accepted(l) = e { Some(*l) } else { None })
                {
                    break link;
                }
            };
            assert!(directory.accepted(&mut links, accepted));
            let user = links.local_user(accepted).unwrap();
            let address = QpAddress { gid: [7; 16], qpn: 17 };
            directory.handle(&mut links, accepted, &Frame::Owner { address, port: Some(3) });
            let known = directory.knows(accepted);
            assert_eq!(known, links.is_open(accepted));
            // The others of that user are as many as it may have with this one.
            let mut number = 1_000_000;
            while known && directory.registered.admit(LinkId::of(number), user) {
                number += 1;
            }
            links.close(dialed);
            (known, links.strangers.count(Refusal::Crowded))
        };
        assert_eq!(member(), (true, 0));
        assert_eq!(member(), (false, 1));
    }
}
