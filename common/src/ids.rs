//! Identifiers. Each id is a type of its own, so that a job number is never taken for an attempt number.

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
    /// One life of a coordinator: 64 random bits drawn at its start. Attempts of another epoch are strangers.
    Epoch(u64)
);
number!(
    /// A coordinator's store: 64 random bits drawn when it was made. What another one has is strange to it.
    StoreId(u64)
);
number!(
    /// A batch as its coordinator counts them, from 1.
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

/// A batch as its client names it. Submitting the same id again is the same batch.
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
    /// Its batch.
    pub batch: BatchSerial,
    /// Its place in that batch.
    pub job: JobNumber,
}

/// One run of one job. `17.2` is the second attempt of job 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The coordinator life that placed it.
    pub epoch: Epoch,
    /// The job that it runs.
    pub key: JobKey,
    /// 1 for the first attempt.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.key.job, self.attempt)
    }
}
