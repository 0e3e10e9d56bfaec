//! `coordinator serve`: the long-lived coordinator. What it knows is in its store, and it goes on
//! where an earlier life was ended.

use crate::client::signals::Signals;
use crate::exit::{Exit, chain};
use crate::scheduler::{Aliases, FENCE_MARGIN};
use crate::service::enrol::{Enrolment, Issuer, LEAF_LIFE};
use crate::service::{self, Adjustable, PROTOCOLS, ServiceHandle, Settings};
use crate::store::{Store, StoreError};
use mezcal_certs::Authority;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::identity::{Role, key_hash};
use mezcal_common::system::config::{expand_home, read_toml};
use mezcal_common::system::service_manager;
use mezcal_common::wire::endpoint::{ListenError, Listener};
use mezcal_common::wire::enrol;
use mezcal_common::wire::tls::{Credentials, first_certificate};
use serde::Deserialize;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Default configuration file.
pub const DEFAULT_PATH: &str = "/etc/mezcal/coordinator.toml";

/// Be the cluster's coordinator.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Serve the dashboard, metrics and health checks on this address, for example 127.0.0.1:7480;
    /// everybody who can reach it sees all batches
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// After a restore: say that no job of the old store runs any more; a job that does run will
    /// run twice
    #[arg(long)]
    pub nothing_runs: bool,
}

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
    /// What may change while a coordinator runs.
    fn adjustable(&self, own: &Credentials) -> Adjustable {
        Adjustable {
            locality_wait: self.locality_wait.unwrap_or(service::LOCALITY_WAIT),
            admins: self.admins.clone(),
            max_priority: self.max_priority,
            aliases: self.aliases.clone(),
            certificate_until: Some(own.until()),
        }
    }

    /// Keys with other values in `new` that a running coordinator cannot take up.
    fn differs_for_good(&self, new: &Self) -> Vec<&'static str> {
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

    /// Where the store is: what the file says, or what systemd has given the service
    /// (`STATE_DIRECTORY`), where root looks, too.
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

/// Where the store is by default: the service's and root's, and anybody else's below their home.
const DEFAULT_STATE: &str = "/var/lib/mezcal-coordinator";
const DEFAULT_USER_STATE: &str = ".local/state/mezcal-coordinator";

fn default_state(given: Option<std::ffi::OsString>, root: bool, home: &Path) -> PathBuf {
    // Of several, the first: the unit has one (systemd.exec(5), StateDirectory=).
    let given = given
        .and_then(|dirs| std::env::split_paths(&dirs).next())
        .filter(|dir| dir.is_absolute());
    // The service's account has its home there, by whatever way one has become it (runuser).
    let is_service = root || home == Path::new(DEFAULT_STATE);
    let Some(service) = given.or_else(|| is_service.then(|| PathBuf::from(DEFAULT_STATE))) else {
        return home.join(DEFAULT_USER_STATE);
    };
    // Where nothing told it of the directory its store was below its home.
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

/// How long killing everything may take at a stop: the grace, the kill, and the way of the results.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two signs of life for the service manager.
const ALIVE: Duration = Duration::from_secs(10);
/// Threads for what waits for a disk: several times those who read the store, and those who write
/// to the list of certificates wait for each other anyway. The rest waits for its turn.
const BLOCKING: usize = 16;
/// Shortest lease: several heartbeats must fit.
const MIN_LEASE: Duration = Duration::from_secs(15);

/// Runs until TERM or INT.
///
/// # Errors
/// Exit 2 for the configuration, 3 for certificates and the address.
pub fn run(args: &ServeArgs) -> Result<u8, Exit> {
    crate::service::memory::be_frugal();
    mezcal_common::system::logging::init("info");
    let config: CoordinatorConfig = read_toml(&args.config).map_err(|e| Exit::usage(chain(&e)))?;
    let lease = config.lease.unwrap_or(service::LEASE);
    if lease < MIN_LEASE {
        return Err(Exit::usage(format!(
            "`lease` in {} must be at least {}",
            args.config.display(),
            format_duration(MIN_LEASE)
        )));
    }
    let runtime = mezcal_common::system::runtime::start(Some(BLOCKING)).map_err(Exit::usage)?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let http = args.http.or(config.http);
        let store = take_up(&config.state_dir(), args.nothing_runs, lease)?;
        let identity = expand_home(&config.identity);
        let own = credentials(&identity)?;
        let enrolment = Arc::new(enrolment(&config, &store)?);
        let settings = Settings {
            enrolment: Some(enrolment.clone()),
            adjustable: config.adjustable(&own),
            client_lease: config.client_lease.unwrap_or(service::CLIENT_LEASE),
            observed: http.is_some(),
            ..Settings::new(Some(lease))
        };
        let service = service::start(settings, Some(store)).map_err(|e| Exit::unreachable(chain(&e)))?;
        let listener = listen(config.listen, &own)?;
        let address = listener.local_addr().map_err(Exit::unreachable)?;
        tracing::info!(%address, "coordinator {} listens", mezcal_common::VERSION);
        if let Some(address) = http {
            let address = crate::service::http::serve(service.clone(), address).await?;
            tracing::info!("dashboard and metrics on http://{address}");
        }
        let accepting = tokio::spawn(service.clone().listen(listener.clone()));
        let presented = tokio::sync::watch::Sender::new(Arc::new(own));
        let enrol = config.enrol.unwrap_or(SocketAddr::new(config.listen.ip(), enrol::PORT));
        if config.issuer.is_some() {
            tokio::spawn(enrolment.run(enrol, presented.subscribe()));
        }
        service_manager::ready(&format!("listens on {address}"));
        let turning = service.clone();
        tokio::spawn(async move {
            // An answer has gone through the loop.
            while let Some(trouble) = turning.trouble().await {
                service_manager::alive(
                    &trouble.map_or(format!("listens on {address}"), |why| format!("nothing is accepted: {why}")),
                );
                tokio::time::sleep(ALIVE).await;
            }
        });
        let reloads = service_manager::hangup_reloads();
        let number = loop {
            let number = tokio::select! {
                number = signals.next() => number,
                () = service.ended() => return Err(Exit::output("the coordinator's store is of no more use; see the log")),
            };
            if i32::from(number) != libc::SIGHUP || !reloads {
                break number;
            }
            service_manager::reloading();
            reload(&args.config, &config, &service, &listener, &presented).await;
            service_manager::ready(&format!("listens on {address}"));
        };
        tracing::info!(signal = number, "stopping");
        service_manager::stopping();
        service.stop(STOP_PATIENCE).await;
        listener.close("the coordinator is stopping").await;
        accepting.abort();
        Ok(0)
    })
}

/// Takes up what may change in a running coordinator. What cannot be used is said, and changes
/// nothing.
async fn reload(
    path: &Path,
    started: &CoordinatorConfig,
    service: &ServiceHandle,
    listener: &Listener,
    to_enrol: &tokio::sync::watch::Sender<Arc<Credentials>>,
) {
    let new: CoordinatorConfig = match read_toml(path) {
        Ok(new) => new,
        Err(e) => return tracing::error!("everything stays as it is: {}", chain(&e)),
    };
    let identity = expand_home(&started.identity);
    let presented = Credentials::load(&identity, Role::Coordinator)
        .and_then(|own| listener.present(&own, &PROTOCOLS).map(|()| own));
    let own = match presented {
        Ok(own) => own,
        Err(e) => return tracing::error!("everything stays as it is: {}", chain(&e)),
    };
    let later = started.differs_for_good(&new);
    if !later.is_empty() {
        tracing::warn!(
            "these keys are different now, and take effect when the coordinator is started again: {}",
            later.join(", ")
        );
    }
    service.adjust(new.adjustable(&own)).await;
    to_enrol.send_replace(Arc::new(own));
    tracing::info!("{} and the certificate are read again", path.display());
}

/// Opens the store, and says what it means if that is a copy.
fn take_up(directory: &Path, nothing_runs: bool, lease: Duration) -> Result<Store, Exit> {
    let failed = |e: StoreError| Exit::unreachable(chain(&e));
    let mut store = Store::open(directory).map_err(failed)?;
    let was = store.take_up(nothing_runs, lease).map_err(failed)?;
    let longest = store.lease.unwrap_or(lease).max(lease) + FENCE_MARGIN;
    let held = match store.hold {
        Some(_) => format!(
            "nothing of its old batches is placed for {} at least, until all that its original placed is surely over; the original must not run \
             any more (`coordinator serve --nothing-runs` vouches that nothing does)",
            format_duration(longest)
        ),
        None => "its old batches are placed at once, since nothing of them runs, as somebody has vouched".to_owned(),
    };
    if let Some(copied) = was {
        tracing::warn!(
            "the store in {} is {copied}, and becomes the original ({}): revocations since are forgotten, check `coordinator certs list`; \
             results since are gone, and those jobs run again; all join tokens are void; hosts whose certificates were renewed since are \
             refused until `coordinator certs adopt HOST`; {held}",
            directory.display(),
            store.generation
        );
    } else if store.hold.is_some() {
        tracing::warn!(
            "the store in {} was {}: {held}",
            directory.display(),
            store.generation
        );
    }
    if store.is_alone() {
        tracing::warn!(
            "there is no room in {} for what several processes would share: until the coordinator is started again, only it can use the store, \
             and `coordinator backup` and `coordinator certs import` cannot",
            directory.display()
        );
    }
    Ok(store)
}

/// Tokens and certificates, and what makes them.
fn enrolment(config: &CoordinatorConfig, store: &Store) -> Result<Enrolment, Exit> {
    let registry = store
        .registry(config.issuer.is_some())
        .map_err(|e| Exit::unreachable(chain(&e)))?;
    let Some(dir) = &config.issuer else {
        return Ok(Enrolment::new(registry, None));
    };
    let authority = Authority::load(&expand_home(dir)).map_err(|e| Exit::unreachable(chain(&e)))?;
    let root = first_certificate(authority.root().as_bytes()).and_then(|der| key_hash(&der));
    let issuer = Issuer {
        root: root.ok_or_else(|| {
            Exit::unreachable(format!(
                "{} holds no root certificate",
                dir.join("ca.pem").display()
            ))
        })?,
        life: config.certificate_life.unwrap_or(LEAF_LIFE),
        port: config.listen.port(),
        authority,
    };
    Ok(Enrolment::new(registry, Some(issuer)))
}

/// A coordinator's credentials.
///
/// # Errors
/// Exit 3 naming the file.
pub fn credentials(identity: &Path) -> Result<Credentials, Exit> {
    Credentials::load(identity, Role::Coordinator).map_err(|e| Exit::unreachable(chain(&e)))
}

/// Listens for agents and clients with them.
///
/// # Errors
/// Exit 3 naming whoever holds the address.
pub fn listen(address: SocketAddr, credentials: &Credentials) -> Result<Arc<Listener>, Exit> {
    Listener::bind(address, credentials, &PROTOCOLS)
        .map(Arc::new)
        .map_err(|e| {
            let holder = match &e {
                ListenError::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse => {
                    holder_of(address.port())
                }
                ListenError::Bind { .. } | ListenError::Credentials(_) => None,
            };
            Exit::unreachable(format!(
                "{}{}",
                chain(&e),
                holder.map_or(String::new(), |h| format!("; held by {h}"))
            ))
        })
}

/// Who has a UDP port, as far as /proc lets us see: the socket's inode from /proc/net/udp{,6}, then
/// who has it open.
pub(crate) fn holder_of(port: u16) -> Option<String> {
    let tables = ["/proc/net/udp", "/proc/net/udp6"]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables
        .iter()
        .flat_map(|t| t.lines().skip(1))
        .find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            (u16::from_str_radix(local, 16) == Ok(port))
                .then(|| fields.get(9).map(|i| (*i).to_owned()))?
        })?;
    let wanted = format!("socket:[{inode}]");
    let pid = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let mut open = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            open.any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|l| l.as_os_str() == wanted.as_str())
            })
            .then_some(pid)
        });
    let Some(pid) = pid else {
        return Some("a process of another user".into());
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!(
        "process {pid} ({})",
        mezcal_common::model::escape::for_terminal(words.trim_end())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample that packages install: what is commented out counts, too, and no key of the
    /// parser is missing.
    #[test]
    fn the_sample_has_every_key_and_is_read() {
        let sample = include_str!("../../../systemd/samples/coordinator.toml");
        let whole: String = sample
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
                    .to_owned()
                    + "\n"
            })
            .collect();
        for text in [sample, &whole] {
            toml::from_str::<CoordinatorConfig>(text).expect("the sample is read");
        }
        // The parser names all of its keys to whoever writes another one.
        let said = toml::from_str::<CoordinatorConfig>("nosuch = 1")
            .expect_err("no such key")
            .to_string();
        let keys: Vec<&str> = said
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|key| *key != "nosuch")
            .collect();
        let has = toml::from_str::<toml::Table>(&whole).expect("TOML");
        assert!(
            keys.len() == has.len() && keys.iter().all(|key| has.contains_key(*key)),
            "{keys:?} {has:?}"
        );
    }

    #[test]
    fn root_and_the_service_look_for_the_store_at_the_same_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let service = dir.path().join("mezcal-coordinator");
        let given = || Some(service.clone().into_os_string());
        let home = Path::new("/home/okazaki");
        // Nothing of this machine's may be there.
        if !Path::new(DEFAULT_STATE).exists() {
            assert_eq!(
                default_state(None, true, Path::new("/root")),
                Path::new(DEFAULT_STATE)
            );
            assert_eq!(
                default_state(None, false, Path::new(DEFAULT_STATE)),
                Path::new(DEFAULT_STATE),
                "its account, by runuser"
            );
        }
        assert_eq!(
            default_state(None, false, home),
            home.join(DEFAULT_USER_STATE)
        );
        let default_state = |given, root| default_state(given, root, home);
        assert_eq!(default_state(given(), false), service);
        assert_eq!(
            default_state(
                Some(format!("{}:/var/lib/other", service.display()).into()),
                true
            ),
            service
        );
        // A store of a version that knew only the account's home is found, until there is one at
        // the new place.
        let below = service.join(DEFAULT_USER_STATE);
        std::fs::create_dir_all(&below).expect("made");
        std::fs::write(below.join("store.db"), "").expect("written");
        assert_eq!(default_state(given(), false), below);
        assert_eq!(default_state(given(), true), below);
        std::fs::write(service.join("store.db"), "").expect("written");
        assert_eq!(default_state(given(), true), service);
    }
}
