//! The keeper: parent of one user's engines. It starts nothing but engines, outlives the agent, and is their subreaper: what a dead
//! engine leaves behind comes to the keeper, which kills it before the slot is used again.
//!
//! The agent either is at descriptor 0 (embedded: one fate, all end together) or connects to a socket in the file system.

use crate::engine::driver::{child_signals, seal_descriptors, take_child_signal, take_stdin};
use crate::engine::{Waited, wait4};
use crate::packet;
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::EngineIndex;
use mezcal_common::outcome::WaitStatus;
use mezcal_common::proc;
use mezcal_common::wire::engine::{FromKeeper, KeeperToEngine, ToKeeper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use std::io::{Error, Result};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A keeper without an agent ends after this: longer than the longest lease and the time to kill, so nothing runs any more.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long engines may take to kill their attempts when everything ends, before they are killed themselves.
const LAST_MERCY: Duration = Duration::from_secs(15);
/// What engines run: the program that we are, though its file may have been replaced or removed since.
const PROGRAM: &str = "/proc/self/exe";
/// Pause between sweeps of what dead engines left.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// What starts a keeper.
#[derive(Clone, Debug, clap::Args)]
pub struct KeeperArgs {
    /// Socket to listen on; without it descriptor 0 is the agent.
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// The host's name, for jobs.
    #[arg(long)]
    pub host: String,
}

struct Keeper {
    args: KeeperArgs,
    listener: Option<OwnedFd>,
    agent: Option<OwnedFd>,
    children: OwnedFd,
    engines: Vec<EngineProcess>,
    alone_since: BootInstant,
}

struct EngineProcess {
    pid: i32,
    control: OwnedFd,
}

/// Runs a keeper until its agent (embedded) or its patience ends.
///
/// # Errors
/// What the system refuses: the socket, the first engine.
pub fn run(args: KeeperArgs) -> Result<()> {
    seal_descriptors();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (listener, agent) = match &args.socket {
        Some(path) => (Some(listen(path)?), None),
        None => (None, Some(take_stdin()?)),
    };
    let children = child_signals()?;
    let mut keeper = Keeper { args, listener, agent, children, engines: Vec::new(), alone_since: BootInstant::now() };
    let result = keeper.serve();
    keeper.end();
    result
}

/// Binds a socket that only this user may use. A socket without a listener is replaced.
fn listen(path: &Path) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let _ = std::fs::remove_file(path);
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

impl Keeper {
    fn serve(&mut self) -> Result<()> {
        loop {
            let mut fds = vec![PollFd::new(&self.children, PollFlags::IN)];
            let agent_at = self.agent.as_ref().map(|fd| push(&mut fds, fd));
            let listener_at = self.listener.as_ref().map(|fd| push(&mut fds, fd));
            let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if agent_at.is_some_and(|at| ready[at]) && !self.on_agent()? {
                return Ok(());
            }
            if ready[0] && !self.on_children()? {
                return Ok(());
            }
            if listener_at.is_some_and(|at| ready[at]) {
                self.on_connection();
            }
            if self.agent.is_none() && BootInstant::now().since(self.alone_since) > PATIENCE {
                return Ok(());
            }
        }
    }

    fn on_connection(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
        let ours = rustix::process::geteuid().as_raw();
        match rustix::net::sockopt::socket_peercred(&socket) {
            Ok(peer) if peer.uid.as_raw() == ours || peer.uid.as_raw() == 0 => self.agent = Some(socket),
            Ok(peer) => tracing::warn!(uid = peer.uid.as_raw(), "connection of another user refused"),
            Err(e) => tracing::warn!(error = %e, "connection without credentials refused"),
        }
    }

    /// False when everything should end.
    fn on_agent(&mut self) -> Result<bool> {
        let Some(agent) = &self.agent else { return Ok(true) };
        match packet::receive::<ToKeeper>(agent) {
            Ok(Some((ToKeeper::Engines { count }, _))) => {
                while self.engines.len() < usize::from(count) {
                    let engine = self.start(self.engines.len() as u16)?;
                    self.engines.push(engine);
                }
                for index in 0..self.engines.len().min(usize::from(count)) {
                    self.link(EngineIndex(index as u16));
                }
                Ok(true)
            }
            Ok(Some((ToKeeper::Stop, _))) => Ok(false),
            Ok(None) | Err(_) => {
                self.agent = None;
                self.alone_since = BootInstant::now();
                Ok(self.args.socket.is_some())
            }
        }
    }

    /// Gives the agent and an engine two ends of a new socket.
    fn link(&mut self, engine: EngineIndex) {
        let Some(agent) = &self.agent else { return };
        let made = packet::stream_pair().and_then(|(near, far)| {
            packet::send(&self.engines[usize::from(engine.0)].control, &KeeperToEngine::Link, Some(far.as_fd()))?;
            packet::send(agent, &FromKeeper::Link { engine }, Some(near.as_fd()))
        });
        if let Err(e) = made {
            tracing::warn!(%engine, error = %e, "no link between agent and engine");
        }
    }

    fn start(&self, slot: u16) -> Result<EngineProcess> {
        let (control, theirs) = packet::pair()?;
        let mut command = Command::new(PROGRAM);
        command
            .arg0(format!("mezcal-engine {slot}"))
            .arg("engine")
            .args(["--slot", &slot.to_string(), "--host", &self.args.host])
            .stdin(Stdio::from(theirs));
        if self.args.socket.is_none() {
            command.arg("--one-fate");
        }
        let child = command.spawn().map_err(|e| Error::new(e.kind(), format!("cannot start an engine: {e}")))?;
        Ok(EngineProcess { pid: child.id() as i32, control })
    }

    /// False when everything should end.
    fn on_children(&mut self) -> Result<bool> {
        take_child_signal(&self.children);
        while let Waited::Ended { pid, status, .. } = wait4(-1) {
            let Some(index) = self.engines.iter().position(|e| e.pid == pid) else { continue };
            if self.args.socket.is_none() && status == WaitStatus::Exited(0) {
                // It has seen the agent go before we did.
                return Ok(false);
            }
            tracing::warn!(engine = index, ?status, "an engine died");
            let (killed, survivors) = self.kill_orphans();
            let engine = EngineIndex(index as u16);
            self.engines[index] = self.start(engine.0)?;
            if let Some(agent) = &self.agent {
                // A closed connection shows up at the next poll.
                let _ = packet::send(agent, &FromKeeper::EngineEnded { engine, killed, survivors }, None);
            }
            self.link(engine);
        }
        Ok(true)
    }

    /// Kills children that are no engines until there are none: (killed, still alive).
    fn kill_orphans(&self) -> (u32, u32) {
        let deadline = BootInstant::now() + crate::engine::UNKILLABLE_AFTER;
        let mut killed = std::collections::HashSet::new();
        loop {
            let orphans: Vec<i32> = proc::own_children()
                .unwrap_or_default()
                .into_iter()
                .filter(|pid| !self.engines.iter().any(|e| e.pid == *pid))
                .collect();
            for pid in &orphans {
                if let Some(p) = Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(p, Signal::KILL);
                    killed.insert(*pid);
                }
                wait4(*pid);
            }
            if orphans.is_empty() || BootInstant::now() >= deadline {
                return (killed.len() as u32, orphans.len() as u32);
            }
            pause();
        }
    }

    /// Ends all engines: their sockets close, they kill what they run and exit; those that do not are killed.
    fn end(&mut self) {
        let pids: Vec<i32> = self.engines.drain(..).map(|e| e.pid).collect();
        let deadline = BootInstant::now() + LAST_MERCY;
        let mut left: Vec<i32> = pids;
        while !left.is_empty() && BootInstant::now() < deadline {
            left.retain(|pid| matches!(wait4(*pid), Waited::Alive));
            if !left.is_empty() {
                pause();
            }
        }
        // With the engine list empty every child counts as an orphan, late engines included.
        let (killed, survivors) = self.kill_orphans();
        if killed > 0 || survivors > 0 {
            tracing::warn!(killed, survivors, "processes were left at the end");
        }
        if let Some(path) = &self.args.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn push<'a>(fds: &mut Vec<PollFd<'a>>, fd: &'a OwnedFd) -> usize {
    fds.push(PollFd::new(fd, PollFlags::IN));
    fds.len() - 1
}

/// Waits for the next change among children, or a little.
fn pause() {
    let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: SWEEP_PAUSE.subsec_nanos().into() }));
}
