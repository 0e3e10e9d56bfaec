//! One job: its text as values, and all mistakes in it.

use super::fault::Fault;
use super::object::members_with;
use super::spans::{offset_in, without_place};
use super::value::{Value, environment, host_list, kind, names, path, retry_rules};
use super::{keys, surrogates};
use mezcal_common::message::client::RetryOn;
use mezcal_common::model::job::{Command, JobSpec, Leftover};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::time::Duration;

/// Keys whose values can have bytes that are not text.
const OF_BYTES: [&str; 9] = [
    "cmd", "argv", "args", "cd", "out", "err", "stdin", "env", "inputs",
];

/// One job, read.
#[derive(Debug)]
pub struct Job {
    /// The job as an engine gets it.
    pub spec: JobSpec,
    /// Hosts that may run it; `None`: all.
    pub hosts: Option<Vec<String>>,
    /// Hosts that it prefers, best first; `None`: it has no preference.
    pub prefer: Option<Vec<String>>,
    /// Files that it reads.
    pub inputs: Vec<String>,
    /// Jobs with a higher value go first.
    pub priority: i32,
    /// Slots that it takes.
    pub slots: u16,
    /// Further attempts; `None`: as many as the batch allows.
    pub retries: Option<u32>,
    /// The failures that are retried; empty: all.
    pub retry_on: Vec<RetryOn>,
    /// Pause before the first retry.
    pub retry_delay: Duration,
    /// Jobs that have to succeed first, by the user's names for them.
    pub after: Vec<String>,
    /// Place of those names in the job's text, in bytes.
    pub(super) after_at: usize,
}

impl Job {
    pub(super) fn new(command: Command) -> Self {
        Self {
            spec: JobSpec::new(command),
            hosts: None,
            prefer: None,
            inputs: Vec::new(),
            priority: 0,
            slots: 1,
            retries: None,
            retry_on: Vec::new(),
            retry_delay: Duration::ZERO,
            after: Vec::new(),
            after_at: 0,
        }
    }
}

/// A job that has mistakes.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) faults: Vec<Fault>,
    /// Its `id`, if it can be read: others may come after it.
    pub(super) label: Option<String>,
    /// Whether it may have an `id` that cannot be read.
    pub(super) illegible: bool,
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        Self {
            faults: vec![fault],
            label: None,
            illegible: true,
        }
    }
}

/// Reads the object of one job; calls `stranger` for each key without a meaning.
pub(super) fn parse_object(
    text: &str,
    modern: bool,
    stranger: &mut dyn FnMut(&str),
) -> Result<Job, Unread> {
    if !text.starts_with('{') {
        let kind = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => "a job must be an object like {\"cmd\": \"…\"}".to_owned(),
            Err(e) => format!("not JSON: {}", without_place(&e)),
        };
        return Err(Fault { at: 0, text: kind }.into());
    }
    let mut faults = Vec::new();
    let mut twice = |key: &str, value: &RawValue| {
        if modern {
            let text_of_fault = format!(
                "key {key:?}: it is there twice in this job; which one counts, JSON does not say"
            );
            faults.push(Fault {
                at: offset_in(text, value.get()),
                text: text_of_fault,
            });
        }
    };
    let members = members_with(text, &mut twice).map_err(|e| not_json(text, &e))?;
    let mut job = Job::new(Command::Shell(String::new()));
    let mut command: Option<Command> = None;
    let mut args = None;
    for (key, raw) in members {
        if key == "args" {
            args = Some(raw);
        }
        let read = member(&mut job, &mut command, text, &key, raw, modern, stranger);
        faults.extend(read.err().map(|fault| Fault {
            text: half_character(&key, raw).unwrap_or(fault.text),
            ..fault
        }));
    }
    if let (Some(Command::Shell(cmd)), Some(args)) = (&command, args)
        && modern
        && are_of_no_template(args, cmd)
    {
        stranger("args");
    }
    match command {
        Some(command) => job.spec.command = command,
        // A mistake in the command has been reported.
        None if faults.iter().any(|fault| {
            fault.text.starts_with("key \"cmd\"") || fault.text.starts_with("key \"argv\"")
        }) => {}
        None => faults.push(Fault {
            at: 0,
            text: "no `cmd` in this job, and no `argv` (a list of words)".into(),
        }),
    }
    if faults.is_empty() {
        Ok(job)
    } else {
        Err(Unread {
            faults,
            label: job.spec.label,
            illegible: false,
        })
    }
}

/// The fault of a text that is no JSON, at its place.
fn not_json(text: &str, e: &serde_json::Error) -> Fault {
    let before: usize = text
        .split_inclusive('\n')
        .take(e.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let at = (before + e.column().saturating_sub(1)).min(text.len());
    let at = (0..=at)
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    Fault {
        at,
        text: format!("not JSON: {}", without_place(e)),
    }
}

/// Whether `args` are not those of a template: its writer wants a program that is all of `cmd` to
/// get them.
fn are_of_no_template(args: &RawValue, cmd: &str) -> bool {
    !cmd.contains(|c: char| c.is_ascii_whitespace())
        && serde_json::from_str::<Vec<String>>(args.get())
            .is_ok_and(|args| args.iter().all(|arg| !cmd.contains(arg.as_str())))
}

/// The fault of a value with half of a character, if that is why the value cannot be read.
fn half_character(key: &str, raw: &RawValue) -> Option<String> {
    let why = match surrogates::from_json(raw.get()) {
        Err(unit) => format!(
            "\\u{unit:04x} alone is half of a character; only \\udc80 to \\udcff can stand alone, for bytes 80 to ff that are no UTF-8 (PEP 383)"
        ),
        Ok(Cow::Borrowed(_)) => return None,
        Ok(Cow::Owned(_)) if OF_BYTES.contains(&key) => return None,
        // A key for text allows no lone surrogates at all.
        Ok(Cow::Owned(_)) => serde_json::from_str::<serde_json::Value>(raw.get()).err().map(|_| {
            format!(
                "is not UTF-8: it has a byte (\\udc80 to \\udcff, PEP 383) that is no text, which only {} can have",
                OF_BYTES.join(", ")
            )
        })?,
    };
    Some(format!("key {key:?}: {why}"))
}

/// Reads one key of a job.
fn member(
    job: &mut Job,
    command: &mut Option<Command>,
    text: &str,
    key: &str,
    raw: &RawValue,
    modern: bool,
    stranger: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let of_bytes = match OF_BYTES
        .contains(&key)
        .then(|| surrogates::from_json(raw.get()))
    {
        Some(Ok(Cow::Owned(text))) => RawValue::from_string(text).ok(),
        Some(Ok(Cow::Borrowed(_)) | Err(_)) | None => None,
    };
    let value = &Value {
        key,
        raw: of_bytes.as_deref().unwrap_or(raw),
        at: offset_in(text, raw.get()),
    };
    match key {
        "cmd" => {
            if command.is_some() {
                return Err(value.fault("a job has either `cmd` or `argv`".into()));
            }
            *command = Some(Command::Shell(value.string()?));
        }
        "cd" => job.spec.cd = Some(path(value.string()?).map_err(|why| value.fault(why))?),
        "out" => job.spec.out = Some(path(value.string()?).map_err(|why| value.fault(why))?),
        "err" => job.spec.err = Some(path(value.string()?).map_err(|why| value.fault(why))?),
        "host" => {
            let hosts = host_list(value.raw, modern).map_err(|why| value.fault(why))?;
            if hosts.is_empty() && modern {
                return Err(value.fault("names no host; leave it out if any will do".into()));
            }
            job.hosts = Some(hosts);
        }
        _ if !modern => {}
        _ => return own_member(job, command, value, stranger),
    }
    Ok(())
}

/// Reads one of the keys that Bakapara does not have.
fn own_member(
    job: &mut Job,
    command: &mut Option<Command>,
    value: &Value,
    stranger: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    match value.key {
        "argv" => {
            if command.is_some() {
                return Err(value.fault("a job has either `cmd` or `argv`".into()));
            }
            let words: Vec<String> = serde_json::from_str(value.raw.get())
                .map_err(|_| value.fault("must be a list of strings".into()))?;
            if words.first().is_none_or(String::is_empty) {
                return Err(value.fault("must begin with the program's name".into()));
            }
            *command = Some(Command::Argv(words));
        }
        "id" => job.spec.label = Some(label(value)?),
        "prefer" => {
            job.prefer = Some(host_list(value.raw, true).map_err(|why| value.fault(why))?)
                .filter(|set| !set.is_empty())
        }
        "name" => drop(value.string()?),
        // They only come back, in whatever form.
        "args" => {}
        "env" => job.spec.env = environment(value.raw).map_err(|why| value.fault(why))?,
        "stdin" => job.spec.stdin = Some(path(value.string()?).map_err(|why| value.fault(why))?),
        "timeout" => {
            let timeout: Duration = value.seconds()?;
            if timeout.is_zero() {
                return Err(value.fault("must be greater than zero".into()));
            }
            job.spec.timeout = Some(timeout);
        }
        "leftover" => {
            job.spec.leftover = Some(match value.string()?.as_str() {
                "kill" => Leftover::Kill,
                "wait" => Leftover::Wait,
                _ => return Err(value.fault("must be \"kill\" or \"wait\"".into())),
            });
        }
        "inputs" => {
            job.inputs = names(value.raw).map_err(|_| {
                value.fault(format!(
                    "must be a path or a list of them, not {}",
                    kind(value.raw)
                ))
            })?;
        }
        "after" => {
            (job.after, job.after_at) =
                (names(value.raw).map_err(|why| value.fault(why))?, value.at)
        }
        "retry_on" => job.retry_on = retry_rules(value.raw).map_err(|why| value.fault(why))?,
        "retry_delay" => job.retry_delay = value.seconds()?,
        "retries" => job.retries = Some(value.whole(0..1001)? as u32),
        "priority" => {
            job.priority = value.whole(i64::from(i32::MIN)..i64::from(i32::MAX) + 1)? as i32
        }
        "slots" => job.slots = value.whole(1..i64::from(u16::MAX) + 1)? as u16,
        // Unknown keys are the user's own.
        key => match keys::foreign(key) {
            Some(why) => return Err(value.fault(why)),
            None => stranger(key),
        },
    }
    Ok(())
}

/// Reads the user's name for a job, its `id`.
fn label(value: &Value) -> Result<String, Fault> {
    let label = value
        .string()
        .or_else(|_| value.whole(i64::MIN..i64::MAX).map(|n| n.to_string()));
    let label = label.map_err(|_| {
        value.fault(format!(
            "must be a string or a whole number, not {}",
            kind(value.raw)
        ))
    })?;
    if label.is_empty() || label.contains('\0') || label == "." || label == ".." {
        return Err(value.fault("cannot be an id: it names files and environment values".into()));
    }
    Ok(label)
}
