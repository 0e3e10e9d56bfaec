//! Invariants that are checked after every event.

use super::*;

impl Script {
    /// Computes anew what the indices claim: every job is in exactly one place.
    pub(super) fn sanity(&self) {
        self.scheduler.queues.check();
        self.sanity_of_hosts();
        self.sanity_of_what_is_kept();
        self.sanity_of_users();
        self.sanity_of_batches();
    }

    fn sanity_of_hosts(&self) {
        let leases = self.scheduler.timers.at(Timer::Leases);
        for host in self.scheduler.hosts.values() {
            let there = host.is_known() && host.session.is_some();
            assert_eq!(
                self.scheduler.hosts.is_wanting(host.index),
                there && host.credit.is_left(),
                "{}",
                host.name
            );
            assert_eq!(
                host.attempts.slots(),
                host.attempts
                    .iter()
                    .map(|(_, on)| u64::from(on.slots))
                    .sum::<u64>(),
                "{}",
                host.name
            );
            let full = there && host.attempts.slots() > u64::from(host.slots());
            assert_eq!(
                self.scheduler.hosts.is_indexed_as_overfull(host.index),
                full,
                "{}",
                host.name
            );
            let idle = host.credit.longest_idle().filter(|_| there);
            let indexed = self.scheduler.hosts.indexed_idle(host.index);
            assert_eq!(indexed, idle, "{}", host.name);
            let fence = self.scheduler.fence(host);
            let users = host.first_fence();
            assert!(
                users.is_none() || leases <= users,
                "users' leases on {} are, too",
                host.name
            );
            assert!(
                fence.is_none() || leases <= fence,
                "the lease of {} is looked at in time",
                host.name
            );
        }
        let ready = self
            .scheduler
            .hosts
            .values()
            .filter(|h| h.is_known() && h.slots() > 0);
        let fleet = ready.fold((0, 0), |(agents, slots), h| {
            (agents + 1, slots + u32::from(h.slots()))
        });
        assert_eq!(self.scheduler.fleet(), fleet);
    }

    fn sanity_of_what_is_kept(&self) {
        for (key, hosts) in &self.scheduler.keeping.hosts {
            let keeping = self
                .scheduler
                .hosts
                .values()
                .filter(|h| h.kept.is_some_and(|kept| kept.key == *key));
            assert_eq!(*hosts, keeping.map(|h| h.index).collect::<BTreeSet<_>>());
            assert!(self.scheduler.queues.len_of(*key) >= hosts.len(), "{key:?}");
        }
        assert_eq!(
            self.scheduler
                .timers
                .all()
                .filter(|timer| matches!(timer, Timer::Kept(_)))
                .count(),
            self.scheduler
                .hosts
                .values()
                .filter(|h| h.kept.is_some())
                .count(),
            "what is kept is given up in time"
        );
    }

    fn sanity_of_users(&self) {
        for user in self.scheduler.users.all() {
            let jobs = self
                .scheduler
                .batches
                .values()
                .filter(|b| b.user == user)
                .flat_map(|b| &b.jobs);
            let slots = jobs
                .filter(|j| j.state == JobState::Placed)
                .map(|j| u64::from(j.queue.slots()))
                .sum::<u64>();
            assert_eq!(self.scheduler.users.slots(user), slots);
        }
    }

    fn sanity_of_batches(&self) {
        let placed: Vec<AttemptId> = self
            .scheduler
            .hosts
            .values()
            .flat_map(|h| h.attempts.ids())
            .collect();
        for (serial, batch) in self.scheduler.batches.iter() {
            let queued: usize = self
                .scheduler
                .queues
                .of_batch(*serial)
                .iter()
                .map(|k| self.scheduler.queues.len_of(*k))
                .sum();
            let count = |state| batch.jobs.iter().filter(|j| j.state == state).count();
            assert_eq!(queued, count(JobState::Queued));
            assert_eq!(batch.done, count(JobState::Done));
            assert_eq!(batch.placed, count(JobState::Placed) as u64);
            if batch.halted || batch.cancelled.is_some() {
                assert_eq!(
                    count(JobState::Queued) + count(JobState::Waiting),
                    0,
                    "nothing of what is given up can start"
                );
            }
            for (i, job) in batch.jobs.iter().enumerate() {
                let key = JobKey {
                    batch: *serial,
                    job: JobNumber(i as u32 + 1),
                };
                let live = placed
                    .iter()
                    .filter(|a| a.key == key && a.attempt == job.attempt)
                    .count();
                assert_eq!(live, usize::from(job.state == JobState::Placed), "{key:?}");
            }
        }
    }
}
