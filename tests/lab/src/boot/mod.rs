//! From nothing to a machine that can be booted: the guest kernel, the guest's root image, QEMU, and its monitor.
//!
//! Everything is cached in one directory outside the repository, keyed by what it was made from.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::trouble::{Concerning, Result, Trouble};

pub mod cpio;
pub mod image;
pub mod kernel;
pub mod leash;
pub mod monitor;
pub mod nccl;
pub mod programs;
pub mod qemu;

/// Where downloaded and built things are kept: `SHIFT_LAB_CACHE`, else `shift-verbs` in the user's cache directory.
///
/// # Errors
/// There is no home directory, or the cache cannot be created.
pub fn cache() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = var("SHIFT_LAB_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("shift-verbs")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/shift-verbs")))
        .ok_or_else(|| Trouble::setup("neither SHIFT_LAB_CACHE nor HOME is set"))?;
    std::fs::create_dir_all(&base).concerning(base.display())?;
    Ok(base)
}

/// Runs a tool to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or fails; then its last words are in the error.
pub fn run_tool(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().concerning(&name)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Trouble::setup(format!("{name}: {}: {}", output.status, words.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Replaces `path` by what `write` makes, so that nobody ever sees half of it.
///
/// # Errors
/// `write` fails, or the file cannot be moved into place.
pub fn in_place(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let half = path.with_extension(format!("half-{}", std::process::id()));
    write(&half)?;
    std::fs::rename(&half, path).concerning(path.display())
}
