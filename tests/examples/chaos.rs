//! Whether anything is lost, doubled or overlaps while everything fails at once: P1 and P2 on real
//! hosts, for as long as one likes.
//!
//! `chaos [MINUTES [SEED [WITHOUT…]]]` (root): six hosts of two slots run batch after batch, while
//! agents, engines, keepers and the coordinator are killed or stopped, links are cut, hosts lose
//! their power, the store's disk fills, the coordinator comes back with other leases, and
//! certificates live for a minute; WITHOUT names faults that are left out (`FillDisk`). Every
//! attempt holds a lock of its job for as long as any process of it lives, and says when it lives.
//! Fails, and leaves the logs, if a promise was broken or a program has ended by itself.

use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::sim::Chance;
use mezcal_tests::{alive_with, signal, wait_for};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

const HOSTS: usize = 6;
const SLOTS: u16 = 2;
/// Jobs of one batch: some minutes of work under faults.
const JOBS: usize = 300;
/// The coordinator's leases, a different one after each restart.
const LEASES: [&str; 4] = ["15s", "40s", "20s", "60s"];
/// The store's disk.
const DISK: &str = "64m";
/// A batch ends this long after the last fault at the latest: the longest lease, its margin, and
/// the work.
const HEALED: Duration = Duration::from_secs(600);

/// What can be done to the cluster, how often among the others, and what is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillAgent,
    StopAgent,
    EndAgent,
    KillEngine,
    StopEngine,
    KillKeeper,
    PowerCut,
    CutLink,
    KillCoordinator,
    StopCoordinator,
    FillDisk,
}

const FAULTS: [(Fault, u64); 11] = [
    (Fault::KillAgent, 4),
    (Fault::StopAgent, 3),
    (Fault::EndAgent, 1),
    (Fault::KillEngine, 3),
    (Fault::StopEngine, 2),
    (Fault::KillKeeper, 1),
    (Fault::PowerCut, 1),
    (Fault::CutLink, 4),
    (Fault::KillCoordinator, 3),
    (Fault::StopCoordinator, 2),
    (Fault::FillDisk, 2),
];

/// What heals by itself, and when.
enum Mend {
    Agent(usize),
    Continue(i32),
    Link(usize),
    Coordinator,
    Disk,
}

struct Chaos {
    cluster: Cluster,
    chance: Chance,
    mends: Vec<(Instant, Mend)>,
    counts: BTreeMap<Fault, u32>,
    lease: usize,
    boots: u8,
    /// Faults that are left out, by name.
    without: Vec<String>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let minutes: u64 = args
        .next()
        .map_or(20, |text| text.parse().expect("minutes"));
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let seed: u64 = args
        .next()
        .map_or(clock.as_secs(), |text| text.parse().expect("a seed"));
    let without: Vec<String> = args.collect();
    println!("seed {seed}, {minutes} minutes, without {without:?}");
    // SAFETY: no other thread is there yet.
    unsafe { std::env::set_var("MEZCAL_LEAF_SECONDS", "60") };
    let mut cluster = Cluster::with(HOSTS, SLOTS, "auto", LEASES[0]).client_lease("10m");
    assert!(cluster.lab.is_real(), "hosts have to be apart");
    cluster.set_store_size(DISK);
    (1..=HOSTS).for_each(|n| cluster.set_boot(n, 1));
    let cluster = cluster.start();
    let mut chaos = Chaos {
        cluster,
        chance: Chance::new(seed),
        mends: Vec::new(),
        counts: BTreeMap::new(),
        lease: 0,
        boots: 1,
        without,
    };
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut broken, mut batches, mut attempts, mut lost) = (Vec::new(), 0, 0, 0);
    while Instant::now() < end {
        batches += 1;
        // A client that finds no coordinator when it starts says so and ends: nothing is accepted.
        chaos.mend(Instant::now(), true);
        let pulses = Pulses::start(&mut chaos, batches);
        let (more, gone) = chaos.run(pulses, end, &mut broken);
        (attempts, lost) = (attempts + more, lost + gone);
        println!("batch {batches}: {more} attempts of {JOBS} jobs, {gone} jobs given up as lost");
    }
    for (fault, count) in &chaos.counts {
        println!("{count:4} {fault:?}");
    }
    println!(
        "{batches} batches, {} jobs, {attempts} attempts, {lost} jobs given up as lost",
        batches * JOBS
    );
    let logs = std::fs::read_dir(chaos.cluster.path(""))
        .expect("readable")
        .flatten()
        .map(|entry| entry.path());
    for log in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        broken.extend(
            text.lines()
                .filter(|line| line.contains("panicked"))
                .map(|line| format!("{}: {line}", log.display())),
        );
    }
    for line in &broken {
        println!("BROKEN {line}");
    }
    assert!(broken.is_empty(), "seed {seed}: promises are broken");
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("logs in {}", self.cluster.keep().display());
        }
    }
}

impl Chaos {
    /// Runs one batch to its end, with faults until `end`. Gives back its attempts, and its jobs
    /// that were given up.
    fn run(
        &mut self,
        mut pulses: Pulses,
        end: Instant,
        broken: &mut Vec<String>,
    ) -> (usize, usize) {
        let mut next = Instant::now();
        let mut healed = None;
        loop {
            if pulses.run.try_wait().expect("our child").is_some() {
                break;
            }
            let now = Instant::now();
            for (host, status) in self.cluster.ended() {
                let (name, mend) = match host {
                    0 => ("coordinator".to_owned(), Mend::Coordinator),
                    _ => (format!("agent{host:02}"), Mend::Agent(host)),
                };
                let log = self.cluster.log_text(&name);
                broken.push(format!(
                    "{name} has ended by itself ({status}): {}",
                    log.lines().last().unwrap_or_default()
                ));
                self.mends.push((now, mend));
            }
            self.mend(now, false);
            if now < end && now >= next {
                self.fail();
                next = now + Duration::from_millis(500 + self.chance.below(3500));
            }
            if now >= end && healed.is_none() {
                self.mend(now, true);
                healed = Some(now);
            }
            if healed.is_some_and(|at| at + HEALED < now) {
                broken.push(format!(
                    "the batch in {} does not end",
                    pulses.dir.display()
                ));
                let _ = pulses.run.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = pulses.run.wait();
        pulses.check(broken)
    }

    fn fail(&mut self) {
        let all: u64 = FAULTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.chance.below(all);
        let Some((fault, _)) = FAULTS.into_iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        }) else {
            return;
        };
        if self.without.contains(&format!("{fault:?}")) {
            return;
        }
        let host = 1 + self.chance.below(HOSTS as u64) as usize;
        let seconds = |chance: &mut Chance, most: u64| {
            Instant::now() + Duration::from_millis(200 + chance.below(1000 * most))
        };
        let agent_is_up = !self
            .mends
            .iter()
            .any(|(_, mend)| matches!(mend, Mend::Agent(n) if *n == host));
        let coordinator_is_up = !self
            .mends
            .iter()
            .any(|(_, mend)| matches!(mend, Mend::Coordinator));
        match fault {
            Fault::KillAgent | Fault::EndAgent if agent_is_up => {
                // One that is stopped does not hear that it should end.
                signal(self.cluster.agent_pid(host), libc::SIGCONT);
                self.cluster.end_agent(
                    host,
                    if fault == Fault::KillAgent {
                        libc::SIGKILL
                    } else {
                        libc::SIGTERM
                    },
                );
                self.mends
                    .push((seconds(&mut self.chance, 20), Mend::Agent(host)));
            }
            Fault::StopAgent if agent_is_up => {
                let pid = self.cluster.agent_pid(host);
                signal(pid, libc::SIGSTOP);
                self.mends
                    .push((seconds(&mut self.chance, 60), Mend::Continue(pid)));
            }
            Fault::KillEngine | Fault::StopEngine => {
                let here = self.cluster.lab.processes(host);
                let engines: Vec<i32> = alive_with("mezcal-engine")
                    .into_iter()
                    .filter(|pid| here.contains(pid))
                    .collect();
                let Some(pid) =
                    engines.get(self.chance.below(engines.len().max(1) as u64) as usize)
                else {
                    return;
                };
                signal(
                    *pid,
                    if fault == Fault::KillEngine {
                        libc::SIGKILL
                    } else {
                        libc::SIGSTOP
                    },
                );
                // A keeper continues its engines by itself.
            }
            Fault::KillKeeper => {
                let here = self.cluster.lab.processes(host);
                let Some(pid) = alive_with("mezcal-keeper")
                    .into_iter()
                    .find(|pid| here.contains(pid))
                else {
                    return;
                };
                signal(pid, libc::SIGKILL);
            }
            Fault::PowerCut if agent_is_up => {
                self.cluster.crash_host(host);
                self.boots += 1;
                self.cluster.set_boot(host, self.boots);
                self.mends
                    .push((seconds(&mut self.chance, 20), Mend::Agent(host)));
            }
            Fault::CutLink => {
                self.cluster.lab.set_link(host, false);
                self.mends
                    .push((seconds(&mut self.chance, 70), Mend::Link(host)));
            }
            Fault::KillCoordinator if coordinator_is_up => {
                self.cluster.kill_coordinator();
                self.lease = (self.lease + 1) % LEASES.len();
                self.cluster.set_lease(LEASES[self.lease]);
                self.mends
                    .push((seconds(&mut self.chance, 15), Mend::Coordinator));
            }
            Fault::StopCoordinator if coordinator_is_up => {
                let pid = self.cluster.coordinator_pid();
                signal(pid, libc::SIGSTOP);
                self.mends
                    .push((seconds(&mut self.chance, 15), Mend::Continue(pid)));
            }
            Fault::FillDisk => {
                self.cluster.disk().fill();
                self.mends.push((seconds(&mut self.chance, 15), Mend::Disk));
            }
            Fault::KillAgent
            | Fault::EndAgent
            | Fault::StopAgent
            | Fault::PowerCut
            | Fault::KillCoordinator
            | Fault::StopCoordinator => return,
        }
        *self.counts.entry(fault).or_default() += 1;
    }

    /// Mends what is due, or everything.
    fn mend(&mut self, now: Instant, all: bool) {
        let (due, later) = std::mem::take(&mut self.mends)
            .into_iter()
            .partition(|(at, _)| all || *at <= now);
        self.mends = later;
        for (_, mend) in due {
            match mend {
                Mend::Agent(host) => self.cluster.start_agent(host),
                Mend::Continue(pid) => signal(pid, libc::SIGCONT),
                Mend::Link(host) => self.cluster.lab.set_link(host, true),
                Mend::Disk => self.cluster.disk().free(),
                Mend::Coordinator => self.cluster.start_coordinator(),
            }
        }
        if all {
            // A process that was stopped and has ended meanwhile has left its number to nobody:
            // nothing new has been started since.
            wait_for("all agents are ready again", 4 * PATIENCE, || {
                (self.cluster.connected().len() == HOSTS).then_some(())
            });
        }
    }
}

/// One batch, whose jobs say that they live.
struct Pulses {
    dir: PathBuf,
    run: Child,
}

impl Pulses {
    fn start(chaos: &mut Chaos, number: usize) -> Self {
        let dir = chaos.cluster.path(&format!("batch{number}"));
        std::fs::create_dir(&dir).expect("made");
        let mut jobs = String::new();
        for number in 1..=JOBS {
            let pulses = 1 + chaos.chance.below(25);
            let cmd = format!(
                "exec 9> lock.$MEZCAL_JOB_ID; flock -n 9 || echo $MEZCAL_JOB_ID $MEZCAL_ATTEMPT >> overlaps; \
                 for i in $(seq {pulses}); do echo $MEZCAL_ATTEMPT >> alive.$MEZCAL_JOB_ID; sleep 0.2; done; \
                 echo $MEZCAL_ATTEMPT >> ended.$MEZCAL_JOB_ID"
            );
            jobs += &format!(
                "{}\n",
                serde_json::json!({"id": number.to_string(), "cmd": cmd})
            );
        }
        std::fs::write(dir.join("jobs.json"), jobs).expect("written");
        let mut command = chaos.cluster.command(&[
            "run",
            "-p",
            "mezcal",
            "jobs.json",
            "-o",
            "results.json",
            "--reconnect",
            "10m",
            "-q",
        ]);
        let log = chaos.cluster.log("run");
        let run = command
            .current_dir(&dir)
            .stderr(log)
            .spawn()
            .expect("the run starts");
        let me = Self { dir, run };
        mezcal_tests::wait_for("a job of the batch runs", HEALED, || {
            let mut names = std::fs::read_dir(&me.dir).expect("readable").flatten();
            names
                .any(|entry| entry.file_name().to_string_lossy().starts_with("alive."))
                .then_some(())
        });
        me
    }

    fn lines(&self, name: &str) -> Vec<String> {
        std::fs::read_to_string(self.dir.join(name))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// No two attempts of a job were alive at once, and each job has one result, of an attempt that
    /// has ended by itself. Gives back how many attempts began, and how many jobs were given up
    /// after losses.
    fn check(&self, broken: &mut Vec<String>) -> (usize, usize) {
        let at = self.dir.display();
        broken.extend(
            self.lines("overlaps")
                .into_iter()
                .map(|line| format!("{at}: two attempts at once: {line}")),
        );
        let mut results: BTreeMap<u64, serde_json::Value> = BTreeMap::new();
        let names = self.lines("results.json");
        for line in &names {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
                broken.push(format!("{at}: not a line of JSON: {line}"));
                continue;
            };
            let number = line["id"]
                .as_str()
                .and_then(|id| id.parse().ok())
                .unwrap_or(0);
            if results.insert(number, line["result"].clone()).is_some() {
                broken.push(format!("{at}: job {number} has two results"));
            }
        }
        if names.len() != JOBS {
            broken.push(format!("{at}: {} results of {JOBS} jobs", names.len()));
        }
        let (mut attempts, mut lost) = (0, 0);
        for (job, result) in &results {
            let mut alive = self.lines(&format!("alive.{job}"));
            alive.dedup();
            attempts += alive.len();
            if result["outcome"] == "lost" {
                lost += 1;
                continue;
            }
            let ended = self.lines(&format!("ended.{job}"));
            if result["code"] != 0 || !ended.contains(&result["attempt"].to_string()) {
                broken.push(format!("{at}: job {job} did not end by itself: {result}"));
            }
        }
        (attempts, lost)
    }
}
