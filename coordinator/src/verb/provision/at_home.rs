//! Provisioning an account without root: programs in its home, once for all hosts that share it;
//! keys, state and sockets by host.

use super::{Plan, Row, plain};
use mezcal_common::model::escape::for_terminal;

impl Plan<'_> {
    /// The steps of such an account.
    pub(super) fn steps_at_home(&self, row: &mut Row) -> Result<(), String> {
        let (dir, join) = (
            format!("$HOME/.local/lib/mezcal/{}", &self.hash[..16]),
            &self.join,
        );
        let said = self.ssh(&row.host, "", &look(&dir, join), b"")?;
        let has = |line: &str| said.lines().any(|l| l == line);
        let name = said
            .lines()
            .find_map(|line| line.strip_prefix("name="))
            .unwrap_or_default();
        let name = mezcal_common::model::hosts::normalise(name)
            .map_err(|e| format!("it calls itself {name:?}: {e}"))?;
        if !plain(&name) {
            return Err(format!("it calls itself {name:?}"));
        }
        if has("uid=0") {
            return Err("ssh logs in as root there; --home is for accounts without root".into());
        }
        row.name = self.members.name_of(&name);
        // A host without the program cannot tell; the coordinator can.
        let joined = has("joined=yes")
            || !has("installed=yes") && self.members.connected.contains(&row.name);
        let joins = self.members.joins(&row.name, joined, self.all.replace)?;
        if !has("installed=yes") && self.step(row, "installed", "installing") {
            // Several runs may install into the same home: the last one puts the same file in
            // place.
            let script = format!(
                "set -eu; umask 077; mkdir -p $HOME/.local/lib/mezcal; d=$(mktemp -d $HOME/.local/lib/mezcal/new.XXXXXX); \
                 trap \"rm -rf $d\" EXIT; cat > $d/a.tar.gz; echo \"{hash}  $d/a.tar.gz\" | sha256sum -c --quiet; \
                 tar -xzf $d/a.tar.gz -C $d; mkdir -p \"{dir}\"; mv -f $d/mezcal-*/mezcal \"{dir}/mezcal\"; \
                 ln -s mezcal $d/link; mv -f $d/link \"{dir}/mezcal-agent\"",
                hash = self.hash
            );
            self.ssh(&row.host, "", &script, &self.archive)?;
        }
        if let Some(did) = joins
            && self.step(row, did, "joining")
        {
            self.join(row, &name, "", &format!("\"{dir}/mezcal-agent\""))?;
        }
        if !has("running=yes") && self.step(row, "started", "starting") {
            self.ssh(&row.host, "", &start(&dir), b"")?;
        }
        if !has("boots=yes") && !self.all.dry_run {
            // A host that refuses this still runs the agent.
            let said = self.ssh(
                &row.host,
                "",
                &format!("\"{dir}/mezcal-agent\" at-boot 2>&1 || :"),
                b"",
            )?;
            tell!("{:20} {}", row.host, for_terminal(said.trim()));
        }
        Ok(())
    }
}

/// Script that prints a line for each thing that the account has already.
fn look(dir: &str, join: &str) -> String {
    format!(
        "set -eu; echo name=$(hostname -f 2>/dev/null || hostname); echo uid=$(id -u); a=\"{dir}/mezcal-agent\"; \
         if [ -x \"$a\" ]; then echo installed=yes; \
         if \"$a\" at-boot --check >/dev/null 2>&1; then echo boots=yes; fi; \
         if \"$a\" join {join} --token-file /dev/null >/dev/null 2>&1; then echo joined=yes; eval \"$(\"$a\" paths)\"; \
         pid=$(cat \"$lock\" 2>/dev/null || :); \
         if [ -n \"$pid\" ] && [ \"$(readlink /proc/$pid/exe)\" = \"$(readlink -f \"$a\")\" ]; then echo running=yes; fi; fi; fi"
    )
}

/// Script that starts the agent. It ends an older agent first; the older agent's keeper and jobs
/// stay, and the new agent takes them over. The old agent has ended before the new one asks for its
/// lock, and the new agent has the lock before it counts as started.
fn start(dir: &str) -> String {
    format!(
        "set -eu; a=\"{dir}/mezcal-agent\"; eval \"$(\"$a\" paths)\"; \
         agent() {{ case $(readlink \"/proc/$1/exe\" 2>/dev/null || :) in *mezcal*/agent*|*mezcal*/mezcal*) ;; *) return 1;; esac; }}; \
         within() {{ n=0; until \"$@\"; do [ $n -lt 100 ] || return 1; n=$((n + 1)); sleep 0.1; done; }}; \
         gone() {{ ! agent \"$pid\"; }}; holds() {{ now=$(cat \"$lock\" 2>/dev/null || :); [ -n \"$now\" ] && [ \"$now\" != \"$pid\" ] && agent \"$now\"; }}; \
         pid=$(cat \"$lock\" 2>/dev/null || :); \
         if [ -n \"$pid\" ] && agent \"$pid\"; then kill -KILL \"$pid\"; within gone || {{ echo \"the old agent, process $pid, does not end\" >&2; exit 1; }}; fi; \
         setsid -f \"$a\" run --config \"$config\" >> \"$log\" 2>&1 < /dev/null; \
         within holds || {{ echo \"the agent does not start; the end of $log:\" >&2; tail -n 3 \"$log\" >&2; exit 1; }}"
    )
}
