//! Which process is at the other end of a queue pair?
//!
//! The host follows from the remote GID, the process from an [`Frame::Ask`] at that host's well-known port; the directory of the job, if
//! there is one, is looked up at the same time, and who leads to the process first counts. Owns the connections to well-known ports
//! and nothing else; where the process listens is all that it finds out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use shift_proto::frame::{Frame, QpAddress};
use shift_proto::id::{Micros, ProcessId};

use crate::address;
use crate::channel::Mismatch;
use crate::links::{Ending, LinkId, Links};
use crate::rendezvous::Entry;

/// First wait until the same is tried again; it doubles up to [`LAST_RETRY_US`].
const FIRST_RETRY_US: u64 = 20_000;
/// A peer may start minutes later; a refused connection attempt a second costs nothing.
const LAST_RETRY_US: u64 = 1_000_000;
/// A connection attempt that takes longer has failed.
const DIAL_LIMIT_US: u64 = 2_000_000;
/// Two ends of one job reach RTS within this time of each other; a search that takes longer is told to the operator.
pub const PATIENCE: Micros = Micros(1_000_000);

/// Why a search finds nothing, for the operator; told once per search by [`Discovery::take_failures`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The queue pair that is sought.
    pub sought: QpAddress,
    /// The reason, with address and port.
    pub reason: String,
}

enum Answer {
    /// Nothing known yet; the next question is due then.
    Missing { due: Micros, wait_us: u64 },
    /// Its process listens there.
    At(SocketAddr),
}

struct Search {
    /// None follows from the GID.
    site: Option<SocketAddr>,
    source: Option<IpAddr>,
    since: Micros,
    told: bool,
    answer: Answer,
    /// What the directory says, as far as it was not tried in vain.
    listed: Option<Entry>,
    /// What became of that.
    listed_in_vain: Option<String>,
}

struct Site {
    link: Option<LinkId>,
    standing: bool,
    due: Micros,
    wait_us: u64,
    last: String,
}

/// All searches of this process.
#[derive(Default)]
pub struct Discovery {
    searches: BTreeMap<(crate::datapath::Gid, u32), Search>,
    sites: BTreeMap<SocketAddr, Site>,
}

impl Discovery {
    /// Seeks the process of the queue pair at the well-known `site`, if there is one, with connections from `source`.
    pub fn seek(&mut self, sought: QpAddress, site: Option<SocketAddr>, source: Option<IpAddr>, now: Micros) {
        let answer = Answer::Missing { due: now, wait_us: FIRST_RETRY_US };
        let search = Search { site, source, since: now, told: false, answer, listed: None, listed_in_vain: None };
        self.searches.insert(key_of(sought), search);
        let Some(site) = site else {
            return;
        };
        self.sites.entry(site).or_insert_with(|| Site {
            link: None,
            standing: false,
            due: now,
            wait_us: FIRST_RETRY_US,
            last: "no answer".to_owned(),
        });
    }

    /// The search is over.
    pub fn stop(&mut self, links: &mut Links, sought: QpAddress) {
        self.searches.remove(&key_of(sought));
        let searches = &self.searches;
        self.sites.retain(|address, site| {
            let used = searches.values().any(|s| s.site == Some(*address));
            if let Some(link) = site.link.filter(|_| !used) {
                links.close(link);
            }
            used
        });
    }

    /// Whether the queue pair is sought.
    pub fn seeks(&self, sought: QpAddress) -> bool {
        self.searches.contains_key(&key_of(sought))
    }

    /// The directory names the process of the queue pair. `false`: it is not sought.
    pub fn list(&mut self, sought: QpAddress, entry: &Entry) -> bool {
        let search = self.searches.get_mut(&key_of(sought));
        search.map(|search| search.listed = Some(entry.clone())).is_some()
    }

    /// The queue pairs whose process listens at `address`, by what was answered; those of the directory only if it named `process`.
    pub fn sought_at(&self, address: SocketAddr, process: ProcessId) -> Vec<QpAddress> {
        let is_listed = |entry: &Entry| entry.process == process && entry.addresses.contains(&address);
        let at = |s: &Search| {
            matches!(s.answer, Answer::At(found) if found == address) || s.listed.as_ref().is_some_and(is_listed)
        };
        self.searches.iter().filter(|(_, s)| at(s)).map(|((gid, qpn), _)| QpAddress { gid: gid.0, qpn: *qpn }).collect()
    }

    /// Nobody (or somebody else) listens at `address`: the questions start anew.
    pub fn lost(&mut self, address: SocketAddr, reason: &str, now: Micros) {
        for search in self.searches.values_mut() {
            if search.listed.as_ref().is_some_and(|entry| entry.addresses.contains(&address)) {
                search.listed_in_vain = Some(reason.to_owned());
            }
            if matches!(search.answer, Answer::At(found) if found == address) {
                search.answer = Answer::Missing { due: now + Micros(LAST_RETRY_US), wait_us: LAST_RETRY_US };
                if let Some(site) = search.site.and_then(|site| self.sites.get_mut(&site)) {
                    reason.clone_into(&mut site.last);
                }
            }
        }
    }

    /// A dialed connection stands. `true`: it is one of these.
    pub fn connected(&mut self, links: &mut Links, link: LinkId, now: Micros) -> bool {
        let Some(site) = self.site_of(link) else {
            return false;
        };
        site.standing = true;
        site.wait_us = FIRST_RETRY_US;
        "it does not know the queue pair".clone_into(&mut site.last);
        for search in self.searches.values_mut() {
            if let Answer::Missing { due, wait_us } = &mut search.answer {
                // A new holder hears from its members within moments.
                (*due, *wait_us) = (now.min(*due), FIRST_RETRY_US);
            }
        }
        self.tick(links, now);
        true
    }

    /// A connection ended. `true`: it was one of these.
    pub fn closed(&mut self, link: LinkId, ending: Ending, now: Micros) -> bool {
        let Some((address, site)) = self.sites.iter_mut().find(|(_, s)| s.link == Some(link)) else {
            return false;
        };
        // A holder closes who only asks after a while; that is no failure.
        if !site.standing {
            let last = std::mem::replace(&mut site.last, describe(ending));
            site.wait_us = (site.wait_us * 2).min(LAST_RETRY_US);
            if matches!(ending, Ending::Mismatch(_)) && last != site.last {
                // Whoever was told that nobody answers there has to know what keeps the two apart.
                let searches = self.searches.values_mut().filter(|s| s.site == Some(*address));
                searches.for_each(|search| search.told = false);
            }
        }
        site.link = None;
        site.standing = false;
        site.due = now + Micros(site.wait_us);
        true
    }

    /// An answer. Where the process listens, if that is news.
    pub fn handle_owner(&mut self, link: LinkId, sought: QpAddress, port: Option<u16>) -> Option<SocketAddr> {
        let site = *self.sites.iter().find(|(_, s)| s.link == Some(link))?.0;
        let search = self.searches.get_mut(&key_of(sought)).filter(|s| s.site == Some(site))?;
        let at = address::with_port(site, port?);
        search.answer = Answer::At(at);
        Some(at)
    }

    /// From where connections to the process of the queue pair start.
    pub fn source_of(&self, sought: QpAddress) -> Option<IpAddr> {
        self.searches.get(&key_of(sought)).and_then(|s| s.source)
    }

    /// Dials and asks what is due.
    pub fn tick(&mut self, links: &mut Links, now: Micros) {
        self.dial_sites(links, now);
        for ((gid, qpn), search) in &mut self.searches {
            let Answer::Missing { due, wait_us } = &mut search.answer else {
                continue;
            };
            let site = search.site.and_then(|site| self.sites.get(&site));
            let Some(link) = site.filter(|s| s.standing).and_then(|s| s.link) else {
                continue;
            };
            if now >= *due {
                links.send(link, &Frame::Ask(QpAddress { gid: gid.0, qpn: *qpn }));
                *due = now + Micros(*wait_us);
                *wait_us = (*wait_us * 2).min(LAST_RETRY_US);
            }
        }
    }

    /// Searches that have taken longer than `patience`, each told once; `directory` is what is to be said of that, if there is one.
    pub fn take_failures(&mut self, now: Micros, patience: Micros, directory: Option<&str>) -> Vec<Failure> {
        let mut failures = Vec::new();
        for ((gid, qpn), search) in &mut self.searches {
            if search.told || now.since(search.since) < patience {
                continue;
            }
            search.told = true;
            let reason = search.failure(&self.sites, directory);
            failures.push(Failure { sought: QpAddress { gid: gid.0, qpn: *qpn }, reason });
        }
        failures
    }

    /// When [`Discovery::tick`] is due.
    pub fn deadline(&self) -> Option<Micros> {
        let asks = self.searches.values().filter_map(|s| match s.answer {
            Answer::Missing { due, .. } if s.stands(&self.sites) => Some(due),
            Answer::Missing { .. } | Answer::At(_) => None,
        });
        let tells = self.searches.values().filter(|s| !s.told).map(|s| s.since + PATIENCE);
        let dials = self.sites.values().filter_map(|s| match s.link {
            None => Some(s.due),
            Some(_) if !s.standing => Some(s.due + Micros(DIAL_LIMIT_US)),
            Some(_) => None,
        });
        asks.chain(tells).chain(dials).min()
    }

    fn dial_sites(&mut self, links: &mut Links, now: Micros) {
        for (address, site) in &mut self.sites {
            let wanted = |s: &&Search| s.site == Some(*address) && matches!(s.answer, Answer::Missing { .. });
            let Some(search) = self.searches.values().find(wanted) else {
                site.due = now + Micros(LAST_RETRY_US);
                continue;
            };
            if let Some(link) = site.link.filter(|_| !site.standing && now >= site.due + Micros(DIAL_LIMIT_US)) {
                links.close(link);
                site.link = None;
                site.due = now + Micros(LAST_RETRY_US);
                "no answer to a connection attempt".clone_into(&mut site.last);
            }
            if site.link.is_none() && now >= site.due {
                site.due = now;
                match links.dial(*address, search.source) {
                    Ok(link) => site.link = Some(link),
                    Err(error) => {
                        site.last = error.to_string();
                        site.wait_us = (site.wait_us * 2).min(LAST_RETRY_US);
                        site.due = now + Micros(site.wait_us);
                    }
                }
            }
        }
    }

    fn site_of(&mut self, link: LinkId) -> Option<&mut Site> {
        self.sites.values_mut().find(|s| s.link == Some(link))
    }
}

impl Search {
    /// Who is asked is connected.
    fn stands(&self, sites: &BTreeMap<SocketAddr, Site>) -> bool {
        self.site.and_then(|site| sites.get(&site)).is_some_and(|site| site.standing)
    }

    /// Why it found nothing so far.
    fn failure(&self, sites: &BTreeMap<SocketAddr, Site>, directory: Option<&str>) -> String {
        let at_site = self.site.map_or_else(
            || "the remote GID is no IP address".to_owned(),
            |at| {
                let last = sites.get(&at).map_or("no answer", |s| s.last.as_str());
                format!("no shim answers for the peer at {at}: {last}")
            },
        );
        match (directory, &self.listed_in_vain) {
            (None, _) => at_site,
            (Some(_), Some(in_vain)) => format!("{at_site}; nor where the directory leads to: {in_vain}"),
            (Some(words), None) => format!("{at_site}; {words}"),
        }
    }
}

/// The ending in an operator's words.
pub fn describe(ending: Ending) -> String {
    let words = match ending {
        Ending::Refused => "connection refused",
        Ending::Ended => "it closed the connection",
        Ending::Unreachable => "unreachable",
        Ending::Malformed | Ending::Mismatch(Mismatch::Malformed | Mismatch::Forged) => {
            "what answers there speaks another protocol"
        }
        Ending::Slow => "it does not answer",
        Ending::Posed => "what answers there calls itself a process that is another one",
        Ending::Mismatch(Mismatch::OtherKey) => {
            "it has another job key; both need the same SHIFT_JOB_KEY_FILE, jobs that share a host a SHIFT_PORT each"
        }
        Ending::Mismatch(Mismatch::PeerHasNoKey) => {
            "it has no job key; set the SHIFT_JOB_KEY_FILE there that is set here"
        }
        Ending::Mismatch(Mismatch::PeerHasKey) => {
            "it has a job key, this process has none; set the same SHIFT_JOB_KEY_FILE here"
        }
        Ending::Mismatch(Mismatch::OtherVersions { theirs, own }) => {
            return format!("it speaks {theirs}, this process {own}; run the same release at both ends");
        }
    };
    words.to_owned()
}

fn key_of(address: QpAddress) -> (crate::datapath::Gid, u32) {
    (crate::datapath::Gid(address.gid), address.qpn)
}
