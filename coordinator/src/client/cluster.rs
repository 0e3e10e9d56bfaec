//! The way of a run to its coordinator: one that runs elsewhere, this process for agents that
//! connect to it, or this process with an agent of its own.

use crate::client::embedded::{self, EmbeddedAgent};
use crate::client::profile::{Cluster, Profile};
use crate::client::{Remote, keep_certificate};
use crate::exit::{self, Exit};
use crate::service::listen::{credentials, listen};
use crate::service::{self, Adjustable, ClientPort, Settings};
use mezcal_common::wire::endpoint::Listener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for agents when standard error is not a terminal.
pub(crate) const UNWATCHED_WAIT: Duration = Duration::from_secs(300);

/// A way to a coordinator, and the parts of it that this process has to end.
pub(crate) struct Connected {
    pub(crate) port: ClientPort,
    /// The connection of that port; `None` within one process.
    remote: Option<Remote>,
    pub(crate) agent: Option<EmbeddedAgent>,
    listener: Option<Arc<Listener>>,
    /// The text to show while no agent is connected.
    pub(crate) waiting_for: String,
}

impl Connected {
    /// Why the connection ended.
    pub(crate) async fn why_lost(&self) -> String {
        match &self.remote {
            Some(remote) => remote.why_lost().await,
            None => "the coordinator within this process has ended".into(),
        }
    }

    /// Whether another try is useless.
    pub(crate) fn is_lost_for_good(&self) -> bool {
        self.remote.as_ref().is_none_or(Remote::is_lost_for_good)
    }

    /// Tries for as long as `patience` to reach a lost coordinator. False if all tries failed.
    /// Cancel-safe.
    pub(crate) async fn reach_again(&mut self, patience: Duration) -> bool {
        let Some(remote) = &mut self.remote else {
            return false;
        };
        let reached = remote.reach_again(patience).await;
        if reached {
            std::mem::swap(&mut self.port, &mut remote.port);
        }
        reached
    }

    /// The connection, if the coordinator is another process.
    pub(crate) fn into_remote(self) -> Option<Remote> {
        let mut remote = self.remote?;
        remote.port = self.port;
        Some(remote)
    }

    /// Leaves, and ends the parts of a cluster in this process.
    pub(crate) async fn end(self) {
        drop(self.port);
        if let Some(remote) = self.remote {
            remote.leave().await;
        }
        if let Some(agent) = self.agent {
            agent.end().await;
        }
        if let Some(listener) = self.listener {
            listener.close("the run is over").await;
        }
    }
}

/// Reaches the profile's coordinator, or becomes one. Then `slots` are its own, and a slot is idle
/// for `locality_wait` before it gets a job that prefers another host.
///
/// # Errors
/// Exit 3 without a coordinator, and the errors of becoming one.
pub(crate) async fn connect(
    profile: &Profile,
    keeper: Option<embedded::Keeper>,
    slots: Option<u16>,
    locality_wait: Option<Duration>,
) -> Result<Connected, Exit> {
    let user = mezcal_common::system::account::own_name();
    let locality_wait = locality_wait.unwrap_or(service::LOCALITY_WAIT);
    let adjustable = Adjustable {
        locality_wait,
        ..Adjustable::default()
    };
    match (&profile.cluster, keeper) {
        (
            Cluster::Remote {
                coordinator,
                identity,
            },
            _,
        ) => reach(coordinator, identity).await,
        (Cluster::Listen { address, identity }, _) => {
            let settings = Settings {
                adjustable,
                ..Settings::new(Some(service::LEASE))
            };
            let service = service::start(settings, None).map_err(no_timer)?;
            let listener = listen(*address, &credentials(identity)?)?;
            let local = listener.local_addr().map_err(Exit::unreachable)?;
            tokio::spawn(service.clone().listen(listener.clone()));
            Ok(Connected {
                port: service.attach(&user).await,
                remote: None,
                agent: None,
                listener: Some(listener),
                waiting_for: format!("no agent has connected yet; listening on udp {local}"),
            })
        }
        (Cluster::Embedded, Some(keeper)) => {
            let adjustable = Adjustable {
                aliases: keeper.aliases(),
                ..adjustable
            };
            let settings = Settings {
                adjustable,
                ..Settings::new(None)
            };
            let service = service::start(settings, None).map_err(no_timer)?;
            let slots = slots.unwrap_or_else(embedded::usable_cpus);
            let agent = embedded::start(&service, keeper, slots).await?;
            Ok(Connected {
                port: service.attach(&user).await,
                remote: None,
                agent: Some(agent),
                listener: None,
                waiting_for: "the engines of this host are not ready yet".to_owned(),
            })
        }
        (Cluster::Embedded, None) => Err(Exit {
            status: exit::BUG,
            message: "an embedded run without a keeper".into(),
        }),
    }
}

fn no_timer(e: service::StartError) -> Exit {
    Exit::usage(exit::chain(&e))
}

/// Connects to a coordinator that runs elsewhere.
async fn reach(coordinator: &str, identity: &Path) -> Result<Connected, Exit> {
    let mut remote = Remote::connect(coordinator, identity).await?;
    let nowhere = ClientPort {
        requests: tokio::sync::mpsc::channel(1).0,
        answers: tokio::sync::mpsc::channel(1).1,
    };
    let port = std::mem::replace(&mut remote.port, nowhere);
    tokio::spawn(keep_certificate(
        coordinator.to_owned(),
        identity.to_owned(),
    ));
    Ok(Connected {
        port,
        remote: Some(remote),
        agent: None,
        listener: None,
        waiting_for: format!("no agent is connected to the coordinator at {coordinator}"),
    })
}

/// Waits until the agent within this process has ended, and says why; for ever without one.
pub(crate) async fn agent_ended(agent: &mut Option<EmbeddedAgent>) -> String {
    match agent {
        Some(agent) => agent.ended().await,
        None => std::future::pending().await,
    }
}
