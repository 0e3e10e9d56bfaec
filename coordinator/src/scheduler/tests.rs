//! Scripts of the scheduler: each line of a trace is one effect. Reading them shows what it does.

mod asking;
mod batches;
mod cancelling;
mod draining;
mod failing;
mod halting;
mod hold;
mod losing;
mod names;
mod near;
mod ordering;
mod placing;
mod retrying;
mod returns;
mod sanity;
mod script;
mod shortage;
mod stops;
mod suspicion;
mod users;
mod wide;

use super::*;
use bytes::Bytes;
use mezcal_common::message::agent::{
    Hello, Load, LogWish, NumberedReport, Report, ToAgent, ToCoordinator,
};
use mezcal_common::message::client::{
    BatchTerms, CancelWait, Halt, HaltCount, HaltWhy, RetryOn, Submission,
};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, EngineIndex, Epoch, Generation, JobKey, JobNumber,
    SessionId, StoreId,
};
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_common::model::outcome::{Containment, Ended, Outcome, WaitStatus};
use std::collections::BTreeSet;
use std::time::Duration;

/// A scheduler with a clock and short methods for events.
struct Script {
    scheduler: Scheduler,
    now: BootInstant,
    seq: u64,
}

const LEASE: Duration = Duration::from_secs(600);

/// The locality wait of these scripts.
const WAIT: Duration = Duration::from_secs(3);

const NOWHERE: &[&str] = &[];

/// A cancel of batch 1, or of some of its jobs; with a `request` a client waits for it.
fn cancel(request: Option<u64>, grace: Duration) -> Event {
    cancel_jobs(request, grace, &[])
}

fn cancel_jobs(request: Option<u64>, grace: Duration, jobs: &[&str]) -> Event {
    let what = match jobs {
        [] => vec![Wanted {
            batch: batch(1),
            job: None,
        }],
        jobs => jobs
            .iter()
            .map(|job| Wanted {
                batch: batch(1),
                job: Some(WantedJob::Named((*job).to_owned())),
            })
            .collect(),
    };
    Event::Cancel {
        request,
        what,
        stop: Stop::after(grace),
        why: None,
    }
}

fn script() -> Script {
    script_with(Some(LEASE))
}

fn script_with(lease: Option<Duration>) -> Script {
    Script {
        scheduler: Scheduler::new(Epoch(7), StoreId(1), lease, WAIT),
        now: BootInstant(Duration::from_secs(1000)),
        seq: 0,
    }
}

fn batch(n: u128) -> BatchId {
    BatchId(uuid::Uuid::from_u128(n))
}

fn attempt(batch: u32, job: u32, attempt: u32) -> AttemptId {
    AttemptId {
        epoch: Epoch(7),
        key: JobKey {
            batch: BatchSerial(batch),
            job: JobNumber(job),
        },
        attempt,
    }
}

fn exited(code: i32) -> Outcome {
    Outcome {
        status: Some(WaitStatus::Exited(code)),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

fn halt(s: &mut Script, now: bool, why: HaltWhy, count: HaltCount) {
    halt_batch(s, 1, now, why, count);
}

fn halt_batch(s: &mut Script, number: u128, now: bool, why: HaltWhy, count: HaltCount) {
    let context = BatchContext::new(batch(number), "/".into(), 0o22);
    let halt = Some(Halt { now, why, count });
    let terms = BatchTerms {
        halt,
        ..BatchTerms::new(context, Duration::from_secs(60))
    };
    s.event(Event::Open {
        user: "okazaki".into(),
        terms: Box::new(terms),
    });
}

/// Submits jobs that prefer these hosts, best first, as batch 1.
fn choosy(s: &mut Script, jobs: &[&[&str]]) -> String {
    s.open(1);
    let (mut host_sets, mut submissions) = (Vec::new(), Vec::new());
    for (i, set) in jobs.iter().enumerate() {
        let prefer = (!set.is_empty()).then(|| {
            host_sets.push(set.iter().map(|h| h.to_string()).collect());
            host_sets.len() as u32 - 1
        });
        let (job, spec) = (JobNumber(i as u32 + 1), Bytes::from_static(b"x"));
        submissions.push(Submission {
            prefer,
            ..Submission::new(job, spec)
        });
    }
    s.scheduler.handle(
        Event::Submit {
            batch: batch(1),
            host_sets,
            jobs: submissions,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(1) })
}

/// Submits jobs that come after others as batch 1, and closes it.
fn ordered(s: &mut Script, after: &[&[u32]]) -> String {
    s.open(1);
    let job = |i: usize, after: &[u32]| {
        let after = after.iter().map(|n| JobNumber(*n)).collect();
        Submission {
            after,
            ..Submission::new(JobNumber(i as u32 + 1), Bytes::from_static(b"x"))
        }
    };
    let jobs = after
        .iter()
        .enumerate()
        .map(|(i, after)| job(i, after))
        .collect();
    s.scheduler.handle(
        Event::Submit {
            batch: batch(1),
            host_sets: vec![],
            jobs,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(1) })
}

/// Opens batch `n` of a user with so many jobs of one priority, and closes it.
fn of_user(s: &mut Script, n: u128, user: &str, jobs: u32, priority: i32) -> String {
    let terms = BatchTerms::new(
        BatchContext::new(batch(n), "/".into(), 0o22),
        Duration::from_secs(60),
    );
    s.event(Event::Open {
        user: user.into(),
        terms: Box::new(terms),
    });
    let jobs = (1..=jobs)
        .map(|n| Submission {
            priority,
            ..Submission::new(JobNumber(n), Bytes::new())
        })
        .collect();
    s.scheduler.handle(
        Event::Submit {
            batch: batch(n),
            host_sets: vec![],
            jobs,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(n) })
}
