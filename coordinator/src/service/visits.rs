//! Agents and clients that come, send messages and go.

use super::admit;
use super::batch::Batch;
use super::intake::InHand;
use super::peers::{AgentConnection, Asked, Client, ClientId};
use super::state::Service;
use crate::scheduler::Event;
use mezcal_common::message::agent::{Hello, ToCoordinator};
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchId, SessionId};

impl Service {
    pub(super) fn agent_came(
        &mut self,
        session: SessionId,
        name: String,
        hello: Hello,
        link: AgentConnection,
        now: BootInstant,
    ) {
        // The certificate may have been revoked meanwhile.
        if admit::has_ended(self.enrolment.as_ref(), &link.peer) {
            return;
        }
        let held = self.scheduler.attempts_on(&name, now).0;
        let is_here = self.scheduler.session_of(&name).is_some();
        if let Some(said) = self.arrivals.came(session, &name, is_here, held, now) {
            let (slots, version) = (hello.slots, &hello.program);
            tracing::info!(host = name, slots, version, "{said}");
        }
        self.agents.insert(session, link);
        let event = Event::AgentHello {
            session,
            name,
            hello,
        };
        self.scheduler.handle(event, now);
    }

    pub(super) fn agent_said(
        &mut self,
        session: SessionId,
        message: ToCoordinator,
        now: BootInstant,
    ) {
        // Only the agent that was asked may answer.
        if let ToCoordinator::LogsAnswer { request, .. } = &message
            && self
                .asked
                .get(request)
                .is_none_or(|asked| asked.session != Some(session))
        {
            return;
        }
        self.scheduler.handle(Event::Agent(session, message), now);
        self.say_who_is_back(session, now);
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

    pub(super) fn agent_gone(&mut self, session: SessionId, reason: &str, now: BootInstant) {
        if let Some(AgentConnection { peer, .. }) = self.agents.remove(&session) {
            let host = &peer.identity().name;
            let here = self
                .scheduler
                .session_of(host)
                .is_some_and(|other| other != session);
            let is_gone = self.arrivals.went(session, host, here, now);
            match (peer.was_refused(), is_gone) {
                // The agent knows a fact that we cannot know: this store is not the newest.
                (true, _) => tracing::error!(
                    host,
                    reason,
                    "{host}: the agent refuses this coordinator: {reason}"
                ),
                (false, true) => {
                    tracing::info!(host, reason, "agent disconnected: {host}: {reason}");
                }
                (false, false) => {}
            }
        }
        let of_it: Vec<Asked> = self
            .asked
            .extract_if(|_, asked| asked.session == Some(session))
            .map(|(_, asked)| asked)
            .collect();
        for Asked {
            client,
            request,
            answered,
            ..
        } in of_it
        {
            let Some(client) = self.clients.get_mut(&client) else {
                continue;
            };
            client.is_answered();
            if !answered {
                let streams = Err("its host was lost before it answered".into());
                client.tell(ToClient::LogsAnswer { request, streams });
            }
        }
        self.scheduler.handle(Event::AgentGone(session), now);
    }

    pub(super) fn client_came(&mut self, id: ClientId, mut client: Client) {
        if client
            .peer()
            .is_some_and(|peer| admit::has_ended(self.enrolment.as_ref(), peer))
        {
            return;
        }
        let (agents, engines) = self.scheduler.fleet();
        client.tell(ToClient::Fleet { agents, engines });
        self.clients.insert(id, client);
    }

    pub(super) fn client_said(
        &mut self,
        id: ClientId,
        message: ToService,
        in_hand: InHand,
        now: BootInstant,
    ) {
        if self.revocations.is_out(id) {
            return;
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.begins(in_hand);
            self.client_message(id, message, now);
        }
        if let Some(client) = self.clients.get_mut(&id) {
            let in_hand = client.take_in_hand();
            client.handled(in_hand);
        }
    }

    pub(super) fn client_gone(&mut self, id: ClientId, now: BootInstant) {
        self.revocations.client_gone(id);
        let Some(gone) = self.clients.remove(&id) else {
            return;
        };
        self.asked.retain(|_, asked| asked.client != id);
        for batch in gone.followed() {
            if gone.owns(batch) {
                self.client_left(batch, now);
            }
            self.let_go(batch);
        }
    }

    /// A client that had opened a batch is gone.
    fn client_left(&mut self, batch: BatchId, now: BootInstant) {
        if self.clients.values().any(|client| client.owns(batch)) {
            return;
        }
        if self.durable.is_some() && self.batches.get(batch).is_some_and(Batch::is_stored) {
            self.scheduler.handle(Event::Unattended { batch }, now);
        } else {
            self.batches.remove(batch);
            self.end_batch(batch, None, now);
        }
    }
}
