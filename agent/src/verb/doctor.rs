//! `agent doctor`: whether this host can do its part, and if not, how to mend that. It only looks.

use crate::config::{AgentConfig, RunAs};
use crate::supervisor::greeting::{Greeting, greet};
use crate::supervisor::users::SOCKET;
use crate::verb::join::ACCOUNT;
use mezcal_common::doctor::{self, Finding};
use mezcal_common::model::escape::chain;
use mezcal_common::model::identity::Role;
use mezcal_common::system::account;
use mezcal_common::wire::tls::Credentials;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Room for the temporary files of jobs, in bytes.
const SPACE: u64 = 64 << 20;

/// Check whether this host can run jobs, and say what to do about each fault.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The configuration file (default: /etc/mezcal/agent.toml, or the one that `agent join` made
    /// without root)
    #[arg(long, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object per finding
    #[arg(long)]
    pub json: bool,
}

/// Looks at everything. True if nothing is wrong.
///
/// # Errors
/// The findings cannot be written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<bool> {
    let findings = match args
        .config
        .clone()
        .map_or_else(crate::config::default_path, Ok)
    {
        Ok(path) => look(&path),
        Err(e) => vec![Finding::wrong(
            "configuration",
            chain(&e),
            "remove it; mezcal-agent join makes another one",
        )],
    };
    let text = match args.json {
        false => doctor::table(&findings),
        true => findings
            .iter()
            .map(|f| serde_json::json!(f).to_string() + "\n")
            .collect(),
    };
    mezcal_common::system::output::show(&text)?;
    Ok(doctor::is_well(&findings))
}

fn look(path: &Path) -> Vec<Finding> {
    let mut all = Vec::new();
    // Root may look at the files that the agent, which is not root, will read.
    let config = match mezcal_common::system::config::read_toml::<AgentConfig>(path) {
        Ok(config) => config,
        Err(e) => {
            all.push(doctor::configuration(&e, "mezcal-agent join makes one"));
            all.extend(host());
            return all;
        }
    };
    all.push(match config.check(path) {
        Ok(()) => Finding::fine("configuration", path.display().to_string()),
        Err(e) => Finding::wrong(
            "configuration",
            mezcal_common::model::escape::chain(&e),
            "the agent does not start with this: change it",
        ),
    });
    all.extend(unreadable(path, &config));
    match Credentials::load(&config.identity, Role::Agent) {
        Ok(credentials) => {
            let fix = "the running agent renews it: `journalctl -u mezcal-agent` says why it does not";
            all.push(doctor::certificate_end("certificate", credentials.certificate(), true, fix));
            all.extend(owner(&config));
            all.push(coordinator(&config, &credentials));
        }
        Err(e) => all.push(doctor::credentials(
            "certificate",
            &e,
            "mezcal-agent join gets one with a token (of `coordinator token create --replace`, if this host had one before)",
        )),
    }
    // Renewed certificates go to this directory.
    all.push(doctor::space("state", &config.identity, SPACE));
    all.extend(engines(&config));
    all.extend(host());
    all.push(versions());
    all
}

fn host() -> [Finding; 4] {
    [
        doctor::udp_buffers(),
        doctor::clock(),
        doctor::space("space", &std::env::temp_dir(), SPACE),
        containment(),
    ]
}

/// The files that the accounts that need them cannot read.
fn unreadable(path: &Path, config: &AgentConfig) -> Vec<Finding> {
    let agent = account::named(ACCOUNT).filter(|_| config.run_as == RunAs::User);
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|name| config.identity.join(name));
    let of_agent = agent.and_then(|_| {
        doctor::unreadable(
            "configuration",
            ACCOUNT,
            &[&[path.to_owned()], &files[..]].concat(),
        )
    });
    let engines = [PathBuf::from(crate::verb::engines::DEFAULT_PATH)];
    let of_users = users(config)
        .into_iter()
        .filter_map(|user| doctor::unreadable("configuration", &user, &engines));
    of_agent.into_iter().chain(of_users).collect()
}

/// The account that owns the key.
fn owner(config: &AgentConfig) -> Option<Finding> {
    let agent = account::named(ACCOUNT).filter(|_| config.run_as == RunAs::User)?;
    let key = config.identity.join("key.pem");
    let uid = std::fs::metadata(&key).ok()?.uid();
    Some(match uid == agent.uid {
        true => Finding::fine("key", format!("{} belongs to mezcal-agent", key.display())),
        false => Finding::wrong(
            "key",
            format!(
                "{} belongs to uid {uid}, and the agent runs as mezcal-agent",
                key.display()
            ),
            format!("chown -R mezcal-agent: {}", config.identity.display()),
        ),
    })
}

/// Whether the coordinator answers and takes our certificate, and the state of the way there.
fn coordinator(config: &AgentConfig, credentials: &Credentials) -> Finding {
    let what = "coordinator";
    match greet(&config.coordinator, credentials) {
        Ok(path) => {
            let took = path.round_trip.as_secs_f64() * 1000.0;
            let (address, datagram) = (&config.coordinator, path.datagram);
            Finding::fine(
                what,
                format!(
                    "{address} answers within {took:.1} ms; datagrams of {datagram} bytes get through"
                ),
            )
        }
        Err(Greeting::Refused(why) | Greeting::Other(why)) if doctor::speaks_of_time(&why) => {
            Finding::wrong(
                what,
                why,
                "compare the clocks first: `date -u` here and there; `timedatectl set-ntp true` \
                 where it is off. If both are right, the certificate has expired",
            )
        }
        Err(Greeting::Refused(why)) => Finding::wrong(
            what,
            why,
            "`coordinator certs list` shows which certificates are valid; mezcal-agent join with a \
             token of `coordinator token create --replace` gets one",
        ),
        Err(Greeting::Other(why)) => Finding::wrong(
            what,
            why,
            format!(
                "is {} the coordinator of this host's cluster ({}), and is its version close to \
                 this one's, {}?",
                config.coordinator,
                credentials.identity().cluster,
                mezcal_common::VERSION
            ),
        ),
        Err(Greeting::Lost(why)) => Finding::wrong(
            what,
            why,
            "is `coordinator serve` running there, and do the firewalls let UDP through, both ways?",
        ),
    }
}

fn users(config: &AgentConfig) -> Vec<String> {
    let names = std::fs::read_dir(&config.engines)
        .into_iter()
        .flatten()
        .flatten();
    let mut users: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    users.sort();
    users
}

/// The users whose jobs run here.
fn engines(config: &AgentConfig) -> Vec<Finding> {
    if config.run_as == RunAs::Agent {
        return vec![Finding::fine(
            "engines",
            "all jobs run as the agent's own account",
        )];
    }
    let users = users(config);
    let agents = account::named(ACCOUNT).map(|a| a.gid);
    let bound = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut all: Vec<Finding> = users
        .iter()
        .map(|user| engines_of(&config.engines.join(user), user, agents, &bound))
        .collect();
    if all.is_empty() {
        let fix = "systemctl enable --now mezcal-engines@USER.service, for each user whose jobs should run here";
        all.push(Finding::wrong(
            "engines",
            "this host runs nobody's jobs",
            fix,
        ));
    }
    all
}

fn engines_of(dir: &Path, user: &str, agents: Option<u32>, bound: &str) -> Finding {
    let what = "engines";
    let again = format!("systemctl restart mezcal-engines@{user}.service");
    let Some(account) = account::named(user) else {
        return Finding::wrong(
            what,
            format!("{} belongs to no user", dir.display()),
            format!("rm -r {}", dir.display()),
        );
    };
    match std::fs::metadata(dir) {
        Err(e) => Finding::wrong(what, format!("{}: {e}", dir.display()), again),
        Ok(meta)
            if meta.uid() != account.uid
                || Some(meta.gid()) != agents
                || meta.mode() & 0o007 != 0 =>
        {
            let seen = format!(
                "{} is open to others, or closed to the agent (mode {:o})",
                dir.display(),
                meta.mode() & 0o7777
            );
            Finding::wrong(what, seen, again)
        }
        Ok(_) if !bound.contains(&dir.join(SOCKET).display().to_string()) => Finding::wrong(
            what,
            format!("{user}'s do not run"),
            format!("{again}; `journalctl -u mezcal-engines@{user}` says why"),
        ),
        Ok(_) => Finding::fine(what, format!("{user}'s run")),
    }
}

fn containment() -> Finding {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mounts = read(Path::new("/proc/self/mounts"));
    let point = mounts
        .lines()
        .filter_map(|line| {
            line.split(' ')
                .nth(1)
                .filter(|_| line.contains(" cgroup2 "))
        })
        .next()
        .map(Path::new);
    let controllers = |group: &Path| {
        group
            .join("cgroup.controllers")
            .exists()
            .then(|| read(&group.join("cgroup.controllers")))
    };
    contained(
        point.and_then(controllers).as_deref(),
        // The controllers of the engines, if there are any.
        point
            .and_then(|point| controllers(&point.join("mezcal.slice/mezcal-jobs.slice")))
            .as_deref(),
        &read(Path::new("/proc/cgroups")),
    )
}

/// The finding from the controllers of the root and of the engines' slice, and from /proc/cgroups
/// as cgroups(7) describes it.
fn contained(root: Option<&str>, slice: Option<&str>, kernel: &str) -> Finding {
    let what = "containment";
    let has_memory =
        |controllers: &str| controllers.split_ascii_whitespace().any(|c| c == "memory");
    let memory = kernel
        .lines()
        .find_map(|line| line.strip_prefix("memory"))
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let (hierarchy, enabled) = match memory.as_deref() {
        Some([hierarchy, _, enabled]) => (*hierarchy, *enabled == "1"),
        _ => ("0", !kernel.is_empty()),
    };
    let unified = "boot with systemd.unified_cgroup_hierarchy=1";
    let without =
        "cgroup2 without the memory controller: results have no peaks of whole jobs, and no `oom`";
    match (root, slice) {
        (None, _) => Finding::doubtful(
            what,
            "subreaper: no control groups of version 2",
            format!("{unified}; until then jobs are held by their process tree alone"),
        ),
        (Some(root), slice) if has_memory(root) => match slice.is_none_or(has_memory) {
            true => Finding::fine(what, "cgroup2, with the memory controller"),
            false => Finding::doubtful(
                what,
                format!("{without}: it is not handed down to mezcal-jobs.slice"),
                "`systemctl show -p MemoryAccounting mezcal-jobs.slice` should say yes: `systemctl edit mezcal-jobs.slice`, or DefaultMemoryAccounting= in system.conf",
            ),
        },
        (Some(_), _) if hierarchy != "0" => Finding::doubtful(
            what,
            format!("{without}: control groups of version 1 have it"),
            unified,
        ),
        (Some(_), _) if !enabled => {
            let fix = "boot with cgroup_enable=memory, and without cgroup_disable=memory";
            Finding::doubtful(
                what,
                format!("{without}: the kernel was started without it"),
                fix,
            )
        }
        (Some(_), _) => Finding::doubtful(
            what,
            format!("{without}: this system was not given it"),
            "in a container: have the controller delegated where the container is started; else \
             boot with cgroup_enable=memory",
        ),
    }
}

/// Whether the programs that run are those that are installed.
fn versions() -> Finding {
    let ours = mezcal_common::VERSION;
    let (mut agent, mut engines) = (false, std::collections::BTreeSet::new());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let exe = exe.to_string_lossy();
        // The command of a process that hangs may not be readable: only the commands that matter
        // are read.
        if !exe.ends_with(" (deleted)") {
            continue;
        }
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        match replaced(&exe, &words) {
            Some(Part::Agent) => agent = true,
            Some(Part::Engines) => {
                let uid = std::fs::metadata(entry.path())
                    .map(|meta| meta.uid())
                    .unwrap_or_default();
                engines.insert(account::name_of(uid));
            }
            None => {}
        }
    }
    older(ours, agent, &engines.into_iter().collect::<Vec<_>>())
}

/// The parts that a process may be that runs from a replaced program.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Agent,
    Engines,
}

/// The part that a process with this program and these words is, if the program has been replaced.
/// All programs may be one file: commands and the engines of embedded runs do not count.
fn replaced(exe: &str, words: &[u8]) -> Option<Part> {
    let file = exe.strip_suffix(" (deleted)")?.rsplit('/').next()?;
    if !["mezcal", "mezcal-agent"].contains(&file) {
        return None;
    }
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    match words.as_slice() {
        [_, b"agent", b"run", ..] => Some(Part::Agent),
        [called, b"run", ..] if called.ends_with(b"mezcal-agent") => Some(Part::Agent),
        [_, b"keeper", rest @ ..] if rest.contains(&&b"--socket"[..]) => Some(Part::Engines),
        _ => None,
    }
}

/// The finding about parts that run from a program that is not there any more.
fn older(ours: &str, agent: bool, engines: &[String]) -> Finding {
    let mut fixes = Vec::new();
    if agent {
        fixes.push("systemctl restart mezcal-agent, which disturbs no job".to_owned());
    }
    let units: Vec<String> = engines
        .iter()
        .map(|user| format!("mezcal-engines@{user}"))
        .collect();
    if !units.is_empty() {
        fixes.push(format!(
            "systemctl restart {}, which ends the jobs there: they run again elsewhere",
            units.join(" ")
        ));
    }
    let who = match (agent, engines) {
        (false, []) => return Finding::fine("version", ours),
        (true, []) => "an older agent runs".to_owned(),
        (false, users) => format!("older engines run, of {}", users.join(", ")),
        (true, users) => format!(
            "an older agent runs, and older engines of {}",
            users.join(", ")
        ),
    };
    Finding::doubtful(
        "version",
        format!("{ours} is installed, and {who}"),
        fixes.join("; "),
    )
}

#[cfg(test)]
mod tests;
