//! What one placement costs the scheduler, by the number of queued jobs, hosts and sets of preferred hosts: it should not grow with any.
//!
//! `placement` prints nanoseconds per round of one report, one acknowledgement and one pull that is served, medians of five, for jobs that
//! each prefer three random hosts. `valgrind --tool=callgrind` on `placement JOBS HOSTS` counts instructions where the machine is noisy.

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
    let mut running: Vec<Vec<AttemptId>> = vec![Vec::new(); hosts];
    let (mut credit, mut seq) = (vec![u64::from(SLOTS); hosts], vec![0u64; hosts]);
    let (mut local, mut all) = (0, 0);
    let mut drain = |scheduler: &mut Scheduler, running: &mut Vec<Vec<AttemptId>>| {
        while let Some(effect) = scheduler.poll_effect() {
            match effect {
                Effect::ToAgent(SessionId(host), ToAgent::Run(run)) => running[host as usize].extend(run.iter().map(|p| p.attempt)),
                Effect::Result { result, .. } => {
                    all += 1;
                    local += usize::from(result.local == Some(true));
                }
                _ => {}
            }
        }
    };
    for (host, credit) in credit.iter().enumerate() {
        let pull = ToCoordinator::Pull { credit: *credit, idle: SLOTS };
        scheduler.handle(Event::Agent(SessionId(host as u64), pull), now);
    }
    drain(&mut scheduler, &mut running);
    let begin = Instant::now();
    for round in 0..ROUNDS {
        let host = round * 7919 % hosts;
        let Some(attempt) = running[host].pop() else { continue };
        seq[host] += 1;
        credit[host] += 1;
        let outcome = Box::new(Outcome { status: Some(WaitStatus::Exited(0)), ..Outcome::never_ran(Ended::Exited, None) });
        let report = Report::Finished { engine: Some(EngineIndex(0)), outcome };
        let reports = vec![NumberedReport { seq: seq[host], attempt, report }];
        scheduler.handle(Event::Agent(SessionId(host as u64), ToCoordinator::Reports(reports)), now);
        let pull = ToCoordinator::Pull { credit: credit[host], idle: 1 };
        scheduler.handle(Event::Agent(SessionId(host as u64), pull), now);
        std::hint::black_box(scheduler.poll_timeout());
        drain(&mut scheduler, &mut running);
    }
    (begin.elapsed().as_nanos() as f64 / ROUNDS as f64, f64::from(local as u32) / f64::from(all.max(1) as u32) * 100.0)
}
