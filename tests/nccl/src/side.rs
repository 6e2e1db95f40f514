//! The side channel: one TCP connection on the management network, one JSON object a line.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{de::DeserializeOwned, Serialize};

/// The peer may take so long to load a library of 470 MB over a shared file system under emulation.
const LIMIT: Duration = Duration::from_secs(120);

/// One end.
#[derive(Debug)]
pub struct Side {
    reader: BufReader<TcpStream>,
}

impl Side {
    /// Waits for one client.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn accept(listen: SocketAddr) -> io::Result<Side> {
        Side::over(TcpListener::bind(listen)?.accept()?.0)
    }

    /// Connects to a server that may yet have to start.
    ///
    /// # Errors
    /// There is none in time.
    pub fn connect(server: SocketAddr) -> io::Result<Side> {
        let until = Instant::now() + LIMIT;
        loop {
            match TcpStream::connect_timeout(&server, Duration::from_secs(1)) {
                Ok(stream) => return Side::over(stream),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn over(stream: TcpStream) -> io::Result<Side> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Side { reader: BufReader::new(stream) })
    }

    /// Says something.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn say(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)
    }

    /// Waits for what the peer says.
    ///
    /// # Errors
    /// The peer is gone, silent, or says something else.
    pub fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
