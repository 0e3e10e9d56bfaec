//! `coordinator hosts`: the hosts that a running coordinator knows.

use crate::client::ask::{self, Standings, Unserved, others};
use crate::client::converse;
use crate::client::profile::ProfileArgs;
use crate::exit::Exit;
use crate::report::format::show;
use crate::report::table::{gib, span, table, time};
use mezcal_common::message::client::{FailingHost, HostStatus};
use mezcal_common::model::clock::WallTime;

/// Show the hosts of a running coordinator.
#[derive(Debug, clap::Args)]
pub struct HostsArgs {
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// One JSON object per host
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Exit 2 without a profile, 3 without a coordinator.
pub fn run(args: &HostsArgs) -> Result<u8, Exit> {
    let (hosts, beside) = converse(&args.profile, async |remote| {
        let hosts = ask::hosts(remote).await?;
        let (unserved, standings) = (ask::unserved(remote).await?, ask::standings(remote).await?);
        Ok((
            hosts,
            Beside {
                unserved,
                standings,
                failing: ask::failing(remote).await?,
            },
        ))
    })?;
    let text = if args.json {
        json(&hosts, &beside)
    } else {
        host_table(&hosts, &beside)
    };
    show(&text)?;
    Ok(0)
}

/// Facts about hosts that their status does not have.
struct Beside {
    unserved: Vec<Unserved>,
    standings: Standings,
    failing: Vec<FailingHost>,
}

impl Beside {
    fn unserved<'a>(&'a self, host: &HostStatus) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.unserved
            .iter()
            .filter(|(name, ..)| *name == host.name)
            .map(|(_, user, why)| (user.as_str(), why.as_str()))
    }

    fn failing(&self, host: &HostStatus) -> Option<&FailingHost> {
        self.failing
            .iter()
            .find(|failing| failing.name == host.name)
    }

    /// A coordinator of an earlier version does not report it; then the host's status decides.
    fn is_unseen(&self, host: &HostStatus) -> bool {
        self.standings
            .get(&host.name)
            .is_some_and(|standing| !standing.seen)
    }

    fn engines(&self, host: &HostStatus) -> &[(String, u16)] {
        self.standings
            .get(&host.name)
            .map_or(&[], |standing| &standing.engines)
    }

    fn revoked(&self, host: &HostStatus) -> Option<WallTime> {
        self.standings
            .get(&host.name)
            .and_then(|standing| standing.revoked)
    }
}

fn json(hosts: &[HostStatus], beside: &Beside) -> String {
    let lines = hosts.iter().map(|h| {
        let unserved: Vec<_> =
            beside.unserved(h).map(|(user, why)| serde_json::json!({"user": user, "why": why})).collect();
        serde_json::json!({
            "name": h.name, "connected": h.connected, "ready": h.ready, "slots": h.slots, "first_engine": h.first_engine.0, "busy": h.busy, "cpus": h.cpus,
            "load": h.load.one_minute, "memory_bytes": h.memory, "memory_available_bytes": h.load.available,
            "version": h.program, "since_seconds": h.since.as_secs(), "clock_offset": h.clock_offset,
            "datagram_bytes": h.datagram,
            "containment": h.containment.as_str(), "drained": h.drained,
            "quarantined_seconds": h.quarantined.as_ref().map(|(left, _)| left.as_secs()),
            "quarantine_reason": h.quarantined.as_ref().map(|(_, reason)| reason),
            "unserved": unserved,
            "engines": engines(beside.engines(h)),
            "failing": beside.failing(h).map(|failing| &failing.why),
            "seen": !beside.is_unseen(h), "revoked": beside.revoked(h).map(time),
        })
        .to_string()
            + "\n"
    });
    lines.collect()
}

fn engines(versions: &[(String, u16)]) -> Vec<serde_json::Value> {
    let known = |version: &String| Some(version.clone()).filter(|version| !version.is_empty());
    versions
        .iter()
        .map(|(version, count)| serde_json::json!({"version": known(version), "count": count}))
        .collect()
}

/// The version of a host's agent, and the versions of its engines that differ from it.
fn versions(host: &HostStatus, engines: &[(String, u16)]) -> String {
    let others: Vec<&str> = others(host, engines)
        .map(|version| if version.is_empty() { "older" } else { version })
        .collect();
    if others.is_empty() {
        host.program.clone()
    } else {
        format!("{} (engines {})", host.program, others.join(", "))
    }
}

fn host_table(hosts: &[HostStatus], beside: &Beside) -> String {
    let head = [
        "HOST",
        "SLOTS",
        "BUSY",
        "LOAD",
        "MEMORY",
        "FREE",
        "CONTAINMENT",
        "VERSION",
        "CONNECTED",
    ];
    let rows = hosts.iter().map(|h| {
        let unseen = beside.is_unseen(h);
        let known = |text: String| if unseen { "-".to_owned() } else { text };
        let mut state = match (h.connected, h.ready) {
            (true, true) => span(h.since),
            (true, false) => format!("not ready {}", span(h.since)),
            (false, _) if unseen => format!(
                "lost, not seen since the coordinator started, {} ago",
                span(h.since)
            ),
            (false, _) => format!("lost {}", span(h.since)),
        };
        if let Some(at) = beside.revoked(h) {
            state = format!("revoked {}; {state}", time(at));
        }
        if let Some(why) = &h.drained {
            state.push_str(&format!("; drained: {why}"));
        }
        if let Some((left, reason)) = &h.quarantined {
            state.push_str(&format!("; quarantined for {}: {reason}", span(*left)));
        }
        if let Some(failing) = beside.failing(h) {
            state.push_str(&format!("; failing: {}", failing.why));
        }
        beside
            .unserved(h)
            .for_each(|(user, why)| state.push_str(&format!("; not {user}: {why}")));
        [
            h.name.clone(),
            h.slots.to_string(),
            h.busy.to_string(),
            known(format!("{:.2}", h.load.one_minute)),
            known(gib(h.memory)),
            known(gib(h.load.available)),
            known(h.containment.as_str().to_owned()),
            known(versions(h, beside.engines(h))),
            state,
        ]
    });
    table(head, rows, 1..6)
}
