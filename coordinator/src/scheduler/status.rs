//! Queries about hosts and the jobs that they run; nothing here changes anything.

use super::{Host, Scheduler, quarantine};
use mezcal_common::message::client::HostStatus;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, EngineId, JobKey, SessionId};
use std::collections::HashMap;
use std::time::Duration;

/// Facts about a host beside its status, without those about certificates.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its full name.
    pub name: String,
    /// Whether its agent has connected in this life of ours.
    pub seen: bool,
    /// Versions of its engines, and how many engines have each.
    pub engines: Vec<(String, u16)>,
}

impl Scheduler {
    /// The jobs that are known to run: hosts with the number of their first engine, and each engine
    /// with its job.
    pub fn running(
        &self,
    ) -> impl Iterator<Item = (&str, EngineId, impl Iterator<Item = (u16, JobKey)>)> {
        self.hosts.values().map(|host| {
            let on = host
                .attempts
                .iter()
                .filter_map(|(attempt, on)| Some((on.engine?, attempt.key)));
            (&*host.name, host.first_engine, on)
        })
    }

    /// How many jobs of each batch run: of a host's jobs, no more than its slots take. The rest was
    /// sent in advance.
    pub fn running_by_batch(&self) -> HashMap<BatchSerial, u64> {
        let mut running = HashMap::new();
        for host in self.hosts.values() {
            let mut free = u64::from(host.slots());
            let (started, waiting): (Vec<_>, Vec<_>) =
                host.attempts.iter().partition(|(_, on)| on.started);
            for (attempt, on) in started.into_iter().chain(waiting) {
                let Some(left) = free.checked_sub(u64::from(on.slots)) else {
                    continue;
                };
                free = left;
                *running.entry(attempt.key.batch).or_default() += 1;
            }
        }
        running
    }

    /// How many attempts may be on a host, and for how long if it is not heard from any more.
    pub fn attempts_on(&self, host: &str, now: BootInstant) -> (u64, Duration) {
        let Some(host) = self.hosts.get(host) else {
            return (0, Duration::ZERO);
        };
        (
            host.attempts.len() as u64,
            self.fenced_for(host, now).unwrap_or_default(),
        )
    }

    /// The session of a host's connected agent.
    pub fn session_of(&self, host: &str) -> Option<SessionId> {
        self.hosts.get(host)?.session
    }

    /// Whether a host's agent is connected and has said what runs there.
    pub fn is_ready(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(Host::is_known)
    }

    /// All known hosts, for `coordinator hosts`. `datagram`: the largest datagram that has reached
    /// the agent of a connected host, which the caller measures.
    pub fn host_status(
        &self,
        now: BootInstant,
        datagram: impl Fn(&str) -> Option<u16>,
    ) -> Vec<HostStatus> {
        self.hosts
            .in_order()
            .into_iter()
            .map(|h| HostStatus {
                name: h.name.to_string(),
                connected: h.session.is_some(),
                ready: h.is_known() && h.slots() > 0,
                slots: h.hello().slots,
                first_engine: h.first_engine,
                busy: h.attempts.slots().min(u64::from(h.hello().slots)) as u16,
                cpus: h.hello().cpus,
                memory: h.hello().memory,
                load: h.load,
                program: h.hello().program.clone(),
                since: now.since(h.since),
                clock_offset: h.clock_offset,
                datagram: h.session.and_then(|_| datagram(&h.name)),
                containment: h.containment,
                drained: h.drain.reason().map(ToString::to_string),
                quarantined: h
                    .failures
                    .until
                    .map(|until| (until.since(now), quarantine::REASON.to_owned())),
            })
            .collect()
    }

    /// The other facts about the same hosts.
    pub fn standings(&self) -> Vec<Standing> {
        let standing = |host: &Host| Standing {
            name: host.name.to_string(),
            seen: host.seen,
            engines: host.engines.clone(),
        };
        self.hosts.in_order().into_iter().map(standing).collect()
    }
}
