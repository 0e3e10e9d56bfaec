//! Completion of names on the command line: batches and hosts, as the running coordinator knows
//! them.
//!
//! `source <(MEZCAL_COMPLETE=bash coordinator)` and its like for zsh and fish set it up. Whatever
//! goes wrong, there are no candidates.

use crate::client::profile::ProfileArgs;
use crate::client::{Remote, converse_for};
use crate::exit::Exit;
use clap_complete::engine::CompletionCandidate;
use mezcal_common::message::client::BatchStatus;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::hosts::short;
use std::ffi::OsStr;
use std::time::Duration;

/// Nobody waits longer for a list.
const PATIENCE: Duration = Duration::from_secs(1);

/// Batches of the user, those that run first.
pub fn batches(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = ask(async |remote| crate::verb::batches::ask(remote, false).await);
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

/// Hosts by their short names where that is enough.
pub fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    let found: Vec<String> = ask(crate::verb::hosts::ask)
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

/// Asks the coordinator of the line that is being completed. Nothing if it does not answer soon.
fn ask<T: Default>(talk: impl AsyncFnOnce(&mut Remote) -> Result<T, Exit>) -> T {
    // The words of that line come after `--`.
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
