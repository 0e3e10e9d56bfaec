//! Which hosts are present, and which users' jobs they run.

use super::{Effect, Host, REASON_CHARS, Scheduler, Timer};
use mezcal_common::message::client::FailingHost;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most users in one answer about unserved users: a frame holds them with the longest reasons.
const MOST_UNSERVED: usize = 1000;
/// Most hosts in one answer about failing hosts: a frame holds them with the longest reasons.
const MOST_FAILING: usize = 500;

/// How many hosts are present, by their number of slots and by the users they serve.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// How many hosts have each number of slots.
    widths: BTreeMap<u16, usize>,
    /// How many hosts run everybody's jobs, and how many run each user's.
    serve_all: usize,
    serve: FxHashMap<String, usize>,
}

impl Present {
    /// A host with so many slots becomes present; it runs jobs of these users, or of everybody.
    fn come(&mut self, slots: u16, users: Option<Vec<String>>) {
        *self.widths.entry(slots).or_default() += 1;
        self.add_users(users);
    }

    /// The same host is absent from now on.
    fn go(&mut self, slots: u16, users: Option<Vec<String>>) {
        self.forget_users(users);
        if let Some(count) = self.widths.get_mut(&slots) {
            *count -= 1;
            if *count == 0 {
                self.widths.remove(&slots);
            }
        }
    }

    /// A present host runs jobs of these users, or of everybody, from now on.
    fn add_users(&mut self, users: Option<Vec<String>>) {
        match users {
            None => self.serve_all += 1,
            Some(users) => users
                .into_iter()
                .for_each(|user| *self.serve.entry(user).or_default() += 1),
        }
    }

    /// A host does not run jobs of these users, or of everybody, any more.
    fn forget_users(&mut self, users: Option<Vec<String>>) {
        match users {
            None => self.serve_all -= 1,
            Some(users) => users.iter().for_each(|user| {
                if let Some(count) = self.serve.get_mut(user) {
                    *count -= 1;
                    if *count == 0 {
                        self.serve.remove(user);
                    }
                }
            }),
        }
    }

    /// The slots of the largest host.
    pub(super) fn widest(&self) -> u16 {
        self.widths.last_key_value().map_or(0, |(slots, _)| *slots)
    }

    /// Whether some host runs this user's jobs; true for all users if no host is present.
    fn serves(&self, user: &str) -> bool {
        self.serve_all > 0 || self.widths.is_empty() || self.serve.contains_key(user)
    }
}

impl Scheduler {
    /// A host serves under its names as long as it is connected and may be of use: a host none of
    /// whose engines starts is as absent as one that is switched off, and so is a host whose agent
    /// has not sent its inventory in time.
    pub(super) fn look_at_presence(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let (was, width) = (host.width, host.session.map_or(0, |_| host.usable_now()));
        if was != width {
            if was > 0 {
                self.names_go(name);
            }
            if width > 0 {
                self.names_come(name, width);
            }
        }
        self.recount(name);
    }

    /// The agent has said how many of its engines can be used.
    pub(super) fn usable_engines(&mut self, name: &Arc<str>, ready: u16, failing: Option<String>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let failing = failing.map(|why| why.chars().take(REASON_CHARS).collect::<String>());
        let was = host.set_usable(ready, failing);
        match host.failing() {
            Some(why) if was.as_deref() != Some(why) => {
                tracing::warn!(host = %name, "{name} is failing: {why}")
            }
            None if was.is_some() => {
                tracing::info!(host = %name, "the engines of {name} start again")
            }
            Some(_) | None => {}
        }
        self.look_at_presence(name);
        self.reindex(name);
        self.queues.look_at_wide();
    }

    /// A host whose agent has not sent its inventory in time counts as absent.
    pub(super) fn host_is_late(&mut self, index: u32) {
        if let Some(host) = self.hosts.at_mut(index) {
            host.set_late();
            let name = host.name.clone();
            tracing::warn!(host = %name, "{name} is connected and does not become ready");
            self.look_at_presence(&name);
        }
    }

    /// Connected hosts some or all of whose engines cannot be used, and why: the first
    /// `MOST_FAILING` by name.
    pub fn failing_hosts(&self) -> Vec<FailingHost> {
        let connected = self
            .hosts
            .in_order()
            .into_iter()
            .filter(|host| host.session.is_some());
        let failing = connected.filter_map(|host| {
            Some(FailingHost {
                name: host.name.to_string(),
                usable: host.usable_now(),
                why: host.trouble()?.to_owned(),
            })
        });
        failing.take(MOST_FAILING).collect()
    }

    /// A host becomes present: it serves under its names.
    fn names_come(&mut self, name: &Arc<str>, slots: u16) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.width = slots;
        let (index, users) = (host.index, host.hello().users.clone());
        let names = host.names();
        let before = self.served();
        self.present.come(slots, users);
        self.look_at_users(before);
        self.change_names(&names, |names| names.come(index));
        self.queues.look_at_wide();
    }

    /// A host is absent from now on: it does not serve under its names any more.
    fn names_go(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let (index, slots, users) = (
            host.index,
            std::mem::take(&mut host.width),
            host.hello().users.clone(),
        );
        let names = host.names();
        let before = self.served();
        self.present.go(slots, users);
        self.look_at_users(before);
        self.change_names(&names, |names| names.go(index));
        self.queues.look_at_wide();
    }

    /// Changes the users whose jobs a connected host runs.
    pub(super) fn change_users(&mut self, name: &Arc<str>, users: Vec<String>) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.session.is_some())
        else {
            return;
        };
        let users = Some(users);
        if host.hello().users == users {
            return;
        }
        if host.width == 0 {
            // An absent host is not counted.
            host.serve_only(users);
            return;
        }
        let before = self.served();
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let was = host.serve_only(users.clone());
        let others: Vec<String> = was.iter().chain(&users).flatten().cloned().collect();
        self.present.forget_users(was);
        self.present.add_users(users);
        self.look_at_users(before);
        // Some of these users' jobs may be limited to certain hosts.
        for user in others.iter().filter_map(|user| self.users.number(user)) {
            self.queues.look_at_user(user);
        }
        self.unserved = true;
    }

    /// The users with waiting jobs, and whether some host runs the jobs of each.
    fn served(&self) -> Vec<(u32, bool)> {
        self.queues
            .users()
            .into_iter()
            .map(|user| (user, self.is_served(user)))
            .collect()
    }

    /// Hosts have come or gone: marks the queues of users who have gained their only hosts or lost
    /// their last ones.
    fn look_at_users(&mut self, before: Vec<(u32, bool)>) {
        for (user, was) in before {
            if self.is_served(user) != was {
                self.queues.look_at_user(user);
            }
        }
    }

    /// Whether some connected host runs this user's jobs; true for all users if no host is present.
    pub(super) fn is_served(&self, user: u32) -> bool {
        self.present.serves(self.users.name(user))
    }

    /// Whether a host runs this user's jobs now, or will when it has replaced their engines.
    pub(super) fn has_engines_of(&self, host: &Host, user: u32) -> bool {
        let name = self.users.name(user);
        host.hello()
            .users
            .as_ref()
            .is_none_or(|users| users.contains(name))
            || self.is_replacing(host, user)
    }

    /// Whether a host takes this user's jobs at present.
    pub(super) fn serves(&self, host: &Host, user: u32) -> bool {
        self.has_engines_of(host, user) && !self.is_replacing(host, user)
    }

    /// Whether a host takes none of this user's jobs until it has replaced their engines.
    pub(super) fn is_replacing(&self, host: &Host, user: u32) -> bool {
        !host.replacing.is_empty() && host.replacing.contains(self.users.name(user))
    }

    /// Users whose jobs a connected host refuses although they have engines there, and why: the
    /// first `MOST_UNSERVED` by host.
    pub fn unserved_users(&self) -> Vec<(String, String, String)> {
        let hosts = self
            .hosts
            .in_order()
            .into_iter()
            .filter(|host| host.session.is_some());
        let users = hosts.flat_map(|host| {
            host.unheard
                .iter()
                .map(|(user, why)| (host.name.to_string(), user.clone(), why.clone()))
        });
        users.take(MOST_UNSERVED).collect()
    }

    /// Connected agents that can be given jobs, and their slots.
    pub fn fleet(&self) -> (u32, u32) {
        self.hosts.fleet()
    }

    /// Sets whether a host can be given jobs.
    pub(super) fn set_known(&mut self, name: &str, known: bool) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.is_known() != known)
        else {
            return;
        };
        host.set_known(known);
        if known {
            self.timers.clear(Timer::Ready(host.index));
        }
        let name = host.name.clone();
        self.look_at_presence(&name);
        self.reindex(&name);
    }

    fn recount(&mut self, name: &str) {
        if let Some((agents, engines)) = self.hosts.recount(name) {
            self.effects.push_back(Effect::Fleet { agents, engines });
        }
    }
}
