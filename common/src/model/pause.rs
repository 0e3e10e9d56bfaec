//! Pauses between tries that fail, one after another.

use std::time::Duration;

/// First pause for a fault that only a person can mend, and the longest: a host that was refused
/// for weeks is there minutes after it is admitted, and thousands of such hosts cost the
/// coordinator a few handshakes a second.
pub const FIRST_REFUSED: Duration = Duration::from_secs(5);
/// The longest one of these.
pub const LONGEST_REFUSED: Duration = Duration::from_secs(300);

/// The pause that has been doubled so many `times`, from `first` on, and is never longer than
/// `longest`.
pub fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(times))
        .min(longest)
}

/// The pause after a fault that only a person can mend and that has come up so many `times` before.
pub fn refused(times: u32) -> Duration {
    doubled(FIRST_REFUSED, times, LONGEST_REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_that_only_a_person_can_help_become_ever_more_seldom() {
        let seconds: Vec<u64> = (0..8).map(|times| refused(times).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(refused(u32::MAX), LONGEST_REFUSED);
    }
}
