//! GIDs as an InfiniBand port has them, which are no IP addresses, over soft-RoCE, whose are: what programs see of a GID that is an IPv4
//! address is another one, in both directions, and the device below knows nothing of it.

use crate::device::Device;
use crate::fault::Kind;
use crate::real;
use shift_abi::*;
use std::ffi::c_int;

/// The first bytes of a GID that is an IPv4 address.
const IPV4: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
/// A subnet prefix as a subnet manager gives it, and the first half of a port's GUID.
const GUID: [u8; 12] = [0xfe, 0xc0, 0, 0, 0, 0, 0, 1, 0x00, 0x02, 0xc9, 0x03];

/// Puts `new` in front of a GID that begins with `old`.
fn exchange(gid: &mut ibv_gid, old: [u8; 12], new: [u8; 12]) {
    if let Some(front) = gid.raw.first_chunk_mut::<12>().filter(|front| **front == old) {
        *front = new;
    }
}

impl Device {
    fn has_guids(&self) -> bool {
        self.kinds().any(|kind| kind == Kind::Guids)
    }

    /// What programs see of a GID.
    pub(crate) fn show(&self, gid: &mut ibv_gid) {
        if self.has_guids() {
            exchange(gid, IPV4, GUID);
        }
    }

    /// What the device below knows it by.
    pub(crate) fn resolve(&self, gid: &mut ibv_gid) {
        if self.has_guids() {
            exchange(gid, GUID, IPV4);
        }
    }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int {
    let Some(query) = real::query_gid() else { return libc::ENOSYS };
    // SAFETY: the caller's own arguments, passed on.
    let failed = unsafe { query(context, port, index, gid) };
    if failed == 0 {
        // SAFETY: the caller's context is open.
        let device = unsafe { Device::of_context(context) };
        // SAFETY: the call succeeded, so the caller's GID is written and may be again.
        device.show(unsafe { &mut *gid });
    }
    failed
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn _ibv_query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    entry: *mut ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    let Some(query) = real::query_gid_ex() else { return libc::ENOSYS };
    // SAFETY: the caller's own arguments, passed on.
    let errno = unsafe { query(context, port, index, entry, flags, size) };
    if errno == 0 {
        // SAFETY: the caller's context is open.
        let device = unsafe { Device::of_context(context) };
        // SAFETY: the call succeeded, so the caller's entry is written and may be again; it begins with the GID.
        device.show(unsafe { &mut (*entry).gid });
    }
    errno
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut ibv_context,
    entries: *mut ibv_gid_entry,
    max: usize,
    flags: u32,
    size: usize,
) -> isize {
    let Some(query) = real::query_gid_table() else { return -1 };
    // SAFETY: the caller's own arguments, passed on.
    let count = unsafe { query(context, entries, max, flags, size) };
    // SAFETY: the caller's context is open.
    let device = unsafe { Device::of_context(context) };
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the call has written so many entries of that size, which is as the caller has them.
        let entry = unsafe { entries.byte_add(at * size) };
        // SAFETY: as above; an entry begins with its GID.
        device.show(unsafe { &mut (*entry).gid });
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_becomes_a_guid_and_is_itself_again_and_all_else_stays() {
        let own = |front: [u8; 12]| {
            let mut gid = ibv_gid { raw: [7; 16] };
            gid.raw[..12].copy_from_slice(&front);
            gid
        };
        let mut gid = own(IPV4);
        exchange(&mut gid, IPV4, GUID);
        assert_eq!(gid.raw, own(GUID).raw);
        exchange(&mut gid, GUID, IPV4);
        assert_eq!(gid.raw, own(IPV4).raw);
        let mut link_local = own([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff]);
        exchange(&mut link_local, IPV4, GUID);
        assert_eq!(link_local.raw[..2], [0xfe, 0x80]);
    }
}
