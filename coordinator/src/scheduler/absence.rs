//! Jobs that no host can run now: they wait for the host timeout, and their client is told why.

use super::names::fold;
use super::queues::QueueKey;
use super::{Effect, Host, Scheduler, Timer};
use mezcal_common::message::client::Notice;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::JobKey;
use mezcal_common::model::outcome::{Ended, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Queues whose users have been told that the names they require belong to several hosts.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeSet<QueueKey>);

impl Scheduler {
    /// Whether hosts are connected that may run these jobs, but none of them serves their user.
    fn is_unserved(&self, key: QueueKey) -> bool {
        match self.batches.set_of(key) {
            None => {
                let comes =
                    |host: &Host| host.session.is_some() && self.is_replacing(host, key.user);
                !self.is_served(key.user) && !self.hosts.values().any(comes)
            }
            Some(set) => {
                let mut there = set
                    .iter()
                    .filter_map(|name| self.serving_under(name))
                    .peekable();
                there.peek().is_some() && !there.any(|host| self.has_engines_of(host, key.user))
            }
        }
    }

    /// Starts and ends the waits of the changed queues for absent hosts.
    pub(super) fn look_at_changed(&mut self, now: BootInstant) {
        for key in self.queues.take_changed() {
            let jobs = self.queues.len_of(key);
            if jobs == 0 {
                self.nothing_is_kept_for(key);
            }
            let Some(batch) = self.batches.get(&key.batch).filter(|_| jobs > 0) else {
                self.wait_ends(key);
                continue;
            };
            let (jobs, after) = (jobs as u64, batch.host_timeout);
            let ambiguous = if self.queues.is_homeless(key) {
                self.ambiguous_of(key)
            } else {
                Vec::new()
            };
            let notice = if let Some(first) = ambiguous.first() {
                if batch.once {
                    // A user waits at a terminal, and can write the full name.
                    self.timers.set(Timer::Absent(key), now);
                    continue;
                }
                Notice::Ambiguous {
                    names: fold(&ambiguous),
                    hosts: fold(&self.claimants_of(first)),
                    jobs,
                    after,
                }
            } else if self.queues.is_homeless(key) {
                if batch.once && self.were_never_seen(key) {
                    // A user waits at a terminal, most likely because of a typing error.
                    self.timers.set(Timer::Absent(key), now);
                    continue;
                }
                Notice::HostsAbsent {
                    hosts: fold(&self.batches.set_of(key).unwrap_or_default()),
                    jobs,
                    after,
                }
            } else if self.is_unserved(key) {
                Notice::Unserved {
                    user: self.users.name(key.user).clone(),
                    jobs,
                    after,
                }
            } else if self.widest_for(key) < key.slots() {
                Notice::TooWide {
                    slots: key.slots(),
                    jobs,
                    after,
                }
            } else {
                self.wait_ends(key);
                continue;
            };
            let news = !ambiguous.is_empty() && self.told.0.insert(key);
            let begins = self.timers.begin(Timer::Absent(key), now + after);
            if begins || news {
                self.effects.push_back(Effect::Notice {
                    batch: batch.id,
                    notice,
                });
            }
        }
    }

    fn wait_ends(&mut self, key: QueueKey) {
        self.timers.clear(Timer::Absent(key));
        self.told.0.remove(&key);
    }

    /// Ends the jobs that no host could run for the whole host timeout.
    pub(super) fn end_absent(&mut self, key: QueueKey, now: BootInstant) {
        let why = self.why_absent(key);
        for job in self.queues.take_all(key) {
            let (batch, outcome) = (key.batch, Outcome::never_ran(Ended::NoHost, why.clone()));
            self.finish(JobKey { batch, job }, None, outcome, now);
        }
    }

    /// Whether none of the hosts that a queue requires has ever connected.
    fn were_never_seen(&self, key: QueueKey) -> bool {
        self.batches
            .set_of(key)
            .is_some_and(|set| set.iter().all(|name| self.names.claimants(name).is_empty()))
    }

    /// The reason given for jobs that no host could ever have run.
    fn why_absent(&self, key: QueueKey) -> String {
        if self.queues.is_homeless(key) {
            let set = self.batches.set_of(key).unwrap_or_default();
            let ambiguous = self.ambiguous_of(key);
            let words = ambiguous.first().and_then(|name| self.several_called(name));
            let absent: Vec<Arc<str>> = set
                .iter()
                .filter(|name| !ambiguous.contains(name))
                .cloned()
                .collect();
            if self.batches.get(&key.batch).is_some_and(|batch| batch.once)
                && self.were_never_seen(key)
            {
                return format!(
                    "no host of this name has ever connected: {} (`coordinator hosts` lists the \
                     known hosts)",
                    fold(&absent)
                );
            }
            let failing = absent.iter().find_map(|name| {
                let host = self
                    .hosts
                    .at(self.names.owner(name)?)
                    .filter(|host| host.session.is_some())?;
                Some(format!("{} is failing: {}", host.name, host.trouble()?))
            });
            let waited = || match &failing {
                None => format!(
                    "none of its hosts was connected within the host timeout: {}",
                    fold(&absent)
                ),
                Some(why) => format!(
                    "none of its hosts was ready within the host timeout: {} ({why})",
                    fold(&absent)
                ),
            };
            return match words {
                None => waited(),
                Some(words) if absent.is_empty() => words,
                Some(words) => format!("{}; {words}", waited()),
            };
        }
        if self.is_unserved(key) {
            let user = self.users.name(key.user);
            return format!(
                "none of the hosts that may run it and were connected within the host timeout runs \
                 jobs of {user} (root enables mezcal-engines@{user}.service there)"
            );
        }
        let (wanted, there) = (key.slots(), self.widest_for(key));
        format!(
            "it takes {wanted} slots, and no host that was connected within the host timeout has \
             more than {there} for it"
        )
    }

    /// The slots of the largest connected host that may run these jobs.
    fn widest_for(&self, key: QueueKey) -> u16 {
        let Some(set) = self.batches.set_of(key).filter(|_| key.slots() > 1) else {
            return self.present.widest();
        };
        let hosts = set.iter().filter_map(|name| self.serving_under(name));
        hosts.map(Host::slots).max().unwrap_or(0)
    }
}
