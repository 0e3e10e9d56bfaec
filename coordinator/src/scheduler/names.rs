//! The names of hosts, and which host each name stands for.
//!
//! A host's names are the full one in its certificate, those that an admin has admitted for it, and
//! the first label of the full one. Names that an agent claims for itself do not count. Of the
//! known hosts, connected or not, a name belongs to the one whose full name it is; else to the one
//! for which it was admitted; else to the one whose first label it is. A name that would belong to
//! several belongs to none.

use super::queues::QueueKey;
use super::{Host, Scheduler};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::hosts;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Most bytes of a list of hosts in a message for people; names are ASCII.
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
                        "the alias {name} is given to {other} and to {host}; a name can belong to \
                         one host only"
                    ));
                }
                aliases.0.entry(host.clone()).or_default().insert(name);
            }
        }
        Ok(aliases)
    }
}

/// Which of the known hosts has which name, and which of them are connected. Hosts are indices into
/// the names of hosts.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_full_name: FxHashMap<Arc<str>, u32>,
    /// Several hosts may claim one of these.
    admitted: FxHashMap<Arc<str>, Vec<u32>>,
    first_labels: FxHashMap<Arc<str>, Vec<u32>>,
    connected: FxHashSet<u32>,
    aliases: Aliases,
}

impl Names {
    /// The known hosts that have the best claim to this name: it belongs to the only one of them.
    pub(super) fn claimants(&self, name: &str) -> &[u32] {
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

    /// A host serves under its names from now on.
    pub(super) fn come(&mut self, host: u32) {
        self.connected.insert(host);
    }

    /// A host does not serve under its names any more.
    pub(super) fn go(&mut self, host: u32) {
        self.connected.remove(&host);
    }
}

fn first_label(host: &str) -> Option<Arc<str>> {
    hosts::short(host).map(Arc::from)
}

/// Removes one claim to a name, and the name with its last claim.
fn give_up(claims: &mut FxHashMap<Arc<str>, Vec<u32>>, name: &Arc<str>, host: u32) {
    if let Some(hosts) = claims.get_mut(name) {
        hosts.retain(|other| *other != host);
        if hosts.is_empty() {
            claims.remove(name);
        }
    }
}

/// A list of hosts for people, cut to `FOLDED_BYTES`.
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

impl Scheduler {
    /// Makes a host known if it is not, without an agent as yet; returns its index.
    pub(super) fn host_becomes_known(&mut self, host: &Arc<str>, now: BootInstant) -> u32 {
        if let Some(known) = self.hosts.get(host) {
            return known.index;
        }
        let index = self.hosts.add(host.clone(), now);
        let (admitted, label) = (self.names.aliases.of(host), first_label(host));
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

    /// Removes the names of a host that is forgotten; it is not connected.
    pub(super) fn names_are_forgotten(&mut self, host: &Arc<str>, index: u32) {
        let (admitted, label) = (self.names.aliases.of(host), first_label(host));
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

    /// Replaces all admitted names by these.
    pub fn set_aliases(&mut self, aliases: Aliases, now: BootInstant) {
        if self.names.aliases == aliases {
            return;
        }
        let before = self.names.aliases.0.values().chain(aliases.0.values());
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
        self.names.aliases = aliases;
        self.change_names(&names, |names| names.admitted = admitted);
        self.settle(now);
    }

    /// Changes which host has which of these names, or which is connected. Queues that name one are
    /// checked again when its owner changes.
    pub(super) fn change_names(&mut self, names: &[Arc<str>], change: impl FnOnce(&mut Names)) {
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
                // A host without an inventory as yet is served when it has asked for jobs.
                self.unserved |= is
                    .and_then(|index| self.hosts.at(index))
                    .is_some_and(Host::is_known);
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

    /// Whether one of the names that belong to a host is among these.
    pub(super) fn is_among(&self, host: &Host, names: &[Arc<str>]) -> bool {
        let is_own = |name: &Arc<str>| self.names.owner(name) == Some(host.index);
        names.contains(&host.name)
            || host
                .aliases
                .iter()
                .any(|name| names.contains(name) && is_own(name))
    }

    /// The connected host that serves under this name.
    pub(super) fn serving_under(&self, name: &str) -> Option<&Host> {
        self.hosts.at(self.names.host(name)?)
    }

    /// The known host that a person means by this name.
    ///
    /// # Errors
    /// No host has the name, or several have it.
    pub(super) fn host_named(&self, wanted: &str) -> Result<Arc<str>, String> {
        let normal = hosts::normalise(wanted).map_err(|e| e.to_string())?;
        match self.several_called(&normal) {
            Some(several) => Err(several),
            None => self
                .names
                .owner(&normal)
                // A host that has joined under its short name may be written in full.
                .or_else(|| self.names.by_full_name.get(hosts::short(&normal)?).copied())
                .and_then(|index| self.hosts.name_at(index))
                .ok_or_else(|| format!("no agent of {wanted} has ever connected")),
        }
    }

    /// If several hosts have a claim to a name: the message that it stands for none of them.
    pub(super) fn several_called(&self, name: &str) -> Option<String> {
        self.names.is_ambiguous(name).then(|| {
            format!(
                "{name} may be any of {}; write the full name",
                fold(&self.claimants_of(name))
            )
        })
    }

    /// The names that a queue requires which stand for no host since several hosts have them.
    pub(super) fn ambiguous_of(&self, key: QueueKey) -> Vec<Arc<str>> {
        let set = self.batches.set_of(key).unwrap_or_default();
        set.iter()
            .filter(|name| self.names.is_ambiguous(name))
            .cloned()
            .collect()
    }

    pub(super) fn claimants_of(&self, name: &str) -> Vec<Arc<str>> {
        let mut hosts: Vec<Arc<str>> = self
            .names
            .claimants(name)
            .iter()
            .filter_map(|index| self.hosts.name_at(*index))
            .collect();
        hosts.sort();
        hosts
    }
}
