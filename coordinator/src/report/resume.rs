//! `coordinator run --resume`: what a results file already has need not run again.
//!
//! Jobs are known by their content: the object less `result`, whatever the order of its keys and of
//! the lines. Of jobs that are alike as many are done as there are results.

use crate::exit::Exit;
use crate::jobs::{Jobs, members, write_json, write_string};
use crate::report::outputs::lock;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::{Ended, JobResult};
use mezcal_common::system::files;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is to be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Whatever has no successful result.
    Unfinished,
    /// Only what has a result, and one that is no success.
    Failed,
}

/// What a results file and a job list come to.
#[derive(Debug)]
pub struct Plan {
    /// Of each job, whether it is to run.
    pub keep: Vec<bool>,
    /// What is to stay of the file, if not all of it: without what will be written again, and
    /// without a last line that is torn.
    pub kept: Option<String>,
}

/// Reads a results file; one that is not there has nothing.
///
/// # Errors
/// Exit 2: it cannot be read.
pub fn read(path: &Path) -> Result<String, Exit> {
    let shown = path.display();
    if path.exists() && !path.is_file() {
        return Err(Exit::usage(format!(
            "{shown} is not a regular file: there is nothing to go on with"
        )));
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Exit::usage(format!("cannot read {shown}: {e}"))),
    }
}

/// What is to run of `jobs`, whose results are in `text`, the file at `path`. The file stays as it
/// is: until the jobs can run, what it says of them is all that there is.
///
/// # Errors
/// Exit 2 naming the line that is no result, or a job that would run before one that it comes
/// after.
pub fn plan(jobs: &Jobs, path: &Path, text: &str, what: Resume) -> Result<Plan, Exit> {
    let lines = lines_of(text, path)?;
    let fates = fates(jobs, &lines);
    let keep = fates.iter().map(|fate| match what {
        Resume::Unfinished => *fate != Fate::Succeeded,
        Resume::Failed => *fate == Fate::Failed,
    });
    let keep: Vec<bool> = keep.collect();
    for (number, _) in (1..).zip(&keep).filter(|(_, keep)| **keep) {
        let index = |before: &JobNumber| before.0 as usize - 1;
        let missing =
            |before: &&JobNumber| !keep[index(before)] && fates[index(before)] != Fate::Succeeded;
        if let Some(before) = jobs.comes_after(number).iter().find(missing) {
            return Err(Exit::usage(format!(
                "job {number} comes after job {before}, which has no result in {}; --resume runs both",
                path.display()
            )));
        }
    }
    let kept = without_failures(jobs, text, &lines, &fates, &keep);
    Ok(Plan { keep, kept })
}

/// What is left to a batch that has run without its client: the jobs that are kept are its own.
#[derive(Debug)]
pub struct TakenUp {
    /// As above.
    pub kept: Option<String>,
    /// Its results that the file has already.
    pub written: Written,
}

/// The same for a batch that goes on; `own` is what of `text` has come from it, if anything has.
///
/// # Errors
/// As above.
pub fn take_up(
    jobs: &Jobs,
    path: &Path,
    text: &str,
    own: Option<&str>,
    keep: &[bool],
) -> Result<TakenUp, Exit> {
    let lines = lines_of(text, path)?;
    Ok(match own {
        Some(own) => {
            let (mut written, mut kept) = (
                Written::default(),
                text[..text.len() - own.len()].to_owned(),
            );
            // What was written off when the coordinator was out of reach has its own result still.
            for (line, (key, _)) in lines_of(own, path)? {
                match Told::of(line) {
                    Some(told) if told.attempt == 0 && told.outcome == Ended::Lost.as_str() => {
                        continue;
                    }
                    Some(told) => written.0.entry(key).or_default().push(told),
                    None => {}
                }
                kept.push_str(line);
            }
            TakenUp {
                kept: (kept != text).then_some(kept),
                written,
            }
        }
        None => {
            let fates = fates(jobs, &lines);
            TakenUp {
                kept: without_failures(jobs, text, &lines, &fates, keep),
                written: Written::default(),
            }
        }
    })
}

/// Results that are in the file already.
#[derive(Debug, Default)]
pub struct Written(HashMap<String, Vec<Told>>);

/// What tells two results of jobs that are alike apart.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// In microseconds since 1970.
    started: Option<i64>,
    outcome: String,
    attempt: u32,
}

impl Told {
    /// None: another program has written that line.
    fn of(line: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Line {
            result: Result,
        }
        #[derive(serde::Deserialize)]
        struct Result {
            started: Option<String>,
            outcome: String,
            attempt: u32,
        }
        let Line {
            result:
                Result {
                    started,
                    outcome,
                    attempt,
                },
        } = serde_json::from_str(line).ok()?;
        let started =
            started.and_then(|text| Some(text.parse::<jiff::Timestamp>().ok()?.as_microsecond()));
        Some(Self {
            started,
            outcome,
            attempt,
        })
    }
}

impl Written {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether this result of a job with that object is one of them. It is so once.
    pub fn take(&mut self, object: impl FnOnce() -> String, result: &JobResult) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let outcome = &result.outcome;
        let told = Told {
            started: outcome.span.map(|span| span.started.0),
            outcome: outcome.ended.as_str().to_owned(),
            attempt: result.attempt,
        };
        let Some(key) = key_of(&object()) else {
            return false;
        };
        let Some(known) = self.0.get_mut(&key) else {
            return false;
        };
        let place = known.iter().position(|known| *known == told);
        place.map(|place| known.swap_remove(place)).is_some()
    }
}

/// A result line with its job, and whether it has succeeded.
type ResultLine<'t> = (&'t str, (String, bool));

/// The whole result lines of a text.
fn lines_of<'t>(text: &'t str, path: &Path) -> Result<Vec<ResultLine<'t>>, Exit> {
    let mut lines = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let whole = line.strip_suffix('\n').and_then(result_of);
        match whole {
            Some(result) => lines.push((line, result)),
            None if line.trim().is_empty() => {}
            // The writer was interrupted: that job has no result.
            None if !text[line.as_ptr() as usize - text.as_ptr() as usize..].contains('\n') => {}
            None => {
                return Err(Exit::usage(format!(
                    "{}:{}: this is no result line; --resume takes a results file",
                    path.display(),
                    i + 1
                )));
            }
        }
    }
    Ok(lines)
}

/// What results say of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Failed,
    Succeeded,
}

fn fates(jobs: &Jobs, lines: &[ResultLine<'_>]) -> Vec<Fate> {
    let (mut succeeded, mut failed): (HashMap<&str, usize>, HashMap<&str, usize>) =
        (HashMap::new(), HashMap::new());
    for (key, ok) in lines.iter().map(|(_, result)| result) {
        *if *ok { &mut succeeded } else { &mut failed }
            .entry(key)
            .or_default() += 1;
    }
    let take = |counts: &mut HashMap<&str, usize>, key: &str| match counts.get_mut(key) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    };
    let fate = |number| {
        let key = key_of(&jobs.as_object(number)).unwrap_or_default();
        match () {
            () if take(&mut succeeded, &key) => Fate::Succeeded,
            () if take(&mut failed, &key) => Fate::Failed,
            () => Fate::Unknown,
        }
    };
    (1..=jobs.len() as u32).map(fate).collect()
}

/// The text without results of what runs again; none: all of it stays.
fn without_failures(
    jobs: &Jobs,
    text: &str,
    lines: &[ResultLine<'_>],
    fates: &[Fate],
    keep: &[bool],
) -> Option<String> {
    let mut redone: HashMap<String, usize> = HashMap::new();
    for (number, _) in (1..)
        .zip(fates.iter().zip(keep))
        .filter(|(_, (fate, keep))| **keep && **fate == Fate::Failed)
    {
        *redone
            .entry(key_of(&jobs.as_object(number)).unwrap_or_default())
            .or_default() += 1;
    }
    let mut kept = String::with_capacity(text.len());
    for (line, (key, ok)) in lines {
        match redone.get_mut(key).filter(|left| !ok && **left > 0) {
            Some(left) => *left -= 1,
            None => kept.push_str(line),
        }
    }
    (kept != text).then_some(kept)
}

/// A results file that loses its old lines when the first new one comes, and not before.
pub struct Rewritten {
    path: PathBuf,
    kept: Vec<u8>,
    /// The old file, which is locked for this run.
    old: Option<File>,
    /// The new one, likewise.
    file: Option<File>,
}

impl Rewritten {
    /// Of `old`, which is at `path`, this is to stay.
    pub fn new(old: File, path: PathBuf, kept: Vec<u8>) -> Self {
        Self {
            path,
            kept,
            old: Some(old),
            file: None,
        }
    }
}

impl Write for Rewritten {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                files::rewrite(&self.path, &self.kept)?;
                let file = File::options().append(true).open(&self.path)?;
                lock(&file, &self.path)
                    .map_err(|refused| std::io::Error::other(refused.message))?;
                drop(self.old.take());
                self.kept = Vec::new();
                self.file.insert(file)
            }
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// The job of a result line, and whether it has succeeded.
fn result_of(line: &str) -> Option<(String, bool)> {
    #[derive(serde::Deserialize)]
    struct Line {
        result: Result,
    }
    #[derive(serde::Deserialize)]
    struct Result {
        status: String,
        code: Option<i64>,
    }
    let Line { result } = serde_json::from_str(line).ok()?;
    Some((
        key_of(line)?,
        result.status == "ok" && result.code == Some(0),
    ))
}

/// What a job is known by.
fn key_of(object: &str) -> Option<String> {
    let mut members = members(object).ok()?;
    members.retain(|(key, _)| key != "result");
    members.sort_by(|a, b| a.0.cmp(&b.0));
    let mut key = Vec::new();
    for (name, value) in members {
        write_string(&mut key, &name, false);
        key.push(b':');
        write_json(&mut key, value.get(), true);
        key.push(b'\n');
    }
    String::from_utf8(key).ok()
}
