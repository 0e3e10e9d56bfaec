//! Provisioning by root, for all users of a host.

use super::{Plan, Row, plain};
use std::collections::BTreeMap;

/// The hash of the archive that the host's files came from. The files may have changed since, so
/// the program itself is checked, too.
const INSTALLED: &str = "/usr/lib/mezcal/archive";
/// The program that the archive installs: a link to the file of all programs, or, from older
/// archives, a file of its own.
const AGENT: &str = "/usr/bin/mezcal-agent";
/// Where packages and archives put their units.
const UNITS: &str = "/usr/lib/systemd/system";

/// The state of a host, as its script reports it.
struct Found {
    /// The host's own name for itself.
    name: String,
    root: bool,
    /// Hashes of the archive that was installed last, and of the program that is there.
    archive: String,
    agent: String,
    joined: bool,
    /// Units that are not enabled or do not run.
    idle: Vec<String>,
    /// The running agent is older than the installed program.
    old: bool,
}

impl Plan<'_> {
    /// The steps of a host on which the account may be root.
    pub(super) fn steps_as_root(&self, row: &mut Row) -> Result<(), String> {
        let found = self.look(&row.host)?;
        row.name = self.members.name_of(&found.name);
        let joins = self
            .members
            .joins(&row.name, found.joined, self.all.replace)?;
        let sudo = if found.root { "" } else { "sudo -n " };
        let installs =
            found.agent != self.program || !found.archive.is_empty() && found.archive != self.hash;
        if installs
            && self.step(
                row,
                "installed",
                &format!(
                    "installing {:.1} MiB",
                    self.archive.len() as f64 / f64::from(1 << 20)
                ),
            )
        {
            // Only an archive that arrives unchanged is unpacked and run.
            let script = format!(
                "set -eu; d=$(mktemp -d /var/tmp/mezcal.XXXXXX); trap \"rm -rf $d\" EXIT; cat > $d/a.tar.gz; \
                 echo \"{hash}  $d/a.tar.gz\" | sha256sum -c --quiet; tar -xzf $d/a.tar.gz -C $d; $d/mezcal-*/install.sh; \
                 mkdir -p {dir}; echo {hash} > {INSTALLED}",
                hash = self.hash,
                dir = INSTALLED.rsplit_once('/').map_or("/", |(dir, _)| dir),
            );
            self.ssh(&row.host, sudo, &script, &self.archive)?;
        }
        if let Some(did) = joins
            && self.step(row, did, "joining")
        {
            self.join(row, &found.name, sudo, "mezcal-agent")?;
        }
        if (!found.idle.is_empty() || !found.joined) && self.step(row, "started", "starting") {
            self.ssh(
                &row.host,
                sudo,
                &format!("systemctl enable --now {}", self.units.join(" ")),
                b"",
            )?;
        }
        // An installation restarts the agent itself.
        if found.old && !installs && self.step(row, "restarted", "restarting an older agent") {
            self.ssh(
                &row.host,
                sudo,
                "systemctl restart mezcal-agent.service",
                b"",
            )?;
        }
        Ok(())
    }

    fn look(&self, host: &str) -> Result<Found, String> {
        let units = self.units.join(" ");
        let users = self.all.user.join(" ");
        let script = format!(
            "set -eu; echo name=$(hostname -f 2>/dev/null || hostname); echo uid=$(id -u); s=; [ $(id -u) = 0 ] || s=\"sudo -n\"; \
             if [ -d /run/systemd/system ]; then echo systemd=yes; fi; echo archive=$(cat {INSTALLED} 2>/dev/null || :); \
             if [ -e {UNITS}/mezcal-agent.service ]; then echo agent=$(sha256sum {AGENT} 2>/dev/null | cut -d\" \" -f1); fi; \
             c=/etc/mezcal/agent.toml; if [ -s $c ]; then i=$($s sed -n \"s/^identity *= *\\\"\\(.*\\)\\\".*/\\1/p\" $c); \
             if $s test -s \"${{i:-/var/lib/mezcal-agent/pki}}/cert.pem\"; then echo joined=yes; fi; fi; \
             for u in {units}; do systemctl is-enabled -q $u 2>/dev/null && systemctl is-active -q $u || echo idle=$u; done; \
             p=$(systemctl show -P MainPID mezcal-agent.service 2>/dev/null || :); \
             case $($s readlink /proc/$p/exe 2>/dev/null || :) in *deleted*) echo old=yes;; esac; \
             for n in {users}; do id -u $n >/dev/null 2>&1 || echo nobody=$n; done; \
             for t in tar gzip sha256sum install; do command -v $t >/dev/null || echo missing=$t; done"
        );
        let said = self.ssh(host, "", &script, b"")?;
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in said.lines().filter_map(|line| line.split_once('=')) {
            values.entry(key).or_default().push(value);
        }
        let one = |key: &str| {
            values
                .get(key)
                .and_then(|all| all.first())
                .copied()
                .unwrap_or_default()
        };
        let name = mezcal_common::model::hosts::normalise(one("name"))
            .map_err(|e| format!("it calls itself {:?}: {e}", one("name")))?;
        if !plain(&name) {
            return Err(format!("it calls itself {name:?}"));
        }
        if one("systemd") != "yes" {
            return Err("it does not run systemd; copy the archive there and start `mezcal agent run` by other means".into());
        }
        if let Some(missing) = values.get("missing") {
            return Err(format!("it has no {}", missing.join(", no ")));
        }
        if let Some(nobody) = values.get("nobody") {
            let (accounts, them) = (
                nobody.join(", "),
                if nobody.len() == 1 { "it" } else { "them" },
            );
            return Err(format!(
                "it has no account {accounts}: make {them} there, or leave --user {them} out; nothing was done",
                them = them
            ));
        }
        Ok(Found {
            name,
            root: one("uid") == "0",
            archive: one("archive").to_owned(),
            agent: one("agent").to_owned(),
            joined: one("joined") == "yes",
            old: one("old") == "yes",
            idle: values
                .get("idle")
                .into_iter()
                .flatten()
                .map(|unit| (*unit).to_owned())
                .collect(),
        })
    }
}
