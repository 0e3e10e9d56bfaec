//! The parameters of a run, and the times in it.

use super::mutants::Mutant;
use mezcal_common::model::ids::BatchId;
use std::time::Duration;

/// The parameters of one run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed of all chance.
    pub seed: u64,
    /// The number of hosts.
    pub hosts: usize,
    /// The number of engines of each host.
    pub slots: usize,
    /// The number of jobs.
    pub jobs: u32,
    /// The number of faults, before the calm.
    pub faults: u32,
    /// All jobs but the last take one slot and some minutes, and the last takes all slots of a host
    /// and comes while those go on: it has to start within its bound, and with it the run ends.
    pub crowd: bool,
    /// Hosts are upgraded while jobs run: old engines have to be replaced without harm to their
    /// attempts, and with that the run ends.
    pub upgraded: bool,
    /// The planted mistake.
    pub mutant: Option<Mutant>,
}

/// The lease of the coordinator's first life; each later life may have another.
pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const LEASES: [Duration; 3] = [Duration::from_secs(10), LEASE, Duration::from_secs(90)];
pub(super) const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Faults stop then, and everything must come to an end by [`END`].
pub(super) const CALM: Duration = Duration::from_secs(300);
pub(super) const END: Duration = Duration::from_secs(1200);
/// The end for a crowd: longer than the longest of its jobs may keep a wide one waiting.
pub(super) const END_OF_CROWD: Duration = Duration::from_secs(4000);
/// How long a job may take to die: less than an engine waits before it calls a process unkillable.
pub(super) const SLOW_DEATH: Duration = Duration::from_secs(9);
/// Time between two checks of a connection, and two tries to make one.
pub(super) const LOOK: Duration = Duration::from_millis(700);
/// How long a batch continues without its client, which attaches again after each restart while it
/// lives.
pub(super) const CLIENT_LEASE: Duration = Duration::from_secs(20);
/// Time for a wide job's way to a host and for the reports of the jobs before it.
pub(super) const SLACK: Duration = Duration::from_secs(2);
/// The batch may be given up in every fourth seed: jobs come after others, some fail, and there is a
/// halt, a limit or a client that leaves.
pub(super) const GIVEN_UP: u64 = 4;
/// The user with jobs, and the one with hostile engines beside them.
pub(super) const USER: &str = "okazaki";
pub(super) const HOSTILE: &str = "mallory";
/// Time between two messages of the hostile engines.
pub(super) const WORD: Duration = Duration::from_secs(4);
/// Seed for whether and when a copy is served: those chances are drawn apart from all others.
pub(super) const RESTORES: u64 = 0x7265_7374_6f72_6573;
/// Seed for when hosts are upgraded, in the same way.
pub(super) const PROGRAMS: u64 = 0x7067_6d73_7067_6d73;
pub(super) const BATCH: BatchId = BatchId(uuid::Uuid::from_u128(1));

impl Plan {
    /// The users that the hosts have engines for, if the hosts do not serve all users.
    pub(super) fn users(&self) -> Option<Vec<String>> {
        (self.seed % 4 == 1 && !self.crowd).then(|| vec![USER.to_owned(), HOSTILE.to_owned()])
    }
}
