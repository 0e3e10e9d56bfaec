//! The keeper process: performs what [`Keeper`] decides. It starts nothing but engines, outlives
//! the agent, and is the engines' parent and the subreaper of all processes that they leave behind.
//!
//! The agent either is at descriptor 0 (embedded: one fate, all end together) or connects to a
//! socket in the file system. In the second case a lock, which the engines hold too, keeps a new
//! keeper from starting before the last engine of a dead one has ended.

mod agent;
mod claim;
mod ending;
mod engines;

use super::{Effect, Event, Keeper};
use crate::engine::Inherited;
use crate::engine::driver::{self as engine, EngineArgs};
use crate::kernel::cgroup::Place;
use crate::kernel::descriptors::{seal_descriptors, take_stdin};
use crate::kernel::signals::signals;
use claim::{claim, listen, take_lock};
use engines::EngineProcess;
use mezcal_common::message::engine::FromKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::limits;
use mezcal_common::system::{threads, timer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Error, Result, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How long the engines of a dead keeper may take to kill and end: longer than they try before they
/// call a process unkillable.
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
    /// Messages that the agent's socket has not taken, each with the number of the engine's process
    /// if it is a link.
    to_agent: VecDeque<(FromKeeper, i32)>,
    /// The agent wants to hear why engines fail.
    tells_failures: bool,
    /// At some time there were as many engines as were wanted: jobs may be running.
    complete: bool,
    signals: OwnedFd,
    /// The keeper has been asked to end (SIGTERM), as its engines are when the host shuts down. The
    /// engines have until this time; nothing is started.
    asked: Option<BootInstant>,
    timer: OwnedFd,
    armed: Option<BootInstant>,
    engines: Vec<EngineProcess>,
    /// The last reason told for each engine that failed, and when it was told.
    said: HashMap<usize, (String, BootInstant)>,
    /// Orphans that were reaped between sweeps and had died by our KILL.
    killed: u32,
}

/// The reasons why the loop ends.
enum Left {
    /// The agent is gone, or no agent is expected any more.
    Over,
    /// This process is not a keeper any more but its copy, which becomes the engine of this slot
    /// and talks to the keeper over this socket.
    Copy { slot: u16, keeper: OwnedFd },
}

/// Runs a keeper until its agent (embedded) or its patience ends; in its copies, engines.
///
/// # Errors
/// The system refuses the socket, the first engine, or the containment that the configuration
/// insists on.
pub fn run(args: KeeperArgs) -> Result<()> {
    seal_descriptors();
    // For top(1): a process started by way of /proc is called after a number there.
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
    // Everybody who may get into the directory may connect; the account is checked when they do.
    let mode = if args.agent.is_some() { 0o660 } else { 0o600 };
    let listener = args
        .socket
        .as_deref()
        .map(|path| listen(path, mode))
        .transpose()?;
    // The shell's functions belong to the caller of an embedded run, as the rest of the environment
    // does.
    let inherited = Inherited::read(args.socket.is_none());
    // Only the first thread of a process has to look up symbols and to map a stack; this one spares
    // the copies that. The copies complain if there is no room.
    let _ = threads::try_thread();
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
            // The copy does not need to put in order the things that it has of the keeper's.
            // SAFETY: _exit(2) has no memory effects; nothing of this process's is buffered.
            unsafe { libc::_exit(0) }
        }
        result => {
            driver.end();
            result.map(|_| ())
        }
    }
}

/// The error, with the limit that may be behind it.
fn cannot(what: &str, e: Error) -> Error {
    Error::new(e.kind(), format!("cannot {what}: {}", limits::named(e)))
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
                // An attempt that is lost here must not come back here before all of it is over,
                // which our own end says.
                Effect::Tell(FromKeeper::EngineEnded {
                    attempt: Some(_), ..
                }) if self.asked.is_some() => {}
                Effect::Start(engine) => {
                    if let Some(keeper) = self.start_engine(engine)? {
                        let slot = engine.0;
                        return Ok(Some(Left::Copy { slot, keeper }));
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

    /// Waits for any event, and feeds it to the core; true when everything has to end.
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
        // The agent before the engines: a cancel from the agent precedes an engine's answer to it.
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

    /// The things that this copy takes along as the engine of a slot. The listener, the agent's
    /// socket and those of the other engines are the keeper's.
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
}
