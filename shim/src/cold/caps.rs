//! The operator's caps on how long the NIC of a protected queue pair retries (`SHIFT_QP_TIMEOUT`, `SHIFT_RETRY_CNT`).
//!
//! What the application sets is only ever lowered, and it goes on seeing what it set. Timeout 0 never expires (IBA 11.2.4.2), and retry_cnt 7 is
//! infinite on soft-RoCE: a cap applies to those as to any other value. Both numbers may change on the way to RTS, and in SQD.

use crate::process;
use crate::shadow::QpShadow;
use shift_abi::*;
use shift_control::config::Caps;

/// The longest that a try may take.
const LONGEST_TIMEOUT: u8 = 31;

/// What a provider is to be given in place of what the application gives; `None`: the same.
pub fn lowered(qp: &QpShadow, given: &ibv_qp_attr, mask: u32) -> Option<ibv_qp_attr> {
    if mask & (IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT) == 0 || qp.unprotected.get().is_some() {
        return None;
    }
    let lowered = under(caps(), given, mask)?;
    log::debug!(
        "QP 0x{:06x}: timeout {} becomes {}, retry_cnt {} becomes {}",
        qp.qpn,
        given.timeout,
        lowered.timeout,
        given.retry_cnt,
        lowered.retry_cnt
    );
    Some(lowered)
}

/// The same for an object of the shim's own, or of the shim's own accord: with both numbers.
pub fn applied(attr: &ibv_qp_attr) -> ibv_qp_attr {
    under(caps(), attr, IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT).unwrap_or(*attr)
}

/// The application is shown what it set.
pub fn hide(seen: &mut ibv_qp_attr, set: impl FnOnce() -> ibv_qp_attr) {
    let caps = caps();
    if caps == Caps::default() {
        return;
    }
    let set = set();
    if let Some(lowered) = under(caps, &set, IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT) {
        // Where the provider has something else it was not by a cap: the queue pair was unprotected when it was connected.
        if (seen.timeout, seen.retry_cnt) == (lowered.timeout, lowered.retry_cnt) {
            (seen.timeout, seen.retry_cnt) = (set.timeout, set.retry_cnt);
        }
    }
}

fn caps() -> Caps {
    process::get().map_or(Caps::default(), |process| process.config.caps)
}

/// The attributes under the caps, if those change any that the mask names.
fn under(caps: Caps, given: &ibv_qp_attr, mask: u32) -> Option<ibv_qp_attr> {
    let mut lowered = *given;
    if let Some(cap) = caps.timeout.filter(|_| mask & IBV_QP_TIMEOUT != 0) {
        let is_shorter = (1..=LONGEST_TIMEOUT).contains(&given.timeout) && given.timeout <= cap;
        lowered.timeout = if is_shorter { given.timeout } else { cap };
    }
    if let Some(cap) = caps.retries.filter(|_| mask & IBV_QP_RETRY_CNT != 0) {
        lowered.retry_cnt = given.retry_cnt.min(cap);
    }
    ((lowered.timeout, lowered.retry_cnt) != (given.timeout, given.retry_cnt)).then_some(lowered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capped(caps: (Option<u8>, Option<u8>), timeout: u8, retry_cnt: u8, mask: u32) -> Option<(u8, u8)> {
        let mut given = ibv_qp_attr::zeroed();
        (given.timeout, given.retry_cnt) = (timeout, retry_cnt);
        under(Caps { timeout: caps.0, retries: caps.1 }, &given, mask).map(|attr| (attr.timeout, attr.retry_cnt))
    }

    #[test]
    fn what_the_application_sets_is_lowered_and_never_raised() {
        const BOTH: u32 = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT;
        let caps = (Some(16), Some(3));
        for (timeout, retries, becomes) in [
            (20, 7, Some((16, 3))),
            (14, 7, Some((14, 3))),
            (20, 1, Some((16, 1))),
            (16, 3, None),
            (1, 0, None),
            // Infinite.
            (0, 3, Some((16, 3))),
            (0, 7, Some((16, 3))),
        ] {
            assert_eq!(capped(caps, timeout, retries, BOTH), becomes, "{timeout}, {retries}");
        }
        assert_eq!(capped((None, None), 0, 7, BOTH), None);
        assert_eq!(capped((Some(16), None), 20, 7, BOTH), Some((16, 7)));
        assert_eq!(capped((None, Some(0)), 20, 7, BOTH), Some((20, 0)));
        // What is not being set stays.
        assert_eq!(capped(caps, 20, 7, IBV_QP_RETRY_CNT), Some((20, 3)));
        assert_eq!(capped(caps, 20, 7, IBV_QP_STATE), None);
    }
}
