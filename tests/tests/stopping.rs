//! The end of a host's programs, in any order: no process is left, no program panics, and it takes
//! seconds.

use mezcal_certs::ClusterDir;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity::{Role, validity};
use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::lab::host_name;
use mezcal_tests::{pids, signal, wait_for};
use std::time::{Duration, Instant};

/// How long a host may take to end all our processes: the grace of jobs, and time to kill on a busy
/// machine.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// A job that ignores the request to end.
const DEAF: &str =
    "{\"cmd\": \"trap '' TERM; echo $MEZCAL_ATTEMPT >> tries; while :; do sleep 0.1; done\"}\n";

/// A job that ends in its second attempt.
const TWICE: &str = "{\"cmd\": \"trap '' TERM; echo $MEZCAL_ATTEMPT >> tries; test $MEZCAL_ATTEMPT != 1 || while :; do sleep 0.1; done\"}\n";

fn tries(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.path("tries")).unwrap_or_default()
}

/// The keeper of host 1's engines.
fn keeper(cluster: &Cluster) -> i32 {
    let socket = format!("--socket\0{}", cluster.path("run01").display());
    let is_keeper = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&socket)
    };
    wait_for("a keeper", PATIENCE, || pids().find(is_keeper))
}

/// Whether no keeper and no engine of host 1 is alive: each holds this lock.
fn nobody_holds_the_lock(cluster: &Cluster) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let path = cluster.path(&format!("run01/engines/{uid}.keeper"));
    let file = std::fs::File::open(path).expect("there has been one");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[test]
fn an_agent_whose_keeper_goes_first_while_it_stops_ends_without_another_one() {
    let mut cluster = Cluster::running(1, 1);
    let mut run = cluster.start_run(DEAF, &[]);
    wait_for("the job runs", PATIENCE, || {
        (tries(&cluster) == "1\n").then_some(())
    });
    let keeper = keeper(&cluster);
    signal(cluster.agent_pid(1), libc::SIGTERM);
    wait_for("it stops", PATIENCE, || {
        cluster
            .log_text("agent01")
            .contains("stopping")
            .then_some(())
    });
    signal(keeper, libc::SIGKILL);
    cluster.end_agent(1, libc::SIGCONT);
    let log = cluster.log_text("agent01");
    assert!(!log.contains("panicked"), "{log}");
    wait_for("no keeper and no engine is left", PATIENCE, || {
        nobody_holds_the_lock(&cluster).then_some(())
    });
    signal(run.id() as i32, libc::SIGKILL);
    let _ = run.wait();
    cluster.finish();
}

#[test]
fn an_agent_that_waits_for_a_keepers_engines_ends_when_it_is_asked_to() {
    // In a control group the engine could be killed nevertheless.
    let mut cluster = Cluster::with(1, 1, "subreaper", "10m").start();
    let mut run = cluster.start_run(DEAF, &[]);
    wait_for("the job runs", PATIENCE, || {
        (tries(&cluster) == "1\n").then_some(())
    });
    // An engine of a dead keeper that does not end holds up the next one.
    let (keeper, agent) = (keeper(&cluster), cluster.agent_pid(1));
    let child = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
    };
    let engine: i32 = child(keeper)
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok())
        .expect("an engine");
    // Otherwise the keeper would continue it.
    signal(keeper, libc::SIGSTOP);
    signal(engine, libc::SIGSTOP);
    signal(keeper, libc::SIGKILL);
    wait_for("another keeper waits", PATIENCE, || {
        cluster
            .log_text("agent01")
            .contains("waiting for the engines")
            .then_some(())
    });
    let begin = Instant::now();
    cluster.end_agent(1, libc::SIGTERM);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    assert!(
        !mezcal_tests::alive_with(&format!("--socket {}", cluster.path("run01").display()))
            .contains(&agent)
    );
    signal(engine, libc::SIGCONT);
    wait_for("no keeper and no engine is left", PATIENCE, || {
        nobody_holds_the_lock(&cluster).then_some(())
    });
    signal(run.id() as i32, libc::SIGKILL);
    let _ = run.wait();
    cluster.finish();
}

/// Both are there when it goes on: another certificate, which makes room for the next agent of the
/// process, and the request to end.
#[test]
fn an_agent_that_is_stopped_as_it_takes_up_a_certificate_leaves_nothing() {
    let mut cluster = Cluster::running(1, 1);
    let mut run = cluster.start_run(DEAF, &[]);
    wait_for("the job runs", PATIENCE, || {
        (tries(&cluster) == "1\n").then_some(())
    });
    let agent = cluster.agent_pid(1);
    signal(agent, libc::SIGSTOP);
    wait_for("it is held", PATIENCE, || {
        let state = mezcal_common::system::proc::state_and_parent(agent);
        state.is_some_and(|(state, _)| state == 'T').then_some(())
    });
    let file = cluster.path(&format!("pki/agents/{}/cert.pem", host_name(1)));
    let other = file.with_extension("new");
    std::fs::copy(&file, &other).expect("copied");
    std::fs::rename(&other, &file).expect("in its place");
    // It looks for other certificates every two seconds.
    let held = Instant::now();
    wait_for("it has to look", PATIENCE, || {
        (held.elapsed() > Duration::from_millis(2500)).then_some(())
    });
    signal(agent, libc::SIGTERM);
    cluster.end_agent(1, libc::SIGCONT);
    wait_for("no keeper and no engine is left", PATIENCE, || {
        nobody_holds_the_lock(&cluster).then_some(())
    });
    signal(run.id() as i32, libc::SIGKILL);
    let _ = run.wait();
    cluster.finish();
}

/// The agent that is started again waits for another certificate before it looks for the keeper of
/// the agent that was killed. It can be reloaded: the reason may be in its configuration.
#[test]
fn an_agent_that_is_stopped_while_its_certificate_has_expired_leaves_nothing() {
    let mut cluster = Cluster::running(1, 1);
    let mut run = cluster.start_run(DEAF, &[]);
    wait_for("the job runs", PATIENCE, || {
        (tries(&cluster) == "1\n").then_some(())
    });
    cluster.end_agent(1, libc::SIGKILL);
    let (pki, authority) = ClusterDir::open(&cluster.path("pki")).expect("it is there");
    let files = pki
        .issue(&authority, Role::Agent, &host_name(1), Duration::ZERO, None)
        .expect("issued");
    let text = std::fs::read_to_string(files.join("cert.pem")).expect("written");
    let (_, end) = validity(&mezcal_certs::der_of(&text).expect("a certificate")).expect("a life");
    wait_for("it has expired", PATIENCE, || {
        (WallTime::now() > WallTime((end + 1) * 1_000_000)).then_some(())
    });
    // The job's keeper outlives its agent.
    keeper(&cluster);
    cluster.set_without_terminal(1);
    cluster.start_agent(1);
    let has_expired = "the certificate has expired and is not renewed";
    wait_for("it waits for another one", PATIENCE, || {
        cluster
            .log_text("agent01")
            .contains(has_expired)
            .then_some(())
    });
    signal(cluster.agent_pid(1), libc::SIGHUP);
    wait_for("it reads its configuration again", PATIENCE, || {
        let log = cluster.log_text("agent01");
        log.contains("agent01.toml was read again").then_some(())
    });
    cluster.end_agent(1, libc::SIGTERM);
    wait_for("no keeper and no engine is left", PATIENCE, || {
        nobody_holds_the_lock(&cluster).then_some(())
    });
    signal(run.id() as i32, libc::SIGKILL);
    let _ = run.wait();
    cluster.finish_with(&[has_expired]);
}

/// The way of a service manager to end a session or a service: TERM to everything in its control
/// group.
#[test]
fn a_host_that_shuts_down_waits_seconds_and_its_jobs_run_again() {
    let mut cluster = Cluster::running(1, 2);
    if !cluster.lab.is_real() {
        return mezcal_tests::say_skipped(
            "a host that shuts down: its processes are not told from others without namespaces",
        );
    }
    let mut run = cluster.start_run(&TWICE.repeat(2), &[]);
    wait_for("both run", PATIENCE, || {
        (tries(&cluster) == "1\n1\n").then_some(())
    });
    // All processes but the one that holds the network.
    let (agent, keeper) = (cluster.agent_pid(1), keeper(&cluster));
    let below = |pid: &i32| {
        let mut at = *pid;
        while let Some((_, parent)) =
            mezcal_common::system::proc::state_and_parent(at).filter(|_| at != keeper)
        {
            at = parent;
        }
        at == keeper
    };
    let all: Vec<i32> = cluster
        .lab
        .processes(1)
        .into_iter()
        .filter(|pid| *pid == agent || below(pid))
        .collect();
    assert!(
        all.len() >= 6,
        "agent, keeper, two engines, two jobs: {all:?}"
    );
    let begin = Instant::now();
    all.iter().for_each(|pid| signal(*pid, libc::SIGTERM));
    cluster.end_agent(1, libc::SIGTERM);
    let alive = || {
        cluster
            .lab
            .processes(1)
            .into_iter()
            .filter(|pid| below(pid))
            .count()
    };
    wait_for("all of it is gone", SHUTDOWN, || {
        (alive() == 0 && nobody_holds_the_lock(&cluster)).then_some(())
    });
    eprintln!(
        "everything was gone after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    assert!(begin.elapsed() < SHUTDOWN, "{:?}", begin.elapsed());
    assert!(!cluster.log_text("agent01").contains("panicked"));
    // The host comes back: the jobs have one result each, and no two of their runs overlapped.
    cluster.start_agent(1);
    let status = wait_for("the run ends", 2 * PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(
        (status.code(), tries(&cluster)),
        (Some(0), "1\n1\n2\n2\n".into()),
        "{}",
        cluster.log_text("run")
    );
    assert_eq!(results(&cluster.path("results.json")).len(), 2);
    cluster.finish();
}
