//! What programs call in libmlx5 itself, linked or looked up (NCCL does so for GPU buffers and out-of-order receives).
//!
//! Owns: the calls that make a context, a CQ, a QP or a registration, and the one that gives the queues themselves away. Refuses to own: everything else of
//! libmlx5; what it makes unseen is named when a verb first uses it. Tried on tests/nullverbs only: nobody has run this on such a NIC.

use crate::cold::{asynchronous, cq, device, mr, qp, tell};
use crate::process;
use crate::real;
use crate::shadow::{Raw, MAPPED};
use crate::tables::PtrTable;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;
use shift_control::datapath::{DeviceId, Event};
use std::sync::Arc;

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

/// `mlx5dv_create_cq`: the kernel gets its own channel. What the attributes of libmlx5 ask for no twin can be made with here.
///
/// # Safety
/// As `mlx5dv_create_cq`.
pub unsafe fn create_cq(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex, own: *mut c_void) -> *mut ibv_cq_ex {
    // SAFETY: the application gives a readable structure.
    let asked = unsafe { cq::Asked::read(attr) };
    asked.refuse("its CQ was made by mlx5dv_create_cq");
    // SAFETY: passed on.
    let create = |context, attr| unsafe { real::mlx5dv_create_cq(context, attr, own) };
    // SAFETY: passed on; what is changed is the channel, in a copy or for the time of the call.
    let queue = unsafe { cq::make_extended(create, context, attr, &asked) };
    if !queue.is_null() {
        cq::note_extended(queue, context, &asked);
    }
    queue
}

/// `MLX5_CMD_OP_CREATE_QP`: the first 16 bits of a command to the firmware, most significant byte first. The number of the QP is in bytes 9 to 11 of the
/// answer (struct mlx5_ifc_create_qp_out_bits).
const CREATE_QP: [u8; 2] = [0x05, 0x00];
const CREATED_QP: usize = 12;

/// QPs that were made by commands to the firmware (DevX), as programs do that let a GPU post (GDAKI), and UCX's rc_mlx5: where, and their numbers.
static BY_DEVX: PtrTable<(Raw<ibv_context>, u32)> = PtrTable::new();

/// `mlx5dv_devx_obj_create`.
///
/// # Safety
/// As `mlx5dv_devx_obj_create`.
pub unsafe fn create_by_devx(
    context: *mut ibv_context,
    command: *const c_void,
    length: usize,
    answer: *mut c_void,
    room: usize,
) -> *mut c_void {
    // SAFETY: passed on.
    let object = unsafe { real::mlx5dv_devx_obj_create(context, command, length, answer, room) };
    if object.is_null() || process::get().is_none() || length < CREATE_QP.len() || room < CREATED_QP {
        return object;
    }
    // SAFETY: the call succeeded, so as much is readable as its length says.
    if unsafe { command.cast::<[u8; 2]>().read() } == CREATE_QP {
        // SAFETY: as above.
        let [.., high, middle, low] = unsafe { answer.cast::<[u8; CREATED_QP]>().read() };
        let qpn = u32::from_be_bytes([0, high, middle, low]);
        let device = device::device_of(context).map(|shadow| shadow.device);
        BY_DEVX.insert(object, Arc::new((Raw(context), qpn)));
        asynchronous::count_foreign(context, true);
        tell::unrecorded(
            device,
            qpn,
            "it was made by mlx5dv_devx_obj_create: who posts, a program or a GPU, is not seen".to_owned(),
        );
    }
    object
}

/// `mlx5dv_devx_obj_destroy`.
///
/// # Safety
/// As `mlx5dv_devx_obj_destroy`.
pub unsafe fn destroy_of_devx(object: *mut c_void) -> c_int {
    // Before the call: another object may lie at its address as soon as it is gone.
    let pair = BY_DEVX.remove(object);
    // SAFETY: passed on.
    let errno = unsafe { real::mlx5dv_devx_obj_destroy(object) };
    if let Some(pair) = pair {
        match *pair {
            _ if errno != 0 => drop(BY_DEVX.insert(object, pair)),
            (context, qpn) => {
                asynchronous::count_foreign(context.0, false);
                if let Some(device) = device::device_of(context.0).map(|shadow| DeviceId(shadow.device)) {
                    process::tell(Event::UnrecordedGone { device, qpn });
                }
            }
        }
    }
    errno
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
