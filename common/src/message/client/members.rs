//! Hosts and users as members of the cluster: their tokens and certificates, and what ends with
//! them.

use super::selection::CancelSummary;
use crate::model::clock::WallTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What has ended with the certificates of a host or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedMember {
    /// Which.
    pub name: String,
    /// Certificates that counted until then.
    pub certificates: u64,
    /// Join tokens that were not used yet.
    pub tokens: u64,
    /// When the last of its certificates was revoked before this; none: none was.
    pub before: Option<WallTime>,
    /// Connections.
    pub connections: u64,
    /// A user's batches that had not ended.
    pub batches: u64,
    /// Jobs of these on hosts, and such that waited.
    pub running: u64,
    /// See above.
    pub waiting: u64,
    /// What cancelling those has come to.
    pub cancel: CancelSummary,
    /// Attempts that may still run on a host.
    pub held: u64,
    /// Until they are surely over.
    pub held_for: Duration,
    /// Why nothing has ended.
    pub failed: Option<String>,
}

/// What joins a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// A host's agent.
    Host,
    /// A person or program that submits batches.
    User,
}

/// A join token as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// By which it is deleted.
    pub id: String,
    /// What it is for.
    pub member: Member,
    /// Which host or user.
    pub name: String,
    /// Until when it is good, on the coordinator's clock.
    pub expires: WallTime,
    /// When it was used.
    pub used: Option<WallTime>,
    /// It takes the place of a certificate that its name has.
    pub replace: bool,
}

/// A certificate on the coordinator's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub member: Member,
    /// Which host or user.
    pub name: String,
    /// Until when it is valid.
    pub expires: WallTime,
    /// When it was revoked or replaced.
    pub revoked: Option<WallTime>,
}
