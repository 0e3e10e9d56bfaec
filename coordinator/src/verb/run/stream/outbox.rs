//! The messages that a stream still has to send to the coordinator: host sets, jobs and requests,
//! in order; and those that a new connection needs again.

use super::Stream;
use crate::client::submit::{SUBMIT_BYTES, fits};
use mezcal_common::message::client::{Submission, ToService};

/// A message to the coordinator; they are sent in this order.
pub(super) enum Item {
    Job(Box<Submission>),
    Say(Box<ToService>),
}

impl Stream {
    /// The index of a set of hosts in the batch's table.
    pub(super) fn index_of(&mut self, set: Vec<String>) -> u32 {
        let next = self.sets.len() as u32;
        *self.indices.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        })
    }

    /// Repeats requests over a new connection: those under way may not have arrived.
    pub(super) fn ask_again(&mut self) {
        self.items.retain(|item| matches!(item, Item::Job(_)));
        self.hosts.clear();
        for _ in 0..self.hosts_asked.len() {
            self.items.push_back(Item::Say(Box::new(ToService::Hosts)));
        }
        let requests: Vec<u64> = self.cancels.keys().copied().collect();
        requests
            .into_iter()
            .for_each(|request| self.send_cancel(request));
    }

    pub(super) fn has_more(&self) -> bool {
        self.ready && (self.sent < self.items.len() || (self.closing && !self.close_sent))
    }

    /// Host sets first, then jobs and requests in order, then the word that there are no more.
    pub(super) fn next_message(&mut self) -> Option<ToService> {
        let batch = self.batch;
        if self.sets_sent < self.sets.len() {
            let mut bytes = 0;
            let fits = |set: &&Vec<String>| {
                bytes += set.iter().map(|name| name.len() + 8).sum::<usize>();
                bytes < SUBMIT_BYTES
            };
            let host_sets: Vec<Vec<String>> = self.sets[self.sets_sent..]
                .iter()
                .take_while(fits)
                .cloned()
                .collect();
            // A set that is too long alone is sent alone.
            let host_sets = if host_sets.is_empty() {
                vec![self.sets[self.sets_sent].clone()]
            } else {
                host_sets
            };
            self.sets_sent += host_sets.len();
            return Some(ToService::Submit {
                batch,
                host_sets,
                jobs: Vec::new(),
            });
        }
        if let Some(Item::Say(_)) = self.items.get(self.sent) {
            return match self.items.remove(self.sent) {
                Some(Item::Say(message)) => Some(*message),
                _ => None,
            };
        }
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while let Some(Item::Job(job)) = self.items.get(self.sent)
            && fits(job, &jobs, &mut bytes)
        {
            jobs.push((**job).clone());
            self.sent += 1;
        }
        if jobs.is_empty() {
            self.close_sent = true;
            return Some(ToService::Close { batch });
        }
        Some(ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs,
        })
    }

    /// The coordinator has the jobs up to `through` for good.
    pub(super) fn accepted(&mut self, through: u64) {
        while let Some(Item::Job(job)) = self.items.front()
            && u64::from(job.job.0) <= through
        {
            self.items.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }
}
