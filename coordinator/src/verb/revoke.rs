//! `coordinator revoke`: ends the membership of hosts and users.

use crate::client::ask::{self};
use crate::client::names::{members, word};
use crate::client::profile::ProfileArgs;
use crate::exit::{self, Exit};
use crate::report::format::counted;
use crate::report::table::{show_lines, time};
use crate::service::REVOKED_AT_ONCE;
use mezcal_common::message::client::{CancelSummary, Member, RevokedMember, ToClient, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::escape::for_terminal;
use std::fmt::Write as _;
use std::time::Duration;

/// Revoke all certificates of hosts or users: their connections end at once, and the batches of
/// users are cancelled.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// Hosts, as names or ranges
    #[arg(value_name = "HOST", required_unless_present = "user")]
    pub hosts: Vec<String>,
    /// Users instead of hosts
    #[arg(long, value_name = "NAME", conflicts_with = "hosts")]
    pub user: Vec<String>,
    /// Let the user's batches go on
    #[arg(long, requires = "user")]
    pub keep_batches: bool,
    /// Revoke even if no admin with a valid certificate would be left
    #[arg(long)]
    pub force: bool,
    /// One JSON object per host or user
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs `revoke`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn run(args: &RevokeArgs) -> Result<u8, Exit> {
    let (member, names) = members(&args.hosts, &args.user)?;
    let (keep_batches, force) = (args.keep_batches, args.force);
    let mut revoked = Vec::new();
    for names in names.chunks(REVOKED_AT_ONCE) {
        let request = ToService::RevokeMembers {
            request: 1,
            member,
            names: names.to_vec(),
            keep_batches,
            force,
        };
        let members = ask::once(&args.profile, request, |said| match said {
            ToClient::Revoked { members, .. } => Some(members),
            _ => None,
        });
        revoked.extend(members?.map_err(Exit::usage)?);
    }
    let (failed, ended): (Vec<_>, Vec<_>) = revoked
        .into_iter()
        .partition(|row: &RevokedMember| row.failed.is_some());
    let now = WallTime::now();
    show_lines(ended.iter().map(|row| match args.json {
        true => revoked_json(member, row),
        false => revoked_in_words(member, row, args.keep_batches, now),
    }))?;
    if !failed.is_empty() {
        let reasons: Vec<String> = failed.into_iter().filter_map(|row| row.failed).collect();
        return Err(Exit::usage(reasons.join("\n")));
    }
    let alive = ended
        .iter()
        .any(|row| row.cancel.survivors > 0 || row.cancel.unreachable > 0);
    Ok(if alive { exit::FAILED } else { 0 })
}

fn revoked_json(member: Member, row: &RevokedMember) -> String {
    serde_json::json!({
        word(member): row.name, "certificates": row.certificates, "tokens": row.tokens, "revoked_before": row.before.map(time),
        "connections": row.connections, "batches": row.batches, "running": row.running, "waiting": row.waiting, "killed": row.cancel.killed,
        "survivors": row.cancel.survivors, "unreachable": row.cancel.unreachable, "fenced_seconds": row.cancel.fenced_for.as_secs(),
        "held": row.held, "held_seconds": row.held_for.as_secs(),
    })
    .to_string()
}

fn revoked_in_words(member: Member, row: &RevokedMember, kept: bool, now: WallTime) -> String {
    let name = for_terminal(&row.name);
    let mut parts = Vec::new();
    match (row.certificates, row.before) {
        (0, Some(before)) => parts.push(format!("was revoked already, at {}", time(before))),
        (0, None) => parts.push("it had no certificate".to_owned()),
        (count, _) => parts.push(counted(
            count,
            "certificate was revoked",
            "certificates were revoked",
        )),
    }
    if row.tokens > 0 {
        parts.push(counted(
            row.tokens,
            "join token is void",
            "join tokens are void",
        ));
    }
    if row.connections > 0 {
        parts.push(counted(
            row.connections,
            "connection has ended",
            "connections have ended",
        ));
    }
    let jobs = format!("{} on hosts and {} waiting", row.running, row.waiting);
    match (row.batches, kept) {
        (0, _) => {}
        (batches, true) => parts.push(format!(
            "{} ({jobs})",
            counted(batches, "batch goes on", "batches go on")
        )),
        (batches, false) => {
            let CancelSummary {
                killed,
                survivors,
                unreachable,
                fenced_for,
                ..
            } = row.cancel;
            let batches = counted(batches, "batch was cancelled", "batches were cancelled");
            let mut text =
                format!("{batches}: jobs {jobs}, {killed} processes killed, {survivors} alive");
            if unreachable > 0 {
                let span = format_duration(Duration::from_secs(fenced_for.as_secs()));
                let _ = write!(
                    text,
                    "; {} out of reach and may go on for {span}",
                    counted(unreachable, "is", "are")
                );
            }
            parts.push(text);
        }
    }
    if row.held > 0 {
        let until = WallTime(
            now.0
                .saturating_add(row.held_for.as_micros().min(i64::MAX as u128) as i64),
        );
        parts.push(format!(
            "{} until {}, when its lease is surely over; then their jobs run elsewhere, or after `coordinator confirm-dead {name}`",
            counted(row.held, "attempt may run there", "attempts may run there"),
            time(until)
        ));
    }
    format!("{} {name}: {}", word(member), parts.join("; "))
}
