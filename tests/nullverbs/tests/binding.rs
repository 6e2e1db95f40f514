//! Programs that look verbs up get the shim's functions where the real library has them, and everything else as without the shim.

use shift_nullverbs::{directory, inside, Ran, Run};

type Outcome = Result<(), String>;

const SHIM: &str = "libshift_verbs.so";
/// As NCCL opens it.
const VERBS: &str = "libibverbs.so";

fn bind(how: &[&str], environment: &[(&str, &str)]) -> Result<Ran, String> {
    let run = Run::of("bind").args(how.iter().copied()).preloaded()?;
    environment.iter().fold(run, |run, (name, value)| run.env(name, value)).run()
}

/// The object in which `name` was found.
fn found(ran: &Ran, name: &str, version: &str) -> String {
    let begin = format!("{name} {version} ");
    let line = ran.stdout().lines().find_map(|line| line.strip_prefix(&begin).map(str::to_owned));
    line.unwrap_or_else(|| format!("not looked up; {} {}", ran.stdout(), ran.stderr()))
}

fn succeeded(ran: &Ran) {
    assert!(ran.output.status.success(), "{:?}: {}{}", ran.output.status, ran.stdout(), ran.stderr());
    assert!(!ran.stdout().contains("no error was left"), "{}", ran.stdout());
}

/// The shim opened the standby's device too, and made what the program made there as well.
fn is_protected(ran: &Ran) {
    succeeded(ran);
    assert!(ran.stdout().contains(&format!("post_send is in {SHIM}")), "{}{}", ran.stdout(), ran.stderr());
    assert!(ran.stdout().contains("closed 0"), "{}", ran.stdout());
    for verb in ["open_device", "alloc_pd", "reg_mr_iova2"] {
        assert!(ran.calls(verb).any(|line| line.contains("null1")), "no {verb} of the standby: {:?}", ran.verbs);
    }
}

#[test]
fn a_program_that_binds_as_nccl_does_gets_the_shims_functions_and_nothing_that_there_is_not() -> Outcome {
    let ran = bind(&["nccl"], &[])?;
    succeeded(&ran);
    let ours = [
        "ibv_open_device",
        "ibv_close_device",
        "ibv_query_qp",
        "ibv_alloc_pd",
        "ibv_reg_mr",
        "ibv_create_cq",
        "ibv_modify_qp",
    ];
    for name in ours {
        assert_eq!(found(&ran, name, "IBVERBS_1.1"), SHIM, "{name}");
    }
    assert_eq!(found(&ran, "ibv_reg_mr_iova2", "IBVERBS_1.8"), SHIM);
    assert_eq!(found(&ran, "ibv_reg_dmabuf_mr", "IBVERBS_1.12"), SHIM);
    for name in ["ibv_get_device_list", "ibv_fork_init", "ibv_query_gid"] {
        assert_eq!(found(&ran, name, "IBVERBS_1.1"), VERBS, "{name}");
    }
    assert_eq!(found(&ran, "ibv_query_port_speed", "IBVERBS_1.16"), "missing");
    assert_eq!(found(&ran, "ibv_open_device", "IBVERBS_1.12"), "missing");
    assert_eq!(found(&ran, "ibv_post_send", "IBVERBS_1.1"), "missing");
    assert_eq!(found(&ran, "ibv_post_send", "-"), "missing");
    Ok(())
}

#[test]
fn what_is_looked_up_is_protected_however_the_library_was_opened() -> Outcome {
    let local = inside("libibverbs.so.1");
    for how in [&["nccl"][..], &["dlsym", "libibverbs.so.1"], &["dlsym", &local], &["again", "libibverbs.so.1"]] {
        is_protected(&bind(how, &[("USE", "1")])?);
    }
    Ok(())
}

#[test]
fn the_real_library_under_another_name_is_known_by_its_versions() -> Outcome {
    let ran = bind(&["nccl", "libotherverbs.so.1"], &[("USE", "1")])?;
    assert_eq!(found(&ran, "ibv_open_device", "IBVERBS_1.1"), SHIM);
    is_protected(&ran);
    Ok(())
}

#[test]
fn a_look_up_in_the_default_scope_finds_the_shim_in_every_version() -> Outcome {
    let ran = bind(&["global", "libibverbs.so.1"], &[])?;
    succeeded(&ran);
    let lines = ran.stdout();
    assert_eq!(
        lines.lines().filter(|line| line.starts_with("ibv_open_device") && line.ends_with(SHIM)).count(),
        3,
        "{lines}"
    );
    assert_eq!(found(&ran, "ibv_fork_init", "IBVERBS_1.1"), "libibverbs.so.1");
    Ok(())
}

#[test]
fn functions_of_the_oldest_abi_stay_themselves() -> Outcome {
    let ran = bind(&["old"], &[])?;
    succeeded(&ran);
    for name in ["ibv_open_device", "ibv_get_device_name"] {
        assert_eq!(found(&ran, name, "IBVERBS_1.0"), VERBS, "{name}");
    }
    Ok(())
}

#[test]
fn looking_up_starts_nothing_and_says_nothing() -> Outcome {
    // Descriptors that this process happens to have are none of the program's.
    const ALONE: &str =
        "for fd in /proc/$$/fd/*; do fd=${fd##*/}; ((fd < 3)) || eval \"exec $fd>&-\"; done; exec \"$BIND\" nccl";
    let alone = || Run::words(["bash", "-c", ALONE]).env("BIND", inside("bind"));
    let without = alone().run()?;
    let with = alone().env("SHIFT_LOG", "debug").preloaded()?.run()?;
    let footprint = |ran: &Ran| ran.stdout().lines().last().map(str::to_owned);
    assert_eq!(footprint(&with), footprint(&without));
    assert_eq!(footprint(&with).as_deref(), Some("threads 1 descriptors 3"));
    assert_eq!(with.stderr(), "");
    assert!(with.verbs.is_empty(), "{:?}", with.verbs);
    Ok(())
}

#[test]
fn the_callers_place_decides_what_is_next_default_and_on_the_runpath() -> Outcome {
    let deeper = directory().join("deeper");
    std::fs::create_dir_all(&deeper).map_err(|error| error.to_string())?;
    std::fs::copy(directory().join("libfar.so"), deeper.join("libdeeper.so")).map_err(|error| error.to_string())?;
    let without = Run::of("places").run()?;
    let with = Run::of("places").preloaded()?.run()?;
    assert_eq!(with.stdout(), without.stdout());
    for line in [
        "behind the program: near",
        "behind the library: far",
        "by default: near",
        "of a version: far",
        "by runpath: far",
        "error: said",
    ] {
        assert!(with.stdout().contains(line), "{line}: {}{}", with.stdout(), with.stderr());
    }
    Ok(())
}

#[test]
fn a_library_that_python_loaded_is_protected() -> Outcome {
    const SCRIPT: &str = "
import ctypes
verbs = ctypes.CDLL('libibverbs.so.1')
for name in ('ibv_get_device_list', 'ibv_open_device', 'ibv_alloc_pd'):
    getattr(verbs, name).restype = ctypes.c_void_p
devices = ctypes.cast(verbs.ibv_get_device_list(None), ctypes.POINTER(ctypes.c_void_p))
context = verbs.ibv_open_device(ctypes.c_void_p(devices[0]))
domain = verbs.ibv_alloc_pd(ctypes.c_void_p(context))
print(verbs.ibv_dealloc_pd(ctypes.c_void_p(domain)), verbs.ibv_close_device(ctypes.c_void_p(context)))
";
    let ran = Run::words(["python3", "-c", SCRIPT]).preloaded()?.run()?;
    succeeded(&ran);
    assert_eq!(ran.stdout(), "0 0\n", "{}", ran.stderr());
    assert!(ran.calls("alloc_pd").any(|line| line.contains("null1")), "{:?}", ran.verbs);
    Ok(())
}

#[test]
fn a_library_that_was_opened_with_deepbind_is_named() -> Outcome {
    let ran = Run::of("linked").args(["deepbind", "libuser.so"]).preloaded()?.run()?;
    succeeded(&ran);
    assert!(ran.stdout().contains("own: seen\nlibrary: not seen"), "{}", ran.stdout());
    let lines = ran.stderr();
    assert_eq!(
        lines.lines().filter(|line| line.contains("libuser.so") && line.contains("RTLD_DEEPBIND")).count(),
        1,
        "{lines}"
    );
    let local = Run::of("linked").args(["local", "libuser.so"]).preloaded()?.run()?;
    assert!(local.stdout().contains("own: seen\nlibrary: seen"), "{}", local.stdout());
    Ok(())
}

#[test]
fn a_second_copy_of_the_library_is_left_alone_and_named() -> Outcome {
    let ran = Run::of("linked").args(["copy", &inside("libotherverbs.so.1")]).preloaded()?.run()?;
    succeeded(&ran);
    assert!(ran.stdout().contains("own: seen\ncopy: not seen"), "{}", ran.stdout());
    assert!(ran.stderr().contains("libotherverbs.so.1 are not protected"), "{}", ran.stderr());
    Ok(())
}
