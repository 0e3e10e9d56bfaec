//! Hosts that are being drained: they keep their jobs, and get no more. After a deadline the jobs
//! that still run there are taken away, too, and placed elsewhere; none of that counts as a failure
//! or a loss.

use super::halt::GRACE;
use super::{Effect, Record, Scheduler, Timer};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::Stop;
use std::sync::Arc;
use std::time::Duration;

/// Whether a host is being drained.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Why it gets no more jobs; none: it is not being drained.
    reason: Option<Arc<str>>,
    /// Its deadline has come.
    is_overdue: bool,
}

impl Drain {
    /// Why a host gets no more jobs; none: it is not being drained.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether the jobs that still run there are taken away.
    pub(super) fn is_overdue(&self) -> bool {
        self.is_overdue
    }
}

impl Scheduler {
    /// Starts (`reason`) or ends a drain of these hosts.
    ///
    /// # Errors
    /// For each name that stands for no host, the reason; the others are drained all the same.
    pub fn drain(
        &mut self,
        names: &[String],
        reason: Option<&str>,
        deadline: Option<Duration>,
        now: BootInstant,
    ) -> Result<(), Vec<String>> {
        let mut unknown = Vec::new();
        for wanted in names {
            let name = match self.host_named(wanted) {
                Ok(name) => name,
                Err(why) => {
                    unknown.push(why);
                    continue;
                }
            };
            let Some(host) = self.hosts.get(&name) else {
                continue;
            };
            let (index, is_overdue) = (host.index, host.drain.is_overdue);
            self.set_drained(&name, reason.map(Arc::from));
            // A repeated drain without a deadline keeps the present deadline.
            let left = self.timers.at(Timer::Eviction(index));
            let left = left.map(|at| at.since(now));
            let before = left.or_else(|| is_overdue.then_some(Duration::ZERO));
            let deadline = deadline.or(before).filter(|_| reason.is_some());
            self.persist(|| Record::Drained {
                host: name.clone(),
                reason: reason.map(Arc::from),
                deadline,
            });
            self.forget_eviction(index);
            if reason.is_none() {
                self.unserved = true;
                continue;
            }
            if let Some(limit) = deadline {
                self.timers.set(Timer::Eviction(index), now + limit);
            }
            self.keep_nothing(&name);
            // Jobs that have not started there start elsewhere.
            self.retract_unstarted(&name, |_| true);
        }
        self.settle(now);
        if unknown.is_empty() {
            Ok(())
        } else {
            Err(unknown)
        }
    }

    /// An admin confirms that nothing runs on an unreachable host any more: its jobs need not wait
    /// for its lease.
    ///
    /// # Errors
    /// There is no such host, or it is connected and can speak for itself.
    pub fn confirm_dead(&mut self, wanted: &str, now: BootInstant) -> Result<(), String> {
        let name = self.host_named(wanted)?;
        if self
            .hosts
            .get(&name)
            .is_some_and(|host| host.session.is_some())
        {
            return Err(format!(
                "{wanted} is connected; first stop its agent, or disconnect it"
            ));
        }
        tracing::warn!(host = &*name, "{name} is confirmed dead by an admin");
        self.lose_attempts(&name, |_| true, "its host was confirmed to be dead", now);
        self.settle(now);
        Ok(())
    }

    /// Forgets a host that was taken away for good; returns its full name.
    ///
    /// # Errors
    /// There is no such host, or it is still connected or may run something.
    pub fn forget_host(&mut self, wanted: &str, now: BootInstant) -> Result<Arc<str>, String> {
        let host = self.host_named(wanted)?;
        let host = self
            .hosts
            .get(&host)
            .ok_or_else(|| format!("no agent of {wanted} has ever connected"))?;
        if host.session.is_some() {
            return Err(format!("{wanted} is connected; stop its agent first"));
        }
        if !host.attempts.is_empty() {
            return Err(format!(
                "jobs may still run on {wanted}; `coordinator confirm-dead {wanted}` first, if it is gone"
            ));
        }
        let (name, index) = (host.name.clone(), host.index);
        self.persist(|| Record::HostForgotten { host: name.clone() });
        self.hosts.remove(&name);
        self.forget_eviction(index);
        // Names that it shared with one other host belong to that one from now on.
        self.names_are_forgotten(&name, index);
        self.settle(now);
        Ok(name)
    }

    fn forget_eviction(&mut self, index: u32) {
        self.timers.clear(Timer::Eviction(index));
        self.set_overdue(index, false);
    }

    fn set_overdue(&mut self, index: u32, is_overdue: bool) {
        if let Some(host) = self.hosts.at_mut(index) {
            host.drain.is_overdue = is_overdue;
        }
    }

    pub(super) fn set_drained(&mut self, name: &str, reason: Option<Arc<str>>) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.drain.reason = reason;
        }
    }

    /// Takes the remaining jobs away from a host whose deadline has come.
    pub(super) fn evict(&mut self, index: u32) {
        self.set_overdue(index, true);
        self.evict_overdue(index);
    }

    /// The same, if its deadline has passed: the host may have been out of reach then.
    pub(super) fn evict_overdue(&mut self, index: u32) {
        let Some(host) = self
            .hosts
            .at(index)
            .filter(|host| host.drain.reason.is_some() && host.drain.is_overdue)
        else {
            return;
        };
        // Jobs that are being cancelled end anyway, as cancelled.
        let attempts = host
            .attempts
            .ids()
            .filter(|attempt| !self.cancels.has(attempt.key));
        let attempts: Vec<AttemptId> = attempts.collect();
        if let (Some(session), false) = (host.session, attempts.is_empty()) {
            let evict = ToAgent::Evict {
                attempts,
                stop: Stop::after(GRACE),
            };
            self.effects.push_back(Effect::ToAgent(session, evict));
        }
    }
}
