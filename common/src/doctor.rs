//! What `doctor` verbs find, and how it is shown: each finding with the way out.

use crate::escape::for_terminal;
use serde::Serialize;
use std::fmt::Write;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum State {
    /// As it should be.
    #[serde(rename = "ok")]
    Fine,
    /// It works, and could be better or will not work for ever.
    #[serde(rename = "warn")]
    Doubtful,
    /// It does not work.
    #[serde(rename = "fail")]
    Wrong,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    #[serde(rename = "check")]
    pub what: &'static str,
    /// How good it is.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, state: State::Fine, seen: seen.into(), fix: None }
    }

    /// It could be better.
    pub fn doubtful(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, state: State::Doubtful, seen: seen.into(), fix: Some(fix.into()) }
    }

    /// It does not work.
    pub fn wrong(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, state: State::Wrong, seen: seen.into(), fix: Some(fix.into()) }
    }
}

/// The findings for people.
pub fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, state, seen, fix } in findings {
        let word = match state {
            State::Fine => "ok",
            State::Doubtful => "warn",
            State::Wrong => "FAIL",
        };
        let _ = writeln!(text, "{word:4}  {what:14}  {}", for_terminal(seen));
        if let Some(fix) = fix {
            let _ = writeln!(text, "{:20}  -> {}", "", for_terminal(fix));
        }
    }
    text
}

/// Whether nothing is wrong.
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.state < State::Wrong)
}

/// Room for bursts of datagrams (udp(7), net.core.rmem_max).
pub fn udp_buffers() -> Finding {
    const WANTED: u64 = 4 << 20;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse::<u64>().ok();
    let (receive, send) = (read("rmem_max").unwrap_or(0), read("wmem_max").unwrap_or(0));
    let seen = format!("net.core.rmem_max = {receive}, net.core.wmem_max = {send}");
    match receive >= WANTED && send >= WANTED {
        true => Finding::fine("UDP buffers", seen),
        false => Finding::doubtful(
            "UDP buffers",
            format!("{seen}: bursts of many hosts may be lost, and sent again"),
            format!(
                "sysctl -w net.core.rmem_max={WANTED} net.core.wmem_max={WANTED} (60-mezcal.conf in /usr/lib/sysctl.d does it at boot)"
            ),
        ),
    }
}

/// Whether somebody keeps the wall clock right (adjtimex(2)).
pub fn clock() -> Finding {
    // SAFETY: zeroes are a valid `timex` that changes nothing.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&mut timex)
    };
    match state {
        libc::TIME_ERROR | -1 => Finding::doubtful(
            "clock",
            "nobody keeps it right",
            "timedatectl set-ntp true, or start the site's time service: times in results would be off, and certificates early or late",
        ),
        _ => Finding::fine("clock", "kept right by a time service"),
    }
}

/// Room on the file system of a directory.
pub fn space(what: &'static str, path: &std::path::Path, wanted: u64) -> Finding {
    match rustix::fs::statvfs(path) {
        Err(e) => Finding::wrong(what, format!("{}: {e}", path.display()), "make it, or name another one in the configuration"),
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let seen = format!("{} MiB free in {}", free >> 20, path.display());
            match free >= wanted {
                true => Finding::fine(what, seen),
                false => Finding::wrong(what, seen, "make room there"),
            }
        }
    }
}

/// A certificate (DER) that is about to end, or not.
pub fn certificate_end(what: &'static str, der: &[u8], renews: bool, fix: &str) -> Finding {
    let Ok((from, until)) = crate::identity::validity(der) else { return Finding::wrong(what, "unreadable", fix) };
    let now = crate::clock::WallTime::now().0 / 1_000_000;
    let show = jiff::Timestamp::from_second(until).map_or_else(|_| until.to_string(), |t| t.to_string());
    let days = (until - now) / 86_400;
    let seen = format!("good until {show} ({days} days)");
    match (until > now, (until - now) * 4 < until - from) {
        (false, _) => Finding::wrong(what, format!("expired at {show}"), fix),
        // Half of its life is when it is renewed.
        (true, true) if renews => Finding::doubtful(what, format!("{seen}, and has not been renewed"), fix),
        (true, true) => Finding::doubtful(what, seen, fix),
        (true, false) => Finding::fine(what, seen),
    }
}
