//! Planted mistakes, which show that the checks find them.
//!
//! A mistake is a [`Mutant`], whose doc names the fault and the promises that have to break. All
//! other code asks [`Mutants`] whether to act wrongly.

use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::Generation;
use mezcal_coordinator::scheduler::{FENCE_MARGIN, Mistake};
use std::time::Duration;

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The coordinator waits no longer for a lost host than its attempts may run: a job runs on a
    /// second host while it still runs on the first (P1).
    NoMargin,
    /// An engine that never hears of a lease: it continues an attempt that is placed again (P1).
    NoDeadline,
    /// An engine that forgets an outcome as soon as it has sent it: the job has no result, or runs
    /// again though it had ended (the end, P2, P7).
    ForgetsEarly,
    /// An inventory that is sent before the engines have been heard: their attempts count as gone,
    /// and their slots as idle (P1, P2, P3, slots).
    EarlyInventory,
    /// A report of an earlier attempt that counts for the present one: the present one is over
    /// before it has ended (P1, P3, P7).
    StaleReport,
    /// A cancel that is answered when it is sent: the job is reported as over and lives (P3).
    HastyCancel,
    /// A job that is taken back and placed elsewhere before its agent has answered: it may have
    /// started there (P1, P2, P3).
    HastyRetract,
    /// The coordinator acts on records that its store does not have yet, and acts again after its
    /// death (P1, P2, P7).
    HastyStore,
    /// A slot waits for its own jobs for longer than it may (P4).
    LongWait,
    /// An agent that keeps the longest lease that it was ever given: it outlives the coordinator's
    /// wait (P1).
    LongestLease,
    /// A batch that is given up keeps its jobs that have just been released: they are placed all
    /// the same (given up).
    OverlooksReleased,
    /// Idle slots are kept for a wide job equally long each time: in a crowd it starts after its
    /// bound (wide).
    KeepsNoLonger,
    /// Slots that have been idle for long take jobs though a slot that the jobs prefer is idle, too
    /// (P4).
    TakesFromNear,
    /// The messages of one user's engines about another's attempts count: results without a run
    /// (P1, P3, P7).
    BelievesAnybody,
    /// Attempts of engines that were not heard count as absent: they run twice at the same time
    /// (P1, P2, P3).
    SilenceIsAbsence,
    /// A copy of the store that places its batches at once: attempts of the original still live
    /// (P1).
    HastyRestore,
    /// A copy of the store that passes for its original: hosts serve both (P1, P2, P3).
    SameGeneration,
    /// An agent that forgets the generations that it has met when it starts again: it returns to
    /// the original (P1, P3).
    ForgetfulAgent,
    /// A keeper that continues though its agent has asked it to end: its engines stay old (the
    /// end).
    DeafKeeper,
    /// A keeper whose engines are replaced while they run an attempt, which dies (replaced).
    HastyReplacement,
}

impl Mutant {
    /// The possible beginnings of the first error that shows this mistake.
    pub fn breaks(self) -> &'static [&'static str] {
        match self {
            Self::NoMargin | Self::NoDeadline | Self::LongestLease | Self::HastyRestore => &["P1"],
            Self::HastyCancel => &["P3"],
            Self::LongWait | Self::TakesFromNear => &["P4"],
            Self::ForgetfulAgent => &["P1", "P3"],
            Self::HastyRetract | Self::SilenceIsAbsence | Self::SameGeneration => {
                &["P1", "P2", "P3"]
            }
            Self::EarlyInventory => &["P1", "P2", "P3", "slots"],
            Self::StaleReport | Self::BelievesAnybody => &["P1", "P3", "P7"],
            Self::HastyStore => &["P1", "P2", "P7"],
            Self::DeafKeeper => &["in the end these hosts"],
            Self::HastyReplacement => &["replaced"],
            Self::ForgetsEarly => &["in the end", "P2", "P7"],
            Self::OverlooksReleased => &["given up"],
            Self::KeepsNoLonger => &["wide"],
        }
    }
}

/// The mistake that a run has on purpose, if any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mutants(pub(super) Option<Mutant>);

impl Mutants {
    fn has(self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    /// The time that an agent adds to its lease: as if the coordinator's wait and the agent's lease
    /// were equally long, each from its own start.
    pub(super) fn forgotten_margin(self) -> Duration {
        match self.has(Mutant::NoMargin) {
            true => FENCE_MARGIN,
            false => Duration::ZERO,
        }
    }

    /// Whether engines never hear of a lease.
    pub(super) fn keeps_leases_from_engines(self) -> bool {
        self.has(Mutant::NoDeadline)
    }

    /// Whether an engine takes a sent outcome for acknowledged.
    pub(super) fn forgets_what_it_has_sent(self) -> bool {
        self.has(Mutant::ForgetsEarly)
    }

    /// Whether an agent takes engines that it has not heard for idle.
    pub(super) fn takes_unheard_engines_for_idle(self) -> bool {
        self.has(Mutant::EarlyInventory)
    }

    /// Whether a report counts for the present attempt of its job, whichever it names.
    pub(super) fn takes_stale_reports(self) -> bool {
        self.has(Mutant::StaleReport)
    }

    /// Whether a cancelled job is reported as over at once.
    pub(super) fn answers_cancels_at_once(self) -> bool {
        self.has(Mutant::HastyCancel)
    }

    /// Whether jobs are taken back without their agent's answer.
    pub(super) fn takes_back_without_an_answer(self) -> bool {
        self.has(Mutant::HastyRetract)
    }

    /// Whether effects do not wait for the store.
    pub(super) fn acts_before_its_store(self) -> bool {
        self.has(Mutant::HastyStore)
    }

    /// How long a slot waits for jobs that prefer it; at most `most` without a mistake.
    pub(super) fn wait_for_locality(self, most: Duration) -> Duration {
        match self.has(Mutant::LongWait) {
            true => 2 * most,
            false => most,
        }
    }

    /// Whether an agent ignores leases that are shorter than an earlier one.
    pub(super) fn holds_on_to_the_longest_lease(self) -> bool {
        self.has(Mutant::LongestLease)
    }

    /// The mistake that the scheduler itself makes.
    pub(super) fn of_the_scheduler(self) -> Option<Mistake> {
        match self.0 {
            Some(Mutant::OverlooksReleased) => Some(Mistake::OverlooksReleased),
            Some(Mutant::KeepsNoLonger) => Some(Mistake::KeepsNoLonger),
            Some(Mutant::TakesFromNear) => Some(Mistake::TakesFromNear),
            _ => None,
        }
    }

    /// Whether a report counts from any user's engines.
    pub(super) fn believes_anybody(self) -> bool {
        self.has(Mutant::BelievesAnybody)
    }

    /// Whether engines that were not heard count as engines without attempts.
    pub(super) fn takes_silence_for_absence(self) -> bool {
        self.has(Mutant::SilenceIsAbsence)
    }

    /// Whether a copy of the store does not wait for its original's attempts.
    pub(super) fn restores_without_waiting(self) -> bool {
        self.has(Mutant::HastyRestore)
    }

    /// The generation of a restored store.
    pub(super) fn generation_of_the_copy(self) -> Generation {
        let original = Generation::default();
        match self.has(Mutant::SameGeneration) {
            true => original,
            false => original
                .next(original, WallTime(1))
                .expect("the first of many"),
        }
    }

    /// Whether keepers continue that were asked to end.
    pub(super) fn ignores_that_keepers_have_to_end(self) -> bool {
        self.has(Mutant::DeafKeeper)
    }

    /// Whether keepers of old engines end before they are asked.
    pub(super) fn replaces_engines_that_run_something(self) -> bool {
        self.has(Mutant::HastyReplacement)
    }

    /// Whether an agent that starts remembers no generations.
    pub(super) fn forgets_generations(self) -> bool {
        self.has(Mutant::ForgetfulAgent)
    }
}
