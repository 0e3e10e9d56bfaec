//! The fault lab: P1 and P2 on real hosts, while parts are cut off, lost, stopped or killed.

use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::relay::{Relay, Road, Way};
use mezcal_tests::{alive_with, signal, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// Jobs that give a sign of life five times a second.
struct Pulses {
    dir: PathBuf,
    jobs: u32,
}

/// First and last sign of life of an attempt, in nanoseconds, by job and attempt.
type Lives = BTreeMap<(u32, u32), (u64, u64)>;

impl Pulses {
    fn start(cluster: &Cluster, jobs: u32, pulses: u32, args: &[&str]) -> (Self, Child) {
        let note = "echo $MEZCAL_JOB_ID $MEZCAL_ATTEMPT $(date +%s%N) >> alive.$MEZCAL_JOB_ID";
        let cmd = format!("for i in $(seq {pulses}); do {note}; sleep 0.2; done");
        let job = format!("{}\n", serde_json::json!({"cmd": cmd}));
        let args: Vec<&str> = ["--keep-order"].iter().chain(args).copied().collect();
        let run = cluster.start_run(&job.repeat(jobs as usize), &args);
        (
            Self {
                dir: cluster.path(""),
                jobs,
            },
            run,
        )
    }

    fn lives(&self) -> Lives {
        let mut lives = Lives::new();
        for job in 1..=self.jobs {
            let text =
                std::fs::read_to_string(self.dir.join(format!("alive.{job}"))).unwrap_or_default();
            for line in text.lines() {
                let numbers: Vec<u64> = line
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .collect();
                // The last line may be incomplete when its writer is killed.
                let [job, attempt, at] = numbers[..] else {
                    continue;
                };
                let life = lives
                    .entry((job as u32, attempt as u32))
                    .or_insert((at, at));
                *life = (life.0.min(at), life.1.max(at));
            }
        }
        lives
    }

    fn wait_until_busy(&self, slots: usize) {
        wait_for("all slots are busy", PATIENCE, || {
            (self
                .lives()
                .keys()
                .map(|(job, _)| job)
                .collect::<BTreeSet<_>>()
                .len()
                >= slots)
                .then_some(())
        });
    }

    /// Checks that no two attempts of a job overlapped, and that each job has one result, of an
    /// attempt that has lived. Returns the attempts.
    fn check(&self, cluster: &Cluster) -> BTreeMap<u32, u32> {
        let lives = self.lives();
        for ((job, attempt), (first, _)) in &lives {
            // An attempt may have been lost before its first sign of life.
            let before = lives
                .range(..(*job, *attempt))
                .next_back()
                .filter(|((other, _), _)| other == job);
            assert!(
                before.is_none_or(|(_, (_, last))| last < first),
                "attempt {attempt} of job {job} began before the one before it had ended"
            );
        }
        let lines = results(&cluster.path("results.json"));
        assert_eq!(lines.len(), self.jobs as usize);
        let attempt = |line: &serde_json::Value| {
            line["result"]["attempt"].as_u64().expect("an attempt") as u32
        };
        let accepted: BTreeMap<u32, u32> = (1..).zip(lines.iter().map(attempt)).collect();
        for (job, attempt) in &accepted {
            assert!(
                lives.contains_key(&(*job, *attempt)),
                "the accepted attempt {attempt} of job {job} has lived"
            );
        }
        accepted
    }
}

fn run_ends(cluster: &Cluster, mut run: Child) {
    let status = wait_for("the run ends", 4 * PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
}

fn hosts_are_apart(cluster: &Cluster) -> bool {
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("cut links: hosts share loopback");
    }
    cluster.lab.is_real()
}

/// Waits until this many seconds have passed since `begin`.
fn until(begin: Instant, seconds: u64, what: &str) {
    wait_for(what, 2 * PATIENCE, || {
        (begin.elapsed().as_secs() >= seconds).then_some(())
    });
}

const LEASE: &str = "15s";
/// The lease, the margin, and the longest delay of a heartbeat.
const FENCED: u64 = 15 + 12 + 5;

#[test]
fn links_that_are_cut_for_less_and_for_more_than_the_lease() {
    let mut cluster = Cluster::with(3, 2, "auto", LEASE).start();
    if !hosts_are_apart(&cluster) {
        return cluster.finish();
    }
    let (pulses, run) = Pulses::start(&cluster, 36, 20, &[]);
    pulses.wait_until_busy(6);
    cluster.lab.set_link(1, false);
    cluster.lab.set_link(2, false);
    // While two hosts are away, the coordinator dies: only its store tells the next one which jobs
    // may be running there.
    cluster.kill_coordinator();
    cluster.start_coordinator();
    let engine = alive_with("mezcal-engine")
        .into_iter()
        .find(|pid| cluster.lab.processes(3).contains(pid));
    signal(engine.expect("an engine of host 3"), libc::SIGKILL);
    let begin = Instant::now();
    until(begin, 8, "half of the lease");
    cluster.lab.set_link(1, true);
    until(begin, FENCED, "the lease and its margin");
    cluster.end_agent(1, libc::SIGKILL);
    cluster.start_agent(1);
    cluster.lab.set_link(2, true);
    run_ends(&cluster, run);
    let accepted = pulses.check(&cluster);
    assert!(
        accepted.values().any(|attempt| *attempt > 1),
        "something was lost and tried again"
    );
    cluster.finish();
}

#[test]
fn roads_that_carry_one_way_only_or_lose_and_delay() {
    let mut cluster = Cluster::with(4, 2, "auto", LEASE);
    let address = cluster.address();
    let relays: Vec<Relay> = (1..=3)
        .map(|_| Relay::start(&cluster.lab, &address))
        .collect();
    for (n, relay) in (1..).zip(&relays) {
        cluster.by_way_of(n, relay);
    }
    let bad = Way {
        loss: 5,
        delay: Duration::from_millis(20),
    };
    relays[2].set(Road {
        out: bad,
        back: bad,
    });
    cluster.set_boot(4, 1);
    let mut cluster = cluster.start();
    let (pulses, run) = Pulses::start(&cluster, 48, 20, &[]);
    pulses.wait_until_busy(8);
    // One host is heard and hears nothing; another one hears and is not heard; and a third loses
    // its power.
    relays[0].set(Road {
        back: Way::CUT,
        ..Road::default()
    });
    relays[1].set(Road {
        out: Way::CUT,
        ..Road::default()
    });
    let begin = Instant::now();
    if cluster.lab.is_real() {
        cluster.crash_host(4);
        cluster.set_boot(4, 2);
        cluster.start_agent(4);
        // Its old session has to be silent for the idle timeout first: until then the new one might
        // be of a copy of its certificate.
        wait_for(
            "it is back before its old lease and the margin are over",
            Duration::from_secs(25),
            || {
                let on_4 = |host: &serde_json::Value| {
                    host["name"]
                        .as_str()
                        .is_some_and(|name| name.starts_with("mezcal04"))
                };
                cluster
                    .connected()
                    .iter()
                    .any(|host| on_4(host) && host["ready"] == true)
                    .then_some(())
            },
        );
    }
    until(begin, FENCED, "the lease and its margin");
    for relay in &relays {
        relay.set(Road::default());
    }
    run_ends(&cluster, run);
    let accepted = pulses.check(&cluster);
    assert!(
        accepted.values().any(|attempt| *attempt > 1),
        "something was lost and tried again"
    );
    cluster.finish();
}

#[test]
fn an_agent_that_is_stopped_past_its_lease_and_one_whose_clock_is_wrong() {
    let mut cluster = Cluster::with(2, 2, "auto", LEASE);
    let faketime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let skewed = std::path::Path::new(faketime).exists();
    if skewed {
        cluster.set_env(2, "LD_PRELOAD", faketime);
        cluster.set_env(2, "FAKETIME", "+47s");
        cluster.set_env(2, "FAKETIME_DONT_FAKE_MONOTONIC", "1");
    } else {
        mezcal_tests::say_skipped(&format!(
            "a wrong clock: {faketime} (package faketime) is not installed"
        ));
    }
    let cluster = cluster.start();
    let (pulses, run) = Pulses::start(&cluster, 24, 20, &[]);
    pulses.wait_until_busy(4);
    let agent = cluster.agent_pid(1);
    signal(agent, libc::SIGSTOP);
    let begin = Instant::now();
    until(begin, FENCED, "the lease and its margin");
    signal(agent, libc::SIGCONT);
    run_ends(&cluster, run);
    pulses.check(&cluster);
    if skewed {
        let lines = results(&cluster.path("results.json"));
        let on_2 = lines.iter().map(|line| &line["result"]).filter(|r| {
            r["host"]
                .as_str()
                .is_some_and(|h| h.starts_with("mezcal02"))
        });
        let offsets: Vec<f64> = on_2.filter_map(|r| r["clock_offset"].as_f64()).collect();
        assert!(
            !offsets.is_empty() && offsets.iter().all(|offset| (offset + 47.0).abs() < 1.0),
            "{offsets:?}"
        );
    }
    cluster.finish();
}
