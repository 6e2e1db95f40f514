//! What each of the two programs is linked with: `shift-checker` with libibverbs, as compiled programs are, and `shift-checker-dlvsym` with an
//! object that binds as NCCL does. Which verbs that are is read from the sources' `extern` blocks.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=bind.c");
    println!("cargo::rustc-link-arg-bin=shift-checker=-libverbs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let mut verbs = BTreeSet::new();
    read(Path::new("src/verbs.rs"), &mut verbs);
    for entry in std::fs::read_dir("src/verbs").into_iter().flatten().flatten() {
        read(&entry.path(), &mut verbs);
    }
    let list: String = verbs.iter().map(|verb| format!("VERB({verb})\n")).collect();
    let object = out.join("bind.o");
    let written = std::fs::write(out.join("verbs.list"), list);
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-c", "bind.c", "-I"])
        .arg(&out)
        .arg("-o")
        .arg(&object);
    if written.is_err() || !cc.status().is_ok_and(|status| status.success()) {
        println!("cargo::error=bind.c does not compile");
    }
    println!("cargo::rustc-link-arg-bin=shift-checker-dlvsym={}", object.display());
    println!("cargo::rustc-link-arg-bin=shift-checker-dlvsym=-ldl");
}

/// The functions of libibverbs that a file declares.
fn read(path: &Path, verbs: &mut BTreeSet<String>) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines() {
        let Some(declared) = line.trim_start().strip_prefix("fn ") else { continue };
        let Some((name, _)) = declared.split_once('(') else { continue };
        if name.starts_with("ibv_") || name.starts_with("_ibv_") {
            verbs.insert(name.to_owned());
        }
    }
}
