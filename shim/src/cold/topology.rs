//! Which devices of a host stand by for which: where they sit, as sysfs says.
//!
//! A device on the same PCIe switch comes first, then one on the same NUMA node, then another function of the same card, which dies with it, then any other; of
//! equals the next one in libibverbs' order, so that not all devices of a host have the same one. A port that is not active comes after all that are.

use std::path::{Component, Path};

/// Where the kernel shows devices.
pub const SYSFS: &str = "/sys";

/// Where a device sits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// `None`: the kernel does not say.
    numa: Option<u32>,
    /// The way to it from its PCI root; empty: it is on none that is known.
    way: Vec<String>,
}

impl Seat {
    /// Of an RDMA device. One of software sits where its network interface does.
    pub fn read(sysfs: &Path, device: &str) -> Self {
        let own = sysfs.join("class/infiniband").join(device);
        let parent = std::fs::read_to_string(own.join("parent")).unwrap_or_default();
        let place = match parent.trim() {
            "" => own.join("device"),
            interface => sysfs.join("class/net").join(interface).join("device"),
        };
        let numa = std::fs::read_to_string(place.join("numa_node")).ok().and_then(|text| text.trim().parse().ok());
        let way = std::fs::canonicalize(&place).map(|path| way_of(&path)).unwrap_or_default();
        Self { numa, way }
    }

    /// How much another device would be rather had: the lower the better.
    fn rank(&self, other: &Self) -> u8 {
        let is_near = self.numa.zip(other.numa).is_none_or(|(own, other)| own == other);
        let shared = self.way.iter().zip(&other.way).take_while(|(own, other)| own == other).count();
        let card =
            |seat: &Self| seat.way.last().and_then(|last| last.rsplit_once('.')).map(|(card, _)| card.to_owned());
        let is_same_card = card(self).is_some_and(|own| card(other) == Some(own));
        match (is_near, is_same_card) {
            (false, false) => 3,
            (_, true) => 2,
            // The root and the port that leads to the switch.
            (true, false) if shared >= 2 => 0,
            (true, false) => 1,
        }
    }
}

/// The PCI addresses on the way, without what a driver hangs below them (virtio does).
fn way_of(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    let below_root = names.skip_while(|name| !name.starts_with("pci"));
    below_root.take_while(|name| name.starts_with("pci") || is_address(name)).map(str::to_owned).collect()
}

/// Such as 0000:3b:00.0.
fn is_address(name: &str) -> bool {
    name.split_once('.').is_some_and(|(place, _)| place.split(':').count() == 3)
}

/// A device that may stand by.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// "mlx5_1".
    pub name: String,
    /// Its port is active.
    pub is_active: bool,
    /// Where it sits.
    pub seat: Seat,
}

/// Worse than any device whose port is active.
const INACTIVE: u8 = 16;

/// The candidates, the best first, with their ranks. They come in the order in which they follow the primary in libibverbs' list.
pub fn ordered(primary: &Seat, candidates: Vec<Candidate>) -> Vec<(String, u8)> {
    let rank = |one: &Candidate| primary.rank(&one.seat) + if one.is_active { 0 } else { INACTIVE };
    let mut ranked: Vec<(String, u8)> = candidates.into_iter().map(|one| (one.name.clone(), rank(&one))).collect();
    ranked.sort_by_key(|(_, rank)| *rank);
    ranked
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A tree as the kernel shows one; it goes with the test.
    struct Tree(std::path::PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("shift-topology-{}-{name}", std::process::id()));
            fs::create_dir_all(root.join("class/infiniband")).unwrap();
            fs::create_dir_all(root.join("class/net")).unwrap();
            Self(fs::canonicalize(root).unwrap())
        }

        fn place(&self, way: &str, numa: &str) -> std::path::PathBuf {
            let place = self.0.join("devices").join(way);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("numa_node"), numa).unwrap();
            place
        }

        fn nic(self, name: &str, way: &str, numa: &str) -> Self {
            let own = self.0.join("class/infiniband").join(name);
            fs::create_dir_all(&own).unwrap();
            symlink(self.place(way, numa), own.join("device")).unwrap();
            self
        }

        fn soft(self, name: &str, interface: &str, way: &str) -> Self {
            let own = self.0.join("class/infiniband").join(name);
            fs::create_dir_all(&own).unwrap();
            fs::write(own.join("parent"), format!("{interface}\n")).unwrap();
            let net = self.0.join("class/net").join(interface);
            fs::create_dir_all(&net).unwrap();
            symlink(self.place(way, "-1\n"), net.join("device")).unwrap();
            self
        }

        fn order(&self, primary: &str, others: &[(&str, bool)]) -> Vec<(String, u8)> {
            let candidate = |(name, is_active): &(&str, bool)| Candidate {
                name: (*name).to_owned(),
                is_active: *is_active,
                seat: Seat::read(&self.0, name),
            };
            ordered(&Seat::read(&self.0, primary), others.iter().map(candidate).collect())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(ranked: &[(String, u8)]) -> Vec<&str> {
        ranked.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn host(name: &str) -> Tree {
        let switch = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
        Tree::new(name)
            .nic("mlx5_0", &format!("{switch}/0000:3c:00.0/0000:3d:00.0"), "0\n")
            .nic("mlx5_1", &format!("{switch}/0000:3c:00.0/0000:3d:00.1"), "0\n")
            .nic("mlx5_2", "pci0000:c0/0000:c0:01.0/0000:c1:00.0", "1\n")
            .nic("mlx5_3", "pci0000:5a/0000:5a:00.0/0000:5b:00.0", "0\n")
            .nic("mlx5_4", &format!("{switch}/0000:3c:01.0/0000:3e:00.0"), "0\n")
    }

    #[test]
    fn the_switch_comes_first_then_the_node_then_the_card_itself_then_the_rest() {
        let host = host("order");
        let all = [("mlx5_1", true), ("mlx5_2", true), ("mlx5_3", true), ("mlx5_4", true)];
        let ranked = host.order("mlx5_0", &all);
        assert_eq!(names(&ranked), ["mlx5_4", "mlx5_3", "mlx5_1", "mlx5_2"]);
        assert_eq!(ranked.iter().map(|(_, rank)| *rank).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_port_that_is_down_comes_last_and_is_still_there() {
        let host = host("down");
        assert_eq!(names(&host.order("mlx5_0", &[("mlx5_4", false), ("mlx5_2", true)])), ["mlx5_2", "mlx5_4"]);
    }

    #[test]
    fn equals_keep_the_order_in_which_they_follow_the_primary() {
        let host = Tree::new("equal")
            .soft("rxe0", "eth1", "pci0000:00/0000:00:03.0/virtio1")
            .soft("rxe1", "eth2", "pci0000:00/0000:00:04.0/virtio2")
            .soft("rxe2", "eth3", "pci0000:00/0000:00:05.0/virtio3");
        let ranked = host.order("rxe1", &[("rxe2", true), ("rxe0", true)]);
        assert_eq!(ranked, [("rxe2".to_owned(), 1), ("rxe0".to_owned(), 1)]);
    }

    #[test]
    fn what_sysfs_does_not_say_is_no_reason_against_a_device() {
        let host = Tree::new("unknown");
        assert_eq!(host.order("a", &[("b", true), ("c", true)]), [("b".to_owned(), 1), ("c".to_owned(), 1)]);
    }
}
