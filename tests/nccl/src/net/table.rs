//! NCCL's tables of network functions, by its public headers net_v8.h (2.21.5) and net_v12.h (2.30.7; 2.32.3's table has the same size and, by
//! its relocations, the same functions in the same places). `ncclNetIb` is of the type that the headers give to plugins.

use std::ffi::{c_char, c_int, c_ulong, c_void};

/// What `init` takes to write log lines with. Variable arguments are not looked at.
pub type Logger = extern "C" fn(level: c_int, flags: c_ulong, file: *const c_char, line: c_int, format: *const c_char);

/// `ncclResult_t`.
pub type Status = c_int;
/// Any of NCCL's opaque objects.
pub type Handle = *mut c_void;

/// `ncclNet_v8_t`.
#[repr(C)]
#[derive(Debug)]
pub struct TableV8 {
    /// For log lines.
    pub name: *const c_char,
    /// Looks for devices.
    pub init: unsafe extern "C" fn(Logger) -> Status,
    /// How many there are.
    pub devices: unsafe extern "C" fn(*mut c_int) -> Status,
    /// What one of them is.
    pub properties: unsafe extern "C" fn(c_int, *mut c_void) -> Status,
    /// Makes a receiver and its address.
    pub listen: unsafe extern "C" fn(c_int, *mut c_void, *mut Handle) -> Status,
    /// To be called again until there is a sender.
    pub connect: unsafe extern "C" fn(c_int, *mut c_void, *mut Handle, *mut Handle) -> Status,
    /// To be called again until there is a receiver.
    pub accept: unsafe extern "C" fn(Handle, *mut Handle, *mut Handle) -> Status,
    /// Registers memory.
    pub register: unsafe extern "C" fn(Handle, *mut c_void, usize, c_int, *mut Handle) -> Status,
    register_dmabuf: *const c_void,
    /// And forgets it.
    pub deregister: unsafe extern "C" fn(Handle, Handle) -> Status,
    /// Sends.
    pub send: unsafe extern "C" fn(Handle, *mut c_void, c_int, c_int, Handle, *mut Handle) -> Status,
    /// Receives a group.
    pub receive: unsafe extern "C" fn(
        Handle,
        c_int,
        *mut *mut c_void,
        *mut c_int,
        *mut c_int,
        *mut Handle,
        *mut Handle,
    ) -> Status,
    /// Makes what was received visible.
    pub flush: unsafe extern "C" fn(Handle, c_int, *mut *mut c_void, *mut c_int, *mut Handle, *mut Handle) -> Status,
    /// Whether a request is done.
    pub test: unsafe extern "C" fn(Handle, *mut c_int, *mut c_int) -> Status,
    /// Ends a sender.
    pub close_send: unsafe extern "C" fn(Handle) -> Status,
    /// Ends a receiver.
    pub close_receive: unsafe extern "C" fn(Handle) -> Status,
    /// Ends a listener.
    pub close_listen: unsafe extern "C" fn(Handle) -> Status,
    device_functions: [*const c_void; 2],
}

/// `ncclNet_v12_t`.
#[repr(C)]
#[derive(Debug)]
pub struct TableV12 {
    /// For log lines.
    pub name: *const c_char,
    /// Looks for devices and makes a context.
    pub init: unsafe extern "C" fn(*mut Handle, u64, *const CommConfig, Logger, *const c_void) -> Status,
    /// How many there are.
    pub devices: unsafe extern "C" fn(*mut c_int) -> Status,
    /// What one of them is.
    pub properties: unsafe extern "C" fn(c_int, *mut c_void) -> Status,
    /// Makes a receiver and its address.
    pub listen: unsafe extern "C" fn(Handle, c_int, *mut c_void, *mut Handle) -> Status,
    /// To be called again until there is a sender.
    pub connect: unsafe extern "C" fn(Handle, c_int, *mut c_void, *mut Handle, *mut Handle) -> Status,
    /// To be called again until there is a receiver.
    pub accept: unsafe extern "C" fn(Handle, *mut Handle, *mut Handle) -> Status,
    /// Registers memory.
    pub register: unsafe extern "C" fn(Handle, *mut c_void, usize, c_int, *mut Handle) -> Status,
    register_dmabuf: *const c_void,
    /// And forgets it.
    pub deregister: unsafe extern "C" fn(Handle, Handle) -> Status,
    /// Sends.
    pub send: unsafe extern "C" fn(Handle, *mut c_void, usize, c_int, Handle, Handle, *mut Handle) -> Status,
    /// Receives a group.
    pub receive: unsafe extern "C" fn(
        Handle,
        c_int,
        *mut *mut c_void,
        *mut usize,
        *mut c_int,
        *mut Handle,
        *mut Handle,
        *mut Handle,
    ) -> Status,
    /// Makes what was received visible.
    pub flush: unsafe extern "C" fn(Handle, c_int, *mut *mut c_void, *mut c_int, *mut Handle, *mut Handle) -> Status,
    /// Whether a request is done.
    pub test: unsafe extern "C" fn(Handle, *mut c_int, *mut c_int) -> Status,
    /// Ends a sender.
    pub close_send: unsafe extern "C" fn(Handle) -> Status,
    /// Ends a receiver.
    pub close_receive: unsafe extern "C" fn(Handle) -> Status,
    /// Ends a listener.
    pub close_listen: unsafe extern "C" fn(Handle) -> Status,
    device_functions: [*const c_void; 2],
    make_virtual_device: *const c_void,
    /// Ends the context.
    pub finalize: unsafe extern "C" fn(Handle) -> Status,
    set_attributes: *const c_void,
}

/// `ncclNetCommConfig_v12_t`.
#[repr(C)]
#[derive(Debug)]
pub struct CommConfig {
    /// -1: none asked for.
    pub traffic_class: c_int,
}

const _: () = assert!(size_of::<TableV8>() == 19 * 8);
const _: () = assert!(size_of::<TableV12>() == 22 * 8);
