//! Other preloads before and behind the shim, and tools that watch a program: it is protected as without them.

use shift_nullverbs::{inside, Ran, Run};

type Outcome = Result<(), String>;

/// Preloads of Debian, by package and file.
const NEIGHBOURS: [(&str, &str); 3] = [
    ("libjemalloc2", "libjemalloc.so.2"),
    ("libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"),
    ("libfaketime", "faketime/libfaketime.so.1"),
];

/// The path of a library of Debian; a machine that is not set up by scripts/test may lack it.
fn installed(package: &str, file: &str) -> Option<String> {
    let path = format!("/usr/lib/{}-linux-gnu/{file}", std::env::consts::ARCH);
    let is_there = std::path::Path::new(&path).exists();
    if !is_there {
        eprintln!("SKIPPED: {path} is not installed (package {package})");
    }
    is_there.then_some(path)
}

fn is_protected(ran: &Ran, who: &str) {
    let said = format!("{who}: {:?}: {}{}", ran.output.status, ran.stdout(), ran.stderr());
    assert!(ran.output.status.success(), "{said}");
    assert!(ran.stdout().contains("post_send is in libshift_verbs.so"), "{said}");
    assert!(ran.stdout().contains("closed 0"), "{said}");
    assert!(ran.calls("alloc_pd").any(|line| line.contains("null1")), "{said}{:?}", ran.verbs);
}

#[test]
fn allocators_and_a_faked_clock_before_and_behind_change_nothing() -> Outcome {
    for (package, file) in NEIGHBOURS {
        let Some(path) = installed(package, file) else { continue };
        for (before, behind) in [(path.as_str(), ""), ("", path.as_str())] {
            let run =
                || Run::of("bind").args(["nccl"]).env("USE", "1").env("FAKETIME", "+2d").preloaded_with(before, behind);
            is_protected(&run()?.run()?, &format!("{before} shim {behind}"));
            let linked = Run::of("linked").preloaded_with(before, behind)?.run()?;
            assert_eq!(linked.stdout(), "own: seen\n", "{before} shim {behind}: {}", linked.stderr());
        }
    }
    Ok(())
}

#[test]
fn another_hook_of_dlsym_behind_the_shim_still_sees_what_it_saw() -> Outcome {
    let hook = inside("libhook.so");
    let without = Run::of("places").env("LD_PRELOAD", &hook).run()?;
    let with = Run::of("places").preloaded_with("", &hook)?.run()?;
    assert_eq!(with.stdout(), without.stdout(), "{}", with.stderr());
    let ran = Run::of("bind").args(["dlsym", "libibverbs.so.1"]).env("USE", "1").preloaded_with("", &hook)?.run()?;
    is_protected(&ran, "another hook");
    assert!(ran.stdout().contains("another hook saw look-ups"), "{}", ran.stdout());
    Ok(())
}

#[test]
fn a_program_that_is_traced_is_protected() -> Outcome {
    if installed("strace", "../../bin/strace").is_some() {
        let bind = inside("bind");
        let ran = Run::words(["strace", "-f", "-o", "/dev/null", &bind, "nccl"]).env("USE", "1").preloaded()?.run()?;
        is_protected(&ran, "strace");
    }
    Ok(())
}

#[test]
fn a_program_in_a_debugger_is_protected_and_a_stop_in_a_look_up_shows_its_caller() -> Outcome {
    if installed("gdb", "../../bin/gdb").is_none() {
        return Ok(());
    }
    let commands = ["break dladdr1", "run", "backtrace", "delete", "continue"];
    let words = ["gdb", "-q", "-batch", "-iex", "set breakpoint pending on"].into_iter();
    let words = words.chain(commands.iter().flat_map(|command| ["-ex", command]));
    let bind = inside("bind");
    let ran = Run::words(words.chain(["--args", &bind, "nccl"])).env("USE", "1").preloaded()?.run()?;
    is_protected(&ran, "gdb");
    assert!(ran.stdout().contains("main ("), "the program is not in the backtrace: {}", ran.stdout());
    Ok(())
}
