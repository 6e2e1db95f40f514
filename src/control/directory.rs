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
    /// Another one answers, and is told over this connection.
    Member(LinkId),
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
        if let Role::Member(link) = self.role {
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
        self.members.contains(&link) || matches!(self.role, Role::Member(holder) if holder == link)
    }

    /// A local process registers or withdraws a queue pair.
    pub fn handle(&mut self, links: &mut Links, link: LinkId, frame: &Frame) {
        let Frame::Owner { address, port } = frame else {
            return;
        };
        if !self.members.contains(&link) {
            return;
        }
        links.set_greeted(link);
        let key = (Gid(address.gid), address.qpn);
        let (Some(port), Some(user)) = (*port, links.local_user(link)) else {
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
        if matches!(self.role, Role::Member(holder) if holder == link) {
            let refused = matches!(ending, Ending::Mismatch(_));
            if refused && !std::mem::replace(&mut self.told_mismatch, true) {
                let port = self.well_known;
                let why = describe(ending);
                log::warn!("SHIFT_PORT={port}: the process that answers there for this host is of another job: {why}");
            }
            // Who left is replaced at once; who is of another job may stay.
            self.role = Role::Seeking(if refused { now + Micros(RETRY_US) } else { now });
        }
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
                Some(holder) => Role::Member(holder),
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
            Role::Member(_) => None,
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
