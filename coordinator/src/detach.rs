//! `coordinator run --detach`: hands the jobs over and leaves them to the coordinator.

use crate::client::Remote;
use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::signals::Signals;
use crate::submit::Submitter;
use mezcal_common::wire::client::{BatchTerms, ToClient, ToService};
use std::sync::Arc;

/// Returns when the coordinator has everything and will not lose it. Prints the batch's id.
///
/// # Errors
/// Exit 3: refused, or the connection was lost before that.
pub(crate) async fn submit(mut remote: Remote, jobs: Arc<Jobs>, terms: BatchTerms, mut signals: Signals) -> Result<u8, Exit> {
    let batch = terms.context.batch;
    let requests = remote.port.requests.clone();
    let _ = requests.send(ToService::Open { terms: BatchTerms { detached: true, ..terms }, have: 0 }).await;
    let mut submitter = Submitter::new(jobs, batch);
    loop {
        tokio::select! {
            // What was handed over without its end is cancelled when its client lease is over.
            number = signals.next() => return Ok(128 + number),
            answer = remote.port.answers.recv() => match answer {
                Some(ToClient::Opened { host_sets, jobs, closed, .. }) => submitter.opened(host_sets, jobs, closed),
                Some(ToClient::Accepted { closed: true, .. }) => break,
                Some(ToClient::Refused { reason }) => return Err(Exit::unreachable(format!("the coordinator refused: {reason}"))),
                Some(_) => {}
                None => return Err(Exit::unreachable(remote.why_lost().await)),
            },
            Ok(permit) = requests.reserve(), if submitter.has_more() => permit.send(submitter.next_message()),
        }
    }
    remote.leave().await;
    println!("{batch}");
    Ok(0)
}
