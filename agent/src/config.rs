//! `agent.toml`.

use crate::keeper::driver::ContainmentWish;
use mezcal_common::model::hosts;
use mezcal_common::system::config::ConfigError;
use mezcal_common::system::files::{Directory, PlaceError};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Default file of root's agents.
pub const DEFAULT_PATH: &str = "/etc/mezcal/agent.toml";
/// Default patience for a first answer of the coordinator. Short, so that a packet goes out several
/// times a second while nobody listens; a round trip longer than this needs `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(600);
/// Where root's agent keeps the files that have to last.
const ROOT_STATE: &str = "/var/lib/mezcal-agent";
/// PATH of jobs when agent.toml names none.
const DEFAULT_PATH_VARIABLE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// `HOST:PORT` of the coordinator.
    pub coordinator: String,
    /// Directory of `cert.pem`, `key.pem` and `ca.pem`.
    pub identity: PathBuf,
    /// `HOST:PORT` where the coordinator renews certificates that have expired; default: its host,
    /// port 7434.
    pub enrol: Option<String>,
    /// Jobs at a time; default: the usable CPUs.
    pub slots: Option<u16>,
    /// Directory for the keeper's socket; default: /run/mezcal as root, else below XDG_RUNTIME_DIR
    /// or /tmp.
    pub runtime: Option<PathBuf>,
    /// As whom jobs run: `agent` (all of them as the agent's own account) or `user` (each as the
    /// user who submitted it, in engines that root has enabled for that user); default: `agent`.
    #[serde(default)]
    pub run_as: RunAs,
    /// Directory of the sockets of `mezcal-engines@USER.service`, with `run_as = "user"`; default:
    /// `/run/mezcal/engines`.
    #[serde(default = "default_engines")]
    pub engines: PathBuf,
    /// Whether jobs may run as root when the agent runs as root with `run_as = "agent"`; default:
    /// `false`.
    #[serde(default)]
    pub allow_root_jobs: bool,
    /// What holds the processes of a job together: `auto`, `cgroup2` (nothing runs without it) or
    /// `subreaper`; default: `auto`.
    #[serde(default)]
    pub containment: ContainmentWish,
    /// `PATH` of jobs.
    pub path: Option<String>,
    /// `LANG` of jobs.
    pub lang: Option<String>,
    /// How long to wait for the coordinator's first answer before the next attempt to connect.
    #[serde(
        default,
        deserialize_with = "mezcal_common::model::duration::serde_text::deserialize"
    )]
    pub connect_timeout: Option<Duration>,
}

/// As whom jobs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunAs {
    /// All of them as the agent's own account, in engines that it starts.
    #[default]
    Agent,
    /// Each as the account of the user who has submitted it, in engines that root has enabled for
    /// that user.
    User,
}

fn default_engines() -> PathBuf {
    PathBuf::from("/run/mezcal/engines")
}

/// The reasons why the agent cannot start as configured.
#[derive(Debug, thiserror::Error)]
pub enum AgentConfigError {
    /// The file cannot be read or parsed.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Jobs would run as root.
    #[error("this agent runs as root, so its jobs would: run it as another user, or write `run_as = \"user\"` or `allow_root_jobs = true` into {}", .0.display())]
    Root(PathBuf),
    /// The file asks for no slots, or for too many.
    #[error("`slots` in {} must be between 1 and {MAX_SLOTS}", .0.display())]
    Slots(PathBuf),
    /// The address is not HOST:PORT.
    #[error("`coordinator` in {} must be HOST:PORT, not {text:?}", path.display())]
    Coordinator {
        /// The configuration file.
        path: PathBuf,
        /// The text that stands in place of an address.
        text: String,
    },
}

/// More engines than any host has CPUs; each is a process.
const MAX_SLOTS: u16 = 4096;

impl AgentConfig {
    /// The keys that differ in `new` and that a running agent cannot take up.
    pub fn differs_for_good(&self, new: &Self) -> Vec<&'static str> {
        let keys = [
            ("identity", self.identity != new.identity),
            ("slots", self.slots != new.slots),
            ("runtime", self.runtime != new.runtime),
            ("run_as", self.run_as != new.run_as),
            ("engines", self.engines != new.engines),
            (
                "allow_root_jobs",
                self.allow_root_jobs != new.allow_root_jobs,
            ),
            ("containment", self.containment != new.containment),
            ("path", self.path != new.path),
            ("lang", self.lang != new.lang),
        ];
        keys.into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(key, _)| key)
            .collect()
    }

    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`AgentConfigError`].
    pub fn load(path: &Path) -> Result<Self, AgentConfigError> {
        let config: Self = mezcal_common::system::config::read_toml(path)?;
        config.check(path)?;
        if rustix::process::geteuid().is_root()
            && !config.allow_root_jobs
            && config.run_as == RunAs::Agent
        {
            return Err(AgentConfigError::Root(path.into()));
        }
        Ok(config)
    }

    /// Checks values that have the right type, whatever they were read from.
    ///
    /// # Errors
    /// [`AgentConfigError`].
    pub fn check(&self, path: &Path) -> Result<(), AgentConfigError> {
        if self.slots.is_some_and(|s| s == 0 || s > MAX_SLOTS) {
            return Err(AgentConfigError::Slots(path.into()));
        }
        let has_port = self
            .coordinator
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            return Err(AgentConfigError::Coordinator {
                path: path.into(),
                text: self.coordinator.clone(),
            });
        }
        Ok(())
    }

    /// Where the coordinator renews certificates that have expired.
    pub fn enrol(&self) -> String {
        let host = self
            .coordinator
            .rsplit_once(':')
            .map_or(self.coordinator.as_str(), |(host, _)| host);
        self.enrol
            .clone()
            .unwrap_or_else(|| format!("{host}:{}", mezcal_common::wire::enrol::PORT))
    }

    /// Jobs that run at a time.
    pub fn slots(&self) -> u16 {
        self.slots
            .unwrap_or_else(crate::supervisor::host::usable_cpus)
    }

    /// How long to wait for the coordinator's first answer.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(CONNECT_TIMEOUT)
    }

    /// Where the keeper's socket goes.
    pub fn runtime_dir(&self) -> PathBuf {
        let uid = rustix::process::geteuid();
        self.runtime.clone().unwrap_or_else(|| {
            match (uid.is_root(), std::env::var_os("XDG_RUNTIME_DIR")) {
                (true, _) => PathBuf::from("/run/mezcal"),
                (false, Some(dir)) => PathBuf::from(dir).join("mezcal"),
                (false, None) => PathBuf::from(format!("/tmp/mezcal-{}", uid.as_raw())),
            }
        })
    }

    /// The environment of jobs in engines that the agent starts.
    pub fn job_environment(&self) -> Vec<(String, String)> {
        job_environment(self.path.as_deref(), self.lang.as_deref())
    }
}

/// The environment of jobs of this account: HOME, USER, LOGNAME and SHELL from passwd(5), PATH and
/// LANG as configured.
pub(crate) fn job_environment(path: Option<&str>, lang: Option<&str>) -> Vec<(String, String)> {
    let uid = rustix::process::geteuid().as_raw();
    let mut env = vec![(
        "PATH".into(),
        path.unwrap_or(DEFAULT_PATH_VARIABLE).to_owned(),
    )];
    if let Some(lang) = lang
        .map(str::to_owned)
        .or_else(|| std::env::var("LANG").ok())
    {
        env.push(("LANG".into(), lang));
    }
    if let Some(account) = mezcal_common::system::account::of(uid) {
        env.push(("HOME".into(), account.home));
        env.push(("SHELL".into(), account.shell));
        env.push(("LOGNAME".into(), account.name.clone()));
        env.push(("USER".into(), account.name));
    }
    env
}

/// Where an agent without root keeps the files that are this host's alone: below the home, unless
/// that is on a network file system, which other hosts may share; then in /var/tmp.
pub fn own_state(host: &str) -> PathBuf {
    let home = mezcal_common::system::config::expand_home(Path::new("~/.local/state/mezcal-agent"));
    let base = match mezcal_common::system::config::is_on_network(&home) {
        false => home,
        true => PathBuf::from(format!(
            "/var/tmp/mezcal-{}",
            rustix::process::geteuid().as_raw()
        )),
    };
    base.join(host)
}

/// The file with the generations that the agent `name` has met: in the state directory that systemd
/// gives the service, or that of root or the account.
pub fn generations_file(name: &str) -> PathBuf {
    let given =
        std::env::var_os("STATE_DIRECTORY").and_then(|dirs| std::env::split_paths(&dirs).next());
    let state = given.filter(|dir| dir.is_absolute()).unwrap_or_else(|| {
        match rustix::process::geteuid().is_root() {
            true => PathBuf::from(ROOT_STATE).join(name),
            false => own_state(name),
        }
    });
    state.join("generations")
}

/// The configuration file, unless one is named: /etc/mezcal/agent.toml as root, or if there is no
/// other.
///
/// # Errors
/// Another account has made the place where the other file would be: that account could decide
/// which coordinator this host serves.
pub fn default_path() -> Result<PathBuf, PlaceError> {
    let own = own_state(&mezcal_common::system::config::host_name());
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(DEFAULT_PATH));
    }
    match Directory::existing_own(&own) {
        Ok(_) if own.join("agent.toml").exists() => Ok(own.join("agent.toml")),
        Ok(_) | Err(PlaceError::Failed { .. }) => Ok(PathBuf::from(DEFAULT_PATH)),
        Err(e) => Err(e),
    }
}

/// Names under which jobs may ask for this host, besides the certificate's: its own name and the
/// first label of both.
pub fn aliases(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    let own = mezcal_common::system::config::host_name();
    for candidate in [hosts::short(name), Some(own.as_str()), hosts::short(&own)]
        .into_iter()
        .flatten()
    {
        if let Ok(alias) = hosts::normalise(candidate)
            && alias != name
            && alias != "localhost"
            && !out.contains(&alias)
        {
            out.push(alias);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::system::config::check_sample;

    /// The sample that packages install: keys that are commented out count, too, and no key of the
    /// parser is missing.
    #[test]
    fn the_sample_has_every_key_and_is_read() {
        let sample = include_str!("../../systemd/samples/agent.toml");
        assert_eq!(check_sample::<AgentConfig>(sample), Ok(()));
    }
}
