//! One client and one server, a fault at some moment, and what came of it.
//!
//! The same for every program: perftest, the checking application, NCCL. A trial judges nothing; it tells how both sides ended, whether
//! they stood still, and when the standby first carried something.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::{ms, until};
use crate::figures::Figures;
use crate::guest::talk::Stream;
use crate::guest::{Ended, Program, Running};
use crate::lab::{Lab, Listens};
use crate::place::{Host, Rail};
use crate::seed::Seed;
use crate::trouble::{Result, Trouble};
use crate::wire::log::Record;
use crate::wire::rule::{Action, Rule};
use crate::wire::stats::Meter;

/// Without progress for so long, a run counts as dead: soft-RoCE takes perftest's retry count of 7 as infinite, so no error may ever come.
pub const STALL_LIMIT: Duration = Duration::from_secs(20);
/// One side has done all its work, and the other hangs for this long in tearing down: packets of a queue pair that lie in the ring of a virtio
/// card whose interface is down are freed only when it is up again, and soft-RoCE waits for them, up to 50 s, before it lets the
/// queue pair go. The rail comes back then, as a real one would at some time. Both sides were past their last message.
pub const TEARDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// A server that would serve the next client does not end when its work is done. Where both shims have moved their connections off the rail, it
/// comes back after this: a program that stands still on the other rail is not helped by that, one that only waits for those packets is.
const MOVED_PATIENCE: Duration = Duration::from_secs(6);
/// A shim's words of a migration.
const MOVED: &str = " failover rxe0 -> rxe1 ";
/// perftest's words where its clock and the processor's disagree, as under emulation on a loaded machine: its traffic is over by then.
const UNCALIBRATED: &str = "Can't produce a report";
/// Packet numbers of the queue pairs, what soft-RoCE counted, what the shims say, and where their processes' threads are.
const LOOK_AROUND: &str = "rdma -d resource show qp; rdma -d resource show cq; /shift/shiftctl status --json; \
    busybox grep -H . /sys/class/infiniband/*/ports/1/hw_counters/*; \
    for process in /proc/[0-9]*; do busybox grep -q libshift_verbs $process/maps && busybox grep -H . $process/task/*/stat $process/task/*/wchan; done; true";
/// Runs of a trial that something else spoils, all together.
const ATTEMPTS: u32 = 3;
/// The moment of a fault comes within this, or never.
const MOMENT_LIMIT: Duration = Duration::from_secs(60);
/// No run takes longer, fault or not.
pub const RUN_LIMIT: Duration = Duration::from_secs(180);

/// What is done to the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The interface of a rail goes down inside one host; the other sees silence.
    Cut(Host, Rail),
    /// One host loses the carrier of a rail; the other sees silence.
    Carrier(Host, Rail),
    /// The network card of a rail is torn out of one host. Spoils the pair.
    TornOut(Host, Rail),
    /// Nothing that this host sends (both, if none is named) arrives any more, and no host is told.
    Silence(Rail, Option<Host>),
    /// A rule of the wire.
    Rule(Rule),
    /// Several, the first that takes a packet decides.
    Rules(Vec<Rule>),
    /// A rail is gone for a moment: silent in both directions, or its interface down inside one host.
    Flap {
        /// Inside which host; none: on the wire.
        host: Option<Host>,
        /// Which rail.
        rail: Rail,
        /// For how long.
        gone: Duration,
    },
    /// A host stands still for a while, or the programs of the checking application there.
    Asleep {
        /// Which host.
        host: Host,
        /// The whole host, or its programs alone.
        whole: bool,
        /// For how long.
        gone: Duration,
    },
    /// Both rails of a host go down, and one comes back after a while.
    AllCut {
        /// Whose rails.
        host: Host,
        /// For how long.
        gone: Duration,
        /// Which comes back.
        back: Rail,
    },
}

impl Fault {
    /// The interface that it takes down for good.
    fn stays_down(&self) -> Option<(Host, Rail)> {
        match self {
            Fault::Cut(host, rail) => Some((*host, *rail)),
            Fault::AllCut { host, back: Rail::One, .. } => Some((*host, Rail::Zero)),
            Fault::AllCut { host, back: Rail::Zero, .. } => Some((*host, Rail::One)),
            Fault::AllCut { back: Rail::Two, .. }
            | Fault::None
            | Fault::Carrier(..)
            | Fault::TornOut(..)
            | Fault::Silence(..)
            | Fault::Rule(_)
            | Fault::Rules(_)
            | Fault::Asleep { .. }
            | Fault::Flap { .. } => None,
        }
    }

    /// Makes it; returns when, host-monotonic.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self, lab: &mut Lab) -> Result<u64> {
        match self {
            Fault::None => Ok(crate::clock::monotonic_ns()),
            Fault::Cut(host, rail) => lab.cut(*host, *rail),
            Fault::Carrier(host, rail) => lab.set_carrier(*host, *rail, false),
            Fault::TornOut(host, rail) => lab.tear_out(*host, *rail),
            Fault::Silence(rail, from) => {
                let rule = Rule { from: *from, ..Rule::on(rail.link(), Action::Drop) };
                lab.wire().add(rule).map(|(_, at_ns)| at_ns)
            }
            Fault::Rule(rule) => lab.wire().add(rule.clone()).map(|(_, at_ns)| at_ns),
            Fault::Rules(rules) => {
                let installed = rules.iter().map(|rule| lab.wire().add(rule.clone()).map(|(_, at_ns)| at_ns));
                Ok(installed.collect::<Result<Vec<u64>>>()?.first().copied().unwrap_or_default())
            }
            Fault::Flap { host, rail, gone } => {
                let wire = match host {
                    Some(_) => None,
                    None => Some(lab.wire().add(Rule::on(rail.link(), Action::Drop))?),
                };
                let at_ns = match (host, wire) {
                    (Some(host), _) => lab.cut(*host, *rail)?,
                    (None, wire) => wire.map_or(0, |(_, at_ns)| at_ns),
                };
                // The length of the fault itself, not a wait for anything.
                thread::sleep(*gone);
                if let Some((rule, _)) = wire {
                    lab.wire().remove(rule)?;
                }
                if let Some(host) = host {
                    lab.mend(*host, *rail)?;
                }
                Ok(at_ns)
            }
            Fault::Asleep { host, whole, gone } => {
                let at_ns = lab.fall_asleep(*host, *whole)?;
                // The length of the fault itself, not a wait for anything.
                thread::sleep(*gone);
                lab.wake_up(*host, *whole)?;
                Ok(at_ns)
            }
            Fault::AllCut { host, gone, back } => {
                let at_ns = lab.cut(*host, Rail::Zero)?;
                lab.cut(*host, Rail::One)?;
                // The length of the fault itself, not a wait for anything.
                thread::sleep(*gone);
                lab.mend(*host, *back)?;
                Ok(at_ns)
            }
        }
    }
}

/// When the fault is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the programs start.
    Before,
    /// When that many RoCE packets have gone over rail 0 since they started.
    Packets(u64),
    /// When both shims have said that so many queue pairs are protected, and that many more packets have gone over rail 0.
    Armed {
        /// Queue pairs.
        qps: u64,
        /// Packets after that.
        packets: u64,
    },
    /// When all shims together, those of processes that one of the two started too, have said that so many queue pairs are protected, and that
    /// many more packets have gone over rail 0.
    Together {
        /// Queue pairs of both hosts.
        qps: u64,
        /// Packets after that.
        packets: u64,
    },
    /// When both shims have said that so many queue pairs are protected, while the client stands idle until then ([`Trial::go_on`]): all its
    /// work but the first message of each queue pair is posted after the fault was made, however long arming takes.
    Idle {
        /// Queue pairs.
        qps: u64,
    },
}

impl Moment {
    /// A moment that the seed chooses, `low..high` packets into the run.
    pub fn from_seed(seed: u64, low: u64, high: u64) -> Moment {
        Moment::Packets(Seed::new(seed, "moment").within(low..high))
    }

    /// The same, counted from when `qps` queue pairs are protected: before that a fault is the application's.
    pub fn armed(qps: u64, seed: u64, low: u64, high: u64) -> Moment {
        Moment::Armed { qps, packets: Seed::new(seed, "moment").within(low..high) }
    }
}

/// When a server is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEnd {
    /// It ends by itself, and its end is judged.
    Itself,
    /// It would serve the next client: it is killed when its client has ended, and has no end to judge.
    Killed,
}

/// A trial to be made.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Started first.
    pub server: Program,
    /// Where it runs; the client runs on the other host.
    pub server_host: Host,
    /// How it says that it is ready.
    pub listens: Listens,
    /// When it is over.
    pub server_end: ServerEnd,
    /// Started once the server listens.
    pub client: Program,
    /// What is done to them.
    pub fault: Fault,
    /// When.
    pub moment: Moment,
    /// The client is idle until this file is there; it is made after the fault at [`Moment::Idle`], and once all is protected at [`Moment::Armed`] and [`Moment::Together`].
    pub go_on: Option<&'static str>,
    /// How long nothing may move.
    pub stall_limit: Duration,
}

impl Trial {
    /// A trial without a fault.
    pub fn new(server_host: Host, listens: impl Into<Listens>, server: Program, client: Program) -> Trial {
        Trial {
            server,
            server_host,
            listens: listens.into(),
            server_end: ServerEnd::Itself,
            client,
            fault: Fault::None,
            moment: Moment::Before,
            go_on: None,
            stall_limit: STALL_LIMIT,
        }
    }

    /// With a fault.
    pub fn fault(mut self, fault: Fault, moment: Moment) -> Trial {
        (self.fault, self.moment) = (fault, moment);
        self
    }

    /// Makes it, and again where the run was spoiled by something that is no program's and no shim's.
    ///
    /// # Errors
    /// As [`Trial::run_once`].
    pub fn run(&self, lab: &mut Lab) -> Result<Story> {
        for _ in 1..ATTEMPTS {
            let story = self.run_once(lab)?;
            let Some(why) = self.spoiled(&story) else { return Ok(story) };
            eprintln!("      {why}; once more");
            lab.reset()?;
        }
        self.run_once(lab)
    }

    /// On a loaded machine perftest's own time-out (67 ms) expires on a healthy path, and the retransmission of 6.12's rxe may renumber what follows;
    /// the run then ends with status 9, with or without a shim. And perftest's measurement of its clock fails.
    fn spoiled(&self, story: &Story) -> Option<&'static str> {
        let dead = match self.server_end {
            ServerEnd::Itself => story.is_dead(),
            ServerEnd::Killed => story.client.as_ref().is_none_or(|ended| !ended.succeeded()),
        };
        if story.fault_ns.is_none() && dead && retransmitted(&story.records) {
            return Some("soft-RoCE retransmitted on a healthy path");
        }
        let uncalibrated = story.said.iter().any(|line| line.contains(UNCALIBRATED));
        uncalibrated.then_some("perftest could not measure its clock")
    }

    /// Makes it: starts both, makes the fault, waits until both have ended or stand still, kills what is left.
    ///
    /// # Errors
    /// A guest or the wire is lost, a program cannot be started, the moment never comes, or it takes more than [`RUN_LIMIT`].
    pub fn run_once(&self, lab: &mut Lab) -> Result<Story> {
        let since = lab.wire().position()?;
        let mut fault_ns = None;
        if self.moment == Moment::Before && self.fault != Fault::None {
            fault_ns = Some(self.fault.make(lab)?);
        }
        if let Some(file) = self.go_on {
            lab.guest(self.server_host.peer()).shell(&format!("rm -f {file}"))?;
        }
        let (server, client) = lab.start_pair(self.server_host, self.listens, &self.server, &self.client)?;
        let due = self.wait_moment(lab, &client, &server)?;
        if due && self.fault != Fault::None {
            fault_ns = Some(self.fault.make(lab)?);
        }
        if due {
            self.let_go(lab)?;
        }
        let still = self.wait_for_end(lab, &client, &server);
        let ends = [client.ended(), server.ended()];
        if still.is_ok() && ends.iter().any(Option::is_none) && self.server_end == ServerEnd::Itself {
            Trial::look_around(lab)?;
        }
        let said = [&client, &server].into_iter().flat_map(Running::lines).filter(|line| line.stream == Stream::Err);
        let said = said.map(|line| line.text).collect();
        for side in [&client, &server].into_iter().zip(&ends).filter_map(|(side, end)| end.is_none().then_some(side)) {
            // It may end at this very moment; then there is nothing to kill.
            let _ = side.signal(9);
        }
        still?;
        Ok(Story { said, ..Story::tell(lab, since, fault_ns, ends)? })
    }
}

/// Queue pairs that the shim of a program said are protected.
pub fn all_protected(side: &Running) -> u64 {
    side.lines().iter().filter_map(|line| protected(&line.text)).sum()
}

/// Queue pairs that this line of a shim says are protected.
pub fn protected(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" protected: ")?;
    before.split_whitespace().rev().nth(1)?.parse::<u64>().ok()
}

impl Trial {
    /// What the kernel and the shim know of a program that stands still goes into what is kept of the scenario.
    fn look_around(lab: &Lab) -> Result<()> {
        for host in Host::ALL {
            lab.guest(host).shell(LOOK_AROUND)?;
        }
        Ok(())
    }

    /// An idle client goes on.
    fn let_go(&self, lab: &Lab) -> Result<()> {
        let Some(file) = self.go_on else { return Ok(()) };
        lab.guest(self.server_host.peer()).write(file, "", 0o644)
    }

    /// Waits for the moment of the fault; false if there is none, or the run is over first.
    fn wait_moment(&self, lab: &Lab, client: &Running, server: &Running) -> Result<bool> {
        let over = || client.ended().is_some() || server.ended().is_some();
        let packets = match self.moment {
            Moment::Before => return Ok(false),
            Moment::Packets(packets) => packets,
            Moment::Idle { qps } => return Trial::wait_armed(|a, b| a.min(b) >= qps, client, server, over),
            Moment::Together { qps, packets } => {
                if !Trial::wait_armed(|a, b| a + b >= qps, client, server, over)? {
                    return Ok(false);
                }
                self.let_go(lab)?;
                packets
            }
            Moment::Armed { qps, packets } => {
                if !Trial::wait_armed(|a, b| a.min(b) >= qps, client, server, over)? {
                    return Ok(false);
                }
                self.let_go(lab)?;
                packets
            }
        };
        lab.wait_traffic(Rail::Zero, packets, MOMENT_LIMIT, over)
    }

    /// Waits until the shims said that enough queue pairs are protected; false if a program is over first.
    fn wait_armed(
        enough: impl Fn(u64, u64) -> bool,
        client: &Running,
        server: &Running,
        over: impl Fn() -> bool,
    ) -> Result<bool> {
        until("both sides to be protected", MOMENT_LIMIT, || {
            Ok(if enough(all_protected(client), all_protected(server)) {
                Some(true)
            } else if over() {
                Some(false)
            } else {
                None
            })
        })
    }

    /// What stands still for so long waits for nothing but packets of a rail that is down.
    fn tears_down(&self, client: &Running, server: &Running, still: Duration) -> bool {
        let sides = [client, server];
        let is_done = |side: &&Running| side.ended().is_some_and(|ended| ended.succeeded());
        let has_moved = |side: &&Running| side.lines().iter().any(|line| line.text.contains(MOVED));
        match self.server_end {
            ServerEnd::Itself => still > TEARDOWN_PATIENCE && sides.iter().any(is_done),
            ServerEnd::Killed => still > MOVED_PATIENCE && sides.iter().all(has_moved),
        }
    }

    /// Both ended, or nothing moves: no new acknowledgement on the wire, no line of output.
    fn wait_for_end(&self, lab: &Lab, client: &Running, server: &Running) -> Result<()> {
        let begun = Instant::now();
        let (mut seen, mut moved_at) = (None, Instant::now());
        let mut mended = false;
        loop {
            if client.ended().is_some() && (server.ended().is_some() || self.server_end == ServerEnd::Killed) {
                return Ok(());
            }
            let state = (lab.wire().counts()?.progress(), client.lines().len(), server.lines().len());
            if seen != Some(state) {
                seen = Some(state);
                moved_at = Instant::now();
            }
            let rail =
                self.fault.stays_down().filter(|_| !mended && self.tears_down(client, server, moved_at.elapsed()));
            if let Some((host, rail)) = rail {
                lab.mend(host, rail)?;
                mended = true;
            }
            if moved_at.elapsed() > self.stall_limit {
                return Ok(());
            }
            if begun.elapsed() > RUN_LIMIT {
                return Err(Trouble::deadline("end of both sides", RUN_LIMIT));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What came of a trial.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// When the fault was made, host-monotonic, if the run lived to see it.
    pub fault_ns: Option<u64>,
    /// How the client ended; none if it stood still.
    pub client: Option<Ended>,
    /// How the server ended; none if it stood still.
    pub server: Option<Ended>,
    /// When a queue pair that carried nothing before the fault was first acknowledged something on rail 1.
    pub standby_ns: Option<u64>,
    /// Longest time between two new acknowledgements.
    pub longest_pause_ns: u64,
    /// Everything that was on the wire.
    pub records: Vec<Record>,
    /// What both sides said on standard error, whether they ended or not.
    pub said: Vec<String>,
}

impl Story {
    fn tell(lab: &Lab, since: u64, fault_ns: Option<u64>, ends: [Option<Ended>; 2]) -> Result<Story> {
        let [client, server] = ends;
        let records = lab.wire().records_since(since)?;
        let standby_ns = fault_ns.and_then(|fault| first_on_standby(&records, fault));
        let longest_pause_ns = longest_pause(&records);
        Ok(Story { fault_ns, client, server, standby_ns, longest_pause_ns, records, said: Vec::new() })
    }

    /// A side ended with an error, or stood still.
    pub fn is_dead(&self) -> bool {
        [&self.client, &self.server].into_iter().any(|side| side.as_ref().is_none_or(|ended| !ended.succeeded()))
    }

    /// How both sides ended.
    ///
    /// # Errors
    /// [`Trouble::Judged`] unless both ended with 0.
    pub fn require_success(&self) -> Result<(&Ended, &Ended)> {
        let judge = |name: &str, side| match side {
            None => Err(Trouble::judged(format!("{name} stood still"))),
            Some(ended) if !Ended::succeeded(ended) => Err(Trouble::judged(format!("{name}: {}", ended.brief()))),
            Some(ended) => Ok(ended),
        };
        Ok((judge("client", self.client.as_ref())?, judge("server", self.server.as_ref())?))
    }

    /// Figures that every trial has.
    pub fn figures(&self) -> Figures {
        let side = |side: &Option<Ended>| match side {
            None => "stood still".to_owned(),
            Some(ended) if ended.succeeded() => "exit 0".to_owned(),
            Some(ended) => ended.brief(),
        };
        let mut figures = Figures::new().with("client", side(&self.client)).with("server", side(&self.server));
        figures.note("longest_pause_ms", ms(self.longest_pause_ns));
        let Some(fault) = self.fault_ns else {
            return figures;
        };
        if let Some(standby) = self.standby_ns {
            figures.note("fault_to_standby_ms", ms(standby.saturating_sub(fault)));
        }
        if let Some(client) = &self.client {
            figures.note("fault_to_client_end_ms", ms(client.at_ns.saturating_sub(fault)));
        }
        figures
    }
}

/// Queue pairs that were already answered on rail 1 before the fault are probes, or were there first.
fn first_on_standby(records: &[Record], fault_ns: u64) -> Option<u64> {
    let answers = || {
        let rail1 = records.iter().filter(|record| record.link == Rail::One.link());
        rail1.filter_map(|record| Some((record, record.delivered_roce().filter(|bth| bth.is_response())?)))
    };
    let before: HashSet<_> =
        answers().filter(|(record, _)| record.at_ns < fault_ns).map(|(record, bth)| (record.from, bth.qpn)).collect();
    let new = |(record, bth): &(&Record, crate::wire::packet::Bth)| {
        record.at_ns >= fault_ns && !before.contains(&(record.from, bth.qpn))
    };
    answers().find(new).map(|(record, _)| record.at_ns)
}

/// The same request went over the wire twice.
fn retransmitted(records: &[Record]) -> bool {
    let mut seen = HashSet::new();
    let requests = records.iter().filter_map(|record| Some((record, record.delivered_roce()?)));
    requests.filter(|(_, bth)| !bth.is_response()).any(|(record, bth)| !seen.insert((record.from, bth.qpn, bth.psn)))
}

fn longest_pause(records: &[Record]) -> u64 {
    let mut meter = Meter::default();
    let steps: Vec<u64> = records.iter().filter(|record| meter.count(record)).map(|record| record.at_ns).collect();
    steps.iter().zip(steps.iter().skip(1)).map(|(before, after)| after.saturating_sub(*before)).max().unwrap_or(0)
}
