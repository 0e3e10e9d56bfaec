//! The `agent` command.

use crate::config::{AgentConfig, RunAs};
use crate::keeper::driver::{KeeperArgs, PREDECESSOR};
use crate::kernel::packet;
use crate::supervisor::Carried;
use crate::supervisor::driver::{self, AgentParts, Left};
use crate::supervisor::generations::Generations;
use crate::supervisor::pauses::Pauses;
use crate::supervisor::renewal::Renewal;
use crate::supervisor::users;
use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mezcal_common::message::agent::ALPN;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::system::files::Directory;
use mezcal_common::system::service_manager;
use mezcal_common::wire::endpoint::Connector;
use mezcal_common::wire::tls::{Credentials, CredentialsError};
use rustix::fd::OwnedFd;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status for usage, configuration and certificates that a person has to mend.
const EXIT_USAGE: u8 = 2;
/// Exit status for credentials that cannot be used, and for a coordinator that gives none.
const EXIT_CREDENTIALS: u8 = 3;
/// How long a new keeper may take to open its socket: it waits for the engines of a dead one.
const KEEPER_START: Duration = PREDECESSOR.saturating_add(Duration::from_secs(5));
/// Between two looks at whether somebody has put another certificate in place.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(2);
/// Pause between two tries to renew a certificate that has expired, while nobody answers.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);
/// Pause before a keeper that was lost is replaced.
const KEEPER_PAUSE: Duration = Duration::from_millis(200);

/// The persistent worker of one host.
#[derive(Parser)]
#[command(name = "agent", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Connect to the coordinator and run its jobs, again and again until it is stopped.
    Run {
        /// The configuration file (default: /etc/mezcal/agent.toml, or what `agent join` has made
        /// without root).
        #[arg(long, env = "MEZCAL_CONFIG")]
        config: Option<PathBuf>,
    },
    Join(crate::verb::join::JoinArgs),
    Engines(crate::verb::engines::EnginesArgs),
    Doctor(crate::verb::doctor::DoctorArgs),
    AtBoot(crate::boot::BootArgs),
    /// Print where this host's files are, as assignments of a shell.
    #[command(hide = true)]
    Paths,
    /// Write the manual pages.
    #[command(hide = true)]
    Manual {
        /// Where to.
        dir: PathBuf,
    },
}

/// What the programs start themselves.
#[derive(Parser)]
struct HiddenCli {
    #[command(subcommand)]
    verb: Hidden,
}

/// Its verbs.
#[derive(Clone, Debug, Subcommand)]
pub enum Hidden {
    /// The engines' parent, and the engines.
    Keeper(KeeperArgs),
}

impl Hidden {
    /// If this process was started with one of these verbs, that one. Known before anything else
    /// is: describing all verbs takes longer than a keeper needs to begin.
    pub fn of_this_process() -> Option<Self> {
        let first = std::env::args_os().nth(1)?;
        (first == "keeper").then(|| HiddenCli::parse().verb)
    }

    /// Runs the process to its end.
    pub fn run(self) -> ExitCode {
        mezcal_common::system::logging::init("warn");
        let Hidden::Keeper(args) = self;
        // A session of its own: no terminal's signals reach what runs below, and no job can wait
        // for its keyboard. EPERM: it leads one already, as the first process of a unit does.
        if let Err(e) = rustix::process::setsid()
            && e != rustix::io::Errno::PERM
        {
            tracing::warn!(error = %e, "no session of its own");
        }
        match crate::keeper::driver::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                tracing::error!(error = %e, "keeper ends");
                ExitCode::FAILURE
            }
        }
    }
}

/// The program.
pub fn main(name: &'static str, args: impl Iterator<Item = OsString>) -> ExitCode {
    crate::keeper::driver::heed_children();
    if let Some(hidden) = Hidden::of_this_process() {
        return hidden.run();
    }
    let command = Cli::command().name(name).bin_name(name);
    let verb = match Cli::from_arg_matches(
        &command.get_matches_from([OsString::from(name)].into_iter().chain(args)),
    ) {
        Ok(cli) => cli.verb,
        Err(e) => e.exit(),
    };
    match verb {
        Verb::Run { config } => {
            mezcal_common::system::logging::init("info");
            ended(
                config
                    .map_or_else(crate::config::default_path, Ok)
                    .map_err(Into::into)
                    .and_then(|path| run(&path)),
            )
        }
        Verb::Paths => ended(paths()),
        Verb::Manual { dir } => {
            // As it is called where it is installed.
            let command = Cli::command().name("mezcal-agent").bin_name("mezcal-agent");
            ended(clap_mangen::generate_to(command, dir).map_err(Into::into))
        }
        Verb::Engines(args) => {
            mezcal_common::system::logging::init("info");
            ended(crate::verb::engines::run(&args))
        }
        Verb::Doctor(args) => {
            mezcal_common::system::logging::init("error");
            if crate::verb::doctor::run(&args) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Verb::AtBoot(args) => {
            mezcal_common::system::logging::init("error");
            match crate::boot::run(name, &args) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(e) => ended(Err(e)),
            }
        }
        Verb::Join(args) => {
            mezcal_common::system::logging::init("warn");
            ended(crate::verb::join::run(&args))
        }
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    let Err(e) = result else {
        return ExitCode::SUCCESS;
    };
    for line in mezcal_common::system::limits::named_in(&format!("{e:#}")).lines() {
        eprintln!(
            "agent: {}",
            mezcal_common::model::escape::for_terminal(line)
        );
    }
    let credentials = e
        .downcast_ref::<mezcal_common::wire::tls::CredentialsError>()
        .is_some();
    let refused = e.downcast_ref::<mezcal_certs::JoinError>().is_some();
    ExitCode::from(if credentials || refused {
        EXIT_CREDENTIALS
    } else {
        EXIT_USAGE
    })
}

fn run(path: &Path) -> anyhow::Result<()> {
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
            let mut engines = driver::engines_of(keepers, config.slots(), &name)?;
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

/// What tells one certificate file from another.
fn stamp(identity: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(identity.join("cert.pem"))
        .ok()
        .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// Completes when another certificate is there than this one: somebody has let the host join again.
async fn other_certificate(identity: &Path, known: Option<(u64, i64, i64)>) {
    while stamp(identity) == known {
        tokio::time::sleep(CERTIFICATE_LOOK).await;
    }
}

/// Has an expired certificate renewed: whoever has its key is known. Tries for as long as it takes,
/// or until somebody has put another one in place, `of` the same host if that is known.
async fn renewed(config: &AgentConfig, of: Option<&Identity>) -> anyhow::Result<Credentials> {
    let address = config.enrol();
    let mut said = String::new();
    let mut pauses = Pauses::default();
    loop {
        let tried = stamp(&config.identity);
        let pause;
        match mezcal_certs::renew_expired(&address, &config.identity, Role::Agent).await {
            Ok(()) => {
                tracing::info!("the certificate had expired; a new one is in use");
                return Ok(Credentials::load(&config.identity, Role::Agent)?);
            }
            Err(e) => {
                let text = mezcal_common::model::escape::chain(&e);
                if text != said {
                    tracing::error!(
                        "the certificate has expired and is not renewed: {text}; trying again"
                    );
                    said = text;
                }
                pause = pauses.failed(e.needs_a_person()).max(RENEWAL_PAUSE);
            }
        }
        // A host that cannot get one is up all the same, and says why.
        let status = format!("the certificate has expired: {said}");
        service_manager::ready(&status);
        service_manager::alive(&status);
        // The service manager wants to hear more often than that.
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                () = tokio::time::sleep(RENEWAL_PAUSE) => service_manager::alive(&status),
                () = other_certificate(&config.identity, tried) => {
                    if let Some(new) = put_in_place(&config.identity, of) {
                        return Ok(new);
                    }
                    break;
                }
            }
        }
    }
}

/// What somebody has put in place of a certificate, if it can be used: it has to be of the same
/// host, if that is known.
fn put_in_place(identity: &Path, of: Option<&Identity>) -> Option<Credentials> {
    match Credentials::load(identity, Role::Agent) {
        Ok(new) if of.is_none_or(|of| of == new.identity()) => {
            tracing::info!("another certificate was put in place, and is used");
            return Some(new);
        }
        Ok(new) => tracing::error!(
            "the certificate is now that of the {}: restart this agent to be that",
            new.identity()
        ),
        Err(e) => tracing::error!(
            "the certificate has changed and is not used: {}",
            mezcal_common::model::escape::chain(&e)
        ),
    }
    None
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
fn paths() -> anyhow::Result<()> {
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

fn lock_name() -> String {
    format!("{}.lock", rustix::process::geteuid().as_raw())
}

/// Holds this agent's place: two agents would take each other's keeper away.
fn lock(config: &AgentConfig) -> anyhow::Result<std::fs::File> {
    use std::io::Write;
    let mut file = engines_dir(config)?.lock_file(&lock_name())?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let pid = std::io::read_to_string(&file).unwrap_or_default();
        anyhow::bail!(
            "another agent (process {}) uses {}: stop it, or give this one a `runtime` of its own",
            pid.trim(),
            config.runtime_dir().display()
        );
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// The keeper's socket and the locks: whoever can change what is there can take the jobs.
fn engines_dir(config: &AgentConfig) -> anyhow::Result<Directory> {
    let dir = config.runtime_dir().join("engines");
    Directory::own(&dir).with_context(|| {
        format!(
            "{} cannot hold the engines' socket (`runtime` in agent.toml chooses another)",
            dir.display()
        )
    })
}

/// A keeper that nobody has talked to yet: it has started nothing, and ends with whoever waits for
/// it.
struct NewKeeper(Option<std::process::Child>);

impl Drop for NewKeeper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects to this user's keeper, starting one if there is none. Cancel-safe: what it has started
/// then ends.
async fn find_keeper(config: &AgentConfig, name: &str) -> anyhow::Result<OwnedFd> {
    let us = rustix::process::geteuid().as_raw();
    let socket = engines_dir(config)?.path().join(format!("{us}.sock"));
    match connect(&socket, us)? {
        Some(found) => {
            tracing::info!("found the keeper of an earlier agent");
            return Ok(found);
        }
        None => tracing::debug!("a new keeper"),
    }
    let mut command = driver::keeper_command(Path::new("/proc/self/exe"), name, config.containment);
    command
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .current_dir("/");
    command.env_clear().envs(config.job_environment());
    if let Some(log) = std::env::var_os("MEZCAL_LOG") {
        command.env("MEZCAL_LOG", log);
    }
    let mut new = NewKeeper(Some(
        command
            .spawn()
            .map_err(mezcal_common::system::limits::named)?,
    ));
    let deadline = std::time::Instant::now() + KEEPER_START;
    loop {
        if let Some(found) = connect(&socket, us)? {
            new.0 = None;
            return Ok(found);
        }
        if let Some(status) = new
            .0
            .as_mut()
            .map(std::process::Child::try_wait)
            .transpose()?
            .flatten()
        {
            anyhow::bail!("the keeper ended at once ({status}); its message is above");
        }
        if std::time::Instant::now() > deadline {
            anyhow::bail!(
                "the keeper did not open {} within {KEEPER_START:?}",
                socket.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The keeper that listens there, if one does.
fn connect(socket: &Path, us: u32) -> anyhow::Result<Option<OwnedFd>> {
    match packet::connect(socket, us) {
        Ok(keeper) => Ok(Some(keeper)),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(e.into()),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()) => {
            Err(e).with_context(|| format!("{} is too long for a socket's name", socket.display()))
        }
        // Nobody does, or not yet.
        Err(_) => Ok(None),
    }
}
