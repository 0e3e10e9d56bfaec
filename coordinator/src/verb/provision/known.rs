//! The coordinator's knowledge of hosts, which decides whether each has to join.

use crate::client::profile::ProfileArgs;
use crate::client::{ask, converse};
use crate::exit::Exit;
use crate::report::table::time;
use mezcal_common::message::client::Member;
use mezcal_common::model::clock::WallTime;
use std::collections::{BTreeMap, BTreeSet};

/// The hosts that the coordinator knows before any step.
#[derive(Default)]
pub(super) struct Members {
    pub(super) connected: BTreeSet<String>,
    /// Hosts with a certificate that is not revoked.
    counted: BTreeSet<String>,
    /// Hosts whose certificates were all revoked, and when.
    revoked: BTreeMap<String, WallTime>,
}

impl Members {
    pub(super) fn ask(profile: &ProfileArgs) -> Result<Self, Exit> {
        // Fails before any step if the coordinator cannot be reached.
        let hosts = converse(profile, ask::hosts)?;
        let connected = hosts
            .into_iter()
            .filter(|host| host.connected)
            .map(|host| host.name)
            .collect();
        let mut me = Self {
            connected,
            ..Self::default()
        };
        // A user who is not an admin is refused here, and hears so when a token is needed.
        for row in ask::certificates(profile)
            .unwrap_or_default()
            .into_iter()
            .filter(|row| row.member == Member::Host)
        {
            match row.revoked {
                Some(at) => {
                    let last = me.revoked.entry(row.name).or_insert(at);
                    *last = at.max(*last);
                }
                // A host can renew an expired certificate.
                None => drop(me.counted.insert(row.name)),
            }
        }
        me.revoked.retain(|name, _| !me.counted.contains(name));
        Ok(me)
    }

    /// The name under which the coordinator knows a host, by the host's own name.
    pub(super) fn name_of(&self, own: &str) -> String {
        let known = self
            .connected
            .iter()
            .chain(&self.counted)
            .chain(self.revoked.keys())
            .map(String::as_str);
        mezcal_common::model::hosts::meant(own, known)
            .ok()
            .flatten()
            .unwrap_or(own)
            .to_owned()
    }

    /// Whether a host has to join: the words for the step, if it has.
    pub(super) fn joins(
        &self,
        name: &str,
        joined: bool,
        replace: bool,
    ) -> Result<Option<&'static str>, String> {
        let (here, counts) = (self.connected.contains(name), self.counted.contains(name));
        match (joined, self.revoked.get(name)) {
            (true, _) if here => Ok(None),
            (false, _) if here => Err(format!(
                "an agent is connected as {name}, and it is not that of this installation: stop it first, if this is its host"
            )),
            (_, Some(_)) if replace => Ok(Some("joined again")),
            (_, Some(at)) => Err(format!(
                "its certificate was revoked at {}; with --replace it joins again",
                time(*at)
            )),
            (true, None) => Ok(replace.then_some("joined again")),
            (false, None) if counts && !replace => Err(format!(
                "{name} joined before it was reinstalled; with --replace it joins again, and its \
                 old certificate is revoked"
            )),
            (false, None) => Ok(Some(if counts { "joined again" } else { "joined" })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_joins_when_it_has_to_and_says_what_lets_it() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let members = Members {
            connected: names(&["there.x"]),
            counted: names(&["there.x", "away.x"]),
            revoked: [("out.x".to_owned(), WallTime(0))].into(),
        };
        let joins = |name, joined, replace| members.joins(name, joined, replace);
        for replace in [false, true] {
            assert_eq!(
                joins("there.x", true, replace),
                Ok(None),
                "whoever is connected is left alone"
            );
            assert!(
                joins("there.x", false, replace)
                    .expect_err("somebody else's")
                    .contains("stop it first")
            );
            assert_eq!(joins("new.x", false, replace), Ok(Some("joined")));
        }
        assert_eq!(joins("away.x", true, false), Ok(None));
        assert_eq!(joins("away.x", true, true), Ok(Some("joined again")));
        assert!(
            joins("away.x", false, false)
                .expect_err("set up anew")
                .contains("--replace")
        );
        assert_eq!(joins("away.x", false, true), Ok(Some("joined again")));
        for joined in [false, true] {
            assert!(
                joins("out.x", joined, false)
                    .expect_err("revoked")
                    .contains("revoked at 1970")
            );
            assert_eq!(joins("out.x", joined, true), Ok(Some("joined again")));
        }
        assert_eq!(
            ["there", "out", "new", "away.x"].map(|name| members.name_of(name)),
            ["there.x", "out.x", "new", "away.x"]
        );
    }
}
