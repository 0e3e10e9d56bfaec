//! Work that is done beside the loop, and whose result comes back to it.

use super::found::Found;
use super::input::Input;
use super::intake::InHand;
use super::peers::{Asker, ClientId};
use super::permit::KEEPS_NOTHING;
use super::reads::Reads;
use super::state::Service;
use mezcal_common::message::client::ToClient;

impl Service {
    /// A client that asks, with the place that its request takes until it is answered.
    pub(super) fn asker(&mut self, id: ClientId, request: u64) -> Option<Asker> {
        let client = self.clients.get_mut(&id)?;
        Some(Asker {
            client: id,
            user: client.user().to_owned(),
            request,
            in_hand: client.take_in_hand(),
        })
    }

    /// Whether the client is still there, and may still ask.
    pub(super) fn is_there(&self, asker: &Asker) -> bool {
        self.clients.contains_key(&asker.client) && !self.revocations.is_out(asker.client)
    }

    /// Answers, if the client is still there to get it.
    pub(super) fn answer(&mut self, asker: Asker, messages: impl IntoIterator<Item = ToClient>) {
        self.give(asker.client, messages, asker.in_hand);
    }

    /// Gives a client the answers to a request, which has been handled.
    pub(super) fn give(
        &mut self,
        client: ClientId,
        messages: impl IntoIterator<Item = ToClient>,
        in_hand: Option<InHand>,
    ) {
        if let Some(client) = self.clients.get_mut(&client) {
            messages
                .into_iter()
                .for_each(|message| client.tell(message));
            client.handled(in_hand);
        }
    }

    /// Answers a request with the messages of `find_out`, which runs beside the loop.
    pub(super) fn answer_beside(
        &mut self,
        id: ClientId,
        find_out: impl FnOnce() -> Vec<ToClient> + Send + 'static,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let in_hand = client.take_in_hand();
        self.beside(async move {
            let answers = tokio::task::spawn_blocking(find_out).await;
            Input::Answer(id, answers.unwrap_or_default(), in_hand)
        });
    }

    pub(super) fn reads(&self) -> Result<Reads, String> {
        let durable = self.durable.as_ref();
        durable
            .map(|durable| durable.reads().clone())
            .ok_or_else(|| KEEPS_NOTHING.into())
    }

    /// Brings a finding back to the loop.
    pub(super) fn find(&self, finding: impl Future<Output = Found> + Send + 'static) {
        self.beside(async move { Input::Found(Box::new(finding.await)) });
    }

    /// Brings the input that some work ends with to the loop.
    pub(super) fn beside(&self, work: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let input = work.await;
            // A service that has ended has no client to answer.
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(input).await;
            }
        });
    }
}
