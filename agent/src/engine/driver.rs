//! The engine process: performs what [`Engine`] decides.
//!
//! There are two threads. This one waits for commands, timers, children and output, and never opens
//! a file; the other one opens files and spawns, so a dead mount that makes it hang does not make
//! the engine deaf.

mod agent;
mod output;
mod spawner;

use super::counters::HostCounters;
use super::environment::Inherited;
use super::order::Order;
use super::processes::{Changed, Processes};
use super::spawn::Surroundings;
use super::{Effect, Engine, Event, Swept};
use crate::kernel::cgroup::Leaves;
use crate::kernel::packet;
use crate::kernel::signals::{signals, take_signals};
use agent::AgentLink;
use bytes::BytesMut;
use mezcal_common::message::agent::Stream;
use mezcal_common::message::engine::{COUNTS, EngineToKeeper, FromEngine, KeeperToEngine, PROGRAM};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::Containment;
use mezcal_common::system::timer;
use mezcal_common::wire::codec;
use output::Output;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use spawner::{SpawnAnswer, SpawnOrder, spawner};
use std::collections::VecDeque;
use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Bytes read from a pipe at a time.
const CHUNK: usize = 16 * 1024;
/// Bytes read from a pipe before the engine looks at anything else again.
const TURN: usize = 4 * CHUNK;

/// Output that a job writes so soon after its start stays in its pipes, which hold 64 KiB, unless
/// the job ends before: pipes of short jobs are read once.
const QUIET: Duration = Duration::from_millis(25);
/// The same for a job whose output somebody follows.
const QUIET_WATCHED: Duration = Duration::from_millis(4);
/// The keeper is not told of a job that ends sooner. It is told at once of an attempt that has to
/// be killed.
const SHORT: Duration = Duration::from_millis(250);

/// Messages that wait for a keeper that does not read, for example a stopped one; newer messages
/// replace older ones.
const KEEPER_BEHIND: usize = 1024;

/// The things that a keeper tells its engine at the start.
pub(crate) struct EngineArgs {
    /// The engine's slot, from 0.
    pub(crate) slot: u16,
    /// The host's name, for the job's environment.
    pub(crate) host: String,
    pub(crate) inherited: Inherited,
    /// The engine kills the attempt when the agent goes.
    pub(crate) one_fate: bool,
    /// Where attempts are born; none: in this process's own group.
    pub(crate) leaves: Option<Leaves>,
}

/// Runs an engine until its keeper goes away, in the process that the keeper has made for it.
/// `lock` is held as long as it lives.
///
/// # Errors
/// The system refuses something at the start, or poll(2) or a similar call breaks its contract.
pub(crate) fn run(args: EngineArgs, keeper: OwnedFd, lock: Option<OwnedFd>) -> Result<()> {
    args.inherited
        .command_line
        .rename(&format!("mezcal-engine {}", args.slot));
    // An engine prints nothing, and a reader of the keeper's output must not wait for the engine.
    // The lock stays at this descriptor until the process is gone.
    rustix::stdio::dup2_stdout(
        lock.as_ref()
            .map_or_else(|| rustix::stdio::stdin(), AsFd::as_fd),
    )?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = signals()?;
    let spawned = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let (orders, to_spawner) = mpsc::channel();
    let (started, from_spawner) = mpsc::channel();
    let containment = if args.leaves.is_some() {
        Containment::Cgroup2
    } else {
        Containment::Subreaper
    };
    let counters = HostCounters::open(args.leaves.as_ref().is_some_and(Leaves::count_memory));
    let mut around = Surroundings::new(args.slot, args.host, args.inherited, args.leaves)?;
    let wake = spawned.try_clone()?;
    let awaited = Arc::new(AtomicBool::new(false));
    let asked = awaited.clone();
    let spawner = move || spawner(&mut around, &to_spawner, &started, &wake, &asked);
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(spawner)?;
    let mut driver = Driver {
        engine: Engine::new(args.one_fate, containment),
        counters,
        to_keeper: VecDeque::new(),
        followers: Vec::new(),
        keeper: Some(keeper),
        agent: None,
        signals,
        spawned,
        timer: timer::new_timerfd()?,
        armed: None,
        orders,
        from_spawner,
        awaited,
        processes: None,
        context: None,
        output: Output::default(),
        attempt: None,
        spawning: false,
        unstarted: None,
        oom_before: None,
        quiet_until: BootInstant::now(),
        deaf: false,
        short_until: None,
        held: None,
    };
    driver.run()
}

struct Driver {
    engine: Engine,
    counters: HostCounters,
    /// Messages that the keeper's socket has not taken.
    to_keeper: VecDeque<EngineToKeeper>,
    /// Requests that follow the output of the attempt.
    followers: Vec<u64>,
    /// None once the keeper is gone; the attempt is being killed then.
    keeper: Option<OwnedFd>,
    agent: Option<AgentLink>,
    signals: OwnedFd,
    spawned: OwnedFd,
    timer: OwnedFd,
    armed: Option<BootInstant>,
    orders: mpsc::Sender<SpawnOrder>,
    from_spawner: mpsc::Receiver<SpawnAnswer>,
    /// The spawner has to wake this thread when it answers.
    awaited: Arc<AtomicBool>,
    processes: Option<Processes>,
    context: Option<Arc<BatchContext>>,
    output: Output,
    attempt: Option<AttemptId>,
    /// The spawner has not answered yet.
    spawning: bool,
    /// An attempt that was not started because the host lacked something.
    unstarted: Option<Order>,
    /// Kills by the out-of-memory killer on this host, before the attempt.
    oom_before: Option<u64>,
    /// See [`QUIET`].
    quiet_until: BootInstant,
    /// The pipes are not waited for until `quiet_until`: there is something in them, or there was
    /// in those of the attempt before.
    deaf: bool,
    /// See [`SHORT`].
    short_until: Option<BootInstant>,
    /// A sweep that found nothing alive, kept until the far end has taken the output.
    held: Option<Swept>,
}

impl Driver {
    fn run(&mut self) -> Result<()> {
        loop {
            if self.perform()? {
                return Ok(());
            }
            self.flush()?;
            self.tell_keeper();
            self.arm()?;
            self.wait()?;
        }
    }

    /// Performs all effects; true when the process has to end.
    fn perform(&mut self) -> Result<bool> {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Spawn {
                    attempt,
                    spec,
                    context,
                    engine,
                } => self.spawn(Order {
                    attempt,
                    spec,
                    context,
                    engine,
                })?,
                Effect::SpawnAgain { .. } => {
                    if let Some(order) = self.unstarted.take() {
                        self.spawn(order)?;
                    }
                }
                Effect::Terminate { signal } => {
                    if let Some(processes) = &self.processes {
                        processes.terminate(signal);
                    }
                }
                Effect::ToKeeper(message) => {
                    if self.to_keeper.len() == KEEPER_BEHIND {
                        self.to_keeper.pop_front();
                    }
                    self.to_keeper.push_back(message);
                }
                Effect::Probe => {
                    let others = self.processes.as_mut().is_some_and(Processes::others_alive);
                    self.engine
                        .handle(Event::Probed { others }, BootInstant::now());
                }
                Effect::Sweep { discard_output } => self.sweep(discard_output)?,
                Effect::Send(message) => {
                    if let FromEngine::Finished { outcome, .. } = &message
                        && outcome.written.is_known()
                    {
                        let data = codec::encode_body(&outcome.written).map_err(Error::other)?;
                        self.send(&FromEngine::Shown {
                            request: COUNTS,
                            stream: Stream::Out,
                            data,
                        })?;
                    }
                    self.send(&message)?;
                    if matches!(message, FromEngine::Finished { .. }) {
                        for request in std::mem::take(&mut self.followers) {
                            self.send(&FromEngine::ShownAll { request })?;
                        }
                    }
                }
                Effect::Exit => {
                    self.flush()?;
                    self.tell_keeper();
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn sweep(&mut self, discard_output: bool) -> Result<()> {
        let mut swept = match (self.held.take(), &mut self.processes) {
            // All processes are dead already.
            (Some(held), _) if !discard_output => {
                self.held = Some(held);
                return Ok(());
            }
            (Some(held), _) => held,
            (None, Some(processes)) => processes.sweep(&self.counters),
            (None, None) => return Ok(()),
        };
        if swept.alive == 0 {
            if discard_output {
                self.output.streaming = false;
            }
            self.output.writers = [None, None];
            self.drain(usize::MAX)?;
            if self.output.streaming && self.output.pipes.iter().any(Option::is_some) {
                self.held = Some(swept);
                self.engine.handle(Event::Held, BootInstant::now());
                return Ok(());
            }
            swept.tails = self.output.take_tails();
            swept.written = self.output.written_so_far();
        }
        self.engine.handle(Event::Swept(swept), BootInstant::now());
        Ok(())
    }

    /// Hands the keeper as many messages as its socket takes.
    fn tell_keeper(&mut self) {
        let Some(keeper) = &self.keeper else {
            return self.to_keeper.clear();
        };
        while let Some(message) = self.to_keeper.front() {
            match packet::send(keeper, message, None) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                // A keeper that is gone shows at the next poll.
                Ok(()) | Err(_) => self.to_keeper.pop_front(),
            };
        }
    }

    /// Sets the timer so that it fires in time. A timer that fires too early stays as it is: short
    /// jobs would set it twice each.
    fn arm(&mut self) -> Result<()> {
        let quiet_until = self.deaf.then_some(self.quiet_until);
        let due = self
            .engine
            .poll_timeout()
            .into_iter()
            .chain(quiet_until)
            .chain(self.short_until)
            .min();
        let Some(due) = due else { return Ok(()) };
        if self.armed.is_none_or(|armed| due < armed) {
            timer::arm(&self.timer, Some(due))?;
            self.armed = Some(due);
        }
        Ok(())
    }

    /// Waits for any event, and feeds it to the core.
    fn wait(&mut self) -> Result<()> {
        let reading = PollFlags::IN;
        let mut fds = vec![
            PollFd::new(&self.signals, reading),
            PollFd::new(&self.spawned, reading),
            PollFd::new(&self.timer, reading),
        ];
        let agent_at = self.agent.as_ref().map(|link| {
            let writing = if link.outgoing.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(&link.socket, reading | writing));
            fds.len() - 1
        });
        let keeper_at = self.keeper.as_ref().map(|keeper| {
            let writing = if self.to_keeper.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(keeper, reading | writing));
            fds.len() - 1
        });
        let pipes_from = fds.len();
        if self.output.may_read() && !self.deaf {
            fds.extend(
                self.output
                    .pipes
                    .iter()
                    .flatten()
                    .map(|pipe| PollFd::new(pipe, reading)),
            );
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let keeper_says =
            keeper_at.is_some_and(|at| fds[at].revents() != PollFlags::OUT && ready[at]);
        drop(fds);
        // Signals come before the ends of processes that were asked to end, too.
        if ready[0] && take_signals(&self.signals) {
            self.engine.handle(Event::Stop, BootInstant::now());
        }
        if ready[1] {
            let _ = rustix::io::read(&self.spawned, &mut [0; 8]);
        }
        let ended = self.on_spawner();
        self.on_pipes(ready[pipes_from..].contains(&true))?;
        // Once the first process has ended, its follow-up looks at the others, too.
        if ready[0] && !ended {
            self.on_children();
        }
        if ready[2] {
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
            self.armed = None;
            self.engine.handle_timeout(BootInstant::now());
        }
        if agent_at.is_some_and(|at| ready[at]) {
            self.on_agent()?;
        }
        if keeper_says {
            self.on_keeper();
        }
        Ok(())
    }

    /// Takes the answers of the spawner. True if the first process has ended already.
    fn on_spawner(&mut self) -> bool {
        let mut ended = self.collect_spawned();
        if self.spawning {
            // A child may have ended already, a cancel may have come, or the spawn takes its time.
            self.awaited.store(true, Ordering::SeqCst);
            ended |= self.collect_spawned();
        }
        ended
    }

    fn on_pipes(&mut self, readable: bool) -> Result<()> {
        let now = BootInstant::now();
        if self.short_until.take_if(|until| *until <= now).is_some() {
            self.engine.handle(Event::Lasts, now);
        }
        if now < self.quiet_until {
            self.deaf |= readable;
        } else if readable || std::mem::take(&mut self.deaf) {
            self.drain(TURN)?;
        }
        Ok(())
    }

    fn on_children(&mut self) {
        let Some(processes) = &mut self.processes else {
            return;
        };
        let event = match processes.look() {
            Changed::Nothing => return,
            Changed::First => Event::FirstEnded,
            Changed::Others => Event::OtherChanged,
        };
        if self.held.is_none() {
            self.engine.handle(event, BootInstant::now());
        }
    }

    fn on_keeper(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        match packet::receive::<KeeperToEngine>(keeper) {
            Ok(Some((KeeperToEngine::Link, Some(socket)))) => {
                self.agent = Some(AgentLink {
                    socket,
                    incoming: BytesMut::new(),
                    outgoing: Vec::new(),
                });
                self.output.in_flight = 0;
                let data = mezcal_common::VERSION.into();
                // The data fits a frame, and nothing else can fail.
                let _ = self.send(&FromEngine::Shown {
                    request: PROGRAM,
                    stream: Stream::Out,
                    data,
                });
                self.engine.handle(Event::Linked, BootInstant::now());
            }
            Ok(Some((KeeperToEngine::Link, None))) => {
                tracing::error!("a link without a descriptor")
            }
            Ok(None) | Err(_) => {
                // A closed socket stays readable: stop polling it while the attempt is being
                // killed.
                self.keeper = None;
                self.engine.handle(Event::Quit, BootInstant::now());
            }
        }
    }
}
