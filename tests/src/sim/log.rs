//! The log of a run, line by line: all of it is kept, and its end is shown.

use std::fmt::{self, Display};
use std::time::Duration;

/// The number of lines shown of a run that has broken a promise; `MEZCAL_SIM_LOG` shows more.
const SHOWN: usize = 60;

/// Lines, each with its time.
#[derive(Default)]
pub(super) struct Log(pub(super) Vec<String>);

impl Log {
    pub(super) fn line(&mut self, now: Duration, what: impl Display) {
        self.0.push(format!("{now:?} {what}"));
    }
}

impl Display for Log {
    /// The last lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = std::env::var("MEZCAL_SIM_LOG").ok();
        let shown = wanted.and_then(|n| n.parse().ok()).unwrap_or(SHOWN);
        let skipped = self.0.len().saturating_sub(shown);
        f.write_str(&self.0[skipped..].join("\n"))
    }
}
