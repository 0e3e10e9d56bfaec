//! The session with the coordinator and the lease that it gives: when it begins, how long what runs
//! may go on, and what the coordinator says in it.

use super::Supervisor;
use super::event::Effect;
use super::slot::Slot;
use mezcal_common::message::agent::{Report, ToAgent};
use mezcal_common::message::engine::{ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex, StoreId};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::collections::HashSet;
use std::time::Duration;

/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Session {
    pub(super) version: u16,
    pub(super) lease: Option<Duration>,
    pub(super) first_engine: EngineId,
    /// Slots' worth of attempts received in this session.
    pub(super) received: u64,
    /// What the last `Pull` said.
    pub(super) asked: (u64, u16),
    /// The inventory has been sent.
    pub(super) known: bool,
    pub(super) next_heartbeat: BootInstant,
    /// One report at a time whose acknowledgement is waited for, and when it was sent.
    pub(super) timed: Option<(u64, BootInstant)>,
    /// What the coordinator has been told of engines that fail.
    pub(super) engines: (u16, Option<String>),
}

impl Supervisor {
    /// A session begins. With a coordinator of another store batches have other numbers, and what
    /// waits is not wanted.
    pub(super) fn enter(&mut self, store: StoreId) {
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
            // The driver turns the first ones into `Welcomed`; later ones mean nothing.
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
                    session.received += placements.iter().map(|p| u64::from(p.slots)).sum::<u64>();
                }
                // With its lease over nothing may start here, nor wait for a later session.
                let lapsed = self.lease_until.is_none()
                    && self.session.as_ref().is_some_and(|s| s.lease.is_some());
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
                let wanted: HashSet<AttemptId> = attempts.into_iter().collect();
                for attempt in self.queue.take_some(&wanted) {
                    self.push_report(attempt, Report::Returned);
                }
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

    /// The coordinator has seen what we sent at `sent`. Its present session says how long that is
    /// good for, also when that is shorter than an earlier one said: it waits no longer than that
    /// before it places elsewhere what is here.
    pub(super) fn renew(&mut self, sent: BootInstant) {
        let until = self
            .session
            .as_ref()
            .and_then(|s| s.lease)
            .map(|lease| sent + lease);
        if until == self.lease_until {
            return;
        }
        self.lease_until = until;
        for set in (0..self.sets.len())
            .filter(|set| !self.is_fenced(*set))
            .collect::<Vec<_>>()
        {
            self.tell_lease(set, until);
        }
    }

    pub(super) fn tell_lease(&mut self, set: usize, until: Option<BootInstant>) {
        self.effects
            .push_back(Effect::ToKeeper(set, ToKeeper::Lease { until }));
        for i in self.engines_of(set) {
            self.effects.push_back(Effect::ToEngine(
                EngineIndex(i as u16),
                ToEngine::Lease { until },
            ));
        }
    }

    /// Gives up what waits once the lease is over.
    pub(super) fn expire(&mut self, now: BootInstant) {
        if self.lease_until.is_none_or(|until| until > now) {
            return;
        }
        self.lease_until = None;
        for attempt in self.queue.take() {
            let why = "the coordinator was out of reach for longer than the lease";
            self.finished(
                None,
                attempt,
                Outcome::never_ran(Ended::Lost, why.to_owned()),
            );
        }
    }

    /// Streamed output that was on its way is lost with the connection: its jobs must not wait for
    /// it.
    pub(super) fn release_output(&mut self) {
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
