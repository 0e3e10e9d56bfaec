//! `coordinator serve`: the long-lived coordinator. Its state is in its store, and it continues
//! where an earlier life ended.

use crate::client::signals::Signals;
use crate::exit::{Exit, chain};
use crate::scheduler::FENCE_MARGIN;
use crate::service::config::{CoordinatorConfig, DEFAULT_PATH};
use crate::service::enrol::{Enrolment, Issuer, LEAF_LIFE};
use crate::service::listen::{credentials, listen};
use crate::service::{self, PROTOCOLS, ServiceHandle, Settings};
use crate::store::{Store, StoreError};
use mezcal_certs::Authority;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::identity::{Role, key_hash};
use mezcal_common::system::config::expand_home;
use mezcal_common::system::service_manager;
use mezcal_common::wire::endpoint::Listener;
use mezcal_common::wire::enrol;
use mezcal_common::wire::tls::{Credentials, first_certificate};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Run the cluster's coordinator.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Serve the dashboard, metrics and health checks on this address, for example 127.0.0.1:7480;
    /// everybody who can reach it sees all batches
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// After a restore: confirm that no job of the old store runs any more; a job that still runs
    /// will run twice
    #[arg(long)]
    pub nothing_runs: bool,
}

/// How long a stop may take to kill everything: the grace, the kill, and the way of the results.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Time between two signs of life for the service manager.
const ALIVE: Duration = Duration::from_secs(10);
/// Threads for work that waits for a disk: several times the number of readers of the store;
/// writers of the certificate list wait for each other anyway. Other work waits for its turn.
const BLOCKING: usize = 16;

/// Runs until TERM or INT.
///
/// # Errors
/// Exit 2 for the configuration, 3 for certificates and the address.
pub fn run(args: &ServeArgs) -> Result<u8, Exit> {
    crate::service::memory::be_frugal();
    mezcal_common::system::logging::init("info");
    let config = CoordinatorConfig::read(&args.config).map_err(Exit::usage)?;
    let lease = config.lease.unwrap_or(service::LEASE);
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
        let service =
            service::start(settings, Some(store)).map_err(|e| Exit::unreachable(chain(&e)))?;
        let listener = listen(config.listen, &own)?;
        let address = listener.local_addr().map_err(Exit::unreachable)?;
        tracing::info!(%address, "coordinator {} listens", mezcal_common::VERSION);
        if let Some(address) = http {
            let address = crate::service::http::serve(service.clone(), address).await?;
            tracing::info!("dashboard and metrics on http://{address}");
        }
        let accepting = tokio::spawn(service.clone().listen(listener.clone()));
        let presented = tokio::sync::watch::Sender::new(Arc::new(own));
        let enrol = config
            .enrol
            .unwrap_or(SocketAddr::new(config.listen.ip(), enrol::PORT));
        if config.issuer.is_some() {
            tokio::spawn(enrolment.run(enrol, presented.subscribe()));
        }
        service_manager::ready(&format!("listens on {address}"));
        let turning = service.clone();
        tokio::spawn(async move {
            // Each answer proves that the service's loop turns.
            while let Some(trouble) = turning.trouble().await {
                service_manager::alive(&trouble.map_or(format!("listens on {address}"), |why| {
                    format!("nothing is accepted: {why}")
                }));
                tokio::time::sleep(ALIVE).await;
            }
        });
        let reloads = service_manager::hangup_reloads();
        let number = loop {
            let number = tokio::select! {
                number = signals.next() => number,
                () = service.ended() => return Err(Exit::output("the coordinator's store cannot be \
                    used any more; see the log")),
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

/// Reads the settings again that may change in a running coordinator. A setting that cannot be used
/// is reported and changes nothing.
async fn reload(
    path: &Path,
    started: &CoordinatorConfig,
    service: &ServiceHandle,
    listener: &Listener,
    to_enrol: &tokio::sync::watch::Sender<Arc<Credentials>>,
) {
    let new = match CoordinatorConfig::read(path) {
        Ok(new) => new,
        Err(why) => return tracing::error!("nothing is changed: {why}"),
    };
    let identity = expand_home(&started.identity);
    let presented = Credentials::load(&identity, Role::Coordinator)
        .and_then(|own| listener.present(&own, &PROTOCOLS).map(|()| own));
    let own = match presented {
        Ok(own) => own,
        Err(e) => return tracing::error!("nothing is changed: {}", chain(&e)),
    };
    let later = started.differs_for_good(&new);
    if !later.is_empty() {
        tracing::warn!(
            "these keys have changed, and take effect when the coordinator is started again: {}",
            later.join(", ")
        );
    }
    service.adjust(new.adjustable(&own)).await;
    to_enrol.send_replace(Arc::new(own));
    tracing::info!("{} and the certificate were read again", path.display());
}

/// Opens the store, and reports the consequences if the store is a copy.
fn take_up(directory: &Path, nothing_runs: bool, lease: Duration) -> Result<Store, Exit> {
    let failed = |e: StoreError| Exit::unreachable(chain(&e));
    let mut store = Store::open(directory).map_err(failed)?;
    let was = store.take_up(nothing_runs, lease).map_err(failed)?;
    let longest = store.lease.unwrap_or(lease).max(lease) + FENCE_MARGIN;
    let held = match store.hold {
        Some(_) => format!(
            "no job of its old batches is placed for {} at least, until all jobs that its original \
             placed are surely over; the original must not run any more (`coordinator serve \
             --nothing-runs` confirms that none of its jobs do)",
            format_duration(longest)
        ),
        None => "its old batches are placed at once, since --nothing-runs confirms that none of \
            their jobs run"
            .to_owned(),
    };
    if let Some(copied) = was {
        tracing::warn!(
            "the store in {} is {copied}, and becomes the original ({}): revocations since then \
             are forgotten, check `coordinator certs list`; results since then are gone, and \
             those jobs run again; all join tokens are void; hosts whose certificates were \
             renewed since then are refused until `coordinator certs adopt HOST`; {held}",
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
            "there is no room in {} for the file that several processes would share: until the \
             coordinator is started again, only it can use the store, and `coordinator backup` and \
             `coordinator certs import` cannot",
            directory.display()
        );
    }
    Ok(store)
}

/// The registry of tokens and certificates, with the issuer.
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
