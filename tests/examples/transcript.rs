//! Records what the programs say to each other: the transcript of a released version, which later
//! ones have to understand.
//!
//! `MEZCAL_LOG=warn,mezcal::wire=trace transcript > common/tests/transcripts/VERSION.txt`. A
//! cluster of two hosts does a little of everything; of each kind of message the first few are
//! kept, a line each: its type and its bytes.

use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::wait_for;
use std::collections::BTreeMap;
use std::process::Output;

/// Kept of each variant of each type.
const EACH: usize = 3;
/// Longer ones say no more.
const LONGEST: usize = 2000;

fn main() {
    let mut cluster = Cluster::new(2, 2).start();
    let mut said = String::new();
    let mut verb = |cluster: &Cluster, profile: &str, args: &[&str]| {
        let (verb, rest) = args.split_first().expect("a verb");
        let all: Vec<&str> = [*verb, "-p", profile]
            .into_iter()
            .chain(rest.iter().copied())
            .collect();
        let out: Output = cluster.run(&all);
        eprintln!("{verb} {}: {}", rest.join(" "), out.status);
        said.push_str(&String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let write = |cluster: &Cluster, name: &str, jobs: &str| {
        std::fs::write(cluster.path(name), jobs).expect("written")
    };

    write(
        &cluster,
        "all.json",
        r#"{"cmd": "echo a; echo b >&2", "id": "first", "env": {"A": "1"}, "prefer": "mezcal01.cl.ecei.tohoku.ac.jp", "priority": 2}
{"argv": ["false"], "retries": 1, "retry_on": [1, "timeout"], "cd": "/", "out": "/dev/null", "err": "/dev/null", "stdin": "/dev/null"}
{"cmd": "sleep 9", "timeout": 0.3, "leftover": "wait"}
{"cmd": "kill -9 $$", "after": ["first"]}
{"cmd": "true", "slots": 2}
{"cmd": "sleep 9 &", "leftover": "kill"}
{"cmd": "true", "host": "nowhere"}
{"cmd": "true", "cd": "/nowhere"}
"#,
    );
    verb(
        &cluster,
        "mezcal",
        &[
            "run",
            "all.json",
            "-o",
            "out.json",
            "--host-timeout",
            "1",
            "--name",
            "all",
        ],
    );
    verb(
        &cluster,
        "mezcal",
        &[
            "run",
            "all.json",
            "-o",
            "out.json",
            "--force",
            "--halt",
            "soon,fail=1",
            "--timeout",
            "1m",
        ],
    );
    verb(&cluster, "mezcal", &["exec", "--all", "--", "seq", "30000"]);
    write(
        &cluster,
        "long.json",
        &"{\"cmd\": \"echo begun; sleep 60\"}\n".repeat(6),
    );
    let batch = verb(&cluster, "mezcal", &["run", "--detach", "long.json"]);
    let job = format!("{batch}/1");
    wait_for("it has begun", PATIENCE, || {
        verb(&cluster, "mezcal", &["logs", &job])
            .contains("begun")
            .then_some(())
    });
    verb(&cluster, "mezcal", &["why", &format!("{batch}/6")]);
    verb(&cluster, "mezcal", &["why", "no-such/1"]);
    verb(&cluster, "mezcal", &["batches"]);
    verb(&cluster, "admin", &["batches", "--all"]);
    verb(
        &cluster,
        "admin",
        &[
            "drain",
            "mezcal01.cl.ecei.tohoku.ac.jp",
            "-m",
            "a new disk",
            "--deadline",
            "0",
        ],
    );
    verb(&cluster, "mezcal", &["hosts"]);
    verb(
        &cluster,
        "admin",
        &["undrain", "mezcal01.cl.ecei.tohoku.ac.jp"],
    );
    verb(
        &cluster,
        "admin",
        &["confirm-dead", "mezcal01.cl.ecei.tohoku.ac.jp"],
    );
    verb(&cluster, "mezcal", &["forget", &batch]);
    // The agent goes and comes back, and takes up what runs.
    cluster.end_agent(2, libc::SIGKILL);
    cluster.start_agent(2);
    cluster.wait_connected(2);
    verb(
        &cluster,
        "mezcal",
        &["cancel", "--batch", &batch, "--grace", "1s"],
    );
    verb(
        &cluster,
        "mezcal",
        &["attach", &batch, "-o", "attached.json"],
    );
    verb(
        &cluster,
        "mezcal",
        &["results", &batch, "--failed", "-o", "failed.json"],
    );
    verb(&cluster, "mezcal", &["retry", &batch, "--failed"]);
    verb(&cluster, "mezcal", &["cancel", "--all"]);
    verb(&cluster, "mezcal", &["wait", &batch]);
    verb(&cluster, "mezcal", &["forget", &batch]);
    for n in [1, 2] {
        cluster.end_agent(n, libc::SIGTERM);
    }
    cluster.stop_coordinator();
    for name in ["coordinator", "agent01", "agent02"] {
        said.push_str(&cluster.log_text(name));
    }
    cluster.finish();

    let mut kept: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for line in said.lines() {
        let Some((_, sent)) = line.split_once("sent mezcal_common::wire::") else {
            continue;
        };
        let (kind, bytes) = sent.split_once(' ').expect("a type and its bytes");
        let frames = kept
            .entry((kind, bytes.get(..2).unwrap_or("")))
            .or_default();
        if frames.len() < EACH && bytes.len() <= LONGEST && !frames.contains(&bytes) {
            frames.push(bytes);
        }
    }
    for ((kind, _), frames) in kept {
        frames.iter().for_each(|bytes| println!("{kind} {bytes}"));
    }
}
