//! The coordinator's driver: one loop owns the [`Scheduler`]; tasks beside it carry messages of agents and clients.
//!
//! Nothing here blocks on a peer. Agents' channels are bounded, and an agent that does not read loses its session; what a client has
//! not taken waits in its outbox, whose size its own acknowledgements bound.

use crate::scheduler::{Effect, Event, Scheduler, Wanted};
use mezcal_common::clock::{BootInstant, WallTime};
use mezcal_common::identity::Role;
use mezcal_common::ids::{BatchId, Epoch, JobNumber, SessionId, StoreId};
use mezcal_common::job::Stop;
use mezcal_common::outcome::JobResult;
use mezcal_common::timer::BootTimer;
use mezcal_common::wire::agent::{self, Hello, LogHeader, ToAgent, ToCoordinator};
use mezcal_common::wire::bulk::BulkReceiver;
use mezcal_common::wire::client::{self, Selector, ToClient, ToService};
use mezcal_common::wire::endpoint::{AcceptError, Channel, Handshake, Listener, Peer, close};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The protocols that a coordinator listens for.
pub const PROTOCOLS: [&[u8]; 2] = [agent::ALPN, client::ALPN];
/// Default lease.
pub const LEASE: Duration = Duration::from_secs(600);
/// Default locality wait: a few heartbeats of a busy queue, and little beside the length of a job that is worth moving to its data
/// (Spark's `spark.locality.wait` is the same).
pub const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Events that may wait; beyond this, connections are not read.
const EVENTS: usize = 1024;
/// Messages to a client that wait in its channel before its outbox takes over.
const CLIENT_DEPTH: usize = 256;
/// Results that a client may have on its way without having taken them.
const RESULT_WINDOW: u64 = 8192;
/// Bytes of results in one message, roughly.
const RESULT_BYTES: usize = 256 * 1024;
/// A connection has to say hello within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Events handled between two rounds of sending.
const TURN: usize = 256;
/// Grace for the jobs of a client that is gone, and of a coordinator that stops.
const GONE_GRACE: Duration = Duration::from_secs(2);
/// Batches that a message names.
const MANY: usize = 10;

/// A client, counted by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

enum Input {
    AgentHello { session: SessionId, name: String, hello: Box<Hello>, sender: mpsc::Sender<ToAgent>, peer: Peer },
    Agent(SessionId, ToCoordinator),
    AgentGone(SessionId),
    LogStream(SessionId, LogHeader, BulkReceiver),
    ClientConnected { client: ClientId, user: String, sender: mpsc::Sender<ToClient>, peer: Option<Peer> },
    Client(ClientId, ToService),
    ClientGone(ClientId),
    Stop,
}

/// The way into a running service.
#[derive(Clone)]
pub struct ServiceHandle {
    inputs: mpsc::Sender<Input>,
    next: Arc<AtomicU64>,
    /// True once a stop has been asked for and nothing is left to deliver.
    idle: watch::Receiver<bool>,
}

/// One client's connection, within the process or over the network.
pub struct ClientPort {
    /// Requests.
    pub requests: mpsc::Sender<ToService>,
    /// Answers. Ends when the connection does.
    pub answers: mpsc::Receiver<ToClient>,
}

/// Starts a service on the current runtime.
///
/// `admins` may cancel and see everybody's batches; a slot that has been idle for `locality_wait` gets a job that prefers another host.
///
/// # Errors
/// No timer.
pub fn start(lease: Option<Duration>, locality_wait: Duration, admins: Vec<String>) -> std::io::Result<ServiceHandle> {
    let (inputs, received) = mpsc::channel(EVENTS);
    let (idle_sender, idle) = watch::channel(false);
    let service = Service {
        stopping: false,
        idle: idle_sender,
        scheduler: Scheduler::new(Epoch(random()), StoreId(random()), lease, locality_wait),
        agents: HashMap::new(),
        clients: HashMap::new(),
        batches: HashMap::new(),
        admins,
        asked: HashMap::new(),
        next_request: 1,
    };
    tokio::spawn(service.run(received, BootTimer::new()?));
    Ok(ServiceHandle { inputs, next: Arc::new(AtomicU64::new(1)), idle })
}

impl ServiceHandle {
    /// A client within this process, on behalf of `user`.
    pub async fn attach(&self, user: &str) -> ClientPort {
        let (requests, mut incoming) = mpsc::channel(CLIENT_DEPTH);
        let (sender, answers) = mpsc::channel(CLIENT_DEPTH);
        let client = ClientId(self.next.fetch_add(1, Ordering::Relaxed));
        let inputs = self.inputs.clone();
        // A service that is gone shows as closed channels.
        let _ = inputs.send(Input::ClientConnected { client, user: user.into(), sender, peer: None }).await;
        tokio::spawn(async move {
            while let Some(message) = incoming.recv().await {
                if inputs.send(Input::Client(client, message)).await.is_err() {
                    return;
                }
            }
            let _ = inputs.send(Input::ClientGone(client)).await;
        });
        ClientPort { requests, answers }
    }

    /// Cancels all batches and waits, for `patience` at most, until their clients have the results.
    pub async fn stop(&self, patience: Duration) {
        // A service that has ended has nothing left to stop.
        let _ = self.inputs.send(Input::Stop).await;
        let _ = tokio::time::timeout(patience, self.idle.clone().wait_for(|idle| *idle)).await;
    }

    /// Accepts connections of agents and clients until the listener is closed.
    pub async fn listen(self, listener: Arc<Listener>) {
        while let Some(handshake) = listener.accept().await {
            let service = self.clone();
            tokio::spawn(async move {
                let from = handshake.remote_addr();
                if let Err(e) = service.serve(handshake).await {
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
        match role {
            Role::Agent if protocol == agent::ALPN => self.serve_agent(peer).await,
            Role::User if protocol == client::ALPN => self.serve_client(peer).await,
            Role::Agent | Role::User | Role::Coordinator => {
                let reason = format!("the {} may not use {}", peer.identity(), String::from_utf8_lossy(&protocol));
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
        let input = Input::AgentHello { session, name, hello: Box::new(hello), sender, peer: peer.clone() };
        self.inputs.send(input).await.map_err(|_| "the service has ended")?;
        let (inputs, streams) = (self.inputs.clone(), peer.clone());
        tokio::spawn(async move {
            while let Ok((header, stream)) = streams.accept_bulk::<LogHeader>().await {
                if inputs.send(Input::LogStream(session, header, stream)).await.is_err() {
                    return;
                }
            }
        });
        while let Some(message) = receiver.recv().await {
            self.inputs.send(Input::Agent(session, message)).await.map_err(|_| "the service has ended")?;
        }
        let reason = peer.closed().await;
        tracing::info!(host = peer.identity().name, reason, "agent disconnected");
        self.inputs.send(Input::AgentGone(session)).await.map_err(|_| "the service has ended".into())
    }

    async fn serve_client(&self, peer: Peer) -> Result<(), String> {
        let (channel, first) = first_message::<ToClient, ToService>(&peer).await?;
        let Some(ToService::Hello { versions, .. }) = first else {
            peer.close(close::PROTOCOL, "the first message must be a hello");
            return Err("a client did not begin with a hello".into());
        };
        refuse_other_versions(&peer, versions, client::VERSIONS)?;
        let (sender, mut receiver) = (channel.sender, channel.receiver);
        let welcome = ToClient::Welcome { version: client::VERSIONS.1, program: mezcal_common::VERSION.into() };
        let _ = sender.send(welcome).await;
        let id = ClientId(self.next.fetch_add(1, Ordering::Relaxed));
        let user = peer.identity().name.clone();
        let input = Input::ClientConnected { client: id, user, sender, peer: Some(peer.clone()) };
        self.inputs.send(input).await.map_err(|_| "the service has ended")?;
        while let Some(message) = receiver.recv().await {
            self.inputs.send(Input::Client(id, message)).await.map_err(|_| "the service has ended")?;
        }
        peer.closed().await;
        self.inputs.send(Input::ClientGone(id)).await.map_err(|_| "the service has ended".into())
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
    tokio::time::timeout(HELLO_TIMEOUT, first).await.map_err(|_| "no hello in time".to_owned())?
}

fn refuse_other_versions(peer: &Peer, theirs: (u16, u16), ours: (u16, u16)) -> Result<(), String> {
    if theirs.0 <= ours.1 && ours.0 <= theirs.1 {
        return Ok(());
    }
    let older = if theirs.1 < ours.0 { "the side that connects" } else { "the coordinator" };
    let reason = format!("no common protocol version (they speak {theirs:?}, the coordinator {ours:?}): upgrade {older}");
    peer.close(close::REFUSED, &reason);
    Err(reason)
}

struct AgentLink {
    sender: mpsc::Sender<ToAgent>,
    peer: Peer,
}

struct Client {
    sender: mpsc::Sender<ToClient>,
    outbox: VecDeque<ToClient>,
    batches: HashSet<BatchId>,
    user: String,
    /// None within this process.
    peer: Option<Peer>,
}

/// A request that waits for its answer, and who made it.
#[derive(Clone, Copy)]
struct Asked {
    client: ClientId,
    /// The client's own number for it.
    request: u64,
    /// The agent that has to answer it, if one has.
    session: Option<SessionId>,
    answered: bool,
}

/// Results of one batch on their way to its client.
struct Delivery {
    client: ClientId,
    owner: String,
    waiting: VecDeque<(JobNumber, JobResult)>,
    sent: u64,
    taken: u64,
    /// The scheduler has forgotten the batch: once all is taken, so do we.
    done: bool,
}

struct Service {
    scheduler: Scheduler,
    agents: HashMap<SessionId, AgentLink>,
    clients: HashMap<ClientId, Client>,
    batches: HashMap<BatchId, Delivery>,
    admins: Vec<String>,
    /// By the scheduler's number.
    asked: HashMap<u64, Asked>,
    next_request: u64,
    stopping: bool,
    idle: watch::Sender<bool>,
}

impl Service {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut timer: BootTimer) {
        loop {
            tokio::select! {
                biased;
                input = inputs.recv() => {
                    let Some(input) = input else { return };
                    self.handle(input);
                    for _ in 0..TURN {
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
            if self.stopping && self.batches.is_empty() {
                let _ = self.idle.send(true);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = BootInstant::now();
        match input {
            Input::AgentHello { session, name, hello, sender, peer } => {
                tracing::info!(host = name, slots = hello.slots, version = hello.program, "agent connected");
                self.agents.insert(session, AgentLink { sender, peer });
                self.scheduler.handle(Event::AgentHello { session, name, hello: *hello }, now);
            }
            // Only the agent that was asked may answer.
            Input::Agent(session, ToCoordinator::LogsAnswer { request, .. })
                if self.asked.get(&request).is_none_or(|asked| asked.session != Some(session)) => {}
            Input::Agent(session, message) => self.scheduler.handle(Event::Agent(session, message), now),
            Input::AgentGone(session) => {
                self.agents.remove(&session);
                let unanswered = self.asked.values().filter(|a| a.session == Some(session) && !a.answered);
                for Asked { client, request, .. } in unanswered.copied().collect::<Vec<_>>() {
                    let streams = Err("its host was lost before it answered".into());
                    self.tell_client(client, ToClient::LogsAnswer { request, streams });
                }
                self.asked.retain(|_, a| a.session != Some(session));
                self.scheduler.handle(Event::AgentGone(session), now);
            }
            Input::LogStream(session, header, stream) => self.relay(session, header, stream),
            Input::ClientConnected { client, user, sender, peer } => {
                let mut outbox = VecDeque::new();
                let (agents, engines) = self.scheduler.fleet();
                outbox.push_back(ToClient::Fleet { agents, engines });
                self.clients.insert(client, Client { sender, outbox, batches: HashSet::new(), user, peer });
            }
            Input::Stop => {
                self.stopping = true;
                for batch in self.batches.keys().copied().collect::<Vec<_>>() {
                    self.end_batch(batch, Some("the coordinator was stopped".into()), now);
                }
            }
            Input::Client(client, message) => self.client_message(client, message, now),
            Input::ClientGone(client) => {
                let Some(gone) = self.clients.remove(&client) else { return };
                self.asked.retain(|_, asked| asked.client != client);
                for batch in gone.batches {
                    self.batches.remove(&batch);
                    self.end_batch(batch, None, now);
                }
            }
        }
    }

    /// Nobody is there for it any more.
    fn end_batch(&mut self, batch: BatchId, why: Option<Arc<str>>, now: BootInstant) {
        let what = vec![Wanted { batch, job: None }];
        self.scheduler.handle(Event::Cancel { request: None, what, stop: Stop::after(GONE_GRACE), why }, now);
        self.scheduler.handle(Event::Close { batch }, now);
    }

    fn client_message(&mut self, id: ClientId, message: ToService, now: BootInstant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let named = match &message {
            ToService::Submit { batch, .. }
            | ToService::Close { batch }
            | ToService::Taken { batch, .. }
            | ToService::OutputTaken { batch, .. } => Some(*batch),
            ToService::Open { .. }
            | ToService::Hello { .. }
            | ToService::Hosts
            | ToService::Cancel { .. }
            | ToService::Logs { .. }
            | ToService::Why { .. } => None,
        };
        // Only the client that opened a batch may touch it.
        if named.is_some_and(|batch| !client.batches.contains(&batch)) {
            client.outbox.push_back(ToClient::Refused { reason: "there is no such batch of yours".into() });
            return;
        }
        let event = match message {
            ToService::Hello { .. } => return,
            ToService::Open { terms } => {
                let batch = terms.context.batch;
                if self.stopping {
                    client.outbox.push_back(ToClient::Refused { reason: "the coordinator is stopping".into() });
                    return;
                }
                if self.batches.contains_key(&batch) {
                    client.outbox.push_back(ToClient::Refused { reason: "that batch exists already".into() });
                    return;
                }
                client.batches.insert(batch);
                let owner = client.user.clone();
                self.batches
                    .insert(batch, Delivery { client: id, owner, waiting: VecDeque::new(), sent: 0, taken: 0, done: false });
                Event::Open { user: client.user.clone(), terms: Box::new(terms) }
            }
            ToService::Submit { batch, host_sets, jobs } => Event::Submit { batch, host_sets, jobs },
            ToService::Close { batch } => Event::Close { batch },
            ToService::Taken { batch, results } => {
                if let Some(delivery) = self.batches.get_mut(&batch) {
                    delivery.taken = results.clamp(delivery.taken, delivery.sent);
                    if delivery.done && delivery.waiting.is_empty() && delivery.taken == delivery.sent {
                        self.batches.remove(&batch);
                        client.batches.remove(&batch);
                    }
                }
                return;
            }
            ToService::Cancel { request, what, stop } => {
                let (user, own) = (client.user.clone(), client.batches.clone());
                match what.iter().map(|selector| self.select(&user, selector)).collect::<Result<Vec<_>, _>>() {
                    Ok(wanted) => {
                        let what: Vec<Wanted> = wanted.into_iter().flatten().collect();
                        let elsewhere = what.iter().any(|w| !own.contains(&w.batch));
                        let why = elsewhere.then(|| format!("cancelled by {user}").into());
                        let request = Some(self.ask(id, request));
                        Event::Cancel { request, what, stop, why }
                    }
                    Err(reason) => return self.tell_client(id, ToClient::Refused { reason }),
                }
            }
            ToService::Logs { request, batch, job, wish } => {
                let user = client.user.clone();
                match self.find_batch(&user, &batch) {
                    Ok(batch) => Event::Logs { request: self.ask(id, request), batch, job, wish },
                    Err(reason) => return self.tell_client(id, ToClient::LogsAnswer { request, streams: Err(reason) }),
                }
            }
            ToService::Hosts => {
                client.outbox.push_back(ToClient::Hosts(self.scheduler.host_status(now)));
                return;
            }
            ToService::Why { request, batch, job } => {
                let user = client.user.clone();
                let reasons = self.find_batch(&user, &batch).and_then(|batch| self.scheduler.why(batch, &job, now));
                return self.tell_client(id, ToClient::Why { request, reasons });
            }
            ToService::OutputTaken { batch, job, bytes } => Event::OutputTaken { batch, job, bytes },
        };
        self.scheduler.handle(event, now);
    }

    /// A number for the scheduler that leads back to a client's request.
    fn ask(&mut self, client: ClientId, request: u64) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        self.asked.insert(number, Asked { client, request, session: None, answered: false });
        number
    }

    /// What a user means. Others' batches do not exist for them.
    fn select(&self, user: &str, selector: &Selector) -> Result<Vec<Wanted>, String> {
        Ok(match selector {
            Selector::Mine => self.batches_of(user).map(|batch| Wanted { batch, job: None }).collect(),
            Selector::Batch(text) => self.wanted(self.find_batch(user, text)?, None),
            Selector::Job { batch, job } => self.wanted(self.find_batch(user, batch)?, Some(job.clone())),
        })
    }

    /// Of a batch whose jobs have all ended nothing can be cancelled.
    fn wanted(&self, batch: BatchId, job: Option<String>) -> Vec<Wanted> {
        if self.batches.get(&batch).is_some_and(|d| d.done) { Vec::new() } else { vec![Wanted { batch, job }] }
    }

    fn batches_of(&self, user: &str) -> impl Iterator<Item = BatchId> {
        self.batches.iter().filter(move |(_, d)| d.owner == user && !d.done).map(|(batch, _)| *batch)
    }

    fn find_batch(&self, user: &str, text: &str) -> Result<BatchId, String> {
        let admin = self.admins.iter().any(|a| a == user);
        let visible = self.batches.iter().filter(|(_, d)| admin || d.owner == user).map(|(batch, _)| *batch);
        let named = |batch: &BatchId| batch.to_string().starts_with(&text.to_ascii_lowercase());
        // Without a name it is the only one that they have themselves.
        let found: Vec<BatchId> = if text.is_empty() { self.batches_of(user).collect() } else { visible.filter(named).collect() };
        match (found.as_slice(), text) {
            ([only], _) => Ok(*only),
            ([], _) => {
                let own: Vec<String> = self.batches_of(user).take(MANY).map(|b| b.to_string()).collect();
                let own = if own.is_empty() { "you have none there".into() } else { format!("yours are {}", own.join(", ")) };
                Err(if text.is_empty() { own } else { format!("no batch of yours begins with {text:?}; {own}") })
            }
            (several, "") => Err(format!("you have {} batches; write BATCH/JOB", several.len())),
            (several, _) => Err(format!("{} batches begin with {text:?}; write more of its id", several.len())),
        }
    }

    fn tell_client(&mut self, client: ClientId, message: ToClient) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.outbox.push_back(message);
        }
    }

    /// Passes a stream of output on to whoever asked for it.
    fn relay(&mut self, session: SessionId, header: LogHeader, mut from: BulkReceiver) {
        let Some(asked) = self.asked.get(&header.request).filter(|a| a.session == Some(session)) else { return };
        let Some(peer) = self.clients.get(&asked.client).and_then(|client| client.peer.clone()) else { return };
        let header = LogHeader { request: asked.request, stream: header.stream };
        tokio::spawn(async move {
            let mut to = peer.open_bulk(&header).await?;
            loop {
                tokio::select! {
                    read = from.read() => match read? {
                        Some(data) => to.write(&data).await?,
                        None => break,
                    },
                    // A reader that has left must not have to wait for the next line to be let go.
                    () = to.abandoned() => return Ok(()),
                }
            }
            to.finish();
            // A side that is gone has told the other one by resetting its stream.
            Ok::<_, mezcal_common::wire::bulk::CutShort>(())
        });
    }

    fn perform(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            match effect {
                Effect::ToAgent(session, message) => self.tell_agent(session, message),
                Effect::CloseSession { session, refused, reason } => {
                    if let Some(link) = self.agents.remove(&session) {
                        link.peer.close(if refused { close::REFUSED } else { close::DONE }, &reason);
                    }
                }
                Effect::Persist(_) => {}
                Effect::Result { batch, job, result, .. } => {
                    if let Some(delivery) = self.batches.get_mut(&batch) {
                        delivery.waiting.push_back((job, result));
                    }
                }
                Effect::Accepted { batch, jobs } => self.tell_client_of(batch, ToClient::Accepted { batch, jobs }),
                Effect::Refused { batch, reason } => self.tell_client_of(batch, ToClient::Refused { reason }),
                Effect::Notice { batch, notice } => self.tell_client_of(batch, ToClient::Notice { batch, notice }),
                Effect::Output { batch, job, host, stream, data } => {
                    self.tell_client_of(batch, ToClient::Output { batch, job, host, stream, data });
                }
                Effect::Cancelled { request, result } => {
                    if let Some(Asked { client, request, .. }) = self.asked.remove(&request) {
                        let answer = match result {
                            Ok(summary) => ToClient::Cancelled { request, summary },
                            Err(reason) => ToClient::Refused { reason },
                        };
                        self.tell_client(client, answer);
                    }
                }
                Effect::LogsAnswer { request, streams } => {
                    // It stays known for as long as its client: streams may come later.
                    let asked = self.asked.get_mut(&request).map(|asked| {
                        asked.answered = true;
                        *asked
                    });
                    if let Some(Asked { client, request, .. }) = asked {
                        self.tell_client(client, ToClient::LogsAnswer { request, streams });
                    }
                }
                Effect::BatchDone { batch } => {
                    if let Some(delivery) = self.batches.get_mut(&batch) {
                        delivery.done = true;
                    }
                }
                Effect::Fleet { agents, engines } => {
                    for client in self.clients.values_mut() {
                        // Only the newest count matters to a client that is slow to read.
                        client.outbox.retain(|m| !matches!(m, ToClient::Fleet { .. }));
                        client.outbox.push_back(ToClient::Fleet { agents, engines });
                    }
                }
            }
        }
    }

    fn tell_agent(&mut self, session: SessionId, message: ToAgent) {
        let clock = WallTime::now();
        if let ToAgent::Logs { request, .. } = &message
            && let Some(asked) = self.asked.get_mut(request)
        {
            asked.session = Some(session);
        }
        let message = match message {
            ToAgent::Welcome { version, program, session, store, lease, first_engine, clock: _ } => {
                ToAgent::Welcome { version, program, session, store, lease, first_engine, clock }
            }
            ToAgent::HeartbeatSeen { sent, clock: _ } => ToAgent::HeartbeatSeen { sent, clock },
            other => other,
        };
        if let Some(link) = self.agents.get(&session)
            && let Err(mpsc::error::TrySendError::Full(_)) = link.sender.try_send(message)
        {
            tracing::warn!(host = link.peer.identity().name, "agent does not read; closing its session");
            link.peer.close(close::STALLED, "too many unread messages");
            self.agents.remove(&session);
        }
    }

    fn tell_client_of(&mut self, batch: BatchId, message: ToClient) {
        if let Some(delivery) = self.batches.get(&batch) {
            self.tell_client(delivery.client, message);
        }
    }

    /// Hands clients what they have room for. What stays is tried again at their next acknowledgement.
    fn deliver(&mut self) {
        for client in self.clients.values_mut() {
            while let Some(message) = client.outbox.pop_front() {
                if let Err(mpsc::error::TrySendError::Full(message)) = client.sender.try_send(message) {
                    client.outbox.push_front(message);
                    break;
                }
            }
        }
        for (batch, delivery) in &mut self.batches {
            let Some(client) = self.clients.get(&delivery.client) else { continue };
            // Output and notices that came before a result reach the client before it.
            while client.outbox.is_empty() && !delivery.waiting.is_empty() && delivery.sent < delivery.taken + RESULT_WINDOW {
                let Ok(permit) = client.sender.try_reserve() else { break };
                let room = (delivery.taken + RESULT_WINDOW - delivery.sent) as usize;
                let mut bytes = 0;
                let count = delivery
                    .waiting
                    .iter()
                    .take(room)
                    .take_while(|(_, result)| {
                        bytes += size_estimate(result);
                        bytes <= RESULT_BYTES
                    })
                    .count()
                    .max(1);
                let results: Vec<_> = delivery.waiting.drain(..count).collect();
                delivery.sent += results.len() as u64;
                permit.send(ToClient::Results { batch: *batch, results });
            }
        }
    }
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn size_estimate(result: &JobResult) -> usize {
    let outcome = &result.outcome;
    let tails = [&outcome.stdout_tail, &outcome.stderr_tail].into_iter().flatten().map(bytes::Bytes::len).sum::<usize>();
    128 + tails + outcome.error.as_ref().map_or(0, String::len)
}
