//! The agent: one thread per process, named "shift-agent", and the handle by which everybody else reaches it.
//!
//! It starts with the first device that the program opens and never before. Nobody waits for it; it has all signals blocked, so that
//! the application's handlers never run on it; its panic makes connections unprotected and never ends the process.

use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};
use mio::Waker;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use shift_proto::id::ProcessId;

use crate::address::{HostNetwork, Network};
use crate::audit::Sums;
use crate::channel::Terms;
use crate::config::Config;
use crate::core::Core;
use crate::datapath::{DataPath, Event};
use crate::directory::Directory;
use crate::job_key::KeyFile;
use crate::links::{Draw, Links};
use crate::nudge::Nudge;
use crate::peers::Peers;
use crate::rendezvous::{Departure, Rendezvous};
use crate::sockets::Listener;
use crate::world::World;

/// How long an orderly exit waits for the goodbyes to be handed to the kernel.
const GOODBYE_LIMIT: Duration = Duration::from_millis(5);
/// Signals that a thread raises itself: blocked, they would end the process without a word.
const OWN_FAULTS: [Signal; 4] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL];

enum Message {
    Event(Event),
    Goodbye(Sender<()>),
}

/// Tells the agent what happened. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct EventSender {
    messages: Sender<Message>,
    waker: Arc<Waker>,
    shared: Arc<Shared>,
    sums: Sums,
    departure: Option<Departure>,
    /// A forked child has no agent: what it sends would wait for ever.
    pid: u32,
}

#[derive(Default)]
struct Shared {
    nudge: Nudge,
    /// The agent ended. Set once by the agent (Release).
    ended: AtomicBool,
}

impl EventSender {
    /// Hands over an event. After the agent has ended, and in a forked child, it is dropped.
    pub fn send(&self, event: Event) {
        self.post(Message::Event(event));
    }

    /// Tells all peers that this process ends in an orderly way, and ends the agent: once this returned, it calls the data path no
    /// more, unless it was inside a call that took longer than the few milliseconds that this waits.
    pub fn goodbye(&self) {
        let (done, wait) = bounded(1);
        if self.post(Message::Goodbye(done)) {
            // Nobody is left to be told if it takes longer.
            let _ = wait.recv_timeout(GOODBYE_LIMIT);
            self.departure.iter().for_each(Departure::wait);
            let totals = self.sums.now();
            if totals.queue_pairs > 0 {
                log::info!("{}", totals.line());
            }
        }
    }

    fn post(&self, message: Message) -> bool {
        if self.shared.ended.load(Ordering::Acquire) || std::process::id() != self.pid {
            return false;
        }
        let sent = self.messages.send(message).is_ok();
        if self.shared.nudge.is_first() {
            if let Err(error) = self.waker.wake() {
                log::debug!("the agent was not woken: {error}");
            }
        }
        sent
    }
}

/// The agent of this process.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts the agent on this host's networks.
    ///
    /// # Errors
    /// It got no random numbers, no poller, no port or no thread: the caller leaves everything unprotected.
    pub fn start(config: Config, data: Arc<dyn DataPath>) -> io::Result<EventSender> {
        Self::start_on(config, data, Box::new(HostNetwork))
    }

    /// Starts the agent on the given networks.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_on(config: Config, data: Arc<dyn DataPath>, network: Box<dyn Network>) -> io::Result<EventSender> {
        for name in &config.unknown {
            log::warn!("{name} is no variable of the shim and has no effect; is it misspelt?");
        }
        let network: Arc<dyn Network> = Arc::from(network);
        let Ground { me, links, waker, port } = prepare(&config, &*network, random)?;
        let peers = Peers::new(me, Arc::clone(&network), port, config.deadlines.heartbeat, drawn);
        let local_name = network.directory_name(config.port);
        let directory = Directory::new(config.port, port, network.listen_on(), local_name);
        let thread = Arc::clone(&data);
        let rendezvous = config
            .directory
            .as_ref()
            .and_then(|place| Rendezvous::start(place, me, peers.own_addresses(), Arc::clone(&waker)));
        let departure = rendezvous.as_ref().map(Rendezvous::departure);
        let core = Core::new(World::new(config, data, network, links, peers, me), directory, rendezvous);
        let (sender, receiver) = unbounded();
        let shared = Arc::new(Shared::default());
        let handle = EventSender {
            messages: sender,
            waker,
            shared: Arc::clone(&shared),
            sums: core.sums(),
            departure,
            pid: std::process::id(),
        };
        spawn("shift-agent", move || {
            thread.agent_began();
            run(core, &receiver, &shared);
        })?;
        Ok(handle)
    }
}

/// What the agent stands on.
struct Ground {
    me: ProcessId,
    links: Links,
    waker: Arc<Waker>,
    port: u16,
}

/// The id comes first: a process without one of its own is nobody's peer, and opens nothing.
fn prepare(config: &Config, network: &dyn Network, draw: Draw) -> io::Result<Ground> {
    let me = ProcessId(u128::from_ne_bytes(draw()?) as u64);
    let (key, older) = (config.job_key.clone(), config.older_job_key.clone());
    let terms = Terms { key, older, versions: config.versions };
    let (mut links, waker) = Links::new(terms, drawn)?;
    if let Some(path) = &config.job_key_file {
        links.follow(KeyFile::new(path.clone()));
    }
    let listener = listen(config, network)?;
    let port = listener.port();
    links.listen(listener)?;
    Ok(Ground { me, links, waker, port })
}

/// Random bytes: for ids, tokens and nonces, so that two instances never have the same.
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| io::Error::other(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

/// The same, for connections: that there are none is told once.
fn drawn() -> io::Result<[u8; 16]> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    random().inspect_err(|error| {
        if !TOLD.swap(true, Ordering::Relaxed) {
            log::error!("{error}; no connection is made without, and queue pairs that need one are unprotected");
        }
    })
}

fn listen(config: &Config, network: &dyn Network) -> io::Result<Listener> {
    let addresses = network.listen_on();
    let Some((first, last)) = config.port_range else {
        return Listener::bind(&addresses, 0);
    };
    // Who takes the well-known port for itself keeps everybody of the host from being found there.
    let mut ports = (first..=last).filter(|port| *port != config.port);
    ports.find_map(|port| Listener::bind(&addresses, port).ok()).ok_or_else(|| {
        let text = format!("SHIFT_PORT_RANGE={first}-{last}: none of these ports is free; name more");
        io::Error::new(io::ErrorKind::AddrInUse, text)
    })
}

/// Starts a thread of that name that takes no signal of the application's. The mask is set before the thread exists and inherited: no signal slips in
/// between.
///
/// # Errors
/// The system gives no thread, or no mask.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut blocked = SigSet::all();
    for fault in OWN_FAULTS {
        blocked.remove(fault);
    }
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    before.thread_set_mask()?;
    spawned.map(drop)
}

fn run(mut core: Core, messages: &Receiver<Message>, shared: &Shared) {
    let mut farewell: Option<Sender<()>> = None;
    while farewell.is_none() {
        let turn = catch_unwind(AssertUnwindSafe(|| {
            core.turn(|events| {
                shared.nudge.take();
                for message in messages.try_iter() {
                    match message {
                        Message::Event(event) => events.push(event),
                        Message::Goodbye(done) => farewell = Some(done),
                    }
                }
            })
        }));
        match turn {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::error!("the agent stops ({error}): connections are unprotected from now on");
                give_up(&mut core);
                break;
            }
            Err(_) => {
                log::error!("the agent stops after a mistake of its own: connections are unprotected from now on");
                give_up(&mut core);
                break;
            }
        }
    }
    shared.ended.store(true, Ordering::Release);
    if let Some(done) = farewell {
        core.goodbye();
        // Whoever waited may have left.
        let _ = done.try_send(());
    }
}

fn give_up(core: &mut Core) {
    if catch_unwind(AssertUnwindSafe(|| core.give_up())).is_err() {
        log::error!("some connections could not be released");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_random_numbers_there_is_no_agent() {
        let config = Config::default();
        assert!(prepare(&config, &HostNetwork, random).is_ok());
        let refused = prepare(&config, &HostNetwork, || Err(io::Error::other("none")));
        assert_eq!(refused.err().map(|error| error.to_string()).as_deref(), Some("none"));
    }
}
