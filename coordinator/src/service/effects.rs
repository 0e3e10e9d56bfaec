//! The scheduler's effects, carried out when they may be: messages, results, the ends of batches.

use super::found::Found;
use super::memory;
use super::permit::FORGOTTEN;
use super::state::Service;
use crate::exit::chain;
use crate::scheduler::{Effect, Text};
use bytes::Bytes;
use mezcal_common::message::agent::{LogHeader, ToAgent};
use mezcal_common::message::client::{CancelSummary, ToClient};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, SessionId};
use mezcal_common::wire::bulk::BulkReceiver;
use mezcal_common::wire::endpoint::close;
use tokio::sync::mpsc;

/// For a batch of so many jobs it is worth giving its memory back at once.
const LARGE_BATCH: u64 = 10_000;

impl Service {
    // Long: an arm for each effect.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) => {}
            effect @ (Effect::ToAgent(..)
            | Effect::Welcome(..)
            | Effect::HeartbeatSeen { .. }
            | Effect::Place(..)) => {
                let durable = &mut self.durable;
                let mut text = |key| durable.as_mut().and_then(|durable| durable.text(key));
                let message =
                    effect.for_agent(WallTime::now(), |key| text(key).unwrap_or_default());
                self.tell_agent(message);
            }
            effect @ Effect::AskForLogs { .. } => self.ask_for_logs(effect),
            Effect::CloseSession {
                session,
                refused,
                reason,
            } => {
                let code = if refused { close::REFUSED } else { close::DONE };
                if let Some(link) = self.agents.remove(&session) {
                    link.peer.close(code, &reason);
                }
            }
            Effect::Result {
                batch,
                job,
                result,
                seq,
            } => self.has_result(batch, seq, job, result),
            Effect::Accepted {
                batch,
                jobs,
                closed,
            } => self.accepted(batch, jobs, closed),
            Effect::Refused { batch, reason } => {
                self.tell_owners(batch, &ToClient::Refused { reason })
            }
            Effect::Notice { batch, notice } => {
                self.tell_watchers(batch, &ToClient::Notice { batch, notice })
            }
            Effect::Output {
                batch,
                job,
                host,
                stream,
                data,
            } => {
                let output = ToClient::Output {
                    batch,
                    job,
                    host,
                    stream,
                    data,
                };
                self.tell_owners(batch, &output);
            }
            Effect::Cancelled { request, result } => self.cancelled(request, result),
            Effect::LogsAnswer { request, streams } => self.logs_answered(request, streams),
            Effect::BatchDone { batch } => self.batch_done(batch),
            Effect::Fleet { agents, engines } => {
                for client in self.clients.values_mut() {
                    client.tell_newest(ToClient::Fleet { agents, engines });
                }
            }
        }
    }

    fn accepted(&mut self, batch: BatchId, jobs: u64, closed: bool) {
        if let Some(known) = self.batches.get_mut(batch) {
            known.begins();
        }
        if closed {
            self.is_retried(batch, Ok(()));
        }
        let accepted = ToClient::Accepted {
            batch,
            jobs,
            closed,
        };
        self.tell_owners(batch, &accepted);
    }

    fn cancelled(&mut self, request: u64, result: Result<CancelSummary, String>) {
        if self.revocation_cancelled(request, &result) {
            return;
        }
        let Some(asked) = self.asked.remove(&request) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(&asked.client) {
            client.is_answered();
        }
        let request = asked.request;
        let answer = match result {
            Ok(summary) => ToClient::Cancelled { request, summary },
            // The batch or job may not have been accepted any more.
            Err(_) if self.has_a_successor() => return,
            Err(reason) => ToClient::Refused { reason },
        };
        self.tell_client(asked.client, answer);
    }

    /// The question is remembered for as long as its client is connected: streams may come later.
    fn logs_answered(&mut self, request: u64, streams: Result<u8, String>) {
        if let Some(asked) = self.asked.get_mut(&request) {
            asked.answered = true;
            let (client, request) = (asked.client, asked.request);
            self.tell_client(client, ToClient::LogsAnswer { request, streams });
        }
    }

    fn batch_done(&mut self, batch: BatchId) {
        let ended = self.batches.ended(batch);
        let large = ended.is_some_and(|batch| batch.results() >= LARGE_BATCH);
        self.let_go(batch);
        if large {
            memory::give_back();
        }
    }

    /// Asks an agent for output: at once, or when the job's text has been read.
    fn ask_for_logs(&mut self, question: Effect) {
        let Effect::AskForLogs {
            session,
            request,
            attempt,
            ref text,
            ref context,
            ..
        } = question
        else {
            return;
        };
        if let Some(asked) = self.asked.get_mut(&request) {
            asked.session = Some(session);
        }
        let batch = context.batch;
        match self.reads() {
            Ok(reads) if matches!(text, Text::Stored) => self.find(async move {
                let text = reads.read(move |reader| reader.spec(attempt.key)).await;
                let text = text.and_then(|text| text.map_err(|e| chain(&e)));
                let question =
                    text.map(|text| question.for_agent(WallTime::now(), |_| text.clone()));
                Found::Text(request, batch, question)
            }),
            Ok(_) | Err(_) => {
                self.tell_agent(question.for_agent(WallTime::now(), |_| Bytes::new()));
            }
        }
    }

    /// A question for output has its job's text now: it goes to the agent, unless its client has
    /// gone.
    pub(super) fn text_found(
        &mut self,
        request: u64,
        batch: BatchId,
        question: Result<Option<(SessionId, ToAgent)>, String>,
    ) {
        let forgotten = self.batches.get(batch).is_none();
        match question {
            Ok(question) if self.asked.contains_key(&request) => self.tell_agent(question),
            Ok(_) => {}
            Err(_) if forgotten => self.logs_answered(request, Err(FORGOTTEN.into())),
            Err(why) => self.logs_answered(request, Err(why)),
        }
    }

    /// Sends an agent the message that an effect has for it.
    fn tell_agent(&mut self, message: Option<(SessionId, ToAgent)>) {
        let Some((session, message)) = message else {
            return;
        };
        if let Some(link) = self.agents.get(&session)
            && let Err(mpsc::error::TrySendError::Full(_)) = link.sender.try_send(message)
        {
            let host = &link.peer.identity().name;
            tracing::warn!(
                host,
                "the agent of {host} does not read; closing its session"
            );
            link.peer.close(close::STALLED, "too many unread messages");
            self.agents.remove(&session);
        }
    }

    /// Passes a stream of output on to the client that asked for it.
    pub(super) fn relay(&mut self, session: SessionId, header: LogHeader, mut from: BulkReceiver) {
        let Some(asked) = self
            .asked
            .get(&header.request)
            .filter(|a| a.session == Some(session))
        else {
            return;
        };
        let Some(peer) = self
            .clients
            .get(&asked.client)
            .and_then(|client| client.peer().cloned())
        else {
            return;
        };
        let header = LogHeader {
            request: asked.request,
            stream: header.stream,
        };
        tokio::spawn(async move {
            let mut to = peer.open_bulk(&header).await?;
            loop {
                tokio::select! {
                    read = from.read() => match read? {
                        Some(data) => to.write(&data).await?,
                        None => break,
                    },
                    // A reader that has left must be let go without the next line.
                    () = to.abandoned() => return Ok(()),
                }
            }
            to.finish();
            // A side that has gone has told the other side by resetting its stream.
            Ok::<_, mezcal_common::wire::bulk::CutShort>(())
        });
    }
}
