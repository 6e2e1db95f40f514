//! The control network of a test: every host has an address of its own on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shift_control::address::Network;
use shift_control::datapath::Gid;

/// What an agent of the test sees of it.
pub struct TestNetwork {
    pub own: Ipv4Addr,
    pub net: u8,
    pub directory: String,
    /// Reached under a second address too; such hosts share one well-known port.
    pub twofold: bool,
}

impl Network for TestNetwork {
    fn peer_address(&self, gid: &Gid, _netdev: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, self.net, gid.0[15])), 0))
    }
    fn own_addresses(&self) -> Vec<IpAddr> {
        let [_, _, net, host] = self.own.octets();
        let second = self.twofold.then_some(Ipv4Addr::new(127, 1, net, host));
        [Some(self.own), second].into_iter().flatten().map(IpAddr::V4).collect()
    }
    fn listen_on(&self) -> Vec<IpAddr> {
        vec![IpAddr::V4(if self.twofold { Ipv4Addr::UNSPECIFIED } else { self.own })]
    }
    fn directory_name(&self, port: u16) -> String {
        format!("{}-{port}", self.directory)
    }
}
