//! Hosts that fail their jobs, and batches whose jobs fail wherever they run.

use super::*;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::outcome::Span;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A simulated cluster whose hosts run the jobs that they get, one at a time in each slot.
struct Cluster<'a> {
    script: Script,
    slots: u64,
    credit: Vec<u64>,
    /// The running attempts by the times of their ends, each with its host.
    running: BinaryHeap<Reverse<(Duration, u64, AttemptId)>>,
    /// How long a job runs on a host, and whether it succeeds.
    ends: &'a dyn Fn(u64, JobKey) -> (Duration, bool),
    /// Whether failures are reported to the coordinator.
    told: bool,
    failures: Vec<u64>,
    notices: Vec<String>,
    /// When the last job ended.
    last: Duration,
}

impl<'a> Cluster<'a> {
    fn new(hosts: u64, slots: u64, ends: &'a dyn Fn(u64, JobKey) -> (Duration, bool)) -> Self {
        let mut script = script();
        for host in 0..hosts {
            script.agent(host, &format!("h{host}.x"), slots);
        }
        let credit = vec![slots; hosts as usize];
        let failures = vec![0; hosts as usize];
        let running = BinaryHeap::new();
        Self {
            script,
            slots,
            credit,
            running,
            ends,
            told: true,
            failures,
            notices: Vec::new(),
            last: Duration::ZERO,
        }
    }

    fn submit(&mut self, n: u128, user: &str, jobs: u32) {
        let said = of_user(&mut self.script, n, user, jobs, 0);
        self.take(&said);
    }

    /// Starts the attempts that a trace places.
    fn take(&mut self, said: &str) {
        for line in said.lines() {
            if let Some(notice) = line.strip_prefix("notice: ") {
                self.notices.push(notice.to_owned());
            }
            let Some((session, run)) = line.split_once(" < run ") else {
                continue;
            };
            let host = session.parse().expect("a session");
            for word in run.split(' ') {
                let parts: Vec<u32> = word
                    .split(['/', '.'])
                    .map(|part| part.parse().expect("a number"))
                    .collect();
                let attempt = attempt(parts[0], parts[1], parts[2]);
                let (length, _) = (self.ends)(host, attempt.key);
                self.running
                    .push(Reverse((self.script.now.0 + length, host, attempt)));
            }
        }
        for host in 0..self.credit.len() as u64 {
            let running = self
                .running
                .iter()
                .filter(|Reverse((_, on, _))| *on == host)
                .count() as u64;
            assert!(running <= self.slots, "h{host} runs {running}");
        }
    }

    /// Advances to the next event. False: there is none.
    fn step(&mut self) -> bool {
        let Some(Reverse((at, host, attempt))) = self.running.peek().copied() else {
            return false;
        };
        if let Some(due) = self
            .script
            .scheduler
            .poll_timeout()
            .filter(|due| due.0 < at)
        {
            self.script.now = self.script.now.max(due);
            self.script.scheduler.handle_timeout(self.script.now);
            let said = self.script.trace();
            self.take(&said);
            return true;
        }
        self.running.pop();
        (self.script.now, self.last) = (BootInstant(at), at);
        let (elapsed, well) = (self.ends)(host, attempt.key);
        self.failures[host as usize] += u64::from(!well);
        let span = Some(Span {
            started: WallTime(0),
            completed: WallTime(1),
            elapsed,
        });
        let said = self.script.report(
            host,
            attempt,
            Outcome {
                span,
                ..exited(i32::from(!well && self.told))
            },
        );
        self.take(&said);
        self.credit[host as usize] += 1;
        let said = self.script.pull(host, self.credit[host as usize], 1);
        self.take(&said);
        true
    }

    fn run(mut self) -> Self {
        while self.step() {}
        assert!(
            self.script.scheduler.batches.values().next().is_none(),
            "all jobs have ended"
        );
        self
    }
}

/// Pseudorandom numbers.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn one_users_broken_batch_keeps_no_slot_from_anybody_else() {
    let broken = |_: u64, key: JobKey| match key.batch.0 {
        1 => (millis(20), key.job.0 <= 6),
        _ => (millis(30), true),
    };
    let mut cluster = Cluster::new(3, 2, &broken);
    cluster.submit(1, "hog", 46);
    cluster.submit(2, "sato", 100);
    let mut waits = 0;
    while cluster.step() {
        let waiting = cluster
            .script
            .scheduler
            .queues
            .of_batch(BatchSerial(2))
            .iter()
            .any(|_| true);
        let idle: usize = cluster
            .script
            .scheduler
            .hosts
            .values()
            .map(|host| host.credit.idle())
            .sum();
        assert!(!waiting || idle == 0, "{idle} slots are idle");
        waits += u32::from(waiting);
    }
    assert!(
        waits > 50,
        "sato's jobs waited for slots meanwhile: {waits}"
    );
    assert_eq!(cluster.notices, [""; 0], "the jobs are to blame");
    assert!(
        cluster
            .script
            .scheduler
            .host_status(cluster.script.now, |_| None)
            .iter()
            .all(|host| host.quarantined.is_none())
    );
}

#[test]
fn a_host_that_fails_everything_fails_ten_jobs_and_what_it_had_in_hand() {
    for seed in 1..60 {
        let mut chance = Chance(seed * 0x9e37_79b9);
        let (hosts, slots) = (2 + chance.below(6), 1 + chance.below(2));
        let (fails_after, good) = (millis(200 + chance.below(700)), 1 + chance.below(900));
        let bad = chance.below(hosts);
        let ends = |host: u64, key: JobKey| match host == bad {
            true => (fails_after, false),
            false => (millis(1 + (u64::from(key.job.0) * 7919) % good), true),
        };
        let mut cluster = Cluster::new(hosts, slots, &ends);
        // Few enough jobs to end within the first pause.
        cluster.submit(1, "okazaki", 60 + chance.below(40) as u32);
        let cluster = cluster.run();
        let failed: u64 = cluster.failures.iter().sum();
        assert!(
            failed <= 10 + slots,
            "seed {seed}: {failed} failed, with {slots} slots"
        );
    }
}

#[test]
fn whatever_fails_on_healthy_hosts_takes_no_longer_for_being_suspicious() {
    for seed in 20..60 {
        let mut chance = Chance(seed * 0x9e37_79b9);
        let (hosts, slots, jobs) = (
            2 + chance.below(5),
            1 + chance.below(2),
            200 + chance.below(600),
        );
        let percent = [2, 10, 30, 50, 70, 90, 98][chance.below(7) as usize];
        let (long, run) = (1 + chance.below(5000), 1 + chance.below(60));
        let mut fates: Vec<(Duration, bool)> = Vec::new();
        while fates.len() < jobs as usize {
            // Failures come one by one, or many in a row.
            let well = chance.below(100) >= percent;
            for _ in 0..1 + chance.below(run) {
                let length = if well {
                    1 + chance.below(long)
                } else {
                    1 + chance.below(999)
                };
                fates.push((millis(length), well));
            }
        }
        let ends = |_: u64, key: JobKey| fates[key.job.0 as usize - 1];
        let mut cluster = Cluster::new(hosts, slots, &ends);
        cluster.submit(1, "okazaki", fates.len() as u32);
        let with = cluster.run();
        let mut cluster = Cluster::new(hosts, slots, &ends);
        cluster.told = false;
        cluster.submit(1, "okazaki", fates.len() as u32);
        let without = cluster.run();
        let began = script().now.0;
        let (with, ratio) = (
            with.notices,
            (with.last - began).as_secs_f64() / (without.last - began).as_secs_f64(),
        );
        assert!(ratio <= 1.1, "seed {seed}: {ratio} times as long; {with:?}");
    }
}

#[test]
fn a_suspected_host_gets_one_job_of_that_batch_at_a_time_until_one_succeeds() {
    let mends = std::cell::Cell::new(false);
    let ends = |host: u64, _: JobKey| (millis(500), host != 0 || mends.get());
    let mut cluster = Cluster::new(2, 2, &ends);
    cluster.submit(1, "okazaki", 400);
    while cluster.notices.is_empty() {
        assert!(cluster.step());
    }
    let on = |cluster: &Cluster<'_>| {
        cluster
            .running
            .iter()
            .filter(|Reverse((_, host, _))| *host == 0)
            .count()
    };
    insta::assert_snapshot!(cluster.notices[0], @"h0.x is suspected: ten or more jobs of this batch in a row have failed there within a second each, while others succeed elsewhere; it gets one at a time until one succeeds");
    assert!(cluster.failures[0] >= 10);
    insta::assert_snapshot!(cluster.script.scheduler.why(batch(1), "399", cluster.script.now).expect("a job").join("\n"), @r"
    job 399 waits
    h0.x: avoided by this batch: ten or more jobs of this batch in a row have failed there within a second each, while others succeed elsewhere; it gets one at a time until one succeeds
    h1.x: all 2 slots are busy
    ");
    while cluster.notices.len() == 1 {
        assert!(on(&cluster) <= 2);
        assert!(cluster.step());
    }
    insta::assert_snapshot!(cluster.notices[1], @"h0.x gets no jobs for 60 s: one of this batch's jobs has failed there again; ten or more jobs of this batch in a row have failed there within a second each, while others succeed elsewhere; it gets one at a time until one succeeds");
    let failed = cluster.failures[0];
    let until = cluster.script.now + Duration::from_secs(60);
    while on(&cluster) == 0 {
        assert!(cluster.step());
    }
    assert_eq!(
        (cluster.script.now, cluster.failures[0], on(&cluster)),
        (until, failed, 1),
        "then one at a time"
    );
    mends.set(true);
    while on(&cluster) == 1 {
        assert!(cluster.step());
    }
    assert_eq!(on(&cluster), 2, "its success ends that");
}

#[test]
fn a_host_that_batches_of_two_users_suspect_gets_nothing_of_anybody() {
    let ends = |host: u64, key: JobKey| (millis(500), host != 0 || key.batch.0 > 3);
    let mut cluster = Cluster::new(3, 2, &ends);
    cluster.submit(1, "okazaki", 2000);
    cluster.submit(2, "okazaki", 200);
    let quarantined = |cluster: &Cluster<'_>| {
        let hosts = cluster
            .script
            .scheduler
            .host_status(cluster.script.now, |_| None);
        hosts
            .into_iter()
            .find(|host| host.quarantined.is_some())
            .map(|host| host.name)
    };
    while cluster.failures[0] < 20 {
        assert!(cluster.step());
        assert_eq!(
            quarantined(&cluster),
            None,
            "two batches of one user do not count for two"
        );
    }
    cluster.submit(3, "sato", 200);
    while quarantined(&cluster).is_none() {
        assert!(
            cluster.step(),
            "{:?} {:?}",
            cluster.notices,
            cluster.failures
        );
    }
    assert_eq!(quarantined(&cluster).as_deref(), Some("h0.x"));
    let until = cluster.script.now + Duration::from_secs(59);
    cluster.submit(4, "mori", 1000);
    let before = cluster.failures[0];
    while cluster.script.now < until {
        assert!(cluster.step());
        assert!(
            cluster
                .running
                .iter()
                .all(|Reverse((_, host, attempt))| *host != 0 || attempt.key.batch.0 < 4)
        );
    }
    assert!(cluster.failures[0] <= before + 2, "but what was there");
    cluster.run();
}
