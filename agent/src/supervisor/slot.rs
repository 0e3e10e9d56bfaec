//! One engine, as the supervisor knows it: what it was given, what it says that it runs, and how
//! many slots of the host that takes.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchSerial};
use mezcal_common::model::job::Stop;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Not heard since its link was made.
    Unheard {
        /// What it was given over an earlier one, and how many slots that takes: it may still run.
        given: Option<(AttemptId, u16)>,
    },
    Idle,
    Busy {
        attempt: AttemptId,
        since: BootInstant,
        reported: bool,
        /// So many of the host: this engine, and others that do nothing meanwhile.
        slots: u16,
        /// Only the engine says so. The coordinator has not confirmed it yet.
        claimed: bool,
    },
    /// Something in it does not die.
    Held {
        slots: u16,
    },
    /// It does something that nobody here knows of. Nothing waits for it.
    Unfit,
}

impl Slot {
    /// So many slots of the host.
    pub(super) fn taken(self) -> u16 {
        match self {
            Slot::Idle | Slot::Unfit => 0,
            Slot::Unheard { given } => given.map_or(1, |(_, slots)| slots),
            Slot::Busy { slots, .. } | Slot::Held { slots } => slots,
        }
    }

    /// What it was given, and how many slots that takes, unless it is known to be over.
    pub(super) fn given(self) -> Option<(AttemptId, u16)> {
        match self {
            Slot::Unheard { given } => given,
            Slot::Busy {
                attempt,
                slots,
                claimed: false,
                ..
            } => Some((attempt, slots)),
            Slot::Idle | Slot::Busy { claimed: true, .. } | Slot::Held { .. } | Slot::Unfit => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) slot: Slot,
    /// The batch whose context it knows.
    pub(super) context: Option<BatchSerial>,
    /// Outcomes that it may forget, not told yet.
    pub(super) acknowledged: Vec<AttemptId>,
    /// What it was told to kill: told again over a new link.
    pub(super) stop: Option<(AttemptId, Stop)>,
    /// Streamed output of its attempt that the far end has not taken.
    pub(super) output: u32,
    /// When to ask for another link to it.
    pub(super) relink_at: Option<BootInstant>,
    /// The version of its program, once it has been heard; empty if it says none.
    pub(super) program: Option<String>,
    /// Since when there is nothing in it: the one before it is dead by its keeper's word, and it
    /// has not been heard itself.
    pub(super) vacant: Option<BootInstant>,
    /// That has been so for long.
    pub(super) failing: bool,
    /// Why, if its keeper has said so.
    pub(super) why: Option<String>,
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            slot: Slot::Unheard { given: None },
            context: None,
            acknowledged: Vec::new(),
            stop: None,
            output: 0,
            relink_at: None,
            program: None,
            vacant: None,
            failing: false,
            why: None,
        }
    }

    /// Whether it may have something that nobody here knows of.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.slot, Slot::Unheard { .. }) && self.vacant.is_none()
    }

    pub(super) fn is_heard(&self) -> bool {
        !matches!(self.slot, Slot::Unheard { .. })
    }
}
