//! `coordinator provision`: hosts from nothing to connected, over plain ssh. Every step looks first whether it is needed, so that it can be
//! run again after whatever went wrong.

use crate::client::converse;
use crate::exit::{Exit, FAILED};
use crate::format::show;
use crate::hosts;
use crate::manage::{ask, expand};
use crate::profile::ProfileArgs;
use mezcal_common::duration::parse_duration;
use mezcal_common::escape::for_terminal;
use mezcal_common::token::{hex, sha256};
use mezcal_common::wire::client::{Member, ToClient, ToService};
use mezcal_common::wire::enrol;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Life of the tokens that it makes: they are used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// Between two looks at which hosts are there.
const LOOK: Duration = Duration::from_millis(200);
/// What a host has installed, by the hash of its archive.
const INSTALLED: &str = "/usr/lib/mezcal/archive";

/// Install agents on hosts over ssh, let them join, start them, and wait until they are connected.
#[derive(Debug, clap::Args)]
pub struct ProvisionArgs {
    /// Hosts as ssh knows them, as names or ranges: mezcal[01-12]
    #[arg(value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// How to get there: ssh with your own configuration and agent, or another command
    #[arg(long, value_name = "COMMAND", num_args = 0..=1, default_value = "ssh", default_missing_value = "ssh")]
    pub ssh: String,
    /// What to install: the archive that systemd/pack.sh makes
    #[arg(long, value_name = "FILE")]
    pub archive: PathBuf,
    /// Whose jobs the hosts run: the users' engines are enabled. Their accounts have to be there
    #[arg(long, value_name = "NAME", conflicts_with = "home")]
    pub user: Vec<String>,
    /// Without root: into the home of the account that ssh logs in as, which many hosts may share; all jobs run as that account
    #[arg(long)]
    pub home: bool,
    /// Jobs at a time on each host, for hosts that join now (default: their CPUs)
    #[arg(long, value_name = "N")]
    pub slots: Option<u16>,
    /// The coordinator's host as the hosts know it, with the port for those who join unless it is 7434 (default: the profile's)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub coordinator: Option<String>,
    /// Hosts that were set up anew may take the place of their old certificates
    #[arg(long)]
    pub replace: bool,
    /// Hosts at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// How long to wait until they are connected
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Only look, and say what would be done
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
    /// Its full name.
    name: String,
    root: bool,
    installed: String,
    joined: bool,
    /// Units that are not enabled or do not run.
    idle: Vec<String>,
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
    join: String,
    units: Vec<String>,
}

/// Runs the verb.
///
/// # Errors
/// Exit 2 and 3 as everywhere; 1 if some host is not connected at the end.
pub fn run(args: &ProvisionArgs) -> Result<u8, Exit> {
    let names = expand(&args.hosts)?;
    let archive = std::fs::read(&args.archive).map_err(|e| Exit::usage(format!("cannot read {}: {e}", args.archive.display())))?;
    let (address, _) = args.profile.remote()?;
    let place = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    let join = args.coordinator.clone().unwrap_or_else(|| format!("{place}:{}", enrol::PORT));
    let mut units = vec!["mezcal-agent.service".to_owned()];
    units.extend(args.user.iter().map(|user| format!("mezcal-engines@{user}.service")));
    if let Some(odd) = [&join].into_iter().chain(&args.user).find(|text| !plain(text)) {
        return Err(Exit::usage(format!("{odd:?} has characters that no name has")));
    }
    let plan = Plan { args: &args.profile, all: args, hash: hex(&sha256(&archive)), archive, join, units };
    // A coordinator that is not there is noticed before anything is touched.
    converse(&args.profile, hosts::ask)?;

    let count = names.len();
    let waiting = Mutex::new(names.into_iter().collect::<VecDeque<String>>());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..count.min(usize::from(args.jobs)) {
            scope.spawn(|| {
                // Not in the loop's head, where the lock would be held while a host is seen to.
                let next = || lock(&waiting).pop_front();
                while let Some(host) = next() {
                    let row = plan.host(host);
                    if !args.json {
                        tell!("{}", line(&row, args.dry_run));
                    }
                    lock(&done).push(row);
                }
            });
        }
    });
    let mut rows = std::mem::take(&mut *lock(&done));
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    if !args.dry_run {
        plan.wait(&mut rows)?;
    }
    let mut text = String::new();
    for row in &rows {
        if args.json {
            let object = serde_json::json!({
                "host": row.host, "name": row.name, "did": row.did, "failed": row.failed, "seconds": (row.seconds * 1000.0).round() / 1000.0,
            });
            text.push_str(&object.to_string());
        } else {
            text.push_str(&line(row, args.dry_run));
        }
        text.push('\n');
    }
    let failed = rows.iter().filter(|row| row.failed.is_some()).count();
    show(&text)?;
    if failed > 0 {
        return Err(Exit {
            status: FAILED,
            message: format!("{failed} of {count} hosts are not ready; run it again when that is mended"),
        });
    }
    Ok(0)
}

/// Text that needs no quotes in a shell.
fn plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:@[]".contains(&b))
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
    fn host(&self, host: String) -> Row {
        let begin = Instant::now();
        let mut row = Row { host, name: String::new(), did: Vec::new(), failed: None, seconds: 0.0 };
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
        row.name.clone_from(&found.name);
        let dry = self.all.dry_run;
        let sudo = if found.root { "" } else { "sudo -n " };
        if found.installed != self.hash {
            row.did.push("installed");
            if !dry {
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
        }
        if !found.joined {
            row.did.push("joined");
            if !dry {
                let token = self.token(&found.name)?;
                let slots = self.all.slots.map_or(String::new(), |n| format!(" --slots {n}"));
                let script = format!("mezcal-agent join {} --token-file - --name {}{slots}", self.join, found.name);
                self.ssh(&row.host, sudo, &script, token.as_bytes())?;
            }
        }
        if !found.idle.is_empty() || !found.joined {
            row.did.push("started");
            if !dry {
                self.ssh(&row.host, sudo, &format!("systemctl enable --now {}", self.units.join(" ")), b"")?;
            }
        }
        Ok(())
    }

    /// The same for an account without root: programs in its home, once for all hosts that share it; keys, state and sockets by host.
    fn steps_at_home(&self, row: &mut Row) -> Result<(), String> {
        let (dir, join) = (format!("$HOME/.local/lib/mezcal/{}", &self.hash[..16]), &self.join);
        let look = format!(
            "set -eu; echo name=$(hostname -f 2>/dev/null || hostname); echo uid=$(id -u); a=\"{dir}/agent\"; \
             if [ -x \"$a\" ]; then echo installed=yes; \
             if \"$a\" join {join} --token-file /dev/null >/dev/null 2>&1; then echo joined=yes; eval \"$(\"$a\" paths)\"; \
             pid=$(cat \"$lock\" 2>/dev/null || :); \
             if [ -n \"$pid\" ] && [ \"$(readlink /proc/$pid/exe)\" = \"$(readlink -f \"$a\")\" ]; then echo running=yes; fi; fi; fi"
        );
        let said = self.ssh(&row.host, "", &look, b"")?;
        let has = |line: &str| said.lines().any(|l| l == line);
        let name = said.lines().find_map(|line| line.strip_prefix("name=")).unwrap_or_default();
        let name = mezcal_common::hosts::normalise(name).map_err(|e| format!("it calls itself {name:?}: {e}"))?;
        if !plain(&name) {
            return Err(format!("it calls itself {name:?}"));
        }
        if has("uid=0") {
            return Err("ssh logs in as root there; --home is for accounts without root".into());
        }
        row.name.clone_from(&name);
        let dry = self.all.dry_run;
        if !has("installed=yes") {
            row.did.push("installed");
            if !dry {
                // Others may do the same in the same home: whoever is last puts the same thing in place.
                let script = format!(
                    "set -eu; umask 077; mkdir -p $HOME/.local/lib/mezcal; d=$(mktemp -d $HOME/.local/lib/mezcal/new.XXXXXX); \
                     trap \"rm -rf $d\" EXIT; cat > $d/a.tar.gz; echo \"{hash}  $d/a.tar.gz\" | sha256sum -c --quiet; \
                     tar -xzf $d/a.tar.gz -C $d; mkdir -p \"{dir}\"; mv -f $d/mezcal-*/agent \"{dir}/agent\"",
                    hash = self.hash
                );
                self.ssh(&row.host, "", &script, &self.archive)?;
            }
        }
        if !has("joined=yes") {
            row.did.push("joined");
            if !dry {
                let token = self.token(&name)?;
                let slots = self.all.slots.map_or(String::new(), |n| format!(" --slots {n}"));
                let script = format!("\"{dir}/agent\" join {join} --token-file - --name {name}{slots}");
                self.ssh(&row.host, "", &script, token.as_bytes())?;
            }
        }
        if !has("running=yes") {
            row.did.push("started");
            if !dry {
                // An older one makes room; its keeper and its jobs stay, and the new one takes them up.
                let script = format!(
                    "set -eu; a=\"{dir}/agent\"; eval \"$(\"$a\" paths)\"; pid=$(cat \"$lock\" 2>/dev/null || :); \
                     if [ -n \"$pid\" ]; then case $(readlink /proc/$pid/exe 2>/dev/null || :) in *mezcal*/agent*) kill -KILL $pid;; esac; fi; \
                     setsid -f \"$a\" run --config \"$config\" >> \"$log\" 2>&1 < /dev/null"
                );
                self.ssh(&row.host, "", &script, b"")?;
            }
        }
        Ok(())
    }

    fn look(&self, host: &str) -> Result<Found, String> {
        let units = self.units.join(" ");
        let script = format!(
            "set -eu; echo name=$(hostname -f 2>/dev/null || hostname); echo uid=$(id -u); \
             if [ -d /run/systemd/system ]; then echo systemd=yes; fi; echo installed=$(cat {INSTALLED} 2>/dev/null || :); \
             if [ -s /etc/mezcal/agent.toml ]; then echo joined=yes; fi; \
             for u in {units}; do systemctl is-enabled -q $u 2>/dev/null && systemctl is-active -q $u || echo idle=$u; done; \
             for t in tar gzip sha256sum install; do command -v $t >/dev/null || echo missing=$t; done"
        );
        let said = self.ssh(host, "", &script, b"")?;
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in said.lines().filter_map(|line| line.split_once('=')) {
            values.entry(key).or_default().push(value);
        }
        let one = |key: &str| values.get(key).and_then(|all| all.first()).copied().unwrap_or_default();
        let name = mezcal_common::hosts::normalise(one("name")).map_err(|e| format!("it calls itself {:?}: {e}", one("name")))?;
        if !plain(&name) {
            return Err(format!("it calls itself {name:?}"));
        }
        if one("systemd") != "yes" {
            return Err("it does not run systemd; copy the archive there and start `agent run` by other means".into());
        }
        if let Some(missing) = values.get("missing") {
            return Err(format!("it has no {}", missing.join(", no ")));
        }
        Ok(Found {
            name,
            root: one("uid") == "0",
            installed: one("installed").to_owned(),
            joined: one("joined") == "yes",
            idle: values.get("idle").into_iter().flatten().map(|unit| (*unit).to_owned()).collect(),
        })
    }

    /// Runs a script on a host with this as its standard input, and gives back what it prints.
    fn ssh(&self, host: &str, sudo: &str, script: &str, input: &[u8]) -> Result<String, String> {
        let mut words = self.all.ssh.split_ascii_whitespace();
        let program = words.next().unwrap_or("ssh");
        let mut command = Command::new(program);
        command.args(words).args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", host]);
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
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Err(format!("{last} ({program}: {})", out.status));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn token(&self, name: &str) -> Result<String, String> {
        let names = vec![name.to_owned()];
        let (ttl, replace) = (TOKEN_LIFE, self.all.replace);
        let request = ToService::CreateTokens { request: 1, member: Member::Host, names, ttl, replace };
        let pick = |said| match said {
            ToClient::TokensCreated { tokens, .. } => Some(tokens),
            _ => None,
        };
        ask(self.args, request, pick)
            .map_err(|e| e.message)??
            .into_iter()
            .next()
            .map(|(_, token)| token)
            .ok_or_else(|| "the coordinator made no token".into())
    }

    /// Waits until the coordinator has all that have not failed.
    fn wait(&self, rows: &mut [Row]) -> Result<(), Exit> {
        let deadline = Instant::now() + self.all.timeout;
        loop {
            let there = converse(self.args, hosts::ask)?;
            let ready: HashSet<Arc<str>> = there.iter().filter(|h| h.ready).map(|h| h.name.as_str().into()).collect();
            let missing = rows.iter_mut().filter(|row| row.failed.is_none() && !ready.contains(row.name.as_str()));
            if Instant::now() >= deadline {
                missing.for_each(|row| {
                    row.failed = Some(format!(
                        "it has not connected as {}; `journalctl -u mezcal-agent` there says why (does UDP get through?)",
                        row.name
                    ));
                });
                return Ok(());
            }
            if missing.count() == 0 {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }
}
