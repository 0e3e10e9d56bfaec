//! The cluster ring: real programs, real QUIC, real certificates, network namespaces as hosts.

use mezcal_common::model::identity::Role;
use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::lab::host_name;
use mezcal_tests::programs::program;
use mezcal_tests::{alive_with, signal, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_articles_run_uses_every_engine_and_never_more() {
    let cluster = Cluster::running(12, 4);
    std::fs::write(
        cluster.path("jobs.json"),
        "{\"cmd\": \"sleep 1\"}\n".repeat(100),
    )
    .expect("written");
    let begin = Instant::now();
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "-l",
        "run.txt",
    ]);
    eprintln!("100 x sleep 1 on 12 x 4: {:?}", begin.elapsed());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let results = results(&cluster.path("results.json"));
    assert_eq!(results.len(), 100);
    let mut events: BTreeMap<String, Vec<(String, i32)>> = BTreeMap::new();
    let mut engines = BTreeSet::new();
    for line in &results {
        let r = &line["result"];
        assert_eq!(
            (r["status"].as_str(), r["code"].as_i64()),
            (Some("ok"), Some(0)),
            "{r}"
        );
        engines.insert(r["engine_id"].as_u64().expect("an engine"));
        let host = r["host"].as_str().expect("a host").to_owned();
        let time = |key: &str| r[key].as_str().expect("a time").to_owned();
        events
            .entry(host)
            .or_default()
            .extend([(time("started"), 1), (time("completed"), -1)]);
    }
    assert_eq!(engines, (0..48).collect());
    assert_eq!(
        events.keys().cloned().collect::<BTreeSet<_>>(),
        (1..=12).map(host_name).collect()
    );
    for (host, mut times) in events {
        // At one instant an end counts before a start.
        times.sort();
        let most = times
            .iter()
            .scan(0, |n, (_, step)| {
                *n += step;
                Some(*n)
            })
            .max();
        assert!(most <= Some(4), "{host} ran {most:?} at once");
    }
    let log = std::fs::read_to_string(cluster.path("run.txt")).expect("a log");
    assert!(
        log.lines()
            .next()
            .is_some_and(|l| l.ends_with("total 100 jobs on 48 engines")),
        "{log}"
    );
    assert!(
        log.lines().last().is_some_and(|l| l.ends_with("completed")),
        "{log}"
    );
    cluster.finish();
}

#[test]
fn word_counts_are_those_of_a_shell_loop() {
    let cluster = Cluster::running(4, 2);
    let corpus = Path::new("/usr/share/common-licenses");
    let files: Vec<String> = std::fs::read_dir(corpus)
        .expect("a corpus")
        .flatten()
        .filter(|e| e.path().is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(files.len() > 5, "{files:?}");
    let (ours, theirs) = (cluster.path("数え上げ"), cluster.path("loop"));
    std::fs::create_dir(&ours).expect("made");
    std::fs::create_dir(&theirs).expect("made");
    let pipeline = |file: &str| {
        format!(
            "tr -cs '[:alpha:]' '\\n' < '{}/{file}' | tr A-Z a-z | sort | uniq -c | sort -k1,1nr -k2 | head -n 50; echo 語 {file} >&2",
            corpus.display()
        )
    };
    let mut jobs = String::new();
    for (i, file) in files.iter().enumerate() {
        let host = [
            format!("mezcal{:02}", i % 4 + 1),
            host_name((i + 1) % 4 + 1),
        ];
        let job = serde_json::json!({"cmd": pipeline(file), "cd": ours, "out": format!("{file}.語"), "err": format!("{file}.err"), "host": host, "名": file});
        jobs.push_str(&format!("{job}\n"));
        let status = Command::new("/bin/bash")
            .args([
                "-c",
                &format!(
                    "set -o pipefail; ({}) > {file}.語 2> {file}.err",
                    pipeline(file)
                ),
            ])
            .current_dir(&theirs)
            .status();
        assert!(status.expect("bash").success());
    }
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "-i",
        "jobs.json",
        "-o",
        "results.json",
        "--keep-order",
    ]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    for (i, (line, file)) in results(&cluster.path("results.json"))
        .iter()
        .zip(&files)
        .enumerate()
    {
        let host = line["result"]["host"].as_str().expect("a host");
        assert!(
            [host_name(i % 4 + 1), host_name((i + 1) % 4 + 1)]
                .iter()
                .any(|h| h == host),
            "{line}"
        );
        assert_eq!(line["名"], file.as_str());
        for name in [format!("{file}.語"), format!("{file}.err")] {
            let (a, b) = (
                std::fs::read(ours.join(&name)),
                std::fs::read(theirs.join(&name)),
            );
            assert!(a.expect("ours") == b.expect("theirs"), "{name} differs");
        }
    }
    cluster.finish();
}

#[test]
fn exec_runs_once_on_each_host_and_hosts_lists_them() {
    let cluster = Cluster::running(3, 2);
    let out = cluster.run(&["exec", "-p", "mezcal", "mezcal[01-03]", "--", "uname", "-n"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let mut lines: Vec<String> = text(&out.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    let name = |n: usize| {
        if cluster.lab.is_real() {
            host_name(n)
        } else {
            mezcal_common::system::config::host_name()
        }
    };
    let expected: Vec<String> = (1..=3)
        .map(|n| format!("mezcal{n:02}: {}", name(n)))
        .collect();
    assert_eq!(lines, expected);

    let out = cluster.run(&[
        "exec",
        "-p",
        "mezcal",
        "--all",
        "--shell",
        "--",
        "seq 50000; test $MEZCAL_HOST != mezcal02.cl.ecei.tohoku.ac.jp",
    ]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        text(&out.stdout).lines().count(),
        150_000,
        "all output arrives, however much"
    );
    assert_eq!(
        text(&out.stderr).trim(),
        format!("{}: [exit status 1]", host_name(2))
    );

    let table = text(&cluster.run(&["hosts", "-p", "mezcal"]).stdout);
    assert!(
        table.starts_with("HOST") && table.contains(&host_name(3)) && table.lines().count() == 4,
        "{table}"
    );
    let hosts = cluster.connected();
    assert_eq!(
        hosts
            .iter()
            .map(|h| h["slots"].as_u64())
            .collect::<Vec<_>>(),
        [Some(2); 3]
    );
    cluster.finish();
}

#[test]
fn interrupting_a_run_leaves_no_process_on_any_host() {
    let cluster = Cluster::running(3, 4);
    let mark = format!("27182{}", std::process::id());
    let hostile = [
        format!("sleep {mark}"),
        format!("setsid sleep {mark} & sleep {mark}"),
        format!("trap '' TERM INT HUP; sleep {mark}; sleep {mark}"),
        format!("(setsid sh -c 'trap \"\" TERM; sleep {mark}' &) ; sleep {mark}"),
    ];
    let jobs: String = (0..30)
        .map(|i| format!("{}\n", serde_json::json!({"cmd": hostile[i % 4]})))
        .collect();
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let mut command = cluster.command(&["run", "-p", "mezcal", "jobs.json", "-o", "results.json"]);
    let mut run = command.stderr(Stdio::null()).spawn().expect("starts");
    wait_for("all slots are busy", PATIENCE, || {
        (alive_with(&format!("sleep {mark}")).len() >= 12).then_some(())
    });
    signal(run.id() as i32, libc::SIGINT);
    let status = wait_for("the run ends", PATIENCE, || {
        run.try_wait().expect("our child")
    });
    let left = alive_with(&format!("sleep {mark}"));
    assert!(left.is_empty(), "after the last result, alive: {left:?}");
    assert_eq!(status.code(), Some(130));
    let results = results(&cluster.path("results.json"));
    assert_eq!(results.len(), 30);
    assert!(
        results.iter().all(|l| l["result"]["status"] == "aborted"),
        "{results:?}"
    );
    cluster.finish();
}

#[test]
fn an_absent_host_is_said_at_once_and_ends_as_an_error() {
    let cluster = Cluster::running(2, 1);
    let jobs = "{\"cmd\": \"true\", \"host\": \"mezcal99\"}\n{\"cmd\": \"true\", \"host\": [\"mezcal02\"]}\n";
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "--host-timeout",
        "1",
        "--keep-order",
    ]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).contains("1 job waits for a host that is not connected: mezcal99"),
        "{}",
        text(&out.stderr)
    );
    let mut waiting = cluster.start_run(
        "{\"cmd\": \"true\", \"host\": \"mezcal99\", \"id\": \"w\"}\n",
        &[],
    );
    let why = wait_for("it is submitted", PATIENCE, || {
        Some(cluster.run(&["why", "-p", "mezcal", "w"])).filter(|out| out.status.success())
    });
    assert!(
        text(&why.stdout).contains("mezcal99: has never connected"),
        "{}",
        text(&why.stdout)
    );
    cluster.run(&["cancel", "-p", "mezcal", "--all"]);
    assert_eq!(waiting.wait().expect("our child").code(), Some(1));
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "--host-timeout",
        "1",
        "--keep-order",
        "--force",
    ]);
    assert_eq!(out.status.code(), Some(1));
    let results = results(&cluster.path("results.json"));
    let absent = &results[0]["result"];
    assert_eq!(
        (absent["outcome"].as_str(), absent["status"].as_str()),
        (Some("no_host"), Some("error"))
    );
    assert!(
        absent["error"]
            .as_str()
            .is_some_and(|e| e.contains("mezcal99")),
        "{absent}"
    );
    assert!(absent["host"].is_null() && absent["code"].is_null());
    assert_eq!(results[1]["result"]["host"], host_name(2));
    cluster.finish();
}

#[test]
fn a_run_can_be_the_coordinator_and_a_second_one_hears_who_holds_the_address() {
    let mut cluster = Cluster::new(2, 2);
    cluster.start_agents();
    let jobs = cluster.path("jobs.json");
    std::fs::write(
        &jobs,
        "{\"cmd\": \"until test -e go; do sleep 0.05; done\"}\n".repeat(4),
    )
    .expect("written");
    let mut command = cluster.command(&[
        "run",
        "-p",
        "listen",
        "--min-agents",
        "2",
        "jobs.json",
        "-o",
        "results.json",
        "-l",
        "run.txt",
    ]);
    let mut first = command.stderr(Stdio::null()).spawn().expect("starts");
    let begun = |log: &str| {
        std::fs::read_to_string(log)
            .is_ok_and(|t| t.contains("on 4 engines"))
            .then_some(())
    };
    let log = cluster.path("run.txt").display().to_string();
    wait_for("both agents are connected", PATIENCE, || begun(&log));
    let second = cluster.run(&["run", "-p", "listen", "jobs.json"]);
    assert_eq!(second.status.code(), Some(3));
    let held = text(&second.stderr);
    assert!(
        held.contains("held by process") && held.contains("run -p listen"),
        "{held}"
    );
    std::fs::write(cluster.path("go"), "").expect("written");
    assert!(
        wait_for("the run ends", PATIENCE, || first
            .try_wait()
            .expect("our child"))
        .success()
    );
    assert_eq!(results(&cluster.path("results.json")).len(), 4);
    cluster.finish();
}

#[test]
fn bad_certificates_are_named_with_the_way_out() {
    let cluster = Cluster::running(1, 1);
    let user = cluster.path("pki/users/okazaki");
    let run = |identity: &Path| {
        let out = cluster.run(&[
            "hosts",
            "-p",
            "mezcal",
            "--identity",
            &identity.display().to_string(),
        ]);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        text(&out.stderr)
    };
    let missing = run(&cluster.path("nowhere"));
    assert!(
        missing.contains("nowhere/cert.pem") && missing.contains("certs issue"),
        "{missing}"
    );
    let role = run(&cluster.path(&format!("pki/agents/{}", host_name(1))));
    assert!(
        role.contains("cert.pem") && role.contains("certs issue user"),
        "{role}"
    );
    let stranger = run(&cluster.strangers_credentials(Role::User, "okazaki"));
    assert!(
        stranger.contains("not of our cluster") && stranger.contains("ca.pem"),
        "{stranger}"
    );
    // A certificate of ours whose root file is the stranger's.
    let mixed = cluster.path("mixed");
    std::fs::create_dir(&mixed).expect("made");
    for (from, name) in [
        (&user, "cert.pem"),
        (&user, "key.pem"),
        (&cluster.path("stranger"), "ca.pem"),
    ] {
        std::fs::copy(from.join(name), mixed.join(name)).expect("copied");
    }
    let other = run(&mixed);
    assert!(other.contains("was not issued by the root in"), "{other}");
    std::fs::set_permissions(user.join("key.pem"), std::fs::Permissions::from_mode(0o644))
        .expect("chmod");
    let open = run(&user);
    assert!(
        open.contains("key.pem") && open.contains("chmod 600"),
        "{open}"
    );
    cluster.finish();
}

#[test]
fn an_agent_that_is_killed_and_restarted_takes_its_running_job_up_again() {
    let mut cluster = Cluster::running(1, 2);
    let jobs = "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> attempts; until test -e go; do sleep 0.05; done; echo done\"}\n";
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let mut command = cluster.command(&["run", "-p", "mezcal", "jobs.json", "-o", "results.json"]);
    let mut run = command.stderr(Stdio::null()).spawn().expect("starts");
    let attempts = cluster.path("attempts");
    wait_for("the job runs", PATIENCE, || {
        std::fs::read_to_string(&attempts)
            .ok()
            .filter(|t| !t.is_empty())
    });
    cluster.end_agent(1, libc::SIGKILL);
    cluster.start_agent(1);
    wait_for("the agent is back", PATIENCE, || {
        cluster
            .log_text("agent01")
            .contains("found the keeper")
            .then_some(())
    });
    wait_for("it is connected", PATIENCE, || {
        cluster
            .log_text("coordinator")
            .contains("connected again in the place of its last connection; 1 job goes on")
            .then_some(())
    });
    std::fs::write(cluster.path("go"), "").expect("written");
    assert!(
        wait_for("the run ends", PATIENCE, || run
            .try_wait()
            .expect("our child"))
        .success()
    );
    let results = results(&cluster.path("results.json"));
    assert_eq!(
        (
            results[0]["result"]["attempt"].as_u64(),
            results[0]["result"]["stdout_tail"].as_str()
        ),
        (Some(1), Some("done\n"))
    );
    assert_eq!(std::fs::read_to_string(&attempts).expect("written"), "1\n");
    cluster.finish();
}

#[test]
fn a_client_that_vanishes_has_its_jobs_cancelled() {
    let cluster = Cluster::running(1, 2);
    let mark = format!("31415{}", std::process::id());
    let mut command = cluster.command(&["run", "-p", "mezcal", "--lines", "-"]);
    let mut run = command
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    writeln!(run.stdin.take().expect("a pipe"), "sleep {mark}").expect("written");
    wait_for("the job runs", PATIENCE, || {
        (!alive_with(&format!("sleep {mark}")).is_empty()).then_some(())
    });
    signal(run.id() as i32, libc::SIGTERM);
    let status = wait_for("the run ends", PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(143));
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    cluster.finish();
}

#[test]
fn a_coordinator_that_is_stopped_leaves_its_jobs_to_its_next_life() {
    let mut cluster = Cluster::running(2, 1);
    let cmd = "until test -e go; do sleep 0.05; done; echo $MEZCAL_ATTEMPT";
    let mut run = cluster.start_run(&format!("{{\"cmd\": \"{cmd}\"}}\n").repeat(3), &[]);
    let shells = || {
        alive_with("until test -e go")
            .into_iter()
            .filter(|pid| cluster.lab.processes(1).contains(pid))
            .count()
    };
    wait_for("both slots are busy", PATIENCE, || {
        (cluster.connected().iter().all(|h| h["busy"] == 1) && shells() > 0).then_some(())
    });
    cluster.stop_coordinator();
    assert!(
        alive_with("until test -e go").len() >= 2,
        "a stopped coordinator ends nothing that runs"
    );
    cluster.start_coordinator();
    cluster.wait_connected(2);
    std::fs::write(cluster.path("go"), "").expect("written");
    let status = wait_for("the run ends", PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0), "{}", cluster.log_text("run"));
    let attempts: Vec<String> = results(&cluster.path("results.json"))
        .iter()
        .map(|l| l["result"]["stdout_tail"].to_string())
        .collect();
    assert_eq!(attempts, ["\"1\\n\""; 3], "nothing was tried twice");
    cluster.finish();
}

#[test]
fn a_second_agent_is_refused_by_its_place_and_by_its_certificate() {
    let cluster = Cluster::running(2, 1);
    let same_place = cluster
        .lab
        .command(1, &program("agent"))
        .args(["run", "--config"])
        .arg(cluster.path("agent01.toml"))
        .output();
    let same_place = same_place.expect("it runs");
    assert_eq!(same_place.status.code(), Some(2));
    assert!(
        text(&same_place.stderr).contains("another agent (process "),
        "{}",
        text(&same_place.stderr)
    );
    // The certificate of host 1, copied to host 2.
    let copied = std::fs::read_to_string(cluster.path("agent01.toml"))
        .expect("readable")
        .replace("/run01\"", "/run-copy\"");
    std::fs::write(cluster.path("copy.toml"), copied).expect("written");
    let log = std::fs::File::create(cluster.path("copy.txt")).expect("made");
    let mut command = cluster.lab.command(2, &program("agent"));
    let mut copy = command
        .args(["run", "--config"])
        .arg(cluster.path("copy.toml"))
        .stderr(log)
        .spawn()
        .expect("starts");
    wait_for("it is refused", PATIENCE, || {
        let log = std::fs::read_to_string(cluster.path("copy.txt")).unwrap_or_default();
        log.contains("another agent is connected with the certificate")
            .then_some(())
    });
    let out = cluster.run(&["exec", "-p", "mezcal", "mezcal01", "--", "true"]);
    assert_eq!(
        out.status.code(),
        Some(0),
        "the rightful agent goes on: {}",
        text(&out.stderr)
    );
    signal(copy.id() as i32, libc::SIGTERM);
    wait_for("the copy ends", PATIENCE, || {
        copy.try_wait().expect("our child")
    });
    cluster.finish();
}

#[test]
fn exec_ends_its_commands_when_its_reader_leaves() {
    let cluster = Cluster::running(2, 1);
    let mark = format!("69314{}", std::process::id());
    let shell = format!("yes {mark}");
    let mut command = cluster.command(&["exec", "-p", "mezcal", "--all", "--shell", "--", &shell]);
    let mut exec = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut stdout = exec.stdout.take().expect("a pipe");
    std::io::Read::read_exact(&mut stdout, &mut [0; 100]).expect("output");
    drop(stdout);
    let status = wait_for("exec ends", PATIENCE, || {
        exec.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(141));
    assert!(alive_with(&format!("yes {mark}")).is_empty());
    cluster.finish();
}

#[test]
fn commands_end_as_others_do_when_their_output_has_no_reader_left() {
    let cluster = Cluster::running(1, 1);
    std::fs::write(cluster.path("jobs.json"), "{\"cmd\": \"true\"}\n").expect("written");
    let unread = |words: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let [verb, rest @ ..] = words else {
            panic!("a verb")
        };
        let all: Vec<&str> = [verb, "-p", "mezcal"].iter().chain(rest).copied().collect();
        let mut command = cluster.command(&all);
        command.stdout(writer).stdin(Stdio::null());
        let out = command.stderr(Stdio::piped()).output().expect("it runs");
        (words.join(" "), out.status.code(), text(&out.stderr))
    };
    let (_, code, said) = unread(&["run", "--detach", "jobs.json"]);
    assert_eq!(code, Some(141), "{said}");
    // What it could not print is no loss: the batch is accepted, and listed.
    let batches = text(&cluster.run(&["batches", "-p", "mezcal", "--json"]).stdout);
    let batch: serde_json::Value =
        serde_json::from_str(batches.lines().next().expect("one")).expect("JSON");
    let batch = batch["id"].as_str().expect("an id");
    cluster.run(&["wait", "-p", "mezcal", batch]);
    for words in [
        &["retry", batch][..],
        &["status", batch],
        &["status", "--json", batch],
        &["batches"],
        &["hosts", "--json"],
        &["results", batch],
    ] {
        let (words, code, said) = unread(words);
        assert_eq!(
            (code, said.contains("panicked")),
            (Some(141), false),
            "{words}: {said}"
        );
    }
    cluster.finish();
}

#[test]
fn jobs_run_where_they_prefer_to_and_anywhere_rather_than_not_at_all() {
    let cluster = Cluster::running(3, 2);
    let job = |host: &str, id: usize| {
        format!(
            "{}\n",
            serde_json::json!({"cmd": "sleep 0.05", "prefer": [host, "mezcal77"], "id": id})
        )
    };
    let jobs: String = (0..60)
        .map(|i| job(&format!("mezcal{:02}", i % 3 + 1), i))
        .collect();
    std::fs::write(cluster.path("jobs.json"), jobs).expect("written");
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "--force",
    ]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(
        text(&out.stderr).contains("60 of 60 jobs that prefer some hosts ran there (100.0 %)"),
        "{}",
        text(&out.stderr)
    );
    for line in results(&cluster.path("results.json")) {
        assert_eq!(
            (&line["result"]["locality"], line["result"]["host"].as_str()),
            (
                &"local".into(),
                line["id"]
                    .as_u64()
                    .map(|i| host_name(i as usize % 3 + 1))
                    .as_deref()
            )
        );
    }
    // No other job waits for a host that is absent.
    std::fs::write(cluster.path("jobs.json"), job("mezcal99", 1)).expect("written");
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "--force",
        "--timeout",
        "20",
    ]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_eq!(
        results(&cluster.path("results.json"))[0]["result"]["locality"],
        "any"
    );
    cluster.finish();
}

#[test]
fn short_jobs_do_not_wait_behind_long_ones_while_another_slot_is_idle() {
    let cluster = Cluster::running(2, 2);
    // Makes both agents pull jobs in advance.
    let mut run = cluster.start_run(&"{\"cmd\": \"true\"}\n".repeat(200), &["-q"]);
    assert!(
        wait_for("the short ones end", PATIENCE, || run
            .try_wait()
            .expect("our child"))
        .success()
    );
    let long = "{\"cmd\": \"until test -e go; do sleep 0.05; done\"}\n".repeat(3);
    let short: String = (1..=9)
        .map(|n| format!("{{\"cmd\": \"touch short.{n}\"}}\n"))
        .collect();
    let mut run = cluster.start_run(&format!("{long}{short}"), &["-q"]);
    wait_for(
        "all short ones run in the one slot that is left",
        PATIENCE,
        || {
            (1..=9)
                .all(|n| cluster.path(&format!("short.{n}")).exists())
                .then_some(())
        },
    );
    std::fs::write(cluster.path("go"), "").expect("written");
    assert!(
        wait_for("the run ends", PATIENCE, || run
            .try_wait()
            .expect("our child"))
        .success()
    );
    cluster.finish();
}
