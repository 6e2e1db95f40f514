//! The local socket of an agent, as `shiftctl` sees it.

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use shift_control::status::{Answer, SOCKET_PREFIX};

/// The abstract names of the agents of this test program; those of one test at a time, for an agent that goes away resets who asks it.
pub fn names() -> Vec<String> {
    let own = format!("{SOCKET_PREFIX}{}.", std::process::id());
    let listing = fs::read_to_string("/proc/net/unix").unwrap();
    let names = listing.lines().filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@'));
    let mut names: Vec<String> = names.filter(|name| name.starts_with(&own)).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

pub fn connect_admin(name: &str) -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

/// The answer to one line; `None`: it closes without a word.
pub fn ask(name: &str, request: &[u8]) -> Option<Answer> {
    let mut stream = connect_admin(name);
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
}
