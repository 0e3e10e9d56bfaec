//! Between client and coordinator: `mezcal-client/1`, one bidirectional stream, opened by the
//! client.

mod members;
mod notice;
mod selection;
mod status;
mod submission;
mod versions;

pub use members::{CertificateStatus, Member, RevokedMember, TokenStatus};
pub use notice::Notice;
pub use selection::{CancelSummary, CancelWait, Selector};
pub use status::{Attachment, BatchStatus, FailingHost, HostStanding, HostStatus, SetAside};
pub use submission::{BatchTerms, Halt, HaltCount, HaltWhy, RetryOn, Submission};
pub use versions::{
    COUNTS_APART, COUNTS_OUTPUT, HOSTS_IN_PAGES, SAYS_FAILING, SAYS_MORE, STANDINGS, UNSERVED,
    VERSIONS,
};

use crate::message::agent::{LogWish, Stream};
use crate::model::ids::{BatchId, JobNumber};
use crate::model::job::Stop;
use crate::model::outcome::JobResult;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The protocol's name in TLS (ALPN).
pub const ALPN: &[u8] = b"mezcal-client/1";

/// From client to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToService {
    /// The first message.
    Hello {
        /// Range of minor protocol versions.
        versions: (u16, u16),
        /// Version of the program.
        program: String,
    },
    /// A new batch; precedes its jobs. Repeated by the same user it is the same batch, and
    /// continues where it was. Answered by [`ToClient::Opened`].
    Open {
        /// Its terms, with its id.
        terms: BatchTerms,
        /// Number of results that the client has kept.
        have: u64,
    },
    /// More jobs of a batch.
    Submit {
        /// Id of the batch.
        batch: BatchId,
        /// Host sets to append to the batch's table.
        host_sets: Vec<Vec<String>>,
        /// Jobs in order of input.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Close {
        /// Id of the batch.
        batch: BatchId,
    },
    /// The client has kept this many results of the batch.
    Taken {
        /// Id of the batch.
        batch: BatchId,
        /// Cumulative count.
        results: u64,
    },
    /// Kill the jobs of these that run, and let none of the others start. Answered by
    /// [`ToClient::Cancelled`] when that is done.
    Cancel {
        /// Repeated in the answer.
        request: u64,
        /// The jobs to cancel.
        what: Vec<Selector>,
        /// Signal and grace.
        stop: Stop,
    },
    /// Requests [`ToClient::HostsPage`], or [`ToClient::Hosts`] where the coordinator or the client
    /// is too old for that.
    Hosts,
    /// The client has taken this much streamed output.
    OutputTaken {
        /// Id of the batch.
        batch: BatchId,
        /// Number of the job.
        job: JobNumber,
        /// Number of bytes.
        bytes: u32,
    },
    /// Requests a job's output. Answered by [`ToClient::LogsAnswer`] and streams that begin with a
    /// [`crate::message::agent::LogHeader`].
    Logs {
        /// Repeated in the answer and in the streams' headers.
        request: u64,
        /// Its batch, as in [`Selector::Job`].
        batch: String,
        /// The job, as in [`Selector::Job`].
        job: String,
        /// The part of its output.
        wish: LogWish,
    },
    /// Requests to follow a batch. Answered by [`ToClient::Attached`], and then by the results or
    /// the end that were requested.
    Attach {
        /// Repeated in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
        /// The part of it to follow.
        wish: Attachment,
    },
    /// Requests a list of all batches of the user. Answered by [`ToClient::BatchesApart`], or by
    /// [`ToClient::Batches`] where the coordinator or the client is too old for that.
    Batches {
        /// Repeated in the answer.
        request: u64,
        /// The batches of all users, if this one is an admin.
        all: bool,
    },
    /// Requests that jobs of an ended batch run again, as a new batch. Answered by
    /// [`ToClient::Retried`].
    Retry {
        /// Repeated in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
        /// Only the jobs that did not succeed.
        failed: bool,
    },
    /// Requests that an ended batch is deleted. Answered by [`ToClient::Done`].
    Forget {
        /// Repeated in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
    },
    /// Starts or ends drains of hosts. Answered by [`ToClient::Done`].
    Drain {
        /// Repeated in the answer.
        request: u64,
        /// Names of the hosts.
        hosts: Vec<String>,
        /// The reason of the drain; none: the drain ends.
        reason: Option<String>,
        /// Time after which jobs that still run there are evicted; none: never.
        deadline: Option<Duration>,
    },
    /// Vouches that no job runs any more on a host that cannot be reached. Answered by
    /// [`ToClient::Done`].
    ConfirmDead {
        /// Repeated in the answer.
        request: u64,
        /// The host's full name.
        host: String,
    },
    /// Asks why a job does not run. Answered by [`ToClient::Why`].
    Why {
        /// Repeated in the answer.
        request: u64,
        /// Its batch, as in [`Selector::Job`].
        batch: String,
        /// The job, as in [`Selector::Job`].
        job: String,
    },
    /// Requests join tokens, one for each name. Answered by [`ToClient::TokensCreated`].
    CreateTokens {
        /// Repeated in the answer.
        request: u64,
        /// Whether they are for hosts or users.
        member: Member,
        /// Names of the hosts or users.
        names: Vec<String>,
        /// How long the tokens are valid.
        ttl: Duration,
        /// A member that uses one replaces the certificates that its name has.
        replace: bool,
    },
    /// Requests a list of join tokens. Answered by [`ToClient::Tokens`].
    Tokens {
        /// Repeated in the answer.
        request: u64,
    },
    /// Requests that an unused join token is deleted. Answered by [`ToClient::Done`].
    DeleteToken {
        /// Repeated in the answer.
        request: u64,
        /// The token's id.
        id: String,
    },
    /// Revokes all certificates of hosts or users. Answered by [`ToClient::Done`].
    Revoke {
        /// Repeated in the answer.
        request: u64,
        /// Whether these are hosts or users.
        member: Member,
        /// Names of the hosts or users.
        names: Vec<String>,
    },
    /// Requests the list of certificates. Answered by [`ToClient::Certificates`].
    Certificates {
        /// Repeated in the answer.
        request: u64,
    },
    /// Deletes hosts that have left the cluster, and revokes their certificates. Answered by
    /// [`ToClient::Done`].
    ForgetHosts {
        /// Repeated in the answer.
        request: u64,
        /// The hosts' full names.
        hosts: Vec<String>,
    },
    /// Requests another certificate for the client's own identity, for a new key. Answered by
    /// [`ToClient::Renewed`].
    Renew {
        /// Repeated in the answer.
        request: u64,
        /// A certificate signing request (PKCS #10, DER). Only its key counts.
        csr: Bytes,
    },
    /// Requests a list of users whose jobs a host does not run although they have engines there.
    /// Answered by [`ToClient::Unserved`].
    Unserved {
        /// Repeated in the answer.
        request: u64,
    },
    /// Requests a list of the attempts that a cancel of this connection waits for. Answered by
    /// [`ToClient::CancelWaits`].
    CancelWaits {
        /// Number of the cancel.
        request: u64,
    },
    /// Revokes all certificates of hosts or users, and ends their jobs and connections. Answered by
    /// [`ToClient::Revoked`].
    RevokeMembers {
        /// Repeated in the answer.
        request: u64,
        /// Whether these are hosts or users.
        member: Member,
        /// Names of the hosts or users.
        names: Vec<String>,
        /// The batches of these users continue.
        keep_batches: bool,
        /// Revoke even if no admin remains.
        force: bool,
    },
    /// Requests facts about hosts beside their status. Answered by [`ToClient::Standings`].
    Standings {
        /// Repeated in the answer.
        request: u64,
    },
    /// Requests a list of connected hosts whose engines do not start. Answered by
    /// [`ToClient::Failing`].
    Failing {
        /// Repeated in the answer.
        request: u64,
    },
}

/// From coordinator to client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToClient {
    /// The first answer: the client is accepted.
    Welcome {
        /// The protocol version in use.
        version: u16,
        /// Version of the program.
        program: String,
    },
    /// Numbers of agents and engines; sent again at each change.
    Fleet {
        /// Number of connected agents.
        agents: u32,
        /// Number of their slots.
        engines: u32,
    },
    /// The parts of the batch that the coordinator has: the client that opened it continues from
    /// there.
    Opened {
        /// Id of the batch.
        batch: BatchId,
        /// Number of host sets.
        host_sets: u64,
        /// Number of jobs.
        jobs: u64,
        /// The coordinator knows that no more jobs will come.
        closed: bool,
    },
    /// The coordinator has this many jobs of the batch, and will not lose them.
    Accepted {
        /// Id of the batch.
        batch: BatchId,
        /// Cumulative count.
        jobs: u64,
        /// The coordinator knows that no more jobs will come.
        closed: bool,
    },
    /// The answer to [`ToService::Attach`].
    Attached {
        /// Number of the request.
        request: u64,
        /// The batch as it is now.
        batch: Result<Box<BatchStatus>, String>,
    },
    /// Jobs whose results follow, as JSON objects.
    Described {
        /// Id of the batch.
        batch: BatchId,
        /// Each number with the job's JSON text.
        jobs: Vec<(JobNumber, String)>,
    },
    /// No more results of the batch will follow.
    Ended {
        /// Id of the batch.
        batch: BatchId,
        /// Number of jobs that did not succeed, whether or not their results were requested.
        failed: u64,
    },
    /// The answer to [`ToService::Batches`], oldest first.
    Batches {
        /// Number of the request.
        request: u64,
        /// Some of the batches, or an error.
        batches: Result<Vec<BatchStatus>, String>,
        /// Another message with further batches follows.
        more: bool,
    },
    /// The answer to [`ToService::Retry`].
    Retried {
        /// Number of the request.
        request: u64,
        /// Id of the new batch and its number of jobs.
        batch: Result<(BatchId, u64), String>,
    },
    /// The answer to requests that have no answer of their own.
    Done {
        /// Number of the request.
        request: u64,
        /// Success, or an error.
        result: Result<(), String>,
    },
    /// Final results, in order of arrival.
    Results {
        /// Id of the batch.
        batch: BatchId,
        /// Each result once.
        results: Vec<(JobNumber, JobResult)>,
    },
    /// A message for the user.
    Notice {
        /// The batch that it is about.
        batch: BatchId,
        /// Its content.
        notice: Notice,
    },
    /// The answer to [`ToService::Hosts`].
    Hosts(Vec<HostStatus>),
    /// Output of a job whose batch streams it.
    Output {
        /// Id of the batch.
        batch: BatchId,
        /// Number of the job.
        job: JobNumber,
        /// The host that it runs on.
        host: std::sync::Arc<str>,
        /// Standard output or error.
        stream: Stream,
        /// The bytes, as the job wrote them.
        data: Bytes,
    },
    /// A request that cannot be served, and the reason. The connection continues.
    Refused {
        /// The reason, for people.
        reason: String,
    },
    /// A cancel is done: all attempts that could be proven dead are dead.
    Cancelled {
        /// Number of the request.
        request: u64,
        /// Its effects.
        summary: CancelSummary,
    },
    /// The answer to [`ToService::Logs`]: the number of streams that follow, or an error.
    LogsAnswer {
        /// Number of the request.
        request: u64,
        /// Number of streams.
        streams: Result<u8, String>,
    },
    /// The answer to [`ToService::Why`]: lines for people, or an error if there is no such job.
    Why {
        /// Number of the request.
        request: u64,
        /// Reasons of the job itself, then host by host.
        reasons: Result<Vec<String>, String>,
    },
    /// The answer to [`ToService::CreateTokens`].
    TokensCreated {
        /// Number of the request.
        request: u64,
        /// Each name with its token, which is shown only here.
        tokens: Result<Vec<(String, String)>, String>,
    },
    /// The answer to [`ToService::Tokens`].
    Tokens {
        /// Number of the request.
        request: u64,
        /// Tokens that are valid, or were until lately.
        tokens: Result<Vec<TokenStatus>, String>,
        /// Another message with further tokens follows.
        more: bool,
    },
    /// The answer to [`ToService::Certificates`].
    Certificates {
        /// Number of the request.
        request: u64,
        /// All known certificates, or an error.
        certificates: Result<Vec<CertificateStatus>, String>,
        /// Another message with further certificates follows.
        more: bool,
    },
    /// The answer to [`ToService::Renew`].
    Renewed {
        /// Number of the request.
        request: u64,
        /// The certificate and those between it and the root, in PEM form; or the reason for a
        /// refusal.
        cert: Result<String, String>,
    },
    /// The answer to [`ToService::Unserved`].
    Unserved {
        /// Number of the request.
        request: u64,
        /// Host, user and reason.
        users: Vec<(String, String, String)>,
    },
    /// The answer to [`ToService::CancelWaits`].
    CancelWaits {
        /// Number of the cancel.
        request: u64,
        /// One entry for each host; empty: the cancel has just been answered.
        hosts: Vec<CancelWait>,
    },
    /// The answer to [`ToService::RevokeMembers`], sent when the attempts that ran are surely dead.
    Revoked {
        /// Number of the request.
        request: u64,
        /// One entry for each name; or the reason why nothing was tried.
        members: Result<Vec<RevokedMember>, String>,
    },
    /// The answer to [`ToService::Hosts`].
    HostsPage {
        /// Some of the hosts.
        hosts: Vec<HostStatus>,
        /// Another message with further hosts follows.
        more: bool,
    },
    /// Final results, as in [`ToClient::Results`], with the byte counts of their jobs' output.
    CountedResults {
        /// Id of the batch.
        batch: BatchId,
        /// Each result once.
        #[serde(with = "crate::model::outcome::counted_results")]
        results: Vec<(JobNumber, JobResult)>,
    },
    /// The answer to [`ToService::Standings`].
    Standings {
        /// Number of the request.
        request: u64,
        /// Some of the hosts, or an error.
        hosts: Result<Vec<HostStanding>, String>,
        /// Another message with further hosts follows.
        more: bool,
    },
    /// The answer to [`ToService::Batches`], with cancelled and skipped jobs counted apart from
    /// those that failed; oldest first.
    BatchesApart {
        /// Number of the request.
        request: u64,
        /// Some of the batches, or an error.
        #[serde(with = "status::apart")]
        batches: Result<Vec<BatchStatus>, String>,
        /// Another message with further batches follows.
        more: bool,
    },
    /// The answer to [`ToService::Failing`].
    Failing {
        /// Number of the request.
        request: u64,
        /// One entry for each host.
        hosts: Vec<FailingHost>,
    },
}
