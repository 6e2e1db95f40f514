//! The processes that can be asked: found by the names of their sockets, asked one at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use shift_control::status::{Answer, Request, Status, SOCKET_PREFIX};

/// An agent answers within a round of its loop; one in the middle of a verbs call may take a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket of one process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// The process.
    pub pid: u32,
    /// Its abstract name.
    name: String,
}

/// Why a process did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It may have ended just now.
    #[error("it cannot be reached ({0})")]
    Unreachable(io::Error),
    /// It closes the connection of who is neither its user nor root.
    #[error("it does not answer; it belongs to another user, or ends at this moment")]
    Silent,
    /// Its version is another one.
    #[error("it answers in a form that this shiftctl does not know ({0}); use the one of its version")]
    Foreign(String),
}

/// The sockets in the text of /proc/net/unix, in the order of their processes. An abstract name is shown behind an @.
pub fn sockets(listing: &str) -> Vec<Socket> {
    let names = listing.lines().filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@'));
    let mut sockets: Vec<Socket> = names
        .filter_map(|name| {
            let (pid, _) = name.strip_prefix(SOCKET_PREFIX)?.split_once('.')?;
            Some(Socket { pid: pid.parse().ok()?, name: name.to_owned() })
        })
        .collect();
    sockets.sort();
    // The listener and each accepted connection have the same name.
    sockets.dedup();
    sockets
}

/// Whether the process is there still.
pub fn is_there(socket: &Socket) -> bool {
    std::path::Path::new("/proc").join(socket.pid.to_string()).exists()
}

/// Asks a process for something; its status is the answer.
pub fn ask(socket: &Socket, request: &Request) -> Result<Status, NoAnswer> {
    let line = exchange(socket, request).map_err(|error| {
        // It closed the connection before it read the request.
        let is_closed = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        if is_closed {
            NoAnswer::Silent
        } else {
            NoAnswer::Unreachable(error)
        }
    })?;
    if line.is_empty() {
        return Err(NoAnswer::Silent);
    }
    match serde_json::from_str(&line) {
        Ok(Answer::Status(status)) => Ok(status),
        Ok(Answer::Error(error)) => Err(NoAnswer::Foreign(error)),
        Err(error) => Err(NoAnswer::Foreign(error.to_string())),
    }
}

fn exchange(socket: &Socket, request: &Request) -> io::Result<String> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&socket.name)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_processes_are_found_among_others() {
        let listing = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1001 @shift-verbs.admin.42.00000000000000ff\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1002 @shift-verbs.admin.42.00000000000000ff\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1003 @shift-verbs.admin.7.0000000000000001\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1004 @shift-verbs.admin.x.1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1005 /run/shift-verbs.admin.8.1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1006 @shift-verbs.17471\n\
            0000000000000000: 00000002 00000000 00000000 0002 01 1007\n";
        let pids: Vec<u32> = sockets(listing).iter().map(|socket| socket.pid).collect();
        assert_eq!(pids, [7, 42]);
    }
}
