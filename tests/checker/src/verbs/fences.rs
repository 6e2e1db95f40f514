//! The way to tests/preload, if it is loaded: it shows the fences of queue pairs that it sees below the shim.

use std::mem::transmute;

/// A fence, as tests/preload/src/fences.rs lays it out.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FenceSeen {
    /// The queue pair's number.
    pub qpn: u32,
    /// The first packet number that it expected.
    pub first: u32,
    /// What it expected next just before ERR.
    pub before: u32,
    /// Right after ERR.
    pub early: u32,
    /// After RESET.
    pub last: u32,
    /// What the shim is told.
    pub told: u32,
}

/// Who is called at each fence.
static WATCHER: std::sync::OnceLock<fn(FenceSeen)> = std::sync::OnceLock::new();

extern "C" fn seen(fence: *const FenceSeen) {
    // SAFETY: the library passes a structure of its own that lives until this returns.
    let fence = unsafe { *fence };
    if let Some(watcher) = WATCHER.get() {
        watcher(fence);
    }
}

/// From now on `watcher` is called at each fence; an error if the library is not loaded.
pub fn watch_fences(watcher: fn(FenceSeen)) -> Result<(), String> {
    let _ = WATCHER.set(watcher);
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"shift_preload_watch_fences".as_ptr()) };
    if found.is_null() {
        return Err("--watch-fences: libshift_preload.so is not loaded".to_owned());
    }
    type Watch = extern "C" fn(extern "C" fn(*const FenceSeen));
    // SAFETY: the symbol is of tests/preload, whose function of this name has this signature.
    let watch = unsafe { transmute::<*mut libc::c_void, Watch>(found) };
    watch(seen);
    Ok(())
}
