//! The messages of a coordinator that concern a client that runs a batch.

use bytes::Bytes;
use mezcal_common::message::agent::Stream;
use mezcal_common::message::client::{CancelSummary, HostStatus, Notice, ToClient};
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::outcome::JobResult;

/// A message about the client's batch, or an answer to a request that such clients make.
pub(crate) enum Said {
    Fleet {
        agents: u32,
        engines: u32,
    },
    Opened {
        host_sets: u64,
        jobs: u64,
        closed: bool,
    },
    Accepted {
        jobs: u64,
        closed: bool,
    },
    Results(Vec<(JobNumber, JobResult)>),
    Notice(Notice),
    Output {
        job: JobNumber,
        stream: Stream,
        data: Bytes,
    },
    /// A page of hosts, and whether more pages follow.
    Hosts(Vec<HostStatus>, bool),
    Cancelled {
        request: u64,
        summary: CancelSummary,
    },
    Refused(String),
}

impl Said {
    /// None: the answer to a question that only other clients ask.
    pub(crate) fn of(message: ToClient) -> Option<Self> {
        Some(match message {
            ToClient::Fleet { agents, engines } => Said::Fleet { agents, engines },
            ToClient::Opened {
                host_sets,
                jobs,
                closed,
                ..
            } => Said::Opened {
                host_sets,
                jobs,
                closed,
            },
            ToClient::Accepted { jobs, closed, .. } => Said::Accepted { jobs, closed },
            ToClient::Results { results, .. } | ToClient::CountedResults { results, .. } => {
                Said::Results(results)
            }
            ToClient::Notice { notice, .. } => Said::Notice(notice),
            ToClient::Output {
                job, stream, data, ..
            } => Said::Output { job, stream, data },
            ToClient::Hosts(hosts) => Said::Hosts(hosts, false),
            ToClient::HostsPage { hosts, more } => Said::Hosts(hosts, more),
            ToClient::Cancelled { request, summary } => Said::Cancelled { request, summary },
            ToClient::Refused { reason } => Said::Refused(reason),
            ToClient::Welcome { .. }
            | ToClient::LogsAnswer { .. }
            | ToClient::Attached { .. }
            | ToClient::Described { .. }
            | ToClient::Ended { .. }
            | ToClient::Batches { .. }
            | ToClient::BatchesApart { .. }
            | ToClient::Retried { .. }
            | ToClient::Done { .. }
            | ToClient::Why { .. }
            | ToClient::Unserved { .. }
            | ToClient::Standings { .. }
            | ToClient::Failing { .. }
            | ToClient::TokensCreated { .. }
            | ToClient::Tokens { .. }
            | ToClient::Certificates { .. }
            | ToClient::Renewed { .. }
            | ToClient::CancelWaits { .. }
            | ToClient::Revoked { .. } => return None,
        })
    }
}
