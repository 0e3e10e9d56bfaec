//! `coordinator cancel`: jobs or batches, here or on the other side of the room, with the proof.

use crate::client::converse;
use crate::complete;
use crate::exit::{self, Exit};
use crate::format::counted;
use crate::profile::ProfileArgs;
use crate::run::GRACE;
use clap_complete::ArgValueCompleter;
use mezcal_common::duration::parse_duration;
use mezcal_common::job::Stop;
use mezcal_common::signal;
use mezcal_common::wire::client::{CancelSummary, Selector, ToClient, ToService};
use std::io::Write;
use std::time::Duration;

/// Kill jobs and wait for the proof that nothing of them is left.
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// BATCH/JOB, where JOB is its `id` or its number and BATCH as much of the id as is needed; only JOB when you have one batch
    #[arg(value_name = "JOB", required_unless_present_any = ["batch", "all"], conflicts_with_all = ["batch", "all"])]
    pub jobs: Vec<String>,
    /// A whole batch
    #[arg(long, value_name = "BATCH", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "all", add = ArgValueCompleter::new(complete::batches))]
    pub batch: Vec<String>,
    /// All batches of yours
    #[arg(long)]
    pub all: bool,
    /// What to send first: a name or a number
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal::parse)]
    pub signal: i32,
    /// How long after that to KILL what is left
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// The outcome as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// BATCH/JOB, or JOB alone.
pub(crate) fn split_job(text: &str) -> (String, String) {
    match text.split_once('/') {
        Some((batch, job)) => (batch.to_owned(), job.to_owned()),
        None => (String::new(), text.to_owned()),
    }
}

/// Runs the verb: 0 when nothing is left, 1 when something may be alive.
///
/// # Errors
/// [`Exit`]: 2 for jobs and batches that there are not, 3 without a coordinator.
pub fn run(args: &CancelArgs) -> Result<u8, Exit> {
    let jobs = args.jobs.iter().map(|text| {
        let (batch, job) = split_job(text);
        Selector::Job { batch, job }
    });
    let mut what: Vec<Selector> = args.batch.iter().cloned().map(Selector::Batch).chain(jobs).collect();
    if args.all {
        what.push(Selector::Mine);
    }
    let stop = Stop { signal: args.signal, grace: args.grace.unwrap_or(GRACE) };
    let pick = |said| match said {
        ToClient::Cancelled { request: 1, summary } => Some(Ok(summary)),
        ToClient::Refused { reason } => Some(Err(Exit::usage(reason))),
        _ => None,
    };
    // As long as it takes: the answer is the proof.
    let summary = converse(&args.profile, async |remote| remote.ask(ToService::Cancel { request: 1, what, stop }, pick).await?)?;
    let text = if args.json { json(&summary) } else { words(&summary) };
    std::io::stdout().write_all(text.as_bytes()).map_err(Exit::output)?;
    Ok(if summary.survivors + summary.unreachable > 0 { exit::FAILED } else { 0 })
}

fn json(s: &CancelSummary) -> String {
    let line = serde_json::json!({
        "jobs": s.jobs, "killed": s.killed, "survivors": s.survivors, "unreachable": s.unreachable,
        "fenced_for_seconds": s.fenced_for.as_secs(),
    });
    format!("{line}\n")
}

fn words(s: &CancelSummary) -> String {
    if s.jobs == 0 {
        return "nothing of it was waiting or running\n".into();
    }
    let (done, killed, alive) = (s.jobs - s.unreachable, s.killed, s.survivors);
    let mut text = format!(
        "{}; {} had to be killed, {}\n",
        counted(done, "job cancelled", "jobs cancelled"),
        counted(killed, "process", "processes"),
        counted(alive, "is alive", "are alive")
    );
    if s.survivors > 0 {
        text.push_str("what is alive does not die (`unkillable` in the results); its slots stay held\n");
    }
    if s.unreachable > 0 {
        let seconds = s.fenced_for.as_secs();
        text.push_str(&format!(
            "{} more are on hosts that cannot be reached: fenced, that is surely dead, in {seconds} s\n",
            s.unreachable
        ));
    }
    text
}
