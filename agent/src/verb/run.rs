//! `agent run`: the life of an agent, from one connection to the next, with the configuration and
//! the certificate that it has then.

mod certificate;
mod keeper;

use crate::config::{AgentConfig, RunAs};
use crate::supervisor::Carried;
use crate::supervisor::driver::{self, AgentParts, Left};
use crate::supervisor::generations::Generations;
use crate::supervisor::links;
use crate::supervisor::renewal::Renewal;
use crate::supervisor::users;
use anyhow::Context;
use certificate::{other_certificate, put_in_place, renewed, stamp};
use keeper::{engines_dir, find_keeper, lock, lock_name};
use mezcal_common::message::agent::ALPN;
use mezcal_common::model::identity::Role;
use mezcal_common::system::service_manager;
use mezcal_common::wire::endpoint::Connector;
use mezcal_common::wire::tls::{Credentials, CredentialsError};
use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Pause before a keeper that was lost is replaced.
const KEEPER_PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let mut config = AgentConfig::load(path)?;
    let runtime = mezcal_common::system::runtime::start(None)?;
    // Before anything is renewed: of two who did that at once, one would lose.
    let _lock = lock(&config)?;
    // Of the files that were looked at last, whatever came of that: what is put there while
    // something else is seen to counts as new.
    let mut seen = stamp(&config.identity);
    let mut credentials = match Credentials::load(&config.identity, Role::Agent) {
        Err(CredentialsError::Validity { .. }) => {
            let new = runtime.block_on(renewed(&config, None))?;
            seen = stamp(&config.identity);
            new
        }
        loaded => loaded?,
    };
    let name = credentials.identity().name.clone();
    let generations = crate::config::generations_file(&name);
    let mut renewal = Renewal::of(credentials.certificate());
    let ended = runtime.block_on(async {
        let stop = Stop::on_signals()?;
        let mut hangup = match service_manager::hangup_reloads() {
            true => Some(signal(SignalKind::hangup())?),
            false => None,
        };
        // What did not start under the agent before, while this process goes on.
        let mut carried = Carried::default();
        loop {
            let (users, keepers) = match config.run_as {
                RunAs::Agent => {
                    let found = tokio::select! {
                        biased;
                        // Whoever is about to end starts nothing: at a shutdown of the host nobody
                        // would be left to end that.
                        () = stop.asked() => return Ok(()),
                        found = find_keeper(&config, &name) => found,
                    };
                    (None, vec![found.context("cannot start the keeper of the engines")?])
                }
                RunAs::User => {
                    let (users, keepers) = users::connect_all(&config.engines, config.slots()).into_iter().unzip();
                    (Some(users), keepers)
                }
            };
            let mut engines = links::engines_of(keepers, config.slots(), &name)?;
            if users.is_some() {
                engines = engines.and_others(users::Finder::new(&config.engines, config.slots()));
            }
            let reread = RefCell::new(None);
            let changed = async {
                tokio::select! {
                    new = reload(path, &config, &mut hangup) => *reread.borrow_mut() = Some(new),
                    () = other_certificate(&config.identity, seen) => {}
                }
            };
            let parts = AgentParts {
                users: users.clone(),
                carried: std::mem::take(&mut carried),
                aliases: crate::config::aliases(&name),
                name: name.clone(),
                slots: config.slots(),
                coordinator: config.coordinator.clone(),
                connector: Connector::new(&credentials, ALPN)?,
                connect_timeout: config.connect_timeout(),
                service: true,
                renewal,
                generations: Generations::load(generations.clone()).with_context(|| generations_unread(&generations))?,
            };
            tracing::info!(
                host = name,
                slots = parts.slots,
                coordinator = parts.coordinator,
                "agent {} of {name}",
                mezcal_common::VERSION
            );
            if let Some(users) = &users {
                tracing::info!(users = users.join(" "), "runs jobs of those who have engines here");
            }
            let (left, unstarted) = driver::run(parts, engines, stop.asked(), changed).await?;
            carried = unstarted;
            match left {
                Left::Stopped => {
                    service_manager::stopping();
                    return Ok(());
                }
                _ if stop.is_asked() => return Ok(()),
                Left::Changed if stamp(&config.identity) != seen => {
                    seen = stamp(&config.identity);
                    if let Some(new) = put_in_place(&config.identity, Some(credentials.identity())) {
                        credentials = new;
                        renewal = Renewal::of(credentials.certificate());
                        continue;
                    }
                }
                // Else the certificate's file was touched, and nothing is new.
                Left::Changed => {
                    if let Some(new) = reread.take() {
                        config = new;
                        continue;
                    }
                }
                Left::Expired => {
                    credentials = tokio::select! {
                        renewed = renewed(&config, Some(credentials.identity())) => renewed?,
                        () = stop.asked() => return Ok(()),
                    };
                    seen = stamp(&config.identity);
                    renewal = Renewal::of(credentials.certificate());
                    continue;
                }
                Left::Renewed { cert, key } => {
                    // Tried before it takes the place of one that works.
                    let renewed = mezcal_certs::replace(&config.identity, Role::Agent, cert, key);
                    seen = stamp(&config.identity);
                    match renewed.and_then(|()| Ok(Credentials::load(&config.identity, Role::Agent)?)) {
                        Ok(new) => {
                            credentials = new;
                            renewal = Renewal::of(credentials.certificate());
                            tracing::info!("a new certificate is in use");
                        }
                        Err(e) => {
                            tracing::error!("the new certificate is not used: {}", mezcal_common::model::escape::chain(&e));
                            renewal = renewal.map(Renewal::later);
                        }
                    }
                    continue;
                }
                Left::KeeperReplaced => {
                    tracing::info!(
                        "the engines of an earlier version have ended; those of version {} take their place",
                        mezcal_common::VERSION
                    );
                    continue;
                }
                // Its engines kill what they run, and end; a new keeper waits for that.
                Left::KeeperGone => tracing::warn!("a keeper of engines is gone, and its jobs with it"),
            }
            tokio::select! {
                () = stop.asked() => return Ok(()),
                () = tokio::time::sleep(KEEPER_PAUSE) => {}
            }
        }
    });
    // A thread that reads from a dead mount must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn generations_unread(file: &Path) -> String {
    format!(
        "cannot read {}, which says which restored coordinators this host has met; remove it only if no older copy of a coordinator's store is \
         served any more",
        file.display()
    )
}

/// Waits until it is asked for (HUP), and reads the configuration again: what a running agent can
/// take up of it. What cannot be used is said, and changes nothing.
async fn reload(path: &Path, now: &AgentConfig, hangup: &mut Option<Signal>) -> AgentConfig {
    let Some(hangup) = hangup else {
        return std::future::pending().await;
    };
    loop {
        hangup.recv().await;
        service_manager::reloading();
        let new = AgentConfig::load(path);
        service_manager::ready("the configuration is read again");
        match new {
            Err(e) => tracing::error!(
                "everything stays as it is: {}",
                mezcal_common::model::escape::chain(&e)
            ),
            Ok(new) => {
                let later = now.differs_for_good(&new);
                if !later.is_empty() {
                    tracing::warn!(
                        "these keys are different now, and take effect when the agent is started again: {}",
                        later.join(", ")
                    );
                }
                tracing::info!("{} is read again", path.display());
                let (coordinator, enrol, connect_timeout) =
                    (new.coordinator, new.enrol, new.connect_timeout);
                return AgentConfig {
                    coordinator,
                    enrol,
                    connect_timeout,
                    ..now.clone()
                };
            }
        }
    }
}

/// Whether this agent has been asked to end, by TERM or INT: for good, and for all who want to
/// know, as often as they ask.
struct Stop(tokio::sync::watch::Receiver<bool>);

impl Stop {
    fn on_signals() -> anyhow::Result<Self> {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let (ask, asked) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            ask.send_replace(true);
            // Without a sender nobody would hear that it was asked.
            ask.closed().await;
        });
        Ok(Self(asked))
    }

    /// Completes when it is asked to, and at once from then on.
    async fn asked(&self) {
        let mut asked = self.0.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending().await
        }
    }

    fn is_asked(&self) -> bool {
        *self.0.borrow()
    }
}

/// For whoever starts agents without a service manager.
pub(crate) fn paths() -> anyhow::Result<()> {
    let path = crate::config::default_path()?;
    let config = AgentConfig::load(&path)?;
    let lock = engines_dir(&config)?.path().join(lock_name());
    let log = path.with_file_name("agent.log");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    println!(
        "config={}\nlock={}\nlog={}",
        quoted(&path),
        quoted(&lock),
        quoted(&log)
    );
    Ok(())
}
