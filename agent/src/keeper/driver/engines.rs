//! The processes of engines: copies of the keeper, which starts them, hears them, and sees them
//! end.

use super::{Driver, cannot};
use crate::engine::{Waited, wait4_or_stopped};
use crate::keeper::Event;
use crate::kernel::packet;
use crate::kernel::signals::take_signals;

use mezcal_common::message::engine::EngineToKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::WaitStatus;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal};
use std::io::{Error, ErrorKind, Result};

/// Two processes after a fork(2).
pub(super) enum Started {
    /// In the keeper: the new engine.
    There(EngineProcess),
    /// In the new engine: its end of the socket between them.
    Here(OwnedFd),
}

pub(super) struct EngineProcess {
    pub(super) pid: i32,
    /// None once the other end is closed.
    pub(super) control: Option<OwnedFd>,
    /// The process is the first one of its slot.
    pub(super) first: bool,
    /// The process has sent a message.
    pub(super) used: bool,
}

impl EngineProcess {
    /// A place without a process.
    pub(super) const NONE: Self = Self {
        pid: 0,
        control: None,
        first: false,
        used: false,
    };
}

/// Threads of this process.
pub(super) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

impl Driver {
    /// Starts an engine in its slot. In the new engine: its end of the socket to the keeper.
    pub(super) fn start_engine(&mut self, engine: EngineIndex) -> Result<Option<OwnedFd>> {
        match (self.start(), self.engines.get_mut(usize::from(engine.0))) {
            (Ok(Started::Here(keeper)), _) => return Ok(Some(keeper)),
            (Ok(Started::There(process)), Some(place)) => *place = process,
            (Ok(Started::There(process)), None) => self.engines.push(EngineProcess {
                first: true,
                ..process
            }),
            (Err(e), None) if !self.complete => return Err(e),
            (Err(e), place) => {
                // A job that has used up processes or descriptors must not cost the other jobs
                // their lives.
                if place.is_none() {
                    self.engines.push(EngineProcess::NONE);
                }
                self.say_of(usize::from(engine.0), e.to_string());
                self.keeper
                    .handle(Event::NotStarted(engine), BootInstant::now());
            }
        }
        Ok(None)
    }

    pub(super) fn on_engine(&mut self, index: usize) {
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
                // SIGCHLD tells of its end.
                Ok(None) | Err(_) => self.engines[index].control = None,
            }
        }
    }

    /// True when everything has to end.
    ///
    /// # Errors
    /// There is no room for the engines of an embedded run.
    pub(super) fn on_children(&mut self) -> Result<bool> {
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
                        // The engine has seen the agent go before the keeper did.
                        return Ok(true);
                    }
                    // The place is empty until there is another engine.
                    let engine = std::mem::replace(&mut self.engines[index], EngineProcess::NONE);
                    if engine.first
                        && !engine.used
                        && self.args.socket.is_none()
                        && status == WaitStatus::Exited(1)
                    {
                        return Err(Error::other(format!(
                            "no resources for engine {index}, which has logged the reason; fewer \
                             slots need less"
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

    pub(super) fn signal(&self, engine: EngineIndex, signal: Signal) {
        // The process is not reaped yet, so the number is its own.
        if let Some(pid) = self
            .engines
            .get(usize::from(engine.0))
            .and_then(|e| Pid::from_raw(e.pid))
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Starts an engine as a copy of this process: to start the program anew takes ten times as
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
}
