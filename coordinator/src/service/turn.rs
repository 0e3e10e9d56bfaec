//! The loop: handles events, performs their effects, and holds back those that wait for the store.

use super::durable::Durable;
use super::found::Found;
use super::input::Input;
use super::peers::{AgentConnection, Client};
use super::settings::Adjustable;
use super::state::Service;
use crate::scheduler::{Effect, Record};
use crate::store::FromStore;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::system::timer::BootTimer;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events handled between two rounds of sending, and the time limit for them: one event can place
/// hundreds of jobs, and connections share the thread.
const TURN: usize = 256;
const TURN_TIME: Duration = Duration::from_millis(4);

impl Service {
    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut from_store: mpsc::Receiver<FromStore>,
        mut timer: BootTimer,
    ) {
        // Effects of the start.
        self.perform();
        loop {
            tokio::select! {
                biased;
                Some(said) = from_store.recv(), if self.durable.is_some() => {
                    if !self.store_said(said) {
                        return;
                    }
                }
                input = inputs.recv() => {
                    let Some(input) = input else { return };
                    let until = BootInstant::now() + TURN_TIME;
                    self.handle(input);
                    for _ in 0..TURN {
                        if BootInstant::now() >= until {
                            break;
                        }
                        let Ok(input) = inputs.try_recv() else { break };
                        self.handle(input);
                    }
                }
                fired = timer.until(self.scheduler.poll_timeout()) => {
                    if let Err(e) = fired {
                        tracing::error!(error = %e, "the timer failed; the coordinator ends");
                        return;
                    }
                    self.scheduler.handle_timeout(BootInstant::now());
                }
            }
            self.perform();
            self.deliver();
            if self.stopping && self.nothing_is_left() {
                let _ = self.idle.send(true);
            }
            // Connections share this thread: new ones must not wait until the loop has nothing left
            // to do.
            tokio::task::yield_now().await;
        }
    }

    fn nothing_is_left(&self) -> bool {
        match &self.durable {
            Some(durable) => durable.is_all_safe(),
            None => self.batches.is_empty(),
        }
    }

    fn handle(&mut self, input: Input) {
        let now = BootInstant::now();
        match input {
            Input::AgentHello {
                session,
                name,
                hello,
                sender,
                peer,
            } => {
                let link = AgentConnection { sender, peer };
                self.agent_came(session, name, *hello, link, now);
            }
            Input::Agent(session, message) => self.agent_said(session, message, now),
            Input::AgentGone(session, reason) => self.agent_gone(session, &reason, now),
            Input::LogStream(session, header, stream) => self.relay(session, header, stream),
            Input::Answer(client, messages, in_hand) => self.give(client, messages, in_hand),
            Input::Found(found) => self.found(*found, now),
            Input::Room(client) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.has_room();
                }
            }
            Input::Read(what, page) => self.page_read(what, &page),
            Input::ClientConnected {
                client,
                user,
                sender,
                peer,
                load,
                version,
            } => self.client_came(client, Client::new(sender, user, peer, load, version)),
            Input::Client(client, message, in_hand) => {
                self.client_said(client, message, in_hand, now);
            }
            Input::ClientGone(client) => self.client_gone(client, now),
            Input::Revoked(listed) => self.listed(*listed, now),
            Input::Stop => self.stop(now),
            // A client that has stopped looking needs no answer.
            Input::View(since, reply) => {
                if let Some(view) = self.view(since) {
                    let _ = reply.send(view);
                }
            }
            Input::Metrics(reply) => {
                if let Some(text) = self.metrics() {
                    let _ = reply.send(text);
                }
            }
            Input::Trouble(reply) => {
                let _ = reply.send(self.trouble());
            }
            Input::Reload(adjustable) => self.adjust(adjustable, now),
        }
    }

    /// The result of a read for a client has come, which may have gone or have been revoked.
    fn found(&mut self, found: Found, now: BootInstant) {
        if found.asker().is_some_and(|asker| !self.is_there(asker)) {
            return;
        }
        match found {
            Found::Batches(asked, rows) => self.batches_found(asked, rows),
            Found::Batch(asked, batch, row) => self.batch_found(asked, batch, row),
            Found::Again(asked, again) => self.again_found(asked, again, now),
            Found::Text(request, batch, question) => self.text_found(request, batch, question),
        }
    }

    fn stop(&mut self, now: BootInstant) {
        self.stopping = true;
        if self.durable.is_none() {
            for batch in self.batches.iter().map(|(id, _)| *id).collect::<Vec<_>>() {
                self.end_batch(batch, Some("the coordinator was stopped".into()), now);
            }
        }
    }

    fn adjust(&mut self, adjustable: Adjustable, now: BootInstant) {
        let Adjustable {
            locality_wait,
            admins,
            max_priority,
            aliases,
            certificate_until,
        } = adjustable;
        self.scheduler.set_max_priority(max_priority, &admins);
        self.scheduler.set_locality_wait(locality_wait);
        self.scheduler.set_aliases(aliases, now);
        self.admins = admins;
        self.certificate_until = certificate_until;
    }

    fn perform(&mut self) {
        self.release();
        while let Some(effect) = self.scheduler.poll_effect() {
            let Some(durable) = &mut self.durable else {
                self.carry_out(effect);
                continue;
            };
            match effect {
                Effect::Persist(record) => {
                    if let (Some(observed), Record::Again { outcome, .. }) =
                        (&self.observed, &record)
                    {
                        outcome.iter().for_each(|outcome| observed.attempt(outcome));
                    }
                    durable.issue(record);
                }
                effect => {
                    if let Some(effect) = durable.when_safe(effect) {
                        self.carry_out(effect);
                    }
                }
            }
        }
        if let Some(durable) = &mut self.durable {
            durable.write();
        }
    }

    /// Performs the effects that the store has made safe.
    fn release(&mut self) {
        while let Some(effect) = self.durable.as_mut().and_then(Durable::next_safe) {
            self.carry_out(effect);
        }
    }
}
