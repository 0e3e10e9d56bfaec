//! Which hosts are there, by which names, and which jobs none of them can run.
//!
//! A host's names are the full one in its certificate, those that an admin has admitted for it, and
//! the first label of the full one. What an agent says of itself gives it no name. Of the hosts
//! that are known, connected or not, a name belongs to the one whose full name it is; else to the
//! one for which it was admitted; else to the one whose first label it is. A name that would belong
//! to several belongs to none.

use super::queues::QueueKey;
use super::{Effect, Host, REASON_CHARS, Scheduler};
use mezcal_common::message::client::{FailingHost, Notice};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::hosts;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Users in one answer about those whom hosts do not serve: a frame holds them with the longest
/// reasons.
const MOST_UNSERVED: usize = 1000;
/// Hosts in one answer about those that fail: a frame holds them with the longest reasons.
const MOST_FAILING: usize = 500;
/// Bytes of a list of hosts in a message for people; names are ASCII.
const FOLDED_BYTES: usize = 1024;

/// Names that an admin has admitted for hosts, by the hosts' full names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Vec<String>>")]
pub struct Aliases(BTreeMap<Arc<str>, BTreeSet<Arc<str>>>);

impl Aliases {
    fn of(&self, host: &str) -> BTreeSet<Arc<str>> {
        self.0.get(host).cloned().unwrap_or_default()
    }
}

impl TryFrom<BTreeMap<String, Vec<String>>> for Aliases {
    type Error = String;

    fn try_from(written: BTreeMap<String, Vec<String>>) -> Result<Self, String> {
        let normal = |name: &str| {
            hosts::normalise(name)
                .map(Arc::<str>::from)
                .map_err(|e| e.to_string())
        };
        let (mut aliases, mut owners) = (Self::default(), HashMap::new());
        for (host, names) in written {
            let host = normal(&host)?;
            for name in names {
                let name = normal(&name)?;
                if let Some(other) = owners
                    .insert(name.clone(), host.clone())
                    .filter(|other| *other != host)
                {
                    return Err(format!(
                        "the alias {name} is given to {other} and to {host}; a name can be that of one host only"
                    ));
                }
                aliases.0.entry(host.clone()).or_default().insert(name);
            }
        }
        Ok(aliases)
    }
}

/// Who of the known hosts has which name, and who of them is connected. Hosts are numbers: indices
/// into the names of hosts.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_full_name: FxHashMap<Arc<str>, u32>,
    /// Several hosts may have these.
    admitted: FxHashMap<Arc<str>, Vec<u32>>,
    first_labels: FxHashMap<Arc<str>, Vec<u32>>,
    connected: FxHashSet<u32>,
    /// Queues whose users have heard that the names they require are those of several hosts.
    told: BTreeSet<QueueKey>,
    /// How many hosts have so many slots.
    widths: BTreeMap<u16, usize>,
    /// How many run everybody's jobs, and how many those of a user.
    serve_all: usize,
    serve: FxHashMap<String, usize>,
}

impl Names {
    /// The known hosts that have the best claim to this name: it belongs to the only one of them.
    fn claimants(&self, name: &str) -> &[u32] {
        if let Some(host) = self.by_full_name.get(name) {
            return std::slice::from_ref(host);
        }
        self.admitted
            .get(name)
            .or_else(|| self.first_labels.get(name))
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The known host to which this name belongs.
    pub(super) fn owner(&self, name: &str) -> Option<u32> {
        if let [only] = self.claimants(name) {
            Some(*only)
        } else {
            None
        }
    }

    /// The connected host that serves under this name.
    pub(super) fn host(&self, name: &str) -> Option<u32> {
        self.owner(name)
            .filter(|host| self.connected.contains(host))
    }

    /// Whether several hosts have an equal claim to this name.
    fn is_ambiguous(&self, name: &str) -> bool {
        self.claimants(name).len() > 1
    }

    /// A host runs jobs of these, or of everybody.
    fn add_users(&mut self, users: Option<Vec<String>>) {
        match users {
            None => self.serve_all += 1,
            Some(users) => users
                .into_iter()
                .for_each(|user| *self.serve.entry(user).or_default() += 1),
        }
    }

    /// It does so no more.
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

    fn widest(&self) -> u16 {
        self.widths.last_key_value().map_or(0, |(slots, _)| *slots)
    }
}

fn first_label(host: &str) -> Option<Arc<str>> {
    hosts::short(host).map(Arc::from)
}

/// Takes one claim to a name away, and the name with its last one.
fn give_up(claims: &mut FxHashMap<Arc<str>, Vec<u32>>, name: &Arc<str>, host: u32) {
    if let Some(hosts) = claims.get_mut(name) {
        hosts.retain(|other| *other != host);
        if hosts.is_empty() {
            claims.remove(name);
        }
    }
}

impl Host {
    /// Slots that jobs can have at present.
    fn usable_now(&self) -> u16 {
        if self.late { 0 } else { self.slots() }
    }

    /// What keeps its slots from being used.
    pub(super) fn trouble(&self) -> Option<String> {
        let late =
            || "its agent has not said what runs there: its engines do not answer".to_owned();
        self.failing.clone().or_else(|| self.late.then(late))
    }
}

impl Scheduler {
    /// A host that was not known is so from now on, without an agent as yet; gives back its index.
    pub(super) fn host_becomes_known(&mut self, host: &Arc<str>, now: BootInstant) -> u32 {
        let index = self.host_names.len() as u32;
        self.host_names.push(host.clone());
        self.hosts.insert(
            host.clone(),
            Host::of_earlier_life(host.clone(), index, now),
        );
        let (admitted, label) = (self.aliases.of(host), first_label(host));
        let aliases: Vec<Arc<str>> = admitted.iter().chain(&label).cloned().collect();
        let names: Vec<Arc<str>> = aliases.iter().chain([host]).cloned().collect();
        self.hosts
            .get_mut(host)
            .into_iter()
            .for_each(|known| known.aliases.clone_from(&aliases));
        self.change_names(&names, |names| {
            names.by_full_name.insert(host.clone(), index);
            admitted
                .into_iter()
                .for_each(|name| names.admitted.entry(name).or_default().push(index));
            label
                .into_iter()
                .for_each(|name| names.first_labels.entry(name).or_default().push(index));
        });
        index
    }

    /// A host is known no more; it is not connected.
    pub(super) fn names_are_forgotten(&mut self, host: &Arc<str>, index: u32) {
        let (admitted, label) = (self.aliases.of(host), first_label(host));
        let names: Vec<Arc<str>> = admitted
            .iter()
            .chain(&label)
            .chain([host])
            .cloned()
            .collect();
        self.change_names(&names, |names| {
            names.by_full_name.remove(host);
            admitted
                .iter()
                .for_each(|name| give_up(&mut names.admitted, name, index));
            label
                .iter()
                .for_each(|name| give_up(&mut names.first_labels, name, index));
        });
    }

    /// From now on these names are admitted, and no others.
    pub fn set_aliases(&mut self, aliases: Aliases, now: BootInstant) {
        if self.aliases == aliases {
            return;
        }
        let before = self.aliases.0.values().chain(aliases.0.values());
        let names: Vec<Arc<str>> = before
            .flatten()
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut admitted: FxHashMap<Arc<str>, Vec<u32>> = FxHashMap::default();
        for host in self.hosts.values_mut() {
            let own = aliases.of(&host.name);
            own.iter()
                .for_each(|name| admitted.entry(name.clone()).or_default().push(host.index));
            host.aliases = own.into_iter().chain(first_label(&host.name)).collect();
        }
        self.aliases = aliases;
        self.change_names(&names, |names| names.admitted = admitted);
        self.settle(now);
    }

    /// A host serves under its names as long as it is connected and not known to be of no use:
    /// without any engine that starts it is as absent as one that is switched off, and so is one
    /// whose agent does not come to say what it has.
    pub(super) fn look_at_presence(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let there = host.session.is_some() && !host.late;
        let (was, width) = (host.width, if there { host.slots() } else { 0 });
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

    /// The agent says which of its engines can be used.
    pub(super) fn usable_engines(&mut self, name: &Arc<str>, ready: u16, failing: Option<String>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let failing = failing.map(|why| why.chars().take(REASON_CHARS).collect::<String>());
        match &failing {
            Some(why) if host.failing != failing => {
                tracing::warn!(host = %name, "{name} is failing: {why}")
            }
            None if host.failing.is_some() => {
                tracing::info!(host = %name, "the engines of {name} start again")
            }
            Some(_) | None => {}
        }
        (host.usable, host.failing) = (Some(ready), failing);
        self.look_at_presence(name);
        self.reindex(name);
        self.queues.look_at_wide();
    }

    /// Hosts whose agents have not said what they have count as absent after a while.
    pub(super) fn hosts_are_late(&mut self, now: BootInstant) {
        while let Some((at, index)) = self.unready.first().copied().filter(|(at, _)| *at <= now) {
            self.unready.remove(&(at, index));
            if let Some(name) = self.name_at(index)
                && let Some(host) = self
                    .hosts
                    .get_mut(&name)
                    .filter(|host| host.ready_by == Some(at))
            {
                (host.ready_by, host.late) = (None, true);
                tracing::warn!(host = %name, "{name} is connected and does not become ready");
                self.look_at_presence(&name);
            }
        }
    }

    /// Connected hosts of which no engine can be used, or not all of them, and why: the first ones,
    /// by name.
    pub fn failing_hosts(&self) -> Vec<FailingHost> {
        let connected = self
            .hosts_in_order()
            .into_iter()
            .filter(|host| host.session.is_some());
        let failing = connected.filter_map(|host| {
            Some(FailingHost {
                name: host.name.to_string(),
                usable: host.usable_now(),
                why: host.trouble()?,
            })
        });
        failing.take(MOST_FAILING).collect()
    }

    /// A host has come: it serves under its names.
    fn names_come(&mut self, name: &Arc<str>, slots: u16) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.width = slots;
        let (index, users) = (host.index, host.hello.users.clone());
        let names = host.names();
        let before = self.served();
        *self.names.widths.entry(slots).or_default() += 1;
        self.names.add_users(users);
        self.look_at_users(before);
        self.change_names(&names, |names| {
            names.connected.insert(index);
        });
        self.queues.look_at_wide();
    }

    /// It is not there any more.
    fn names_go(&mut self, name: &Arc<str>) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let (index, slots, users) = (
            host.index,
            std::mem::take(&mut host.width),
            host.hello.users.clone(),
        );
        let names = host.names();
        let before = self.served();
        self.names.forget_users(users);
        if let Some(count) = self.names.widths.get_mut(&slots) {
            *count -= 1;
            if *count == 0 {
                self.names.widths.remove(&slots);
            }
        }
        self.look_at_users(before);
        self.change_names(&names, |names| {
            names.connected.remove(&index);
        });
        self.queues.look_at_wide();
    }

    /// A connected host runs jobs of other users from now on.
    pub(super) fn change_users(&mut self, name: &Arc<str>, users: Vec<String>) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.session.is_some())
        else {
            return;
        };
        let users = Some(users);
        if host.hello.users == users {
            return;
        }
        if host.width == 0 {
            // Nobody reckons with it.
            host.hello.users = users;
            return;
        }
        let before = self.served();
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let was = std::mem::replace(&mut host.hello.users, users.clone());
        let others: Vec<String> = was.iter().chain(&users).flatten().cloned().collect();
        self.names.forget_users(was);
        self.names.add_users(users);
        self.look_at_users(before);
        // Some of their jobs may run on certain hosts only.
        for user in others.iter().filter_map(|user| self.users.get(user)) {
            self.queues.look_at_user(*user);
        }
        self.unserved = true;
    }

    /// Changes who has which of these names, or who is connected. What waits for one of them hears
    /// of another owner.
    fn change_names(&mut self, names: &[Arc<str>], change: impl FnOnce(&mut Names)) {
        let before: Vec<_> = names
            .iter()
            .map(|name| (self.names.host(name), self.names.is_ambiguous(name)))
            .collect();
        change(&mut self.names);
        for (name, (was, was_ambiguous)) in names.iter().zip(before) {
            let is = self.names.host(name);
            match (was, is) {
                (None, Some(_)) => self.queues.comes(name),
                (Some(_), None) => self.unserved |= self.queues.goes(name),
                (Some(_), Some(_)) | (None, None) => {}
            }
            if was != is || was_ambiguous != self.names.is_ambiguous(name) {
                self.queues.look_at_name(name);
                // One that is still to say what it has is served when it has asked for jobs.
                self.unserved |= is
                    .and_then(|index| self.host_at(index))
                    .is_some_and(|host| host.known);
            }
        }
    }

    /// The names that belong to a host.
    pub(super) fn names_of(&self, host: &Host) -> Vec<Arc<str>> {
        let own = host
            .aliases
            .iter()
            .filter(|name| self.names.owner(name) == Some(host.index));
        std::iter::once(&host.name).chain(own).cloned().collect()
    }

    /// The known host that somebody means.
    ///
    /// # Errors
    /// None has the name, or several have.
    pub(super) fn host_named(&self, wanted: &str) -> Result<Arc<str>, String> {
        let normal = hosts::normalise(wanted).map_err(|e| e.to_string())?;
        match self.several_called(&normal) {
            Some(several) => Err(several),
            None => self
                .names
                .owner(&normal)
                // One that has joined under its short name may be written in full.
                .or_else(|| self.names.by_full_name.get(hosts::short(&normal)?).copied())
                .and_then(|index| self.name_at(index))
                .ok_or_else(|| format!("no agent of {wanted} has ever connected")),
        }
    }

    /// If several hosts have a claim to a name: that it stands for none of them, in words.
    pub(super) fn several_called(&self, name: &str) -> Option<String> {
        self.names.is_ambiguous(name).then(|| {
            format!(
                "{name} may be any of {}, and so stands for none of them; write the full name",
                fold(&self.claimants_of(name))
            )
        })
    }

    /// The names of this set that stand for nobody since several hosts have them.
    fn ambiguous_of(&self, key: QueueKey) -> Vec<Arc<str>> {
        let set = self.set_of(key).unwrap_or_default();
        set.iter()
            .filter(|name| self.names.is_ambiguous(name))
            .cloned()
            .collect()
    }

    fn claimants_of(&self, name: &str) -> Vec<Arc<str>> {
        let mut hosts: Vec<Arc<str>> = self
            .names
            .claimants(name)
            .iter()
            .filter_map(|index| self.name_at(*index))
            .collect();
        hosts.sort();
        hosts
    }

    /// Which of the users with waiting jobs have hosts for them.
    fn served(&self) -> Vec<(u32, bool)> {
        self.queues
            .users()
            .into_iter()
            .map(|user| (user, self.is_served(user)))
            .collect()
    }

    /// Hosts have come or gone: whose jobs can be run now and could not before, or the other way
    /// round, is looked at.
    fn look_at_users(&mut self, before: Vec<(u32, bool)>) {
        for (user, was) in before {
            if self.is_served(user) != was {
                self.queues.look_at_user(user);
            }
        }
    }

    /// Whether some connected host runs this user's jobs. Without any host nobody is worse off than
    /// others.
    pub(super) fn is_served(&self, user: u32) -> bool {
        let names = &self.names;
        names.serve_all > 0
            || names.widths.is_empty()
            || names.serve.contains_key(&self.user_names[user as usize])
    }

    /// Whether hosts are connected that may run these jobs, and none of them does for their user.
    fn is_unserved(&self, key: QueueKey) -> bool {
        match self.set_of(key) {
            None => {
                let comes =
                    |host: &Host| host.session.is_some() && self.is_replacing(host, key.user);
                !self.is_served(key.user) && !self.hosts.values().any(comes)
            }
            Some(set) => {
                let mut there = set
                    .iter()
                    .filter_map(|name| self.host_at(self.names.host(name)?))
                    .peekable();
                there.peek().is_some() && !there.any(|host| self.has_engines_of(host, key.user))
            }
        }
    }

    /// Whether a host runs this user's jobs, now or when it has replaced their engines.
    fn has_engines_of(&self, host: &Host, user: u32) -> bool {
        let name = &self.user_names[user as usize];
        host.hello
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
        !host.replacing.is_empty() && host.replacing.contains(&self.user_names[user as usize])
    }

    /// Users whose jobs a connected host does not run although they have engines there, and why:
    /// the first ones, by host.
    pub fn unserved_users(&self) -> Vec<(String, String, String)> {
        let hosts = self
            .hosts_in_order()
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
        self.fleet
    }

    /// A host can be given jobs from now on, or cannot any more.
    pub(super) fn set_known(&mut self, name: &str, known: bool) {
        let Some(host) = self.hosts.get_mut(name).filter(|host| host.known != known) else {
            return;
        };
        host.known = known;
        if known {
            host.late = false;
            if let Some(at) = host.ready_by.take() {
                self.unready.remove(&(at, host.index));
            }
        }
        let name = host.name.clone();
        self.look_at_presence(&name);
        self.reindex(&name);
    }

    /// The fleet is what can be given jobs.
    fn recount(&mut self, name: &str) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let counts = if host.known && host.slots() > 0 {
            (1, u32::from(host.slots()))
        } else {
            (0, 0)
        };
        let was = std::mem::replace(&mut host.counted, counts);
        if was != counts {
            self.fleet = (
                self.fleet.0 + counts.0 - was.0,
                self.fleet.1 + counts.1 - was.1,
            );
            let (agents, engines) = self.fleet;
            self.effects.push_back(Effect::Fleet { agents, engines });
        }
    }

    /// Starts and ends the waits for hosts that are not there.
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
                    // Somebody waits at a terminal, and can write the full name.
                    self.absent.insert(key, now);
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
                    // Somebody waits at a terminal, for what is most likely a slip.
                    self.absent.insert(key, now);
                    continue;
                }
                Notice::HostsAbsent {
                    hosts: fold(&self.set_of(key).unwrap_or_default()),
                    jobs,
                    after,
                }
            } else if self.is_unserved(key) {
                Notice::Unserved {
                    user: self.user_names[key.user as usize].clone(),
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
            let news = !ambiguous.is_empty() && self.names.told.insert(key);
            let begins = matches!(self.absent.entry(key), Entry::Vacant(_));
            self.absent.entry(key).or_insert(now + after);
            if begins || news {
                self.effects.push_back(Effect::Notice {
                    batch: batch.id,
                    notice,
                });
            }
        }
    }

    fn wait_ends(&mut self, key: QueueKey) {
        self.absent.remove(&key);
        self.names.told.remove(&key);
    }

    /// Whether none of the hosts that a queue requires has ever been here.
    fn were_never_seen(&self, key: QueueKey) -> bool {
        self.set_of(key)
            .is_some_and(|set| set.iter().all(|name| self.names.claimants(name).is_empty()))
    }

    /// Why jobs end that no host could ever have run.
    pub(super) fn why_absent(&self, key: QueueKey) -> String {
        if self.queues.is_homeless(key) {
            let set = self.set_of(key).unwrap_or_default();
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
                    "no host of that name has ever been seen here: {} (`coordinator hosts` lists those that have)",
                    fold(&absent)
                );
            }
            let failing = absent.iter().find_map(|name| {
                let host = self
                    .host_at(self.names.owner(name)?)
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
            let user = &self.user_names[key.user as usize];
            return format!(
                "no host that was connected within the host timeout and may run it runs jobs of {user} (root enables \
                 mezcal-engines@{user}.service there)"
            );
        }
        let (wanted, there) = (key.slots(), self.widest_for(key));
        format!(
            "it takes {wanted} slots, and within the host timeout no host was connected that has more than {there} for it"
        )
    }

    /// The slots of the largest connected host that may run these jobs.
    fn widest_for(&self, key: QueueKey) -> u16 {
        let Some(set) = self.set_of(key).filter(|_| key.slots() > 1) else {
            return self.names.widest();
        };
        let hosts = set
            .iter()
            .filter_map(|name| self.host_at(self.names.host(name)?));
        hosts.map(Host::slots).max().unwrap_or(0)
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
    if names.is_empty() {
        "an empty list".into()
    } else {
        text
    }
}
