//! An agent of our own: an embedded run has coordinator, agent and engines in one process and its
//! children.
//!
//! The same code and the same protocol as on a cluster, over loopback QUIC with certificates that
//! never leave memory. The only code that names the agent crate.

use crate::exit::{Exit, chain};
use crate::scheduler::Aliases;
use crate::service::{PROTOCOLS, ServiceHandle};
use mezcal_agent::keeper::start;
use mezcal_agent::supervisor::Carried;
use mezcal_agent::supervisor::driver::{self, Left};
use mezcal_agent::supervisor::generations::Generations;
use mezcal_agent::supervisor::links;
use mezcal_agent::supervisor::parts::AgentParts;
use mezcal_certs::renewal::Renewal;
use mezcal_certs::{Authority, CertsError, Issued};
use mezcal_common::message::agent::ALPN;
use mezcal_common::model::identity::Role;
use mezcal_common::wire::endpoint::{Connector, LOOPBACK, Listener, try_loopback};
use mezcal_common::wire::tls::Credentials;
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

pub use mezcal_agent::cli::Hidden;
pub use mezcal_agent::keeper::driver::ContainmentWish;
pub use mezcal_agent::kernel::signals::heed_children;
pub use mezcal_agent::supervisor::host::usable_cpus;

/// The coordinator is in this very process: it answers at once or never.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long engines may take to end after the last job.
const ENGINES_END: Duration = Duration::from_secs(20);

/// A keeper with its engines, started before anything else so that it is ready when the jobs are.
pub struct Keeper {
    socket: OwnedFd,
    child: Child,
    host: String,
}

/// Starts the keeper of an embedded run, if this host can reach itself over loopback.
///
/// # Errors
/// Exit 2: this program's own file cannot be run again. Exit 3: the agent could not reach the
/// coordinator on this host.
pub fn start_keeper(containment: ContainmentWish) -> Result<Keeper, Exit> {
    try_loopback().map_err(|e| Exit::unreachable(format!("nothing was started: {}", chain(&e))))?;
    let host = mezcal_common::system::config::host_name();
    let program = std::fs::File::open("/proc/self/exe")
        .map_err(|e| Exit::usage(format!("cannot open this program's own file: {e}")))?;
    let (socket, child) = start::embedded(Arc::new(program.into()), &host, containment)
        .map_err(|e| Exit::usage(format!("cannot start the engines' keeper: {e}")))?;
    Ok(Keeper {
        socket,
        child,
        host,
    })
}

impl Keeper {
    /// The names by which jobs may ask for this host, for both names that its certificate may have.
    pub fn aliases(&self) -> Aliases {
        let named = |name: &str| {
            (
                name.to_owned(),
                [
                    mezcal_agent::config::aliases(name),
                    vec!["localhost".into()],
                ]
                .concat(),
            )
        };
        // A host name that a certificate cannot have cannot be in a job list either.
        let of_both = Aliases::try_from(BTreeMap::from([named(&self.host)]));
        of_both
            .or_else(|_| Aliases::try_from(BTreeMap::from([named("localhost")])))
            .unwrap_or_default()
    }
}

/// The embedded agent.
pub struct EmbeddedAgent {
    stop: tokio::sync::oneshot::Sender<()>,
    /// `None` once it has ended.
    task: Option<tokio::task::JoinHandle<std::io::Result<(Left, Carried)>>>,
    child: Child,
}

/// Listens on loopback for `service` and connects an agent with `slots` engines to it.
///
/// # Errors
/// Exit 3: no certificates, no socket.
pub async fn start(
    service: &ServiceHandle,
    keeper: Keeper,
    slots: u16,
) -> Result<EmbeddedAgent, Exit> {
    let made = |e: CertsError| Exit::unreachable(chain(&e));
    let (authority, _) = Authority::create("embedded").map_err(made)?;
    let ours = credentials(
        authority.issue(Role::Coordinator, "", 1).map_err(made)?,
        Role::Coordinator,
    )?;
    // The certificate's form allows fewer names than gethostname(2) does.
    let name = authority
        .issue(Role::Agent, &keeper.host, 1)
        .map(|_| keeper.host.as_str())
        .unwrap_or("localhost");
    let agents = credentials(
        authority.issue(Role::Agent, name, 1).map_err(made)?,
        Role::Agent,
    )?;
    let listener =
        Listener::bind(LOOPBACK, &ours, &PROTOCOLS).map_err(|e| Exit::unreachable(chain(&e)))?;
    let address = listener.local_addr().map_err(Exit::unreachable)?;
    tokio::spawn(service.clone().listen(Arc::new(listener)));
    let engines = links::engines_of(vec![keeper.socket], slots, name)
        .map_err(|e| Exit::unreachable(format!("the engines' keeper: {e}")))?;
    let parts = AgentParts {
        name: name.to_owned(),
        aliases: Vec::new(),
        slots,
        users: None,
        carried: Carried::default(),
        coordinator: address.to_string(),
        connector: Connector::new(&agents, ALPN).map_err(|e| Exit::unreachable(chain(&e)))?,
        connect_timeout: PATIENCE,
        service: false,
        renewal: Renewal::default(),
        generations: Generations::of_one_life(),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move {
        // A dropped sender means the same.
        let _ = stopped.await;
    };
    let task = tokio::spawn(driver::run(parts, engines, stopped, std::future::pending()));
    Ok(EmbeddedAgent {
        stop,
        task: Some(task),
        child: keeper.child,
    })
}

impl EmbeddedAgent {
    /// Waits until the agent ends by itself, which it should not do, and says why. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Ok((Left::Stopped | Left::Changed | Left::Expired | Left::Renewed { .. }, _))) => {
                "the agent within this process has ended".into()
            }
            Ok(Ok((Left::KeeperGone | Left::KeeperReplaced, _))) => {
                "the keeper of the engines is gone, and their jobs with it".into()
            }
            Ok(Err(e)) => format!("the agent within this process has ended: {}", chain(&e)),
            Err(e) => format!("the agent within this process has failed: {e}"),
        }
    }

    /// Ends engines and keeper, and waits until they are gone.
    pub async fn end(mut self) {
        let _ = self.stop.send(());
        if let Some(task) = self.task {
            let _ = tokio::time::timeout(ENGINES_END, task).await;
        }
        let waited = tokio::task::spawn_blocking(move || self.child.wait());
        let _ = tokio::time::timeout(ENGINES_END, waited).await;
    }
}

fn credentials(issued: Issued, role: Role) -> Result<Credentials, Exit> {
    Credentials::from_pem(
        issued.cert.as_bytes(),
        issued.key.as_bytes(),
        issued.ca.as_bytes(),
        role,
        Path::new("(embedded)"),
    )
    .map_err(|e| Exit::unreachable(chain(&e)))
}
