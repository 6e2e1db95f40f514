//! What an operator may get wrong: each bad value is told with what to change, and the program runs as if nothing had been asked for.

use std::time::Duration;

use serde_json::json;
use shift_control::config::{Config, DEFAULT_PORT};
use shift_control::variables::VARIABLES;

use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::survive::require_fault;
use super::Scenario;

/// Bad for every variable that can be bad, all of them at once.
const FOR_ALL: [&str; 5] = ["!bad!", "-1", "99999999999999999999", "=,=", "a=b=c"];
/// Bad for one.
const FOR_ONE: [(&str, &str); 13] = [
    ("SHIFT_POLICY", "send=replay"),
    ("SHIFT_POLICY", "write_imm=error"),
    ("SHIFT_POLICY", "atomic=replay"),
    ("SHIFT_POLICY", "write<=big=error"),
    ("SHIFT_STANDBY", "rxe0=rxe0"),
    ("SHIFT_STANDBY", "rxe0=rxe1,rxe0=rxe2"),
    ("SHIFT_PORT", "40000"),
    ("SHIFT_PORT_RANGE", "20999-20000"),
    ("SHIFT_PORT_RANGE", "17471-17471"),
    ("SHIFT_PATIENCE_MS", "3600001"),
    ("SHIFT_CLAIM_MS", "150"),
    ("SHIFT_HOLD_MS", "20000"),
    ("SHIFT_LOG", "shift_control=loud"),
];
/// A record cannot be written there: its directory is missing; it is a directory.
const NOWHERE: [(Host, &str); 2] = [(Host::A, "/no/such/directory/events"), (Host::B, "/tmp")];
/// A foreign program on the well-known port: it takes every connection and says back whatever it is told.
const FOREIGN: &str = "/bin/busybox nc -ll -p 17471 -e /bin/busybox cat";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "open-many-bad-values",
            "fail open: many bad values, each told with what to write instead",
            bad_values,
        ),
        Scenario::guests(
            "open-event-file",
            "an event file that cannot be written is told, and the run survives",
            event_file,
        ),
        Scenario::guests(
            "open-port-taken",
            "the well-known port is a foreign program's: told, and unprotected",
            port_taken,
        ),
    ]
}

/// What the parser says of these values is what the program's standard error must say, no more and no less.
fn bad_values(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for value in FOR_ALL {
        let all: Vec<_> =
            VARIABLES.iter().map(|each| (each.name, value)).filter(|(name, value)| is_bad(name, value)).collect();
        require(all.len() + 1 >= VARIABLES.len(), || format!("{value} is bad for {} variables only", all.len()))?;
        figures.note(value, tell(lab, &all)?);
    }
    for (name, value) in FOR_ONE {
        require(is_bad(name, value), || format!("{name}={value} is not bad"))?;
        figures.note(&format!("{name}={value}"), tell(lab, &[(name, value)])?);
    }
    Ok(figures)
}

fn parse(values: &[(&str, &str)]) -> std::result::Result<Config, Vec<String>> {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_env(values).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn is_bad(name: &str, value: &str) -> bool {
    parse(&[(name, value)]).is_err()
}

fn tell(lab: &Lab, values: &[(&str, &str)]) -> Result<usize> {
    let program = Program::words("/usr/bin/ibv_devinfo -d rxe0").with_shim();
    let program = values.iter().fold(program, |program, (name, value)| program.env(*name, *value));
    let ended = lab.a().run(&program, Duration::from_secs(20))?;
    require(ended.succeeded(), || format!("{values:?}: {}", ended.brief()))?;
    let wanted = parse(values).err().unwrap_or_default();
    let said: Vec<&str> = ended.err.lines().filter(|line| line.contains("shift-verbs[")).collect();
    for each in &wanted {
        require(said.iter().any(|line| line.contains(each)), || format!("nobody says {each:?}: {said:?}"))?;
    }
    require(said.len() == wanted.len(), || format!("{} lines for {} bad values: {said:?}", said.len(), wanted.len()))?;
    Ok(said.len())
}

/// Each side says once which file it cannot write and what to do, and everything else is as ever.
fn event_file(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let checker = Checker::shimmed(format!("--mode mixed --seed {seed} --messages 3000 --depth 16"));
    let mut trial = checker.trial().fault(Fault::Cut(Host::A, Rail::Zero), Moment::armed(1, seed, 100, 1000));
    for (host, path) in NOWHERE {
        let program = if host == Host::A { &mut trial.client } else { &mut trial.server };
        *program = program.clone().env("SHIFT_EVENT_FILE", path);
    }
    Evidence::clear(lab)?;
    let story = trial.run(lab)?;
    require_fault(&story)?;
    story.require_success()?;
    let mut figures = story.figures();
    for (host, path) in NOWHERE {
        let named: Vec<_> =
            story.said.iter().filter(|line| line.contains(&format!("SHIFT_EVENT_FILE={path}: "))).collect();
        require(named.len() == 1 && named.iter().all(|line| line.contains("name a regular file")), || {
            format!("{}: {:?} say what to change about {path}", host.name(), named)
        })?;
        figures.note(path, json!(named));
    }
    Ok(figures)
}

/// Nobody can be asked for queue pairs. Each host says why; the program runs, without protection.
fn port_taken(lab: &mut Lab, seed: u64) -> Result<Figures> {
    for host in Host::ALL {
        let foreign = lab.guest(host).spawn(&Program::words(FOREIGN))?;
        lab.wait_listening(&foreign, DEFAULT_PORT)?;
    }
    // The rate keeps it running for longer than it takes until the port is given up.
    let options = format!("--mode mixed --seed {seed} --messages 400 --rate 400000");
    let story = Checker::shimmed(options).trial().run(lab)?;
    let report = report(&story, Host::A)?;
    require(report.get("pass") == Some(&json!(true)), || format!("{report}"))?;
    story.require_success()?;
    let port = format!("SHIFT_PORT={DEFAULT_PORT}: ");
    let named: Vec<_> = story.said.iter().filter(|line| line.contains(&port)).collect();
    require(named.len() == 2 && named.iter().all(|line| line.contains("name a port that is free")), || {
        format!("{} lines name the port: {:?}", named.len(), story.said)
    })?;
    require(story.said.iter().all(|line| !line.contains(" protected: ")), || format!("protected: {:?}", story.said))?;
    Ok(story.figures().with("said", json!(story.said)))
}
