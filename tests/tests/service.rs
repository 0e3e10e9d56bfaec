//! The durable service: coordinators that are killed, clients that come and go, batches that stay.

use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::lab::host_name;
use mezcal_tests::relay::Relay;
use mezcal_tests::{alive_with, signal, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(jobs: &[Value]) -> String {
    jobs.iter().map(|job| format!("{job}\n")).collect()
}

/// Submits jobs detached. Returns the batch's id.
fn detach(cluster: &Cluster, jobs: &str, args: &[&str]) -> String {
    std::fs::write(cluster.path("detached.json"), jobs).expect("written");
    let all: Vec<&str> = ["run", "-p", "mezcal", "--detach", "detached.json"]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    let out = cluster.run(&all);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

fn run(cluster: &Cluster, args: &[&str]) -> Output {
    let (verb, rest) = args.split_first().expect("a verb");
    let all: Vec<&str> = [*verb, "-p", "mezcal"]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    cluster.run(&all)
}

fn batches(cluster: &Cluster) -> Vec<Value> {
    let out = run(cluster, &["batches", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    text(&out.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Number of starts of each job, by the marks that they leave.
fn starts(cluster: &Cluster, jobs: usize) -> Vec<usize> {
    let of = |n: usize| {
        std::fs::read_to_string(cluster.path(&format!("mark.{n}")))
            .unwrap_or_default()
            .lines()
            .count()
    };
    (1..=jobs).map(of).collect()
}

#[test]
fn a_killed_coordinator_goes_on_where_it_was() {
    let mut cluster = Cluster::running(3, 2);
    let job = json!({"cmd": "echo $MEZCAL_ATTEMPT >> mark.$MEZCAL_JOB_ID; sleep 1.5; echo $MEZCAL_JOB_ID"});
    let mut client = cluster.start_run(&lines(&vec![job; 24]), &[]);
    wait_for("some have ended", PATIENCE, || {
        (std::fs::read_to_string(cluster.path("results.json"))
            .unwrap_or_default()
            .lines()
            .count()
            >= 6)
            .then_some(())
    });
    for _ in 0..2 {
        cluster.kill_coordinator();
        cluster.start_coordinator();
        // Agents notice a restart at their next packet.
        cluster.wait_connected(3);
    }
    let status = wait_for("the run ends", PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    let lines = results(&cluster.path("results.json"));
    assert_eq!(lines.len(), 24);
    let outputs: BTreeSet<String> = lines
        .iter()
        .map(|l| {
            l["result"]["stdout_tail"]
                .as_str()
                .expect("a tail")
                .to_owned()
        })
        .collect();
    assert_eq!(outputs.len(), 24, "each job has its own result");
    assert_eq!(
        starts(&cluster, 24),
        vec![1; 24],
        "what ran went on, and nothing ran twice"
    );
    let log = cluster.log_text("run");
    assert!(
        log.contains("trying to reach it again") && log.contains("connected again"),
        "{log}"
    );
    cluster.finish();
}

#[test]
fn done_failed_cancelled_and_skipped_jobs_are_counted_apart_everywhere() {
    let mut cluster = Cluster::new(1, 2);
    cluster.set_http("127.0.0.1:7480");
    let mut cluster = cluster.start();
    let batch = detach(
        &cluster,
        &lines(&[
            json!({"cmd": "true"}),
            json!({"cmd": "exit 3", "id": "bad"}),
            json!({"cmd": "exit 4"}),
            json!({"cmd": "true", "after": "bad"}),
            json!({"cmd": "touch runs; sleep 600", "id": "long"}),
            json!({"cmd": "true", "after": "long"}),
            json!({"cmd": "true", "after": "long"}),
        ]),
        &[],
    );
    wait_for("the long one runs", PATIENCE, || {
        cluster.path("runs").exists().then_some(())
    });
    assert_eq!(
        run(&cluster, &["cancel", &format!("{batch}/long")])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(run(&cluster, &["wait", &batch]).status.code(), Some(1));
    // Once while the jobs end, and once read from the store.
    for restarted in [false, true] {
        if restarted {
            cluster.kill_coordinator();
            cluster.start_coordinator();
        }
        let listed = batches(&cluster);
        let counts = [
            "jobs",
            "ended",
            "succeeded",
            "failed",
            "cancelled",
            "skipped",
        ]
        .map(|key| listed[0][key].as_u64());
        assert_eq!(counts, [7, 7, 1, 2, 1, 3].map(Some), "{listed:?}");
        let listing = text(&run(&cluster, &["batches"]).stdout);
        let cells: Vec<&str> = listing
            .lines()
            .nth(1)
            .expect("a batch")
            .split_whitespace()
            .collect();
        assert_eq!(
            cells[2..9],
            ["failed", "7", "0", "1", "2", "1", "3"],
            "{listing}"
        );
        let status = text(&run(&cluster, &["status", &batch]).stdout);
        assert!(
            status.contains(
                "7 jobs: 1 succeeded, 2 failed, 1 cancelled, 3 skipped, 0 running, 0 waiting"
            ),
            "{status}"
        );
        let view = view(&cluster);
        for counts in [&view, &view["batches"][0]] {
            let counts =
                ["ended", "failed", "cancelled", "skipped"].map(|key| counts[key].as_u64());
            assert_eq!(counts, [7, 2, 1, 3].map(Some), "{view}");
        }
    }
    cluster.finish();
}

/// The first view of the dashboard.
fn view(cluster: &Cluster) -> Value {
    let ask = "exec 3<> /dev/tcp/127.0.0.1/7480; printf 'GET /events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' >&3
        while read -r line <&3; do case $line in data:*) printf %s \"${line#data:}\"; break; esac; done";
    let shown = text(
        &cluster
            .lab
            .command(0, Path::new("bash"))
            .args(["-c", ask])
            .output()
            .expect("bash runs")
            .stdout,
    );
    serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"))
}

#[test]
fn what_jobs_wrote_is_counted_over_all_restarts() {
    let mut cluster = Cluster::running(1, 3);
    let batch = detach(
        &cluster,
        &lines(&[
            json!({"cmd": "head -c 5000 /dev/zero"}),
            json!({"cmd": "echo to a file; echo here >&2", "out": "file"}),
            json!({"cmd": "touch runs; until test -e go; do sleep 0.05; done; head -c 6000 /dev/zero >&2; touch wrote"}),
        ]),
        &[],
    );
    wait_for("the last one runs", PATIENCE, || {
        cluster.path("runs").exists().then_some(())
    });
    // It ends while its engine has no agent to report to.
    cluster.end_agent(1, libc::SIGKILL);
    std::fs::write(cluster.path("go"), "").expect("written");
    wait_for("it has written", PATIENCE, || {
        cluster.path("wrote").exists().then_some(())
    });
    cluster.start_agent(1);
    assert_eq!(run(&cluster, &["wait", &batch]).status.code(), Some(0));
    cluster.kill_coordinator();
    cluster.start_coordinator();
    for args in [&["attach", &batch][..], &["results", &batch]] {
        let out = run(&cluster, args);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let mut counts = BTreeSet::new();
        for line in text(&out.stdout).lines() {
            let result = serde_json::from_str::<Value>(line).expect("JSON")["result"].take();
            counts.insert((
                result["stdout_bytes"].as_u64(),
                result["stderr_bytes"].as_u64(),
            ));
        }
        let expected = [
            (Some(5000), Some(0)),
            (None, Some(5)),
            (Some(0), Some(6000)),
        ];
        assert_eq!(counts, expected.into(), "{args:?}: {}", text(&out.stdout));
    }
    cluster.finish();
}

#[test]
fn a_run_that_was_killed_is_taken_up_again_beside_what_still_runs() {
    let cluster = Cluster::running(2, 2);
    let job = |what: &str| json!({"cmd": format!("echo $MEZCAL_ATTEMPT >> mark.$MEZCAL_JOB_ID; {what}"), "x_mine": [1.50, "é"]});
    // Some are the same, one fails, and the last ones run until the test ends them.
    let mut jobs = vec![
        job("true"),
        job("true"),
        job("true"),
        job("exit 3"),
        job("sleep 0.1"),
    ];
    jobs.extend(vec![job("until test -e go; do sleep 0.1; done"); 6]);
    let mut client = cluster.start_run(&lines(&jobs), &[]);
    let path = cluster.path("results.json");
    let written = || {
        std::fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_for("the first ones have results", PATIENCE, || {
        (written() >= 5).then_some(())
    });
    client.kill().expect("our child");
    client.wait().expect("our child");
    // A client that begins anew is told; so is one with another list or another coordinator.
    let resume = [
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "--resume",
    ];
    let said = |args: &[&str]| {
        let out = cluster.run(args);
        (out.status.code(), text(&out.stderr))
    };
    std::fs::write(cluster.path("other.json"), lines(&jobs[..10])).expect("written");
    let (code, why) = said(&[
        "run",
        "-p",
        "mezcal",
        "other.json",
        "-o",
        "results.json",
        "--resume",
    ]);
    assert!(
        code == Some(2)
            && why.contains("is not the list of batch")
            && why.contains("results.json.batch"),
        "{why}"
    );
    let (code, why) = said(&[
        "run",
        "--local",
        "jobs.json",
        "-o",
        "results.json",
        "--resume",
    ]);
    assert!(
        code == Some(2) && why.contains("may still run") && why.contains("resume with a profile"),
        "{why}"
    );
    // An incomplete line is written again.
    let torn = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, &torn[..torn.len() - 9]).expect("written");
    let mut again = cluster.command(&resume);
    let log = std::fs::File::create(cluster.path("again.log")).expect("made");
    let mut again = again.stderr(log).spawn().expect("it runs");
    wait_for("it is said", PATIENCE, || {
        cluster
            .log_text("again")
            .contains("goes on; 4 of its 11 results are in")
            .then_some(())
    });
    std::fs::write(cluster.path("go"), "").expect("written");
    let status = wait_for("the run ends", PATIENCE, || {
        again.try_wait().expect("our child")
    });
    assert_eq!(
        status.code(),
        Some(1),
        "one job has failed: {}",
        cluster.log_text("again")
    );
    assert_eq!(starts(&cluster, 11), vec![1; 11], "nothing ran twice");
    let mut known: Vec<String> = results(&path)
        .into_iter()
        .map(|mut line| {
            line.as_object_mut().expect("an object").remove("result");
            line.to_string()
        })
        .collect();
    let mut wanted: Vec<String> = jobs.iter().map(ToString::to_string).collect();
    known.sort();
    wanted.sort();
    assert_eq!(known, wanted, "each has one result, with its own object");
    assert!(
        !cluster.path("results.json.batch").exists(),
        "nothing of it runs any more"
    );
    // From here on all is as without the interruption: failed jobs run again.
    assert_eq!(said(&resume).0, Some(1));
    assert_eq!(starts(&cluster, 11), [1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(results(&path).len(), 11);
    cluster.finish();
}

/// `MEZCAL_CRASH_ROUNDS=N` sets the number of kills; the jobs then are N × 500.
#[test]
fn a_coordinator_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let rounds: u32 = std::env::var("MEZCAL_CRASH_ROUNDS")
        .ok()
        .map_or(20, |n| n.parse().expect("a number"));
    // The last ones wait for the test: until then there is work to interrupt.
    let (short, long) = (rounds as usize * 500, 4);
    let count = short + long;
    let mut cluster = Cluster::with(12, 4, "auto", "15s")
        .client_lease("10m")
        .start();
    let job = json!({"cmd": "sleep 0.1; echo $MEZCAL_JOB_ID $MEZCAL_ATTEMPT >> ran.$MEZCAL_HOST"});
    let gate = json!({"cmd": format!("{}; until test -e go; do sleep 0.1; done", job["cmd"].as_str().expect("text"))});
    let jobs = format!("{job}\n").repeat(short) + &format!("{gate}\n").repeat(long);
    let mut client = cluster.start_run(&jobs, &["--progress", "none"]);
    let path = cluster.path("results.json");
    let written =
        || std::fs::read(&path).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    wait_for("it has begun", PATIENCE, || (written() > 0).then_some(()));
    let mut instant = u64::from(std::process::id());
    eprintln!("instants by seed {instant}");
    let (mut killed, mut seen) = (0, 0);
    while killed < rounds {
        // Some work is done between two crashes; the moment is random.
        instant = instant
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_micros((instant >> 33) % 400_000);
        let begin = Instant::now();
        let before = seen;
        wait_for("work goes on after a crash", 2 * PATIENCE, || {
            seen = written();
            let ended = client.try_wait().expect("our child");
            assert!(
                ended.is_none(),
                "the run has ended: {ended:?}\n{}",
                cluster.log_text("run")
            );
            // When only the last ones are left, connected agents show progress: an agent that sees
            // no coordinator for longer than its lease has to kill its jobs.
            let goes_on = seen > before || (seen == short && cluster.connected().len() == 12);
            (begin.elapsed() >= wait && goes_on).then_some(())
        });
        cluster.kill_coordinator();
        cluster.start_coordinator();
        killed += 1;
    }
    eprintln!("killed {killed} times, the last time after {seen} of {short} results");
    std::fs::write(cluster.path("go"), "").expect("written");
    let status = loop {
        // The remaining jobs take as long as they take.
        let ended = wait_for("work goes on to its end", 4 * PATIENCE, || {
            match client.try_wait().expect("our child") {
                Some(status) => Some(Some(status)),
                None => (written() > seen).then_some(None),
            }
        });
        seen = written();
        if let Some(status) = ended {
            break status;
        }
    };
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    let lines = results(&cluster.path("results.json"));
    assert_eq!(lines.len(), count);
    let mut ran = vec![0; count + 1];
    for n in 1..=12 {
        let text = std::fs::read_to_string(
            cluster.path(&format!("ran.{}", mezcal_tests::lab::host_name(n))),
        )
        .unwrap_or_default();
        for line in text.lines() {
            ran[line
                .split(' ')
                .next()
                .and_then(|word| word.parse::<usize>().ok())
                .expect("a number")] += 1;
        }
    }
    let wrong: Vec<usize> = (1..=count).filter(|n| ran[*n] != 1).collect();
    assert!(wrong.is_empty(), "these jobs did not run once: {wrong:?}");
    let listed = batches(&cluster);
    assert_eq!(
        (listed[0]["succeeded"].as_u64(), listed[0]["state"].as_str()),
        (Some(count as u64), Some("succeeded")),
        "{}",
        listed[0]
    );
    cluster.finish();
}

#[test]
fn logs_of_a_job_that_the_store_cannot_read_say_why() {
    let cluster = Cluster::running(1, 1);
    let run_on = "until test -e go; do sleep 0.02; done";
    let job = json!({"cmd": format!("echo here; touch on; {run_on}"), "out": "file.out"});
    let batch = detach(&cluster, &lines(&[job]), &[]);
    wait_for("it runs", PATIENCE, || {
        cluster.path("on").exists().then_some(())
    });
    let id = format!("{batch}/1");
    let logs = || run(&cluster, &["logs", &id]);
    assert_eq!(text(&logs().stdout), "here\n");
    // Not the text of a job any more, as after a fault of the disk.
    let lost = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('UPDATE job SET spec = ?', ('lost',)); db.commit()";
    let python = std::process::Command::new("/usr/bin/python3")
        .args(["-c", lost])
        .arg(cluster.path("state/store.db"))
        .output()
        .expect("it runs");
    assert!(python.status.success(), "{}", text(&python.stderr));
    let out = logs();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("Text"), "{}", text(&out.stderr));
    std::fs::write(cluster.path("go"), "").expect("written");
    assert_eq!(run(&cluster, &["wait", &batch]).status.code(), Some(0));
    cluster.finish();
}

#[test]
fn a_detached_batch_needs_nobody_and_is_there_for_whoever_asks() {
    let mut cluster = Cluster::running(2, 2);
    let jobs: Vec<Value> = (1..=8)
        .map(|n| json!({"id": format!("j{n}"), "cmd": format!("sleep 0.2; echo {n}; exit $(({n} % 4 == 0))"), "cd": "sub", "prefer": "mezcal01"}))
        .collect();
    std::fs::create_dir(cluster.path("sub")).expect("made");
    let batch = detach(&cluster, &lines(&jobs), &["--name", "the eight"]);
    let waited = run(&cluster, &["wait", &batch]);
    assert_eq!(
        waited.status.code(),
        Some(1),
        "some have failed: {}",
        text(&waited.stderr)
    );
    // It is still there after a restart.
    cluster.kill_coordinator();
    cluster.start_coordinator();
    cluster.wait_connected(2);
    let listed = batches(&cluster);
    let found = listed
        .iter()
        .find(|b| b["id"] == batch.as_str())
        .expect("listed");
    let counts = ["jobs", "ended", "succeeded", "failed"].map(|key| found[key].as_u64());
    assert_eq!(
        (counts, found["state"].as_str(), found["name"].as_str()),
        ([8, 8, 6, 2].map(Some), Some("failed"), Some("the eight"))
    );
    let out = run(&cluster, &["attach", &batch[..8]]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(text(&out.stdout).lines().count(), 8);
    // No file is replaced by mistake, not even by the results of a batch that does not exist.
    std::fs::write(cluster.path("kept"), "kept").expect("written");
    for (batch, word) in [
        (batch.as_str(), "--force overwrites it"),
        ("nobatch", "no batch of yours begins with"),
    ] {
        let out = run(&cluster, &["results", batch, "-o", "kept"]);
        assert!(
            out.status.code() == Some(2) && text(&out.stderr).contains(word),
            "{}",
            text(&out.stderr)
        );
    }
    assert_eq!(
        std::fs::read_to_string(cluster.path("kept")).expect("there"),
        "kept"
    );
    // The failed jobs are a job list again, from any client.
    let out = run(&cluster, &["results", &batch, "--failed"]);
    assert_eq!(out.status.code(), Some(0));
    let failed: Vec<Value> = text(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let ids: BTreeSet<&str> = failed
        .iter()
        .map(|job| job["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, ["j4", "j8"].into());
    assert_eq!(
        failed[0]["cd"].as_str().map(Path::new),
        Some(&*cluster.path("sub"))
    );
    std::fs::write(cluster.path("again.json"), &out.stdout).expect("written");
    let again = run(
        &cluster,
        &["run", "again.json", "-o", "again.results", "-q"],
    );
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    assert_eq!(results(&cluster.path("again.results")).len(), 2);
    // The coordinator can also run them again.
    let retried = run(&cluster, &["retry", &batch, "--failed"]);
    assert_eq!(retried.status.code(), Some(0), "{}", text(&retried.stderr));
    let second = text(&retried.stdout).trim().to_owned();
    assert_eq!(run(&cluster, &["wait", &second]).status.code(), Some(1));
    let status = text(&run(&cluster, &["status", &second]).stdout);
    assert!(status.contains("2 jobs: 0 succeeded, 2 failed"), "{status}");
    assert_eq!(run(&cluster, &["forget", &second]).status.code(), Some(0));
    assert_eq!(
        run(&cluster, &["status", &second]).status.code(),
        Some(2),
        "forgotten"
    );
    // Shells complete the batches and jobs that exist.
    let complete = |words: &[&str]| {
        let all: Vec<&str> = ["--", "coordinator"].iter().chain(words).copied().collect();
        let mut command = cluster.command(&all);
        command
            .env("MEZCAL_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
            .env("_CLAP_IFS", "\n");
        text(&command.output().expect("it runs").stdout)
    };
    assert_eq!(
        complete(&["attach", "-p", "mezcal", &batch[..4]]).trim(),
        batch
    );
    assert_eq!(
        complete(&["drain", "-p", "mezcal", "mez"]).trim(),
        "mezcal01\nmezcal02"
    );
    // Other users do not see it, and no user may delete a batch that runs.
    assert!(
        text(&cluster.run(&["batches", "-p", "sato"]).stdout)
            .lines()
            .count()
            == 1,
        "a head and nothing else"
    );
    assert_eq!(
        cluster.run(&["attach", "-p", "sato", &batch]).status.code(),
        Some(2)
    );
    let running = detach(&cluster, "{\"cmd\": \"sleep 60\"}\n", &[]);
    let refused = run(&cluster, &["forget", &running]);
    assert!(
        refused.status.code() == Some(2) && text(&refused.stderr).contains("has not ended"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(
        run(&cluster, &["cancel", "--batch", &running])
            .status
            .code(),
        Some(0)
    );
    cluster.finish();
}

#[test]
fn who_follows_a_batch_follows_it_across_restarts() {
    let mut cluster = Cluster::running(2, 2);
    let wait_for_file = "until test -e go; do sleep 0.05; done";
    let jobs: Vec<Value> = (1..=6)
        .map(|n| json!({"id": n.to_string(), "cmd": if n > 3 { wait_for_file } else { "true" }, "cd": cluster.path("")}))
        .collect();
    let batch = detach(&cluster, &lines(&jobs), &[]);
    let start = |cluster: &Cluster, args: &[&str], log: &str| {
        let mut command = cluster.command(args);
        command
            .env("MEZCAL_LOG", "mezcal::wire=trace")
            .stdout(Stdio::null())
            .stderr(cluster.log(log))
            .spawn()
            .expect("it starts")
    };
    let mut attached = start(
        &cluster,
        &["attach", "-p", "mezcal", &batch, "-o", "attached.json"],
        "attach",
    );
    let mut waiting = start(&cluster, &["wait", "-p", "mezcal", &batch], "wait");
    let received = |cluster: &Cluster| {
        std::fs::read_to_string(cluster.path("attached.json"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_for("the first results", PATIENCE, || {
        (received(&cluster) == 3).then_some(())
    });
    // A hello, and after the welcome the request.
    let has_asked = |cluster: &Cluster, log: &str| {
        (cluster.log_text(log).matches("sent").count() >= 2).then_some(())
    };
    wait_for("somebody waits", PATIENCE, || has_asked(&cluster, "wait"));
    for times in 1..=2 {
        cluster.kill_coordinator();
        cluster.start_coordinator();
        cluster.wait_connected(2);
        for log in ["attach", "wait"] {
            let again = || cluster.log_text(log).matches("connected again").count();
            wait_for("they come back", PATIENCE, || {
                (again() == times).then_some(())
            });
        }
    }
    assert_eq!(
        (waiting.try_wait().expect("our child"), received(&cluster)),
        (None, 3)
    );
    std::fs::write(cluster.path("go"), "").expect("written");
    for child in [&mut attached, &mut waiting] {
        let status = wait_for("it ends", PATIENCE, || child.try_wait().expect("our child"));
        assert_eq!(
            status.code(),
            Some(0),
            "{}{}",
            cluster.log_text("attach"),
            cluster.log_text("wait")
        );
    }
    let ids: Vec<String> = results(&cluster.path("attached.json"))
        .iter()
        .map(|line| line["id"].as_str().expect("an id").into())
        .collect();
    let all: BTreeSet<String> = (1..=6).map(|n| n.to_string()).collect();
    assert_eq!(
        (ids.len(), ids.into_iter().collect::<BTreeSet<_>>()),
        (6, all),
        "each once, with its own job"
    );
    // Without patience it behaves as before: a message, and status 3.
    let endless = detach(&cluster, "{\"cmd\": \"sleep 60\"}\n", &[]);
    let mut waiting = start(
        &cluster,
        &["wait", "-p", "mezcal", &endless, "--reconnect", "0s"],
        "impatient",
    );
    wait_for("it runs", PATIENCE, || {
        batches(&cluster)
            .iter()
            .any(|b| b["id"] == endless.as_str() && b["running"] == 1)
            .then_some(())
    });
    wait_for("somebody waits", PATIENCE, || {
        has_asked(&cluster, "impatient")
    });
    cluster.kill_coordinator();
    // The new coordinator answers that it does not know the connection: faster than the idle
    // timeout.
    cluster.start_coordinator();
    let status = wait_for("it gives up", PATIENCE, || {
        waiting.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(3), "{}", cluster.log_text("impatient"));
    cluster.wait_connected(2);
    assert_eq!(
        run(&cluster, &["cancel", "--batch", &endless])
            .status
            .code(),
        Some(0)
    );
    cluster.finish();
}

#[test]
fn an_orderly_restart_in_the_middle_of_a_submission_loses_nothing() {
    let mut cluster = Cluster::running(1, 2);
    let (gate, rest) = ("until test -e go; do sleep 0.05; done; false", 20_000);
    // Long enough that submitting it takes a while.
    let long = format!("true # {}", "x".repeat(4000));
    let list = lines(&[json!({"cmd": gate})])
        + &lines(&[json!({"cmd": long, "after": ["1"]})]).repeat(rest);
    let mut client = cluster.start_run(&list, &["-q"]);
    let mut before = 0;
    for _ in 0..2 {
        // More than before, if more are to come.
        before = wait_for("some are there", PATIENCE, || {
            let jobs = batches(&cluster)
                .iter()
                .filter_map(|b| b["jobs"].as_u64())
                .max();
            jobs.filter(|jobs| *jobs > before || *jobs > rest as u64)
        });
        cluster.stop_coordinator();
        cluster.start_coordinator();
    }
    std::fs::write(cluster.path("go"), "").expect("written");
    let status = wait_for("the run ends", 4 * PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(
        status.code(),
        Some(1),
        "the first one fails: {}",
        cluster.log_text("run")
    );
    let all = results(&cluster.path("results.json"));
    assert_eq!(all.len(), 1 + rest);
    assert_eq!(
        all.iter()
            .filter(|line| line["result"]["outcome"] == "skipped")
            .count(),
        rest
    );
    cluster.finish();
}

#[test]
fn a_cancel_goes_on_across_a_restart_of_the_coordinator() {
    let mut cluster = Cluster::running(1, 1);
    let mark = format!("14142{}", std::process::id());
    let stubborn = json!({"cmd": format!("trap '' TERM; while :; do sleep {mark}; done")});
    let batch = detach(&cluster, &lines(&vec![stubborn; 3]), &[]);
    wait_for("one runs", PATIENCE, || {
        (!alive_with(&format!("sleep {mark}")).is_empty()).then_some(())
    });
    let mut cancel = cluster.command(&["cancel", "-p", "mezcal", "--all", "--grace", "8s"]);
    let cancel = cancel
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let ended = |count: u64| {
        batches(&cluster)
            .iter()
            .any(|row| row["id"] == *batch && row["ended"] == count)
    };
    wait_for("what waited is cancelled", PATIENCE, || {
        ended(2).then_some(())
    });
    cluster.kill_coordinator();
    cluster.start_coordinator();
    let out = cancel.wait_with_output().expect("it ends");
    let said = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{said:?}");
    assert!(
        said.0
            .starts_with("1 job cancelled since the coordinator was reached again; "),
        "{said:?}"
    );
    assert!(said.1.contains("trying to reach it again"), "{said:?}");
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    cluster.finish();
}

#[test]
fn what_is_detached_is_handed_over_across_restarts_and_starts_when_it_is_whole() {
    let mut cluster = Cluster::running(1, 2);
    let rest = 20_000;
    // Long enough that submitting it takes a while, and all jobs but the first wait for that one.
    let long = format!("true # {}", "x".repeat(4000));
    let list = lines(&[json!({"cmd": "echo >> begun; false"})])
        + &lines(&[json!({"cmd": long, "after": ["1"]})]).repeat(rest);
    std::fs::write(cluster.path("detached.json"), list).expect("written");
    let begin = |patience| {
        let mut command = cluster.command(&[
            "run",
            "-p",
            "mezcal",
            "--detach",
            "detached.json",
            "--reconnect",
            patience,
        ]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let (first, second) = (begin("30s"), begin("1s"));
    let some_of_both = || {
        let open = batches(&cluster)
            .iter()
            .filter(|b| b["jobs"].as_u64() > Some(0))
            .count();
        (open == 2).then_some(())
    };
    wait_for("some of both are there", PATIENCE, some_of_both);
    cluster.kill_coordinator();
    let lost = second.wait_with_output().expect("it ends");
    cluster.start_coordinator();
    let out = first.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let id = text(&out.stdout).trim().to_owned();
    let row = |id: &str| {
        batches(&cluster)
            .into_iter()
            .find(|row| row["id"] == *id)
            .expect("a batch")
    };
    assert_eq!(row(&id)["jobs"], rest + 1, "{}", text(&out.stderr));
    // The other client names its batch, whose jobs never start.
    let said = text(&lost.stderr);
    assert_eq!(
        (lost.status.code(), text(&lost.stdout)),
        (Some(3), String::new()),
        "{said}"
    );
    let other = said
        .split("nothing of batch ")
        .nth(1)
        .and_then(|rest| rest.get(..36))
        .expect("its id")
        .to_owned();
    wait_for("the first batch ends", 2 * PATIENCE, || {
        (row(&id)["ended"] == rest + 1).then_some(())
    });
    wait_for("the other one is given up", 2 * PATIENCE, || {
        (row(&other)["ended"] == row(&other)["jobs"]).then_some(())
    });
    assert_eq!(
        std::fs::read_to_string(cluster.path("begun"))
            .expect("it ran")
            .lines()
            .count(),
        1,
        "only the whole one has begun"
    );
    cluster.finish();
}

/// A time limit that passes while the coordinator is down.
#[test]
fn a_time_limit_that_passed_during_an_outage_cancels_with_proof() {
    let mut cluster = Cluster::running(1, 1);
    let mark = format!("17320{}", std::process::id());
    let batch = detach(
        &cluster,
        &lines(&[json!({"cmd": format!("sleep {mark}")})]),
        &["--time-limit", "4s"],
    );
    wait_for("it runs", PATIENCE, || {
        (!alive_with(&format!("sleep {mark}")).is_empty()).then_some(())
    });
    let begin = Instant::now();
    cluster.kill_coordinator();
    wait_for("the limit passes", PATIENCE, || {
        (begin.elapsed() > Duration::from_secs(4)).then_some(())
    });
    cluster.start_coordinator();
    let out = run(&cluster, &["wait", &batch]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    let results = text(&run(&cluster, &["results", &batch]).stdout);
    let result: Value = serde_json::from_str(results.trim()).expect("one result");
    assert_eq!(
        (&result["result"]["outcome"], &result["result"]["attempt"]),
        (&json!("cancelled"), &json!(1)),
        "{result}"
    );
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    cluster.finish();
}

#[test]
fn results_of_what_nobody_runs_stay() {
    let mut cluster = Cluster::new(1, 1);
    cluster.start_coordinator();
    let (job, result) = (
        json!({"cmd": "true"}),
        json!({"cmd": "true", "result": {"status": "ok", "code": 1}}),
    );
    std::fs::write(cluster.path("jobs.json"), lines(&[job])).expect("written");
    std::fs::write(cluster.path("kept"), lines(std::slice::from_ref(&result))).expect("written");
    let out = run(
        &cluster,
        &[
            "run",
            "jobs.json",
            "-o",
            "kept",
            "--resume-failed",
            "--wait-agents",
            "1s",
        ],
    );
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("--wait-agents"),
        "{}",
        text(&out.stderr)
    );
    assert_eq!(
        std::fs::read_to_string(cluster.path("kept")).expect("there"),
        lines(&[result])
    );
    cluster.start_agents();
    cluster.wait_connected(1);
    let out = run(
        &cluster,
        &["run", "jobs.json", "-o", "kept", "--resume-failed"],
    );
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let kept = results(&cluster.path("kept"));
    assert_eq!(
        (kept.len(), kept[0]["result"]["code"].as_i64()),
        (1, Some(0)),
        "in its place"
    );
    cluster.finish();
}

#[test]
fn a_client_that_is_gone_for_longer_than_its_lease_loses_its_batch() {
    let cluster = Cluster::running(1, 2);
    let mark = format!("29110{}", std::process::id());
    let mut client = cluster.start_run(&format!("{{\"cmd\": \"sleep {mark}\"}}\n").repeat(4), &[]);
    let sleepers = || alive_with(&format!("sleep {mark}")).len();
    wait_for("they run", PATIENCE, || (sleepers() >= 2).then_some(()));
    client.kill().expect("killed");
    let _ = client.wait();
    let gone = Instant::now();
    wait_for("the lease is over", 3 * PATIENCE, || {
        (sleepers() == 0).then_some(())
    });
    assert!(
        gone.elapsed().as_secs() >= 19,
        "they went on for as long as the client might have come back: {:?}",
        gone.elapsed()
    );
    let batch = &batches(&cluster)[0];
    assert_eq!(
        (batch["state"].as_str(), batch["ended"].as_u64()),
        (Some("stopped"), Some(4)),
        "{batch}"
    );
    cluster.finish();
}

#[test]
fn a_second_coordinator_does_not_touch_the_store() {
    let cluster = Cluster::running(1, 1);
    let out = cluster.run(&[
        "serve",
        "--config",
        cluster.path("coordinator.toml").to_str().expect("UTF-8"),
    ]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(
        said.contains("another coordinator (process ") && said.contains("holds the store"),
        "{said}"
    );
    // A copy can still be made, and is a valid store.
    let (config, copy) = (cluster.path("coordinator.toml"), cluster.path("copy.db"));
    let backup = cluster.run(&[
        "backup",
        "--config",
        config.to_str().expect("UTF-8"),
        copy.to_str().expect("UTF-8"),
    ]);
    assert_eq!(backup.status.code(), Some(0), "{}", text(&backup.stderr));
    assert!(
        std::fs::read(&copy)
            .expect("a copy")
            .starts_with(b"SQLite format 3")
    );
    cluster.finish();
}

#[test]
fn a_drained_host_gets_nothing_more_and_gives_back_what_is_too_slow() {
    let cluster = Cluster::running(2, 2);
    let mark = format!("25077{}", std::process::id());
    // An evicted job does not sleep when it runs again.
    let cmd = format!("echo $MEZCAL_HOST >> mark.$MEZCAL_JOB_ID; test -e go || sleep {mark}");
    let mut client = cluster.start_run(&lines(&vec![json!({"cmd": cmd}); 6]), &[]);
    // Their shells have the same words in their command lines.
    let sleeps = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"))
    };
    wait_for("all slots are busy", PATIENCE, || {
        (alive_with(&format!("sleep {mark}"))
            .iter()
            .filter(|pid| sleeps(pid))
            .count()
            >= 4)
            .then_some(())
    });
    std::fs::write(cluster.path("go"), "").expect("written");
    let refused = cluster.run(&["drain", "-p", "mezcal", "mezcal01"]);
    assert!(
        refused.status.code() == Some(2) && text(&refused.stderr).contains("only an admin"),
        "{}",
        text(&refused.stderr)
    );
    let drained = cluster.run(&[
        "drain",
        "-p",
        "admin",
        "mezcal01",
        "-m",
        "new disks",
        "--deadline",
        "1s",
    ]);
    assert_eq!(drained.status.code(), Some(0), "{}", text(&drained.stderr));
    assert!(text(&cluster.run(&["hosts", "-p", "mezcal"]).stdout).contains("drained: new disks"));
    let other = |mark: &str| {
        alive_with(&format!("sleep {mark}"))
            .into_iter()
            .filter(|pid| cluster.lab.processes(2).contains(pid))
            .count()
    };
    wait_for("only the other host's jobs are left", PATIENCE, || {
        (alive_with(&format!("sleep {mark}")).len() == other(&mark) || !cluster.lab.is_real())
            .then_some(())
    });
    alive_with(&format!("sleep {mark}"))
        .into_iter()
        .for_each(|pid| mezcal_tests::signal(pid, libc::SIGTERM));
    let status = wait_for("the run ends", PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(1), "two were ended by hand");
    let all = results(&cluster.path("results.json"));
    let on_2 = all
        .iter()
        .filter(|l| {
            l["result"]["host"]
                .as_str()
                .is_some_and(|h| h.starts_with("mezcal02"))
        })
        .count();
    assert_eq!(on_2, 6, "everything has ended on the other host");
    assert_eq!(
        cluster
            .run(&["undrain", "-p", "admin", "mezcal01"])
            .status
            .code(),
        Some(0)
    );
    std::fs::write(
        cluster.path("one.json"),
        "{\"cmd\": \"true\", \"host\": \"mezcal01\"}\n",
    )
    .expect("written");
    assert_eq!(
        run(&cluster, &["run", "one.json", "-q", "-o", "one.results"])
            .status
            .code(),
        Some(0)
    );
    cluster.finish();
}

#[test]
fn a_host_that_is_confirmed_to_be_dead_is_not_waited_for() {
    let mut cluster = Cluster::running(2, 1);
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("a host that loses its power: hosts share loopback");
        return cluster.finish();
    }
    let mark = format!("300.{}", std::process::id());
    let cmd = format!("echo $MEZCAL_HOST; test -e go || sleep {mark}");
    let mut client = cluster.start_run(&lines(&[json!({"cmd": cmd, "prefer": "mezcal01"})]), &[]);
    // Its shell has the same words in its command line, and may not have read the file yet.
    let sleeps = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"))
    };
    wait_for("it sleeps", PATIENCE, || {
        alive_with(&format!("sleep {mark}"))
            .iter()
            .any(sleeps)
            .then_some(())
    });
    std::fs::write(cluster.path("go"), "").expect("written");
    cluster.crash_host(1);
    let host = mezcal_tests::lab::host_name(1);
    let confirm = |profile: &str| cluster.run(&["confirm-dead", "-p", profile, &host]);
    let early = text(&confirm("admin").stderr);
    assert!(early.contains("is connected"), "{early}");
    assert_eq!(
        confirm("mezcal").status.code(),
        Some(2),
        "that is for admins"
    );
    wait_for("it is missed", PATIENCE, || {
        (cluster.connected().iter().all(|h| h["name"] != *host)).then_some(())
    });
    assert_eq!(confirm("admin").status.code(), Some(0));
    let status = wait_for("the run ends long before the lease does", PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    let line = &results(&cluster.path("results.json"))[0]["result"];
    assert_eq!(
        (line["attempt"].as_u64(), line["host"].as_str()),
        (Some(2), Some(&*mezcal_tests::lab::host_name(2))),
        "{line}"
    );
    cluster.finish();
}

#[test]
fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
    let mut cluster = Cluster::new(1, 2);
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("a full disk: mounting needs root");
        return;
    }
    cluster.set_store_size("2m");
    let mut cluster = cluster.start();
    let cmd = "until test -e go; do sleep 0.05; done; echo done";
    let mut client = cluster.start_run(&lines(&[json!({"cmd": cmd})]), &[]);
    wait_for("it runs", PATIENCE, || {
        cluster
            .connected()
            .iter()
            .any(|h| h["busy"] == 1)
            .then_some(())
    });
    cluster.disk().fill();
    let spec = "x".repeat(20_000);
    let big: String = (0..40)
        .map(|n| format!("{}\n", json!({"cmd": format!("touch new.{n} # {spec}")})))
        .collect();
    std::fs::write(cluster.path("new.json"), big).expect("written");
    let refused = run(&cluster, &["run", "new.json", "-o", "new.results"]);
    let said = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(3)
            && said.contains("the coordinator's store cannot be written"),
        "{said}"
    );
    let drained = run(&cluster, &["drain", "agent01"]);
    let said = text(&drained.stderr);
    assert!(
        !drained.status.success() && said.contains("store cannot be written"),
        "it would be forgotten: {said}"
    );
    // All connected agents come back, or their leases would end the jobs there.
    let welcomes = |cluster: &Cluster| {
        cluster
            .log_text("agent01")
            .matches("connected coordinator")
            .count()
    };
    let before = welcomes(&cluster);
    cluster.end_agent(1, libc::SIGKILL);
    cluster.start_agent(1);
    wait_for("the agent is welcome", PATIENCE, || {
        (welcomes(&cluster) > before).then_some(())
    });
    // The first one ends, and its agent keeps the outcome for as long as needed.
    std::fs::write(cluster.path("go"), "").expect("written");
    wait_for("the log says so", PATIENCE, || {
        cluster
            .log_text("coordinator")
            .contains("nothing new is accepted")
            .then_some(())
    });
    assert!(
        client.try_wait().expect("our child").is_none(),
        "nothing is acknowledged that is not safe"
    );
    cluster.disk().free();
    let status = wait_for("the run ends", PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    assert_eq!(
        results(&cluster.path("results.json"))[0]["result"]["stdout_tail"],
        "done\n"
    );
    std::fs::write(cluster.path("after.json"), "{\"cmd\": \"true\"}\n").expect("written");
    assert_eq!(
        run(
            &cluster,
            &["run", "after.json", "-q", "-o", "after.results"]
        )
        .status
        .code(),
        Some(0),
        "it goes on"
    );
    let strays = std::fs::read_dir(cluster.path(""))
        .expect("readable")
        .flatten();
    let strays = strays.filter(|e| {
        e.file_name().to_string_lossy().starts_with("new.")
            && e.path()
                .extension()
                .is_some_and(|x| x != "json" && x != "results")
    });
    assert_eq!(strays.count(), 0, "what was refused did not run");
    cluster.finish_with(&["the store cannot be written"]);
}

/// `coordinator run --stream`, as a program sees it.
struct Stream {
    child: std::process::Child,
    input: Option<std::process::ChildStdin>,
    output: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Stream {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        use std::io::BufRead;
        let all: Vec<&str> = ["run", "-p", "mezcal", "--stream", "-q"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let mut command = cluster.command(&all);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = std::io::BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self {
            input: child.stdin.take(),
            output,
            child,
        }
    }

    fn say(&mut self, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.input
            .as_mut()
            .expect("open")
            .write_all(text.as_bytes())
            .expect("written");
    }

    /// Reads up to a line that is `wanted`, and returns it with the lines before it.
    fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> (Value, Vec<Value>) {
        let mut before = Vec::new();
        for line in self.output.by_ref() {
            let line: Value = serde_json::from_str(&line.expect("readable")).expect("JSON");
            if wanted(&line) {
                return (line, before);
            }
            before.push(line);
        }
        panic!("the stream ends before {what}: {before:?}");
    }
}

#[test]
fn a_disk_that_is_full_for_a_while_ends_nothing_of_a_batch_that_is_known() {
    let mut cluster = Cluster::new(1, 2);
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("a full disk: mounting needs root");
        return;
    }
    cluster.set_store_size("2m");
    let cluster = cluster.start();
    let mut stream = Stream::start(&cluster, &[]);
    stream.say(&[
        json!({"cmd": "echo begun >> begun; until test -e go; do sleep 0.05; done; echo done"}),
    ]);
    wait_for("it runs", PATIENCE, || {
        cluster.path("begun").exists().then_some(())
    });
    cluster.disk().fill();
    let spec = "x".repeat(20_000);
    stream.say(
        &(0..40)
            .map(|n| json!({"cmd": format!("echo {n} # {spec}")}))
            .collect::<Vec<_>>(),
    );
    wait_for("the log says so", PATIENCE, || {
        cluster
            .log_text("coordinator")
            .contains("the store cannot be written")
            .then_some(())
    });
    // For longer than a new batch has to wait for its refusal.
    let refused = || {
        std::fs::write(cluster.path("new.json"), "{\"cmd\": \"true\"}\n").expect("written");
        run(
            &cluster,
            &["run", "new.json", "-q", "-o", "new.results", "--force"],
        )
        .status
        .code()
            == Some(3)
    };
    let begin = std::time::Instant::now();
    wait_for("what is new is refused", PATIENCE, || {
        (refused() && begin.elapsed().as_secs() > 12).then_some(())
    });
    cluster.disk().free();
    std::fs::write(cluster.path("go"), "").expect("written");
    stream.say(&[json!({"control": "close"})]);
    let (end, before) = stream.until("the end", |line| line["event"] == "end");
    assert_eq!(
        end,
        json!({"event": "end", "jobs": 41, "received": 41, "failed": 0}),
        "{before:?}"
    );
    assert_eq!(
        std::fs::read_to_string(cluster.path("begun")).expect("readable"),
        "begun\n",
        "it ran once"
    );
    cluster.finish_with(&["the store cannot be written"]);
}

/// The readiness as seen from the coordinator's host.
fn readiness(cluster: &Cluster) -> String {
    let ask = "exec 3<> /dev/tcp/127.0.0.1/7480; printf 'GET /readyz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3";
    text(
        &cluster
            .lab
            .command(0, Path::new("bash"))
            .args(["-c", ask])
            .output()
            .expect("bash runs")
            .stdout,
    )
}

/// A coordinator that ends on a disk that is full, and comes back there.
fn starts_on_a_full_disk(ends: impl Fn(&mut Cluster), also: impl Fn(&Cluster)) {
    let mut cluster = Cluster::with(1, 2, "auto", "15s");
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("a full disk: mounting needs root");
        return;
    }
    cluster.set_store_size("2m");
    cluster.set_http("127.0.0.1:7480");
    let mut cluster = cluster.start();
    let job = json!({"cmd": "echo $MEZCAL_ATTEMPT >> mark.$MEZCAL_JOB_ID; until test -e go.$MEZCAL_JOB_ID; do sleep 0.05; done; echo done"});
    let mut client = cluster.start_run(&lines(&vec![job; 3]), &[]);
    wait_for("two run", PATIENCE, || {
        (starts(&cluster, 2) == [1, 1]).then_some(())
    });
    let again = |cluster: &mut Cluster| {
        cluster.disk().fill();
        ends(cluster);
        // Space that the coordinator has freed is used up, too.
        cluster.disk().fill();
        cluster.start_coordinator();
        cluster.wait_connected(1);
    };
    // A coordinator that could not write anything is no different from one that could.
    again(&mut cluster);
    again(&mut cluster);
    let full = wait_for("its health is not good", PATIENCE, || {
        Some(readiness(&cluster)).filter(|said| said.contains("503"))
    });
    assert!(
        full.contains("full") || full.contains("No space left"),
        "{full}"
    );
    assert!(
        cluster
            .log_text("coordinator")
            .contains("nothing new is accepted")
    );
    also(&cluster);
    std::fs::write(cluster.path("go.1"), "").expect("written");
    std::fs::write(cluster.path("new.json"), "{\"cmd\": \"touch new\"}\n").expect("written");
    // For longer than a lease.
    let begin = Instant::now();
    wait_for("what is new is refused", 2 * PATIENCE, || {
        let refused = run(
            &cluster,
            &["run", "new.json", "-q", "-o", "new.results", "--force"],
        );
        let said = text(&refused.stderr);
        assert!(
            refused.status.code() == Some(3)
                && said.contains("the coordinator's store cannot be written"),
            "{said}"
        );
        (begin.elapsed() > Duration::from_secs(25)).then_some(())
    });
    assert!(client.try_wait().expect("our child").is_none());
    assert_eq!(
        std::fs::read_to_string(cluster.path("results.json")).unwrap_or_default(),
        "",
        "nothing is said that is not safe"
    );
    cluster.disk().free();
    wait_for("its health is good", PATIENCE, || {
        readiness(&cluster).contains("200").then_some(())
    });
    wait_for("the third runs in the place of the first", PATIENCE, || {
        (starts(&cluster, 3) == [1, 1, 1]).then_some(())
    });
    for go in ["go.2", "go.3"] {
        std::fs::write(cluster.path(go), "").expect("written");
    }
    let status = wait_for("the run ends", PATIENCE, || {
        client.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    let ended = results(&cluster.path("results.json"));
    assert_eq!(ended.len(), 3);
    assert!(
        ended
            .iter()
            .all(|line| line["result"]["stdout_tail"] == "done\n"),
        "{ended:?}"
    );
    // The third one has waited, and is returned unstarted if its agent renews a certificate
    // meanwhile.
    for n in [1, 2] {
        let mark = std::fs::read_to_string(cluster.path(&format!("mark.{n}"))).expect("it ran");
        assert_eq!(mark, "1\n", "what ran went on as its first attempt");
    }
    assert_eq!(starts(&cluster, 3), [1, 1, 1], "each ran once");
    assert_eq!(
        run(
            &cluster,
            &["run", "new.json", "-q", "-o", "new.results", "--force"]
        )
        .status
        .code(),
        Some(0),
        "it goes on"
    );
    assert!(cluster.path("new").exists());
    // As with free space: another life, which other processes may open, too.
    cluster.kill_coordinator();
    cluster.start_coordinator();
    let copy = cluster.path("copy.db");
    let made = cluster
        .beside_store()
        .arg("backup")
        .arg(&copy)
        .arg("--config")
        .arg(cluster.path("coordinator.toml"))
        .output();
    let made = made.expect("it runs");
    assert!(
        made.status.success() && copy.exists(),
        "{}",
        text(&made.stderr)
    );
    assert!(
        !cluster.log_text("coordinator").contains("restore"),
        "{}",
        cluster.log_text("coordinator")
    );
    cluster.finish_with(&["the store cannot be written"]);
}

#[test]
fn a_coordinator_that_was_killed_starts_on_a_full_disk() {
    starts_on_a_full_disk(Cluster::kill_coordinator, |_| {});
}

#[test]
fn a_coordinator_that_was_stopped_starts_on_a_full_disk_and_has_it_alone() {
    let ends = |cluster: &mut Cluster| {
        cluster.stop_coordinator();
        // As the last connection leaves it when it closes; the process may end before that.
        let _ = std::fs::remove_file(cluster.disk().path().join("store.db-shm"));
    };
    starts_on_a_full_disk(ends, |cluster| {
        let copy = cluster.path("never.db");
        let config = cluster.path("coordinator.toml");
        let refused = cluster
            .beside_store()
            .arg("backup")
            .arg(&copy)
            .arg("--config")
            .arg(config)
            .output()
            .expect("it runs");
        let said = text(&refused.stderr);
        assert!(
            refused.status.code() == Some(2)
                && said.contains("started on a full disk")
                && !copy.exists(),
            "{said}"
        );
        assert!(
            cluster
                .log_text("coordinator")
                .contains("until the coordinator is started again")
        );
    });
}

#[test]
fn a_stream_survives_its_coordinator() {
    let mut cluster = Cluster::running(3, 2);
    let mut stream = Stream::start(&cluster, &["--attended"]);
    let job = |n: usize| {
        let cmd = "echo $MEZCAL_ATTEMPT >> mark.$MEZCAL_JOB_ID; sleep 0.2; echo $MEZCAL_HOST";
        json!({"cmd": cmd, "host": format!("mezcal0{}", n % 3 + 1)})
    };
    stream.say(&(1..=40).map(job).collect::<Vec<_>>());
    let (first, _) = stream.until("a result", |line| line["job"].is_u64());
    cluster.kill_coordinator();
    // While no client is connected to take the results.
    stream.say(&(41..=80).map(job).collect::<Vec<_>>());
    stream.say(&[
        json!({"cmd": "sleep 600"}),
        json!({"jobs": [81], "control": "cancel"}),
        json!({"control": "hosts"}),
    ]);
    cluster.start_coordinator();
    let (mut results, mut said) = (vec![first], Vec::new());
    while results.len() < 81 || said.len() < 2 {
        let (line, _) = stream.until("all results", |line| {
            line["job"].is_u64()
                || ["cancelled", "hosts"]
                    .iter()
                    .any(|event| line["event"] == *event)
        });
        if line["job"].is_u64() {
            results.push(line)
        } else {
            said.push(line)
        }
    }
    assert!(
        said.iter()
            .any(|line| line["event"] == "cancelled" && line["jobs"] == 1),
        "{said:?}"
    );
    let cancelled = results
        .iter()
        .position(|line| line["job"] == 81)
        .expect("its result");
    assert_eq!(
        results.swap_remove(cancelled)["result"]["status"],
        "aborted"
    );
    stream.say(&[
        json!({"control": "cancel", "jobs": [82]}),
        json!({"control": "cancle"}),
    ]);
    stream.until("its refusal", |line| {
        line["event"] == "refused" && line["job"] == 82
    });
    let (refused, _) = stream.until("another refusal", |line| line["event"] == "refused");
    assert!(
        refused["text"]
            .as_str()
            .is_some_and(|text| text.contains("cancle") && text.contains("`close`")),
        "{refused}"
    );
    stream.say(&[
        json!({"cmd": 7}),
        json!("no object"),
        json!({"control": "close"}),
    ]);
    let (end, before) = stream.until("the end", |line| line["event"] == "end");
    assert_eq!(
        end,
        json!({"event": "end", "jobs": 83, "received": 83, "failed": 3})
    );
    assert!(
        before
            .iter()
            .filter(|line| line["result"]["status"] == "error")
            .count()
            == 2,
        "{before:?}"
    );
    assert_eq!(stream.child.wait().expect("it ends").code(), Some(1));
    let jobs: BTreeSet<u64> = results
        .iter()
        .map(|line| line["job"].as_u64().expect("a number"))
        .collect();
    assert_eq!(jobs, (1..=80).collect(), "each has one result");
    for line in &results {
        let host =
            mezcal_tests::lab::host_name(line["job"].as_u64().expect("a number") as usize % 3 + 1);
        assert_eq!(line["result"]["stdout_tail"], format!("{host}\n"), "{line}");
    }
    assert_eq!(starts(&cluster, 80), vec![1; 80], "and none ran twice");
    cluster.finish();
}

#[test]
fn a_stream_leaves_no_batch_open() {
    let cluster = Cluster::running(1, 2);
    for round in 0..6u32 {
        let mut stream = Stream::start(&cluster, &["--attended"]);
        let (begun, _) = stream.until("its batch", |line| line["event"] == "batch");
        let batch = begun["batch"].as_str().expect("an id").to_owned();
        // Like a program that ends: both of its ends close, at any time.
        if round % 2 == 1 {
            stream.say(&[json!({"cmd": "true"})]);
            stream.until("its result", |line| line["job"] == 1);
        }
        stream.input = None;
        drop(stream.output);
        let _ = stream.child.wait();
        let state =
            |json: &str| serde_json::from_str::<Value>(json).expect("JSON")["state"].clone();
        wait_for("the batch ends", PATIENCE, || {
            let out = cluster.command(&["status", "-p", "mezcal", &batch, "--json"]);
            let out = { out }.output().expect("it runs");
            (state(&text(&out.stdout)) == "succeeded").then_some(())
        });
    }
    cluster.finish();
}

#[test]
fn a_stream_ends_with_whoever_attends_to_it() {
    let cluster = Cluster::running(1, 2);
    let mark = format!("600.{}", std::process::id());
    for closed in [false, true] {
        let mut stream = Stream::start(&cluster, &["--attended"]);
        stream.say(&[
            json!({"cmd": format!("sleep {mark}")}),
            json!({"cmd": format!("setsid sleep {mark} & wait")}),
        ]);
        if closed {
            stream.say(&[json!({"control": "close"})]);
        }
        wait_for("both run", PATIENCE, || {
            (alive_with(&mark).len() >= 2).then_some(())
        });
        stream.input = None;
        let (end, _) = stream.until("the end", |line| line["event"] == "end");
        assert_eq!(
            (end["received"].as_u64(), end["failed"].as_u64()),
            (Some(2), Some(2))
        );
        assert_eq!(alive_with(&mark), Vec::<i32>::new(), "closed: {closed}");
        let _ = stream.child.wait();
    }
    // Without that option, the end of the input is the end of the jobs.
    let mut stream = Stream::start(&cluster, &[]);
    stream.say(&[json!({"cmd": "sleep 0.5; echo done"})]);
    stream.input = None;
    let (result, _) = stream.until("its result", |line| line["job"] == 1);
    assert_eq!(result["result"]["stdout_tail"], "done\n");
    assert_eq!(stream.child.wait().expect("it ends").code(), Some(0));
    cluster.finish();
}

/// The agent looks for another certificate every two seconds, and finds it first when it is asked
/// to read its configuration again.
#[test]
fn a_reload_beside_another_certificate_is_not_lost() {
    let mut cluster = Cluster::with(1, 1, "auto", "10m");
    cluster.set_without_terminal(1);
    let mut cluster = cluster.start();
    let relay = Relay::start(&cluster.lab, &cluster.address());
    cluster.by_way_of(1, &relay);
    let file = cluster.path(&format!("pki/agents/{}/cert.pem", host_name(1)));
    let other = file.with_extension("new");
    std::fs::copy(&file, &other).expect("copied");
    std::fs::rename(&other, &file).expect("in its place");
    signal(cluster.agent_pid(1), libc::SIGHUP);
    let by_way = format!("connected coordinator=\"{}\"", relay.address());
    wait_for("it connects to the address that is new", PATIENCE, || {
        cluster.log_text("agent01").contains(&by_way).then_some(())
    });
    assert!(
        cluster
            .log_text("agent01")
            .contains("another certificate was put in place, and is used")
    );
    cluster.end_agent(1, libc::SIGTERM);
    cluster.finish();
}
