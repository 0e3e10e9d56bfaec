//! Findings of the `doctor` verbs, and how they are shown: each with its remedy.

use crate::model::escape::{chain, for_terminal};
use crate::system::account;
use crate::system::config::ConfigError;
use crate::wire::tls::CredentialsError;
use serde::Serialize;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The verdict of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum State {
    /// It is as it should be.
    #[serde(rename = "ok")]
    Fine,
    /// It works, but could be better or will not work for ever.
    #[serde(rename = "warn")]
    Doubtful,
    /// It does not work.
    #[serde(rename = "fail")]
    Wrong,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject of the check.
    #[serde(rename = "check")]
    pub what: &'static str,
    /// The verdict.
    pub state: State,
    /// The fact that was found.
    pub seen: String,
    /// The remedy.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding with nothing wrong.
    pub fn fine(what: &'static str, seen: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Fine,
            seen: seen.into(),
            fix: None,
        }
    }

    /// A finding that could be better.
    pub fn doubtful(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Doubtful,
            seen: seen.into(),
            fix: Some(fix.into()),
        }
    }

    /// A finding of a thing that does not work.
    pub fn wrong(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Wrong,
            seen: seen.into(),
            fix: Some(fix.into()),
        }
    }
}

/// The findings as a table for people.
pub fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding {
        what,
        state,
        seen,
        fix,
    } in findings
    {
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

/// Whether no finding is [`State::Wrong`].
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.state < State::Wrong)
}

/// Room for bursts of datagrams (udp(7), net.core.rmem_max).
pub fn udp_buffers() -> Finding {
    const WANTED: u64 = 4 << 20;
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/core/{name}"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
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

/// Whether a time service keeps the wall clock right (adjtimex(2)).
pub fn clock() -> Finding {
    // SAFETY: zeroes are a valid `timex` that changes nothing.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&mut timex)
    };
    match state {
        libc::TIME_ERROR | -1 => Finding::doubtful(
            "clock",
            "no time service keeps it right",
            "timedatectl set-ntp true, or start the site's time service: without one, times in \
             results drift, and certificates seem expired or not valid yet",
        ),
        _ => Finding::fine("clock", "kept right by a time service"),
    }
}

/// Free space on the file system of a directory, for the account that owns it.
pub fn space(what: &'static str, path: &Path, wanted: u64) -> Finding {
    match rustix::fs::statvfs(path) {
        Err(e) if e == rustix::io::Errno::ACCESS => doubtful_for_us(what, path),
        Err(e) => Finding::wrong(
            what,
            format!("{}: {e}", path.display()),
            "make it, or name another one in the configuration",
        ),
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let seen = format!("{} MiB free in {}", free >> 20, path.display());
            if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
                let fix = "`dmesg` says why (a disk with errors is made so); mount -o remount,rw \
                    when that is fixed";
                return Finding::wrong(
                    what,
                    format!("the file system of {} is read-only", path.display()),
                    fix,
                );
            }
            // Some file systems do not count files: their number is not limited.
            if stat.f_files > 0 && stat.f_favail == 0 {
                let seen = format!("{seen}, and room for no more files (inodes)");
                return Finding::wrong(
                    what,
                    seen,
                    "remove files there: `df -i` shows the file systems, `du --inodes` where the files are",
                );
            }
            match free >= wanted {
                true => Finding::fine(what, seen),
                false => Finding::wrong(
                    what,
                    format!("{seen}, and {} MiB are wanted", wanted >> 20),
                    "make room there",
                ),
            }
        }
    }
}

/// A finding about a path that this account may not look at.
pub fn doubtful_for_us(what: &'static str, path: &Path) -> Finding {
    let us = account::own_name();
    Finding::doubtful(
        what,
        format!("{us} is not allowed to read {}", path.display()),
        "run the doctor as root, or as the account that it belongs to",
    )
}

/// The first of these files that an account cannot read, if this process is root; the kernel
/// decides, with groups and access lists.
pub fn unreadable(what: &'static str, account: &str, files: &[PathBuf]) -> Option<Finding> {
    // Prints the first directory that it cannot enter, or the file.
    const LOOK: &str = "f=$1; shift; for d; do [ -x \"$d\" ] || { printf %s \"$d\"; exit 0; }; done; [ -r \"$f\" ] || printf %s \"$f\"";
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    files.iter().filter(|file| file.exists()).find_map(|file| {
        let mut above: Vec<&Path> = file
            .ancestors()
            .skip(1)
            .filter(|above| !above.as_os_str().is_empty())
            .collect();
        above.reverse();
        let mut look = Command::new("setpriv");
        look.args([
            "--reuid",
            account,
            "--regid",
            account,
            "--init-groups",
            "sh",
            "-c",
            LOOK,
            "sh",
        ])
        .arg(file)
        .args(above);
        let out = look
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|out| out.status.success() && !out.stdout.is_empty())?;
        let closed = Path::new(OsStr::from_bytes(&out.stdout)).to_owned();
        let fix = match (
            closed == *file,
            file.file_name().is_some_and(|name| name == "key.pem"),
        ) {
            (false, _) => format!(
                "chmod o+x {0}, or chgrp {account} {0} and chmod g+x {0}",
                closed.display()
            ),
            (true, true) => format!("chown {account}: {0} && chmod 600 {0}", closed.display()),
            (true, false) => format!(
                "chmod o+r {0}, or chgrp {account} {0} and chmod g+r {0}",
                closed.display()
            ),
        };
        let seen = format!(
            "{account} needs {} and cannot {}",
            file.display(),
            match closed == *file {
                true => "read it".to_owned(),
                false => format!("enter {}", closed.display()),
            }
        );
        Some(Finding::wrong(what, seen, fix))
    })
}

/// A configuration file that cannot be used. `absent`: the remedy where there is none.
pub fn configuration(error: &ConfigError, absent: &str) -> Finding {
    let what = "configuration";
    match error {
        ConfigError::Read { source, .. } if source.kind() == ErrorKind::NotFound => {
            Finding::wrong(what, chain(error), absent)
        }
        ConfigError::Read { path, source } if source.kind() == ErrorKind::PermissionDenied => {
            doubtful_for_us(what, path)
        }
        ConfigError::Read { .. } => {
            Finding::wrong(what, chain(error), "make it a file that can be read")
        }
        ConfigError::Parse { .. } => Finding::wrong(
            what,
            chain(error),
            "correct the file; nothing starts with it as it is",
        ),
    }
}

/// A certificate that cannot be used. `anew`: how to get another one.
pub fn credentials(what: &'static str, error: &CredentialsError, anew: &str) -> Finding {
    const CLOCK: &str = "check the clock first (`timedatectl`): a certificate that is valid once \
                         the clock is set needs nothing else";
    match error {
        CredentialsError::Read { path, source } if source.kind() == ErrorKind::PermissionDenied => {
            doubtful_for_us(what, path)
        }
        CredentialsError::KeyMode { path, mode } => Finding::wrong(
            what,
            format!("{} can be read by others (mode {mode:03o})", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
        CredentialsError::KeyOwner { path, owner, us } => Finding::wrong(
            what,
            format!(
                "{} belongs to uid {owner}, and uid {us} needs it",
                path.display()
            ),
            format!("chown -h {us} {}", path.display()),
        ),
        CredentialsError::Validity { path, when, now } => {
            let early = when.starts_with("is not valid");
            let fix = if early {
                CLOCK.to_owned()
            } else {
                format!("{CLOCK}; if the clock is right, {anew}")
            };
            Finding::wrong(
                what,
                format!("{} {when}; it is {now} here", path.display()),
                fix,
            )
        }
        _ => Finding::wrong(what, chain(error), anew),
    }
}

/// Whether a peer's complaint about a certificate may come from a wrong clock.
pub fn speaks_of_time(text: &str) -> bool {
    ["expired", "not valid yet", "NotValidYet", "not yet valid"]
        .iter()
        .any(|words| text.contains(words))
}

/// A certificate (DER): how soon it expires.
pub fn certificate_end(what: &'static str, der: &[u8], renews: bool, fix: &str) -> Finding {
    let Ok((from, until)) = crate::model::identity::validity(der) else {
        return Finding::wrong(what, "unreadable", fix);
    };
    let now = crate::model::clock::WallTime::now().0 / 1_000_000;
    let show =
        jiff::Timestamp::from_second(until).map_or_else(|_| until.to_string(), |t| t.to_string());
    let days = (until - now) / 86_400;
    let seen = format!("good until {show} ({days} days)");
    match (until > now, (until - now) * 4 < until - from) {
        (false, _) => Finding::wrong(what, format!("expired at {show}"), fix),
        // It is renewed after half of its life.
        (true, true) if renews => {
            Finding::doubtful(what, format!("{seen}, and has not been renewed"), fix)
        }
        (true, true) => Finding::doubtful(what, seen, fix),
        (true, false) => Finding::fine(what, seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::Role;

    #[test]
    fn the_way_out_fits_what_is_wrong_with_a_certificate() {
        let path = || PathBuf::from("/pki/key.pem");
        let read = |kind: ErrorKind| CredentialsError::Read {
            path: "/pki/cert.pem".into(),
            source: kind.into(),
        };
        let validity = |when: &str| CredentialsError::Validity {
            path: "/pki/cert.pem".into(),
            when: when.into(),
            now: "now".into(),
        };
        let all = [
            read(ErrorKind::NotFound),
            CredentialsError::KeyMode {
                path: path(),
                mode: 0o644,
            },
            CredentialsError::KeyOwner {
                path: path(),
                owner: 0,
                us: 1000,
            },
            validity("is not valid before 2040 (is this host's clock right?)"),
            validity("expired at 2020"),
            CredentialsError::Pair {
                path: "/pki/cert.pem".into(),
                key: path(),
                role: Role::Agent,
            },
        ];
        let ways_out: Vec<String> = all
            .iter()
            .filter_map(|e| credentials("certificate", e, "join again").fix)
            .collect();
        let clock = "check the clock first (`timedatectl`): a certificate that is valid once the \
            clock is set needs nothing else";
        let over = format!("{clock}; if the clock is right, join again");
        assert_eq!(
            ways_out,
            [
                "join again",
                "chmod 600 /pki/key.pem",
                "chown -h 1000 /pki/key.pem",
                clock,
                &over,
                "join again"
            ]
        );
        let denied = credentials(
            "certificate",
            &read(ErrorKind::PermissionDenied),
            "join again",
        );
        assert!(
            denied.state == State::Doubtful
                && denied.fix.is_some_and(|fix| fix.contains("as root"))
        );
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_not_always_that_it_is_absent() {
        let read = |kind: ErrorKind| ConfigError::Read {
            path: "/etc/x.toml".into(),
            source: kind.into(),
        };
        let fix = |e: &ConfigError| configuration(e, "join").fix.unwrap_or_default();
        assert_eq!(fix(&read(ErrorKind::NotFound)), "join");
        assert!(fix(&read(ErrorKind::PermissionDenied)).contains("as root"));
        let source = Box::new(toml::from_str::<toml::Table>("x").expect_err("no TOML"));
        assert!(
            fix(&ConfigError::Parse {
                path: "/etc/x.toml".into(),
                source
            })
            .contains("correct the file")
        );
    }
}
