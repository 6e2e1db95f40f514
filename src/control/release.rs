//! Which wire versions this release speaks.
//!
//! There is one so far, so a job of two releases can only be shown with a library that says it speaks others: the feature `other-versions`,
//! which no release has. What the versions mean to a connection is `channel.rs`.

use shift_proto::frame::{Versions, SPOKEN};

/// The versions that this process says it speaks.
#[cfg(not(feature = "other-versions"))]
pub fn spoken() -> Versions {
    SPOKEN
}

/// The versions that this process says it speaks. It talks as version 1 does, whatever is agreed.
#[cfg(feature = "other-versions")]
pub fn spoken() -> Versions {
    std::env::var("TEST_WIRE_VERSIONS").ok().and_then(|range| parse(&range)).unwrap_or(SPOKEN)
}

#[cfg(feature = "other-versions")]
fn parse(range: &str) -> Option<Versions> {
    let (oldest, newest) = range.split_once('-')?;
    Some(Versions { oldest: oldest.parse().ok()?, newest: newest.parse().ok()? })
}
