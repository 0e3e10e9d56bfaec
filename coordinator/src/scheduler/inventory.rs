//! Reports of agents about their hosts: attempts, users, and versions of engines.

use super::{FENCE_MARGIN, OnHost, REASON_CHARS, Scheduler, Timer};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Unserved users of a host that are kept: so many, or as many as it serves if that is more. An
/// agent serves 64 users at most.
const MOST_UNHEARD: usize = 64;
/// Most versions of a host's engines that are kept, and the most characters of each.
const MOST_VERSIONS: usize = 16;
const VERSION_CHARS: usize = 32;

impl Scheduler {
    /// The attempts that a host has, of one user or of all. An attempt that was sent in this
    /// session may still be on its way there.
    pub(super) fn inventory(
        &mut self,
        name: &Arc<str>,
        user: Option<&str>,
        queued: &[AttemptId],
        running: &[AttemptId],
        unacknowledged: &[AttemptId],
        now: BootInstant,
    ) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let session = host.session;
        let user = user.map(|user| self.users.number(user));
        let theirs = |on: &OnHost| user.is_none_or(|user| user == Some(on.user));
        let known: BTreeMap<AttemptId, OnHost> = host
            .attempts
            .iter()
            .filter(|(_, on)| theirs(on))
            .map(|(attempt, on)| (attempt, *on))
            .collect();
        let held: BTreeSet<AttemptId> = queued
            .iter()
            .chain(running)
            .chain(unacknowledged)
            .copied()
            .collect();
        self.kill_strangers(name, &known, queued.iter().chain(running));
        let gone = |a: AttemptId| {
            !held.contains(&a)
                && known
                    .get(&a)
                    .is_some_and(|on| user.is_none() || on.session != session)
        };
        self.lose_attempts(name, gone, "it vanished from its host", now);
        // Running attempts were reported as started once, and maybe to an earlier life of ours.
        if let Some(host) = self.hosts.get_mut(name) {
            for attempt in running.iter().filter(|attempt| known.contains_key(attempt)) {
                host.attempts.starts(*attempt, None);
            }
        }
        let held = known.into_keys().filter(|attempt| held.contains(attempt));
        self.cancel_again(name, held.collect());
        // The host may not have heard that a batch was given up either.
        let halted = |a: &AttemptId| self.batches.get(&a.key.batch).is_some_and(|b| b.halted);
        let attempts = queued.iter().copied().filter(halted).collect();
        self.retract(name, attempts);
    }

    /// Kills attempts on a host that are not known here: they belong to an earlier coordinator, or
    /// were given up. `known`: the known attempts of the users whose inventory it is.
    fn kill_strangers<'a>(
        &mut self,
        name: &str,
        known: &BTreeMap<AttemptId, OnHost>,
        there: impl Iterator<Item = &'a AttemptId>,
    ) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        // An attempt of another user must not be killed because of this user's inventory.
        let stranger = |a: &AttemptId| match known.contains_key(a) {
            true => self.is_superseded(*a),
            false => !host.attempts.has(*a),
        };
        let attempts: Vec<AttemptId> = there.copied().filter(stranger).collect();
        if !attempts.is_empty() {
            let stop = Stop::NOW;
            self.tell_agent(name, ToAgent::Cancel { attempts, stop });
        }
    }

    /// Cancels these again: the first cancel may have come before the agent knew its attempts.
    fn cancel_again(&mut self, name: &str, attempts: Vec<AttemptId>) {
        for attempt in attempts {
            if !self.is_superseded(attempt)
                && let Some(stop) = self.cancels.stop_of(attempt.key)
            {
                let attempts = vec![attempt];
                self.tell_agent(name, ToAgent::Cancel { attempts, stop });
            }
        }
    }

    /// Tells a user's engines which of the attempts they claim to run are theirs, with the slots.
    pub(super) fn tell_known(&mut self, name: &Arc<str>, user: String, running: &[AttemptId]) {
        let (Some(host), Some(number)) = (self.hosts.get(name), self.users.number(&user)) else {
            return self.tell_agent(
                name,
                ToAgent::Known {
                    user,
                    attempts: Vec::new(),
                },
            );
        };
        let theirs = |attempt: &AttemptId| {
            host.attempts
                .get(*attempt)
                .filter(|on| on.user == number && !self.is_superseded(*attempt))
        };
        let attempts = running
            .iter()
            .filter_map(|attempt| Some((*attempt, theirs(attempt)?.slots)))
            .collect();
        self.tell_agent(name, ToAgent::Known { user, attempts });
    }

    /// From now on a host runs jobs of these users. Attempts of other users there are fenced: the
    /// host renews no lease of theirs any more.
    pub(super) fn serves_only(
        &mut self,
        name: &Arc<str>,
        users: Vec<String>,
        unheard: Vec<(String, String)>,
        now: BootInstant,
    ) {
        let until = self.lease.map(|lease| now + lease + FENCE_MARGIN);
        self.change_users(name, users);
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let served = host.hello().users.as_deref().unwrap_or_default();
        let with: BTreeSet<u32> = host.attempts.iter().map(|(_, on)| on.user).collect();
        let fenced: BTreeSet<u32> = with
            .into_iter()
            .filter(|user| !served.contains(self.users.name(*user)))
            .collect();
        let short = |text: String| text.chars().take(REASON_CHARS).collect::<String>();
        host.unheard = unheard
            .into_iter()
            .take(served.len().max(MOST_UNHEARD))
            .map(|(user, why)| (short(user), short(why)))
            .collect();
        host.fence_only(&fenced, until);
        if let Some(first) = host.first_fence() {
            self.timers.set_no_later(Timer::Leases, first);
        }
    }

    /// Notes the versions of a host's engines, and the users whose engines are being replaced.
    pub(super) fn engines_said(
        &mut self,
        name: &Arc<str>,
        mut versions: Vec<(String, u16)>,
        replacing: Vec<String>,
    ) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.session.is_some())
        else {
            return;
        };
        versions.truncate(MOST_VERSIONS);
        host.engines = versions
            .into_iter()
            .map(|(version, count)| (version.chars().take(VERSION_CHARS).collect(), count))
            .collect();
        let served = host.hello().users.as_deref().unwrap_or_default();
        let theirs = |user: &String| {
            served.contains(user) || host.unheard.iter().any(|(unheard, _)| unheard == user)
        };
        let replacing: Vec<String> = replacing.into_iter().filter(theirs).collect();
        let was = std::mem::replace(&mut host.replacing, replacing);
        let changed: BTreeSet<&String> = was.iter().chain(&host.replacing).collect();
        for user in changed
            .into_iter()
            .filter_map(|user| self.users.number(user))
        {
            self.queues.look_at_user(user);
            self.unserved = true;
        }
    }
}
