//! The link to the agent: who may have it, and the messages over it, both ways.

use super::{Driver, cannot};
use crate::keeper::Event;
use crate::kernel::packet;
use mezcal_common::message::engine::{FromKeeper, KeeperToEngine, TELL_FAILURES, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::Containment;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::SocketFlags;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

/// Characters of a reason that the agent is told: it has to fit a packet, with room to spare.
const REASON_CHARS: usize = 200;

/// The same failure of the same engine is told again after this time.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl Driver {
    pub(super) fn on_connection(&mut self) {
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

    pub(super) fn greet(&mut self, agent: OwnedFd) {
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

    /// True when everything has to end.
    pub(super) fn on_agent(&mut self) -> bool {
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

    /// Tells why an engine is started again: once, as long as the reason stays the same.
    pub(super) fn say_of(&mut self, engine: usize, why: String) {
        let now = BootInstant::now();
        if self
            .said
            .get(&engine)
            .is_none_or(|(said, at)| *said != why || now.since(*at) >= SAID_AGAIN_AFTER)
        {
            tracing::warn!(
                engine,
                "{why}; another one is started, after pauses if it keeps failing"
            );
            self.said.insert(engine, (why, now));
        }
        self.tell_failure(engine);
    }

    /// Tells the agent the last reason why an engine has failed.
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

    pub(super) fn tell(&mut self, message: FromKeeper, pid: i32) {
        if self.agent.is_some() {
            self.to_agent.push_back((message, pid));
        }
    }

    /// Hands the agent as much as its socket takes.
    pub(super) fn flush(&mut self) {
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

    /// Gives the agent and an engine two ends of a new socket. They are open here only until then:
    /// there may be hundreds of slots.
    pub(super) fn link(&self, agent: &OwnedFd, engine: EngineIndex, pid: i32) -> Result<()> {
        let process = self
            .engines
            .get(usize::from(engine.0))
            .filter(|process| process.pid == pid);
        // The engine may have died since.
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
}
