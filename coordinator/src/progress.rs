//! Progress for people: a bar on a terminal, Bakapara's log lines elsewhere, JSON lines for programs.

use crate::format::{ResultFormat, elapsed};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use mezcal_common::clock::WallTime;
use mezcal_common::escape::for_terminal;
use mezcal_common::outcome::{JobResult, WaitStatus};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines of `--progress json`.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// How often the bar is drawn.
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

/// How jobs have ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that have ended.
    pub done: u64,
    /// Of which not with status 0.
    pub failed: u64,
    /// Of which cancelled.
    pub aborted: u64,
    /// Of which prefer some hosts and have run.
    pub choosy: u64,
    /// Of which on one of those.
    pub local: u64,
}

/// Shows progress on stderr, and writes log lines where they are wanted.
pub struct Progress {
    total: u64,
    started: Instant,
    bar: Option<ProgressBar>,
    json: Option<Instant>,
    log: Option<Box<dyn Write + Send>>,
    format: ResultFormat,
}

impl Progress {
    /// `log_file` takes log lines whatever is shown; `quiet` shows nothing.
    pub fn new(kind: ProgressKind, quiet: bool, log_file: Option<std::fs::File>, total: u64, compat: bool) -> Self {
        let stderr = std::io::stderr();
        let kind = match kind {
            _ if quiet => ProgressKind::None,
            ProgressKind::Auto if compat => ProgressKind::Log,
            ProgressKind::Auto if stderr.is_terminal() => ProgressKind::Bar,
            ProgressKind::Auto => ProgressKind::Log,
            chosen => chosen,
        };
        let bar = (kind == ProgressKind::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(BAR_HZ));
            let template = "{bar:30} {pos}/{len} done, {msg}{rate}, ETA {eta}";
            // The template is a constant that indicatif accepts; its own default serves if it ever does not.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.with_key("rate", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                // Nothing can be done about a bar that cannot be drawn.
                let _ = write!(text, "{:.1}/s", state.per_sec());
            }));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let log: Option<Box<dyn Write + Send>> = match log_file {
            Some(file) => Some(Box::new(file)),
            None if kind == ProgressKind::Log => Some(Box::new(std::io::LineWriter::new(stderr))),
            None => None,
        };
        let json = (kind == ProgressKind::Json).then(Instant::now);
        Self { total, started: Instant::now(), bar, json, log, format: ResultFormat::new(compat) }
    }

    /// Agents are there and jobs begin.
    pub fn begin(&mut self, engines: u32) {
        self.started = Instant::now();
        let total = self.total;
        self.log_line(&format!("total {total} jobs on {engines} engines"));
    }

    /// A job has ended.
    pub fn job(&mut self, counts: Counts, result: &JobResult, title: impl FnOnce() -> String) {
        if self.log.is_some() {
            let (done, total) = (counts.done, self.total);
            let outcome = &result.outcome;
            let host = result.place.as_ref().map(|p| p.host.clone());
            let title = title();
            let title = for_terminal(&title);
            let line = match (outcome.status, outcome.span, host) {
                (Some(status), Some(span), Some(host)) if outcome.error.is_none() => {
                    let (code, took) = (WaitStatus::code(status), elapsed(span.elapsed));
                    format!("[{done}/{total}] returned {code} in {took} sec on {host}: {title}")
                }
                (_, _, host) => {
                    let on = host.map_or(String::new(), |h| format!(" on {h}"));
                    let why = outcome.error.as_deref().map_or(String::new(), |e| format!(" ({})", for_terminal(e)));
                    format!("[{done}/{total}] {}{on}{why}: {title}", outcome.ended.as_str())
                }
            };
            self.log_line(&line);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(counts.done);
            if counts.failed > 0 {
                bar.set_message(format!("{} failed, ", counts.failed));
            }
        }
        if self.json.is_some_and(|last| last.elapsed() >= JSON_INTERVAL) {
            self.json_line(counts);
        }
    }

    /// Something that the user should know.
    pub fn say(&mut self, text: &str) {
        let text = for_terminal(text);
        match &self.bar {
            Some(bar) => bar.suspend(|| tell!("coordinator: {text}")),
            None => tell!("coordinator: {text}"),
        }
    }

    /// Lets `write` use the terminal without the bar in its way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
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
        match counts.done {
            done if done == total => self.log_line("completed"),
            done => self.log_line(&format!("ended with {done} of {total} jobs done")),
        }
        if let Some(log) = &mut self.log {
            let _ = log.flush();
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            let took = elapsed(Duration::from_millis(self.started.elapsed().as_millis() as u64));
            let failed = if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
            tell!("{}/{} jobs done{failed} in {}", counts.done, self.total, took.trim_end_matches('0'));
        }
        if self.json.is_some() {
            self.json_line(counts);
        }
    }

    fn json_line(&mut self, counts: Counts) {
        self.json = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64();
        let line = serde_json::json!({
            "done": counts.done, "failed": counts.failed, "total": self.total,
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
