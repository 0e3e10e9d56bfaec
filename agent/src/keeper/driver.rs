//! The keeper process: performs what [`Keeper`] decides. It starts nothing but engines, outlives
//! the agent, and is the engines' parent and the subreaper of all that they leave behind.
//!
//! The agent either is at descriptor 0 (embedded: one fate, all end together) or connects to a
//! socket in the file system. In the second case a lock, which the engines hold too, keeps a new
//! keeper from starting before the last engine of a dead one has ended.

use super::{Effect, Event, Keeper};
use crate::engine::driver::{
    self as engine, EngineArgs, seal_descriptors, signals, take_signals, take_stdin,
};
use crate::engine::{Inherited, Waited, kill_with_group, wait4, wait4_or_stopped};
use crate::kernel::cgroup::{self, Place, Seat};
use crate::kernel::packet;
use mezcal_common::message::engine::{
    EngineToKeeper, FromKeeper, KeeperToEngine, TELL_FAILURES, ToKeeper,
};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::escape::chain;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::{Containment, WaitStatus};
use mezcal_common::system::files::Directory;
use mezcal_common::system::limits;
use mezcal_common::system::proc;
use mezcal_common::system::timer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long engines may take to kill their attempts when everything ends, before they are killed
/// themselves.
const LAST_MERCY: Duration = Duration::from_secs(15);
/// Pause between two looks at what is ending.
const LAST_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// The same failure of the same engine is said again after this.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Characters of a reason that the agent is told: they have to fit a packet, with room to spare.
const REASON_CHARS: usize = 200;
/// How long the engines of a dead keeper may take to kill and end: longer than they try before they
/// call something unkillable.
pub const PREDECESSOR: Duration = Duration::from_secs(20);

/// What is wanted of control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainmentWish {
    /// Control groups where they are available.
    #[default]
    Auto,
    /// Control groups, or nothing runs.
    Cgroup2,
    /// No control groups.
    Subreaper,
}

/// What starts a keeper.
#[derive(Clone, Debug, clap::Args)]
pub struct KeeperArgs {
    /// Socket to listen on; without it descriptor 0 is the agent.
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// The host's name, for jobs.
    #[arg(long)]
    pub host: String,
    /// What holds the processes of a job together.
    #[arg(long, default_value = "auto")]
    pub containment: ContainmentWish,
    /// The account of the agent, if that is another one: only it may connect, and there is always
    /// somebody to start its successor.
    #[arg(long, value_name = "UID")]
    pub agent: Option<u32>,
}

struct Driver {
    args: KeeperArgs,
    keeper: Keeper,
    place: Option<Place>,
    lock: Option<File>,
    listener: Option<OwnedFd>,
    agent: Option<OwnedFd>,
    /// What the agent's socket has not taken.
    /// What waits, and the number of the engine's process if it is a link.
    to_agent: VecDeque<(FromKeeper, i32)>,
    /// It wants to hear why engines fail.
    tells_failures: bool,
    /// There were as many engines as were wanted at some time: jobs may be running.
    complete: bool,
    signals: OwnedFd,
    /// It has been asked to end (SIGTERM), as whoever is below it is when the host shuts down.
    /// Until then its engines have time; nothing is started.
    asked: Option<BootInstant>,
    timer: OwnedFd,
    armed: Option<BootInstant>,
    engines: Vec<EngineProcess>,
    /// What was said last of each engine that failed, and when.
    said: HashMap<usize, (String, BootInstant)>,
    /// Orphans that were reaped between sweeps and had died by our KILL.
    killed: u32,
}

/// Two processes after a fork(2).
enum Started {
    /// In the keeper: the new engine.
    There(EngineProcess),
    /// In the new engine: its end of the socket between them.
    Here(OwnedFd),
}

struct EngineProcess {
    pid: i32,
    /// None once the other end is closed.
    control: Option<OwnedFd>,
    /// It is the first one of its slot.
    first: bool,
    /// It has been given something.
    used: bool,
}

impl EngineProcess {
    /// The place of one.
    const NONE: Self = Self {
        pid: 0,
        control: None,
        first: false,
        used: false,
    };
}

/// Why the loop ends.
enum Left {
    /// The agent is gone, or nobody is to be expected any more.
    Over,
    /// This is no keeper any more but its copy, which becomes the engine of this slot and talks to
    /// the keeper here.
    Copy { slot: u16, keeper: OwnedFd },
}

/// Runs a keeper until its agent (embedded) or its patience ends; in its copies, engines.
///
/// # Errors
/// What the system refuses: the socket, the first engine, the containment that is insisted on.
pub fn run(args: KeeperArgs) -> Result<()> {
    seal_descriptors();
    // For top(1): started by way of /proc, it is called after a number there.
    let _ = rustix::thread::set_name(c"mezcal-keeper");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let agent = if args.socket.is_some() {
        None
    } else {
        Some(take_stdin()?)
    };
    let mut lock = args.socket.as_deref().map(take_lock).transpose()?;
    let place = claim(&args)?;
    if let (Some(lock), Some(place)) = (&mut lock, &place) {
        lock.write_all(place.path().as_os_str().as_encoded_bytes())?;
    }
    // Whoever may get into the directory may try; who they are is looked at when they do.
    let mode = if args.agent.is_some() { 0o660 } else { 0o600 };
    let listener = args
        .socket
        .as_deref()
        .map(|path| listen(path, mode))
        .transpose()?;
    // The shell's functions belong to whoever called an embedded run, as the rest of the
    // environment does.
    let inherited = Inherited::read(args.socket.is_none());
    // What only the first thread of a process costs, symbols to look up and a stack to map, is
    // spared its copies. They say if there is no room.
    let _ = limits::try_thread();
    let keeper = Keeper::new(BootInstant::now());
    let mut driver = Driver {
        keeper: if args.agent.is_some() {
            keeper.always_wanted()
        } else {
            keeper
        },
        args,
        place,
        lock,
        listener,
        agent: None,
        to_agent: VecDeque::new(),
        tells_failures: false,
        complete: false,
        signals: signals()?,
        asked: None,
        timer: timer::new_timerfd()?,
        armed: None,
        engines: Vec::new(),
        said: HashMap::new(),
        killed: 0,
    };
    if let Some(agent) = agent {
        driver.greet(agent);
    }
    match driver.serve() {
        Ok(Left::Copy { slot, keeper }) => {
            let (args, lock) = driver.into_engine(slot, inherited);
            engine::run(args, keeper, lock.map(Into::into))
                .map_err(|e| cannot(&format!("run engine {slot}"), e))?;
            // What the copy has of the keeper's does not need to be put in order.
            // SAFETY: _exit(2) has no memory effects; nothing of this process's is buffered.
            unsafe { libc::_exit(0) }
        }
        result => {
            driver.end();
            result.map(|_| ())
        }
    }
}

/// Has the ends of children reported, whatever this program was started with: with SIGCHLD ignored,
/// the kernel would forget children at once, nobody would hear of their ends, and their numbers
/// would be other processes' before we know (wait(2), Notes).
pub fn heed_children() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// With the limit that may be behind it.
fn cannot(what: &str, e: Error) -> Error {
    Error::new(e.kind(), format!("cannot {what}: {}", limits::named(e)))
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

fn claim(args: &KeeperArgs) -> Result<Option<Place>> {
    if args.containment == ContainmentWish::Subreaper {
        return Ok(None);
    }
    // The same name for every keeper of one socket: what a dead one left is found.
    let name = match &args.socket {
        Some(path) => format!("engines-{:016x}", fingerprint(path)),
        None => format!("run-{}", std::process::id()),
    };
    let seat = if args.socket.is_some() {
        Seat::Inside
    } else {
        Seat::Outside
    };
    match Place::claim(&name, seat) {
        Ok(place) => Ok(Some(place)),
        Err(e) if args.containment == ContainmentWish::Cgroup2 => Err(Error::new(
            e.kind(),
            format!("containment by control groups is requested but not available: {e}"),
        )),
        Err(e) => {
            tracing::info!("no control groups: {e}");
            Ok(None)
        }
    }
}

/// Waits until no engine of an earlier keeper is left. What that one had in control groups is
/// killed at once.
fn take_lock(socket: &Path) -> Result<File> {
    let path = socket.with_extension("keeper");
    // In it, nobody else can put another socket in the place of ours.
    let dir = Directory::own(path.parent().unwrap_or(Path::new(".")))
        .map_err(|e| Error::other(chain(&e)))?;
    let lock = dir
        .lock_file(&path.file_name().unwrap_or_default().to_string_lossy())
        .map_err(|e| Error::other(chain(&e)))?;
    let deadline = BootInstant::now() + PREDECESSOR;
    let mut waiting = false;
    while let Err(e) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if e != Errno::WOULDBLOCK || BootInstant::now() > deadline {
            return Err(Error::other(format!(
                "engines of an earlier keeper do not end ({} is locked)",
                path.display()
            )));
        }
        if !std::mem::replace(&mut waiting, true) {
            tracing::warn!("waiting for the engines of a keeper that died");
            cgroup::kill_stale(Path::new(std::fs::read_to_string(&path)?.trim()));
        }
        let _ = poll(&mut [], Some(&LAST_PAUSE));
    }
    lock.set_len(0)?;
    Ok(lock)
}

/// Binds a socket with these permissions. A socket without a listener is replaced.
fn listen(path: &Path, mode: u32) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let _ = std::fs::remove_file(path);
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777 & !mode));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

impl Driver {
    fn serve(&mut self) -> Result<Left> {
        loop {
            if let Some(left) = self.perform()? {
                return Ok(left);
            }
            self.flush();
            if let Some(until) = self.asked
                && (until <= BootInstant::now()
                    || self.engines.iter().all(|e| e.pid == 0) && self.to_agent.is_empty())
            {
                return Ok(Left::Over);
            }
            let wanted = self
                .keeper
                .poll_timeout()
                .into_iter()
                .chain(self.asked)
                .min();
            if wanted != self.armed {
                timer::arm(&self.timer, wanted)?;
                self.armed = wanted;
            }
            if self.wait()? {
                return Ok(Left::Over);
            }
        }
    }

    /// Performs all effects.
    fn perform(&mut self) -> Result<Option<Left>> {
        while let Some(effect) = self.keeper.poll_effect() {
            match effect {
                Effect::Start(_) if self.asked.is_some() => {}
                // What is lost here must not come back here before all of it is over, which our own
                // end says.
                Effect::Tell(FromKeeper::EngineEnded {
                    attempt: Some(_), ..
                }) if self.asked.is_some() => {}
                Effect::Start(engine) => {
                    match (self.start(), self.engines.get_mut(usize::from(engine.0))) {
                        (Ok(Started::Here(keeper)), _) => {
                            return Ok(Some(Left::Copy {
                                slot: engine.0,
                                keeper,
                            }));
                        }
                        (Ok(Started::There(process)), Some(place)) => *place = process,
                        (Ok(Started::There(process)), None) => self.engines.push(EngineProcess {
                            first: true,
                            ..process
                        }),
                        (Err(e), None) if !self.complete => return Err(e),
                        (Err(e), place) => {
                            // A job that has used up processes or descriptors must not cost the
                            // other jobs their lives.
                            if place.is_none() {
                                self.engines.push(EngineProcess::NONE);
                            }
                            self.say_of(usize::from(engine.0), e.to_string());
                            self.keeper
                                .handle(Event::NotStarted(engine), BootInstant::now());
                        }
                    }
                }
                Effect::Link(engine) => {
                    let pid = self
                        .engines
                        .get(usize::from(engine.0))
                        .map_or(0, |process| process.pid);
                    self.tell(FromKeeper::Link { engine }, pid);
                }
                Effect::Kill(engine) => {
                    tracing::warn!(
                        engine = engine.0,
                        "an engine is late; killing it with all that it runs"
                    );
                    self.signal(engine, Signal::KILL);
                }
                Effect::Continue(engine) => {
                    tracing::warn!(
                        engine = engine.0,
                        "an engine was stopped by a signal; continuing it"
                    );
                    self.signal(engine, Signal::CONT);
                }
                Effect::Sweep { engines } => {
                    if let Some(place) = &self.place {
                        engines
                            .iter()
                            .for_each(|engine| place.kill_leaves(engine.0));
                    }
                    let (killed, alive) = self.sweep();
                    self.keeper
                        .handle(Event::Swept { killed, alive }, BootInstant::now());
                }
                Effect::Tell(message) => self.tell(message, 0),
                Effect::Exit => return Ok(Some(Left::Over)),
            }
        }
        self.complete = !self.engines.is_empty();
        Ok(None)
    }

    /// Waits for anything, and feeds it to the core; true when everything should end.
    fn wait(&mut self) -> Result<bool> {
        let reading = PollFlags::IN;
        let mut fds = vec![
            PollFd::new(&self.signals, reading),
            PollFd::new(&self.timer, reading),
        ];
        let agent_at = self.agent.as_ref().map(|fd| {
            let writing = if self.to_agent.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(fd, reading | writing));
            fds.len() - 1
        });
        let listener_at = self.listener.as_ref().map(|fd| {
            fds.push(PollFd::new(fd, reading));
            fds.len() - 1
        });
        let controls: Vec<usize> = (0..self.engines.len())
            .filter(|i| self.engines[*i].control.is_some())
            .collect();
        let controls_from = fds.len();
        fds.extend(
            self.engines
                .iter()
                .filter_map(|e| e.control.as_ref())
                .map(|fd| PollFd::new(fd, reading)),
        );
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds
            .iter()
            .map(|fd| !fd.revents().difference(PollFlags::OUT).is_empty())
            .collect();
        drop(fds);
        // The agent before the engines: what it says of a cancel precedes what an engine answers to
        // it.
        if agent_at.is_some_and(|at| ready[at]) && self.on_agent() {
            return Ok(true);
        }
        for (at, index) in controls.into_iter().enumerate() {
            if ready[controls_from + at] {
                self.on_engine(index);
            }
        }
        if ready[0] && self.on_children()? {
            return Ok(true);
        }
        if ready[1] {
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
            self.armed = None;
            self.keeper.handle_timeout(BootInstant::now());
        }
        if listener_at.is_some_and(|at| ready[at]) {
            self.on_connection();
        }
        Ok(false)
    }

    fn on_connection(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else {
            return;
        };
        let ours = self
            .args
            .agent
            .unwrap_or_else(|| rustix::process::geteuid().as_raw());
        match packet::peer(&socket) {
            Ok(uid) if uid == ours || uid == 0 => self.greet(socket),
            Ok(uid) => tracing::warn!(uid, "connection of another user refused"),
            Err(e) => tracing::warn!(error = %e, "connection without credentials refused"),
        }
    }

    fn greet(&mut self, agent: OwnedFd) {
        self.agent = Some(agent);
        self.tells_failures = false;
        self.to_agent.clear();
        let kind = if self.place.is_some() {
            Containment::Cgroup2
        } else {
            Containment::Subreaper
        };
        self.tell(FromKeeper::Containment(kind), 0);
    }

    /// True when everything should end.
    fn on_agent(&mut self) -> bool {
        while let Some(agent) = &self.agent {
            let event = match packet::try_receive::<ToKeeper>(agent) {
                Ok(Some((message, _))) => {
                    if let ToKeeper::Engines { host, .. } = &message {
                        self.args.host.clone_from(host);
                    }
                    if message
                        == (ToKeeper::Relink {
                            engine: TELL_FAILURES,
                        })
                    {
                        self.tells_failures = true;
                        (0..self.engines.len()).for_each(|engine| self.tell_failure(engine));
                        continue;
                    }
                    Event::Agent(message)
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Ok(None) | Err(_) => {
                    self.agent = None;
                    self.to_agent.clear();
                    if self.args.socket.is_none() {
                        return true;
                    }
                    Event::AgentGone
                }
            };
            self.keeper.handle(event, BootInstant::now());
        }
        false
    }

    fn on_engine(&mut self, index: usize) {
        while let Some(control) = &self.engines[index].control {
            match packet::try_receive::<EngineToKeeper>(control) {
                Ok(Some((message, _))) => {
                    self.engines[index].used = true;
                    self.keeper.handle(
                        Event::Engine(EngineIndex(index as u16), message),
                        BootInstant::now(),
                    );
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // Its end is told by SIGCHLD.
                Ok(None) | Err(_) => self.engines[index].control = None,
            }
        }
    }

    /// True when everything should end.
    ///
    /// # Errors
    /// There is no room for the engines of an embedded run.
    fn on_children(&mut self) -> Result<bool> {
        if take_signals(&self.signals) {
            self.ask_engines();
        }
        loop {
            match wait4_or_stopped(-1) {
                Waited::Ended { pid, status, .. } => {
                    let Some(index) = self.engines.iter().position(|e| e.pid == pid) else {
                        self.killed +=
                            u32::from(status == WaitStatus::Signaled(Signal::KILL.as_raw()));
                        continue;
                    };
                    if self.args.socket.is_none()
                        && self.asked.is_none()
                        && status == WaitStatus::Exited(0)
                    {
                        // It has seen the agent go before we did.
                        return Ok(true);
                    }
                    // Until another one is there.
                    let engine = std::mem::replace(&mut self.engines[index], EngineProcess::NONE);
                    if engine.first
                        && !engine.used
                        && self.args.socket.is_none()
                        && status == WaitStatus::Exited(1)
                    {
                        return Err(Error::other(format!(
                            "no room for engine {index}, which has said why; fewer slots need less"
                        )));
                    }
                    if self.asked.is_none() {
                        let how = match status {
                            WaitStatus::Exited(code) => {
                                format!("an engine died with status {code}; its log has more")
                            }
                            WaitStatus::Signaled(signal) => {
                                format!("an engine died by signal {signal}")
                            }
                        };
                        self.say_of(index, how);
                    }
                    self.keeper.handle(
                        Event::EngineDied(EngineIndex(index as u16)),
                        BootInstant::now(),
                    );
                }
                Waited::Stopped { pid } => {
                    if let Some(index) = self.engines.iter().position(|e| e.pid == pid) {
                        self.keeper.handle(
                            Event::EngineStopped(EngineIndex(index as u16)),
                            BootInstant::now(),
                        );
                    }
                }
                Waited::Alive | Waited::NoChild => return Ok(false),
            }
        }
    }

    /// Says why an engine is started again: once, as long as it is the same.
    fn say_of(&mut self, engine: usize, why: String) {
        let now = BootInstant::now();
        if self
            .said
            .get(&engine)
            .is_none_or(|(said, at)| *said != why || now.since(*at) >= SAID_AGAIN_AFTER)
        {
            tracing::warn!(
                engine,
                "{why}; another one is started, after pauses if that does not last"
            );
            self.said.insert(engine, (why, now));
        }
        self.tell_failure(engine);
    }

    /// Tells the agent why an engine has failed last.
    fn tell_failure(&mut self, engine: usize) {
        if let Some((why, _)) = self.said.get(&engine).filter(|_| self.tells_failures) {
            let why = why.chars().take(REASON_CHARS).collect();
            self.tell(
                FromKeeper::EngineFails {
                    engine: EngineIndex(engine as u16),
                    why,
                },
                0,
            );
        }
    }

    fn tell(&mut self, message: FromKeeper, pid: i32) {
        if self.agent.is_some() {
            self.to_agent.push_back((message, pid));
        }
    }

    /// Hands the agent what its socket takes.
    fn flush(&mut self) {
        while let (Some(agent), Some((message, pid))) = (&self.agent, self.to_agent.front()) {
            let sent = match message {
                FromKeeper::Link { engine } => self.link(agent, *engine, *pid),
                _ => packet::send(agent, message, None),
            };
            match sent {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // A closed connection shows up at the next poll.
                Ok(()) | Err(_) => drop(self.to_agent.pop_front()),
            }
        }
    }

    /// Gives the agent and an engine two ends of a new socket, which are open here only until then:
    /// there may be hundreds of slots.
    fn link(&self, agent: &OwnedFd, engine: EngineIndex, pid: i32) -> Result<()> {
        let process = self
            .engines
            .get(usize::from(engine.0))
            .filter(|process| process.pid == pid);
        // It may have died since.
        let Some(control) = process.and_then(|process| process.control.as_ref()) else {
            return Ok(());
        };
        let failed =
            |e: &Error| tracing::warn!(%engine, error = %e, "no link between agent and engine");
        let (near, far) = packet::stream_pair()
            .map_err(|e| cannot("connect an engine", e))
            .inspect_err(failed)?;
        packet::send(agent, &FromKeeper::Link { engine }, Some(near.as_fd()))?;
        // The agent sees the end of its side.
        let _ = packet::send(control, &KeeperToEngine::Link, Some(far.as_fd())).inspect_err(failed);
        Ok(())
    }

    fn signal(&self, engine: EngineIndex, signal: Signal) {
        // Not reaped yet, so the number is its own.
        if let Some(pid) = self
            .engines
            .get(usize::from(engine.0))
            .and_then(|e| Pid::from_raw(e.pid))
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Starts an engine as a copy of this process: starting the program anew takes ten times as
    /// long, and a host may have dozens of slots.
    fn start(&self) -> Result<Started> {
        debug_assert_eq!(threads(), 1, "the copy has one thread only");
        let (control, theirs) = packet::pair().map_err(|e| cannot("start an engine", e))?;
        // SAFETY: there is no other thread that could hold a lock which nobody would release in the
        // copy (fork(2)).
        match unsafe { libc::fork() } {
            0 => Ok(Started::Here(theirs)),
            pid if pid > 0 => Ok(Started::There(EngineProcess {
                pid,
                control: Some(control),
                ..EngineProcess::NONE
            })),
            _ => Err(cannot("start an engine", Error::last_os_error())),
        }
    }

    /// What this copy takes along as the engine of a slot. The listener, the agent's socket and
    /// those of the other engines are the keeper's.
    fn into_engine(self, slot: u16, inherited: Inherited) -> (EngineArgs, Option<File>) {
        let leaves = self.place.as_ref().map(|place| place.leaves(slot));
        let one_fate = self.args.socket.is_none();
        (
            EngineArgs {
                slot,
                host: self.args.host,
                inherited,
                one_fate,
                leaves,
            },
            self.lock,
        )
    }

    /// KILL to every child that is no engine, and its group; reaps: (killed, still alive).
    fn sweep(&mut self) -> (u32, u32) {
        let orphans = || -> Vec<Pid> {
            let children = proc::own_children().unwrap_or_default().into_iter();
            children
                .filter(|pid| !self.engines.iter().any(|e| e.pid == *pid))
                .filter_map(Pid::from_raw)
                .collect()
        };
        let mut killed = std::mem::take(&mut self.killed);
        for orphan in orphans() {
            kill_with_group(orphan);
            if let Waited::Ended { status, .. } = wait4(orphan.as_raw_nonzero().get()) {
                killed += u32::from(status == WaitStatus::Signaled(Signal::KILL.as_raw()));
            }
        }
        (killed, orphans().len() as u32)
    }

    /// Waits a little, or until a child has ended.
    fn pause_for_a_child(&mut self) {
        let _ = poll(
            &mut [PollFd::new(&self.signals, PollFlags::IN)],
            Some(&LAST_PAUSE),
        );
        take_signals(&self.signals);
    }

    /// Asks all engines to end: what they run has its grace, and the agent gives nothing more to
    /// those that are idle.
    fn ask_engines(&mut self) {
        if self.asked.is_some() {
            return;
        }
        tracing::info!("asked to end");
        self.asked = Some(BootInstant::now() + LAST_MERCY);
        for pid in self.engines.iter().filter_map(|e| Pid::from_raw(e.pid)) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            // A stopped one must be able to see it.
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
    }

    /// Ends all engines: their sockets close, they kill what they run and exit; those that do not
    /// are killed.
    fn end(&mut self) {
        let engines = std::mem::take(&mut self.engines);
        let mut left: Vec<Pid> = engines
            .iter()
            .filter_map(|e| Pid::from_raw(e.pid))
            .collect();
        drop(engines);
        let deadline = BootInstant::now() + LAST_MERCY;
        for pid in &left {
            // A stopped one must be able to see it.
            let _ = rustix::process::kill_process(*pid, Signal::CONT);
        }
        while !left.is_empty() && BootInstant::now() < deadline {
            left.retain(|pid| matches!(wait4(pid.as_raw_nonzero().get()), Waited::Alive));
            if !left.is_empty() {
                self.pause_for_a_child();
            }
        }
        // With the engine list empty every child counts as an orphan, late engines included.
        let deadline = BootInstant::now() + crate::engine::UNKILLABLE_AFTER;
        let (mut killed, mut alive) = self.sweep();
        while alive > 0 && BootInstant::now() < deadline {
            self.pause_for_a_child();
            let (more, left) = self.sweep();
            (killed, alive) = (killed + more, left);
        }
        if killed > 0 || alive > 0 {
            tracing::warn!(killed, survivors = alive, "processes were left at the end");
        }
        if let Some(place) = &self.place {
            place.give_up();
        }
        if let Some(path) = &self.args.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The same number for the same path.
fn fingerprint(path: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}
