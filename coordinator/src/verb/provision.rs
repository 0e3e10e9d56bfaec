//! `coordinator provision`: hosts from nothing to connected, over plain ssh. Every step checks
//! first whether it is needed, so that the verb can be run again after any failure. Each step
//! prints a line on standard error when it begins; a host's own line goes to standard output when
//! the host is connected or has failed.

mod as_root;
mod at_home;
mod known;

use self::known::Members;
use crate::client::ask;
use crate::client::converse;
use crate::client::names::expand;
use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, FAILED};
use crate::report::format::{counted, show};
use mezcal_common::message::client::{Member, ToClient, ToService};
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::escape::{for_terminal, shell_word};
use mezcal_common::model::token::{hex, sha256};
use mezcal_common::wire::enrol;
use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lifetime of the tokens that the verb makes: they are used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// Time between two requests for the connected hosts.
const LOOK: Duration = Duration::from_millis(200);
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
    /// Install without root, into the home of the account that ssh logs in as (hosts may share it);
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
    /// Let hosts that were revoked or reinstalled join again; new certificates replace their old
    /// ones
    #[arg(long)]
    pub replace: bool,
    /// Hosts at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// How long to wait for the agents to connect
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

/// The steps that were done on a host, and why it failed, if it did.
struct Row {
    host: String,
    name: String,
    did: Vec<&'static str>,
    failed: Option<String>,
    seconds: f64,
}

struct Plan<'a> {
    all: &'a ProvisionArgs,
    archive: Vec<u8>,
    hash: String,
    /// Hash of the program in the archive.
    program: String,
    join: String,
    units: Vec<String>,
    members: Members,
}

/// Runs the verb.
///
/// # Errors
/// Exit 2 and 3 as everywhere; 1 if some host is not connected at the end.
pub fn run(args: &ProvisionArgs) -> Result<u8, Exit> {
    let names = expand(&args.hosts)?;
    let plan = Plan::new(args)?;
    let count = names.len();
    let waiting = Mutex::new(names.into_iter().collect::<VecDeque<String>>());
    let (done, rows) = std::sync::mpsc::channel();
    let mut failed = 0;
    let mut set_up = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..count.min(usize::from(args.jobs)) {
            let (done, plan, waiting) = (done.clone(), &plan, &waiting);
            scope.spawn(move || {
                // Not in the loop's head, where the lock would be held during the work on a host.
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
                "{failed} of {count} hosts are not ready; run it again when that is fixed"
            ),
        });
    }
    Ok(0)
}

/// The hash of the program within an archive.
fn program_in(archive: &Path) -> Result<String, Exit> {
    let cannot = |why: &str| {
        Exit::usage(format!(
            "{} is not an archive that systemd/pack.sh of this version made: {why}; make one from \
             the build of this coordinator",
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

/// Whether a text needs no quotes in a shell.
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

impl<'a> Plan<'a> {
    /// Reads and checks the archive and the arguments, and asks the coordinator for its hosts.
    fn new(args: &'a ProvisionArgs) -> Result<Self, Exit> {
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
        Ok(Self {
            all: args,
            hash: hex(&sha256(&archive)),
            archive,
            program,
            join,
            units,
            members,
        })
    }

    /// Prints the line of a host that is connected or has failed.
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

    /// Prints a step and records it under `did`. False in a dry run: the step is not to be done.
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
        let done = match self.all.home {
            true => self.steps_at_home(&mut row),
            false => self.steps_as_root(&mut row),
        };
        if let Err(why) = done {
            row.failed = Some(why);
        }
        row.seconds = begin.elapsed().as_secs_f64();
        row
    }

    /// Lets a host join that calls itself `name`, by its program `agent`.
    fn join(&self, row: &mut Row, name: &str, sudo: &str, agent: &str) -> Result<(), String> {
        let (known, token) = self.token(name)?;
        row.name = known;
        let slots = self
            .all
            .slots
            .map_or(String::new(), |n| format!(" --slots {n}"));
        let join = &self.join;
        let script = format!("{agent} join {join} --token-file - --name {name}{slots}");
        self.ssh(&row.host, sudo, &script, token.as_bytes())
            .map(drop)
    }

    /// Runs a script on a host with `input` as its standard input, and returns its output.
    fn ssh(&self, host: &str, sudo: &str, script: &str, input: &[u8]) -> Result<String, String> {
        let mut words = self.all.ssh.split_ascii_whitespace();
        let program = words.next().unwrap_or("ssh");
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", host]);
        // The script is read by sh, whichever login shell the account has.
        command.arg(format!("{sudo}sh -c {}", shell_word(script)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {program}: {e}"))?;
        let stdin = child.stdin.take();
        let out = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that ends early gives the reason on its standard error.
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

    /// A token for a host, and the host name that the token is for.
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
        let tokens = ask::once(&self.all.profile, request, pick).map_err(|e| e.message)??;
        tokens
            .into_iter()
            .next()
            .ok_or_else(|| "the coordinator made no token".into())
    }

    /// Waits until all of these hosts are connected, and prints each as it comes. Returns the
    /// number of those that are late.
    fn wait(&self, mut rows: Vec<Row>) -> Result<usize, Exit> {
        let begin = Instant::now();
        loop {
            let there = converse(&self.all.profile, ask::hosts)?;
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

    /// The fault that the agent's own doctor finds on a host that did not connect.
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
