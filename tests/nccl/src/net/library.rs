//! Opens libnccl.so.2 as it is in NVIDIA's wheel and finds the transport's table of functions in it.
//!
//! The table, `ncclNetIb`, is a local symbol: no look-up of the loader finds it. Its value in .symtab is an offset from where the library
//! was loaded, and its size says which layout it has.

use std::ffi::{c_char, c_void, CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol, ReadCache};

use super::table::{TableV12, TableV8};
use super::NetError;

const TABLE: &str = "ncclNetIb";

/// The table, in the layout of its version.
#[derive(Debug, Clone, Copy)]
pub enum Table {
    /// NCCL 2.20 to 2.22: `ncclNet_v8_t`.
    V8(&'static TableV8),
    /// NCCL 2.28 and later: `ncclNet_v11_t` and `ncclNet_v12_t`, whose functions are the same.
    V12(&'static TableV12),
}

/// Opens the library and finds the table. It stays loaded until the process ends.
///
/// # Errors
/// It cannot be opened, has no table, or one of an unknown layout.
pub fn open(path: &Path) -> Result<Table, NetError> {
    let (value, size) = table_symbol(path)?;
    let base = load(path)?;
    let address = base.wrapping_add(value as usize);
    match size as usize {
        size if size == size_of::<TableV8>() => {
            // SAFETY: .symtab of the loaded file has the object there, of this layout's size, and the library is never unloaded
            Ok(Table::V8(unsafe { &*(address as *const TableV8) }))
        }
        size if size == size_of::<TableV12>() => {
            // SAFETY: as above
            Ok(Table::V12(unsafe { &*(address as *const TableV12) }))
        }
        size => Err(NetError::Layout(size)),
    }
}

/// Value and size of the table's symbol.
fn table_symbol(path: &Path) -> Result<(u64, u64), NetError> {
    let cache = ReadCache::new(File::open(path)?);
    let file: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&cache)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(TABLE)).ok_or(NetError::NoTable)?;
    Ok((symbol.address(), symbol.size()))
}

/// Loads the library as NCCL's users do and returns where it lies.
fn load(path: &Path) -> Result<usize, NetError> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: a path that ends in a zero; the library's constructors are NCCL's own
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(NetError::Load(last_loader_error()));
    }
    let mut map: *mut LinkMap = std::ptr::null_mut();
    // SAFETY: an open handle, and room for the pointer that this request gives
    let failed = unsafe { dlinfo(handle, RTLD_DI_LINKMAP, (&raw mut map).cast()) };
    if failed != 0 || map.is_null() {
        return Err(NetError::Load(last_loader_error()));
    }
    // SAFETY: the loader's own record of an open library, which is never closed
    Ok(unsafe { (*map).base })
}

fn last_loader_error() -> String {
    // SAFETY: no argument; the text is this thread's until its next call of the loader
    let words = unsafe { libc::dlerror() };
    if words.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: the loader's text ends in a zero
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

const RTLD_DI_LINKMAP: i32 = 2;

/// The public head of the loader's record of a library (link.h).
#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const c_char,
}

extern "C" {
    fn dlinfo(handle: *mut c_void, request: i32, info: *mut c_void) -> i32;
}
