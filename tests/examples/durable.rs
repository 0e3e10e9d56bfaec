//! The service under load: what it takes to keep a million jobs, to run them on many agents, to
//! read their results, and to forget them.
//!
//! `durable [JOBS] [AGENTS] [SLOTS]` runs `coordinator serve` as a process of its own and connects
//! agents of this process that answer at once, over real QUIC connections, one for each. It prints
//! times, rates, resident sets and the size of the store.

use mezcal_certs::Authority;
use mezcal_common::model::identity::Role;
use mezcal_tests::null;
use mezcal_tests::programs::program;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Between two questions for the status: what asks takes CPU from what is measured.
const STATUS_EVERY: Duration = Duration::from_millis(200);

/// How long it is watched while there is nothing to do.
const IDLE: Duration = Duration::from_secs(20);

struct Bench {
    dir: PathBuf,
    address: String,
    coordinator: Child,
}

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .map(|a| a.parse::<usize>().expect("numbers: JOBS AGENTS SLOTS"));
    let (jobs, agents, slots) = (
        args.next().unwrap_or(1_000_000),
        args.next().unwrap_or(1000),
        args.next().unwrap_or(4),
    );
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::start(dir.path(), agents);
    let idle = bench.resident();
    let mut file =
        std::io::BufWriter::new(std::fs::File::create(dir.path().join("jobs.json")).expect("made"));
    (0..jobs).for_each(|_| file.write_all(b"{\"cmd\": \"true\"}\n").expect("written"));
    file.flush().expect("written");

    let begin = Instant::now();
    let out = bench.run(&["run", "--detach", "jobs.json"]);
    let batch = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let queued = bench.resident();
    println!(
        "{jobs} jobs accepted for good in {:.2} s; resident {:.1} MiB, {:.0} bytes per job; store {:.1} MiB",
        begin.elapsed().as_secs_f64(),
        mib(queued),
        queued.saturating_sub(idle) as f64 / jobs as f64,
        mib(bench.store())
    );
    let asked = Instant::now();
    assert!(bench.status().is_some(), "it answers");
    println!(
        "status answers in {:.0} ms",
        asked.elapsed().as_secs_f64() * 1000.0
    );

    let begin = Instant::now();
    let (identities, address) = (dir.path().join("agents"), bench.address.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let each = (0..agents).map(|n| {
                let (name, address, identities) =
                    (format!("null{n}"), address.clone(), identities.clone());
                tokio::task::spawn_local(async move {
                    null::agent(&identities.join(&name), &name, address, slots as u16).await
                })
            });
            for task in each.collect::<Vec<_>>() {
                let _ = task.await;
            }
        });
    });
    let mut connected = None;
    let (mut answers, mut unanswered) = (Vec::new(), 0);
    loop {
        let asked = Instant::now();
        let Some(status) = bench.status() else {
            unanswered += 1;
            continue;
        };
        answers.push(asked.elapsed().as_secs_f64() * 1000.0);
        if connected.is_none() && status["hosts_connected"].as_u64() >= Some(agents as u64) {
            connected = Some(begin.elapsed());
        }
        if status["batches_running"] == 0 {
            break;
        }
        std::thread::sleep(STATUS_EVERY);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let when = connected.map_or("not before the last job ended".into(), |t| {
        format!("within {:.1} s", t.as_secs_f64())
    });
    println!("{agents} agents connected {when}");
    println!(
        "{jobs} jobs placed, reported and kept in {seconds:.1} s: {:.0} jobs/s; {:.1} s of CPU",
        jobs as f64 / seconds,
        bench.cpu()
    );
    answers.sort_by(f64::total_cmp);
    println!(
        "status answered {} times meanwhile, and {unanswered} times not at all: median {:.0} ms, slowest {:.0} ms",
        answers.len(),
        answers[answers.len() / 2],
        answers[answers.len() - 1]
    );
    let begin = Instant::now();
    let out = bench.run(&["results", &batch, "-o", "results.jsonl"]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let lines = std::fs::read(dir.path().join("results.jsonl"))
        .expect("results")
        .iter()
        .filter(|b| **b == b'\n')
        .count();
    assert_eq!(lines, jobs, "one result for each job");
    println!(
        "results streamed at {:.0} per second",
        jobs as f64 / begin.elapsed().as_secs_f64()
    );
    println!(
        "resident {:.1} MiB, store {:.1} MiB",
        mib(bench.resident()),
        mib(bench.store())
    );
    let before = bench.cpu();
    std::thread::sleep(IDLE);
    println!(
        "idle with {agents} agents: {:.2} % of a core",
        (bench.cpu() - before) / IDLE.as_secs_f64() * 100.0
    );
    let begin = Instant::now();
    assert!(bench.run(&["forget", &batch]).status.success());
    assert!(bench.status().is_some(), "it answers");
    while bench.store() > 4 << 20 && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "forgotten in {:.1} s: resident {:.1} MiB, store {:.1} MiB",
        begin.elapsed().as_secs_f64(),
        mib(bench.resident()),
        mib(bench.store())
    );
}

impl Bench {
    fn start(dir: &Path, agents: usize) -> Self {
        let (authority, _) = Authority::create("durable").expect("created");
        let issue = |role, name: &str, at: &str| {
            authority
                .issue(role, name, 1)
                .expect("issued")
                .write(&dir.join(at))
                .expect("written")
        };
        issue(Role::Coordinator, "", "coordinator");
        issue(Role::User, "okazaki", "user");
        (0..agents)
            .for_each(|n| issue(Role::Agent, &format!("null{n}"), &format!("agents/null{n}")));
        let port = std::net::UdpSocket::bind("127.0.0.1:0")
            .and_then(|s| s.local_addr())
            .expect("a port")
            .port();
        let address = format!("127.0.0.1:{port}");
        let here = dir.display();
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write(
            "serve.toml",
            format!(
                "listen = \"{address}\"\nidentity = \"{here}/coordinator\"\nstate = \"{here}/state\"\n"
            ),
        );
        write(
            "mezcal/profiles/default.toml",
            format!("coordinator = \"{address}\"\nidentity = \"{here}/user\"\n"),
        );
        let log = std::fs::File::create(dir.join("log")).expect("made");
        let mut command = Command::new(program("coordinator"));
        command
            .args(["serve", "--config", "serve.toml"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stderr(log);
        let coordinator = command.spawn().expect("it starts");
        mezcal_tests::wait_for("it listens", Duration::from_secs(10), || {
            std::fs::read_to_string(dir.join("log"))
                .unwrap_or_default()
                .contains("listens")
                .then_some(())
        });
        Self {
            dir: dir.into(),
            address,
            coordinator,
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("coordinator"));
        command
            .args(args)
            .current_dir(&self.dir)
            .env("XDG_CONFIG_HOME", &self.dir)
            .stdin(Stdio::null());
        command.output().expect("it runs")
    }

    /// None: the coordinator was out of reach for as long as a client waits.
    fn status(&self) -> Option<serde_json::Value> {
        let out = self.run(&["status", "--json"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code() != Some(3))
            .then(|| serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}")))
    }

    fn resident(&mut self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.coordinator.id()))
            .expect("it lives");
        let line = text
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .expect("a line");
        line.split_ascii_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a number")
            * 1024
    }

    /// Seconds of CPU so far (proc_pid_stat(5): fields 14 and 15, in ticks of 10 ms).
    fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.coordinator.id()))
            .expect("it lives");
        let fields: Vec<&str> = text
            .rsplit(')')
            .next()
            .expect("fields")
            .split_ascii_whitespace()
            .collect();
        let ticks = |i: usize| fields[i].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / 100.0
    }

    fn store(&self) -> u64 {
        let size =
            |name| std::fs::metadata(self.dir.join("state").join(name)).map_or(0, |m| m.len());
        size("store.db") + size("store.db-wal")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
