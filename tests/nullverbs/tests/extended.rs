//! What is made by the extended interfaces gets its twins and its shadow, or is named; and it behaves as without the shim.

use shift_nullverbs::{Ran, Run};

type Outcome = Result<(), String>;

fn run(part: &str) -> Result<Ran, String> {
    let ran = Run::of("extended").args([part]).env("NULLVERBS_POSTS", "complete").preloaded()?.run()?;
    assert!(ran.output.status.success(), "{:?}: {}{}", ran.output.status, ran.stdout(), ran.stderr());
    assert!(ran.stdout().ends_with("done\n"), "{}", ran.stdout());
    Ok(ran)
}

/// The words of the lines of this verb on this device.
fn on<'a>(ran: &'a Ran, verb: &'a str, device: &'a str) -> Vec<&'a str> {
    let begin = format!("{verb} {device} ");
    ran.verbs.iter().filter_map(|line| line.strip_prefix(&begin)).collect()
}

/// What is said of a line before the key, which every registration has its own of.
fn but_key(line: &str) -> &str {
    line.split(" key=").next().unwrap_or_default()
}

#[test]
fn a_dmabuf_is_registered_on_the_standby_with_the_same_flags() -> Outcome {
    let ran = run("memory")?;
    let [ours, twins] = ["null0", "null1"].map(|device| on(&ran, "reg_dmabuf_mr", device));
    let ([ours], [twin]) = (&ours[..], &twins[..]) else { return Err(format!("not one of each: {:?}", ran.verbs)) };
    assert_eq!(but_key(ours), but_key(twin));
    assert!(ours.contains("offset=4096"), "{ours:?}");
    Ok(())
}

#[test]
fn the_twin_follows_a_registration_that_changes() -> Outcome {
    let ran = run("memory")?;
    let twins: Vec<&str> = [on(&ran, "reg_mr", "null1"), on(&ran, "reg_mr_iova2", "null1")].concat();
    let kept: Vec<&str> = twins.iter().map(|line| but_key(line)).collect();
    let [changed, moved] = ["length=8192 iova=addr access=0x3", "length=8192 iova=addr access=0x3"];
    assert_eq!(kept, ["length=4096 iova=addr access=0x1", changed, moved], "{:?}", ran.verbs);
    let keys = |lines: &[&str]| {
        lines.iter().filter_map(|line| Some(line.split_once("key=")?.1.to_owned())).collect::<Vec<_>>()
    };
    let mut gone = keys(&on(&ran, "dereg_mr", "null1"));
    gone.retain(|key| keys(&twins).contains(key));
    assert_eq!(gone, keys(&twins), "each was withdrawn, in turn");
    Ok(())
}

#[test]
fn a_registration_that_keeps_its_key_gets_another_twin_once_no_peer_means_the_old_one() -> Outcome {
    let run = Run::of("extended").args(["memory"]).env("NULLVERBS_KEEPS_KEYS", "1");
    let ran = run.preloaded()?.run()?;
    assert!(ran.output.status.success(), "{}{}", ran.stdout(), ran.stderr());
    let key = |line: &str| line.split_once("key=").map(|(_, key)| key.to_owned());
    let kept: Vec<_> = on(&ran, "rereg_mr", "null0").into_iter().map(key).collect();
    assert!(matches!(&kept[..], [first, second] if first == second), "{:?}", ran.verbs);
    let twins = [on(&ran, "reg_mr", "null1"), on(&ran, "reg_mr_iova2", "null1")].concat();
    assert_eq!(twins.len(), 3, "{:?}", ran.verbs);
    assert!(!ran.stderr().contains("not confirmed the change"), "there is no peer: {}", ran.stderr());
    Ok(())
}

#[test]
fn memory_that_the_standby_cannot_have_is_named() -> Outcome {
    let ran = run("memory")?;
    assert!(on(&ran, "reg_dm_mr", "null1").is_empty() && on(&ran, "alloc_null_mr", "null1").is_empty());
    assert!(ran.stderr().contains("memory of the device itself is not on the standby"), "{}", ran.stderr());
    Ok(())
}

#[test]
fn what_is_made_on_a_parent_domain_is_protected_through_the_pd_it_leads_to() -> Outcome {
    let ran = run("domain")?;
    assert_eq!((on(&ran, "alloc_pd", "null1").len(), on(&ran, "dealloc_pd", "null1").len()), (1, 1), "{:?}", ran.verbs);
    assert!(on(&ran, "alloc_parent_domain", "null1").is_empty(), "{:?}", ran.verbs);
    assert_eq!([on(&ran, "reg_mr", "null1"), on(&ran, "reg_mr_iova2", "null1")].concat().len(), 1, "{:?}", ran.verbs);
    assert!(!ran.stderr().contains("not protected"), "{}", ran.stderr());
    Ok(())
}

#[test]
fn extended_queues_have_twins_like_them_and_post_and_complete_as_without_the_shim() -> Outcome {
    let ran = run("queues")?;
    let alone = Run::of("extended").args(["queues"]).env("NULLVERBS_POSTS", "complete").run()?;
    assert!(alone.output.status.success(), "{}{}", alone.stdout(), alone.stderr());
    assert_eq!(ran.stdout(), alone.stdout());
    assert_eq!(ran.stdout().matches(" stamped").count(), 8, "{}", ran.stdout());
    // Standard fields and the stamp; what has no lock is locked on the standby, whose poller is the shim.
    assert!(on(&ran, "create_cq_ex", "null0").iter().any(|line| line.contains("flags=0x1")), "{:?}", ran.verbs);
    assert!(
        on(&ran, "create_cq_ex", "null1")
            .iter()
            .any(|line| line.contains("wc_flags=0xff ") && line.contains("flags=0x0")),
        "{:?}",
        ran.verbs
    );
    assert_eq!(on(&ran, "modify_cq", "null1"), ["count=4 period=7"], "{:?}", ran.verbs);
    assert_eq!(
        on(&ran, "create_qp", "null1").len() + on(&ran, "create_qp_ex", "null1").len(),
        1 + probes(&ran),
        "{:?}",
        ran.verbs
    );
    assert!(on(&ran, "set_ece", "null1").is_empty(), "options are not mirrored: {:?}", ran.verbs);
    assert_eq!(on(&ran, "bind_mw", "null0").len(), 1);
    let named = ran.stderr().lines().filter(|line| line.contains("not protected") && line.contains("window")).count();
    assert_eq!(named, 1, "{}", ran.stderr());
    Ok(())
}

#[test]
fn threads_that_post_and_poll_by_both_interfaces_lose_nothing_and_get_nothing_twice() -> Outcome {
    let ran = run("threads")?;
    assert!(ran.stdout().starts_with("24000 of 24000 completed once\n"), "{}", ran.stdout());
    Ok(())
}

#[test]
fn a_queue_pair_that_moved_looks_to_the_program_as_if_it_had_not() -> Outcome {
    let said = std::env::temp_dir().join(format!("nullverbs-said-{}", std::process::id()));
    let ran =
        Run::of("extended").args(["moved"]).env("NULLVERBS_POSTS", "complete").env("SAID", &said).preloaded()?.run();
    let words = std::fs::read_to_string(&said).unwrap_or_default();
    let _ = std::fs::remove_file(&said);
    let ran = ran?;
    let out = ran.stdout();
    assert!(ran.output.status.success() && out.ends_with("done\n"), "{out}{words}");
    let lines: Vec<&str> = out.lines().collect();
    let [before, first, second, third, after, _] = lines[..] else { return Err(format!("{out}{words}")) };
    assert_eq!(before, after);
    assert!(before.starts_with("state 3 to itself 1 mtu 3 gid 1 timeout 14 retries 7 "), "{before}");
    for (wr_id, line) in [(10, first), (11, second), (12, third)] {
        assert_eq!(line, format!("completion {wr_id} status 0 opcode 1 qp 1 stamped"), "{out}{words}");
    }
    assert!(words.contains("failover null0 -> null1"), "{words}");
    assert!(on(&ran, "modify_qp", "null1").iter().any(|line| line.contains("state=3")), "{:?}", ran.verbs);
    Ok(())
}

/// A run of a queue pair that loses its path, which sets timeout 14 and retry_cnt 7, under these caps.
fn capped(timeout: &str, retries: &str) -> Result<Ran, String> {
    let said = std::env::temp_dir().join(format!("nullverbs-capped-{}-{timeout}", std::process::id()));
    let run = Run::of("extended").args(["moved"]).env("NULLVERBS_POSTS", "complete").env("SAID", &said);
    let ran = run.env("SHIFT_QP_TIMEOUT", timeout).env("SHIFT_RETRY_CNT", retries).preloaded()?.run();
    let _ = std::fs::remove_file(&said);
    let ran = ran?;
    let out = ran.stdout();
    assert!(ran.output.status.success() && out.ends_with("done\n"), "{out}");
    let shown: Vec<&str> = out.lines().filter(|line| line.starts_with("state ")).collect();
    let as_set = |line: &&str| line.contains(" timeout 14 retries 7 ");
    assert!(shown.len() == 2 && shown.iter().all(as_set), "the program sees what it set: {out}");
    Ok(ran)
}

#[test]
fn a_capped_queue_pair_retries_less_on_either_path_and_the_program_sees_what_it_set() -> Outcome {
    let to_rts = |ran: &Ran, device: &str, words: &str| {
        on(ran, "modify_qp", device).iter().filter(|line| line.contains("state=3") && line.ends_with(words)).count()
    };
    let ran = capped("12", "2")?;
    for device in ["null0", "null1"] {
        assert!(to_rts(&ran, device, " timeout=12 retry_cnt=2") > 0, "{:?}", ran.verbs);
        assert_eq!(to_rts(&ran, device, " retry_cnt=7"), 0, "{:?}", ran.verbs);
    }
    // A longer one raises nothing.
    let ran = capped("20", "6")?;
    for device in ["null0", "null1"] {
        assert!(to_rts(&ran, device, " timeout=14 retry_cnt=6") > 0, "{:?}", ran.verbs);
        assert_eq!(to_rts(&ran, device, " timeout=20 retry_cnt=6"), 0, "{:?}", ran.verbs);
    }
    Ok(())
}

/// Queue pairs of one request are the shim's probes.
fn probes(ran: &Ran) -> usize {
    on(ran, "create_qp", "null1").iter().filter(|line| !line.contains("send_wr=32")).count()
}

#[test]
fn a_device_that_was_imported_is_seen_as_one_that_was_opened() -> Outcome {
    let ran = run("imported")?;
    assert_eq!((on(&ran, "alloc_pd", "null0").len(), on(&ran, "alloc_pd", "null1").len()), (1, 1), "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn what_nobody_knows_a_standby_of_is_passed_through_and_named() -> Outcome {
    let ran = run("strange")?;
    let said = ran.stderr();
    for why in
        ["its type is IBV_QPT_UD", "attributes 0x40000001", "its CQ was made with attributes that are not known here"]
    {
        assert_eq!(
            said.lines().filter(|line| line.contains("not protected") && line.contains(why)).count(),
            1,
            "{why}: {said}"
        );
    }
    assert!(on(&ran, "create_qp", "null1").is_empty(), "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn a_queue_that_others_share_has_room_for_them_and_for_all_flushes() -> Outcome {
    let ran = run("strange")?;
    // 64 that the program asked for, beside the 32 and 4 of the queue pair that is recorded.
    assert_eq!(on(&ran, "resize_cq", "null0"), ["cqe=100"], "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn a_registration_at_the_address_of_one_that_was_given_up_is_withdrawn_from_the_standby() -> Outcome {
    let ran = run("handed")?;
    let made = [on(&ran, "reg_mr", "null1"), on(&ran, "reg_mr_iova2", "null1")].concat();
    let gone = on(&ran, "dereg_mr", "null1");
    assert_eq!((made.len(), gone.len()), (1, 1), "{:?}", ran.verbs);
    assert!(gone.iter().all(|line| made.iter().any(|made| made.ends_with(line))), "{:?}", ran.verbs);
    assert_eq!(on(&ran, "unimport_mr", "null0").len(), 1, "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn what_cannot_be_destroyed_is_used_on() -> Outcome {
    let ran = run("refused")?;
    let named = ran.stderr().lines().filter(|line| line.contains("could not be")).count();
    assert_eq!(named, 1, "{}", ran.stderr());
    Ok(())
}

#[test]
fn without_the_locks_of_its_provider_a_process_is_passed_through_and_that_is_named() -> Outcome {
    let ran = Run::of("extended").args(["queues"]).env("NULLVERBS_POSTS", "complete").env("NULLVERBS_VENDOR", "0x2c9");
    let ran = ran.env("MLX5_SINGLE_THREADED", "1").preloaded()?.run()?;
    assert!(ran.output.status.success(), "{}{}", ran.stdout(), ran.stderr());
    let named = ran.stderr().lines().filter(|line| line.contains("MLX5_SINGLE_THREADED")).count();
    assert_eq!((named, on(&ran, "create_cq_ex", "null1").len()), (1, 0), "{}", ran.stderr());
    Ok(())
}
