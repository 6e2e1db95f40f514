//! From GIDs to IP addresses: where the control connection of a queue pair is sought.
//!
//! Owns no socket. A RoCE GID is an IP address, so the peer's process is found without any configuration; a GID of an
//! InfiniBand link layer is not, and the connection attempt then fails like any other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{if_nametoindex, InterfaceFlags};

use crate::datapath::Gid;

/// Addresses that one process names to its peers, at most. A host has a management network and its rails.
pub const MAX_ADDRESSES: usize = shift_proto::frame::MAX_ADDRESSES;

/// What the agent needs to know of the host's networks; a hook so that two agents of one test can live on loopback.
pub trait Network: Send + Sync {
    /// The address of the process behind `gid`, port 0, as seen from the interface `netdev`; `None`: no address follows from it.
    fn peer_address(&self, gid: &Gid, netdev: &str) -> Option<SocketAddr>;
    /// The addresses under which other hosts may reach this process, and those from which it may come besides.
    fn own_addresses(&self) -> Vec<IpAddr>;
    /// The addresses to listen on, the preferred first; the first that can be bound is used.
    fn listen_on(&self) -> Vec<IpAddr>;
    /// The address from which `peer` is dialed; `None`: the kernel chooses, and on a host with routes it chooses one of its own.
    fn source_to(&self, _peer: IpAddr) -> Option<IpAddr> {
        None
    }
    /// Name of the abstract socket over which the processes that share the well-known port find one another.
    fn directory_name(&self, port: u16) -> String {
        format!("shift-verbs-{port}")
    }
}

/// The networks of this host.
#[derive(Debug, Default)]
pub struct HostNetwork;

impl Network for HostNetwork {
    fn peer_address(&self, gid: &Gid, netdev: &str) -> Option<SocketAddr> {
        let scope = if_nametoindex(netdev).unwrap_or(0);
        gid_address(gid, scope)
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        interface_addresses()
    }

    fn listen_on(&self) -> Vec<IpAddr> {
        vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
    }
}

/// The IP address that a RoCE GID is, port 0; `scope` is the interface index for a link-local one.
pub fn gid_address(gid: &Gid, scope: u32) -> Option<SocketAddr> {
    let address = Ipv6Addr::from(gid.0);
    if let Some(v4) = address.to_ipv4_mapped() {
        return (!v4.is_unspecified()).then_some(SocketAddr::new(IpAddr::V4(v4), 0));
    }
    if address.is_unspecified() || address.is_multicast() {
        return None;
    }
    if address.is_unicast_link_local() {
        return (scope != 0).then_some(SocketAddr::V6(SocketAddrV6::new(address, 0, 0, scope)));
    }
    Some(SocketAddr::new(IpAddr::V6(address), 0))
}

/// The address without the disguise of a dual-stack socket: `::ffff:10.0.0.1` is `10.0.0.1`.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// `address` with another port; keeps the scope.
pub fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// All addresses of interfaces that are up, without loopback.
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let mut found = BTreeSet::new();
    for interface in interfaces {
        let usable =
            interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(storage) = interface.address.filter(|_| usable) else {
            continue;
        };
        if let Some(v4) = storage.as_sockaddr_in() {
            found.insert(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = storage.as_sockaddr_in6() {
            found.insert(IpAddr::V6(v6.ip()));
        }
    }
    worth_telling(&found)
}

/// First those that mean something elsewhere. A link-local one leads nowhere from there, but a GID may be one.
fn worth_telling(found: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let of = |wanted: fn(IpAddr) -> bool| found.iter().copied().filter(move |a| wanted(*a));
    of(is_routable).chain(of(is_link_local)).take(MAX_ADDRESSES).collect()
}

/// Whether the address means something only together with an interface.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified() && !is_link_local(address),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !is_link_local(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(address: &str) -> Gid {
        Gid(address.parse::<Ipv6Addr>().map(|a| a.octets()).unwrap_or_default())
    }

    fn found(address: &str, scope: u32) -> Option<String> {
        gid_address(&gid(address), scope).map(|a| a.to_string())
    }

    #[test]
    fn a_mapped_gid_is_its_ipv4_address() {
        assert_eq!(found("::ffff:10.1.0.2", 0).as_deref(), Some("10.1.0.2:0"));
    }

    #[test]
    fn a_link_local_gid_needs_the_interface() {
        assert_eq!(found("fe80::5054:ff:fe00:1", 3).as_deref(), Some("[fe80::5054:ff:fe00:1%3]:0"));
        assert_eq!(found("fe80::5054:ff:fe00:1", 0), None);
    }

    #[test]
    fn a_global_gid_is_itself() {
        assert_eq!(found("fd00::7", 9).as_deref(), Some("[fd00::7]:0"));
    }

    #[test]
    fn no_address_follows_from_zero_or_a_group() {
        assert_eq!(found("::", 1), None);
        assert_eq!(found("ff02::1", 1), None);
        assert_eq!(found("::ffff:0.0.0.0", 1), None);
    }

    #[test]
    fn addresses_of_this_host_hold_no_loopback() {
        assert!(HostNetwork.own_addresses().iter().all(|a| is_routable(*a) || is_link_local(*a)));
    }

    #[test]
    fn link_local_addresses_are_told_where_there_is_room() {
        let of = |text: &str| text.parse::<IpAddr>().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut found = BTreeSet::from(["fe80::1", "::1", "169.254.0.1", "fd00::7", "127.0.0.1"].map(of));
        assert_eq!(worth_telling(&found), ["fd00::7", "169.254.0.1", "fe80::1"].map(of));
        found.extend((0..MAX_ADDRESSES).map(|at| of(&format!("10.0.0.{at}"))));
        assert!(worth_telling(&found).into_iter().all(is_routable));
    }

    #[test]
    fn a_mapped_peer_of_a_dual_stack_socket_is_its_ipv4_self() {
        let mapped: IpAddr = "::ffff:127.0.0.2".parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_eq!(canonical(mapped).to_string(), "127.0.0.2");
    }
}
