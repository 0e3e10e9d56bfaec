//! The environment of jobs: that of this process, without the variables of service managers, shells
//! and a `make` above, and with those that the batch and the job add.

use super::order::Order;
use crate::kernel::paths;
use mezcal_common::model::octets;
use mezcal_common::system::proc::{self, CommandLine};
use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStringExt;

/// The things that the engines of a keeper have in common.
pub(crate) struct Inherited {
    pub(super) command_line: CommandLine,
    /// Environment of every job, before the batch's.
    pub(super) env: Vec<(String, CString)>,
    /// Signals that the engines ignore.
    pub(super) ignored: u64,
}

/// Names and whole entries (environ(7)), most of them those of this process.
pub(super) type Environment<'a> = Vec<(Cow<'a, str>, Cow<'a, CStr>)>;

/// Names that must not leak from a service manager or a shell into jobs.
const SCRUBBED: [&str; 20] = [
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

/// Variables in which a `make` tells processes below it its flags.
const MAKE_FLAGS: [&str; 2] = ["MAKEFLAGS", "MFLAGS"];

/// The flags of a `make` without its jobserver, if that is a pair of descriptors, which jobs do not
/// get (GNU Make Manual, "POSIX Jobserver Interaction"): with it their own `make` would complain
/// and run one job at a time. A jobserver that has a name in the file system works for jobs, too.
fn without_jobserver(flags: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = flags.split(|b| *b == b' ').collect();
    // Variables follow, with any text.
    let own = words
        .iter()
        .position(|word| *word == b"--")
        .unwrap_or(words.len());
    let is_pair = |word: &&[u8]| {
        let value = word
            .strip_prefix(b"--jobserver-auth=")
            .or_else(|| word.strip_prefix(b"--jobserver-fds="));
        value.is_some_and(|value| {
            value
                .iter()
                .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
        })
    };
    if !words[..own].iter().any(is_pair) {
        return flags.to_vec();
    }
    let is_count = |word: &[u8]| {
        word.strip_prefix(b"-j")
            .is_some_and(|n| n.iter().all(u8::is_ascii_digit))
    };
    let kept = words
        .iter()
        .enumerate()
        .filter(|(i, word)| *i >= own || !is_pair(word) && !is_count(word));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(&b' ')
}

impl Inherited {
    /// Reads the environment of this process, of which the engines are copies; with the `functions`
    /// that a shell has exported, or without them.
    pub(crate) fn read(functions: bool) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| {
                let mut entry = name.into_vec();
                let key = octets::text(entry.clone());
                entry.push(b'=');
                let value = value.into_vec();
                entry.extend(if MAKE_FLAGS.contains(&key.as_str()) {
                    without_jobserver(&value)
                } else {
                    value
                });
                Some((key, CString::new(entry).ok()?))
            })
            .filter(|(key, _)| {
                !SCRUBBED.contains(&key.as_str()) && (functions || !key.starts_with("BASH_FUNC_"))
            })
            .collect();
        Self {
            command_line: CommandLine::find(),
            env,
            ignored: proc::ignored_signals(),
        }
    }

    /// The environment of one job: later names win, the reserved names come last.
    pub(super) fn environment(
        &self,
        order: &Order,
        slot: u16,
        host: &str,
    ) -> Result<Environment<'_>, String> {
        let Order {
            attempt,
            spec,
            context,
            engine,
        } = order;
        let mut env: Environment = self
            .env
            .iter()
            .map(|(key, entry)| (key.into(), entry.into()))
            .collect();
        let mut set = |name: &str, value: &str| -> Result<(), String> {
            let entry = CString::new([&octets::of(name)[..], b"=", &octets::of(value)].concat())
                .map_err(|_| {
                    format!("environment {:?} contains a NUL byte", octets::shown(name))
                })?;
            match env.iter_mut().find(|(key, _)| key == name) {
                Some(slot) => slot.1 = entry.into(),
                None => env.push((name.to_owned().into(), entry.into())),
            }
            Ok(())
        };
        for (name, value) in context.env.iter().chain(&spec.env) {
            set(name, value)?;
        }
        set("MEZCAL_JOB_ID", &paths::label(spec, *attempt))?;
        set("MEZCAL_ATTEMPT", &attempt.attempt.to_string())?;
        set("MEZCAL_ENGINE_ID", &engine.to_string())?;
        set("MEZCAL_SLOT", &slot.to_string())?;
        set("MEZCAL_HOST", host)?;
        set("MEZCAL_BATCH", &context.batch.to_string())?;
        Ok(env)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_make_lose_a_jobserver_that_jobs_do_not_have() {
        let cases = [
            // Flags of GNU Make 4.3 below `make -j4 -k VAR='a b'`, and those of older ones.
            ("k -j4 --jobserver-auth=3,4 -- VAR=a\\ b", "k -- VAR=a\\ b"),
            (" --jobserver-fds=3,4 -j", ""),
            ("-j2 --jobserver-auth=3,4", ""),
            // Flags not below `make -j`, or with a jobserver whose name every process can open.
            ("k", "k"),
            ("", ""),
            (
                " -j8 --jobserver-auth=fifo:/tmp/GMfifo123",
                " -j8 --jobserver-auth=fifo:/tmp/GMfifo123",
            ),
            (
                "k -- X=--jobserver-auth=3,4 -j2",
                "k -- X=--jobserver-auth=3,4 -j2",
            ),
        ];
        for (flags, left) in cases {
            assert_eq!(
                String::from_utf8_lossy(&without_jobserver(flags.as_bytes())),
                left,
                "{flags}"
            );
        }
    }
}
