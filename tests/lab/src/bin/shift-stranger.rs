//! A stranger in a guest: attacks the ports of shims with all that the protocol knows and all that it does not, round after round, until
//! it is ended. After each round it says on a line of JSON what it did and what it was told.
//!
//! It connects from the addresses that it is given, and nothing of what it sends is of a queue pair's peer: random bytes, frames cut
//! off, lengths beyond any bound, connections that say nothing, other wire versions, valid frames of a job with another key or none,
//! valid frames in the name of others, and the recording of a connection of its own, said again.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nix::sys::socket::{bind, connect, socket, AddressFamily, SockFlag, SockType, SockaddrIn};
use serde::Serialize;
use shift_control::channel::{Channel, Terms};
use shift_control::job_key::JobKey;
use shift_lab::seed::Seed;
use shift_proto::frame::{
    Frame, Handshake, Hello, Key, Offer, Opening, PathOffer, Probe, ProbeStep, QpAddress, SlotOffer, StandbyOffer,
    Versions, MAX_FRAME, SPOKEN,
};
use shift_proto::id::{EndpointId, Epoch, Mtu, PathId, ProcessId, Psn, Tuple};
use shift_proto::migrate::Cause;

/// An answer that takes longer is not waited for.
const ANSWER: Duration = Duration::from_millis(500);
/// Its own process id, where it does not pose as somebody.
const SELF: ProcessId = ProcessId(0x5747_5241_4e47_4552);
#[derive(Parser)]
struct Arguments {
    /// Ports of shims.
    #[arg(long, required = true, value_delimiter = ',')]
    at: Vec<SocketAddrV4>,
    /// Own addresses to connect from.
    #[arg(long, required = true, value_delimiter = ',')]
    from: Vec<Ipv4Addr>,
    /// The addresses that are the GIDs of the two ends: the one to be pretended, the one to be attacked.
    #[arg(long, value_delimiter = ',')]
    gids: Vec<Ipv4Addr>,
    /// Numbers of queue pairs at either end.
    #[arg(long, value_delimiter = ',')]
    qpns: Vec<u32>,
    /// The job's own key: for a recording of a connection that is good, and for nothing else.
    #[arg(long)]
    record_with: Option<PathBuf>,
    /// Connections that are opened and left, each round.
    #[arg(long, default_value_t = 100)]
    half_open: usize,
    /// What the random bytes come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What was done and what came of it.
#[derive(Default, Serialize)]
struct Tally {
    round: u64,
    connections: u64,
    /// Not even the kernel took the connection.
    refused: u64,
    frames: u64,
    /// Answers to greetings and questions.
    greeted: u64,
    owners: u64,
    /// Frames that nobody but a peer may be told; there must be none.
    leaked: u64,
}

struct Stranger {
    arguments: Arguments,
    dice: Seed,
    tally: Tally,
    recording: Vec<u8>,
    /// What was said on an own connection without a key.
    last: Vec<u8>,
    /// The processes that answered a greeting.
    names: Vec<ProcessId>,
}

/// A connection on which the protocol is spoken.
struct Talk {
    stream: TcpStream,
    channel: Channel,
    input: Vec<u8>,
    said: Vec<u8>,
    heard: VecDeque<Frame>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let dice = Seed::new(arguments.seed, "stranger");
    let mut stranger = Stranger {
        arguments,
        dice,
        tally: Tally::default(),
        recording: Vec::new(),
        last: Vec::new(),
        names: Vec::new(),
    };
    loop {
        stranger.tally.round += 1;
        stranger.round()?;
        let mut out = io::stdout();
        writeln!(out, "{}", serde_json::to_string(&stranger.tally)?)?;
        out.flush()?;
    }
}

impl Stranger {
    fn round(&mut self) -> io::Result<()> {
        if let Some(path) = self.arguments.record_with.clone().filter(|_| self.recording.is_empty()) {
            let key = JobKey::read(&path).map_err(io::Error::other)?;
            self.record(&Terms { key: Some(key), ..Terms::default() });
        }
        let (sites, homes) = (self.arguments.at.clone(), self.arguments.from.clone());
        for from in homes {
            let mut half_open = Vec::new();
            for site in &sites {
                self.pieces(from, *site);
                for _ in 0..self.arguments.half_open / sites.len().max(1) {
                    half_open.extend(self.dial(from, *site));
                }
                self.another_job(from, *site);
                self.in_other_names(from, *site);
                self.replay(from, *site);
            }
        }
        Ok(())
    }

    fn dial(&mut self, from: Ipv4Addr, to: SocketAddrV4) -> Option<TcpStream> {
        self.tally.connections += 1;
        let stream = dial(from, to).ok();
        self.tally.refused += u64::from(stream.is_none());
        stream
    }

    /// Bytes as they are; nothing is waited for.
    fn say(&mut self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) {
        if let Some(mut stream) = self.dial(from, to) {
            // That it was closed meanwhile is the right answer.
            let _ = stream.write_all(bytes);
        }
    }

    /// What is no frame, or too much or too little of one, or of another version.
    fn pieces(&mut self, from: Ipv4Addr, to: SocketAddrV4) {
        let noise: Vec<u8> = (0..self.dice.within(1..4000)).map(|_| self.dice.next_u64() as u8).collect();
        self.say(from, to, &noise);
        let mut ping = Vec::new();
        let _ = Frame::Ping { stamp: 1 }.encode_prefixed(&mut ping);
        for keyed in [false, true] {
            let open = |oldest, newest| {
                Opening { versions: Versions { oldest, newest }, keyed, two_keys: false, nonce: [7; 16] }.encode()
            };
            let good = open(SPOKEN.oldest, SPOKEN.newest);
            let cut = self.dice.within(1..good.len() as u64) as usize;
            self.say(from, to, good.get(..cut).unwrap_or_default());
            for (oldest, newest) in [(0, 0), (SPOKEN.newest + 1, SPOKEN.newest + 1), (200, 255)] {
                self.say(from, to, &[&open(oldest, newest)[..], &ping].concat());
            }
            let longest = (MAX_FRAME as u32 + 1).to_le_bytes();
            let tails: [&[u8]; 7] = [
                &noise,
                &u32::MAX.to_le_bytes(),
                &longest,
                // Frames of the versions before and after this one.
                &[2, 0, 0, 0, 0, 13],
                &[2, 0, 0, 0, SPOKEN.newest + 1, 13],
                ping.get(..ping.len() - 1).unwrap_or_default(),
                &[0; 36],
            ];
            for tail in tails {
                self.say(from, to, &[&good[..], tail].concat());
            }
        }
    }

    fn open(&mut self, from: Ipv4Addr, to: SocketAddrV4, terms: &Terms) -> Option<Talk> {
        let nonce = [self.dice.next_u64(), self.dice.next_u64()].map(u64::to_le_bytes).concat();
        let stream = self.dial(from, to)?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        let channel = Channel::new(terms, true, nonce.try_into().ok()?);
        let mut talk = Talk { stream, channel, input: Vec::new(), said: Vec::new(), heard: VecDeque::new() };
        let mut first = VecDeque::new();
        talk.channel.start(&mut first);
        talk.write(first);
        Some(talk)
    }

    /// Greets as `process` and says everything that could move, stop or mislead the queue pairs of whoever answers.
    fn attack(&mut self, talk: &mut Talk, process: ProcessId, token: [u8; 16]) -> Option<ProcessId> {
        let version = "stranger".to_owned();
        self.send(talk, &Frame::Hello(Hello { process, token, addresses: Vec::new(), version }));
        talk.listen_for(1);
        let answered = talk.heard.iter().find_map(|f| if let Frame::Hello(h) = f { Some(h.process) } else { None });
        let victim = answered.unwrap_or(ProcessId(self.dice.next_u64()));
        let mut frames = self.attacks(victim, process);
        frames.push(Frame::Ping { stamp: 1 });
        self.tally.frames += talk.send_all(&frames);
        talk.listen_for(usize::MAX);
        self.count(talk);
        answered
    }

    fn attacks(&self, victim: ProcessId, name: ProcessId) -> Vec<Frame> {
        let end = |process, life| EndpointId { process, life, side: 0 };
        let gid = |at: usize| self.arguments.gids.get(at).map_or([0; 16], |ip| ip.to_ipv6_mapped().octets());
        let key = Key { device: 0, rkey: 1, generation: u32::MAX };
        let mut frames = vec![Frame::KeyAdd { key, standby_rkey: 1 }, Frame::KeyDel(key), Frame::KeyDelAck(key)];
        for life in 1..4 {
            let (to, from) = (end(victim, life), end(name, life));
            let tuple = Tuple { epoch: Epoch(1), owner: from, attempt: 1, target: PathId::STANDBY };
            let messages = [
                Handshake::Claim { tuple, cause: Cause::Operator },
                Handshake::Accept { tuple },
                Handshake::Commit { tuple },
                Handshake::Ready { tuple },
                Handshake::Dead { epoch: Epoch(1) },
                Handshake::Surface { tuple },
                Handshake::Gone,
            ];
            frames.extend((life * 100..).zip(messages).map(|(number, msg)| Frame::Migration {
                number: number.into(),
                to,
                from,
                msg,
            }));
        }
        let mtu = Mtu::new(1024).unwrap_or_else(|| unreachable!("a path MTU"));
        let own = PathOffer { address: QpAddress { gid: gid(0), qpn: 1 }, mtu, psn_base: Psn::new(1) };
        frames.push(Frame::Probe(Probe { pair: 1, generation: 1, step: ProbeStep::Offer, own, peer_gid: gid(1) }));
        frames.push(Frame::KeyAsk { device: 0, rkey: 1 });
        let standbys = vec![SlotOffer { slot: 0, end: own }];
        let (paths, is_first_gone, primary_psn_base) = (Vec::new(), false, Psn::new(1));
        let standby =
            StandbyOffer { revision: 0, standbys, paths, is_first_gone, primary_mtu: mtu, primary_psn_base, access: 0 };
        let numbers = &self.arguments.qpns;
        for (qpn, peer) in numbers.iter().flat_map(|own| numbers.iter().map(move |peer| (*own, *peer))) {
            let (own, peer) = (QpAddress { gid: gid(0), qpn }, QpAddress { gid: gid(1), qpn: peer });
            frames.push(Frame::Offer(Offer {
                from: end(name, 1),
                device: 0,
                own,
                peer,
                standby: Some(standby.clone()),
            }));
        }
        frames
    }

    /// Valid frames of a job with another key, and of one without; in an open job whoever is greeted says its name.
    fn another_job(&mut self, from: Ipv4Addr, to: SocketAddrV4) {
        for key in [Some(JobKey::new(b"a key that nobody else has")), None] {
            let Some(mut talk) = self.open(from, to, &Terms { key, ..Terms::default() }) else { continue };
            let gid = self.arguments.gids.get(1).map_or([0; 16], |ip| ip.to_ipv6_mapped().octets());
            let ask = |qpn: &u32| Frame::Ask(QpAddress { gid, qpn: *qpn });
            let questions: Vec<Frame> = self.arguments.qpns.iter().map(ask).collect();
            self.tally.frames += talk.send_all(&questions);
            let name = self.attack(&mut talk, SELF, [0; 16]);
            self.names.extend(name.filter(|name| !self.names.contains(name)));
            self.last = talk.said;
        }
    }

    /// In an open job: in the names of the processes that answered, with a token that nobody drew and with none.
    fn in_other_names(&mut self, from: Ipv4Addr, to: SocketAddrV4) {
        let terms = Terms::default();
        for name in self.names.clone() {
            for token in [[9; 16], [0; 16]] {
                if let Some(mut talk) = self.open(from, to, &terms) {
                    self.attack(&mut talk, name, token);
                    self.send(&mut talk, &Frame::Goodbye);
                }
            }
        }
    }

    /// What a member of the job says is recorded, to be said again by who is none.
    fn record(&mut self, terms: &Terms) {
        let (Some(from), Some(to)) = (self.arguments.from.first().copied(), self.arguments.at.first().copied()) else {
            return;
        };
        if let Some(mut talk) = self.open(from, to, terms) {
            self.attack(&mut talk, SELF, [0; 16]);
            self.recording = talk.said;
        }
    }

    fn replay(&mut self, from: Ipv4Addr, to: SocketAddrV4) {
        for recording in [self.recording.clone(), self.last.clone()] {
            self.say(from, to, &recording);
        }
    }

    fn send(&mut self, talk: &mut Talk, frame: &Frame) {
        self.tally.frames += talk.send_all(std::slice::from_ref(frame));
    }

    fn count(&mut self, talk: &Talk) {
        for frame in &talk.heard {
            match frame {
                Frame::Hello(_) => self.tally.greeted += 1,
                Frame::Owner { .. } => self.tally.owners += 1,
                Frame::Pong { .. } | Frame::Ping { .. } | Frame::Goodbye => {}
                Frame::Ask(_)
                | Frame::Offer(_)
                | Frame::ArmConfirm(_)
                | Frame::KeyAdd { .. }
                | Frame::KeyDel(_)
                | Frame::KeyDelAck(_)
                | Frame::KeyAsk { .. }
                | Frame::KeyAnswer { .. }
                | Frame::Probe(_)
                | Frame::Migration { .. } => self.tally.leaked += 1,
            }
        }
    }
}

impl Talk {
    fn write(&mut self, bytes: impl IntoIterator<Item = u8>) {
        let bytes: Vec<u8> = bytes.into_iter().collect();
        // Whoever closed has refused; that is what is hoped for.
        let _ = self.stream.write_all(&bytes);
        self.said.extend(bytes);
    }

    /// In one go; how many, which is none if the other end does not open to this one.
    fn send_all(&mut self, frames: &[Frame]) -> u64 {
        while !self.channel.is_open() {
            if !self.hear() {
                return 0;
            }
        }
        let mut output = VecDeque::new();
        for frame in frames {
            let mut body = Vec::new();
            if frame.encode(&mut body).is_ok() {
                self.channel.send(&body, &mut output);
            }
        }
        self.write(output);
        frames.len() as u64
    }

    fn hear(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = match self.stream.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Ok(_) | Err(_) => return false,
        };
        self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let (mut output, heard) = (VecDeque::new(), &mut self.heard);
        let received = self.channel.receive(&mut self.input, MAX_FRAME, &mut output, |frame| heard.push_back(frame));
        self.write(output);
        received.is_ok()
    }

    /// Until so many frames were heard, the answer to the last ping is in, or no more comes.
    fn listen_for(&mut self, count: usize) {
        let done =
            |heard: &VecDeque<Frame>| heard.len() >= count || heard.iter().any(|f| matches!(f, Frame::Pong { .. }));
        while !done(&self.heard) && self.hear() {}
    }
}

/// A connection from one of the own addresses.
fn dial(from: Ipv4Addr, to: SocketAddrV4) -> io::Result<TcpStream> {
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    connect(own.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(own))
}
