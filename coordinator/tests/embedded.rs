//! `coordinator run` without a cluster, as a user meets it: input, results, exit statuses, signals.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn coordinator(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    // Keeps profiles of the person who runs the tests out.
    command
        .current_dir(dir)
        .env("XDG_CONFIG_HOME", dir.join("no-config"))
        .env_remove("MEZCAL_PROFILE")
        .stdin(Stdio::null());
    command
}

fn run_in(dir: &Path, jobs: &str, args: &[&str]) -> Output {
    std::fs::write(dir.join("jobs.json"), jobs).expect("written");
    coordinator(dir)
        .args(["run", "jobs.json", "--progress", "none"])
        .args(args)
        .output()
        .expect("it runs")
}

fn run(jobs: &str, args: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let out = run_in(dir.path(), jobs, args);
    let lines = String::from_utf8(out.stdout)
        .expect("UTF-8")
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    (
        out.status.code(),
        lines,
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many processes have a text in their command lines.
fn alive_with(mark: &str) -> usize {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<i32>().ok())
            else {
                return false;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line)
                .replace('\0', " ")
                .contains(mark)
                && mezcal_common::system::proc::state_and_parent(pid)
                    .is_some_and(|(state, _)| state != 'Z')
        })
        .count()
}

#[test]
fn whoever_may_not_read_the_jobs_may_not_read_their_results() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let mode = |name: &str| std::fs::metadata(path(name)).expect("there").mode() & 0o777;
    // Modes follow the umask, and no file is made with a wider one.
    std::fs::write(path("any"), "").expect("written");
    for (jobs, secret) in [("jobs.json", false), ("secret.json", true)] {
        std::fs::write(
            path(jobs),
            "{\"cmd\": \"true\", \"env\": {\"SECRET\": \"hunter2\"}}\n",
        )
        .expect("written");
        let permissions = if secret { 0o600 } else { 0o666 };
        std::fs::set_permissions(path(jobs), std::fs::Permissions::from_mode(permissions))
            .expect("set");
        let (results, log) = (format!("{jobs}.results"), format!("{jobs}.log"));
        let mut command = coordinator(dir.path());
        let out = command
            .args([
                "run",
                jobs,
                "-o",
                &results,
                "-l",
                &log,
                "--progress",
                "none",
            ])
            .output()
            .expect("it runs");
        assert_eq!(
            out.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        for made in [&results, &log] {
            assert_eq!(
                mode(made),
                if secret { 0o600 } else { mode("any") },
                "{made}"
            );
        }
    }
}

/// compat.md §1.1, the `code` table.
#[test]
fn codes_are_those_of_bakapara() {
    let table = [
        ("", 0),
        ("# c", 0),
        ("exit 3", 3),
        ("no-such-command-here", 127),
        ("/etc/passwd", 126),
        ("false|true", 1),
        ("(exit 3)|(exit 5)|true", 5),
        ("yes|head -1", 141),
        ("set +o pipefail; false|true", 0),
        ("exit 256", 0),
        ("exit -1", 255),
        ("( ", 2),
        ("if", 2),
        ("; true", 2),
        ("kill -9 $$", -9),
        ("sh -c \"kill -9 \\$\\$\"", -9),
        ("sh -c \"kill -9 \\$\\$\"; exit $?", 137),
    ];
    let jobs: String = table
        .iter()
        .map(|(cmd, _)| format!("{}\n", serde_json::json!({"cmd": cmd})))
        .collect();
    for args in [
        &["--keep-order"][..],
        &["--keep-order", "--compat", "bakapara"],
    ] {
        let (status, lines, _) = run(&jobs, args);
        assert_eq!(status, Some(if args.len() == 1 { 1 } else { 0 }));
        for ((cmd, code), line) in table.iter().zip(&lines) {
            assert_eq!(line["result"]["code"], *code, "{cmd}");
            assert_eq!(line["result"]["status"], "ok", "{cmd}");
        }
    }
}

/// compat.md §1.2: keys, their order, separators, escapes and time formats.
#[test]
fn a_compat_line_is_bakaparas_to_the_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = run_in(
        dir.path(),
        "{\"cmd\":\"echo 東京\",\"id\":7,\"z\":null,\"f\":1.50,\"result\":{\"old\":1}}\n",
        &["--compat", "bakapara"],
    );
    let line = String::from_utf8(out.stdout).expect("ASCII");
    assert!(line.is_ascii(), "{line}");
    let masked = mask(&line);
    assert_eq!(
        masked,
        "{\"cmd\": \"echo \\u6771\\u4eac\", \"id\": 7, \"z\": null, \"f\": 1.50, \"result\": {\"status\": \"ok\", \"received\": \"TIME\", \
         \"code\": 0, \"engine_id\": 0, \"started\": \"TIME\", \"completed\": \"TIME\", \"msg_id\": \"UUID\", \"submitted\": \"TIME\", \
         \"pyerr\": null, \"host\": \"HOST\", \"elapsed\": \"ELAPSED\", \"pyout\": null}}\n"
    );
    assert_eq!(out.status.code(), Some(0));
}

/// Replaces the parts that differ between runs, checking their form.
fn mask(line: &str) -> String {
    let value: Value = serde_json::from_str(line).expect("JSON");
    let result = &value["result"];
    let mut text = line.to_owned();
    let naive = |t: &str| {
        let shape: String = t
            .chars()
            .map(|c| if c.is_ascii_digit() { '9' } else { c })
            .collect();
        assert!(
            ["9999-99-99T99:99:99.999999", "9999-99-99T99:99:99"].contains(&shape.as_str()),
            "{t}"
        );
    };
    for key in ["received", "started", "completed", "submitted"] {
        let time = result[key].as_str().expect(key);
        naive(time);
        text = text.replacen(
            &format!("\"{key}\": \"{time}\""),
            &format!("\"{key}\": \"TIME\""),
            1,
        );
    }
    for (key, word) in [("msg_id", "UUID"), ("host", "HOST"), ("elapsed", "ELAPSED")] {
        let old = result[key].as_str().expect(key);
        text = text.replacen(
            &format!("\"{key}\": \"{old}\""),
            &format!("\"{key}\": \"{word}\""),
            1,
        );
    }
    text.replacen(
        &format!("\"engine_id\": {}", result["engine_id"]),
        "\"engine_id\": 0",
        1,
    )
}

#[test]
fn a_result_has_the_twelve_keys_first_and_then_ours() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = run_in(
        dir.path(),
        "{\"cmd\": \"echo out; echo err >&2; exit 4\", \"n\": 1e400}\n",
        &[],
    );
    let line = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(
        line.contains("\"n\": 1e400, \"result\""),
        "the text of numbers is kept: {line}"
    );
    let keys: Vec<&str> = line[line.find("\"result\"").expect("a result")..]
        .split('"')
        .skip(3)
        .step_by(2)
        .collect();
    let order = [
        "status",
        "received",
        "code",
        "engine_id",
        "started",
        "completed",
        "msg_id",
        "submitted",
        "pyerr",
        "host",
        "elapsed",
        "pyout",
        "signal",
        "attempt",
        "outcome",
        "user_seconds",
        "system_seconds",
        "max_rss_bytes",
        "clock_offset",
        "stdout_tail",
        "stderr_tail",
    ];
    let found: Vec<&str> = keys.into_iter().filter(|k| order.contains(k)).collect();
    assert_eq!(found, order, "{line}");
    let tail = |key: &str, text: &str| {
        assert!(
            line.contains(&format!("\"{key}\": \"{text}\\n\"")),
            "{line}"
        )
    };
    tail("stdout_tail", "out");
    tail("stderr_tail", "err");
}

#[test]
fn results_say_how_much_was_written_and_a_run_how_many_wrote_more_than_is_kept() {
    let jobs = [
        r#"{"cmd": "head -c 5000 /dev/zero | tr '\\0' x"}"#,
        r#"{"cmd": "head -c 4096 /dev/zero | tr '\\0' x >&2"}"#,
        r#"{"cmd": "echo to a file; head -c 100000 /dev/zero >&2", "out": "file"}"#,
        r#"{"cmd": "echo here", "cd": "/no/such/dir"}"#,
    ];
    let run = |jobs: &str, args: &[&str]| {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("jobs.json"), jobs).expect("written");
        let out = coordinator(dir.path())
            .args(["run", "jobs.json", "--keep-order"])
            .args(args)
            .output()
            .expect("it runs");
        let lines = String::from_utf8(out.stdout).expect("UTF-8");
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        (lines, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (lines, said) = run(&jobs.join("\n"), &[]);
    let counts = |line: &Value| {
        (
            line["result"]["stdout_bytes"].as_u64(),
            line["result"]["stderr_bytes"].as_u64(),
        )
    };
    let counts: Vec<_> = lines.iter().map(counts).collect();
    assert_eq!(
        counts,
        [
            (Some(5000), Some(0)),
            (Some(0), Some(4096)),
            (None, Some(100_000)),
            (None, None)
        ]
    );
    assert_eq!(lines[0]["result"]["stdout_tail"], "x".repeat(4096));
    let word =
        "2 jobs wrote more output than the 4 KiB that are kept: --output-dir keeps all of it";
    assert!(said.contains(word), "{said}");
    // All output is kept, and no message is needed.
    let (lines, said) = run(jobs[0], &["--output-dir", "outputs"]);
    assert!(
        lines[0]["result"]["stdout_bytes"].is_null() && !said.contains("more output"),
        "{said}"
    );
}

#[test]
fn what_cannot_start_is_a_result_and_the_batch_goes_on() {
    let jobs = [
        serde_json::json!({"cmd": "true", "cd": "/no/such/dir"}),
        serde_json::json!({"cmd": "true", "out": "/no/such/dir/file"}),
        serde_json::json!({"cmd": "true", "out": "fifo"}),
        serde_json::json!({"argv": ["no-such-program"]}),
        serde_json::json!({"cmd": "echo fine"}),
    ];
    let dir = tempfile::tempdir().expect("a directory");
    assert!(
        Command::new("mkfifo")
            .arg(dir.path().join("fifo"))
            .status()
            .expect("mkfifo")
            .success()
    );
    let text: String = jobs.iter().map(|j| format!("{j}\n")).collect();
    let out = run_in(dir.path(), &text, &["--keep-order"]);
    assert_eq!(out.status.code(), Some(1));
    let lines: Vec<Value> = String::from_utf8(out.stdout)
        .expect("UTF-8")
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let words = ["change to directory", "cannot write", "FIFO", "not in PATH"];
    for (line, word) in lines.iter().zip(words) {
        let r = &line["result"];
        assert!(
            r["error"].as_str().is_some_and(|e| e.contains(word)),
            "{word}: {r}"
        );
        assert_eq!(
            (&r["status"], &r["outcome"]),
            (&Value::from("error"), &Value::from("start_failed"))
        );
        for key in ["code", "started", "completed", "elapsed"] {
            assert!(r[key].is_null(), "{key}: {r}");
        }
        assert!(
            r["host"].is_string() && r["engine_id"].is_u64(),
            "where that was: {r}"
        );
    }
    assert_eq!(lines[4]["result"]["code"], 0);
}

#[test]
fn what_the_host_lacks_for_a_moment_costs_no_job() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("program");
    std::fs::write(&program, "").expect("written");
    // As long as it is open for writing it cannot be started (ETXTBSY, execve(2)).
    let mut writer = std::fs::OpenOptions::new()
        .append(true)
        .mode(0o755)
        .open(&program)
        .expect("opened");
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("set");
    writer
        .write_all(b"#!/bin/sh\necho fine\n")
        .expect("written");
    let jobs = [
        serde_json::json!({"argv": ["./program"]}),
        serde_json::json!({"cmd": "sleep 0.3; echo > others-run"}),
    ];
    std::fs::write(
        dir.path().join("jobs.json"),
        jobs.map(|job| format!("{job}\n")).concat(),
    )
    .expect("written");
    let mut command = coordinator(dir.path());
    command
        .args(["run", "jobs.json", "-j", "2", "--progress", "none"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let run = command.spawn().expect("it starts");
    wait_for("the other job has run", || {
        dir.path().join("others-run").exists()
    });
    drop(writer);
    let out = run.wait_with_output().expect("it ends");
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

#[test]
fn what_is_killed_has_run_until_all_of_it_is_dead() {
    let job = serde_json::json!({"cmd": "(setsid sleep 50 >/dev/null 2>&1 &); echo started", "timeout": "1s"});
    let (code, lines, _) = run(&format!("{job}\n"), &["--leftover", "wait"]);
    assert_eq!(
        (code, &lines[0]["result"]["outcome"]),
        (Some(1), &Value::from("timeout"))
    );
    let result = &lines[0]["result"];
    assert!(
        result["elapsed_seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds >= 1.0),
        "{result}"
    );
}

#[test]
fn what_the_kernel_does_not_take_is_a_mistake_of_the_list_and_with_bakapara_a_result() {
    let jobs = [
        serde_json::json!({"cmd": format!(": {}", "x".repeat(200_000))}),
        serde_json::json!({"cmd": "a\u{0}b"}),
        serde_json::json!({"cmd": "echo fine"}),
    ];
    let text: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    let (status, lines, said) = run(&text, &[]);
    assert_eq!((status, lines.len()), (Some(2), 0));
    for (line, word) in ["MAX_ARG_STRLEN", "NUL"].into_iter().enumerate() {
        assert!(
            said.contains(&format!("jobs.json:{}:8: ", line + 1)) && said.contains(word),
            "{said}"
        );
    }
    let (status, lines, _) = run(&text, &["--compat", "bakapara", "--keep-order"]);
    assert_eq!(status, Some(0));
    let ended: Vec<(&Value, &Value)> = lines
        .iter()
        .map(|line| (&line["result"]["status"], &line["result"]["code"]))
        .collect();
    let (error, ok, none) = (Value::from("error"), Value::from("ok"), Value::Null);
    assert_eq!(
        ended,
        [(&error, &none), (&error, &none), (&ok, &Value::from(0))]
    );
}

#[test]
fn jobs_of_several_slots_leave_no_room_for_others() {
    let dir = tempfile::tempdir().expect("a directory");
    // Each job records how many slots are taken while it runs.
    let job = |slots: u16| {
        let note = format!(
            "mkdir -p now; touch now/$MEZCAL_JOB_ID.{slots}; total=0; for n in now/*; do total=$((total + ${{n##*.}})); done"
        );
        format!(
            "{{\"cmd\": \"{note}; echo $total >> seen; sleep 0.03; rm now/$MEZCAL_JOB_ID.{slots}\", \"slots\": {slots}}}\n"
        )
    };
    let jobs: String = [1, 3, 1, 2, 1, 1, 4, 1, 2, 3, 1, 1]
        .repeat(3)
        .into_iter()
        .map(job)
        .collect();
    let out = run_in(dir.path(), &jobs, &["-j", "4"]);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let seen = std::fs::read_to_string(dir.path().join("seen")).expect("notes");
    let taken: Vec<u32> = seen
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert_eq!(taken.len(), 36);
    assert!(taken.iter().all(|n| (1..=4).contains(n)), "{taken:?}");
    assert!(taken.contains(&4), "all four are used at times: {taken:?}");
}

#[test]
fn what_has_a_successful_result_need_not_run_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let jobs = "{\"cmd\": \"echo one >> ran\"}\n{\"cmd\": \"echo two >> ran; test -e good\", \"note\": [1, 2]}\n\
                {\"cmd\": \"echo one >> ran\"}\n{\"cmd\": \"echo three $MEZCAL_JOB_ID >> ran\", \"after\": [1]}\n";
    let first: String = jobs.lines().take(3).map(|l| format!("{l}\n")).collect();
    assert_eq!(
        run_in(dir.path(), &first, &["-o", "results", "-q"])
            .status
            .code(),
        Some(1)
    );
    let results = std::fs::read_to_string(path("results")).expect("there");
    let two = results
        .lines()
        .find(|l| l.contains("two"))
        .expect("its line")
        .to_owned();
    // The writer was interrupted, and a person has sorted the lines and moved a key.
    let mut sorted: Vec<&str> = results.lines().collect();
    sorted.sort();
    let moved = two
        .replace("\"note\": [1, 2], ", "")
        .replace('{', "{\"note\": [1, 2], ")
        .replacen("{\"note\": [1, 2], \"status", "{\"status", 1);
    let text: String = sorted
        .iter()
        .map(|l| format!("{}\n", if *l == two { &moved } else { *l }))
        .collect();
    std::fs::write(path("results"), text + "{\"cmd\": \"echo thr").expect("written");
    std::fs::write(path("good"), "").expect("written");
    std::fs::remove_file(path("ran")).expect("there");
    let out = run_in(dir.path(), jobs, &["-o", "results", "--resume"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("2 jobs need not run"), "{said}");
    let ran = std::fs::read_to_string(path("ran")).expect("notes");
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort();
    assert_eq!(
        ran,
        ["three 4", "two"],
        "what is done did not run, and names are as before"
    );
    let results = std::fs::read_to_string(path("results")).expect("there");
    assert_eq!(
        results.lines().count(),
        4,
        "one line for each job:\n{results}"
    );
    assert!(results.lines().all(
        |l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["result"]["code"] == 0
    ));
    assert_eq!(
        run_in(dir.path(), jobs, &["-o", "results", "--resume-failed"])
            .status
            .code(),
        Some(0),
        "nothing has failed"
    );
    assert_eq!(
        run_in(dir.path(), jobs, &["-o", "nothing", "--resume"])
            .status
            .code(),
        Some(0),
        "no results yet: everything runs"
    );
    std::fs::write(path("text"), "not a result\n").expect("written");
    let out = run_in(dir.path(), jobs, &["-o", "text", "--resume"]);
    assert!(
        out.status.code() == Some(2)
            && String::from_utf8_lossy(&out.stderr).contains("text:1: this line is not a result")
    );
}

#[test]
fn results_of_what_cannot_run_again_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let jobs =
        "{\"cmd\": \"test -e good\", \"id\": \"a\"}\n{\"cmd\": \"true\", \"after\": [\"a\"]}\n";
    assert_eq!(
        run_in(dir.path(), jobs, &["-o", "results", "-q"])
            .status
            .code(),
        Some(1)
    );
    let before = std::fs::read(path("results")).expect("there");
    let unchanged = || std::fs::read(path("results")).expect("there") == before;
    std::fs::write(path("jobs.json"), jobs).expect("written");
    let run = |args: &[&str]| {
        let out = coordinator(dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .arg("run")
            .args(args)
            .output()
            .expect("it runs");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    // The results are also the jobs: a line that is taken out would be lost.
    let (code, said) = run(&["results", "-o", "results", "--resume"]);
    assert!(
        code == Some(2) && said.contains("is the input, too") && unchanged(),
        "{said}"
    );
    // No coordinator is there to run them.
    std::fs::create_dir_all(path("mezcal/profiles")).expect("made");
    let profile = format!(
        "coordinator = \"127.0.0.1:9\"\nidentity = \"{}\"\n",
        path("none").display()
    );
    std::fs::write(path("mezcal/profiles/gone.toml"), profile).expect("written");
    let (code, said) = run(&[
        "-p",
        "gone",
        "jobs.json",
        "-o",
        "results",
        "--resume-failed",
    ]);
    assert!(code == Some(3) && unchanged(), "{code:?}: {said}");
    // A job that comes after a changed job does not run before that one.
    std::fs::write(
        path("jobs.json"),
        jobs.replace("test -e good", "test -e better"),
    )
    .expect("written");
    let (code, said) = run(&["jobs.json", "-o", "results", "--resume-failed"]);
    assert!(
        code == Some(2) && said.contains("job 2 comes after job 1") && unchanged(),
        "{said}"
    );
    // With all of that in order, they run.
    std::fs::write(path("jobs.json"), jobs).expect("written");
    std::fs::write(path("good"), "").expect("written");
    std::os::unix::fs::symlink("results", path("link")).expect("made");
    // In a shared directory another user may have made this link.
    std::fs::write(path("victim"), "untouched").expect("written");
    std::os::unix::fs::symlink("victim", path("results.new")).expect("made");
    assert_eq!(
        run(&["jobs.json", "-o", "link", "--resume-failed", "-q"]),
        (Some(0), String::new())
    );
    assert_eq!(
        std::fs::read_to_string(path("results"))
            .expect("there")
            .lines()
            .count(),
        2
    );
    assert!(path("link").is_symlink());
    assert_eq!(
        std::fs::read_to_string(path("victim")).expect("there"),
        "untouched"
    );
}

/// Both ends of a pseudo-terminal (pty(7)).
fn terminal() -> (std::fs::File, std::fs::File) {
    use std::os::fd::FromRawFd;
    let (mut ours, mut theirs) = (0, 0);
    let nothing = std::ptr::null_mut();
    // SAFETY: it fills the two numbers, with descriptors that no other code has; name, settings and
    // size may be null (openpty(3)).
    let made = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            nothing,
            nothing.cast(),
            nothing.cast(),
        )
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    unsafe {
        (
            std::fs::File::from_raw_fd(ours),
            std::fs::File::from_raw_fd(theirs),
        )
    }
}

#[test]
fn a_terminal_gets_no_character_of_a_result_that_it_might_obey() {
    let dir = tempfile::tempdir().expect("a directory");
    let job = "{\"cmd\": \"printf '\\\\302\\\\2332J \\\\342\\\\200\\\\256'\", \"name\": \"\u{9b}2J \u{202e}\u{2067}\u{61c}\"}\n";
    std::fs::write(dir.path().join("jobs.json"), job).expect("written");
    let (mut ours, theirs) = terminal();
    let mut command = coordinator(dir.path());
    let child = command
        .args(["run", "jobs.json", "-q"])
        .stdout(theirs)
        .stderr(Stdio::null())
        .spawn();
    // Its end of the terminal is closed here, too.
    drop(command);
    let mut child = child.expect("it runs");
    let mut shown = Vec::new();
    // EIO means that no process has the other end any more.
    let _ = ours.read_to_end(&mut shown);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let shown = String::from_utf8(shown).expect("UTF-8");
    assert!(
        !shown.contains(|c: char| !c.is_ascii() || c.is_control() && c != '\n' && c != '\r'),
        "{shown:?}"
    );
    let line: Value = serde_json::from_str(shown.trim()).expect("JSON");
    assert_eq!(line["name"], "\u{9b}2J \u{202e}\u{2067}\u{61c}");
    assert_eq!(line["result"]["stdout_tail"], "\u{9b}2J \u{202e}");
    let plain = run_in(dir.path(), job, &["-q"]);
    assert!(
        String::from_utf8_lossy(&plain.stdout).contains('\u{9b}'),
        "elsewhere it is as it was"
    );
}

#[test]
fn a_reader_of_messages_that_leaves_costs_no_results() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = format!("sleep 31091{}", std::process::id());
    std::fs::write(
        dir.path().join("jobs.json"),
        format!("{{\"cmd\": \"{mark}\"}}\n").repeat(3),
    )
    .expect("written");
    let mut command = coordinator(dir.path());
    let mut run = command
        .args(["run", "jobs.json", "-o", "results", "-j", "2"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(run.stderr.take());
    wait_for("they run", || alive_with(&mark) > 0);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&run),
        rustix::process::Signal::INT,
    )
    .expect("signalled");
    assert_eq!(run.wait().expect("our child").code(), Some(130));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("results"))
            .expect("there")
            .lines()
            .count(),
        3
    );
}

#[test]
fn bad_input_is_told_all_at_once_and_nothing_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("results"), "old").expect("written");
    let jobs = "{\"cmd\": \"touch started\"}\n\n{\"cmd\": 1}\n[1]\n{\"cmd\": \"a\", \"timeout\": \"soon\"}\n{\"cd\": \"x\"}\n{\"cmd\": \"a\", \"id\": 1}\n{\"cmd\": \"b\", \"id\": \"1\"}\n{\"cmd\": \"x\",}\n{\"cmd\": \"x\", \"env\": {\"MEZCAL_SLOT\": \"1\"}}\n{\"cmd\": \"x\", \"slots\": 0}\n";
    let out = run_in(dir.path(), jobs, &["-o", "results", "--force"]);
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    for expected in [
        "jobs.json:3:9: key \"cmd\": must be a string, not a number",
        "jobs.json:4:1: a job must be an object",
        "jobs.json:5:25: key \"timeout\": \"soon\" is not a duration",
        "jobs.json:6:1: no `cmd` in this job",
        "jobs.json:8:1: id \"1\" is used twice",
        "jobs.json:9:13: not JSON: trailing comma",
        "MEZCAL_SLOT is set by Mezcal itself",
        "key \"slots\": must be a whole number from 1 to 65535",
    ] {
        assert!(said.contains(expected), "{expected} in\n{said}");
    }
    assert!(!dir.path().join("started").exists());
    assert_eq!(
        std::fs::read_to_string(dir.path().join("results")).expect("there"),
        "old"
    );
}

#[test]
fn other_misuse_is_exit_2_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    let case = |jobs: &str, args: &[&str], word: &str| {
        let out = run_in(dir.path(), jobs, args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains(word), "{word} in {said}");
    };
    let good = "{\"cmd\": \"touch started\"}\n";
    case("", &[], "no jobs in it");
    case("ls -l\n", &[], "--lines");
    case(
        "{\"cmd\": \"x\"}\n{\"cmd\": \"touch started\", \"slots\": 3}\n",
        &["-j", "2"],
        "job 2 takes 3 slots",
    );
    case(good, &["-o", "jobs.json"], "is the input, too");
    case(
        good,
        &["-o", "/no/such/dir/results"],
        "cannot write /no/such/dir/results",
    );
    std::fs::write(dir.path().join("full"), "x").expect("written");
    case(good, &["-o", "full"], "--force");
    case(good, &["-p", "nowhere"], "no profile \"nowhere\"");
    case(good, &["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE");
    case(good, &["--timeout", "soon"], "not a duration");
    let out = coordinator(dir.path())
        .args(["run", "missing.json"])
        .output()
        .expect("it runs");
    assert_eq!(out.status.code(), Some(2));
    assert!(!dir.path().join("started").exists());
}

#[test]
fn arrays_lines_and_results_are_all_job_lists() {
    let (status, lines, _) = run(
        "[{\"cmd\": \"echo 1\"},\n  {\"cmd\":\n \"echo 2\"}]",
        &["--keep-order"],
    );
    assert_eq!((status, lines.len()), (Some(0), 2));
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let (status, again, _) = run(&text, &["--keep-order"]);
    assert_eq!(status, Some(0));
    assert_eq!(again[1]["result"]["stdout_tail"], "2\n");
    let (status, plain, _) = run("echo 'a b'\n\n  exit 7\n", &["--lines", "--keep-order"]);
    assert_eq!((status, plain.len()), (Some(1), 2));
    assert_eq!(
        (&plain[0]["cmd"], &plain[1]["result"]["code"]),
        (&Value::from("echo 'a b'"), &Value::from(7))
    );
}

#[test]
fn environment_directories_and_files_are_as_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("sub")).expect("made");
    std::fs::write(dir.path().join("sub/in"), "input\n").expect("written");
    let jobs = [
        serde_json::json!({"cmd": "pwd; cat; echo $A-$B-$MEZCAL_JOB_ID-$MEZCAL_ATTEMPT", "cd": "sub", "stdin": "in", "out": "o", "env": {"B": "job"}, "id": "x"}),
        serde_json::json!({"cmd": "echo one; echo two >&2; echo three", "out": "both", "err": "both"}),
        serde_json::json!({"cmd": "cat; ls /proc/self/fd | wc -l; echo $A; umask", "name": "n"}),
    ];
    let text: String = jobs.iter().map(|j| format!("{j}\n")).collect();
    let out = run_in(
        dir.path(),
        &text,
        &[
            "--keep-order",
            "--env",
            "A=run",
            "--env",
            "B=run",
            "--output-dir",
            "outputs",
        ],
    );
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect(name);
    let sub = dir.path().join("sub").canonicalize().expect("there");
    assert_eq!(
        read("sub/o"),
        format!("{}\ninput\nrun-job-x-1\n", sub.display())
    );
    assert_eq!(read("both"), "one\ntwo\nthree\n");
    // ls has the directory open beside 0, 1 and 2.
    assert!(
        read("outputs/3.out").starts_with("4\nrun\n0"),
        "{}",
        read("outputs/3.out")
    );
    assert_eq!(read("outputs/x.err"), "");
}

#[test]
fn an_interrupt_kills_everything_that_runs_here() {
    for (signals, limit) in [(1, 130), (2, 130)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = format!("16180{}{signals}", std::process::id());
        let jobs = format!(
            "{}\n{}\n",
            serde_json::json!({"cmd": format!("trap '' TERM INT; setsid sleep {mark} & sleep {mark}; sleep {mark}")}),
            serde_json::json!({"cmd": format!("sleep {mark}")})
        );
        std::fs::write(dir.path().join("jobs.json"), jobs).expect("written");
        let mut child = coordinator(dir.path())
            .args(["run", "jobs.json", "-j", "2", "-o", "results"])
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // The shell of the first job with two sleeps, and the second job.
        wait_for("both jobs run", || {
            alive_with(&format!("sleep {mark}")) == 4
        });
        for _ in 0..signals {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::INT,
            )
            .expect("signalled");
        }
        let mut status = None;
        wait_for("the run ends", || {
            status = child.try_wait().expect("our child");
            status.is_some()
        });
        assert!(alive_with(&format!("sleep {mark}")) == 0);
        assert_eq!(status.and_then(|s| s.code()), Some(limit));
        assert_eq!(
            std::fs::read_to_string(dir.path().join("results"))
                .expect("results")
                .matches("\"aborted\"")
                .count(),
            2
        );
    }
}

#[test]
fn killing_the_run_itself_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = format!("14142{}", std::process::id());
    std::fs::write(
        dir.path().join("jobs.json"),
        format!("{{\"cmd\": \"setsid sleep {mark} & sleep {mark}\"}}\n"),
    )
    .expect("written");
    let mut child = coordinator(dir.path())
        .args(["run", "jobs.json", "-q"])
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_for("the job runs", || alive_with(&format!("sleep {mark}")) > 0);
    child.kill().expect("killed");
    child.wait().expect("reaped");
    wait_for("nothing is left", || {
        alive_with(&format!("sleep {mark}")) == 0
    });
}

#[test]
fn a_run_whose_keeper_is_killed_says_so_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = format!("26457{}", std::process::id());
    std::fs::write(dir.path().join("jobs"), format!("sleep {mark}\n").repeat(3)).expect("written");
    let mut command = coordinator(dir.path());
    command
        .args(["run", "jobs", "--lines", "-j", "2", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    wait_for("a job runs", || alive_with(&format!("sleep {mark}")) > 0);
    let run = child.id() as i32;
    let pids = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let keeper = pids.into_iter().find(|pid| {
        mezcal_common::system::proc::state_and_parent(*pid).is_some_and(|(_, parent)| parent == run)
    });
    let keeper = rustix::process::Pid::from_raw(keeper.expect("its only child")).expect("a number");
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("killed");
    let out = child.wait_with_output().expect("our child");
    assert_eq!(out.status.code(), Some(3));
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let errors: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON")["result"]["error"].clone())
        .collect();
    assert_eq!(
        errors,
        vec!["the keeper of the engines is gone, and their jobs with it"; 3]
    );
    wait_for("nothing is left", || {
        alive_with(&format!("sleep {mark}")) == 0
    });
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = coordinator(dir.path())
        .args(["run", "-", "--lines", "--progress", "none"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all("echo hello; sleep 0.01\n".repeat(500).as_bytes())
        .expect("written");
    drop(stdin);
    let mut first = [0; 10];
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut first).expect("a first result");
    drop(stdout);
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

#[test]
fn leftovers_of_a_job_are_killed_before_its_result_comes() {
    let mark = format!("17320{}", std::process::id());
    let (status, lines, _) = run(
        &format!(
            "{{\"cmd\": \"setsid sleep {mark} >/dev/null 2>&1 & (sleep {mark} &) ; echo ok\"}}\n"
        ),
        &[],
    );
    assert_eq!(status, Some(0));
    assert_eq!(lines[0]["result"]["stdout_tail"], "ok\n");
    assert!(alive_with(&format!("sleep {mark}")) == 0);
}

#[test]
fn timeouts_and_retries_do_what_they_say() {
    let jobs = "{\"cmd\": \"sleep 30\", \"timeout\": 0.2}\n{\"cmd\": \"echo x >> tries; exit 9\", \"retries\": 2}\n{\"cmd\": \"test $MEZCAL_ATTEMPT = 2\", \"retries\": 5}\n";
    let (status, lines, _) = run(jobs, &["--keep-order"]);
    assert_eq!(status, Some(1));
    let r = |i: usize| &lines[i]["result"];
    assert_eq!(
        (&r(0)["outcome"], &r(0)["code"], &r(0)["status"]),
        (&"timeout".into(), &(-15).into(), &"error".into())
    );
    assert_eq!((&r(1)["attempt"], &r(1)["code"]), (&3.into(), &9.into()));
    assert_eq!((&r(2)["attempt"], &r(2)["code"]), (&2.into(), &0.into()));
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("jobs.json"),
        "{\"cmd\": \"touch started; until test -e go; do sleep 0.02; done\"}\n",
    )
    .expect("written");
    let mut command = Command::new("nohup");
    command
        .arg(env!("CARGO_BIN_EXE_coordinator"))
        .args(["run", "jobs.json", "-o", "results"])
        .current_dir(dir.path());
    command
        .env("XDG_CONFIG_HOME", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    wait_for("the job runs", || dir.path().join("started").exists());
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::HUP,
    )
    .expect("signalled");
    std::fs::write(dir.path().join("go"), "").expect("written");
    assert!(child.wait().expect("our child").success());
}

#[test]
fn output_that_cannot_be_written_is_exit_74() {
    let (status, _, said) = run("{\"cmd\": \"true\"}\n", &["-o", "/dev/full"]);
    assert_eq!(status, Some(74), "{said}");
    assert!(said.contains("cannot write results"), "{said}");
}

#[test]
fn the_binary_alone_in_an_empty_directory_is_enough() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("coordinator");
    std::fs::copy(env!("CARGO_BIN_EXE_coordinator"), &program).expect("copied");
    let mut command = Command::new(&program);
    command
        .args(["run", "-", "--lines", "-j", "2", "-q"])
        .current_dir(dir.path())
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    // The engines run from the file that was opened at the start, not from its name.
    std::fs::remove_file(&program).expect("removed");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"echo one\necho two\n")
        .expect("written");
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success());
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 2);
}

#[test]
fn a_reader_that_leaves_is_noticed_while_nothing_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = format!("22360{}", std::process::id());
    std::fs::write(dir.path().join("jobs"), format!("true\nsleep {mark}\n")).expect("written");
    let mut command = coordinator(dir.path());
    command
        .args(["run", "jobs", "--lines", "-j", "2", "-q"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 10]).expect("a first result");
    drop(stdout);
    assert_eq!(child.wait().expect("our child").code(), Some(141));
    assert!(alive_with(&format!("sleep {mark}")) == 0);
}

#[test]
fn jobs_start_in_a_clean_world() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("bad-start"),
        "echo bash was made to read this\n",
    )
    .expect("written");
    std::fs::write(
        dir.path().join("jobs.json"),
        concat!(
            "{\"argv\": [\"cat\", \"/proc/self/status\"]}\n",
            "{\"argv\": [\"ls\", \"/proc/self/fd\"]}\n",
            "{\"cmd\": \"cat; echo $NOTIFY_SOCKET$LISTEN_FDS$BASH_ENV$SHELLOPTS_WAS; env | grep -cE '^MEZCAL_(JOB_ID|ATTEMPT|ENGINE_ID|SLOT|HOST|BATCH)='\", \"id\": \"env\"}\n",
            "{\"argv\": [\"env\"], \"env\": {\"LANG\": \"C\"}}\n",
            "{\"cmd\": \"greet; echo $MAKEFLAGS\"}\n",
        ),
    )
    .expect("written");
    for containment in ["auto", "subreaper"] {
        // A parent that ignores and blocks signals and leaves a descriptor open.
        let script = "import os, signal, sys\n\
            signal.signal(signal.SIGUSR1, signal.SIG_IGN); signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])\n\
            os.dup2(2, 9); os.set_inheritable(9, True)\n\
            os.environ.update({'BASH_ENV': 'bad-start', 'NOTIFY_SOCKET': '/run/x', 'LISTEN_FDS': '3', 'MEZCAL_JOB_ID': 'mine',\n\
                'BASH_FUNC_greet%%': '() { echo a function; }', 'MAKEFLAGS': ' -j2 --jobserver-auth=7,8 -- V=1'})\n\
            os.execv(sys.argv[1], sys.argv[1:])\n";
        let mut command = Command::new("python3");
        command.args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_coordinator"),
            "run",
            "jobs.json",
            "--keep-order",
            "-q",
            "--env",
            "LANG=x",
        ]);
        command
            .args(["--containment", containment])
            .current_dir(dir.path())
            .env("XDG_CONFIG_HOME", dir.path());
        let out = command.stdin(Stdio::null()).output().expect("it runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        let tail = |i: usize| {
            lines[i]["result"]["stdout_tail"]
                .as_str()
                .expect("output")
                .to_owned()
        };
        for mask in ["SigBlk", "SigIgn", "SigCgt"] {
            let line = tail(0)
                .lines()
                .find_map(|l| l.strip_prefix(mask)?.strip_prefix(":\t").map(str::to_owned))
                .expect("a mask");
            // Signals 32 and 33 are the libc's own; its posix_spawn has them ignored.
            let set = u64::from_str_radix(&line, 16).expect("a number") & !0x1_8000_0000;
            assert_eq!(set, 0, "{containment}: {mask} {line}");
        }
        // The fourth one is the directory that ls reads.
        assert_eq!(tail(1), "0\n1\n2\n3\n", "{containment}");
        assert_eq!(
            tail(2),
            "\n6\n",
            "{containment}: stdin is empty, nothing of the caller's service manager, six names of ours"
        );
        assert!(
            tail(3).contains("LANG=C\n") && tail(3).contains("MEZCAL_JOB_ID=4\n"),
            "{}",
            tail(3)
        );
        assert_eq!(
            tail(4),
            "a function\n-- V=1\n",
            "the shell's functions, and no jobserver whose descriptors are closed"
        );
    }
}

#[test]
fn what_outlives_a_job_is_killed_and_counted_or_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let jobs = concat!(
        "{\"cmd\": \"(sleep 0.3; touch late) & sleep 600 & exit 3\"}\n",
        "{\"cmd\": \"(setsid sh -c 'sleep 0.3; touch waited' &); exit 4\", \"leftover\": \"wait\"}\n",
        "{\"cmd\": \"setsid sleep 600 & exit 5\", \"leftover\": \"wait\", \"timeout\": 0.2}\n",
    );
    let out = run_in(dir.path(), jobs, &["--keep-order", "-j", "3"]);
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let r = |i: usize| &lines[i]["result"];
    assert_eq!(
        (&r(0)["code"], &r(0)["outcome"]),
        (&3.into(), &"exited".into()),
        "{}",
        r(0)
    );
    // The subshell may not have come to its own child yet.
    assert!(
        r(0)["leftovers_killed"]
            .as_u64()
            .is_some_and(|n| n == 2 || n == 3),
        "{}",
        r(0)
    );
    assert_eq!(
        (&r(1)["code"], &r(1)["leftovers_killed"]),
        (&4.into(), &0.into()),
        "{}",
        r(1)
    );
    assert!(dir.path().join("waited").exists() && !dir.path().join("late").exists());
    assert!(r(1)["elapsed"].as_str() > Some("0:00:00.3"), "{}", r(1));
    assert_eq!(
        (&r(2)["code"], &r(2)["outcome"]),
        (&5.into(), &"timeout".into()),
        "{}",
        r(2)
    );
}

#[test]
fn a_batch_can_be_given_up_early() {
    let mark = format!("38729{}", std::process::id());
    let jobs = format!(
        "{{\"cmd\": \"sleep {mark}\"}}\n{{\"cmd\": \"sleep 0.1; exit 9\"}}\n{{\"cmd\": \"true\"}}\n"
    );
    let (status, lines, said) = run(&jobs, &["-j", "2", "--halt", "now,fail=1", "--keep-order"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(alive_with(&format!("sleep {mark}")) == 0);
    let outcomes: Vec<&Value> = lines.iter().map(|l| &l["result"]["outcome"]).collect();
    assert_eq!(outcomes[..2], ["cancelled", "exited"]);
    assert!(
        lines[0]["result"]["error"]
            .as_str()
            .is_some_and(|e| e.contains("--halt")),
        "{}",
        lines[0]
    );
    let (status, _, said) = run(
        &jobs.replace("exit 9", "true"),
        &["-j", "2", "--halt", "now,success=1"],
    );
    assert_eq!(
        status,
        Some(0),
        "what was looked for has been found: {said}"
    );
    let (status, lines, _) = run(&jobs, &["-j", "2", "--time-limit", "0.5", "--keep-order"]);
    assert_eq!(
        (status, &lines[0]["result"]["status"]),
        (Some(1), &"aborted".into())
    );
    assert!(
        lines[0]["result"]["error"]
            .as_str()
            .is_some_and(|e| e.contains("time limit of 500ms")),
        "{}",
        lines[0]
    );
    let (status, _, said) = run(&jobs, &["--halt", "later,fail=1"]);
    assert!(status == Some(2) && said.contains("soon or now"), "{said}");
}

#[test]
fn memory_is_the_jobs_own_and_time_is_of_all_its_processes() {
    let dir = tempfile::tempdir().expect("a directory");
    // A coordinator with a job list of 60 MB must not make its jobs look that large.
    let pad = "x".repeat(100_000);
    let mut jobs = format!("{{\"argv\": [\"true\"], \"pad\": \"{pad}\"}}\n").repeat(600);
    jobs.push_str("{\"cmd\": \"python3 -c 'x = bytearray(60 << 20)'\", \"id\": \"big\"}\n");
    jobs.push_str("{\"cmd\": \"rm -f burnt; (sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; touch burnt' &); until test -e burnt; do sleep 0.02; done\", \"id\": \"daemon\"}\n");
    for containment in ["auto", "subreaper"] {
        let out = run_in(
            dir.path(),
            &jobs,
            &["-j", "2", "--containment", containment, "--halt", "never"],
        );
        assert_eq!(out.status.code(), Some(0));
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        for line in text
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).expect("JSON"))
        {
            let r = &line["result"];
            match line["id"].as_str() {
                None => assert!(
                    r["max_rss_bytes"].as_u64().is_none_or(|n| n < 16 << 20),
                    "{r}"
                ),
                Some("big") => assert!(
                    r["max_rss_bytes"]
                        .as_u64()
                        .is_some_and(|n| (60 << 20..90 << 20).contains(&n)),
                    "{r}"
                ),
                Some(_) => {
                    let used = r["user_seconds"].as_f64().expect("a time")
                        + r["system_seconds"].as_f64().expect("a time");
                    // 300,000 rounds of a shell's loop: long enough on any machine.
                    assert!(used > 0.05, "an orphan's time counts: {r}");
                    let source = if r["containment"] == "cgroup2" {
                        "cgroup2"
                    } else {
                        "wait4"
                    };
                    assert_eq!(r["usage_source"], source);
                }
            }
        }
    }
}

/// A memory limit of the old kind (cgroup-v1/memory), for this test and its child processes.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    fn new(bytes: u64) -> Result<Self, String> {
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let own = own
            .lines()
            .find_map(|l| l.split_once(":memory:").map(|(_, path)| path.to_owned()))
            .ok_or("no memory controller of version 1")?;
        let dir = Path::new("/sys/fs/cgroup/memory")
            .join(own.trim_start_matches('/'))
            .join(format!("mezcal-test-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let limit = Self(dir);
        std::fs::write(limit.0.join("memory.limit_in_bytes"), bytes.to_string())
            .map_err(|e| e.to_string())?;
        Ok(limit)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn an_out_of_memory_kill_is_said() {
    let limit = match MemoryLimit::new(96 << 20) {
        Ok(limit) => limit,
        Err(why) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED in an_out_of_memory_kill_is_said: {why}"
            );
            return;
        }
    };
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("jobs.json"),
        "{\"argv\": [\"python3\", \"-c\", \"x = bytearray(400 << 20)\"]}\n",
    )
    .expect("written");
    let enter = format!(
        "echo $$ > {}/cgroup.procs && exec \"$@\"",
        limit.0.display()
    );
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            &enter,
            "sh",
            env!("CARGO_BIN_EXE_coordinator"),
            "run",
            "jobs.json",
            "-q",
        ])
        .current_dir(dir.path());
    let out = command
        .env("XDG_CONFIG_HOME", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let line: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let r = &line["result"];
    assert_eq!(r["code"], -9, "{r}");
    assert!(
        r["error"]
            .as_str()
            .is_some_and(|e| e.contains("out-of-memory killer")),
        "{r}"
    );
}

#[test]
fn jobs_come_after_others_and_are_tried_again_when_it_is_worth_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let jobs = concat!(
        "{\"cmd\": \"cat a b > c\", \"after\": [\"a\", 3], \"id\": \"c\"}\n",
        "{\"cmd\": \"sleep 0.2; echo a > a\", \"id\": \"a\"}\n",
        "{\"cmd\": \"test $MEZCAL_ATTEMPT = 3 || exit 75; echo b > b\", \"retries\": 5, \"retry_on\": [75], \"retry_delay\": 0.05}\n",
        "{\"cmd\": \"exit 74\", \"retries\": 5, \"retry_on\": [75, \"timeout\"], \"id\": \"d\"}\n",
        "{\"cmd\": \"touch never\", \"after\": \"d\"}\n",
    );
    let out = run_in(dir.path(), jobs, &["--keep-order", "-j", "4"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let r = |i: usize| &lines[i]["result"];
    assert_eq!(
        (&r(0)["code"], &r(2)["attempt"], &r(3)["attempt"]),
        (&0.into(), &3.into(), &1.into()),
        "{text}"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("c")).expect("made last"),
        "a\nb\n"
    );
    assert_eq!(
        (&r(4)["outcome"], &r(4)["status"], &r(4)["code"]),
        (&"skipped".into(), &"error".into(), &Value::Null)
    );
    assert!(!dir.path().join("never").exists());
    for (wrong, what) in [
        (
            "{\"cmd\": \"true\", \"after\": \"x\"}",
            "there is no job \"x\" in this list",
        ),
        ("{\"cmd\": \"true\", \"after\": 1}", "comes after itself"),
        (
            "{\"cmd\": \"true\", \"id\": \"p\", \"after\": \"q\"}\n{\"cmd\": \"true\", \"id\": \"q\", \"after\": \"p\"}",
            "comes after itself",
        ),
        (
            "{\"cmd\": \"true\", \"retry_on\": [\"often\"]}",
            "neither an exit status nor one of",
        ),
    ] {
        let (status, _, said) = run(wrong, &[]);
        assert!(status == Some(2) && said.contains(what), "{wrong}: {said}");
    }
}

#[test]
fn an_embedded_run_is_the_host_that_it_is_on_and_localhost() {
    let own = mezcal_common::system::config::host_name();
    let job = |host: &str| format!("{}\n", serde_json::json!({"cmd": "true", "host": host}));
    let (status, lines, said) = run(&(job("localhost") + &job(&own)), &["--host-timeout", "5s"]);
    assert_eq!((status, lines.len()), (Some(0), 2), "{said}");
    for (host, what) in [
        (
            "vm,-vm",
            "\"-vm\" is not a host name, since none begins with '-'",
        ),
        ("vm:22", "without a port"),
    ] {
        let (status, _, said) = run(&job(host), &[]);
        assert!(
            status == Some(2) && said.contains("jobs.json:1:") && said.contains(what),
            "{host}: {said}"
        );
    }
}

#[test]
fn inputs_are_located_by_a_command_of_the_users() {
    let dir = tempfile::tempdir().expect("a directory");
    let profiles = dir.path().join("no-config/mezcal/profiles");
    std::fs::create_dir_all(&profiles).expect("made");
    let here = dir.path().display();
    let hook = format!("locate = \"sed -n 's,^{here}/sub/in 1$,& elsewhere localhost=5,p'\"\n");
    std::fs::write(profiles.join("default.toml"), hook).expect("written");
    let jobs = concat!(
        "{\"cmd\": \"true\", \"cd\": \"sub\", \"inputs\": [\"in 1\", \"in 2\"]}\n",
        "{\"cmd\": \"true\", \"inputs\": \"nowhere\"}\n",
    );
    std::fs::create_dir(dir.path().join("sub")).expect("made");
    let out = run_in(dir.path(), jobs, &["--keep-order"]);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(
        (
            &lines[0]["result"]["locality"],
            &lines[1]["result"]["locality"]
        ),
        (&"local".into(), &Value::Null),
        "{text}"
    );
    std::fs::write(profiles.join("default.toml"), "locate = \"exit 9\"\n").expect("written");
    let out = run_in(dir.path(), jobs, &[]);
    assert_eq!(out.status.code(), Some(0), "it is soft");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        said.contains("jobs with `inputs` run anywhere: \"exit 9\" failed"),
        "{said}"
    );
}

/// The ready-made hooks, with answers as the real systems give them.
#[test]
fn gfarm_and_hdfs_are_asked_in_their_own_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples"));
    let answer = |command: &mut Command, paths: &str| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(paths.as_bytes())
            .expect("written");
        let out = child.wait_with_output().expect("it ends");
        (
            String::from_utf8_lossy(&out.stdout).into_owned(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let gfwhere = dir.path().join("gfwhere");
    std::fs::write(
        &gfwhere,
        "#!/bin/sh\ntest \"$1\" = '/home/a b' || exit 1\necho mezcal03 mezcal07\n",
    )
    .expect("written");
    std::fs::set_permissions(
        &gfwhere,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("chmod");
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let (said, _) = answer(
        Command::new(examples.join("locate-gfarm")).env("PATH", path),
        "/home/a b\n/gone\n",
    );
    assert_eq!(
        said.split_ascii_whitespace().collect::<Vec<_>>(),
        ["/home/a", "b", "mezcal03", "mezcal07", "/gone"]
    );
    // A name node that knows one file of two blocks.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let body = if request[..n]
                .starts_with(b"GET /webhdfs/v1/data/x%20y?op=GETFILEBLOCKLOCATIONS ")
            {
                concat!(
                    r#"{"BlockLocations":{"BlockLocation":["#,
                    r#"{"hosts":["h1","h2"],"names":["10.0.0.1:9866","10.0.0.2:9866"],"offset":0,"length":134217728,"corrupt":false},"#,
                    r#"{"hosts":["h2","h3"],"names":["10.0.0.2:9866","10.0.0.3:9866"],"offset":134217728,"length":1000,"corrupt":false}]}}"#
                )
            } else {
                r#"{"RemoteException":{"exception":"FileNotFoundException"}}"#
            };
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let (said, errors) = answer(
        Command::new(examples.join("locate-hdfs")).env("MEZCAL_WEBHDFS", &base),
        "/data/x y\nhdfs://nn/gone\n",
    );
    assert_eq!(
        said, "/data/x y h2=134218728 h1=134217728 h3=1000\n",
        "{errors}"
    );
    assert!(errors.contains("hdfs://nn/gone"), "{errors}");
}

/// Where control groups of version 2 are mounted.
fn control_groups() -> std::path::PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a mount");
    mount.split(' ').nth(4).expect("a mount point").into()
}

#[test]
fn a_run_that_waits_for_jobs_keeps_its_control_groups_when_others_tidy_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = coordinator(dir.path());
    command
        .args(["run", "--stream", "-j", "1", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let (mut jobs, mut results) = (
        child.stdin.take().expect("a pipe"),
        BufReader::new(child.stdout.take().expect("a pipe")),
    );
    let mut run = |cmd: &str| -> Value {
        writeln!(jobs, "{}", serde_json::json!({ "cmd": cmd })).expect("written");
        let lines = results
            .by_ref()
            .lines()
            .map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
        lines
            .into_iter()
            .find(|line| line["result"].is_object())
            .expect("a result")
    };
    let first = run("sed -n 's/^0:://p' /proc/self/cgroup");
    if first["result"]["containment"] == "cgroup2" {
        let leaf = first["result"]["stdout_tail"]
            .as_str()
            .expect("text")
            .trim();
        // `mezcal-run-PID/slot-0-1`, wherever that is mounted.
        let place = Path::new(leaf)
            .parent()
            .and_then(Path::file_name)
            .expect("a place");
        let place = find_directory(&control_groups(), place).expect("the place is there");
        // A new empty directory may be about to be used; an old empty one looks abandoned.
        let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::open(&place)
            .and_then(|f| f.set_modified(an_hour_ago))
            .expect("its time is set");
        assert_eq!(
            run_in(dir.path(), "{\"cmd\": \"true\"}\n", &[])
                .status
                .code(),
            Some(0)
        );
        assert!(place.exists());
        assert_eq!(run("true")["result"]["code"], 0);
        drop(jobs);
        assert_eq!(child.wait().expect("our child").code(), Some(0));
        assert!(!place.exists());
    } else {
        let test = "a_run_that_waits_for_jobs_keeps_its_control_groups_when_others_tidy_up";
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED in {test}: no control groups here"
        );
        drop(jobs);
        child.wait().expect("our child");
    }
}

#[test]
fn jobs_of_a_stream_come_after_earlier_ones_and_answers_name_their_requests() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = coordinator(dir.path());
    command
        .args(["run", "--stream", "-j", "2", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let lines = "{\"cmd\": \"until test -e go; do sleep 0.05; done; echo 1 >> ran\"}
        {\"cmd\": \"echo 2 >> ran\", \"after\": 1, \"id\": \"two\"}
        {\"cmd\": \"true\", \"after\": [1, 3]}
        {\"cmd\": \"true\", \"after\": \"two\"}
        {\"cmd\": \"touch go; false\"}
        {\"cmd\": \"true\", \"after\": [\"5\"]}
        {\"control\": \"hosts\", \"request\": \"which\"}
        {\"control\": \"cancel\", \"jobs\": [9], \"request\": [9]}
        {\"control\": \"cancel\", \"jobs\": [], \"request\": 7}\n";
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(lines.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("our child");
    let said: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let result = |job: u32| {
        said.iter()
            .find(|line| line["job"] == job && line["result"].is_object())
            .expect("a result")["result"]
            .clone()
    };
    let outcomes: Vec<Value> = (1..=6).map(|job| result(job)["outcome"].clone()).collect();
    assert_eq!(
        outcomes,
        [
            "exited",
            "exited",
            "start_failed",
            "start_failed",
            "exited",
            "skipped"
        ]
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("ran")).expect("it ran"),
        "1\n2\n"
    );
    for (job, name) in [(3, "\"3\""), (4, "\"two\"")] {
        let why = result(job)["error"].to_string().replace("\\\"", "\"");
        assert!(
            why.contains(&format!("no job with the number {name} came before it")),
            "{why}"
        );
    }
    let answered = |event: &str| {
        said.iter()
            .find(|line| line["event"] == event)
            .expect("an answer")["request"]
            .clone()
    };
    assert_eq!(
        [
            answered("hosts"),
            answered("refused"),
            answered("cancelled")
        ],
        ["which".into(), serde_json::json!([9]), 7.into()]
    );
}

#[test]
fn names_that_are_not_utf_8_pass_through_as_python_writes_them() {
    use std::os::unix::ffi::OsStrExt;
    let name = |bytes: &'static [u8]| std::ffi::OsStr::from_bytes(bytes);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(name(b"caf\xe9.txt")), "coffee").expect("written");
    std::fs::create_dir(dir.path().join(name(b"d\xff"))).expect("made");
    let jobs = r#"{"argv": ["cat", "caf\udce9.txt"]}
        {"cmd": "cat 'caf\udce9.txt'; printf é | od -An -tx1"}
        {"cmd": "cat; printf %s \"$V\"", "cd": "d\udcff", "out": "o\udc80", "stdin": "../caf\udce9.txt", "env": {"V": "\udcc3\udcfe"}}
        {"cmd": "printf %s \"$BAD$GIVEN\" | od -An -tx1"}
        {"cmd": "true", "cd": "no\udce9ne", "mine": "\ud800"}
    "#;
    std::fs::write(dir.path().join("jobs.json"), jobs).expect("written");
    let mut command = coordinator(dir.path());
    command
        .args([
            "run",
            "jobs.json",
            "--keep-order",
            "-q",
            "--env",
            "BAD",
            "--env",
        ])
        .arg(name(b"GIVEN=\xe9"))
        .env("BAD", name(b"\xff\xfe"));
    let out = command.output().expect("it runs");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<(&str, Value)> = text
        .lines()
        .filter_map(|line| line.split_once(", \"result\": "))
        .map(|(job, rest)| {
            (
                job,
                serde_json::from_str(&rest[..rest.len() - 1]).expect("JSON"),
            )
        })
        .collect();
    let given = jobs
        .lines()
        .filter_map(|line| line.trim().strip_suffix('}'));
    assert!(
        given.eq(lines.iter().map(|(job, _)| *job)),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let tails: Vec<&str> = lines
        .iter()
        .map(|(_, result)| result["stdout_tail"].as_str().unwrap_or("none"))
        .collect();
    assert_eq!(
        tails,
        ["coffee", "coffee c3 a9\n", "none", " ff fe e9\n", "none"]
    );
    let output =
        std::fs::read(dir.path().join(name(b"d\xff")).join(name(b"o\x80"))).expect("output");
    assert_eq!(output, b"coffee\xc3\xfe");
    assert!(
        lines[4].1["error"]
            .as_str()
            .is_some_and(|why| why.contains("no\\xE9ne\": No such file")),
        "{}",
        lines[4].1
    );
    for (job, why) in [
        (
            r#"{"cmd": "a\ud800"}"#,
            r#"key "cmd": \ud800 alone is half of a character"#,
        ),
        (
            r#"{"argv": ["a", "\udc7f"]}"#,
            r#"key "argv": \udc7f alone"#,
        ),
        (
            r#"{"cmd": "a", "env": {"A": "\udd00"}}"#,
            r#"key "env": \udd00 alone"#,
        ),
        (
            r#"{"cmd": "a", "id": "x\udce9"}"#,
            r#"key "id": is not UTF-8"#,
        ),
        (
            r#"{"cmd": "a", "host": ["\udce9"]}"#,
            r#"key "host": is not UTF-8"#,
        ),
        (
            r#"{"cmd": "a", "timeout": 1e999}"#,
            "not a number of seconds",
        ),
        (r#"{"cmd": "a\u0000é\udce9"}"#, "a NUL byte"),
        (r#"{"cmd": "a", "out": "\u0000é"}"#, "a NUL byte"),
    ] {
        let out = run_in(dir.path(), job, &[]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.code() == Some(2) && said.contains(why),
            "{job}: {said}"
        );
    }
    let out = run_in(dir.path(), "echo \0é\n", &["--lines"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("a NUL byte"));
}

#[test]
fn what_is_taken_from_a_results_file_may_come_after_what_is_not_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let jobs = concat!(
        "{\"cmd\": \"true\", \"id\": \"a\"}\n",
        "{\"cmd\": \"test -e there\", \"id\": \"b\", \"after\": [\"a\"]}\n",
        "{\"cmd\": \"true\", \"id\": \"c\", \"after\": \"b\"}\n"
    );
    let out = run_in(dir.path(), jobs, &[]);
    let failed: Vec<&str> = std::str::from_utf8(&out.stdout)
        .expect("UTF-8")
        .lines()
        .filter(|line| !line.contains("\"code\": 0"))
        .collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    std::fs::write(dir.path().join("there"), "").expect("written");
    let again = run_in(dir.path(), &failed.join("\n"), &[]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(0), "{said}");
    assert!(
        said.contains("1 name in `after`") && said.contains("taken to have succeeded"),
        "{said}"
    );
    // A number would mean the job at that place in this list.
    let numbered = failed.join("\n").replace("[\"a\"]", "[1]");
    let refused = run_in(dir.path(), &numbered, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(2) && said.contains("--resume-failed"),
        "{said}"
    );
}

#[test]
fn what_is_run_again_writes_to_the_files_that_it_had() {
    let dir = tempfile::tempdir().expect("a directory");
    let jobs = "{\"cmd\": \"echo A\"}\n{\"cmd\": \"echo B; test -e there\"}\n";
    let options = ["--output-dir", "outputs", "-o", "results"];
    assert_eq!(run_in(dir.path(), jobs, &options).status.code(), Some(1));
    std::fs::remove_dir_all(dir.path().join("outputs")).expect("it was there");
    std::fs::write(dir.path().join("there"), "").expect("written");
    let again = run_in(dir.path(), jobs, &[&options[..], &["--resume"]].concat());
    assert_eq!(
        again.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    let names = || {
        std::fs::read_dir(dir.path().join("outputs"))
            .expect("readable")
            .flatten()
    };
    let mut found: Vec<_> = names().map(|entry| entry.file_name()).collect();
    found.sort();
    assert_eq!(found, ["2.err", "2.out"]);
    assert_eq!(
        std::fs::read(dir.path().join("outputs/2.out")).expect("readable"),
        b"B\n"
    );
}

#[test]
fn nothing_to_run_from_a_pipe_is_no_mistake() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |args: &[&str]| {
        let mut command = coordinator(dir.path());
        command
            .arg("run")
            .args(args)
            .stdin(std::process::Stdio::null());
        let out = command.output().expect("it runs");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    for args in [&["-"][..], &["--lines"], &["--lines", "-0", "-"]] {
        let (status, said) = run(args);
        assert!(
            status == Some(0) && said.contains("nothing was run"),
            "{args:?} {said}"
        );
    }
    for slots in ["+1", "50%", "0", "4097"] {
        let (status, said) = run(&["-j", slots]);
        assert!(
            status == Some(2) && said.contains("from 1 to 4096"),
            "{said}"
        );
    }
}

#[test]
fn lists_of_commands_and_directories_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let name = |bytes: &'static [u8]| std::ffi::OsStr::from_bytes(bytes);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join(name(b"d\xe9"))).expect("made");
    let commands = [
        b"printf %s caf\xe9 \xc3\xa9; pwd".as_slice(),
        b"touch n\xff",
    ];
    std::fs::write(dir.path().join("lines"), commands.join(b"\n".as_slice())).expect("written");
    std::fs::write(dir.path().join("nul"), commands.join(b"\0".as_slice())).expect("written");
    let run = |options: &[&str]| {
        let mut command = coordinator(dir.path());
        command
            .args(["run", "--keep-order", "-q", "--lines"])
            .args(options);
        let out = command
            .arg("--cd")
            .arg(name(b"d\xe9"))
            .arg("--output-dir")
            .arg(name(b"o\xe9"))
            .output()
            .expect("it runs");
        assert_eq!(
            out.status.code(),
            Some(0),
            "{options:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    for options in [&["lines"][..], &["nul", "-0"]] {
        let text = run(options);
        let first = r#"{"cmd": "printf %s caf\udce9 é; pwd", "#;
        assert!(text.starts_with(first), "{options:?}: {text}");
        assert!(
            text.contains(r#"{"cmd": "touch n\udcff", "#),
            "{options:?}: {text}"
        );
        assert!(dir.path().join(name(b"d\xe9/n\xff")).exists());
        std::fs::remove_file(dir.path().join(name(b"d\xe9/n\xff"))).expect("it was there");
        let here = std::fs::canonicalize(dir.path()).expect("a path");
        let written = std::fs::read(dir.path().join(name(b"o\xe9/1.out"))).expect("output");
        assert_eq!(
            written,
            [
                b"caf\xe9\xc3\xa9".as_slice(),
                here.as_os_str().as_bytes(),
                b"/d\xe9\n"
            ]
            .concat()
        );
        std::fs::remove_dir_all(dir.path().join(name(b"o\xe9"))).expect("it was there");
    }
    run(&["lines", "-o", "results"]);
    std::fs::remove_file(dir.path().join(name(b"d\xe9/n\xff"))).expect("it was there");
    run(&["lines", "-o", "results", "--resume"]);
    assert!(
        !dir.path().join(name(b"d\xe9/n\xff")).exists(),
        "its result was recognised"
    );
}

/// A directory of this name, somewhere below another one.
fn find_directory(below: &Path, name: &std::ffi::OsStr) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(below)
        .ok()?
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let entries: Vec<_> = entries.map(|e| e.path()).collect();
    let here = entries
        .iter()
        .find(|dir| dir.file_name() == Some(name))
        .cloned();
    here.or_else(|| entries.iter().find_map(|dir| find_directory(dir, name)))
}
