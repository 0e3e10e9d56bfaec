//! `coordinator cancel`: jobs or batches, here or on the other side of the room, with the proof.

use crate::client::ask;
use crate::client::context::GRACE;
use crate::client::names::{self, split_job};
use crate::client::profile::ProfileArgs;
use crate::client::{ReconnectArgs, Remote, converse};
use crate::exit::{self, Exit};
use crate::report::format::counted;
use clap_complete::ArgValueCompleter;
use mezcal_common::message::client::{
    BatchStatus, CancelSummary, CancelWait, SAYS_MORE, Selector, ToClient, ToService,
};
use mezcal_common::model::duration::{format_duration, parse_duration};
use mezcal_common::model::job::Stop;
use mezcal_common::model::signal;
use std::io::Write;
use std::time::Duration;
use tokio::time::{Instant, interval_at};

/// Our number for the cancel: each connection has only one.
const CANCEL: u64 = 1;
/// After this long without an answer the user hears which hosts the cancel waits for. It is longer
/// than the default grace and a kill take.
const SILENCE: Duration = Duration::from_secs(5);
/// The time between two such lines after that.
const REMINDER: Duration = Duration::from_secs(30);
/// The most hosts that are named one by one.
const MOST: usize = 10;

/// Kill jobs, and wait for the proof that no process of them is left.
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// BATCH/JOB: JOB is the job's `id` or number, BATCH the beginning of the batch's id;
    /// only JOB when you have one batch
    #[arg(value_name = "JOB", required_unless_present_any = ["batch", "all"], conflicts_with_all = ["batch", "all"])]
    pub jobs: Vec<String>,
    /// A whole batch
    #[arg(long, value_name = "BATCH", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "all", add = ArgValueCompleter::new(names::batches))]
    pub batch: Vec<String>,
    /// All your batches
    #[arg(long)]
    pub all: bool,
    /// Signal to send first: a name or a number
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal::parse)]
    pub signal: i32,
    /// KILL the processes that are left after this long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// The outcome as one JSON object
    #[arg(long)]
    pub json: bool,
    /// When the coordinator is lost meanwhile
    #[command(flatten)]
    pub reconnect: ReconnectArgs,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs the verb: 0 when no process is left, 1 when one may be alive.
///
/// # Errors
/// [`Exit`]: 2 for jobs and batches that do not exist, 3 without a coordinator.
pub fn run(args: &CancelArgs) -> Result<u8, Exit> {
    let jobs = args.jobs.iter().map(|text| {
        let (batch, job) = split_job(text);
        Selector::Job { batch, job }
    });
    let mut what: Vec<Selector> = args
        .batch
        .iter()
        .cloned()
        .map(Selector::Batch)
        .chain(jobs)
        .collect();
    if args.all {
        what.push(Selector::Mine);
    }
    let stop = Stop {
        signal: args.signal,
        grace: args.grace.unwrap_or(GRACE),
    };
    // Without a limit: the answer is the proof.
    let patience = args.reconnect.reconnect;
    let (summary, again) = converse(&args.profile, async |remote| {
        answered(remote, what, stop, patience).await
    })?;
    let text = if args.json {
        json(&summary, again)
    } else {
        words(&summary, again)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Exit::output)?;
    Ok(if summary.survivors + summary.unreachable > 0 {
        exit::FAILED
    } else {
        0
    })
}

/// The answer to a cancel, across restarts of the coordinator. The flag is true if there was a
/// restart; the counts then begin at the last one.
async fn answered(
    remote: &mut Remote,
    mut what: Vec<Selector>,
    stop: Stop,
    patience: Duration,
) -> Result<(CancelSummary, bool), Exit> {
    let by_id = by_id(remote, &what).await?;
    let mut again = false;
    loop {
        match answer(remote, what.clone(), stop).await {
            Some(Ok(summary)) => return Ok((summary, again)),
            Some(Err(reason)) if again => {
                let message = format!("the coordinator, now reached again, says: {reason}");
                return Err(Exit {
                    status: exit::FAILED,
                    message,
                });
            }
            Some(Err(reason)) => return Err(Exit::usage(reason)),
            None => {}
        }
        let why = remote.why_lost().await;
        if remote.is_lost_for_good() {
            return Err(Exit::unreachable(why));
        }
        let tried = format_duration(patience);
        tell!(
            "{why}; jobs that were cancelled stay cancelled; trying to reach it again for \
            {tried}"
        );
        if !remote.reach_again(patience).await {
            let message = format!(
                "{why}, and it was not reached again within {tried}; it carries out the part of \
                 the cancel that it has received"
            );
            return Err(Exit::unreachable(message));
        }
        tell!("connected to the coordinator at {} again", remote.address);
        (what, again) = (by_id.clone(), true);
    }
}

/// Selectors for the same jobs; they stay right when some jobs have ended or more have come.
async fn by_id(remote: &mut Remote, what: &[Selector]) -> Result<Vec<Selector>, Exit> {
    let open = |selector: &Selector| match selector {
        Selector::Mine => true,
        Selector::Job { batch, .. } | Selector::Number { batch, .. } => batch.is_empty(),
        Selector::Batch(_) => false,
    };
    if !what.iter().any(open) {
        return Ok(what.to_vec());
    }
    let own: Vec<BatchStatus> = match ask::batches(remote, false).await {
        Ok(all) => all
            .into_iter()
            .filter(|batch| batch.done.is_none())
            .collect(),
        // A coordinator that refuses the list keeps no batches, and no batch outlives it.
        Err(Exit {
            status: exit::USAGE,
            ..
        }) => return Ok(what.to_vec()),
        Err(lost) => return Err(lost),
    };
    let only = || {
        if let [only] = own.as_slice() {
            only.id.to_string()
        } else {
            String::new()
        }
    };
    let names = what.iter().flat_map(|selector| match selector {
        Selector::Mine => own
            .iter()
            .map(|batch| Selector::Batch(batch.id.to_string()))
            .collect(),
        Selector::Job { batch, job } if batch.is_empty() => vec![Selector::Job {
            batch: only(),
            job: job.clone(),
        }],
        Selector::Number { batch, job } if batch.is_empty() => vec![Selector::Number {
            batch: only(),
            job: *job,
        }],
        Selector::Batch(_) | Selector::Job { .. } | Selector::Number { .. } => {
            vec![selector.clone()]
        }
    });
    Ok(names.collect())
}

/// An answer or refusal; `None`: no connection. Names the hosts that the cancel waits for.
async fn answer(
    remote: &mut Remote,
    what: Vec<Selector>,
    stop: Stop,
) -> Option<Result<CancelSummary, String>> {
    // The loop below notices a lost connection as the end of the answers.
    let _ = remote
        .port
        .requests
        .send(ToService::Cancel {
            request: CANCEL,
            what,
            stop,
        })
        .await;
    let mut reminder = interval_at(Instant::now() + SILENCE, REMINDER);
    loop {
        tokio::select! {
            said = remote.port.answers.recv() => match said? {
                ToClient::Cancelled { request: CANCEL, summary } => return Some(Ok(summary)),
                ToClient::Refused { reason } => return Some(Err(reason)),
                ToClient::CancelWaits { request: CANCEL, hosts } if !hosts.is_empty() => tell!("{}", waits(&hosts)),
                _ => {}
            },
            _ = reminder.tick() => match remote.version {
                SAYS_MORE.. => drop(remote.port.requests.send(ToService::CancelWaits { request: CANCEL }).await),
                ..SAYS_MORE => tell!("waiting for the proof that nothing is left"),
            },
        }
    }
}

/// The hosts that a cancel waits for, in words.
fn waits(hosts: &[CancelWait]) -> String {
    let mut parts: Vec<String> = hosts.iter().take(MOST).map(|wait| {
        let CancelWait { host, attempts, fenced_for } = wait;
        let attempts = counted(*attempts, "attempt", "attempts");
        match fenced_for {
            None => format!("{attempts} on {host}, which is connected and has not said that they are dead (are its keeper and engines stopped?)"),
            Some(left) => format!("{attempts} on {host}, which is not connected: surely dead in {} s", left.as_secs()),
        }
    }).collect();
    if hosts.len() > MOST {
        let (more, attempts) = (
            hosts.len() - MOST,
            hosts
                .iter()
                .skip(MOST)
                .map(|wait| wait.attempts)
                .sum::<u64>(),
        );
        parts.push(format!(
            "{} on {more} more hosts",
            counted(attempts, "attempt", "attempts")
        ));
    }
    format!(
        "waiting for the proof that nothing is left of {}",
        parts.join("; ")
    )
}

fn json(s: &CancelSummary, again: bool) -> String {
    let line = serde_json::json!({
        "jobs": s.jobs, "killed": s.killed, "survivors": s.survivors, "unreachable": s.unreachable,
        "fenced_for_seconds": s.fenced_for.as_secs(), "reconnected": again,
    });
    format!("{line}\n")
}

fn words(s: &CancelSummary, again: bool) -> String {
    if s.jobs + s.survivors == 0 {
        return match again {
            true => "nothing of it is waiting or running any more\n".into(),
            false => "nothing of it was waiting or running\n".into(),
        };
    }
    let (done, killed, alive) = (s.jobs - s.unreachable, s.killed, s.survivors);
    let mut text = format!(
        "{}{}; {} had to be killed, {}\n",
        counted(done, "job cancelled", "jobs cancelled"),
        if again {
            " since the coordinator was reached again"
        } else {
            ""
        },
        counted(killed, "process", "processes"),
        counted(alive, "is alive", "are alive")
    );
    if s.survivors > 0 {
        text.push_str(
            "processes that are alive cannot be killed (`unkillable` in the results); their slots \
             stay held\n",
        );
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
