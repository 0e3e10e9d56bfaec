//! The cluster's public-key infrastructure: one root, an issuer below it, and leaves for
//! coordinator, agents and users.
//!
//! The root's key stays offline. Coordinators that let hosts and users join have an issuer's key.

// A reader that has left must not end a program by a panic: `tell!`, and what returns an error.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[macro_use(tell)]
extern crate mezcal_common;

mod authority;
pub mod cli;
mod directory;
mod join;
pub mod renewal;
mod replace;

pub use authority::{Authority, CertsError, Signed, request, sign};
pub use directory::ClusterDir;
pub use join::{JoinError, Joined, join, read_token, renew_expired};
pub use replace::{Issued, can_replace, replace};

use std::time::Duration;

/// Default life of agents' and users' certificates.
pub const LEAF_DAYS: u32 = 30;
/// Default life of a coordinator's certificate.
pub const COORDINATOR_DAYS: u32 = 90;
/// Default life of an issuer.
pub const ISSUER_DAYS: u32 = 365;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// The first certificate of a PEM text, as DER.
pub fn der_of(pem: &str) -> Option<Vec<u8>> {
    mezcal_common::wire::tls::first_certificate(pem.as_bytes())
}

/// A length of this many days.
pub fn days(number: u32) -> Duration {
    Duration::from_secs(u64::from(number) * DAY)
}
