//! How long an agent waits before it tries again to connect.
//!
//! A fault that passes by itself (no answer, a lost connection) is tried again within a second: a
//! fleet does not wait for its new coordinator. A fault that only a person can mend (a revoked
//! certificate, another cluster) is tried ever more seldom, until a connection has worked once.
//! Another certificate in place begins anew: the code that looks at that file starts over.

use mezcal_common::model::pause;
use std::time::Duration;

/// First pause; doubles, and each pause is drawn between zero and itself (full jitter).
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause for a fault that passes by itself. One second keeps a fleet of dozens from waiting
/// for a new coordinator.
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses of one agent with one certificate.
#[derive(Default)]
pub(crate) struct Pauses {
    failures: u32,
    refusals: u32,
}

impl Pauses {
    /// A connection has worked.
    pub(crate) fn worked(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing has failed since a connection worked.
    pub(crate) fn are_new(&self) -> bool {
        self.failures == 0
    }

    /// A connection has failed once more; how long to wait at most.
    pub(crate) fn failed(&mut self, needs_a_person: bool) -> Duration {
        self.failures = self.failures.saturating_add(1);
        match needs_a_person {
            true => {
                let pause = pause::refused(self.refusals);
                self.refusals = self.refusals.saturating_add(1);
                pause
            }
            false => pause::doubled(FIRST, self.failures, LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pause::{FIRST_REFUSED, LONGEST_REFUSED};

    #[test]
    fn what_only_a_person_can_mend_is_tried_ever_more_seldom_until_it_has_worked() {
        let mut pauses = Pauses::default();
        let seconds: Vec<u64> = (0..8).map(|_| pauses.failed(true).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300]);
        // A coordinator that is restarted says nothing for a moment, and the certificate is still
        // refused.
        assert!(pauses.failed(false) <= LONGEST);
        assert_eq!(pauses.failed(true), LONGEST_REFUSED);
        pauses.worked();
        assert!(pauses.are_new());
        assert_eq!(pauses.failed(true), FIRST_REFUSED);
    }

    #[test]
    fn what_passes_by_itself_is_tried_within_a_second_however_often_it_has_failed() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.failed(false), FIRST * 2);
        assert!((0..100_000).all(|_| pauses.failed(false) <= LONGEST));
        assert_eq!(pauses.failed(false), LONGEST);
    }
}
