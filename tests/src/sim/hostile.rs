//! Keepers and engines of a user without jobs, and their messages about others' attempts.

use super::World;
use super::chance::Chance;
use super::plan::{CALM, HOSTILE, WORD};
use super::steps::Step;
use mezcal_agent::supervisor;
use mezcal_common::message::engine::FromEngine;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{AttemptId, EngineIndex, Epoch, JobKey};
use mezcal_common::model::outcome::{Ended, Outcome, Span, WaitStatus};
use std::time::Duration;

impl World {
    /// The hostile user's keeper or engines send a message, which may be true.
    pub(super) fn hostile(&mut self, n: usize, agent: u64) {
        let at = self.at(n);
        let known: Vec<(JobKey, u32)> = self
            .placed
            .iter()
            .map(|(key, (attempt, _))| (*key, *attempt))
            .collect();
        let life = self.chance.below(self.serving.life + 1);
        let some = |chance: &mut Chance| {
            let (key, attempt) = *known.get(chance.below(known.len().max(1) as u64) as usize)?;
            Some(AttemptId {
                epoch: Epoch(7 + life),
                key,
                attempt,
            })
        };
        let slots = self.plan.slots;
        let attempt = some(&mut self.chance);
        let engine = slots + self.chance.below(slots as u64) as usize;
        let word = self.chance.below(12);
        let takes = if self.chance.one_in(2) { 1 } else { u16::MAX };
        let host = &mut self.hosts[n];
        let Some(supervisor) = host.supervisor.as_mut().filter(|_| host.agent == agent) else {
            return;
        };
        for event in said(word, EngineIndex(engine as u16), attempt, takes, slots) {
            self.log.line(
                self.now,
                format_args!("h{n} hears of {HOSTILE}'s engines: {event:?}"),
            );
            supervisor.handle(event, at);
        }
        if self.now < CALM {
            let wait = self.chance.millis(WORD.as_millis() as u64);
            self.after(wait, Step::Hostile { host: n, agent });
        }
    }
}

/// Events that an agent gets from an engine about another user's attempt.
fn said(
    word: u64,
    engine: EngineIndex,
    attempt: Option<AttemptId>,
    takes: u16,
    slots: usize,
) -> Vec<supervisor::Event> {
    let say = |message| supervisor::Event::Engine(engine, message);
    let finished = |attempt| {
        let outcome = made_up_outcome();
        say(FromEngine::Finished { attempt, outcome })
    };
    match (word, attempt) {
        (0 | 1, Some(attempt)) => vec![finished(attempt)],
        // As if the engine had just been linked.
        (2 | 3, Some(attempt)) => vec![supervisor::Event::LinkLost(engine), finished(attempt)],
        (4, Some(attempt)) => vec![say(FromEngine::Ready {
            running: Some((attempt, takes)),
        })],
        (5, attempt) => vec![supervisor::Event::EngineEnded {
            engine,
            attempt,
            ended: Ended::Lost,
            killed: 0,
            survivors: u32::from(takes == 1),
        }],
        (6, _) => vec![supervisor::Event::KeeperGone {
            set: 1,
            why: "gone".into(),
        }],
        (7, _) => vec![supervisor::Event::KeeperHere {
            user: HOSTILE.into(),
        }],
        (8, _) => vec![supervisor::Event::LinkLost(engine)],
        // An honest message of all engines.
        _ => {
            let ready = FromEngine::Ready { running: None };
            (slots..2 * slots)
                .map(|i| supervisor::Event::Engine(EngineIndex(i as u16), ready.clone()))
                .collect()
        }
    }
}

/// The outcome of a job that succeeded.
fn made_up_outcome() -> Outcome {
    let span = Span {
        started: WallTime(0),
        completed: WallTime(1),
        elapsed: Duration::from_micros(1),
    };
    Outcome {
        status: Some(WaitStatus::Exited(0)),
        span: Some(span),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}
