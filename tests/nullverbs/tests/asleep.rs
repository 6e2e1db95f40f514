//! A program that sleeps until a completion comes, with nobody at the other end: no sweep of the agent's helps it out.

use shift_nullverbs::{Ran, Run};

fn slept(how: &str, with_shim: bool) -> Result<Ran, String> {
    let run = Run::of("asleep").args([how, "2000"]).env("NULLVERBS_POSTS", "complete");
    let ran = if with_shim { run.preloaded()? } else { run }.run()?;
    assert!(ran.output.status.success(), "{how}: {:?} {}{}", ran.output.status, ran.stdout(), ran.stderr());
    Ok(ran)
}

#[test]
fn a_program_that_sleeps_finds_its_completion_behind_those_that_it_does_not_get() -> Result<(), String> {
    for how in ["poll", "extended"] {
        let without = slept(how, false)?.stdout();
        let with = slept(how, true)?;
        let told = with.stderr();
        assert_eq!(with.stdout(), without, "as many events as without the shim: {told}");
        assert!(!told.contains("mistake") && !told.contains("panicked"), "{told}");
    }
    Ok(())
}

#[test]
fn without_a_descriptor_for_events_of_our_own_a_channel_is_passed_through_and_named() -> Result<(), String> {
    let ran = Run::of("asleep").args(["crowded"]).preloaded()?.run()?;
    assert!(ran.output.status.success(), "{:?} {}{}", ran.output.status, ran.stdout(), ran.stderr());
    let lines = ran.stderr().lines().filter(|line| line.contains("no descriptor for a completion channel")).count();
    assert_eq!(lines, 1, "{}", ran.stderr());
    Ok(())
}
