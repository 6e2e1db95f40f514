//! What the log shows of a machine: no two states, causes and reasons are told alike.

use std::collections::BTreeSet;

use shift_proto::migrate::{Attempt, Cause, Stage, StateName, Surfaced};

fn are_told_apart(told: &[String]) {
    assert!(!told.iter().any(String::is_empty), "{told:?}");
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "{told:?}");
}

#[test]
fn each_state_is_told_by_its_stage_and_by_its_attempt_if_there_is_one() {
    let state = |stage, attempt| StateName { stage, attempt }.to_string();
    assert_eq!(state(Stage::Running, Attempt::Idle), "Running");
    assert_eq!(state(Stage::Replaying, Attempt::Claiming), "Replaying+Claiming");
    let all = Stage::ALL.into_iter().flat_map(|stage| Attempt::ALL.map(|attempt| state(stage, attempt)));
    are_told_apart(&all.collect::<Vec<_>>());
}

#[test]
fn each_cause_of_a_claim_is_told_apart() {
    are_told_apart(&Cause::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
}

#[test]
fn each_reason_for_an_error_is_told_apart() {
    let reasons = [
        Surfaced::PatienceOver,
        Surfaced::ExchangeOver,
        Surfaced::NeitherFenced,
        Surfaced::RepostFailed,
        Surfaced::ReplayFailed,
        Surfaced::StopReached,
        Surfaced::PeerSurfaced,
        Surfaced::PeerGone,
        Surfaced::Unreachable,
        Surfaced::TooManyIncarnations,
        Surfaced::ApplicationError,
        Surfaced::LeftBehind,
    ];
    are_told_apart(&reasons.map(|reason| reason.to_string()));
}
