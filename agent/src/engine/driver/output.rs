//! The output of a job: the pipes of an attempt, the end of the output that is kept, and the
//! requests that follow it.

use super::{CHUNK, Driver, TURN};
use crate::engine::order::{Order, OutputTo};
use crate::engine::{Event, NotStarted, Swept, open};
use crate::kernel::paths::{self, OutputFile};
use bytes::Bytes;
use mezcal_common::message::agent::Stream;
use mezcal_common::message::engine::{FromEngine, OUTPUT_WINDOW};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::Capture;
use mezcal_common::model::outcome::{Tail, Written};
use mezcal_common::wire::codec;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Requests that may follow the output of one attempt at a time.
const MAX_FOLLOWERS: usize = 16;

/// The pipes of one attempt, and where their bytes go.
#[derive(Default)]
pub(super) struct Output {
    /// Read ends, until end of file.
    pub(super) pipes: [Option<OwnedFd>; 2],
    /// Write ends: as long as they are open here as well, the end of a job shows once, by SIGCHLD,
    /// and not by a hang-up before.
    pub(super) writers: [Option<Arc<OwnedFd>>; 2],
    pub(super) tails: [Option<Tail>; 2],
    /// Bytes that were read so far; none for a stream without a pipe.
    pub(super) counts: [Option<u64>; 2],
    /// There was something in the pipes.
    pub(super) written: bool,
    pub(super) streaming: bool,
    /// Streamed bytes that the far end has not taken.
    pub(super) in_flight: u32,
}

impl Output {
    /// Makes the pipes of an attempt, if it has any, and says where its output goes.
    pub(super) fn begin(
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
                let (read, write) = open::pipe()?;
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

    pub(super) fn may_read(&self) -> bool {
        !self.streaming || self.in_flight < OUTPUT_WINDOW
    }

    pub(super) fn written_so_far(&self) -> Written {
        let [out, err] = self.counts;
        Written { out, err }
    }

    pub(super) fn take_tails(&mut self) -> (Option<Bytes>, Option<Bytes>) {
        self.pipes = [None, None];
        let [out, err] = std::mem::take(&mut self.tails);
        (out.map(Tail::into_bytes), err.map(Tail::into_bytes))
    }
}

impl Driver {
    /// Reads from the pipes, at most `turn` bytes from each: a job that writes faster than this
    /// thread reads would keep it for ever.
    pub(super) fn drain(&mut self, turn: usize) -> Result<()> {
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

    /// Sends the output that is kept, and goes on with new output if that is wanted.
    pub(super) fn begin_show(
        &mut self,
        request: u64,
        attempt: AttemptId,
        follow: bool,
    ) -> Result<()> {
        // During the quiet time the pipes have not been read.
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

    /// Sends new output to the requests that follow it, unless the agent is behind with reading.
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
}
