//! The loop: events in, effects performed, and those held back that wait for the store.

use super::admit;
use super::input::Input;
use super::peers::{AgentLink, Asked, Client};
use super::settings::Adjustable;
use super::state::Service;
use crate::scheduler::{Effect, Event, Record};
use crate::store::FromStore;
use mezcal_common::message::agent::ToCoordinator;
use mezcal_common::message::client::ToClient;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::SessionId;
use mezcal_common::system::timer::BootTimer;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events handled between two rounds of sending, and how long that may take: one of them can place
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
        // What was found at the start.
        self.perform();
        loop {
            tokio::select! {
                biased;
                Some(said) = from_store.recv(), if self.kept.is_some() => {
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
            // Connections share this thread: new ones must not wait until there is nothing left to
            // do here.
            tokio::task::yield_now().await;
        }
    }

    fn say_who_is_back(&mut self, session: SessionId, now: BootInstant) {
        if !self.arrivals.is_awaited(session) {
            return;
        }
        let Some(host) = self
            .agents
            .get(&session)
            .map(|link| link.peer.identity().name.clone())
        else {
            return;
        };
        if !self.scheduler.is_ready(&host) {
            return;
        }
        if let Some(said) =
            self.arrivals
                .told(session, &host, self.scheduler.attempts_on(&host, now).0)
        {
            tracing::info!(host, "{said}");
        }
    }

    fn nothing_is_left(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.committed == kept.issued,
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
                // It may have been revoked on its way here.
                if admit::admit(self.enrolment.as_ref(), &peer).is_err() {
                    return;
                }
                let held = self.scheduler.attempts_on(&name, now).0;
                if let Some(said) = self.arrivals.came(
                    session,
                    &name,
                    self.scheduler.session_of(&name).is_some(),
                    held,
                    now,
                ) {
                    tracing::info!(
                        host = name,
                        slots = hello.slots,
                        version = hello.program,
                        "{said}"
                    );
                }
                self.agents.insert(session, AgentLink { sender, peer });
                self.scheduler.handle(
                    Event::AgentHello {
                        session,
                        name,
                        hello: *hello,
                    },
                    now,
                );
            }
            // Only the agent that was asked may answer.
            Input::Agent(session, ToCoordinator::LogsAnswer { request, .. })
                if self
                    .asked
                    .get(&request)
                    .is_none_or(|asked| asked.session != Some(session)) => {}
            Input::Agent(session, message) => {
                self.scheduler.handle(Event::Agent(session, message), now);
                self.say_who_is_back(session, now);
            }
            Input::AgentGone(session, reason) => {
                if let Some(AgentLink { peer, .. }) = self.agents.remove(&session) {
                    let host = &peer.identity().name;
                    let here = self
                        .scheduler
                        .session_of(host)
                        .is_some_and(|other| other != session);
                    let is_gone = self.arrivals.went(session, host, here, now);
                    match (peer.was_refused(), is_gone) {
                        // It knows what we cannot: that this store is not the newest.
                        (true, _) => tracing::error!(
                            host,
                            reason,
                            "{host}: the agent refuses this coordinator: {reason}"
                        ),
                        (false, true) => {
                            tracing::info!(host, reason, "agent disconnected: {host}: {reason}")
                        }
                        (false, false) => {}
                    }
                }
                let unanswered = self
                    .asked
                    .values()
                    .filter(|a| a.session == Some(session) && !a.answered);
                for Asked {
                    client, request, ..
                } in unanswered.copied().collect::<Vec<_>>()
                {
                    let streams = Err("its host was lost before it answered".into());
                    self.tell_client(client, ToClient::LogsAnswer { request, streams });
                }
                for (_, Asked { client, .. }) in
                    self.asked.extract_if(|_, a| a.session == Some(session))
                {
                    if let Some(client) = self.clients.get_mut(&client) {
                        client.asked -= 1;
                    }
                }
                self.scheduler.handle(Event::AgentGone(session), now);
            }
            Input::LogStream(session, header, stream) => self.relay(session, header, stream),
            Input::Answer(client, messages, in_hand) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    messages
                        .into_iter()
                        .for_each(|message| client.tell(message));
                    client.handled(in_hand);
                }
            }
            Input::Room(client) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.told_of_room = false;
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
            } => {
                if peer
                    .as_ref()
                    .is_some_and(|peer| admit::admit(self.enrolment.as_ref(), peer).is_err())
                {
                    return;
                }
                let (agents, engines) = self.scheduler.fleet();
                let mut new = Client::new(sender, user, peer, load, version);
                new.tell(ToClient::Fleet { agents, engines });
                self.clients.insert(client, new);
            }
            Input::Stop => {
                self.stopping = true;
                if self.kept.is_none() {
                    for batch in self.batches.iter().map(|(id, _)| *id).collect::<Vec<_>>() {
                        self.end_batch(batch, Some("the coordinator was stopped".into()), now);
                    }
                }
            }
            // Whoever has stopped looking needs no answer.
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
                let _ = reply.send(self.kept.as_ref().and_then(|kept| kept.trouble.clone()));
            }
            Input::Reload(Adjustable {
                locality_wait,
                admins,
                max_priority,
                aliases,
                certificate_until,
            }) => {
                self.scheduler.set_max_priority(max_priority, &admins);
                self.scheduler.set_locality_wait(locality_wait);
                self.scheduler.set_aliases(aliases, now);
                self.admins = admins;
                self.certificate_until = certificate_until;
            }
            Input::Client(client, ..) if self.revocations.is_out(client) => {}
            Input::Client(client, message, in_hand) => {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.in_hand = Some(in_hand);
                    self.client_message(client, message, now);
                }
                if let Some(known) = self.clients.get_mut(&client) {
                    let in_hand = known.in_hand.take();
                    known.handled(in_hand);
                }
            }
            Input::Revoked(listed) => self.listed(*listed, now),
            Input::ClientGone(client) => {
                self.revocations.client_gone(client);
                let Some(gone) = self.clients.remove(&client) else {
                    return;
                };
                self.asked.retain(|_, asked| asked.client != client);
                for (batch, watch) in gone.watches {
                    if watch.owner {
                        self.client_left(batch, now);
                    }
                    self.let_go(batch);
                }
            }
        }
    }

    fn perform(&mut self) {
        self.release();
        let mut records: Vec<Record> = Vec::new();
        while let Some(effect) = self.scheduler.poll_effect() {
            match (&mut self.kept, effect) {
                (Some(kept), Effect::Persist(record)) => {
                    if let (
                        Some(observed),
                        Record::Again {
                            outcome: Some(outcome),
                            ..
                        },
                    ) = (&self.observed, &record)
                    {
                        observed.attempt(outcome);
                    }
                    kept.issue(&record);
                    records.push(record);
                }
                (Some(kept), effect)
                    if kept.issued > kept.committed
                        && !(effect.overtakes_the_store() && kept.may_greet(&effect)) =>
                {
                    kept.held.push_back((kept.issued, effect));
                }
                (_, effect) => self.carry_out(effect),
            }
        }
        if let Some(kept) = self.kept.as_mut().filter(|_| !records.is_empty()) {
            kept.writer.write(records);
        }
    }

    /// Performs what the store has made safe.
    fn release(&mut self) {
        while let Some(kept) = &mut self.kept
            && let Some((_, effect)) = kept
                .held
                .pop_front_if(|(after, _)| *after <= kept.committed)
        {
            self.carry_out(effect);
        }
    }
}
