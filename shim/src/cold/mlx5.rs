//! What programs call in libmlx5 itself, linked or looked up (NCCL does so for GPU buffers and out-of-order receives).
//!
//! Owns: the three calls that make a context, a QP or a registration. Refuses to own: everything else of libmlx5; what it makes unseen is named when a
//! verb first uses it. Tried on tests/nullverbs only: nobody has run this on such a NIC.

use crate::cold::{device, mr, qp};
use crate::process;
use crate::real;
use core::ffi::{c_int, c_void};
use shift_abi::*;

/// `mlx5dv_open_device`.
///
/// # Safety
/// As `mlx5dv_open_device`.
pub unsafe fn open_device(device: *mut ibv_device, attr: *mut c_void) -> *mut ibv_context {
    // SAFETY: passed on.
    device::adopt(unsafe { real::mlx5dv_open_device(device, attr) })
}

/// `mlx5dv_create_qp`: what the attributes of libmlx5 ask for no standby can be made with here.
///
/// # Safety
/// As `mlx5dv_create_qp`.
pub unsafe fn create_qp(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex, own: *mut c_void) -> *mut ibv_qp {
    // SAFETY: passed on.
    let pair = unsafe { real::mlx5dv_create_qp(context, attr, own) };
    if !pair.is_null() && process::get().is_some() {
        // SAFETY: the call succeeded, so the part that all versions of the structure have is readable.
        let init = unsafe { attr.cast::<ibv_qp_init_attr>().read() };
        qp::pass_through(pair, &init, "it was made by mlx5dv_create_qp");
    }
    pair
}

/// `mlx5dv_reg_dmabuf_mr`: on the standby with the same flags, those of libmlx5 included.
///
/// # Safety
/// As `mlx5dv_reg_dmabuf_mr`.
pub unsafe fn reg_dmabuf_mr(
    domain: *mut ibv_pd,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    access: c_int,
    own: c_int,
) -> *mut ibv_mr {
    // SAFETY: passed on, or the same in a PD of this library's own.
    let make = |pd| unsafe { real::mlx5dv_reg_dmabuf_mr(pd, offset, length, iova, fd, access, own) };
    let region = mr::register_fresh(domain, || make(domain));
    let dmabuf = Some((fd, offset));
    let request = mr::Request { pd: domain, addr: core::ptr::null_mut(), length, iova, access: access as u32, dmabuf };
    mr::registered_by(&request, region, make);
    region
}
