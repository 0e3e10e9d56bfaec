//! The two clocks: wall time for people, boot time for decisions.
//!
//! `BootInstant` counts suspended time (CLOCK_BOOTTIME, clock_gettime(2)); Rust's `Instant` does
//! not. Boot times of two hosts are never compared. Pure cores receive their `now`; only drivers
//! call these functions.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since this host booted, suspended time included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BootInstant(pub Duration);

impl BootInstant {
    /// Reads CLOCK_BOOTTIME.
    pub fn now() -> Self {
        let t = clock_gettime(ClockId::Boottime);
        Self(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    /// The time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d))
    }
}

/// Microseconds since the Unix epoch on some host's wall clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WallTime(pub i64);

impl WallTime {
    /// From whole seconds since the Unix epoch, as certificates have them.
    pub fn of_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Reads CLOCK_REALTIME through the C library, so that a clock interposed there (libfaketime)
    /// counts.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        Self(since.map_or_else(|before| -micros(before.duration()), micros))
    }

    /// Seconds from `earlier` to `self`; negative if `earlier` is later.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}

/// To the second, in UTC.
impl std::fmt::Display for WallTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.0}"),
            // Outside the range of dates.
            Err(_) => write!(f, "{} s after 1970", self.0 / 1_000_000),
        }
    }
}

/// An estimate of the seconds to add to this host's wall clock to get its peer's, from one round
/// trip (the clock filter of RFC 5905 §10 reduced to its core: the sample with the shortest round
/// trip wins).
#[derive(Clone, Debug, Default)]
pub struct OffsetEstimate {
    samples: std::collections::VecDeque<(Duration, f64)>,
}

impl OffsetEstimate {
    /// RFC 5905 keeps eight samples.
    const SAMPLES: usize = 8;

    /// Adds one exchange: sent at `sent` (wall and boot clock here), answered at `peer` (the peer's
    /// wall clock), received at `heard`.
    pub fn sample(&mut self, sent: (WallTime, BootInstant), peer: WallTime, heard: BootInstant) {
        let round_trip = heard.since(sent.1);
        let middle = sent.0.0 as f64 / 1e6 + round_trip.as_secs_f64() / 2.0;
        if self.samples.len() == Self::SAMPLES {
            self.samples.pop_front();
        }
        self.samples
            .push_back((round_trip, peer.0 as f64 / 1e6 - middle));
    }

    /// The offset in seconds, `None` before the first exchange.
    pub fn seconds(&self) -> Option<f64> {
        self.samples
            .iter()
            .min_by_key(|(round_trip, _)| *round_trip)
            .map(|(_, offset)| *offset)
    }

    /// The shortest round trip seen among the kept samples.
    pub fn round_trip(&self) -> Option<Duration> {
        self.samples.iter().map(|(round_trip, _)| *round_trip).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_with_the_shortest_round_trip_decides_the_offset() {
        let mut e = OffsetEstimate::default();
        let at = |ms| BootInstant(Duration::from_millis(ms));
        e.sample((WallTime(0), at(0)), WallTime(47_500_000), at(1000));
        assert_eq!(e.seconds(), Some(47.0));
        e.sample(
            (WallTime(2_000_000), at(2000)),
            WallTime(49_001_000),
            at(2002),
        );
        assert_eq!(e.seconds().map(|s| (s * 1e3).round()), Some(47_000.0));
        assert_eq!(e.round_trip(), Some(Duration::from_millis(2)));
    }
}
