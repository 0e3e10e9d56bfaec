//! `coordinator logs`: the output of a job, from the host where it runs or ran.

use crate::client::Remote;
use crate::client::names::split_job;
use crate::client::profile::ProfileArgs;
use crate::exit::{self, Exit};
use mezcal_common::message::agent::{LogHeader, LogWish, Stream};
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::escape::TerminalText;
use mezcal_common::wire::bulk::{BulkReceiver, CutShort};
use std::io::{IsTerminal, Write};

/// Show what a job has written.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// BATCH/JOB: JOB is the job's `id` or number, BATCH the beginning of the batch's id;
    /// only JOB when you have one batch
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Go on until the job ends
    #[arg(short, long)]
    pub follow: bool,
    /// Standard output only
    #[arg(long, conflicts_with = "err")]
    pub out: bool,
    /// Standard error only
    #[arg(long)]
    pub err: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs the verb. The job's standard output comes on standard output, its standard error on
/// standard error.
///
/// # Errors
/// [`Exit`]: 1 if there is nothing to show or it was cut short, 3 without a coordinator, 141 when
/// the reader leaves.
pub fn run(args: &LogsArgs) -> Result<u8, Exit> {
    let (address, identity) = args.profile.remote()?;
    let (batch, job) = split_job(&args.job);
    let wish = LogWish {
        out: !args.err,
        err: !args.out,
        follow: args.follow,
    };
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut remote = Remote::connect(&address, &identity).await?;
        let pick = |said| match said {
            ToClient::LogsAnswer {
                request: 1,
                streams,
            } => Some(streams),
            _ => None,
        };
        let streams = remote
            .ask(
                ToService::Logs {
                    request: 1,
                    batch,
                    job,
                    wish,
                },
                pick,
            )
            .await?;
        let count = streams.map_err(|why| Exit {
            status: exit::FAILED,
            message: why,
        })?;
        let mut printing = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (header, stream) = remote.bulk::<LogHeader>().await.map_err(cut_short)?;
            printing.spawn(print(header.stream, stream));
        }
        while let Some(printed) = printing.join_next().await {
            printed.map_err(Exit::output)??;
        }
        remote.leave().await;
        Ok(0)
    });
    // A write that blocks must not delay the end.
    runtime.shutdown_background();
    status
}

async fn print(stream: Stream, mut from: BulkReceiver) -> Result<(), Exit> {
    let terminal = match stream {
        Stream::Out => std::io::stdout().is_terminal(),
        Stream::Err => std::io::stderr().is_terminal(),
    };
    // The job may be anybody's, and a terminal obeys control sequences in its output.
    let mut shown = terminal.then(TerminalText::default);
    while let Some(data) = from.read().await.map_err(cut_short)? {
        write(
            stream,
            shown
                .as_mut()
                .map_or_else(|| data.to_vec(), |shown| shown.push(&data).into_bytes()),
        )
        .await?;
    }
    match shown {
        Some(shown) => write(stream, shown.finish().into_bytes()).await,
        None => Ok(()),
    }
}

async fn write(stream: Stream, data: Vec<u8>) -> Result<(), Exit> {
    let writing = tokio::task::spawn_blocking(move || match stream {
        Stream::Out => std::io::stdout()
            .write_all(&data)
            .and_then(|()| std::io::stdout().flush()),
        Stream::Err => std::io::stderr().write_all(&data),
    });
    writing
        .await
        .map_err(Exit::output)?
        .map_err(|e| Exit::unwritten(&e))
}

fn cut_short(e: CutShort) -> Exit {
    Exit {
        status: exit::FAILED,
        message: e.to_string(),
    }
}
