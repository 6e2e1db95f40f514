//! Somebody who speaks the protocol by hand: what a stranger, another job or another version may say.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use shift_control::channel::{Channel, Mismatch, Terms};
use shift_proto::frame::{Frame, Hello, MAX_FRAME};
use shift_proto::id::ProcessId;

/// One end of a stream; all that goes over it is kept.
pub struct Speaker<S> {
    pub stream: S,
    channel: Channel,
    input: Vec<u8>,
    pub frames: VecDeque<Frame>,
    /// All bytes that were said here so far.
    pub tape: Vec<u8>,
    pub mismatch: Option<Mismatch>,
}

/// Connects to `to` from the address `from` of loopback, once somebody listens there.
pub fn dial(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    super::eventually("somebody listens", || TcpStream::connect(to).is_ok());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.into(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Everything until the other end closes.
pub fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(error.kind() != ErrorKind::WouldBlock, "the connection stays open");
    }
    answer
}

/// A greeting.
pub fn hello(process: u64, token: [u8; 16]) -> Frame {
    Frame::Hello(Hello { process: ProcessId(process), token, addresses: Vec::new(), version: "stranger".to_owned() })
}

impl<S: Read + Write> Speaker<S> {
    /// Says the first word on a stream that was dialed.
    pub fn new(stream: S, terms: &Terms) -> Self {
        let channel = Channel::new(terms, true, rand());
        let (frames, input) = (VecDeque::new(), Vec::new());
        let mut speaker = Self { stream, channel, input, frames, tape: Vec::new(), mismatch: None };
        let mut opening = VecDeque::new();
        speaker.channel.start(&mut opening);
        speaker.say(opening);
        speaker
    }

    /// The end of a stream that was accepted: the other says the first word.
    pub fn answering(stream: S, terms: &Terms) -> Self {
        let (channel, frames) = (Channel::new(terms, false, rand()), VecDeque::new());
        Self { stream, channel, input: Vec::new(), frames, tape: Vec::new(), mismatch: None }
    }

    /// Says it, once the other end has opened.
    pub fn send(&mut self, frame: &Frame) {
        while !self.channel.is_open() && self.hear() {}
        let (mut body, mut output) = (Vec::new(), VecDeque::new());
        frame.encode(&mut body).unwrap();
        self.channel.send(&body, &mut output);
        self.say(output);
    }

    /// Says bytes as they are; that nobody may be there any more is no error.
    pub fn say(&mut self, bytes: impl IntoIterator<Item = u8>) {
        let bytes: Vec<u8> = bytes.into_iter().collect();
        let _ = self.stream.write_all(&bytes);
        self.tape.extend(bytes);
    }

    /// Reads once; `false`: the stream is at its end.
    pub fn hear(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither an answer nor an end"),
            // A close with bytes unread is a reset.
            Ok(0) | Err(_) => return false,
            Ok(count) => count,
        };
        self.input.extend_from_slice(&buffer[..count]);
        let (mut output, frames) = (VecDeque::new(), &mut self.frames);
        let heard = self.channel.receive(&mut self.input, MAX_FRAME, &mut output, |frame| frames.push_back(frame));
        self.say(output);
        self.mismatch = self.mismatch.or(heard.err());
        self.mismatch.is_none()
    }

    /// The next frame; `None`: the other end closed.
    pub fn next(&mut self) -> Option<Frame> {
        while self.frames.is_empty() && self.hear() {}
        self.frames.pop_front()
    }
}

/// Fresh bytes.
fn rand() -> [u8; 16] {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}
