//! `coordinator run --resume`: what a results file already has need not run again.
//!
//! Jobs are known by their content: the object less `result`, whatever the order of its keys and of the lines. Of jobs that are alike as many
//! are done as there are results.

use crate::exit::Exit;
use crate::jobs::{Jobs, members, write_json, write_string};
use crate::outputs::lock;
use mezcal_common::files;
use mezcal_common::ids::JobNumber;
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
pub struct Resumed {
    /// Jobs that need not run.
    pub done: usize,
    /// What is to stay of the file, if not all of it: without what will be written again, and without a last line that is torn.
    pub kept: Option<Vec<u8>>,
}

/// Takes out of `jobs` what need not run. The file stays as it is: until the jobs can run, what it says of them is all that there is.
///
/// # Errors
/// Exit 2 naming the line that is no result, or a job that would run before one that it comes after.
pub fn resume(jobs: &mut Jobs, path: &Path, what: Resume) -> Result<Resumed, Exit> {
    let shown = path.display();
    if path.exists() && !path.is_file() {
        return Err(Exit::usage(format!("{shown} is no regular file: there is nothing to go on with")));
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Exit::usage(format!("cannot read {shown}: {e}"))),
    };
    let mut lines: Vec<(&str, (String, bool))> = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let whole = line.strip_suffix('\n').and_then(result_of);
        match whole {
            Some(result) => lines.push((line, result)),
            None if line.trim().is_empty() => {}
            // The writer was interrupted: that job has no result.
            None if !text[line.as_ptr() as usize - text.as_ptr() as usize..].contains('\n') => {}
            None => return Err(Exit::usage(format!("{shown}:{}: this is no result line; --resume takes a results file", i + 1))),
        }
    }
    let (mut succeeded, mut failed): (HashMap<&str, usize>, HashMap<&str, usize>) = (HashMap::new(), HashMap::new());
    for (key, ok) in lines.iter().map(|(_, result)| result) {
        *if *ok { &mut succeeded } else { &mut failed }.entry(key).or_default() += 1;
    }
    let mut redone: HashMap<String, usize> = HashMap::new();
    let take = |counts: &mut HashMap<&str, usize>, key: &str| match counts.get_mut(key) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    };
    let (mut keep, mut finished) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    for number in 1..=jobs.len() as u32 {
        let key = key_of(&jobs.as_object(number)).unwrap_or_default();
        let done = take(&mut succeeded, &key);
        let has_failed = !done && take(&mut failed, &key);
        if has_failed {
            *redone.entry(key).or_default() += 1;
        }
        finished.push(done);
        keep.push(match what {
            Resume::Unfinished => !done,
            Resume::Failed => has_failed,
        });
    }
    for (number, _) in (1..).zip(&keep).filter(|(_, keep)| **keep) {
        let index = |before: &JobNumber| before.0 as usize - 1;
        if let Some(before) = jobs.comes_after(number).iter().find(|before| !keep[index(before)] && !finished[index(before)]) {
            return Err(Exit::usage(format!(
                "job {number} comes after job {before}, which has no result in {shown}; --resume runs both"
            )));
        }
    }
    let done = keep.iter().filter(|keep| !**keep).count();
    jobs.retain(&keep);
    // The old results of what runs again go; all others stay as they are.
    let mut kept: Vec<u8> = Vec::with_capacity(text.len());
    for (line, (key, ok)) in &lines {
        match redone.get_mut(key).filter(|left| !ok && **left > 0) {
            Some(left) => *left -= 1,
            None => kept.extend_from_slice(line.as_bytes()),
        }
    }
    Ok(Resumed { done, kept: (kept != text.as_bytes()).then_some(kept) })
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
        Self { path, kept, old: Some(old), file: None }
    }
}

impl Write for Rewritten {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                files::rewrite(&self.path, &self.kept)?;
                let file = File::options().append(true).open(&self.path)?;
                lock(&file, &self.path).map_err(|refused| std::io::Error::other(refused.message))?;
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
    Some((key_of(line)?, result.status == "ok" && result.code == Some(0)))
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
