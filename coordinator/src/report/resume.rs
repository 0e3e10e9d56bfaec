//! `coordinator run --resume`: jobs with results in a file need not run again.
//!
//! Jobs are known by their content: the object less `result`, in any order of its keys and of the
//! lines. Of identical jobs as many are done as there are results.

use crate::exit::Exit;
use crate::jobs::{Jobs, members, write_json, write_string};
use crate::report::lock::lock;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::{Ended, JobResult};
use mezcal_common::system::files;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The choice of jobs that run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// All jobs without a successful result.
    Unfinished,
    /// Only jobs with a result that is not a success.
    Failed,
}

/// The jobs and lines that follow from a results file and a job list.
#[derive(Debug)]
pub struct Plan {
    /// Whether each job is to run.
    pub keep: Vec<bool>,
    /// New content of the file, if it changes: without lines that will be written again, and
    /// without a torn last line.
    pub kept: Option<String>,
}

/// Reads a results file; a file that does not exist reads as empty.
///
/// # Errors
/// Exit 2: it cannot be read.
pub fn read(path: &Path) -> Result<String, Exit> {
    let shown = path.display();
    if path.exists() && !path.is_file() {
        return Err(Exit::usage(format!(
            "{shown} is not a regular file: there is nothing to resume"
        )));
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Exit::usage(format!("cannot read {shown}: {e}"))),
    }
}

/// The jobs of `jobs` that are to run; their results are in `text`, the file at `path`. The file
/// stays as it is: until the jobs can run, it has their only results.
///
/// # Errors
/// Exit 2 naming the line that is not a result, or a job that would run before its predecessor.
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

/// The results of a batch that has run without its client; all its jobs are kept.
#[derive(Debug)]
pub struct TakenUp {
    /// New content of the file, if it changes.
    pub kept: Option<String>,
    /// Results of the batch that the file has already.
    pub written: Written,
}

/// Like [`plan`], for a batch that still runs; `own` is the part of `text` that has come from it.
///
/// # Errors
/// Exit 2 naming the line that is not a result.
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
            // A job that was written off while the coordinator was lost still gets its result.
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

/// Results that are in the file already, by the content of their job.
#[derive(Debug, Default)]
pub struct Written(HashMap<String, Vec<Told>>);

/// The facts that tell apart results of identical jobs.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// In microseconds since 1970.
    started: Option<i64>,
    outcome: String,
    attempt: u32,
}

impl Told {
    /// `None`: another program has written that line.
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
    /// The number of these results.
    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether `result` of the job with that object is one of them. Each counts once.
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

/// A result line with the key of its job, and whether the job succeeded.
type ResultLine<'t> = (&'t str, (String, bool));

/// The complete result lines of a text.
fn lines_of<'t>(text: &'t str, path: &Path) -> Result<Vec<ResultLine<'t>>, Exit> {
    let mut lines = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let whole = line.strip_suffix('\n').and_then(result_of);
        match whole {
            Some(result) => lines.push((line, result)),
            None if line.trim().is_empty() => {}
            // The writer was interrupted: this job has no result.
            None if !text[line.as_ptr() as usize - text.as_ptr() as usize..].contains('\n') => {}
            None => {
                return Err(Exit::usage(format!(
                    "{}:{}: this line is not a result; --resume takes a results file",
                    path.display(),
                    i + 1
                )));
            }
        }
    }
    Ok(lines)
}

/// The state of a job by its results.
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

/// The text without results of jobs that run again; `None`: all of it stays.
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
    /// The old file; it is locked for this run.
    old: Option<File>,
    /// The new file, locked in the same way.
    file: Option<File>,
}

impl Rewritten {
    /// Keeps `kept` of `old`, the file at `path`.
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

/// The key of a result line's job, and whether the job succeeded.
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

/// The content by which a job is known.
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
