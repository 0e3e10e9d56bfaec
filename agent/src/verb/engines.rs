//! `agent engines`: the program of `mezcal-engines@USER.service`, which runs as that user: a keeper
//! for the agent, which has another account.

use anyhow::{Context, bail};
use mezcal_common::system::account;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Root's settings for all users' engines.
pub const DEFAULT_PATH: &str = "/etc/mezcal/engines.toml";
/// Accounts with a lower user id are the system's.
const FIRST_USER: u32 = 1000;

/// Run the jobs of one user for the agent of this host; started by mezcal-engines@USER.service.
#[derive(Debug, clap::Args)]
pub struct EnginesArgs {
    /// Directory of the socket; only this user and the agent's account should be able to enter it
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// The agent's account: nobody else may connect
    #[arg(long, value_name = "USER", default_value = crate::verb::join::ACCOUNT)]
    pub agent: String,
    /// The configuration file, which must belong to root; it may be missing
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

/// `engines.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EnginesConfig {
    /// System accounts (user ids below 1000) whose jobs may run all the same; default: none.
    allow_users: Vec<String>,
    /// `PATH` of jobs.
    path: Option<String>,
    /// `LANG` of jobs.
    lang: Option<String>,
}

/// Becomes the keeper of this user's engines.
///
/// # Errors
/// An error text for the user.
pub fn run(args: &EnginesArgs) -> anyhow::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let name = account::name_of(uid);
    let config = read(&args.config)?;
    if uid == 0 {
        bail!(
            "jobs never run as root: enable mezcal-engines@USER.service for the users of the cluster"
        );
    }
    if uid < FIRST_USER && !config.allow_users.contains(&name) {
        bail!(
            "{name} is a system account (uid {uid}): write `allow_users = [\"{name}\"]` into {}",
            args.config.display()
        );
    }
    let agent = account::named(&args.agent)
        .with_context(|| format!("there is no account {}; the package makes it", args.agent))?;
    let environment =
        crate::config::job_environment(config.path.as_deref(), config.lang.as_deref());
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg0("mezcal-keeper").args([
        "keeper",
        "--host",
        "localhost",
        "--agent",
        &agent.uid.to_string(),
    ]);
    keeper
        .arg("--socket")
        .arg(args.directory.join(crate::supervisor::users::SOCKET))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .current_dir("/");
    keeper.env_clear().envs(environment);
    if let Some(log) = std::env::var_os("MEZCAL_LOG") {
        keeper.env("MEZCAL_LOG", log);
    }
    Err(keeper.exec()).context("cannot become the keeper")
}

fn read(path: &Path) -> anyhow::Result<EnginesConfig> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(EnginesConfig::default()),
        file => {
            std::fs::File::from(file.with_context(|| format!("cannot read {}", path.display()))?)
        }
    };
    let meta = file.metadata()?;
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        bail!(
            "{} must belong to root, and nobody else may write to it",
            path.display()
        );
    }
    Ok(mezcal_common::system::config::read_toml(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::system::config::check_sample;

    /// The sample that packages install: keys that are commented out count, too, and no key of the
    /// parser is missing.
    #[test]
    fn the_sample_has_every_key_and_is_read() {
        let sample = include_str!("../../../systemd/samples/engines.toml");
        assert_eq!(check_sample::<EnginesConfig>(sample), Ok(()));
    }
}
