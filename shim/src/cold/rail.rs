//! The devices, each opened once more for this library itself.
//!
//! Owns: the table of rails. A rail's own context carries the standby objects and the probes, and its async fd tells of ports
//! without taking an event from the application. It stays open as long as the process lives, or its device does ([`presence`]).

use crate::cold::presence::Presence;
use crate::cold::topology::{self, Candidate, Seat};
use crate::process;
use crate::real;
use crate::shadow::{ProviderOps, Raw};
use crate::wait::errno;
use shift_abi::*;
use shift_control::datapath::DeviceId;
use shift_control::datapath::Event;
use shift_control::Config;
use shift_proto::id::MAX_STANDBYS;
use std::ffi::CStr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// GIDs read per device: soft-RoCE and mlx5 have at most 256.
const GIDS: usize = 256;
/// `vendor_id` of NVIDIA's NICs.
const MELLANOX_VENDOR: u32 = 0x02c9;
/// Set to "1" it makes libmlx5 leave out every lock (*S*: `single_threaded_app` in providers/mlx5/mlx5.c).
const SINGLE_THREADED: &str = "MLX5_SINGLE_THREADED";
/// `vendor_id` of soft-RoCE (drivers/infiniband/sw/rxe/rxe_param.h).
const RXE_VENDOR: u32 = 0xff_ffff;
/// Kernel releases on which soft-RoCE's rq_psn was seen to be final after ERR, drain, RESET: series and first patch level. Earlier ones execute a
/// SEND again under ERR (mended by 49dc9c1f0c7e).
const RXE_TABLED: &[(&str, u32)] = &[("6.12.", 117)];

/// A device of this host.
pub struct Rail {
    /// Index into the table.
    pub id: u16,
    /// "rxe0".
    pub name: String,
    /// This library's own context.
    pub context: Raw<ibv_context>,
    /// Its functions.
    pub ops: ProviderOps,
    /// What it can do.
    pub attr: ibv_device_attr,
    /// Port used: the first.
    pub port: u8,
    /// What it is a port of, if it says so.
    pub link_layer: Option<u8>,
    /// May its final rq_psn be taken for a proof?
    pub psn_is_proof: bool,
    /// PD of the probes.
    pub pd: OnceLock<Option<Raw<ibv_pd>>>,
    /// Whether its device is there. One that comes back is another rail.
    pub presence: Presence,
}

/// The standbys that a device was given.
struct Chosen {
    primary: u16,
    /// By slot, those that are gone too: a slot is one device's for ever, for objects are made by it.
    slots: Vec<Standing>,
    /// Why there is none.
    why: String,
    since: Instant,
    /// The device is to be a standby of its own: see [`stand_in`].
    stands_in: bool,
}

static RAILS: Mutex<Vec<Arc<Rail>>> = Mutex::new(Vec::new());
static CHOICES: Mutex<Vec<Chosen>> = Mutex::new(Vec::new());
/// The slots that there are.
const MOST: u8 = MAX_STANDBYS as u8;
/// How long there being no further standby is believed: a device may come, or come back.
const NONE_FOR: Duration = Duration::from_secs(1);

/// The table.
pub fn rails() -> std::sync::MutexGuard<'static, Vec<Arc<Rail>>> {
    RAILS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does its provider leave out its locks? The agent is another thread, so nothing of such a process can be recorded.
pub fn has_no_locks(id: u16) -> bool {
    std::env::var_os(SINGLE_THREADED).is_some_and(|value| value == "1")
        && by_id(id).is_some_and(|rail| rail.attr.vendor_id == MELLANOX_VENDOR)
}

/// The rail with this number.
pub fn by_id(id: u16) -> Option<Arc<Rail>> {
    rails().get(usize::from(id)).cloned()
}

/// Name of a device.
pub fn name_of(device: *mut ibv_device) -> String {
    // SAFETY: the device is from libibverbs' list or an opened context, both live here.
    let name = unsafe { real::ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: libibverbs returns a NUL-terminated name that lives as long as the device.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Calls `visit` with each device of this host until it says something.
fn visit_devices<R>(mut visit: impl FnMut(*mut ibv_device, String) -> Option<R>) -> Option<R> {
    let mut count = 0;
    // SAFETY: `count` is writable.
    let list = unsafe { real::ibv_get_device_list(&mut count) };
    if list.is_null() {
        return None;
    }
    let mut found = None;
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries.
        let device = unsafe { *list.wrapping_add(at) };
        found = visit(device, name_of(device));
        if found.is_some() {
            break;
        }
    }
    // SAFETY: the list came from ibv_get_device_list and is freed once.
    unsafe { real::ibv_free_device_list(list) };
    found
}

/// The names of all devices, in libibverbs' order.
fn names() -> Vec<String> {
    let mut names = Vec::new();
    visit_devices(|_, name| -> Option<()> {
        names.push(name);
        None
    });
    names
}

/// The rail of this name, opened now if it was not.
pub fn named(name: &str) -> Result<Arc<Rail>, String> {
    let mut table = rails();
    if let Some(known) = table.iter().find(|rail| rail.name == name && !rail.presence.is_gone()) {
        return Ok(Arc::clone(known));
    }
    // Key frames have eight bits for it.
    let id = u8::try_from(table.len()).map(u16::from).map_err(|_| "too many devices".to_owned())?;
    let context = visit_devices(|device, found| {
        // SAFETY: the device is of the list that is being visited.
        (found == name).then(|| unsafe { real::ibv_open_device(device) })
    });
    let context = context.ok_or_else(|| format!("this host has no device {name}"))?;
    if context.is_null() {
        return Err(format!("device {name} cannot be opened"));
    }
    let rail = Arc::new(describe(id, name, Raw(context))?);
    table.push(Arc::clone(&rail));
    drop(table);
    watch(&rail);
    Ok(rail)
}

fn describe(id: u16, name: &str, context: Raw<ibv_context>) -> Result<Rail, String> {
    let ops =
        crate::cold::device::ops_of(context.0).ok_or_else(|| format!("device {name} has no post or poll function"))?;
    let mut attr = ibv_device_attr::zeroed();
    // SAFETY: the context was just opened; `attr` is writable.
    let errno = unsafe { real::ibv_query_device(context.0, &mut attr) };
    if errno != 0 {
        return Err(format!("device {name} does not say what it can do (errno {errno})"));
    }
    let mut port = ibv_port_attr::zeroed();
    // SAFETY: the context was just opened; `port` is writable and at least as long as what the function fills.
    let is_known = unsafe { real::ibv_query_port(context.0, 1, &mut port) } == 0;
    let psn_is_proof = attr.vendor_id == RXE_VENDOR && kernel_is_tabled();
    Ok(Rail {
        id,
        name: name.to_owned(),
        context,
        ops,
        attr,
        port: 1,
        link_layer: is_known.then_some(port.link_layer),
        psn_is_proof,
        pd: OnceLock::new(),
        presence: Presence::of(context.0),
    })
}

fn kernel_is_tabled() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    RXE_TABLED.iter().any(|(series, first)| {
        release.strip_prefix(series).is_some_and(|rest| {
            let patch: String = rest.chars().take_while(char::is_ascii_digit).collect();
            patch.parse::<u32>().is_ok_and(|patch| patch >= *first)
        })
    })
}

/// Lets the agent watch the rail's async events.
fn watch(rail: &Rail) {
    // SAFETY: the context is open for ever.
    let fd = unsafe { (*rail.context.0).async_fd };
    // SAFETY: fcntl on a descriptor of our own.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    process::tell(Event::DeviceOpened { device: DeviceId(rail.id), async_fd: fd });
}

/// Reads what the async fd has; tells of ports. One that cannot be read any more is that of a device that was taken away.
pub fn read_async(rail: &Rail) {
    let Some(_open) = rail.presence.keep_open() else { return };
    loop {
        let mut event = ibv_async_event::zeroed();
        // SAFETY: the context is open; the descriptor does not block; `event` is writable.
        if unsafe { real::ibv_get_async_event(rail.context.0, &mut event) } != 0 {
            if errno() == libc::EIO {
                process::tell(Event::Port { device: DeviceId(rail.id), up: false });
            }
            return;
        }
        let up = match event.event_type {
            IBV_EVENT_PORT_ERR | IBV_EVENT_DEVICE_FATAL => Some(false),
            IBV_EVENT_PORT_ACTIVE => Some(true),
            _ => None,
        };
        crate::cold::asynchronous::of_twin(&event);
        // SAFETY: the event was just got and is acknowledged once.
        unsafe { real::ibv_ack_async_event(&mut event) };
        if let Some(up) = up {
            process::tell(Event::Port { device: DeviceId(rail.id), up });
        }
    }
}

impl Rail {
    /// Its atomics exclude those of other devices, and the processor's (IBV_ATOMIC_GLOB). Soft-RoCE claims only IBV_ATOMIC_HCA, but has one lock for
    /// all its devices (rxe_mr.c, `atomic_ops_lock`).
    pub fn is_atomic_host_wide(&self) -> bool {
        self.attr.atomic_cap == IBV_ATOMIC_GLOB || self.is_rxe()
    }

    /// Is it soft-RoCE?
    pub fn is_rxe(&self) -> bool {
        self.attr.vendor_id == RXE_VENDOR
    }

    /// Its port's attributes.
    pub fn port_attr(&self) -> Option<ibv_port_attr> {
        let _open = self.presence.keep_open()?;
        let mut attr = ibv_port_attr::zeroed();
        // SAFETY: the context is open; `attr` is writable and at least as long as what the function fills.
        let errno = unsafe { real::ibv_query_port(self.context.0, self.port, &mut attr) };
        (errno == 0).then_some(attr)
    }

    /// The GID with this index, of any port state.
    pub fn gid_at(&self, port: u8, index: u8) -> Option<ibv_gid_entry> {
        self.gids().into_iter().find(|entry| entry.port_num == u32::from(port) && entry.gid_index == u32::from(index))
    }

    /// All GIDs, looked up anew: after a link went down and up the index of a GID may differ.
    pub fn gids(&self) -> Vec<ibv_gid_entry> {
        let Some(_open) = self.presence.keep_open() else { return Vec::new() };
        let mut entries = vec![ibv_gid_entry::zeroed(); GIDS];
        // SAFETY: the array has room for GIDS entries of the stated size.
        let count = unsafe {
            real::_ibv_query_gid_table(self.context.0, entries.as_mut_ptr(), GIDS, 0, size_of::<ibv_gid_entry>())
        };
        entries.truncate(usize::try_from(count).unwrap_or(0));
        entries
    }

    /// The GID here that is of the same kind as `like`: same type, same address family and scope.
    pub fn gid_like(&self, like: &ibv_gid, kind: Option<ibv_gid_type>) -> Option<ibv_gid_entry> {
        let family = family_of(like);
        self.gids()
            .into_iter()
            .filter(|entry| entry.port_num == u32::from(self.port))
            .filter(|entry| kind.is_none_or(|kind| entry.gid_type == kind))
            .find(|entry| family_of(&entry.gid) == family)
    }

    /// Where a GID that was chosen before is now.
    pub fn gid_again(&self, chosen: &ibv_gid_entry, port: u8) -> Option<ibv_gid_entry> {
        let same = |entry: &ibv_gid_entry| entry.gid.raw == chosen.gid.raw && entry.gid_type == chosen.gid_type;
        self.gids().into_iter().find(|entry| same(entry) && entry.port_num == u32::from(port))
    }

    /// Index and attributes of the GID with this value.
    pub fn gid_by_value(&self, value: &[u8; 16]) -> Option<ibv_gid_entry> {
        self.gids().into_iter().find(|entry| entry.gid.raw == *value)
    }

    /// The PD of the probes.
    pub fn own_pd(&self) -> Option<Raw<ibv_pd>> {
        let _open = self.presence.keep_open()?;
        *self.pd.get_or_init(|| {
            // SAFETY: the context is open.
            let pd = unsafe { real::ibv_alloc_pd(self.context.0) };
            (!pd.is_null()).then_some(Raw(pd))
        })
    }
}

/// Address family and scope of a GID.
#[derive(PartialEq, Eq)]
enum Family {
    Ipv4,
    LinkLocal,
    Other,
}

fn family_of(gid: &ibv_gid) -> Family {
    match gid.raw {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => Family::Ipv4,
        [0xfe, 0x80, ..] => Family::LinkLocal,
        _ => Family::Other,
    }
}

/// A device that stands by for another one.
#[derive(Clone)]
pub struct Standing {
    /// Its number among the standbys of that one.
    pub slot: u8,
    /// Which.
    pub rail: Arc<Rail>,
    /// As the agent has it in `Choice`.
    pub rank: u8,
}

/// The standbys of a device, the best first. They are chosen once per process; where one is gone, or there are fewer than wanted, others are looked for.
pub fn standbys_of(primary: &Rail) -> Result<Vec<Standing>, String> {
    let config = &process::get().ok_or("the shim is inert")?.config;
    let mut choices = CHOICES.lock().unwrap_or_else(PoisonError::into_inner);
    let at = choices.iter().position(|chosen| chosen.primary == primary.id).unwrap_or(choices.len());
    if at == choices.len() {
        let slots = Vec::new();
        let (why, since) = (String::new(), Instant::now());
        let mut chosen = Chosen { primary: primary.id, slots, why, since, stands_in: false };
        chosen.fill(primary, config);
        choices.push(chosen);
    }
    let chosen = choices.get_mut(at).ok_or("its standby vanished")?;
    if chosen.present().count() < chosen.wanted(primary, config) && chosen.since.elapsed() >= NONE_FOR {
        chosen.fill(primary, config);
    }
    let mut standbys: Vec<Standing> = chosen.present().cloned().collect();
    if standbys.is_empty() {
        return Err(chosen.why.clone());
    }
    standbys.sort_by_key(|standing| standing.rank);
    Ok(standbys)
}

/// The device is to be a standby of its own beside the others: the peers' ends of its rail were replaced, and the application's queue pairs are connected to
/// those that were there before. `false`: it is already.
pub fn stand_in(primary: u16) -> bool {
    let mut choices = CHOICES.lock().unwrap_or_else(PoisonError::into_inner);
    let chosen = choices.iter_mut().find(|chosen| chosen.primary == primary);
    chosen.is_some_and(|chosen| !std::mem::replace(&mut chosen.stands_in, true))
}

impl Chosen {
    fn present(&self) -> impl Iterator<Item = &Standing> {
        self.slots.iter().filter(|standing| !standing.rail.presence.is_gone())
    }

    fn wanted(&self, primary: &Rail, config: &Config) -> usize {
        let list = config.standby.iter().find(|(from, _)| *from == primary.name);
        let listed = list.map_or(usize::from(config.standbys), |(_, list)| list.len());
        listed + usize::from(self.stands_in || primary.presence.is_gone())
    }

    /// Devices for its slots, the best first.
    fn candidates(&self, primary: &Rail, config: &Config) -> Result<Vec<(Arc<Rail>, u8)>, String> {
        let found = choose(primary, config);
        // What took the place of a device that is gone stands by for what is left of that one.
        let beside = if self.stands_in || primary.presence.is_gone() { named(&primary.name).ok() } else { None };
        let Some(beside) = beside else { return found };
        let mut found = found.unwrap_or_default();
        let rank = found.iter().map(|(_, rank)| rank.saturating_add(1)).max().unwrap_or(0);
        found.retain(|(rail, _)| rail.id != beside.id);
        found.push((beside, rank));
        Ok(found)
    }

    /// Gives slots to devices that have none.
    fn fill(&mut self, primary: &Rail, config: &Config) {
        self.since = Instant::now();
        let room = self.wanted(primary, config).saturating_sub(self.present().count());
        let known: Vec<u16> = self.present().map(|standing| standing.rail.id).collect();
        match self.candidates(primary, config) {
            Ok(found) => {
                for (rail, rank) in found.into_iter().filter(|(rail, _)| !known.contains(&rail.id)).take(room) {
                    let Some(slot) = u8::try_from(self.slots.len()).ok().filter(|slot| *slot < MOST) else { return };
                    match engage(&rail) {
                        Ok(()) => self.slots.push(Standing { slot, rail, rank }),
                        Err(why) => self.why = why,
                    }
                }
            }
            Err(why) => self.why = why,
        }
    }
}

/// From here on objects of queue pairs may be on it.
fn engage(rail: &Rail) -> Result<(), String> {
    if rail.presence.engage() {
        Ok(())
    } else {
        Err(format!("device {} was removed", rail.name))
    }
}

/// Devices that may stand by, the best first, with their ranks.
fn choose(primary: &Rail, config: &Config) -> Result<Vec<(Arc<Rail>, u8)>, String> {
    if let Some((_, wanted)) = config.standby.iter().find(|(from, _)| *from == primary.name) {
        return as_wanted(primary, wanted);
    }
    if !config.standby.is_empty() {
        return Err(format!("SHIFT_STANDBY names no standby for {}", primary.name));
    }
    let names = names();
    // One that is gone may not be in the list any more: then the others follow from its beginning.
    let own = names.iter().position(|name| *name == primary.name).filter(|_| !primary.presence.is_gone());
    let (own, first) = own.map_or((0, 0), |own| (own, 1));
    let sysfs = Path::new(topology::SYSFS);
    let candidate = |step: usize| {
        let rail = names.get((own + step) % names.len()).and_then(|name| named(name).ok())?;
        let port = rail.port_attr().filter(|port| Some(port.link_layer) == primary.link_layer)?;
        let is_active = port.state == IBV_PORT_ACTIVE;
        Some(Candidate { name: rail.name.clone(), is_active, seat: Seat::read(sysfs, &rail.name) })
    };
    let ranked =
        topology::ordered(&Seat::read(sysfs, &primary.name), (first..names.len()).filter_map(candidate).collect());
    let of = |(name, rank): (String, u8)| named(&name).ok().map(|rail| (rail, rank));
    let found: Vec<(Arc<Rail>, u8)> = ranked.into_iter().filter_map(of).collect();
    if found.is_empty() {
        return Err(format!("this host has no second RDMA device beside {}", primary.name));
    }
    Ok(found)
}

/// As the operator has ordered them. A device that is not there is named; without any of them there is no protection.
fn as_wanted(primary: &Rail, wanted: &[String]) -> Result<Vec<(Arc<Rail>, u8)>, String> {
    let of = |name: &String| {
        named(name).map_err(|why| format!("SHIFT_STANDBY names {name} as the standby of {}: {why}", primary.name))
    };
    let (mut chosen, mut missing) = (Vec::new(), None);
    for (rank, name) in (0..).zip(wanted) {
        match of(name) {
            Ok(rail) => chosen.push((rail, rank)),
            Err(why) => {
                crate::cold::tell::once(&why, &why);
                missing.get_or_insert(why);
            }
        }
    }
    match missing {
        Some(why) if chosen.is_empty() => Err(why),
        _ => Ok(chosen),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Enters a rail of no device into the table, where it stays: its number is its place.
    pub(crate) fn entered(ops: ProviderOps, presence: Presence) -> Arc<Rail> {
        let mut table = rails();
        let rail = Arc::new(Rail {
            id: table.len() as u16,
            name: "none".to_owned(),
            context: Raw(core::ptr::null_mut()),
            ops,
            attr: ibv_device_attr::zeroed(),
            port: 1,
            link_layer: None,
            psn_is_proof: false,
            pd: OnceLock::new(),
            presence,
        });
        table.push(Arc::clone(&rail));
        rail
    }
}
