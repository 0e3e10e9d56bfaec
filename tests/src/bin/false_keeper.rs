//! A user's own program in place of the keeper of that user's engines. `false_keeper SOCKET HEARD`
//! listens at the keeper's socket, obeys the file `SOCKET.wish` (`honest`, `forge`, `steal`,
//! `silent`, `broken`), and appends to HEARD all messages of the agent that are not meant for its
//! own engines.
//!
//! It stands for a user who has engines on a host and wants to reach the jobs of others there.

use bytes::BytesMut;
use mezcal_agent::kernel::packet;
use mezcal_common::message::agent::Stream;
use mezcal_common::message::engine::{FromEngine, FromKeeper, PROGRAM, ToEngine, ToKeeper};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{AttemptId, BatchSerial, EngineIndex, JobKey, JobNumber};
use mezcal_common::model::outcome::{Containment, Ended, Outcome, Span, WaitStatus};
use mezcal_common::wire::codec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::File;
use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time between two reads of the wish.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// The program ends after this.
const LIFE: Duration = Duration::from_secs(600);
/// The highest number of a batch that it tries.
const GUESSES: u32 = 12;

struct False {
    wish: PathBuf,
    heard: File,
    agent: OwnedFd,
    slots: u16,
    links: Vec<(EngineIndex, UnixStream, BytesMut)>,
    /// An attempt that it was given itself: a pattern for the numbers of others.
    own: Option<AttemptId>,
    /// The wish that has been carried out already.
    done: Option<String>,
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(socket), Some(heard)) = (args.next(), args.next()) else {
        eprintln!("usage: false_keeper SOCKET HEARD");
        std::process::exit(2);
    };
    let end = BootInstant::now() + LIFE;
    let listener = listen(&socket)?;
    while BootInstant::now() < end {
        let agent = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)?;
        let heard = File::options().create(true).append(true).open(&heard)?;
        let wish = socket.with_extension("wish");
        let mut keeper = False {
            wish,
            heard,
            agent,
            slots: 0,
            links: Vec::new(),
            own: None,
            done: None,
        };
        // An agent that hangs up may connect again.
        if let Err(e) = keeper.serve(end) {
            writeln!(keeper.heard, "ended: {e}")?;
        }
    }
    Ok(())
}

fn listen(path: &Path) -> Result<OwnedFd> {
    // An earlier keeper's socket.
    let _ = std::fs::remove_file(path);
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

fn exited() -> Outcome {
    let now = WallTime::now();
    let span = Span {
        started: now,
        completed: now,
        elapsed: Duration::from_secs(1),
    };
    let tail = Some("forged\n".into());
    Outcome {
        status: Some(WaitStatus::Exited(0)),
        span: Some(span),
        stdout_tail: tail,
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

impl False {
    fn serve(&mut self, end: BootInstant) -> Result<()> {
        packet::send(
            &self.agent,
            &FromKeeper::Containment(Containment::Subreaper),
            None,
        )?;
        while BootInstant::now() < end {
            let wish = std::fs::read_to_string(&self.wish)
                .unwrap_or_default()
                .trim()
                .to_owned();
            if wish == "silent" {
                // A silent keeper does not even read.
                let _ = poll(&mut [], Some(&LOOK));
                continue;
            }
            let mut fds = vec![PollFd::new(&self.agent, PollFlags::IN)];
            fds.extend(
                self.links
                    .iter()
                    .map(|(_, link, _)| PollFd::new(link, PollFlags::IN)),
            );
            poll(&mut fds, Some(&LOOK))?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[0] {
                let Some((message, _)) = packet::receive::<ToKeeper>(&self.agent)? else {
                    return Err(std::io::Error::other("the agent has hung up"));
                };
                if let ToKeeper::Engines { count, .. } = message {
                    self.slots = count;
                    (0..count).try_for_each(|engine| {
                        self.link(engine, &[FromEngine::Ready { running: None }])
                    })?;
                }
            }
            for at in (0..self.links.len())
                .filter(|at| ready.get(at + 1) == Some(&true))
                .rev()
            {
                if !self.listen_to(at)? {
                    self.links.remove(at);
                }
            }
            if self.slots > 0 && self.done.as_ref() != Some(&wish) {
                self.carry_out(&wish)?;
                self.done = Some(wish);
            }
        }
        Ok(())
    }

    /// Links an engine, whose first messages are `greeting`.
    fn link(&mut self, engine: u16, greeting: &[FromEngine]) -> Result<()> {
        let (near, far) = UnixStream::pair()?;
        packet::send(
            &self.agent,
            &FromKeeper::Link {
                engine: EngineIndex(engine),
            },
            Some(near.as_fd()),
        )?;
        self.links.push((EngineIndex(engine), far, BytesMut::new()));
        let at = self.links.len() - 1;
        // An engine without a version counts as an earlier one, and gets no jobs.
        let version = FromEngine::Shown {
            request: PROGRAM,
            stream: Stream::Out,
            data: mezcal_common::VERSION.into(),
        };
        self.say(at, &version)?;
        greeting
            .iter()
            .try_for_each(|message| self.say(at, message))
    }

    fn say(&self, at: usize, message: &FromEngine) -> Result<()> {
        let mut frame = Vec::new();
        codec::encode_frame(&mut frame, message).map_err(std::io::Error::other)?;
        (&self.links[at].1).write_all(&frame)
    }

    /// Reads the agent's messages to an engine. False at the end of that link.
    fn listen_to(&mut self, at: usize) -> Result<bool> {
        let mut bytes = [0; 64 * 1024];
        let (engine, link, incoming) = &mut self.links[at];
        let engine = *engine;
        let Ok(n @ 1..) = link.read(&mut bytes) else {
            return Ok(false);
        };
        incoming.extend_from_slice(&bytes[..n]);
        while let Ok(Some(message)) = codec::decode_frame::<ToEngine>(&mut self.links[at].2) {
            if engine.0 >= self.slots {
                writeln!(
                    self.heard,
                    "engine {engine} of another set was told {message:?}"
                )?;
            }
            if let ToEngine::Run {
                attempt,
                spec,
                context,
                ..
            } = message
            {
                self.own = Some(attempt);
                // It reports its own jobs as ended at once.
                writeln!(
                    self.heard,
                    "engine {engine} was given {attempt} {spec:?} {context:?}"
                )?;
                self.say(
                    at,
                    &FromEngine::Finished {
                        attempt,
                        outcome: exited(),
                    },
                )?;
            }
        }
        Ok(true)
    }

    /// Attempts of others, with numbers that they might have.
    fn guesses(&self) -> Vec<AttemptId> {
        let Some(own) = self.own else {
            return Vec::new();
        };
        let batches = (1..=GUESSES)
            .map(BatchSerial)
            .filter(|batch| *batch != own.key.batch);
        let keys = batches.flat_map(|batch| {
            (1..=GUESSES * 4).map(move |job| JobKey {
                batch,
                job: JobNumber(job),
            })
        });
        keys.map(|key| AttemptId {
            key,
            attempt: 1,
            ..own
        })
        .collect()
    }

    fn carry_out(&mut self, wish: &str) -> Result<()> {
        let slots = self.slots;
        match wish {
            "forge" => {
                let guesses = self.guesses();
                writeln!(self.heard, "forging {}", guesses.len())?;
                for attempt in &guesses {
                    self.say(
                        0,
                        &FromEngine::Finished {
                            attempt: *attempt,
                            outcome: exited(),
                        },
                    )?;
                    self.say(
                        0,
                        &FromEngine::Output {
                            attempt: *attempt,
                            stream: Stream::Out,
                            data: "forged\n".into(),
                        },
                    )?;
                    self.say(
                        0,
                        &FromEngine::Shown {
                            request: 1,
                            stream: Stream::Out,
                            data: "forged\n".into(),
                        },
                    )?;
                }
                // The messages of an engine that got them from an earlier agent.
                let mut greeting: Vec<FromEngine> = guesses
                    .iter()
                    .map(|attempt| FromEngine::Finished {
                        attempt: *attempt,
                        outcome: exited(),
                    })
                    .collect();
                greeting.push(FromEngine::Ready {
                    running: guesses.first().map(|attempt| (*attempt, u16::MAX)),
                });
                self.link(0, &greeting)?;
                for attempt in guesses {
                    let end = |survivors| FromKeeper::EngineEnded {
                        engine: EngineIndex(1 % slots),
                        attempt: Some(attempt),
                        ended: Ended::Cancelled,
                        killed: 1,
                        survivors,
                    };
                    packet::send(&self.agent, &end(0), None)?;
                }
                self.link(1 % slots, &[FromEngine::Ready { running: None }])?;
            }
            "steal" => {
                for engine in slots..4 * slots {
                    self.link(engine, &[FromEngine::Ready { running: None }])?;
                }
            }
            "broken" => {
                for (_, link, _) in &self.links {
                    (&*link).write_all(&[0xff; 64])?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
