//! The coordinator's core: which job is where, and what happens to it next.
//!
//! No clock, no randomness, no I/O: events in, effects out. [`crate::service`] performs the
//! effects.
//!
//! ```text
//!            pull                     finished, acknowledged
//!  queued ─────────▶ placed on a host ─────────────────────▶ done (one final result)
//!    ▲                  │ failed and retries left, or its host was lost
//!    └──────────────────┘
//! ```
//!
//! What keeps a job from running twice (P1): an attempt leaves a host's table only by proof that it
//! is over: its report, an inventory without it, a goodbye, another boot of the host, or the end of
//! the lease plus [`FENCE_MARGIN`]. Until then the job is not placed again.

mod after;
mod cancel;
mod drain;
mod fleet;
mod halt;
mod hold;
mod losses;
mod near;
mod quarantine;
mod queues;
mod record;
mod retract;
mod shortage;
mod text;
mod why;
mod wide;

use bytes::Bytes;
use cancel::{CancelRequest, Cancelling};
pub use fleet::Aliases;
use mezcal_common::message::agent::{
    Hello, Load, LogWish, NumberedReport, Placement, Report, Stream, ToAgent, ToCoordinator,
};
use mezcal_common::message::client::{
    BatchTerms, CancelSummary, Halt, HostStanding, HostStatus, Notice, RetryOn, Submission,
};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, Epoch, Generation, JobKey, JobNumber, SessionId,
    StoreId, attempt_count,
};
use mezcal_common::model::job::{BatchContext, MAX_SPEC, Stop};
use mezcal_common::model::outcome::{Containment, Ended, JobResult, Outcome, Place};
use mezcal_common::wire::endpoint::IDLE_TIMEOUT;
use queues::{QueueKey, Queues};
pub use record::Record;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
pub use wide::WIDE_WAIT;

/// Added to a lease before its attempts are placed elsewhere: 10 s for the engine to be killed and
/// swept by its keeper if it does not do so itself, plus drift between two CLOCK_BOOTTIME of 500
/// ppm (NTP's bound, RFC 5905 §11) over a lease of ten minutes (0.3 s), rounded up.
pub const FENCE_MARGIN: Duration = Duration::from_secs(12);
/// A job whose host was lost this often ends as `lost`: it may be what kills them.
const MAX_LOSSES: u32 = 3;
/// Longest pause between two attempts of a job that fails.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(3600);
/// Jobs in one batch: job numbers are 32 bits, and an index of this many fits in memory.
const MAX_JOBS: usize = 100_000_000;
/// Users of whom a host says that it does not serve them, and of their names and reasons what is
/// kept: an agent serves 64 users at most.
const MOST_UNHEARD: usize = 64;
/// Of the versions of a host's engines: so many, and so long.
const MOST_VERSIONS: usize = 16;
const VERSION_CHARS: usize = 32;
const REASON_CHARS: usize = 200;
/// A connected host whose agent has not said for so long what runs there counts as absent: engines
/// answer within milliseconds, and an agent that knows that they do not come says so itself, much
/// sooner.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// The minor version of the agents' protocol since which they hear of generations.
const GENERATIONS: u16 = 2;
/// Placements in one message, by count and by bytes, so that a frame holds them.
const RUN_COUNT: usize = 256;
const RUN_BYTES: usize = 512 * 1024;

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An agent has said hello over a new session; its name is the certificate's.
    AgentHello {
        /// The session.
        session: SessionId,
        /// The host.
        name: String,
        /// What it says.
        hello: Hello,
    },
    /// Any later message.
    Agent(SessionId, ToCoordinator),
    /// The session's connection is gone.
    AgentGone(SessionId),
    /// A client opens a batch.
    Open {
        /// Whose it is.
        user: String,
        /// Its terms.
        terms: Box<BatchTerms>,
    },
    /// More jobs for a batch.
    Submit {
        /// The batch.
        batch: BatchId,
        /// Host sets to append to its table.
        host_sets: Vec<Vec<String>>,
        /// The jobs.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Close {
        /// The batch.
        batch: BatchId,
    },
    /// Nobody is connected any more who looks after a batch.
    Unattended {
        /// The batch.
        batch: BatchId,
    },
    /// Somebody is.
    Attended {
        /// The batch.
        batch: BatchId,
    },
    /// Kill what runs, drop what waits.
    Cancel {
        /// Comes back in [`Effect::Cancelled`]; none: nobody waits for that.
        request: Option<u64>,
        /// What of which batches.
        what: Vec<Wanted>,
        /// How.
        stop: Stop,
        /// For the results of what is cancelled: who or what did it, when it was not their own
        /// client.
        why: Option<Arc<str>>,
    },
    /// Somebody wants to see a job's output.
    Logs {
        /// Comes back in [`Effect::LogsAnswer`].
        request: u64,
        /// Its batch.
        batch: BatchId,
        /// Its `id` or number.
        job: String,
        /// What of it.
        wish: LogWish,
    },
    /// A client has taken streamed output.
    OutputTaken {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// Bytes.
        bytes: u32,
    },
}

/// A whole batch, or one job of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The batch.
    pub batch: BatchId,
    /// Which job; none: all of them, those that are still to come included.
    pub job: Option<WantedJob>,
}

/// One job of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedJob {
    /// By its `id`, or else by its number.
    Named(String),
    /// By its number.
    Number(JobNumber),
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Remember this before performing what comes after it; heartbeats and their like need not
    /// wait.
    Persist(Record),
    /// Tell an agent.
    ToAgent(SessionId, ToAgent),
    /// Tell an agent the first message of its session, of which nothing has still to be remembered.
    Greet(SessionId, ToAgent),
    /// End a session, telling the agent why.
    CloseSession {
        /// The session.
        session: SessionId,
        /// True if a person has to mend something.
        refused: bool,
        /// Why.
        reason: String,
    },
    /// A job is over for good.
    Result {
        /// Its batch.
        batch: BatchId,
        /// The how manieth of the batch, from 1.
        seq: u64,
        /// The job.
        job: JobNumber,
        /// How.
        result: JobResult,
    },
    /// The batch has so many jobs now.
    Accepted {
        /// The batch.
        batch: BatchId,
        /// Cumulative count.
        jobs: u64,
        /// No more will come.
        closed: bool,
    },
    /// A request that makes no sense, for the client of this batch.
    Refused {
        /// The batch.
        batch: BatchId,
        /// Why.
        reason: String,
    },
    /// All jobs of a closed batch are over.
    BatchDone {
        /// The batch.
        batch: BatchId,
    },
    /// Something that the batch's client should say.
    Notice {
        /// The batch.
        batch: BatchId,
        /// What.
        notice: Notice,
    },
    /// Streamed output.
    Output {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// Where it runs.
        host: Arc<str>,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// A cancel is done, or cannot be.
    Cancelled {
        /// The request.
        request: u64,
        /// What it has come to; or what is wrong with it, and then nothing was cancelled.
        result: Result<CancelSummary, String>,
    },
    /// On how many streams a job's output comes, or why it does not.
    LogsAnswer {
        /// The request.
        request: u64,
        /// How many.
        streams: Result<u8, String>,
    },
    /// Agents or engines have come or gone.
    Fleet {
        /// Connected agents.
        agents: u32,
        /// Their slots.
        engines: u32,
    },
}

impl Effect {
    /// Whether it may be performed before what was to be remembered earlier is safe: signs of life,
    /// and what changes nothing. A stalled disk then expires no lease.
    pub fn overtakes_the_store(&self) -> bool {
        match self {
            Effect::ToAgent(_, message) => {
                matches!(
                    message,
                    ToAgent::HeartbeatSeen { .. }
                        | ToAgent::OutputTaken { .. }
                        | ToAgent::Logs { .. }
                )
            }
            Effect::Greet(..)
            | Effect::CloseSession { .. }
            | Effect::Refused { .. }
            | Effect::Notice { .. }
            | Effect::Output { .. }
            | Effect::LogsAnswer { .. }
            | Effect::Fleet { .. } => true,
            Effect::Persist(_)
            | Effect::Result { .. }
            | Effect::Accepted { .. }
            | Effect::BatchDone { .. }
            | Effect::Cancelled { .. } => false,
        }
    }
}

/// A mistake that can be planted: the simulation has to find each.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A batch that is given up keeps those of its jobs that have just been released.
    OverlooksReleased,
    /// Idle slots are kept for a wide job as long the next time as the last.
    KeepsNoLonger,
    /// Slots that have been idle for long take jobs though a slot that those prefer is idle, too.
    TakesFromNear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobState {
    /// For other jobs to succeed, or for its next attempt.
    Waiting,
    Queued,
    Placed,
    Done,
}

/// Kept small: there may be millions.
#[derive(Debug)]
struct Job {
    /// Empty where the store has it.
    spec: Bytes,
    /// Its length, wherever it is.
    spec_length: u32,
    queue: QueueKey,
    attempt: u32,
    retries: u32,
    /// Where its present or last attempt is: index into the names of hosts.
    host: u32,
    losses: u8,
    state: JobState,
    succeeded: bool,
}

/// How a job is tried again.
#[derive(Debug)]
struct RetryRule {
    /// After which failures; none: after all.
    on: Vec<RetryOn>,
    /// The pause after the first of them, which doubles each time.
    delay: Duration,
    /// How often at most.
    retries: u32,
}

#[derive(Debug)]
struct Batch {
    id: BatchId,
    user: u32,
    context: BatchContext,
    host_timeout: Duration,
    once: bool,
    host_sets: Vec<Arc<[Arc<str>]>>,
    jobs: Vec<Job>,
    /// Of which are on hosts.
    placed: u64,
    done: usize,
    open: bool,
    /// What waits for jobs of its own batch.
    order: after::Order,
    /// How jobs are tried again, where not after any failure and at once.
    retry_rules: HashMap<JobNumber, RetryRule>,
    /// How they ended of late, for what that says of hosts.
    ends: quarantine::Ends,
    short: shortage::Shortages,
    /// The attempts of a job that were lost: where, and why.
    lost: HashMap<JobNumber, Vec<String>>,
    /// Jobs by the `id` that their user gave them.
    labels: HashMap<Box<str>, JobNumber>,
    /// Nothing of it starts any more.
    cancelled: Option<Stop>,
    /// Who or what has cancelled or halted it.
    why: Option<Arc<str>>,
    halt: Option<Halt>,
    /// How its jobs ended by themselves so far.
    counts: halt::Counts,
    /// Its halt has come about: nothing of it starts any more, and what runs may go on.
    halted: bool,
    deadline: Option<BootInstant>,
    time_limit: Option<Duration>,
    detached: bool,
    /// When it is cancelled if nobody comes to look after it.
    deserted: Option<BootInstant>,
}

impl Batch {
    fn add_job(&mut self, serial: BatchSerial, submission: Submission, stored: bool) {
        let queue = QueueKey::new(self.user, serial, &submission);
        if !submission.retry_on.is_empty() || !submission.retry_delay.is_zero() {
            let rule = RetryRule {
                on: submission.retry_on,
                delay: submission.retry_delay,
                retries: submission.retries,
            };
            self.retry_rules.insert(submission.job, rule);
        }
        if let Some(label) = submission.label {
            self.labels.insert(label.into(), submission.job);
        }
        self.jobs.push(Job {
            spec_length: submission.spec.len() as u32,
            spec: if stored {
                Bytes::new()
            } else {
                submission.spec
            },
            queue,
            attempt: 0,
            retries: submission.retries,
            host: 0,
            losses: 0,
            state: JobState::Queued,
            succeeded: false,
        });
    }

    /// None of its jobs starts any more.
    fn is_given_up(&self) -> bool {
        self.cancelled.is_some() || self.halted
    }

    /// Nothing of it starts before it is whole: nobody would be there to go on with the rest.
    fn is_held(&self) -> bool {
        self.detached && self.open
    }

    /// How long a job waits that has just failed. Attempts that were lost or given back do not
    /// count.
    fn pause_of(&self, number: JobNumber) -> Duration {
        let job = self.jobs.get((number.0 as usize).wrapping_sub(1));
        let Some((rule, job)) = self.retry_rules.get(&number).zip(job) else {
            return Duration::ZERO;
        };
        let failures = rule.retries.saturating_sub(job.retries);
        rule.delay
            .saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)))
            .min(MAX_RETRY_DELAY)
    }

    fn add_host_sets(&mut self, sets: &[Vec<String>]) {
        for set in sets {
            let mut seen = HashSet::new();
            let names = set
                .iter()
                .filter_map(|n| hosts::normalise(n).ok())
                .map(Arc::<str>::from);
            self.host_sets
                .push(names.filter(|name| seen.insert(name.clone())).collect());
        }
    }
}

#[derive(Debug)]
struct Host {
    name: Arc<str>,
    /// Its place among the names of hosts.
    index: u32,
    containment: Containment,
    /// Names beside its full one to which it has a claim.
    aliases: Vec<Arc<str>>,
    session: Option<SessionId>,
    /// Its agent's last one; of no meaning but for the slots if it has not connected in this life
    /// of ours.
    hello: Hello,
    seen: bool,
    first_engine: EngineId,
    /// The inventory of this session has come.
    known: bool,
    /// So many jobs can run there at a time, as its agent says; none: as many as it has slots.
    usable: Option<u16>,
    /// What is wrong with the other slots.
    failing: Option<String>,
    /// When its inventory must have come; none: it has, or it is late.
    ready_by: Option<BootInstant>,
    /// It has not come in time.
    late: bool,
    /// With how many slots it is among those that serve under their names; zero: it is absent.
    width: u16,
    /// What of it is in the fleet.
    counted: (u32, u32),
    /// Credit given and used in this session, in slots.
    credit: u64,
    sent: u64,
    /// Since when its idle slots have been idle, longest first.
    idle_since: VecDeque<BootInstant>,
    /// Batches whose context it has in this session.
    told: FxHashSet<BatchSerial>,
    attempts: BTreeMap<AttemptId, OnHost>,
    /// Slots that those take.
    taken: u64,
    /// Users who have engines there that are not served, and why.
    unheard: Vec<(String, String)>,
    /// Versions of its engines, and how many have each.
    engines: Vec<(String, u16)>,
    /// Users who get new engines there when what runs in theirs has ended, and no new jobs until
    /// then.
    replacing: Vec<String>,
    /// Users with attempts there of which nothing is said, by number, and when those are surely
    /// over.
    fenced: BTreeMap<u32, BootInstant>,
    /// Idle slots that wait for a job that takes several, and when it may keep some again.
    kept: Option<wide::Kept>,
    no_more_before: Option<BootInstant>,
    record: quarantine::Record,
    /// Why it gets nothing more.
    drained: Option<Arc<str>>,
    /// How it stands in the indices of the scheduler: among those that want jobs, and by its
    /// longest idle slot.
    indexed: (bool, Option<BootInstant>),
    /// What [`Host::room`] was then.
    had_room: u16,
    /// Receipt of the last message that renewed its lease.
    heard: BootInstant,
    since: BootInstant,
    load: Load,
    clock_offset: Option<f64>,
}

/// An attempt on a host.
#[derive(Clone, Copy, Debug)]
struct OnHost {
    /// Where it runs, once that is known.
    engine: Option<u16>,
    /// It has left the host's queue: it cannot be given back any more.
    started: bool,
    slots: u16,
    /// Whose it is.
    user: u32,
    /// The session that it was sent in; none: that was an earlier life of ours.
    session: Option<SessionId>,
}

impl Host {
    /// A host that an earlier life of the coordinator knew.
    fn of_earlier_life(name: Arc<str>, index: u32, now: BootInstant) -> Self {
        let hello = Hello {
            versions: (0, 0),
            program: String::new(),
            keeper: 0,
            boot_id: [0; 16],
            slots: 0,
            aliases: Vec::new(),
            cpus: 0,
            memory: 0,
            users: None,
        };
        Self::new(name, index, hello, now)
    }

    fn new(name: Arc<str>, index: u32, hello: Hello, now: BootInstant) -> Self {
        Self {
            name,
            index,
            containment: Containment::Subreaper,
            aliases: Vec::new(),
            session: None,
            hello,
            seen: false,
            first_engine: EngineId(0),
            known: false,
            usable: None,
            failing: None,
            ready_by: None,
            late: false,
            width: 0,
            counted: (0, 0),
            credit: 0,
            sent: 0,
            idle_since: VecDeque::new(),
            told: FxHashSet::default(),
            attempts: BTreeMap::new(),
            taken: 0,
            unheard: Vec::new(),
            engines: Vec::new(),
            replacing: Vec::new(),
            fenced: BTreeMap::new(),
            kept: None,
            no_more_before: None,
            record: quarantine::Record::default(),
            drained: None,
            indexed: (false, None),
            had_room: 0,
            heard: now,
            since: now,
            load: Load::default(),
            clock_offset: None,
        }
    }

    /// Slots that can be used.
    fn slots(&self) -> u16 {
        self.usable
            .map_or(self.hello.slots, |usable| usable.min(self.hello.slots))
    }

    /// The names to which it has a claim.
    fn names(&self) -> Vec<Arc<str>> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .cloned()
            .collect()
    }

    /// The present attempt of a job, if it is here. Attempts of an earlier life of ours have
    /// another epoch.
    fn attempt(&self, epoch: Epoch, key: JobKey, attempt: u32) -> Option<AttemptId> {
        let own = AttemptId {
            epoch,
            key,
            attempt,
        };
        if self.attempts.contains_key(&own) {
            return Some(own);
        }
        self.attempts
            .keys()
            .find(|a| a.key == key && a.attempt == attempt)
            .copied()
    }

    fn add(&mut self, attempt: AttemptId, user: u32, slots: u16, session: Option<SessionId>) {
        self.attempts.insert(
            attempt,
            OnHost {
                engine: None,
                started: false,
                slots,
                user,
                session,
            },
        );
        self.taken += u64::from(slots);
    }

    fn remove(&mut self, attempt: AttemptId) -> Option<OnHost> {
        let removed = self.attempts.remove(&attempt)?;
        self.taken -= u64::from(removed.slots);
        Some(removed)
    }

    /// It may be given jobs, as far as it depends on itself.
    fn is_willing(&self) -> bool {
        self.known && self.record.until.is_none() && self.drained.is_none()
    }

    /// So many slots one job may take at once: they are idle, and nothing is on its way to them. An
    /// agent that says how many are idle need not have got yet what was sent to it before.
    fn room(&self) -> u16 {
        let not_taken = u64::from(self.slots()).saturating_sub(self.taken);
        let asked = self.credit.saturating_sub(self.sent);
        asked
            .min(self.idle_since.len() as u64)
            .min(not_taken)
            .min(u64::from(u16::MAX)) as u16
    }

    /// It has asked for a job that takes so many slots. One that takes a single slot may wait there
    /// for a while.
    fn has_asked_for(&self, slots: u16) -> bool {
        self.credit > self.sent && (slots == 1 || slots <= self.room())
    }

    /// It has more than it can run.
    fn is_overfull(&self) -> bool {
        self.taken > u64::from(self.slots())
    }
}

/// Hosts by name. Where their order shows, it is that of their names. These maps, and those of our
/// own numbers, are hashed fast and without chance: no outsider chooses their keys, and a core with
/// the same past does the same.
type Hosts = FxHashMap<Arc<str>, Host>;

/// All decisions of a coordinator.
#[derive(Debug)]
pub struct Scheduler {
    epoch: Epoch,
    store: StoreId,
    generation: Generation,
    /// Batches that may run for another coordinator.
    hold: Option<hold::Hold>,
    /// What it decides is recorded.
    durable: bool,
    restoring: record::Restoring,
    client_lease: Duration,
    /// When unattended batches are cancelled.
    deserted: BTreeSet<(BootInstant, BatchSerial)>,
    /// When what still runs on drained hosts is taken away.
    evictions: BTreeSet<(BootInstant, u32)>,
    losses: losses::Losses,
    /// Connected hosts that are still to say what they have, by when they must.
    unready: BTreeSet<(BootInstant, u32)>,
    /// Drained hosts where that has come.
    overdue: BTreeSet<u32>,
    lease: Option<Duration>,
    /// It is longer than what was recorded with attempts of an earlier life: no agent hears of it
    /// before the store has it.
    leases_grow: bool,
    batches: FxHashMap<BatchSerial, Batch>,
    serials: HashMap<BatchId, BatchSerial>,
    next_serial: u32,
    hosts: Hosts,
    names: fleet::Names,
    aliases: Aliases,
    /// Connected agents that can be given jobs, and their slots.
    fleet: (u32, u32),
    /// Hosts by index.
    host_names: Vec<Arc<str>>,
    /// Hosts that have asked for more than they have got.
    wanting: BTreeSet<u32>,
    /// Hosts that have more attempts than slots.
    overfull: BTreeSet<u32>,
    /// Hosts where a job of several slots may have room that had none.
    roomier: BTreeSet<u32>,
    /// When to take back what waits there.
    retract_at: Option<BootInstant>,
    /// Hosts with idle slots, by the longest idle one.
    idle: BTreeSet<(BootInstant, u32)>,
    /// When quarantines, and pauses for a batch, end.
    quarantines: BTreeSet<(BootInstant, u32)>,
    /// No attempt is given up before then: when to look at all leases again. Heartbeats only move
    /// the ends of leases on.
    look_at_leases: Option<BootInstant>,
    sessions: FxHashMap<SessionId, Arc<str>>,
    next_engine: u32,
    queues: Queues,
    /// Users by number, and how many slots each has.
    users: HashMap<String, u32>,
    /// Their names, by number.
    user_names: Vec<String>,
    /// The highest priority that counts before other users' jobs, and whose count without a limit.
    max_priority: i32,
    admins: Vec<String>,
    running: Vec<u64>,
    /// Queues whose hosts are all absent, and when their jobs end.
    absent: BTreeMap<QueueKey, BootInstant>,
    /// Idle slots that wait for jobs that take several.
    keeping: wide::Keeping,
    /// Jobs wait that hosts could take which have asked already.
    unserved: bool,
    /// Until when hosts are expected that may run what an earlier life has placed there.
    expected_until: Option<BootInstant>,
    /// Placed jobs that are being cancelled.
    cancelling: FxHashMap<JobKey, Cancelling>,
    /// Cancels that are not done.
    requests: HashMap<u64, CancelRequest>,
    /// How long a slot is idle before it gets a job that prefers another host.
    locality_wait: Duration,
    /// When slots that had been idle for that long were last looked at.
    looked_at: BootInstant,
    /// Jobs that can be queued now, or have to be skipped.
    released: VecDeque<JobKey>,
    to_skip: VecDeque<(JobKey, JobNumber)>,
    /// When jobs are tried again.
    delayed: BTreeSet<(BootInstant, JobKey)>,
    /// When batches end that have a time limit.
    deadlines: BTreeSet<(BootInstant, BatchSerial)>,
    effects: VecDeque<Effect>,
    mistake: Option<Mistake>,
    /// Somebody watches: what was placed against P4.
    watch: Option<near::Watch>,
}

impl Scheduler {
    /// An empty coordinator. Without a `lease`, agents share its fate: a lost session means that
    /// everything on it is dead. A slot that has been idle for `locality_wait` gets a job that
    /// prefers another host.
    ///
    /// `store`: attempts that another one knows are strangers here.
    pub fn new(
        epoch: Epoch,
        store: StoreId,
        lease: Option<Duration>,
        locality_wait: Duration,
    ) -> Self {
        Self {
            epoch,
            store,
            generation: Generation::default(),
            hold: None,
            durable: false,
            restoring: record::Restoring::default(),
            client_lease: Duration::MAX,
            deserted: BTreeSet::new(),
            evictions: BTreeSet::new(),
            losses: losses::Losses::default(),
            unready: BTreeSet::new(),
            overdue: BTreeSet::new(),
            lease,
            leases_grow: false,
            batches: FxHashMap::default(),
            serials: HashMap::new(),
            next_serial: 1,
            hosts: Hosts::default(),
            names: fleet::Names::default(),
            aliases: Aliases::default(),
            fleet: (0, 0),
            host_names: Vec::new(),
            wanting: BTreeSet::new(),
            overfull: BTreeSet::new(),
            roomier: BTreeSet::new(),
            retract_at: None,
            idle: BTreeSet::new(),
            quarantines: BTreeSet::new(),
            look_at_leases: None,
            sessions: FxHashMap::default(),
            next_engine: 0,
            queues: Queues::default(),
            users: HashMap::new(),
            user_names: Vec::new(),
            max_priority: 0,
            admins: Vec::new(),
            running: Vec::new(),
            absent: BTreeMap::new(),
            keeping: wide::Keeping::default(),
            unserved: false,
            expected_until: None,
            cancelling: FxHashMap::default(),
            requests: HashMap::new(),
            locality_wait,
            looked_at: BootInstant::default(),
            released: VecDeque::new(),
            to_skip: VecDeque::new(),
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            effects: VecDeque::new(),
            mistake: None,
            watch: None,
        }
    }

    /// The same, with a mistake in it.
    #[doc(hidden)]
    #[must_use]
    pub fn with_mistake(mut self, mistake: Option<Mistake>) -> Self {
        self.mistake = mistake;
        self
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::AgentHello {
                session,
                name,
                hello,
            } => self.agent_hello(session, &name, hello, now),
            Event::Agent(session, message) => {
                if let Some(name) = self.sessions.get(&session).cloned() {
                    self.agent_message(&name, message, now);
                }
            }
            Event::AgentGone(session) => {
                if let Some(name) = self.sessions.remove(&session) {
                    self.agent_gone(&name, false, now);
                }
            }
            Event::Open { user, terms } => self.open(user, *terms, now),
            Event::Submit {
                batch,
                host_sets,
                jobs,
            } => self.submit(batch, &host_sets, jobs, now),
            Event::Close { batch } => self.close(batch, now),
            Event::Unattended { batch } => {
                if let Some(serial) = self.serials.get(&batch).copied() {
                    self.unattended(serial, now);
                }
            }
            Event::Attended { batch } => {
                if let Some(serial) = self.serials.get(&batch).copied() {
                    self.attended(serial);
                }
            }
            Event::Cancel {
                request,
                what,
                stop,
                why,
            } => self.cancel(request, &what, stop, why, now),
            Event::Logs {
                request,
                batch,
                job,
                wish,
            } => self.logs(request, batch, &job, wish),
            Event::OutputTaken { batch, job, bytes } => self.output_taken(batch, job, bytes),
        }
        self.settle(now);
    }

    fn settle(&mut self, now: BootInstant) {
        self.settle_order(now);
        // Notices come before placements, so that what waits is said first.
        self.look_at_changed(now);
        for name in std::mem::take(&mut self.roomier)
            .into_iter()
            .filter_map(|index| self.name_at(index))
            .collect::<Vec<_>>()
        {
            self.serve(&name, usize::MAX, now);
        }
        while std::mem::take(&mut self.unserved) {
            self.serve_all(now);
            self.look_at_changed(now);
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        self.end_hold(now);
        let due = self.look_at_leases.is_some_and(|at| at <= now);
        let hosts = self
            .hosts
            .values()
            .filter(|h| due && self.fence(h).is_some_and(|until| until <= now));
        let mut over: Vec<Arc<str>> = hosts.map(|h| h.name.clone()).collect();
        over.sort();
        for name in over {
            if let Some(session) = self.hosts.get(&name).and_then(|h| h.session) {
                let reason = "no heartbeat for longer than the lease".to_owned();
                self.effects.push_back(Effect::CloseSession {
                    session,
                    refused: false,
                    reason,
                });
                self.sessions.remove(&session);
                self.agent_gone(&name, false, now);
            }
            self.lose_attempts(
                &name,
                |_| true,
                "its host was out of reach for longer than the lease",
                now,
            );
        }
        if due {
            self.lose_fenced(now);
            let users = self
                .hosts
                .values()
                .flat_map(|host| host.fenced.values().copied());
            self.look_at_leases = self
                .hosts
                .values()
                .filter_map(|h| self.fence(h))
                .chain(users)
                .min();
        }
        self.hosts_are_late(now);
        while let Some((key, _)) = self.absent.iter().find(|(_, deadline)| **deadline <= now) {
            let key = *key;
            self.absent.remove(&key);
            let why = self.why_absent(key);
            for job in self.queues.take_all(key) {
                self.finish(
                    JobKey {
                        batch: key.batch,
                        job,
                    },
                    None,
                    Outcome::never_ran(Ended::NoHost, why.clone()),
                    now,
                );
            }
        }
        while let Some((at, serial)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)
        {
            self.deadlines.remove(&(at, serial));
            self.time_is_up(serial, now);
        }
        while let Some((at, key)) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.remove(&(at, key));
            self.released.push_back(key);
        }
        while let Some((at, serial)) = self.deserted.first().copied().filter(|(at, _)| *at <= now) {
            self.deserted.remove(&(at, serial));
            self.end_deserted(serial, now);
        }
        self.expect_no_more(now);
        self.say_losses(now);
        self.evict(now);
        self.release_quarantined(now);
        self.keep_in_turn(now);
        self.retract_prefetched(now);
        self.serve_impatient(now);
        self.settle(now);
    }

    /// When [`Scheduler::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let fences = self.look_at_leases.into_iter();
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        fences
            .chain(self.absent.values().copied())
            .chain(deadline)
            .chain(self.patience_ends())
            .chain(self.delayed.first().map(|(at, _)| *at))
            .chain(self.quarantines.first().map(|(at, _)| *at))
            .chain(self.keeping.changes())
            .chain(self.deserted.first().map(|(at, _)| *at))
            .chain(self.evictions.first().map(|(at, _)| *at))
            .chain(self.retract_at)
            .chain(self.expected_until)
            .chain(self.losses.next())
            .chain(self.unready.first().map(|(at, _)| *at))
            .chain(self.hold_ends())
            .min()
    }

    /// When the next slot has been idle for so long that locality does not matter any more. Those
    /// that were looked at already get what they may have when it comes.
    fn patience_ends(&self) -> Option<BootInstant> {
        let (since, _) = self
            .patient()
            .next()
            .filter(|_| self.queues.any_elsewhere())?;
        Some(*since + self.locality_wait)
    }

    /// Hosts with slots that have not been looked at since they have been idle for long, by the
    /// longest idle one.
    fn patient(&self) -> impl Iterator<Item = &(BootInstant, u32)> {
        let looked_at = self.looked_at.0.checked_sub(self.locality_wait);
        let after = looked_at.map_or(Bound::Unbounded, |since| {
            Bound::Excluded((BootInstant(since), u32::MAX))
        });
        self.idle.range((after, Bound::Unbounded))
    }

    /// Gives jobs that prefer other hosts to slots that have been idle for long.
    fn serve_impatient(&mut self, now: BootInstant) {
        if self.patience_ends().is_none_or(|at| at > now) {
            return;
        }
        let over = self
            .patient()
            .take_while(|(since, _)| *since + self.locality_wait <= now);
        let names: Vec<Arc<str>> = over.filter_map(|(_, index)| self.name_at(*index)).collect();
        self.looked_at = now;
        self.fill_idle(&names, now);
    }

    /// Keeps the indices true after a change to what a host wants.
    fn reindex(&mut self, name: &str) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let there = host.known && host.session.is_some();
        let is = (
            there && host.credit > host.sent,
            host.idle_since.front().copied().filter(|_| there),
        );
        let was = std::mem::replace(&mut host.indexed, is);
        let index = host.index;
        let room = host.room();
        if room > std::mem::replace(&mut host.had_room, room) && room > 1 && self.queues.has_wide()
        {
            self.roomier.insert(index);
        }
        if there && host.is_overfull() {
            self.overfull.insert(index);
        } else {
            self.overfull.remove(&index);
        }
        if was.0 != is.0 {
            if is.0 {
                self.wanting.insert(index)
            } else {
                self.wanting.remove(&index)
            };
        }
        if was.1 != is.1 {
            if let Some(since) = was.1 {
                self.idle.remove(&(since, index));
            }
            self.idle.extend(is.1.map(|since| (since, index)));
        }
    }

    /// Attempts may be on a host from now on.
    fn lease_begins(&mut self, now: BootInstant) {
        if let Some(lease) = self.lease {
            self.look_at_leases
                .get_or_insert(now + lease + FENCE_MARGIN);
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The number of a batch that has not ended, and what there is of it: host sets, jobs, whether
    /// it is complete.
    pub fn batch_so_far(&self, id: BatchId) -> Option<(BatchSerial, u64, u64, bool)> {
        let serial = *self.serials.get(&id)?;
        let batch = self.batches.get(&serial)?;
        Some((
            serial,
            batch.host_sets.len() as u64,
            batch.jobs.len() as u64,
            !batch.open,
        ))
    }

    /// What is known to run where: hosts with the number of their first engine, and each engine
    /// with its job.
    pub fn running(
        &self,
    ) -> impl Iterator<Item = (&str, EngineId, impl Iterator<Item = (u16, JobKey)>)> {
        self.hosts.values().map(|host| {
            let on = host
                .attempts
                .iter()
                .filter_map(|(attempt, on)| Some((on.engine?, attempt.key)));
            (&*host.name, host.first_engine, on)
        })
    }

    /// From now on a priority above `most` counts only among the jobs of its own user; `admins`'
    /// always counts.
    pub fn set_max_priority(&mut self, most: i32, admins: &[String]) {
        (self.max_priority, self.admins) = (most, admins.to_vec());
        self.limit_priorities();
    }

    fn limit_priorities(&mut self) {
        let unlimited = self
            .admins
            .iter()
            .filter_map(|name| self.users.get(name))
            .copied()
            .collect();
        self.queues.limit(self.max_priority, unlimited);
    }

    /// How long a slot is idle from now on before it gets a job that prefers another host.
    pub fn set_locality_wait(&mut self, wait: Duration) {
        self.locality_wait = wait;
    }

    /// How many jobs of each batch run: of what a host has, no more than its slots take. The rest
    /// was handed out in advance.
    pub fn running_by_batch(&self) -> HashMap<BatchSerial, u64> {
        let mut running = HashMap::new();
        for host in self.hosts.values() {
            let mut free = u64::from(host.slots());
            let (started, waiting): (Vec<_>, Vec<_>) =
                host.attempts.iter().partition(|(_, on)| on.started);
            for (attempt, on) in started.into_iter().chain(waiting) {
                let Some(left) = free.checked_sub(u64::from(on.slots)) else {
                    continue;
                };
                free = left;
                *running.entry(attempt.key.batch).or_default() += 1;
            }
        }
        running
    }

    /// How many jobs of a batch are on hosts, and how many have not ended and are not; none: it has
    /// ended.
    pub fn left_of(&self, batch: BatchId) -> Option<(u64, u64)> {
        let batch = self.batches.get(self.serials.get(&batch)?)?;
        Some((
            batch.placed,
            (batch.jobs.len() - batch.done) as u64 - batch.placed,
        ))
    }

    /// How many attempts may be on a host, and for how long if nothing more is heard of it.
    pub fn attempts_on(&self, host: &str, now: BootInstant) -> (u64, Duration) {
        let Some(host) = self.hosts.get(host) else {
            return (0, Duration::ZERO);
        };
        (
            host.attempts.len() as u64,
            self.fence(host)
                .map_or(Duration::ZERO, |until| until.since(now)),
        )
    }

    /// The session of a host's agent that is connected.
    pub fn session_of(&self, host: &str) -> Option<SessionId> {
        self.hosts.get(host)?.session
    }

    /// Whether a host's agent is connected and has said what runs there.
    pub fn is_ready(&self, host: &str) -> bool {
        self.hosts
            .get(host)
            .is_some_and(|host| host.session.is_some() && host.known)
    }

    /// All hosts ever seen, for `coordinator hosts`.
    pub fn host_status(&self, now: BootInstant) -> Vec<HostStatus> {
        self.hosts_in_order()
            .into_iter()
            .map(|h| HostStatus {
                name: h.name.to_string(),
                connected: h.session.is_some(),
                ready: h.known && h.slots() > 0,
                slots: h.hello.slots,
                first_engine: h.first_engine,
                busy: h.taken.min(u64::from(h.hello.slots)) as u16,
                cpus: h.hello.cpus,
                memory: h.hello.memory,
                load: h.load,
                program: h.hello.program.clone(),
                since: now.since(h.since),
                clock_offset: h.clock_offset,
                datagram: None,
                containment: h.containment,
                drained: h.drained.as_ref().map(ToString::to_string),
                quarantined: h
                    .record
                    .until
                    .map(|until| (until.since(now), quarantine::REASON.to_owned())),
            })
            .collect()
    }

    /// What else is known of the same hosts. Whose certificates count is for others to say.
    pub fn host_standings(&self) -> Vec<HostStanding> {
        let standing = |host: &Host| HostStanding {
            name: host.name.to_string(),
            seen: host.seen,
            revoked: None,
            engines: host.engines.clone(),
        };
        self.hosts_in_order().into_iter().map(standing).collect()
    }

    fn hosts_in_order(&self) -> Vec<&Host> {
        let mut hosts: Vec<&Host> = self.hosts.values().collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts
    }

    fn name_at(&self, index: u32) -> Option<Arc<str>> {
        self.host_names.get(index as usize).cloned()
    }

    fn host_at(&self, index: u32) -> Option<&Host> {
        self.hosts.get(self.host_names.get(index as usize)?)
    }

    /// When attempts on `host` are surely dead though nobody said so; `None` if there is nothing to
    /// fence.
    fn fence(&self, host: &Host) -> Option<BootInstant> {
        let lease = self.lease?;
        (host.session.is_some() || !host.attempts.is_empty())
            .then(|| host.heard + lease + FENCE_MARGIN)
    }

    fn agent_hello(&mut self, session: SessionId, name: &str, hello: Hello, now: BootInstant) {
        let previous = self
            .hosts
            .get(name)
            .and_then(|h| Some((h.session?, (h.hello.boot_id, h.hello.keeper))));
        if let Some((old, holds)) = previous {
            // With the same keeper it is the agent of that host, reconnected or restarted: a keeper
            // serves only the newest one. Otherwise it is a copy of the certificate.
            if holds != (hello.boot_id, hello.keeper) {
                let rebooted = holds.0 != hello.boot_id;
                let way_out = if rebooted {
                    let silence = IDLE_TIMEOUT.as_secs();
                    format!(
                        "if {name} was restarted, it is let in when its old connection has been silent for {silence} s; else stop one"
                    )
                } else {
                    "stop one of them".to_owned()
                };
                let reason =
                    format!("another agent is connected with the certificate of {name}; {way_out}");
                tracing::warn!(
                    host = name,
                    rebooted,
                    "a second agent with the certificate of {name} is refused"
                );
                self.effects.push_back(Effect::CloseSession {
                    session,
                    refused: !rebooted,
                    reason,
                });
                return;
            }
            let reason = "the agent of this host has connected again".to_owned();
            self.effects.push_back(Effect::CloseSession {
                session: old,
                refused: false,
                reason,
            });
            self.sessions.remove(&old);
            self.agent_gone(name, true, now);
        }
        let slots = u32::from(hello.slots);
        let knows_generations = hello.versions.1 >= GENERATIONS;
        let rebooted = self
            .hosts
            .get(name)
            .is_some_and(|h| h.seen && h.hello.boot_id != hello.boot_id);
        let kept = self
            .hosts
            .get(name)
            .filter(|h| u32::from(h.hello.slots) >= slots)
            .map(|h| h.first_engine);
        let first_engine = kept.unwrap_or_else(|| {
            self.next_engine += slots;
            EngineId(self.next_engine - slots)
        });
        if kept.is_none() {
            let (host, slots) = (Arc::from(name), hello.slots);
            self.persist(|| Record::Engines {
                host,
                first: first_engine,
                slots,
            });
        }
        if rebooted {
            self.lose_attempts(name, |_| true, "its host was restarted", now);
        }
        let shared: Arc<str> = self
            .hosts
            .get(name)
            .map_or_else(|| name.into(), |h| h.name.clone());
        if !self.hosts.contains_key(name) {
            self.host_becomes_known(&shared, now);
        }
        // Without a session it is in none of the indices.
        let Some(known) = self.hosts.remove(name) else {
            return;
        };
        self.losses.ends(known.index, known.since);
        self.sessions.insert(session, shared.clone());
        if self.generation != Generation::default() && knows_generations {
            // Before anything counts that it says of a lease.
            let generation = ToAgent::Generation {
                generation: self.generation,
            };
            self.effects.push_back(Effect::Greet(session, generation));
        }
        let welcome = ToAgent::Welcome {
            version: mezcal_common::message::agent::VERSIONS
                .1
                .min(hello.versions.1),
            program: mezcal_common::VERSION.into(),
            session,
            store: self.store,
            lease: self.lease,
            first_engine,
            // The driver stamps it when it leaves.
            clock: mezcal_common::model::clock::WallTime(0),
        };
        self.effects.push_back(match kept {
            Some(_) if !self.leases_grow => Effect::Greet(session, welcome),
            Some(_) | None => Effect::ToAgent(session, welcome),
        });
        self.lease_begins(now);
        let host = Host {
            aliases: known.aliases,
            session: Some(session),
            seen: true,
            first_engine,
            attempts: known.attempts,
            taken: known.taken,
            record: known.record,
            drained: known.drained,
            ready_by: Some(now + READY_WITHIN),
            ..Host::new(shared.clone(), known.index, hello, now)
        };
        self.unready.insert((now + READY_WITHIN, host.index));
        self.hosts.insert(shared.clone(), host);
        self.look_at_presence(&shared);
    }

    fn agent_message(&mut self, name: &Arc<str>, message: ToCoordinator, now: BootInstant) {
        match message {
            ToCoordinator::Hello(_) => self.close_session(name, "a second hello"),
            ToCoordinator::Inventory {
                queued,
                running,
                unacknowledged,
                containment,
                clock_offset,
            } => {
                if let Some(host) = self.hosts.get_mut(name) {
                    host.containment = containment;
                }
                self.heard(name, clock_offset, now);
                self.inventory(name, None, &queued, &running, &unacknowledged, now);
                self.set_known(name, true);
                // It may have nothing to ask for, and those with idle slots may have asked long
                // ago.
                self.look_for_prefetched(now);
                if let Some(index) = self.hosts.get(name).map(|host| host.index) {
                    self.evict_overdue(index);
                }
            }
            ToCoordinator::Pull { credit, idle } => {
                if let Some(host) = self.hosts.get_mut(name) {
                    host.credit = credit;
                    let idle = usize::from(idle);
                    host.idle_since.resize(idle.max(host.idle_since.len()), now);
                    // A slot that is busy again without our doing was the last one to fall idle.
                    host.idle_since.truncate(idle);
                    self.reindex(name);
                    self.serve(name, usize::MAX, now);
                    self.look_for_prefetched(now);
                }
            }
            ToCoordinator::Reports(reports) => self.reports(name, None, reports, now),
            ToCoordinator::ReportsOf { user, reports } => {
                self.reports(name, Some(&user), reports, now)
            }
            ToCoordinator::UserInventory {
                user,
                queued,
                running,
                unacknowledged,
            } => {
                self.inventory(name, Some(&user), &queued, &running, &unacknowledged, now);
                self.tell_known(name, user, &running);
            }
            ToCoordinator::Served {
                users,
                unheard,
                containment,
                clock_offset,
            } => {
                self.heard(name, clock_offset, now);
                self.serves_only(name, users, unheard, now);
                if let Some(host) = self.hosts.get_mut(name) {
                    host.containment = containment;
                }
                self.set_known(name, true);
                self.look_for_prefetched(now);
                if let Some(index) = self.hosts.get(name).map(|host| host.index) {
                    self.evict_overdue(index);
                }
            }
            ToCoordinator::Engines {
                versions,
                replacing,
            } => self.engines_said(name, versions, replacing),
            ToCoordinator::Absent { attempts } => {
                let absent: BTreeSet<AttemptId> = attempts.into_iter().collect();
                self.lose_attempts(
                    name,
                    |a| absent.contains(&a),
                    "it vanished from its host",
                    now,
                );
            }
            ToCoordinator::Heartbeat {
                sent,
                load,
                clock_offset,
            } => {
                if let Some(host) = self.hosts.get_mut(name) {
                    (host.heard, host.load, host.clock_offset) = (now, load, clock_offset);
                    let clock = mezcal_common::model::clock::WallTime(0);
                    self.tell_agent(name, ToAgent::HeartbeatSeen { sent, clock });
                }
            }
            ToCoordinator::Output {
                attempt,
                stream,
                data,
            } => self.output(name, attempt, stream, data),
            ToCoordinator::Goodbye => {
                // What it gives back must not be placed there again.
                if let Some(host) = self.hosts.get_mut(name) {
                    host.credit = 0;
                }
                self.set_known(name, false);
                self.reindex(name);
                self.give_back(name, now);
                self.close_session(name, "goodbye");
            }
            ToCoordinator::UsableEngines { ready, failing } => {
                self.usable_engines(name, ready, failing)
            }
            // Its connection sees to it.
            ToCoordinator::Renew { .. } => {}
            ToCoordinator::LogsAnswer { request, streams } => self
                .effects
                .push_back(Effect::LogsAnswer { request, streams }),
        }
    }

    /// The agent says what it has: a sign of life.
    fn heard(&mut self, name: &str, clock_offset: Option<f64>, now: BootInstant) {
        if let Some(host) = self.hosts.get_mut(name) {
            (host.heard, host.clock_offset) = (now, clock_offset);
        }
    }

    /// What a host has, of one user or of all. An attempt that was sent in this session may still
    /// be on its way there.
    fn inventory(
        &mut self,
        name: &Arc<str>,
        user: Option<&str>,
        queued: &[AttemptId],
        running: &[AttemptId],
        unacknowledged: &[AttemptId],
        now: BootInstant,
    ) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let session = host.session;
        let user = user.map(|user| self.users.get(user).copied());
        let theirs = |on: &OnHost| user.is_none_or(|user| user == Some(on.user));
        let known: BTreeMap<AttemptId, OnHost> = host
            .attempts
            .iter()
            .filter(|(_, on)| theirs(on))
            .map(|(attempt, on)| (*attempt, *on))
            .collect();
        let held: BTreeSet<AttemptId> = queued
            .iter()
            .chain(running)
            .chain(unacknowledged)
            .copied()
            .collect();
        // What another user has there is not to be killed on the word of this one.
        let stranger = |a: &AttemptId| match known.contains_key(a) {
            true => self.is_superseded(*a),
            false => !host.attempts.contains_key(a),
        };
        let strangers: Vec<AttemptId> = queued
            .iter()
            .chain(running)
            .copied()
            .filter(stranger)
            .collect();
        if !strangers.is_empty() {
            // Of an earlier coordinator, or given up: whatever they are, they are not wanted.
            self.tell_agent(
                name,
                ToAgent::Cancel {
                    attempts: strangers,
                    stop: Stop::NOW,
                },
            );
        }
        let gone = |a: AttemptId| {
            !held.contains(&a)
                && known
                    .get(&a)
                    .is_some_and(|on| user.is_none() || on.session != session)
        };
        self.lose_attempts(name, gone, "it vanished from its host", now);
        // What runs was reported as started once, and maybe to an earlier life of ours.
        if let Some(host) = self.hosts.get_mut(name) {
            for attempt in running.iter().filter(|attempt| known.contains_key(attempt)) {
                host.attempts
                    .get_mut(attempt)
                    .into_iter()
                    .for_each(|on| on.started = true);
            }
        }
        // A cancel may have been sent before the agent knew what it has.
        for attempt in known
            .into_keys()
            .filter(|a| held.contains(a) && !self.is_superseded(*a))
            .collect::<Vec<_>>()
        {
            if let Some(stop) = self.cancelling.get(&attempt.key).map(|c| c.stop) {
                self.tell_agent(
                    name,
                    ToAgent::Cancel {
                        attempts: vec![attempt],
                        stop,
                    },
                );
            }
        }
        // Nor may the host have heard that a batch is given up.
        let halted = |a: &AttemptId| self.batches.get(&a.key.batch).is_some_and(|b| b.halted);
        let attempts: Vec<AttemptId> = queued.iter().copied().filter(halted).collect();
        if !attempts.is_empty() {
            self.tell_agent(name, ToAgent::Retract { attempts });
        }
    }

    /// Which of what a user's engines say to run is theirs, with its slots.
    fn tell_known(&mut self, name: &Arc<str>, user: String, running: &[AttemptId]) {
        let (Some(host), Some(number)) = (self.hosts.get(name), self.users.get(&user).copied())
        else {
            return self.tell_agent(
                name,
                ToAgent::Known {
                    user,
                    attempts: Vec::new(),
                },
            );
        };
        let theirs = |attempt: &AttemptId| {
            host.attempts
                .get(attempt)
                .filter(|on| on.user == number && !self.is_superseded(*attempt))
        };
        let attempts = running
            .iter()
            .filter_map(|attempt| Some((*attempt, theirs(attempt)?.slots)))
            .collect();
        self.tell_agent(name, ToAgent::Known { user, attempts });
    }

    /// From now on a host runs jobs of these users. What it has of others is fenced: it renews no
    /// lease of theirs any more.
    fn serves_only(
        &mut self,
        name: &Arc<str>,
        users: Vec<String>,
        unheard: Vec<(String, String)>,
        now: BootInstant,
    ) {
        let until = self.lease.map(|lease| now + lease + FENCE_MARGIN);
        self.change_users(name, users);
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let served = host.hello.users.as_deref().unwrap_or_default();
        let with: BTreeSet<u32> = host.attempts.values().map(|on| on.user).collect();
        let fenced: BTreeSet<u32> = with
            .into_iter()
            .filter(|user| !served.contains(&self.user_names[*user as usize]))
            .collect();
        let short = |text: String| text.chars().take(REASON_CHARS).collect::<String>();
        host.unheard = unheard
            .into_iter()
            .take(served.len().max(MOST_UNHEARD))
            .map(|(user, why)| (short(user), short(why)))
            .collect();
        host.fenced.retain(|user, _| fenced.contains(user));
        for user in fenced {
            if let Some(until) = until {
                host.fenced.entry(user).or_insert(until);
            }
        }
        if let Some(first) = host.fenced.values().min().copied() {
            self.look_at_leases = Some(self.look_at_leases.map_or(first, |at| at.min(first)));
        }
    }

    /// What a host's engines run, and whose take no new jobs there until they have been replaced.
    fn engines_said(
        &mut self,
        name: &Arc<str>,
        mut versions: Vec<(String, u16)>,
        replacing: Vec<String>,
    ) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.session.is_some())
        else {
            return;
        };
        versions.truncate(MOST_VERSIONS);
        host.engines = versions
            .into_iter()
            .map(|(version, count)| (version.chars().take(VERSION_CHARS).collect(), count))
            .collect();
        let served = host.hello.users.as_deref().unwrap_or_default();
        let theirs = |user: &String| {
            served.contains(user) || host.unheard.iter().any(|(unheard, _)| unheard == user)
        };
        let replacing: Vec<String> = replacing.into_iter().filter(theirs).collect();
        let was = std::mem::replace(&mut host.replacing, replacing);
        let changed: BTreeSet<&String> = was.iter().chain(&host.replacing).collect();
        for user in changed.into_iter().filter_map(|user| self.users.get(user)) {
            self.queues.look_at_user(*user);
            self.unserved = true;
        }
    }

    /// Attempts of users of whom nothing has been heard on a host for longer than a lease.
    fn lose_fenced(&mut self, now: BootInstant) {
        let mut over: Vec<(Arc<str>, u32)> = Vec::new();
        for host in self.hosts.values_mut() {
            let name = host.name.clone();
            over.extend(
                host.fenced
                    .extract_if(.., |_, until| *until <= now)
                    .map(|(user, _)| (name.clone(), user)),
            );
        }
        over.sort();
        for (name, user) in over {
            let Some(host) = self.hosts.get(&name) else {
                continue;
            };
            let theirs: BTreeSet<AttemptId> = host
                .attempts
                .iter()
                .filter(|(_, on)| on.user == user)
                .map(|(a, _)| *a)
                .collect();
            let why = "its user's engines were not heard there for longer than the lease";
            self.lose_attempts(&name, |attempt| theirs.contains(&attempt), why, now);
        }
    }

    fn is_superseded(&self, attempt: AttemptId) -> bool {
        self.job(attempt.key)
            .is_none_or(|job| job.attempt != attempt.attempt || job.state != JobState::Placed)
    }

    /// With a `user`, only what is about that user's attempts counts.
    fn reports(
        &mut self,
        name: &Arc<str>,
        user: Option<&str>,
        reports: Vec<NumberedReport>,
        now: BootInstant,
    ) {
        let Some(through) = reports.iter().map(|r| r.seq).max() else {
            return;
        };
        let user = user.map(|user| self.users.get(user).copied());
        for NumberedReport {
            attempt, report, ..
        } in reports
        {
            let Some(host) = self.hosts.get_mut(name) else {
                return;
            };
            if user.is_some_and(|user| {
                host.attempts
                    .get(&attempt)
                    .is_some_and(|on| Some(on.user) != user)
            }) {
                tracing::warn!(host = %name, %attempt, "{name} reports on another user's attempt {attempt}; not believed");
                continue;
            }
            match report {
                Report::Started { engine } => {
                    if let Some(on) = host.attempts.get_mut(&attempt) {
                        (on.engine, on.started) = (Some(engine.0), true);
                    }
                }
                Report::Finished { engine, outcome } | Report::Counted { engine, outcome } => {
                    let index = host.index;
                    if host.remove(attempt).is_none() || self.is_superseded(attempt) {
                        continue;
                    }
                    let place = self.place(name, engine.map(|e| e.0));
                    if outcome.ended == Ended::HostShort {
                        self.host_was_short(index, attempt, place, *outcome, now);
                        continue;
                    }
                    if outcome.status.is_some()
                        && let Some(batch) = self.batches.get_mut(&attempt.key.batch)
                    {
                        batch.short.is_over(index);
                    }
                    self.judge(name, attempt.key, &outcome, now);
                    self.attempt_over(attempt, place, *outcome, now);
                }
                Report::Returned => {
                    if host.remove(attempt).is_some() {
                        self.returned(attempt, now);
                    }
                }
            }
        }
        self.reindex(name);
        self.tell_agent(name, ToAgent::Acknowledge { through });
    }

    fn place(&self, name: &Arc<str>, engine: Option<u16>) -> Option<Place> {
        let host = self.hosts.get(name)?;
        let engine = EngineId(host.first_engine.0 + u32::from(engine?));
        Some(Place {
            host: host.name.clone(),
            engine,
            clock_offset: host.clock_offset,
        })
    }

    /// The present attempt of a job is over: again, or for good.
    fn attempt_over(
        &mut self,
        attempt: AttemptId,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        let key = attempt.key;
        let asked = self.cancelling.contains_key(&key);
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        let (cancelled, once) = (
            asked || batch.cancelled.is_some(),
            batch.once || batch.halted,
        );
        let Some(job) = batch.jobs.get_mut(key.job.0 as usize - 1) else {
            return;
        };
        if outcome.ended == Ended::Cancelled
            && outcome.survivors == 0
            && !cancelled
            && !once
            && self.overdue.contains(&job.host)
        {
            // An agent that was started again in the grace of an eviction does not know why it
            // ended.
            return self.returned(attempt, now);
        }
        let kept = self.durable.then(|| Box::new(outcome.clone()));
        let numbered = self.generation.next_attempt(job.attempt).is_some();
        let again = match outcome.ended {
            Ended::Lost if cancelled => {
                outcome.ended = Ended::Cancelled;
                false
            }
            // What went with an earlier life of ours is nobody's loss.
            Ended::Lost if attempt.epoch != self.epoch && !once => true,
            Ended::Lost => {
                job.losses += 1;
                let host = self
                    .host_names
                    .get(job.host as usize)
                    .map_or("a host", |name| name);
                let why = outcome.error.as_deref().unwrap_or_default();
                let lost = batch.lost.entry(key.job).or_default();
                lost.push(format!("attempt {} on {host}: {why}", job.attempt));
                if lost.len() > 1 {
                    outcome.error = Some(lost.join("; "));
                }
                u32::from(job.losses) <= MAX_LOSSES && !once
            }
            Ended::Exited
            | Ended::Signaled
            | Ended::Timeout
            | Ended::OutOfMemory
            | Ended::StartFailed => {
                let worth = batch
                    .retry_rules
                    .get(&key.job)
                    .is_none_or(|rule| after::worth_another(&rule.on, &outcome));
                let retry =
                    !outcome.succeeded() && job.retries > 0 && !cancelled && !batch.halted && worth;
                job.retries -= u32::from(retry);
                retry
            }
            Ended::Cancelled
            | Ended::NoHost
            | Ended::Skipped
            | Ended::Unkillable
            | Ended::HostShort => false,
        };
        let failed = outcome.ended != Ended::Lost;
        let again = again && numbered;
        if !numbered {
            let why = format!(
                "it was tried {} times, and there are no more numbers for its attempts",
                attempt_count(job.attempt)
            );
            outcome.error = Some(
                outcome
                    .error
                    .take()
                    .map_or(why.clone(), |said| format!("{said}; {why}")),
            );
        }
        if !again {
            return self.finish(key, place, outcome, now);
        }
        self.running[batch.user as usize] -= u64::from(job.queue.slots());
        batch.placed -= 1;
        let (retries, losses) = (job.retries, job.losses);
        job.state = JobState::Queued;
        // A lost host is nobody's failure: elsewhere it may begin at once.
        let delay = if failed {
            batch.pause_of(key.job)
        } else {
            Duration::ZERO
        };
        self.persist(|| Record::Again {
            attempt,
            retries,
            losses,
            outcome: kept,
        });
        match delay.is_zero() {
            true => self.enqueue(key),
            false => self.delay(key, now + delay),
        }
    }

    /// A job is tried again then.
    fn delay(&mut self, key: JobKey, at: BootInstant) {
        self.delayed.insert((at, key));
        self.job_mut(key)
            .into_iter()
            .for_each(|job| job.state = JobState::Waiting);
    }

    /// Everything on a host comes back without anybody's fault: its agent has stopped in order.
    fn give_back(&mut self, name: &str, now: BootInstant) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let attempts = std::mem::take(&mut host.attempts);
        host.taken = 0;
        self.reindex(name);
        for attempt in attempts.into_keys() {
            self.returned(attempt, now);
        }
    }

    fn returned(&mut self, attempt: AttemptId, now: BootInstant) {
        if self.is_superseded(attempt) {
            return;
        }
        let asked = self.cancelling.contains_key(&attempt.key);
        let Some(batch) = self.batches.get_mut(&attempt.key.batch) else {
            return;
        };
        if asked || batch.is_given_up() {
            return self.finish(
                attempt.key,
                None,
                Outcome::never_ran(Ended::Cancelled, None),
                now,
            );
        }
        if batch.once {
            return self.finish(
                attempt.key,
                None,
                Outcome::never_ran(Ended::Lost, "its agent was stopped".to_owned()),
                now,
            );
        }
        if self.generation.next_attempt(attempt.attempt).is_none() {
            let why =
                "it was given back, and there are no more numbers for its attempts".to_owned();
            return self.finish(attempt.key, None, Outcome::never_ran(Ended::Lost, why), now);
        }
        let Some(job) = batch.jobs.get_mut(attempt.key.job.0 as usize - 1) else {
            return;
        };
        job.state = JobState::Queued;
        batch.placed -= 1;
        self.running[batch.user as usize] -= u64::from(job.queue.slots());
        let (retries, losses) = (job.retries, job.losses);
        self.persist(|| Record::Again {
            attempt,
            retries,
            losses,
            outcome: None,
        });
        self.enqueue(attempt.key);
    }

    fn finish(
        &mut self,
        key: JobKey,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        let local = self
            .job(key)
            .and_then(|job| self.is_local(job.queue, place.as_ref()));
        let held = self.held_until(key.batch);
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        let Some(job) = batch.jobs.get_mut(key.job.0 as usize - 1) else {
            return;
        };
        if job.state == JobState::Done {
            return;
        }
        // What is left of its text is for whoever asks for its output.
        job.spec = text::ended(&job.spec);
        match job.state {
            JobState::Waiting => batch.order.forget(key.job),
            JobState::Placed => {
                batch.placed -= 1;
                self.running[batch.user as usize] -= u64::from(job.queue.slots());
            }
            JobState::Queued | JobState::Done => {}
        }
        job.state = JobState::Done;
        job.succeeded = outcome.succeeded();
        let succeeded = job.succeeded;
        batch.done += 1;
        batch.lost.remove(&key.job);
        batch.counts.add(&outcome);
        let why = self
            .cancelling
            .get(&key)
            .and_then(|c| c.why.clone())
            .or_else(|| batch.why.clone());
        if outcome.ended == Ended::Cancelled
            && outcome.error.is_none()
            && let Some(why) = why
        {
            outcome.error = Some(why.to_string());
        }
        if let Some(until) = held {
            hold::admit_ignorance(&mut outcome, until, now);
        }
        let (ended, killed, survivors) = (outcome.ended, outcome.killed, outcome.survivors);
        let result = JobResult {
            attempt: job.attempt,
            place,
            local,
            outcome,
        };
        let (batch, seq) = (batch.id, batch.done as u64);
        self.persist(|| Record::Ended {
            batch: key.batch,
            seq,
            job: key.job,
            result: Box::new(result.clone()),
        });
        self.effects.push_back(Effect::Result {
            batch,
            seq,
            job: key.job,
            result,
        });
        self.order_ended(key, succeeded);
        self.cancel_done(key, ended, killed, survivors);
        self.check_halt(key.batch, now);
        self.end_batch_if_done(key.batch);
    }

    fn end_batch_if_done(&mut self, serial: BatchSerial) {
        let Some(batch) = self.batches.get(&serial) else {
            return;
        };
        if batch.open || batch.done < batch.jobs.len() {
            return;
        }
        let (id, deadline, deserted) = (batch.id, batch.deadline, batch.deserted);
        deadline.map(|at| self.deadlines.remove(&(at, serial)));
        deserted.map(|at| self.deserted.remove(&(at, serial)));
        self.persist(|| Record::Done { batch: serial });
        self.effects.push_back(Effect::BatchDone { batch: id });
        let Some(batch) = self.batches.get(&serial) else {
            return;
        };
        self.serials.remove(&batch.id);
        self.batches.remove(&serial);
        for host in self.hosts.values_mut() {
            host.record.forget(serial);
            if host.told.remove(&serial)
                && let Some(session) = host.session
            {
                self.effects
                    .push_back(Effect::ToAgent(session, ToAgent::Forget { batch: serial }));
            }
        }
    }

    /// Nobody is connected any more who looks after a batch: unless it is detached and complete,
    /// its lease begins.
    fn unattended(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self
            .batches
            .get_mut(&serial)
            .filter(|b| b.deserted.is_none() && (b.open || !b.detached))
        else {
            return;
        };
        let until = now + self.client_lease;
        batch.deserted = Some(until);
        self.deserted.insert((until, serial));
    }

    fn attended(&mut self, serial: BatchSerial) {
        if let Some(until) = self
            .batches
            .get_mut(&serial)
            .and_then(|batch| batch.deserted.take())
        {
            self.deserted.remove(&(until, serial));
        }
    }

    fn end_deserted(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        batch.why = Some(
            format!(
                "its client was gone for longer than {}",
                format_duration(self.client_lease)
            )
            .into(),
        );
        let id = batch.id;
        batch.deserted = None;
        self.cancel_batch(serial, None, Stop::after(halt::GRACE), now);
        self.handle(Event::Close { batch: id }, now);
    }

    /// A session has ended. Another one may have `replaced` it already, and then nothing is out of
    /// reach.
    fn agent_gone(&mut self, name: &str, replaced: bool, now: BootInstant) {
        let Some(name) = self
            .hosts
            .get(name)
            .filter(|host| host.session.is_some())
            .map(|host| host.name.clone())
        else {
            return;
        };
        self.set_known(&name, false);
        self.keep_nothing(&name);
        let Some(host) = self.hosts.get_mut(&name) else {
            return;
        };
        host.session = None;
        self.look_at_presence(&name);
        let Some(host) = self.hosts.get_mut(&name) else {
            return;
        };
        if let Some(at) = host.ready_by.take() {
            self.unready.remove(&(at, host.index));
        }
        (host.usable, host.failing, host.late) = (None, None, false);
        (host.credit, host.sent) = (0, 0);
        host.idle_since.clear();
        host.since = now;
        host.told.clear();
        let name = &*name;
        self.reindex(name);
        match self.lease {
            None => self.lose_attempts(name, |_| true, "its agent is gone", now),
            Some(_) if replaced => {}
            Some(_) => {
                let index = self.hosts[name].index;
                self.losses.begins(index, now);
            }
        }
    }

    /// Attempts of `name` that `gone` picks are surely over, without a report.
    fn lose_attempts(
        &mut self,
        name: &str,
        gone: impl Fn(AttemptId) -> bool,
        why: &str,
        now: BootInstant,
    ) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let lost: Vec<(AttemptId, Option<u16>)> = host
            .attempts
            .iter()
            .filter(|(a, _)| gone(**a))
            .map(|(a, on)| (*a, on.engine))
            .collect();
        let shared = host.name.clone();
        for (attempt, engine) in lost {
            if let Some(host) = self.hosts.get_mut(name) {
                host.remove(attempt);
            }
            self.reindex(name);
            if !self.is_superseded(attempt) {
                let place = self.place(&shared, engine);
                self.attempt_over(
                    attempt,
                    place,
                    Outcome::never_ran(Ended::Lost, why.to_owned()),
                    now,
                );
            }
        }
    }

    fn open(&mut self, user: String, terms: BatchTerms, now: BootInstant) {
        let id = terms.context.batch;
        if self.serials.contains_key(&id) {
            // A repeated submit is the same batch.
            return;
        }
        let serial = BatchSerial(self.next_serial);
        if serial > self.generation.last_batch() {
            let reason = "the coordinator has used up the numbers of batches of this generation of its store: a copy that `coordinator backup` \
                          makes and `coordinator restore` puts in its place has the next ones"
                .to_owned();
            self.effects
                .push_back(Effect::Refused { batch: id, reason });
            return;
        }
        self.next_serial = self.next_serial.saturating_add(1);
        let age = Duration::ZERO;
        self.persist(|| Record::Opened {
            batch: serial,
            user: user.clone(),
            terms: Box::new(terms.clone()),
            age,
        });
        self.add_batch(serial, user, terms, age, now);
    }

    fn add_batch(
        &mut self,
        serial: BatchSerial,
        user: String,
        terms: BatchTerms,
        age: Duration,
        now: BootInstant,
    ) {
        let id = terms.context.batch;
        let next = self.users.len() as u32;
        let user = *self.users.entry(user).or_insert_with_key(|name| {
            self.user_names.push(name.clone());
            next
        });
        if user == next {
            self.running.push(0);
            self.limit_priorities();
        }
        self.serials.insert(id, serial);
        let batch = Batch {
            id,
            user,
            context: terms.context,
            host_timeout: terms.host_timeout,
            once: terms.once,
            host_sets: Vec::new(),
            jobs: Vec::new(),
            placed: 0,
            done: 0,
            open: true,
            order: after::Order::default(),
            retry_rules: HashMap::new(),
            ends: quarantine::Ends::default(),
            short: shortage::Shortages::default(),
            lost: HashMap::new(),
            labels: HashMap::new(),
            cancelled: None,
            why: None,
            halt: terms.halt,
            counts: halt::Counts::default(),
            halted: false,
            deadline: terms
                .time_limit
                .map(|limit| now + limit.saturating_sub(age)),
            time_limit: terms.time_limit,
            detached: terms.detached,
            deserted: None,
        };
        self.deadlines.extend(batch.deadline.map(|at| (at, serial)));
        self.batches.insert(serial, batch);
    }

    fn submit(
        &mut self,
        id: BatchId,
        host_sets: &[Vec<String>],
        jobs: Vec<Submission>,
        now: BootInstant,
    ) {
        let Some(serial) = self.serials.get(&id).copied() else {
            self.effects.push_back(Effect::Refused {
                batch: id,
                reason: "there is no such open batch".into(),
            });
            return;
        };
        let stored = self.is_stored(serial);
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        batch.add_host_sets(host_sets);
        let (mut queued, mut refused) = (Vec::with_capacity(jobs.len()), None);
        let mut taken = Vec::with_capacity(if stored { jobs.len() } else { 0 });
        for mut submission in jobs {
            if !batch.open || submission.job.0 as usize != batch.jobs.len() + 1 {
                refused = Some(format!(
                    "job {} does not continue the batch",
                    submission.job
                ));
                break;
            }
            if submission.spec.len() > MAX_SPEC
                || batch.jobs.len() >= MAX_JOBS
                || submission.slots == 0
                || [submission.hosts, submission.prefer]
                    .iter()
                    .flatten()
                    .any(|h| *h as usize >= batch.host_sets.len())
            {
                refused = Some(format!("job {} is not acceptable", submission.job));
                break;
            }
            if stored {
                taken.push(submission.clone());
            }
            let (after, stillborn) = (
                std::mem::take(&mut submission.after),
                submission.stillborn.take(),
            );
            queued.push((submission.job, stillborn, after));
            batch.add_job(serial, submission, stored);
        }
        let (accepted, held) = (batch.jobs.len() as u64, batch.is_held());
        if !host_sets.is_empty() {
            self.persist(|| Record::HostSets {
                batch: serial,
                sets: host_sets.to_vec(),
            });
        }
        if !taken.is_empty() {
            self.persist(|| Record::Submitted {
                batch: serial,
                jobs: taken,
            });
        }
        self.effects.push_back(Effect::Accepted {
            batch: id,
            jobs: accepted,
            closed: false,
        });
        if let Some(reason) = refused {
            self.effects
                .push_back(Effect::Refused { batch: id, reason });
        }
        let given_up = |s: &Self| s.batches.get(&serial).is_none_or(Batch::is_given_up);
        let mut cancelled = given_up(self);
        for (job, stillborn, after) in queued {
            let key = JobKey { batch: serial, job };
            match stillborn {
                Some(why) => {
                    self.finish(key, None, Outcome::never_ran(Ended::StartFailed, why), now);
                    // That may have halted it.
                    cancelled = given_up(self);
                }
                None if cancelled => {
                    self.finish(key, None, Outcome::never_ran(Ended::Cancelled, None), now)
                }
                None => self.may_start(key, &after, held),
            }
        }
    }

    /// A job has come that nothing speaks against: it waits for a host, or for something else
    /// first. `held`: for its batch to be whole.
    fn may_start(&mut self, key: JobKey, after: &[JobNumber], held: bool) {
        if self.must_wait(key, after) {
            return;
        }
        match held {
            true => self
                .job_mut(key)
                .into_iter()
                .for_each(|job| job.state = JobState::Waiting),
            false => self.enqueue(key),
        }
    }

    /// No more jobs of a batch will come. Whoever says it again, since an answer was lost, hears
    /// again that it is so.
    fn close(&mut self, id: BatchId, now: BootInstant) {
        let Some(serial) = self.serials.get(&id).copied() else {
            return;
        };
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        let (first, jobs, detached) = (
            std::mem::take(&mut batch.open),
            batch.jobs.len() as u64,
            batch.detached,
        );
        if first {
            self.persist(|| Record::Closed { batch: serial });
        }
        self.effects.push_back(Effect::Accepted {
            batch: id,
            jobs,
            closed: true,
        });
        if !first {
            return;
        }
        if detached {
            self.release_the_whole(serial);
        }
        self.order_is_complete(serial);
        // A share of all jobs can be told from now on.
        self.check_halt(serial, now);
        self.end_batch_if_done(serial);
    }

    /// A job waits for a host from now on.
    fn enqueue(&mut self, key: JobKey) {
        if self.is_held_back(key) {
            return;
        }
        let Some(queue) = self.job(key).map(|job| job.queue) else {
            return;
        };
        let (required, prefer) = (self.set_of(queue), self.preferred_by(queue));
        self.queues.push(queue, key.job, required, prefer);
        if !self.is_served(queue.user) {
            self.queues.look_at(queue);
        }
        self.unserved = true;
    }

    fn set_of(&self, key: QueueKey) -> Option<Arc<[Arc<str>]>> {
        let set = key.hosts?;
        self.batches
            .get(&key.batch)?
            .host_sets
            .get(set as usize)
            .cloned()
    }

    fn preferred_by(&self, key: QueueKey) -> Option<Arc<[Arc<str>]>> {
        let set = key.prefer?;
        self.batches
            .get(&key.batch)?
            .host_sets
            .get(set as usize)
            .cloned()
    }

    /// Whether a job ran where it prefers to, if it prefers anything.
    fn is_local(&self, key: QueueKey, place: Option<&Place>) -> Option<bool> {
        let (preferred, place) = (self.preferred_by(key)?, place?);
        let host = self.hosts.get(&place.host)?;
        Some(
            self.names_of(host)
                .iter()
                .any(|name| preferred.contains(name)),
        )
    }

    fn output(&mut self, name: &Arc<str>, attempt: AttemptId, stream: Stream, data: Bytes) {
        let known = self
            .hosts
            .get(name)
            .is_some_and(|h| h.attempts.contains_key(&attempt));
        match self.batches.get(&attempt.key.batch) {
            Some(batch) if known => {
                let (batch, job, host) = (batch.id, attempt.key.job, name.clone());
                self.effects.push_back(Effect::Output {
                    batch,
                    job,
                    host,
                    stream,
                    data,
                });
            }
            _ => self.tell_agent(
                name,
                ToAgent::OutputTaken {
                    attempt,
                    bytes: data.len() as u32,
                },
            ),
        }
    }

    fn output_taken(&mut self, batch: BatchId, job: JobNumber, bytes: u32) {
        let Some(serial) = self.serials.get(&batch).copied() else {
            return;
        };
        let key = JobKey { batch: serial, job };
        let found = self.hosts.values().find_map(|h| {
            h.attempts
                .keys()
                .find(|a| a.key == key)
                .map(|a| (h.name.clone(), *a))
        });
        if let Some((name, attempt)) = found {
            self.tell_agent(&name, ToAgent::OutputTaken { attempt, bytes });
        }
    }

    fn job_mut(&mut self, key: JobKey) -> Option<&mut Job> {
        self.batches
            .get_mut(&key.batch)?
            .jobs
            .get_mut((key.job.0 as usize).checked_sub(1)?)
    }

    fn job(&self, key: JobKey) -> Option<&Job> {
        self.batches
            .get(&key.batch)?
            .jobs
            .get((key.job.0 as usize).checked_sub(1)?)
    }

    /// Gives a host what it has credit for, `most` attempts at most. True if it got anything.
    fn serve(&mut self, name: &Arc<str>, most: usize, now: BootInstant) -> bool {
        let Some(host) = self.hosts.get(name) else {
            return false;
        };
        let Some(session) = host.session.filter(|_| host.is_willing()) else {
            return false;
        };
        let index = host.index;
        let names = self.names_of(host);
        let (mut run, mut bytes, mut given) = (Vec::new(), 0, 0);
        while given < most {
            let Some(next) = self.next_queue(name, &names, now) else {
                break;
            };
            let queue = next.key;
            if next.elsewhere && self.serve_nearer(queue, now) {
                // What has been given there may have been the last one.
                continue;
            }
            let Some(number) = self.queues.pop(queue) else {
                break;
            };
            let slots = queue.slots();
            let Some(batch) = self.batches.get_mut(&queue.batch) else {
                continue;
            };
            let Some(job) = batch.jobs.get_mut(number.0 as usize - 1) else {
                continue;
            };
            job.state = JobState::Placed;
            batch.placed += 1;
            self.running[queue.user as usize] += u64::from(slots);
            job.host = index;
            // Whatever waits has a number left.
            job.attempt = self
                .generation
                .next_attempt(job.attempt)
                .unwrap_or(u32::MAX);
            let key = JobKey {
                batch: queue.batch,
                job: number,
            };
            let attempt = AttemptId {
                epoch: self.epoch,
                key,
                attempt: job.attempt,
            };
            let placement = Placement {
                attempt,
                spec: job.spec.clone(),
                slots,
            };
            let length = job.spec_length as usize;
            let Some(host) = self.hosts.get_mut(name) else {
                break;
            };
            let context = host.told.insert(queue.batch).then(|| {
                (
                    batch.context.clone(),
                    self.user_names[batch.user as usize].clone(),
                )
            });
            if run.len() == RUN_COUNT || bytes + length > RUN_BYTES || context.is_some() {
                self.send_run(name, session, std::mem::take(&mut run));
                bytes = 0;
            }
            if let Some((context, user)) = context {
                self.effects.push_back(Effect::ToAgent(
                    session,
                    ToAgent::Context {
                        batch: queue.batch,
                        context,
                        user,
                    },
                ));
            }
            bytes += length;
            run.push(placement);
            let Some(host) = self.hosts.get_mut(name) else {
                break;
            };
            host.add(attempt, queue.user, slots, Some(session));
            host.sent += u64::from(slots);
            host.idle_since
                .drain(..usize::from(slots).min(host.idle_since.len()));
            given += 1;
            if slots > 1 {
                self.wide_is_placed(name, queue);
            }
        }
        self.send_run(name, session, run);
        if given > 0 {
            self.reindex(name);
        }
        given > 0
    }

    fn send_run(&mut self, name: &Arc<str>, session: SessionId, run: Vec<Placement>) {
        if run.is_empty() {
            return;
        }
        let lease = self.lease;
        self.persist(|| Record::Placed {
            host: name.clone(),
            lease,
            attempts: run.iter().map(|p| p.attempt).collect(),
        });
        self.effects
            .push_back(Effect::ToAgent(session, ToAgent::Run(run)));
    }

    /// Spreads what waits: idle slots of all hosts first, one at a time in turn, then what they
    /// asked for beyond.
    fn serve_all(&mut self, now: BootInstant) {
        if self.queues.is_empty() {
            return;
        }
        let names: Vec<Arc<str>> = self
            .wanting
            .iter()
            .filter_map(|index| self.name_at(*index))
            .collect();
        self.fill_idle(&names, now);
        for name in &names {
            self.serve(name, usize::MAX, now);
        }
    }

    /// Gives these hosts what their idle slots may have, one at a time in turn.
    fn fill_idle(&mut self, names: &[Arc<str>], now: BootInstant) {
        let mut again = true;
        while again {
            again = false;
            for name in names {
                if self
                    .hosts
                    .get(name)
                    .is_some_and(|h| !h.idle_since.is_empty())
                {
                    again |= self.serve(name, 1, now);
                }
            }
        }
    }

    fn tell_agent(&mut self, name: &str, message: ToAgent) {
        if let Some(session) = self.hosts.get(name).and_then(|h| h.session) {
            self.effects.push_back(Effect::ToAgent(session, message));
        }
    }

    fn close_session(&mut self, name: &str, reason: &str) {
        if let Some(session) = self.hosts.get(name).and_then(|h| h.session) {
            self.effects.push_back(Effect::CloseSession {
                session,
                refused: false,
                reason: reason.into(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
