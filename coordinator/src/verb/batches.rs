//! `coordinator batches` and `status`: the batches of a coordinator, in a table or as JSON lines.

use crate::client::ask;
use crate::client::names;
use crate::client::profile::ProfileArgs;
use crate::client::{Remote, converse};
use crate::exit::{self, Exit};
use crate::report::format::{ResultFormat, counted, show};
use crate::report::progress::others;
use crate::report::table::{span, table};
use clap_complete::ArgValueCompleter;
use mezcal_common::message::client::{BatchStatus, HostStatus, SetAside};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::for_terminal;
use std::collections::BTreeSet;
use std::time::Duration;

/// List batches, oldest first.
#[derive(Debug, clap::Args)]
pub struct BatchesArgs {
    /// Batches of all users (admins)
    #[arg(long)]
    pub all: bool,
    /// Only batches that have not ended
    #[arg(long)]
    pub running: bool,
    /// One JSON object per batch
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Show on one screen how the cluster, or one batch, is doing: an admin sees everybody's batches,
/// everybody else their own.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The id of a batch, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs `batches`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn run(args: &BatchesArgs) -> Result<u8, Exit> {
    let mut batches = converse(&args.profile, async |remote| {
        ask::batches(remote, args.all).await
    })?;
    batches.retain(|batch| !args.running || batch.done.is_none());
    let text = if args.json {
        batches.iter().map(|b| json(b).to_string() + "\n").collect()
    } else {
        listing(&batches)
    };
    show(&text)?;
    Ok(0)
}

/// Runs `status`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn status(args: &StatusArgs) -> Result<u8, Exit> {
    let ((batches, everybodys), hosts) = converse(&args.profile, async |remote| {
        // The hosts are shown for the whole cluster only.
        let hosts = if args.batch.is_none() {
            ask::hosts(remote).await?
        } else {
            Vec::new()
        };
        Ok((all_that_one_may_see(remote).await?, hosts))
    })?;
    let text = match &args.batch {
        Some(name) => {
            let found: Vec<&BatchStatus> = batches
                .iter()
                .filter(|b| b.id.to_string().starts_with(&name.to_ascii_lowercase()))
                .collect();
            let [batch] = found[..] else {
                return Err(Exit::usage(format!(
                    "{} batches{} begin with {name:?}; `coordinator batches{}` lists them",
                    found.len(),
                    if everybodys { "" } else { " of yours" },
                    if everybodys { " --all" } else { "" }
                )));
            };
            if args.json {
                json(batch).to_string() + "\n"
            } else {
                details(batch)
            }
        }
        None if args.json => summary_json(&batches, everybodys, &hosts).to_string() + "\n",
        None => summary(&batches, everybodys, &hosts),
    };
    show(&text)?;
    Ok(0)
}

/// Everybody's batches if the coordinator takes this user for an admin, else the user's own. The
/// flag is true for everybody's.
async fn all_that_one_may_see(remote: &mut Remote) -> Result<(Vec<BatchStatus>, bool), Exit> {
    match ask::batches(remote, true).await {
        Err(Exit {
            status: exit::USAGE,
            ..
        }) => Ok((ask::batches(remote, false).await?, false)),
        all => Ok((all?, true)),
    }
}

/// The state of a batch in one word.
fn state(batch: &BatchStatus) -> &'static str {
    match (
        batch.done.is_some(),
        batch.stopped.is_some(),
        batch.ended == batch.succeeded,
    ) {
        (true, true, _) => "stopped",
        (true, false, true) => "succeeded",
        (true, false, false) => "failed",
        (false, true, _) => "stopping",
        (false, false, _) if batch.placed > 0 => "running",
        (false, false, _) => "waiting",
    }
}

fn json(batch: &BatchStatus) -> serde_json::Value {
    let format = ResultFormat::new(false);
    let time = |at| format.time(at);
    serde_json::json!({
        "id": batch.id.to_string(), "user": batch.user, "name": batch.name, "state": state(batch), "detached": batch.detached,
        "stopped": batch.stopped, "opened": time(batch.opened), "done": batch.done.map(time), "jobs": batch.jobs,
        "running": batch.placed, "ended": batch.ended, "succeeded": batch.succeeded, "failed": batch.failed(),
        "cancelled": batch.aside.map(|aside| aside.cancelled), "skipped": batch.aside.map(|aside| aside.skipped),
    })
}

fn age(at: WallTime) -> String {
    span(Duration::from_secs_f64(
        WallTime::now().seconds_since(at).max(0.0),
    ))
}

fn listing(batches: &[BatchStatus]) -> String {
    let head = [
        "BATCH",
        "USER",
        "STATE",
        "JOBS",
        "RUNNING",
        "DONE",
        "FAILED",
        "CANCELLED",
        "SKIPPED",
        "AGE",
        "NAME",
    ];
    let row = |batch: &BatchStatus| {
        let aside = |count: fn(SetAside) -> u64| {
            batch
                .aside
                .map_or_else(|| "-".to_owned(), |aside| count(aside).to_string())
        };
        [
            batch.id.to_string(),
            batch.user.clone(),
            state(batch).to_owned(),
            batch.jobs.to_string(),
            batch.placed.to_string(),
            batch.succeeded.to_string(),
            batch.failed().to_string(),
            aside(|aside| aside.cancelled),
            aside(|aside| aside.skipped),
            age(batch.opened),
            batch.name.clone().unwrap_or_default(),
        ]
    };
    table(head, batches.iter().map(row), 3..10)
}

fn details(batch: &BatchStatus) -> String {
    let waiting = batch.jobs.saturating_sub(batch.ended + batch.placed);
    let percent = if batch.jobs == 0 {
        100.0
    } else {
        100.0 * batch.ended as f64 / batch.jobs as f64
    };
    let SetAside { cancelled, skipped } = batch.aside.unwrap_or_default();
    let mut text = format!("batch {} of {}: {}\n", batch.id, batch.user, state(batch));
    batch
        .name
        .iter()
        .for_each(|name| text.push_str(&format!("name: {}\n", for_terminal(name))));
    text.push_str(&format!(
        "{}: {} succeeded, {} failed{}, {} running, {waiting} waiting; {percent:.1} % ended\n",
        counted(batch.jobs, "job", "jobs"),
        batch.succeeded,
        batch.failed(),
        others([(cancelled, "cancelled"), (skipped, "skipped")]),
        batch.placed
    ));
    let attended = if batch.detached {
        "goes on without its client"
    } else {
        "ends with its client"
    };
    text.push_str(&format!(
        "opened {} ago; {attended}{}\n",
        age(batch.opened),
        if batch.open {
            "; more jobs may come"
        } else {
            ""
        }
    ));
    batch
        .done
        .iter()
        .for_each(|done| text.push_str(&format!("its last job ended {} ago\n", age(*done))));
    batch
        .stopped
        .iter()
        .for_each(|why| text.push_str(&format!("stopped: {}\n", for_terminal(why))));
    text
}

/// The sums of all batches and hosts.
struct Sums {
    connected: usize,
    slots: u64,
    busy: u64,
    running: Vec<BatchStatus>,
    users: usize,
    /// Jobs that run, and jobs that wait.
    jobs: (u64, u64),
}

fn sums(batches: &[BatchStatus], hosts: &[HostStatus]) -> Sums {
    let connected = hosts.iter().filter(|h| h.connected);
    let running: Vec<BatchStatus> = batches
        .iter()
        .filter(|b| b.done.is_none())
        .cloned()
        .collect();
    Sums {
        connected: connected.clone().count(),
        slots: connected.clone().map(|h| u64::from(h.slots)).sum(),
        busy: connected.map(|h| u64::from(h.busy)).sum(),
        users: running
            .iter()
            .map(|b| b.user.as_str())
            .collect::<BTreeSet<_>>()
            .len(),
        jobs: (
            running.iter().map(|b| b.placed).sum(),
            running
                .iter()
                .map(|b| b.jobs.saturating_sub(b.ended + b.placed))
                .sum(),
        ),
        running,
    }
}

fn summary_json(
    batches: &[BatchStatus],
    everybodys: bool,
    hosts: &[HostStatus],
) -> serde_json::Value {
    let Sums {
        connected,
        slots,
        busy,
        running,
        users,
        jobs: (jobs_running, waiting),
    } = sums(batches, hosts);
    serde_json::json!({
        "hosts": hosts.len(), "hosts_connected": connected, "slots": slots, "slots_busy": busy, "batches_running": running.len(),
        "everybody": everybodys, "users": users, "jobs_running": jobs_running, "jobs_waiting": waiting, "batches": running.iter().map(json).collect::<Vec<_>>(),
    })
}

fn summary(batches: &[BatchStatus], everybodys: bool, hosts: &[HostStatus]) -> String {
    let Sums {
        connected,
        slots,
        busy,
        running,
        users,
        jobs: (jobs_running, waiting),
    } = sums(batches, hosts);
    let mut text = format!(
        "{connected} of {} hosts are connected; {busy} of {slots} slots are busy\n",
        hosts.len()
    );
    for host in hosts.iter().filter(|h| h.connected) {
        if let Some(why) = &host.drained {
            text.push_str(&format!(
                "{} is being drained: {}\n",
                host.name,
                for_terminal(why)
            ));
        }
        if let Some((_, why)) = &host.quarantined {
            text.push_str(&format!(
                "{} is quarantined: {}\n",
                host.name,
                for_terminal(why)
            ));
        }
    }
    let whose = match everybodys {
        true => format!(
            "{} of {}",
            counted(running.len() as u64, "batch", "batches"),
            counted(users as u64, "user", "users")
        ),
        false => format!("{} of your batches", running.len()),
    };
    text.push_str(&format!(
        "{whose} have not ended; {jobs_running} of their jobs run, {waiting} wait\n"
    ));
    if !running.is_empty() {
        text.push('\n');
        text.push_str(&listing(&running));
    }
    text
}
