//! The visible state of a running service: its counters, and a picture of the moment with the
//! newest ends for the dashboard.

use super::batch::Batch;
use super::counters::{Host, Present};
use super::durable::Durable;
use super::state::Service;
use super::view::{BatchView, HostView, Running, View};
use crate::scheduler::Scheduler;
use mezcal_common::message::client::HostStatus;
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::identity;
use mezcal_common::model::ids::{BatchId, BatchSerial};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Batches in the picture: the running ones, and so many of the others.
const ENDED_BATCHES: usize = 20;
const BATCHES: usize = 200;

impl Service {
    /// The picture of the moment, with ends after number `since`.
    pub(super) fn view(&self, since: u64) -> Option<View> {
        let observed = self.observed.as_ref()?;
        let (recent, seq) = observed.recent(since);
        let sum = |count: fn(&Batch) -> u64| self.batches.iter().map(|(_, b)| count(b)).sum();
        Some(View {
            now: WallTime::now().0 / 1000,
            version: mezcal_common::VERSION,
            hosts: self.host_views(),
            batches: self.batch_views(),
            ended: sum(Batch::results),
            failed: sum(failed_of),
            cancelled: sum(|batch| batch.aside().cancelled),
            skipped: sum(|batch| batch.aside().skipped),
            recent,
            seq,
            failing: observed.failing(),
            trouble: self.trouble(),
        })
    }

    fn host_views(&self) -> Vec<HostView> {
        let mut running = self.running_by_host();
        let failing: HashMap<String, String> = self
            .scheduler
            .failing_hosts()
            .into_iter()
            .map(|host| (host.name, host.why))
            .collect();
        let view = |host: HostStatus| {
            let mut engines: Vec<Option<Running>> = (0..host.slots).map(|_| None).collect();
            for (engine, on) in running.remove(&*host.name).into_iter().flatten() {
                if let Some(slot) = engines.get_mut(usize::from(engine)) {
                    *slot = Some(on);
                }
            }
            let (state, why) = state_of(&host, failing.get(&host.name));
            HostView {
                name: host.name,
                state,
                why,
                first_engine: host.first_engine.0,
                busy: host.busy,
                load: host.load.one_minute,
                engines,
            }
        };
        let hosts = self.scheduler.host_status(BootInstant::now(), |_| None);
        hosts.into_iter().map(view).collect()
    }

    fn batch_views(&self) -> Vec<BatchView> {
        let mut batches: Vec<(&BatchId, &Batch)> = self.batches.iter().collect();
        batches.sort_by_key(|(_, batch)| (batch.is_done(), Reverse(batch.serial())));
        let open = batches.iter().filter(|(_, batch)| !batch.is_done()).count();
        let running = self.scheduler.running_by_batch();
        let view = |(id, batch): (&BatchId, &Batch)| BatchView {
            id: *id,
            user: batch.owner().to_owned(),
            name: batch.name().cloned(),
            jobs: jobs_of(&self.scheduler, id, batch),
            running: running.get(&batch.serial()).copied().unwrap_or(0),
            ended: batch.results(),
            failed: failed_of(batch),
            cancelled: batch.aside().cancelled,
            skipped: batch.aside().skipped,
            done: batch.is_done(),
        };
        let shown = open.min(BATCHES) + ENDED_BATCHES;
        batches.into_iter().take(shown).map(view).collect()
    }

    /// The jobs that are known to run, by host.
    fn running_by_host(&self) -> HashMap<&str, Vec<(u16, Running)>> {
        let live = self.batches.iter().filter(|(_, batch)| !batch.is_done());
        let ids: BTreeMap<BatchSerial, BatchId> = live.map(|(id, b)| (b.serial(), *id)).collect();
        let hosts = self.scheduler.running().map(|(host, _, on)| {
            let known = on.filter_map(|(engine, key)| {
                let (batch, job) = (*ids.get(&key.batch)?, key.job);
                Some((engine, Running { batch, job }))
            });
            (host, known.collect())
        });
        hosts.collect()
    }

    /// All numbers in Prometheus' text format.
    pub(super) fn metrics(&self) -> Option<String> {
        let observed = self.observed.as_ref()?;
        let hosts = self.scheduler.host_status(BootInstant::now(), |_| None);
        let live = || self.batches.iter().filter(|(_, batch)| !batch.is_done());
        let running: u64 = self.scheduler.running_by_batch().values().sum();
        let open: u64 = live()
            .map(|(id, batch)| jobs_of(&self.scheduler, id, batch).saturating_sub(batch.results()))
            .sum();
        let (agents, engines) = self.scheduler.fleet();
        let ready = hosts.iter().filter(|host| host.ready);
        let busy: i64 = ready.map(|host| i64::from(host.busy)).sum();
        let unfinished = live().count();
        let host = |host: HostStatus| Host {
            state: state_of(&host, None).0,
            name: host.name,
            clock_offset: host.clock_offset,
        };
        observed.counters().text(&Present {
            agents,
            slots: [busy, i64::from(engines) - busy],
            jobs: [running, open.saturating_sub(running)],
            batches: [unfinished, self.batches.len() - unfinished],
            hosts: hosts.into_iter().map(host).collect(),
            expiries: self.expiries(),
            unsaved: self.durable.as_ref().map_or(0, Durable::unsaved),
            writable: self.trouble().is_none(),
        })
    }

    /// When the certificates in use end: the holder's role, its host, and the second.
    fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        let own = self.certificate_until;
        let own = own.map(|until| ("coordinator", String::new(), until));
        let enrolment = self.enrolment.as_ref();
        let issuer = enrolment.and_then(|enrolment| enrolment.issuer_until());
        let issuer = issuer.map(|until| ("issuer", String::new(), until));
        let agents = self.agents.values().filter_map(|link| {
            let (_, until) = identity::validity(link.peer.certificate()).ok()?;
            Some(("agent", link.peer.identity().name.clone(), until))
        });
        own.into_iter().chain(issuer).chain(agents).collect()
    }
}

/// Number of results that are not a success, without the cancelled and skipped ones.
fn failed_of(batch: &Batch) -> u64 {
    batch.failed() - batch.aside().cancelled - batch.aside().skipped
}

fn jobs_of(scheduler: &Scheduler, id: &BatchId, batch: &Batch) -> u64 {
    scheduler
        .batch_so_far(*id)
        .map_or(batch.results(), |(_, _, jobs, _)| jobs)
}

fn state_of(host: &HostStatus, failing: Option<&String>) -> (&'static str, Option<String>) {
    match host {
        _ if !host.connected => ("lost", None),
        _ if host.drained.is_some() => ("drained", host.drained.clone()),
        _ if host.quarantined.is_some() => (
            "quarantined",
            host.quarantined.as_ref().map(|(_, why)| why.clone()),
        ),
        _ if !host.ready => ("not_ready", failing.cloned()),
        _ if failing.is_some() => ("ready", failing.map(|why| format!("failing: {why}"))),
        _ => ("ready", None),
    }
}
