//! What a run is made of, and how long things take in it.

use super::mutants::Mutant;
use mezcal_common::model::ids::BatchId;
use std::time::Duration;

/// What one run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// Engines of each.
    pub slots: usize,
    /// Jobs.
    pub jobs: u32,
    /// Faults, while they last.
    pub faults: u32,
    /// All jobs but the last take one slot and some minutes, and the last takes all slots of a host
    /// and comes while those go on: it has to start within its bound, and with it the run ends.
    pub crowd: bool,
    /// Hosts are upgraded while jobs run: engines of before have to be replaced, without touching
    /// what they run, and with that the run ends.
    pub upgraded: bool,
    /// What is wrong on purpose.
    pub mutant: Option<Mutant>,
}

/// Of the first life of the coordinator; each later one may have another.
pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const LEASES: [Duration; 3] = [Duration::from_secs(10), LEASE, Duration::from_secs(90)];
pub(super) const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Faults stop then, and everything must come to an end by [`END`].
pub(super) const CALM: Duration = Duration::from_secs(300);
pub(super) const END: Duration = Duration::from_secs(1200);
/// The same for a crowd: longer than the longest of its jobs may keep a wide one waiting.
pub(super) const END_OF_CROWD: Duration = Duration::from_secs(4000);
/// How long the dying of a job may take: less than an engine waits before it calls something
/// unkillable.
pub(super) const SLOW_DEATH: Duration = Duration::from_secs(9);
/// Between two looks at a connection, and two tries to make one.
pub(super) const LOOK: Duration = Duration::from_millis(700);
/// How long a batch goes on without its client, which attaches again after each restart as long as
/// it is there.
pub(super) const CLIENT_LEASE: Duration = Duration::from_secs(20);
/// For what a wide job's way to a host and the reports of those before it take.
pub(super) const SLACK: Duration = Duration::from_secs(2);
/// Every so many seeds the batch may be given up: jobs come after others, some fail, and there is a
/// halt, a limit or a client that leaves.
pub(super) const GIVEN_UP: u64 = 4;
/// Whose jobs run, and who has engines beside them.
pub(super) const USER: &str = "okazaki";
pub(super) const HOSTILE: &str = "mallory";
/// Between two words of those.
pub(super) const WORD: Duration = Duration::from_secs(4);
/// Chances of whether and when a copy is served are drawn apart from all others.
pub(super) const RESTORES: u64 = 0x7265_7374_6f72_6573;
/// Chances of when hosts are upgraded, likewise.
pub(super) const PROGRAMS: u64 = 0x7067_6d73_7067_6d73;
pub(super) const BATCH: BatchId = BatchId(uuid::Uuid::from_u128(1));

impl Plan {
    /// Whose engines the hosts have, if they do not run everybody's jobs.
    pub(super) fn users(&self) -> Option<Vec<String>> {
        (self.seed % 4 == 1 && !self.crowd).then(|| vec![USER.to_owned(), HOSTILE.to_owned()])
    }
}
