//! The functions behind this library in the search order, and the mark of a thread that is inside of one.

use shift_abi::*;
use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void, CStr};
use std::sync::OnceLock;

/// The function of this name behind this library; in the given version if there is one, for an unversioned look-up may
/// find the one of an older ABI.
fn find(name: &CStr, version: &CStr) -> usize {
    // SAFETY: both are C strings; RTLD_NEXT counts from the library that calls, which is this one.
    let versioned = unsafe { libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), version.as_ptr()) };
    if !versioned.is_null() {
        return versioned as usize;
    }
    // SAFETY: as above.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize }
}

macro_rules! real {
    ($($name:ident = $c_name:literal $version:literal : fn($($arg:ty),*) -> $ret:ty;)*) => { $(
        pub(crate) fn $name() -> Option<unsafe extern "C" fn($($arg),*) -> $ret> {
            static FOUND: OnceLock<usize> = OnceLock::new();
            let address = *FOUND.get_or_init(|| find($c_name, $version));
            // SAFETY: the dynamic linker found the address under the C name of a function with this signature, or it is
            // 0, which is None; the two types have the same size.
            unsafe { std::mem::transmute::<usize, Option<unsafe extern "C" fn($($arg),*) -> $ret>>(address) }
        }
    )* };
}

real! {
    open_device = c"ibv_open_device" c"IBVERBS_1.1": fn(*mut ibv_device) -> *mut ibv_context;
    close_device = c"ibv_close_device" c"IBVERBS_1.1": fn(*mut ibv_context) -> c_int;
    query_device = c"ibv_query_device" c"IBVERBS_1.1": fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    create_qp = c"ibv_create_qp" c"IBVERBS_1.1": fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp = c"ibv_modify_qp" c"IBVERBS_1.1": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    query_qp = c"ibv_query_qp" c"IBVERBS_1.1": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
    query_gid = c"ibv_query_gid" c"IBVERBS_1.1": fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    query_gid_ex = c"_ibv_query_gid_ex" c"IBVERBS_1.11":
        fn(*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
    query_gid_table = c"_ibv_query_gid_table" c"IBVERBS_1.11":
        fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    reg_mr = c"ibv_reg_mr" c"IBVERBS_1.1": fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    reg_mr_iova = c"ibv_reg_mr_iova" c"IBVERBS_1.7": fn(*mut ibv_pd, *mut c_void, usize, u64, c_int) -> *mut ibv_mr;
    reg_mr_iova2 = c"ibv_reg_mr_iova2" c"IBVERBS_1.8": fn(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
    reg_dmabuf_mr = c"ibv_reg_dmabuf_mr" c"IBVERBS_1.12":
        fn(*mut ibv_pd, u64, usize, u64, c_int, c_int) -> *mut ibv_mr;
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, this thread is inside of a registration.
pub(crate) struct Inside;

impl Inside {
    pub(crate) fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }

    pub(crate) fn is_inside() -> bool {
        DEPTH.get() > 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
