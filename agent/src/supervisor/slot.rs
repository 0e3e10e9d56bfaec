//! One engine, as the supervisor knows it: the attempt that it was given, the attempt that it says
//! it runs, and how many slots of the host that takes.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchSerial};
use mezcal_common::model::job::Stop;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// The engine has not been heard since its link was made.
    Unheard {
        /// The attempt that it was given over an earlier link, and its slots: the attempt may still
        /// run.
        given: Option<(AttemptId, u16)>,
    },
    Idle,
    Busy {
        attempt: AttemptId,
        since: BootInstant,
        reported: bool,
        /// Slots of the host: this engine, and others that do nothing meanwhile.
        slots: u16,
        /// Only the engine says so. The coordinator has not confirmed it yet.
        claimed: bool,
    },
    /// A process in the engine does not die.
    Held {
        slots: u16,
    },
    /// The engine runs something that nobody here knows of. Nothing waits for it.
    Unfit,
}

impl Slot {
    /// The slots of the host that the engine takes.
    pub(super) fn taken(self) -> u16 {
        match self {
            Slot::Idle | Slot::Unfit => 0,
            Slot::Unheard { given } => given.map_or(1, |(_, slots)| slots),
            Slot::Busy { slots, .. } | Slot::Held { slots } => slots,
        }
    }

    /// The slot of an engine that has been found to run an attempt.
    pub(super) fn found(attempt: AttemptId, slots: u16, claimed: bool, now: BootInstant) -> Self {
        Slot::Busy {
            attempt,
            since: now,
            reported: true,
            slots,
            claimed,
        }
    }

    /// The slot after the engine's word that an attempt is over, and whether that word is a mere
    /// claim. None: the word is not about an attempt that the engine was given.
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
            // The attempt that it runs follows with `Ready`.
            Slot::Unheard { given } if given.is_some_and(|(given, _)| given == attempt) => {
                Some((Slot::Unheard { given: None }, false))
            }
            // An earlier agent may have given it the attempt, or this agent, whose report has been
            // acknowledged.
            Slot::Unheard { .. } => Some((self, true)),
            Slot::Unfit => Some((Slot::Idle, true)),
            Slot::Idle | Slot::Busy { .. } | Slot::Held { .. } => None,
        }
    }

    /// The attempt that the engine was given, and its slots, unless it is known to be over.
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
    /// The batch whose context the engine knows.
    pub(super) context: Option<BatchSerial>,
    /// Outcomes that the engine may forget and has not been told of yet.
    pub(super) acknowledged: Vec<AttemptId>,
    /// The attempt that the engine was told to kill: it is told again over a new link.
    pub(super) stop: Option<(AttemptId, Stop)>,
    /// Bytes of streamed output that the far end has not taken.
    pub(super) output: u32,
    /// When to ask for another link to the engine.
    pub(super) relink_at: Option<BootInstant>,
    /// The version of the engine's program, once it has been heard; empty if it says none.
    pub(super) program: Option<String>,
    /// Since when there is nothing in the engine: its predecessor is dead by its keeper's word, and
    /// the engine itself has not been heard.
    pub(super) vacant: Option<BootInstant>,
    /// The engine has been vacant for long.
    pub(super) failing: bool,
    /// Why the engine is vacant, if its keeper has said so.
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

    /// Words over an earlier link do not count any more.
    pub(super) fn is_unlinked(&mut self) {
        self.slot = Slot::Unheard {
            given: self.slot.given(),
        };
        (self.context, self.output) = (None, 0);
    }

    /// Nothing more is to be heard of the engine's keeper.
    pub(super) fn is_gone(&mut self) {
        self.is_unlinked();
        (self.relink_at, self.program) = (None, None);
        (self.vacant, self.failing, self.why) = (None, false, None);
        self.acknowledged.clear();
    }

    /// The engine is ready. True if nobody has heard its version before: then it says none, like
    /// engines before 0.2.
    pub(super) fn is_heard_of(&mut self) -> bool {
        (self.context, self.output, self.relink_at) = (None, 0, None);
        (self.vacant, self.failing, self.why) = (None, false, None);
        let news = self.program.is_none();
        self.program.get_or_insert_default();
        news
    }

    /// The engine is dead by its keeper's word. `all`: so are all processes that it left.
    pub(super) fn is_dead(&mut self, all: bool, now: BootInstant) {
        self.vacant = if all { self.vacant.or(Some(now)) } else { None };
        self.failing &= self.vacant.is_some();
        (self.context, self.stop, self.output, self.relink_at) = (None, None, 0, None);
        self.program = None;
    }

    /// Whether the engine may have an attempt that nobody here knows of.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.slot, Slot::Unheard { .. }) && self.vacant.is_none()
    }

    pub(super) fn is_heard(&self) -> bool {
        !matches!(self.slot, Slot::Unheard { .. })
    }
}
