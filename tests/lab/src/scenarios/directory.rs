//! Peers that find one another through a directory: a folder that both guests mount, and a real Redis server. Their well-known ports differ, so
//! that no GID leads to the peer. And hosts that have no network but their rails, and nothing configured.

use std::time::Duration;

use crate::clock::{ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::program::SHIM;
use crate::guest::{Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{all_protected, Trial};
use crate::trouble::{require, Result};

use super::checker::{Checker, GO_ON, PORT, PROGRAM};
use super::Scenario;

/// Arming, and the end of a program, under emulation.
const LIMIT: Duration = Duration::from_secs(60);
/// The library with Redis, which may also be told the wire versions that it is to speak (`TEST_WIRE_VERSIONS`).
pub(super) const SHIM_WITH_REDIS: &str = "/shift/libshift_verbs_redis.so";
/// The server's port on host B.
const REDIS_PORT: u16 = 6379;
/// Where both guests mount the folder, and the directory in it.
const MOUNTED: &str = "/folder";
const FOLDER: &str = "/folder/job";

/// Which directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    Redis,
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let of = |kind, what| {
        let about = format!(
            "peers find one another only through {what}: dead before the start, alive, and killed before rail 0 is cut"
        );
        let name = if kind == Kind::Redis { "shim-directory-redis" } else { "shim-directory-file" };
        Scenario::guests(name, about, move |lab: &mut Lab, seed| directory(lab, kind, seed))
    };
    vec![
        of(Kind::Redis, "a Redis server"),
        of(Kind::Folder, "a shared folder"),
        Scenario::guests(
            "shim-no-management",
            "hosts without a management network, nothing configured: protected, and rail 0 cut",
            no_management,
        ),
    ]
}

impl Kind {
    /// What SHIFT_DIRECTORY says.
    pub(super) fn url(self) -> String {
        match self {
            Kind::Folder => format!("file://{FOLDER}"),
            Kind::Redis => format!("redis://{}:{REDIS_PORT}", Link::Management.address(Host::B)),
        }
    }

    /// The library that knows it.
    pub(super) fn library(self) -> &'static str {
        match self {
            Kind::Folder => SHIM,
            Kind::Redis => SHIM_WITH_REDIS,
        }
    }

    /// It begins to be there; the server, if there is one.
    pub(super) fn start(self, lab: &Lab) -> Result<Option<Running>> {
        if self == Kind::Folder {
            lab.a().shell(&format!("/bin/busybox mkdir {FOLDER}"))?;
            return Ok(None);
        }
        let (bind, port) = (Link::Management.address(Host::B).to_string(), REDIS_PORT.to_string());
        let options = ["--bind", &bind, "--port", &port, "--save", "", "--appendonly", "no", "--protected-mode", "no"];
        let server = lab.b().spawn(&Program::new([&["/usr/bin/redis-server"], options.as_slice()].concat()))?;
        lab.wait_listening(&server, REDIS_PORT)?;
        Ok(Some(server))
    }

    /// What the directory holds.
    pub(super) fn entries(self, lab: &Lab) -> Result<u64> {
        let line = match self {
            Kind::Folder => format!("ls {FOLDER} | /bin/busybox grep -c -v half || true"),
            Kind::Redis => {
                let at = format!("{} {REDIS_PORT}", Link::Management.address(Host::B));
                format!("echo DBSIZE | /bin/busybox timeout 2 /bin/busybox nc {at} | /bin/busybox tr -d ':\\r' | /bin/busybox head -n 1")
            }
        };
        Ok(lab.b().shell(&line)?.trim().parse().unwrap_or(u64::MAX))
    }

    /// It is gone for good.
    pub(super) fn kill(self, lab: &Lab, server: Option<&Running>) -> Result<()> {
        match server {
            None => lab.b().shell(&format!("/bin/busybox rm -r {FOLDER}")).map(drop),
            Some(server) => server.signal(9).and_then(|()| server.wait(LIMIT)).map(drop),
        }
    }
}

fn directory(lab: &mut Lab, kind: Kind, seed: u64) -> Result<Figures> {
    mount_folder(lab)?;
    let mut figures = Figures::new();
    dead_before(lab, kind, seed)?;
    lab.reset()?;
    let server = kind.start(lab)?;
    let trial = dressed(kind, &Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16")));
    let gone = |lab: &Lab, figures: &mut Figures| {
        let held = kind.entries(lab)?;
        require(held == 2, || format!("{held} entries for two ends"))?;
        figures.note("entries", held);
        kind.kill(lab, server.as_ref())
    };
    cut_after(lab, &trial, &Host::ALL, seed, gone, &mut figures)?;
    Ok(figures)
}

/// Both hosts see the folder, and the directory is not there yet.
pub(super) fn mount_folder(lab: &Lab) -> Result<()> {
    for host in Host::ALL {
        let mount = format!("mount -t 9p -o trans=virtio,version=9p2000.L,cache=none folder {MOUNTED}");
        lab.guest(host).shell(&format!(
            "mkdir -p {MOUNTED}; /bin/busybox grep -q ' {MOUNTED} ' /proc/mounts || /bin/busybox {mount}"
        ))?;
    }
    lab.a().shell(&format!("/bin/busybox rm -rf {FOLDER}")).map(drop)
}

/// Each with a well-known port of its own.
fn dressed(kind: Kind, checker: &Checker) -> Trial {
    let dress = |program: Program, port| {
        let program = program.with_shim_from(kind.library()).env("SHIFT_PORT", port);
        program.env("SHIFT_DIRECTORY", kind.url())
    };
    let trial = checker.trial();
    Trial { client: dress(trial.client, "17481"), server: dress(trial.server, "17482"), ..trial }
}

/// Each end says once what is wrong with the directory, nobody is protected, and the program runs.
fn dead_before(lab: &mut Lab, kind: Kind, seed: u64) -> Result<()> {
    let options = format!("--mode mixed --seed {seed} --messages 400 --rate 200000");
    let story = dressed(kind, &Checker::shimmed(options)).run(lab)?;
    story.require_success()?;
    require(story.said.iter().all(|line| !line.contains(" protected: ")), || format!("protected: {:?}", story.said))?;
    let words = format!("SHIFT_DIRECTORY={}", kind.url());
    let told: Vec<&String> =
        story.said.iter().filter(|line| line.contains(&words) && line.contains("it is tried again")).collect();
    require(told.len() == 2, || format!("{} lines say that it is dead: {:?}", told.len(), story.said))
}

/// Waits until those ends say that they are protected, does `gone`, lets the program go on, and cuts rail 0 in the middle of it. What the shims said.
pub(super) fn cut_after(
    lab: &Lab,
    trial: &Trial,
    tell: &[Host],
    seed: u64,
    gone: impl Fn(&Lab, &mut Figures) -> Result<()>,
    figures: &mut Figures,
) -> Result<Vec<String>> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let (server, client) = lab.start_pair(trial.server_host, trial.listens, &trial.server, &trial.client)?;
    cut_running(lab, [&client, &server], tell, seed, gone, figures)
}

/// The same of a client and a server that were started.
pub(super) fn cut_running(
    lab: &Lab,
    [client, server]: [&Running; 2],
    tell: &[Host],
    seed: u64,
    gone: impl Fn(&Lab, &mut Figures) -> Result<()>,
    figures: &mut Figures,
) -> Result<Vec<String>> {
    for side in [client, server].into_iter().filter(|side| tell.contains(&side.host())) {
        until("protection", LIMIT, || Ok((all_protected(side) > 0).then_some(())))?;
    }
    gone(lab, figures)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let mut dice = Seed::new(seed, "directory");
    lab.wait_traffic(Rail::Zero, dice.within(100..1000), LIMIT, || client.ended().is_some())?;
    let cut = dice.host();
    let fault_ns = lab.cut(cut, Rail::Zero)?;
    for side in [client, server] {
        side.wait_line(LIMIT, |line| line.starts_with('{'))?;
    }
    // To tear down a queue pair of a dead rail takes soft-RoCE a minute.
    lab.mend(cut, Rail::Zero)?;
    let (client, server) = (client.wait(LIMIT)?, server.wait(LIMIT)?);
    for ended in [&client, &server] {
        require(ended.succeeded(), || ended.brief())?;
    }
    let evidence = Evidence::collect(lab)?;
    require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    figures.note("cut", cut.name());
    figures.note("fault_to_client_end_ms", ms(client.at_ns.saturating_sub(fault_ns)));
    evidence.note(figures);
    Ok(client.err.lines().chain(server.err.lines()).map(str::to_owned).collect())
}

/// The checking application's own connection goes over rail 1.
fn no_management(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let set = |lab: &Lab, state| {
        let line = format!("/sbin/ip link set {} {state}", Link::Management.interface());
        Host::ALL.into_iter().try_for_each(|host| lab.guest(host).shell(&line).map(drop))
    };
    set(lab, "down")?;
    let at = format!("{}:{PORT}", Rail::One.link().address(Host::B));
    let gate = format!("--pause-before-message 1 --idle-until-file {GO_ON}");
    let options = format!("--mode mixed --seed {seed} --messages 4000 --depth 16 {gate}");
    let server = Program::words(&format!("{PROGRAM} server --dev rxe0 --listen {at}")).with_shim();
    let client = Program::words(&format!("{PROGRAM} client --dev rxe0 --connect {at} {options}")).with_shim();
    let trial = Trial::new(Host::B, PORT, server, client);
    let judged = cut_after(lab, &trial, &Host::ALL, seed, |_, _| Ok(()), &mut figures);
    set(lab, "up")?;
    judged.map(|_| figures)
}
