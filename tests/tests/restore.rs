//! Copies of the store, put back while hosts still run jobs that the original placed.

use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::{signal, wait_for};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a verb for the store on this file.
fn with_store(cluster: &Cluster, verb: &str, file: &str) -> Output {
    cluster.run(&[
        verb,
        "--config",
        cluster.path("coordinator.toml").to_str().expect("UTF-8"),
        file,
    ])
}

fn done(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    text(&out.stderr)
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("readable").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn a_restored_copy_runs_nothing_beside_what_its_original_has_placed() {
    let mut cluster = Cluster::with(2, 1, "auto", "15s");
    cluster.start_coordinator();
    // A job that holds the lock is alive; the first one would run for long.
    let cmd = "exec 9>>lock; flock -n 9 || touch overlap; echo $MEZCAL_ATTEMPT >> began; test $MEZCAL_ATTEMPT != 1 || exec sleep 600";
    std::fs::write(
        cluster.path("night.json"),
        format!("{}\n", serde_json::json!({"cmd": cmd})),
    )
    .expect("written");
    let submitted = cluster.run(&["run", "-p", "mezcal", "--detach", "night.json"]);
    done(&submitted);
    let batch = text(&submitted.stdout).trim().to_owned();
    // The copy has the job, and does not know that it was placed.
    done(&with_store(&cluster, "backup", "copy.db"));
    let mode = std::fs::metadata(cluster.path("copy.db"))
        .expect("there")
        .mode();
    assert_eq!(mode & 0o777, 0o600, "it holds what the store holds");
    cluster.start_agent(1);
    wait_for("it runs", PATIENCE, || {
        (began(&cluster) == "1\n").then_some(())
    });
    let running = with_store(&cluster, "restore", "copy.db");
    assert_eq!(running.status.code(), Some(3), "{}", text(&running.stderr));
    assert!(
        text(&running.stderr).contains("stop it first"),
        "{}",
        text(&running.stderr)
    );
    signal(cluster.agent_pid(1), libc::SIGSTOP);
    cluster.kill_coordinator();
    copy_directory(&cluster.path("state"), &cluster.path("original"));
    let said = done(&with_store(&cluster, "restore", "copy.db"));
    assert!(
        said.contains("a copy of 2") && said.contains("is kept as"),
        "{said}"
    );
    cluster.start_coordinator();
    let log = cluster.log_text("coordinator");
    let told = log
        .lines()
        .find(|line| line.contains("becomes the original"))
        .expect("it says so");
    for part in [
        "a copy of 2",
        "revocations since then are forgotten",
        "certs list",
        "those jobs run again",
        "certs adopt",
        "nothing-runs",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    cluster.start_agent(2);
    cluster.wait_connected(1);
    let why = cluster.run(&["why", "-p", "mezcal", &format!("{batch}/1")]);
    assert!(
        text(&why.stdout).contains("was restored from a copy"),
        "{}",
        text(&why.stdout)
    );
    wait_for("it runs again", 3 * PATIENCE, || {
        (began(&cluster).lines().count() == 2).then_some(())
    });
    assert!(!cluster.path("overlap").exists(), "the first one was dead");
    assert_eq!(
        began(&cluster),
        "1\n10000001\n",
        "the number is higher than any that the original can have given out"
    );
    signal(cluster.agent_pid(1), libc::SIGCONT);
    cluster.wait_connected(2);

    // The original comes back: an agent that has met the other one refuses it.
    cluster.stop_coordinator();
    std::fs::rename(cluster.path("state"), cluster.path("restored")).expect("moved");
    std::fs::rename(cluster.path("original"), cluster.path("state")).expect("moved");
    cluster.start_coordinator();
    wait_for("both refuse", PATIENCE, || {
        let refused = |n| {
            cluster
                .log_text(&format!("agent{n:02}"))
                .contains("only the newest may give out jobs")
        };
        (refused(1) && refused(2)).then_some(())
    });
    wait_for("it hears why", PATIENCE, || {
        cluster
            .log_text("coordinator")
            .contains("the agent refuses this coordinator")
            .then_some(())
    });
    // So does an agent that was started again.
    cluster.end_agent(2, libc::SIGTERM);
    let before = refusals(&cluster);
    cluster.start_agent(2);
    wait_for("it remembers", PATIENCE, || {
        (refusals(&cluster) > before).then_some(())
    });
    assert_eq!(began(&cluster), "1\n10000001\n");
    // The remedy: a copy of it is newer than both.
    done(&with_store(&cluster, "backup", "original.db"));
    cluster.stop_coordinator();
    done(&with_store(&cluster, "restore", "original.db"));
    cluster.start_coordinator();
    cluster.wait_connected(2);
    cluster.finish_with(&[
        "only the newest may give out jobs",
        "the agent refuses this coordinator",
    ]);
}

fn refusals(cluster: &Cluster) -> usize {
    cluster
        .log_text("agent02")
        .matches("only the newest may give out jobs")
        .count()
}

/// The attempts that have begun, in order.
fn began(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.path("began")).unwrap_or_default()
}

#[test]
fn whoever_vouches_that_nothing_runs_need_not_wait() {
    let mut cluster = Cluster::with(1, 1, "auto", "10m");
    cluster.start_coordinator();
    std::fs::write(cluster.path("jobs.json"), "{\"cmd\": \"touch ran\"}\n").expect("written");
    done(&cluster.run(&["run", "-p", "mezcal", "--detach", "jobs.json"]));
    done(&with_store(&cluster, "backup", "copy.db"));
    cluster.stop_coordinator();
    done(&with_store(&cluster, "restore", "copy.db"));
    cluster.set_serve_arguments(&["--nothing-runs"]);
    cluster.start_coordinator();
    cluster.start_agent(1);
    wait_for("it runs", PATIENCE, || {
        cluster.path("ran").exists().then_some(())
    });
    cluster.finish();
}

#[test]
fn a_copy_that_was_put_over_a_store_that_was_not_closed_is_refused() {
    let mut cluster = Cluster::running(1, 1);
    done(&with_store(&cluster, "backup", "copy.db"));
    let out = cluster.run(&["exec", "-p", "mezcal", "mezcal01", "--", "true"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    std::fs::write(cluster.path("jobs.json"), "{\"cmd\": \"true\"}\n").expect("written");
    done(&cluster.run(&["run", "-p", "mezcal", "jobs.json", "-o", "done.json"]));
    cluster.kill_coordinator();
    assert!(
        std::fs::metadata(cluster.path("state/store.db-wal")).is_ok_and(|log| log.len() > 0),
        "what came last is in the log"
    );
    std::fs::copy(cluster.path("copy.db"), cluster.path("state/store.db")).expect("copied");
    let out = cluster.run(&[
        "serve",
        "--config",
        cluster.path("coordinator.toml").to_str().expect("UTF-8"),
    ]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(
        said.contains("its log belongs to another database")
            && said.contains("coordinator restore FILE"),
        "{said}"
    );
    done(&with_store(&cluster, "restore", "copy.db"));
    cluster.start_coordinator();
    cluster.wait_connected(1);
    cluster.finish();
}
