//! `coordinator.toml`: the configuration of a coordinator, and the default place of its store.

use crate::scheduler::Aliases;
use crate::service::settings::{self, Adjustable};
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::escape::chain;
use mezcal_common::system::config::{expand_home, read_toml};
use mezcal_common::wire::tls::Credentials;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shortest lease: several heartbeats must fit.
const MIN_LEASE: Duration = Duration::from_secs(15);

/// Default configuration file.
pub const DEFAULT_PATH: &str = "/etc/mezcal/coordinator.toml";

/// `coordinator.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address on which agents and clients connect (UDP); default: `0.0.0.0:7433`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Directory of cert.pem, key.pem and ca.pem.
    pub identity: PathBuf,
    /// How long an agent may run jobs without hearing from the coordinator; default: `10m`, at
    /// least `15s`.
    #[serde(
        default,
        deserialize_with = "mezcal_common::model::duration::serde_text::deserialize"
    )]
    pub lease: Option<Duration>,
    /// How long a slot is idle before it gets a job that prefers another host; default: `3s`.
    #[serde(
        default,
        deserialize_with = "mezcal_common::model::duration::serde_text::deserialize"
    )]
    pub locality_wait: Option<Duration>,
    /// Directory of the store; default: `/var/lib/mezcal-coordinator` as root and as the service,
    /// else `~/.local/state/mezcal-coordinator`.
    pub state: Option<PathBuf>,
    /// How long a batch goes on when its client is gone, unless it is detached; default: `10m`.
    #[serde(
        default,
        deserialize_with = "mezcal_common::model::duration::serde_text::deserialize"
    )]
    pub client_lease: Option<Duration>,
    /// Address of the dashboard, the metrics and the health checks, for example `127.0.0.1:7480`;
    /// default: none.
    pub http: Option<SocketAddr>,
    /// Users who may see and cancel everybody's batches, and decide who is in the cluster; default:
    /// none.
    #[serde(default)]
    pub admins: Vec<String>,
    /// A table of further names of hosts, by the full names in their certificates.
    #[serde(default)]
    pub aliases: Aliases,
    /// The highest priority that counts before other users' jobs; above it, a priority orders only
    /// the user's own jobs. Priorities of admins are not limited. Default: `0`.
    #[serde(default)]
    pub max_priority: i32,
    /// Directory of the issuer that `mezcal-certs issue issuer` made: with it, hosts and users can
    /// join by tokens, and only certificates on the coordinator's list are valid. Default: none.
    pub issuer: Option<PathBuf>,
    /// Address on which hosts and users join, open while there are tokens; default: port 7434
    /// beside `listen`.
    pub enrol: Option<SocketAddr>,
    /// How long the certificates of joined hosts and users are valid; default: `30d`.
    #[serde(
        default,
        deserialize_with = "mezcal_common::model::duration::serde_text::deserialize"
    )]
    pub certificate_life: Option<Duration>,
}

impl CoordinatorConfig {
    /// Settings that may change while a coordinator runs.
    pub(crate) fn adjustable(&self, own: &Credentials) -> Adjustable {
        Adjustable {
            locality_wait: self.locality_wait.unwrap_or(settings::LOCALITY_WAIT),
            admins: self.admins.clone(),
            max_priority: self.max_priority,
            aliases: self.aliases.clone(),
            certificate_until: Some(own.until()),
        }
    }

    /// Keys with other values in `new` that a running coordinator cannot take up.
    pub(crate) fn differs_for_good(&self, new: &Self) -> Vec<&'static str> {
        let keys = [
            ("listen", self.listen != new.listen),
            ("identity", self.identity != new.identity),
            ("lease", self.lease != new.lease),
            ("state", self.state != new.state),
            ("client_lease", self.client_lease != new.client_lease),
            ("http", self.http != new.http),
            ("issuer", self.issuer != new.issuer),
            ("enrol", self.enrol != new.enrol),
            (
                "certificate_life",
                self.certificate_life != new.certificate_life,
            ),
        ];
        keys.into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(key, _)| key)
            .collect()
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// For people: the file, and the place or the key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let config: Self = read_toml(path).map_err(|e| chain(&e))?;
        match config.fault() {
            Some(why) => Err(format!("{why}, in {}", path.display())),
            None => Ok(config),
        }
    }

    /// Why a coordinator would not start with this configuration.
    pub fn fault(&self) -> Option<String> {
        let short = self.lease.is_some_and(|lease| lease < MIN_LEASE);
        short.then(|| format!("`lease` must be at least {}", format_duration(MIN_LEASE)))
    }

    /// The directory of the store: the one in the file, or the one that systemd has given the
    /// service (`STATE_DIRECTORY`), where root looks, too.
    pub fn state_dir(&self) -> PathBuf {
        match &self.state {
            Some(dir) => expand_home(dir),
            None => {
                let root = rustix::process::geteuid().is_root();
                default_state(
                    std::env::var_os("STATE_DIRECTORY"),
                    root,
                    &expand_home(Path::new("~")),
                )
            }
        }
    }
}

/// The default directory of the service's and root's store; other accounts have theirs at home.
const DEFAULT_STATE: &str = "/var/lib/mezcal-coordinator";
const DEFAULT_USER_STATE: &str = ".local/state/mezcal-coordinator";

fn default_state(given: Option<std::ffi::OsString>, root: bool, home: &Path) -> PathBuf {
    // Of several, the first: the unit has one (systemd.exec(5), StateDirectory=).
    let given = given
        .and_then(|dirs| std::env::split_paths(&dirs).next())
        .filter(|dir| dir.is_absolute());
    // The service's account has its home there, however a process has become it (runuser).
    let is_service = root || home == Path::new(DEFAULT_STATE);
    let Some(service) = given.or_else(|| is_service.then(|| PathBuf::from(DEFAULT_STATE))) else {
        return home.join(DEFAULT_USER_STATE);
    };
    // Where no variable named the directory, its store was below its home.
    let below = service.join(DEFAULT_USER_STATE);
    let has_store = |dir: &Path| dir.join("store.db").symlink_metadata().is_ok();
    if !has_store(&service) && has_store(&below) {
        below
    } else {
        service
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7433))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::system::config::check_sample;

    #[test]
    fn what_a_coordinator_would_not_start_with_is_found_when_it_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("coordinator.toml");
        let read = |lease: &str| {
            let text = format!("identity = \"pki\"\nlease = \"{lease}\"\n");
            std::fs::write(&file, text).expect("written");
            CoordinatorConfig::read(&file).err()
        };
        assert_eq!(read("15s"), None);
        let why = read("10s").expect("it is too short");
        assert!(
            why.contains("at least 15s") && why.contains("coordinator.toml"),
            "{why}"
        );
    }

    /// The sample that packages install: keys that are commented out count, too, and no key of the
    /// parser is missing.
    #[test]
    fn the_sample_has_every_key_and_is_read() {
        let sample = include_str!("../../../systemd/samples/coordinator.toml");
        assert_eq!(check_sample::<CoordinatorConfig>(sample), Ok(()));
    }
}
