//! Status of batches and hosts.

use crate::message::agent::Load;
use crate::model::clock::WallTime;
use crate::model::ids::BatchId;
use crate::model::outcome::{Containment, Way};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The part that a client requests of a batch that it has not opened itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// Only its end ([`super::ToClient::Ended`]).
    End,
    /// Results with their jobs ([`super::ToClient::Described`], [`super::ToClient::Results`]) and
    /// then its end.
    Results {
        /// Only those of jobs that did not succeed.
        failed: bool,
        /// Future results, too; otherwise `Ended` follows the present ones.
        follow: bool,
    },
}

/// One line of `coordinator batches`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// Its id.
    pub id: BatchId,
    /// The user who owns it.
    pub user: String,
    /// The user's name for it.
    pub name: Option<String>,
    /// It continues when no client is connected to it.
    pub detached: bool,
    /// More jobs may come.
    pub open: bool,
    /// Who or what cancelled or halted it, as far as that is known.
    pub stopped: Option<String>,
    /// When it was opened, on the coordinator's clock.
    pub opened: WallTime,
    /// When its last job ended.
    pub done: Option<WallTime>,
    /// Number of jobs so far.
    pub jobs: u64,
    /// Number of jobs that run. Jobs that were handed to hosts in advance are not counted.
    pub placed: u64,
    /// Number of jobs that have ended.
    pub ended: u64,
    /// Number of jobs that have succeeded.
    pub succeeded: u64,
    /// Jobs that have neither succeeded nor failed, where known: peers of earlier versions do not
    /// get this, and [`super::ToClient::BatchesApart`] carries it separately.
    #[serde(skip)]
    pub aside: Option<SetAside>,
}

impl BatchStatus {
    /// The number of failed jobs; cancelled and skipped jobs are included where [`Self::aside`] is
    /// not known.
    pub fn failed(&self) -> u64 {
        let SetAside { cancelled, skipped } = self.aside.unwrap_or_default();
        self.ended
            .saturating_sub(self.succeeded)
            .saturating_sub(cancelled)
            .saturating_sub(skipped)
    }
}

/// Jobs that have ended without success and have not failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// Jobs that were cancelled, or not started because of a cancel.
    pub cancelled: u64,
    /// Jobs that were not started because another job had not succeeded.
    pub skipped: u64,
}

impl SetAside {
    /// Counts one more ended job.
    pub fn add(&mut self, outcome: &crate::model::outcome::Outcome) {
        match outcome.way() {
            Way::Done | Way::Failed => {}
            Way::Cancelled => self.cancelled += 1,
            Way::Skipped => self.skipped += 1,
        }
    }
}

/// Batches, each with its [`SetAside`].
pub(super) mod apart {
    use super::{BatchStatus, SetAside};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Listed<T> = Result<Vec<T>, String>;

    pub(in crate::message::client) fn serialize<S: Serializer>(
        batches: &Listed<BatchStatus>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let with = |batches: &Vec<BatchStatus>| {
            batches
                .iter()
                .map(|batch| (batch.clone(), batch.aside))
                .collect()
        };
        let listed: Listed<(BatchStatus, Option<SetAside>)> =
            batches.as_ref().map(with).map_err(String::clone);
        listed.serialize(serializer)
    }

    pub(in crate::message::client) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Listed<BatchStatus>, D::Error> {
        let listed = Listed::<(BatchStatus, Option<SetAside>)>::deserialize(deserializer)?;
        Ok(listed.map(|batches| {
            batches
                .into_iter()
                .map(|(batch, aside)| BatchStatus { aside, ..batch })
                .collect()
        }))
    }
}

/// A connected host whose engines do not all start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingHost {
    /// Name of the host.
    pub name: String,
    /// Number of usable slots; 0: the host counts as absent.
    pub usable: u16,
    /// Why the other engines fail.
    pub why: String,
}

/// One line of `coordinator hosts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent is connected now.
    pub connected: bool,
    /// Whether its agent has sent its inventory, which it does when it has heard all engines; it
    /// gets jobs only after that.
    pub ready: bool,
    /// Number of slots: jobs at a time.
    pub slots: u16,
    /// `engine_id` of its first engine; the others follow.
    pub first_engine: crate::model::ids::EngineId,
    /// Number of slots in use.
    pub busy: u16,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory: u64,
    /// The newest report of its load.
    pub load: Load,
    /// Version of its program.
    pub program: String,
    /// Time since it connected, or since it was lost.
    pub since: Duration,
    /// Seconds to add to its wall clock to get the coordinator's.
    pub clock_offset: Option<f64>,
    /// Bytes of the largest datagram that has got there (RFC 8899), if it is connected.
    pub datagram: Option<u16>,
    /// How the processes of an attempt are kept together there.
    pub containment: Containment,
    /// Why it gets no more jobs, if it is being drained.
    pub drained: Option<String>,
    /// For how long it gets no jobs, and why.
    pub quarantined: Option<(Duration, String)>,
}

/// Facts about a host beside its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStanding {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent has connected since the coordinator was started. Otherwise the status was
    /// stored by an earlier life of the coordinator.
    pub seen: bool,
    /// When its certificates were revoked; none: one is valid, or nothing is known.
    pub revoked: Option<WallTime>,
    /// Versions of its engines, and the number of engines that have each; empty: a version too old
    /// to report itself.
    pub engines: Vec<(String, u16)>,
}
