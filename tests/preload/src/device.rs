//! One device and what is wrong with it: the edits and refusals, and the slots of opened contexts that are replaced.

use crate::fault::{parse, Fault, Kind, VARIABLE};
use shift_abi::*;
use std::collections::HashMap;
use std::ffi::{c_int, CStr};
use std::io::Write;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The faults of this process, read once.
fn faults() -> &'static [Fault] {
    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
    FAULTS.get_or_init(|| match parse(&std::env::var(VARIABLE).unwrap_or_default()) {
        Ok(faults) => faults,
        Err(bad) => {
            let _ = writeln!(std::io::stderr(), "libshift_preload: {bad}");
            std::process::abort()
        }
    })
}

/// A device by its name.
pub(crate) struct Device {
    name: String,
}

impl Device {
    /// # Safety
    ///
    /// `context` is an open context.
    pub(crate) unsafe fn of_context(context: *mut ibv_context) -> Self {
        // SAFETY: an open context names its device.
        let device = unsafe { (*context).device };
        // SAFETY: a device outlives its contexts; its name is an array inside of it.
        let name = unsafe { &raw const (*device).name };
        // SAFETY: libibverbs ends the name with a NUL within the array.
        let name = unsafe { CStr::from_ptr(name.cast()) };
        Self { name: name.to_string_lossy().into_owned() }
    }

    /// # Safety
    ///
    /// `pd` is an open protection domain.
    pub(crate) unsafe fn of_pd(pd: *mut ibv_pd) -> Self {
        // SAFETY: an open PD names its context.
        let context = unsafe { (*pd).context };
        // SAFETY: the context of an open PD is open.
        unsafe { Self::of_context(context) }
    }

    /// What is wrong with it.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        faults().iter().filter(|fault| fault.device == self.name).map(|fault| fault.kind)
    }

    /// A line on stderr, if it is asked for.
    pub(crate) fn say(&self, refusal: &str) {
        if std::env::var_os("PRELOAD_SAY").is_some() {
            let _ = writeln!(std::io::stderr(), "libshift_preload: {}: {refusal}", self.name);
        }
    }

    /// The errno with which such a queue pair is refused, if it is.
    pub(crate) fn refuses_qp(&self, qp_type: ibv_qp_type, cap: &ibv_qp_cap) -> Option<c_int> {
        let refusal = |kind| match kind {
            Kind::NoRc if qp_type == IBV_QPT_RC => Some((libc::EOPNOTSUPP, "no queue pair of type RC")),
            Kind::Inline(bytes) if cap.max_inline_data > bytes => Some((libc::EINVAL, "too much inline room")),
            Kind::Sge(count) if cap.max_send_sge.max(cap.max_recv_sge) > count => Some((libc::EINVAL, "too many SGEs")),
            Kind::NoRc | Kind::Inline(_) | Kind::Sge(_) => None,
            Kind::RdAtom(_) | Kind::NoMr(_) | Kind::PortDown | Kind::Mtu(_) | Kind::NoVendor => None,
            Kind::Break(_) | Kind::PostRefused(_) | Kind::WatchFences | Kind::EarlyPsn | Kind::VoidPsn => None,
            Kind::Guids | Kind::Fatal => None,
        };
        let gone = || self.is_gone().then_some((libc::EIO, "no queue pair of a device that is gone"));
        let (errno, why) = self.kinds().find_map(refusal).or_else(gone)?;
        self.say(why);
        Some(errno)
    }

    /// Whether it was taken away: its port went down once, and that is the end of it.
    pub(crate) fn is_gone(&self) -> bool {
        if !self.kinds().any(|kind| kind == Kind::Fatal) {
            return false;
        }
        let mut taken = locked(&TAKEN);
        let known = taken.get_or_insert_with(HashMap::new).entry(self.name.clone()).or_default();
        let is_due = known.looked.is_none_or(|looked| looked.elapsed() > LOOK);
        if !known.is_gone && is_due {
            let state = std::fs::read_to_string(format!("/sys/class/infiniband/{}/ports/1/state", self.name));
            known.is_gone = state.is_ok_and(|state| !state.contains("ACTIVE"));
            known.looked = Some(Instant::now());
            if known.is_gone {
                self.say("the device is gone");
            }
        }
        known.is_gone
    }

    /// Grants no more than the device has.
    pub(crate) fn edit_cap(&self, cap: &mut ibv_qp_cap) {
        for kind in self.kinds() {
            match kind {
                Kind::Inline(bytes) => cap.max_inline_data = cap.max_inline_data.min(bytes),
                Kind::Sge(count) => {
                    cap.max_send_sge = cap.max_send_sge.min(count);
                    cap.max_recv_sge = cap.max_recv_sge.min(count);
                }
                Kind::NoRc | Kind::RdAtom(_) | Kind::NoMr(_) | Kind::PortDown | Kind::Mtu(_) | Kind::NoVendor => {}
                Kind::Break(_) | Kind::PostRefused(_) | Kind::WatchFences | Kind::EarlyPsn | Kind::VoidPsn => {}
                Kind::Guids | Kind::Fatal => {}
            }
        }
    }

    /// The errno with which such a modification is refused, if it is.
    pub(crate) fn refuses_attr(&self, attr: &ibv_qp_attr, mask: u32) -> Option<c_int> {
        let asked = |bit: u32, value: u8| if mask & bit != 0 { value } else { 0 };
        let requester = asked(IBV_QP_MAX_QP_RD_ATOMIC, attr.max_rd_atomic);
        let most = requester.max(asked(IBV_QP_MAX_DEST_RD_ATOMIC, attr.max_dest_rd_atomic));
        if self.is_gone() {
            self.say("a modification of a device that is gone");
            return Some(libc::EIO);
        }
        let refused = self.kinds().any(|kind| matches!(kind, Kind::RdAtom(count) if most > count));
        if refused {
            self.say("too many READs and atomics outstanding");
        }
        refused.then_some(libc::EINVAL)
    }

    /// Whether this registration is refused; counts it.
    pub(crate) fn refuses_mr(&self) -> bool {
        let Some(first) = self.kinds().find_map(|kind| if let Kind::NoMr(first) = kind { Some(first) } else { None })
        else {
            return false;
        };
        let mut counts = locked(&REGISTRATIONS);
        let count = counts.get_or_insert_with(HashMap::new).entry(self.name.clone()).or_insert(0);
        *count += 1;
        let refused = *count >= first;
        if refused {
            self.say(&format!("registration {count} refused"));
        }
        refused
    }

    /// # Safety
    ///
    /// `attr` is writable.
    pub(crate) unsafe fn edit_attr(&self, attr: *mut ibv_device_attr) {
        // SAFETY: the caller vouches for the structure, and nobody else uses it during the call.
        let attr = unsafe { &mut *attr };
        for kind in self.kinds() {
            match kind {
                Kind::Sge(count) => attr.max_sge = attr.max_sge.min(c_int::try_from(count).unwrap_or(c_int::MAX)),
                Kind::RdAtom(count) => {
                    attr.max_qp_rd_atom = attr.max_qp_rd_atom.min(count.into());
                    attr.max_qp_init_rd_atom = attr.max_qp_init_rd_atom.min(count.into());
                }
                Kind::NoVendor => attr.vendor_id = 0,
                Kind::NoRc | Kind::Inline(_) | Kind::NoMr(_) | Kind::PortDown | Kind::Mtu(_) => {}
                Kind::Break(_) | Kind::PostRefused(_) | Kind::WatchFences | Kind::EarlyPsn | Kind::VoidPsn => {}
                Kind::Guids | Kind::Fatal => {}
            }
        }
    }

    /// # Safety
    ///
    /// `attr` is writable up to and with `active_mtu`.
    pub(crate) unsafe fn edit_port(&self, attr: *mut ibv_port_attr) {
        for kind in self.kinds() {
            match kind {
                // SAFETY: the caller vouches for this field.
                Kind::PortDown => unsafe { (*attr).state = IBV_PORT_DOWN },
                Kind::Mtu(bytes) => {
                    // SAFETY: the caller vouches for this field.
                    let mtu = unsafe { &mut (*attr).active_mtu };
                    *mtu = ibv_mtu::from_bytes(bytes).map_or(*mtu, |most| most.min(*mtu));
                }
                Kind::NoRc | Kind::Inline(_) | Kind::Sge(_) | Kind::RdAtom(_) | Kind::NoMr(_) | Kind::NoVendor => {}
                Kind::Break(_) | Kind::PostRefused(_) | Kind::WatchFences | Kind::EarlyPsn | Kind::VoidPsn => {}
                Kind::Guids | Kind::Fatal => {}
            }
        }
    }
}

/// What is known of a device that may be taken away.
#[derive(Default)]
struct Taken {
    looked: Option<Instant>,
    is_gone: bool,
}

/// How often its port is looked at.
const LOOK: Duration = Duration::from_millis(1);
static TAKEN: Mutex<Option<HashMap<String, Taken>>> = Mutex::new(None);

/// Registrations of each device so far.
static REGISTRATIONS: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

/// What stood in the slots of each opened context, by its address.
static CONTEXTS: Mutex<Option<HashMap<usize, Originals>>> = Mutex::new(None);

/// The slots of a context that are replaced.
#[derive(Clone, Copy, Default)]
pub(crate) struct Originals {
    pub(crate) query_port: Option<query_port_fn>,
    pub(crate) query_device_ex: Option<query_device_ex_fn>,
    pub(crate) create_qp_ex: Option<create_qp_ex_fn>,
    /// Of `ops`, and only where there is something to do on the way.
    pub(crate) post_send: Option<post_send_fn>,
    pub(crate) poll_cq: Option<poll_cq_fn>,
}

/// A thread that panicked under the lock left nothing half done.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stood in the slots of this context.
pub(crate) fn originals(context: *mut ibv_context) -> Originals {
    locked(&CONTEXTS).as_ref().and_then(|contexts| contexts.get(&(context as usize)).copied()).unwrap_or_default()
}

/// A context is about to be closed; its address may be that of another one next.
pub(crate) fn forget(context: *mut ibv_context) {
    if let Some(contexts) = locked(&CONTEXTS).as_mut() {
        contexts.remove(&(context as usize));
    }
}

/// Puts `hooks` into the slots of a context whose device has faults, and remembers what stood there.
///
/// # Safety
///
/// `context` was just opened, and no other thread has it.
pub(crate) unsafe fn patch(context: NonNull<ibv_context>, hooks: Originals) {
    // SAFETY: the caller vouches for the context.
    let device = unsafe { Device::of_context(context.as_ptr()) };
    if device.kinds().next().is_none() {
        return;
    }
    // SAFETY: the caller vouches for the context.
    let Some(ops) = (unsafe { VerbsOps::of(context) }) else { return };
    let on_the_way = device.kinds().any(|kind| matches!(kind, Kind::Break(_) | Kind::PostRefused(_) | Kind::Fatal));
    // SAFETY: the caller vouches for the context; `ops` is a part of it.
    let inline = unsafe { NonNull::from(&mut (*context.as_ptr()).ops) };
    let originals = Originals {
        // SAFETY: as above.
        post_send: on_the_way.then(|| replace(unsafe { slot_of_post_send(inline) }, hooks.post_send)).flatten(),
        // SAFETY: as above.
        poll_cq: on_the_way.then(|| replace(unsafe { slot_of_poll_cq(inline) }, hooks.poll_cq)).flatten(),
        query_port: ops.query_port().and_then(|slot| replace(slot, hooks.query_port)),
        query_device_ex: ops.query_device_ex().and_then(|slot| replace(slot, hooks.query_device_ex)),
        create_qp_ex: ops.create_qp_ex().and_then(|slot| replace(slot, hooks.create_qp_ex)),
    };
    locked(&CONTEXTS).get_or_insert_with(HashMap::new).insert(context.as_ptr() as usize, originals);
}

/// # Safety
///
/// `ops` is the table of an open context.
unsafe fn slot_of_post_send(ops: NonNull<ibv_context_ops>) -> NonNull<Option<post_send_fn>> {
    // SAFETY: the caller vouches for the table.
    NonNull::from(unsafe { &mut (*ops.as_ptr()).post_send })
}

/// # Safety
///
/// `ops` is the table of an open context.
unsafe fn slot_of_poll_cq(ops: NonNull<ibv_context_ops>) -> NonNull<Option<poll_cq_fn>> {
    // SAFETY: the caller vouches for the table.
    NonNull::from(unsafe { &mut (*ops.as_ptr()).poll_cq })
}

/// Writes `hook` into a slot; what stood there.
fn replace<T>(slot: NonNull<Option<T>>, hook: Option<T>) -> Option<T> {
    // SAFETY: the slot is of an open context whose memory is writable, and nobody else has that context yet.
    unsafe { slot.replace(hook) }
}
