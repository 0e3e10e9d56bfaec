//! One engine, as its keeper knows it: whether it lives, what it has said of its attempt, and until
//! when it is trusted with that.

use super::LATE;
use mezcal_common::message::engine::EngineToKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::outcome::Ended;
use std::collections::VecDeque;
use std::time::Duration;

/// An engine that has lived for this long has not failed at its start.
pub(super) const LIVED: Duration = Duration::from_secs(10);

/// Pause before the second start in a row of an engine that has; doubles up to [`RESTART_MAX`].
pub(super) const RESTART_FIRST: Duration = Duration::from_millis(100);

pub(super) const RESTART_MAX: Duration = Duration::from_secs(5);

/// Attempts that an engine has said to be over and that are remembered: more than can be on their
/// way between two looks at the agent.
const REMEMBERED: usize = 8;

/// An engine's statement about its attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) attempt: AttemptId,
    pub(super) until: Option<BootInstant>,
    pub(super) ended: Ended,
    pub(super) killing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    /// The engine has been sent KILL. `told`: the agent knows that it does not die.
    Killed {
        since: BootInstant,
        told: bool,
    },
    /// The engine is reaped; the processes that it left are being swept.
    Dead {
        since: BootInstant,
        told: bool,
    },
    /// Nothing of the engine is left; its successor is started at this time.
    Due {
        at: BootInstant,
    },
    /// The engine is dead, and was one too many.
    Retired,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) life: Life,
    pub(super) started: BootInstant,
    /// How many engines in a row have not lived long.
    pub(super) failures: u32,
    pub(super) watch: Option<Watch>,
    /// The attempt that the agent has told the engine to kill, and by when.
    pub(super) cancelled: Option<(AttemptId, BootInstant)>,
    /// Attempts that the engine has said to be over: the agent's word about them may come later.
    pub(super) over: VecDeque<AttemptId>,
    /// When the agent's link to the engine was last made again.
    pub(super) relinked: Option<BootInstant>,
    /// Why the engine was killed.
    pub(super) ended: Ended,
    pub(super) killed: u32,
}

impl Slot {
    pub(super) fn new(now: BootInstant, failures: u32) -> Self {
        Self {
            life: Life::Alive,
            started: now,
            failures,
            watch: None,
            cancelled: None,
            over: VecDeque::new(),
            relinked: None,
            ended: Ended::Lost,
            killed: 0,
        }
    }

    /// The pause before the successor is started. None: a first failure may be chance.
    pub(super) fn pause(&self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(2)?;
        Some(
            RESTART_FIRST
                .saturating_mul(2u32.saturating_pow(doublings))
                .min(RESTART_MAX),
        )
    }

    pub(super) fn attempt(&self) -> Option<AttemptId> {
        self.watch
            .map(|w| w.attempt)
            .or(self.cancelled.map(|(attempt, _)| attempt))
    }

    /// When the engine is late, and how its attempt has ended by then.
    pub(super) fn deadline(&self, lease: Option<BootInstant>) -> Option<(BootInstant, Ended)> {
        let watch = self.watch.and_then(|w| Some((w.until?, w.ended)));
        // If the engine runs another attempt than the one that it was told to kill, that one is
        // over.
        let other = |attempt| self.watch.is_some_and(|w| w.attempt != attempt);
        let cancelled = self
            .cancelled
            .filter(|(attempt, _)| !other(*attempt))
            .map(|(_, by)| (by, Ended::Cancelled));
        // An engine that is killing has its own time for that.
        let lease = self
            .watch
            .filter(|w| !w.killing)
            .and(lease)
            .map(|until| (until, Ended::Lost));
        let first = [watch, cancelled, lease]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at);
        first.map(|(at, ended)| (at + LATE, ended))
    }
}

pub(super) fn said(slot: &mut Slot, message: EngineToKeeper) {
    match message {
        EngineToKeeper::Watch {
            attempt,
            until,
            ended,
            killing,
        } => {
            slot.watch = Some(Watch {
                attempt,
                until,
                ended,
                killing,
            });
            // An engine's word about a kill under way is newer than the agent's; its word about a
            // job that runs may be older.
            if killing
                && slot
                    .cancelled
                    .is_some_and(|(cancelled, _)| cancelled == attempt)
            {
                slot.cancelled = None;
            }
        }
        EngineToKeeper::Over { attempt } => {
            if slot.over.len() == REMEMBERED {
                slot.over.pop_front();
            }
            slot.over.push_back(attempt);
            if slot.watch.is_some_and(|w| w.attempt == attempt) {
                slot.watch = None;
            }
            if slot
                .cancelled
                .is_some_and(|(cancelled, _)| cancelled == attempt)
            {
                slot.cancelled = None;
            }
        }
    }
}
