//! The agent process: performs what [`Supervisor`] decides.
//!
//! One loop on one thread owns the supervisor. Beside it: a task that keeps a connection to the
//! coordinator, and the links to keeper and engines. All of them only turn what they hear into
//! inputs.

use crate::keeper::driver::ContainmentWish;
use crate::kernel::packet;
use crate::supervisor::generations::Generations;
use crate::supervisor::host::Host;
use crate::supervisor::logs::{Logs, Request};
use crate::supervisor::pauses::Pauses;
use crate::supervisor::renewal::{Asking, Renewal};
use crate::supervisor::users::Finder;
use crate::supervisor::{Carried, Effect, Event, HEARTBEAT, Supervisor};
use bytes::BytesMut;
use mezcal_common::message::agent::{self, Hello, ToAgent, ToCoordinator};
use mezcal_common::message::engine::{
    COUNTS, FromEngine, FromKeeper, PROGRAM, TELL_FAILURES, ToEngine, ToKeeper,
};
use mezcal_common::model::clock::{BootInstant, OffsetEstimate, WallTime};
use mezcal_common::model::escape::chain;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex, Generation, StoreId};
use mezcal_common::model::outcome::{Containment, Ended, Written};
use mezcal_common::system::limits;
use mezcal_common::system::proc;
use mezcal_common::system::service_manager;
use mezcal_common::system::timer::BootTimer;
use mezcal_common::wire::codec;
use mezcal_common::wire::endpoint::{ConnectError, Connector, Peer, close};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Inputs that may wait; beyond this the links are not read.
const INPUTS: usize = 1024;
/// A service without a coordinator is up all the same after this long: a host must not fail to boot
/// for that.
const READY_WITHOUT: Duration = Duration::from_secs(30);
/// Room for what an engine says at once, in bytes.
const ENGINE_MESSAGES: usize = 4096;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long it may take to give back what has not started, when an agent leaves that serves users.
const LEAVE: Duration = Duration::from_secs(2);

/// What an agent is.
pub struct AgentParts {
    /// The host's name, from the certificate.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// Jobs at a time.
    pub slots: u16,
    /// Whose jobs run here, in the order of their keepers; none: everybody's, with one keeper,
    /// which ends with the agent when that is stopped.
    pub users: Option<Vec<String>>,
    /// What the agent before this one in the same process has left to it ([`run`]).
    pub carried: Carried,
    /// HOST:PORT.
    pub coordinator: String,
    /// How to get there.
    pub connector: Connector,
    /// How long to wait for a first answer.
    pub connect_timeout: Duration,
    /// The service manager hears how it goes: this process is a service, and not a run.
    pub service: bool,
    /// When it wants another certificate.
    pub renewal: Option<Renewal>,
    /// Which generations of which stores were met here.
    pub generations: Generations,
}

/// Where attempts run: the other end of the links to engines. Real ones come from [`engines_of`].
pub struct Engines {
    /// What the engines and their keepers say.
    inputs: mpsc::Receiver<EngineInput>,
    /// For keepers that come later.
    sender: mpsc::Sender<EngineInput>,
    /// Their keepers: `slots` engines each.
    keepers: Vec<OwnedFd>,
    /// Who looks for the keepers of other users.
    finder: Option<Finder>,
}

impl Engines {
    /// Engines that have no keeper, and say what `sender` hands on.
    pub fn without_keeper(
        sender: mpsc::Sender<EngineInput>,
        inputs: mpsc::Receiver<EngineInput>,
    ) -> Self {
        Self {
            inputs,
            sender,
            keepers: Vec::new(),
            finder: None,
        }
    }

    /// The same, and those of other users as they come.
    #[must_use]
    pub fn and_others(self, finder: Finder) -> Self {
        Self {
            finder: Some(finder),
            ..self
        }
    }
}

/// What is heard from engines and their keepers.
#[expect(
    clippy::large_enum_variant,
    reason = "the largest is the most frequent one"
)]
pub enum EngineInput {
    /// A new link, over which an engine can be told things. Without a bound of its own: an engine
    /// has one attempt at a time, and what is said about it is bounded by its output window and the
    /// coordinator's requests. Nothing of it may be dropped.
    Linked(EngineIndex, Link, mpsc::UnboundedSender<ToEngine>),
    /// A message.
    Said(EngineIndex, Link, FromEngine),
    /// A link has come to its end.
    Unlinked(EngineIndex, Link),
    /// What a keeper has to hold attempts together.
    Containment(Containment),
    /// Why an engine died or could not be started.
    Fails(EngineIndex, String),
    /// An engine died.
    Ended {
        /// Which.
        engine: EngineIndex,
        /// What it ran, if the keeper knows.
        attempt: Option<AttemptId>,
        /// Why the keeper killed it; `Lost` if it died by itself.
        ended: Ended,
        /// Processes killed.
        killed: u32,
        /// Processes alive.
        survivors: u32,
    },
    /// Nothing is heard any more from the keeper of a set: it is gone, and its engines with it, or
    /// it has said what it may not say.
    KeeperGone(usize, String),
    /// The keeper of a user is there.
    Found(String, OwnedFd),
}

/// Which of the links to an engine: what comes over one that has been replaced is passed over.
pub type Link = u32;

enum Input {
    Connected {
        sender: mpsc::Sender<ToCoordinator>,
        peer: Peer,
        version: u16,
        store: StoreId,
        lease: Option<Duration>,
        first_engine: EngineId,
        clock: WallTime,
        /// When our hello left.
        hello: (WallTime, BootInstant),
    },
    Message(ToAgent),
    Disconnected,
}

/// Why an agent has ended.
#[derive(Clone, PartialEq, Eq)]
pub enum Left {
    /// It was asked to.
    Stopped,
    /// A keeper is gone, and its engines with it.
    KeeperGone,
    /// The keeper of engines of an earlier version has ended, as it was asked to when nothing ran
    /// there.
    KeeperReplaced,
    /// Other users' jobs run here from now on.
    Changed,
    /// Its certificate has expired while the coordinator was out of reach.
    Expired,
    /// It has a new certificate, for a new key, both in PEM form.
    Renewed {
        /// The certificate and what stands between it and the root.
        cert: String,
        /// Its key.
        key: String,
    },
}

/// Runs an agent until `stop` completes, its own keeper is lost, or `changed` completes. At a stop
/// an agent that has its own keeper kills what runs, reports it and leaves; one that serves users
/// leaves their jobs to their keepers. What has not started is left to the agent that comes next in
/// this process.
///
/// # Errors
/// A timer cannot be made.
pub async fn run(
    parts: AgentParts,
    mut engines: Engines,
    stop: impl Future<Output = ()>,
    changed: impl Future<Output = ()>,
) -> Result<(Left, Carried)> {
    let mut host = Host::new();
    let hello = Hello {
        versions: agent::VERSIONS,
        program: mezcal_common::VERSION.into(),
        // Keepers of users come and go: with them it is the place where they are.
        keeper: engines
            .finder
            .as_ref()
            .map_or_else(|| keepers_number(&engines.keepers), Finder::number)
            .unwrap_or_else(random),
        boot_id: proc::boot_id(),
        slots: parts.slots,
        aliases: parts.aliases.clone(),
        cpus: u32::from(crate::supervisor::host::usable_cpus()),
        memory: host.memory(),
        users: parts.users.clone(),
    };
    let (inputs, mut heard) = mpsc::channel(INPUTS);
    let (leave, leaving) = tokio::sync::watch::channel(false);
    let address = parts.coordinator.clone();
    let (hello, hello_now) = tokio::sync::watch::channel(hello);
    let connection = tokio::spawn(keep_connected(
        parts.connector,
        parts.coordinator,
        parts.connect_timeout,
        hello_now,
        parts.generations,
        inputs,
        leaving,
    ));
    let (present, known) = tokio::sync::watch::channel(parts.users.clone().unwrap_or_default());
    let finder = engines
        .finder
        .take()
        .map(|finder| tokio::spawn(finder.look(known, engines.sender.clone())));

    let own_keeper = parts.users.is_none();
    let mut standing = parts.service.then(|| Standing::new(&address));
    let mut supervisor = Supervisor::new(parts.slots, parts.users).carrying(parts.carried);
    if parts.service {
        supervisor = supervisor.of_version(mezcal_common::VERSION);
    }
    let mut offset = OffsetEstimate::default();
    let mut links = Links::default();
    let mut to_coordinator: Option<mpsc::Sender<ToCoordinator>> = None;
    let mut peer: Option<Peer> = None;
    let mut logs = Logs::new();
    let mut keepers: Vec<Keeper> = std::mem::take(&mut engines.keepers)
        .into_iter()
        .map(Keeper::new)
        .collect();
    let mut outgoing: VecDeque<ToCoordinator> = VecDeque::new();
    let mut timer = BootTimer::new()?;
    let mut next_reading = BootInstant::now();
    let mut stopping: Option<BootInstant> = None;
    let mut asking = Asking::new(parts.renewal, BootInstant::now());
    tokio::pin!(stop, changed);
    let result = loop {
        let mut exit = false;
        while let Some(effect) = supervisor.poll_effect() {
            match effect {
                Effect::ToCoordinator(message) => outgoing.push_back(message),
                Effect::ToEngine(index, message) => links.tell(index, message),
                // Before the engine's message, which comes next: the keeper hears of it first.
                Effect::ToKeeper(set, message) => {
                    if let Some(keeper) = keepers.get_mut(set) {
                        keeper.tell(Some(message));
                    }
                }
                Effect::Exit => exit = true,
            }
        }
        keepers.iter_mut().for_each(|keeper| keeper.tell(None));
        for (attempt, request) in logs.settle(|attempt| supervisor.engine_of(attempt).is_some()) {
            if let Some(engine) = supervisor.engine_of(attempt) {
                links.tell(engine, ToEngine::Hide { request });
            }
        }
        send_what_fits(&mut outgoing, to_coordinator.as_ref());
        if exit || stopping.is_some_and(|until| BootInstant::now() > until) {
            break Ok(Left::Stopped);
        }
        let waiting = if outgoing.is_empty() {
            None
        } else {
            to_coordinator.clone()
        };
        let due = supervisor
            .poll_timeout()
            .into_iter()
            .chain([next_reading])
            .chain(stopping)
            .min();
        tokio::select! {
            biased;
            Some(input) = heard.recv() => {
                let now = BootInstant::now();
                let event = match input {
                    Input::Connected { sender, peer: coordinator, version, store, lease, first_engine, clock, hello } => {
                        peer = Some(coordinator);
                        offset.sample(hello, clock, now);
                        supervisor.handle(Event::Measured { load: host.load(), clock_offset: offset.seconds() }, now);
                        to_coordinator = Some(sender);
                        standing.iter_mut().for_each(Standing::connected);
                        outgoing.clear();
                        Event::Welcomed { version, store, lease, first_engine, hello_sent: hello.1 }
                    }
                    Input::Message(ToAgent::Logs { request, attempt, spec, context, wish }) => {
                        let engine = supervisor.engine_of(attempt);
                        if supervisor.has_queued(attempt) {
                            let streams = Err("it has not started yet; it waits for a slot of its host".into());
                            outgoing.push_back(ToCoordinator::LogsAnswer { request, streams });
                        } else if let (Some(peer), Some(answers)) = (peer.clone(), to_coordinator.clone()) {
                            let owners = supervisor.owners_of(attempt.key.batch);
                            let wanted = Request { request, attempt, spec, context, wish, owners };
                            let show = logs.begin(wanted, engine, peer, answers);
                            if let Some(engine) = engine.filter(|_| show) {
                                links.tell(engine, ToEngine::Show { request, attempt, follow: wish.follow });
                            }
                        }
                        continue;
                    }
                    Input::Message(ToAgent::Renewed { cert: Ok(cert) }) => match asking.answered() {
                        Some(key) => break Ok(Left::Renewed { cert, key }),
                        None => continue,
                    },
                    Input::Message(ToAgent::Renewed { cert: Err(why) }) => {
                        tracing::warn!("no new certificate: {why}; trying again");
                        continue;
                    }
                    Input::Message(message) => {
                        if let ToAgent::HeartbeatSeen { sent, clock } = message {
                            let wall = WallTime(WallTime::now().0 - now.since(sent).as_micros() as i64);
                            offset.sample((wall, sent), clock, now);
                        }
                        Event::Coordinator(message)
                    }
                    Input::Disconnected => {
                        to_coordinator = None;
                        peer = None;
                        logs.clear();
                        outgoing.clear();
                        Event::Disconnected
                    }
                };
                supervisor.handle(event, now);
            }
            Some(input) = engines.inputs.recv() => {
                let now = BootInstant::now();
                match input {
                    EngineInput::Linked(index, link, sender) => {
                        links.replace(index, link, sender);
                        supervisor.handle(Event::LinkMade(index), now);
                    }
                    EngineInput::Said(index, link, _) | EngineInput::Unlinked(index, link) if !links.is_present(index, link) => {}
                    EngineInput::Said(index, _, FromEngine::Shown { request: PROGRAM, data, .. }) => {
                        supervisor.handle(Event::Runs(index, String::from_utf8_lossy(&data).into_owned()), now);
                    }
                    EngineInput::Said(index, _, FromEngine::Shown { request, stream, data }) => {
                        logs.shown(index, request, stream, data);
                    }
                    EngineInput::Said(index, _, FromEngine::ShownAll { request }) => logs.shown_all(index, request),
                    EngineInput::Said(index, _, message) => supervisor.handle(Event::Engine(index, message), now),
                    EngineInput::Unlinked(index, _) => {
                        links.remove(index);
                        supervisor.handle(Event::LinkLost(index), now);
                    }
                    EngineInput::Fails(engine, why) => supervisor.handle(Event::EngineFails { engine, why }, now),
                    EngineInput::Containment(kind) => supervisor.handle(Event::Containment(kind), now),
                    EngineInput::Ended { engine, attempt, ended, killed, survivors } => {
                        supervisor.handle(Event::EngineEnded { engine, attempt, ended, killed, survivors }, now);
                    }
                    // What it ran has been killed, as was wanted; what has been heard of that is
                    // still to be reported.
                    EngineInput::KeeperGone(..) if own_keeper && stopping.is_some() && supervisor.busy() == 0 => {}
                    EngineInput::KeeperGone(..) if own_keeper && stopping.is_some() => break Ok(Left::Stopped),
                    EngineInput::KeeperGone(..) if own_keeper && supervisor.replaces_engines() => break Ok(Left::KeeperReplaced),
                    EngineInput::KeeperGone(..) if own_keeper => break Ok(Left::KeeperGone),
                    EngineInput::KeeperGone(set, why) => {
                        if let Some(keeper) = keepers.get_mut(set) {
                            keeper.hang_up();
                        }
                        links.remove_all(set, parts.slots);
                        supervisor.handle(Event::KeeperGone { set, why }, now);
                        let gone = supervisor.user_of(set).map(str::to_owned);
                        present.send_modify(|users| users.retain(|user| Some(user) != gone.as_ref()));
                        hello.send_modify(|hello| hello.users = Some(present.borrow().clone()));
                    }
                    EngineInput::Found(user, keeper) => {
                        supervisor.handle(Event::KeeperHere { user: user.clone() }, now);
                        let Some(set) = supervisor.set_of(&user) else { continue };
                        match hear(&keeper, set, parts.slots, &parts.name, &engines.sender) {
                            Ok(()) => {
                                tracing::info!(user, "the engines of {user} are there");
                                let keeper = Keeper::new(keeper);
                                if set < keepers.len() { keepers[set] = keeper } else { keepers.push(keeper) }
                                present.send_modify(|users| users.push(user));
                                hello.send_modify(|hello| hello.users = Some(present.borrow().clone()));
                            }
                            Err(e) => {
                                let why = format!("their keeper cannot be talked to: {e}");
                                supervisor.handle(Event::KeeperGone { set, why }, now);
                            }
                        }
                    }
                }
            }
            permit = reserve(waiting.as_ref()), if waiting.is_some() => match permit {
                Some(permit) => {
                    if let Some(message) = outgoing.pop_front() {
                        permit.send(message);
                    }
                }
                // The connection is ending; `Disconnected` is on its way.
                None => to_coordinator = None,
            },
            armed = timer.until(due) => {
                armed?;
                let now = BootInstant::now();
                if next_reading <= now {
                    next_reading = now + HEARTBEAT;
                    let slots = (supervisor.busy(), usize::from(parts.slots));
                    standing.iter_mut().for_each(|standing| standing.tick(to_coordinator.is_some(), slots));
                    let wall = WallTime::now();
                    match to_coordinator {
                        None if asking.is_over(wall) => break Ok(Left::Expired),
                        None => {}
                        Some(_) => match asking.ask(wall, now) {
                            Ok(question) => outgoing.extend(question),
                            Err(e) => tracing::error!("no request for a new certificate: {}", chain(&e)),
                        },
                    }
                    supervisor.handle(Event::Measured { load: host.load(), clock_offset: offset.seconds() }, now);
                }
                supervisor.handle_timeout(now);
            }
            () = &mut changed, if stopping.is_none() => break Ok(Left::Changed),
            () = &mut stop, if stopping.is_none() => {
                let now = BootInstant::now();
                if own_keeper {
                    tracing::info!(running = supervisor.busy(), "stopping");
                    stopping = Some(now + GOODBYE);
                    supervisor.handle(Event::Stop, now);
                } else {
                    tracing::info!(running = supervisor.busy(), "leaving; what runs goes on in its users' engines");
                    stopping = Some(now + LEAVE);
                    supervisor.handle(Event::Leave, now);
                }
            }
        }
    };
    drop((to_coordinator, peer));
    let _ = leave.send(true);
    let _ = tokio::time::timeout(GOODBYE, connection).await;
    if let Some(finder) = finder {
        finder.abort();
    }
    for keeper in &mut keepers {
        match &result {
            Ok(Left::Stopped) if own_keeper => keeper.tell(Some(ToKeeper::Stop)),
            _ if own_keeper => {}
            // Whoever listens to it is to end, also where the keeper never would.
            _ => keeper.hang_up(),
        }
    }
    result.map(|left| (left, supervisor.leave()))
}

/// The links to engines, by the engines' numbers.
#[derive(Default)]
struct Links(HashMap<EngineIndex, (Link, mpsc::UnboundedSender<ToEngine>)>);

impl Links {
    fn replace(&mut self, index: EngineIndex, link: Link, sender: mpsc::UnboundedSender<ToEngine>) {
        self.0.insert(index, (link, sender));
    }

    fn is_present(&self, index: EngineIndex, link: Link) -> bool {
        self.0
            .get(&index)
            .is_some_and(|(present, _)| *present == link)
    }

    fn remove(&mut self, index: EngineIndex) {
        self.0.remove(&index);
    }

    fn remove_all(&mut self, set: usize, slots: u16) {
        self.0
            .retain(|index, _| usize::from(index.0 / slots) != set);
    }

    fn tell(&self, index: EngineIndex, message: ToEngine) {
        // The end of a closed link is on its way here.
        if let Some((_, link)) = self.0.get(&index)
            && let Err(e) = link.send(message)
        {
            tracing::debug!(engine = index.0, error = %e, "message to an engine dropped");
        }
    }
}

/// A keeper, and what its socket has not taken.
struct Keeper {
    socket: Option<OwnedFd>,
    waiting: VecDeque<ToKeeper>,
}

impl Keeper {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            waiting: VecDeque::new(),
        }
    }

    /// Hands over what the socket takes. One that is stopped may miss the oldest; a lease is said
    /// again and again.
    fn tell(&mut self, message: Option<ToKeeper>) {
        let Some(socket) = &self.socket else { return };
        self.waiting.extend(message);
        while let Some(message) = self.waiting.front() {
            // A keeper that is gone is noticed by the thread that listens to it.
            let full = packet::send(socket, message, None)
                .is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
            if full && self.waiting.len() < INPUTS {
                break;
            }
            self.waiting.pop_front();
        }
    }

    fn hang_up(&mut self) {
        self.waiting.clear();
        if let Some(socket) = self.socket.take() {
            // The thread that listens has the socket, too.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}

/// What the service manager is told.
struct Standing {
    coordinator: String,
    ready: bool,
    since: BootInstant,
}

impl Standing {
    fn new(coordinator: &str) -> Self {
        Self {
            coordinator: coordinator.into(),
            ready: false,
            since: BootInstant::now(),
        }
    }

    fn connected(&mut self) {
        self.ready = true;
        service_manager::ready(&format!("connected to {}", self.coordinator));
    }

    /// The loop has come round.
    fn tick(&mut self, connected: bool, (busy, slots): (usize, usize)) {
        let status = match connected {
            true => format!(
                "connected to {}, {busy}/{slots} slots busy",
                self.coordinator
            ),
            false => format!(
                "{} is out of reach, trying; {busy}/{slots} slots busy",
                self.coordinator
            ),
        };
        if !self.ready && BootInstant::now().since(self.since) >= READY_WITHOUT {
            self.ready = true;
            service_manager::ready(&status);
        }
        service_manager::alive(&status);
    }
}

/// Hands over what the channel takes without waiting.
fn send_what_fits(
    outgoing: &mut VecDeque<ToCoordinator>,
    to: Option<&mpsc::Sender<ToCoordinator>>,
) {
    let Some(to) = to else { return };
    while !outgoing.is_empty() {
        let Ok(permit) = to.try_reserve() else { return };
        if let Some(message) = outgoing.pop_front() {
            permit.send(message);
        }
    }
}

async fn reserve(
    to: Option<&mpsc::Sender<ToCoordinator>>,
) -> Option<mpsc::Permit<'_, ToCoordinator>> {
    to?.reserve().await.ok()
}

/// What tells these keepers from any others on this boot.
fn keepers_number(keepers: &[OwnedFd]) -> Option<u64> {
    let numbers = keepers
        .iter()
        .map(keeper_number)
        .collect::<Option<Vec<u64>>>()?;
    // One keeper's number is its own.
    numbers
        .into_iter()
        .reduce(|all, number| all.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number)
}

/// What tells one keeper from any other on this boot.
fn keeper_number(socket: &OwnedFd) -> Option<u64> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    proc::unique_number(peer.pid.as_raw_nonzero().get())
}

/// A random number from the kernel. The pool is ready long before any agent starts; a failure
/// leaves zero, which only weakens jitter.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

/// Connects, says hello, forwards what comes, and begins again when the connection ends.
async fn keep_connected(
    connector: Connector,
    address: String,
    patience: Duration,
    hello: tokio::sync::watch::Receiver<Hello>,
    mut generations: Generations,
    inputs: mpsc::Sender<Input>,
    mut leaving: tokio::sync::watch::Receiver<bool>,
) {
    let mut pauses = Pauses::default();
    let mut last_complaint = String::new();
    loop {
        let hello = hello.borrow().clone();
        let error = one_connection(
            &connector,
            &address,
            patience,
            &hello,
            &mut generations,
            &inputs,
            &mut pauses,
            &mut leaving,
        )
        .await;
        let Some(error) = error else { return };
        if pauses.are_new() {
            // It was connected.
            last_complaint.clear();
        }
        let text = chain(&error);
        // The same complaint once: an agent may wait for its coordinator for weeks.
        if text != last_complaint {
            if error.needs_a_person() {
                tracing::error!("{text}; trying again")
            } else {
                tracing::info!("{text}; trying again")
            }
            last_complaint = text;
        }
        let ceiling = pauses.failed(error.needs_a_person());
        let share = f64::from(random() as u32) / f64::from(u32::MAX);
        // What was spent waiting for an answer counts as pause.
        let pause =
            ceiling
                .mul_f64(share)
                .saturating_sub(if matches!(error, ConnectError::NoAnswer(_)) {
                    patience
                } else {
                    Duration::ZERO
                });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = left(&mut leaving) => return,
        }
    }
}

/// One connection from hello to its end. `None`: we are leaving.
#[expect(
    clippy::too_many_arguments,
    reason = "what a connection needs of the loop around it"
)]
async fn one_connection(
    connector: &Connector,
    address: &str,
    patience: Duration,
    hello: &Hello,
    generations: &mut Generations,
    inputs: &mpsc::Sender<Input>,
    pauses: &mut Pauses,
    leaving: &mut tokio::sync::watch::Receiver<bool>,
) -> Option<ConnectError> {
    let connected = tokio::select! {
        connected = connector.connect(address, patience) => connected,
        () = left(leaving) => return None,
    };
    let peer = match connected {
        Ok(peer) => peer,
        Err(e) => return Some(e),
    };
    let Ok(mut channel) = peer.open::<ToCoordinator, ToAgent>().await else {
        return Some(connector.why_lost(address, &peer).await);
    };
    let sent = (WallTime::now(), BootInstant::now());
    let _ = channel
        .sender
        .send(ToCoordinator::Hello(hello.clone()))
        .await;
    let first = match connector.first_message(address, &peer, &mut channel).await {
        Ok(first) => first,
        Err(e) => return Some(e),
    };
    let (generation, first) = match first {
        ToAgent::Generation { generation } => {
            match connector.first_message(address, &peer, &mut channel).await {
                Ok(first) => (generation, first),
                Err(e) => return Some(e),
            }
        }
        first => (Generation::default(), first),
    };
    let ToAgent::Welcome {
        version,
        store,
        lease,
        first_engine,
        clock,
        ..
    } = first
    else {
        peer.close(close::PROTOCOL, "the first message must be a welcome");
        return Some(connector.why_lost(address, &peer).await);
    };
    // Before anything counts that it says: of a lease, of jobs, or of what should be killed.
    if let Err(why) = generations.meet(store, generation) {
        peer.leave(close::REFUSED, &why).await;
        return Some(ConnectError::Unfit {
            address: address.into(),
            why,
        });
    }
    tracing::info!(coordinator = address, "connected");
    pauses.worked();
    let sender = channel.sender;
    if inputs
        .send(Input::Connected {
            sender,
            peer: peer.clone(),
            version,
            store,
            lease,
            first_engine,
            clock,
            hello: sent,
        })
        .await
        .is_err()
    {
        peer.leave(close::DONE, "").await;
        return None;
    }
    loop {
        tokio::select! {
            message = channel.receiver.recv() => match message {
                Some(message) => {
                    if inputs.send(Input::Message(message)).await.is_err() {
                        peer.leave(close::DONE, "").await;
                        return None;
                    }
                }
                None => {
                    let _ = inputs.send(Input::Disconnected).await;
                    peer.close(close::DONE, "");
                    return Some(connector.why_lost(address, &peer).await);
                }
            },
            () = left(leaving) => {
                // The coordinator closes once it has our goodbye; it is the receiver of the last
                // message.
                let _ = tokio::time::timeout(Duration::from_secs(1), peer.closed()).await;
                peer.leave(close::DONE, "agent stopped").await;
                return None;
            }
        }
    }
}

/// Completes when the agent is leaving.
async fn left(leaving: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender lives as long as the loop that sends; its loss means the same.
    let _ = leaving.wait_for(|left| *left).await;
}

/// Asks the keepers of this host for `slots` engines each and turns what they say into inputs. Must
/// be called within a tokio runtime.
///
/// # Errors
/// No thread can be started.
pub fn engines_of(keepers: Vec<OwnedFd>, slots: u16, host: &str) -> Result<Engines> {
    let (sender, inputs) = mpsc::channel(INPUTS);
    for (set, keeper) in keepers.iter().enumerate() {
        hear(keeper, set, slots, host, &sender)?;
    }
    Ok(Engines {
        inputs,
        sender,
        keepers,
        finder: None,
    })
}

/// Asks one keeper for its engines, and has a thread listen to it.
fn hear(
    keeper: &OwnedFd,
    set: usize,
    slots: u16,
    host: &str,
    inputs: &mpsc::Sender<EngineInput>,
) -> Result<()> {
    // One that is gone already, or does not read, shows when it is listened to.
    let _ = packet::send(
        keeper,
        &ToKeeper::Relink {
            engine: TELL_FAILURES,
        },
        None,
    );
    let _ = packet::send(
        keeper,
        &ToKeeper::Engines {
            count: slots,
            host: host.to_owned(),
        },
        None,
    );
    let (listening, inputs) = (keeper.try_clone()?, inputs.clone());
    let runtime = tokio::runtime::Handle::current();
    let hear = move || {
        let result = hear_keeper(&listening, set, slots, &inputs, &runtime);
        let why = match result {
            Ok(()) => "their keeper is gone".to_owned(),
            Err(e) => {
                tracing::error!(set, error = %e, "a keeper cannot be understood; closing its link");
                format!("their keeper cannot be understood: {e}")
            }
        };
        let _ = inputs.blocking_send(EngineInput::KeeperGone(set, why));
    };
    std::thread::Builder::new()
        .name("keeper link".into())
        .spawn(hear)
        .map_err(limits::named)?;
    Ok(())
}

/// Listens to the keeper of one set. It may speak of its own engines only.
fn hear_keeper(
    keeper: &OwnedFd,
    set: usize,
    slots: u16,
    inputs: &mpsc::Sender<EngineInput>,
    runtime: &tokio::runtime::Handle,
) -> Result<()> {
    static LINKS: AtomicU32 = AtomicU32::new(0);
    let own = |engine: EngineIndex| match engine.0 < slots {
        true => Ok(EngineIndex(set as u16 * slots + engine.0)),
        false => Err(Error::other(format!(
            "it speaks of engine {engine} and has {slots}, from 0"
        ))),
    };
    while let Some((message, fd)) = packet::receive::<FromKeeper>(keeper.as_fd())? {
        let input = match (message, fd) {
            (FromKeeper::Link { engine }, Some(fd)) => {
                if packet::peer(&fd)? != packet::peer(keeper)? {
                    return Err(Error::other("a link that another account has made"));
                }
                let (engine, link) = (own(engine)?, LINKS.fetch_add(1, Ordering::Relaxed));
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                let (to_engine, outgoing) = mpsc::unbounded_channel();
                if inputs
                    .blocking_send(EngineInput::Linked(engine, link, to_engine))
                    .is_err()
                {
                    return Ok(());
                }
                let inputs = inputs.clone();
                runtime.spawn(async move {
                    talk_to_engine(engine, link, stream, outgoing, &inputs).await;
                    // The agent may have gone.
                    let _ = inputs.send(EngineInput::Unlinked(engine, link)).await;
                });
                continue;
            }
            (FromKeeper::Link { .. }, None) => {
                // The kernel has left it out.
                return Err(limits::named(rustix::io::Errno::MFILE.into()));
            }
            (FromKeeper::Containment(kind), _) => EngineInput::Containment(kind),
            (
                FromKeeper::EngineEnded {
                    engine,
                    attempt,
                    ended,
                    killed,
                    survivors,
                },
                _,
            ) => EngineInput::Ended {
                engine: own(engine)?,
                attempt,
                ended,
                killed,
                survivors,
            },
            (FromKeeper::EngineFails { engine, why }, _) => EngineInput::Fails(own(engine)?, why),
        };
        if inputs.blocking_send(input).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Carries frames both ways until the link ends.
async fn talk_to_engine(
    index: EngineIndex,
    link: Link,
    stream: std::os::unix::net::UnixStream,
    mut outgoing: mpsc::UnboundedReceiver<ToEngine>,
    inputs: &mpsc::Sender<EngineInput>,
) {
    let Ok(mut stream) = UnixStream::from_std(stream) else {
        return;
    };
    let mut incoming = BytesMut::new();
    let mut buffer = Vec::new();
    // Of the outcome that comes next.
    let mut written = Written::default();
    loop {
        // With room to spare one read is enough for all that is there.
        incoming.reserve(ENGINE_MESSAGES);
        tokio::select! {
            read = stream.read_buf(&mut incoming) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => loop {
                    match codec::decode_frame::<FromEngine>(&mut incoming) {
                        Ok(Some(FromEngine::Shown { request: COUNTS, data, .. })) => {
                            written = codec::decode_exact(&data).unwrap_or_default();
                        }
                        Ok(Some(mut message)) => {
                            if let FromEngine::Finished { outcome, .. } = &mut message {
                                outcome.written = std::mem::take(&mut written);
                            }
                            if inputs.send(EngineInput::Said(index, link, message)).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(e) => {
                            tracing::error!(engine = index.0, error = %e, "engine breaks the protocol; closing its link");
                            return;
                        }
                    }
                },
            },
            message = outgoing.recv() => {
                let Some(message) = message else { return };
                buffer.clear();
                let mut next = Some(message);
                while let Some(message) = next {
                    if let Err(e) = codec::encode_frame(&mut buffer, &message) {
                        tracing::error!(engine = index.0, error = %e, "message to an engine cannot be encoded");
                        return;
                    }
                    next = outgoing.try_recv().ok();
                }
                if stream.write_all(&buffer).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Starts a keeper that shares our fate: embedded runs. `program` is this program's own file, which
/// may have been removed since.
///
/// # Errors
/// The keeper cannot be started.
pub fn start_embedded_keeper(
    program: Arc<OwnedFd>,
    host: &str,
    containment: ContainmentWish,
) -> Result<(OwnedFd, std::process::Child)> {
    let (ours, theirs) = packet::pair()?;
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&*program)
    );
    let child = keeper_command(path.as_ref(), host, containment)
        .stdin(std::process::Stdio::from(theirs))
        .spawn()
        .map_err(limits::named)?;
    Ok((ours, child))
}

/// The command of a keeper, which makes itself a session of its own, away from any terminal.
pub(crate) fn keeper_command(
    program: &std::path::Path,
    host: &str,
    containment: ContainmentWish,
) -> std::process::Command {
    use clap::ValueEnum;
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(program);
    command
        .arg0("mezcal-keeper")
        .arg("keeper")
        .args(["--host", host]);
    if let Some(value) = containment.to_possible_value() {
        command.args(["--containment", value.get_name()]);
    }
    command
}
