//! `coordinator run`: a job list in, results out.

mod args;
mod batch;
mod detach;
mod halt;
mod input;
mod resume;
mod stream;

use crate::client::cluster::connect;
use crate::client::context::absolute;
use crate::client::embedded::{self, ContainmentWish};
use crate::client::profile::{Cluster, Profile};
use crate::client::signals::Signals;
use crate::exit::{self, Exit};
use crate::report::outputs::{Old, Wishes};
pub use args::RunArgs;
use batch::Run;
use input::{batch_context, find_inputs, read_jobs, terms};
use mezcal_common::model::job::BatchContext;
use resume::{Begun, begin};
use std::path::Path;
use std::sync::Arc;

/// Runs the verb; the exit status is the answer.
///
/// # Errors
/// [`Exit`] with the status and a message.
pub fn run(args: &RunArgs) -> Result<u8, Exit> {
    let profile = args.profile.resolve(args.local, args.listen)?;
    if profile.cluster != Cluster::Embedded && args.slots.is_some() {
        return Err(Exit::usage(
            "-j sets the slots of a run on this host; on a cluster each agent has its own (`slots` in agent.toml)",
        ));
    }
    if matches!(profile.cluster, Cluster::Remote { .. }) && args.locality_wait.is_some() {
        return Err(Exit::usage(
            "--locality-wait is for a run that is its own coordinator; that of a cluster has `locality_wait` in coordinator.toml",
        ));
    }
    if profile.cluster == Cluster::Embedded && args.min_agents > 1 {
        return Err(Exit::usage(
            "--min-agents: a run on this host has one agent; name a cluster with -p or --listen",
        ));
    }
    if profile.cluster != Cluster::Embedded && args.containment != ContainmentWish::Auto {
        return Err(Exit::usage(
            "--containment is for a run on this host; on a cluster each agent has its own (agent.toml)",
        ));
    }
    if args.detach && !matches!(profile.cluster, Cluster::Remote { .. }) {
        return Err(Exit::usage(
            "--detach leaves the jobs to a running coordinator; name one with -p",
        ));
    }
    let outputs = outputs(args);
    if !args.stream {
        outputs.check()?;
    }
    let keeper = match profile.cluster {
        Cluster::Embedded => Some(embedded::start_keeper(args.containment)?),
        Cluster::Listen { .. } | Cluster::Remote { .. } => None,
    };
    let context = batch_context(args, &profile)?;
    if args.stream {
        return stream(args, &profile, keeper, context);
    }
    let mut jobs = read_jobs(args)?;
    if context.cd.is_empty()
        && let Some(number) = jobs.first_without_directory()
        && let Err(why) = absolute(Path::new(""))
    {
        return Err(Exit::usage(format!(
            "job {number} has no absolute `cd`, and {}",
            why.message
        )));
    }
    let Begun {
        batch,
        kept,
        written,
        noted,
    } = begin(args, &profile, &mut jobs, context.batch)?;
    let context = BatchContext { batch, ..context };
    if let (true, true, Some(path)) = (
        jobs.is_empty(),
        args.resume || args.resume_failed,
        &args.output,
    ) {
        // Perhaps a last line that is torn.
        let cannot = |e| Exit::output(format!("cannot write {}: {e}", path.display()));
        kept.map_or(Ok(()), |kept| {
            mezcal_common::system::files::rewrite(path, &kept)
        })
        .map_err(cannot)?;
        noted
            .into_iter()
            .for_each(|noted| drop(std::fs::remove_file(noted.path)));
        return Ok(0);
    }
    let slots = args.slots.unwrap_or_else(embedded::usable_cpus);
    let (most, number) = jobs.widest();
    if profile.cluster == Cluster::Embedded && most > slots {
        return Err(Exit::usage(format!(
            "job {number} takes {most} slots, and this run has {slots}; -j {most} gives it as many"
        )));
    }
    find_inputs(&mut jobs, args, &profile, &context.cd);
    let jobs = Arc::new(jobs);
    let results = if args.detach {
        None
    } else {
        Some(outputs.results(kept)?)
    };
    let log = outputs.log()?;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let connected = tokio::select! {
            connected = connect(&profile, keeper, args.slots, args.locality_wait) => connected?,
            // Nothing has been started yet.
            number = signals.next() => return Ok(128 + number),
        };
        let terms = terms(args, context);
        let Some(results) = results else {
            let remote = connected.into_remote().ok_or_else(|| Exit {
                status: exit::BUG,
                message: "nobody to leave the jobs to".into(),
            })?;
            return detach::submit(remote, jobs, terms, signals, args.reconnect.reconnect).await;
        };
        let mut run = Run::new(args, jobs, terms, results, log, connected, signals)?;
        (run.written, run.noted) = (written, noted);
        run.drive().await
    });
    // Reads of stdin and the like may still block a thread of the runtime.
    runtime.shutdown_background();
    status
}

/// Runs jobs that come while others run.
fn stream(
    args: &RunArgs,
    profile: &Profile,
    keeper: Option<embedded::Keeper>,
    context: BatchContext,
) -> Result<u8, Exit> {
    if args
        .file
        .as_ref()
        .is_some_and(|file| file.as_os_str() != "-")
    {
        return Err(Exit::usage(
            "--stream reads standard input; a file of jobs needs no stream",
        ));
    }
    let widest = match profile.cluster {
        Cluster::Embedded => args.slots.unwrap_or_else(embedded::usable_cpus),
        Cluster::Listen { .. } | Cluster::Remote { .. } => u16::MAX,
    };
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let connected = tokio::select! {
            connected = connect(profile, keeper, args.slots, args.locality_wait) => connected?,
            number = signals.next() => return Ok(128 + number),
        };
        stream::run(args, connected, terms(args, context), widest, signals).await
    });
    // The thread that reads may wait for a line for ever.
    runtime.shutdown_background();
    status
}

/// The files of a run.
fn outputs(args: &RunArgs) -> Wishes<'_> {
    Wishes {
        input: args.file.as_deref().or(args.input.as_deref()),
        results: args.output.as_deref(),
        log: args.logging.as_deref(),
        old: match () {
            () if args.compat.is_some() => Old::Emptied,
            () if args.resume || args.resume_failed => Old::Kept,
            () if args.force => Old::Replaced,
            () => Old::Refused,
        },
    }
}
