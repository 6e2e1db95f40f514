//! Queue pairs that come and go, with numbers that are used again: nothing of one reaches the next, and nothing grows.

use shift_nullverbs::Run;

/// What an allocator keeps for itself, and what waits for the agent, which comes after a program that makes queue pairs as fast as it can; less than the
/// shadows of the queue pairs would take.
const SLACK_KIB: u64 = 6 << 10;

#[test]
fn a_number_that_is_used_again_gets_nothing_of_the_one_before_and_nothing_grows() -> Result<(), String> {
    let run = Run::of("reuse").args(["3000"]).env("NULLVERBS_POSTS", "complete").env("NULLVERBS_QPNS", "reuse");
    let ran = run.preloaded()?.run()?;
    let (said, told) = (ran.stdout(), ran.stderr());
    assert!(ran.output.status.success(), "{said}{told}");
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [rounds, again, grown] = numbers[..] else { return Err(said) };
    assert!(rounds == 3000 && again > rounds / 2, "hardly a number was used again: {said}");
    assert!(grown <= SLACK_KIB, "{said}");
    assert!(!told.contains("mistake") && !told.contains("panicked"), "{told}");
    assert!(!told.contains("unprotected"), "what is destroyed at once is not worth a word: {told}");
    Ok(())
}
