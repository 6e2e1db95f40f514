//! What programs call in libmlx5 itself, linked or looked up (NCCL does so for GPU buffers and out-of-order receives).
//!
//! Owns: the three calls that make a context, a QP or a registration, and the one that gives the queues themselves away. Refuses to own: everything else of libmlx5; what it makes unseen is named when a
//! verb first uses it. Tried on tests/nullverbs only: nobody has run this on such a NIC.

use crate::cold::{cq, device, mr, qp, tell};
use crate::process;
use crate::real;
use crate::shadow::MAPPED;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;

/// `MLX5DV_OBJ_QP` and `MLX5DV_OBJ_CQ` (infiniband/mlx5dv.h, enum mlx5dv_obj_type).
const OBJ_QP: u64 = 1 << 0;
const OBJ_CQ: u64 = 1 << 1;

/// The beginning of `struct mlx5dv_obj`: what is asked about, and where the answer goes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Objects {
    qp: *mut ibv_qp,
    qp_out: *mut c_void,
    cq: *mut ibv_cq,
    cq_out: *mut c_void,
}

/// `mlx5dv_init_obj`: the program writes into the queues of a QP, or polls those of a CQ, by itself from here on. What it posts so is not recorded, and a
/// CQ that it has mapped keeps its size.
///
/// # Safety
/// As `mlx5dv_init_obj`.
pub unsafe fn init_obj(object: *mut c_void, kinds: u64) -> c_int {
    // SAFETY: passed on.
    let errno = unsafe { real::mlx5dv_init_obj(object, kinds) };
    if errno != 0 || kinds & (OBJ_QP | OBJ_CQ) == 0 {
        return errno;
    }
    // SAFETY: the call succeeded, so the structure is readable; only those members are used whose kind was asked for.
    let objects = unsafe { object.cast::<Objects>().read() };
    if let Some(shadow) = qp::QPS.get(objects.qp).filter(|_| kinds & OBJ_QP != 0) {
        tell::unprotect(shadow, "the program posts into its queues by itself (mlx5dv_init_obj)".to_owned());
    }
    if let Some(shadow) = cq::CQS.get(objects.cq).filter(|_| kinds & OBJ_CQ != 0) {
        shadow.attention.fetch_or(MAPPED, Relaxed);
    }
    errno
}

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
