//! Hosts and users as members of the cluster: their tokens and certificates, and the effects of a
//! revocation.

use super::selection::CancelSummary;
use crate::model::clock::WallTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Effects of revoking the certificates of a host or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedMember {
    /// Name of the host or user.
    pub name: String,
    /// Number of certificates that were valid until then.
    pub certificates: u64,
    /// Number of join tokens that were not used yet.
    pub tokens: u64,
    /// When the last of its certificates was revoked before; none: none was.
    pub before: Option<WallTime>,
    /// Number of connections that were closed.
    pub connections: u64,
    /// Number of a user's batches that had not ended.
    pub batches: u64,
    /// Number of jobs of these batches that were on hosts.
    pub running: u64,
    /// Number of jobs of these batches that waited.
    pub waiting: u64,
    /// Effects of cancelling those jobs.
    pub cancel: CancelSummary,
    /// Number of attempts that may still run on a host.
    pub held: u64,
    /// Time until these have surely ended.
    pub held_for: Duration,
    /// Why the revocation failed, if it did.
    pub failed: Option<String>,
}

/// A member of a cluster, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// A host's agent.
    Host,
    /// A person or program that submits batches.
    User,
}

/// A join token as it is shown to admins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Id by which it is deleted.
    pub id: String,
    /// Whether it is for a host or a user.
    pub member: Member,
    /// Name of the host or user.
    pub name: String,
    /// When it expires, on the coordinator's clock.
    pub expires: WallTime,
    /// When it was used.
    pub used: Option<WallTime>,
    /// The member that uses it replaces the certificates that its name has.
    pub replace: bool,
}

/// A certificate on the coordinator's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// Whether it belongs to a host or a user.
    pub member: Member,
    /// Name of the host or user.
    pub name: String,
    /// When it expires.
    pub expires: WallTime,
    /// When it was revoked or replaced.
    pub revoked: Option<WallTime>,
}
