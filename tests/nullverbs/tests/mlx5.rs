//! Calls of libmlx5, on a libmlx5 whose devices do nothing: nothing here is proven on hardware.

use shift_nullverbs::{Ran, Run};

type Outcome = Result<(), String>;

fn mlx5(how: &str) -> Result<Ran, String> {
    let ran =
        Run::of("mlx5").args([how]).env("SHIFT_LOG", "info").env("NULLVERBS_VENDOR", "0x2c9").preloaded()?.run()?;
    assert!(
        ran.output.status.success() && ran.stdout().contains("closed 0"),
        "{how}: {}{}",
        ran.stdout(),
        ran.stderr()
    );
    Ok(ran)
}

/// The lines of standard error that say of a QP that it is not protected.
fn unprotected(ran: &Ran) -> Vec<String> {
    ran.stderr().lines().filter(|line| line.contains("is not protected")).map(str::to_owned).collect()
}

#[test]
fn look_ups_in_libmlx5_find_the_shims_functions_in_the_versions_that_there_are() -> Outcome {
    let ran = Run::of("bind").args(["mlx5"]).preloaded()?.run()?;
    let lines = ran.stdout();
    for ours in ["mlx5dv_reg_dmabuf_mr MLX5_1.25", "mlx5dv_create_qp MLX5_1.3", "mlx5dv_open_device MLX5_1.7"] {
        assert!(lines.contains(&format!("{ours} libshift_verbs.so\n")), "{ours}: {lines}");
    }
    for theirs in
        ["mlx5dv_is_supported MLX5_1.8", "mlx5dv_get_data_direct_sysfs_path MLX5_1.25", "mlx5dv_query_device MLX5_1.0"]
    {
        assert!(lines.contains(&format!("{theirs} libmlx5.so\n")), "{theirs}: {lines}");
    }
    assert!(lines.contains("mlx5dv_create_qp MLX5_1.25 missing"), "{lines}");
    Ok(())
}

#[test]
fn a_dmabuf_that_libmlx5_registers_is_registered_on_the_standby_with_the_same_flags() -> Outcome {
    for how in ["looked-up", "linked"] {
        let ran = mlx5(how)?;
        let words = |device: &str| {
            let line = ran.calls("mlx5dv_reg_dmabuf_mr").find(|line| line.contains(device)).unwrap_or_default();
            line.split(' ').skip(2).take_while(|word| !word.starts_with("key=")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words("null0"), "length=8192 iova=other offset=4096 fd=7 access=0x3 mlx5_access=0x1", "{how}");
        assert_eq!(words("null1"), words("null0"), "{how}: {:?}", ran.verbs);
        assert_eq!(ran.calls("dereg_mr").count(), 2, "{how}: {:?}", ran.verbs);
    }
    Ok(())
}

#[test]
fn a_queue_pair_of_libmlx5_is_named_once() -> Outcome {
    for how in ["looked-up", "linked"] {
        let ran = mlx5(how)?;
        let lines = unprotected(&ran);
        assert!(matches!(&lines[..], [line] if line.contains("mlx5dv_create_qp")), "{how}: {}", ran.stderr());
    }
    Ok(())
}

#[test]
fn a_queue_pair_that_nobody_saw_being_made_is_named_at_its_first_use() -> Outcome {
    for how in ["unseen-modify", "unseen-post"] {
        let ran = mlx5(how)?;
        let lines = unprotected(&ran);
        assert!(
            matches!(&lines[..], [line] if line.contains("nothing was seen of its making")),
            "{how}: {}",
            ran.stderr()
        );
    }
    Ok(())
}

#[test]
fn who_drives_queues_by_himself_is_named_and_his_completion_queue_keeps_its_size() -> Outcome {
    for (how, words) in [("own-qp", "posts into its queues by itself"), ("own-cq", "polled by the program itself")] {
        let ran = mlx5(how)?;
        let lines = unprotected(&ran);
        assert!(matches!(&lines[..], [line] if line.contains(words)), "{how}: {}", ran.stderr());
        assert_eq!(ran.calls("resize_cq").filter(|line| line.contains("null0")).count(), 0, "{how}: {:?}", ran.verbs);
    }
    Ok(())
}

#[test]
fn a_completion_queue_that_libmlx5_makes_gets_the_kernels_own_channel() -> Outcome {
    let ran = mlx5("channel")?;
    assert!(unprotected(&ran).is_empty(), "a channel alone keeps nobody unprotected: {}", ran.stderr());
    let ran = mlx5("created-cq")?;
    let lines = unprotected(&ran);
    assert!(matches!(&lines[..], [line] if line.contains("mlx5dv_create_cq")), "{}", ran.stderr());
    let out = ran.stdout();
    assert!(out.contains("asked 0 completed 0 taken 0 of its queue 1\npolled 1"), "{out}{}", ran.stderr());
    Ok(())
}
