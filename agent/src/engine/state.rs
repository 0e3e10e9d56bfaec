//! Where an attempt is between its start and the proof that nothing of it is left.

use super::event::Exit;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::{Leftover, Stop};
use mezcal_common::model::outcome::Ended;
use std::time::Duration;

/// The reasons why an attempt is being killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Cancelled,
    Timeout(Duration),
    LeaseOver,
    Stopped,
}

impl Reason {
    pub(super) fn ended(self) -> Ended {
        match self {
            Reason::Cancelled => Ended::Cancelled,
            Reason::Timeout(_) => Ended::Timeout,
            Reason::LeaseOver | Reason::Stopped => Ended::Lost,
        }
    }
}

/// A shortage of something on the host that a spawn takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortage {
    pub(super) since: BootInstant,
    pub(super) pause: Duration,
    /// Nothing is tried until then.
    pub(super) again: Option<BootInstant>,
}

#[derive(Debug)]
pub(super) enum State {
    Idle,
    Spawning {
        attempt: AttemptId,
        timeout: Option<Duration>,
        /// The timeout counts from the spawn: opening files takes its time, too. Waiting for the
        /// host does not count.
        deadline: Option<(BootInstant, Duration)>,
        short: Option<Shortage>,
        leftover: Leftover,
        /// A kill that is remembered until there is a process to kill, and the time by which it
        /// should have been done.
        kill: Option<(Reason, Stop, BootInstant)>,
    },
    Running {
        attempt: AttemptId,
        deadline: Option<(BootInstant, Duration)>,
        leftover: Leftover,
        /// The first process has ended, and the others are waited for.
        lingering: bool,
    },
    Terminating {
        attempt: AttemptId,
        reason: Reason,
        signal: i32,
        kill_at: BootInstant,
        first_ended: bool,
    },
    Sweeping {
        attempt: AttemptId,
        reason: Option<Reason>,
        give_up: BootInstant,
        again: BootInstant,
        pause: Duration,
        exit: Option<Exit>,
        /// Nothing is alive any more; only its output is still being taken, for as long as that
        /// takes.
        held: bool,
    },
    Stuck {
        attempt: AttemptId,
        again: BootInstant,
    },
}
