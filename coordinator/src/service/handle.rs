//! The way into a running service.

use super::enrol::Enrolment;
use super::input::Input;
use super::intake::{Connected, InHand, Intake};
use super::peers::{CLIENT_DEPTH, ClientId};
use super::settings::Adjustable;
use super::view::View;
use mezcal_common::message::client::{self, ToClient, ToService};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The way into a running service.
#[derive(Clone)]
pub struct ServiceHandle {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) next: Arc<AtomicU64>,
    /// True once a stop has been requested and nothing has to be delivered any more.
    pub(super) idle: watch::Receiver<bool>,
    /// True while more jobs are on their way into the store than should be.
    pub(super) behind: watch::Receiver<bool>,
    pub(super) enrolment: Option<Arc<Enrolment>>,
    pub(super) intake: Intake,
}

/// One client's connection, within the process or over the network.
pub struct ClientPort {
    /// Requests of the client.
    pub requests: mpsc::Sender<ToService>,
    /// Answers to it. The channel ends when the connection does.
    pub answers: mpsc::Receiver<ToClient>,
}

impl ServiceHandle {
    /// A client within this process, on behalf of `user`.
    pub async fn attach(&self, user: &str) -> ClientPort {
        let (requests, mut incoming) = mpsc::channel(CLIENT_DEPTH);
        let (sender, answers) = mpsc::channel(CLIENT_DEPTH);
        let client = ClientId(self.next.fetch_add(1, Ordering::Relaxed));
        let (inputs, service, place) = (self.inputs.clone(), self.clone(), self.intake.within());
        let (load, version) = (place.load.clone(), client::VERSIONS.1);
        let input = Input::ClientConnected {
            client,
            user: user.into(),
            sender,
            peer: None,
            load,
            version,
        };
        // A service that is gone shows as closed channels.
        let _ = inputs.send(input).await;
        tokio::spawn(async move {
            while let Some(message) = incoming.recv().await {
                let in_hand = service.room_for(&place, &message).await;
                if inputs
                    .send(Input::Client(client, message, in_hand))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            let _ = inputs.send(Input::ClientGone(client)).await;
        });
        ClientPort { requests, answers }
    }

    /// Jobs wait in their connection while the store is behind: a client that is faster than the
    /// disk waits for it. So do the requests of a client that does not read its answers.
    pub(super) async fn room_for(&self, place: &Connected, message: &ToService) -> InHand {
        if let ToService::Submit { .. } = message {
            let mut behind = self.behind.clone();
            // A service that has ended has no store to wait for.
            let _ = behind.wait_for(|behind| !*behind).await;
        }
        place.take(message).await
    }

    /// Waits, for `patience` at most, until everything is safe in the store. Without a store, all
    /// batches are cancelled, and it waits until their clients have the results.
    pub async fn stop(&self, patience: Duration) {
        // A service that has ended has nothing left to stop.
        let _ = self.inputs.send(Input::Stop).await;
        let _ = tokio::time::timeout(patience, self.idle.clone().wait_for(|idle| *idle)).await;
    }

    /// A picture of the moment, with ends of attempts after number `since`. None if the service has
    /// ended or is not observed.
    pub async fn view(&self, since: u64) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::View(since, reply)).await.ok()?;
        answer.await.ok()
    }

    /// All numbers in Prometheus' text format. None as above.
    pub async fn metrics(&self) -> Option<String> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Metrics(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Why nothing can be stored at present, if that is so. None if the service has ended.
    pub async fn trouble(&self) -> Option<Option<String>> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Trouble(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Goes on with other settings.
    pub async fn adjust(&self, adjustable: Adjustable) {
        // A service that has ended needs no settings.
        let _ = self.inputs.send(Input::Reload(adjustable)).await;
    }

    /// Waits until the service ends by itself, which it does only when its store is unusable.
    pub async fn ended(&self) {
        let mut idle = self.idle.clone();
        while idle.changed().await.is_ok() {}
    }
}
