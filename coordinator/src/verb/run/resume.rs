//! How a run begins when an earlier one has left results, or a batch that goes on.

use super::args::RunArgs;
use crate::client::note::{self, Note};
use crate::client::profile::{Cluster, Profile};
use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::report::format::counted;
use crate::report::resume::{self, Plan, Resume, TakenUp, Written};
use mezcal_common::model::ids::BatchId;
use std::path::PathBuf;

/// How a run begins: anew, with what others have left, or with a batch that goes on.
pub(super) struct Begun {
    pub(super) batch: BatchId,
    /// What is to stay of the results file, if not all of it.
    pub(super) kept: Option<Vec<u8>>,
    /// Results of the batch that the file has already.
    pub(super) written: Written,
    pub(super) noted: Option<Noted>,
}

/// The note beside a results file, and what it has to say, if it does not say so already.
pub(super) struct Noted {
    pub(super) path: PathBuf,
    pub(super) note: Option<Note>,
}

/// Takes out of a list what need not run, or what does not belong to the batch that an earlier run
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
        // Whoever goes on needs a file; what is none is refused with a reason.
        return match (again, &args.output) {
            (Some(_), Some(path)) => resume::read(path).map(|_| anew),
            _ => Ok(anew),
        };
    };
    let note = note::beside(path);
    let left = if args.force { None } else { note::read(&note)? };
    let going_on = match (&left, again, &profile.cluster) {
        (None, ..) => None,
        (Some(left), Some(_), Cluster::Remote { coordinator, .. })
            if *coordinator == left.coordinator =>
        {
            note::ask(&args.profile, left.batch)?
        }
        (
            Some(Note {
                batch, coordinator, ..
            }),
            ..,
        ) => {
            let way = match again {
                Some(_) => "resume with a profile that names this coordinator".to_owned(),
                None => format!(
                    "--resume goes on with it, --force leaves it alone (`coordinator cancel {batch}` ends it)"
                ),
            };
            return Err(Exit::usage(format!(
                "batch {batch} at {coordinator}, whose results go to {}, may still run ({} says so): {way}; or remove that note",
                path.display(),
                note.display()
            )));
        }
    };
    let text = again.map_or(Ok(String::new()), |_| resume::read(path))?;
    if let (Some(left), Some(status)) = (&left, going_on) {
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
            resume::take_up(jobs, path, &text, left.results_in(&text), &keep)?;
        // With all of them here it is as if it had never been interrupted.
        if status.done.is_none() || (written.count() as u64) < status.jobs {
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
            let kept = kept.map(String::into_bytes);
            return Ok(Begun {
                batch: left.batch,
                kept,
                written,
                noted: Some(Noted {
                    path: note,
                    note: None,
                }),
            });
        }
    }
    let (keep, kept) = match again {
        Some(what) => {
            let Plan { keep, kept } = resume::plan(jobs, path, &text, what)?;
            if !args.quiet {
                let done = counted(
                    keep.iter().filter(|keep| !**keep).count() as u64,
                    "job",
                    "jobs",
                );
                tell!("coordinator: {done} need not run ({})", path.display());
            }
            (keep, kept)
        }
        None => (vec![true; jobs.len()], None),
    };
    let noted = match &profile.cluster {
        Cluster::Remote { coordinator, .. } => {
            let says = Note::new(
                batch,
                coordinator,
                jobs,
                &keep,
                kept.as_deref().unwrap_or(&text),
            );
            Some(Noted {
                path: note,
                note: Some(says),
            })
        }
        // Its jobs end with it.
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
