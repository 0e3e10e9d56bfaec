//! Output of jobs on its way to those who want to see it.

use super::{Effect, Scheduler};
use bytes::Bytes;
use mezcal_common::message::agent::{Stream, ToAgent};
use mezcal_common::model::ids::{AttemptId, BatchId, JobKey, JobNumber};
use std::sync::Arc;

impl Scheduler {
    pub(super) fn output(
        &mut self,
        name: &Arc<str>,
        attempt: AttemptId,
        stream: Stream,
        data: Bytes,
    ) {
        let known = self
            .hosts
            .get(name)
            .is_some_and(|h| h.attempts.has(attempt));
        match self.batches.get(&attempt.key.batch) {
            Some(batch) if known => {
                let (batch, job, host) = (batch.id, attempt.key.job, name.clone());
                self.effects.push_back(Effect::Output {
                    batch,
                    job,
                    host,
                    stream,
                    data,
                });
            }
            _ => self.tell_agent(
                name,
                ToAgent::OutputTaken {
                    attempt,
                    bytes: data.len() as u32,
                },
            ),
        }
    }

    pub(super) fn output_taken(&mut self, batch: BatchId, job: JobNumber, bytes: u32) {
        let Some(serial) = self.batches.serial(batch) else {
            return;
        };
        let key = JobKey { batch: serial, job };
        let found = self.hosts.values().find_map(|h| {
            let found = h.attempts.ids().find(|a| a.key == key)?;
            Some((h.name.clone(), found))
        });
        if let Some((name, attempt)) = found {
            self.tell_agent(&name, ToAgent::OutputTaken { attempt, bytes });
        }
    }
}
