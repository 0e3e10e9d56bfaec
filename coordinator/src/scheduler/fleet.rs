//! Which hosts are there, by which names, and which jobs none of them can run.
//!
//! A host serves under the name in its certificate, and under each of its aliases as long as no other connected host has that, too.

use super::queues::QueueKey;
use super::{Effect, Host, Scheduler};
use mezcal_common::clock::BootInstant;
use mezcal_common::hosts;
use mezcal_common::wire::client::Notice;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Other names that one host may bring along.
pub(super) const MAX_ALIASES: usize = 16;
/// Bytes of a list of hosts in a message for people; names are ASCII.
const FOLDED_BYTES: usize = 1024;

/// Who of the connected hosts has which name.
#[derive(Debug, Default)]
pub(super) struct Names {
    owners: HashMap<Arc<str>, u32>,
    /// Hosts by alias.
    claims: HashMap<Arc<str>, Vec<u32>>,
    /// How many hosts have so many slots.
    widths: BTreeMap<u16, usize>,
    /// How many run everybody's jobs, and how many those of a user.
    serve_all: usize,
    serve: HashMap<String, usize>,
}

impl Names {
    /// The host that serves under this name.
    pub(super) fn host(&self, name: &str) -> Option<u32> {
        let alias = || self.claims.get(name).and_then(|hosts| if let [only] = hosts.as_slice() { Some(*only) } else { None });
        self.owners.get(name).copied().or_else(alias)
    }

    fn widest(&self) -> u16 {
        self.widths.last_key_value().map_or(0, |(slots, _)| *slots)
    }
}

impl Scheduler {
    /// A host has connected: it brings its names.
    pub(super) fn names_come(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get(name) else { return };
        let (index, slots, aliases) = (host.index, host.hello.slots, host.aliases.clone());
        let users = host.hello.users.clone();
        let before = self.served();
        *self.names.widths.entry(slots).or_default() += 1;
        match users {
            None => self.names.serve_all += 1,
            Some(users) => users.into_iter().for_each(|user| *self.names.serve.entry(user).or_default() += 1),
        }
        self.look_at_users(before);
        self.change_name(name, |names| {
            names.owners.insert(name.clone(), index);
        });
        for alias in aliases {
            self.change_name(&alias, |names| names.claims.entry(alias.clone()).or_default().push(index));
        }
        self.queues.look_at_wide();
    }

    /// It is connected no more.
    pub(super) fn names_go(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get(name) else { return };
        let (index, slots, aliases) = (host.index, host.hello.slots, host.aliases.clone());
        let users = host.hello.users.clone();
        let before = self.served();
        match users {
            None => self.names.serve_all -= 1,
            Some(users) => users.iter().for_each(|user| {
                if let Some(count) = self.names.serve.get_mut(user) {
                    *count -= 1;
                    if *count == 0 {
                        self.names.serve.remove(user);
                    }
                }
            }),
        }
        if let Some(count) = self.names.widths.get_mut(&slots) {
            *count -= 1;
            if *count == 0 {
                self.names.widths.remove(&slots);
            }
        }
        self.look_at_users(before);
        self.change_name(name, |names| {
            names.owners.remove(name);
        });
        for alias in aliases {
            self.change_name(&alias, |names| {
                if let Some(hosts) = names.claims.get_mut(&alias) {
                    hosts.retain(|host| *host != index);
                    if hosts.is_empty() {
                        names.claims.remove(&alias);
                    }
                }
            });
        }
        self.queues.look_at_wide();
    }

    fn change_name(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Names)) {
        let was = self.names.host(name).is_some();
        change(&mut self.names);
        match (was, self.names.host(name).is_some()) {
            (false, true) => self.queues.comes(name),
            (true, false) => self.unserved |= self.queues.goes(name),
            (true, true) | (false, false) => {}
        }
    }

    /// The names under which a host serves.
    pub(super) fn names_of(&self, host: &Host) -> Vec<Arc<str>> {
        let aliases = host.aliases.iter().filter(|alias| self.names.host(alias).is_none_or(|index| index == host.index));
        std::iter::once(&host.name).chain(aliases).cloned().collect()
    }

    /// Which of the users with waiting jobs have hosts for them.
    fn served(&self) -> Vec<(u32, bool)> {
        self.queues.users().into_iter().map(|user| (user, self.is_served(user))).collect()
    }

    /// Hosts have come or gone: whose jobs can be run now and could not before, or the other way round, is looked at.
    fn look_at_users(&mut self, before: Vec<(u32, bool)>) {
        for (user, was) in before {
            if self.is_served(user) != was {
                self.queues.look_at_user(user);
            }
        }
    }

    /// Whether some connected host runs this user's jobs. Without any host nobody is worse off than others.
    pub(super) fn is_served(&self, user: u32) -> bool {
        let names = &self.names;
        names.serve_all > 0 || names.widths.is_empty() || names.serve.contains_key(&self.user_names[user as usize])
    }

    /// Whether hosts are connected that may run these jobs, and none of them does for their user.
    fn is_unserved(&self, key: QueueKey) -> bool {
        match self.set_of(key) {
            None => !self.is_served(key.user),
            Some(set) => {
                let mut there = set.iter().filter_map(|name| self.host_at(self.names.host(name)?)).peekable();
                there.peek().is_some() && !there.any(|host| self.serves(host, key.user))
            }
        }
    }

    /// Whether a host runs this user's jobs.
    pub(super) fn serves(&self, host: &Host, user: u32) -> bool {
        let name = &self.user_names[user as usize];
        host.hello.users.as_ref().is_none_or(|users| users.contains(name))
    }

    /// Connected agents that can be given jobs, and their slots.
    pub fn fleet(&self) -> (u32, u32) {
        self.fleet
    }

    /// A host can be given jobs from now on, or cannot any more.
    pub(super) fn set_known(&mut self, name: &str, known: bool) {
        let Some(host) = self.hosts.get_mut(name).filter(|host| host.known != known) else { return };
        host.known = known;
        let slots = u32::from(host.hello.slots);
        let (agents, engines) = self.fleet;
        self.fleet = if known { (agents + 1, engines + slots) } else { (agents - 1, engines - slots) };
        let (agents, engines) = self.fleet;
        self.effects.push_back(Effect::Fleet { agents, engines });
        self.reindex(name);
    }

    /// Starts and ends the waits for hosts that are not there.
    pub(super) fn look_at_changed(&mut self, now: BootInstant) {
        for key in self.queues.take_changed() {
            let jobs = self.queues.len_of(key);
            if jobs == 0 {
                self.nothing_is_kept_for(key);
            }
            let Some(batch) = self.batches.get(&key.batch).filter(|_| jobs > 0) else {
                self.absent.remove(&key);
                continue;
            };
            let (jobs, after) = (jobs as u64, batch.host_timeout);
            let notice = if self.queues.is_homeless(key) {
                Notice::HostsAbsent { hosts: fold(&self.set_of(key).unwrap_or_default()), jobs, after }
            } else if self.is_unserved(key) {
                Notice::Unserved { user: self.user_names[key.user as usize].clone(), jobs, after }
            } else if self.widest_for(key) < key.slots() {
                Notice::TooWide { slots: key.slots(), jobs, after }
            } else {
                self.absent.remove(&key);
                continue;
            };
            if let Entry::Vacant(wait) = self.absent.entry(key) {
                wait.insert(now + after);
                self.effects.push_back(Effect::Notice { batch: batch.id, notice });
            }
        }
    }

    /// Why jobs end that no host could ever have run.
    pub(super) fn why_absent(&self, key: QueueKey) -> String {
        if self.queues.is_homeless(key) {
            let names = fold(&self.set_of(key).unwrap_or_default());
            return format!("none of its hosts was connected within the host timeout: {names}");
        }
        if self.is_unserved(key) {
            let user = &self.user_names[key.user as usize];
            return format!(
                "no host that was connected within the host timeout and may run it runs jobs of {user} (root enables \
                 mezcal-engines@{user}.service there)"
            );
        }
        let (wanted, there) = (key.slots(), self.widest_for(key));
        format!("it takes {wanted} slots, and within the host timeout no host was connected that has more than {there} for it")
    }

    /// The slots of the largest connected host that may run these jobs.
    fn widest_for(&self, key: QueueKey) -> u16 {
        let Some(set) = self.set_of(key).filter(|_| key.slots() > 1) else { return self.names.widest() };
        let hosts = set.iter().filter_map(|name| self.host_at(self.names.host(name)?));
        hosts.map(|host| host.hello.slots).max().unwrap_or(0)
    }
}

/// A list of hosts for people.
pub(super) fn fold(set: &[Arc<str>]) -> String {
    let names: Vec<String> = set.iter().map(|n| n.to_string()).collect();
    let mut text = hosts::Folded(&names).to_string();
    if text.len() > FOLDED_BYTES {
        text.truncate(FOLDED_BYTES);
        text.push('…');
    }
    if names.is_empty() { "an empty list".into() } else { text }
}
