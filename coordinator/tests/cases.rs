//! Inputs that users of this and other tools have met, each of which once went wrong, with the
//! right result.

use serde_json::Value;
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

/// A line of shell in `dir`, where `$C` is the program.
fn shell(dir: &Path, line: &str) -> Output {
    let mut command = Command::new("bash");
    command
        .args(["-c", line])
        .env("C", env!("CARGO_BIN_EXE_coordinator"))
        .env("XDG_CONFIG_HOME", dir.join("no-config"));
    command
        .env_remove("MEZCAL_PROFILE")
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("bash runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn no_output_file_is_opened_before_the_job_list_is_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (jobs, kept) = (dir.path().join("jobs.json"), "{\"cmd\":\"echo keep\"}\n");
    std::fs::write(&jobs, kept).expect("written");
    std::os::unix::fs::symlink("jobs.json", dir.path().join("link")).expect("linked");
    let refused = [
        "$C run jobs.json -l jobs.json",
        "$C run jobs.json -l ./jobs.json",
        "$C run jobs.json -l link",
        "$C run link -o jobs.json --force",
        "$C run -l jobs.json < jobs.json",
        "$C run -o jobs.json --force < jobs.json",
        "$C run jobs.json >> jobs.json",
        "$C run jobs.json -o new.json -l ./new.json",
        "$C run jobs.json -l log > log",
    ];
    for line in refused {
        let out = shell(dir.path(), line);
        assert_eq!(out.status.code(), Some(2), "{line}: {}", text(&out.stderr));
        assert_eq!(
            std::fs::read_to_string(&jobs).expect("readable"),
            kept,
            "{line}"
        );
    }
    assert!(
        !dir.path().join("new.json").exists(),
        "what was refused has made nothing"
    );
    // A job list with a mistake changes nothing.
    std::fs::write(dir.path().join("bad.json"), "{\"cmd\":1}\n").expect("written");
    std::fs::write(dir.path().join("old"), "old\n").expect("written");
    for line in [
        "$C run bad.json -l old",
        "$C run bad.json -o old --force",
        "$C run bad.json -l none",
        "$C run bad.json -o none",
    ] {
        assert_eq!(shell(dir.path(), line).status.code(), Some(2), "{line}");
        assert_eq!(
            std::fs::read_to_string(dir.path().join("old")).expect("readable"),
            "old\n",
            "{line}"
        );
        assert!(!dir.path().join("none").exists(), "{line}");
    }
}

#[test]
fn a_log_is_appended_to_and_emptied_as_bakapara_did() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("jobs.json"), "{\"cmd\":\"true\"}\n").expect("written");
    for (line, completed) in [
        ("-l log", 1),
        ("-l log", 2),
        ("-l log --compat bakapara", 1),
    ] {
        let out = shell(dir.path(), &format!("$C run jobs.json {line} > /dev/null"));
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let log = std::fs::read_to_string(dir.path().join("log")).expect("readable");
        assert_eq!(log.matches("completed").count(), completed, "{line}: {log}");
    }
}

#[test]
fn two_runs_do_not_write_one_results_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let cmd = |n: u32| format!("echo a{n} >> ran; until [ -e go ]; do sleep 0.01; done");
    let jobs: String = (1..=40)
        .map(|n| {
            format!(
                "{}\n",
                serde_json::json!({"id": format!("a{n}"), "cmd": cmd(n)})
            )
        })
        .collect();
    std::fs::write(dir.path().join("j.json"), jobs).expect("written");
    let run = || {
        let mut command = coordinator(dir.path());
        command
            .args(["run", "-q", "-j4", "j.json", "-o", "r.jsonl", "--resume"])
            .stderr(Stdio::piped());
        command.spawn().expect("it runs")
    };
    let first = run();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !dir.path().join("ran").exists() {
        assert!(Instant::now() < deadline, "the first run does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = first.id();
    let second = run().wait_with_output().expect("it ends");
    assert_eq!(second.status.code(), Some(2));
    let said = text(&second.stderr);
    assert!(
        said.contains(&format!("r.jsonl is being written by process {pid} (")),
        "{said}"
    );
    std::fs::write(dir.path().join("go"), "").expect("written");
    assert_eq!(
        first.wait_with_output().expect("it ends").status.code(),
        Some(0)
    );
    let lines = std::fs::read_to_string(dir.path().join("r.jsonl")).expect("readable");
    assert!(lines.lines().all(|line| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| line["result"]["code"] == 0)
    }));
    assert_eq!(lines.lines().count(), 40);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("ran"))
            .expect("readable")
            .lines()
            .count(),
        40,
        "each job ran once"
    );
}

#[test]
fn a_closed_standard_output_is_said_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("jobs.json"),
        "{\"cmd\":\"echo ran > ran\"}\n",
    )
    .expect("written");
    for verb in [
        "run jobs.json",
        "run --stream",
        "exec -p none h1 -- true",
        "hosts",
        "batches",
        "results x",
        "retry x",
        "token list",
    ] {
        let out = shell(dir.path(), &format!("$C {verb} >&-"));
        assert_eq!(out.status.code(), Some(74), "{verb}: {}", text(&out.stderr));
        assert!(
            text(&out.stderr).contains("standard output is closed"),
            "{verb}: {}",
            text(&out.stderr)
        );
    }
    assert!(!dir.path().join("ran").exists(), "nothing was started");
    for valid in [
        "run jobs.json > /dev/null",
        "run -q jobs.json -o results.json >&-",
    ] {
        let out = shell(dir.path(), &format!("$C {valid}"));
        assert_eq!(out.status.code(), Some(0), "{valid}: {}", text(&out.stderr));
    }
    let full = shell(dir.path(), "$C run -q jobs.json > /dev/full");
    assert_eq!(full.status.code(), Some(74));
}

#[test]
fn output_of_every_job_has_a_file_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let ids = ["x/y", "x_y", "4", "X_y", "é", "e\u{301}"];
    let with = ids.iter().map(|id| {
        format!(
            "{}\n",
            serde_json::json!({"id": id, "cmd": format!("echo 'of {id}'")})
        )
    });
    let without = (7..=8).map(|n| format!("{{\"cmd\":\"echo of job {n}\"}}\n"));
    // The fourth job has no id.
    let jobs: Vec<String> = with
        .clone()
        .take(3)
        .chain(without)
        .chain(with.skip(3))
        .collect();
    std::fs::write(dir.path().join("jobs.json"), jobs.concat()).expect("written");
    let out = shell(
        dir.path(),
        "$C run -q jobs.json --output-dir od -o results.json",
    );
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let mut said: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir.path().join("od"))
        .expect("readable")
        .flatten()
    {
        let name = entry.file_name().into_string().expect("UTF-8");
        let content = std::fs::read_to_string(entry.path()).expect("readable");
        if name.ends_with(".out") {
            assert_eq!(content.lines().count(), 1, "{name}: {content}");
            said.push(content.trim().to_owned());
        }
    }
    said.sort();
    let mut all: Vec<String> = ids
        .iter()
        .map(|id| format!("of {id}"))
        .chain((7..=8).map(|n| format!("of job {n}")))
        .collect();
    all.sort();
    assert_eq!(said, all);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("od/x_y.out")).expect("by its id"),
        "of x_y\n"
    );
}

#[test]
fn words_that_would_do_nothing_are_refused_and_slips_are_warned_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |jobs: &str, args: &str| {
        std::fs::write(dir.path().join("jobs.json"), jobs).expect("written");
        let out = shell(
            dir.path(),
            &format!("$C run jobs.json {args} --progress none"),
        );
        (out.status.code(), text(&out.stderr), text(&out.stdout))
    };
    let (status, said, results) = run(
        "{\"cmd\":\"true\",\"memory\":\"50M\",\"gpus\":1,\"walltime\":\"1s\"}\n",
        "",
    );
    assert_eq!((status, results.as_str()), (Some(2), ""));
    for key in ["memory", "gpus", "walltime"] {
        assert!(
            said.contains(&format!("key \"{key}\"")) && said.contains(&format!("\"x_{key}\"")),
            "{said}"
        );
    }
    assert_eq!(
        run(
            "{\"cmd\":\"true\",\"memory\":\"50M\"}\n",
            "--compat bakapara"
        )
        .0,
        Some(0),
        "as Bakapara took it"
    );
    let (status, said, _) = run(
        "{\"cmd\":\"true\",\"timout\":1,\"x_memory\":1,\"sample\":2}\n",
        "",
    );
    assert_eq!(status, Some(0));
    assert_eq!(said.matches("is \"timeout\" meant?").count(), 1, "{said}");
}

#[test]
fn commands_may_be_separated_by_nul_bytes_and_never_contain_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = shell(
        dir.path(),
        "printf 'touch ran\\0echo b\\n' | $C run --lines -",
    );
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(
        text(&refused.stderr).contains("standard input:1:10: `cmd` contains a NUL byte"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!dir.path().join("ran").exists());
    let taken = shell(
        dir.path(),
        "printf 'echo a\\necho more\\0echo b\\0' | $C run --lines -0 -q --keep-order -",
    );
    let lines: Vec<Value> = text(&taken.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let tails: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["result"]["stdout_tail"].as_str())
        .collect();
    assert_eq!(tails, ["a\nmore\n", "b\n"], "{}", text(&taken.stderr));
}

#[test]
fn our_variables_that_are_set_to_nothing_count_as_not_set() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("jobs"), "true\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command
        .args(["run", "--lines", "jobs"])
        .current_dir(dir.path())
        .env("XDG_CONFIG_HOME", dir.path());
    command
        .env("MEZCAL_PROFILE", "")
        .env("MEZCAL_LOG", "")
        .env("MEZCAL_CONFIG", "")
        .env("MEZCAL_COMPLETE", "");
    let out = command.output().expect("it runs");
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"outcome\": \"exited\""));
}

#[test]
fn a_command_of_a_nul_separated_list_comes_back_with_its_result() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("jobs"), "echo a\necho b\0echo 'c'\0").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command
        .args(["run", "-q", "--lines", "-0", "--keep-order", "jobs"])
        .current_dir(dir.path())
        .env("XDG_CONFIG_HOME", dir.path());
    let out = command.output().expect("it runs");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let told = |i: usize| {
        (
            lines[i]["cmd"].as_str(),
            lines[i]["result"]["stdout_tail"].as_str(),
        )
    };
    assert_eq!(
        (told(0), told(1)),
        (
            (Some("echo a\necho b"), Some("a\nb\n")),
            (Some("echo 'c'"), Some("c\n"))
        )
    );
}
