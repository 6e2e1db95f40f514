//! A booted pair of guests with the wire between them: how it is started, known to be alive, and ended.
//!
//! Dropping a pair ends its processes. They are also on a leash (see [`crate::boot::leash`]), so that nothing outlives the lab.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::boot::image;
use crate::boot::kernel;
use crate::boot::leash;
use crate::boot::monitor::Monitor;
use crate::boot::qemu::{Accelerator, Machine, Qemu};
use crate::guest::Guest;
use crate::place::Host;
use crate::trouble::{Concerning, Result, Trouble};
use crate::wire::control::{Control, Ready};

/// Boot under emulation takes 5 to 8 s on an idle machine; much longer where others build.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Where KVM works it boots in 2 s; where it does not, it never does.
const KVM_LIMIT: Duration = Duration::from_secs(25);

/// Names a directory in which sockets and logs of a run are kept.
const KEEP: &str = "SHIFT_LAB_KEEP";

/// What was built here and is shared into guests; missing ones are left out.
const SHARED: &[&str] = &[
    "shift-guest",
    "shift-checker",
    "shift-checker-dlvsym",
    "shift-stranger",
    "shift-nccl",
    "shiftctl",
    "libshift_verbs.so",
    "libshift_preload.so",
];

/// Where things are on this machine.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Cache, see [`crate::boot::cache`].
    pub cache: PathBuf,
    /// Where cargo put what it built.
    pub built: PathBuf,
    /// Directory of this run: sockets, logs, share.
    pub run: PathBuf,
}

impl Setup {
    /// Finds the cache and what was built, and makes a directory for this run.
    ///
    /// # Errors
    /// One of them is not to be had.
    pub fn new() -> Result<Setup> {
        let exe = std::env::current_exe().concerning("own executable")?;
        let built = exe.parent().ok_or_else(|| Trouble::setup("own executable has no directory"))?.to_path_buf();
        remove_stale_runs();
        let kept = std::env::var_os(KEEP).filter(|dir| !dir.is_empty());
        let run = kept.map_or_else(|| runs().join(std::process::id().to_string()), PathBuf::from);
        fs::create_dir_all(&run).concerning(run.display())?;
        let run = run.canonicalize()?;
        Ok(Setup { cache: crate::boot::cache()?, built, run })
    }

    /// The shim, as it was built.
    pub fn shim(&self) -> PathBuf {
        self.built.join("libshift_verbs.so")
    }

    /// The shim with Redis, and with what tests may ask of it: of another profile of cargo's, so that it lies beside the default one.
    pub fn shim_with_redis(&self) -> PathBuf {
        self.built.with_file_name("redis").join("libshift_verbs.so")
    }

    /// Removes the directory of this run, unless it is to be kept.
    pub fn clean(&self) {
        if self.run.starts_with(runs()) {
            let _ = fs::remove_dir_all(&self.run);
        }
    }

    fn machine(&self, cpus: u8, number: u32, say: impl Fn(&str)) -> Result<Machine> {
        let kernel = kernel::obtain(&self.cache, &say)?;
        let image = image::obtain(&self.cache, &kernel, &say)?;
        let run = self.run.join(number.to_string());
        let share = self.run.join("share");
        fs::create_dir_all(&run).concerning(run.display())?;
        fs::create_dir_all(&share).concerning(share.display())?;
        let built = SHARED.iter().map(|name| (*name, self.built.join(name)));
        for (name, source) in built.chain([("libshift_verbs_redis.so", self.shim_with_redis())]) {
            if source.exists() {
                let _ = fs::remove_file(share.join(name));
                fs::copy(&source, share.join(name)).concerning(source.display())?;
            }
        }
        let (cache, folder) = (self.cache.clone(), self.run.join(format!("folder-{number}")));
        fs::create_dir_all(&folder).concerning(folder.display())?;
        Ok(Machine { vmlinuz: kernel.vmlinuz(), image, share, cache, folder, run, cpus, accelerator: Accelerator::Tcg })
    }

    /// KVM is tried once per machine; that it failed is remembered in the cache.
    fn kvm_refused(&self) -> PathBuf {
        self.cache.join("kvm-refused")
    }

    fn may_try_kvm(&self) -> bool {
        let wanted = std::env::var("SHIFT_LAB_ACCEL").unwrap_or_default();
        wanted == "kvm" || (wanted != "tcg" && Path::new("/dev/kvm").exists() && !self.kvm_refused().exists())
    }
}

fn runs() -> PathBuf {
    std::env::temp_dir().join("shift-lab")
}

/// Runs that were killed could not clean up.
fn remove_stale_runs() {
    for entry in fs::read_dir(runs()).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The wire's process.
#[derive(Debug)]
struct WireProcess {
    child: Child,
    ready: Ready,
}

impl WireProcess {
    fn start(run: &Path) -> Result<WireProcess> {
        let exe = std::env::current_exe().concerning("own executable")?;
        let mut command = leash::command(&exe.to_string_lossy())?;
        command.arg("wire").arg("--control").arg(run.join("wire.control")).arg("--log").arg(run.join("wire.log"));
        let words = File::create(run.join("wire.err")).concerning("wire")?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(words).spawn().concerning("wire")?;
        let stdout = child.stdout.take().ok_or_else(|| Trouble::setup("wire: no output"))?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).concerning("wire")?;
        let ready = serde_json::from_str(&line).concerning("wire")?;
        Ok(WireProcess { child, ready })
    }
}

impl Drop for WireProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two guests and their wire. Fields are dropped in this order: guests first, then what they are plugged into.
#[derive(Debug)]
pub struct Pair {
    a: Guest,
    b: Guest,
    monitors: [Monitor; 2],
    qemus: [Qemu; 2],
    /// The wire.
    pub wire: Control,
    _wire_process: WireProcess,
    /// Processors of each guest.
    pub cpus: u8,
    /// How long the boot took.
    pub boot: Duration,
}

impl Pair {
    /// Boots a pair; `number` tells the pairs of a run apart.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(setup: &Setup, cpus: u8, number: u32, say: impl Fn(&str)) -> Result<Pair> {
        let mut machine = setup.machine(cpus, number, &say)?;
        if setup.may_try_kvm() {
            machine.accelerator = Accelerator::Kvm;
            match Pair::boot_machine(&machine, KVM_LIMIT) {
                Ok(pair) => return Ok(pair),
                Err(why) => say(&format!("KVM does not boot a guest here ({why}); software emulation from now on")),
            }
            fs::write(setup.kvm_refused(), "").concerning("cache")?;
            machine.accelerator = Accelerator::Tcg;
        }
        Pair::boot_machine(&machine, BOOT_LIMIT)
    }

    fn boot_machine(machine: &Machine, limit: Duration) -> Result<Pair> {
        let begun = Instant::now();
        for entry in fs::read_dir(&machine.run).concerning(machine.run.display())?.flatten() {
            fs::remove_file(entry.path()).concerning(entry.path().display())?;
        }
        let wire_process = WireProcess::start(&machine.run)?;
        let wire = Control::connect(&machine.run.join("wire.control"), &machine.run.join("wire.log"))?;
        let mut qemus =
            [Qemu::start(machine, Host::A, &wire_process.ready)?, Qemu::start(machine, Host::B, &wire_process.ready)?];
        let [qemu_a, qemu_b] = &mut qemus;
        let monitors = [Monitor::connect(&qemu_a.monitor_socket())?, Monitor::connect(&qemu_b.monitor_socket())?];
        let meet = |qemu: &mut Qemu, host| {
            Guest::connect(host, &qemu.agent_socket(), limit).map_err(|error| match qemu.death() {
                Some(why) => Trouble::GuestLost { host, why },
                None => error,
            })
        };
        let (a, b) = (meet(qemu_a, Host::A)?, meet(qemu_b, Host::B)?);
        Ok(Pair { a, b, monitors, qemus, wire, _wire_process: wire_process, cpus: machine.cpus, boot: begun.elapsed() })
    }

    /// A guest.
    pub fn guest(&self, host: Host) -> &Guest {
        match host {
            Host::A => &self.a,
            Host::B => &self.b,
        }
    }

    /// The monitor of a guest's QEMU.
    pub fn monitor(&mut self, host: Host) -> &mut Monitor {
        let [a, b] = &mut self.monitors;
        match host {
            Host::A => a,
            Host::B => b,
        }
    }

    /// The interactive console of a guest.
    pub fn console_socket(&self, host: Host) -> PathBuf {
        let [a, b] = &self.qemus;
        match host {
            Host::A => a.console_socket(),
            Host::B => b.console_socket(),
        }
    }

    /// A guest that died or panicked, and what was seen of it.
    pub fn death(&mut self) -> Option<Trouble> {
        let dead = |(qemu, host): (&mut Qemu, Host)| qemu.death().map(|why| Trouble::GuestLost { host, why });
        self.qemus.iter_mut().zip(Host::ALL).find_map(dead)
    }
}
