//! Mistakes that can be planted, so that the simulation can show that it finds them.

use super::Scheduler;

/// A mistake that can be planted: the simulation has to find each.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A batch that is given up keeps those of its jobs that have just been released.
    OverlooksReleased,
    /// Idle slots are kept for a wide job no longer the next time than the last.
    KeepsNoLonger,
    /// Slots that have been idle for long take jobs though a slot that the jobs prefer is idle.
    TakesFromNear,
}

impl Scheduler {
    /// The same scheduler, with a mistake in it.
    #[doc(hidden)]
    #[must_use]
    pub fn with_mistake(mut self, mistake: Option<Mistake>) -> Self {
        self.mistake = mistake;
        self
    }
}
