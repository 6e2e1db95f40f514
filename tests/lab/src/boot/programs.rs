//! Debian's larger programs (UCX, libfabric, Open MPI, mpi4py, Redis): staged in the cache, which every guest sees at /cache, and linked from the
//! places where the packages have them.
//!
//! The links are part of the image; the contents are read when a scenario starts the program, so that no other boot pays for them.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::image::{add, add_tree, hash_files, libraries_of, Files};
use crate::trouble::{Concerning, Result, Trouble};

/// Programs; the libraries they are linked with come by themselves.
const PROGRAMS: &[&str] = &[
    "/usr/bin/ucx_info",
    "/usr/bin/ucx_perftest",
    "/usr/bin/fi_info",
    "/usr/bin/fi_pingpong",
    "/usr/bin/orterun",
    "/usr/bin/orted",
    "/usr/bin/strace",
    "/usr/bin/redis-server",
];
/// Directories of plugins that are opened by name, and of what they read; linked as a whole.
const TREES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/ucx",
    "/usr/lib/x86_64-linux-gnu/openmpi",
    "/usr/lib/x86_64-linux-gnu/pmix2",
    "/usr/share/openmpi",
    "/etc/openmpi",
    "/etc/libnl-3",
    "/usr/lib/python3/dist-packages/mpi4py",
];
/// Libraries that are opened by name or preloaded, and what NVIDIA's NCCL is linked with.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libmpi.so.40",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/lib/x86_64-linux-gnu/librt.so.1",
    "/lib/x86_64-linux-gnu/libdl.so.2",
    "/lib/x86_64-linux-gnu/libpthread.so.0",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
];
/// Stagings are shared by all checkouts that use the cache; one that is not this checkout's may be in use for so long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Changes whenever a package does.
const PACKAGES: &str = "/var/lib/dpkg/status";
/// In a staging: the files that are linked one by one.
const LINKED: &str = "linked";
/// Where guests see the cache.
pub const IN_GUEST: &str = "/cache";

/// What the image has to link to.
#[derive(Debug, Default)]
pub struct Staged {
    /// Paths of links without the leading `/`, and where they point.
    pub links: Vec<(String, String)>,
}

/// Stages the programs in the cache; what is in the image itself (`base`) is not staged again.
///
/// # Errors
/// A program is not installed, or the cache cannot be written.
pub fn obtain(cache: &Path, base: &Files, say: impl Fn(&str)) -> Result<Staged> {
    let (mut single, trees) = collect()?;
    let mut hasher = DefaultHasher::new();
    hash_files(&single, &mut hasher);
    hash_files(&trees, &mut hasher);
    // Which libraries these files are linked with takes ldd seconds to say, and changes only with the machine's packages.
    hash_files(&Files::from([("packages".to_owned(), PathBuf::from(PACKAGES))]), &mut hasher);
    base.keys().for_each(|name| name.hash(&mut hasher));
    let name = format!("programs-{:016x}", hasher.finish());
    let dir = cache.join(&name);
    if !dir.exists() {
        say("staging programs for the guests");
        remove_old(cache);
        add_libraries(&mut single, &trees)?;
        single.retain(|name, _| !base.contains_key(name) && !trees.contains_key(name));
        stage(cache, &name, &single, &trees)?;
    }
    let single = fs::read_to_string(dir.join(LINKED)).concerning(LINKED)?;
    let trees = TREES.iter().filter(|tree| Path::new(tree).exists()).map(|tree| tree.trim_start_matches('/'));
    let link = |path: &str| (path.to_owned(), format!("{IN_GUEST}/{name}/{path}"));
    Ok(Staged { links: single.lines().chain(trees).map(link).collect() })
}

/// Files that are linked one by one, and files below directories that are linked whole.
fn collect() -> Result<(Files, Files)> {
    let (mut single, mut trees) = (Files::new(), Files::new());
    for path in PROGRAMS.iter().chain(LIBRARIES) {
        if !Path::new(path).exists() {
            return Err(Trouble::setup(format!("{path} is not installed; scripts/lab installs what the lab needs")));
        }
        add(&mut single, path);
    }
    for tree in TREES.iter().map(Path::new).filter(|tree| tree.exists()) {
        let mut found = Files::new();
        add_tree(&mut found, tree)?;
        // `add` puts everything below usr; what a tree has lies where the tree is linked.
        trees.extend(found.into_values().map(|path| (path.to_string_lossy().trim_start_matches('/').to_owned(), path)));
    }
    Ok((single, trees))
}

/// What programs, libraries and plugins are linked with.
fn add_libraries(single: &mut Files, trees: &Files) -> Result<()> {
    let plugins = trees.keys().filter(|name| name.contains(".so")).map(|name| format!("/{name}"));
    let plugins: Vec<String> = plugins.collect();
    let all = PROGRAMS.iter().chain(LIBRARIES).copied().chain(plugins.iter().map(String::as_str));
    for library in libraries_of(&all.collect::<Vec<_>>())? {
        add(single, &library);
    }
    Ok(())
}

fn stage(cache: &Path, name: &str, single: &Files, trees: &Files) -> Result<()> {
    let half = cache.join(format!("half-{}", std::process::id()));
    for (path, source) in single.iter().chain(trees) {
        let target = half.join(path);
        fs::create_dir_all(target.parent().unwrap_or(&half)).concerning(target.display())?;
        fs::copy(source, &target).concerning(source.display())?;
    }
    let linked: Vec<&str> = single.keys().map(String::as_str).collect();
    fs::write(half.join(LINKED), linked.join("\n")).concerning(LINKED)?;
    match fs::rename(&half, cache.join(name)) {
        // Another run was quicker.
        Err(_) if cache.join(name).exists() => fs::remove_dir_all(&half).concerning(half.display()),
        staged => staged.concerning(name),
    }
}

fn remove_old(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with("programs-") && age.is_some_and(|age| age > KEPT) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
