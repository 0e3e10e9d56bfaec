//! The link to the agent: the messages over it, both ways.

use super::{CHUNK, Driver, TURN};
use crate::engine::Event;
use bytes::BytesMut;
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::wire::codec;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::sync::Arc;

pub(super) struct AgentLink {
    pub(super) socket: OwnedFd,
    pub(super) incoming: BytesMut,
    pub(super) outgoing: Vec<u8>,
}

impl Driver {
    pub(super) fn send(&mut self, message: &FromEngine) -> Result<()> {
        if let Some(link) = &mut self.agent {
            codec::encode_frame(&mut link.outgoing, message).map_err(Error::other)?;
        }
        Ok(())
    }

    /// Writes as much to the agent as its socket takes.
    pub(super) fn flush(&mut self) -> Result<()> {
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
        // Nobody is there to take the output; an attempt must not wait for that.
        self.output.streaming = false;
        self.engine.handle(Event::Unlinked, BootInstant::now());
        if let Some(held) = self.held.take() {
            self.engine.handle(Event::Swept(held), BootInstant::now());
        }
    }

    pub(super) fn on_agent(&mut self) -> Result<()> {
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
}
