//! Where things are: the two hosts, the links between them, and their names and addresses.
//!
//! Every other module takes these types; a bare index of a link or a host is never passed around.

use serde::{Deserialize, Serialize};

/// One of the two guests. By custom `A` is the client of a test and `B` its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// First guest, addresses end in .1.
    A,
    /// Second guest, addresses end in .2.
    B,
}

impl Host {
    /// Both hosts.
    pub const ALL: [Host; 2] = [Host::A, Host::B];

    /// The host at the other end of every link.
    pub fn peer(self) -> Host {
        match self {
            Host::A => Host::B,
            Host::B => Host::A,
        }
    }

    /// `a` or `b`.
    pub fn name(self) -> &'static str {
        match self {
            Host::A => "a",
            Host::B => "b",
        }
    }

    /// Last octet of this host's addresses.
    pub fn octet(self) -> u8 {
        match self {
            Host::A => 1,
            Host::B => 2,
        }
    }
}

/// One of the rails, each an RDMA device on a network interface of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rail {
    /// rxe0 on eth1: the rail that programs use by default.
    Zero,
    /// rxe1 on eth2: the standby.
    One,
    /// rxe2 on eth3: there only in scenarios that raise it ([`crate::lab::Lab::raise`]).
    Two,
}

impl Rail {
    /// Both rails that are always there.
    pub const ALL: [Rail; 2] = [Rail::Zero, Rail::One];
    /// The third one too.
    pub const THREE: [Rail; 3] = [Rail::Zero, Rail::One, Rail::Two];

    /// The link that carries this rail.
    pub fn link(self) -> Link {
        match self {
            Rail::Zero => Link::Rail0,
            Rail::One => Link::Rail1,
            Rail::Two => Link::Rail2,
        }
    }

    /// The RDMA device of this rail inside a guest.
    pub fn device(self) -> &'static str {
        match self {
            Rail::Zero => "rxe0",
            Rail::One => "rxe1",
            Rail::Two => "rxe2",
        }
    }
}

/// One of the cables between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// eth0: addresses by which programs find each other; no RDMA.
    Management,
    /// eth1, rail 0.
    Rail0,
    /// eth2, rail 1.
    Rail1,
    /// eth3, rail 2: down, and without an address, unless a scenario raises it.
    Rail2,
}

impl Link {
    /// The links that are up after the boot, in the order of the guests' interfaces.
    pub const ALL: [Link; 3] = [Link::Management, Link::Rail0, Link::Rail1];
    /// All cables, in the same order.
    pub const CABLES: [Link; 4] = [Link::Management, Link::Rail0, Link::Rail1, Link::Rail2];

    /// Number of the interface (`eth<n>`) and of the third octet of its addresses.
    pub fn number(self) -> u8 {
        match self {
            Link::Management => 0,
            Link::Rail0 => 1,
            Link::Rail1 => 2,
            Link::Rail2 => 3,
        }
    }

    /// Interface name inside a guest.
    pub fn interface(self) -> String {
        format!("eth{}", self.number())
    }

    /// IPv4 address of `host` on this link.
    pub fn address(self, host: Host) -> String {
        format!("10.77.{}.{}", self.number(), host.octet())
    }

    /// Hardware address of `host` on this link.
    pub fn hardware(self, host: Host) -> String {
        format!("52:54:00:77:{:02x}:{:02x}", self.number(), host.octet())
    }

    /// MTU of the interface: room for a path MTU of 4096 on the rails.
    pub fn mtu(self) -> u32 {
        match self {
            Link::Management => 1500,
            Link::Rail0 | Link::Rail1 | Link::Rail2 => 4200,
        }
    }

    /// The link of that number.
    pub fn from_number(number: u8) -> Option<Link> {
        Link::CABLES.into_iter().find(|link| link.number() == number)
    }
}
