//! The directory of a job (`SHIFT_DIRECTORY`): where the process of a queue pair listens, for peers to which no GID leads.
//!
//! Owns what was read of the peers, and the thread that reads and writes. It introduces processes to one another and does nothing else: who
//! is met there has to be the process that is named, and says by its offer that it has the queue pair. What must hold: the agent never
//! waits for the directory, and nothing armed depends on it.

mod entry;
mod folder;
pub mod place;
#[cfg(feature = "redis")]
mod server;
mod worker;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use mio::Waker;
use shift_proto::id::ProcessId;

use self::folder::Folder;
use self::place::Place;
use self::worker::{Shared, Store};
use crate::address::canonical;
use crate::agent::spawn;
use crate::registry::Owned;

pub(crate) use self::entry::Entry;

/// How long an orderly exit waits for its entries to be removed, where the directory answers.
const END_LIMIT: Duration = Duration::from_millis(50);

/// The directory as the agent sees it.
pub(crate) struct Rendezvous {
    shared: Arc<Shared>,
    /// Of the peers of the queue pairs that there are.
    entries: BTreeMap<Owned, Entry>,
}

/// For whoever waits for the end of it.
#[derive(Clone)]
pub(crate) struct Departure(Arc<Shared>);

impl Departure {
    /// Waits until the entries of this process are removed, but not long.
    pub fn wait(&self) {
        self.0.wait_ended(END_LIMIT);
    }
}

impl Rendezvous {
    /// Starts the thread; `None`: there is no directory, and why was said.
    pub fn start(place: &Place, me: ProcessId, listens: &[SocketAddr], waker: Arc<Waker>) -> Option<Self> {
        let mut store = open(place, me)?;
        let shared = Arc::new(Shared::new(place.to_string(), waker));
        let text = Entry::new(me, listens).text();
        let worker = Arc::clone(&shared);
        let started = spawn("shift-directory", move || {
            if catch_unwind(AssertUnwindSafe(|| worker.run(&mut *store, &text))).is_err() {
                log::error!("the directory is not used any more after a mistake of its own thread");
            }
            worker.set_ended();
        });
        if let Err(error) = started {
            log::warn!("SHIFT_DIRECTORY={place} is not used: it gets no thread ({error})");
            return None;
        }
        Some(Self { shared, entries: BTreeMap::new() })
    }

    /// This process has the queue pair.
    pub fn publish(&self, own: Owned) {
        self.shared.publish(own);
    }

    /// It does not any more, and nothing is sought for it.
    pub fn forget(&mut self, own: Owned, peer: Owned) {
        self.shared.withdraw(own);
        self.shared.stop(peer);
        self.entries.remove(&peer);
    }

    /// Looks for the process of the queue pair until told to stop.
    pub fn seek(&self, sought: Owned) {
        self.shared.seek(sought);
    }

    /// The peer was heard.
    pub fn stop(&self, sought: Owned) {
        self.shared.stop(sought);
    }

    /// What was found since the last call.
    pub fn take_found(&mut self) -> Vec<(Owned, Entry)> {
        let found: Vec<(Owned, Entry)> = self.shared.take_found().into_iter().collect();
        self.entries.extend(found.iter().cloned());
        found
    }

    /// The queue pair was looked up.
    pub fn has(&self, sought: Owned) -> bool {
        self.entries.contains_key(&sought)
    }

    /// Whether the directory says that the process has the queue pair, and listens on one of those addresses.
    pub fn lists(&self, sought: Owned, process: ProcessId, is_there: impl Fn(IpAddr) -> bool) -> bool {
        let entry = self.entries.get(&sought).filter(|entry| entry.process == process);
        entry.is_some_and(|entry| entry.addresses.iter().any(|address| is_there(canonical(address.ip()))))
    }

    /// What is to be said of a peer that is not found.
    pub fn words(&self) -> String {
        self.shared.words()
    }

    /// The process ends.
    pub fn end(&self) {
        self.shared.end();
    }

    /// To wait for that.
    pub fn departure(&self) -> Departure {
        Departure(Arc::clone(&self.shared))
    }
}

fn open(place: &Place, me: ProcessId) -> Option<Box<dyn Store>> {
    match place {
        Place::Folder(path) => Some(Box::new(Folder::new(path, &format!("{:016x}", me.0)))),
        #[cfg(feature = "redis")]
        Place::Redis { url, .. } => Some(Box::new(server::Server::new(url))),
        #[cfg(not(feature = "redis"))]
        Place::Redis { .. } => {
            log::warn!(
                "SHIFT_DIRECTORY={place} has no effect: this library was built without Redis (cargo's feature redis); build it with \
                 that, or name a folder that all hosts see (file:///FOLDER)"
            );
            None
        }
    }
}
