//! Streams and listeners of the control side, without a word of what is said on them.
//!
//! TCP between hosts, an abstract Unix socket between the processes of one network namespace: both are only a [`Stream`]
//! here. Everything is non-blocking from its first moment, closed by exec, and closed in a forked child ([`Own`]).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::inherited::Own;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A connected (or connecting) stream.
#[derive(Debug)]
pub enum Stream {
    /// To a process, here or elsewhere.
    Tcp(Own<TcpStream>),
    /// To a process of this network namespace.
    Local(Own<UnixStream>),
}

impl Stream {
    /// Starts to connect to `to`, from `source` if one is given.
    pub fn dial(to: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        if let Some(source) = source.filter(|s| s.is_ipv4() == to.is_ipv4()) {
            let mut from = to;
            from.set_ip(source);
            from.set_port(0);
            socket.bind(&from.into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from_std(socket.into());
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(Own::new(stream)))
    }

    /// Connects to the abstract socket `name` of this network namespace.
    pub fn dial_local(name: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
        Ok(Self::Local(Own::new(UnixStream::from_std(socket.into()))))
    }

    /// Whether a connection attempt came to its end: `None`, not yet.
    pub fn connected(&self) -> io::Result<bool> {
        let Self::Tcp(stream) = self else {
            return Ok(true);
        };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The address of the other end; none for a local stream.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Local(_) => None,
        }
    }

    /// The user behind a local stream.
    pub fn local_user(&self) -> Option<u32> {
        match self {
            Self::Tcp(_) => None,
            Self::Local(stream) => getsockopt(&**stream, PeerCredentials).ok().map(|c| c.uid()),
        }
    }

    /// Registers with the poller.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interest),
            Self::Local(stream) => stream.register(registry, token, interest),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Local(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Local(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// For other processes, here or elsewhere.
    Tcp(Own<TcpListener>),
    /// For the processes of this network namespace.
    Local(Own<UnixListener>),
}

impl Listener {
    /// Listens on the first of `addresses` that can be bound with `port` (0: any).
    /// `EADDRINUSE` ends the search: then another process has the port, whatever the address family.
    pub fn bind(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match Self::bind_one(SocketAddr::new(*address, port)) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind_one(address: SocketAddr) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        // A holder that has just exited leaves connections in TIME_WAIT; its port must be free for the next one.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self::Tcp(Own::new(TcpListener::from_std(socket.into()))))
    }

    /// Listens on the abstract socket `name`.
    pub fn bind_local(name: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
        socket.listen(BACKLOG)?;
        Ok(Self::Local(Own::new(UnixListener::from_std(socket.into()))))
    }

    /// The port, 0 for a local listener.
    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or(0, |a| a.port()),
            Self::Local(_) => 0,
        }
    }

    /// The next waiting connection.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(Own::new(stream)))
            }
            Self::Local(listener) => listener.accept().map(|(stream, _)| Stream::Local(Own::new(stream))),
        }
    }

    /// Registers with the poller.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Self::Local(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}
