//! Between client and coordinator: `mezcal-client/1`, one bidirectional stream, opened by the
//! client.

use crate::message::agent::{Load, LogWish, Stream};
use crate::model::clock::WallTime;
use crate::model::ids::{BatchId, JobNumber};
use crate::model::job::{BatchContext, Stop};
use crate::model::outcome::{Containment, Ended, JobResult, Way};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The protocol's name in TLS (ALPN).
pub const ALPN: &[u8] = b"mezcal-client/1";

/// The minor versions that this build speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 3);

/// From this version on a coordinator says whose jobs a host does not run at present
/// ([`ToService::Unserved`]).
pub const UNSERVED: u16 = 2;

/// From this version on it says what a cancel waits for ([`ToService::CancelWaits`]), and answers
/// each word that a batch is whole, also a repeated one.
pub const SAYS_MORE: u16 = 2;

/// From this version on a client understands [`ToClient::HostsPage`].
pub const HOSTS_IN_PAGES: u16 = 2;

/// From this version on a client understands [`ToClient::CountedResults`].
pub const COUNTS_OUTPUT: u16 = 3;

/// From this version on a coordinator says which hosts it has not seen, and which were revoked
/// ([`ToService::Standings`]).
pub const STANDINGS: u16 = 3;

/// From this version on a client understands [`ToClient::BatchesApart`].
pub const COUNTS_APART: u16 = 3;

/// From this version on a coordinator says which hosts have engines that do not start
/// ([`ToService::Failing`]).
pub const SAYS_FAILING: u16 = 3;

/// What the scheduler needs to know of a job, and the rest as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The job.
    pub job: JobNumber,
    /// The user's `id`, by which the job can be addressed.
    pub label: Option<String>,
    /// An encoded [`crate::model::job::JobSpec`].
    pub spec: Bytes,
    /// Index of the set of hosts that may run it, in the batch's table; none: any host.
    pub hosts: Option<u32>,
    /// Index of the hosts that it prefers, best first, in the same table.
    pub prefer: Option<u32>,
    /// Higher goes first.
    pub priority: i32,
    /// Slots that it takes, at least 1.
    pub slots: u16,
    /// Further attempts after failures of its own.
    pub retries: u32,
    /// Which failures are worth another attempt; none: all.
    pub retry_on: Vec<RetryOn>,
    /// Before a second attempt; twice that before the third, and so on.
    pub retry_delay: Duration,
    /// Jobs of the batch that have to succeed first.
    pub after: Vec<JobNumber>,
    /// The client has found that it cannot be started, and why: it is answered, not run.
    pub stillborn: Option<String>,
}

impl Submission {
    /// A job that asks for nothing but to be run.
    pub fn new(job: JobNumber, spec: Bytes) -> Self {
        Self {
            job,
            label: None,
            spec,
            hosts: None,
            prefer: None,
            priority: 0,
            slots: 1,
            retries: 0,
            retry_on: Vec::new(),
            retry_delay: Duration::ZERO,
            after: Vec::new(),
            stillborn: None,
        }
    }

    /// Bytes that it takes in a message, or a few more.
    pub fn size(&self) -> usize {
        let texts = [&self.label, &self.stillborn]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>();
        // Numbers take five bytes at most.
        64 + self.spec.len() + texts + 5 * self.after.len() + 10 * self.retry_on.len()
    }
}

/// A failure that is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryOn {
    /// This exit status, or −N for signal N.
    Code(i32),
    /// This outcome.
    Outcome(Ended),
}

/// What a batch is, apart from its jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchTerms {
    /// What its jobs have in common.
    pub context: BatchContext,
    /// How long a job waits for a host that is not there.
    pub host_timeout: Duration,
    /// Place every job once only: with its host lost, it is lost.
    pub once: bool,
    /// When to give up the rest.
    pub halt: Option<Halt>,
    /// Cancel what has not ended this long after the batch was opened.
    pub time_limit: Option<Duration>,
    /// It goes on when nobody is connected who looks after it.
    pub detached: bool,
    /// What its user calls it.
    pub name: Option<String>,
}

impl BatchTerms {
    /// A batch with these surroundings that asks for nothing else.
    pub fn new(context: BatchContext, host_timeout: Duration) -> Self {
        Self {
            context,
            host_timeout,
            once: false,
            halt: None,
            time_limit: None,
            detached: false,
            name: None,
        }
    }
}

/// When a batch is given up before all its jobs have ended, as in GNU Parallel's `--halt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Kill what runs; otherwise only start nothing more.
    pub now: bool,
    /// What is counted.
    pub why: HaltWhy,
    /// How many.
    pub count: HaltCount,
}

/// What a [`Halt`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltWhy {
    /// Jobs that failed.
    Fail,
    /// Jobs that ended with 0.
    Success,
    /// Jobs that ended.
    Done,
}

/// How many of them it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltCount {
    /// This many.
    Jobs(u64),
    /// This share of all jobs of the batch, in hundredths of a percent; decided once all are known.
    Share(u32),
}

/// Jobs, as a user names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// All batches of the user who asks.
    Mine,
    /// A batch: its id, or as much of its beginning as only one batch of the user has.
    Batch(String),
    /// One job.
    Job {
        /// As above; empty: the only batch that the user has.
        batch: String,
        /// Its `id`, or else its number.
        job: String,
    },
    /// One job by its number, whatever the `id`s of others look like.
    Number {
        /// As above.
        batch: String,
        /// The number.
        job: JobNumber,
    },
}

/// What a cancel has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSummary {
    /// Jobs that were cancelled by it, or are on hosts that cannot be reached. What ended by itself
    /// meanwhile is not among them.
    pub jobs: u64,
    /// Processes killed.
    pub killed: u64,
    /// Processes alive: of attempts that turned out unkillable.
    pub survivors: u64,
    /// Jobs on hosts that cannot be reached: they may go on there until their lease ends.
    pub unreachable: u64,
    /// When the last of those leases has surely ended.
    pub fenced_for: Duration,
}

/// Attempts on one host that a cancel waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelWait {
    /// The host.
    pub host: String,
    /// How many.
    pub attempts: u64,
    /// When they are surely dead without its word; none: it is connected, and only its word counts.
    pub fenced_for: Option<Duration>,
}

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

/// A connected host with engines that do not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingHost {
    /// The host.
    pub name: String,
    /// Slots that can be used; none: it counts as absent.
    pub usable: u16,
    /// What is wrong with the others.
    pub why: String,
}

/// What has ended with the certificates of a host or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedMember {
    /// Which.
    pub name: String,
    /// Certificates that counted until then.
    pub certificates: u64,
    /// Join tokens that were not used yet.
    pub tokens: u64,
    /// When the last of its certificates was revoked before this; none: none was.
    pub before: Option<WallTime>,
    /// Connections.
    pub connections: u64,
    /// A user's batches that had not ended.
    pub batches: u64,
    /// Jobs of these on hosts, and such that waited.
    pub running: u64,
    /// See above.
    pub waiting: u64,
    /// What cancelling those has come to.
    pub cancel: CancelSummary,
    /// Attempts that may still run on a host.
    pub held: u64,
    /// Until they are surely over.
    pub held_for: Duration,
    /// Why nothing has ended.
    pub failed: Option<String>,
}

/// What joins a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// A host's agent.
    Host,
    /// A person or program that submits batches.
    User,
}

/// A join token as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// By which it is deleted.
    pub id: String,
    /// What it is for.
    pub member: Member,
    /// Which host or user.
    pub name: String,
    /// Until when it is good, on the coordinator's clock.
    pub expires: WallTime,
    /// When it was used.
    pub used: Option<WallTime>,
    /// It takes the place of a certificate that its name has.
    pub replace: bool,
}

/// A certificate on the coordinator's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub member: Member,
    /// Which host or user.
    pub name: String,
    /// Until when it is valid.
    pub expires: WallTime,
    /// When it was revoked or replaced.
    pub revoked: Option<WallTime>,
}

/// What a client wants of a batch that it has not opened itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// Only its end ([`ToClient::Ended`]).
    End,
    /// Results with their jobs ([`ToClient::Described`], [`ToClient::Results`]) and then its end.
    Results {
        /// Only those that did not succeed.
        failed: bool,
        /// Those that are still to come, too; otherwise `Ended` follows what there is.
        follow: bool,
    },
}

/// One line of `coordinator batches`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// Its id.
    pub id: BatchId,
    /// Whose it is.
    pub user: String,
    /// What they call it.
    pub name: Option<String>,
    /// It goes on when nobody looks after it.
    pub detached: bool,
    /// More jobs may come.
    pub open: bool,
    /// It was cancelled or halted: by whom or what, as far as that is known.
    pub stopped: Option<String>,
    /// When it was opened, on the coordinator's clock.
    pub opened: WallTime,
    /// When its last job ended.
    pub done: Option<WallTime>,
    /// Jobs so far.
    pub jobs: u64,
    /// Of which run. What hosts were handed in advance does not.
    pub placed: u64,
    /// Of which have ended.
    pub ended: u64,
    /// Of which have succeeded.
    pub succeeded: u64,
    /// And of which have neither succeeded nor failed, where that is known: peers of earlier
    /// versions do not hear it, and [`ToClient::BatchesApart`] has it beside the rest.
    #[serde(skip)]
    pub aside: Option<SetAside>,
}

impl BatchStatus {
    /// How many have failed; with those that were cancelled or skipped where nobody has said which
    /// that are.
    pub fn failed(&self) -> u64 {
        let SetAside { cancelled, skipped } = self.aside.unwrap_or_default();
        self.ended
            .saturating_sub(self.succeeded)
            .saturating_sub(cancelled)
            .saturating_sub(skipped)
    }
}

/// Jobs that have ended without success and have not failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// By a cancel, or not started because of one.
    pub cancelled: u64,
    /// Not started because of another job that had not succeeded.
    pub skipped: u64,
}

impl SetAside {
    /// One more has ended.
    pub fn add(&mut self, outcome: &crate::model::outcome::Outcome) {
        match outcome.way() {
            Way::Done | Way::Failed => {}
            Way::Cancelled => self.cancelled += 1,
            Way::Skipped => self.skipped += 1,
        }
    }
}

/// Batches, each with what of it was set aside.
mod apart {
    use super::{BatchStatus, SetAside};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Listed<T> = Result<Vec<T>, String>;

    pub(super) fn serialize<S: Serializer>(
        batches: &Listed<BatchStatus>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let with = |batches: &Vec<BatchStatus>| {
            batches
                .iter()
                .map(|batch| (batch.clone(), batch.aside))
                .collect()
        };
        let listed: Listed<(BatchStatus, Option<SetAside>)> =
            batches.as_ref().map(with).map_err(String::clone);
        listed.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Listed<BatchStatus>, D::Error> {
        let listed = Listed::<(BatchStatus, Option<SetAside>)>::deserialize(deserializer)?;
        Ok(listed.map(|batches| {
            batches
                .into_iter()
                .map(|(batch, aside)| BatchStatus { aside, ..batch })
                .collect()
        }))
    }
}

/// One line of `coordinator hosts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent is connected now.
    pub connected: bool,
    /// Whether its agent has said what runs there, which it does when it has heard all engines;
    /// only then it gets jobs.
    pub ready: bool,
    /// Jobs at a time.
    pub slots: u16,
    /// `engine_id` of its first engine; the others follow.
    pub first_engine: crate::model::ids::EngineId,
    /// Of which in use.
    pub busy: u16,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory: u64,
    /// Newest sign of its load.
    pub load: Load,
    /// Version of its program.
    pub program: String,
    /// Time since it connected, or since it was lost.
    pub since: Duration,
    /// Seconds to add to its wall clock to get the coordinator's.
    pub clock_offset: Option<f64>,
    /// Bytes of the largest datagram that has got there (RFC 8899), if it is connected.
    pub datagram: Option<u16>,
    /// What holds the processes of attempts together there.
    pub containment: Containment,
    /// Why it gets no more jobs, if it is being drained.
    pub drained: Option<String>,
    /// For how long it gets no jobs, and why.
    pub quarantined: Option<(Duration, String)>,
}

/// What is known of a host beside its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStanding {
    /// The host's name, from its certificate.
    pub name: String,
    /// Whether its agent has connected since the coordinator was started. Else its status is what
    /// an earlier life has stored.
    pub seen: bool,
    /// When its certificates were revoked; none: some counts, or nothing is known.
    pub revoked: Option<WallTime>,
    /// Versions of its engines, and how many have each; nothing: one that is too old to say.
    pub engines: Vec<(String, u16)>,
}

/// Something a client should tell its user now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Jobs require hosts of which none is connected.
    HostsAbsent {
        /// The hosts that would do, folded for people.
        hosts: String,
        /// How many jobs wait for them.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// An agent's connection ended while it held jobs of this batch.
    AgentLost {
        /// The host.
        host: String,
        /// Jobs that it held.
        jobs: u64,
        /// When they may be placed elsewhere, if the agent does not come back.
        fenced_for: Duration,
    },
    /// Jobs take more slots than any connected host has that may run them.
    TooWide {
        /// How many.
        slots: u16,
        /// How many jobs wait for them.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// A host fails whatever it gets, of this batch or of several users: for a while it gets
    /// nothing.
    Quarantined {
        /// The host.
        host: String,
        /// For how long. Zero: it gets one job of this batch at a time.
        length: Duration,
        /// What speaks against it.
        reason: String,
    },
    /// The batch's [`Halt`] has come about: nothing more of it starts.
    Halted {
        /// What had to be counted.
        why: HaltWhy,
        /// How many there were.
        count: u64,
    },
    /// No connected host that may run them runs jobs of this user.
    Unserved {
        /// Whose jobs.
        user: String,
        /// How many wait.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// Jobs require names that several hosts have, and that so stand for none of them.
    Ambiguous {
        /// The names.
        names: String,
        /// The hosts that have the first of them.
        hosts: String,
        /// How many wait.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// The coordinator's store cannot be written, or can be again.
    StoreTrouble {
        /// Why not; none: it can.
        why: Option<String>,
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
        #[serde(with = "apart")]
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
