//! One guest as a process: QEMU's command line, its serial log, and its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::leash;
use crate::place::{Host, Link};
use crate::trouble::{Concerning, Result};
use crate::wire::control::Ready;

/// How a guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Software emulation: works everywhere.
    Tcg,
    /// /dev/kvm: only a speed-up.
    Kvm,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Kernel image.
    pub vmlinuz: PathBuf,
    /// Root image.
    pub image: PathBuf,
    /// Host directory that is /shift in the guest.
    pub share: PathBuf,
    /// Host directory that is /cache in the guest: what is too large for the image.
    pub cache: PathBuf,
    /// Host directory that both guests may write to, once they mount it (tag `folder`).
    pub folder: PathBuf,
    /// Where sockets and logs go.
    pub run: PathBuf,
    /// Processors of each guest.
    pub cpus: u8,
    /// How they are made.
    pub accelerator: Accelerator,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    host: Host,
    child: Child,
    run: PathBuf,
}

impl Qemu {
    /// Starts the guest `host`, its cables plugged into the wire.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(machine: &Machine, host: Host, wire: &Ready) -> Result<Qemu> {
        let run = machine.run.clone();
        let mut command = leash::command("qemu-system-x86_64")?;
        arguments(&mut command, machine, host, wire);
        let log = File::create(run.join(format!("{}.qemu", host.name()))).concerning("QEMU's log")?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().concerning("QEMU")?;
        Ok(Qemu { host, child, run })
    }

    /// Where the agent's port is.
    pub fn agent_socket(&self) -> PathBuf {
        socket(&self.run, self.host, "agent")
    }

    /// Where the interactive console is.
    pub fn console_socket(&self) -> PathBuf {
        socket(&self.run, self.host, "console")
    }

    /// Where the monitor is.
    pub fn monitor_socket(&self) -> PathBuf {
        socket(&self.run, self.host, "monitor")
    }

    /// The guest is gone or has panicked: what was seen of it.
    pub fn death(&mut self) -> Option<String> {
        let serial = fs::read(self.run.join(format!("{}.serial", self.host.name()))).unwrap_or_default();
        let serial = String::from_utf8_lossy(&serial);
        if let Some(panic) = panic_of(&serial) {
            return Some(panic);
        }
        let status = self.child.try_wait().ok().flatten()?;
        let words = fs::read_to_string(self.run.join(format!("{}.qemu", self.host.name()))).unwrap_or_default();
        Some(format!("QEMU ended ({status}): {}", words.trim()))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel says when it panics, with the place and the flags: those of soft-RoCE under emulation had flags that were half of a
/// pointer, which no program can make (QEMU 7.2 computes them when they are asked for).
fn panic_of(serial: &str) -> Option<String> {
    let end = serial.lines().find(|line| line.contains("Kernel panic"))?;
    let mut told = vec![without_time(end)];
    told.extend(
        ["BUG: ", "RIP: ", "EFLAGS: "]
            .iter()
            .filter_map(|word| serial.lines().find(|line| line.contains(word)))
            .map(without_time),
    );
    Some(format!("kernel panic: {}", told.join("; ")))
}

fn without_time(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, words)| words).trim()
}

fn socket(run: &Path, host: Host, name: &str) -> PathBuf {
    run.join(format!("{}.{name}", host.name()))
}

fn arguments(command: &mut Command, machine: &Machine, host: Host, wire: &Ready) {
    let mut arg = |name: &str, value: String| {
        command.arg(name).arg(value);
    };
    let (accelerator, cpu) = match machine.accelerator {
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
        Accelerator::Kvm => ("kvm", "host"),
    };
    arg("-M", "q35".into());
    arg("-accel", accelerator.into());
    arg("-cpu", cpu.into());
    arg("-smp", machine.cpus.to_string());
    arg("-m", "1536".into());
    arg("-display", "none".into());
    arg("-serial", format!("file:{}", machine.run.join(format!("{}.serial", host.name())).display()));
    arg("-kernel", machine.vmlinuz.display().to_string());
    arg("-initrd", machine.image.display().to_string());
    arg("-append", kernel_arguments(host));
    let shares = [("shift", &machine.share, "on"), ("cache", &machine.cache, "on"), ("folder", &machine.folder, "off")];
    for (tag, dir, readonly) in shares {
        arg("-fsdev", format!("local,id={tag},path={},security_model=none,readonly={readonly}", dir.display()));
        arg("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    arg("-device", "virtio-serial-pci".into());
    for (name, device) in [("agent", "virtserialport,name=shift.agent"), ("console", "virtconsole")] {
        let path = socket(&machine.run, host, name);
        arg("-chardev", format!("socket,id={name},path={},server=on,wait=off", path.display()));
        arg("-device", format!("{device},chardev={name}"));
    }
    arg("-qmp", format!("unix:{},server=on,wait=off", socket(&machine.run, host, "monitor").display()));
    for (link, _, port) in wire.ports.iter().filter(|(_, each, _)| *each == host) {
        cable(&mut arg, *link, host, *port);
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
}

/// The rails sit behind root ports of their own, since q35's root bus lets no device be torn out.
fn cable(arg: &mut impl FnMut(&str, String), link: Link, host: Host, port: u16) {
    let id = link.interface();
    arg("-netdev", format!("socket,id=net-{id},connect=127.0.0.1:{port}"));
    let bus = match link {
        Link::Management => String::new(),
        Link::Rail0 | Link::Rail1 | Link::Rail2 => {
            let slot = link.number();
            arg("-device", format!("pcie-root-port,id=slot-{id},bus=pcie.0,chassis={slot},slot={slot}"));
            format!(",bus=slot-{id}")
        }
    };
    arg("-device", format!("virtio-net-pci,id={id},netdev=net-{id},mac={},romfile={bus}", link.hardware(host)));
}

/// A guest that panics must end, so that it is seen; waiting for entropy or a watchdog under emulation helps nobody.
/// `norandmaps`: QEMU keeps what it translated of a program by its address, so every process at addresses of its own is translated anew, page by page as it
/// comes to it. A failover, which runs once in a process, took three times as long for that alone.
fn kernel_arguments(host: Host) -> String {
    format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on mitigations=off nowatchdog norandmaps \
         shift.host={} shift.octet={}",
        host.name(),
        host.octet()
    )
}
