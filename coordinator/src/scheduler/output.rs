//! Output of jobs on its way to the clients that asked for it.

use super::{Effect, JobState, Scheduler};
use bytes::Bytes;
use mezcal_common::message::agent::{LogWish, Stream, ToAgent};
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
            Some(_) | None => self.tell_agent(
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

    /// Asks the host of a job for the job's output.
    pub(super) fn logs(&mut self, request: u64, batch: BatchId, job: &str, wish: LogWish) {
        if let Err(why) = self.ask_for_logs(request, batch, job, wish) {
            self.effects.push_back(Effect::LogsAnswer {
                request,
                streams: Err(why),
            });
        }
    }

    fn ask_for_logs(
        &mut self,
        request: u64,
        id: BatchId,
        name: &str,
        wish: LogWish,
    ) -> Result<(), String> {
        let serial = self.serial(id)?;
        let key = JobKey {
            batch: serial,
            job: self.job_number(serial, name)?,
        };
        let (job, batch) = self
            .batches
            .job(key)
            .zip(self.batches.get(&serial))
            .ok_or("that batch has ended")?;
        if job.attempt == 0 {
            return Err(match job.state {
                JobState::Done => format!("job {name} was never started"),
                JobState::Waiting | JobState::Queued | JobState::Placed => {
                    format!("job {name} has not started yet")
                }
            });
        }
        let at = self.hosts.at(job.host).ok_or("its host is unknown")?;
        let Some(session) = at.session else {
            return Err(format!(
                "{}, where job {name} runs or ran, is not connected",
                at.name
            ));
        };
        let own = AttemptId {
            epoch: self.epoch,
            key,
            attempt: job.attempt,
        };
        let attempt = at
            .attempts
            .present(self.epoch, key, job.attempt)
            .unwrap_or(own);
        let (text, context) = (job.text.clone(), Box::new(batch.context.clone()));
        self.effects.push_back(Effect::AskForLogs {
            session,
            request,
            attempt,
            text,
            context,
            wish,
        });
        Ok(())
    }
}
