//! Connections of agents and clients: whose they are, and their messages to the loop.

use super::admit;
use super::arrivals::Complaints;
use super::handle::ServiceHandle;
use super::input::Input;
use super::peers::ClientId;
use super::versions::common_version;
use mezcal_common::message::agent::{self, LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{self, ToClient, ToService};
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::SessionId;
use mezcal_common::wire::endpoint::{
    AcceptError, Channel, FIRST_MESSAGE, Handshake, Listener, Peer, close,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

impl ServiceHandle {
    /// Accepts connections of agents and clients until the listener is closed.
    pub async fn listen(self, listener: Arc<Listener>) {
        let complaints = Arc::new(Mutex::new(Complaints::default()));
        while let Some(handshake) = listener.accept().await {
            let (service, complaints) = (self.clone(), complaints.clone());
            tokio::spawn(async move {
                let from = handshake.remote_addr();
                if let Err(e) = service.serve(handshake).await
                    && complaints
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .is_new(from.ip(), &e, Instant::now())
                {
                    tracing::warn!(%from, "{e}");
                }
            });
        }
    }

    async fn serve(&self, handshake: Handshake) -> Result<(), String> {
        let peer = match handshake.complete().await {
            Ok(peer) => peer,
            Err(AcceptError::Abandoned) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        let (role, protocol) = (peer.identity().role, peer.protocol().to_vec());
        admit::admit(self.enrolment.clone(), peer.clone()).await?;
        tokio::spawn(admit::used(self.enrolment.clone(), peer.clone()));
        tokio::spawn(admit::guard(self.enrolment.clone(), peer.clone()));
        match role {
            Role::Agent if protocol == agent::ALPN => self.serve_agent(peer).await,
            Role::User if protocol == client::ALPN => self.serve_client(peer).await,
            Role::Agent | Role::User | Role::Coordinator => {
                let reason = format!(
                    "the {} may not use {}",
                    peer.identity(),
                    String::from_utf8_lossy(&protocol)
                );
                peer.close(close::REFUSED, &reason);
                Err(reason)
            }
        }
    }

    async fn serve_agent(&self, peer: Peer) -> Result<(), String> {
        let (channel, first) = first_message::<ToAgent, ToCoordinator>(&peer).await?;
        let Some(ToCoordinator::Hello(hello)) = first else {
            peer.close(close::PROTOCOL, "the first message must be a hello");
            return Err("an agent did not begin with a hello".into());
        };
        refuse_other_versions(&peer, hello.versions, agent::VERSIONS)?;
        let session = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        let name = peer.identity().name.clone();
        let (sender, mut receiver) = (channel.sender, channel.receiver);
        let answers = sender.clone();
        let input = Input::AgentHello {
            session,
            name,
            hello: Box::new(hello),
            sender,
            peer: peer.clone(),
        };
        self.tell(input).await?;
        let (inputs, streams) = (self.inputs.clone(), peer.clone());
        tokio::spawn(async move {
            while let Ok((header, stream)) = streams.accept_bulk::<LogHeader>().await {
                if inputs
                    .send(Input::LogStream(session, header, stream))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        while let Some(message) = receiver.recv().await {
            if let ToCoordinator::Renew { request } = message {
                let (enrolment, peer, answers) =
                    (self.enrolment.clone(), peer.clone(), answers.clone());
                tokio::spawn(async move {
                    let cert = admit::renew(enrolment, peer, request).await;
                    // An agent that is gone asks again.
                    let _ = answers.send(ToAgent::Renewed { cert }).await;
                });
                continue;
            }
            self.tell(Input::Agent(session, message)).await?;
        }
        drop(answers);
        let reason = peer.closed().await;
        self.tell(Input::AgentGone(session, reason)).await
    }

    /// Hands an input to the service's loop.
    ///
    /// # Errors
    /// The service has ended.
    async fn tell(&self, input: Input) -> Result<(), String> {
        let told = self.inputs.send(input).await;
        told.map_err(|_| "the service has ended".into())
    }

    async fn serve_client(&self, peer: Peer) -> Result<(), String> {
        let (channel, first) = first_message::<ToClient, ToService>(&peer).await?;
        let Some(ToService::Hello { versions, .. }) = first else {
            peer.close(close::PROTOCOL, "the first message must be a hello");
            return Err("a client did not begin with a hello".into());
        };
        refuse_other_versions(&peer, versions, client::VERSIONS)?;
        let place = self
            .intake
            .connect(&peer.identity().name)
            .inspect_err(|reason| peer.close(close::BUSY, reason))?;
        let (sender, mut receiver) = (channel.sender, channel.receiver);
        let answers = sender.clone();
        let version = versions.1.min(client::VERSIONS.1);
        let welcome = ToClient::Welcome {
            version,
            program: mezcal_common::VERSION.into(),
        };
        let _ = sender.send(welcome).await;
        let id = ClientId(self.next.fetch_add(1, Ordering::Relaxed));
        let user = peer.identity().name.clone();
        let (load, peer_of_it) = (place.load.clone(), Some(peer.clone()));
        let input = Input::ClientConnected {
            client: id,
            user,
            sender,
            peer: peer_of_it,
            load,
            version,
        };
        self.tell(input).await?;
        tracing::debug!(user = peer.identity().name, from = %peer.remote_addr(), "client connected");
        while let Some(message) = receiver.recv().await {
            // A client that has gone waits for nothing more.
            let in_hand = tokio::select! {
                biased;
                in_hand = self.room_for(&place, &message) => in_hand,
                _ = peer.closed() => break,
            };
            if let ToService::Renew { request, csr } = message {
                let cert = admit::renew(self.enrolment.clone(), peer.clone(), csr).await;
                let _ = answers.send(ToClient::Renewed { request, cert }).await;
                continue;
            }
            self.tell(Input::Client(id, message, in_hand)).await?;
        }
        let reason = peer.closed().await;
        tracing::debug!(user = peer.identity().name, reason, "client disconnected");
        self.tell(Input::ClientGone(id)).await
    }
}

/// Takes the control stream and the first message that the peer sends on it.
async fn first_message<S, R>(peer: &Peer) -> Result<(Channel<S, R>, Option<R>), String>
where
    S: serde::Serialize + Send + 'static,
    R: serde::de::DeserializeOwned + Send + 'static,
{
    let first = async {
        let mut channel = peer.accept::<S, R>().await?;
        let first = channel.receiver.recv().await;
        Ok((channel, first))
    };
    tokio::time::timeout(FIRST_MESSAGE, first)
        .await
        .map_err(|_| "no hello in time".to_owned())?
}

fn refuse_other_versions(peer: &Peer, theirs: (u16, u16), ours: (u16, u16)) -> Result<(), String> {
    common_version(theirs, ours).inspect_err(|reason| peer.close(close::REFUSED, reason))
}
