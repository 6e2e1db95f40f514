//! What programs do with processes and with many queue pairs: fork and exec, exit in the middle of a migration, hundreds of queue pairs,
//! and queue pairs that come and go all the time.

use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Running;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::seed::Seed;
use crate::trouble::{require, Result, Trouble};

use super::partners::{Partners, Plan, ARMING_LIMIT, GO_ON};
use super::Scenario;

/// Options of both ends, and what they show. All pairs of one host fail over onto the same standby.
const FORKS: [&str; 4] = ["--fork works", "--fork works --fork-init", "--fork execs", "--fork idles --fork-init"];
/// Pairs of which one end exits, each at another moment after the cut.
const EXITS: u16 = 6;
/// An end that exits has this long: the agent's goodbye takes at most 5 ms, soft-RoCE's cleaning up behind a process longer.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// Queue pairs of one process.
const MANY: u64 = 256;
/// Rounds of making and destroying queue pairs, and those after which it is measured: what leaks grows from each to the next, what the allocator
/// keeps since the first time that much was in use at once grows once, whenever that is. The rounds behind the last are for the measuring itself.
const ROUNDS: u64 = 100;
const MEASURED: [u64; 3] = [20, 55, 90];
/// The thread that destroys old objects is there while there are some.
const REAPER: u64 = 1;
/// Growth from there on that is the allocator's, in KiB.
const SLACK_KIB: u64 = 512;
/// Descriptors that one round has open: the next one begins while they are counted. One that leaks in each round is far beyond.
const OF_A_ROUND: u64 = 10;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, about, run: fn(&mut Lab, u64) -> Result<Figures>| Scenario::guests(name, about, run);
    vec![
        scenario("shim-forks", "fork before and after the device is opened, ibv_fork_init, exec; rail 0 down: all pairs survive on one standby", forks),
        scenario("shim-exits", "one end calls exit in the middle of a migration: it ends at once, and its peer is not left waiting", exits),
        scenario("shim-many-qps", "256 queue pairs of one process, rail 0 down: all is right", many_qps),
        scenario("shim-rounds", "queue pairs, memory and devices made and destroyed again and again: nothing grows, no peer is mistaken", rounds),
    ]
}

fn begin(lab: &mut Lab) -> Result<()> {
    Evidence::clear(lab)?;
    Host::ALL.into_iter().try_for_each(|host| lab.guest(host).shell(&format!("rm -f {GO_ON}*")).map(drop))
}

fn side_of(seed: u64) -> Host {
    Seed::new(seed, "side").host()
}

fn require_success(side: &Running) -> Result<()> {
    let ended = side.wait(ARMING_LIMIT)?;
    require(ended.succeeded(), || format!("{} on {}: {}", side.pid(), side.host().name(), ended.brief()))
}

fn forks(lab: &mut Lab, seed: u64) -> Result<Figures> {
    begin(lab)?;
    let pair = |(number, how): (u16, &str)| {
        let flow = "--mode mixed --messages 200 --size 0..2000 --depth 4 --rate 100000 --poll sleepy";
        let pause = format!("--pause-before-message 10 --idle-until-file {GO_ON} --seed {}", seed + u64::from(number));
        let client = format!("{flow} {pause} {how}");
        Partners::start(lab, &Plan { number, server: how.to_owned(), client, ..Plan::default() })
    };
    let pairs = (0_u16..).zip(FORKS).map(pair).collect::<Result<Vec<Partners>>>()?;
    pairs.iter().try_for_each(Partners::wait_protected)?;
    pairs.iter().try_for_each(Partners::wait_idle)?;
    let cut = side_of(seed);
    let fault_ns = lab.cut(cut, Rail::Zero)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let judged = pairs.iter().flat_map(Partners::sides).try_for_each(require_success);
    pairs.iter().try_for_each(|pair| pair.end_children(lab))?;
    lab.mend(cut, Rail::Zero)?;
    judged?;
    let evidence = Evidence::collect(lab)?;
    for host in Host::ALL {
        let moved =
            evidence.of(host).filter(|record| record.pointer("/to/device").is_some_and(|to| to == "rxe1")).count();
        require(moved == FORKS.len(), || format!("{moved} migrations on {}, not {}", host.name(), FORKS.len()))?;
    }
    Ok(Figures::new().with("cut", cut.name()).with("fault_to_end_ms", ms(monotonic_ns() - fault_ns)))
}

fn exits(lab: &mut Lab, seed: u64) -> Result<Figures> {
    begin(lab)?;
    let file = |number: u16| format!("{GO_ON}-{number}");
    let leaver = |number: u16| if number & 1 == 0 { Host::A } else { Host::B };
    let pair = |number: u16| {
        let exit =
            |host| if leaver(number) == host { format!("--exit-on-file {}", file(number)) } else { String::new() };
        let flow = "--mode write,send,fadd --qps 3 --duration 60 --size 0..20000 --depth 8 --rate 300000 --poll sleepy";
        let client = format!("{flow} --seed {} {}", seed + u64::from(number), exit(Host::A));
        Partners::start(lab, &Plan { number, server: exit(Host::B), client, ..Plan::default() })
    };
    let pairs = (0..EXITS).map(pair).collect::<Result<Vec<Partners>>>()?;
    pairs.iter().try_for_each(Partners::wait_protected)?;
    let mut dice = Seed::new(seed, "exits");
    let fault_ns = lab.cut(Host::A, Rail::Zero)?;
    for number in 0..EXITS {
        // The moment itself, not a wait for anything: a migration takes 40 to 500 ms.
        thread::sleep(Duration::from_millis(dice.within(0..120)));
        lab.guest(leaver(number)).write(&file(number), "", 0o644)?;
    }
    let asked_ns = monotonic_ns();
    let judged = (0_u16..).zip(&pairs).try_for_each(|(number, pair)| left_well(pair, leaver(number)));
    lab.mend(Host::A, Rail::Zero)?;
    judged?;
    let took_ms = ms(monotonic_ns() - asked_ns);
    pairs.iter().try_for_each(Partners::wait_ended)?;
    let evidence = Evidence::collect(lab)?;
    let outcomes: Vec<Value> =
        Host::ALL.iter().flat_map(|host| evidence.of(*host)).map(|record| record["outcome"].clone()).collect();
    let figures = Figures::new().with("fault_to_first_exit_ms", ms(asked_ns - fault_ns)).with("exits_took_ms", took_ms);
    Ok(figures.with("outcomes", outcomes))
}

/// The one that leaves ends with its own status; the other hears of it by its side channel and ends by itself, however its verbs end.
fn left_well(pair: &Partners, leaver: Host) -> Result<()> {
    let left = pair.on(leaver).wait(EXIT_LIMIT)?;
    require(left.succeeded(), || format!("exit in mid-migration: {}", left.brief()))?;
    let stayed = pair.on(leaver.peer()).wait(ARMING_LIMIT)?;
    require(stayed.code.is_some(), || format!("its peer: {}", stayed.brief()))?;
    let panicked = [&left, &stayed].into_iter().any(|end| end.err.contains("panicked") || end.err.contains("mistake"));
    require(!panicked, || format!("{}\n{}", left.err, stayed.err))
}

fn many_qps(lab: &mut Lab, seed: u64) -> Result<Figures> {
    begin(lab)?;
    let flow =
        format!("--mode send,write_imm,read,fadd --qps {MANY} --messages 12 --size 0..3000 --depth 4 --poll sleepy");
    let client = format!("{flow} --pause-before-message 4 --idle-until-file {GO_ON} --seed {seed} --timeout 18");
    let pair = Partners::start(lab, &Plan { client, ..Plan::default() })?;
    let begun_ns = monotonic_ns();
    pair.wait_idle()?;
    let counted =
        |side: &Running| -> u64 { side.lines().iter().filter_map(|line| crate::trial::protected(&line.text)).sum() };
    until("all queue pairs are protected", ARMING_LIMIT, || {
        Ok(pair.sides().into_iter().all(|side| counted(side) >= MANY).then_some(()))
    })?;
    let armed_ns = monotonic_ns();
    let cut = side_of(seed);
    lab.cut(cut, Rail::Zero)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let judged = pair.sides().into_iter().try_for_each(require_success);
    let ended_ns = monotonic_ns();
    lab.mend(cut, Rail::Zero)?;
    judged?;
    let evidence = Evidence::collect(lab)?;
    let moved = evidence.of(Host::A).filter(|record| record["outcome"] != "surfaced").count() as u64;
    require(moved == MANY, || format!("{moved} migrations at the client"))?;
    let figures = Figures::new().with("cut", cut.name()).with("start_to_all_protected_ms", ms(armed_ns - begun_ns));
    Ok(figures.with("fault_to_end_ms", ms(ended_ns - armed_ns)))
}

fn rounds(lab: &mut Lab, seed: u64) -> Result<Figures> {
    begin(lab)?;
    let rounds = format!("--rounds {ROUNDS}");
    let client = format!("--mode mixed --qps 4 --messages 40 --size 0..3000 --settle-ms 20 --seed {seed} {rounds}");
    let pair = Partners::start(lab, &Plan { server: rounds, client, ..Plan::default() })?;
    let after = |round: u64| {
        pair.sides().map(|side| {
            side.wait_line(ARMING_LIMIT, move |line| line == format!("ROUND {round}")).and_then(|_| uses(lab, side))
        })
    };
    let [first, second, third] = MEASURED.map(after);
    pair.sides().into_iter().try_for_each(require_success)?;
    let mut figures = Figures::new().with("rounds", ROUNDS);
    for (((side, first), second), third) in pair.sides().into_iter().zip(first).zip(second).zip(third) {
        let (first, second, third) = (first?, second?, third?);
        let said = || format!("{}: {first:?}, {second:?}, {third:?}", side.host().name());
        let grown = [second.kib.saturating_sub(first.kib), third.kib.saturating_sub(second.kib)];
        figures.note(&format!("grown_kib_{}", side.host().name()), json!(grown));
        require(grown.iter().any(|kib| *kib <= SLACK_KIB), said)?;
        require(third.descriptors <= first.descriptors + OF_A_ROUND && third.threads <= first.threads + REAPER, said)?;
        let sealed = side
            .lines()
            .iter()
            .any(|line| line.text.contains("refused in all") || line.text.contains("does not agree"));
        require(!sealed, || "a peer was mistaken for another".to_owned())?;
    }
    Ok(figures)
}

/// What a process holds at a moment.
#[derive(Debug)]
struct Uses {
    kib: u64,
    threads: u64,
    descriptors: u64,
}

fn uses(lab: &Lab, side: &Running) -> Result<Uses> {
    let (guest, pid) = (lab.guest(side.host()), side.pid());
    let status = guest.shell(&format!("cat /proc/{pid}/status; echo Descriptors: $(ls /proc/{pid}/fd | wc -l)"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.ok_or_else(|| Trouble::judged(format!("no {name} in the status of {pid}")))
    };
    Ok(Uses { kib: field("VmRSS:")?, threads: field("Threads:")?, descriptors: field("Descriptors:")? })
}
