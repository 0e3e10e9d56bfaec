//! `coordinator run`: a job list in, results out.

mod args;
mod arguments;
mod batch;
mod detach;
mod halt;
mod input;
mod resume;
mod stream;
mod words;

use crate::client::cluster::connect;
use crate::client::embedded;
use crate::client::profile::Cluster;
use crate::client::signals::Signals;
use crate::exit::{self, Exit};
pub use args::RunArgs;
use batch::Run;
use input::{Prepared, Work, dry_run, prepare};
pub(crate) use words::{parse, usage};

/// Runs the verb; the exit status is the answer.
///
/// # Errors
/// [`Exit`] with the status and a message.
pub fn run(args: &RunArgs) -> Result<u8, Exit> {
    let profile = args.profile.resolve(args.local, args.listen)?;
    args.check(&profile)?;
    if args.dry_run {
        return dry_run(args);
    }
    let outputs = args.outputs(input::files(args));
    if !args.stream {
        outputs.check()?;
    }
    let keeper = match profile.cluster {
        Cluster::Embedded => Some(embedded::start_keeper(args.containment)?),
        Cluster::Listen { .. } | Cluster::Remote { .. } => None,
    };
    let Some(prepared) = prepare(args, &profile, &outputs)? else {
        return Ok(0);
    };
    let Prepared {
        work,
        terms,
        manner,
    } = prepared;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let connected = tokio::select! {
            connected = connect(&profile, keeper, args.slots, args.locality_wait) => connected?,
            // Nothing has been started yet.
            number = signals.next() => return Ok(128 + number),
        };
        match work {
            Work::List(list) => {
                let run = Run::new(*list, terms, manner, connected, signals)?;
                run.drive().await
            }
            Work::Left(jobs) => {
                let remote = connected.into_remote().ok_or_else(|| Exit {
                    status: exit::BUG,
                    message: "nobody to leave the jobs to".into(),
                })?;
                detach::submit(remote, jobs, terms, signals, manner.patience).await
            }
            Work::Stream(lines) => stream::run(lines, terms, manner, connected, signals).await,
        }
    });
    // Reads of stdin and the like may still block a thread of the runtime.
    runtime.shutdown_background();
    status
}
