//! Results and times as text: Bakapara's twelve keys in their order, then ours.

use crate::exit::Exit;
use crate::jobs::{Jobs, members, write_json};
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::TimeZone;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::json_for_terminal;
use mezcal_common::model::outcome::{Ended, JobResult, Place, WaitStatus};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

/// Always six digits of a second.
const RFC_3339: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// A count and its noun: `one` in the singular, `many` in the plural.
pub(crate) fn counted(n: impl Into<u64>, one: &str, many: &str) -> String {
    match n.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

/// Prints the output of a verb: JSON, or lines whose cells are safe. A terminal gets no character
/// that it might obey.
///
/// # Errors
/// Exit 74 or 141: it cannot be written, or has no reader left.
pub(crate) fn show(text: &str) -> Result<(), Exit> {
    mezcal_common::system::output::show(text).map_err(|e| Exit::unwritten(&e.0))
}

/// Writes result lines.
pub struct ResultFormat {
    compat: bool,
    terminal: bool,
    zone: TimeZone,
}

/// The times of a result that only the client knows.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimes {
    /// When the job was submitted.
    pub submitted: WallTime,
    /// When the result came.
    pub received: WallTime,
}

impl ResultFormat {
    /// With `compat`, exactly what Bakapara wrote: naive local times, the twelve keys, ASCII.
    pub fn new(compat: bool) -> Self {
        Self {
            compat,
            terminal: false,
            zone: TimeZone::system(),
        }
    }

    /// For lines that go to a terminal, which must not obey what jobs have written: `\u009b` means
    /// the same in JSON.
    pub fn on_terminal(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }

    /// Appends the line of a job: its own object with `result` set.
    pub fn line(
        &self,
        out: &mut Vec<u8>,
        jobs: &Jobs,
        number: u32,
        result: &JobResult,
        times: ClientTimes,
    ) {
        let (text, start) = (jobs.object(number), out.len());
        if jobs.format().is_commands() {
            out.extend_from_slice(b"{\"cmd\": ");
            crate::jobs::write_octets(out, &text);
            out.extend_from_slice(b", ");
            self.end_line(out, start, result, times);
        } else {
            self.object_line(out, &text, result, times);
        }
    }

    /// The same for a job with the object `text`.
    pub fn object_line(
        &self,
        out: &mut Vec<u8>,
        text: &str,
        result: &JobResult,
        times: ClientTimes,
    ) {
        let start = out.len();
        out.push(b'{');
        // The object was readable when it was checked.
        for (key, value) in members(text).unwrap_or_default() {
            if key != "result" {
                crate::jobs::write_string(out, &key, self.compat);
                out.extend_from_slice(b": ");
                write_json(out, value.get(), self.compat);
                out.extend_from_slice(b", ");
            }
        }
        self.end_line(out, start, result, times);
    }

    fn end_line(&self, out: &mut Vec<u8>, start: usize, result: &JobResult, times: ClientTimes) {
        out.extend_from_slice(b"\"result\": ");
        self.result(out, result, times);
        out.extend_from_slice(b"}\n");
        if self.terminal {
            let shown = match json_for_terminal(&String::from_utf8_lossy(&out[start..])) {
                Cow::Borrowed(_) => return,
                Cow::Owned(shown) => shown,
            };
            out.truncate(start);
            out.extend_from_slice(shown.as_bytes());
        }
    }

    fn result(&self, out: &mut Vec<u8>, result: &JobResult, times: ClientTimes) {
        let outcome = &result.outcome;
        // For Bakapara a job that never ran has no place; a user who looks for the cause of a
        // failed start needs the place.
        let tried = !self.compat && outcome.ended == Ended::StartFailed;
        let place = result
            .place
            .as_ref()
            .filter(|_| outcome.span.is_some() || tried);
        let span = outcome.span;
        let mut object = Object {
            out,
            first: true,
            ascii: self.compat,
        };
        object.out.push(b'{');
        object.string("status", outcome.ended.status());
        object.string("received", &self.time(times.received));
        let code = outcome.status.map(WaitStatus::code);
        if !(self.compat && code.is_none()) {
            object.raw("code", code.map(|c| c.to_string()));
        }
        object.raw("engine_id", place.map(|p| p.engine.to_string()));
        object.text("started", span.map(|s| self.time(s.started)));
        object.text("completed", span.map(|s| self.time(s.completed)));
        object.string("msg_id", &uuid::Uuid::new_v4().to_string());
        object.string("submitted", &self.time(times.submitted));
        object.raw("pyerr", None);
        object.text("host", place.map(|p| p.host.to_string()));
        object.text("elapsed", span.map(|s| elapsed(s.elapsed)));
        object.raw("pyout", None);
        match (&outcome.error, &result.place) {
            (Some(error), Some(tried)) if place.is_none() => {
                object.string("error", &format!("{error} (on {})", tried.host))
            }
            (Some(error), _) => object.string("error", error),
            (None, _) if self.compat => {}
            (None, _) => object.raw("error", None),
        }
        if !self.compat {
            measured(&mut object, result, place);
        }
        object.out.push(b'}');
    }

    /// A wall time: RFC 3339 with microseconds and offset, or as Python's naive `isoformat()`.
    pub fn time(&self, at: WallTime) -> String {
        let Ok(stamp) = Timestamp::from_microsecond(at.0) else {
            return at.0.to_string();
        };
        if !self.compat {
            return RFC_3339.timestamp_with_offset_to_string(&stamp, self.zone.to_offset(stamp));
        }
        // Python leaves the fraction out when it is zero.
        let form = if at.0.rem_euclid(1_000_000) == 0 {
            "%Y-%m-%dT%H:%M:%S"
        } else {
            "%Y-%m-%dT%H:%M:%S.%6f"
        };
        stamp.to_zoned(self.zone.clone()).strftime(form).to_string()
    }

    /// The time at the start of a log line, in the form of Python's logging.
    pub fn log_time(&self, at: WallTime) -> String {
        let Ok(stamp) = Timestamp::from_microsecond(at.0) else {
            return at.0.to_string();
        };
        stamp
            .to_zoned(self.zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S,%3f")
            .to_string()
    }
}

/// A duration as Python's `str(timedelta)`: `0:00:10.005647`, `0:00:10`, `1 day, 1:00:01`.
pub fn elapsed(d: Duration) -> String {
    let micros = d.as_micros();
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let mut text = match days {
        0 => String::new(),
        1 => "1 day, ".into(),
        n => format!("{n} days, "),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{}:{:02}:{:02}",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    );
    if micros != 0 {
        let _ = write!(text, ".{micros:06}");
    }
    text
}

fn seconds(d: Duration) -> String {
    format!("{}.{:06}", d.as_secs(), d.subsec_micros())
}

struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
    ascii: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.extend_from_slice(b", ");
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\": ");
    }

    fn raw(&mut self, key: &str, value: Option<String>) {
        self.key(key);
        self.out
            .extend_from_slice(value.as_deref().unwrap_or("null").as_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        crate::jobs::write_string(self.out, value, self.ascii);
    }

    fn text(&mut self, key: &str, value: Option<String>) {
        match value {
            Some(value) => self.string(key, &value),
            None => self.raw(key, None),
        }
    }
}

/// The keys that Bakapara does not have. Each line has all keys, whether or not its job ran:
/// programs that read tables take the keys from the first lines.
fn measured(object: &mut Object<'_>, result: &JobResult, place: Option<&Place>) {
    let (outcome, span) = (&result.outcome, result.outcome.span);
    object.raw("elapsed_seconds", span.map(|s| seconds(s.elapsed)));
    let signal = match outcome.status {
        Some(WaitStatus::Signaled(n)) => Some(n.to_string()),
        Some(WaitStatus::Exited(_)) | None => None,
    };
    object.raw("signal", signal);
    object.raw("attempt", Some(result.attempt.to_string()));
    object.string("outcome", outcome.ended.as_str());
    object.text(
        "locality",
        result
            .local
            .map(|local| if local { "local" } else { "any" }.to_owned()),
    );
    let usage = outcome.usage;
    let bytes = |n: Option<u64>| n.map(|n| n.to_string());
    object.raw("user_seconds", usage.map(|u| seconds(u.user)));
    object.raw("system_seconds", usage.map(|u| seconds(u.system)));
    object.text("usage_source", usage.map(|u| u.source.as_str().to_owned()));
    object.raw("max_rss_bytes", bytes(usage.and_then(|u| u.max_rss)));
    object.raw(
        "memory_peak_bytes",
        bytes(usage.and_then(|u| u.memory_peak)),
    );
    object.text(
        "containment",
        outcome.containment.map(|c| c.as_str().to_owned()),
    );
    // If the job ended by itself, all killed processes are leftovers.
    let own_end = matches!(
        outcome.ended,
        Ended::Exited | Ended::Signaled | Ended::OutOfMemory
    );
    let counted = |n: u32| (outcome.containment.is_some() || n > 0).then(|| n.to_string());
    object.raw(
        "leftovers_killed",
        counted(outcome.killed).filter(|_| own_end),
    );
    object.raw("killed", counted(outcome.killed).filter(|_| !own_end));
    object.raw("survivors", counted(outcome.survivors));
    object.raw(
        "clock_offset",
        place
            .and_then(|p| p.clock_offset)
            .map(|o| format!("{o:.6}")),
    );
    object.raw("stdout_bytes", bytes(outcome.written.out));
    object.raw("stderr_bytes", bytes(outcome.written.err));
    for (key, tail) in [
        ("stdout_tail", &outcome.stdout_tail),
        ("stderr_tail", &outcome.stderr_tail),
    ] {
        object.text(
            key,
            tail.as_ref()
                .map(|tail| String::from_utf8_lossy(tail).into_owned()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::model::ids::EngineId;
    use mezcal_common::model::outcome::{Containment, Outcome, Place, Span, Usage};

    #[test]
    fn result_lines_on_a_terminal_mean_the_same_and_move_no_cursor() {
        let text = "{\"cmd\": \"echo \u{9b}2J\u{202e}\", \"k\u{2066}\": [\"\u{61c}\"]}";
        let mut outcome = Outcome::never_ran(Ended::StartFailed, "no \u{9b}A".to_owned());
        outcome.stdout_tail = Some("東京\u{9b}31m\u{200f}".into());
        let result = JobResult {
            attempt: 1,
            place: None,
            local: None,
            outcome,
        };
        let times = ClientTimes {
            submitted: WallTime(0),
            received: WallTime(0),
        };
        let line = |terminal| {
            let mut out = b"before \xc2\x9b".to_vec();
            ResultFormat::new(false)
                .on_terminal(terminal)
                .object_line(&mut out, text, &result, times);
            let line = String::from_utf8(out.split_off(b"before \xc2\x9b".len())).expect("text");
            let mut value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            // Each line has a new one.
            value["result"]["msg_id"].take();
            (line, value)
        };
        let ((plain, as_is), (shown, escaped)) = (line(false), line(true));
        assert_eq!(as_is, escaped);
        assert!(
            plain.contains('\u{9b}') && plain.contains('\u{202e}'),
            "elsewhere nothing is changed"
        );
        let odd = |c: char| {
            c != '\n' && (c.is_control() || "\u{61c}\u{200f}\u{202e}\u{2066}".contains(c))
        };
        assert!(
            !shown.contains(odd) && shown.contains("\\u009b2J\\u202e") && shown.contains("東京"),
            "{shown}"
        );
    }

    #[test]
    fn lines_of_all_kinds_have_the_same_keys_in_the_same_order() {
        let span = Span {
            started: WallTime(0),
            completed: WallTime(1_500_000),
            elapsed: Duration::from_micros(1_500_000),
        };
        let place = Place {
            host: "a.x".into(),
            engine: EngineId(3),
            clock_offset: None,
        };
        let ran = Outcome {
            status: Some(WaitStatus::Exited(0)),
            span: Some(span),
            usage: Some(Usage::default()),
            containment: Some(Containment::Subreaper),
            stdout_tail: Some("x".into()),
            ..Outcome::never_ran(Ended::Exited, None)
        };
        let killed = Outcome {
            ended: Ended::Cancelled,
            status: Some(WaitStatus::Signaled(9)),
            killed: 2,
            ..ran.clone()
        };
        let outcomes = [
            (Some(&place), Some(true), ran),
            (Some(&place), None, killed),
            (
                Some(&place),
                None,
                Outcome::never_ran(Ended::StartFailed, "no such file".to_owned()),
            ),
            (
                None,
                None,
                Outcome::never_ran(Ended::Skipped, "job 1 failed".to_owned()),
            ),
            (None, None, Outcome::never_ran(Ended::Cancelled, None)),
        ];
        let times = ClientTimes {
            submitted: WallTime(0),
            received: WallTime(0),
        };
        let lines = outcomes.map(|(place, local, outcome)| {
            let mut out = Vec::new();
            let result = JobResult {
                attempt: 1,
                place: place.cloned(),
                local,
                outcome,
            };
            ResultFormat::new(false).object_line(&mut out, "{}", &result, times);
            serde_json::from_slice::<serde_json::Value>(&out).expect("JSON")["result"].clone()
        });
        let keys = |line: &serde_json::Value| {
            line.as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        for line in &lines {
            assert_eq!(keys(line), keys(&lines[0]));
        }
        assert_eq!(
            (
                &lines[0]["elapsed_seconds"],
                &lines[0]["leftovers_killed"],
                &lines[0]["killed"]
            ),
            (&1.5.into(), &0.into(), &().into())
        );
        assert_eq!(
            (
                &lines[1]["leftovers_killed"],
                &lines[1]["killed"],
                &lines[1]["survivors"]
            ),
            (&().into(), &2.into(), &0.into())
        );
        let start_failed = &lines[2];
        assert_eq!(
            (
                &start_failed["host"],
                &start_failed["engine_id"],
                &start_failed["started"]
            ),
            (&"a.x".into(), &3.into(), &().into())
        );
        assert_eq!(start_failed["error"], "no such file");
    }

    #[test]
    fn durations_look_as_python_prints_them() {
        let cases = [
            (10_005_647, "0:00:10.005647"),
            (10_000_000, "0:00:10"),
            (90_001_000_000, "1 day, 1:00:01"),
            (172_800_000_005, "2 days, 0:00:00.000005"),
            (0, "0:00:00"),
        ];
        for (micros, text) in cases {
            assert_eq!(elapsed(Duration::from_micros(micros)), text);
        }
    }
}
