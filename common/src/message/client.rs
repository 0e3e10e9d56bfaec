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
    /// A new batch; precedes its jobs. Said again by the same user it is the same batch, and goes
    /// on where it was. Answered by [`ToClient::Opened`].
    Open {
        /// Its terms; they name it.
        terms: BatchTerms,
        /// Results that the client has kept.
        have: u64,
    },
    /// More jobs of a batch.
    Submit {
        /// The batch.
        batch: BatchId,
        /// Host sets to append to the batch's table.
        host_sets: Vec<Vec<String>>,
        /// Jobs in order of input.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Close {
        /// The batch.
        batch: BatchId,
    },
    /// The client has kept this many results of the batch.
    Taken {
        /// The batch.
        batch: BatchId,
        /// Cumulative count.
        results: u64,
    },
    /// Kill what runs of these and let nothing more of them start. Answered by
    /// [`ToClient::Cancelled`] when it is done.
    Cancel {
        /// Comes back in the answer.
        request: u64,
        /// Which jobs.
        what: Vec<Selector>,
        /// How.
        stop: Stop,
    },
    /// Asks for [`ToClient::HostsPage`], or [`ToClient::Hosts`] of a coordinator or for a client
    /// that knows no other.
    Hosts,
    /// The client has taken this much streamed output.
    OutputTaken {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// Bytes.
        bytes: u32,
    },
    /// Asks for a job's output. Answered by [`ToClient::LogsAnswer`] and streams that begin with a
    /// [`crate::message::agent::LogHeader`].
    Logs {
        /// Comes back in the answer and in the streams' headers.
        request: u64,
        /// Its batch, as in [`Selector::Job`].
        batch: String,
        /// The job, as in [`Selector::Job`].
        job: String,
        /// What of it.
        wish: LogWish,
    },
    /// Wants to follow a batch. Answered by [`ToClient::Attached`], and then by what was asked for.
    Attach {
        /// Comes back in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
        /// What of it.
        wish: Attachment,
    },
    /// Asks for all batches of the user. Answered by [`ToClient::BatchesApart`], or
    /// [`ToClient::Batches`] by a coordinator or for a client that knows no other.
    Batches {
        /// Comes back in the answer.
        request: u64,
        /// Everybody's, if the user is an admin.
        all: bool,
    },
    /// Wants jobs of an ended batch run again, as a new one. Answered by [`ToClient::Retried`].
    Retry {
        /// Comes back in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
        /// Only those that did not succeed.
        failed: bool,
    },
    /// Wants an ended batch deleted. Answered by [`ToClient::Done`].
    Forget {
        /// Comes back in the answer.
        request: u64,
        /// The batch, as in [`Selector::Batch`].
        batch: String,
    },
    /// Starts or ends drains of hosts. Answered by [`ToClient::Done`].
    Drain {
        /// Comes back in the answer.
        request: u64,
        /// The hosts.
        hosts: Vec<String>,
        /// Why; none: they get jobs again.
        reason: Option<String>,
        /// When what still runs there is taken away; none: never.
        deadline: Option<Duration>,
    },
    /// Vouches that nothing runs any more on a host that cannot be reached. Answered by
    /// [`ToClient::Done`].
    ConfirmDead {
        /// Comes back in the answer.
        request: u64,
        /// Its full name.
        host: String,
    },
    /// Asks why a job does not run. Answered by [`ToClient::Why`].
    Why {
        /// Comes back in the answer.
        request: u64,
        /// Its batch, as in [`Selector::Job`].
        batch: String,
        /// The job, as in [`Selector::Job`].
        job: String,
    },
    /// Wants join tokens, one for each name. Answered by [`ToClient::TokensCreated`].
    CreateTokens {
        /// Comes back in the answer.
        request: u64,
        /// What they are for.
        member: Member,
        /// Hosts or users.
        names: Vec<String>,
        /// How long they are good.
        ttl: Duration,
        /// They take the place of certificates that the names have.
        replace: bool,
    },
    /// Asks for the join tokens that there are. Answered by [`ToClient::Tokens`].
    Tokens {
        /// Comes back in the answer.
        request: u64,
    },
    /// Wants an unused join token deleted. Answered by [`ToClient::Done`].
    DeleteToken {
        /// Comes back in the answer.
        request: u64,
        /// Its id.
        id: String,
    },
    /// Wants no certificate of a host or user to count any more. Answered by [`ToClient::Done`].
    Revoke {
        /// Comes back in the answer.
        request: u64,
        /// What they are.
        member: Member,
        /// Hosts or users.
        names: Vec<String>,
    },
    /// Asks for the certificates that are on the list. Answered by [`ToClient::Certificates`].
    Certificates {
        /// Comes back in the answer.
        request: u64,
    },
    /// Wants hosts that were taken away known no more, and their certificates to count no more.
    /// Answered by [`ToClient::Done`].
    ForgetHosts {
        /// Comes back in the answer.
        request: u64,
        /// Their full names.
        hosts: Vec<String>,
    },
    /// Wants another certificate for whoever asks, for a new key. Answered by
    /// [`ToClient::Renewed`].
    Renew {
        /// Comes back in the answer.
        request: u64,
        /// A certificate signing request (PKCS #10, DER). Only its key counts.
        csr: Bytes,
    },
    /// Asks for users whose jobs a host does not run although they have engines there. Answered by
    /// [`ToClient::Unserved`].
    Unserved {
        /// Comes back in the answer.
        request: u64,
    },
    /// Asks what a cancel of this connection waits for. Answered by [`ToClient::CancelWaits`].
    CancelWaits {
        /// The number of the cancel.
        request: u64,
    },
    /// Wants no certificate of hosts or users to count any more, and what is theirs to end.
    /// Answered by [`ToClient::Revoked`].
    RevokeMembers {
        /// Comes back in the answer.
        request: u64,
        /// What they are.
        member: Member,
        /// Hosts or users.
        names: Vec<String>,
        /// The batches of users go on.
        keep_batches: bool,
        /// Even if no admin is left then.
        force: bool,
    },
    /// Asks what is known of hosts beside their status. Answered by [`ToClient::Standings`].
    Standings {
        /// Comes back in the answer.
        request: u64,
    },
    /// Asks which connected hosts have engines that do not start. Answered by
    /// [`ToClient::Failing`].
    Failing {
        /// Comes back in the answer.
        request: u64,
    },
}

/// From coordinator to client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToClient {
    /// The connection is made.
    Welcome {
        /// The protocol version in use.
        version: u16,
        /// Version of the program.
        program: String,
    },
    /// How many agents and engines there are; again at each change.
    Fleet {
        /// Connected agents.
        agents: u32,
        /// Their slots.
        engines: u32,
    },
    /// What the coordinator has of the batch: whoever opened it goes on from there.
    Opened {
        /// The batch.
        batch: BatchId,
        /// Host sets.
        host_sets: u64,
        /// Jobs.
        jobs: u64,
        /// It knows that no more will come.
        closed: bool,
    },
    /// The coordinator has these many jobs of the batch, and will not lose them.
    Accepted {
        /// The batch.
        batch: BatchId,
        /// Cumulative count.
        jobs: u64,
        /// It knows that no more will come.
        closed: bool,
    },
    /// The answer to [`ToService::Attach`].
    Attached {
        /// The request.
        request: u64,
        /// The batch as it is now.
        batch: Result<Box<BatchStatus>, String>,
    },
    /// Jobs whose results follow, as JSON objects.
    Described {
        /// The batch.
        batch: BatchId,
        /// Each with its text.
        jobs: Vec<(JobNumber, String)>,
    },
    /// There are no more results of the batch than have been sent.
    Ended {
        /// The batch.
        batch: BatchId,
        /// Jobs that did not succeed, whether or not their results were asked for.
        failed: u64,
    },
    /// The answer to [`ToService::Batches`], oldest first.
    Batches {
        /// The request.
        request: u64,
        /// Some of them.
        batches: Result<Vec<BatchStatus>, String>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// The answer to [`ToService::Retry`].
    Retried {
        /// The request.
        request: u64,
        /// The new batch, and how many jobs it has.
        batch: Result<(BatchId, u64), String>,
    },
    /// The answer to requests that have no other.
    Done {
        /// The request.
        request: u64,
        /// Or why not.
        result: Result<(), String>,
    },
    /// Final results, in order of arrival.
    Results {
        /// The batch.
        batch: BatchId,
        /// Each once.
        results: Vec<(JobNumber, JobResult)>,
    },
    /// Something to say.
    Notice {
        /// The batch that it is about.
        batch: BatchId,
        /// What.
        notice: Notice,
    },
    /// The answer to [`ToService::Hosts`].
    Hosts(Vec<HostStatus>),
    /// Output of a job whose batch streams it.
    Output {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// The host that it runs on.
        host: std::sync::Arc<str>,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// A request that cannot be served, and why. The connection goes on.
    Refused {
        /// For the reader.
        reason: String,
    },
    /// A cancel is done: whatever could be proven dead is dead.
    Cancelled {
        /// The request.
        request: u64,
        /// What it has come to.
        summary: CancelSummary,
    },
    /// The answer to [`ToService::Logs`]: on how many streams the output comes, or why it does not.
    LogsAnswer {
        /// The request.
        request: u64,
        /// How many streams.
        streams: Result<u8, String>,
    },
    /// The answer to [`ToService::Why`]: lines for the reader, or that there is no such job.
    Why {
        /// The request.
        request: u64,
        /// First of the job itself, then host by host.
        reasons: Result<Vec<String>, String>,
    },
    /// The answer to [`ToService::CreateTokens`].
    TokensCreated {
        /// The request.
        request: u64,
        /// Each name with its token, which nobody will see again.
        tokens: Result<Vec<(String, String)>, String>,
    },
    /// The answer to [`ToService::Tokens`].
    Tokens {
        /// The request.
        request: u64,
        /// Those that are alive or were lately.
        tokens: Result<Vec<TokenStatus>, String>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// The answer to [`ToService::Certificates`].
    Certificates {
        /// The request.
        request: u64,
        /// All that are known.
        certificates: Result<Vec<CertificateStatus>, String>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// The answer to [`ToService::Renew`].
    Renewed {
        /// The request.
        request: u64,
        /// The certificate and what stands between it and the root, in PEM form; or why there is
        /// none.
        cert: Result<String, String>,
    },
    /// The answer to [`ToService::Unserved`].
    Unserved {
        /// The request.
        request: u64,
        /// Host, user, and why.
        users: Vec<(String, String, String)>,
    },
    /// The answer to [`ToService::CancelWaits`].
    CancelWaits {
        /// The number of the cancel.
        request: u64,
        /// Host by host. Nothing: it has just been answered.
        hosts: Vec<CancelWait>,
    },
    /// The answer to [`ToService::RevokeMembers`], when what ran is surely dead.
    Revoked {
        /// The request.
        request: u64,
        /// What has ended, one for each name; or why nothing was tried.
        members: Result<Vec<RevokedMember>, String>,
    },
    /// The answer to [`ToService::Hosts`].
    HostsPage {
        /// Some of them.
        hosts: Vec<HostStatus>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// Final results, as [`ToClient::Results`], with what their jobs have written.
    CountedResults {
        /// The batch.
        batch: BatchId,
        /// Each once.
        #[serde(with = "crate::model::outcome::counted_results")]
        results: Vec<(JobNumber, JobResult)>,
    },
    /// The answer to [`ToService::Standings`].
    Standings {
        /// The request.
        request: u64,
        /// Some of the hosts, or why nothing is known.
        hosts: Result<Vec<HostStanding>, String>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// The answer to [`ToService::Batches`], with cancelled and skipped jobs counted apart from
    /// those that failed; oldest first.
    BatchesApart {
        /// The request.
        request: u64,
        /// Some of them.
        #[serde(with = "status::apart")]
        batches: Result<Vec<BatchStatus>, String>,
        /// Another message with further ones follows.
        more: bool,
    },
    /// The answer to [`ToService::Failing`].
    Failing {
        /// The request.
        request: u64,
        /// Host by host.
        hosts: Vec<FailingHost>,
    },
}
