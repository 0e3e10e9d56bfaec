//! How a run begins when an earlier one has left results, or a batch that still runs.

use super::args::RunArgs;
use crate::client::note::{self, Note};
use crate::client::profile::{Cluster, Profile};
use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::report::format::counted;
use crate::report::resume::{self, Plan, Resume, TakenUp, Written};
use mezcal_common::message::client::BatchStatus;
use mezcal_common::model::ids::BatchId;
use std::path::{Path, PathBuf};

/// How a run begins: anew, from the results of an earlier run, or with a batch that still runs.
pub(super) struct Begun {
    pub(super) batch: BatchId,
    /// New content of the results file, if some of it is dropped.
    pub(super) kept: Option<Vec<u8>>,
    /// Results of the batch that the file has already.
    pub(super) written: Written,
    pub(super) noted: Option<Noted>,
}

/// The note beside a results file, and its new content, if that has to be written.
pub(super) struct Noted {
    pub(super) path: PathBuf,
    pub(super) note: Option<Note>,
}

/// Takes out of a list the jobs that need not run, or those outside the batch that an earlier run
/// has left.
pub(super) fn begin(
    args: &RunArgs,
    profile: &Profile,
    jobs: &mut Jobs,
    batch: BatchId,
) -> Result<Begun, Exit> {
    let again = match (args.resume, args.resume_failed) {
        (true, _) => Some(Resume::Unfinished),
        (_, true) => Some(Resume::Failed),
        (false, false) => None,
    };
    let results = args.output.as_deref().filter(|path| {
        let stays = path.as_os_str() != "-" && (path.is_file() || !path.exists());
        stays && args.compat.is_none() && !args.detach
    });
    let anew = Begun {
        batch,
        kept: None,
        written: Written::default(),
        noted: None,
    };
    let Some(path) = results else {
        // A run that resumes needs a file; `read` refuses anything else with a reason.
        return match (again, &args.output) {
            (Some(_), Some(path)) => resume::read(path).map(|_| anew),
            _ => Ok(anew),
        };
    };
    let note = note::beside(path);
    let left = if args.force { None } else { note::read(&note)? };
    let left = left.map(|left| {
        let status = still_running(args, profile, &left, again, (path, &note))?;
        Ok::<_, Exit>((left, status))
    });
    let left = left.transpose()?;
    let text = again.map_or(Ok(String::new()), |_| resume::read(path))?;
    if let Some((left, Some(status))) = left
        && let Some(begun) = go_on(args, jobs, &left, &status, (path, &note, &text))?
    {
        return Ok(begun);
    }
    let (keep, kept) = match again {
        Some(what) => left_to_run(args, jobs, path, &text, what)?,
        None => (vec![true; jobs.len()], None),
    };
    let noted = match &profile.cluster {
        Cluster::Remote { coordinator, .. } => {
            let had = kept.as_deref().unwrap_or(&text);
            let says = Note::new(batch, coordinator, jobs, &keep, had);
            Some(Noted {
                path: note,
                note: Some(says),
            })
        }
        // A coordinator of this process's own ends with it, and so do its jobs.
        Cluster::Embedded | Cluster::Listen { .. } => None,
    };
    if again.is_some() {
        jobs.retain(&keep);
    }
    Ok(Begun {
        kept: kept.map(String::into_bytes),
        noted,
        ..anew
    })
}

/// The status of the batch that a note names; `None`: the coordinator does not have it.
///
/// # Errors
/// The batch may still run, and this run would conflict with it.
fn still_running(
    args: &RunArgs,
    profile: &Profile,
    left: &Note,
    again: Option<Resume>,
    (results, note): (&Path, &Path),
) -> Result<Option<BatchStatus>, Exit> {
    let (batch, coordinator) = (left.batch, &left.coordinator);
    match &profile.cluster {
        Cluster::Remote {
            coordinator: ours, ..
        } if again.is_some() && ours == coordinator => return note::ask(&args.profile, batch),
        Cluster::Embedded | Cluster::Listen { .. } | Cluster::Remote { .. } => {}
    }
    let way = match again {
        Some(_) => "resume with a profile that names this coordinator".to_owned(),
        None => format!(
            "--resume goes on with it, --force leaves it alone (`coordinator cancel {batch}` ends it)"
        ),
    };
    Err(Exit::usage(format!(
        "batch {batch} at {coordinator}, whose results go to {}, may still run ({} says so): {way}; or remove that note",
        results.display(),
        note.display()
    )))
}

/// Continues a batch. `None`: all its results are here, as if it had never been interrupted.
fn go_on(
    args: &RunArgs,
    jobs: &mut Jobs,
    left: &Note,
    status: &BatchStatus,
    (path, note, text): (&Path, &Path, &str),
) -> Result<Option<Begun>, Exit> {
    let keep = left.jobs_of(jobs).ok_or_else(|| {
        Exit::usage(format!(
            "this is not the list of batch {}, whose results go to {} and which may still run: resume with its list, or see to it with \
             `coordinator attach {}` and remove {}",
            left.batch,
            path.display(),
            left.batch,
            note.display()
        ))
    })?;
    let TakenUp { kept, written } =
        resume::take_up(jobs, path, text, left.results_in(text), &keep)?;
    if status.done.is_some() && written.count() as u64 >= status.jobs {
        return Ok(None);
    }
    jobs.retain(&keep);
    if !args.quiet {
        let have = written.count();
        tell!(
            "coordinator: batch {} goes on; {have} of its {} results are in {}",
            left.batch,
            jobs.len(),
            path.display()
        );
    }
    Ok(Some(Begun {
        batch: left.batch,
        kept: kept.map(String::into_bytes),
        written,
        noted: Some(Noted {
            path: note.to_owned(),
            note: None,
        }),
    }))
}

/// The jobs that run again, and the new content of the results file, if some of it is dropped.
fn left_to_run(
    args: &RunArgs,
    jobs: &Jobs,
    path: &Path,
    text: &str,
    what: Resume,
) -> Result<(Vec<bool>, Option<String>), Exit> {
    let Plan { keep, kept } = resume::plan(jobs, path, text, what)?;
    if !args.quiet {
        let done = keep.iter().filter(|keep| !**keep).count() as u64;
        let done = counted(done, "job", "jobs");
        tell!("coordinator: {done} need not run ({})", path.display());
    }
    Ok((keep, kept))
}
