//! A standby that is less than the primary: another MTU is bridged; less of anything else leaves the queue pair unarmed, and that is said.

use serde_json::{json, Value};

use crate::agreement::Path;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{protected, Fault, Moment};
use crate::trouble::{require, Result, Trouble};

use super::checker::{report, Checker};
use super::second_fault::Twice;
use super::survive::survives;
use super::Scenario;

/// The MTU of rail 1's interface on each host, and of a path between them: the lower of both, less the headers.
const MTUS: [(&str, [u32; 2], u32); 2] = [("one host 1500", [4200, 1500], 1024), ("600 and 1500", [600, 1500], 512)];
/// Rail 0's.
const WIDE: u32 = 4200;
/// Many packets per message on either path.
const SPANS: &str = "--size 0..9000 --mtu 4096";
const BOTH_WAYS: &str = "--mode mixed --messages 1200 --depth 16 --direction both";

/// What rail 1 has less of, what the program uses, and what the line then names.
const LACKS: [(&str, &str, &str); 6] = [
    ("inline=rxe1:16", "--inline 64 --size 0..64", "rxe1 refused a queue pair like it"),
    ("sge=rxe1:1", "--sges 3", "rxe1 refused a queue pair like it"),
    ("rd-atom=rxe1:2", "--mode read", "rxe1 allows 2 READs and atomics at once where the QP has"),
    ("no-rc=rxe1", "", "rxe1 refused a queue pair like it"),
    ("no-mr=rxe1", "", "rxe1 refused a registration"),
    ("no-vendor=rxe1", "--mode fadd --size 8", "atomic"),
];
/// An error after about a second.
const SHORT: &str = "--messages 100000 --depth 16 --timeout 16 --retry-cnt 3 --deadline 10";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests("shim-standby-mtu", "a standby with a smaller MTU, on one host or on both: all is right", mtu),
        Scenario::guests(
            "open-lesser-standby",
            "fail open: a standby with less inline room, SGEs, READs, no RC, no registration",
            lesser,
        ),
    ]
}

fn mtu(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let told = mtus(lab, seed);
    for host in Host::ALL {
        set_mtu(lab, host, WIDE)?;
    }
    told
}

fn set_mtu(lab: &Lab, host: Host, mtu: u32) -> Result<()> {
    lab.guest(host).shell(&format!("/sbin/ip link set {} mtu {mtu}", Rail::One.link().interface())).map(drop)
}

/// A cut in mid-stream of both directions; then twice in doubt, so that what was cut off on the smaller MTU is proven, and goes on, there.
fn mtus(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for ((name, mtus, carried), side) in MTUS.into_iter().zip(Host::ALL) {
        for (host, mtu) in Host::ALL.into_iter().zip(mtus) {
            set_mtu(lab, host, mtu)?;
        }
        lab.reset()?;
        let fault = (Fault::Cut(side, Rail::Zero), Moment::armed(1, seed, 50, 800));
        let told = survives(lab, &Checker::shimmed(format!("{BOTH_WAYS} {SPANS} --seed {seed}")), Some(fault))?;
        figures.note(&format!("{name}, cut on {}", side.name()), json!(told));
        lab.reset()?;
        let path = |mtu| Path { mtu, is_exact: true };
        let options = format!("--messages 120 {SPANS}");
        let run = Twice {
            modes: "write,mixed,send,read,write,write_imm",
            qps: 12,
            options: &options,
            fault: None,
            paths: [path(4096), path(carried)],
        };
        let (told, agreement) = run.run(lab, seed).map_err(|why| Trouble::judged(format!("{name}: {why}")))?;
        require(agreement.partial > 0, || format!("{name}: nothing was cut off in mid-message: {agreement:?}"))?;
        figures.note(&format!("{name}, twice"), json!(told));
    }
    Ok(figures)
}

/// The program ends as it does without the shim, and each side says once why it could not do better.
fn lesser(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let without = errors(lab, &Checker::plain(format!("{SHORT} --seed {seed}")), None)?.0;
    figures.note("without the shim", json!(without));
    for (fault, options, named) in LACKS {
        let (with, said) = errors(lab, &Checker::shimmed(format!("{SHORT} {options} --seed {seed}")), Some(fault))?;
        require(with == without, || format!("{fault}: {without:?} became {with:?}"))?;
        let lines = said.iter().filter(|line| line.contains("unprotected") || line.contains("not protected"));
        let lines: Vec<&String> = lines.collect();
        require(lines.iter().any(|line| line.contains(named)), || {
            format!("{fault}: no line says {named:?}: {said:?}")
        })?;
        require(said.iter().all(|line| protected(line).is_none()), || format!("{fault}: protected: {said:?}"))?;
        figures.note(fault, json!(lines));
    }
    Ok(figures)
}

/// Errors, each once, and an exit status.
type Ending = (Vec<u64>, Option<i32>);

/// Which errors the sender gets when rail 0 falls silent, each once, and its exit status; and what both sides said.
fn errors(lab: &mut Lab, checker: &Checker, fault: Option<&str>) -> Result<(Ending, Vec<String>)> {
    lab.reset()?;
    let mut trial = checker.trial().fault(Fault::Silence(Rail::Zero, None), Moment::Packets(3000));
    if let Some(fault) = fault {
        trial.client = trial.client.with_shim_over(fault);
        trial.server = trial.server.with_shim_over(fault);
    }
    let story = trial.run(lab)?;
    super::survive::require_fault(&story)?;
    let report = report(&story, Host::A)?;
    let seen = report.get("errors").and_then(Value::as_array).into_iter().flatten();
    let mut codes: Vec<u64> = seen.filter_map(|error| error.get("code").and_then(Value::as_u64)).collect();
    codes.dedup();
    Ok(((codes, story.client.as_ref().and_then(|ended| ended.code)), story.said))
}
