//! The local socket on which a person's tools ask this process about itself.
//!
//! An abstract Unix socket: it leaves no file, has the scope of the network namespace, as everything else of the control side
//! has, and the kernel says who connects. Heard are the process's own user and root. What must hold: nobody who connects can
//! keep the agent waiting or make it take memory; there are at most [`MAX_SESSIONS`], and the oldest makes room.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use shift_proto::id::ProcessId;

use crate::inherited::Own;
use crate::links::{Links, Watched};
use crate::status::{Answer, Request, SOCKET_PREFIX};

/// Connections at a time: as many as people who look at one process.
pub const MAX_SESSIONS: usize = 8;
/// Longest request.
const MAX_REQUEST: usize = 4 << 10;

/// The listener and who is connected.
#[derive(Debug, Default)]
pub struct Admin {
    listener: Option<Own<UnixListener>>,
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    stream: Own<UnixStream>,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    answered: bool,
    watch: usize,
}

impl Admin {
    /// Listens; where that fails this process is only not seen by `shiftctl`.
    pub fn open(links: &mut Links, me: ProcessId) -> Self {
        match listen(links, me) {
            Ok(listener) => Self { listener: Some(Own::new(listener)), sessions: Vec::new() },
            Err(error) => {
                log::warn!("shiftctl cannot ask this process ({error}); protection is not affected");
                Self::default()
            }
        }
    }

    /// Something is to be accepted, read or written.
    pub fn handle_ready(&mut self, links: &mut Links, mut answer: impl FnMut(&Request) -> Answer) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(|listener| listener.accept()) {
            // Not heard, and not told why: it is none of this user's.
            if is_heard(&stream) {
                self.welcome(links, stream);
            }
        }
        self.sessions.retain_mut(|session| {
            let goes_on = session.turn(&mut answer).unwrap_or(false);
            if !goes_on {
                links.unwatch(session.watch);
            }
            goes_on
        });
    }

    fn welcome(&mut self, links: &mut Links, stream: UnixStream) {
        if self.sessions.len() >= MAX_SESSIONS {
            links.unwatch(self.sessions.remove(0).watch);
        }
        let stream = Own::new(stream);
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if let Ok(watch) = links.watch(stream.as_raw_fd(), Watched::Admin) {
            let (input, output) = (Vec::new(), Vec::new());
            self.sessions.push(Session { stream, input, output, written: 0, answered: false, watch });
        }
    }
}

fn listen(links: &mut Links, me: ProcessId) -> io::Result<UnixListener> {
    let name = format!("{SOCKET_PREFIX}{}.{:016x}", std::process::id(), me.0);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    links.watch(listener.as_raw_fd(), Watched::Admin)?;
    Ok(listener)
}

fn is_heard(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

impl Session {
    /// `false`, or an error: it has ended.
    fn turn(&mut self, answer: &mut impl FnMut(&Request) -> Answer) -> io::Result<bool> {
        if !self.answered {
            let ended = self.read()?;
            let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
                return Ok(!ended && self.input.len() <= MAX_REQUEST);
            };
            let request = Request::read(self.input.get(..end).unwrap_or_default());
            let answer = match request {
                Ok(request) => answer(&request),
                Err(error) => Answer::Error(format!("this is no request that version {VERSION} knows: {error}")),
            };
            self.output = serde_json::to_vec(&answer)?;
            self.output.push(b'\n');
            self.answered = true;
        }
        self.write()
    }

    /// `true`: nothing more will come.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 1024];
        while self.input.len() <= MAX_REQUEST {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(true),
                Ok(count) => self.input.extend_from_slice(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// `false`: all is written, and the end of the connection is the end of the answer.
    fn write(&mut self) -> io::Result<bool> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
