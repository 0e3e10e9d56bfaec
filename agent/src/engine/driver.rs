//! The engine process: performs what [`Engine`] decides.
//!
//! Two threads. This one waits for commands, timers, children and output, and never opens a file;
//! the other one opens files and spawns, since either can hang on a dead mount without making the
//! engine deaf.

use super::processes::{Changed, HostCounters, Processes};
use super::spawn::{self, Inherited, Order, OutputTo, Started, Surroundings};
use super::{Effect, Engine, Event, NotStarted, Swept};
use crate::kernel::cgroup::Leaves;
use crate::kernel::packet;
use crate::kernel::paths::{self, OutputFile};
use bytes::{Bytes, BytesMut};
use mezcal_common::message::agent::Stream;
use mezcal_common::message::engine::{
    COUNTS, EngineToKeeper, FromEngine, KeeperToEngine, OUTPUT_WINDOW, PROGRAM, ToEngine,
};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::{BatchContext, Capture};
use mezcal_common::model::outcome::{Containment, Tail, Written};
use mezcal_common::system::timer;
use mezcal_common::wire::codec;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Bytes read from a pipe at a time.
const CHUNK: usize = 16 * 1024;
/// Bytes read from a pipe before the engine looks at anything else again.
const TURN: usize = 4 * CHUNK;

/// What a job writes so soon after its start is left in its pipes, which hold 64 KiB, unless it
/// ends before: short jobs are read once.
const QUIET: Duration = Duration::from_millis(25);
/// The same for a job whose output somebody looks at.
const QUIET_WATCHED: Duration = Duration::from_millis(4);
/// The keeper is not told of a job that ends sooner. Whatever has to be killed, it is told of at
/// once.
const SHORT: Duration = Duration::from_millis(250);

/// Messages for a keeper that does not read, as when it is stopped; newer ones replace what older
/// ones said.
const KEEPER_BEHIND: usize = 1024;
/// Requests that may follow one attempt's output at a time.
const MAX_FOLLOWERS: usize = 16;

/// What an engine is told by its keeper.
pub(crate) struct EngineArgs {
    /// Its slot, from 0.
    pub(crate) slot: u16,
    /// The host's name, for the job's environment.
    pub(crate) host: String,
    pub(crate) inherited: Inherited,
    /// It kills the attempt when the agent goes.
    pub(crate) one_fate: bool,
    /// Where attempts are born; none: in this process's own group.
    pub(crate) leaves: Option<Leaves>,
}

/// Runs an engine until its keeper goes away, in a process that the keeper has made for it. `lock`
/// is held as long as it lives.
///
/// # Errors
/// What the system refuses at start, or a broken invariant of poll(2) and friends.
pub(crate) fn run(args: EngineArgs, keeper: OwnedFd, lock: Option<OwnedFd>) -> Result<()> {
    args.inherited
        .command_line
        .rename(&format!("mezcal-engine {}", args.slot));
    // An engine prints nothing, and whoever reads the keeper's output is not to wait for it. The
    // lock stays there until the process is gone.
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

/// What the spawner answers: the job, or the order that it could not carry out, and when its spawn
/// began.
type SpawnAnswer = (
    std::result::Result<Started, (NotStarted, Order)>,
    (WallTime, BootInstant),
);
/// With where standard output and error go.
type SpawnOrder = (Order, [OutputTo; 2]);

struct Driver {
    engine: Engine,
    counters: HostCounters,
    /// What the keeper's socket has not taken.
    to_keeper: VecDeque<EngineToKeeper>,
    /// Requests that are being shown the output of the attempt.
    followers: Vec<u64>,
    /// None once it is gone; what runs is being killed then.
    keeper: Option<OwnedFd>,
    agent: Option<AgentLink>,
    signals: OwnedFd,
    spawned: OwnedFd,
    timer: OwnedFd,
    armed: Option<BootInstant>,
    orders: mpsc::Sender<SpawnOrder>,
    from_spawner: mpsc::Receiver<SpawnAnswer>,
    /// The spawner is to wake this thread when it answers.
    awaited: Arc<AtomicBool>,
    processes: Option<Processes>,
    context: Option<Arc<BatchContext>>,
    output: Output,
    attempt: Option<AttemptId>,
    /// The spawner has not answered yet.
    spawning: bool,
    /// What the host was too short of something to start.
    unstarted: Option<Order>,
    /// Kills by the out-of-memory killer on this host, before the attempt.
    oom_before: Option<u64>,
    /// See [`QUIET`].
    quiet_until: BootInstant,
    /// The pipes are not waited for until then: something is in them, or was in those of the
    /// attempt before.
    deaf: bool,
    /// See [`SHORT`].
    short_until: Option<BootInstant>,
    /// A sweep that found nothing alive, kept until the far end has taken the output.
    held: Option<Swept>,
}

struct AgentLink {
    socket: OwnedFd,
    incoming: BytesMut,
    outgoing: Vec<u8>,
}

/// The pipes of one attempt, and where their bytes go.
#[derive(Default)]
struct Output {
    /// Read ends, until they have come to their end.
    pipes: [Option<OwnedFd>; 2],
    /// Write ends: as long as they are open here as well, the end of a job shows once, by SIGCHLD,
    /// and not by a hang-up before.
    writers: [Option<Arc<OwnedFd>>; 2],
    tails: [Option<Tail>; 2],
    /// Bytes that were read.
    counts: [Option<u64>; 2],
    /// Something was in the pipes.
    written: bool,
    streaming: bool,
    /// Streamed bytes that the far end has not taken.
    in_flight: u32,
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

    /// Performs all effects; true when the process should end.
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

    fn spawn(&mut self, order: Order) -> Result<()> {
        let now = BootInstant::now();
        self.attempt = Some(order.attempt);
        self.deaf = self.output.written;
        (self.processes, self.held) = (None, None);
        let outputs = match self.output.begin(&order) {
            Ok(outputs) => outputs,
            Err(why) => {
                self.not_started(why, order);
                return Ok(());
            }
        };
        self.quiet_until = now
            + if self.output.streaming {
                QUIET_WATCHED
            } else {
                QUIET
            };
        self.short_until = Some(now + SHORT);
        self.oom_before = self.counters.recent_oom_kills(now);
        self.spawning = true;
        self.orders
            .send((order, outputs))
            .map_err(|_| Error::other("the spawner thread is gone"))
    }

    fn sweep(&mut self, discard_output: bool) -> Result<()> {
        let mut swept = match (self.held.take(), &mut self.processes) {
            // Everything is dead already.
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

    fn send(&mut self, message: &FromEngine) -> Result<()> {
        if let Some(link) = &mut self.agent {
            codec::encode_frame(&mut link.outgoing, message).map_err(Error::other)?;
        }
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

    /// Writes to the agent as much as its socket takes.
    fn flush(&mut self) -> Result<()> {
        let Some(link) = &mut self.agent else {
            return Ok(());
        };
        let mut written = 0;
        while written < link.outgoing.len() {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            match rustix::net::send(&link.socket, &link.outgoing[written..], flags) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.unlink();
                    return Ok(());
                }
            }
        }
        link.outgoing.drain(..written);
        Ok(())
    }

    fn unlink(&mut self) {
        self.agent = None;
        self.followers.clear();
        // Output has nobody to go to; an attempt must not wait for that.
        self.output.streaming = false;
        self.engine.handle(Event::Unlinked, BootInstant::now());
        if let Some(held) = self.held.take() {
            self.engine.handle(Event::Swept(held), BootInstant::now());
        }
    }

    /// Has the timer fire in time. It stays as it is when it fires too early: short jobs would set
    /// it twice each.
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

    /// Waits for anything, and feeds it to the core.
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
        // Before anything that has happened because others have been asked to end, too.
        if ready[0] && take_signals(&self.signals) {
            self.engine.handle(Event::Stop, BootInstant::now());
        }
        if ready[1] {
            let _ = rustix::io::read(&self.spawned, &mut [0; 8]);
        }
        let mut ended = self.collect_spawned();
        let now = BootInstant::now();
        if self.spawning {
            // A child that has ended already, a cancel, or a spawn that takes its time.
            self.awaited.store(true, Ordering::SeqCst);
            ended |= self.collect_spawned();
        }
        if self.short_until.take_if(|until| *until <= now).is_some() {
            self.engine.handle(Event::Lasts, now);
        }
        let readable = ready[pipes_from..].contains(&true);
        if now < self.quiet_until {
            self.deaf |= readable;
        } else if readable || std::mem::take(&mut self.deaf) {
            self.drain(TURN)?;
        }
        // What follows the end of the first one looks at the others, too.
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

    /// Takes the spawner's answer, if it is there. True if the first process has ended already.
    fn collect_spawned(&mut self) -> bool {
        let Some((result, began)) = self
            .spawning
            .then(|| self.from_spawner.try_recv().ok())
            .flatten()
        else {
            return false;
        };
        self.spawning = false;
        self.awaited.store(false, Ordering::SeqCst);
        match result {
            Ok(Started { pid, born }) => {
                self.processes = Some(Processes::new(pid, born, began, self.oom_before));
                self.engine
                    .handle(Event::Spawned(Ok(())), BootInstant::now());
            }
            Err((why, order)) => self.not_started(why, order),
        }
        // It may have ended before we knew its number.
        let ended = self.processes.as_mut().is_some_and(Processes::first_ended);
        if ended {
            self.engine.handle(Event::FirstEnded, BootInstant::now());
        }
        ended
    }

    /// The attempt never ran; its pipes are nobody's.
    fn not_started(&mut self, why: NotStarted, order: Order) {
        self.output = Output::default();
        self.unstarted = matches!(why, NotStarted::Short(_)).then_some(order);
        self.engine
            .handle(Event::Spawned(Err(why)), BootInstant::now());
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

    /// Reads what the pipes hold, at most so many bytes of each: whoever writes faster than this
    /// reads would keep it for ever.
    fn drain(&mut self, turn: usize) -> Result<()> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        for (i, stream) in [Stream::Out, Stream::Err].into_iter().enumerate() {
            let mut taken = 0;
            while taken < turn && self.output.may_read() {
                let Some(pipe) = &self.output.pipes[i] else {
                    break;
                };
                let most = if self.output.streaming {
                    CHUNK.min((OUTPUT_WINDOW - self.output.in_flight) as usize)
                } else {
                    CHUNK
                };
                match rustix::io::read(pipe, &mut chunk[..most]) {
                    Ok(([], _)) => self.output.pipes[i] = None,
                    Ok((data, _)) => {
                        taken += data.len();
                        self.output.written = true;
                        self.output.counts[i] =
                            self.output.counts[i].map(|bytes| bytes + data.len() as u64);
                        if self.output.streaming {
                            self.output.in_flight += data.len() as u32;
                            if let Some(attempt) = self.attempt {
                                self.send(&FromEngine::Output {
                                    attempt,
                                    stream,
                                    data: Bytes::copy_from_slice(data),
                                })?;
                            }
                            continue;
                        }
                        if let Some(tail) = &mut self.output.tails[i] {
                            tail.push(data);
                        }
                        self.show(stream, data)?;
                        if data.len() < most {
                            break;
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        if self.output.pipes.iter().all(Option::is_none)
            && let Some(held) = self.held.take()
        {
            let held = Swept {
                written: self.output.written_so_far(),
                ..held
            };
            self.engine.handle(Event::Swept(held), BootInstant::now());
        }
        Ok(())
    }

    /// Sends what is kept, and goes on with what comes if that is wanted.
    fn begin_show(&mut self, request: u64, attempt: AttemptId, follow: bool) -> Result<()> {
        // While it is quiet the pipes have not been read.
        self.drain(TURN)?;
        let here = self.attempt == Some(attempt) && self.output.tails.iter().any(Option::is_some);
        if here {
            for (tail, stream) in self.output.tails.iter().zip([Stream::Out, Stream::Err]) {
                let Some(data) = tail
                    .as_ref()
                    .map(Tail::to_bytes)
                    .filter(|data| !data.is_empty())
                else {
                    continue;
                };
                if let Some(link) = &mut self.agent {
                    codec::encode_frame(
                        &mut link.outgoing,
                        &FromEngine::Shown {
                            request,
                            stream,
                            data,
                        },
                    )
                    .map_err(Error::other)?;
                }
            }
        }
        if here && follow && self.followers.len() < MAX_FOLLOWERS {
            self.followers.push(request);
            return Ok(());
        }
        self.send(&FromEngine::ShownAll { request })
    }

    /// Sends new output to those who follow it, unless the agent is behind with reading.
    fn show(&mut self, stream: Stream, data: &[u8]) -> Result<()> {
        for i in 0..self.followers.len() {
            if self
                .agent
                .as_ref()
                .is_some_and(|link| link.outgoing.len() < OUTPUT_WINDOW as usize)
            {
                let shown = FromEngine::Shown {
                    request: self.followers[i],
                    stream,
                    data: Bytes::copy_from_slice(data),
                };
                self.send(&shown)?;
            }
        }
        Ok(())
    }

    fn on_agent(&mut self) -> Result<()> {
        let Some(link) = &mut self.agent else {
            return Ok(());
        };
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        match rustix::net::recv(&link.socket, &mut chunk, rustix::net::RecvFlags::DONTWAIT) {
            Ok(((_, _), 0)) => {
                self.unlink();
                return Ok(());
            }
            Ok(((data, _), _)) => link.incoming.extend_from_slice(data),
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(_) => {
                self.unlink();
                return Ok(());
            }
        }
        while let Some(link) = &mut self.agent {
            match codec::decode_frame::<ToEngine>(&mut link.incoming) {
                Ok(Some(message)) => self.on_message(message)?,
                Ok(None) => break,
                Err(e) => {
                    tracing::error!(error = %e, "agent breaks the protocol; closing its link");
                    self.unlink();
                }
            }
        }
        Ok(())
    }

    fn on_message(&mut self, message: ToEngine) -> Result<()> {
        let event = match message {
            ToEngine::Run {
                attempt,
                spec,
                context,
                engine,
                slots,
            } => {
                if let Some(context) = context {
                    self.context = Some(Arc::new(context));
                }
                let Some(context) = self.context.clone() else {
                    tracing::error!(%attempt, "run without a batch context; closing the agent's link");
                    self.unlink();
                    return Ok(());
                };
                let spec = codec::decode_exact(&spec)
                    .map(Box::new)
                    .map_err(|e| format!("the job cannot be read: {e}"));
                Event::Run {
                    attempt,
                    spec,
                    context,
                    engine,
                    slots,
                }
            }
            ToEngine::Cancel { attempt, stop } => Event::Cancel { attempt, stop },
            ToEngine::Acknowledge { attempts } => Event::Acknowledge { attempts },
            ToEngine::Lease { until } => Event::Lease { until },
            ToEngine::OutputTaken { attempt, bytes } => {
                if self.attempt == Some(attempt) {
                    self.output.in_flight = self.output.in_flight.saturating_sub(bytes);
                    return self.drain(TURN);
                }
                return Ok(());
            }
            ToEngine::Hide { request } => {
                self.followers.retain(|follower| *follower != request);
                return Ok(());
            }
            ToEngine::Show {
                request,
                attempt,
                follow,
            } => return self.begin_show(request, attempt, follow),
        };
        self.engine.handle(event, BootInstant::now());
        Ok(())
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
                // It fits a frame, which is all that can fail.
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
                // A closed socket stays readable: look away from it while the attempt is being
                // killed.
                self.keeper = None;
                self.engine.handle(Event::Quit, BootInstant::now());
            }
        }
    }
}

impl Output {
    /// Makes the pipes of an attempt, if it has any: where its output goes.
    fn begin(
        &mut self,
        Order {
            attempt,
            spec,
            context,
            ..
        }: &Order,
    ) -> std::result::Result<[OutputTo; 2], NotStarted> {
        *self = Self {
            streaming: context.capture == Capture::Stream,
            ..Self::default()
        };
        let mut to = |i: usize, file: Option<OutputFile>| match file {
            Some(file) => Ok::<_, NotStarted>(OutputTo::File(file)),
            None => {
                let (read, write) = spawn::pipe()?;
                let write = Arc::new(write);
                (self.pipes[i], self.writers[i]) = (Some(read), Some(write.clone()));
                (self.tails[i], self.counts[i]) = (Some(Tail::default()), Some(0));
                Ok(OutputTo::Pipe(write))
            }
        };
        Ok([
            to(0, paths::out(spec, *attempt, context))?,
            to(1, paths::err(spec, *attempt, context))?,
        ])
    }

    fn may_read(&self) -> bool {
        !self.streaming || self.in_flight < OUTPUT_WINDOW
    }

    fn written_so_far(&self) -> Written {
        let [out, err] = self.counts;
        Written { out, err }
    }

    fn take_tails(&mut self) -> (Option<Bytes>, Option<Bytes>) {
        self.pipes = [None, None];
        let [out, err] = std::mem::take(&mut self.tails);
        (out.map(Tail::into_bytes), err.map(Tail::into_bytes))
    }
}

/// The spawner thread: opens, spawns, answers. It wakes the other one only if that waits for the
/// answer.
fn spawner(
    around: &mut Surroundings,
    orders: &mpsc::Receiver<SpawnOrder>,
    answers: &mpsc::Sender<SpawnAnswer>,
    wake: &OwnedFd,
    awaited: &AtomicBool,
) {
    while let Ok((order, outputs)) = orders.recv() {
        let began = (WallTime::now(), BootInstant::now());
        let result = spawn::start(around, &order, &outputs).map_err(|why| (why, order));
        // The write ends with it: once the job is dead and this thread has answered, a pipe comes
        // to its end.
        drop(outputs);
        let failed = result.is_err();
        if answers.send((result, began)).is_err() {
            return;
        }
        // No child of a failed one will announce itself by SIGCHLD.
        if awaited.swap(false, Ordering::SeqCst) || failed {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec: whoever started us may have left some open,
/// and jobs must not get them.
pub(crate) fn seal_descriptors() {
    // SAFETY: close_range(2) with this flag closes nothing.
    let sealed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    } == 0;
    if sealed {
        return;
    }
    // Before Linux 5.11: one by one.
    for fd in std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Some(fd) = fd
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
            .filter(|fd| *fd > 2)
        {
            // SAFETY: fcntl(2) on a number that may have been closed meanwhile fails harmlessly.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Moves descriptor 0, which is a socket, to a close-on-exec descriptor and puts `/dev/null` in its
/// place.
pub(crate) fn take_stdin() -> Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// Takes what is pending of SIGCHLD and SIGTERM; whether the latter was. Each is pending at most
/// once (signal(7)).
pub(crate) fn take_signals(signals: &OwnedFd) -> bool {
    const ONE: usize = size_of::<libc::signalfd_siginfo>();
    let mut taken = [0; 2 * ONE];
    let size = rustix::io::read(signals, &mut taken).unwrap_or(0);
    // Its number comes first (signalfd(2)).
    let number = |info: &[u8]| {
        info.first_chunk()
            .map(|bytes| u32::from_ne_bytes(*bytes) as i32)
    };
    taken[..size]
        .chunks(ONE)
        .any(|info| number(info) == Some(libc::SIGTERM))
}

/// A signalfd(2) for SIGCHLD and SIGTERM, which are blocked in this thread and those it starts;
/// children get an empty mask at their spawn.
pub(crate) fn signals() -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the returned descriptor is ours
    // alone.
    unsafe {
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        Ok(<OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd))
    }
}
