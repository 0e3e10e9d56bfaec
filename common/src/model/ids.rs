//! Identifiers. Each id is a type of its own, so that a job number is never taken for an attempt
//! number.

use crate::model::clock::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// One life of a coordinator: 64 random bits drawn at its start. Attempts of another epoch are
    /// unknown to it.
    Epoch(u64)
);
number!(
    /// A coordinator's store: 64 random bits drawn when it was made. Numbers of another store have
    /// no meaning in it.
    StoreId(u64)
);
number!(
    /// A batch's number in its coordinator, from 1.
    BatchSerial(u32)
);
number!(
    /// A job's 1-based place in the input of its batch.
    JobNumber(u32)
);
number!(
    /// One authenticated connection of one agent, counted by the coordinator.
    SessionId(u64)
);
number!(
    /// An engine's cluster-wide stable number, the `engine_id` of a result.
    EngineId(u32)
);
number!(
    /// An engine's place on its host, from 0: its slot.
    EngineIndex(u16)
);

/// A batch's id, drawn by its client. A batch submitted again with the same id is the same batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId(pub uuid::Uuid);

impl BatchId {
    /// A new random (version 4) id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A job within one coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey {
    /// Number of its batch.
    pub batch: BatchSerial,
    /// Its number in that batch.
    pub job: JobNumber,
}

/// Attempt numbers of one job in one generation of its store. A job that fails within milliseconds
/// and is retried for ever has ten million attempts after a day. The generation shows in decimal:
/// attempt 20000003 is the third one, after two restores.
const ATTEMPTS: u32 = 10_000_000;
/// Batch numbers in one generation: one a second for two years. A single command of `exec` is a
/// batch, too.
const BATCHES: u32 = 1 << 26;
/// Most restores that fit: 64 generations of 2^26 batches are all 2^32 numbers, and 64 × 10,000,000
/// attempts are less than 2^32.
pub const MAX_RESTORES: u32 = u32::MAX / BATCHES;

/// The number of times a coordinator's store was restored from a copy, and the time of the last
/// one.
///
/// After a restore there are two histories of one store: that of the original after the copy was
/// made, and that of the copy. Numbers of batches and attempts carry the generation in their high
/// part, so that a copy never gives out a number of the original, and each attempt of the copy has
/// a higher number than all of the original. Of two generations the younger one counts: agents that
/// have met it refuse the other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    /// When a copy became this store, on the clock of its coordinator; zero for an original. Of
    /// siblings, made from one copy, the younger is newer.
    pub since: WallTime,
    /// Number of restores, up to [`MAX_RESTORES`].
    pub restores: u32,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.restores {
            0 => f.write_str("never restored"),
            count => write!(f, "restored on {}, restore {count}", self.since),
        }
    }
}

impl Generation {
    /// The generation of a copy that comes into use at `now`, where `beside` was the last
    /// generation known at that place. `None`: no more restores fit.
    pub fn next(self, beside: Generation, now: WallTime) -> Option<Generation> {
        let restores = self
            .restores
            .max(beside.restores)
            .checked_add(1)
            .filter(|count| *count <= MAX_RESTORES)?;
        // With a clock that was set back it is still not older than its parents.
        let since = now
            .0
            .max(self.since.0.saturating_add(1))
            .max(beside.since.0.saturating_add(1));
        Some(Generation {
            since: WallTime(since),
            restores,
        })
    }

    /// The first batch number: all numbers of earlier generations are lower.
    pub fn first_batch(self) -> BatchSerial {
        BatchSerial((self.restores * BATCHES).max(1))
    }

    /// The last batch number. The next number belongs to the next generation.
    pub fn last_batch(self) -> BatchSerial {
        BatchSerial(self.restores * BATCHES + (BATCHES - 1))
    }

    /// The number of a job's next attempt after number `last`, zero if it had none. `None`: that
    /// number belongs to the next generation.
    pub fn next_attempt(self, last: u32) -> Option<u32> {
        let count = attempt_count(last) + 1;
        (count < ATTEMPTS && last / ATTEMPTS <= self.restores)
            .then(|| self.restores * ATTEMPTS + count)
    }
}

/// The count of this attempt within its job, over all generations: 3 for 20000003.
pub fn attempt_count(attempt: u32) -> u32 {
    attempt % ATTEMPTS
}

/// One run of one job. `17.2` is the second attempt of job 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The coordinator life that placed it.
    pub epoch: Epoch,
    /// The job that it runs.
    pub key: JobKey,
    /// 1 for the first attempt; above ten million after a restore (see [`Generation`]).
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.key.job, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_generation_are_above_all_of_earlier_ones_and_below_the_next() {
        let mut generation = Generation::default();
        let (mut attempt, mut batch) = (0, BatchSerial(0));
        loop {
            let first = generation.next_attempt(attempt).expect("there is one");
            assert!(first > attempt && generation.first_batch() > batch);
            assert_eq!(generation.next_attempt(first), Some(first + 1));
            // The last number that could have been given out.
            (attempt, batch) = (
                generation.restores * ATTEMPTS + (ATTEMPTS - 1),
                generation.last_batch(),
            );
            assert_eq!(
                generation.next_attempt(attempt),
                None,
                "the next number is the next generation's"
            );
            let now = WallTime(i64::from(generation.restores));
            let Some(next) = generation.next(Generation::default(), now) else {
                break;
            };
            assert!(next > generation);
            // As if the copy had been made before the last attempts.
            (generation, attempt) = (next, attempt - 5);
        }
        assert_eq!(
            (generation.restores, batch),
            (MAX_RESTORES, BatchSerial(u32::MAX))
        );
    }

    #[test]
    fn a_job_is_counted_on_after_a_restore() {
        let restored = Generation {
            since: WallTime(5),
            restores: 2,
        };
        assert_eq!(restored.next_attempt(2), Some(20_000_003));
        assert_eq!(restored.next_attempt(0), Some(20_000_001));
        assert_eq!(attempt_count(20_000_003), 3);
        assert_eq!(Generation::default().next_attempt(2), Some(3));
        assert_eq!(
            restored.next_attempt(30_000_001),
            None,
            "a number from the future is passed by nobody"
        );
    }

    #[test]
    fn of_two_copies_of_one_store_the_later_one_is_newer() {
        let (first, second) = (WallTime(100), WallTime(200));
        let original = Generation::default();
        let sibling = original.next(original, first).expect("few");
        let chain = sibling.next(original, WallTime(150)).expect("few");
        let other = original.next(original, second).expect("few");
        assert!(other > chain && chain > sibling && sibling > original);
        // With a clock that was set back, where the old store lies beside.
        assert!(original.next(chain, WallTime(1)).expect("few") > chain);
    }
}
