//! The start of an attempt: which attempts the engine takes on, and what it does with a failed
//! spawn.

use super::Engine;
use super::event::{Effect, NotStarted};
use super::state::{Reason, Shortage, State};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, JobSpec};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::sync::Arc;
use std::time::Duration;

/// How long a spawn is tried again: a host that is short of processes, descriptors or memory may
/// have them again soon.
pub(super) const SHORT_FOR: Duration = Duration::from_secs(5);

/// First pause between two of these tries; doubles up to [`SHORT_MAX`].
pub(super) const SHORT_FIRST: Duration = Duration::from_millis(10);

pub(super) const SHORT_MAX: Duration = Duration::from_millis(500);

impl Engine {
    pub(super) fn run(
        &mut self,
        attempt: AttemptId,
        spec: Result<Box<JobSpec>, String>,
        context: Arc<BatchContext>,
        engine: EngineId,
        now: BootInstant,
    ) {
        if self.attempt().is_some() || self.quitting {
            let outcome = match self.attempt() {
                // The attempt was on its way when the engine was asked to end: the job is not at
                // fault.
                None => Outcome::never_ran(Ended::Lost, "the engine is stopping".to_owned()),
                Some(other) => Outcome::never_ran(
                    Ended::StartFailed,
                    format!("the engine is held by attempt {other}"),
                ),
            };
            self.report(attempt, outcome);
            return;
        }
        match spec {
            // The attempt was on its way when the lease ended.
            _ if self.expired || self.lease.is_some_and(|until| until <= now) => {
                let why = "it had not started when the lease ended".to_owned();
                self.report(attempt, Outcome::never_ran(Ended::Lost, why));
            }
            Ok(spec) => {
                let timeout = spec.timeout.or(context.timeout);
                let deadline = timeout.map(|t| (now + t, t));
                let leftover = spec.leftover.unwrap_or(context.leftover);
                self.state = State::Spawning {
                    attempt,
                    timeout,
                    deadline,
                    short: None,
                    leftover,
                    kill: None,
                };
                self.effects.push_back(Effect::Spawn {
                    attempt,
                    spec,
                    context,
                    engine,
                });
            }
            Err(why) => self.report(attempt, Outcome::never_ran(Ended::StartFailed, why)),
        }
    }

    pub(super) fn spawned(&mut self, result: Result<(), NotStarted>, now: BootInstant) {
        let State::Spawning {
            attempt,
            timeout,
            deadline,
            short,
            leftover,
            kill,
        } = self.state
        else {
            return;
        };
        match result {
            Ok(()) => {
                self.state = State::Running {
                    attempt,
                    deadline,
                    leftover,
                    lingering: false,
                };
                if let Some((reason, stop, _)) = kill {
                    self.kill(reason, stop, now);
                }
            }
            Err(NotStarted::Short(_))
                if kill.is_none() && short.is_none_or(|short| now < short.since + SHORT_FOR) =>
            {
                let pause = short.map_or(SHORT_FIRST, |short| (short.pause * 2).min(SHORT_MAX));
                let short = Shortage {
                    since: short.map_or(now, |short| short.since),
                    pause,
                    again: Some(now + pause),
                };
                self.state = State::Spawning {
                    attempt,
                    timeout,
                    deadline: None,
                    short: Some(short),
                    leftover,
                    kill,
                };
                if self.watched {
                    self.watch();
                }
            }
            Err(why) => {
                self.idle();
                if kill.is_some_and(|(reason, ..)| reason == Reason::Stopped) {
                    return;
                }
                let (ended, why) = match why {
                    NotStarted::Job(why) => (Ended::StartFailed, why),
                    NotStarted::Short(why) => (Ended::HostShort, why),
                };
                let ended = kill.map_or(ended, |(reason, ..)| reason.ended());
                self.report(attempt, Outcome::never_ran(ended, why));
            }
        }
    }
}
