//! `dlsym`, `dlvsym` and `dlopen` as programs call them.
//!
//! Each asks [`choose`] or [`choose_version`] (or only tells [`opened`](super::opened)) and then either returns or jumps to the function
//! behind this library with registers and stack as they came: the dynamic linker takes the return address for its caller, whose place decides what
//! RTLD_NEXT, RTLD_DEFAULT and a RUNPATH mean. That is why they are written in assembly, and why a wrapper would not do.

use super::{behind, opened, substitute, BEHIND};
use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;

/// Two words: C returns them in two registers on both machines.
#[repr(C)]
struct Choice {
    /// The answer, or NULL.
    answer: *mut c_void,
    /// If there is none: where to jump; NULL only if there is no dynamic linker to be found, and then nothing is found.
    real: *mut c_void,
}

extern "C" fn choose(handle: *mut c_void, name: *const c_char, caller: *const c_void) -> Choice {
    let answer = substitute(handle, name, None, caller).unwrap_or(null_mut());
    Choice { answer, real: behind(&BEHIND.dlsym, b"dlsym") }
}

extern "C" fn choose_version(
    handle: *mut c_void,
    name: *const c_char,
    version: *const c_char,
    caller: *const c_void,
) -> Choice {
    let answer = substitute(handle, name, Some(version), caller).unwrap_or(null_mut());
    Choice { answer, real: behind(&BEHIND.dlvsym, b"dlvsym") }
}

extern "C" fn choose_open(file: *const c_char, flags: c_int) -> Choice {
    opened(file, flags);
    Choice { answer: null_mut(), real: behind(&BEHIND.dlopen, b"dlopen") }
}

/// A hook: keeps up to three arguments, gives the chooser the caller's return address in one register more, and returns its answer or jumps.
#[cfg(target_arch = "x86_64")]
macro_rules! hook {
    ($chooser:ident, $register:literal, $_on_aarch64:literal) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            "endbr64",
            "push rdi",
            ".cfi_adjust_cfa_offset 8",
            "push rsi",
            ".cfi_adjust_cfa_offset 8",
            "push rdx",
            ".cfi_adjust_cfa_offset 8",
            concat!("mov ", $register, ", [rsp + 24]"),
            "call {choose}",
            "mov r11, rdx",
            "pop rdx",
            ".cfi_adjust_cfa_offset -8",
            "pop rsi",
            ".cfi_adjust_cfa_offset -8",
            "pop rdi",
            ".cfi_adjust_cfa_offset -8",
            "test rax, rax",
            "jnz 2f",
            "test r11, r11",
            "jz 2f",
            "jmp r11",
            "2:",
            "ret",
            ".cfi_endproc",
            choose = sym $chooser,
        )
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! hook {
    ($chooser:ident, $_on_x86_64:literal, $register:literal) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            // bti c, which older machines take for nothing.
            "hint #34",
            "stp x29, x30, [sp, #-48]!",
            ".cfi_def_cfa_offset 48",
            ".cfi_offset x29, -48",
            ".cfi_offset x30, -40",
            "mov x29, sp",
            "stp x0, x1, [sp, #16]",
            "str x2, [sp, #32]",
            concat!("mov ", $register, ", x30"),
            "bl {choose}",
            "mov x17, x0",
            "mov x16, x1",
            "ldp x0, x1, [sp, #16]",
            "ldr x2, [sp, #32]",
            "ldp x29, x30, [sp], #48",
            ".cfi_restore x29",
            ".cfi_restore x30",
            ".cfi_def_cfa_offset 0",
            "cbnz x17, 2f",
            "cbz x16, 2f",
            "br x16",
            "2:",
            "mov x0, x17",
            "ret",
            ".cfi_endproc",
            choose = sym $chooser,
        )
    };
}

/// Looks a symbol up.
///
/// # Safety
/// As dlsym(3).
#[unsafe(naked)]
#[cfg_attr(not(miri), no_mangle)]
pub unsafe extern "C" fn dlsym(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    hook!(choose, "rdx", "x2")
}

/// Looks a version of a symbol up.
///
/// # Safety
/// As dlvsym(3).
#[unsafe(naked)]
#[cfg_attr(not(miri), no_mangle)]
pub unsafe extern "C" fn dlvsym(_handle: *mut c_void, _name: *const c_char, _version: *const c_char) -> *mut c_void {
    hook!(choose_version, "rcx", "x3")
}

/// Opens a library; nothing is changed, only a flag that hides the library from this one is noticed.
///
/// # Safety
/// As dlopen(3).
#[unsafe(naked)]
#[cfg_attr(not(miri), no_mangle)]
pub unsafe extern "C" fn dlopen(_file: *const c_char, _flags: c_int) -> *mut c_void {
    hook!(choose_open, "rdx", "x2")
}
