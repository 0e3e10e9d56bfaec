//! `coordinator retry`, `forget`, `drain`, `undrain`, `confirm-dead`, `forget-host`, `backup` and
//! `restore`: one request, one answer.

use crate::client::ask::{self, done};
use crate::client::names::{self, expand};
use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, chain};
use crate::report::format::{counted, show};
use crate::service::config::{CoordinatorConfig, DEFAULT_PATH};
use crate::store::{self, Restored, StoreError};
use clap_complete::ArgValueCompleter;
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::duration::parse_duration;
use mezcal_common::system::config::read_toml;
use std::path::PathBuf;
use std::time::Duration;

/// Run jobs of an ended batch again, as a new detached one.
#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    /// The batch's id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: String,
    /// Only jobs that did not succeed
    #[arg(long)]
    pub failed: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Delete an ended batch with its jobs and results.
#[derive(Debug, clap::Args)]
pub struct ForgetArgs {
    /// The batch's id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: String,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Give hosts no more jobs; jobs that run there go on.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Hosts, as names or ranges
    #[arg(value_name = "HOST", required = true, add = ArgValueCompleter::new(names::hosts))]
    pub hosts: Vec<String>,
    /// End jobs that still run there after this long; they run again elsewhere
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// The reason, shown by `hosts` and `why`
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "no reason was given"
    )]
    pub message: String,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Give drained hosts jobs again.
#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    /// Hosts, as names or ranges
    #[arg(value_name = "HOST", required = true, add = ArgValueCompleter::new(names::hosts))]
    pub hosts: Vec<String>,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Confirm that an unreachable host is dead: its jobs run again elsewhere at once.
#[derive(Debug, clap::Args)]
pub struct ConfirmDeadArgs {
    /// Its name, short or in full. Jobs that still run there will run twice
    #[arg(value_name = "HOST", add = ArgValueCompleter::new(names::hosts))]
    pub host: String,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Remove hosts that were taken away, and revoke their certificates.
#[derive(Debug, clap::Args)]
pub struct ForgetHostArgs {
    /// Hosts that are not connected, as names or ranges
    #[arg(value_name = "HOST", required = true, add = ArgValueCompleter::new(names::hosts))]
    pub hosts: Vec<String>,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Copy the store of the coordinator on this host; it may be running.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The copy; must not exist
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The coordinator's configuration file
    #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

/// Replace the store of the coordinator on this host with a copy that `backup` made; the
/// coordinator must be stopped.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The copy
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The coordinator's configuration file
    #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs `retry`: prints the new batch's id.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn retry(args: &RetryArgs) -> Result<u8, Exit> {
    let request = ToService::Retry {
        request: 1,
        batch: args.batch.clone(),
        failed: args.failed,
    };
    let retried = ask::once(&args.profile, request, |said| match said {
        ToClient::Retried { batch, .. } => Some(batch),
        _ => None,
    });
    let (batch, jobs) = retried?.map_err(Exit::usage)?;
    let again = counted(jobs, "job runs again", "jobs run again");
    tell!("{again}; `coordinator attach {batch}` shows the results");
    show(&format!("{batch}\n"))?;
    Ok(0)
}

/// Runs `forget`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn forget(args: &ForgetArgs) -> Result<u8, Exit> {
    done(
        &args.profile,
        ToService::Forget {
            request: 1,
            batch: args.batch.clone(),
        },
    )
}

/// Runs `drain`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn drain(args: &DrainArgs) -> Result<u8, Exit> {
    let (hosts, reason) = (expand(&args.hosts)?, Some(args.message.clone()));
    done(
        &args.profile,
        ToService::Drain {
            request: 1,
            hosts,
            reason,
            deadline: args.deadline,
        },
    )
}

/// Runs `undrain`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn undrain(args: &UndrainArgs) -> Result<u8, Exit> {
    done(
        &args.profile,
        ToService::Drain {
            request: 1,
            hosts: expand(&args.hosts)?,
            reason: None,
            deadline: None,
        },
    )
}

/// Runs `confirm-dead`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn confirm_dead(args: &ConfirmDeadArgs) -> Result<u8, Exit> {
    done(
        &args.profile,
        ToService::ConfirmDead {
            request: 1,
            host: args.host.clone(),
        },
    )
}

/// Runs `forget-host`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn forget_host(args: &ForgetHostArgs) -> Result<u8, Exit> {
    done(
        &args.profile,
        ToService::ForgetHosts {
            request: 1,
            hosts: expand(&args.hosts)?,
        },
    )
}

/// Runs `backup`.
///
/// # Errors
/// Exit 2: no such configuration or store; the file exists.
pub fn backup(args: &BackupArgs) -> Result<u8, Exit> {
    let config: CoordinatorConfig = read_toml(&args.config).map_err(|e| Exit::usage(chain(&e)))?;
    if args.file.symlink_metadata().is_ok() {
        return Err(Exit::usage(format!(
            "{} exists; a backup overwrites nothing",
            args.file.display()
        )));
    }
    store::backup(&config.state_dir(), &args.file).map_err(|e| Exit::usage(chain(&e)))?;
    Ok(0)
}

/// Runs `restore`.
///
/// # Errors
/// Exit 2: no such configuration or copy; 3: a coordinator is running.
pub fn restore(args: &RestoreArgs) -> Result<u8, Exit> {
    let config: CoordinatorConfig = read_toml(&args.config).map_err(|e| Exit::usage(chain(&e)))?;
    let failed =
        |e: std::io::Error| Exit::usage(format!("cannot read {}: {e}", args.file.display()));
    // Opened with our own rights: the store's account may be unable to read it.
    let file = std::fs::File::open(&args.file).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Exit::usage(format!(
            "{} is not a file",
            args.file.display()
        )));
    }
    let directory = config.state_dir();
    let no_directory =
        |e: std::io::Error| Exit::usage(format!("cannot use {}: {e}", directory.display()));
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(&directory).map_err(no_directory)?;
    let restored = store::as_owner_of(&directory, || store::restore(&directory, &file, &args.file))
        .map_err(no_directory)?;
    let Restored { copied, kept } = restored.map_err(|e| match e {
        StoreError::Held { .. } => Exit::unreachable(format!("{}: stop it first", chain(&e))),
        e => Exit::usage(chain(&e)),
    })?;
    tell!(
        "{} holds {} now, {copied}",
        directory.display(),
        args.file.display()
    );
    if let Some(kept) = kept {
        tell!("the store that was there is kept as {}", kept.display());
    }
    tell!(
        "`coordinator serve` takes it up: old batches wait there until none of their jobs can run \
         any more (`--nothing-runs` if you know that none do); join tokens are void; then check \
         `coordinator certs list`"
    );
    Ok(0)
}
