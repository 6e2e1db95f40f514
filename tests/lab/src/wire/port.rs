//! One end of one cable: a QEMU's connection, what came in from it and is not yet a whole frame, and what waits for it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::outbox::{Outbox, PREFIX_BYTES};
use super::packet::be32;
use crate::place::{Host, Link};

/// A port that has taken nothing for so long, with frames waiting, is down.
pub const DOWN_AFTER: Duration = Duration::from_millis(100);
/// Bytes queued for a port before its peer is no longer read: room for a burst, little enough that a cut is felt at once.
pub const QUEUE_BYTES: usize = 512 << 10;
/// One read from a QEMU; it sends frame by frame, so a busy wire finds many at once.
const READ_BYTES: usize = 256 << 10;
/// Kernel buffer towards a QEMU: it holds frames that nothing can drop any more.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// No Ethernet frame is longer; a longer prefix means that the stream is broken.
const FRAME_LIMIT: usize = 68 << 10;

/// A port of the wire.
#[derive(Debug)]
pub struct Port {
    /// The cable.
    pub link: Link,
    /// Whose end of it.
    pub host: Host,
    /// Where its QEMU connects.
    pub listener: TcpListener,
    /// The connection.
    pub stream: Option<TcpStream>,
    /// Frames towards this port's host.
    pub outbox: Outbox,
    inbox: Vec<u8>,
    used: usize,
    stalled_since: Option<Instant>,
    down: bool,
}

impl Port {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// No loopback port is to be had.
    pub fn listen(link: Link, host: Host) -> io::Result<Port> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let (inbox, outbox) = (vec![0; READ_BYTES + FRAME_LIMIT], Outbox::default());
        Ok(Port { link, host, listener, stream: None, outbox, inbox, used: 0, stalled_since: None, down: false })
    }

    /// Takes the connection of a QEMU, in place of an earlier one.
    ///
    /// # Errors
    /// The socket refuses its options.
    pub fn accept(&mut self) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        (self.outbox, self.used, self.stalled_since, self.down) = (Outbox::default(), 0, None, false);
        self.stream = Some(stream);
        Ok(())
    }

    /// The queue is so long that the peer is not to be read; never of a port that is down.
    pub fn is_full(&self) -> bool {
        self.outbox.len() >= QUEUE_BYTES && !self.down
    }

    /// Frames for this port go nowhere.
    pub fn is_down(&self) -> bool {
        self.down || self.stream.is_none()
    }

    /// This port is waiting to be written, or to be known to take frames again.
    pub fn wants_write(&self) -> bool {
        self.stream.is_some() && (self.down || !self.outbox.is_empty())
    }

    /// When this port will count as down, if it takes nothing until then.
    pub fn down_at(&self) -> Option<Instant> {
        self.stalled_since.filter(|_| !self.down).map(|since| since + DOWN_AFTER)
    }

    /// Marks the port down if its time is over; the caller then drops what waits.
    pub fn check_down(&mut self, now: Instant) -> bool {
        let falls = self.down_at().is_some_and(|at| now >= at);
        self.down |= falls;
        falls
    }

    /// The kernel takes bytes again.
    pub fn handle_writable(&mut self) {
        self.down = false;
        self.stalled_since = None;
    }

    /// Reads once; false if there was nothing or the connection ended.
    pub fn fill(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let space = self.inbox.get_mut(self.used..).unwrap_or(&mut []);
        match stream.read(space) {
            Ok(0) => self.hang_up(),
            Ok(bytes) => {
                self.used += bytes;
                return true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.hang_up(),
        }
        false
    }

    /// Hands out the bytes read so far; give them back with [`Port::put_back`].
    pub fn take_inbox(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.inbox), std::mem::take(&mut self.used))
    }

    /// Takes the buffer back; `from..to` of it is the beginning of a frame.
    pub fn put_back(&mut self, mut inbox: Vec<u8>, from: usize, to: usize) {
        inbox.copy_within(from..to, 0);
        self.inbox = inbox;
        self.used = to - from;
    }

    /// Writes what waits, as far as the kernel takes it.
    pub fn flush(&mut self) {
        while let Some(stream) = self.stream.as_mut().filter(|_| !self.outbox.is_empty()) {
            match stream.write(self.outbox.pending()) {
                Ok(bytes) => {
                    self.outbox.advance(bytes);
                    self.stalled_since = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stalled_since.get_or_insert_with(Instant::now);
                    return;
                }
                Err(_) => self.hang_up(),
            }
        }
        self.stalled_since = None;
    }

    fn hang_up(&mut self) {
        self.stream = None;
        self.used = 0;
        self.outbox = Outbox::default();
    }
}

/// The next whole frame of `bytes`, and where the one behind it begins.
///
/// # Errors
/// The length prefix cannot be one.
pub fn next_frame(bytes: &[u8], at: usize) -> io::Result<Option<(&[u8], usize)>> {
    let Some(length) = be32(bytes, at).map(|length| length as usize) else {
        return Ok(None);
    };
    if length > FRAME_LIMIT - PREFIX_BYTES {
        return Err(io::Error::other("wire: a frame longer than any"));
    }
    let end = at + PREFIX_BYTES + length;
    Ok(bytes.get(at + PREFIX_BYTES..end).map(|frame| (frame, end)))
}
