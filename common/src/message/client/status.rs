//! How batches and hosts stand.

use crate::message::agent::Load;
use crate::model::clock::WallTime;
use crate::model::ids::BatchId;
use crate::model::outcome::{Containment, Way};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a client wants of a batch that it has not opened itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// Only its end ([`super::ToClient::Ended`]).
    End,
    /// Results with their jobs ([`super::ToClient::Described`], [`super::ToClient::Results`]) and
    /// then its end.
    Results {
        /// Only those that did not succeed.
        failed: bool,
        /// Those that are still to come, too; otherwise `Ended` follows what there is.
        follow: bool,
    },
}

/// One line of `coordinator batches`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// Its id.
    pub id: BatchId,
    /// Whose it is.
    pub user: String,
    /// What they call it.
    pub name: Option<String>,
    /// It goes on when nobody looks after it.
    pub detached: bool,
    /// More jobs may come.
    pub open: bool,
    /// It was cancelled or halted: by whom or what, as far as that is known.
    pub stopped: Option<String>,
    /// When it was opened, on the coordinator's clock.
    pub opened: WallTime,
    /// When its last job ended.
    pub done: Option<WallTime>,
    /// Jobs so far.
    pub jobs: u64,
    /// Of which run. What hosts were handed in advance does not.
    pub placed: u64,
    /// Of which have ended.
    pub ended: u64,
    /// Of which have succeeded.
    pub succeeded: u64,
    /// And of which have neither succeeded nor failed, where that is known: peers of earlier
    /// versions do not hear it, and [`super::ToClient::BatchesApart`] has it beside the rest.
    #[serde(skip)]
    pub aside: Option<SetAside>,
}

impl BatchStatus {
    /// How many have failed; with those that were cancelled or skipped where nobody has said which
    /// that are.
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
    /// By a cancel, or not started because of one.
    pub cancelled: u64,
    /// Not started because of another job that had not succeeded.
    pub skipped: u64,
}

impl SetAside {
    /// One more has ended.
    pub fn add(&mut self, outcome: &crate::model::outcome::Outcome) {
        match outcome.way() {
            Way::Done | Way::Failed => {}
            Way::Cancelled => self.cancelled += 1,
            Way::Skipped => self.skipped += 1,
        }
    }
}

/// Batches, each with what of it was set aside.
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

/// A connected host with engines that do not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingHost {
    /// The host.
    pub name: String,
    /// Slots that can be used; none: it counts as absent.
    pub usable: u16,
    /// What is wrong with the others.
    pub why: String,
}

/// One line of `coordinator hosts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent is connected now.
    pub connected: bool,
    /// Whether its agent has said what runs there, which it does when it has heard all engines;
    /// only then it gets jobs.
    pub ready: bool,
    /// Jobs at a time.
    pub slots: u16,
    /// `engine_id` of its first engine; the others follow.
    pub first_engine: crate::model::ids::EngineId,
    /// Of which in use.
    pub busy: u16,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory: u64,
    /// Newest sign of its load.
    pub load: Load,
    /// Version of its program.
    pub program: String,
    /// Time since it connected, or since it was lost.
    pub since: Duration,
    /// Seconds to add to its wall clock to get the coordinator's.
    pub clock_offset: Option<f64>,
    /// Bytes of the largest datagram that has got there (RFC 8899), if it is connected.
    pub datagram: Option<u16>,
    /// What holds the processes of attempts together there.
    pub containment: Containment,
    /// Why it gets no more jobs, if it is being drained.
    pub drained: Option<String>,
    /// For how long it gets no jobs, and why.
    pub quarantined: Option<(Duration, String)>,
}

/// What is known of a host beside its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStanding {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent has connected since the coordinator was started. Else its status is what
    /// an earlier life has stored.
    pub seen: bool,
    /// When its certificates were revoked; none: some counts, or nothing is known.
    pub revoked: Option<WallTime>,
    /// Versions of its engines, and how many have each; nothing: one that is too old to say.
    pub engines: Vec<(String, u16)>,
}
