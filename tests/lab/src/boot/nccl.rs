//! NVIDIA's NCCL out of its wheels: fetched once by pip, which compares the wheel with the hash that is written here, and kept in the cache,
//! from which guests read it over 9p. Never in the image, never in the repository.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::run_tool;
use crate::trouble::{Concerning, Result};

/// A release of NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Version of the wheel.
    pub version: &'static str,
    /// SHA-256 of the wheel for x86-64.
    pub sha256: &'static str,
}

/// The name of the wheels.
pub const PACKAGE: &str = "nvidia-nccl-cu12";

/// The last release whose table is `ncclNet_v8_t`, and the newest of all.
pub const RELEASES: [Release; 2] = [
    Release { version: "2.21.5", sha256: "8579076d30a8c24988834445f8d633c697d42397e92ffc3f63fa26766d25e0a0" },
    Release { version: "2.32.3", sha256: "bb94b2348e4861d5e8aa00b36c3d12d9bdf9c6369b82cbb723de0b582280a21c" },
];

impl Release {
    /// Path of the library inside a guest.
    pub fn in_guest(self) -> String {
        format!("{}/nccl-{}/{LIBRARY}", super::programs::IN_GUEST, self.version)
    }
}

const LIBRARY: &str = "libnccl.so.2";

/// Takes the library out of the wheel, whose name it has as an argument.
const UNPACK: &str = "
import shutil, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(each for each in wheel.namelist() if each.endswith('/libnccl.so.2'))
with wheel.open(name) as packed, open(sys.argv[2], 'wb') as out:
    shutil.copyfileobj(packed, out, 1 << 20)
";

/// Sees to it that the cache has the library.
///
/// # Errors
/// The wheel cannot be had, or is not the one whose hash is known.
pub fn obtain(cache: &Path, release: Release, say: impl Fn(&str)) -> Result<()> {
    let dir = cache.join(format!("nccl-{}", release.version));
    if dir.join(LIBRARY).exists() {
        return Ok(());
    }
    let work = cache.join(format!("fetch-nccl-{}", std::process::id()));
    fs::create_dir_all(&work).concerning(work.display())?;
    let fetched = fetch(&work, release, &say);
    if fetched.is_ok() {
        // Another run may have been quicker: then there is nothing to move.
        let _ = fs::rename(work.join("made"), &dir);
    }
    let _ = fs::remove_dir_all(&work);
    fetched
}

fn fetch(work: &Path, release: Release, say: impl Fn(&str)) -> Result<()> {
    say(&format!("downloading {PACKAGE} {} (some 200 to 400 MB, once)", release.version));
    let wanted = work.join("wanted.txt");
    fs::write(&wanted, format!("{PACKAGE}=={} --hash=sha256:{}\n", release.version, release.sha256))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]);
    pip.args(["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_27_x86_64", "--require-hashes"]);
    run_tool(pip.arg("--dest").arg(work).arg("-r").arg(&wanted))?;
    let wheels = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let made = work.join("made");
    fs::create_dir_all(&made)?;
    for wheel in wheels.filter(|path| path.extension().is_some_and(|extension| extension == "whl")) {
        run_tool(Command::new("python3").args(["-c", UNPACK]).arg(&wheel).arg(made.join(LIBRARY)))?;
    }
    Ok(())
}
