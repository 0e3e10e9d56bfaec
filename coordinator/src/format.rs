//! Results and times as text: Bakapara's twelve keys in their order, then ours.

use crate::jobs::{Format, Jobs, members, write_json};
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::TimeZone;
use mezcal_common::clock::WallTime;
use mezcal_common::outcome::{Ended, JobResult, WaitStatus};
use std::fmt::Write as _;
use std::time::Duration;

/// Always six digits of a second.
const RFC_3339: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// A count and what is counted: `one` of it, or `many`.
pub(crate) fn counted(n: impl Into<u64>, one: &str, many: &str) -> String {
    match n.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

/// Writes result lines.
pub struct ResultFormat {
    compat: bool,
    zone: TimeZone,
}

/// What only the client knows of a result.
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
        Self { compat, zone: TimeZone::system() }
    }

    /// Appends the line of a job: its own object with `result` set.
    pub fn line(&self, out: &mut Vec<u8>, jobs: &Jobs, number: u32, result: &JobResult, times: ClientTimes) {
        let text = jobs.object(number);
        if jobs.format() == Format::Lines {
            out.extend_from_slice(b"{\"cmd\": ");
            crate::jobs::write_string(out, text, self.compat);
            out.extend_from_slice(b", ");
            self.end_line(out, result, times);
        } else {
            self.object_line(out, text, result, times);
        }
    }

    /// The same for a job whose object is `text`.
    pub fn object_line(&self, out: &mut Vec<u8>, text: &str, result: &JobResult, times: ClientTimes) {
        out.push(b'{');
        // It was readable when it was checked.
        for (key, value) in members(text).unwrap_or_default() {
            if key != "result" {
                crate::jobs::write_string(out, &key, self.compat);
                out.extend_from_slice(b": ");
                write_json(out, value.get(), self.compat);
                out.extend_from_slice(b", ");
            }
        }
        self.end_line(out, result, times);
    }

    fn end_line(&self, out: &mut Vec<u8>, result: &JobResult, times: ClientTimes) {
        out.extend_from_slice(b"\"result\": ");
        self.result(out, result, times);
        out.extend_from_slice(b"}\n");
    }

    fn result(&self, out: &mut Vec<u8>, result: &JobResult, times: ClientTimes) {
        let outcome = &result.outcome;
        let place = result.place.as_ref().filter(|_| outcome.span.is_some());
        let span = outcome.span;
        let mut object = Object { out, first: true, ascii: self.compat };
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
            // What never ran has no `host`, but whoever looks for the cause needs it.
            (Some(error), Some(tried)) if place.is_none() => object.string("error", &format!("{error} (on {})", tried.host)),
            (Some(error), _) => object.string("error", error),
            (None, _) => {}
        }
        if !self.compat {
            let signal = match outcome.status {
                Some(WaitStatus::Signaled(n)) => Some(n.to_string()),
                Some(WaitStatus::Exited(_)) | None => None,
            };
            object.raw("signal", signal);
            object.raw("attempt", Some(result.attempt.to_string()));
            object.string("outcome", outcome.ended.as_str());
            if let Some(local) = result.local {
                object.string("locality", if local { "local" } else { "any" });
            }
            object.raw("user_seconds", outcome.usage.map(|u| seconds(u.user)));
            object.raw("system_seconds", outcome.usage.map(|u| seconds(u.system)));
            object.text("usage_source", outcome.usage.map(|u| u.source.as_str().to_owned()));
            object.raw("max_rss_bytes", outcome.usage.and_then(|u| u.max_rss).map(|bytes| bytes.to_string()));
            object.raw("memory_peak_bytes", outcome.usage.and_then(|u| u.memory_peak).map(|bytes| bytes.to_string()));
            object.text("containment", outcome.containment.map(|c| c.as_str().to_owned()));
            if outcome.containment.is_some() || outcome.killed > 0 {
                // After an end of its own, all that was killed are leftovers.
                let own_end = matches!(outcome.ended, Ended::Exited | Ended::Signaled | Ended::OutOfMemory);
                object.raw(if own_end { "leftovers_killed" } else { "killed" }, Some(outcome.killed.to_string()));
            }
            if outcome.survivors > 0 {
                object.raw("survivors", Some(outcome.survivors.to_string()));
            }
            object.raw("clock_offset", place.and_then(|p| p.clock_offset).map(|o| format!("{o:.6}")));
            for (key, tail) in [("stdout_tail", &outcome.stdout_tail), ("stderr_tail", &outcome.stderr_tail)] {
                if let Some(tail) = tail {
                    object.string(key, &String::from_utf8_lossy(tail));
                }
            }
        }
        object.out.push(b'}');
    }

    /// A wall time: RFC 3339 with microseconds and offset, or as Python's naive `isoformat()`.
    pub fn time(&self, at: WallTime) -> String {
        let Ok(stamp) = Timestamp::from_microsecond(at.0) else { return at.0.to_string() };
        if !self.compat {
            return RFC_3339.timestamp_with_offset_to_string(&stamp, self.zone.to_offset(stamp));
        }
        // Python leaves the fraction out when it is zero.
        let form = if at.0.rem_euclid(1_000_000) == 0 { "%Y-%m-%dT%H:%M:%S" } else { "%Y-%m-%dT%H:%M:%S.%6f" };
        stamp.to_zoned(self.zone.clone()).strftime(form).to_string()
    }

    /// The time at the start of a log line, as Python's logging has it.
    pub fn log_time(&self, at: WallTime) -> String {
        let Ok(stamp) = Timestamp::from_microsecond(at.0) else { return at.0.to_string() };
        stamp.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S,%3f").to_string()
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
    let _ = write!(text, "{}:{:02}:{:02}", rest / 3600, rest % 3600 / 60, rest % 60);
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
        self.out.extend_from_slice(value.as_deref().unwrap_or("null").as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

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
