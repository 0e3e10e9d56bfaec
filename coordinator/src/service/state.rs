//! The state of the service, and its messages to the clients of batches.

use super::arrivals::Arrivals;
use super::batches::Batches;
use super::durable::Durable;
use super::enrol::Enrolment;
use super::input::Input;
use super::observed::Observed;
use super::peers::{AgentConnection, Asked, Client, ClientId, Follow};
use super::reading::Reading;
use super::revocations::Revocations;
use super::settings::Settings;
use crate::scheduler::{Event, Scheduler, Wanted};
use mezcal_common::message::client::ToClient;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchId, SessionId};
use mezcal_common::model::job::Stop;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Grace for the jobs of a client that is gone, and of a coordinator without a store that stops.
const GONE_GRACE: Duration = Duration::from_secs(2);

pub(super) struct Service {
    pub(super) scheduler: Scheduler,
    pub(super) durable: Option<Durable>,
    pub(super) agents: HashMap<SessionId, AgentConnection>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) batches: Batches,
    pub(super) admins: Vec<String>,
    pub(super) certificate_until: Option<i64>,
    pub(super) enrolment: Option<Arc<Enrolment>>,
    /// Requests that wait for an answer, by the scheduler's number.
    pub(super) asked: HashMap<u64, Asked>,
    pub(super) next_request: u64,
    /// Batches that were made of ended ones, until they are safe: the client that asked, the number
    /// of its request, and the number of jobs.
    pub(super) retried: HashMap<BatchId, (ClientId, u64, u64)>,
    /// Reads that are under way, and for which clients.
    pub(super) readings: BTreeMap<Reading, Vec<ClientId>>,
    /// Requests to follow batches that are on their way to the store.
    pub(super) too_early: Vec<Follow>,
    pub(super) revocations: Revocations,
    pub(super) arrivals: Arrivals,
    pub(super) stopping: bool,
    /// The way back to the loop for reads beside it; does not keep the loop alive.
    pub(super) inputs: mpsc::WeakSender<Input>,
    pub(super) idle: watch::Sender<bool>,
    /// Data for the dashboard and the metrics, if they are served.
    pub(super) observed: Option<Observed>,
}

impl Service {
    pub(super) fn new(
        scheduler: Scheduler,
        durable: Option<Durable>,
        batches: Batches,
        settings: Settings,
        inputs: mpsc::WeakSender<Input>,
        idle: watch::Sender<bool>,
    ) -> Self {
        Self {
            scheduler,
            durable,
            agents: HashMap::new(),
            clients: BTreeMap::new(),
            batches,
            admins: settings.adjustable.admins,
            certificate_until: settings.adjustable.certificate_until,
            enrolment: settings.enrolment,
            observed: settings.observed.then(Observed::new),
            asked: HashMap::new(),
            next_request: 1,
            retried: HashMap::new(),
            readings: BTreeMap::new(),
            too_early: Vec::new(),
            arrivals: Arrivals::default(),
            revocations: Revocations::default(),
            stopping: false,
            inputs,
            idle,
        }
    }

    /// Cancels all jobs of a batch and closes it.
    pub(super) fn end_batch(&mut self, batch: BatchId, why: Option<Arc<str>>, now: BootInstant) {
        let what = vec![Wanted { batch, job: None }];
        self.scheduler.handle(
            Event::Cancel {
                request: None,
                what,
                stop: Stop::after(GONE_GRACE),
                why,
            },
            now,
        );
        self.scheduler.handle(Event::Close { batch }, now);
    }

    pub(super) fn tell_client(&mut self, client: ClientId, message: ToClient) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.tell(message);
        }
    }

    /// Tells every client that follows a batch.
    pub(super) fn tell_watchers(&mut self, batch: BatchId, message: &ToClient) {
        let follow = |client: &&mut Client| client.watch(batch).is_some();
        for client in self.clients.values_mut().filter(follow) {
            client.tell(message.clone());
        }
    }

    /// Tells every client that has opened a batch.
    pub(super) fn tell_owners(&mut self, batch: BatchId, message: &ToClient) {
        let own = |client: &&mut Client| client.owns(batch);
        for client in self.clients.values_mut().filter(own) {
            client.tell(message.clone());
            client.give_up();
        }
    }
}
