//! The control network of a test: every host has an address of its own on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shift_control::address::Network;
use shift_control::datapath::Gid;

use super::Fabric;

/// How the hosts of a test reach one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Each under its one address.
    Plain,
    /// Each under a second address too; such hosts share one well-known port.
    Twofold,
    /// Each under its one address, to which no GID leads.
    Hidden,
    /// Each at the other's end of a [`super::cable::Cable`].
    Cabled,
}

/// What an agent of the test sees of it.
pub struct TestNetwork {
    pub own: Ipv4Addr,
    pub net: u8,
    pub owner: u32,
    pub directory: String,
    pub reach: Reach,
}

impl Network for TestNetwork {
    fn peer_address(&self, gid: &Gid, _netdev: &str) -> Option<SocketAddr> {
        let address = self.seen(gid.0[15]);
        (self.reach != Reach::Hidden).then_some(SocketAddr::new(IpAddr::V4(address), 0))
    }
    fn own_addresses(&self) -> Vec<IpAddr> {
        let [_, _, net, host] = self.own.octets();
        let second = (self.reach == Reach::Twofold).then_some(Ipv4Addr::new(127, 1, net, host));
        [Some(self.seen(host)), second].into_iter().flatten().map(IpAddr::V4).collect()
    }
    fn listen_on(&self) -> Vec<IpAddr> {
        vec![IpAddr::V4(if self.reach == Reach::Twofold { Ipv4Addr::UNSPECIFIED } else { self.own })]
    }
    /// Each host of a test is an address of loopback, from which the kernel would dial as 127.0.0.1.
    fn source_to(&self, peer: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(peer) = peer else { return None };
        let [_, _, net, host] = self.own.octets();
        Some(IpAddr::V4(Ipv4Addr::new(127, peer.octets()[1], net, host)))
    }
    fn directory_name(&self, port: u16) -> String {
        format!("{}-{port}", self.directory)
    }
}

/// A port of this run's own: hosts of two networks listen on all addresses, as those of a run beside this one do.
pub fn own_port() -> u16 {
    18_000 + u16::try_from(std::process::id() % 10_000).unwrap()
}

/// The address of a host. Tests that run at the same time have networks of their own.
pub fn near_end(owner: u32, net: u8, host: u8) -> Ipv4Addr {
    let [.., middle, low] = owner.to_be_bytes();
    Ipv4Addr::new(127, 2 + (low ^ middle) % 250, net, host)
}

impl TestNetwork {
    fn seen(&self, host: u8) -> Ipv4Addr {
        match self.reach {
            Reach::Plain | Reach::Twofold | Reach::Hidden => near_end(self.owner, self.net, host),
            Reach::Cabled => super::cable::far_end(self.owner, self.net, host),
        }
    }
}

impl Fabric {
    /// What a process on that host sees.
    pub fn network(&self, host: usize, reach: Reach) -> TestNetwork {
        let (own, directory) = (self.address(host), self.directory(host));
        TestNetwork { own, net: self.net, owner: self.owner, directory, reach }
    }
}
