//! `coordinator attach`, `results` and `wait`: batches that were left to the coordinator.

use crate::client::Remote;
use crate::complete;
use crate::exit::{self, Exit};
use crate::format::{ClientTimes, ResultFormat};
use crate::profile::ProfileArgs;
use crate::run::describe;
use crate::signals::Signals;
use clap_complete::ArgValueCompleter;
use mezcal_common::clock::WallTime;
use mezcal_common::escape::for_terminal;
use mezcal_common::ids::{BatchId, JobNumber};
use mezcal_common::outcome::JobResult;
use mezcal_common::wire::client::{Attachment, BatchStatus, ToClient, ToService};
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

/// Stream the results of a batch, those that there are and those to come.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(complete::batches))]
    pub batch: String,
    /// Where results go (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite a file that is not empty
    #[arg(long)]
    pub force: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Write the results that a batch has.
#[derive(Debug, clap::Args)]
pub struct ResultsArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(complete::batches))]
    pub batch: String,
    /// Only of jobs that did not succeed
    #[arg(long)]
    pub failed: bool,
    /// Where results go (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite a file that is not empty
    #[arg(long)]
    pub force: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Wait until all jobs of a batch have ended.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Its id, or the beginning of it
    #[arg(value_name = "BATCH", add = ArgValueCompleter::new(complete::batches))]
    pub batch: String,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs `attach`. Status 0 if all jobs ended with 0, else 1.
///
/// # Errors
/// Exit 2 and 3 as everywhere, 74 for the output.
pub fn attach(args: &AttachArgs) -> Result<u8, Exit> {
    let wish = Attachment::Results { failed: false, follow: true };
    follow(&args.profile, &args.batch, wish, Some((args.output.as_ref(), args.force)))
}

/// Runs `results`. Status 0, whatever they are.
///
/// # Errors
/// As [`attach`].
pub fn results(args: &ResultsArgs) -> Result<u8, Exit> {
    let wish = Attachment::Results { failed: args.failed, follow: false };
    follow(&args.profile, &args.batch, wish, Some((args.output.as_ref(), args.force))).map(|_| 0)
}

/// Runs `wait`. Status 0 if all jobs ended with 0, else 1.
///
/// # Errors
/// As [`attach`].
pub fn wait(args: &WaitArgs) -> Result<u8, Exit> {
    follow(&args.profile, &args.batch, Attachment::End, None)
}

fn open((path, force): (Option<&PathBuf>, bool)) -> Result<Box<dyn Write>, Exit> {
    match path.filter(|path| path.as_os_str() != "-") {
        None => Ok(Box::new(std::io::stdout().lock())),
        Some(path) => {
            if !force && std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
                return Err(Exit::usage(format!("{} is not empty; --force overwrites it", path.display())));
            }
            let file = std::fs::File::create(path).map_err(|e| Exit::usage(format!("cannot write {}: {e}", path.display())))?;
            Ok(Box::new(std::io::BufWriter::new(file)))
        }
    }
}

/// Follows a batch; `output` says where results go, if they are wanted, and whether they may replace others.
fn follow(profile: &ProfileArgs, batch: &str, wish: Attachment, output: Option<(Option<&PathBuf>, bool)>) -> Result<u8, Exit> {
    let (address, identity) = profile.remote()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Exit::usage)?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut remote = Remote::connect(&address, &identity).await?;
        let request = ToService::Attach { request: 1, batch: batch.into(), wish };
        let attached = remote.ask(request, |said| match said {
            ToClient::Attached { batch, .. } => Some(batch),
            _ => None,
        });
        let status = attached.await?.map_err(Exit::usage)?;
        let mut follower = Follower::new(&status, output.map(open).transpose()?);
        tokio::select! {
            // The batch goes on without us.
            number = signals.next() => Ok(128 + number),
            failed = follower.drive(&mut remote) => {
                let failed = failed?;
                remote.leave().await;
                Ok(if failed > 0 { exit::FAILED } else { 0 })
            }
        }
    })
}

struct Follower {
    batch: BatchId,
    submitted: WallTime,
    output: Option<Box<dyn Write>>,
    format: ResultFormat,
    texts: HashMap<JobNumber, String>,
    taken: u64,
}

impl Follower {
    fn new(status: &BatchStatus, output: Option<Box<dyn Write>>) -> Self {
        let format = ResultFormat::new(false);
        Self { batch: status.id, submitted: status.opened, output, format, texts: HashMap::new(), taken: 0 }
    }

    /// Follows the batch to its end. Gives back how many of its jobs did not succeed.
    async fn drive(&mut self, remote: &mut Remote) -> Result<u64, Exit> {
        loop {
            match remote.port.answers.recv().await {
                Some(ToClient::Described { jobs, .. }) => self.texts.extend(jobs),
                Some(ToClient::Results { results, .. }) => {
                    self.taken += results.len() as u64;
                    self.write(results)?;
                    let taken = ToService::Taken { batch: self.batch, results: self.taken };
                    let _ = remote.port.requests.send(taken).await;
                }
                Some(ToClient::Ended { failed, .. }) => return Ok(failed),
                Some(ToClient::Notice { notice, .. }) => eprintln!("coordinator: {}", for_terminal(&describe(&notice))),
                Some(ToClient::Refused { reason }) => return Err(Exit::unreachable(reason)),
                Some(_) => {}
                None => return Err(Exit::unreachable(remote.why_lost().await)),
            }
        }
    }

    fn write(&mut self, results: Vec<(JobNumber, JobResult)>) -> Result<(), Exit> {
        let Some(output) = &mut self.output else { return Ok(()) };
        let (mut lines, received) = (Vec::new(), WallTime::now());
        for (job, result) in results {
            let text = self.texts.remove(&job).unwrap_or_else(|| "{}".into());
            let times = ClientTimes { submitted: self.submitted, received };
            self.format.object_line(&mut lines, &text, &result, times);
        }
        let written = output.write_all(&lines).and_then(|()| output.flush());
        written.map_err(|e| match e.kind() {
            std::io::ErrorKind::BrokenPipe => Exit { status: exit::PIPE, message: String::new() },
            _ => Exit::output(e),
        })
    }
}
