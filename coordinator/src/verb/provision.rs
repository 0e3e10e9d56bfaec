//! `coordinator provision`: hosts from nothing to connected, over plain ssh. Every step looks first
//! whether it is needed, so that it can be run again after whatever went wrong. What is under way
//! goes to standard error, a line for each step; a host's own line goes to standard output when it
//! is connected, or will not be.

use crate::client::ask;
use crate::client::converse;
use crate::client::names::expand;
use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, FAILED};
use crate::report::format::{counted, show};
use crate::report::table::time;
use mezcal_common::message::client::{Member, ToClient, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::token::{hex, sha256};
use mezcal_common::wire::enrol;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Life of the tokens that it makes: they are used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// Between two looks at which hosts are there.
const LOOK: Duration = Duration::from_millis(200);
/// From which archive the host's files came, by its hash. It may have got others since: the program
/// itself is looked at, too.
const INSTALLED: &str = "/usr/lib/mezcal/archive";
/// The program that it installs: a link to the file that is all programs, or a file of its own from
/// before there was that one.
const AGENT: &str = "/usr/bin/mezcal-agent";
/// Where packages and archives put their units.
const UNITS: &str = "/usr/lib/systemd/system";

/// Install agents on hosts over ssh, let them join, start them, and wait until they are connected.
#[derive(Debug, clap::Args)]
pub struct ProvisionArgs {
    /// Hosts as ssh knows them, as names or ranges: mezcal[01-12]
    #[arg(value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// The command that reaches the hosts: ssh with your configuration and agent, or another one
    #[arg(long, value_name = "COMMAND", num_args = 0..=1, default_value = "ssh", default_missing_value = "ssh")]
    pub ssh: String,
    /// The archive to install, as systemd/pack.sh makes it
    #[arg(long, value_name = "FILE")]
    pub archive: PathBuf,
    /// Users whose jobs the hosts run: their engines are enabled. They need accounts on the hosts
    #[arg(long, value_name = "NAME", conflicts_with = "home")]
    pub user: Vec<String>,
    /// Without root: into the home of the account that ssh logs in as, which many hosts may share;
    /// all jobs run as that account
    #[arg(long)]
    pub home: bool,
    /// Jobs at a time on each host, for hosts that join now (default: their CPUs)
    #[arg(long, value_name = "N")]
    pub slots: Option<u16>,
    /// The coordinator's host as the hosts know it, and its port for joining if that is not 7434
    /// (default: the profile's)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub coordinator: Option<String>,
    /// Hosts that were revoked or set up anew join again, in the place of their old certificates
    #[arg(long)]
    pub replace: bool,
    /// Hosts at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// How long to wait until they are connected
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Only check, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object per host
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// What a host says of itself.
struct Found {
    /// What it calls itself.
    name: String,
    root: bool,
    /// Hashes of the archive that was installed last, and of the program that is there.
    archive: String,
    agent: String,
    joined: bool,
    /// Units that are not enabled or do not run.
    idle: Vec<String>,
    /// An older program than the one that is there runs.
    old: bool,
}

/// What became of a host.
struct Row {
    host: String,
    name: String,
    did: Vec<&'static str>,
    failed: Option<String>,
    seconds: f64,
}

struct Plan<'a> {
    args: &'a ProfileArgs,
    all: &'a ProvisionArgs,
    archive: Vec<u8>,
    hash: String,
    /// Of the program in the archive.
    program: String,
    join: String,
    units: Vec<String>,
    members: Members,
}

/// What the coordinator knows of hosts before anything is done.
#[derive(Default)]
struct Members {
    connected: BTreeSet<String>,
    /// With a certificate that counts.
    counted: BTreeSet<String>,
    /// Whose certificates were all revoked, and when.
    revoked: BTreeMap<String, WallTime>,
}

impl Members {
    fn ask(profile: &ProfileArgs) -> Result<Self, Exit> {
        // A coordinator that is not there is noticed before anything is touched.
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
        // One that is asked by somebody who is no admin says no more when a token is needed.
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
                // What is over can be renewed by its host.
                None => drop(me.counted.insert(row.name)),
            }
        }
        me.revoked.retain(|name, _| !me.counted.contains(name));
        Ok(me)
    }

    /// The name under which the coordinator knows a host that calls itself so.
    fn name_of(&self, own: &str) -> String {
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

    /// Whether a host has to join, and with which words.
    fn joins(
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
                "{name} has joined before it was set up anew; with --replace it joins again, and its old certificate counts no more"
            )),
            (false, None) => Ok(Some(if counts { "joined again" } else { "joined" })),
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// Exit 2 and 3 as everywhere; 1 if some host is not connected at the end.
pub fn run(args: &ProvisionArgs) -> Result<u8, Exit> {
    let names = expand(&args.hosts)?;
    let archive = std::fs::read(&args.archive)
        .map_err(|e| Exit::usage(format!("cannot read {}: {e}", args.archive.display())))?;
    let (address, _) = args.profile.remote()?;
    let place = address
        .rsplit_once(':')
        .map_or(address.as_str(), |(host, _)| host);
    let join = args
        .coordinator
        .clone()
        .unwrap_or_else(|| format!("{place}:{}", enrol::PORT));
    let mut units = vec!["mezcal-agent.service".to_owned()];
    units.extend(
        args.user
            .iter()
            .map(|user| format!("mezcal-engines@{user}.service")),
    );
    if let Some(odd) = [&join]
        .into_iter()
        .chain(&args.user)
        .find(|text| !plain(text))
    {
        return Err(Exit::usage(format!(
            "{odd:?} has a character that names cannot have"
        )));
    }
    let (program, members) = (program_in(&args.archive)?, Members::ask(&args.profile)?);
    let plan = Plan {
        args: &args.profile,
        all: args,
        hash: hex(&sha256(&archive)),
        archive,
        program,
        join,
        units,
        members,
    };

    let count = names.len();
    let waiting = Mutex::new(names.into_iter().collect::<VecDeque<String>>());
    let (done, rows) = std::sync::mpsc::channel();
    let mut failed = 0;
    let mut set_up = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..count.min(usize::from(args.jobs)) {
            let (done, plan, waiting) = (done.clone(), &plan, &waiting);
            scope.spawn(move || {
                // Not in the loop's head, where the lock would be held while a host is seen to.
                let next = || lock(waiting).pop_front();
                while let Some(host) = next() {
                    let _ = done.send(plan.host(host));
                }
            });
        }
        drop(done);
        for row in rows {
            if row.failed.is_some() || args.dry_run {
                failed += usize::from(row.failed.is_some());
                plan.print(&row)?;
            } else {
                set_up.push(row);
            }
        }
        Ok::<_, Exit>(())
    })?;
    if !set_up.is_empty() {
        tell!(
            "{} of {count} hosts are set up; waiting until they are connected",
            set_up.len()
        );
        failed += plan.wait(set_up)?;
    }
    if failed > 0 {
        return Err(Exit {
            status: FAILED,
            message: format!(
                "{failed} of {count} hosts are not ready; run it again when that is mended"
            ),
        });
    }
    Ok(0)
}

/// The hash of the program within an archive.
fn program_in(archive: &Path) -> Result<String, Exit> {
    let cannot = |why: &str| {
        Exit::usage(format!(
            "{} is no archive of systemd/pack.sh of this version: {why}; make one from the build that this coordinator is of",
            archive.display()
        ))
    };
    let out = Command::new("tar")
        .arg("-xzOf")
        .arg(archive)
        .args([
            "--wildcards",
            "--no-wildcards-match-slash",
            "mezcal-*/mezcal",
        ])
        .stdin(Stdio::null())
        .output();
    let out = out.map_err(|e| cannot(&format!("cannot start tar: {e}")))?;
    match out.status.success() && !out.stdout.is_empty() {
        true => Ok(hex(&sha256(&out.stdout))),
        false => Err(cannot(
            String::from_utf8_lossy(&out.stderr)
                .lines()
                .next()
                .unwrap_or("there is no program `mezcal` in it"),
        )),
    }
}

/// Text that needs no quotes in a shell.
fn plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-:@[]".contains(&b))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(row: &Row, dry: bool) -> String {
    let did = match (&row.failed, row.did.as_slice(), dry) {
        (Some(why), ..) => format!("FAILED: {}", for_terminal(why)),
        (None, [], _) => "nothing to do".into(),
        (None, did, false) => did.join(", "),
        (None, did, true) => format!("to do: {}", did.join(", ")),
    };
    format!("{:20} {:6.1} s  {did}", row.host, row.seconds)
}

impl Plan<'_> {
    /// A host has come to its end, well or not.
    fn print(&self, row: &Row) -> Result<(), Exit> {
        let text = match self.all.json {
            true => {
                let seconds = (row.seconds * 1000.0).round() / 1000.0;
                serde_json::json!({"host": row.host, "name": row.name, "did": row.did, "failed": row.failed, "seconds": seconds})
                    .to_string()
            }
            false => line(row, self.all.dry_run),
        };
        show(&format!("{text}\n"))
    }

    /// Says what is under way, and remembers what that will have been. True if it is to be done.
    fn step(&self, row: &mut Row, did: &'static str, now: &str) -> bool {
        row.did.push(did);
        if !self.all.dry_run {
            tell!("{:20} {now}", row.host);
        }
        !self.all.dry_run
    }

    fn host(&self, host: String) -> Row {
        let begin = Instant::now();
        let mut row = Row {
            host,
            name: String::new(),
            did: Vec::new(),
            failed: None,
            seconds: 0.0,
        };
        if let Err(why) = self.steps(&mut row) {
            row.failed = Some(why);
        }
        row.seconds = begin.elapsed().as_secs_f64();
        row
    }

    fn steps(&self, row: &mut Row) -> Result<(), String> {
        if self.all.home {
            return self.steps_at_home(row);
        }
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
            // What arrives is what was sent, or nothing is run of it.
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
            let (name, token) = self.token(&found.name)?;
            row.name = name;
            let slots = self
                .all
                .slots
                .map_or(String::new(), |n| format!(" --slots {n}"));
            let script = format!(
                "mezcal-agent join {} --token-file - --name {}{slots}",
                self.join, found.name
            );
            self.ssh(&row.host, sudo, &script, token.as_bytes())?;
        }
        if (!found.idle.is_empty() || !found.joined) && self.step(row, "started", "starting") {
            self.ssh(
                &row.host,
                sudo,
                &format!("systemctl enable --now {}", self.units.join(" ")),
                b"",
            )?;
        }
        // Whoever installs restarts what runs.
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

    /// The same for an account without root: programs in its home, once for all hosts that share
    /// it; keys, state and sockets by host.
    fn steps_at_home(&self, row: &mut Row) -> Result<(), String> {
        let (dir, join) = (
            format!("$HOME/.local/lib/mezcal/{}", &self.hash[..16]),
            &self.join,
        );
        let look = format!(
            "set -eu; echo name=$(hostname -f 2>/dev/null || hostname); echo uid=$(id -u); a=\"{dir}/mezcal-agent\"; \
             if [ -x \"$a\" ]; then echo installed=yes; \
             if \"$a\" at-boot --check >/dev/null 2>&1; then echo boots=yes; fi; \
             if \"$a\" join {join} --token-file /dev/null >/dev/null 2>&1; then echo joined=yes; eval \"$(\"$a\" paths)\"; \
             pid=$(cat \"$lock\" 2>/dev/null || :); \
             if [ -n \"$pid\" ] && [ \"$(readlink /proc/$pid/exe)\" = \"$(readlink -f \"$a\")\" ]; then echo running=yes; fi; fi; fi"
        );
        let said = self.ssh(&row.host, "", &look, b"")?;
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
        // Of a program that is not there yet nothing is known but what the coordinator knows.
        let joined = has("joined=yes")
            || !has("installed=yes") && self.members.connected.contains(&row.name);
        let joins = self.members.joins(&row.name, joined, self.all.replace)?;
        if !has("installed=yes") && self.step(row, "installed", "installing") {
            // Others may do the same in the same home: whoever is last puts the same thing in
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
            let (known, token) = self.token(&name)?;
            row.name = known;
            let slots = self
                .all
                .slots
                .map_or(String::new(), |n| format!(" --slots {n}"));
            let script =
                format!("\"{dir}/mezcal-agent\" join {join} --token-file - --name {name}{slots}");
            self.ssh(&row.host, "", &script, token.as_bytes())?;
        }
        if !has("running=yes") && self.step(row, "started", "starting") {
            // An older one makes room; its keeper and its jobs stay, and the new one takes them up.
            // It has ended before the new one asks for its lock, and that one has the lock before
            // it counts as started.
            let script = format!(
                "set -eu; a=\"{dir}/mezcal-agent\"; eval \"$(\"$a\" paths)\"; \
                 agent() {{ case $(readlink \"/proc/$1/exe\" 2>/dev/null || :) in *mezcal*/agent*|*mezcal*/mezcal*) ;; *) return 1;; esac; }}; \
                 within() {{ n=0; until \"$@\"; do [ $n -lt 100 ] || return 1; n=$((n + 1)); sleep 0.1; done; }}; \
                 gone() {{ ! agent \"$pid\"; }}; holds() {{ now=$(cat \"$lock\" 2>/dev/null || :); [ -n \"$now\" ] && [ \"$now\" != \"$pid\" ] && agent \"$now\"; }}; \
                 pid=$(cat \"$lock\" 2>/dev/null || :); \
                 if [ -n \"$pid\" ] && agent \"$pid\"; then kill -KILL \"$pid\"; within gone || {{ echo \"the old agent, process $pid, does not end\" >&2; exit 1; }}; fi; \
                 setsid -f \"$a\" run --config \"$config\" >> \"$log\" 2>&1 < /dev/null; \
                 within holds || {{ echo \"the agent does not start; the end of $log:\" >&2; tail -n 3 \"$log\" >&2; exit 1; }}"
            );
            self.ssh(&row.host, "", &script, b"")?;
        }
        if !has("boots=yes") && !self.all.dry_run {
            // Where that cannot be had it runs all the same.
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

    /// Runs a script on a host with this as its standard input, and gives back what it prints.
    fn ssh(&self, host: &str, sudo: &str, script: &str, input: &[u8]) -> Result<String, String> {
        let mut words = self.all.ssh.split_ascii_whitespace();
        let program = words.next().unwrap_or("ssh");
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", host]);
        // Whatever the login shell is, this is read by sh.
        command.arg(format!("{sudo}sh -c '{}'", script.replace('\'', "'\\''")));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {program}: {e}"))?;
        let stdin = child.stdin.take();
        let out = std::thread::scope(|scope| {
            scope.spawn(move || {
                // One that ends early says why on its standard error.
                let _ = stdin.map(|mut stdin| stdin.write_all(input));
            });
            child.wait_with_output()
        });
        let out = out.map_err(|e| e.to_string())?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            let last = said
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("it said nothing");
            return Err(format!("{last} ({program}: {})", out.status));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// A token for a host, and the name that it is for.
    fn token(&self, name: &str) -> Result<(String, String), String> {
        let names = vec![name.to_owned()];
        let (ttl, replace) = (TOKEN_LIFE, self.all.replace);
        let request = ToService::CreateTokens {
            request: 1,
            member: Member::Host,
            names,
            ttl,
            replace,
        };
        let pick = |said| match said {
            ToClient::TokensCreated { tokens, .. } => Some(tokens),
            _ => None,
        };
        let tokens = ask::once(self.args, request, pick).map_err(|e| e.message)??;
        tokens
            .into_iter()
            .next()
            .ok_or_else(|| "the coordinator made no token".into())
    }

    /// Waits until the coordinator has all of these, and prints each when it is there. Those that
    /// are not in time are counted.
    fn wait(&self, mut rows: Vec<Row>) -> Result<usize, Exit> {
        let begin = Instant::now();
        loop {
            let there = converse(self.args, ask::hosts)?;
            let ready: HashSet<&str> = there
                .iter()
                .filter(|h| h.ready)
                .map(|h| h.name.as_str())
                .collect();
            for mut row in rows.extract_if(.., |row| ready.contains(row.name.as_str())) {
                row.seconds += begin.elapsed().as_secs_f64();
                self.print(&row)?;
            }
            if rows.is_empty() {
                return Ok(0);
            }
            if begin.elapsed() >= self.all.timeout {
                break;
            }
            std::thread::sleep(LOOK);
        }
        tell!(
            "asking {} why they are not connected",
            counted(rows.len() as u64, "host", "hosts")
        );
        let next = Mutex::new(rows.iter_mut());
        std::thread::scope(|scope| {
            for _ in 0..self.all.jobs {
                scope.spawn(|| {
                    let next = || lock(&next).next();
                    while let Some(row) = next() {
                        row.failed = Some(self.why_absent(row));
                    }
                });
            }
        });
        rows.iter().try_for_each(|row| self.print(row))?;
        Ok(rows.len())
    }

    /// What the agent's own doctor says of a host that has not come.
    fn why_absent(&self, row: &Row) -> String {
        let doctor = match self.all.home {
            true => format!(
                "\"$HOME/.local/lib/mezcal/{}/mezcal-agent\" doctor --json || :",
                &self.hash[..16]
            ),
            false => "s=; [ $(id -u) = 0 ] || s=\"sudo -n\"; $s mezcal-agent doctor --json || :"
                .to_owned(),
        };
        let said = self.ssh(&row.host, "", &doctor, b"").unwrap_or_default();
        let text = |finding: &serde_json::Value, key: &str| {
            finding[key].as_str().unwrap_or_default().to_owned()
        };
        let wrong: Vec<String> = said
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|finding| finding["state"] == "fail")
            .map(|f| {
                format!(
                    "{}: {} -> {}",
                    text(&f, "check"),
                    text(&f, "seen"),
                    text(&f, "fix")
                )
            })
            .collect();
        match wrong.is_empty() {
            true => format!(
                "it has not connected as {}; `journalctl -u mezcal-agent` there says why",
                row.name
            ),
            false => format!("it has not connected as {}; {}", row.name, wrong.join("; ")),
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
