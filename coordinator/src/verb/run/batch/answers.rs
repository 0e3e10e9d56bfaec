//! The coordinator's answers to a run, and results in their place when no more answers come.

use super::Run;
use crate::client::said::Said;
use crate::client::submit::SUBMIT_JOBS;
use crate::exit::Exit;
use crate::report::notice::describe;
use crate::report::output::ToOutput;
use mezcal_common::message::client::{Notice, ToClient};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::{Ended, JobResult, Outcome};
use std::time::Duration;

impl Run {
    pub(super) async fn answer(&mut self, answer: ToClient) {
        match Said::of(answer) {
            Some(Said::Fleet { agents, engines }) => self.fleet = (agents, engines),
            Some(Said::Results(results)) => {
                self.received += results.len() as u64;
                for (job, _) in &results {
                    if let Some(answered) = self.answered.get_mut(job.0 as usize - 1) {
                        *answered = true;
                    }
                }
                let known = results.iter().filter(|(job, result)| {
                    self.written.take(|| self.jobs.as_object(job.0), result)
                });
                let known: Vec<u32> = known.map(|(job, _)| job.0).collect();
                if !known.is_empty() {
                    self.for_output.push_back(ToOutput::Known(known));
                }
                self.for_output
                    .push_back(ToOutput::Results(results, WallTime::now()));
            }
            Some(Said::Notice(notice)) => {
                if let Notice::Halted { why, .. } = notice {
                    self.halted = Some(why);
                }
                self.say(describe(&notice));
            }
            Some(Said::Refused(reason)) => self.refused(&reason).await,
            Some(Said::Opened {
                host_sets,
                jobs,
                closed,
            }) => {
                self.accepted = self.accepted.max(jobs);
                self.submitter.opened(host_sets, jobs, closed);
            }
            Some(Said::Accepted { jobs, .. }) => self.accepted = self.accepted.max(jobs),
            Some(Said::Output { .. } | Said::Hosts(..) | Said::Cancelled { .. }) | None => {}
        }
    }

    /// The coordinator takes no more of the batch.
    async fn refused(&mut self, reason: &str) {
        let first = self.failure.is_none();
        self.failure.get_or_insert(Exit::unreachable(format!(
            "the coordinator refused a request: {reason}"
        )));
        // Without its word that it has all jobs there is nothing to wait for.
        if self.accepted < self.jobs.len() as u64 && !self.turned_away {
            self.turned_away = true;
            if self.accepted > 0 {
                self.answer_with(&format!(
                    "the coordinator refused a part of the batch: {reason}"
                ));
            }
        }
        if first {
            self.cancel(Duration::ZERO).await;
        }
    }

    /// Gives every remaining job a result: those of the coordinator are lost to us.
    pub(super) fn answer_the_rest(&mut self, why: &str) {
        let error = match &self.connected.agent {
            // The embedded agent's engines end with it.
            Some(_) => why.to_owned(),
            None => format!("{why}; it may run on until a coordinator is back or its lease ends"),
        };
        self.answer_with(&error);
    }

    fn answer_with(&mut self, error: &str) {
        let open: Vec<u32> = (1..)
            .zip(&self.answered)
            .filter(|(_, answered)| !**answered)
            .map(|(number, _)| number)
            .collect();
        for numbers in open.chunks(SUBMIT_JOBS) {
            let lost = |number: &u32| {
                let outcome = Outcome::never_ran(Ended::Lost, error.to_owned());
                (
                    JobNumber(*number),
                    JobResult {
                        attempt: 0,
                        place: None,
                        local: None,
                        outcome,
                    },
                )
            };
            self.for_output.push_back(ToOutput::Results(
                numbers.iter().map(lost).collect(),
                WallTime::now(),
            ));
        }
    }
}
