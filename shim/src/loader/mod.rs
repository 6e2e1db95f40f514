//! How programs find verbs that are not linked to them, and how this library finds the real ones.
//!
//! Owns: the hooks of the dynamic linker ([`hooks`]), the choice of the libraries whose functions are taken for the real ones, and the
//! look-up in them. Refuses to own: any verb. What must hold: a look-up that is none of ours is answered by the next `dlsym` behind
//! this library as if that had been called; nothing here needs anything to have been started, for constructors of other libraries and
//! allocators look symbols up before anything else runs.

mod hooks;
mod object;

use core::ffi::{c_char, c_int, c_void, CStr};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use object::{Dyn, LinkMap, Object};
use shift_abi::{ibv_context, ibv_device};
use std::ffi::CString;
use std::sync::OnceLock;

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

/// A library whose functions this one stands in for.
pub struct Library {
    /// The name by which providers and programs need it.
    soname: &'static CStr,
    /// How the names of its files begin.
    file: &'static [u8],
    /// A version that only it defines: how it is known under another name.
    version: &'static [u8],
    /// A function that this library never exports: who has it is the real one, not another preload.
    landmark: &'static CStr,
    /// The copy that is the real one from now on. Written once, by compare and exchange; AcqRel makes `is_global` visible with it.
    home: AtomicPtr<LinkMap>,
    /// It is in the scope in which this library looks for what is behind it.
    is_global: AtomicBool,
    /// A second copy, of which nothing is protected: its `open`.
    elsewhere: AtomicPtr<c_void>,
}

impl Library {
    const fn new(soname: &'static CStr, file: &'static [u8], version: &'static [u8], landmark: &'static CStr) -> Self {
        Self {
            soname,
            file,
            version,
            landmark,
            home: AtomicPtr::new(core::ptr::null_mut()),
            is_global: AtomicBool::new(false),
            elsewhere: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    fn is(&self, map: *const LinkMap) -> bool {
        // SAFETY: the map came from the dynamic linker just now.
        let path = unsafe { LinkMap::path(map) }.to_bytes();
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if base.starts_with(self.file) {
            return true;
        }
        // SAFETY: as above.
        let object = unsafe { LinkMap::object(map) };
        object.soname().starts_with(self.file) || object.defines(self.version)
    }

    /// The copy that is the real one, if there is one yet.
    fn home(&self) -> Option<*mut LinkMap> {
        let known = self.home.load(Ordering::Acquire);
        if !known.is_null() {
            return Some(known);
        }
        let landmark = look_up(libc::RTLD_NEXT, self.landmark)?;
        self.settle(map_of(landmark)?, true)
    }

    /// The copy that was opened by who did not ask this library for its functions (RTLD_DEEPBIND).
    fn unseen(&self) -> Option<*mut LinkMap> {
        // SAFETY: the name is NUL-terminated; RTLD_NOLOAD only asks for what is loaded.
        let handle = unsafe { libc::dlopen(self.soname.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        (!handle.is_null()).then(|| self.settle(handle.cast(), false)).flatten()
    }

    /// Makes `map` the real one unless there is one already, and keeps it loaded: its functions are called from now on.
    fn settle(&self, map: *mut LinkMap, is_global: bool) -> Option<*mut LinkMap> {
        // SAFETY: the map came from the dynamic linker just now.
        let path = unsafe { LinkMap::path(map) };
        // SAFETY: the path is NUL-terminated; RTLD_NOLOAD only counts one user more of what is loaded.
        let kept = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if kept.is_null() {
            return None;
        }
        if is_global {
            self.is_global.store(true, Ordering::Release);
        }
        let first = self.home.compare_exchange(core::ptr::null_mut(), kept.cast(), Ordering::AcqRel, Ordering::Acquire);
        Some(first.map_or_else(|first| first, |_| kept.cast()))
    }

    /// Its function of this name.
    pub fn function(&self, name: &CStr) -> Option<*mut c_void> {
        let home = self.home().or_else(|| self.unseen())?;
        if self.is_global.load(Ordering::Acquire) {
            // Not by the handle: a library of the tests may stand between.
            return look_up(libc::RTLD_NEXT, name);
        }
        look_up(home.cast(), name)
    }
}

/// libibverbs.
pub static VERBS: Library = Library::new(c"libibverbs.so.1", b"libibverbs.so", b"IBVERBS_1.1", c"ibv_get_device_list");
/// libmlx5, which programs also open by themselves.
pub static MLX5: Library = Library::new(c"libmlx5.so.1", b"libmlx5.so", b"MLX5_1.0", c"mlx5dv_init_obj");
/// librdmacm.
pub static CM: Library = Library::new(c"librdmacm.so.1", b"librdmacm.so", b"RDMACM_1.0", c"rdma_get_devices");

/// The library that a function of this name is of.
pub fn library_of(name: &[u8]) -> Option<&'static Library> {
    let is_verb = name.starts_with(b"ibv_") || name.starts_with(b"_ibv_");
    let others = || {
        let library = if name.starts_with(b"mlx5dv_") { &MLX5 } else { &CM };
        (name.starts_with(b"mlx5dv_") || name.starts_with(b"rdma_")).then_some(library)
    };
    is_verb.then_some(&VERBS).or_else(others)
}

/// The real function of this name.
pub fn real(name: &CStr) -> Option<*mut c_void> {
    library_of(name.to_bytes())?.function(name)
}

/// The functions of the dynamic linker behind this library; NULL until they are found. Racing threads store the same.
struct Behind {
    dlsym: AtomicPtr<c_void>,
    dlvsym: AtomicPtr<c_void>,
    dlopen: AtomicPtr<c_void>,
}

static BEHIND: Behind = Behind {
    dlsym: AtomicPtr::new(core::ptr::null_mut()),
    dlvsym: AtomicPtr::new(core::ptr::null_mut()),
    dlopen: AtomicPtr::new(core::ptr::null_mut()),
};

/// What `dlsym` finds, called from here: RTLD_NEXT is what is behind this library.
fn look_up(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    look_up_version(handle, name.as_ptr(), None)
}

fn look_up_version(handle: *mut c_void, name: *const c_char, version: Option<*const c_char>) -> Option<*mut c_void> {
    let found = if let Some(version) = version {
        let function = behind(&BEHIND.dlvsym, b"dlvsym");
        // SAFETY: NULL is None, and a function of this name has this type.
        let dlvsym = unsafe { core::mem::transmute::<*mut c_void, Option<Dlvsym>>(function) }?;
        // SAFETY: the strings are the caller's, NUL-terminated; so is the handle.
        unsafe { dlvsym(handle, name, version) }
    } else {
        let function = behind(&BEHIND.dlsym, b"dlsym");
        // SAFETY: as above.
        let dlsym = unsafe { core::mem::transmute::<*mut c_void, Option<Dlsym>>(function) }?;
        // SAFETY: as above.
        unsafe { dlsym(handle, name) }
    };
    (!found.is_null()).then_some(found)
}

/// The function of the dynamic linker that stands behind this library.
fn behind(slot: &AtomicPtr<c_void>, name: &'static [u8]) -> *mut c_void {
    let known = slot.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    let mut search = Search { name, here: behind as *const () as usize, is_behind: false, next: None, fallback: None };
    // SAFETY: the callback has the type that is asked for, and `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    let found = search.next.or(search.fallback).unwrap_or(core::ptr::null_mut());
    slot.store(found, Ordering::Relaxed);
    found
}

/// A walk over the loaded objects, in the order in which the linker searches them.
struct Search {
    name: &'static [u8],
    /// An address within this library.
    here: usize,
    is_behind: bool,
    /// Of the first object behind this one: another preload's, or the C library's.
    next: Option<*mut c_void>,
    /// Of the C library, wherever it is.
    fallback: Option<*mut c_void>,
}

unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: `behind` passes a live one, which only this thread has.
    let search = unsafe { &mut *search.cast::<Search>() };
    // SAFETY: the linker passes a valid description.
    let info = unsafe { info.read() };
    let base = info.dlpi_addr as usize;
    let mut dynamic = core::ptr::null();
    let mut is_this = false;
    for index in 0..usize::from(info.dlpi_phnum) {
        let header = info.dlpi_phdr.wrapping_add(index);
        // SAFETY: the description has that many headers.
        let header = unsafe { header.read() };
        let begin = base.wrapping_add(header.p_vaddr as usize);
        match header.p_type {
            libc::PT_DYNAMIC => dynamic = begin as *const Dyn,
            libc::PT_LOAD => is_this |= search.here.wrapping_sub(begin) < header.p_memsz as usize,
            _ => {}
        }
    }
    if is_this {
        search.is_behind = true;
        return 0;
    }
    // SAFETY: the object is loaded while the linker describes it.
    let object = unsafe { Object::new(base, dynamic) };
    let is_c_library = matches!(object.soname(), b"libc.so.6" | b"libdl.so.2");
    if !search.is_behind && !is_c_library {
        return 0;
    }
    if let Some(found) = object.function(search.name) {
        search.fallback = search.fallback.or(is_c_library.then_some(found));
        if search.is_behind {
            search.next = Some(found);
        }
    }
    c_int::from(search.next.is_some())
}

/// The loaded object in which an address lies.
fn map_of(address: *const c_void) -> Option<*mut LinkMap> {
    extern "C" {
        fn dladdr1(addr: *const c_void, info: *mut libc::Dl_info, extra: *mut *mut c_void, flags: c_int) -> c_int;
    }
    const RTLD_DL_LINKMAP: c_int = 2;
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let mut map = core::ptr::null_mut();
    // SAFETY: both places are writable and of the types that this flag asks for.
    let found = unsafe { dladdr1(address, info.as_mut_ptr(), &mut map, RTLD_DL_LINKMAP) };
    (found != 0 && !map.is_null()).then_some(map.cast())
}

/// What this library has under this name.
fn own(name: &[u8]) -> Option<*mut c_void> {
    let map = map_of(behind as *const c_void)?;
    // SAFETY: this library is loaded.
    unsafe { LinkMap::object(map) }.function(name)
}

/// The answer of a look-up that is ours, `None` where the real one's stands.
///
/// What the real look-up finds decides: a version or a name that libibverbs does not have stays missing, a function of an older ABI stays itself,
/// and whatever the handle is, what is found in libibverbs is replaced.
fn substitute(
    handle: *mut c_void,
    name: *const c_char,
    version: Option<*const c_char>,
    caller: *const c_void,
) -> Option<*mut c_void> {
    if name.is_null() || handle == libc::RTLD_NEXT {
        return None;
    }
    // SAFETY: the caller of dlsym passes a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name) };
    let library = library_of(name.to_bytes())?;
    let ours = own(name.to_bytes())?;
    let find = |handle| {
        let found = look_up_version(handle, name.as_ptr(), version)?;
        let map = map_of(found)?;
        library.is(map).then_some((found, map))
    };
    let found = find(handle);
    // The default scope of a library that was opened with RTLD_LOCAL is wider than the one seen from here.
    let in_scope_of_caller = || find(map_of(caller).filter(|_| handle == libc::RTLD_DEFAULT)?.cast());
    let (found, map) = found.or_else(in_scope_of_caller)?;
    if look_up(map.cast(), name) != Some(found) {
        return None;
    }
    let home = library.home().or_else(|| library.settle(map, false))?;
    if home == map {
        return Some(ours);
    }
    elsewhere(library, name, found)
}

/// The look-up met a second copy of the library. Objects of one must not get to functions of the other: it stays itself, and what opens its devices
/// says so.
fn elsewhere(library: &Library, name: &CStr, found: *mut c_void) -> Option<*mut c_void> {
    if name != c"ibv_open_device" {
        return None;
    }
    let first = library.elsewhere.compare_exchange(core::ptr::null_mut(), found, Ordering::AcqRel, Ordering::Acquire);
    let is_told = first.is_ok() || first == Err(found);
    is_told.then_some(crate::exports::open_elsewhere as *mut c_void)
}

/// `ibv_open_device`.
type OpenDevice = unsafe extern "C" fn(*mut ibv_device) -> *mut ibv_context;

/// `ibv_open_device` of the second copy, and where that copy is.
pub fn second_copy() -> Option<(OpenDevice, String)> {
    let found = VERBS.elsewhere.load(Ordering::Acquire);
    // SAFETY: NULL is None, and `elsewhere` keeps only functions of this name, which have this type.
    let open = unsafe { core::mem::transmute::<*mut c_void, Option<OpenDevice>>(found) }?;
    // SAFETY: the program calls into the copy, so it is loaded.
    let path = unsafe { LinkMap::path(map_of(found)?) };
    Some((open, path.to_string_lossy().into_owned()))
}

/// The first library that was opened with RTLD_DEEPBIND: it looks into itself and what it needs before it looks here.
static DEEPLY_BOUND: OnceLock<CString> = OnceLock::new();

/// `dlopen` was called.
fn opened(file: *const c_char, flags: c_int) {
    if flags & libc::RTLD_DEEPBIND == 0 || flags & libc::RTLD_NOLOAD != 0 || file.is_null() {
        return;
    }
    // SAFETY: the caller of dlopen passes a NUL-terminated name.
    let file = unsafe { CStr::from_ptr(file) };
    let _ = DEEPLY_BOUND.set(file.to_owned());
}

/// Its name.
pub fn deeply_bound() -> Option<&'static CStr> {
    DEEPLY_BOUND.get().map(CString::as_c_str)
}
