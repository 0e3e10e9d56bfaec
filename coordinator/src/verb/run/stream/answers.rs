//! The coordinator's answers to a stream, and the events that the stream's reader gets from them.

use super::outbox::Item;
use super::{Stream, answer};
use crate::client::said::Said;
use crate::exit::Exit;
use crate::report::format::ClientTimes;
use crate::report::notice::describe;
use mezcal_common::message::client::{HostStatus, ToClient};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::JobResult;
use serde_json::{Value, json};
use std::time::Duration;

impl Stream {
    pub(super) fn answer(&mut self, answer: ToClient) {
        match Said::of(answer) {
            Some(Said::Fleet { agents, engines }) => {
                self.seen_agents |= agents > 0;
                self.say(json!({"event": "fleet", "agents": agents, "engines": engines}));
            }
            Some(Said::Opened {
                host_sets,
                jobs,
                closed,
            }) => {
                self.accepted(jobs);
                (self.sent, self.ready) = (0, true);
                (self.close_sent, self.closed) = (closed, closed);
                self.ask_again();
                self.sets_sent =
                    usize::try_from(host_sets).map_or(self.sets.len(), |n| n.min(self.sets.len()));
            }
            Some(Said::Accepted { jobs, closed }) => {
                self.accepted(jobs);
                self.closed |= closed;
            }
            Some(Said::Results(results)) => self.results(results),
            Some(Said::Notice(notice)) => {
                self.say(json!({"event": "notice", "text": describe(&notice)}))
            }
            Some(Said::Hosts(hosts, more)) => self.hosts(hosts, more),
            Some(Said::Cancelled { request, summary }) => self.cancelled(request, &summary),
            Some(Said::Refused(reason)) => self.refused(&reason),
            Some(Said::Output { .. }) | None => {}
        }
    }

    /// The coordinator takes no more.
    fn refused(&mut self, reason: &str) {
        self.say(json!({"event": "refused", "text": reason}));
        self.failure.get_or_insert(Exit::unreachable(format!(
            "the coordinator refused a request: {reason}"
        )));
        self.refused = true;
        // Jobs that the coordinator has not taken will get no results.
        let first = self.items.iter().find_map(|item| {
            if let Item::Job(job) = item {
                Some(job.job.0)
            } else {
                None
            }
        });
        self.given = first.map_or(self.given, |first| u64::from(first) - 1);
        self.items.clear();
        self.sent = 0;
        self.cancel_all(Duration::ZERO);
    }

    fn hosts(&mut self, hosts: Vec<HostStatus>, more: bool) {
        self.hosts.extend(hosts);
        if !more {
            let name = self.hosts_asked.pop_front().flatten();
            let event = hosts_event(&std::mem::take(&mut self.hosts));
            self.say(answer(event, name));
        }
    }

    fn results(&mut self, results: Vec<(JobNumber, JobResult)>) {
        let (mut lines, received) = (Vec::new(), WallTime::now());
        let count = results.len() as u64;
        self.received += count;
        for (job, result) in results {
            self.failed += u64::from(!result.outcome.succeeded());
            let times = ClientTimes {
                submitted: self.submitted(job).unwrap_or(received),
                received,
            };
            self.format.object_line(
                &mut lines,
                &format!("{{\"job\": {}}}", job.0),
                &result,
                times,
            );
        }
        self.output.push_back((lines, count));
    }
}

fn hosts_event(hosts: &[HostStatus]) -> Value {
    let hosts = hosts
        .iter()
        .filter(|h| h.connected)
        .map(|h| json!({"name": h.name, "slots": h.slots, "busy": h.busy, "first_engine": h.first_engine.0, "cpus": h.cpus}));
    json!({"event": "hosts", "hosts": hosts.collect::<Vec<_>>()})
}
