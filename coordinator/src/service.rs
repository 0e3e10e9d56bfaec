//! The coordinator's driver: one loop owns the [`Scheduler`]; tasks beside it carry messages of
//! agents and clients.
//!
//! Nothing here blocks on a peer. Agents' channels are bounded, and an agent that does not read
//! loses its session; what a client has not taken waits in its outbox, or in the store, and its own
//! acknowledgements bound what is sent. A client that does not read is not read either
//! (`intake.rs`).

mod arrivals;
mod batches;
pub mod config;
mod delivery;
pub mod describe;
pub mod enrol;
pub mod http;
mod intake;
pub mod listen;
mod members;
pub(crate) mod memory;
mod observe;
mod outlet;
mod requests;
mod revoke;
mod state;

use crate::scheduler::{Aliases, Scheduler};
use crate::service::enrol::Enrolment;
use crate::store::{FromStore, Reader, Store, Writer};
use arrivals::Complaints;
use delivery::{NotRead, Page, Reading};
use intake::{Connected, InHand, Intake, Load};
use mezcal_common::message::agent::{self, Hello, LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{self, ToClient, ToService};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{Epoch, SessionId, StoreId};
use mezcal_common::system::timer::BootTimer;
use mezcal_common::wire::bulk::BulkReceiver;
use mezcal_common::wire::endpoint::{
    AcceptError, Channel, FIRST_MESSAGE, Handshake, Listener, Peer, close,
};
pub use observe::View;
pub(crate) use revoke::NAMES as REVOKED_AT_ONCE;
use state::{Kept, Service};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// The protocols that a coordinator listens for.
pub const PROTOCOLS: [&[u8]; 2] = [agent::ALPN, client::ALPN];
/// Default lease.
pub const LEASE: Duration = Duration::from_secs(600);
/// Default locality wait: a few heartbeats of a busy queue, and little beside the length of a job
/// that is worth moving to its data (Spark's `spark.locality.wait` is the same).
pub const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Events that may wait; beyond this, connections are not read.
const EVENTS: usize = 1024;
/// Messages to a client that wait in its channel before its outbox takes over.
const CLIENT_DEPTH: usize = 256;
/// Default client lease: time enough to reconnect after any outage that is noticed and mended at
/// once.
pub const CLIENT_LEASE: Duration = Duration::from_secs(600);
/// Answers of the store that may wait.
const STORE_DEPTH: usize = 64;

/// A client, counted by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

enum Input {
    AgentHello {
        session: SessionId,
        name: String,
        hello: Box<Hello>,
        sender: mpsc::Sender<ToAgent>,
        peer: Peer,
    },
    Agent(SessionId, ToCoordinator),
    /// With the reason.
    AgentGone(SessionId, String),
    LogStream(SessionId, LogHeader, BulkReceiver),
    /// What was read for clients.
    Read(Reading, Result<Page, NotRead>),
    ClientConnected {
        client: ClientId,
        user: String,
        sender: mpsc::Sender<ToClient>,
        peer: Option<Peer>,
        load: Arc<Load>,
        /// The protocol version that both sides speak.
        version: u16,
    },
    Client(ClientId, ToService, InHand),
    /// What a client has not read has become less.
    Room(ClientId),
    ClientGone(ClientId),
    /// What was found out beside the loop, for whoever asked.
    Answer(ClientId, Vec<ToClient>, Option<InHand>),
    /// What the list of certificates has said to a revocation.
    Revoked(Box<revoke::Listed>),
    /// Somebody looks.
    View(u64, oneshot::Sender<View>),
    Metrics(oneshot::Sender<String>),
    Trouble(oneshot::Sender<Option<String>>),
    /// What may change while it runs has changed.
    Reload(Adjustable),
    Stop,
}

/// The way into a running service.
#[derive(Clone)]
pub struct ServiceHandle {
    inputs: mpsc::Sender<Input>,
    next: Arc<AtomicU64>,
    /// True once a stop has been asked for and nothing is left to deliver.
    idle: watch::Receiver<bool>,
    /// True while more jobs are on their way into the store than should be.
    behind: watch::Receiver<bool>,
    enrolment: Option<Arc<Enrolment>>,
    intake: Intake,
}

/// One client's connection, within the process or over the network.
pub struct ClientPort {
    /// Requests.
    pub requests: mpsc::Sender<ToService>,
    /// Answers. Ends when the connection does.
    pub answers: mpsc::Receiver<ToClient>,
}

/// What may change while a service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustable {
    /// How long a slot is idle before it gets a job that prefers another host.
    pub locality_wait: Duration,
    /// Users who may see and cancel everybody's batches.
    pub admins: Vec<String>,
    /// The highest priority that counts before other users' jobs. Admins' always count.
    pub max_priority: i32,
    /// Names of hosts beside those in their certificates.
    pub aliases: Aliases,
    /// When the certificate ends that the listener presents, in seconds since the Unix epoch; for
    /// whoever looks.
    pub certificate_until: Option<i64>,
}

impl Default for Adjustable {
    fn default() -> Self {
        Self {
            locality_wait: LOCALITY_WAIT,
            admins: Vec::new(),
            max_priority: 0,
            aliases: Aliases::default(),
            certificate_until: None,
        }
    }
}

/// How a service is run.
#[derive(Clone)]
pub struct Settings {
    /// How long agents may run attempts without a heartbeat; none: they share its fate.
    pub lease: Option<Duration>,
    /// What may change meanwhile.
    pub adjustable: Adjustable,
    /// How long a batch goes on when its client is gone, unless it is detached.
    pub client_lease: Duration,
    /// Keep what [`ServiceHandle::view`] and [`ServiceHandle::metrics`] show.
    pub observed: bool,
    /// Who may join and whose certificates count; none: all of the cluster's do.
    pub enrolment: Option<Arc<Enrolment>>,
}

impl Settings {
    /// Those of a coordinator that nobody has configured.
    pub fn new(lease: Option<Duration>) -> Self {
        Self {
            lease,
            adjustable: Adjustable::default(),
            client_lease: CLIENT_LEASE,
            observed: false,
            enrolment: None,
        }
    }
}

/// Why a service cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the system does not give.
    #[error("no timer or thread for the service")]
    System(#[from] std::io::Error),
    /// What the store has cannot be taken back.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// Starts a service on the current runtime: with a `store` it goes on where that was left; without
/// one it keeps everything in memory, and a client that goes takes its batches with it.
///
/// # Errors
/// [`StartError`].
pub fn start(settings: Settings, store: Option<Store>) -> Result<ServiceHandle, StartError> {
    let (inputs, received) = mpsc::channel(EVENTS);
    let (idle_sender, idle) = watch::channel(false);
    let (behind_sender, behind) = watch::channel(false);
    let timer = BootTimer::new()?;
    let id = store
        .as_ref()
        .map_or_else(|| StoreId(random()), |store| store.id);
    let mut scheduler = Scheduler::new(
        Epoch(random()),
        id,
        settings.lease,
        settings.adjustable.locality_wait,
    );
    scheduler.set_aliases(settings.adjustable.aliases.clone(), BootInstant::now());
    scheduler.set_max_priority(
        settings.adjustable.max_priority,
        &settings.adjustable.admins,
    );
    let (answers, from_store) = mpsc::channel(STORE_DEPTH);
    let kept = match store {
        None => None,
        Some(store) => {
            scheduler = scheduler.durable(settings.client_lease);
            scheduler = scheduler.of_generation(store.generation);
            if let Some(first) = store.hold {
                scheduler = scheduler.holding(first, store.lease);
            }
            let now = BootInstant::now();
            let last = store.replay(|record| scheduler.replay(record, now))?;
            scheduler.numbers_in_use(last);
            scheduler.restored(now);
            let (writer, reader) = store.start(answers)?;
            Some(Kept::new(writer, reader, behind_sender))
        }
    };
    let enrolment = settings.enrolment.clone();
    let service = Service::new(scheduler, kept, settings, inputs.downgrade(), idle_sender)?;
    tokio::spawn(service.run(received, from_store, timer));
    Ok(ServiceHandle {
        inputs,
        next: Arc::new(AtomicU64::new(1)),
        idle,
        behind,
        enrolment,
        intake: Intake::new(),
    })
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

    /// Waits, for `patience` at most, until everything is safe in the store. Without one, all
    /// batches are cancelled, and what is waited for is that their clients have the results.
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

    /// Everything that is counted, in Prometheus' text format. None as above.
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
        // A service that has ended needs none.
        let _ = self.inputs.send(Input::Reload(adjustable)).await;
    }

    /// Waits until the service ends by itself, which it does only when its store is of no more use.
    pub async fn ended(&self) {
        let mut idle = self.idle.clone();
        while idle.changed().await.is_ok() {}
    }

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
        members::admit(self.enrolment.as_ref(), &peer)?;
        tokio::spawn(members::used(self.enrolment.clone(), peer.clone()));
        tokio::spawn(members::guard(self.enrolment.clone(), peer.clone()));
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

    /// Jobs wait in their connection while the store is behind: a client that is faster than the
    /// disk waits for it. So does one that does not read its answers.
    async fn room_for(&self, place: &Connected, message: &ToService) -> InHand {
        if let ToService::Submit { .. } = message {
            let mut behind = self.behind.clone();
            // A service that has ended has no store to wait for.
            let _ = behind.wait_for(|behind| !*behind).await;
        }
        place.take(message).await
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
        self.inputs
            .send(input)
            .await
            .map_err(|_| "the service has ended")?;
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
                    let cert = members::renew(enrolment, peer, request).await;
                    // One that is gone asks again.
                    let _ = answers.send(ToAgent::Renewed { cert }).await;
                });
                continue;
            }
            self.inputs
                .send(Input::Agent(session, message))
                .await
                .map_err(|_| "the service has ended")?;
        }
        drop(answers);
        let reason = peer.closed().await;
        self.inputs
            .send(Input::AgentGone(session, reason))
            .await
            .map_err(|_| "the service has ended".into())
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
        self.inputs
            .send(input)
            .await
            .map_err(|_| "the service has ended")?;
        tracing::debug!(user = peer.identity().name, from = %peer.remote_addr(), "client connected");
        while let Some(message) = receiver.recv().await {
            // One that has gone waits for nothing more.
            let in_hand = tokio::select! {
                biased;
                in_hand = self.room_for(&place, &message) => in_hand,
                _ = peer.closed() => break,
            };
            if let ToService::Renew { request, csr } = message {
                let cert = members::renew(self.enrolment.clone(), peer.clone(), csr).await;
                let _ = answers.send(ToClient::Renewed { request, cert }).await;
                continue;
            }
            self.inputs
                .send(Input::Client(id, message, in_hand))
                .await
                .map_err(|_| "the service has ended")?;
        }
        let reason = peer.closed().await;
        tracing::debug!(user = peer.identity().name, reason, "client disconnected");
        self.inputs
            .send(Input::ClientGone(id))
            .await
            .map_err(|_| "the service has ended".into())
    }
}

/// The control stream and what the peer says first on it.
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

/// Whether two sides can talk; or which of them has to be upgraded.
pub(crate) fn common_version(theirs: (u16, u16), ours: (u16, u16)) -> Result<(), String> {
    if theirs.0 <= ours.1 && ours.0 <= theirs.1 {
        return Ok(());
    }
    let older = if theirs.1 < ours.0 {
        "the side that connects"
    } else {
        "the coordinator"
    };
    Err(format!(
        "no common protocol version (they speak {theirs:?}, the coordinator {ours:?}): upgrade {older}"
    ))
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
