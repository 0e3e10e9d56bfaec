//! `coordinator hosts`: the hosts that a running coordinator knows.

use crate::client::profile::ProfileArgs;
use crate::client::{Remote, converse};
use crate::exit::Exit;
use crate::report::format::show;
use crate::verb::members::time;
use mezcal_common::message::client::{
    FailingHost, HostStanding, HostStatus, SAYS_FAILING, STANDINGS, ToClient, ToService, UNSERVED,
};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::for_terminal;
use std::collections::HashMap;
use std::time::Duration;

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

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the verb.
///
/// # Errors
/// Exit 2 without a profile, 3 without a coordinator.
pub fn run(args: &HostsArgs) -> Result<u8, Exit> {
    let (hosts, beside) = converse(&args.profile, async |remote| {
        let hosts = ask(remote).await?;
        let (unserved, standings) = (ask_unserved(remote).await?, ask_standings(remote).await?);
        Ok((
            hosts,
            Beside {
                unserved,
                standings,
                failing: ask_failing(remote).await?,
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

/// Asks for the hosts, passing over whatever else is said.
pub(crate) async fn ask(remote: &mut Remote) -> Result<Vec<HostStatus>, Exit> {
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Hosts(hosts) => Some((hosts, false)),
        ToClient::HostsPage { hosts, more } => Some((hosts, more)),
        _ => None,
    };
    let asking = async {
        let (mut hosts, mut more) = remote.ask(ToService::Hosts, pick).await?;
        while more {
            let next;
            (next, more) = remote.next(pick).await?;
            hosts.extend(next);
        }
        Ok(hosts)
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or(Err(silent))
}

/// A host, a user whose jobs it does not run at present, and why.
type Unserved = (String, String, String);

/// Asks whom hosts do not serve. A coordinator of an earlier version does not know.
async fn ask_unserved(remote: &mut Remote) -> Result<Vec<Unserved>, Exit> {
    if remote.version < UNSERVED {
        return Ok(Vec::new());
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Unserved { users, .. } => Some(users),
        _ => None,
    };
    tokio::time::timeout(
        PATIENCE,
        remote.ask(ToService::Unserved { request: 0 }, pick),
    )
    .await
    .unwrap_or(Err(silent))
}

/// Asks which hosts were revoked or have not been seen, by name. A coordinator of an earlier
/// version does not know.
pub(crate) async fn ask_standings(remote: &mut Remote) -> Result<Standings, Exit> {
    let mut all = Standings::new();
    if remote.version < STANDINGS {
        return Ok(all);
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Standings { hosts, more, .. } => Some((hosts, more)),
        _ => None,
    };
    let asking = async {
        let (mut hosts, mut more) = remote
            .ask(ToService::Standings { request: 0 }, pick)
            .await?;
        loop {
            all.extend(
                hosts
                    .map_err(Exit::unreachable)?
                    .into_iter()
                    .map(|host| (host.name.clone(), host)),
            );
            if !more {
                return Ok(all);
            }
            (hosts, more) = remote.next(pick).await?;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or(Err(silent))
}

/// Asks which hosts have engines that do not start. A coordinator of an earlier version does not
/// know.
pub(crate) async fn ask_failing(remote: &mut Remote) -> Result<Vec<FailingHost>, Exit> {
    if remote.version < SAYS_FAILING {
        return Ok(Vec::new());
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Failing { hosts, .. } => Some(hosts),
        _ => None,
    };
    tokio::time::timeout(
        PATIENCE,
        remote.ask(ToService::Failing { request: 0 }, pick),
    )
    .await
    .unwrap_or(Err(silent))
}

/// What is known of hosts beside their status, by their names.
pub(crate) type Standings = HashMap<String, HostStanding>;

/// What is said of hosts beside their status.
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

    /// A coordinator of an earlier version does not say it: then what it says of the host counts.
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

/// Versions of engines that are not their agent's: empty where one is too old to say.
pub(crate) fn others<'a>(
    host: &'a HostStatus,
    engines: &'a [(String, u16)],
) -> impl Iterator<Item = &'a str> {
    engines
        .iter()
        .map(|(version, _)| version.as_str())
        .filter(|version| *version != host.program)
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

/// The version of a host's agent, and those of its engines that are of another one.
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
    ]
    .map(String::from);
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

/// Rows below a head; those in `right` are numbers.
pub(crate) fn table<const N: usize>(
    head: [String; N],
    rows: impl Iterator<Item = [String; N]>,
    right: std::ops::Range<usize>,
) -> String {
    // Names, versions and reasons are what others have said.
    let safe = |row: [String; N]| row.map(|cell| for_terminal(&cell).into_owned());
    let rows: Vec<[String; N]> = std::iter::once(head).chain(rows).map(safe).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(i, cell)| {
                if right.contains(&i) {
                    format!("{cell:>0$}", widths[i])
                } else {
                    format!("{cell:<0$}", widths[i])
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn gib(bytes: u64) -> String {
    format!("{:.1}G", bytes as f64 / f64::from(1 << 30))
}

pub(crate) fn span(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}
