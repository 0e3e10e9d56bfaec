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

    /// What an engine has been found to run.
    pub(super) fn found(attempt: AttemptId, slots: u16, claimed: bool, now: BootInstant) -> Self {
        Slot::Busy {
            attempt,
            since: now,
            reported: true,
            slots,
            claimed,
        }
    }

    /// What is here when the engine says that an attempt is over, and whether that is a mere claim.
    /// None: it is not about anything that it was given.
    pub(super) fn after(self, attempt: AttemptId, survivors: bool) -> Option<(Self, bool)> {
        match self {
            Slot::Busy {
                attempt: busy,
                slots,
                claimed,
                ..
            } if busy == attempt => {
                let next = match (survivors, claimed) {
                    (false, _) => Slot::Idle,
                    (true, false) => Slot::Held { slots },
                    (true, true) => Slot::Unfit,
                };
                Some((next, claimed))
            }
            // What it runs follows with `Ready`.
            Slot::Unheard { given } if given.is_some_and(|(given, _)| given == attempt) => {
                Some((Slot::Unheard { given: None }, false))
            }
            // An earlier agent may have given it that, or this one, who has had it acknowledged.
            Slot::Unheard { .. } => Some((self, true)),
            Slot::Unfit => Some((Slot::Idle, true)),
            Slot::Idle | Slot::Busy { .. } | Slot::Held { .. } => None,
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

    /// What was heard over an earlier link counts no more.
    pub(super) fn is_unlinked(&mut self) {
        self.slot = Slot::Unheard {
            given: self.slot.given(),
        };
        (self.context, self.output) = (None, 0);
    }

    /// Nothing is to be heard any more of its keeper.
    pub(super) fn is_gone(&mut self) {
        self.is_unlinked();
        (self.relink_at, self.program) = (None, None);
        (self.vacant, self.failing, self.why) = (None, false, None);
        self.acknowledged.clear();
    }

    /// It is ready. True if nobody has heard before what it runs: then it says no version, as those
    /// of before 0.2.
    pub(super) fn is_heard_of(&mut self) -> bool {
        (self.context, self.output, self.relink_at) = (None, 0, None);
        (self.vacant, self.failing, self.why) = (None, false, None);
        let news = self.program.is_none();
        self.program.get_or_insert_default();
        news
    }

    /// By its keeper's word; all that it left is dead, too, or not.
    pub(super) fn is_dead(&mut self, all: bool, now: BootInstant) {
        self.vacant = if all { self.vacant.or(Some(now)) } else { None };
        self.failing &= self.vacant.is_some();
        (self.context, self.stop, self.output, self.relink_at) = (None, None, 0, None);
        self.program = None;
    }

    /// Whether it may have something that nobody here knows of.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.slot, Slot::Unheard { .. }) && self.vacant.is_none()
    }

    pub(super) fn is_heard(&self) -> bool {
        !matches!(self.slot, Slot::Unheard { .. })
    }
}
