//! True cancel (P3): a process acknowledged as dead is dead, whatever it was and whichever program
//! failed meanwhile. Judged from /proc.

use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::mount::HungMount;
use mezcal_tests::programs::{HOSTILE_KINDS, program};
use mezcal_tests::{alive_with, control_groups_or_say_why, signal, wait_for};
use serde_json::{Value, json};
use std::process::{Child, Stdio};

/// Jobs as JSON lines.
fn lines(jobs: &[Value]) -> String {
    jobs.iter().map(|job| format!("{job}\n")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ended(child: &mut Child) -> Option<i32> {
    wait_for("the run ends", PATIENCE, || {
        child.try_wait().expect("our child")
    })
    .code()
}

/// Processes on each host that do not belong to the cluster.
fn bystanders(cluster: &Cluster, hosts: usize, mark: &str) -> Vec<Child> {
    let start = |n| {
        let mut command = cluster.lab.command(n, "sleep".as_ref());
        command
            .arg(mark)
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep starts")
    };
    (1..=hosts).map(start).collect()
}

fn forty_eight_hostile_jobs_die(containment: &'static str) {
    let cluster = Cluster::with(12, 4, containment, "10m").start();
    let mark = format!("hostile-{containment}-{}", std::process::id());
    let mut others = bystanders(&cluster, 12, &format!("98765{}", std::process::id()));
    let hostile = program("hostile");
    let jobs: String = (0..48)
        .map(|i| {
            format!("{}\n", json!({"argv": [hostile, HOSTILE_KINDS[i % 12], mark], "id": format!("{}-{i}", HOSTILE_KINDS[i % 12])}))
        })
        .collect();
    let mut run = cluster.start_run(&jobs, &[]);
    // Four of each kind: the fork bombs alone are 192 processes.
    wait_for("all of them are there", PATIENCE, || {
        (alive_with(&mark).len() >= 270).then_some(())
    });
    let hosts = cluster.connected();
    assert!(
        hosts
            .iter()
            .all(|h| h["containment"] == containment && h["busy"] == 4),
        "{hosts:?}"
    );
    let out = cluster.run(&[
        "cancel", "-p", "mezcal", "--all", "--grace", "0.2", "--json",
    ]);
    let left = alive_with(&mark);
    assert!(left.is_empty(), "acknowledged, and alive: {left:?}");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let summary: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        (
            summary["jobs"].as_u64(),
            summary["survivors"].as_u64(),
            summary["unreachable"].as_u64()
        ),
        (Some(48), Some(0), Some(0))
    );
    // Most of them have died of the TERM; at least the deaf and the masked ones needed KILL.
    assert!(
        summary["killed"].as_u64().is_some_and(|n| n >= 16),
        "{summary}"
    );
    assert_eq!(ended(&mut run), Some(1));
    let results = results(&cluster.path("results.json"));
    assert_eq!(results.len(), 48);
    for line in &results {
        let r = &line["result"];
        assert_eq!(
            (r["outcome"].as_str(), r["error"].as_str()),
            (Some("cancelled"), Some("cancelled by okazaki")),
            "{line}"
        );
        assert_eq!(r["containment"], containment);
    }
    for other in &mut others {
        assert!(
            other.try_wait().expect("our child").is_none(),
            "a process of somebody else was touched"
        );
        let _ = other.kill();
        let _ = other.wait();
    }
    cluster.finish();
}

#[test]
fn hostile_jobs_are_dead_when_their_cancel_is_acknowledged_with_control_groups() {
    if control_groups_or_say_why() {
        forty_eight_hostile_jobs_die("cgroup2");
    }
}

#[test]
fn hostile_jobs_are_dead_when_their_cancel_is_acknowledged_without_control_groups() {
    forty_eight_hostile_jobs_die("subreaper");
}

/// Live engines of a keeper whose socket is below the cluster's directory, by host: the children of
/// that keeper.
fn engines(cluster: &Cluster, host: usize) -> Vec<i32> {
    let keeper = keeper(cluster, host);
    alive_with("mezcal-engine")
        .into_iter()
        .filter(|pid| parent(*pid) == Some(keeper))
        .collect()
}

/// Lets a process open no further descriptors; or again as many as it may.
fn bar_descriptors(pid: i32, barred: bool) {
    let open: Vec<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let first_free = (0..).find(|fd| !open.contains(fd)).expect("one is free");
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both point to a valid limit, or to none.
    unsafe {
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = if barred { first_free } else { limit.rlim_max };
        assert_eq!(
            libc::prlimit(
                pid,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut()
            ),
            0,
            "it is our child's child"
        );
    }
}

#[test]
fn a_host_whose_engines_do_not_start_is_absent_says_why_and_comes_back() {
    let cluster = Cluster::running(2, 2);
    let keeper = keeper(&cluster, 1);
    // One after the other, since each returns one descriptor, and another start takes two.
    for engine in engines(&cluster, 1) {
        bar_descriptors(keeper, true);
        signal(engine, libc::SIGKILL);
        wait_for("it is dead", PATIENCE, || {
            (!engines(&cluster, 1).contains(&engine)).then_some(())
        });
    }
    let host = || {
        let out = text(&cluster.run(&["hosts", "-p", "mezcal", "--json"]).stdout);
        let first = out.lines().next().expect("a host").to_owned();
        serde_json::from_str::<Value>(&first).expect("JSON")
    };
    let failing = wait_for("it is said", PATIENCE, || {
        Some(host()).filter(|host| host["ready"] == false)
    });
    let why = failing["failing"].as_str().expect("a reason");
    assert!(says_why("", why), "{why}");
    let listed = text(&cluster.run(&["hosts", "-p", "mezcal"]).stdout);
    assert!(says_why("failing: ", &listed), "{listed}");
    // Other jobs are not affected, and a job that needs that host does not wait for ever.
    let jobs = "{\"cmd\": \"true\", \"host\": \"mezcal01\", \"id\": \"there\"}\n{\"cmd\": \"true\", \"id\": \"anywhere\"}\n";
    let mut run = cluster.start_run(jobs, &["--host-timeout", "5s"]);
    let reasons = wait_for("somebody asks", PATIENCE, || {
        let said = text(&cluster.run(&["why", "-p", "mezcal", "there"]).stdout);
        said.contains("failing").then_some(said)
    });
    assert!(says_why("is failing: ", &reasons), "{reasons}");
    assert_eq!(
        wait_for("the run ends", PATIENCE, || run
            .try_wait()
            .expect("our child"))
        .code(),
        Some(1)
    );
    let there = result_of(&cluster, "there");
    assert!(
        there["outcome"] == "no_host"
            && (there["error"].as_str()).is_some_and(|error| says_why("is failing: ", error)),
        "{there}"
    );
    assert_eq!(result_of(&cluster, "anywhere")["code"], 0);
    // With room again its engines are started, and the host works.
    bar_descriptors(keeper, false);
    wait_for("it is back", PATIENCE, || {
        Some(host()).filter(|host| host["ready"] == true && host["failing"].is_null())
    });
    std::fs::write(cluster.path("again.json"), jobs).expect("written");
    let out = cluster.run(&["run", "-p", "mezcal", "again.json", "-o", "again.results"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    // An engine that had no descriptors left reports it before it exits.
    cluster.finish_with(&["open files", "died with status 1"]);
}

/// Whether a text says, after `before`, why the engines do not start. Each new start of an engine
/// can fail in another way: the keeper lacks descriptors for it, or the engine that was started
/// does. So the words can be others each time that somebody asks.
fn says_why(before: &str, text: &str) -> bool {
    ["an engine died with status 1", "cannot start an engine: "]
        .iter()
        .any(|reason| text.contains(&format!("{before}2 of 2 engines do not start: {reason}")))
}

fn keeper(cluster: &Cluster, host: usize) -> i32 {
    let socket = cluster.path(&format!("run{host:02}"));
    wait_for("a keeper", PATIENCE, || {
        alive_with("keeper --host").into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            text(&line).contains(&socket.display().to_string())
        })
    })
}

fn parent(pid: i32) -> Option<i32> {
    mezcal_common::system::proc::state_and_parent(pid).map(|(_, parent)| parent)
}

fn result_of(cluster: &Cluster, id: &str) -> Value {
    let line = results(&cluster.path("results.json"))
        .into_iter()
        .find(|line| line["id"] == id);
    line.unwrap_or_else(|| panic!("a result of {id}"))["result"].clone()
}

#[test]
fn cancel_takes_jobs_batches_and_everything_of_ones_own() {
    let cluster = Cluster::running(2, 1);
    let mark = format!("16180{}", std::process::id());
    let jobs: String = ["one", "two", "three", "four"]
        .iter()
        .map(|id| {
            format!(
                "{}\n",
                json!({"cmd": format!("trap 'exit 7' INT; sleep {mark} & wait"), "id": id})
            )
        })
        .collect();
    let mut run = cluster.start_run(&jobs, &[]);
    // A shell and a sleep each.
    wait_for("both slots are busy", PATIENCE, || {
        (alive_with(&format!("sleep {mark}")).len() == 4).then_some(())
    });
    let other = cluster.run(&["cancel", "-p", "sato", "one"]);
    assert_eq!(
        (other.status.code(), text(&other.stderr)),
        (Some(2), "coordinator: no batch of yours is running; `coordinator batches` lists those that have ended\n".into())
    );
    let none = cluster.run(&["cancel", "-p", "mezcal", "five"]);
    assert!(
        none.status.code() == Some(2) && text(&none.stderr).contains("has no job \"five\""),
        "{}",
        text(&none.stderr)
    );
    // By number and by `id`; waiting and running; with a signal that the job knows.
    let out = cluster.run(&[
        "cancel", "-p", "mezcal", "4", "one", "--signal", "INT", "--grace", "20",
    ]);
    assert_eq!(
        (out.status.code(), text(&out.stdout)),
        (
            Some(0),
            "2 jobs cancelled; 1 process had to be killed, 0 are alive\n".into()
        ),
        "{}",
        text(&out.stderr)
    );
    let again = cluster.run(&["cancel", "-p", "mezcal", "one"]);
    assert_eq!(
        (again.status.code(), text(&again.stdout)),
        (Some(0), "nothing of it was waiting or running\n".into())
    );
    // The other two have the slots now.
    wait_for("both slots are busy again", PATIENCE, || {
        (alive_with(&format!("sleep {mark}")).len() == 4).then_some(())
    });
    let batch = wait_for("the batch is named", PATIENCE, || {
        let said = cluster.log_text("run");
        Some(said.split("this is batch ").nth(1)?.get(..36)?.to_owned())
    });
    let out = cluster.run(&[
        "cancel",
        "-p",
        "mezcal",
        "--batch",
        &batch[..8],
        "--grace",
        "0",
    ]);
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    assert_eq!(out.status.code(), Some(0));
    // Without control groups, processes that a dying shell has reaped itself are not counted.
    assert!(
        text(&out.stdout).starts_with("2 jobs cancelled; ")
            && text(&out.stdout).ends_with("killed, 0 are alive\n"),
        "{}",
        text(&out.stdout)
    );
    assert_eq!(ended(&mut run), Some(1));
    let one = result_of(&cluster, "one");
    assert_eq!(
        (one["outcome"].as_str(), one["code"].as_i64()),
        (Some("cancelled"), Some(7)),
        "{one}"
    );
    assert!(result_of(&cluster, "four")["started"].is_null());
    cluster.finish();
}

#[test]
fn a_cancel_that_takes_long_says_what_it_waits_for() {
    let cluster = Cluster::running(1, 1);
    let mark = format!("27182{}", std::process::id());
    let mut run = cluster.start_run(
        &format!("{}\n", json!({"cmd": format!("sleep {mark}")})),
        &[],
    );
    wait_for("it runs", PATIENCE, || {
        (!alive_with(&format!("sleep {mark}")).is_empty()).then_some(())
    });
    // The keeper first: it would continue its engine.
    let stopped: Vec<i32> = [keeper(&cluster, 1)]
        .into_iter()
        .chain(engines(&cluster, 1))
        .collect();
    stopped.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    let mut cancel = cluster.command(&["cancel", "-p", "mezcal", "--all", "--grace", "0"]);
    let mut cancel = cancel
        .stderr(cluster.log("cancel"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let said = wait_for("it says what it waits for", PATIENCE, || {
        Some(cluster.log_text("cancel")).filter(|said| said.contains("waiting for the proof"))
    });
    assert!(
        said.contains("1 attempt on ") && said.contains("are its keeper and engines stopped?"),
        "{said}"
    );
    assert_eq!(
        cancel.try_wait().expect("our child"),
        None,
        "there is no proof yet"
    );
    stopped.iter().for_each(|pid| signal(*pid, libc::SIGCONT));
    assert_eq!(ended(&mut cancel), Some(0));
    assert_eq!(ended(&mut run), Some(1));
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    cluster.finish();
}

#[test]
fn an_engine_that_is_killed_or_stopped_harms_no_other_job() {
    let cluster = Cluster::running(1, 3);
    let mark = format!("14142{}", std::process::id());
    let jobs = [
        // Its engine is killed from outside, once.
        json!({"id": "killed", "cmd": format!("test -e killed || {{ touch killed; setsid sleep {mark} & sleep {mark}; }}; echo $MEZCAL_ATTEMPT")}),
        // Stops its own engine, which should not even be noticed.
        json!({"id": "stopper", "cmd": "kill -STOP $PPID; sleep 0.3; echo over"}),
        json!({"id": "quiet", "cmd": "until test -e go; do sleep 0.05; done; echo fine"}),
    ];
    let mut run = cluster.start_run(&lines(&jobs), &[]);
    let sleepers = || alive_with(&format!("sleep {mark}"));
    // The count includes the shell, whose command line has the same words.
    wait_for("the victim runs", PATIENCE, || {
        (sleepers().len() == 3).then_some(())
    });
    let victim = sleepers().into_iter().find_map(|pid| {
        let engines = engines(&cluster, 1);
        let mut above = parent(pid);
        while let Some(pid) = above.filter(|pid| *pid > 1) {
            if engines.contains(&pid) {
                return Some(pid);
            }
            above = parent(pid);
        }
        None
    });
    let first_ones = sleepers();
    signal(victim.expect("the victim's engine"), libc::SIGKILL);
    // The second attempt finds the file: a process that sleeps is of the first one.
    wait_for("what it left is dead", PATIENCE, || {
        first_ones
            .iter()
            .all(|pid| !sleepers().contains(pid))
            .then_some(())
    });
    std::fs::write(cluster.path("go"), "").expect("written");
    assert_eq!(ended(&mut run), Some(0));
    let killed = result_of(&cluster, "killed");
    assert_eq!(
        (killed["attempt"].as_u64(), killed["stdout_tail"].as_str()),
        (Some(2), Some("2\n")),
        "{killed}"
    );
    let stopper = result_of(&cluster, "stopper");
    assert_eq!(
        (stopper["attempt"].as_u64(), stopper["stdout_tail"].as_str()),
        (Some(1), Some("over\n")),
        "{stopper}"
    );
    assert_eq!(result_of(&cluster, "quiet")["stdout_tail"], "fine\n");
    cluster.finish();
}

#[test]
fn a_keeper_that_is_killed_takes_its_jobs_along_and_they_run_again() {
    for containment in ["subreaper", "auto"] {
        let cluster = Cluster::with(1, 2, containment, "10m").start();
        let mark = format!("17320{}-{containment}", std::process::id());
        let hostile = program("hostile");
        let cmd = format!(
            "echo x >> runs; test $(wc -l < runs) = 2 || exec {} deaf {mark}",
            hostile.display()
        );
        let mut run = cluster.start_run(&format!("{}\n", json!({"id": "job", "cmd": cmd})), &[]);
        wait_for("it runs", PATIENCE, || {
            (alive_with(&mark).len() == 2).then_some(())
        });
        signal(keeper(&cluster, 1), libc::SIGKILL);
        assert_eq!(ended(&mut run), Some(0));
        assert!(
            alive_with(&mark).is_empty(),
            "{containment}: the first attempt outlives the second"
        );
        // One attempt may have been sent to the agent while it was leaving, and was lost unstarted.
        assert!(result_of(&cluster, "job")["attempt"].as_u64() >= Some(2));
        assert_eq!(
            std::fs::read_to_string(cluster.path("runs")).expect("written"),
            "x\nx\n"
        );
        cluster.finish();
    }
}

#[test]
fn a_stopped_agent_loses_its_jobs_at_the_end_of_the_lease_and_not_before() {
    let cluster = Cluster::with(1, 2, "auto", "15s").start();
    let mark = format!("22360{}", std::process::id());
    let jobs = [
        json!({"id": "long", "cmd": format!("test $MEZCAL_ATTEMPT = 2 || {{ trap '' TERM; setsid sleep {mark} & sleep {mark}; }}")}),
        json!({"id": "short", "cmd": "sleep 3; echo done"}),
    ];
    let mut run = cluster.start_run(&lines(&jobs), &[]);
    let sleepers = || alive_with(&format!("sleep {mark}")).len();
    // The count includes the shell, whose command line has the same words.
    wait_for("it runs", PATIENCE, || (sleepers() == 3).then_some(()));
    let agent = cluster.agent_pid(1);
    signal(agent, libc::SIGSTOP);
    let stopped = std::time::Instant::now();
    wait_for("the lease ends it", PATIENCE, || {
        (sleepers() == 0).then_some(())
    });
    // The last acknowledged heartbeat was at most five seconds old.
    assert!(
        stopped.elapsed().as_secs() >= 9,
        "killed {:?} after the agent had been stopped",
        stopped.elapsed()
    );
    signal(agent, libc::SIGCONT);
    assert_eq!(ended(&mut run), Some(0));
    let long = result_of(&cluster, "long");
    assert_eq!(
        (long["attempt"].as_u64(), long["code"].as_i64()),
        (Some(2), Some(0)),
        "{long}"
    );
    let short = result_of(&cluster, "short");
    assert_eq!(
        (short["attempt"].as_u64(), short["stdout_tail"].as_str()),
        (Some(1), Some("done\n")),
        "it ended within the lease: {short}"
    );
    cluster.finish();
}

#[test]
fn the_jobs_of_a_client_that_is_killed_die() {
    let cluster = Cluster::running(2, 2);
    let mark = format!("26457{}", std::process::id());
    let hostile = program("hostile");
    let jobs: String = ["setsid", "deaf", "daemon", "mover"]
        .iter()
        .map(|kind| format!("{}\n", json!({"argv": [hostile, kind, mark]})))
        .collect();
    let mut run = cluster.start_run(&jobs, &[]);
    wait_for("they run", PATIENCE, || {
        (alive_with(&mark).len() >= 9).then_some(())
    });
    // `start_run` started it through nsenter, which execs: the child is the client itself.
    run.kill().expect("killed");
    let _ = run.wait();
    wait_for("nothing is left", 2 * PATIENCE, || {
        alive_with(&mark).is_empty().then_some(())
    });
    wait_for("the slots are free", PATIENCE, || {
        cluster
            .connected()
            .iter()
            .all(|h| h["busy"] == 0)
            .then_some(())
    });
    cluster.finish();
}

#[test]
fn no_shot_in_the_dark_after_thousands_of_leftovers() {
    let most = std::env::var("MEZCAL_LEFTOVERS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000);
    let cluster = Cluster::running(1, 4);
    let mark = format!("28284{}", std::process::id());
    let descriptors =
        |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let count = || {
        let mut pids = engines(&cluster, 1);
        pids.extend([cluster.agent_pid(1), keeper(&cluster, 1)]);
        pids.into_iter()
            .map(|pid| (pid, descriptors(pid)))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let job = |_| {
        format!(
            "{}\n",
            json!({"cmd": format!("sleep {mark} & (setsid sleep {mark} &) ; true")})
        )
    };
    // A few jobs first, so that everything has been opened once.
    let mut run = cluster.start_run(&(0..50).map(job).collect::<String>(), &[]);
    assert_eq!(ended(&mut run), Some(0));
    let before = count();
    let mut run = cluster.start_run(&(0..most).map(job).collect::<String>(), &["-q"]);
    let status = wait_for("the run ends", 20 * PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(0));
    let results = results(&cluster.path("results.json"));
    assert_eq!(results.len(), most);
    assert!(
        results.iter().all(|l| l["result"]["leftovers_killed"]
            .as_u64()
            .is_some_and(|n| n >= 1)),
        "each has left something"
    );
    assert!(alive_with(&format!("sleep {mark}")).is_empty());
    assert_eq!(
        count(),
        before,
        "descriptors by process: the same engines, and no growth"
    );
    for pid in before.keys() {
        let zombies = children(*pid).into_iter().filter(|c| {
            mezcal_common::system::proc::state_and_parent(*c).is_some_and(|(s, _)| s == 'Z')
        });
        assert_eq!(zombies.count(), 0, "zombies of {pid}");
    }
    assert!(
        cluster.connected().iter().all(|h| h["busy"] == 0),
        "no slot is lost"
    );
    cluster.finish();
}

fn children(of: i32) -> Vec<i32> {
    mezcal_tests::pids()
        .filter(|pid| parent(*pid) == Some(of))
        .collect()
}

#[test]
fn a_job_whose_output_is_on_a_hung_mount_can_be_cancelled_and_times_out() {
    let cluster = Cluster::running(1, 2);
    let Some(mount) = HungMount::new(&cluster.path("hung"), false) else {
        return cluster.finish();
    };
    let jobs = [
        json!({"id": "out", "cmd": "true", "out": "hung/file"}),
        json!({"id": "cd", "cmd": "true", "cd": "hung/dir", "timeout": 0.5}),
        json!({"id": "after", "cmd": "echo fine"}),
    ];
    let mut run = cluster.start_run(&lines(&jobs), &[]);
    wait_for("both slots are taken", PATIENCE, || {
        cluster
            .connected()
            .iter()
            .any(|h| h["busy"] == 2)
            .then_some(())
    });
    let out = cluster.run(&["cancel", "-p", "mezcal", "out", "--grace", "0"]);
    assert_eq!(
        (out.status.code(), text(&out.stdout)),
        (
            Some(0),
            "1 job cancelled; 0 processes had to be killed, 0 are alive\n".into()
        )
    );
    assert_eq!(ended(&mut run), Some(1));
    assert_eq!(result_of(&cluster, "out")["outcome"], "cancelled");
    let cd = result_of(&cluster, "cd");
    assert_eq!(
        (cd["outcome"].as_str(), cd["started"].is_null()),
        (Some("timeout"), true),
        "{cd}"
    );
    assert_eq!(result_of(&cluster, "after")["stdout_tail"], "fine\n");
    drop(mount);
    cluster.finish();
}

#[test]
fn what_cannot_be_killed_is_said_and_its_slot_is_held_until_it_is_gone() {
    let cluster = Cluster::running(1, 2);
    let Some(mount) = HungMount::new(&cluster.path("hung"), true) else {
        return cluster.finish();
    };
    let jobs = [
        // One job waits for its file in the engine, one in a process of its own.
        json!({"id": "engine", "cmd": "true", "out": "hung/file"}),
        json!({"id": "process", "cmd": "exec cat hung/file"}),
    ];
    let mut run = cluster.start_run(&lines(&jobs), &[]);
    wait_for("both slots are taken", PATIENCE, || {
        cluster
            .connected()
            .iter()
            .any(|h| h["busy"] == 2)
            .then_some(())
    });
    let cat = format!("cat {}", "hung/file");
    wait_for("cat waits", PATIENCE, || {
        (alive_with(&cat).iter().any(|pid| {
            mezcal_common::system::proc::state_and_parent(*pid)
                .is_some_and(|(s, _)| s == 'D' || s == 'S')
        }))
        .then_some(())
    });
    let out = cluster.run(&["cancel", "-p", "mezcal", "--all", "--grace", "0", "--json"]);
    let summary: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        (out.status.code(), summary["survivors"].as_u64()),
        (Some(1), Some(2)),
        "{summary}"
    );
    assert_eq!(ended(&mut run), Some(1));
    assert_eq!(result_of(&cluster, "engine")["outcome"], "unkillable");
    let process = result_of(&cluster, "process");
    assert_eq!(
        (process["outcome"].as_str(), process["survivors"].as_u64()),
        (Some("unkillable"), Some(1)),
        "{process}"
    );
    assert!(
        process["error"]
            .as_str()
            .is_some_and(|e| e.contains("(cat, ")),
        "it is named: {process}"
    );
    let mut next = cluster.start_run("{\"cmd\": \"echo fine\"}\n", &[]);
    // The jobs have ended, but the slots are not free: no job was pulled from the coordinator.
    wait_for("it is submitted", PATIENCE, || {
        cluster
            .log_text("run")
            .matches("this is batch")
            .nth(1)
            .map(|_| ())
    });
    assert!(
        next.try_wait().expect("our child").is_none(),
        "no slot is free"
    );
    drop(mount);
    assert_eq!(ended(&mut next), Some(0), "the slots are free again");
    cluster.finish();
}

#[test]
fn a_stopped_keeper_and_a_stopped_client_hurt_nobody_else() {
    let cluster = Cluster::running(1, 2);
    let mark = format!("33166{}", std::process::id());
    let keeper = keeper(&cluster, 1);
    signal(keeper, libc::SIGSTOP);
    let job = json!({"cmd": format!("setsid sleep {mark} & sleep {mark} & wait"), "id": "job"});
    let mut run = cluster.start_run(
        &format!("{job}\n{{\"cmd\": \"echo fine\", \"id\": \"other\"}}\n"),
        &[],
    );
    let sleepers = || alive_with(&format!("sleep {mark}"));
    wait_for("it runs", PATIENCE, || {
        (sleepers().len() == 3).then_some(())
    });
    let out = cluster.run(&["cancel", "-p", "mezcal", "job", "--grace", "0"]);
    assert_eq!(
        (out.status.code(), sleepers()),
        (Some(0), vec![]),
        "engines need no keeper to kill"
    );
    assert_eq!(ended(&mut run), Some(1));
    assert_eq!(result_of(&cluster, "other")["stdout_tail"], "fine\n");
    signal(keeper, libc::SIGCONT);
    let mut run = cluster.start_run(&format!("{job}\n"), &[]);
    wait_for("it runs", PATIENCE, || {
        (sleepers().len() == 3).then_some(())
    });
    signal(run.id() as i32, libc::SIGSTOP);
    // It is lost when it has been silent for 20 s, and given up when its lease has ended after
    // another 20 s.
    wait_for(
        "a client that says nothing loses its batch",
        2 * PATIENCE,
        || sleepers().is_empty().then_some(()),
    );
    signal(run.id() as i32, libc::SIGCONT);
    assert_eq!(
        ended(&mut run),
        Some(1),
        "it comes back, and hears what has become of its jobs"
    );
    let result = result_of(&cluster, "job");
    let error = result["error"].as_str().expect("a reason");
    assert!(
        result["outcome"] == "cancelled" && error.contains("its client was gone for longer than"),
        "{result}"
    );
    cluster.finish();
}

#[test]
fn recycled_process_ids_are_never_signalled() {
    // In a PID namespace the next pid can be chosen: other processes get the pids that jobs have
    // just had.
    let script = r#"
        set -e
        for round in $(seq 40); do
            : > ids
            { echo "{\"cmd\": \"echo \$\$ >> ids; (setsid sleep 30 & echo \$! >> ids); sleep 30 & echo \$! >> ids\"}"
              echo "{\"cmd\": \"echo \$\$ >> ids; sleep 0.03\", \"timeout\": 0.01}"
              echo "{\"cmd\": \"sleep 0.05\"}"; } > jobs
            "$1" run jobs -j 1 --containment "$2" --progress none > results &
            run=$!
            until [ "$(wc -l < ids)" -ge 3 ] || ! kill -0 $run 2> /dev/null; do :; done
            for id in $(cat ids); do
                for try in 1 2 3 4 5; do
                    [ -e /proc/$id ] && { read -r t < /proc/uptime; continue; }
                    echo $((id - 1)) > /proc/sys/kernel/ns_last_pid
                    (trap 'echo signalled >> signalled' TERM HUP INT CONT; exec sleep 600) &
                    [ "$!" = "$id" ] && echo "$id" >> reused
                    strangers="$strangers $!"
                    break
                done
            done
            wait $run || true
        done
        for stranger in $strangers; do
            kill -0 $stranger || echo "$stranger is dead" >> signalled
            kill -KILL $stranger
        done
    "#;
    for containment in ["subreaper", "auto"] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = std::process::Command::new("unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                script,
                "bash",
            ])
            .arg(program("coordinator"))
            .arg(containment);
        let out = command
            .current_dir(dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .output()
            .expect("it runs");
        if text(&out.stderr).contains("unshare") {
            return mezcal_tests::say_skipped(&format!(
                "process id namespaces: {}",
                text(&out.stderr).trim()
            ));
        }
        assert!(out.status.success(), "{containment}: {}", text(&out.stderr));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!(read("signalled"), "", "{containment}");
        assert!(
            read("reused").lines().count() >= 20,
            "{containment}: too few ids were used again: {}",
            read("reused")
        );
    }
}

#[test]
fn logs_show_files_and_what_is_kept_of_the_rest() {
    let cluster = Cluster::running(2, 2);
    let wait = "until test -e go; do sleep 0.02; done";
    let jobs = [
        json!({"id": "file", "cmd": format!("seq 20000; {wait}; echo end; echo err >&2"), "out": "file.out", "err": "file.err"}),
        json!({"id": "both", "cmd": format!("echo one; echo two >&2; {wait}; echo three"), "out": "both", "err": "both"}),
        json!({"id": "kept", "cmd": format!("echo one; echo two >&2; {wait}; echo three")}),
        json!({"id": "keeps-the-batch", "cmd": "until test -e stop; do sleep 0.02; done"}),
        json!({"id": "waits", "cmd": "true"}),
    ];
    let mut run = cluster.start_run(&lines(&jobs), &[]);
    let logs = |args: &[&str]| {
        let out = cluster.run(&[&["logs", "-p", "mezcal"], args].concat());
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    let seq: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    wait_for("the files are written", PATIENCE, || {
        (logs(&["both"]).1 == "one\ntwo\n" && logs(&["file"]).1 == seq).then_some(())
    });
    wait_for("the pipes are written", PATIENCE, || {
        (logs(&["kept"]) == (Some(0), "one\n".into(), "two\n".into())).then_some(())
    });
    assert_eq!(
        logs(&["kept", "--err"]),
        (Some(0), String::new(), "two\n".into())
    );
    let waits = logs(&["waits"]);
    assert!(
        waits.0 == Some(1) && waits.2.contains("has not started yet"),
        "{waits:?}"
    );
    assert_eq!(logs(&["nothing"]).0, Some(1));
    let follow = |id| {
        cluster
            .command(&["logs", "-p", "mezcal", "-f", id])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let mut followers: Vec<Child> = ["file", "both", "kept"].map(follow).into();
    // Each follower is ready when it has shown the output so far.
    for follower in &mut followers {
        let mut first = [0; 4];
        std::io::Read::read_exact(follower.stdout.as_mut().expect("a pipe"), &mut first)
            .expect("some output");
    }
    std::fs::write(cluster.path("go"), "").expect("written");
    let ended_with: Vec<(Option<i32>, String, String)> = followers
        .into_iter()
        .map(|follower| {
            let out = follower.wait_with_output().expect("it ends with its job");
            (out.status.code(), text(&out.stdout), text(&out.stderr))
        })
        .collect();
    assert_eq!(
        ended_with[0],
        (Some(0), format!("{}end\n", &seq[4..]), "err\n".into())
    );
    assert_eq!(
        ended_with[1],
        (Some(0), "two\nthree\n".into(), String::new())
    );
    assert_eq!(ended_with[2], (Some(0), "three\n".into(), "two\n".into()));
    // The jobs have ended, and their files are still there; output without a file is in the result.
    assert_eq!(
        logs(&["file", "--out"]),
        (Some(0), format!("{seq}end\n"), String::new())
    );
    let kept = logs(&["kept"]);
    assert!(
        kept.0 == Some(1) && kept.2.contains("in its result"),
        "{kept:?}"
    );
    std::fs::write(cluster.path("stop"), "").expect("written");
    assert_eq!(ended(&mut run), Some(0));
    cluster.finish();
}
