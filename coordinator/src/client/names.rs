//! Names on the command line: hosts, one by one or as ranges, batches and jobs; and their
//! completion with the names that the running coordinator knows.
//!
//! `source <(MEZCAL_COMPLETE=bash coordinator)` and its like for zsh and fish set it up. After any
//! failure there are no candidates.

use crate::client::profile::ProfileArgs;
use crate::client::{Remote, ask, converse_for};
use crate::exit::Exit;
use clap_complete::engine::CompletionCandidate;
use mezcal_common::message::client::{BatchStatus, Member};
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::hosts::short;
use std::ffi::OsStr;
use std::time::Duration;

/// Time for an answer: completion must not keep its user waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// Batches of the user, running ones first.
pub(crate) fn batches(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = known(async |remote| ask::batches(remote, false).await);
    let wanted = current.to_string_lossy().to_lowercase();
    let mut found: Vec<_> = found
        .into_iter()
        .filter(|batch| batch.id.to_string().starts_with(&wanted))
        .collect();
    found.sort_by_key(|batch| (batch.done.is_some(), std::cmp::Reverse(batch.opened)));
    let candidate = |batch: BatchStatus| {
        let help = format!(
            "{} of {} jobs ended {}",
            batch.ended,
            batch.jobs,
            batch.name.unwrap_or_default()
        );
        CompletionCandidate::new(batch.id.to_string())
            .help(Some(for_terminal(help.trim_end()).into_owned().into()))
    };
    found.into_iter().map(candidate).collect()
}

/// Hosts, by their short names where those are unique.
pub(crate) fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    let found: Vec<String> = known(ask::hosts)
        .into_iter()
        .map(|host| host.name)
        .collect();
    let wanted = current.to_string_lossy().to_lowercase();
    let shortest = |name: &String| {
        let stem = short(name).unwrap_or(name);
        let alone = found
            .iter()
            .filter(|other| short(other).unwrap_or(other) == stem)
            .count()
            == 1;
        if alone && !wanted.contains('.') {
            stem.to_owned()
        } else {
            name.clone()
        }
    };
    let names = found
        .iter()
        .map(shortest)
        .filter(|name| name.starts_with(&wanted));
    names.map(CompletionCandidate::new).collect()
}

/// Asks the coordinator that the completed line names. Empty without an answer in time.
fn known<T: Default>(talk: impl AsyncFnOnce(&mut Remote) -> Result<T, Exit>) -> T {
    // The words of the completed line come after `--`.
    let words: Vec<String> = std::env::args().skip_while(|word| word != "--").collect();
    let named = words
        .windows(2)
        .find(|pair| pair[0] == "-p" || pair[0] == "--profile")
        .map(|pair| pair[1].clone());
    let profile = named.or_else(|| std::env::var("MEZCAL_PROFILE").ok());
    converse_for(
        PATIENCE,
        &ProfileArgs {
            profile,
            identity: None,
        },
        talk,
    )
    .unwrap_or_default()
}

/// The hosts or users that a verb about members is given: their kind and their names.
pub(crate) fn members(host: &[String], user: &[String]) -> Result<(Member, Vec<String>), Exit> {
    if !user.is_empty() {
        return Ok((Member::User, user.to_vec()));
    }
    Ok((Member::Host, expand(host)?))
}

/// The kind of a member, as a word and as a key.
pub(crate) fn word(member: Member) -> &'static str {
    match member {
        Member::Host => "host",
        Member::User => "user",
    }
}

/// Expands ranges into single names.
pub(crate) fn expand(names: &[String]) -> Result<Vec<String>, Exit> {
    let expanded = names
        .iter()
        .map(|name| mezcal_common::model::hosts::expand(name))
        .collect::<Result<Vec<_>, _>>();
    expanded.map(|lists| lists.concat()).map_err(Exit::usage)
}

/// Splits `BATCH/JOB`; the batch is empty for JOB alone.
pub(crate) fn split_job(text: &str) -> (String, String) {
    match text.split_once('/') {
        Some((batch, job)) => (batch.to_owned(), job.to_owned()),
        None => (String::new(), text.to_owned()),
    }
}
