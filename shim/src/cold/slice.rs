//! The agent's share of a processor: short turns, soon.
//!
//! A program that polls keeps its processor busy, and who wakes there waits for the end of its slice, several times in every migration. Linux since 6.12
//! takes `sched_runtime` of an ordinary thread for the length of slice that it asks for: a shorter one does not get more time, but gets it
//! earlier, and needs no privilege. Older kernels ignore it, and a thread under another policy is left alone.

use core::ffi::c_long;

/// The shortest that the kernel grants: the agent's rounds are shorter.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` as of its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const SIZE: u32 = size_of::<SchedAttr>() as u32;
const _: () = assert!(SIZE == 48);

fn own() -> Option<SchedAttr> {
    let mut attr = SchedAttr { size: SIZE, ..SchedAttr::default() };
    // SAFETY: it writes at most as many bytes as it is told there are; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0 as c_long, &raw mut attr, SIZE, 0 as c_long) };
    (result == 0).then_some(attr)
}

/// The calling thread asks for short slices.
pub fn shorten() {
    let Some(before) = own().filter(|attr| attr.policy == libc::SCHED_OTHER as u32) else { return };
    let mut attr = SchedAttr { size: SIZE, flags: 0, runtime_ns: SLICE_NS, ..before };
    (attr.deadline_ns, attr.period_ns) = (0, 0);
    // SAFETY: it reads as many bytes as the structure says it has; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0 as c_long, &raw const attr, 0 as c_long) };
    if result != 0 {
        log::debug!("the agent gets no shorter slices ({})", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_stays_what_it_is_but_for_its_slice() {
        let told = std::thread::spawn(|| {
            let before = own();
            shorten();
            (before, own())
        });
        let (before, after) = told.join().unwrap_or_default();
        let kept = |attr: SchedAttr| (attr.policy, attr.nice, attr.priority);
        assert!(before.is_some(), "the kernel says nothing of a thread");
        assert_eq!(after.map(kept), before.map(kept));
    }
}
