//! What is to be wrong with which device: the value of PRELOAD_FAULT, parsed. Pure.

use std::fmt;

/// The variable that names the faults.
pub const VARIABLE: &str = "PRELOAD_FAULT";

/// One thing that is wrong with one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device's name, as rxe1.
    pub device: String,
    /// What is wrong.
    pub kind: Kind,
}

/// What can be wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `no-rc=DEV`: no queue pair of type RC can be made (EOPNOTSUPP).
    NoRc,
    /// `inline=DEV:BYTES`: a queue pair has no more inline room; asking for more is EINVAL.
    Inline(u32),
    /// `sge=DEV:N`: a work request has no more elements; asking for more is EINVAL.
    Sge(u32),
    /// `rd-atom=DEV:N`: no more READs and atomics outstanding; setting more is EINVAL.
    RdAtom(u8),
    /// `no-mr=DEV` or `no-mr=DEV:N`: the N-th registration of memory, counted from 1, and all after it fail (ENOMEM).
    NoMr(u64),
    /// `port-down=DEV`: every port reads as down.
    PortDown,
    /// `mtu=DEV:BYTES`: no port has a larger active MTU.
    Mtu(u32),
    /// `no-vendor=DEV`: it says nothing of its maker, so that nobody takes it for one that he knows.
    NoVendor,
    /// `break=DEV:N`: after N to 2N - 1 successes, by its number, the send queue of each queue pair reports RETRY_EXC_ERR
    /// for its oldest request and flushes for all behind it, while the NIC goes on: as if all acknowledgements were lost.
    /// A queue pair that carries no bytes, such as a probe, is left alone.
    Break(u64),
    /// `post-refused=DEV:N`: every N-th chain of two and more requests is refused in its midst (ENOMEM): those before
    /// `bad_wr` are posted, it and those behind it are not.
    PostRefused(u64),
    /// `watch-fences=DEV`: who asked for it ([`crate::fences`]) is shown each queue pair that was fenced.
    WatchFences,
    /// `early-psn=DEV`: after RESET `ibv_query_qp` gives the packet number that was the expected one right after ERR.
    EarlyPsn,
    /// `void-psn=DEV`: after RESET `ibv_query_qp` gives a packet number far away from all that were posted: it proves nothing.
    VoidPsn,
    /// `guids=DEV`: GIDs that are IPv4 addresses look like those of an InfiniBand port, which are no IP addresses ([`crate::gid`]).
    Guids,
    /// `fatal=DEV`: when its port has gone down the device is taken away from under its users, for good: what is asked of it is EIO, posts are taken and
    /// never complete, polls find nothing. What is destroyed is destroyed.
    Fatal,
}

/// An item that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadItem(String);

impl fmt::Display for BadItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = "no-rc=DEV inline=DEV:BYTES sge=DEV:N rd-atom=DEV:N no-mr=DEV[:N] port-down=DEV mtu=DEV:BYTES \
                     no-vendor=DEV break=DEV:N post-refused=DEV:N watch-fences=DEV early-psn=DEV \
                     void-psn=DEV guids=DEV fatal=DEV";
        write!(f, "{VARIABLE}: cannot read {:?}; items are {known}, joined by commas", self.0)
    }
}

/// All faults of a value such as `no-rc=rxe1,inline=rxe0:16`.
pub fn parse(value: &str) -> Result<Vec<Fault>, BadItem> {
    let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| parse_item(item).ok_or_else(|| BadItem(item.to_owned()))).collect()
}

fn parse_item(item: &str) -> Option<Fault> {
    let (name, what) = item.split_once('=')?;
    let (device, number) = match what.split_once(':') {
        Some((device, number)) => (device, Some(number.parse::<u64>().ok()?)),
        None => (what, None),
    };
    let kind = match (name, number) {
        ("no-rc", None) => Kind::NoRc,
        ("inline", Some(bytes)) => Kind::Inline(u32::try_from(bytes).ok()?),
        ("sge", Some(count)) => Kind::Sge(u32::try_from(count).ok()?),
        ("rd-atom", Some(count)) => Kind::RdAtom(u8::try_from(count).ok()?),
        ("no-mr", first) => Kind::NoMr(first.unwrap_or(1).max(1)),
        ("port-down", None) => Kind::PortDown,
        ("no-vendor", None) => Kind::NoVendor,
        ("break", Some(count)) => Kind::Break(count.max(1)),
        ("post-refused", Some(count)) => Kind::PostRefused(count.max(1)),
        ("watch-fences", None) => Kind::WatchFences,
        ("early-psn", None) => Kind::EarlyPsn,
        ("void-psn", None) => Kind::VoidPsn,
        ("guids", None) => Kind::Guids,
        ("fatal", None) => Kind::Fatal,
        ("mtu", Some(bytes)) => Kind::Mtu(u32::try_from(bytes).ok().filter(|bytes| is_mtu(*bytes))?),
        _ => return None,
    };
    (!device.is_empty()).then(|| Fault { device: device.to_owned(), kind })
}

fn is_mtu(bytes: u32) -> bool {
    shift_abi::ibv_mtu::from_bytes(bytes).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &str) -> Fault {
        parse(value).expect("a good item").remove(0)
    }

    #[test]
    fn every_item_is_read() {
        assert_eq!(one("no-rc=rxe1"), Fault { device: "rxe1".into(), kind: Kind::NoRc });
        assert_eq!(one("inline=rxe1:16").kind, Kind::Inline(16));
        assert_eq!(one("sge=rxe1:1").kind, Kind::Sge(1));
        assert_eq!(one("rd-atom=rxe1:2").kind, Kind::RdAtom(2));
        assert_eq!(one("no-mr=rxe1").kind, Kind::NoMr(1));
        assert_eq!(one("no-mr=rxe1:3").kind, Kind::NoMr(3));
        assert_eq!(one("port-down=rxe1").kind, Kind::PortDown);
        assert_eq!(one("mtu=rxe1:1024").kind, Kind::Mtu(1024));
        assert_eq!(one("no-vendor=rxe1").kind, Kind::NoVendor);
        assert_eq!(one("break=rxe0:40").kind, Kind::Break(40));
        assert_eq!(one("post-refused=rxe0:7").kind, Kind::PostRefused(7));
        assert_eq!(one("watch-fences=rxe0").kind, Kind::WatchFences);
        assert_eq!(one("early-psn=rxe0").kind, Kind::EarlyPsn);
        assert_eq!(one("void-psn=rxe1").kind, Kind::VoidPsn);
        assert_eq!(one("guids=rxe1").kind, Kind::Guids);
        assert_eq!(one("fatal=rxe0").kind, Kind::Fatal);
        assert_eq!(parse("").map(|faults| faults.len()), Ok(0));
        assert_eq!(parse(" no-rc=a , no-rc=b,").map(|faults| faults.len()), Ok(2));
    }

    #[test]
    fn a_bad_item_is_told_by_name() {
        for bad in ["no-rc", "no-rc=", "no-rc=a:1", "inline=a", "inline=a:x", "sge=a:-1", "mtu=a:1500", "rd-atom=a:300"]
        {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
