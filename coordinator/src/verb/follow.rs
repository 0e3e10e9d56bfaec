//! `coordinator attach`, `results` and `wait`: batches that were left to the coordinator.

use crate::client::names;
use crate::client::profile::ProfileArgs;
use crate::client::signals::Signals;
use crate::client::{ReconnectArgs, Remote, keep_certificate};
use crate::exit::{self, Exit};
use crate::report::format::{ClientTimes, ResultFormat};
use crate::report::notice::describe;
use clap_complete::ArgValueCompleter;
use mezcal_common::message::client::{Attachment, ToClient, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::JobResult;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Stream the results of a batch: existing ones first, then new ones as jobs end.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: String,
    /// Where results go (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite a file that is not empty
    #[arg(long)]
    pub force: bool,
    /// What to do about a lost connection
    #[command(flatten)]
    pub reconnect: ReconnectArgs,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Write the results that a batch has so far.
#[derive(Debug, clap::Args)]
pub struct ResultsArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: String,
    /// Only results of jobs that did not succeed
    #[arg(long)]
    pub failed: bool,
    /// Where results go (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite a file that is not empty
    #[arg(long)]
    pub force: bool,
    /// What to do about a lost connection
    #[command(flatten)]
    pub reconnect: ReconnectArgs,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Wait until all jobs of a batch have ended.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(names::batches))]
    pub batch: String,
    /// What to do about a lost connection
    #[command(flatten)]
    pub reconnect: ReconnectArgs,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs `attach`. Status 0 if all jobs ended with 0, else 1.
///
/// # Errors
/// Exit 2 and 3 as everywhere, 74 for the output.
pub fn attach(args: &AttachArgs) -> Result<u8, Exit> {
    let wish = Attachment::Results {
        failed: false,
        follow: true,
    };
    follow(
        &args.profile,
        &args.reconnect,
        &args.batch,
        wish,
        Some((args.output.as_ref(), args.force)),
    )
}

/// Runs `results`. Status 0, whether the jobs succeeded or not.
///
/// # Errors
/// As [`attach`].
pub fn results(args: &ResultsArgs) -> Result<u8, Exit> {
    let wish = Attachment::Results {
        failed: args.failed,
        follow: false,
    };
    follow(
        &args.profile,
        &args.reconnect,
        &args.batch,
        wish,
        Some((args.output.as_ref(), args.force)),
    )
    .map(|_| 0)
}

/// Runs `wait`. Status 0 if all jobs ended with 0, else 1.
///
/// # Errors
/// As [`attach`].
pub fn wait(args: &WaitArgs) -> Result<u8, Exit> {
    follow(
        &args.profile,
        &args.reconnect,
        &args.batch,
        Attachment::End,
        None,
    )
}

/// Opens the place for results; the flag is true for a terminal.
fn open((path, force): (Option<&PathBuf>, bool)) -> Result<(Box<dyn Write>, bool), Exit> {
    match path.filter(|path| path.as_os_str() != "-") {
        None => Ok((
            Box::new(std::io::stdout().lock()),
            std::io::stdout().is_terminal(),
        )),
        Some(path) => {
            if !force && std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
            {
                return Err(Exit::usage(format!(
                    "{} is not empty; --force overwrites it",
                    path.display()
                )));
            }
            let mut options = std::fs::File::options();
            // The file gets texts of jobs from the coordinator's store, which nobody else may read.
            options.write(true).create(true).truncate(true).mode(0o600);
            let file = options
                .open(path)
                .map_err(|e| Exit::usage(format!("cannot write {}: {e}", path.display())))?;
            let terminal = file.is_terminal();
            Ok((Box::new(std::io::BufWriter::new(file)), terminal))
        }
    }
}

/// Follows a batch across restarts of its coordinator. `output` has the results file, if results
/// are wanted, and whether a file that is not empty may be overwritten.
fn follow(
    profile: &ProfileArgs,
    ReconnectArgs {
        reconnect: patience,
    }: &ReconnectArgs,
    batch: &str,
    wish: Attachment,
    output: Option<(Option<&PathBuf>, bool)>,
) -> Result<u8, Exit> {
    let (address, identity) = profile.remote()?;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let following = async {
        let mut remote = Remote::connect(&address, &identity).await?;
        tokio::spawn(keep_certificate(address, identity));
        let mut follower = Follower::new(batch, wish, output);
        loop {
            if let Some(failed) = follower.drive(&mut remote).await? {
                remote.leave().await;
                return Ok(if failed > 0 { exit::FAILED } else { 0 });
            }
            let why = remote.why_lost().await;
            if remote.is_lost_for_good() {
                return Err(Exit::unreachable(why));
            }
            tell!(
                "coordinator: {}; the batch goes on; trying to reach it again for {}",
                for_terminal(&why),
                format_duration(*patience)
            );
            if !remote.reach_again(*patience).await {
                return Err(Exit::unreachable(why));
            }
            tell!("coordinator: connected again");
        }
    };
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        tokio::select! {
            // The batch goes on without us.
            number = signals.next() => Ok(128 + number),
            done = following => done,
        }
    })
}

struct Follower<'a> {
    /// The beginning of its id; the whole id as soon as it is known.
    batch: String,
    wish: Attachment,
    /// When it was opened, once that is known.
    submitted: WallTime,
    /// The results file, and whether it may be overwritten.
    wanted: Option<(Option<&'a PathBuf>, bool)>,
    output: Option<Box<dyn Write>>,
    format: ResultFormat,
    texts: HashMap<JobNumber, String>,
    /// Results that all connections so far have brought. Every connection brings them in the order
    /// in which they were stored.
    written: u64,
}

impl<'a> Follower<'a> {
    fn new(batch: &str, wish: Attachment, wanted: Option<(Option<&'a PathBuf>, bool)>) -> Self {
        let (format, texts) = (ResultFormat::new(false), HashMap::new());
        Self {
            batch: batch.into(),
            wish,
            submitted: WallTime::now(),
            wanted,
            output: None,
            format,
            texts,
            written: 0,
        }
    }

    /// Follows the batch to its end and returns the number of its jobs that did not succeed; `None`
    /// if the connection ended first.
    async fn drive(&mut self, remote: &mut Remote) -> Result<Option<u64>, Exit> {
        let _ = remote
            .port
            .requests
            .send(ToService::Attach {
                request: 1,
                batch: self.batch.clone(),
                wish: self.wish,
            })
            .await;
        // Results that this connection has brought.
        let mut taken = 0;
        while let Some(answer) = remote.port.answers.recv().await {
            match answer {
                ToClient::Attached { batch, .. } => {
                    let status = batch.map_err(Exit::usage)?;
                    self.batch = status.id.to_string();
                    self.submitted = status.opened;
                    if let Some(wanted) = self.wanted.take() {
                        let (output, terminal) = open(wanted)?;
                        self.output = Some(output);
                        self.format = ResultFormat::new(false).on_terminal(terminal);
                    }
                }
                ToClient::Described { jobs, .. } => self.texts.extend(jobs),
                ToClient::Results { batch, mut results }
                | ToClient::CountedResults { batch, mut results } => {
                    let new = results.split_off(
                        (self.written.saturating_sub(taken) as usize).min(results.len()),
                    );
                    results
                        .iter()
                        .for_each(|(job, _)| drop(self.texts.remove(job)));
                    taken += (results.len() + new.len()) as u64;
                    self.written = self.written.max(taken);
                    self.write(new)?;
                    let _ = remote
                        .port
                        .requests
                        .send(ToService::Taken {
                            batch,
                            results: taken,
                        })
                        .await;
                }
                ToClient::Ended { failed, .. } => return Ok(Some(failed)),
                ToClient::Notice { notice, .. } => {
                    tell!("coordinator: {}", for_terminal(&describe(&notice)))
                }
                ToClient::Refused { reason } => return Err(Exit::unreachable(reason)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn write(&mut self, results: Vec<(JobNumber, JobResult)>) -> Result<(), Exit> {
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        let (mut lines, received) = (Vec::new(), WallTime::now());
        for (job, result) in results {
            let text = self.texts.remove(&job).unwrap_or_else(|| "{}".into());
            let times = ClientTimes {
                submitted: self.submitted,
                received,
            };
            self.format.object_line(&mut lines, &text, &result, times);
        }
        let written = output.write_all(&lines).and_then(|()| output.flush());
        written.map_err(|e| Exit::unwritten(&e))
    }
}
