//! The agent process: performs what [`Supervisor`] decides.
//!
//! One loop on one thread owns the supervisor. Beside it: a task that keeps a connection to the
//! coordinator, and the links to keeper and engines. All of them only turn messages into inputs.

use crate::supervisor::connection::{Connection, GOODBYE, Input, Way, Welcome};
use crate::supervisor::host::{Host, Readings};
use crate::supervisor::input::EngineInput;
use crate::supervisor::keepers::Keepers;
use crate::supervisor::links::{Engines, Links};
use crate::supervisor::logs::{Logs, Request};
use crate::supervisor::parts::{AgentParts, hello};
use crate::supervisor::renewal::{self, Asking, Wish};
use crate::supervisor::standing::Standing;
use crate::supervisor::users::Present;
use crate::supervisor::{Carried, Effect, Event, Supervisor};
use mezcal_certs::renewal::Event as Certificate;
use mezcal_common::message::agent::{ToAgent, ToCoordinator};
use mezcal_common::message::engine::{FromEngine, PROGRAM, ToEngine, ToKeeper};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::escape::chain;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::system::timer::BootTimer;
use rustix::fd::OwnedFd;
use std::io::Result;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;

/// How long it may take to give back attempts that have not started, when an agent leaves that
/// serves users.
const LEAVE: Duration = Duration::from_secs(2);

/// The reasons why an agent has ended.
#[derive(Clone, PartialEq, Eq)]
pub enum Left {
    /// The agent was asked to end.
    Stopped,
    /// A keeper is gone, and its engines with it.
    KeeperGone,
    /// The keeper of engines of an earlier version has ended, as it was asked to when nothing ran
    /// there.
    KeeperReplaced,
    /// The next agent begins with something else, such as another certificate: `changed` of [`run`]
    /// has completed.
    Changed,
    /// The agent's certificate has expired while the coordinator was out of reach.
    Expired,
    /// The agent has a new certificate, for a new key, both in PEM form.
    Renewed {
        /// The certificate and the certificates between it and the root.
        cert: String,
        /// The key of the certificate.
        key: String,
    },
}

/// Runs an agent until `stop` completes, its own keeper is lost, or `changed` completes. At a stop
/// an agent that has its own keeper kills the attempts that run, reports them and leaves; one that
/// serves users leaves their jobs to their keepers. Attempts that have not started are left to the
/// agent that comes next in this process.
///
/// # Errors
/// A timer cannot be made.
pub async fn run(
    parts: AgentParts,
    engines: Engines,
    stop: impl Future<Output = ()>,
    changed: impl Future<Output = ()>,
) -> Result<(Left, Carried)> {
    let mut driver = Driver::start(parts, engines)?;
    let left = driver.serve(stop, changed).await?;
    Ok(driver.end(left).await)
}

struct Driver {
    supervisor: Supervisor,
    /// The keeper is this agent's own, and ends with it when that is stopped.
    own_keeper: bool,
    slots: u16,
    connection: Connection,
    links: Links,
    keepers: Keepers,
    present: Present,
    readings: Readings,
    logs: Logs,
    standing: Option<Standing>,
    asking: Asking,
    timer: BootTimer,
    /// The agent has been asked to end, and will at this time whatever it still has to report.
    stopping: Option<BootInstant>,
}

impl Driver {
    fn start(parts: AgentParts, engines: Engines) -> Result<Self> {
        let host = Host::new();
        let (hello, hello_now) = watch::channel(hello(&parts, &engines, &host));
        let standing = parts.service.then(|| Standing::new(&parts.coordinator));
        let way = Way {
            address: parts.coordinator,
            connector: parts.connector,
            patience: parts.connect_timeout,
            generations: parts.generations,
        };
        let connection = Connection::keep(way, hello_now);
        let present = Present::new(hello, engines.finder, &engines.sender);
        let own_keeper = parts.users.is_none();
        let mut supervisor = Supervisor::new(parts.slots, parts.users).carrying(parts.carried);
        if parts.service {
            supervisor = supervisor.of_version(mezcal_common::VERSION);
        }
        Ok(Self {
            supervisor,
            own_keeper,
            slots: parts.slots,
            connection,
            links: Links::new(engines.inputs, engines.sender, parts.name, parts.slots),
            keepers: Keepers::new(engines.keepers),
            present,
            readings: Readings::of(host),
            logs: Logs::new(),
            standing,
            asking: Asking::new(parts.renewal),
            timer: BootTimer::new()?,
            stopping: None,
        })
    }

    async fn serve(
        &mut self,
        stop: impl Future<Output = ()>,
        changed: impl Future<Output = ()>,
    ) -> Result<Left> {
        let (mut stop, mut changed) = (pin!(stop), pin!(changed));
        loop {
            let exit = self.perform();
            if exit
                || self
                    .stopping
                    .is_some_and(|until| BootInstant::now() > until)
            {
                return Ok(Left::Stopped);
            }
            let (due, goes_on) = (self.due(), self.stopping.is_none());
            let left = tokio::select! {
                biased;
                input = self.connection.next() => input.and_then(|input| self.on_coordinator(input)),
                Some(input) = self.links.next() => self.on_engines(input),
                armed = self.timer.until(due) => {
                    armed?;
                    self.on_time()
                }
                () = &mut changed, if goes_on => Some(Left::Changed),
                () = &mut stop, if goes_on => {
                    self.on_stop();
                    None
                }
            };
            if let Some(left) = left {
                return Ok(left);
            }
        }
    }

    /// Performs all effects; true when the agent has to end.
    fn perform(&mut self) -> bool {
        let mut exit = false;
        while let Some(effect) = self.supervisor.poll_effect() {
            match effect {
                Effect::ToCoordinator(message) => self.connection.say(message),
                Effect::ToEngine(index, message) => self.links.tell(index, message),
                // This message comes before the engine's: the keeper hears of it first.
                Effect::ToKeeper(set, message) => self.keepers.tell(set, message),
                Effect::Exit => exit = true,
            }
        }
        self.keepers.flush();
        let supervisor = &self.supervisor;
        let runs = |attempt| supervisor.engine_of(attempt).is_some();
        for (attempt, request) in self.logs.settle(runs) {
            if let Some(engine) = supervisor.engine_of(attempt) {
                self.links.tell(engine, ToEngine::Hide { request });
            }
        }
        self.connection.send_what_fits();
        exit
    }

    /// The time at which something is due.
    fn due(&self) -> Option<BootInstant> {
        let supervisors = self.supervisor.poll_timeout().into_iter();
        supervisors
            .chain([self.readings.due()])
            .chain(self.stopping)
            .min()
    }

    fn on_coordinator(&mut self, input: Input) -> Option<Left> {
        let now = BootInstant::now();
        match input {
            Input::Connected(welcome) => self.on_welcome(welcome, now),
            Input::Message(message) => return self.on_message(message, now),
            Input::Disconnected => {
                self.connection.ended();
                self.logs.clear();
                self.supervisor.handle(Event::Disconnected, now);
            }
        }
        None
    }

    fn on_welcome(&mut self, welcome: Welcome, now: BootInstant) {
        self.readings.sample(welcome.hello, welcome.clock, now);
        self.supervisor.handle(self.readings.event(), now);
        let event = Event::Welcomed {
            version: welcome.version,
            store: welcome.store,
            lease: welcome.lease,
            first_engine: welcome.first_engine,
            hello_sent: welcome.hello.1,
        };
        self.connection.begins(welcome);
        self.standing.iter_mut().for_each(Standing::connected);
        self.supervisor.handle(event, now);
    }

    fn on_message(&mut self, message: ToAgent, now: BootInstant) -> Option<Left> {
        match message {
            ToAgent::Logs {
                request,
                attempt,
                spec,
                context,
                wish,
            } => self.on_logs(Request {
                request,
                attempt,
                spec,
                context,
                wish,
                owners: self.supervisor.owners_of(attempt.key.batch),
            }),
            ToAgent::Renewed { cert: Ok(cert) } => {
                return self.on_certificate(Certificate::Granted { cert });
            }
            ToAgent::Renewed { cert: Err(why) } => {
                return self.on_certificate(Certificate::Refused(why));
            }
            message => {
                if let ToAgent::HeartbeatSeen { sent, clock } = message {
                    let wall = WallTime(WallTime::now().0 - now.since(sent).as_micros() as i64);
                    self.readings.sample((wall, sent), clock, now);
                }
                self.supervisor.handle(Event::Coordinator(message), now);
            }
        }
        None
    }

    /// A request for the output of a job.
    fn on_logs(&mut self, wanted: Request) {
        let (request, attempt, follow) = (wanted.request, wanted.attempt, wanted.wish.follow);
        if self.supervisor.has_queued(attempt) {
            let streams = Err("it has not started yet; it waits for a slot of its host".into());
            self.connection
                .say(ToCoordinator::LogsAnswer { request, streams });
        } else if let Some((peer, answers)) = self.connection.streams() {
            let engine = self.supervisor.engine_of(attempt);
            let show = self.logs.begin(wanted, engine, peer, answers);
            if let Some(engine) = engine.filter(|_| show) {
                let show = ToEngine::Show {
                    request,
                    attempt,
                    follow,
                };
                self.links.tell(engine, show);
            }
        }
    }

    fn on_engines(&mut self, input: EngineInput) -> Option<Left> {
        let now = BootInstant::now();
        let event = match input {
            EngineInput::Linked(index, link, sender) => {
                self.links.replace(index, link, sender);
                Event::LinkMade(index)
            }
            EngineInput::Said(index, link, _) | EngineInput::Unlinked(index, link)
                if !self.links.is_present(index, link) =>
            {
                return None;
            }
            EngineInput::Said(index, _, message) => self.on_engine(index, message)?,
            EngineInput::Unlinked(index, _) => {
                self.links.remove(index);
                Event::LinkLost(index)
            }
            EngineInput::Fails(engine, why) => Event::EngineFails { engine, why },
            EngineInput::Containment(kind) => Event::Containment(kind),
            EngineInput::Ended {
                engine,
                attempt,
                ended,
                killed,
                survivors,
            } => Event::EngineEnded {
                engine,
                attempt,
                ended,
                killed,
                survivors,
            },
            EngineInput::KeeperGone(..) if self.own_keeper => return self.on_own_keeper_gone(),
            EngineInput::KeeperGone(set, why) => {
                self.on_keeper_gone(set, why, now);
                return None;
            }
            EngineInput::Found(user, keeper) => {
                self.on_keeper_found(user, keeper, now);
                return None;
            }
        };
        self.supervisor.handle(event, now);
        None
    }

    /// A message of an engine over its present link, as an event if it is for the supervisor.
    fn on_engine(&mut self, index: EngineIndex, message: FromEngine) -> Option<Event> {
        match message {
            FromEngine::Shown {
                request: PROGRAM,
                data,
                ..
            } => {
                let version = String::from_utf8_lossy(&data).into_owned();
                Some(Event::Runs(index, version))
            }
            FromEngine::Shown {
                request,
                stream,
                data,
            } => {
                self.logs.shown(index, request, stream, data);
                None
            }
            FromEngine::ShownAll { request } => {
                self.logs.shown_all(index, request);
                None
            }
            FromEngine::Ready { .. } | FromEngine::Finished { .. } | FromEngine::Output { .. } => {
                Some(Event::Engine(index, message))
            }
        }
    }

    fn on_own_keeper_gone(&self) -> Option<Left> {
        match self.stopping {
            // The attempts were killed, as was wanted; the ends that have been heard of are still
            // to be reported.
            Some(_) if self.supervisor.busy() == 0 => None,
            Some(_) => Some(Left::Stopped),
            None if self.supervisor.replaces_engines() => Some(Left::KeeperReplaced),
            None => Some(Left::KeeperGone),
        }
    }

    fn on_keeper_gone(&mut self, set: usize, why: String, now: BootInstant) {
        self.keepers.hang_up(set);
        self.links.remove_all(set);
        self.supervisor.handle(Event::KeeperGone { set, why }, now);
        self.present.goes(self.supervisor.user_of(set));
    }

    fn on_keeper_found(&mut self, user: String, keeper: OwnedFd, now: BootInstant) {
        let here = Event::KeeperHere { user: user.clone() };
        self.supervisor.handle(here, now);
        let Some(set) = self.supervisor.set_of(&user) else {
            return;
        };
        match self.links.hear(&keeper, set) {
            Ok(()) => {
                tracing::info!(user, "the engines of {user} are available");
                self.keepers.put(set, keeper);
                self.present.comes(user);
            }
            Err(e) => {
                let why = format!("their keeper cannot be reached: {e}");
                self.supervisor.handle(Event::KeeperGone { set, why }, now);
            }
        }
    }

    fn on_time(&mut self) -> Option<Left> {
        let now = BootInstant::now();
        if self.readings.take_due(now) {
            let connected = self.connection.is_there();
            let slots = (self.supervisor.busy(), usize::from(self.slots));
            self.standing
                .iter_mut()
                .for_each(|standing| standing.tick(connected, slots));
            let looked = Certificate::Looked {
                reachable: connected,
            };
            if let Some(left) = self.on_certificate(looked) {
                return Some(left);
            }
            self.supervisor.handle(self.readings.event(), now);
        }
        self.supervisor.handle_timeout(now);
        None
    }

    fn on_certificate(&mut self, event: Certificate) -> Option<Left> {
        match self.asking.handle(event, renewal::now()) {
            Ok(Some(Wish::Ask(question))) => self.connection.say(question),
            Ok(Some(Wish::Install { cert, key })) => return Some(Left::Renewed { cert, key }),
            Ok(Some(Wish::AskElsewhere)) => return Some(Left::Expired),
            Ok(None) => {}
            Err(e) => tracing::error!("no request for a new certificate: {}", chain(&e)),
        }
        None
    }

    fn on_stop(&mut self) {
        let (now, running) = (BootInstant::now(), self.supervisor.busy());
        let (patience, event) = if self.own_keeper {
            tracing::info!(running, "stopping");
            (GOODBYE, Event::Stop)
        } else {
            tracing::info!(
                running,
                "leaving; running jobs go on in their users' engines"
            );
            (LEAVE, Event::Leave)
        };
        self.stopping = Some(now + patience);
        self.supervisor.handle(event, now);
    }

    /// Leaves the coordinator and the keepers; attempts that have not started are left to the agent
    /// that comes next.
    async fn end(mut self, left: Left) -> (Left, Carried) {
        self.connection.leave().await;
        drop(self.present);
        if !self.own_keeper {
            // The threads that listen to them have to end, also where a keeper never would.
            self.keepers.hang_up_all();
        } else if left == Left::Stopped {
            self.keepers.tell_all(&ToKeeper::Stop);
        }
        (left, self.supervisor.leave())
    }
}
