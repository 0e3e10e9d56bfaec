//! How long an agent waits before it tries again to connect.
//!
//! A fault that passes by itself (no answer, a lost connection) is tried again within a second: a
//! fleet does not wait for its new coordinator. A fault that only a person can mend (a revoked
//! certificate, another cluster) is tried ever more seldom, until a connection has worked once.
//! Another certificate in place begins anew: the code that looks at that file starts over.

use std::time::Duration;

/// First pause; doubles, and each pause is drawn between zero and itself (full jitter).
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause for a fault that passes by itself. One second keeps a fleet of dozens from waiting
/// for a new coordinator.
const LONGEST: Duration = Duration::from_secs(1);
/// First pause for a fault that only a person can mend, and the longest: a host that was refused
/// for weeks is there minutes after it is admitted, and thousands of such hosts cost the
/// coordinator a few handshakes a second.
const FIRST_REFUSED: Duration = Duration::from_secs(5);
const LONGEST_REFUSED: Duration = Duration::from_secs(300);

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
        let doubled = |first: Duration, times: u32| first * 2u32.pow(times.min(10));
        match needs_a_person {
            true => {
                self.refusals = self.refusals.saturating_add(1);
                doubled(FIRST_REFUSED, self.refusals - 1).min(LONGEST_REFUSED)
            }
            false => doubled(FIRST, self.failures).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
