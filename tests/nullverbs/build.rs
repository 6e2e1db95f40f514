//! Builds the C parts: the two libraries that stand in for libibverbs and libmlx5, and the programs that bind to them.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::path::{Path, PathBuf};
use std::process::Command;

const VERBS: [&str; 4] = ["device", "memory", "queue", "pair"];
const FLAGS: [&str; 6] = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"];

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=programs");
    println!("cargo::rerun-if-env-changed=NULLVERBS_CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rustc-env=NULLVERBS_DIRECTORY={}", out.display());
    if !Path::new("/usr/include/infiniband/verbs.h").exists() {
        println!("cargo::warning=the headers of libibverbs (libibverbs-dev) are missing: tests that need nullverbs will fail");
        return;
    }
    let sources: Vec<String> = VERBS.iter().map(|name| format!("c/{name}.c")).collect();
    library(&out, "libibverbs.so.1", "c/verbs.map", &sources, &["-pthread"]);
    library(&out, "libmlx5.so.1", "c/mlx5.map", &["c/mlx5.c".to_owned()], &["-libverbs"]);
    // The same library under another name: NCCL_IBVERBS_LIB and the like.
    library(&out, "libotherverbs.so.1", "c/verbs.map", &sources, &["-pthread"]);
    programs(&out);
}

/// A library with this soname, and its name for the linker beside it.
fn library(out: &Path, soname: &str, map: &str, sources: &[String], more: &[&str]) {
    let mut cc = compiler();
    cc.args(FLAGS).args(["-shared", "-fPIC"]);
    // The runtime of a sanitizer is in the program.
    if !cc.get_args().any(|word| word.to_string_lossy().starts_with("-fsanitize")) {
        cc.arg("-Wl,--no-undefined");
    }
    cc.arg(format!("-Wl,-soname,{soname}")).arg(format!("-Wl,--version-script={map}"));
    cc.args(sources).arg("-L").arg(out).args(more).arg("-o").arg(out.join(soname));
    run(&mut cc);
    let link = out.join(soname.trim_end_matches(".1"));
    let _ = std::fs::remove_file(&link);
    if let Err(error) = std::os::unix::fs::symlink(soname, &link) {
        println!("cargo::error=no link {}: {error}", link.display());
    }
}

/// `programs/NAME.c` becomes `NAME`, `programs/libNAME.c` becomes `libNAME.so`. The comment in their first line that begins with "cc:" is what
/// they need beyond that.
fn programs(out: &Path) {
    let Ok(entries) = std::fs::read_dir("programs") else { return };
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Libraries first: programs are linked to them.
    sources.sort_by_key(|path| !name_of(path).starts_with("lib"));
    for source in sources.iter().filter(|path| path.extension().is_some_and(|ext| ext == "c")) {
        let name = name_of(source);
        let text = std::fs::read_to_string(source).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let more = first.split_once("cc:").map_or("", |(_, more)| more.trim_end_matches("*/"));
        let mut cc = compiler();
        cc.args(FLAGS).arg(source).arg("-L").arg(out);
        if name.starts_with("lib") {
            cc.args(["-shared", "-fPIC", "-o"]).arg(out.join(format!("{name}.so")));
        } else {
            cc.arg("-o").arg(out.join(&name));
        }
        cc.args(more.split_whitespace());
        run(&mut cc);
    }
}

/// The C compiler, `cc` unless NULLVERBS_CC has the words of another one.
fn compiler() -> Command {
    let words = std::env::var("NULLVERBS_CC").unwrap_or_else(|_| "cc".to_owned());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command.args(words);
    command
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                println!("cargo::error={line}");
            }
        }
        Err(error) => println!("cargo::error=cc does not run: {error}"),
    }
}
