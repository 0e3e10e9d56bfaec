//! `coordinator run --detach`: hands the jobs over and leaves them to the coordinator.

use crate::client::Remote;
use crate::client::signals::Signals;
use crate::client::submit::Submitter;
use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::report::format::show;
use mezcal_common::message::client::{BatchTerms, SAYS_MORE, ToClient, ToService};
use mezcal_common::model::duration::format_duration;
use std::sync::Arc;
use std::time::Duration;

/// The result of handing the jobs over by one connection.
enum Handed {
    /// The coordinator has all jobs, and will not lose them.
    Over,
    Lost,
    Refused(String),
    Signal(u8),
}

/// Returns when the coordinator has all jobs and will not lose them. Prints the batch's id; an
/// error names it, too. A lost connection is tried again for as long as `patience`.
///
/// # Errors
/// Exit 3: refused, or the coordinator was lost for longer than that.
pub(crate) async fn submit(
    mut remote: Remote,
    jobs: Arc<Jobs>,
    terms: BatchTerms,
    mut signals: Signals,
    patience: Duration,
) -> Result<u8, Exit> {
    let batch = terms.context.batch;
    let terms = BatchTerms {
        detached: true,
        ..terms
    };
    let mut submitter = Submitter::new(jobs, batch);
    let unfinished = format!(
        "nothing of batch {batch} starts unless it was handed over whole (`coordinator batches`)"
    );
    loop {
        let why = match hand_over(&mut remote, &terms, &mut submitter, &mut signals).await {
            Handed::Over => break,
            Handed::Lost => remote.why_lost().await,
            Handed::Refused(reason) => {
                return Err(Exit::unreachable(format!(
                    "the coordinator refused: {reason}; {unfinished}"
                )));
            }
            Handed::Signal(number) => {
                tell!("{unfinished}");
                return Ok(128 + number);
            }
        };
        submitter.interrupted();
        if remote.is_lost_for_good() {
            return Err(Exit::unreachable(format!("{why}; {unfinished}")));
        }
        let tried = format_duration(patience);
        tell!(
            "{why}; trying to reach it again for {tried}, to hand over the rest of batch {batch}"
        );
        let reached = tokio::select! {
            reached = remote.reach_again(patience) => reached,
            number = signals.next() => {
                tell!("{unfinished}");
                return Ok(128 + number);
            }
        };
        if !reached {
            return Err(Exit::unreachable(format!(
                "{why}, and it was not reached again within {tried}; {unfinished}"
            )));
        }
    }
    remote.leave().await;
    // The batch runs, whether or not that can be told on standard output.
    show(&format!("{batch}\n")).map_err(|e| Exit {
        message: format!("{}; batch {batch} was handed over whole", e.message),
        ..e
    })?;
    Ok(0)
}

/// Hands over, by one connection, the jobs that the coordinator does not have yet.
async fn hand_over(
    remote: &mut Remote,
    terms: &BatchTerms,
    submitter: &mut Submitter,
    signals: &mut Signals,
) -> Handed {
    let batch = terms.context.batch;
    let requests = remote.port.requests.clone();
    // The loop below notices a lost connection as the end of the answers.
    let _ = requests
        .send(ToService::Open {
            terms: terms.clone(),
            have: 0,
        })
        .await;
    loop {
        tokio::select! {
            // The coordinator cancels an incomplete batch when its client lease is over.
            number = signals.next() => return Handed::Signal(number),
            answer = remote.port.answers.recv() => match answer {
                // It has ended; or an old coordinator, which says no more, has all jobs.
                Some(ToClient::Opened { jobs, closed: true, .. }) if jobs == u64::MAX || remote.version < SAYS_MORE => return Handed::Over,
                Some(ToClient::Opened { host_sets, jobs, closed, .. }) => {
                    submitter.opened(host_sets, jobs, closed);
                    if closed {
                        // The answer to this tells whether the jobs are safe.
                        let _ = requests.send(ToService::Close { batch }).await;
                    }
                }
                Some(ToClient::Accepted { closed: true, .. }) => return Handed::Over,
                Some(ToClient::Refused { reason }) => return Handed::Refused(reason),
                Some(_) => {}
                None => return Handed::Lost,
            },
            Ok(permit) = requests.reserve(), if submitter.has_more() => permit.send(submitter.next_message()),
        }
    }
}
