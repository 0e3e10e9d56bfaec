//! A note beside a results file: it names the batch of the results, while that batch may run
//! without the client that submitted it.
//!
//! It is written, and synced, before the first job is handed over, and removed when all results are
//! in the file. So `--resume` after a client's sudden end continues that batch, and does not start
//! jobs that still run there.

use crate::client::converse;
use crate::client::profile::ProfileArgs;
use crate::exit::Exit;
use crate::jobs::Jobs;
use mezcal_common::message::client::{Attachment, BatchStatus, ToClient, ToService};
use mezcal_common::model::ids::BatchId;
use mezcal_common::system::files;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The content of a note.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The batch that the results come from.
    pub batch: BatchId,
    /// The coordinator that has it.
    pub coordinator: String,
    /// Places of its jobs in the list, from 1: the first and the last of each row.
    jobs: Vec<(u32, u32)>,
    /// Fingerprint of the whole job list.
    list: Fingerprint,
    /// Fingerprint of the results file without results of the batch.
    before: Fingerprint,
}

/// Length and hash of a text. The hash is this program's own; with another version's hash, texts
/// count as different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    bytes: u64,
    hash: u64,
}

impl Fingerprint {
    fn of(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let (mut hasher, mut bytes) = (DefaultHasher::new(), 0);
        for text in texts {
            text.as_ref().hash(&mut hasher);
            bytes += text.as_ref().len() as u64;
        }
        Self {
            bytes,
            hash: hasher.finish(),
        }
    }
}

fn fingerprint_of(jobs: &Jobs) -> Fingerprint {
    Fingerprint::of((1..=jobs.len() as u32).map(|number| jobs.as_object(number)))
}

impl Note {
    /// For the jobs of the list that are kept; `before` is the content of the results file before
    /// their results.
    pub fn new(
        batch: BatchId,
        coordinator: &str,
        list: &Jobs,
        keep: &[bool],
        before: &str,
    ) -> Self {
        let mut jobs: Vec<(u32, u32)> = Vec::new();
        for (number, _) in (1..).zip(keep).filter(|(_, keep)| **keep) {
            match jobs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => jobs.push((number, number)),
            }
        }
        Self {
            batch,
            coordinator: coordinator.to_owned(),
            jobs,
            list: fingerprint_of(list),
            before: Fingerprint::of([before]),
        }
    }

    /// The jobs of a list that belong to the batch; `None`: it is another list.
    pub fn jobs_of(&self, list: &Jobs) -> Option<Vec<bool>> {
        let mut keep = vec![false; list.len()];
        for (first, last) in &self.jobs {
            keep.get_mut(first.checked_sub(1)? as usize..*last as usize)?
                .fill(true);
        }
        (fingerprint_of(list) == self.list).then_some(keep)
    }

    /// The part of a results file that has come from the batch; `None`: no result yet, and the file
    /// is as it was before.
    pub fn results_in<'t>(&self, text: &'t str) -> Option<&'t str> {
        let (before, own) = text.split_at_checked(usize::try_from(self.before.bytes).ok()?)?;
        (Fingerprint::of([before]) == self.before).then_some(own)
    }
}

/// The path of the note beside a results file.
pub fn beside(results: &Path) -> PathBuf {
    let mut name = results.as_os_str().to_owned();
    name.push(".batch");
    name.into()
}

/// Reads the note, if there is one.
///
/// # Errors
/// Exit 2: it cannot be read, or is not a note.
pub fn read(path: &Path) -> Result<Option<Note>, Exit> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Exit::usage(format!("cannot read {}: {e}", path.display()))),
    };
    let note = serde_json::from_slice(&text).map_err(|e| {
        Exit::usage(format!(
            "{} is not a note of a batch ({e}); remove it if no run writes the file beside it any \
             more",
            path.display()
        ))
    })?;
    Ok(Some(note))
}

/// Writes the note and syncs it.
///
/// # Errors
/// I/O errors.
pub fn write(path: &Path, note: &Note) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Left by an interrupted try.
    let _ = std::fs::remove_file(&beside);
    let mut file = File::create_new(&beside)?;
    let text = serde_json::to_vec(note).map_err(std::io::Error::other)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path))?;
    File::open(files::parent(path))?.sync_all()
}

/// The coordinator's status of a batch; `None`: it does not have the batch, or no longer.
///
/// # Errors
/// Exit 3: the coordinator cannot be reached.
pub fn ask(profile: &ProfileArgs, batch: BatchId) -> Result<Option<BatchStatus>, Exit> {
    converse(profile, async |remote| {
        let question = ToService::Attach {
            request: 1,
            batch: batch.to_string(),
            wish: Attachment::End,
        };
        let status = remote.ask(question, |answer| match answer {
            ToClient::Attached { batch, .. } => Some(Ok(batch.ok().map(|status| *status))),
            ToClient::Refused { reason } => Some(Err(Exit::unreachable(reason))),
            _ => None,
        });
        status.await?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Format;

    fn list(text: &str) -> Jobs {
        Jobs::read("in", text.as_bytes().to_vec(), Format::Lines, 0).expect("jobs")
    }

    #[test]
    fn a_note_knows_its_jobs_and_its_results_again() {
        let jobs = list("a\nb\nc\nd\ne\n");
        let keep = [true, false, true, true, false];
        let note = Note::new(BatchId::random(), "here:1", &jobs, &keep, "one\n");
        assert_eq!(note.jobs, [(1, 1), (3, 4)]);
        let dir = tempfile::tempdir().expect("a directory");
        let path = beside(&dir.path().join("r.json"));
        assert_eq!(read(&path).expect("none is no mistake"), None);
        write(&path, &note).expect("written");
        let again = read(&path).expect("readable").expect("a note");
        assert_eq!(again, note);
        assert_eq!(again.jobs_of(&jobs).expect("its list"), keep);
        assert_eq!(again.jobs_of(&list("a\nb\nc\nd\n")), None);
        assert_eq!(again.jobs_of(&list("a\nb\nc\nd\nE\n")), None);
        assert_eq!(again.results_in("one\ntwo\n"), Some("two\n"));
        assert_eq!(
            (again.results_in("One\ntwo\n"), again.results_in("on")),
            (None, None)
        );
        std::fs::write(&path, "{}").expect("written");
        assert!(
            read(&path)
                .expect_err("no note")
                .message
                .contains("is not a note of a batch")
        );
    }
}
