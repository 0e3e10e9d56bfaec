//! How fast jobs come and go here, and so how many attempts to have ready.

use std::time::Duration;

/// The time that it takes to get another attempt from the coordinator, processing included:
/// prefetch covers this much run time.
pub(super) const REFILL: Duration = Duration::from_millis(20);
/// Most attempts to ask for beyond what can start now.
const MAX_PREFETCH: u64 = 512;
/// Weight of the newest run time in their mean: 1/8, as TCP's smoothed round trip (RFC 6298).
const SMOOTHING: f64 = 0.125;

#[derive(Debug, Default)]
pub(super) struct Pace {
    mean_run: Option<f64>,
}

impl Pace {
    /// An attempt has run for `elapsed`.
    pub(super) fn ran(&mut self, elapsed: Duration) {
        let run = elapsed.as_secs_f64();
        let mean = self.mean_run;
        self.mean_run = Some(mean.map_or(run, |mean| mean + SMOOTHING * (run - mean)));
    }

    /// How many attempts to have here beyond the number of slots.
    pub(super) fn prefetch(&self, slots: usize) -> u64 {
        // This many attempts end while a refill is on its way; below a tenth, waiting costs less
        // than queueing behind a long job.
        let during_refill = match self.mean_run {
            Some(mean) => slots as f64 * REFILL.as_secs_f64() / mean.max(1e-6),
            None => 0.0,
        };
        if during_refill < 0.1 {
            0
        } else {
            (during_refill.ceil() as u64).min(MAX_PREFETCH)
        }
    }
}
