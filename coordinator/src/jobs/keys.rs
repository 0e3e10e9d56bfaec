//! The names of a job's keys: keys with a meaning, keys of other programs, and keys that look like
//! a slip.

use std::collections::BTreeMap;

/// Keys with a meaning.
const KNOWN: [&str; 21] = [
    "cmd",
    "argv",
    "args",
    "cd",
    "out",
    "err",
    "host",
    "id",
    "name",
    "prefer",
    "env",
    "stdin",
    "timeout",
    "leftover",
    "inputs",
    "after",
    "retry_on",
    "retry_delay",
    "retries",
    "priority",
    "slots",
];

/// Keys with a meaning in Slurm, Nomad, HyperQueue or later versions of this program, and the way
/// to the same effect here.
const FOREIGN: [(&str, &str); 20] = [
    ("memory", "nothing limits memory yet"),
    ("mem", "nothing limits memory yet"),
    ("memory_grow", "nothing limits memory yet"),
    ("memory_max", "nothing limits memory yet"),
    (
        "gpus",
        "nothing hands out GPUs yet; `host` names hosts that have them",
    ),
    (
        "gpu",
        "nothing hands out GPUs yet; `host` names hosts that have them",
    ),
    ("cpus", "`slots` says how many slots a job takes"),
    ("time", "`timeout` ends a job that takes longer"),
    ("walltime", "`timeout` ends a job that takes longer"),
    ("time_grow", "`timeout` ends a job that takes longer"),
    ("array", "write one job for each member"),
    (
        "nodes",
        "`host` names the hosts that may run a job, each job runs on one",
    ),
    (
        "depends",
        "`after` names the jobs that have to succeed first",
    ),
    (
        "use",
        "nothing counts named resources yet; `slots` says how many slots a job takes",
    ),
    ("nice", "write it into the command (`nice -n 10 …`)"),
    (
        "signal",
        "`coordinator cancel --signal` sends another signal than TERM",
    ),
    ("send", "files are not sent yet; use a shared directory"),
    ("fetch", "files are not fetched yet; use a shared directory"),
    ("call", "write a command"),
    ("worker", "write a command"),
];

/// Other programs' names for keys that have another name here. They may be the user's own notes, so
/// they cause only a warning.
const SYNONYMS: [(&str, &str); 14] = [
    ("cwd", "cd"),
    ("chdir", "cd"),
    ("workdir", "cd"),
    ("working_directory", "cd"),
    ("stdout", "out"),
    ("stderr", "err"),
    // Where it does not look like a template's (`parse_object`).
    ("args", "argv"),
    ("command", "cmd"),
    ("deps", "after"),
    ("depends_on", "after"),
    ("dependencies", "after"),
    ("environment", "env"),
    ("retry", "retries"),
    ("time_limit", "timeout"),
];

/// Why a key without a meaning here must not be ignored: its writer relies on it.
pub(super) fn foreign(key: &str) -> Option<String> {
    let (_, instead) = FOREIGN.iter().find(|(foreign, _)| *foreign == key)?;
    Some(format!(
        "means nothing here: {instead}; as a note of your own call it \"x_{key}\""
    ))
}

/// The most distinct unknown keys that are remembered: a list has a few, not thousands.
const MAX_STRANGERS: usize = 1000;

/// Unknown keys of a list, and in how many jobs they are.
#[derive(Debug, Default)]
pub(super) struct Strangers(BTreeMap<String, u64>);

impl Strangers {
    pub(super) fn count(&mut self, key: &str) {
        if let Some(jobs) = self.0.get_mut(key) {
            *jobs += 1;
        } else if self.0.len() < MAX_STRANGERS {
            self.0.insert(key.to_owned(), 1);
        }
    }

    /// A line for each unknown key that differs by a slip from a key with a meaning.
    pub(super) fn warnings(&self) -> Vec<String> {
        let warn = |(key, jobs): (&String, &u64)| {
            let meant = near(key)?;
            let jobs = match jobs {
                1 => "1 job".to_owned(),
                n => format!("{n} jobs"),
            };
            Some(format!(
                "key {key:?} in {jobs} means nothing; is {meant:?} meant? (\"x_{key}\" is always yours)"
            ))
        };
        self.0.iter().filter_map(warn).collect()
    }
}

/// The known key that an unknown one stands for: as another program's name for it, in another case,
/// or by one insertion, deletion, change or exchange of neighbours.
fn near(key: &str) -> Option<&'static str> {
    let folded = key.to_ascii_lowercase();
    if let Some((_, meant)) = SYNONYMS.iter().find(|(synonym, _)| *synonym == folded) {
        return Some(meant);
    }
    if folded != key && KNOWN.contains(&folded.as_str()) {
        return KNOWN.into_iter().find(|known| *known == folded);
    }
    if key.chars().count() < 4 || key.starts_with("x_") {
        return None;
    }
    KNOWN
        .into_iter()
        .find(|known| strsim::osa_distance(key, known) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_seen_and_own_words_are_not() {
        for (key, meant) in [
            ("timout", "timeout"),
            ("timeuot", "timeout"),
            ("retires", "retries"),
            ("hosts", "host"),
            ("argvs", "argv"),
            ("Slots", "slots"),
            ("CD", "cd"),
            ("Cmd", "cmd"),
            ("cwd", "cd"),
            ("Depends_On", "after"),
        ] {
            assert_eq!(near(key), Some(meant), "{key}");
        }
        for own in [
            "x_timout", "cmdx2", "sample", "ids", "key", "ou", "result", "comment", "end",
        ] {
            assert_eq!(near(own), None, "{own}");
        }
    }

    #[test]
    fn no_key_is_known_and_foreign() {
        assert!(KNOWN.iter().all(|known| foreign(known).is_none()));
        assert!(foreign("memory").is_some_and(|why| why.contains("x_memory")));
    }
}
