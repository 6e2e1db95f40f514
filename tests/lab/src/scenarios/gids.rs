//! Queue pairs whose GIDs do not lead to the peer's process: those of InfiniBand ports, which are no IP addresses, and those of hosts whose program is
//! in a container with a network of its own. A directory leads there.

use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::program::PRELOAD;
use crate::guest::Program;
use crate::lab::Lab;
use crate::place::{Host, Link};
use crate::trial::Trial;
use crate::trouble::{require, Result, Trouble};

use super::checker::{Checker, GO_ON, PORT, PROGRAM};
use super::directory::{cut_after, cut_running, mount_folder, Kind};
use super::Scenario;

/// Both devices of a host have GIDs as an InfiniBand port has them (tests/preload).
const GUIDS: &str = "guids=rxe0,guids=rxe1";
/// The network namespace that stands for a container.
const BOX: &str = "box";
/// Where the links of a container lead to, and nothing else does.
const BOXED_NET: &str = "10.88.0";

pub(super) fn scenarios() -> Vec<Scenario> {
    let guids = |name: &str, kind, what: &str| {
        let about = format!("GIDs of InfiniBand ports: named where nothing leads to the peer; protected through {what}, which is killed before rail 0 is cut");
        Scenario::guests(name, about, move |lab: &mut Lab, seed| guids(lab, kind, seed))
    };
    vec![
        guids("shim-guids-file", Kind::Folder, "a shared folder"),
        guids("shim-guids-redis", Kind::Redis, "a Redis server"),
        Scenario::guests(
            "shim-containers",
            "each program in a network namespace to which no GID leads: protected through a shared folder, and rail 0 cut",
            containers,
        ),
    ]
}

/// The GID of an IPv4 address, by its index.
fn gid_index(lab: &Lab) -> Result<u32> {
    let pattern = "/sys/class/infiniband/rxe0/ports/1/gids";
    let mapped = "0000:0000:0000:0000:0000:ffff";
    let found = Host::ALL.map(|host| {
        let line = lab.guest(host).shell(&format!("cd {pattern} && /bin/busybox grep -l ^{mapped} * 2>/dev/null"))?;
        line.split_whitespace()
            .next()
            .and_then(|name| name.parse::<u32>().ok())
            .ok_or_else(|| Trouble::setup(format!("rxe0 of {} has no GID of an IPv4 address: {line}", host.name())))
    });
    let [a, b] = found;
    let (a, b) = (a?, b?);
    require(a == b, || format!("the hosts have it at {a} and {b}"))?;
    Ok(a)
}

fn guids(lab: &mut Lab, kind: Kind, seed: u64) -> Result<Figures> {
    mount_folder(lab)?;
    let index = gid_index(lab)?;
    let mut figures = Figures::new();
    let without =
        of_guids(Checker::shimmed(format!("--mode mixed --seed {seed} --duration 3 --rate 200000")), index, None);
    let story = without.run(lab)?;
    story.require_success()?;
    let named = |words: &str| story.said.iter().filter(|line| line.contains(words)).count();
    require(named(" protected: ") == 0 && named("no shim answers for the peer") == 2, || format!("{:?}", story.said))?;
    lab.reset()?;

    let server = kind.start(lab)?;
    let checker = Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16"));
    let gone = |lab: &Lab, figures: &mut Figures| {
        let held = kind.entries(lab)?;
        require(held == 2, || format!("{held} entries for two ends"))?;
        figures.note("entries", held);
        kind.kill(lab, server.as_ref())
    };
    cut_after(lab, &of_guids(checker, index, Some(kind)), &Host::ALL, seed, gone, &mut figures)?;
    Ok(figures)
}

/// A run over devices with such GIDs.
fn of_guids(checker: Checker, index: u32, directory: Option<Kind>) -> Trial {
    let dress = |mut program: Program| {
        program.argv.extend(["--gid-index".to_owned(), index.to_string()]);
        let preloads = program.env.iter_mut().filter(|(name, _)| name == "LD_PRELOAD");
        preloads.for_each(|(_, value)| *value = format!("{value} {PRELOAD}"));
        let program = program.env("PRELOAD_FAULT", GUIDS);
        match directory {
            Some(kind) => program.with_shim_from(kind.library()).env("SHIFT_DIRECTORY", kind.url()),
            None => program,
        }
    };
    let trial = checker.trial();
    Trial { client: dress(trial.client), server: dress(trial.server), ..trial }
}

fn containers(lab: &mut Lab, seed: u64) -> Result<Figures> {
    mount_folder(lab)?;
    let card = Link::Management.interface();
    for host in Host::ALL {
        let (address, inside) = (boxed(host), format!("/sbin/ip -n {BOX}"));
        lab.guest(host).shell(&format!(
            "/sbin/ip netns add {BOX} && /sbin/ip link set {card} netns {BOX} && {inside} link set lo up && \
             {inside} addr add {address}/24 dev {card} && {inside} link set {card} up"
        ))?;
    }
    let judged = run_in_containers(lab, seed);
    for host in Host::ALL {
        let address = Link::Management.address(host);
        lab.guest(host).shell(&format!(
            "/sbin/ip -n {BOX} link set {card} netns 1 && /sbin/ip addr add {address}/24 dev {card} && \
             /sbin/ip link set {card} up && /sbin/ip netns del {BOX}"
        ))?;
    }
    judged
}

fn boxed(host: Host) -> String {
    format!("{BOXED_NET}.{}", host.octet())
}

fn run_in_containers(lab: &Lab, seed: u64) -> Result<Figures> {
    Kind::Folder.start(lab)?;
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let at = format!("{}:{PORT}", boxed(Host::B));
    let gate = format!("--pause-before-message 1 --idle-until-file {GO_ON}");
    let options = format!("--mode mixed --seed {seed} --messages 4000 --depth 16 {gate}");
    let dress = |line: &str| {
        let program = Program::words(&format!("/sbin/ip netns exec {BOX} {PROGRAM} {line}"));
        program.with_shim().env("SHIFT_DIRECTORY", Kind::Folder.url())
    };
    // The client tries until its server is there.
    let server = lab.b().spawn(&dress(&format!("server --dev rxe0 --listen {at}")))?;
    let client = lab.a().spawn(&dress(&format!("client --dev rxe0 --connect {at} {options}")))?;
    let mut figures = Figures::new();
    let alone = |lab: &Lab, figures: &mut Figures| {
        let held = Kind::Folder.entries(lab)?;
        require(held == 2, || format!("{held} entries for two ends"))?;
        figures.note("entries", held);
        // No shim of the host's own network is there that a GID could have led to.
        let tables = lab.b().shell("cat /proc/net/tcp /proc/net/tcp6")?;
        require(!tables.contains(" 0A "), || format!("somebody listens outside of the container: {tables}"))
    };
    cut_running(lab, [&client, &server], &Host::ALL, seed, alone, &mut figures)?;
    Ok(figures)
}
