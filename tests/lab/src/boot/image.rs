//! The guest's root image: unmodified Debian programs with the libraries they load, a boot script, and nothing of ours.
//!
//! What is built here reaches guests through the 9p share at /shift, so the image is rebuilt only when one of its files changes: its
//! name in the cache is a hash of the list of files with their sizes and times. Programs that few scenarios need ([`super::programs`]) are
//! in the image as links only, and reach guests through a second share.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::cpio::Archive;
use super::kernel::Kernel;
use super::programs::{self, Staged};
use super::{in_place, run_tool};
use crate::trouble::{Concerning, Result, Trouble};

/// Programs of the image; the libraries they are linked with come by themselves.
const PROGRAMS: &[&str] = &[
    "/bin/bash",
    "/bin/dash",
    "/bin/ls",
    "/bin/cat",
    "/sbin/ip",
    "/sbin/tc",
    "/usr/bin/rdma",
    "/usr/bin/kmod",
    "/usr/bin/ping",
    "/usr/bin/python3.11",
    "/usr/bin/strace",
    "/usr/bin/ibv_devinfo",
    "/usr/bin/ibv_devices",
    "/usr/bin/ibv_rc_pingpong",
    "/usr/bin/ibv_srq_pingpong",
    "/usr/bin/rping",
    "/usr/bin/rstream",
    "/usr/bin/rdma_client",
    "/usr/bin/rdma_server",
    "/usr/bin/qperf",
    "/usr/bin/ib_write_bw",
    "/usr/bin/ib_write_lat",
    "/usr/bin/ib_send_bw",
    "/usr/bin/ib_send_lat",
    "/usr/bin/ib_read_bw",
    "/usr/bin/ib_read_lat",
    "/usr/bin/ib_atomic_bw",
    "/usr/bin/ib_atomic_lat",
];
/// Programs that may be missing on the machine.
const OPTIONAL: &[&str] = &["/usr/bin/strace", "/usr/bin/ping"];
/// Libraries that are opened by name and so not found by ldd. libgcc_s: a Rust cdylib and pthread_cancel load it.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
    "/usr/lib/x86_64-linux-gnu/librdmacm.so.1",
    "/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "/lib/x86_64-linux-gnu/libnss_files.so.2",
];
/// Copied as they are.
const TREES: &[&str] = &["/usr/lib/python3.11"];
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("init", "usr/bin/busybox"),
    ("usr/bin/sh", "dash"),
    ("usr/bin/python3", "python3.11"),
    ("usr/sbin/modprobe", "../bin/kmod"),
    ("usr/bin/rdma.real", "rdma"),
    ("usr/bin/mpirun", "orterun"),
];
/// Directories of Python's standard library that no scenario needs.
const LEFT_OUT: &[&str] =
    &["test", "__pycache__", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "distutils", "unittest"];

/// The image for `kernel`, built if the cache has none that is up to date.
///
/// # Errors
/// A program is not installed, or the cache cannot be written.
pub fn obtain(cache: &Path, kernel: &Kernel, say: impl Fn(&str)) -> Result<PathBuf> {
    let files = collect()?;
    let staged = programs::obtain(cache, &files, &say)?;
    let boot = boot_script(kernel)?;
    let image = cache.join(format!("image-{:016x}.cpio", fingerprint(&files, &staged, kernel, &boot)));
    if !image.exists() {
        say("building the guest image");
        remove_old_images(cache);
        in_place(&image, |path| write(path, &files, &staged, kernel, &boot))?;
    }
    Ok(image)
}

/// Paths in the guest, and where their contents are here.
pub(super) type Files = BTreeMap<String, PathBuf>;

fn collect() -> Result<Files> {
    let mut files = Files::new();
    let mut linked = Vec::new();
    for path in PROGRAMS.iter().chain(LIBRARIES) {
        if !Path::new(path).exists() {
            if OPTIONAL.contains(path) || path.contains("libnss") {
                continue;
            }
            return Err(Trouble::setup(format!("{path} is not installed; scripts/lab installs what the lab needs")));
        }
        add(&mut files, path);
        linked.push(*path);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or_else(|| Trouble::setup("busybox-static is not installed"))?;
    files.insert("usr/bin/busybox".into(), busybox.into());
    for library in libraries_of(&linked)? {
        add(&mut files, &library);
    }
    for tree in TREES {
        add_tree(&mut files, Path::new(tree))?;
    }
    Ok(files)
}

/// Guests have a merged /usr, as Debian does.
pub(super) fn add(files: &mut Files, path: &str) {
    let merged = path.trim_start_matches('/');
    let merged = if merged.starts_with("usr/") { merged.to_owned() } else { format!("usr/{merged}") };
    files.insert(merged, PathBuf::from(path));
}

pub(super) fn add_tree(files: &mut Files, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).concerning(dir.display())?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !LEFT_OUT.iter().any(|each| *each == name) && !name.to_string_lossy().starts_with("config-") {
                add_tree(files, &path)?;
            }
        } else if let Some(text) = path.to_str().filter(|_| path.exists()) {
            add(files, text);
        }
    }
    Ok(())
}

pub(super) fn libraries_of(programs: &[&str]) -> Result<Vec<String>> {
    let text = run_tool(Command::new("ldd").args(programs))?;
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            let path = path.split_whitespace().next()?;
            (path.starts_with('/') && !path.ends_with(':')).then(|| path.to_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn fingerprint(files: &Files, staged: &Staged, kernel: &Kernel, boot: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&kernel.release, boot, ETC, LINKS, &staged.links).hash(&mut hasher);
    hash_files(files, &mut hasher);
    hasher.finish()
}

/// Names, sizes and times.
pub(super) fn hash_files(files: &Files, hasher: &mut DefaultHasher) {
    for (name, source) in files {
        let seen = fs::metadata(source).ok();
        let modified = seen
            .as_ref()
            .and_then(|meta| meta.modified().ok())
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        (name, seen.map(|meta| meta.len()), modified).hash(hasher);
    }
}

fn remove_old_images(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("image-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write(path: &Path, files: &Files, staged: &Staged, kernel: &Kernel, boot: &str) -> Result<()> {
    let out = BufWriter::with_capacity(1 << 20, fs::File::create(path).concerning(path.display())?);
    let mut archive = Archive::new(out);
    for (link, target) in LINKS {
        archive.link(link, target)?;
    }
    for (link, target) in &staged.links {
        archive.link(link, target)?;
    }
    for dir in ["proc", "sys", "dev", "run", "shift", "cache", "root", "var", "mnt"] {
        archive.directory(dir, 0o755)?;
    }
    archive.directory("tmp", 0o1777)?;
    archive.directory("home/user", 0o777)?;
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.device("dev/null", 0o666, (1, 3))?;
    for (name, text) in ETC {
        archive.file(name, 0o644, text.as_bytes())?;
    }
    archive.file("etc/boot.sh", 0o755, boot.as_bytes())?;
    for (name, source) in files {
        let data = fs::read(source).concerning(source.display())?;
        let executable = fs::metadata(source)?.permissions().mode() & 0o111;
        archive.file(name, 0o644 | executable, &data)?;
    }
    add_modules(&mut archive, kernel)?;
    archive.finish()?;
    Ok(())
}

fn add_modules(archive: &mut Archive<BufWriter<fs::File>>, kernel: &Kernel) -> Result<()> {
    let mut waiting = vec![kernel.dir.join("lib")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).concerning(dir.display())?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let inside = path.strip_prefix(&kernel.dir).concerning(path.display())?;
            archive.file(&format!("usr/{}", inside.display()), 0o644, &fs::read(&path).concerning(path.display())?)?;
        }
    }
    Ok(())
}

fn boot_script(kernel: &Kernel) -> Result<String> {
    let modules: Vec<String> =
        kernel.boot_order()?.iter().map(|path| format!("$B insmod /lib/modules/{}/{path}", kernel.release)).collect();
    Ok(include_str!("boot.sh").replace("@INSMOD@", &modules.join("\n")))
}

const ETC: &[(&str, &str)] = &[
    (
        "etc/inittab",
        "::sysinit:/bin/dash /etc/boot.sh\n::respawn:/shift/shift-guest\nhvc0::askfirst:/bin/bash -l\n::ctrlaltdel:/bin/busybox poweroff -f\n",
    ),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\n"),
    ("etc/group", "root:x:0:\nuser:x:1000:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n"),
    ("etc/nsswitch.conf", "hosts: files\npasswd: files\ngroup: files\n"),
    ("etc/libibverbs.d/rxe.driver", "driver rxe\n"),
    ("etc/profile", "export PATH=/usr/sbin:/usr/bin HOME=/root\nPS1='shift-lab '$(cat /proc/sys/kernel/hostname)'# '\ncd\n"),
];
