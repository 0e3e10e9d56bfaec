//! The protocols and versions in which two sides can talk.

use mezcal_common::message::{agent, client};

/// The protocols that a coordinator listens for.
pub const PROTOCOLS: [&[u8]; 2] = [agent::ALPN, client::ALPN];

/// Whether two sides have a version in common; if not, which of them has to be upgraded.
pub(crate) fn common_version(theirs: (u16, u16), ours: (u16, u16)) -> Result<(), String> {
    if theirs.0 <= ours.1 && ours.0 <= theirs.1 {
        return Ok(());
    }
    let older = if theirs.1 < ours.0 {
        "the side that connects"
    } else {
        "the coordinator"
    };
    Err(format!(
        "no common protocol version (they speak {theirs:?}, the coordinator {ours:?}): upgrade {older}"
    ))
}
