//! Requests of clients about single jobs: cancels, output, and why jobs do not run.

use crate::scheduler::{Event, Wanted};
use crate::service::peers::{Asked, ClientId, MAX_ASKED};
use crate::service::state::Service;
use mezcal_common::message::agent::LogWish;
use mezcal_common::message::client::{Selector, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchId;
use mezcal_common::model::job::Stop;

impl Service {
    pub(super) fn cancel(
        &mut self,
        id: ClientId,
        request: u64,
        mut what: Vec<Selector>,
        stop: Stop,
        now: BootInstant,
    ) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        if client.has_asked_enough() {
            let reason = format!(
                "this connection waits for the answers to {MAX_ASKED} requests; wait for some of them"
            );
            return self.tell_client(id, ToClient::Refused { reason });
        }
        // All batches of a user are cancelled once, however often they are named: they can be many.
        let mut all = false;
        what.retain(|selector| *selector != Selector::Mine || !std::mem::replace(&mut all, true));
        let user = client.user();
        let wanted: Result<Vec<Vec<Wanted>>, String> = what
            .iter()
            .map(|selector| self.select(user, selector))
            .collect();
        match wanted {
            Ok(wanted) => {
                let what: Vec<Wanted> = wanted.into_iter().flatten().collect();
                let owns = |batch: &BatchId| client.owns(*batch);
                let elsewhere = what.iter().any(|wanted| !owns(&wanted.batch));
                let why = elsewhere.then(|| format!("cancelled by {user}").into());
                let request = Some(self.ask(id, request));
                let event = Event::Cancel {
                    request,
                    what,
                    stop,
                    why,
                };
                self.scheduler.handle(event, now);
            }
            // The batch or job may not have been accepted any more.
            Err(_) if self.has_a_successor() => {}
            Err(reason) => self.tell_client(id, ToClient::Refused { reason }),
        }
    }

    pub(super) fn logs(
        &mut self,
        id: ClientId,
        request: u64,
        batch: &str,
        job: String,
        wish: LogWish,
        now: BootInstant,
    ) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let found = if client.has_asked_enough() {
            Err(format!(
                "this connection has asked for output {MAX_ASKED} times; connect again"
            ))
        } else {
            self.find_batch(client.user(), batch)
        };
        match found {
            Ok(batch) => {
                let request = self.ask(id, request);
                let event = Event::Logs {
                    request,
                    batch,
                    job,
                    wish,
                };
                self.scheduler.handle(event, now);
            }
            Err(why) => {
                let streams = Err(why);
                self.tell_client(id, ToClient::LogsAnswer { request, streams });
            }
        }
    }

    /// The hosts that a cancel waits for.
    pub(super) fn cancel_waits(&self, id: ClientId, request: u64, now: BootInstant) -> ToClient {
        let asked = self
            .asked
            .iter()
            .find(|(_, asked)| asked.client == id && asked.request == request);
        let hosts = asked
            .map(|(number, _)| self.scheduler.cancel_waits(*number, now))
            .unwrap_or_default();
        ToClient::CancelWaits { request, hosts }
    }

    pub(super) fn why(
        &self,
        user: &str,
        request: u64,
        batch: &str,
        job: &str,
        now: BootInstant,
    ) -> ToClient {
        let reasons = self
            .find_batch(user, batch)
            .and_then(|batch| self.scheduler.why(batch, job, now));
        ToClient::Why { request, reasons }
    }

    /// Gives the scheduler a number that leads back to a client's request.
    fn ask(&mut self, client: ClientId, request: u64) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        if let Some(client) = self.clients.get_mut(&client) {
            client.asks();
        }
        self.asked.insert(
            number,
            Asked {
                client,
                request,
                session: None,
                answered: false,
            },
        );
        number
    }
}
