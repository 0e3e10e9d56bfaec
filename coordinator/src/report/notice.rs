//! The coordinator's notices, in words.

use crate::report::format::{counted, elapsed};
use mezcal_common::message::client::{HaltWhy, Notice};
use std::time::Duration;

/// A notice as one text.
pub(crate) fn describe(notice: &Notice) -> String {
    match notice {
        Notice::HostsAbsent { hosts, jobs, after } => format!(
            "{} for a host that is not connected: {hosts}; they end as errors after {}",
            counted(*jobs, "job waits", "jobs wait"),
            elapsed(*after)
        ),
        Notice::TooWide { slots, jobs, after } => format!(
            "{} {slots} slots, and no connected host has so many for them; they end as errors after \
             {}",
            counted(*jobs, "job takes", "jobs take"),
            elapsed(*after)
        ),
        Notice::Unserved { user, jobs, after } => format!(
            "{} for a host that runs jobs of {user} (root enables mezcal-engines@{user}.service \
             there); they end as errors after {}",
            counted(*jobs, "job waits", "jobs wait"),
            elapsed(*after)
        ),
        Notice::Ambiguous {
            names,
            hosts,
            jobs,
            after,
        } => format!(
            "{} for {names}, which may be any of {hosts}: write the full name; they end as errors \
             after {}",
            counted(*jobs, "job waits", "jobs wait"),
            elapsed(*after)
        ),
        Notice::StoreTrouble { why: Some(why) } => format!(
            "the coordinator's store cannot be written ({why}): running jobs go on; results and new \
             jobs wait until it can be written"
        ),
        Notice::StoreTrouble { why: None } => "the coordinator's store can be written again".into(),
        Notice::AgentLost {
            host,
            jobs,
            fenced_for,
        } => format!(
            "lost the agent of {host} with {}; unless it comes back, they are given up there in {}",
            counted(*jobs, "job", "jobs"),
            elapsed(Duration::from_secs(fenced_for.as_secs()))
        ),
        Notice::Quarantined {
            host,
            length: Duration::ZERO,
            reason,
        } => format!("{host} is suspected: {reason}"),
        Notice::Quarantined {
            host,
            length,
            reason,
        } => {
            format!("{host} gets no jobs for {} s: {reason}", length.as_secs())
        }
        Notice::Halted { why, count } => {
            let what = match why {
                HaltWhy::Fail => "failed",
                HaltWhy::Success => "succeeded",
                HaltWhy::Done => "ended",
            };
            format!(
                "{} {what}: no more jobs of the batch start (--halt)",
                counted(*count, "job has", "jobs have")
            )
        }
    }
}
