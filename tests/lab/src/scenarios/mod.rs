//! The list of scenarios. Each module owns one concern and gives its scenarios; names are unique and say what is shown.

use crate::figures::Figures;
use crate::lab::Lab;
use crate::pair::Setup;
use crate::trouble::Result;

mod bad_input;
mod binding;
mod checker;
mod conform;
mod conform_epochs;
mod conform_third;
mod connections;
mod control_cuts;
mod control_network;
mod corners;
mod detect;
mod directory;
mod drain;
mod endurance;
mod events;
mod extended;
mod fail_open;
mod failback;
mod gids;
mod gray;
mod lab_itself;
mod lesser;
mod loss;
mod nccl;
mod neighbours;
mod non_rdma;
mod operator;
mod partners;
mod plain;
mod processes;
mod programs;
mod race;
mod removal;
mod rough;
mod second_fault;
mod shared_plans;
mod shared_port;
mod shared_receives;
mod shiftctl;
mod standbys;
mod status;
mod strangers;
mod survive;
mod terms;
mod transparent;

/// A scenario that needs guests.
pub type WithGuests = Box<dyn Fn(&mut Lab, u64) -> Result<Figures>>;
/// A scenario that runs on this machine alone.
pub type WithoutGuests = Box<dyn Fn(&Setup, u64) -> Result<Figures>>;

/// What a scenario does, and what it needs for it.
pub enum Body {
    /// No boot: takes seconds.
    NoBoot(WithoutGuests),
    /// Two guests with so many processors each. Two show races that one hides; one is faster on a small machine.
    Guests {
        /// Processors of each guest.
        cpus: u8,
        /// What is done with them.
        run: WithGuests,
    },
}

/// One scenario.
pub struct Scenario {
    /// Unique name; words joined by `-`.
    pub name: String,
    /// What it shows, in a line.
    pub about: String,
    /// What it does.
    pub body: Body,
    /// It makes its fault often enough by itself: one seed serves, whatever the number of times that was asked for.
    pub once: bool,
}

impl Scenario {
    /// With a pair of one-processor guests.
    pub fn guests(
        name: impl Into<String>,
        about: impl Into<String>,
        run: impl Fn(&mut Lab, u64) -> Result<Figures> + 'static,
    ) -> Scenario {
        Scenario {
            name: name.into(),
            about: about.into(),
            body: Body::Guests { cpus: 1, run: Box::new(run) },
            once: false,
        }
    }

    /// On this machine alone.
    pub fn no_boot(
        name: impl Into<String>,
        about: impl Into<String>,
        run: impl Fn(&Setup, u64) -> Result<Figures> + 'static,
    ) -> Scenario {
        Scenario { name: name.into(), about: about.into(), body: Body::NoBoot(Box::new(run)), once: false }
    }

    /// The same, with one seed only.
    pub fn once(self) -> Scenario {
        Scenario { once: true, ..self }
    }
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.name)
    }
}

/// All scenarios, in the order in which `all` runs them.
pub fn all() -> Vec<Scenario> {
    [
        non_rdma::scenarios(),
        terms::scenarios(),
        transparent::scenarios(),
        lab_itself::scenarios(),
        plain::scenarios(),
        checker::scenarios(),
        survive::scenarios(),
        binding::scenarios(),
        neighbours::scenarios(),
        corners::scenarios(),
        events::scenarios(),
        connections::scenarios(),
        extended::scenarios(),
        loss::scenarios(),
        detect::scenarios(),
        shared_port::scenarios(),
        directory::scenarios(),
        operator::scenarios(),
        shared_plans::scenarios(),
        shared_receives::scenarios(),
        race::scenarios(),
        conform::scenarios(),
        conform_third::scenarios(),
        conform_epochs::scenarios(),
        removal::scenarios(),
        rough::scenarios(),
        control_cuts::scenarios(),
        control_network::scenarios(),
        second_fault::scenarios(),
        failback::scenarios(),
        gids::scenarios(),
        gray::scenarios(),
        standbys::scenarios(),
        drain::scenarios(),
        endurance::scenarios(),
        lesser::scenarios(),
        fail_open::scenarios(),
        bad_input::scenarios(),
        strangers::scenarios(),
        programs::scenarios(),
        nccl::scenarios(),
        status::scenarios(),
        processes::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The scenarios that `patterns` name: names, `*` for any letters, or `all`. A pattern that names none is an error.
///
/// # Errors
/// The pattern that names nothing.
pub fn select<'a>(scenarios: &'a [Scenario], patterns: &[String]) -> std::result::Result<Vec<&'a Scenario>, String> {
    let named = |pattern: &str, name: &str| pattern == "all" || glob(pattern.as_bytes(), name.as_bytes());
    if let Some(none) = patterns.iter().find(|pattern| !scenarios.iter().any(|each| named(pattern, &each.name))) {
        return Err(format!("no scenario is called {none}; see scripts/lab list"));
    }
    Ok(scenarios.iter().filter(|each| patterns.iter().any(|pattern| named(pattern, &each.name))).collect())
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|at| glob(rest, name.get(at..).unwrap_or(&[]))),
        Some((letter, rest)) => name.split_first().is_some_and(|(first, tail)| first == letter && glob(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_by_name_and_an_unknown_one_is_told() {
        assert!(glob(b"perf*-cut-*", b"perftest-plain-cut-write"));
        assert!(!glob(b"perf*-cut", b"perftest-plain-cut-write"));
        let all = all();
        assert_eq!(select(&all, &["all".into()]).unwrap().len(), all.len());
        assert!(select(&all, &["wire-*".into(), "nonsense".into()]).unwrap_err().contains("nonsense"));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<String> = all().into_iter().map(|each| each.name).collect();
        assert_eq!(names.len(), all().len());
    }
}
