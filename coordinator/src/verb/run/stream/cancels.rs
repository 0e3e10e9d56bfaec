//! Cancels that a stream requests: each may take several messages, and is answered once.

use super::outbox::Item;
use super::{Stream, answer};
use crate::client::context::GRACE;
use mezcal_common::message::client::{CancelSummary, Selector, ToService};
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::Stop;
use serde_json::{Value, json};
use std::time::Duration;

/// The most jobs in one message of a cancel.
const CANCELS: usize = 4096;

/// A cancel that has not been answered.
pub(super) struct OpenCancel {
    /// The user's name for the request; the answer repeats it.
    name: Option<Value>,
    what: Vec<Selector>,
    stop: Stop,
    /// The number of its messages without an answer, and the sum of the answers so far.
    left: usize,
    sum: CancelSummary,
}

impl Stream {
    /// Cancels these jobs, or all. Returns what is wrong with the request.
    pub(super) fn cancel_jobs(
        &mut self,
        jobs: Option<Vec<u32>>,
        grace: &Option<String>,
        signal: &Option<String>,
        request: &Option<Value>,
    ) -> Result<(), Value> {
        let stop = stop(grace.as_deref(), signal.as_deref())
            .map_err(|why| json!({"event": "refused", "text": why}))?;
        let unknown = |job: &&u32| **job == 0 || u64::from(**job) > self.given;
        if let Some(job) = jobs.iter().flatten().find(unknown) {
            return Err(json!({
                "event": "refused", "job": job, "text": "no job with this number has come"
            }));
        }
        let batch = self.batch.to_string();
        let what = match jobs {
            None => vec![Selector::Batch(batch)],
            Some(jobs) => jobs
                .iter()
                .map(|job| Selector::Number {
                    batch: batch.clone(),
                    job: JobNumber(*job),
                })
                .collect(),
        };
        self.cancel(request.clone(), what, stop);
        Ok(())
    }

    /// Kills everything and reads no more jobs.
    pub(super) fn cancel_all(&mut self, grace: Duration) {
        self.closing = true;
        self.cancel(
            None,
            vec![Selector::Batch(self.batch.to_string())],
            Stop::after(grace),
        );
    }

    fn cancel(&mut self, name: Option<Value>, what: Vec<Selector>, stop: Stop) {
        let request = self.next_request;
        self.next_request += 1;
        self.cancels.insert(
            request,
            OpenCancel {
                name,
                what,
                stop,
                left: 0,
                sum: CancelSummary::default(),
            },
        );
        self.send_cancel(request);
    }

    /// Sends as many messages as the jobs need, all of the same request, behind the jobs that came
    /// before it.
    pub(super) fn send_cancel(&mut self, request: u64) {
        let Some(cancelling) = self.cancels.get_mut(&request) else {
            return;
        };
        (cancelling.left, cancelling.sum) = (
            cancelling.what.len().div_ceil(CANCELS),
            CancelSummary::default(),
        );
        for what in cancelling.what.chunks(CANCELS) {
            let message = ToService::Cancel {
                request,
                what: what.to_vec(),
                stop: cancelling.stop,
            };
            self.items.push_back(Item::Say(Box::new(message)));
        }
        self.answer_cancel(request);
    }

    /// Adds the answer to one message of a cancel.
    pub(super) fn cancelled(&mut self, request: u64, answer: &CancelSummary) {
        let Some(OpenCancel { left, sum, .. }) = self.cancels.get_mut(&request) else {
            return;
        };
        *left = left.saturating_sub(1);
        sum.jobs += answer.jobs;
        sum.killed += answer.killed;
        sum.survivors += answer.survivors;
        sum.unreachable += answer.unreachable;
        self.answer_cancel(request);
    }

    /// Answers the cancel if all its messages are answered.
    fn answer_cancel(&mut self, request: u64) {
        if self
            .cancels
            .get(&request)
            .is_none_or(|cancelling| cancelling.left > 0)
        {
            return;
        }
        if let Some(OpenCancel { name, sum, .. }) = self.cancels.remove(&request) {
            let said = json!({
                "event": "cancelled", "jobs": sum.jobs, "killed": sum.killed, "survivors": sum.survivors, "unreachable": sum.unreachable
            });
            self.say(answer(said, name));
        }
    }
}

/// The grace and the signal that a cancel asks for.
fn stop(grace: Option<&str>, signal: Option<&str>) -> Result<Stop, String> {
    let grace = grace
        .map(parse_duration)
        .transpose()
        .map_err(|why| format!("\"grace\": {why}"))?
        .unwrap_or(GRACE);
    let signal = signal
        .map(mezcal_common::model::signal::parse)
        .transpose()
        .map_err(|why| format!("\"signal\": {why}"))?;
    let stop = Stop::after(grace);
    Ok(Stop {
        signal: signal.unwrap_or(stop.signal),
        ..stop
    })
}
