//! The simulation: one real scheduler, real supervisors and engines, a virtual clock, and a network
//! and hosts that fail.
//!
//! Everything that decides is the product's own code; what is made up here are the drivers:
//! connections that delay, stall one way or both and break at their two ends at different times,
//! agents, engines and keepers that die and come back, agents that are stopped, hosts that reboot
//! or are suspended, clocks that differ and drift and start anew, a coordinator that dies and comes
//! back with what its store had, and a store that is copied and served again while its original is
//! dead or alive. A seed gives the whole run. After every step the promises are checked: no job has
//! two live processes (P1), nothing has two results (P2), what is said to be over is dead and stays
//! so (P3), nothing runs where it may not, and no slot waits too long for work that prefers it
//! (P4), every result is of the attempt that it names (P7), no host runs more than it has slots
//! for, nothing of a batch that is halted or cancelled is placed; in the end, with the faults over,
//! every job has its result.
//!
//! In every fourth run the hosts serve two users, of whom one has no jobs and engines of their own
//! making: those say of others' attempts what comes to their mind, or nothing at all.
//!
//! A [`Mutant`] plants a known mistake. The tests show that the checks find each.

use mezcal_agent::engine::{self, Engine, Exit, Swept};
use mezcal_agent::supervisor::generations::{Meeting, Met};
use mezcal_agent::supervisor::{self, Supervisor};
use mezcal_common::message::agent::{
    Hello, NumberedReport, Placement, Report, ToAgent, ToCoordinator, VERSIONS,
};
use mezcal_common::message::client::{BatchTerms, Halt, HaltCount, HaltWhy, Submission};
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{
    AttemptId, BatchId, EngineIndex, Epoch, Generation, JobKey, JobNumber, SessionId, StoreId,
};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Stop};
use mezcal_common::model::outcome::{Containment, Ended, JobResult, Outcome, Span, WaitStatus};
use mezcal_common::wire::codec;
use mezcal_common::wire::endpoint::IDLE_TIMEOUT;
use mezcal_coordinator::scheduler::{self, Mistake, Record, Scheduler, Wanted, WantedJob};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The coordinator waits no longer for a lost host than its attempts may run.
    NoMargin,
    /// An engine that never hears of a lease.
    NoDeadline,
    /// An engine that forgets an outcome as soon as it has sent it.
    ForgetsEarly,
    /// An inventory that is sent before the engines have been heard.
    EarlyInventory,
    /// A report of an earlier attempt that counts for the present one.
    StaleReport,
    /// A cancel that is answered when it is sent.
    HastyCancel,
    /// A job that is taken back is placed elsewhere before its agent has answered.
    HastyRetract,
    /// The coordinator acts on what its store does not have yet.
    HastyStore,
    /// A slot waits for its own jobs for longer than it may.
    LongWait,
    /// An agent that holds on to the longest lease that it was ever given.
    LongestLease,
    /// A batch that is given up keeps those of its jobs that have just been released.
    OverlooksReleased,
    /// Idle slots are kept for a wide job as long the next time as the last.
    KeepsNoLonger,
    /// Slots that have been idle for long take jobs though a slot that those prefer is idle, too.
    TakesFromNear,
    /// What one user's engines say of another's attempts counts.
    BelievesAnybody,
    /// What engines have that were not heard counts as absent.
    SilenceIsAbsence,
    /// A copy of the store whose batches are placed at once.
    HastyRestore,
    /// A copy of the store that passes for its original.
    SameGeneration,
    /// An agent that forgets which generations it has met when it is started again.
    ForgetfulAgent,
}

/// What one run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// Engines of each.
    pub slots: usize,
    /// Jobs.
    pub jobs: u32,
    /// Faults, while they last.
    pub faults: u32,
    /// All jobs but the last take one slot and some minutes, and the last takes all slots of a host
    /// and comes while those go on: it has to start within its bound, and with it the run ends.
    pub crowd: bool,
    /// What is wrong on purpose.
    pub mutant: Option<Mutant>,
}

/// Of the first life of the coordinator; each later one may have another.
const LEASE: Duration = Duration::from_secs(30);
const LEASES: [Duration; 3] = [Duration::from_secs(10), LEASE, Duration::from_secs(90)];
const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Faults stop then, and everything must come to an end by [`END`].
const CALM: Duration = Duration::from_secs(300);
const END: Duration = Duration::from_secs(1200);
/// The same for a crowd: longer than the longest of its jobs may keep a wide one waiting.
const END_OF_CROWD: Duration = Duration::from_secs(4000);
/// How long the dying of a job may take: less than an engine waits before it calls something
/// unkillable.
const SLOW_DEATH: Duration = Duration::from_secs(9);
/// Between two looks at a connection, and two tries to make one.
const LOOK: Duration = Duration::from_millis(700);
/// How long a batch goes on without its client, which attaches again after each restart as long as
/// it is there.
const CLIENT_LEASE: Duration = Duration::from_secs(20);
/// For what a wide job's way to a host and the reports of those before it take.
const SLACK: Duration = Duration::from_secs(2);
/// Every so many seeds the batch may be given up: jobs come after others, some fail, and there is a
/// halt, a limit or a client that leaves.
const GIVEN_UP: u64 = 4;
/// Whose jobs run, and who has engines beside them.
const USER: &str = "okazaki";
const HOSTILE: &str = "mallory";
/// Between two words of those.
const WORD: Duration = Duration::from_secs(4);
/// Chances of whether and when a copy is served are drawn apart from all others.
const RESTORES: u64 = 0x7265_7374_6f72_6573;
const BATCH: BatchId = BatchId(uuid::Uuid::from_u128(1));

/// SplitMix64 (Steele et al., OOPSLA 2014): good enough for choices, and the same for ever.
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most * 1000) + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug)]
enum Step {
    ToAgent(u64),
    ToCoordinator(u64),
    Look(usize),
    ToEngine(usize, usize, u64),
    FromEngine(usize, usize, u64),
    Spawned {
        host: usize,
        slot: usize,
        life: u64,
        result: Result<(), engine::NotStarted>,
    },
    JobEnds {
        host: usize,
        slot: usize,
        attempt: AttemptId,
        life: u64,
    },
    EngineSwept {
        host: usize,
        slot: usize,
        life: u64,
    },
    AgentStarts(usize),
    AgentSeesEnd(u64),
    CoordinatorSeesEnd(u64),
    LinkUp(usize),
    HostUp(usize),
    Fault,
    Cancel(u32),
    ClientLeaves,
    WideComes,
    /// What this life of the coordinator has told its store up to here is safe.
    Commit {
        life: u64,
        through: u64,
    },
    /// The next life of the coordinator whose last one was this.
    CoordinatorUp(u64),
    /// Somebody copies the store.
    Backup,
    /// Somebody serves the copy, and hosts find the one that does where they found the other.
    Restore {
        /// The original goes on.
        alive: bool,
    },
    AgentContinues(usize),
    HostContinues(usize),
    KeeperSwept {
        host: usize,
        keeper: u64,
    },
    Relink {
        host: usize,
        agent: u64,
    },
    Hostile {
        host: usize,
        agent: u64,
    },
}

struct Connection {
    host: usize,
    /// It is to the original of what is served now.
    original: bool,
    /// Whoever was there before a restore is not found any more at the place that this goes to.
    cut: bool,
    /// What the coordinator has said of its store.
    generation: Generation,
    /// The agent's incarnation that made it.
    agent: u64,
    hello_sent: BootInstant,
    agent_open: bool,
    coordinator_open: bool,
    to_agent: VecDeque<ToAgent>,
    to_coordinator: VecDeque<ToCoordinator>,
    agent_heard: Duration,
    coordinator_heard: Duration,
}

struct Slot {
    engine: Engine,
    /// Counts engines of this slot, so that what was meant for a dead one is dropped.
    life: u64,
    /// Counts links, likewise.
    link: u64,
    to: VecDeque<ToEngine>,
    from: VecDeque<FromEngine>,
    context: Option<Arc<BatchContext>>,
    alive: Option<AttemptId>,
    spawning: Option<AttemptId>,
    ended: bool,
    /// When what is being killed is dead: some of it takes its time.
    dies_at: Option<Duration>,
    /// The engine is dead and what it left is being swept.
    dead: bool,
}

struct Host {
    supervisor: Option<Supervisor>,
    agent: u64,
    slots: Vec<Slot>,
    boot: u8,
    keeper: u64,
    up: bool,
    /// Its agent is stopped; so is everything else on it.
    agent_stopped: bool,
    suspended: bool,
    /// Its keeper is dead, and what that left is dying.
    keeper_dying: bool,
    /// Which generations it has met, as it remembers; and whether it has met the copy.
    met: Met,
    met_copy: bool,
    /// What its agent was told of leases: by the newest coordinator, and at most.
    lease: Duration,
    longest_lease: Duration,
    /// Which ways packets go: to the coordinator, from it.
    links: (bool, bool),
    connection: Option<u64>,
    /// This host's clock: when it is zero, and microseconds per second that it is fast.
    zero: Duration,
    drift: i64,
    /// Ends of engines that no agent has had acknowledged.
    ends: Vec<(usize, Option<AttemptId>)>,
}

/// A coordinator with its store.
struct Coordinator {
    scheduler: Scheduler,
    /// Counts lives of the coordinator; each has an epoch of its own.
    life: u64,
    down: bool,
    stored: Vec<Record>,
    /// On its way into the store, and how much ever was and has arrived.
    unstored: VecDeque<Record>,
    issued: u64,
    committed: u64,
    /// Effects that wait for the store.
    held: VecDeque<(u64, scheduler::Effect)>,
    /// Of its store.
    generation: Generation,
}

impl Coordinator {
    fn new(scheduler: Scheduler, life: u64, stored: Vec<Record>, generation: Generation) -> Self {
        let (unstored, held) = (VecDeque::new(), VecDeque::new());
        Self {
            scheduler,
            life,
            down: false,
            stored,
            unstored,
            issued: 0,
            committed: 0,
            held,
            generation,
        }
    }
}

/// A run under way.
pub struct World {
    plan: Plan,
    now: Duration,
    chance: Chance,
    steps: BinaryHeap<Reverse<(Duration, u64)>>,
    todo: BTreeMap<u64, Step>,
    next: u64,
    /// The coordinator that counts: after a restore, the one with the copy.
    serving: Coordinator,
    /// The original of a copy that is being served, if it is still alive.
    original: Option<Coordinator>,
    /// What is being done is the original's doing: `serving` and `original` have changed places.
    of_original: bool,
    /// A copy of the store that nobody serves yet; and whether one is served.
    copy: Option<Vec<Record>>,
    copied: bool,
    spec: bytes::Bytes,
    hosts: Vec<Host>,
    connections: BTreeMap<u64, Connection>,
    /// The present attempt of each job, and the session that it was placed in.
    placed: BTreeMap<JobKey, (u32, u64)>,
    /// Attempts that ended by themselves.
    ended: BTreeSet<(JobKey, u32)>,
    /// Those whose engines have to keep them: host, slot and life of the engine.
    kept: BTreeMap<(JobKey, u32), (usize, usize, u64)>,
    /// When each host has last renewed its leases.
    heard: Vec<Duration>,
    results: BTreeMap<u32, JobResult>,
    cancelled: BTreeSet<u32>,
    slots_by_job: BTreeMap<u32, u16>,
    /// The hosts of jobs that may run on one only.
    required: BTreeMap<u32, usize>,
    /// Said to be over for good: not a process of theirs may be alive any more.
    proven: BTreeSet<u32>,
    /// Those that exit with 1.
    failing: BTreeSet<u32>,
    client_is_gone: bool,
    /// The scheduler has decided that nothing of the batch starts any more; and what it has placed
    /// since.
    given_up: bool,
    placed_in_vain: Option<String>,
    /// The longest run of a job in a crowd.
    longest: Duration,
    /// Until when the wide job has to have started.
    wide_until: Option<Duration>,
    log: Vec<String>,
}

impl Plan {
    /// Whose engines the hosts have, if they do not run everybody's jobs.
    fn users(&self) -> Option<Vec<String>> {
        (self.seed % 4 == 1 && !self.crowd).then(|| vec![USER.to_owned(), HOSTILE.to_owned()])
    }
}

/// What a run has done, line by line, and how it has ended.
pub struct Played {
    /// Every step and what followed from it; in the end how much chance it took.
    pub log: Vec<String>,
    /// The promise that was broken, with what led to it.
    pub end: Result<(), String>,
}

/// Runs a plan to its end.
///
/// # Errors
/// The promise that was broken, with what led to it.
pub fn run(plan: Plan) -> Result<(), String> {
    play(plan).end
}

/// Runs a plan to its end and keeps what it has done.
pub fn play(plan: Plan) -> Played {
    let mut world = World::new(plan);
    let end = world.run().map_err(|broken| {
        let tail = world.log.len().saturating_sub(
            std::env::var("MEZCAL_SIM_LOG")
                .ok()
                .and_then(|n| n.parse().ok())
                .unwrap_or(60),
        );
        format!(
            "{broken}\n  with {plan:?}, at {:?}\n{}",
            world.now,
            world.log[tail..].join("\n")
        )
    });
    let mut log = world.log;
    log.push(format!("{:?} over: {:x}", world.now, world.chance.0));
    Played { log, end }
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut chance = Chance(plan.seed);
        let hosts = (0..plan.hosts)
            .map(|_| Host::new(&mut chance, plan.slots))
            .collect();
        let mut world = Self {
            plan,
            now: Duration::ZERO,
            chance,
            steps: BinaryHeap::new(),
            todo: BTreeMap::new(),
            next: 0,
            serving: Coordinator::new(
                scheduler(0, LEASE, plan.mutant),
                0,
                Vec::new(),
                Generation::default(),
            ),
            original: None,
            of_original: false,
            copy: None,
            copied: false,
            spec: codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small"),
            hosts,
            connections: BTreeMap::new(),
            placed: BTreeMap::new(),
            ended: BTreeSet::new(),
            kept: BTreeMap::new(),
            heard: vec![Duration::ZERO; plan.hosts],
            results: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            slots_by_job: BTreeMap::new(),
            required: BTreeMap::new(),
            proven: BTreeSet::new(),
            failing: BTreeSet::new(),
            client_is_gone: false,
            given_up: false,
            placed_in_vain: None,
            longest: Duration::ZERO,
            wide_until: None,
            log: Vec::new(),
        };
        let context = BatchContext::new(BATCH, "/".into(), 0o22);
        let mut terms = BatchTerms::new(context, END);
        let spec = world.spec.clone();
        let sets = (0..plan.hosts).map(|n| vec![format!("h{n}")]).collect();
        let jobs = (1..=plan.jobs).map(|n| {
            let prefer = world
                .chance
                .one_in(3)
                .then(|| world.chance.below(plan.hosts as u64) as u32);
            let slots = if world.chance.one_in(5) {
                plan.slots as u16
            } else {
                1
            };
            world.slots_by_job.insert(n, slots);
            let hosts = world
                .chance
                .one_in(6)
                .then(|| world.chance.below(plan.hosts as u64) as u32);
            world.required.extend(hosts.map(|host| (n, host as usize)));
            Submission {
                prefer,
                hosts,
                slots,
                ..Submission::new(JobNumber(n), spec.clone())
            }
        });
        let mut jobs: Vec<Submission> = jobs.collect();
        if plan.crowd {
            world.crowd(&mut jobs);
        } else if plan.seed % GIVEN_UP == GIVEN_UP - 1 {
            world.give_up(&mut terms, &mut jobs);
        }
        for event in [
            scheduler::Event::Open {
                user: USER.into(),
                terms: Box::new(terms),
            },
            scheduler::Event::Submit {
                batch: BATCH,
                host_sets: sets,
                jobs,
            },
        ] {
            world.tell_scheduler(event);
        }
        if !plan.crowd {
            world.tell_scheduler(scheduler::Event::Close { batch: BATCH });
        }
        // The client has heard that its jobs are accepted.
        world.take_effects();
        world.commit(u64::MAX);
        for host in 0..plan.hosts {
            let wait = world.chance.millis(2000);
            world.after(wait, Step::AgentStarts(host));
            world.after(wait + LOOK, Step::Look(host));
        }
        for _ in 0..plan.faults {
            let at = world.chance.millis(CALM.as_millis() as u64 - 100_000);
            world.after(at, Step::Fault);
        }
        // Chances of their own: what else happens with a seed stays the same.
        let mut chance = Chance(plan.seed ^ RESTORES);
        if !plan.crowd && chance.one_in(3) {
            let backup = chance.millis(150_000);
            world.after(backup, Step::Backup);
            world.after(
                backup + chance.millis(100_000),
                Step::Restore {
                    alive: chance.one_in(2),
                },
            );
        }
        for job in 1..=plan.jobs {
            if !plan.crowd && world.chance.one_in(6) {
                let at = world.chance.millis(CALM.as_millis() as u64);
                world.after(at, Step::Cancel(job));
            }
        }
        world
    }

    /// Many narrow jobs that are long, and a wide one that comes when they are well under way.
    fn crowd(&mut self, jobs: &mut Vec<Submission>) {
        self.longest = Duration::from_secs(70) + self.chance.millis(230_000);
        self.required.clear();
        for job in jobs.iter_mut() {
            (job.hosts, job.prefer, job.slots) = (None, None, 1);
            self.slots_by_job.insert(job.job.0, 1);
        }
        jobs.pop();
        self.slots_by_job
            .insert(self.plan.jobs, self.plan.slots as u16);
        let wait = self.longest + self.chance.millis(300_000);
        self.after(wait, Step::WideComes);
    }

    /// The wide job of a crowd, as long as it has not started.
    fn wide_waits(&self) -> bool {
        let wide = self.key(self.plan.jobs);
        !self
            .hosts
            .iter()
            .flat_map(|host| &host.slots)
            .any(|slot| slot.alive.is_some_and(|attempt| attempt.key == wide))
    }

    fn is_over(&self) -> bool {
        self.results.len() == self.plan.jobs as usize
            || (self.plan.crowd && self.results.contains_key(&self.plan.jobs))
    }

    /// Ways in which the batch may be given up, and jobs that are on their way from one place to
    /// another when that happens.
    fn give_up(&mut self, terms: &mut BatchTerms, jobs: &mut [Submission]) {
        for job in jobs {
            let n = job.job.0;
            if n > 1 && self.chance.one_in(2) {
                job.after = vec![JobNumber(1 + self.chance.below(u64::from(n) - 1) as u32)];
            }
            if self.chance.one_in(8) {
                self.failing.insert(n);
            } else if self.chance.one_in(2) {
                (job.retries, job.retry_delay) = (2, self.chance.millis(20_000));
            }
        }
        let moment = self.chance.millis(CALM.as_millis() as u64 / 2);
        match self.chance.below(4) {
            0 => terms.time_limit = Some(moment),
            1 => self.after(moment, Step::ClientLeaves),
            _ => {
                let why =
                    [HaltWhy::Fail, HaltWhy::Success, HaltWhy::Done][self.chance.below(3) as usize];
                let count = HaltCount::Jobs(1 + self.chance.below(4));
                terms.halt = Some(Halt {
                    now: self.chance.one_in(2),
                    why,
                    count,
                });
            }
        }
    }

    fn after(&mut self, wait: Duration, step: Step) {
        self.next += 1;
        self.steps.push(Reverse((self.now + wait, self.next)));
        self.todo.insert(self.next, step);
    }

    fn run(&mut self) -> Result<(), String> {
        self.perform()?;
        let end = if self.plan.crowd { END_OF_CROWD } else { END };
        while !self.is_over() {
            let step = self.steps.peek().map(|Reverse((at, _))| *at);
            let timer = self.next_timer();
            let at = step
                .into_iter()
                .chain(timer)
                .min()
                .ok_or("nothing is left to happen, and jobs have no result")?;
            if at > end {
                let open: Vec<u32> = (1..=self.plan.jobs)
                    .filter(|n| !self.results.contains_key(n))
                    .collect();
                return Err(format!("in the end these jobs have no result: {open:?}"));
            }
            self.now = self.now.max(at);
            if step == Some(at) {
                let Some(Reverse((_, id))) = self.steps.pop() else {
                    continue;
                };
                if let Some(step) = self.todo.remove(&id) {
                    self.log.push(format!("{:?} {step:?}", self.now));
                    self.step(step)?;
                }
            } else {
                self.timers();
            }
            self.perform()?;
            self.check()?;
        }
        Ok(())
    }

    fn tell_scheduler(&mut self, event: scheduler::Event) {
        if !self.serving.down {
            self.serving.scheduler.handle(event, BootInstant(self.now));
        }
    }

    /// Moves the scheduler's effects to where they wait for the store.
    fn take_effects(&mut self) {
        let before = self.serving.issued;
        while let Some(effect) = self.serving.scheduler.poll_effect() {
            if let scheduler::Effect::Persist(record) = effect {
                match &record {
                    Record::Stopped { .. } if !self.of_original => self.given_up = true,
                    Record::Placed { attempts, .. } if self.given_up && !self.of_original => {
                        // What was placed before is recorded again when its lease grows.
                        let recorded = |attempt: &AttemptId| {
                            let mut earlier =
                                self.serving.stored.iter().chain(&self.serving.unstored);
                            earlier.any(|record| matches!(record, Record::Placed { attempts, .. } if attempts.contains(attempt)))
                        };
                        let new: Vec<&AttemptId> = attempts
                            .iter()
                            .filter(|attempt| !recorded(attempt))
                            .collect();
                        if !new.is_empty() {
                            self.placed_in_vain
                                .get_or_insert(format!("given up: {new:?} are placed after that"));
                        }
                    }
                    _ => {}
                }
                self.serving.unstored.push_back(record);
                self.serving.issued += 1;
            } else {
                self.serving.held.push_back((self.serving.issued, effect));
            }
        }
        if self.serving.issued > before {
            // A disk stalls at times.
            let most = if self.chance.one_in(16) { 2000 } else { 20 };
            let wait = self.chance.millis(most);
            let (life, through) = (self.serving.life, self.serving.issued);
            self.after(wait, Step::Commit { life, through });
        }
    }

    fn commit(&mut self, through: u64) {
        while self.serving.committed < through
            && let Some(record) = self.serving.unstored.pop_front()
        {
            self.serving.stored.push(record);
            self.serving.committed += 1;
        }
    }

    /// The coordinator dies, and with it what its store does not have.
    fn coordinator_dies(&mut self) {
        self.serving.down = true;
        self.serving.unstored.clear();
        self.serving.held.clear();
        (self.serving.issued, self.serving.committed) = (0, 0);
        self.serving.life += 1;
        for c in self
            .connections
            .values_mut()
            .filter(|c| c.coordinator_open && c.original == self.of_original)
        {
            c.coordinator_open = false;
            c.to_agent.clear();
        }
        let wait = self
            .chance
            .millis(if self.chance.0 & 1 == 0 { 3000 } else { 60_000 });
        let life = self.serving.life;
        self.after(wait, Step::CoordinatorUp(life));
    }

    fn coordinator_comes_back(&mut self) -> Result<(), String> {
        self.serving.down = false;
        let lease = LEASES[self.chance.below(LEASES.len() as u64) as usize];
        self.serving.scheduler = scheduler(self.serving.life, lease, self.plan.mutant)
            .of_generation(self.serving.generation);
        if self.is_copy() && !self.is_released() && self.plan.mutant != Some(Mutant::HastyRestore) {
            // Whoever restores it knows how long leases were since, from the configuration.
            let first = Generation::default()
                .next(Generation::default(), WallTime(1))
                .expect("one of few")
                .first_batch();
            let scheduler =
                std::mem::replace(&mut self.serving.scheduler, scheduler(0, lease, None));
            self.serving.scheduler = scheduler.holding(first, LEASES.into_iter().max());
        }
        let now = BootInstant(self.now);
        // What the original has given up the copy may go on with.
        if !self.of_original {
            self.given_up = self
                .serving
                .stored
                .iter()
                .any(|record| matches!(record, Record::Stopped { .. }));
        }
        for record in self.serving.stored.clone() {
            // Its client attaches again and takes what it has missed.
            if let Record::Ended { job, result, .. } = &record
                && !self.results.contains_key(&job.0)
            {
                self.result(job.0, (**result).clone())?;
            }
            self.serving.scheduler.replay(record, now);
        }
        self.serving.scheduler.restored(now);
        if !self.client_is_gone {
            self.tell_scheduler(scheduler::Event::Attended { batch: BATCH });
        }
        // Connections of the life before are reset at the next packet.
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.agent_open && !c.coordinator_open && !c.cut)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let wait = self.chance.millis(5000);
            self.after(wait, Step::AgentSeesEnd(id));
        }
        Ok(())
    }

    /// What is served was a copy once.
    fn is_copy(&self) -> bool {
        self.copied && !self.of_original
    }

    /// Nothing of the original can run any more.
    fn is_released(&self) -> bool {
        self.serving.stored.contains(&Record::Released)
    }

    /// Does something with the original, if it is alive.
    fn for_original(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(original) = self.original.take() else {
            return Ok(());
        };
        let copy = std::mem::replace(&mut self.serving, original);
        self.of_original = true;
        let done = act(self);
        self.of_original = false;
        self.original = Some(std::mem::replace(&mut self.serving, copy));
        done
    }

    /// Does something at the far end of a connection.
    fn at_coordinator_of(&mut self, id: u64, act: impl FnOnce(&mut Self)) {
        let act = |world: &mut Self| {
            act(world);
            Ok(())
        };
        let done = match self.connections.get(&id).is_some_and(|c| c.original) {
            true => self.for_original(act),
            false => act(self),
        };
        done.expect("it cannot fail");
    }

    /// The copy is served from now on. Where hosts found the original they find it; what they have
    /// sent there, and what comes from there, is lost.
    fn restore(&mut self, alive: bool) -> Result<(), String> {
        let Some(copy) = self.copy.take() else {
            return Ok(());
        };
        self.log.push(format!(
            "{:?} restored; the original is {}",
            self.now,
            if alive { "alive" } else { "dead" }
        ));
        if !alive {
            self.coordinator_dies();
        }
        for c in self.connections.values_mut() {
            (c.original, c.cut) = (true, true);
        }
        // Of ends that the copy does not know of it knows nothing to keep.
        let placed = copy.iter().filter_map(|record| {
            if let Record::Placed { attempts, .. } = record {
                Some(attempts)
            } else {
                None
            }
        });
        let known: BTreeSet<(JobKey, u32)> = placed
            .flatten()
            .map(|attempt| (attempt.key, attempt.attempt))
            .collect();
        self.kept.retain(|attempt, _| known.contains(attempt));
        let generation = match self.plan.mutant {
            Some(Mutant::SameGeneration) => Generation::default(),
            _ => Generation::default()
                .next(Generation::default(), WallTime(1))
                .ok_or("no generation is left")?,
        };
        let life = self.serving.life + 1000;
        let served = Coordinator::new(scheduler(life, LEASE, None), life, copy, generation);
        let original = std::mem::replace(&mut self.serving, served);
        self.original = Some(original).filter(|_| alive);
        self.copied = true;
        // What was said since the copy was made is forgotten.
        self.results.clear();
        self.proven.clear();
        self.coordinator_comes_back()
    }

    /// A host's clock, now.
    fn at(&self, host: usize) -> BootInstant {
        let host = &self.hosts[host];
        let drift = self.now.as_micros() as i64 / 1_000_000 * host.drift;
        BootInstant(host.zero + Duration::from_micros((self.now.as_micros() as i64 + drift) as u64))
    }

    /// When that clock shows this, or a little later.
    fn when(&self, host: usize, at: BootInstant) -> Duration {
        let left = at.0.saturating_sub(self.at(host).0);
        self.now + left + left / 5000 + Duration::from_micros(1)
    }

    fn next_timer(&self) -> Option<Duration> {
        let coordinators = [Some(&self.serving), self.original.as_ref()]
            .into_iter()
            .flatten()
            .filter(|c| !c.down);
        let own = coordinators
            .filter_map(|c| c.scheduler.poll_timeout())
            .map(|at| at.0)
            .min();
        let hosts = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.up && !host.suspended)
            .flat_map(|(n, host)| {
                let agent = host
                    .supervisor
                    .as_ref()
                    .filter(|_| !host.agent_stopped)
                    .and_then(Supervisor::poll_timeout);
                let engines = host
                    .slots
                    .iter()
                    .filter(|s| !s.dead)
                    .filter_map(|s| s.engine.poll_timeout());
                agent.into_iter().chain(engines).map(move |at| (n, at))
            });
        hosts
            .map(|(n, at)| {
                if at <= self.at(n) {
                    self.now
                } else {
                    self.when(n, at)
                }
            })
            .chain(own)
            .min()
    }

    fn timers(&mut self) {
        for coordinator in [Some(&mut self.serving), self.original.as_mut()]
            .into_iter()
            .flatten()
            .filter(|c| !c.down)
        {
            coordinator.scheduler.handle_timeout(BootInstant(self.now));
        }
        for n in 0..self.hosts.len() {
            let at = self.at(n);
            let host = &mut self.hosts[n];
            if !host.up || host.suspended {
                continue;
            }
            let agent = host.supervisor.as_mut().filter(|_| !host.agent_stopped);
            if let Some(supervisor) = agent.filter(|s| s.poll_timeout().is_some_and(|t| t <= at)) {
                supervisor.handle_timeout(at);
            }
            for slot in host
                .slots
                .iter_mut()
                .filter(|s| !s.dead && s.engine.poll_timeout().is_some_and(|t| t <= at))
            {
                slot.engine.handle_timeout(at);
            }
        }
    }

    /// The host that has to be awake for a step.
    fn place_of(&self, step: &Step) -> Option<usize> {
        match step {
            Step::ToAgent(id) => self.connections.get(id).map(|c| c.host),
            Step::ToEngine(host, ..)
            | Step::FromEngine(host, ..)
            | Step::Spawned { host, .. }
            | Step::JobEnds { host, .. }
            | Step::EngineSwept { host, .. }
            | Step::KeeperSwept { host, .. } => Some(*host),
            _ => None,
        }
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        let place = self.place_of(&step).map(|n| &self.hosts[n]);
        let for_agent = matches!(step, Step::ToAgent(_) | Step::FromEngine(..));
        if place.is_some_and(|host| host.suspended || (host.agent_stopped && for_agent)) {
            self.after(Duration::from_millis(200), step);
            return Ok(());
        }
        match step {
            Step::ToAgent(id) => self.deliver_to_agent(id),
            Step::ToCoordinator(id) => {
                self.at_coordinator_of(id, |world| world.deliver_to_coordinator(id))
            }
            Step::Look(host) => {
                self.look(host);
                let wait = LOOK + self.chance.millis(300);
                self.after(wait, Step::Look(host));
            }
            Step::ToEngine(host, slot, link) => self.deliver_to_engine(host, slot, link),
            Step::FromEngine(host, slot, link) => {
                let at = self.at(host);
                let place = &mut self.hosts[host];
                if place.slots[slot].link != link {
                    return Ok(());
                }
                if let Some(message) = place.slots[slot].from.pop_front()
                    && let Some(supervisor) = &mut place.supervisor
                {
                    supervisor.handle(
                        supervisor::Event::Engine(EngineIndex(slot as u16), message),
                        at,
                    );
                }
            }
            Step::Spawned {
                host,
                slot,
                life,
                result,
            } => {
                let at = self.at(host);
                let place = &mut self.hosts[host].slots[slot];
                if place.life == life && place.spawning.take().is_some() {
                    if result.is_err() {
                        place.alive = None;
                    }
                    place.engine.handle(engine::Event::Spawned(result), at);
                }
            }
            Step::JobEnds {
                host,
                slot,
                attempt,
                life,
            } => {
                let at = self.at(host);
                let place = &mut self.hosts[host].slots[slot];
                // Both were delayed on a suspended host: it cannot end before it has begun.
                if place.life == life && place.spawning == Some(attempt) {
                    let again = Step::JobEnds {
                        host,
                        slot,
                        attempt,
                        life,
                    };
                    self.after(Duration::from_millis(1), again);
                    return Ok(());
                }
                let runs = place.alive == Some(attempt) && place.spawning.is_none() && !place.ended;
                if place.life == life && runs && place.dies_at.is_none() && !place.dead {
                    place.ended = true;
                    self.ended.insert((attempt.key, attempt.attempt));
                    self.kept
                        .insert((attempt.key, attempt.attempt), (host, slot, life));
                    place.engine.handle(engine::Event::FirstEnded, at);
                }
            }
            Step::EngineSwept { host, slot, life } => self.engine_swept(host, slot, life),
            Step::Relink { host, agent } => {
                let at = self.at(host);
                let place = &mut self.hosts[host];
                if place.up && place.agent == agent && place.supervisor.is_some() {
                    place
                        .slots
                        .iter_mut()
                        .filter(|s| !s.dead)
                        .for_each(|slot| slot.relink(at));
                }
            }
            Step::Hostile { host, agent } => self.hostile(host, agent),
            Step::AgentStarts(host) => self.agent_starts(host),
            Step::AgentSeesEnd(id) => self.agent_lost(id),
            Step::CoordinatorSeesEnd(id) => self.coordinator_lost(id),
            Step::LinkUp(host) => self.hosts[host].links = (true, true),
            Step::HostUp(host) => {
                self.hosts[host].up = true;
                self.agent_starts(host);
            }
            Step::Fault => self.fault(),
            Step::Commit { life, through } => {
                let commit = |world: &mut Self| {
                    if life == world.serving.life && !world.serving.down {
                        world.commit(through);
                    }
                    Ok(())
                };
                commit(self)?;
                self.for_original(commit)?;
            }
            Step::CoordinatorUp(life) => {
                let back = |world: &mut Self| match world.serving.life == life && world.serving.down
                {
                    true => world.coordinator_comes_back(),
                    false => Ok(()),
                };
                back(self)?;
                self.for_original(back)?;
            }
            Step::Backup => self.copy = Some(self.serving.stored.clone()),
            Step::Restore { alive } => self.restore(alive)?,
            Step::AgentContinues(host) => self.hosts[host].agent_stopped = false,
            Step::HostContinues(host) => {
                self.hosts[host].suspended = false;
                // What is due there happens before anything else.
                self.timers();
            }
            Step::KeeperSwept { host, keeper } => {
                let place = &mut self.hosts[host];
                if place.up && place.keeper == keeper {
                    place.keeper_dying = false;
                    for slot in &mut place.slots {
                        *slot = Slot {
                            life: slot.life + 1,
                            link: slot.link + 1,
                            ..Slot::new()
                        };
                    }
                    self.agent_starts(host);
                }
            }
            Step::ClientLeaves => {
                self.client_is_gone = true;
                self.tell_scheduler(scheduler::Event::Unattended { batch: BATCH });
            }
            Step::WideComes => {
                self.wide_until = Some(self.now + scheduler::WIDE_WAIT * self.longest);
                let wide = Submission {
                    slots: self.plan.slots as u16,
                    ..Submission::new(JobNumber(self.plan.jobs), self.spec.clone())
                };
                self.tell_scheduler(scheduler::Event::Submit {
                    batch: BATCH,
                    host_sets: Vec::new(),
                    jobs: vec![wide],
                });
            }
            Step::Cancel(job) => {
                self.cancelled.insert(job);
                let what = vec![Wanted {
                    batch: BATCH,
                    job: Some(WantedJob::Number(JobNumber(job))),
                }];
                let grace = if self.chance.one_in(2) {
                    Duration::ZERO
                } else {
                    Duration::from_secs(2)
                };
                let event = scheduler::Event::Cancel {
                    request: Some(u64::from(job)),
                    what,
                    stop: Stop::after(grace),
                    why: None,
                };
                self.tell_scheduler(event);
                if self.plan.mutant == Some(Mutant::HastyCancel) {
                    self.proven.insert(job);
                }
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        let n = self.chance.below(self.hosts.len() as u64) as usize;
        match self.chance.below(14) {
            8 | 9 if !self.serving.down => self.coordinator_dies(),
            10 => {
                self.hosts[n].agent_stopped = true;
                let wait = self.chance.millis(60_000);
                self.after(wait, Step::AgentContinues(n));
            }
            11 => {
                // For less than the margin has to spare: a host that sleeps through its own
                // deadline is outside of P1.
                self.hosts[n].suspended = true;
                let wait = self.chance.millis(2000);
                self.after(wait, Step::HostContinues(n));
            }
            12 => {
                // The keeper dies: its engines kill what they have and go; the agent leaves and
                // comes back with another one.
                let host = &mut self.hosts[n];
                if !host.up || host.supervisor.is_none() {
                    return;
                }
                (host.supervisor, host.agent, host.keeper, host.keeper_dying) =
                    (None, host.agent + 1, host.keeper + 1, true);
                host.ends.clear();
                for slot in &mut host.slots {
                    slot.dead = true;
                    slot.life += 1;
                    slot.link += 1;
                }
                let keeper = host.keeper;
                self.kept.retain(|_, (host, ..)| *host != n);
                self.drop_agent_side(n);
                let wait = self.chance.millis(SLOW_DEATH.as_millis() as u64);
                self.after(wait, Step::KeeperSwept { host: n, keeper });
            }
            0 => self.cut(n, (false, false)),
            1 => self.cut(n, (false, true)),
            2 => self.cut(n, (true, false)),
            3 => {
                // The agent dies; its engines go on.
                self.hosts[n].supervisor = None;
                self.hosts[n].agent += 1;
                self.drop_agent_side(n);
                let at = self.at(n);
                for slot in self.hosts[n].slots.iter_mut().filter(|s| !s.dead) {
                    slot.link += 1;
                    slot.engine.handle(engine::Event::Unlinked, at);
                }
                let wait = self
                    .chance
                    .millis(if self.chance.0 & 1 == 0 { 3000 } else { 60_000 });
                self.after(wait, Step::AgentStarts(n));
            }
            4 => {
                // The host goes down, and with it everything on it.
                let zero = self.chance.millis(1_000_000);
                let host = &mut self.hosts[n];
                if !host.up {
                    return;
                }
                (host.up, host.supervisor, host.zero, host.keeper_dying) =
                    (false, None, zero, false);
                (host.agent, host.boot, host.keeper) =
                    (host.agent + 1, host.boot + 1, host.keeper + 1);
                host.ends.clear();
                for slot in &mut host.slots {
                    *slot = Slot {
                        life: slot.life + 1,
                        link: slot.link + 1,
                        ..Slot::new()
                    };
                }
                self.drop_agent_side(n);
                let wait = self.chance.millis(60_000);
                self.after(wait, Step::HostUp(n));
            }
            _ => {
                // An engine dies; its keeper sweeps what it leaves.
                let slot = self.chance.below(self.plan.slots as u64) as usize;
                let place = &mut self.hosts[n].slots[slot];
                if !place.dead && self.hosts[n].up {
                    let place = &mut self.hosts[n].slots[slot];
                    place.dead = true;
                    place.link += 1;
                    let life = place.life;
                    let wait = self.chance.millis(400);
                    self.after(
                        wait,
                        Step::EngineSwept {
                            host: n,
                            slot,
                            life,
                        },
                    );
                }
            }
        }
    }

    fn cut(&mut self, n: usize, links: (bool, bool)) {
        self.hosts[n].links = links;
        let most = if self.chance.one_in(2) {
            15_000
        } else {
            90_000
        };
        let wait = self.chance.millis(most);
        self.after(wait, Step::LinkUp(n));
    }

    /// The agent's end of its connection is gone; the other end may hear of it.
    fn drop_agent_side(&mut self, n: usize) {
        if let Some(id) = self.hosts[n].connection.take() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.agent_open = false;
            }
            let cut = self.connections.get(&id).is_some_and(|c| c.cut);
            if self.hosts[n].links.0 && self.hosts[n].up && !cut && self.chance.one_in(2) {
                let wait = self.chance.millis(50);
                self.after(wait, Step::CoordinatorSeesEnd(id));
            }
        }
    }

    fn agent_starts(&mut self, n: usize) {
        if !self.hosts[n].up || self.hosts[n].keeper_dying || self.hosts[n].supervisor.is_some() {
            return;
        }
        let at = self.at(n);
        let slots = self.plan.slots;
        let users = self.plan.users();
        let shared = users.is_some();
        let late = shared && self.chance.one_in(3);
        let host = &mut self.hosts[n];
        if self.plan.mutant == Some(Mutant::ForgetfulAgent) {
            host.met = Met::default();
        }
        let agent = host.agent;
        let mut supervisor = Supervisor::new(slots as u16, users);
        // The keeper tells what its last agent has not seen acknowledged, then links.
        for (slot, attempt) in &host.ends {
            let (engine, attempt) = (EngineIndex(*slot as u16), *attempt);
            supervisor.handle(
                supervisor::Event::EngineEnded {
                    engine,
                    attempt,
                    ended: Ended::Lost,
                    killed: 0,
                    survivors: 0,
                },
                at,
            );
        }
        host.supervisor = Some(supervisor);
        if shared {
            let wait = self.chance.millis(WORD.as_millis() as u64);
            self.after(wait, Step::Hostile { host: n, agent });
        }
        if late {
            // Its keeper was stopped.
            let wait = self.chance.millis(10_000);
            self.after(wait, Step::Relink { host: n, agent });
        } else {
            self.hosts[n]
                .slots
                .iter_mut()
                .filter(|s| !s.dead)
                .for_each(|slot| slot.relink(at));
        }
    }

    /// One user's keeper and engines say something, which may be true.
    fn hostile(&mut self, n: usize, agent: u64) {
        let at = self.at(n);
        let known: Vec<(JobKey, u32)> = self
            .placed
            .iter()
            .map(|(key, (attempt, _))| (*key, *attempt))
            .collect();
        let life = self.chance.below(self.serving.life + 1);
        let some = |chance: &mut Chance| {
            let (key, attempt) = *known.get(chance.below(known.len().max(1) as u64) as usize)?;
            Some(AttemptId {
                epoch: Epoch(7 + life),
                key,
                attempt,
            })
        };
        let (attempt, slot) = (
            some(&mut self.chance),
            self.chance.below(self.plan.slots as u64) as usize,
        );
        let (first, word) = (self.plan.slots, self.chance.below(12));
        let takes = if self.chance.one_in(2) { 1 } else { u16::MAX };
        let host = &mut self.hosts[n];
        let Some(supervisor) = host.supervisor.as_mut().filter(|_| host.agent == agent) else {
            return;
        };
        let engine = EngineIndex((first + slot) as u16);
        let outcome = || {
            let span = Span {
                started: WallTime(0),
                completed: WallTime(1),
                elapsed: Duration::from_micros(1),
            };
            Outcome {
                status: Some(WaitStatus::Exited(0)),
                span: Some(span),
                ..Outcome::never_ran(Ended::Exited, None)
            }
        };
        let say = |message| supervisor::Event::Engine(engine, message);
        let ended = |attempt, survivors| supervisor::Event::EngineEnded {
            engine,
            attempt,
            ended: Ended::Lost,
            killed: 0,
            survivors,
        };
        let events = match (word, attempt) {
            (0 | 1, Some(attempt)) => vec![say(FromEngine::Finished {
                attempt,
                outcome: outcome(),
            })],
            // As of an engine that has just been linked.
            (2 | 3, Some(attempt)) => {
                vec![
                    supervisor::Event::LinkLost(engine),
                    say(FromEngine::Finished {
                        attempt,
                        outcome: outcome(),
                    }),
                ]
            }
            (4, Some(attempt)) => vec![say(FromEngine::Ready {
                running: Some((attempt, takes)),
            })],
            (5, attempt) => vec![ended(attempt, u32::from(takes == 1))],
            (6, _) => vec![supervisor::Event::KeeperGone {
                set: 1,
                why: "gone".into(),
            }],
            (7, _) => vec![supervisor::Event::KeeperHere {
                user: HOSTILE.into(),
            }],
            (8, _) => vec![supervisor::Event::LinkLost(engine)],
            // All of them are honest for once.
            _ => {
                let ready = FromEngine::Ready { running: None };
                (first..2 * first)
                    .map(|i| supervisor::Event::Engine(EngineIndex(i as u16), ready.clone()))
                    .collect()
            }
        };
        for event in events {
            self.log.push(format!(
                "{:?} h{n} hears of {HOSTILE}'s engines: {event:?}",
                self.now
            ));
            supervisor.handle(event, at);
        }
        if self.now < CALM {
            let wait = self.chance.millis(WORD.as_millis() as u64);
            self.after(wait, Step::Hostile { host: n, agent });
        }
    }

    fn engine_swept(&mut self, n: usize, index: usize, life: u64) {
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if host.slots[index].life != life || !host.up {
            return;
        }
        let attempt = host.slots[index].alive;
        let link = host.slots[index].link;
        host.slots[index] = Slot {
            life: life + 1,
            link,
            ..Slot::new()
        };
        host.ends.extend(attempt.map(|a| (index, Some(a))));
        if let Some(supervisor) = &mut host.supervisor {
            let engine = EngineIndex(index as u16);
            supervisor.handle(
                supervisor::Event::EngineEnded {
                    engine,
                    attempt,
                    ended: Ended::Lost,
                    killed: 1,
                    survivors: 0,
                },
                at,
            );
            host.slots[index].relink(at);
        }
    }

    /// Time-outs of connections, and new ones.
    fn look(&mut self, n: usize) {
        let links = self.hosts[n].links;
        let up = self.hosts[n].up;
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.host == n)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let now = self.now;
            let Some(c) = self.connections.get_mut(&id) else {
                continue;
            };
            let up = up && !self.hosts[n].agent_stopped && !self.hosts[n].suspended;
            // Keep-alives: what gets through is heard.
            let links = if c.cut { (false, false) } else { links };
            if up && c.agent_open && links.0 && c.coordinator_open {
                c.coordinator_heard = now;
            }
            if up && c.coordinator_open && links.1 && c.agent_open && links.0 {
                c.agent_heard = now;
            }
            let (agent, coordinator) = (
                up && c.agent_open && now - c.agent_heard > IDLE_TIMEOUT,
                c.coordinator_open && now - c.coordinator_heard > IDLE_TIMEOUT,
            );
            if agent {
                self.agent_lost(id);
            }
            if coordinator {
                self.coordinator_lost(id);
            }
        }
        // Until a host has met the copy it finds that one where it looks; later on either.
        let alive = self
            .original
            .as_ref()
            .is_some_and(|original| !original.down)
            && self.hosts[n].met_copy;
        let to_original = alive && self.chance.one_in(2);
        let up = up
            && (to_original || !self.serving.down)
            && !self.hosts[n].agent_stopped
            && !self.hosts[n].suspended;
        if up
            && links == (true, true)
            && self.hosts[n].supervisor.is_some()
            && self.hosts[n].connection.is_none()
        {
            self.next += 1;
            let (id, hello_sent) = (self.next, self.at(n));
            let (agent, now) = (self.hosts[n].agent, self.now);
            let connection = Connection {
                host: n,
                original: to_original,
                cut: false,
                generation: Generation::default(),
                agent,
                hello_sent,
                agent_open: true,
                coordinator_open: true,
                to_agent: VecDeque::new(),
                to_coordinator: VecDeque::new(),
                agent_heard: now,
                coordinator_heard: now,
            };
            self.connections.insert(id, connection);
            self.hosts[n].connection = Some(id);
            let hello = Hello {
                versions: VERSIONS,
                program: "simulation".into(),
                keeper: self.hosts[n].keeper,
                boot_id: [self.hosts[n].boot; 16],
                slots: self.plan.slots as u16,
                aliases: vec![],
                cpus: 1,
                memory: 0,
                users: self.plan.users(),
            };
            let event = scheduler::Event::AgentHello {
                session: SessionId(id),
                name: format!("h{n}"),
                hello,
            };
            self.at_coordinator_of(id, |world| world.tell_scheduler(event));
        }
    }

    /// A host renews its leases. After a silence as long as the lease it may have given up what was
    /// there.
    fn hear(&mut self, n: usize) {
        if self.now - self.heard[n] > self.hosts[n].lease {
            self.kept.retain(|_, (host, ..)| *host != n);
        }
        self.heard[n] = self.now;
    }

    fn agent_lost(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut c.agent_open, false) {
            return;
        }
        let (n, agent) = (c.host, c.agent);
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if host.connection == Some(id) {
            host.connection = None;
        }
        if host.agent == agent
            && let Some(supervisor) = &mut host.supervisor
        {
            supervisor.handle(supervisor::Event::Disconnected, at);
        }
        let cut = self.connections.get(&id).is_some_and(|c| c.cut);
        if self.hosts[n].links.0 && !cut {
            let wait = self.chance.millis(50);
            self.after(wait, Step::CoordinatorSeesEnd(id));
        }
    }

    fn coordinator_lost(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut c.coordinator_open, false) {
            return;
        }
        let (n, cut) = (c.host, c.cut);
        self.at_coordinator_of(id, |world| {
            world.tell_scheduler(scheduler::Event::AgentGone(SessionId(id)))
        });
        if self.hosts[n].links.1 && !cut {
            let wait = self.chance.millis(50);
            self.after(wait, Step::AgentSeesEnd(id));
        }
    }

    fn deliver_to_agent(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let n = c.host;
        if !c.agent_open || !self.hosts[n].up {
            return;
        }
        if !self.hosts[n].links.1 || c.cut {
            // Sent again until it arrives or the connection is given up.
            return self.after(Duration::from_millis(200), Step::ToAgent(id));
        }
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(message) = c.to_agent.pop_front() else {
            return;
        };
        c.agent_heard = self.now;
        if let ToAgent::Generation { generation } = message {
            c.generation = generation;
            return;
        }
        if let ToAgent::Welcome { store, .. } = message {
            let (generation, of_copy) = (c.generation, self.copied && !c.original);
            let host = &mut self.hosts[n];
            match host.met.judge(store, generation) {
                Meeting::Known => {}
                Meeting::Newer => host.met.remember(store, generation),
                // It leaves.
                Meeting::Older(_) => return self.agent_lost(id),
            }
            host.met_copy |= of_copy;
        }
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let hello_sent = c.hello_sent;
        let at = self.at(n);
        let mutant = self.plan.mutant;
        let host = &mut self.hosts[n];
        let Some(supervisor) = &mut host.supervisor else {
            return;
        };
        let welcome = matches!(message, ToAgent::Welcome { .. });
        let event = match message {
            ToAgent::Welcome {
                version,
                store,
                lease,
                first_engine,
                ..
            } => {
                // As if the coordinator's waiting and the agent's running were of the same length,
                // counted from their own ends.
                let extra = if mutant == Some(Mutant::NoMargin) {
                    scheduler::FENCE_MARGIN
                } else {
                    Duration::ZERO
                };
                if let Some(lease) = lease {
                    // What may have been given up under the lease before is not safer under this
                    // one.
                    if self.now - self.heard[n] > host.lease {
                        self.kept.retain(|_, (host, ..)| *host != n);
                    }
                    (host.lease, host.longest_lease) = (lease, host.longest_lease.max(lease));
                }
                let lease = if mutant == Some(Mutant::LongestLease) {
                    lease.map(|_| host.longest_lease)
                } else {
                    lease
                };
                supervisor::Event::Welcomed {
                    version,
                    store,
                    lease: lease.map(|l| l + extra),
                    first_engine,
                    hello_sent,
                }
            }
            other => supervisor::Event::Coordinator(other),
        };
        supervisor.handle(event, at);
        if mutant == Some(Mutant::EarlyInventory) && welcome {
            for slot in 0..self.plan.slots {
                let unheard = supervisor::Event::Engine(
                    EngineIndex(slot as u16),
                    FromEngine::Ready { running: None },
                );
                supervisor.handle(unheard, at);
            }
        }
    }

    fn deliver_to_coordinator(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let n = c.host;
        if !c.coordinator_open || self.serving.down {
            return;
        }
        if !self.hosts[n].links.0 || !self.hosts[n].up || c.cut {
            if !c.agent_open {
                return;
            }
            return self.after(Duration::from_millis(200), Step::ToCoordinator(id));
        }
        let Some(message) = c.to_coordinator.pop_front() else {
            return;
        };
        c.coordinator_heard = self.now;
        if let ToCoordinator::Heartbeat { .. }
        | ToCoordinator::Inventory { .. }
        | ToCoordinator::Served { .. } = message
        {
            self.hear(n);
        }
        let message = match message {
            ToCoordinator::Served {
                users,
                unheard,
                containment,
                clock_offset,
            } => {
                if !users.iter().any(|user| user == USER) {
                    // It may come back too late for what it had.
                    self.kept.retain(|_, (host, ..)| *host != n);
                    if self.plan.mutant == Some(Mutant::SilenceIsAbsence) {
                        let (queued, running, unacknowledged) = (vec![], vec![], vec![]);
                        let nothing = ToCoordinator::UserInventory {
                            user: USER.into(),
                            queued,
                            running,
                            unacknowledged,
                        };
                        self.tell_scheduler(scheduler::Event::Agent(SessionId(id), nothing));
                    }
                }
                ToCoordinator::Served {
                    users,
                    unheard,
                    containment,
                    clock_offset,
                }
            }
            ToCoordinator::ReportsOf { reports, .. }
                if self.plan.mutant == Some(Mutant::BelievesAnybody) =>
            {
                ToCoordinator::Reports(reports)
            }
            other => other,
        };
        if let (Some(Mutant::StaleReport), ToCoordinator::Reports(reports)) =
            (self.plan.mutant, &message)
        {
            for report in reports {
                if let Some((attempt, session)) = self
                    .placed
                    .get(&report.attempt.key)
                    .filter(|(a, _)| *a > report.attempt.attempt)
                {
                    // As if it did not matter which attempt a report is about, and who reports it.
                    let (attempt, session) = (
                        AttemptId {
                            attempt: *attempt,
                            ..report.attempt
                        },
                        SessionId(*session),
                    );
                    let stale = NumberedReport {
                        seq: u64::MAX,
                        attempt,
                        report: report.report.clone(),
                    };
                    let event =
                        scheduler::Event::Agent(session, ToCoordinator::Reports(vec![stale]));
                    self.tell_scheduler(event);
                }
            }
        }
        self.tell_scheduler(scheduler::Event::Agent(SessionId(id), message));
    }

    fn deliver_to_engine(&mut self, n: usize, index: usize, link: u64) {
        let at = self.at(n);
        let slot = &mut self.hosts[n].slots[index];
        if slot.link != link || slot.dead {
            return;
        }
        let Some(message) = slot.to.pop_front() else {
            return;
        };
        let event = match message {
            ToEngine::Run {
                attempt,
                spec,
                context,
                engine,
                slots,
            } => {
                slot.context = context.map(Arc::new).or_else(|| slot.context.take());
                let Some(context) = slot.context.clone() else {
                    return;
                };
                let spec = codec::decode_exact(&spec)
                    .map(Box::new)
                    .map_err(|e| e.to_string());
                engine::Event::Run {
                    attempt,
                    spec,
                    context,
                    engine,
                    slots,
                }
            }
            ToEngine::Cancel { attempt, stop } => engine::Event::Cancel { attempt, stop },
            ToEngine::Acknowledge { attempts } => engine::Event::Acknowledge { attempts },
            ToEngine::Lease { .. } if self.plan.mutant == Some(Mutant::NoDeadline) => return,
            ToEngine::Lease { until } => engine::Event::Lease { until },
            ToEngine::OutputTaken { .. } | ToEngine::Show { .. } | ToEngine::Hide { .. } => return,
        };
        slot.engine.handle(event, at);
    }

    /// Performs all effects of all cores.
    fn perform(&mut self) -> Result<(), String> {
        loop {
            let mut any = false;
            any |= self.coordinator_effects()?;
            self.for_original(|world| {
                any |= world.coordinator_effects()?;
                Ok(())
            })?;
            for n in 0..self.hosts.len() {
                while let Some(effect) = self.hosts[n]
                    .supervisor
                    .as_mut()
                    .and_then(Supervisor::poll_effect)
                {
                    any = true;
                    self.supervisor_effect(n, effect);
                }
                for slot in 0..self.plan.slots {
                    while let Some(effect) = self.hosts[n].slots[slot].engine.poll_effect() {
                        any = true;
                        if !self.hosts[n].slots[slot].dead {
                            self.engine_effect(n, slot, effect);
                        }
                    }
                }
            }
            if !any {
                return Ok(());
            }
        }
    }

    /// Performs what a coordinator has decided, as far as its store has it. True if there was
    /// anything to do.
    fn coordinator_effects(&mut self) -> Result<bool, String> {
        let mut any = false;
        self.take_effects();
        for (after, effect) in std::mem::take(&mut self.serving.held) {
            let hasty = self.plan.mutant == Some(Mutant::HastyStore);
            // Whatever waits keeps its order.
            let waits = after > self.serving.committed && !hasty && !effect.overtakes_the_store();
            if waits {
                self.serving.held.push_back((after, effect));
            } else {
                any = true;
                self.scheduler_effect(effect)?;
            }
        }
        Ok(any)
    }

    fn scheduler_effect(&mut self, effect: scheduler::Effect) -> Result<(), String> {
        match effect {
            scheduler::Effect::ToAgent(SessionId(id), message)
            | scheduler::Effect::Greet(SessionId(id), message) => {
                if let (Some(Mutant::HastyRetract), ToAgent::Retract { attempts }) =
                    (self.plan.mutant, &message)
                {
                    for attempt in attempts.iter().copied() {
                        let reports = vec![NumberedReport {
                            seq: u64::MAX,
                            attempt,
                            report: Report::Returned,
                        }];
                        let event =
                            scheduler::Event::Agent(SessionId(id), ToCoordinator::Reports(reports));
                        self.tell_scheduler(event);
                    }
                }
                if let ToAgent::Run(run) = &message {
                    for AttemptId { key, attempt, .. } in run.iter().map(|p| p.attempt) {
                        if let Some((n, slot, life)) = self
                            .kept
                            .remove(&(key, attempt - 1))
                            .filter(|_| !self.of_original)
                            && self.hosts[n].slots[slot].life == life
                            && self.now - self.heard[n] <= self.hosts[n].lease
                        {
                            let last = attempt - 1;
                            return Err(format!(
                                "P2: {}.{last} had ended on h{n}, which is there, and its job runs again",
                                key.job
                            ));
                        }
                        self.placed.insert(key, (attempt, id));
                    }
                }
                let spec = self.spec.clone();
                let message = match message {
                    ToAgent::Run(run) => ToAgent::Run(
                        run.into_iter()
                            .map(|p| Placement {
                                spec: spec.clone(),
                                ..p
                            })
                            .collect(),
                    ),
                    other => other,
                };
                if let Some(c) = self.connections.get_mut(&id).filter(|c| c.coordinator_open) {
                    c.to_agent.push_back(message);
                    // In order: each step takes the first one that waits.
                    let wait = self.chance.millis(40);
                    self.after(wait, Step::ToAgent(id));
                }
            }
            scheduler::Effect::CloseSession {
                session: SessionId(id),
                ..
            } => {
                if let Some(c) = self.connections.get_mut(&id) {
                    c.coordinator_open = false;
                }
                let wait = self.chance.millis(50);
                self.after(wait, Step::AgentSeesEnd(id));
            }
            scheduler::Effect::Result {
                job: JobNumber(job),
                result,
                ..
            } => {
                self.result(job, result)?;
            }
            scheduler::Effect::Cancelled {
                request,
                result: Ok(summary),
            } => {
                if summary.unreachable == 0 && !self.of_original {
                    self.proven.insert(request as u32);
                }
            }
            scheduler::Effect::Persist(_)
            | scheduler::Effect::Cancelled { .. }
            | scheduler::Effect::Accepted { .. }
            | scheduler::Effect::Refused { .. }
            | scheduler::Effect::BatchDone { .. }
            | scheduler::Effect::Notice { .. }
            | scheduler::Effect::Output { .. }
            | scheduler::Effect::LogsAnswer { .. }
            | scheduler::Effect::Fleet { .. } => {}
        }
        Ok(())
    }

    fn result(&mut self, job: u32, result: JobResult) -> Result<(), String> {
        self.log.push(format!(
            "{:?} result of {job}.{}: {:?}",
            self.now, result.attempt, result.outcome.ended
        ));
        if self.of_original {
            // Nobody asks it any more.
            return Ok(());
        }
        // A later attempt, which the copy does not know of, may have its lease yet.
        let ignorant = self.is_copy() && !self.is_released();
        let unreachable = ignorant
            || result
                .outcome
                .error
                .as_deref()
                .is_some_and(|e| e.contains("out of reach"));
        if result.outcome.ended == Ended::Exited
            && !self.ended.contains(&(self.key(job), result.attempt))
        {
            return Err(format!(
                "P7: {job}.{} has a result, and never ended by itself",
                result.attempt
            ));
        }
        if self.results.insert(job, result).is_some() {
            return Err(format!("P2: job {job} has two results"));
        }
        if !unreachable {
            self.proven.insert(job);
        }
        Ok(())
    }

    fn key(&self, job: u32) -> JobKey {
        JobKey {
            batch: mezcal_common::model::ids::BatchSerial(1),
            job: JobNumber(job),
        }
    }

    fn supervisor_effect(&mut self, n: usize, effect: supervisor::Effect) {
        match effect {
            supervisor::Effect::ToCoordinator(message) => {
                if let ToCoordinator::Reports(reports) = &message {
                    for report in reports
                        .iter()
                        .filter(|r| !matches!(r.report, Report::Started { .. }))
                    {
                        self.log.push(format!(
                            "{:?} h{n} reports {} as {:?}",
                            self.now, report.attempt, report.report
                        ));
                    }
                }
                if let Some(id) = self.hosts[n].connection
                    && let Some(c) = self.connections.get_mut(&id).filter(|c| c.agent_open)
                {
                    c.to_coordinator.push_back(message);
                    let wait = self.chance.millis(40);
                    self.after(wait, Step::ToCoordinator(id));
                }
            }
            // Nobody knows what those make of it.
            supervisor::Effect::ToEngine(index, _) if usize::from(index.0) >= self.plan.slots => {}
            supervisor::Effect::ToEngine(index, message) => {
                let slot = &mut self.hosts[n].slots[usize::from(index.0)];
                if !slot.dead {
                    slot.to.push_back(message);
                    let link = slot.link;
                    let wait = self.chance.millis(4);
                    self.after(wait, Step::ToEngine(n, usize::from(index.0), link));
                }
            }
            supervisor::Effect::ToKeeper(
                _,
                mezcal_common::message::engine::ToKeeper::EndSeen { attempt },
            ) => {
                self.hosts[n].ends.retain(|(_, a)| *a != Some(attempt));
            }
            supervisor::Effect::ToKeeper(..) | supervisor::Effect::Exit => {}
        }
    }

    fn engine_effect(&mut self, n: usize, index: usize, effect: engine::Effect) {
        let at = self.at(n);
        let life = self.hosts[n].slots[index].life;
        match effect {
            engine::Effect::Spawn { attempt, .. } | engine::Effect::SpawnAgain { attempt } => {
                let again = matches!(effect, engine::Effect::SpawnAgain { .. });
                let slot = &mut self.hosts[n].slots[index];
                // The process may be there before its engine knows.
                (slot.alive, slot.spawning, slot.ended, slot.dies_at) =
                    (Some(attempt), Some(attempt), false, None);
                let (spawn, fails) = (self.chance.millis(30), self.chance.one_in(40));
                // Some shortages pass soon, and others do not.
                let result = match attempt.key.job.0 % 4 {
                    0 if again => Err(engine::NotStarted::Short("no processes".into())),
                    0 | 1 if fails => Err(engine::NotStarted::Short("no processes".into())),
                    2.. if fails => Err(engine::NotStarted::Job("no such file".into())),
                    _ => Ok(()),
                };
                self.after(
                    spawn,
                    Step::Spawned {
                        host: n,
                        slot: index,
                        life,
                        result,
                    },
                );
                // Every third run is of short jobs, which are handed out in advance, and a few long
                // ones.
                let lengths = if self.plan.seed.is_multiple_of(3) {
                    [20, 20, 60, 20_000]
                } else {
                    [50, 2_000, 20_000, 90_000]
                };
                let most = lengths[if self.chance.one_in(3) {
                    3
                } else {
                    self.chance.below(3) as usize
                }];
                let run = match self.plan.crowd {
                    true if attempt.key.job.0 < self.plan.jobs => {
                        self.longest / 2 + self.chance.millis(self.longest.as_millis() as u64 / 2)
                    }
                    true | false => self.chance.millis(most),
                };
                self.after(
                    spawn + run,
                    Step::JobEnds {
                        host: n,
                        slot: index,
                        attempt,
                        life,
                    },
                );
            }
            engine::Effect::Send(message) => {
                let forgets = self.plan.mutant == Some(Mutant::ForgetsEarly);
                let slot = &mut self.hosts[n].slots[index];
                if let (true, FromEngine::Finished { attempt, .. }) = (forgets, &message) {
                    slot.engine.handle(
                        engine::Event::Acknowledge {
                            attempts: vec![*attempt],
                        },
                        at,
                    );
                }
                slot.from.push_back(message);
                let link = slot.link;
                let wait = self.chance.millis(4);
                self.after(wait, Step::FromEngine(n, index, link));
            }
            engine::Effect::Probe => {
                self.hosts[n].slots[index]
                    .engine
                    .handle(engine::Event::Probed { others: false }, at);
            }
            engine::Effect::Sweep { .. } => {
                let patience = if self.chance.one_in(6) {
                    SLOW_DEATH.as_millis() as u64
                } else {
                    3
                };
                let dies = self.now + self.chance.millis(patience);
                let now = self.now;
                let slot = &mut self.hosts[n].slots[index];
                let dies = *slot
                    .dies_at
                    .get_or_insert(if slot.ended { now } else { dies });
                if now < dies {
                    slot.engine.handle(
                        engine::Event::Swept(Swept {
                            alive: 1,
                            ..Swept::default()
                        }),
                        at,
                    );
                    return;
                }
                let fails = slot
                    .alive
                    .is_some_and(|attempt| self.failing.contains(&attempt.key.job.0));
                (slot.alive, slot.dies_at) = (None, None);
                let status = if slot.ended {
                    WaitStatus::Exited(i32::from(fails))
                } else {
                    WaitStatus::Signaled(9)
                };
                let span = Span {
                    started: WallTime(0),
                    completed: WallTime(1),
                    elapsed: Duration::from_micros(1),
                };
                slot.engine.handle(
                    engine::Event::Swept(Swept {
                        exit: Some(Exit { status, span }),
                        ..Swept::default()
                    }),
                    at,
                );
            }
            engine::Effect::Terminate { .. }
            | engine::Effect::ToKeeper(_)
            | engine::Effect::Exit => {}
        }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(placed) = &self.placed_in_vain {
            return Err(placed.clone());
        }
        if self
            .wide_until
            .is_some_and(|until| self.now > until + SLACK)
            && self.wide_waits()
        {
            return Err(format!(
                "wide: it waits longer than {} times {:?}",
                scheduler::WIDE_WAIT,
                self.longest
            ));
        }
        let mut live: BTreeMap<JobKey, AttemptId> = BTreeMap::new();
        // What is suspended does nothing.
        for attempt in self
            .hosts
            .iter()
            .filter(|h| h.up && !h.suspended)
            .flat_map(|h| &h.slots)
            .filter_map(|s| s.alive)
        {
            if let Some(other) = live.insert(attempt.key, attempt) {
                return Err(format!("P1: {attempt} lives beside {other}"));
            }
            if self.proven.contains(&attempt.key.job.0) {
                return Err(format!("P3: {attempt} lives and was said to be over"));
            }
        }
        let vain = self.serving.scheduler.idle_in_vain(
            LOCALITY_WAIT + Duration::from_millis(1),
            BootInstant(self.now),
        );
        if let Some(vain) = vain.filter(|_| !self.serving.down) {
            return Err(format!("P4: {vain}"));
        }
        if let Some(far) = self.serving.scheduler.placed_far_in_vain() {
            return Err(format!("P4: {far}"));
        }
        for (n, host) in self.hosts.iter().enumerate() {
            for attempt in host.slots.iter().filter_map(|slot| slot.alive) {
                if self
                    .required
                    .get(&attempt.key.job.0)
                    .is_some_and(|required| *required != n)
                {
                    return Err(format!("P4: {attempt} runs on h{n}, where it may not"));
                }
            }
            let live = host.slots.iter().filter_map(|slot| slot.alive);
            let taken: usize = live
                .map(|attempt| usize::from(self.slots_by_job[&attempt.key.job.0]))
                .sum();
            if taken > self.plan.slots {
                return Err(format!(
                    "slots: h{n} runs jobs that take {taken} and has {}",
                    self.plan.slots
                ));
            }
        }
        Ok(())
    }
}

/// A life of the coordinator.
fn scheduler(life: u64, lease: Duration, mutant: Option<Mutant>) -> Scheduler {
    let wait = if mutant == Some(Mutant::LongWait) {
        2 * LOCALITY_WAIT
    } else {
        LOCALITY_WAIT
    };
    let mistake = match mutant {
        Some(Mutant::OverlooksReleased) => Some(Mistake::OverlooksReleased),
        Some(Mutant::KeepsNoLonger) => Some(Mistake::KeepsNoLonger),
        Some(Mutant::TakesFromNear) => Some(Mistake::TakesFromNear),
        _ => None,
    };
    Scheduler::new(Epoch(7 + life), StoreId(1), Some(lease), wait)
        .durable(CLIENT_LEASE)
        .with_mistake(mistake)
        .watched()
}

impl Host {
    fn new(chance: &mut Chance, slots: usize) -> Self {
        Self {
            supervisor: None,
            agent: 0,
            slots: (0..slots).map(|_| Slot::new()).collect(),
            boot: 1,
            keeper: 1,
            up: true,
            agent_stopped: false,
            suspended: false,
            keeper_dying: false,
            met: Met::default(),
            met_copy: false,
            lease: LEASE,
            longest_lease: LEASE,
            links: (true, true),
            connection: None,
            zero: chance.millis(1_000_000),
            // Up to 200 ppm fast or slow: two clocks differ by less than the 500 ppm that the
            // margin allows for.
            drift: chance.below(400) as i64 - 200,
            ends: Vec::new(),
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            engine: Engine::new(false, Containment::Subreaper),
            life: 0,
            link: 0,
            to: VecDeque::new(),
            from: VecDeque::new(),
            context: None,
            alive: None,
            spawning: None,
            ended: false,
            dies_at: None,
            dead: false,
        }
    }

    /// A new link to an agent: what was on the old one is lost.
    fn relink(&mut self, at: BootInstant) {
        self.link += 1;
        self.to.clear();
        self.from.clear();
        self.engine.handle(engine::Event::Linked, at);
    }
}
