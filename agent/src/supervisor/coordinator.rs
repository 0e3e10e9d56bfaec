//! The coordinator's messages, and the meaning of its coming and going here.

use super::Supervisor;
use super::event::Effect;
use super::session::Session;
use super::sets::Set;
use super::slot::Slot;
use mezcal_common::message::agent::{Report, ToAgent, ToCoordinator};
use mezcal_common::message::engine::ToEngine;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{EngineIndex, StoreId};

impl Supervisor {
    pub(super) fn welcomed(&mut self, session: Session, store: StoreId, hello_sent: BootInstant) {
        self.enter(store);
        self.sets.iter_mut().for_each(Set::forget_told);
        self.programs.forget_told();
        self.reports.session_begins();
        self.session = Some(session);
        self.renew(hello_sent);
    }

    pub(super) fn disconnected(&mut self) {
        self.session = None;
        self.reports.session_ends();
        self.release_output();
    }

    /// Whether the coordinator of the present session has been told which attempts are here.
    pub(super) fn is_known(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_known)
    }

    /// Whether there is a session in which this version of the protocol or a later one is spoken.
    pub(super) fn speaks(&self, version: u16) -> bool {
        self.session.as_ref().is_some_and(|s| s.speaks(version))
    }

    /// Sends a heartbeat, if one is due.
    pub(super) fn beat(&mut self, now: BootInstant) {
        if self.session.as_mut().is_some_and(|s| s.take_heartbeat(now)) {
            let (load, clock_offset) = (self.load, self.clock_offset);
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Heartbeat {
                    sent: now,
                    load,
                    clock_offset,
                }));
        }
    }

    /// A session begins. With a coordinator of another store batches have other numbers, and the
    /// jobs that wait are not wanted.
    fn enter(&mut self, store: StoreId) {
        if self
            .store
            .replace(store)
            .is_some_and(|known| known != store)
        {
            self.queue.take();
            self.batches.forget_all();
            for engine in &mut self.engines {
                engine.context = None;
            }
        }
        let waiting = self
            .queue
            .attempts()
            .map(|attempt| attempt.key.batch)
            .collect();
        self.batches.session_begins(&waiting);
    }

    pub(super) fn on_coordinator(&mut self, message: ToAgent, now: BootInstant) {
        match message {
            // The driver turns the first of these into `Welcomed`; later ones mean nothing.
            ToAgent::Welcome { .. } | ToAgent::Generation { .. } => {}
            ToAgent::Context {
                batch,
                context,
                user,
            } => {
                // A store that was restored from a backup may have used the number for another
                // batch.
                if self.batches.learn(batch, context, user) {
                    self.engines
                        .iter_mut()
                        .filter(|e| e.context == Some(batch))
                        .for_each(|e| e.context = None);
                }
            }
            ToAgent::Run(placements) => {
                if let Some(session) = &mut self.session {
                    session.receive(placements.iter().map(|p| u64::from(p.slots)).sum());
                }
                // With its lease over nothing may start here, or wait for a later session.
                let lapsed = self.lease_until.is_none()
                    && self.session.as_ref().is_some_and(|s| s.lease().is_some());
                if self.stopping || self.leaving || lapsed {
                    for placement in placements {
                        self.push_report(placement.attempt, Report::Returned);
                    }
                } else {
                    self.queue.extend(placements);
                }
            }
            ToAgent::Cancel { attempts, stop } => self.cancel(&attempts, stop, now),
            ToAgent::Retract { attempts } => {
                self.return_some(&attempts.into_iter().collect());
            }
            ToAgent::Evict { attempts, stop } => self.evict(attempts, stop, now),
            ToAgent::Known { user, attempts } => self.known(&user, &attempts),
            // The driver sees to these.
            ToAgent::Logs { .. } | ToAgent::Renewed { .. } => {}
            ToAgent::Acknowledge { through } => self.acknowledge(through, now),
            ToAgent::HeartbeatSeen { sent, clock: _ } => self.renew(sent.min(now)),
            ToAgent::Forget { batch } => self.batches.forget(batch),
            ToAgent::OutputTaken { attempt, bytes } => {
                if let Some(index) = self.engine_of(attempt) {
                    let engine = &mut self.engines[usize::from(index.0)];
                    engine.output = engine.output.saturating_sub(bytes);
                    self.effects.push_back(Effect::ToEngine(
                        index,
                        ToEngine::OutputTaken { attempt, bytes },
                    ));
                }
            }
        }
    }

    /// Streamed output that was on its way is lost with the connection: its jobs must not wait for
    /// it.
    fn release_output(&mut self) {
        for (i, engine) in self.engines.iter_mut().enumerate() {
            if let Slot::Busy { attempt, .. } = engine.slot {
                engine.output = 0;
                let taken = ToEngine::OutputTaken {
                    attempt,
                    bytes: u32::MAX,
                };
                self.effects
                    .push_back(Effect::ToEngine(EngineIndex(i as u16), taken));
            }
        }
    }
}
