//! The guest kernel: Debian's own, taken out of its package and never installed.
//!
//! `linux-image-6.12-amd64` is a metapackage; what it depends on today is downloaded once, and vmlinuz and the unpacked modules that
//! guests need are kept in `kernel-<version>/` of the cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run_tool;
use crate::trouble::{Concerning, Result, Trouble};

const METAPACKAGE: &str = "linux-image-6.12-amd64";

/// What guests load at boot, dependencies resolved by modprobe. rxe fails with ENOENT without crc32_generic.
const AT_BOOT: &[&str] = &["virtio_net", "9pnet_virtio", "9p", "crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe"];
/// What guests may load when a tool asks for it.
const ON_DEMAND: &[&str] = &["sch_ingress", "cls_u32", "act_gact", "sch_netem", "sch_prio", "sch_tbf"];

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its directory.
    pub dir: PathBuf,
    /// Its release, as `uname -r` says.
    pub release: String,
}

impl Kernel {
    /// The bootable image.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Modules to load at boot, in order, as paths inside `lib/modules/<release>`.
    ///
    /// # Errors
    /// The cache was damaged.
    pub fn boot_order(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("boot-order")).concerning("boot-order")?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// The kernel from the cache, fetched first if it is not there.
///
/// # Errors
/// The package cannot be had, or misses a module.
pub fn obtain(cache: &Path, say: impl Fn(&str)) -> Result<Kernel> {
    if let Some(kernel) = newest_cached(cache) {
        return Ok(kernel);
    }
    let work = cache.join(format!("fetch-{}", std::process::id()));
    fs::create_dir_all(&work).concerning(work.display())?;
    let kernel = fetch(cache, &work, say);
    let _ = fs::remove_dir_all(&work);
    kernel
}

fn newest_cached(cache: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(cache).ok()?.flatten();
    let kernels = entries.filter(|entry| entry.path().join("boot-order").exists());
    let newest = kernels.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())?;
    let release = newest.file_name().to_str()?.strip_prefix("kernel-")?.to_owned();
    Some(Kernel { dir: newest.path(), release })
}

fn fetch(cache: &Path, work: &Path, say: impl Fn(&str)) -> Result<Kernel> {
    let depends = run_tool(Command::new("apt-cache").args(["depends", METAPACKAGE]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|rest| format!("linux-image-{rest}"))
        .ok_or_else(|| {
            Trouble::setup(format!("{METAPACKAGE} depends on no kernel: is bookworm-security in the apt sources?"))
        })?;
    say(&format!("downloading {package} (100 MB, once)"));
    run_tool(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work))?;
    let deb = fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"));
    let deb = deb.ok_or_else(|| Trouble::setup("apt-get download left no package"))?;
    let root = work.join("root");
    run_tool(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    say("unpacking its modules");
    let made = work.join("made");
    unpack(&root, &made, &release)?;
    let dir = cache.join(format!("kernel-{release}"));
    let _ = fs::remove_dir_all(&dir);
    fs::rename(&made, &dir).concerning(dir.display())?;
    Ok(Kernel { dir, release })
}

fn unpack(root: &Path, made: &Path, release: &str) -> Result<()> {
    run_tool(Command::new("depmod").arg("-b").arg(root).arg(release))?;
    let mut wanted = BTreeSet::new();
    let mut order = Vec::new();
    for module in AT_BOOT.iter().chain(ON_DEMAND) {
        for path in with_dependencies(root, release, module)? {
            if wanted.insert(path.clone()) && AT_BOOT.contains(module) {
                order.push(path.trim_end_matches(".xz").to_owned());
            }
        }
    }
    let from = root.join("lib/modules").join(release);
    let to = made.join("lib/modules").join(release);
    for path in &wanted {
        let target = to.join(path);
        fs::create_dir_all(target.parent().unwrap_or(&to)).concerning(target.display())?;
        fs::copy(from.join(path), &target).concerning(target.display())?;
        if path.ends_with(".xz") {
            run_tool(Command::new("xz").arg("-d").arg(&target))?;
        }
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(from.join(list), to.join(list)).concerning(list)?;
    }
    run_tool(Command::new("depmod").arg("-b").arg(made).arg(release))?;
    fs::copy(root.join("boot").join(format!("vmlinuz-{release}")), made.join("vmlinuz")).concerning("vmlinuz")?;
    fs::write(made.join("boot-order"), order.join("\n")).concerning("boot-order")
}

fn with_dependencies(root: &Path, release: &str, module: &str) -> Result<Vec<String>> {
    let mut command = Command::new("modprobe");
    command.arg("-d").arg(root).args(["-S", release, "--show-depends", module]);
    let prefix = format!("/lib/modules/{release}/");
    let lines = run_tool(&mut command)?;
    Ok(lines
        .lines()
        .filter_map(|line| line.strip_prefix("insmod ")?.split_once(&prefix))
        .map(|(_, path)| path.trim().to_owned())
        .collect())
}
