//! The life of an agent (`agent run`), from one connection to the next, with the configuration and
//! the certificate that it has then.

mod certificate;
mod keeper;

use crate::config::{AgentConfig, RunAs};
use crate::supervisor::driver::{self, Left};
use crate::supervisor::generations::Generations;
use crate::supervisor::links::{self, Engines};
use crate::supervisor::parts::AgentParts;
use crate::supervisor::{Carried, users};
use anyhow::Context;
use certificate::Certificate;
use keeper::{engines_dir, find_keeper, keeper_that_is_there, lock, lock_name};
use mezcal_common::message::agent::ALPN;
use mezcal_common::model::escape::shell_word;
use mezcal_common::system::output::print;
use mezcal_common::system::service_manager;
use mezcal_common::wire::endpoint::Connector;
use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Pause before a keeper that was lost is replaced.
const KEEPER_PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let mut config = AgentConfig::load(path)?;
    let runtime = mezcal_common::system::runtime::start(None)?;
    // Before anything is renewed: of two agents that did that at once, one would lose.
    let _lock = lock(&config)?;
    let ended = runtime.block_on(async {
        // From here on an agent that is asked to end does so in order.
        let stop = Stop::on_signals()?;
        let mut hangup = hangup()?;
        loop {
            tokio::select! {
                biased;
                loaded = Certificate::load(&config) => {
                    return Life::begin(path, config, loaded?, stop, hangup).live().await;
                }
                () = stop.asked() => return end_without_certificate(&config).await,
                // The new certificate may be had elsewhere.
                new = reload(path, &config, &mut hangup) => config = new,
            }
        }
    });
    // A thread that reads from a dead mount must not hold up the end.
    runtime.shutdown_background();
    ended
}

/// An agent that has no certificate cannot report anything to the coordinator: it only ends the
/// keeper that an earlier agent has left. Keepers of users stay when an agent ends.
async fn end_without_certificate(config: &AgentConfig) -> anyhow::Result<()> {
    service_manager::stopping();
    match config.run_as {
        RunAs::Agent => keeper::stop(config).await,
        RunAs::User => Ok(()),
    }
}

/// The life of one agent after another in the same process.
struct Life<'a> {
    path: &'a Path,
    config: AgentConfig,
    certificate: Certificate,
    name: String,
    stop: Stop,
    hangup: Option<Signal>,
    /// The attempts that did not start under the agent before.
    carried: Carried,
}

/// The next step after an agent has ended.
enum Next {
    /// Another agent, at once.
    Again,
    /// Another agent, after a pause.
    Later,
    /// The end of the process.
    End,
}

impl<'a> Life<'a> {
    fn begin(
        path: &'a Path,
        config: AgentConfig,
        certificate: Certificate,
        stop: Stop,
        hangup: Option<Signal>,
    ) -> Self {
        Self {
            path,
            config,
            name: certificate.credentials().identity().name.clone(),
            certificate,
            stop,
            hangup,
            carried: Carried::default(),
        }
    }

    async fn live(mut self) -> anyhow::Result<()> {
        loop {
            // Before a keeper is started: it would stay if the parts cannot be had.
            let mut parts = self.parts()?;
            let Some((users, engines)) = self.engines().await? else {
                return Ok(());
            };
            parts.users = users;
            let reread = RefCell::new(None);
            let changed = async {
                tokio::select! {
                    new = reload(self.path, &self.config, &mut self.hangup) => {
                        *reread.borrow_mut() = Some(new);
                    }
                    () = self.certificate.replaced() => {}
                }
            };
            let ended = driver::run(parts, engines, self.stop.asked(), changed).await?;
            let (left, carried) = ended;
            self.carried = carried;
            match self.after(left, reread.take()).await? {
                Next::Again => {}
                Next::Later => tokio::select! {
                    () = self.stop.asked() => {}
                    () = tokio::time::sleep(KEEPER_PAUSE) => {}
                },
                Next::End => return Ok(()),
            }
        }
    }

    /// The engines of the next agent, and whose they are. None: this process is asked to end, and
    /// has no keeper that has to hear of it.
    async fn engines(&self) -> anyhow::Result<Option<(Option<Vec<String>>, Engines)>> {
        let (config, name) = (&self.config, &self.name);
        match config.run_as {
            RunAs::Agent => {
                let found = tokio::select! {
                    biased;
                    // An agent that is about to end starts no keeper: at a shutdown of the host
                    // nobody would be left to end that. One that is there is stopped in order.
                    () = self.stop.asked() => match keeper_that_is_there(config)? {
                        Some(keeper) => Ok(keeper),
                        None => return Ok(None),
                    },
                    found = find_keeper(config, name) => found,
                };
                let keeper = found.context("cannot start the keeper of the engines")?;
                let engines = links::engines_of(vec![keeper], config.slots(), name)?;
                Ok(Some((None, engines)))
            }
            // Keepers of users stay when an agent ends.
            RunAs::User if self.stop.is_asked() => Ok(None),
            RunAs::User => {
                let found = users::connect_all(&config.engines, config.slots());
                let (users, keepers): (Vec<_>, Vec<_>) = found.into_iter().unzip();
                let engines = links::engines_of(keepers, config.slots(), name)?;
                tracing::info!(
                    users = users.join(" "),
                    "runs jobs of the users who have engines here"
                );
                let finder = users::Finder::new(&config.engines, config.slots());
                Ok(Some((Some(users), engines.and_others(finder))))
            }
        }
    }

    /// The parts of the next agent, which takes over the attempts that the one before has left; its
    /// users are not known yet.
    fn parts(&mut self) -> anyhow::Result<AgentParts> {
        let (config, name) = (&self.config, &self.name);
        let generations = crate::config::generations_file(name);
        let parts = AgentParts {
            users: None,
            carried: std::mem::take(&mut self.carried),
            aliases: crate::config::aliases(name),
            name: name.clone(),
            slots: config.slots(),
            coordinator: config.coordinator.clone(),
            connector: Connector::new(self.certificate.credentials(), ALPN)?,
            connect_timeout: config.connect_timeout(),
            service: true,
            renewal: self.certificate.renewal(),
            generations: Generations::load(generations.clone())
                .with_context(|| generations_unread(&generations))?,
        };
        tracing::info!(
            host = name,
            slots = parts.slots,
            coordinator = parts.coordinator,
            "agent {} of {name}",
            mezcal_common::VERSION
        );
        Ok(parts)
    }

    /// Acts on the reason for which an agent has ended; `reread` is the configuration, if it was
    /// read again.
    async fn after(&mut self, left: Left, reread: Option<AgentConfig>) -> anyhow::Result<Next> {
        match left {
            Left::Stopped => {
                service_manager::stopping();
                return Ok(Next::End);
            }
            // Both may be new: who renews by hand puts files in place, and then asks for a reload.
            Left::Changed => {
                let is_other = self.certificate.take_replaced();
                let is_reread = reread.map(|new| self.config = new).is_some();
                // Otherwise the certificate's file was touched, and nothing is new.
                if is_other || is_reread {
                    return Ok(Next::Again);
                }
            }
            Left::Expired => {
                tokio::select! {
                    renewed = self.certificate.renew(&self.config) => renewed?,
                    () = self.stop.asked() => {}
                    new = reload(self.path, &self.config, &mut self.hangup) => self.config = new,
                }
                return Ok(Next::Again);
            }
            Left::Renewed { cert, key } => {
                self.certificate.install(cert, key);
                return Ok(Next::Again);
            }
            Left::KeeperReplaced => {
                tracing::info!(
                    "the engines of an earlier version have ended; those of version {} take their place",
                    mezcal_common::VERSION
                );
                return Ok(Next::Again);
            }
            // The engines kill their attempts, and end; a new keeper waits for that.
            Left::KeeperGone => {
                tracing::warn!("a keeper of engines is gone, and its jobs with it");
            }
        }
        Ok(Next::Later)
    }
}

fn generations_unread(file: &Path) -> String {
    format!(
        "cannot read {}, which says which restored coordinators this host has met; remove it only if no older copy of a coordinator's store is \
         served any more",
        file.display()
    )
}

/// Requests to reload (HUP), unless HUP means that the terminal is gone.
fn hangup() -> std::io::Result<Option<Signal>> {
    let reloads = service_manager::hangup_reloads();
    reloads.then(|| signal(SignalKind::hangup())).transpose()
}

/// Waits for a request to reload (HUP), and reads the configuration again: a running agent takes up
/// the keys that it can. A configuration that cannot be used is logged, and changes nothing.
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
                "nothing is changed: {}",
                mezcal_common::model::escape::chain(&e)
            ),
            Ok(new) => {
                let later = now.differs_for_good(&new);
                if !later.is_empty() {
                    tracing::warn!(
                        "these keys have changed, and take effect when the agent is started again: \
                         {}",
                        later.join(", ")
                    );
                }
                tracing::info!("{} was read again", path.display());
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

/// Whether this agent has been asked to end, by TERM or INT: for good, and for all tasks that want
/// to know, as often as they ask.
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
            // Without a sender nobody would hear that the agent was asked.
            ask.closed().await;
        });
        Ok(Self(asked))
    }

    /// Completes when the agent is asked to end, and at once from then on.
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

/// Prints the paths, for scripts that start agents without a service manager.
pub(crate) fn paths() -> anyhow::Result<()> {
    let path = crate::config::default_path()?;
    let config = AgentConfig::load(&path)?;
    let lock = engines_dir(&config)?.path().join(lock_name());
    let log = path.with_file_name("agent.log");
    let quoted = |path: &Path| shell_word(&path.display().to_string());
    print(format_args!(
        "config={}\nlock={}\nlog={}",
        quoted(&path),
        quoted(&lock),
        quoted(&log)
    ))?;
    Ok(())
}
