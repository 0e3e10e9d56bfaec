//! `agent doctor`: whether this host can do its part, and what to do if not. It only looks.

use crate::config::{AgentConfig, RunAs};
use crate::greeting::{Greeting, greet};
use crate::users::SOCKET;
use mezcal_common::account;
use mezcal_common::doctor::{self, Finding};
use mezcal_common::escape::chain;
use mezcal_common::identity::Role;
use mezcal_common::wire::tls::Credentials;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Room for what jobs keep in temporary files.
const SPACE: u64 = 64 << 20;

/// Look whether this host can do its part, and say what to do if not.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The configuration file (default: /etc/mezcal/agent.toml, or what `agent join` has made without root)
    #[arg(long, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object per finding
    #[arg(long)]
    pub json: bool,
}

/// Looks at everything. True if nothing is wrong.
pub fn run(args: &DoctorArgs) -> bool {
    let findings = match args.config.clone().map_or_else(crate::config::default_path, Ok) {
        Ok(path) => look(&path),
        Err(e) => vec![Finding::wrong("configuration", chain(&e), "remove it; mezcal-agent join makes another one")],
    };
    let text = match args.json {
        false => doctor::table(&findings),
        true => findings.iter().map(|f| serde_json::json!(f).to_string() + "\n").collect(),
    };
    match std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        true => print!("{}", mezcal_common::escape::json_for_terminal(&text)),
        false => print!("{text}"),
    }
    doctor::is_well(&findings)
}

fn look(path: &Path) -> Vec<Finding> {
    let mut all = Vec::new();
    // Root may look at what the agent, which is not root, will read.
    let config = match mezcal_common::config::read_toml::<AgentConfig>(path) {
        Ok(config) => config,
        Err(e) => {
            all.push(Finding::wrong("configuration", chain(&e), "mezcal-agent join makes one"));
            all.extend(host());
            return all;
        }
    };
    all.push(Finding::fine("configuration", path.display().to_string()));
    match Credentials::load(&config.identity, Role::Agent) {
        Ok(credentials) => {
            let fix = "the running agent renews it: `journalctl -u mezcal-agent` says why it does not";
            all.push(doctor::certificate_end("certificate", credentials.certificate(), true, fix));
            all.extend(owner(&config));
            all.push(coordinator(&config, &credentials));
        }
        Err(e) => all.push(Finding::wrong("certificate", chain(&e), "mezcal-agent join with a token gets one")),
    }
    all.extend(engines(&config));
    all.extend(host());
    all.push(versions());
    all
}

fn host() -> [Finding; 4] {
    [doctor::udp_buffers(), doctor::clock(), doctor::space("space", &std::env::temp_dir(), SPACE), containment()]
}

/// Whose the key is.
fn owner(config: &AgentConfig) -> Option<Finding> {
    let agent = account::named("mezcal-agent").filter(|_| config.run_as == RunAs::User)?;
    let key = config.identity.join("key.pem");
    let uid = std::fs::metadata(&key).ok()?.uid();
    Some(match uid == agent.uid {
        true => Finding::fine("key", format!("{} belongs to mezcal-agent", key.display())),
        false => Finding::wrong(
            "key",
            format!("{} belongs to uid {uid}, and the agent runs as mezcal-agent", key.display()),
            format!("chown -R mezcal-agent: {}", config.identity.display()),
        ),
    })
}

/// Whether the coordinator answers and takes our certificate, and what the way there is like.
fn coordinator(config: &AgentConfig, credentials: &Credentials) -> Finding {
    let what = "coordinator";
    match greet(&config.coordinator, credentials) {
        Ok(path) => {
            let took = path.round_trip.as_secs_f64() * 1000.0;
            let (address, datagram) = (&config.coordinator, path.datagram);
            Finding::fine(what, format!("{address} answers within {took:.1} ms; datagrams of {datagram} bytes get through"))
        }
        Err(Greeting::Refused(why)) => {
            Finding::wrong(what, why, "`coordinator certs list` shows whose certificates count; a new token makes another one")
        }
        Err(Greeting::Other(why)) => Finding::wrong(
            what,
            why,
            format!(
                "is the coordinator at {} that of this host's cluster, and of a version like this one's ({})? If so, are both clocks right?",
                config.coordinator,
                mezcal_common::VERSION
            ),
        ),
        Err(Greeting::Lost(why)) => {
            Finding::wrong(what, why, "is `coordinator serve` running there, and do the firewalls let UDP through, both ways?")
        }
    }
}

/// Whose jobs run here.
fn engines(config: &AgentConfig) -> Vec<Finding> {
    if config.run_as == RunAs::Agent {
        return vec![Finding::fine("engines", "all jobs run as the agent's own account")];
    }
    let names = std::fs::read_dir(&config.engines).into_iter().flatten().flatten();
    let mut users: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    users.sort();
    let agents = account::named("mezcal-agent").map(|a| a.gid);
    let bound = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut all: Vec<Finding> = users.iter().map(|user| engines_of(&config.engines.join(user), user, agents, &bound)).collect();
    if all.is_empty() {
        let fix = "systemctl enable --now mezcal-engines@USER.service, for each user whose jobs should run here";
        all.push(Finding::wrong("engines", "this host runs nobody's jobs", fix));
    }
    all
}

fn engines_of(dir: &Path, user: &str, agents: Option<u32>, bound: &str) -> Finding {
    let what = "engines";
    let again = format!("systemctl restart mezcal-engines@{user}.service");
    let Some(account) = account::named(user) else {
        return Finding::wrong(what, format!("{} is of nobody's", dir.display()), format!("rm -r {}", dir.display()));
    };
    match std::fs::metadata(dir) {
        Err(e) => Finding::wrong(what, format!("{}: {e}", dir.display()), again),
        Ok(meta) if meta.uid() != account.uid || Some(meta.gid()) != agents || meta.mode() & 0o007 != 0 => {
            let seen = format!("{} is open to others, or closed to the agent (mode {:o})", dir.display(), meta.mode() & 0o7777);
            Finding::wrong(what, seen, again)
        }
        Ok(_) if !bound.contains(&dir.join(SOCKET).display().to_string()) => {
            Finding::wrong(what, format!("{user}'s do not run"), format!("{again}; `journalctl -u mezcal-engines@{user}` says why"))
        }
        Ok(_) => Finding::fine(what, format!("{user}'s run")),
    }
}

fn containment() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let point = mounts.lines().filter_map(|line| line.split(' ').nth(1).filter(|_| line.contains(" cgroup2 "))).next();
    let fix = "boot with systemd.unified_cgroup_hierarchy=1; without it jobs are held by their process tree alone";
    match point {
        None => Finding::doubtful("containment", "subreaper: no control groups of version 2", fix),
        Some(point) => {
            let controllers = std::fs::read_to_string(Path::new(point).join("cgroup.controllers")).unwrap_or_default();
            match controllers.split_ascii_whitespace().any(|c| c == "memory") {
                true => Finding::fine("containment", "cgroup2, with the memory controller"),
                false => Finding::doubtful("containment", "cgroup2, without the memory controller: no peaks, no `oom`", fix),
            }
        }
    }
}

/// Whether what runs is what is installed.
fn versions() -> Finding {
    let ours = mezcal_common::VERSION;
    let old = std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        exe.to_string_lossy().ends_with("/mezcal-agent (deleted)")
    });
    match old {
        false => Finding::fine("version", ours),
        true => Finding::doubtful(
            "version",
            format!("{ours} is installed, and an older one runs"),
            "systemctl restart mezcal-agent; the engines take the new one up with `systemctl restart mezcal-engines@USER`, which ends their jobs",
        ),
    }
}
