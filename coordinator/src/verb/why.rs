//! `coordinator why`: why a job does not run.

use crate::client::converse;
use crate::client::names::split_job;
use crate::client::profile::ProfileArgs;
use crate::exit::Exit;
use crate::report::format::show;
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::escape::for_terminal;

/// Say why a job does not run, host by host.
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// BATCH/JOB: JOB is the job's `id` or number, BATCH the beginning of the batch's id;
    /// only JOB when you have one batch
    #[arg(value_name = "JOB")]
    pub job: String,
    /// A JSON list of the reasons
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs the verb.
///
/// # Errors
/// [`Exit`]: 2 if there is no such job, 3 without a coordinator.
pub fn run(args: &WhyArgs) -> Result<u8, Exit> {
    let (batch, job) = split_job(&args.job);
    let pick = |said| match said {
        ToClient::Why {
            request: 1,
            reasons,
        } => Some(reasons),
        _ => None,
    };
    let asked = converse(&args.profile, async |remote| {
        remote
            .ask(
                ToService::Why {
                    request: 1,
                    batch,
                    job,
                },
                pick,
            )
            .await
    });
    let reasons = asked?.map_err(Exit::usage)?;
    let text = match args.json {
        true => serde_json::json!(reasons).to_string() + "\n",
        false => reasons
            .iter()
            .map(|line| format!("{}\n", for_terminal(line)))
            .collect(),
    };
    show(&text)?;
    Ok(0)
}
