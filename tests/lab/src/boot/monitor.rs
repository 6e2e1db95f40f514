//! QEMU's machine protocol (QMP): the faults that a host can see, made from outside of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::until;
use crate::trouble::{Concerning, Result, Trouble};

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Monitor {
    socket: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, once the socket exists.
    ///
    /// # Errors
    /// QEMU does not open it within ten seconds, or does not speak QMP.
    pub fn connect(path: &Path) -> Result<Monitor> {
        let stream = until("the monitor of QEMU", Duration::from_secs(10), || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut monitor = Monitor { socket: BufReader::new(stream) };
        monitor.read()?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Takes the carrier of a device away or gives it back; the guest sees it.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn set_link(&mut self, device: &str, up: bool) -> Result<()> {
        self.execute("set_link", json!({ "name": device, "up": up })).map(drop)
    }

    /// Tears a device out. The guest notices a little later.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn device_del(&mut self, device: &str) -> Result<()> {
        self.execute("device_del", json!({ "id": device })).map(drop)
    }

    /// Plugs a network card in again that was torn out: the same, in the same slot, on the same cable.
    ///
    /// # Errors
    /// QEMU refuses: the old one is not gone yet.
    pub fn device_add(&mut self, device: &str, mac: &str) -> Result<()> {
        let (slot, netdev) = (format!("slot-{device}"), format!("net-{device}"));
        let card = json!({ "driver": "virtio-net-pci", "id": device, "bus": slot, "netdev": netdev, "mac": mac, "romfile": "" });
        self.execute("device_add", card).map(drop)
    }

    /// Runs one command and returns what it gives.
    ///
    /// # Errors
    /// QEMU refuses or is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.socket.get_mut(), "{line}").concerning("monitor")?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(Trouble::setup(format!("QEMU {command}: {error}")));
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.socket.read_line(&mut line).concerning("monitor")?;
        serde_json::from_str(&line).concerning("monitor")
    }
}
