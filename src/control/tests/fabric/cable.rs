//! A control network that can be cut at a frame: all connections between two hosts go through it, it reads every frame, and stops
//! carrying at the step of a migration that the test names.
//!
//! As TCP does, it delivers late what was sent while it was cut, or never.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shift_control::config::DEFAULT_PORT;
use shift_control::Config;
use shift_proto::frame::{split_prefixed, Frame, MAX_FRAME, OPENING};
use shift_proto::migrate::Handshake;
use socket2::{Domain, Socket, Type};

use super::network::near_end;
use super::wait::{exactly, Watch};

/// Where the agents of cabled hosts listen, beside the well-known port.
const OWN_PORT: u16 = 21_000;
/// How often a pump looks whether the cable was mended or the test is over.
const LOOK: Duration = Duration::from_millis(5);

/// A message of a migration, as far as it marks a step of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Claim,
    Accept,
    Commit,
    Report,
    Ready,
    Confirm,
}

/// Which way the cable carries nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Both,
    /// What this host sends is lost.
    From(u8),
}

/// Whether the message that marks the step still arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Before,
    After,
}

/// At the first such message of that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub step: Step,
    pub sender: u8,
    pub edge: Edge,
    pub way: Way,
}

#[derive(Default)]
struct State {
    cut: Option<Cut>,
    at: Option<Watch>,
    mended: bool,
}

impl State {
    fn is_cut(&self, from: u8) -> bool {
        let lost = match self.cut.map(|c| c.way) {
            Some(Way::Both) => true,
            Some(Way::From(host)) => host == from,
            None => false,
        };
        lost && self.at.is_some() && !self.mended
    }

    /// Whether the frame goes on.
    fn carries(&mut self, from: u8, frame: &Frame) -> bool {
        let open = !self.is_cut(from);
        let marks = self.cut.filter(|c| self.at.is_none() && c.sender == from && step_of(frame) == Some(c.step));
        if let Some(cut) = marks {
            self.at = Some(Watch::start());
            return cut.edge == Edge::After || !self.is_cut(from);
        }
        open
    }
}

fn step_of(frame: &Frame) -> Option<Step> {
    let Frame::Migration { msg, .. } = frame else { return None };
    match msg {
        Handshake::Claim { .. } => Some(Step::Claim),
        Handshake::Accept { .. } => Some(Step::Accept),
        Handshake::Commit { .. } => Some(Step::Commit),
        Handshake::Report { .. } => Some(Step::Report),
        Handshake::Ready { .. } => Some(Step::Ready),
        Handshake::Confirm { .. } => Some(Step::Confirm),
        Handshake::Refuse { .. }
        | Handshake::Wait { .. }
        | Handshake::Cancel { .. }
        | Handshake::Dead { .. }
        | Handshake::Surface { .. }
        | Handshake::Gone
        | Handshake::Muster { .. } => None,
    }
}

/// The address under which the other host reaches this one.
pub fn far_end(owner: u32, net: u8, host: u8) -> Ipv4Addr {
    near_end(owner, net, 100 + host)
}

/// The cable between hosts 1 and 2 of a network.
pub struct Cable {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

impl Cable {
    /// Carries everything.
    pub fn new(net: u8) -> Self {
        let (state, over) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        for to in [1, 2] {
            for port in [DEFAULT_PORT, OWN_PORT] {
                let listener = TcpListener::bind((far_end(std::process::id(), net, to), port)).unwrap();
                listener.set_nonblocking(true).unwrap();
                let carrier = Carrier { net, to, port, state: Arc::clone(&state), over: Arc::clone(&over) };
                std::thread::spawn(move || carrier.accept(&listener));
            }
        }
        Self { state, over }
    }

    /// The configuration of an agent at one of its ends, with further variables.
    pub fn config(variables: &[(&str, &str)]) -> Config {
        let range = format!("{OWN_PORT}-{OWN_PORT}");
        exactly(&[variables, &[("SHIFT_PORT_RANGE", range.as_str())]].concat())
    }

    /// From now on the cable waits for that step.
    pub fn cut_at(&self, cut: Cut) {
        *self.state.lock().unwrap() = State { cut: Some(cut), ..State::default() };
    }

    /// When the step came.
    pub fn moment(&self) -> Option<Watch> {
        self.state.lock().unwrap().at
    }

    /// Carries again, what was lost so far first.
    pub fn mend(&self) {
        self.state.lock().unwrap().mended = true;
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Carrier {
    net: u8,
    to: u8,
    port: u16,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

impl Carrier {
    fn accept(&self, listener: &TcpListener) {
        while !self.over.load(Ordering::Relaxed) {
            // A handshake of TCP needs both ways.
            let cut = [1, 2].iter().any(|from| self.state.lock().unwrap().is_cut(*from));
            match (!cut).then(|| listener.accept()) {
                Some(Ok((near, _))) => match self.dial() {
                    Ok(far) => self.carry(near, far),
                    // Nobody listens there: neither does the cable, so that who dials is refused too.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                    Err(_) => {}
                },
                Some(Err(_)) | None => std::thread::sleep(LOOK),
            }
        }
    }

    fn dial(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((far_end(std::process::id(), self.net, 3 - self.to), 0)).into())?;
        socket.connect(&SocketAddr::from((near_end(std::process::id(), self.net, self.to), self.port)).into())?;
        Ok(socket.into())
    }

    fn carry(&self, near: TcpStream, far: TcpStream) {
        let ways = [(3 - self.to, &near, &far), (self.to, &far, &near)];
        for (from, source, sink) in ways {
            for stream in [source, sink] {
                stream.set_nonblocking(false).unwrap();
                stream.set_nodelay(true).unwrap();
            }
            let pump = Pump {
                from,
                source: source.try_clone().unwrap(),
                sink: sink.try_clone().unwrap(),
                carrier: self.clone(),
            };
            std::thread::spawn(move || pump.run());
        }
    }
}

struct Pump {
    from: u8,
    source: TcpStream,
    sink: TcpStream,
    carrier: Carrier,
}

impl Pump {
    fn run(mut self) {
        self.source.set_read_timeout(Some(LOOK)).unwrap();
        let (mut input, mut held, mut ended, mut opened) = (Vec::new(), Vec::new(), false, false);
        let mut buffer = [0; 4096];
        while !self.carrier.over.load(Ordering::Relaxed) {
            match self.source.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(count) => input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => ended = true,
            }
            if !opened && input.len() >= OPENING {
                held.extend(input.drain(..OPENING));
                opened = true;
            }
            while let Some((length, frame)) = opened.then(|| first(&input)).flatten() {
                held.extend(input.drain(..length));
                if self.carrier.state.lock().unwrap().carries(self.from, &frame) {
                    let _ = self.sink.write_all(&std::mem::take(&mut held));
                }
            }
            if !self.carrier.state.lock().unwrap().is_cut(self.from) {
                let _ = self.sink.write_all(&std::mem::take(&mut held));
                if ended {
                    let _ = self.sink.shutdown(Shutdown::Both);
                    return;
                }
            } else if ended {
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn first(input: &[u8]) -> Option<(usize, Frame)> {
    let (body, length) = split_prefixed(input, MAX_FRAME).unwrap()?;
    Some((length, Frame::decode(body).unwrap()))
}
