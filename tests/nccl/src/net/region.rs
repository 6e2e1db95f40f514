//! Memory that a NIC reads and writes: never referenced, only copied from and to.

use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;

/// Anonymous pages that are never given back.
#[derive(Debug)]
pub struct Region {
    start: *mut u8,
    len: usize,
}

impl Region {
    /// So many bytes, all zero.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(len: usize) -> io::Result<Region> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages wherever the kernel likes
        let start = unsafe { libc::mmap(null_mut(), len, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Region { start: start.cast(), len })
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of a byte of it.
    pub fn at(&self, offset: usize) -> *mut c_void {
        assert!(offset <= self.len, "an offset of {offset} in {} bytes", self.len);
        self.start.wrapping_add(offset).cast()
    }

    /// Copies into it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.len.saturating_sub(offset), "behind the end");
        // SAFETY: inside the mapping by the line above; the source is somebody else's memory
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset).cast(), bytes.len()) };
    }

    /// Copies out of it.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len.saturating_sub(offset), "behind the end");
        // SAFETY: inside the mapping by the line above; the target is somebody else's memory
        unsafe { std::ptr::copy_nonoverlapping(self.at(offset).cast::<u8>(), bytes.as_mut_ptr(), bytes.len()) };
    }
}
