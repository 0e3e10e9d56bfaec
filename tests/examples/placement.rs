//! What one placement costs the scheduler, by the number of queued jobs, hosts and sets of preferred hosts: it should not grow with any.
//!
//! `placement` prints nanoseconds per round of one report, one acknowledgement and one pull that is served, medians of five, for jobs that
//! each prefer three random hosts. Where the machine is noisy, instructions can be counted:
//! `valgrind --tool=callgrind --toggle-collect='*rounds*' placement JOBS HOSTS`, divided by 20,000 rounds.

use bytes::Bytes;
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::{AttemptId, BatchId, EngineIndex, Epoch, JobNumber, SessionId, StoreId};
use mezcal_common::job::BatchContext;
use mezcal_common::outcome::{Containment, Ended, Outcome, WaitStatus};
use mezcal_common::wire::agent::{Hello, NumberedReport, Report, ToAgent, ToCoordinator};
use mezcal_common::wire::client::{BatchTerms, Submission};
use mezcal_coordinator::scheduler::{Effect, Event, Scheduler};
use std::time::{Duration, Instant};

const SLOTS: u16 = 4;
const ROUNDS: usize = 20_000;

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("numbers: JOBS HOSTS")).collect();
    if let [jobs, hosts] = args.as_slice() {
        let (nanoseconds, local) = measure(*jobs, *hosts);
        println!("{jobs} jobs, {hosts} hosts: {nanoseconds:.0} ns, {local:.1} % local");
        return;
    }
    for (jobs, hosts) in
        [(50_000, 10), (100_000, 10), (1_000_000, 10), (100_000, 100), (100_000, 1000), (100_000, 10_000), (1_000_000, 10_000)]
    {
        let mut times: Vec<(f64, f64)> = (0..5).map(|_| measure(jobs, hosts)).collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "{jobs:>9} jobs {hosts:>6} hosts: {:>6.0} ns per placement ({:.0} to {:.0}), {:.1} % local",
            times[2].0, times[0].0, times[4].0, times[2].1
        );
    }
}

/// Nanoseconds per placement, and the share that was local.
fn measure(jobs: usize, hosts: usize) -> (f64, f64) {
    let mut random = 1u64;
    let mut next = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n
    };
    let mut scheduler = Scheduler::new(Epoch(1), StoreId(1), Some(Duration::from_secs(600)), Duration::from_secs(3));
    let now = BootInstant(Duration::from_secs(1000));
    let batch = BatchId(uuid::Uuid::from_u128(1));
    let context = BatchContext::new(batch, "/".into(), 0o22);
    let terms = BatchTerms::new(context, Duration::from_secs(60));
    scheduler.handle(Event::Open { user: "okazaki".into(), terms: Box::new(terms) }, now);
    for host in 0..hosts {
        let hello = Hello {
            versions: (1, 1),
            program: String::new(),
            keeper: 1,
            boot_id: [0; 16],
            slots: SLOTS,
            aliases: vec![],
            cpus: 1,
            memory: 0,
            users: None,
        };
        scheduler.handle(Event::AgentHello { session: SessionId(host as u64), name: format!("h{host}"), hello }, now);
    }
    for host in 0..hosts {
        let (queued, running, unacknowledged) = (vec![], vec![], vec![]);
        let inventory =
            ToCoordinator::Inventory { queued, running, unacknowledged, containment: Containment::Cgroup2, clock_offset: None };
        scheduler.handle(Event::Agent(SessionId(host as u64), inventory), now);
    }
    let spec = Bytes::from_static(b"x");
    for first in (0..jobs).step_by(4096) {
        let mut host_sets = Vec::new();
        let submissions = (first..jobs.min(first + 4096)).map(|job| {
            host_sets.push((0..3).map(|_| format!("h{}", next(hosts))).collect());
            Submission { prefer: Some(job as u32), ..Submission::new(JobNumber(job as u32 + 1), spec.clone()) }
        });
        let jobs = submissions.collect();
        scheduler.handle(Event::Submit { batch, host_sets, jobs }, now);
    }
    let mut world = World { scheduler, running: vec![Vec::new(); hosts], now, local: 0, all: 0 };
    for host in 0..hosts {
        let pull = ToCoordinator::Pull { credit: u64::from(SLOTS), idle: SLOTS };
        world.scheduler.handle(Event::Agent(SessionId(host as u64), pull), now);
    }
    world.drain();
    let begin = Instant::now();
    rounds(&mut world, hosts);
    (begin.elapsed().as_nanos() as f64 / ROUNDS as f64, f64::from(world.local) / f64::from(world.all.max(1)) * 100.0)
}

struct World {
    scheduler: Scheduler,
    running: Vec<Vec<AttemptId>>,
    now: BootInstant,
    local: u32,
    all: u32,
}

impl World {
    fn drain(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            match effect {
                Effect::ToAgent(SessionId(host), ToAgent::Run(run)) => {
                    self.running[host as usize].extend(run.iter().map(|p| p.attempt));
                }
                Effect::Result { result, .. } => {
                    self.all += 1;
                    self.local += u32::from(result.local == Some(true));
                }
                _ => {}
            }
        }
    }
}

/// What is measured. A function of its own, so that callgrind can be told to count nothing else.
#[inline(never)]
fn rounds(world: &mut World, hosts: usize) {
    let (mut credit, mut seq) = (vec![u64::from(SLOTS); hosts], vec![0u64; hosts]);
    for round in 0..ROUNDS {
        let host = round * 7919 % hosts;
        let Some(attempt) = world.running[host].pop() else { continue };
        seq[host] += 1;
        credit[host] += 1;
        let outcome = Box::new(Outcome { status: Some(WaitStatus::Exited(0)), ..Outcome::never_ran(Ended::Exited, None) });
        let report = Report::Finished { engine: Some(EngineIndex(0)), outcome };
        let reports = vec![NumberedReport { seq: seq[host], attempt, report }];
        let (session, now) = (SessionId(host as u64), world.now);
        world.scheduler.handle(Event::Agent(session, ToCoordinator::Reports(reports)), now);
        let pull = ToCoordinator::Pull { credit: credit[host], idle: 1 };
        world.scheduler.handle(Event::Agent(session, pull), now);
        std::hint::black_box(world.scheduler.poll_timeout());
        world.drain();
    }
}
