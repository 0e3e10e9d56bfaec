//! A large cluster in simulation: the real `Scheduler` and `Supervisor`s under a virtual clock,
//! jobs of random length that prefer three random hosts each; beside it what other ways of placing
//! would do with the same jobs.
//!
//! `scale [HOSTS SLOTS JOBS [LENGTHS]]` prints one table per distribution of lengths and of
//! preferred hosts: the share of jobs that ran where they prefer to, the makespan, and its ratio to
//! a bound that nobody can beat, max(total work / slots, longest job).
//!
//! - *first in, first out*: the next job goes to the next free slot.
//! - *naive delay*: a slot takes local jobs only, unless no local job has been started anywhere for
//!   3 s; what is idle is offered again every second. One timer for all, which every local start
//!   sets back (SPARK-18886).
//! - *longest first*: no locality and every length known in advance (LPT, Graham 1969). It shows
//!   what not knowing costs.

use bytes::Bytes;
use mezcal_agent::supervisor::{self, Supervisor};
use mezcal_common::message::agent::{ToAgent, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{
    AttemptId, BatchId, EngineIndex, Epoch, JobNumber, SessionId, StoreId,
};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::{Ended, Outcome, Span, WaitStatus};
use mezcal_coordinator::scheduler::{Effect, Event, Scheduler};
use mezcal_tests::placement::hello;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// One way through the network.
const LATENCY: u64 = 1_000;
const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Mean length of a job.
const MEAN: f64 = 100e6;
/// Times are microseconds.
type Micros = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    /// From nothing to twice the mean.
    Uniform,
    /// Memoryless.
    Exponential,
    /// Of most jobs a tenth of the mean and less, and of a few a hundred times as much: as in
    /// traces of batch clusters.
    LogNormal,
}

/// Where the data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    Everywhere,
    /// On a tenth of the hosts.
    Bunched,
}

struct Workload {
    hosts: usize,
    slots: usize,
    lengths: Vec<Micros>,
    prefer: Vec<[u32; 3]>,
}

struct Random(u64);

impl Random {
    /// SplitMix64 (Steele et al., OOPSLA 2014), as a number from 0 to 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn length(&mut self, lengths: Lengths) -> Micros {
        let length = match lengths {
            Lengths::Uniform => 2.0 * MEAN * self.unit(),
            Lengths::Exponential => -MEAN * (1.0 - self.unit()).ln(),
            Lengths::LogNormal => {
                // Box and Muller (1958).
                let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt()
                    * (std::f64::consts::TAU * self.unit()).cos();
                const SIGMA: f64 = 2.0;
                MEAN * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp()
            }
        };
        length as Micros + 1_000
    }
}

impl Workload {
    fn new(hosts: usize, slots: usize, jobs: usize, lengths: Lengths, spread: Spread) -> Self {
        let holders = if spread == Spread::Everywhere {
            hosts
        } else {
            hosts.div_ceil(10)
        };
        let mut random = Random(1);
        let lengths = (0..jobs).map(|_| random.length(lengths)).collect();
        let prefer = (0..jobs)
            .map(|_| std::array::from_fn(|_| (random.unit() * holders as f64) as u32))
            .collect();
        Self {
            hosts,
            slots,
            lengths,
            prefer,
        }
    }

    fn bound(&self) -> f64 {
        let work: f64 = self.lengths.iter().map(|l| *l as f64).sum();
        (work / (self.hosts * self.slots) as f64)
            .max(self.lengths.iter().copied().max().unwrap_or(0) as f64)
    }
}

/// The share of local jobs and the makespan.
type Outcomes = (f64, Micros);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| {
        args.get(i)
            .map_or(default, |a| a.parse().expect("HOSTS SLOTS JOBS"))
    };
    let (hosts, slots, jobs) = (number(0, 10_000), number(1, 40), number(2, 1_000_000));
    for (lengths, spread) in [
        (Lengths::Uniform, Spread::Everywhere),
        (Lengths::Exponential, Spread::Everywhere),
        (Lengths::Exponential, Spread::Bunched),
        (Lengths::LogNormal, Spread::Everywhere),
    ] {
        if args
            .get(3)
            .is_some_and(|wanted| *wanted != format!("{lengths:?}").to_lowercase())
        {
            continue;
        }
        let work = Workload::new(hosts, slots, jobs, lengths, spread);
        let bound = work.bound() / 1e6;
        println!(
            "\n{jobs} jobs, {lengths:?} lengths, data {spread:?}, {hosts} hosts of {slots} slots; bound {bound:.1} s"
        );
        println!(
            "{:<22} {:>8} {:>11} {:>7}",
            "", "local", "makespan", "ratio"
        );
        let row = |name: &str, (local, makespan): Outcomes| {
            let (seconds, ratio) = (makespan as f64 / 1e6, makespan as f64 / work.bound());
            println!(
                "{name:<22} {:>6.1} % {seconds:>9.1} s {ratio:>7.3}",
                100.0 * local
            );
        };
        let begin = Instant::now();
        let ours = simulate(&work);
        let took = begin.elapsed();
        row("mezcal", ours);
        row("first in, first out", in_order(&work, (0..jobs).collect()));
        row("naive delay", naive_delay(&work));
        let mut longest_first: Vec<usize> = (0..jobs).collect();
        longest_first.sort_by_key(|job| Reverse(work.lengths[*job]));
        row("longest first", in_order(&work, longest_first));
        println!("(simulated in {took:.1?})");
    }
}

fn in_order(work: &Workload, jobs: Vec<usize>) -> Outcomes {
    let mut free: BinaryHeap<Reverse<(Micros, u32)>> = (0..work.slots)
        .flat_map(|_| (0..work.hosts as u32).map(|host| Reverse((0, host))))
        .collect();
    let (mut local, mut makespan) = (0, 0);
    for job in &jobs {
        let Some(Reverse((at, host))) = free.pop() else {
            break;
        };
        local += usize::from(work.prefer[*job].contains(&host));
        let end = at + work.lengths[*job];
        makespan = makespan.max(end);
        free.push(Reverse((end, host)));
    }
    (local as f64 / jobs.len() as f64, makespan)
}

fn naive_delay(work: &Workload) -> Outcomes {
    let jobs = work.lengths.len();
    let mut queues: Vec<VecDeque<u32>> = vec![VecDeque::new(); work.hosts];
    for (job, prefer) in work.prefer.iter().enumerate() {
        prefer
            .iter()
            .for_each(|host| queues[*host as usize].push_back(job as u32));
    }
    let mut started = vec![false; jobs];
    let (mut any, mut left, mut local, mut makespan, mut last_local) = (0, jobs, 0, 0, 0);
    let mut running: BinaryHeap<Reverse<(Micros, u32)>> = BinaryHeap::new();
    let mut idle: Vec<u32> = (0..work.slots).flat_map(|_| 0..work.hosts as u32).collect();
    let mut round = 0;
    while left > 0 {
        // Between two rounds only slots that have just fallen idle are offered.
        let (now, offers) = match running.peek() {
            Some(Reverse((at, host))) if *at < round => (*at, vec![*host]),
            _ => (round, std::mem::take(&mut idle)),
        };
        if now == round {
            round += 1_000_000;
        } else {
            running.pop();
        }
        for host in offers {
            let queue = &mut queues[host as usize];
            while queue.front().is_some_and(|job| started[*job as usize]) {
                queue.pop_front();
            }
            let job = if let Some(job) = queue.pop_front() {
                (last_local, local) = (now, local + 1);
                job as usize
            } else if now - last_local > LOCALITY_WAIT.as_micros() as u64 {
                while any < jobs && started[any] {
                    any += 1;
                }
                any
            } else {
                jobs
            };
            if job >= jobs {
                idle.push(host);
                continue;
            }
            (started[job], left) = (true, left - 1);
            makespan = makespan.max(now + work.lengths[job]);
            running.push(Reverse((now + work.lengths[job], host)));
        }
    }
    (f64::from(local) / jobs as f64, makespan)
}

enum Step {
    ToAgent(u32, ToAgent),
    ToCoordinator(u32, ToCoordinator),
    Ended(u32, EngineIndex, AttemptId),
    Agent(u32),
    Coordinator,
}

struct World<'a> {
    work: &'a Workload,
    now: Micros,
    steps: BinaryHeap<Reverse<(Micros, u64)>>,
    todo: Vec<Option<Step>>,
    spare: Vec<u64>,
    scheduler: Scheduler,
    supervisors: Vec<Supervisor>,
    /// When each looks at its clock next; the last one is the coordinator.
    timers: Vec<Micros>,
    order: u64,
    local: usize,
    started: usize,
    makespan: Micros,
}

fn simulate(work: &Workload) -> Outcomes {
    let mut world = World {
        work,
        now: 0,
        steps: BinaryHeap::new(),
        todo: Vec::new(),
        spare: Vec::new(),
        scheduler: Scheduler::new(
            Epoch(1),
            StoreId(1),
            Some(Duration::from_secs(600)),
            LOCALITY_WAIT,
        ),
        supervisors: (0..work.hosts)
            .map(|_| Supervisor::new(work.slots as u16, None))
            .collect(),
        timers: vec![Micros::MAX; work.hosts + 1],
        order: 0,
        local: 0,
        started: 0,
        makespan: 0,
    };
    world.connect();
    let begin = world.now;
    world.submit();
    // After the last start nothing is left to decide.
    while world.started < work.lengths.len() {
        world.next();
    }
    (
        world.local as f64 / work.lengths.len() as f64,
        world.makespan - begin,
    )
}

impl World<'_> {
    fn at(&self) -> BootInstant {
        BootInstant(Duration::from_secs(1000) + Duration::from_micros(self.now))
    }

    fn after(&mut self, wait: Micros, step: Step) {
        let index = self.spare.pop().unwrap_or_else(|| {
            self.todo.push(None);
            self.todo.len() as u64 - 1
        });
        self.todo[index as usize] = Some(step);
        // Those of one instant keep their order.
        self.order += 1;
        self.steps
            .push(Reverse((self.now + wait, self.order << 24 | index)));
    }

    fn next(&mut self) {
        let Reverse((at, packed)) = self.steps.pop().expect("something is left to happen");
        let index = packed & 0xff_ffff;
        self.spare.push(index);
        self.now = at;
        let now = self.at();
        match self.todo[index as usize].take().expect("once") {
            Step::ToAgent(host, message) => {
                let event = match message {
                    ToAgent::Welcome {
                        version,
                        store,
                        lease,
                        first_engine,
                        ..
                    } => supervisor::Event::Welcomed {
                        version,
                        store,
                        lease,
                        first_engine,
                        hello_sent: now,
                    },
                    other => supervisor::Event::Coordinator(other),
                };
                self.supervisors[host as usize].handle(event, now);
                self.perform_agent(host);
            }
            Step::ToCoordinator(host, message) => {
                self.scheduler
                    .handle(Event::Agent(SessionId(u64::from(host)), message), now);
                self.perform_coordinator();
            }
            Step::Ended(host, engine, attempt) => {
                let elapsed =
                    Duration::from_micros(self.work.lengths[attempt.key.job.0 as usize - 1]);
                let span = Span {
                    started: WallTime(0),
                    completed: WallTime(0),
                    elapsed,
                };
                let done = Outcome::never_ran(Ended::Exited, None);
                let outcome = Outcome {
                    status: Some(WaitStatus::Exited(0)),
                    span: Some(span),
                    ..done
                };
                let event =
                    supervisor::Event::Engine(engine, FromEngine::Finished { attempt, outcome });
                self.supervisors[host as usize].handle(event, now);
                self.perform_agent(host);
            }
            Step::Agent(host) => {
                if self.timers[host as usize] == at {
                    self.timers[host as usize] = Micros::MAX;
                    self.supervisors[host as usize].handle_timeout(now);
                    self.perform_agent(host);
                }
            }
            Step::Coordinator => {
                if self.timers[self.work.hosts] == at {
                    self.timers[self.work.hosts] = Micros::MAX;
                    self.scheduler.handle_timeout(now);
                    self.perform_coordinator();
                }
            }
        }
    }

    fn connect(&mut self) {
        for host in 0..self.work.hosts {
            let hello = hello(self.work.slots as u16);
            let event = Event::AgentHello {
                session: SessionId(host as u64),
                name: format!("h{host}"),
                hello,
            };
            self.scheduler.handle(event, self.at());
            for engine in 0..self.work.slots {
                let ready = supervisor::Event::Engine(
                    EngineIndex(engine as u16),
                    FromEngine::Ready { running: None },
                );
                let now = self.at();
                self.supervisors[host].handle(ready, now);
            }
        }
        self.perform_coordinator();
        while self.scheduler.fleet().0 < self.work.hosts as u32 {
            self.next();
        }
        // Their first pulls are on the way.
        let until = self.now + 10 * LATENCY;
        while self
            .steps
            .peek()
            .is_some_and(|Reverse((at, _))| *at < until)
        {
            self.next();
        }
    }

    fn submit(&mut self) {
        let batch = BatchId(uuid::Uuid::from_u128(1));
        let context = BatchContext::new(batch, "/".into(), 0o22);
        let host_timeout = Duration::from_secs(60);
        let terms = Box::new(BatchTerms::new(context, host_timeout));
        self.scheduler.handle(
            Event::Open {
                user: "okazaki".into(),
                terms,
            },
            self.at(),
        );
        let count = self.work.lengths.len();
        for first in (0..count).step_by(4096) {
            let range = first..count.min(first + 4096);
            let host_sets = self.work.prefer[range.clone()]
                .iter()
                .map(|set| set.iter().map(|h| format!("h{h}")).collect());
            let host_sets = host_sets.collect();
            let jobs = range.map(|job| {
                let submission =
                    Submission::new(JobNumber(job as u32 + 1), Bytes::from_static(b"x"));
                Submission {
                    prefer: Some(job as u32),
                    ..submission
                }
            });
            let jobs = jobs.collect();
            self.scheduler.handle(
                Event::Submit {
                    batch,
                    host_sets,
                    jobs,
                },
                self.at(),
            );
            self.perform_coordinator();
        }
        self.scheduler.handle(Event::Close { batch }, self.at());
        self.perform_coordinator();
    }

    fn perform_coordinator(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            if let Effect::Result { result, .. } = &effect {
                assert_eq!(result.outcome.ended, Ended::Exited);
            }
            let message = effect.for_agent(WallTime(0), |_| Bytes::new());
            if let Some((SessionId(host), message)) = message {
                self.after(LATENCY, Step::ToAgent(host as u32, message));
            }
        }
        self.arm(
            self.work.hosts,
            self.scheduler.poll_timeout(),
            Step::Coordinator,
        );
    }

    fn perform_agent(&mut self, host: u32) {
        while let Some(effect) = self.supervisors[host as usize].poll_effect() {
            match effect {
                supervisor::Effect::ToCoordinator(message) => {
                    self.after(LATENCY, Step::ToCoordinator(host, message))
                }
                supervisor::Effect::ToEngine(engine, ToEngine::Run { attempt, .. }) => {
                    let job = attempt.key.job.0 as usize - 1;
                    let length = self.work.lengths[job];
                    self.started += 1;
                    self.local += usize::from(self.work.prefer[job].contains(&host));
                    self.makespan = self.makespan.max(self.now + length);
                    self.after(length, Step::Ended(host, engine, attempt));
                }
                _ => {}
            }
        }
        self.arm(
            host as usize,
            self.supervisors[host as usize].poll_timeout(),
            Step::Agent(host),
        );
    }

    /// Has somebody look at the clock in time.
    fn arm(&mut self, timer: usize, at: Option<BootInstant>, step: Step) {
        let Some(at) = at else { return };
        let at = (at
            .0
            .saturating_sub(Duration::from_secs(1000))
            .as_nanos()
            .div_ceil(1000) as Micros)
            .max(self.now);
        if at < self.timers[timer] {
            self.timers[timer] = at;
            self.after(at - self.now, step);
        }
    }
}
