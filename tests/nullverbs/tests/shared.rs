//! Shared receives without a fault: what a program sees of them is the same with the shim and without, whoever its queue pairs are.

use shift_nullverbs::{inside, Ran, Run};

type Outcome = Result<(), String>;

/// Devices that are taken for soft-RoCE of a kernel that is known: others' shared receives are not recorded at all.
fn known(words: &[&str]) -> Result<Run, String> {
    let run = Run::of("shared").args(words.iter().copied()).env("NULLVERBS_VENDOR", "0xffffff");
    run.preloaded_with(&inside("librelease.so"), "")
}

fn right(run: Run) -> Result<Ran, String> {
    let ran = run.run()?;
    assert!(ran.output.status.success(), "{:?}: {}{}", ran.output.status, ran.stdout(), ran.stderr());
    assert!(
        ran.stdout().ends_with("right\n") && !ran.stderr().contains("panicked"),
        "{}{}",
        ran.stdout(),
        ran.stderr()
    );
    Ok(ran)
}

fn is_named(ran: &Ran, why: &str) -> bool {
    ran.stderr().lines().any(|line| line.contains("is not protected") && line.contains(why))
}

#[test]
fn without_the_shim_the_program_is_right() -> Outcome {
    for words in [&["ud"][..], &["rc"], &["events", "2"], &["refused"]] {
        right(Run::of("shared").args(words.iter().copied()))?;
    }
    Ok(())
}

#[test]
fn receives_of_queue_pairs_that_are_not_recorded_come_back_as_they_were_posted() -> Outcome {
    let ran = right(known(&["ud"])?)?;
    assert!(is_named(&ran, "its type is"), "{}", ran.stderr());
    // Its CQs need room for flushes, and get none.
    let ran = right(known(&["rc"])?.env("NULLVERBS_REFUSE", "resize_cq:null0").env("SHARED_SENDS", "1"))?;
    assert!(is_named(&ran, "its CQ cannot be grown"), "{}", ran.stderr());
    Ok(())
}

#[test]
fn receives_of_protected_queue_pairs_come_back_as_they_were_posted() -> Outcome {
    let ran = right(known(&["rc", "null1"])?)?;
    assert!(!ran.stderr().contains("is not protected"), "{}", ran.stderr());
    Ok(())
}

/// The devices on which that call succeeded, by name.
fn devices<'a>(ran: &'a Ran, call: &'a str) -> Vec<&'a str> {
    let calls = ran.calls(call).filter(|line| line.split(' ').nth(2) != Some("refused"));
    let mut devices: Vec<_> = calls.filter_map(|line| line.split(' ').nth(1)).collect();
    devices.sort_unstable();
    devices
}

#[test]
fn each_standby_that_can_has_an_srq_of_its_own_which_goes_with_the_programs() -> Outcome {
    let three = |words: &[&str]| Ok::<Run, String>(known(words)?.env("NULLVERBS_DEVICES", "3"));
    let ran = right(three(&["rc", "null2"])?)?;
    assert_eq!(devices(&ran, "create_srq"), ["null0", "null1", "null2"]);
    assert!(!ran.stderr().contains("is not protected"), "{}", ran.stderr());
    // One that grants none is no standby of them; another one is.
    let ran = right(three(&["rc", "null2"])?.env("NULLVERBS_REFUSE", "create_srq:null1"))?;
    assert!(!ran.stderr().contains("is not protected"), "{}", ran.stderr());
    assert!(ran.stderr().contains("null1 refused an SRQ"), "{}", ran.stderr());
    assert_eq!(devices(&ran, "create_srq"), ["null0", "null2"]);
    // Nor is one that cannot say how many receives it took.
    let ran = right(three(&["rc", "null2"])?.env("NULLVERBS_STRANGER", "null1"))?;
    assert!(!ran.stderr().contains("is not protected"), "{}", ran.stderr());
    assert_eq!(devices(&ran, "create_srq"), ["null0", "null2"]);
    Ok(())
}

#[test]
fn where_no_device_says_how_many_it_took_shared_receives_are_left_alone_and_that_is_named() -> Outcome {
    let ran = right(Run::of("shared").args(["rc"]).preloaded()?)?;
    assert!(is_named(&ran, "cannot say how many"), "{}", ran.stderr());
    assert_eq!(ran.calls("create_srq").count(), 1, "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn the_last_receive_is_told_to_be_back_once() -> Outcome {
    right(known(&["events", "1"])?)?;
    Ok(())
}

#[test]
fn an_srq_that_cannot_be_destroyed_is_used_on() -> Outcome {
    right(known(&["refused"])?)?;
    Ok(())
}
