//! What a scenario holds in its hands: two guests, the wire, and the faults.

use std::time::Duration;

use crate::clock::{monotonic_ns, until};
use crate::guest::{Guest, Program, Running};
use crate::pair::{Pair, Setup};
use crate::place::{Host, Link, Rail};
use crate::trouble::{Result, Trouble};
use crate::wire::control::Control;

/// Both rails and the management link are up within this after a reset, or the pair is given up.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Destroying a queue pair of a dead link may take soft-RoCE a minute (`rxe_destroy_qp: cleanup failed`); a fresh pair takes 7 s.
const QUIET_LIMIT: Duration = Duration::from_secs(8);

/// How a server says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// It listens on this TCP port.
    Tcp(u16),
    /// It listens by the RDMA connection manager, on any port.
    Cm,
}

impl From<u16> for Listens {
    fn from(port: u16) -> Listens {
        Listens::Tcp(port)
    }
}

/// A pair of guests, and what can be done to it.
#[derive(Debug)]
pub struct Lab {
    setup: Setup,
    pair: Pair,
    spoiled: bool,
    death_expected: bool,
}

impl Lab {
    /// A lab around a booted pair.
    pub fn new(setup: Setup, pair: Pair) -> Lab {
        Lab { setup, pair, spoiled: false, death_expected: false }
    }

    /// Host A, by custom the client.
    pub fn a(&self) -> &Guest {
        self.pair.guest(Host::A)
    }

    /// Host B, by custom the server.
    pub fn b(&self) -> &Guest {
        self.pair.guest(Host::B)
    }

    /// Either host.
    pub fn guest(&self, host: Host) -> &Guest {
        self.pair.guest(host)
    }

    /// The wire: rules, counts, log.
    pub fn wire(&self) -> &Control {
        &self.pair.wire
    }

    /// Where things are on this machine.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The pair itself.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// What the programs of this scenario have said last.
    pub fn transcript(&self) -> Vec<String> {
        Host::ALL.into_iter().flat_map(|host| self.guest(host).transcript()).collect()
    }

    /// The scenario itself is going to kill a guest.
    pub fn expect_death(&mut self) {
        self.spoil();
        self.death_expected = true;
    }

    /// Whether it is.
    pub fn is_death_expected(&self) -> bool {
        self.death_expected
    }

    /// A guest that died or panicked.
    pub fn death(&mut self) -> Option<Trouble> {
        self.pair.death()
    }

    /// The guests are not to be used by another scenario.
    pub fn spoil(&mut self) {
        self.spoiled = true;
    }

    /// Whether they are.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Takes the interface of `rail` down inside `host`; returns when it was, host-monotonic.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn cut(&self, host: Host, rail: Rail) -> Result<u64> {
        self.set_interface(host, rail, "down")
    }

    /// Takes it up again.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn mend(&self, host: Host, rail: Rail) -> Result<u64> {
        self.set_interface(host, rail, "up")
    }

    fn set_interface(&self, host: Host, rail: Rail, state: &str) -> Result<u64> {
        let command = format!("/sbin/ip link set {} {state}", rail.link().interface());
        let running = self.guest(host).spawn(&Program::words(&command))?;
        let at_ns = monotonic_ns();
        let ended = running.wait(Duration::from_secs(60))?;
        if ended.succeeded() {
            Ok(at_ns)
        } else {
            Err(Trouble::setup(format!("{command} on {}: {}", host.name(), ended.brief())))
        }
    }

    /// Makes the RDMA device of `rail` anew on both hosts. After a link was down with a message of the RDMA connection manager under way, soft-RoCE's
    /// queue pair 1 sends none any more, though the link is up again: nobody connects by it from then on.
    ///
    /// # Errors
    /// A guest is lost, or the device is in use.
    pub fn renew(&self, rail: Rail) -> Result<()> {
        let (device, interface) = (rail.device(), rail.link().interface());
        let renew = format!("rdma link delete {device}; {}", make_device(device, &interface));
        for host in Host::ALL {
            self.guest(host).shell(&renew)?;
        }
        self.wait_ready()
    }

    /// Brings the third rail up on both hosts, until the next [`Lab::reset`].
    ///
    /// # Errors
    /// A guest is lost, or the rail carries nothing within a minute.
    pub fn raise(&self) -> Result<()> {
        let (link, device) = (Rail::Two.link(), Rail::Two.device());
        let interface = link.interface();
        for host in Host::ALL {
            let address = link.address(host);
            self.guest(host).shell(&format!(
                "/sbin/ip link set {interface} mtu {} up && /sbin/ip addr replace {address}/24 dev {interface} && \
                 rdma link add {device} type rxe netdev {interface} && /bin/busybox chmod 666 /dev/infiniband/*",
                link.mtu()
            ))?;
        }
        for host in Host::ALL {
            let line = format!("/bin/busybox ping -c 1 -W 2 {}", link.address(host.peer()));
            until("the third rail to be up", READY_LIMIT, || {
                let ended = self.guest(host).run(&Program::shell(&line), READY_LIMIT)?;
                Ok(ended.succeeded().then_some(()))
            })?;
        }
        Ok(())
    }

    /// Takes the carrier of `rail` away from `host` alone, or gives it back: a fault that this host sees.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn set_carrier(&mut self, host: Host, rail: Rail, up: bool) -> Result<u64> {
        let at_ns = monotonic_ns();
        self.pair.monitor(host).set_link(&rail.link().interface(), up)?;
        Ok(at_ns)
    }

    /// Stops a host, or the checking application there, until [`Lab::wake_up`].
    ///
    /// # Errors
    /// QEMU refuses, or the guest is lost.
    pub fn fall_asleep(&mut self, host: Host, whole: bool) -> Result<u64> {
        let at_ns = monotonic_ns();
        if whole {
            self.pair.monitor(host).execute("stop", serde_json::json!({}))?;
        } else {
            self.guest(host).shell("/bin/busybox killall -STOP shift-checker")?;
        }
        Ok(at_ns)
    }

    /// See [`Lab::fall_asleep`].
    ///
    /// # Errors
    /// As there.
    pub fn wake_up(&mut self, host: Host, whole: bool) -> Result<()> {
        if whole {
            self.pair.monitor(host).execute("cont", serde_json::json!({})).map(drop)
        } else {
            self.guest(host).shell("/bin/busybox killall -CONT shift-checker").map(drop)
        }
    }

    /// Tears the network card of `rail` out of `host`. The pair is spoiled by it.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn tear_out(&mut self, host: Host, rail: Rail) -> Result<u64> {
        self.spoil();
        let at_ns = monotonic_ns();
        self.pair.monitor(host).device_del(&rail.link().interface())?;
        Ok(at_ns)
    }

    /// Plugs it in again, and makes its RDMA device; returns once both rails are usable.
    ///
    /// # Errors
    /// It is not gone from there within 30 s, or does not come back within a minute.
    pub fn plug_in(&mut self, host: Host, rail: Rail) -> Result<()> {
        let (link, device) = (rail.link(), rail.device());
        let (card, mac) = (link.interface(), link.hardware(host));
        let monitor = self.pair.monitor(host);
        until("the slot to be free", Duration::from_secs(30), || Ok(monitor.device_add(&card, &mac).ok()))?;
        until("the card to be there", READY_LIMIT, || {
            Ok(self.guest(host).shell("ls /sys/class/net")?.contains(&card).then_some(()))
        })?;
        self.guest(host).shell(&format!("{} && {}", raise_card(host, rail), make_device(device, &card)))?;
        self.wait_ready()
    }

    /// Takes the driver off the card of a rail: its interface goes, and the RDMA device with it. The kernel waits for everybody who has the device open.
    ///
    /// # Errors
    /// The guest refuses.
    pub fn unbind(&mut self, host: Host, rail: Rail) -> Result<Running> {
        self.spoil();
        let card = rail.link().interface();
        let line = format!(
            "d=$(/bin/busybox readlink /sys/class/net/{card}/device) && d=${{d##*/}} && echo $d > /tmp/unbound-{card} && \
             echo $d > /sys/bus/virtio/drivers/virtio_net/unbind"
        );
        self.guest(host).spawn(&Program::shell(&line))
    }

    /// Gives it back, with its RDMA device.
    ///
    /// # Errors
    /// The guest refuses.
    pub fn bind(&mut self, host: Host, rail: Rail) -> Result<()> {
        let card = rail.link().interface();
        let line = format!(
            "echo $(/bin/busybox cat /tmp/unbound-{card}) > /sys/bus/virtio/drivers/virtio_net/bind && {} && {}",
            raise_card(host, rail),
            make_device(rail.device(), &card)
        );
        self.guest(host).shell(&line).map(drop)
    }

    /// Starts `server` on `host`, waits until it listens, then starts `client` on the other host.
    ///
    /// # Errors
    /// One of them cannot be started, or the server ends or does not listen within 60 s.
    pub fn start_pair(
        &self,
        host: Host,
        listens: impl Into<Listens>,
        server: &Program,
        client: &Program,
    ) -> Result<(Running, Running)> {
        let server = self.guest(host).spawn(server)?;
        match listens.into() {
            Listens::Tcp(port) => self.wait_listening(&server, port)?,
            Listens::Cm => self.wait_cm_listening(&server)?,
        }
        Ok((server, self.guest(host.peer()).spawn(client)?))
    }

    /// Waits until somebody on the host of `server` listens by the RDMA connection manager.
    fn wait_cm_listening(&self, server: &Running) -> Result<()> {
        until("a listener of the RDMA connection manager", Duration::from_secs(60), || {
            if let Some(ended) = server.ended() {
                return Err(Trouble::judged(format!("the server ended before it listened: {}", ended.brief())));
            }
            let ids = self.guest(server.host()).shell("rdma resource show cm_id")?;
            Ok(ids.contains("LISTEN").then_some(()))
        })
    }

    /// Waits until somebody on the host of `server` listens on TCP `port`.
    ///
    /// # Errors
    /// `server` ends first, or nobody does within 60 s.
    pub fn wait_listening(&self, server: &Running, port: u16) -> Result<()> {
        until(&format!("a listener on port {port}"), Duration::from_secs(60), || {
            if let Some(ended) = server.ended() {
                return Err(Trouble::judged(format!("the server ended before it listened: {}", ended.brief())));
            }
            Ok(self.is_listening(server.host(), port)?.then_some(()))
        })
    }

    /// Whether somebody on the host listens on TCP `port`.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn is_listening(&self, host: Host, port: u16) -> Result<bool> {
        let guest = self.guest(host);
        let tables = [guest.read("/proc/net/tcp")?, guest.read("/proc/net/tcp6")?];
        Ok(tables.iter().any(|table| has_listener(table, port)))
    }

    /// Waits until `packets` more RoCE packets have gone over `rail`, both directions together; false if `gone` says stop first.
    ///
    /// # Errors
    /// They do not within `limit`, or the wire is gone.
    pub fn wait_traffic(&self, rail: Rail, packets: u64, limit: Duration, gone: impl Fn() -> bool) -> Result<bool> {
        let carried = || -> Result<u64> {
            let counts = self.wire().counts()?;
            let sum = |host| counts.flow(rail.link(), host).opcodes.values().sum::<u64>();
            Ok(sum(Host::A) + sum(Host::B))
        };
        let goal = carried()? + packets;
        until(&format!("{packets} packets on {}", rail.device()), limit, || {
            Ok(if carried()? >= goal {
                Some(true)
            } else if gone() {
                Some(false)
            } else {
                None
            })
        })
    }

    /// Brings everything back to how it was after the boot: no rule, nothing running, rails up and usable.
    ///
    /// # Errors
    /// It cannot be done: the pair is not to be used any more.
    pub fn reset(&mut self) -> Result<()> {
        self.wire().clear()?;
        for host in Host::ALL {
            for rail in Rail::THREE {
                self.set_carrier(host, rail, true)?;
            }
            self.guest(host).kill_all()?;
            // Before the wait: a queue pair whose packets lie in a card that is down is let go only when it is up.
            self.guest(host).shell(RESTORE)?;
        }
        for host in Host::ALL {
            self.guest(host).wait_quiet(QUIET_LIMIT)?;
        }
        self.wait_ready()?;
        self.forget_ended();
        Ok(())
    }

    /// Forgets the programs that have ended, so that a transcript begins here.
    pub fn forget_ended(&self) {
        Host::ALL.into_iter().for_each(|host| self.guest(host).forget_ended());
    }

    /// Waits until both rails and the management link carry packets and the RDMA devices are active.
    ///
    /// # Errors
    /// They do not within a minute.
    pub fn wait_ready(&self) -> Result<()> {
        for host in Host::ALL {
            let peer = Link::ALL.map(|link| link.address(host.peer())).join(" ");
            until(&format!("both rails of {} to be up", host.name()), READY_LIMIT, || {
                let line = format!("{ACTIVE} && for p in {peer}; do /bin/busybox ping -c 1 -W 2 $p || exit 1; done");
                let ended = self.guest(host).run(&Program::shell(&line), READY_LIMIT)?;
                Ok(ended.succeeded().then_some(()))
            })?;
        }
        Ok(())
    }
}

/// The line that gives a card that came back its address.
fn raise_card(host: Host, rail: Rail) -> String {
    let link = rail.link();
    let (card, mtu, address) = (link.interface(), link.mtu(), link.address(host));
    format!("/sbin/ip link set {card} mtu {mtu} && /sbin/ip addr add {address}/24 dev {card} && /sbin/ip link set {card} up")
}

/// The line that makes an RDMA device which everybody may open.
pub fn make_device(device: &str, interface: &str) -> String {
    format!("rdma link add {device} type rxe netdev {interface} && /bin/busybox chmod 666 /dev/infiniband/*")
}

/// Both RDMA devices have their port up.
const ACTIVE: &str =
    "for d in rxe0 rxe1; do read s < /sys/class/infiniband/$d/ports/1/state; [ \"$s\" = '4: ACTIVE' ] || exit 1; done";

/// Interfaces up with their addresses; a missing RDMA device is made again, the third rail goes.
const RESTORE: &str = "for n in 1 2; do
    /sbin/ip link set eth$n up
    d=rxe$((n - 1))
    [ -e /sys/class/infiniband/$d ] || rdma link add $d type rxe netdev eth$n
done
[ ! -e /sys/class/infiniband/rxe2 ] || rdma link delete rxe2
/sbin/ip link set eth3 down";

/// /proc/net/tcp: a socket in state LISTEN (0A) on that local port.
fn has_listener(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listening_socket_of_that_port_counts() {
        let table = "  sl  local_address rem_address   st\n   0: 00000000:4853 00000000:0000 0A 0\n   1: 0100007F:4854 0100007F:8000 01 0\n";
        assert!(has_listener(table, 0x4853));
        assert!(!has_listener(table, 0x4854));
        assert!(!has_listener(table, 0x853));
    }
}
