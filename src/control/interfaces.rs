//! The kernel's word of network interfaces: the link of one that carries a GID of ours went down or came up (rtnetlink, RTM_NEWLINK).
//!
//! Beside the asynchronous events of the devices, which tell the same by another way; whichever comes first triggers, and what says it a
//! second time changes nothing. A GID is watched if an interface of this network namespace has the address that the GID is. Where
//! none has (a container with its own namespace, a GID that is no address), there is no watch, and no harm: the events are there still. The
//! socket takes nothing in but what the kernel says, and nothing is asked through it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{bind, recvfrom, socket, AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::datapath::{DeviceId, Gid};
use crate::inherited::Own;
use crate::links::{Links, Watched};

/// The multicast group of links, as a mask.
const GROUP_LINK: u32 = 1;
/// Bytes of a `struct nlmsghdr`, and where in a message the interface's index and flags are (`struct ifinfomsg`).
const HEADER: usize = 16;
const INDEX_AT: usize = HEADER + 4;
const FLAGS_AT: usize = HEADER + 8;
/// More than a message of the kernel's has (it makes them of 8 KiB, more where interfaces have many attributes; what is cut off is behind the flags).
const BUFFER: usize = 32 << 10;
/// The link works: up, with a carrier, and not waiting for somebody above.
const IFF_LOWER_UP: u32 = 1 << 16;

/// Devices by their interfaces, and the socket.
#[derive(Debug, Default)]
pub struct Interfaces {
    socket: Option<Own<OwnedFd>>,
    known: BTreeSet<(Gid, DeviceId)>,
    watched: BTreeSet<(u32, DeviceId)>,
    down: BTreeSet<u32>,
}

impl Interfaces {
    /// A device has this GID, which is that of a queue pair. The socket is made with the first that an interface here has.
    pub fn add(&mut self, links: &mut Links, device: DeviceId, gid: Gid) {
        if !self.known.insert((gid, device)) {
            return;
        }
        let Some(index) = interface_of(&gid) else {
            return;
        };
        self.watched.insert((index, device));
        if self.socket.is_none() {
            match open(links) {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => log::debug!("links are not watched ({error}); the devices' own events are"),
            }
        }
    }

    /// Devices whose link changed, and whether it is up. To be asked whenever the socket has something.
    pub fn changes(&mut self) -> Vec<(DeviceId, bool)> {
        let mut changes = Vec::new();
        let mut buffer = vec![0; BUFFER];
        while let Some(fd) = self.socket.as_ref().map(|socket| socket.as_raw_fd()) {
            match recvfrom::<NetlinkAddr>(fd, &mut buffer) {
                Ok((0, _)) => break,
                // From the kernel itself.
                Ok((count, from)) if from.is_none_or(|from| from.pid() == 0) => {
                    for (index, up) in links_in(buffer.get(..count).unwrap_or_default()) {
                        self.note(index, up, &mut changes);
                    }
                }
                // Some were dropped, which the devices' own events make good.
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(_) => break,
            }
        }
        changes
    }

    /// A message comes for whatever changes of an interface: only the link counts.
    fn note(&mut self, index: u32, up: bool, changes: &mut Vec<(DeviceId, bool)>) {
        let devices: Vec<DeviceId> = self.watched.iter().filter(|(of, _)| *of == index).map(|(_, d)| *d).collect();
        let is_news = if up { self.down.remove(&index) } else { !devices.is_empty() && self.down.insert(index) };
        changes.extend(devices.into_iter().filter(|_| is_news).map(|device| (device, up)));
    }
}

fn open(links: &mut Links) -> std::io::Result<Own<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = Own::new(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_LINK))?;
    links.watch(socket.as_raw_fd(), Watched::Interfaces)?;
    Ok(socket)
}

/// The interface of this namespace that has the address which the GID is.
fn interface_of(gid: &Gid) -> Option<u32> {
    let wanted = IpAddr::from(gid.0).to_canonical();
    let with_it = getifaddrs().ok()?.find(|interface| {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
        v4.or(v6) == Some(wanted)
    })?;
    if_nametoindex(with_it.interface_name.as_str()).ok()
}

/// The interfaces that the messages of a datagram are about, and whether the link of each works.
fn links_in(mut bytes: &[u8]) -> Vec<(u32, bool)> {
    let mut found = Vec::new();
    while let Some(length) = word(bytes, 0).and_then(|length| usize::try_from(length).ok()) {
        let (Some(&[low, high]), true) = (bytes.get(4..6), length >= HEADER) else {
            break;
        };
        let kind = u16::from_ne_bytes([low, high]);
        if let (Some(index), Some(flags)) = (word(bytes, INDEX_AT), word(bytes, FLAGS_AT)) {
            match kind {
                libc::RTM_NEWLINK => found.push((index, flags & IFF_LOWER_UP != 0)),
                libc::RTM_DELLINK => found.push((index, false)),
                _ => {}
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32, flags: u32, more: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 16 + more];
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[INDEX_AT..INDEX_AT + 4].copy_from_slice(&index.to_ne_bytes());
        bytes[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&flags.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    const UP: u32 = 1;

    #[test]
    fn a_link_is_up_that_has_a_carrier_and_gone_with_its_interface() {
        let datagram = [
            message(libc::RTM_NEWLINK, 2, UP | IFF_LOWER_UP, 5),
            message(libc::RTM_NEWLINK, 3, UP, 0),
            message(libc::RTM_NEWADDR, 4, 0, 8),
            message(libc::RTM_DELLINK, 5, UP | IFF_LOWER_UP, 0),
        ];
        assert_eq!(links_in(&datagram.concat()), [(2, true), (3, false), (5, false)]);
    }

    #[test]
    fn what_is_no_message_is_none_and_ends() {
        for bytes in [&[][..], &[0; 3], &[0; 64], &[255; 64], &message(libc::RTM_NEWLINK, 2, 0, 0)[..20]] {
            assert_eq!(links_in(bytes), [], "{bytes:?}");
        }
    }

    #[test]
    fn only_a_change_of_a_link_that_is_watched_is_news() {
        let rail = DeviceId(1);
        let mut interfaces = Interfaces { watched: BTreeSet::from([(2, rail)]), ..Interfaces::default() };
        let mut told = |index, up| {
            let mut changes = Vec::new();
            interfaces.note(index, up, &mut changes);
            changes
        };
        // It was up all along, as far as anybody knew.
        assert_eq!(told(2, true), []);
        assert_eq!(told(2, false), [(rail, false)]);
        assert_eq!(told(2, false), []);
        assert_eq!(told(3, false), []);
        assert_eq!(told(2, true), [(rail, true)]);
        assert_eq!(told(2, true), []);
    }

    #[test]
    fn the_interface_with_the_address_is_found_and_one_that_nobody_has_is_not() {
        let gid = |text: &str| Gid(text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(interface_of(&gid("::ffff:127.0.0.1")), if_nametoindex("lo").ok());
        assert_eq!(interface_of(&gid("::ffff:192.0.2.77")), None);
        assert_eq!(interface_of(&gid("fe80::dead:beef:0:1")), None);
    }

    #[test]
    fn the_kernel_is_heard_where_a_gid_is_an_address_of_this_host() {
        let (mut links, _waker) = Links::new(crate::channel::Terms::default(), || Ok([7; 16])).unwrap();
        let mut interfaces = Interfaces::default();
        interfaces.add(
            &mut links,
            DeviceId(0),
            Gid("::ffff:192.0.2.77".parse::<std::net::Ipv6Addr>().unwrap().octets()),
        );
        assert!(interfaces.socket.is_none(), "nothing here has that address");
        interfaces.add(
            &mut links,
            DeviceId(0),
            Gid("::ffff:127.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets()),
        );
        assert!(interfaces.socket.is_some() && interfaces.watched.len() == 1);
        assert_eq!(interfaces.changes(), []);
    }
}
