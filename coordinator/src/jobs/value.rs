//! Values of a job's keys: numbers, durations, lists of hosts and jobs, environments.

use super::fault::Fault;
use super::object::members_with;
use mezcal_common::message::client::RetryOn;
use mezcal_common::model::duration::{from_seconds, parse_duration};
use mezcal_common::model::hosts;
use mezcal_common::model::job::RESERVED_ENV;
use mezcal_common::model::outcome::Ended;
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

/// The most bytes of the names in one job's `host`: the list has to fit a message.
const MAX_HOST_LIST: usize = 512 * 1024;

/// The value of one key of a job.
pub(super) struct Value<'a> {
    pub(super) key: &'a str,
    pub(super) raw: &'a RawValue,
    /// Bytes from the start of the job's text.
    pub(super) at: usize,
}

impl Value<'_> {
    pub(super) fn fault(&self, what: String) -> Fault {
        Fault {
            at: self.at,
            text: format!("key {:?}: {what}", self.key),
        }
    }

    pub(super) fn string(&self) -> Result<String, Fault> {
        serde_json::from_str(self.raw.get())
            .map_err(|_| self.fault(format!("must be a string, not {}", kind(self.raw))))
    }

    pub(super) fn seconds(&self) -> Result<Duration, Fault> {
        let parsed =
            match self.raw.get().parse::<f64>() {
                Ok(n) => from_seconds(n),
                Err(_) => parse_duration(&self.string().map_err(|_| {
                    self.fault(format!("must be a duration, not {}", kind(self.raw)))
                })?),
            };
        parsed.map_err(|why| self.fault(why))
    }

    pub(super) fn whole(&self, range: Range<i64>) -> Result<i64, Fault> {
        let n = self.raw.get().parse::<i64>().ok();
        n.filter(|n| range.contains(n)).ok_or_else(|| {
            self.fault(format!(
                "must be a whole number from {} to {}",
                range.start,
                range.end - 1
            ))
        })
    }
}

/// One job or several, each by its `id` or number.
pub(super) fn names(raw: &RawValue) -> Result<Vec<String>, String> {
    let name = |value: &RawValue| match value.get().as_bytes() {
        [b'"', ..] => serde_json::from_str(value.get()).ok(),
        // Numbers keep their text, but -0 is 0.
        [b'-' | b'0'..=b'9', ..] => Some(
            value
                .get()
                .parse::<i64>()
                .map_or_else(|_| value.get().to_owned(), |n| n.to_string()),
        ),
        _ => None,
    };
    let all: Option<Vec<String>> = match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(list) => list.into_iter().map(name).collect(),
        Err(_) => name(raw).map(|name| vec![name]),
    };
    all.ok_or_else(|| {
        format!(
            "must be a job's id or number, or a list of them, not {}",
            kind(raw)
        )
    })
}

/// Exit statuses, negative signal numbers, and the names of outcomes.
pub(super) fn retry_rules(raw: &RawValue) -> Result<Vec<RetryOn>, String> {
    let rules = names(raw).map_err(|_| {
        format!(
            "must be a list of exit statuses and outcomes, not {}",
            kind(raw)
        )
    })?;
    let failures = [
        Ended::Exited,
        Ended::Signaled,
        Ended::Timeout,
        Ended::OutOfMemory,
        Ended::StartFailed,
    ];
    let rule = |text: &String| {
        if let Ok(code) = text.parse::<i32>() {
            return Ok(RetryOn::Code(code));
        }
        let known = failures
            .iter()
            .find(|ended| ended.as_str() == text)
            .copied()
            .map(RetryOn::Outcome);
        known.ok_or_else(|| {
            let words: Vec<&str> = failures.iter().map(|ended| ended.as_str()).collect();
            format!(
                "{text:?} is neither an exit status nor one of {}",
                words.join(", ")
            )
        })
    };
    rules.iter().map(rule).collect()
}

pub(super) fn path(text: String) -> Result<String, String> {
    if text.is_empty() {
        Err("cannot be an empty path".into())
    } else {
        Ok(text)
    }
}

pub(super) fn host_list(raw: &RawValue, modern: bool) -> Result<Vec<String>, String> {
    let names = if let Ok(one) = serde_json::from_str::<String>(raw.get()) {
        hosts::expand(&one).map_err(|e| e.to_string())?
    } else if let Ok(list) = serde_json::from_str::<Vec<String>>(raw.get()) {
        let mut all = Vec::new();
        for item in list {
            all.extend(hosts::expand(&item).map_err(|e| e.to_string())?);
        }
        all
    } else if let Ok(map) =
        serde_json::from_str::<HashMap<String, serde::de::IgnoredAny>>(raw.get())
        && !modern
    {
        // Bakapara used the keys of a dictionary.
        map.into_keys()
            .map(|k| hosts::normalise(&k).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?
    } else {
        return Err(format!(
            "must be a host name or a list of them, not {}",
            kind(raw)
        ));
    };
    if names.iter().map(String::len).sum::<usize>() > MAX_HOST_LIST {
        return Err(format!(
            "names {} hosts; that is too long a list for one job",
            names.len()
        ));
    }
    let mut seen = HashSet::new();
    Ok(names
        .into_iter()
        .filter(|n| seen.insert(n.clone()))
        .collect())
}

pub(super) fn environment(raw: &RawValue) -> Result<Vec<(String, String)>, String> {
    let mut twice = None;
    let members = members_with(raw.get(), &mut |name, _| twice = Some(name.to_owned()));
    let members =
        members.map_err(|_| format!("must be an object of strings, not {}", kind(raw)))?;
    if let Some(name) = twice {
        return Err(format!(
            "{name:?} is there twice; which one counts, JSON does not say"
        ));
    }
    let mut env = Vec::new();
    for (name, value) in members {
        let value: String = serde_json::from_str(value.get())
            .map_err(|_| format!("{name:?} must be a string, not {}", kind(value)))?;
        check_env_name(&name)?;
        env.push((name.into_owned(), value));
    }
    Ok(env)
}

/// Checks the name of an environment variable that a user wants to set.
///
/// # Errors
/// A message for the user.
pub fn check_env_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains('=') {
        return Err(format!(
            "{name:?} cannot be the name of an environment variable"
        ));
    }
    if RESERVED_ENV.contains(&name) {
        return Err(format!("{name} is set by Mezcal itself"));
    }
    Ok(())
}

pub(super) fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}
