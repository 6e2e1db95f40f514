//! The failover protocol: what the search has to find, and that what it finds is told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use shift_models::explorer::{Extent, Model};
use shift_models::failover::checks::{breaches, invalid_pushes, search, search_all, Breach};
use shift_models::failover::{Control, Setting, Want};
use shift_proto::ledger::Op;

#[test]
fn every_breach_is_found_by_a_run_of_that_length_and_breaks_that_point_of_the_rule() {
    find_all(&breaches());
}

#[test]
fn what_is_counted_before_it_is_fenced_or_never_fenced_is_an_invalid_push() {
    find_all(&invalid_pushes());
}

fn find_all(all: &[Breach]) {
    let mut wrong = Vec::new();
    let settings: Vec<_> = all.iter().map(|breach| breach.setting.clone()).collect();
    for (breach, report) in all.iter().zip(search_all(&settings)) {
        let violation = report.violation.as_ref();
        let told = violation.map(|violation| format!("{} ({})", violation.property, violation.why));
        eprintln!("{:?}: {:?} steps, {told:?}", breach.setting.control, report.length());
        if report.length() != Some(breach.steps) || !told.unwrap_or_default().contains(breach.point) {
            wrong.push(format!(
                "{:?}, not {} steps and \"{}\": {report}",
                breach.setting.control, breach.steps, breach.point
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_worlds_without_the_breach_hold() {
    let all: Vec<_> =
        breaches().into_iter().map(|breach| breach.setting).filter(|setting| setting.control.is_some()).collect();
    let settings: Vec<_> =
        all.iter().map(|setting| Setting { control: None, refines: true, ..setting.clone() }).collect();
    for (broken, report) in all.iter().zip(search_all(&settings)) {
        let holds = report.violation.is_none() && report.extent == Extent::Complete;
        assert!(holds, "{:?} is found without it: {report}", broken.control);
    }
}

#[test]
fn a_counterexample_is_a_conversation_of_two_ends() {
    let setting = Setting::one_fault(&[Want::of(Op::Send)]).with(Control::NoFence);
    let violation = search(&setting).violation.unwrap();
    let world =
        violation.actions.iter().fold(setting.initial().remove(0), |world, step| setting.next(&world, step).unwrap());
    assert!(world.wrong.is_some(), "the actions are a run of the model");
    let lines: Vec<&str> = violation.drawing.lines().collect();
    for words in [
        "end A",
        "CLAIM (epoch 1, path 1, A) --",
        "<-",
        "COMMIT",
        "now Fencing",
        "its NIC executes a packet of Send #0",
    ] {
        assert!(lines.iter().any(|line| line.contains(words)), "{words} is missing:\n{}", violation.drawing);
    }
}
