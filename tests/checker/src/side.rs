//! The side channel: one TCP connection on the management network, one JSON object a line.

use crate::args::Params;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A peer that has taken nothing for this long, with a full socket, is gone or stopped.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// What one end tells the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// Client: this is the run.
    Params(Box<Params>),
    /// How to reach my queue pairs and memory.
    Endpoint(Endpoint),
    /// My queue pairs are up, my receives are posted.
    Ready,
    /// Receiver: messages below `released` are consumed and their slots may be used again.
    Credit {
        /// Which queue pair.
        qp: u16,
        /// The first message whose slot may not.
        released: u64,
    },
    /// Sender: all messages below `upto` completed.
    Done {
        /// Which queue pair.
        qp: u16,
        /// The first message that did not.
        upto: u64,
    },
    /// Sender: no message from this number on will come.
    Total {
        /// Which queue pair.
        qp: u16,
        /// How many there were.
        total: u64,
    },
    /// Sender: the queue pair is in error. Messages below `acked` completed; of those below `posted` nothing is known.
    Fell {
        /// Which queue pair.
        qp: u16,
        /// The first message that did not complete.
        acked: u64,
        /// The first message that was not posted.
        posted: u64,
    },
    /// All my queue pairs have stopped to be idle.
    Idle,
    /// Client: go on.
    Resume,
    /// All that I sent completed and all that I had to receive came.
    Finished,
    /// I watched to the end; close down.
    Bye,
    /// I gave up.
    Failed(String),
}

/// How to reach one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The port's GID.
    pub gid: [u8; 16],
    /// Where the shared region begins.
    pub addr: u64,
    /// The shared region's key.
    pub rkey: u32,
    /// QP number and first packet sequence number of each queue pair.
    pub qps: Vec<(u32, u32)>,
}

/// One end of the side channel.
#[derive(Debug)]
pub struct Side {
    stream: TcpStream,
    received: Vec<u8>,
    notes: VecDeque<Note>,
    closed: bool,
}

impl Side {
    /// Waits for one client.
    pub fn accept(listen: SocketAddr, limit: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let until = Instant::now() + limit;
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Self::over(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Connects to a server, which may yet have to start.
    pub fn connect(server: SocketAddr, limit: Duration) -> io::Result<Self> {
        let until = Instant::now() + limit;
        loop {
            match TcpStream::connect_timeout(&server, Duration::from_secs(1)) {
                Ok(stream) => return Self::over(stream),
                Err(e) if Instant::now() >= until => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::new(), notes: VecDeque::new(), closed: false })
    }

    /// Sends a note. Notes are small and few enough that the socket's buffer takes them; if not, this waits.
    pub fn send(&mut self, note: &Note) -> io::Result<()> {
        let mut line = serde_json::to_vec(note)?;
        line.push(b'\n');
        self.stream.set_nonblocking(false)?;
        let sent = self.stream.write_all(&line);
        self.stream.set_nonblocking(true)?;
        sent
    }

    /// The next note that has come, if one has. Once the peer closed and all its notes were read, an error.
    pub fn poll(&mut self) -> io::Result<Option<Note>> {
        if self.notes.is_empty() && !self.closed {
            self.read_available()?;
        }
        match self.notes.pop_front() {
            None if self.closed => Err(ErrorKind::UnexpectedEof.into()),
            note => Ok(note),
        }
    }

    /// Sits in a read until a note comes or the limit passes.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<Note>> {
        if let Some(note) = self.poll()? {
            return Ok(Some(note));
        }
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(limit))?;
        let read = self.read_once();
        self.stream.set_nonblocking(true)?;
        read?;
        self.poll()
    }

    fn read_available(&mut self) -> io::Result<()> {
        while self.read_once()? {}
        Ok(())
    }

    /// Reads once; whether there may be more.
    fn read_once(&mut self) -> io::Result<bool> {
        let mut block = [0; 4096];
        match self.stream.read(&mut block) {
            Ok(0) => {
                self.closed = true;
                Ok(false)
            }
            Ok(len) => {
                self.received.extend(block.iter().take(len));
                self.split_lines()?;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn split_lines(&mut self) -> io::Result<()> {
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            self.notes.push_back(serde_json::from_slice(&line)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Side, Side) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
        let (server, _) = listener.accept().expect("a client");
        (Side::over(server).expect("a socket"), Side::over(client).expect("a socket"))
    }

    #[test]
    fn notes_come_whole_and_in_order() {
        let (mut server, mut client) = pair();
        for upto in 0..500 {
            client.send(&Note::Done { qp: 7, upto }).expect("sent");
        }
        for upto in 0..500 {
            let note = server.wait(Duration::from_secs(5)).expect("read");
            assert_eq!(note, Some(Note::Done { qp: 7, upto }));
        }
        assert_eq!(server.poll().expect("open"), None);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_after_its_last_note() {
        let (mut server, mut client) = pair();
        client.send(&Note::Bye).expect("sent");
        drop(client);
        assert_eq!(server.wait(Duration::from_secs(5)).expect("read"), Some(Note::Bye));
        assert!(server.wait(Duration::from_secs(5)).is_err());
    }
}
