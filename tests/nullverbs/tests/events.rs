//! Waiting for events is under the shim as it is without: what wakes, what does not, what a destroy waits for, and a thread that is cancelled.

use shift_nullverbs::{Ran, Run};

fn is_right(ran: &Ran) {
    assert!(ran.output.status.success(), "{:?}: {}{}", ran.output.status, ran.stdout(), ran.stderr());
    assert_eq!(ran.stdout(), "completions: right\nasynchronous: right\n", "{}", ran.stderr());
    assert!(!ran.stderr().contains("mistake") && !ran.stderr().contains("panicked"), "{}", ran.stderr());
}

#[test]
fn events_come_as_without_the_shim() -> Result<(), String> {
    is_right(&Run::of("events").run()?);
    is_right(&Run::of("events").preloaded()?.run()?);
    Ok(())
}
