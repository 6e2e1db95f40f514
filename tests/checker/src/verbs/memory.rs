//! Registered memory that a NIC writes while the program reads it: no reference to it ever exists, only copies.

use super::{check, Result, VerbError};
use shift_abi::{ibv_mr, ibv_pd};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{null_mut, NonNull};

extern "C" {
    fn ibv_reg_mr(pd: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr;
    fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
}

/// The memory of a region, to be looked at by any thread.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: nothing but copies is made of the memory, which the NIC writes at any time anyhow.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Copies into `out` what lies at this offset.
    pub fn read(&self, at: u64, out: &mut [u8]) {
        let inside = at.checked_add(out.len() as u64).is_some_and(|end| end <= self.len as u64);
        assert!(inside, "a read outside of the region");
        let from = self.base.as_ptr().wrapping_add(at as usize);
        // SAFETY: the range was checked; `out` is memory of ours, so the two do not overlap. The NIC may write the
        // region meanwhile: then the bytes are any, which is what the caller is here to find out.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    }

    /// One on memory of a test, which outlives it.
    #[cfg(test)]
    #[must_use]
    pub fn of_test(memory: &[u8]) -> Self {
        Self { base: NonNull::from(memory).cast(), len: memory.len() }
    }
}

/// A piece of registered memory.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    mr: NonNull<ibv_mr>,
}

impl Region {
    pub(super) fn new(pd: NonNull<ibv_pd>, bytes: u64, access: c_uint) -> Result<Self> {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(null_mut(), len, read_write, private, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(VerbError::last("mmap"));
        }
        let access = c_int::try_from(access).unwrap_or(0);
        // SAFETY: the PD is open and the memory was mapped with this length.
        let mr = unsafe { ibv_reg_mr(pd.as_ptr(), base, len, access) };
        let mr = NonNull::new(mr).ok_or_else(|| VerbError::last("ibv_reg_mr"))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| VerbError::last("mmap"))?;
        Ok(Self { base, len, mr })
    }

    /// The address of the byte at this offset.
    #[must_use]
    pub fn addr(&self, at: u64) -> u64 {
        self.base.as_ptr() as u64 + at
    }

    /// The key for the own NIC.
    #[must_use]
    pub fn lkey(&self) -> u32 {
        // SAFETY: the registration lives as long as `self`; libibverbs wrote the field before it returned it.
        unsafe { (*self.mr.as_ptr()).lkey }
    }

    /// The key for the peer.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        // SAFETY: as for `lkey`.
        unsafe { (*self.mr.as_ptr()).rkey }
    }

    /// Whether so many bytes from this offset on lie inside.
    #[must_use]
    pub fn contains(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len as u64)
    }

    /// Copies into `out` what lies at this offset.
    pub fn read(&self, at: u64, out: &mut [u8]) {
        self.window().read(at, out);
    }

    /// The same memory for other threads, to be read only. It must not be used once the region is closed.
    #[must_use]
    pub const fn window(&self) -> Window {
        Window { base: self.base, len: self.len }
    }

    /// Copies `bytes` to this offset.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.contains(at, bytes.len() as u64), "a write outside of the region");
        let to = self.base.as_ptr().wrapping_add(at as usize);
        // SAFETY: as for `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Sets `len` bytes from this offset on to `byte`.
    pub fn fill(&self, at: u64, len: u64, byte: u8) {
        assert!(self.contains(at, len), "a write outside of the region");
        let to = self.base.as_ptr().wrapping_add(at as usize);
        // SAFETY: the range was checked, and no reference to the region exists.
        unsafe { std::ptr::write_bytes(to, byte, len as usize) };
    }

    pub(super) fn deregister(self) -> Result<()> {
        // SAFETY: `self` is consumed, so nobody names the registration any more.
        check("ibv_dereg_mr", unsafe { ibv_dereg_mr(self.mr.as_ptr()) })?;
        // SAFETY: the mapping was made with this length, and nobody names it any more.
        check("munmap", unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) })
    }
}
