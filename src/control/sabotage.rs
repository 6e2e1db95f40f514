//! What a test may have the agent leave out, so that it is seen that the judges of its traces notice (tests/lab/src/scenarios/conform_epochs.rs).
//!
//! Feature `sabotage`, which no release has: without it nothing of it is in the library. The protocol itself is whole in both, and knows nothing
//! of it. What the data path can leave out is in `shim/src/sabotage.rs`.

use shift_proto::id::Tuple;
use shift_proto::migrate::Handshake;

/// What the machine hears of a message, while it is in the migration `current`.
#[cfg(not(feature = "sabotage"))]
pub fn heard(msg: Handshake, _current: Option<Tuple>) -> Handshake {
    msg
}

/// What the machine hears of a message, while it is in the migration `current`: without the check of epochs (`TEST_SABOTAGE=epochs`) a reply is of that one.
#[cfg(feature = "sabotage")]
pub fn heard(mut msg: Handshake, current: Option<Tuple>) -> Handshake {
    use std::sync::OnceLock;
    static LEFT_OUT: OnceLock<bool> = OnceLock::new();
    let is_left_out = *LEFT_OUT.get_or_init(|| std::env::var("TEST_SABOTAGE").is_ok_and(|part| part == "epochs"));
    if let (Handshake::Report { tuple, .. } | Handshake::Ready { tuple }, Some(current), true) =
        (&mut msg, current, is_left_out)
    {
        *tuple = current;
    }
    msg
}
