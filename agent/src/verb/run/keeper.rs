//! The keeper of an agent that runs jobs in its own account, and the lock that keeps a second such
//! agent out.

use crate::config::AgentConfig;
use crate::keeper::driver::PREDECESSOR;
use crate::keeper::start;
use crate::kernel::packet;
use anyhow::Context;
use mezcal_common::message::engine::{FromKeeper, ToKeeper};
use mezcal_common::system::files::Directory;
use rustix::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// How long a new keeper may take to open its socket: it waits for the engines of a dead one.
const KEEPER_START: Duration = PREDECESSOR.saturating_add(Duration::from_secs(5));

/// How long to wait for the end of a keeper that was told to stop.
const KEEPER_END: Duration = PREDECESSOR;

pub(super) fn lock_name() -> String {
    format!("{}.lock", rustix::process::geteuid().as_raw())
}

/// Holds this agent's place: two agents would take each other's keeper away.
pub(super) fn lock(config: &AgentConfig) -> anyhow::Result<std::fs::File> {
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

/// The directory of the keeper's socket and of the locks: an account that can change things there
/// can take the jobs.
pub(super) fn engines_dir(config: &AgentConfig) -> anyhow::Result<Directory> {
    let dir = config.runtime_dir().join("engines");
    Directory::own(&dir).with_context(|| {
        format!(
            "{} cannot hold the engines' socket (`runtime` in agent.toml chooses another)",
            dir.display()
        )
    })
}

/// A keeper that nobody has talked to yet: it has started nothing, and ends with the task that
/// waits for it.
struct NewKeeper(Option<std::process::Child>);

impl Drop for NewKeeper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This user's keeper, if there is one.
pub(super) fn keeper_that_is_there(config: &AgentConfig) -> anyhow::Result<Option<OwnedFd>> {
    let (us, socket) = socket(config)?;
    connect(&socket, us)
}

/// Ends this user's keeper with its engines and all that they run, if there is one, and waits for
/// that.
pub(super) async fn stop(config: &AgentConfig) -> anyhow::Result<()> {
    let Some(keeper) = keeper_that_is_there(config)? else {
        return Ok(());
    };
    tracing::info!("stopping the keeper of an earlier agent");
    packet::send(&keeper, &ToKeeper::Stop, None)?;
    // All that it says is read: a socket that is closed with something unread in it is reset, and
    // keepers of earlier versions then lose the message.
    let ends = move || while let Ok(Some(_)) = packet::receive::<FromKeeper>(&keeper) {};
    let ended = tokio::time::timeout(KEEPER_END, tokio::task::spawn_blocking(ends)).await;
    ended.with_context(|| format!("the keeper has not ended within {KEEPER_END:?}"))??;
    Ok(())
}

/// This user, and where their keeper listens.
fn socket(config: &AgentConfig) -> anyhow::Result<(u32, PathBuf)> {
    let us = rustix::process::geteuid().as_raw();
    Ok((us, engines_dir(config)?.path().join(format!("{us}.sock"))))
}

/// Connects to this user's keeper, starting one if there is none. Cancel-safe: what it has started
/// then ends.
pub(super) async fn find_keeper(config: &AgentConfig, name: &str) -> anyhow::Result<OwnedFd> {
    let (us, socket) = socket(config)?;
    match connect(&socket, us)? {
        Some(found) => {
            tracing::info!("found the keeper of an earlier agent");
            return Ok(found);
        }
        None => tracing::debug!("a new keeper"),
    }
    let mut command = start::command(Path::new("/proc/self/exe"), name, config.containment);
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
            .map_err(mezcal_common::model::limits::named)?,
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
        // Nobody listens, or not yet.
        Err(_) => Ok(None),
    }
}
