//! Progress for people: a bar on a terminal, Bakapara's log lines elsewhere, JSON lines for
//! programs.

use crate::report::format::{ResultFormat, counted, elapsed};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::outcome::{Ended, JobResult, WaitStatus, Way};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines of `--progress json`.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// Redraws of the bar in a second.
const BAR_HZ: u8 = 10;

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgressKind {
    /// A bar on a terminal, log lines elsewhere.
    Auto,
    /// A bar.
    Bar,
    /// A line for every job that ends.
    Log,
    /// A JSON object every second.
    Json,
    /// Nothing.
    None,
}

/// Counts of ended jobs; each job is in one of the first four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With status 0.
    pub done: u64,
    /// Without success, and not in the next two.
    pub failed: u64,
    /// Cancelled while running or before the start.
    pub cancelled: u64,
    /// Not started because another job had not succeeded.
    pub skipped: u64,
    /// Jobs with preferred hosts that have run.
    pub choosy: u64,
    /// Those of them that ran on a preferred host.
    pub local: u64,
    /// Jobs that wrote more output than is kept.
    pub cut: u64,
}

impl Counts {
    /// Counts one more ended job.
    pub fn add(&mut self, result: &JobResult) {
        let way = match result.outcome.way() {
            Way::Done => &mut self.done,
            Way::Failed => &mut self.failed,
            Way::Cancelled => &mut self.cancelled,
            Way::Skipped => &mut self.skipped,
        };
        *way += 1;
        self.choosy += u64::from(result.local.is_some());
        self.local += u64::from(result.local == Some(true));
        self.cut += u64::from(result.outcome.written.exceeds_tails());
    }

    /// The number of all ended jobs.
    pub fn ended(&self) -> u64 {
        self.done + self.failed + self.cancelled + self.skipped
    }

    /// `, 2 failed, 1 skipped`, without counts of zero.
    fn others(&self) -> String {
        others([
            (self.failed, "failed"),
            (self.cancelled, "cancelled"),
            (self.skipped, "skipped"),
        ])
    }
}

/// `, 2 failed, 1 skipped`, without counts of zero.
pub(crate) fn others<const N: usize>(counts: [(u64, &str); N]) -> String {
    counts
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!(", {n} {what}"))
        .collect()
}

/// Width of the terminal at standard error.
fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col.into())
}

/// The text beside the bar, as much of it as fits; `pace`: jobs in a second, and the time left.
fn bar_text(counts: Counts, total: u64, pace: Option<(f64, Duration)>, columns: usize) -> String {
    let done = format!("{}/{total} done", counts.done);
    let all = format!("{done}{}", counts.others());
    let paced = pace.map(|(rate, eta)| format!("{all}, {rate:.1}/s, ETA {}", elapsed(eta)));
    // At least one column for the bar, and one between.
    let fits = |text: &String| text.len() + 2 <= columns;
    paced
        .filter(fits)
        .or(Some(all).filter(fits))
        .or(Some(done).filter(fits))
        .unwrap_or_default()
}

/// Shows progress on stderr, and writes log lines.
pub struct Progress {
    total: u64,
    started: Instant,
    /// The bar, and the counts that it shows.
    bar: Option<(ProgressBar, Arc<Mutex<Counts>>)>,
    json: Option<Instant>,
    log: Option<Box<dyn Write + Send>>,
    format: ResultFormat,
    /// Results are without output, so none is reported as cut.
    compat: bool,
}

impl Progress {
    /// `log_file` gets log lines even if `kind` is another; `quiet` shows nothing.
    pub fn new(
        kind: ProgressKind,
        quiet: bool,
        log_file: Option<std::fs::File>,
        total: u64,
        compat: bool,
    ) -> Self {
        let stderr = std::io::stderr();
        let kind = match kind {
            _ if quiet => ProgressKind::None,
            ProgressKind::Auto if compat => ProgressKind::Log,
            ProgressKind::Auto if stderr.is_terminal() => ProgressKind::Bar,
            ProgressKind::Auto => ProgressKind::Log,
            chosen => chosen,
        };
        let bar = (kind == ProgressKind::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(
                Some(total),
                ProgressDrawTarget::stderr_with_hz(BAR_HZ),
            );
            let template = "{wide_bar} {text}";
            // The template is a constant that indicatif accepts; its own default serves if it ever
            // does not.
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let shown = Arc::new(Mutex::new(Counts::default()));
            let counts = shown.clone();
            bar.set_style(style.with_key(
                "text",
                move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                    let counts = *counts.lock().unwrap_or_else(PoisonError::into_inner);
                    // Before the first end there is no pace to compute.
                    let pace = (state.pos() > 0)
                        .then(|| (state.per_sec(), Duration::from_secs(state.eta().as_secs())));
                    // An error of drawing the bar is ignored.
                    let _ = text.write_str(&bar_text(counts, total, pace, columns()));
                },
            ));
            bar.enable_steady_tick(Duration::from_millis(250));
            (bar, shown)
        });
        let log: Option<Box<dyn Write + Send>> = match log_file {
            Some(file) => Some(Box::new(file)),
            None if kind == ProgressKind::Log => Some(Box::new(std::io::LineWriter::new(stderr))),
            None => None,
        };
        let json = (kind == ProgressKind::Json).then(Instant::now);
        Self {
            total,
            started: Instant::now(),
            bar,
            json,
            log,
            format: ResultFormat::new(compat),
            compat,
        }
    }

    /// Agents are connected and jobs begin.
    pub fn begin(&mut self, engines: u32) {
        self.started = Instant::now();
        let total = self.total;
        self.log_line(&format!("total {total} jobs on {engines} engines"));
    }

    /// A job has ended.
    pub fn job(&mut self, counts: Counts, result: &JobResult, title: impl FnOnce() -> String) {
        if self.log.is_some() {
            let (done, total) = (counts.ended(), self.total);
            let outcome = &result.outcome;
            let host = result.place.as_ref().map(|p| p.host.clone());
            let title = title();
            let title = for_terminal(&title);
            let line = match (outcome.status, outcome.span, host) {
                (Some(status), Some(span), Some(host))
                    if outcome.error.is_none()
                        && matches!(outcome.ended, Ended::Exited | Ended::Signaled) =>
                {
                    let (code, took) = (WaitStatus::code(status), elapsed(span.elapsed));
                    format!("[{done}/{total}] returned {code} in {took} sec on {host}: {title}")
                }
                (_, _, host) => {
                    let on = host.map_or(String::new(), |h| format!(" on {h}"));
                    let why = outcome
                        .error
                        .as_deref()
                        .map_or(String::new(), |e| format!(" ({})", for_terminal(e)));
                    format!(
                        "[{done}/{total}] {}{on}{why}: {title}",
                        outcome.ended.as_str()
                    )
                }
            };
            self.log_line(&line);
        }
        if let Some((bar, shown)) = &self.bar {
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = counts;
            bar.set_position(counts.ended());
        }
        if self
            .json
            .is_some_and(|last| last.elapsed() >= JSON_INTERVAL)
        {
            self.json_line(counts);
        }
    }

    /// Shows a text to the user.
    pub fn say(&mut self, text: &str) {
        let text = for_terminal(text);
        match &self.bar {
            Some((bar, _)) => bar.suspend(|| tell!("coordinator: {text}")),
            None => tell!("coordinator: {text}"),
        }
    }

    /// Lets `write` use the terminal without the bar in its way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some((bar, _)) => bar.suspend(write),
            None => write(),
        }
    }

    /// All jobs have ended, or nothing more will come.
    pub fn end(&mut self, counts: Counts) {
        let total = self.total;
        if counts.choosy > 0 && (self.log.is_some() || self.bar.is_some()) {
            let (local, choosy) = (counts.local, counts.choosy);
            self.say(&format!(
                "{local} of {choosy} jobs that prefer some hosts ran there ({:.1} %)",
                local as f64 / choosy as f64 * 100.0
            ));
        }
        if counts.cut > 0 && !self.compat && (self.log.is_some() || self.bar.is_some()) {
            let jobs = counted(counts.cut, "job", "jobs");
            self.say(&format!("{jobs} wrote more output than the 4 KiB that are kept: --output-dir keeps all of it"));
        }
        match counts.ended() {
            done if done == total => self.log_line("completed"),
            done => self.log_line(&format!("ended with {done} of {total} jobs done")),
        }
        if let Some(log) = &mut self.log {
            let _ = log.flush();
        }
        if let Some((bar, _)) = self.bar.take() {
            bar.finish_and_clear();
            let took = elapsed(Duration::from_millis(
                self.started.elapsed().as_millis() as u64
            ));
            let took = if took.contains('.') {
                took.trim_end_matches('0')
            } else {
                &took
            };
            tell!(
                "{}/{} jobs done{} in {took}",
                counts.done,
                self.total,
                counts.others()
            );
        }
        if self.json.is_some() {
            self.json_line(counts);
        }
    }

    fn json_line(&mut self, counts: Counts) {
        self.json = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64();
        let line = serde_json::json!({
            "done": counts.done, "failed": counts.failed, "cancelled": counts.cancelled, "skipped": counts.skipped, "total": self.total,
            "elapsed_seconds": (seconds * 1e3).round() / 1e3,
        });
        tell!("{line}");
    }

    fn log_line(&mut self, text: &str) {
        let stamp = self.format.log_time(WallTime::now());
        if let Some(log) = &mut self.log {
            // A log that cannot be written must not stop the jobs; their results are elsewhere.
            let _ = writeln!(log, "{stamp} {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_what_fits_its_terminal() {
        let counts = Counts {
            done: 7,
            failed: 2,
            cancelled: 1,
            ..Counts::default()
        };
        let text = |columns| bar_text(counts, 20, Some((1.25, Duration::from_secs(8))), columns);
        assert_eq!(
            text(80),
            "7/20 done, 2 failed, 1 cancelled, 1.2/s, ETA 0:00:08"
        );
        assert_eq!(text(40), "7/20 done, 2 failed, 1 cancelled");
        assert_eq!((text(20), text(5)), ("7/20 done".to_owned(), String::new()));
        assert_eq!(
            bar_text(Counts::default(), 20, None, 80),
            "0/20 done",
            "nothing to reckon from"
        );
        assert!((0..80).all(|columns| text(columns).len() + 2 <= columns.max(2)));
    }
}
