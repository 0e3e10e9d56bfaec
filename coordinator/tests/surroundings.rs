//! `coordinator run` without a cluster on a host that gives less than usual: no loopback, no
//! directory, few processes or files.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const COORDINATOR: &str = env!("CARGO_BIN_EXE_coordinator");

/// The result of a bash script that starts the coordinator (`"$@"`) with these jobs; the script
/// runs in `dir`.
fn within(script: &str, wrapper: &[&str], jobs: &str, dir: &Path) -> Output {
    std::fs::write(dir.join("jobs.json"), jobs).expect("written");
    let mut words = wrapper
        .iter()
        .copied()
        .chain(["bash", "-c", script, "bash"]);
    let mut command = Command::new(words.next().expect("a program"));
    command
        .args(words)
        .arg(COORDINATOR)
        .arg("run")
        .arg(dir.join("jobs.json"))
        .args(["--progress", "none"]);
    command
        .current_dir(dir)
        .env("XDG_CONFIG_HOME", dir.join("no-config"))
        .env_remove("MEZCAL_PROFILE")
        .stdin(Stdio::null());
    command.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether this command works here; if not, the output of the test says so.
fn works_or_say_why(words: &[&str]) -> bool {
    use std::io::Write;
    let why = match Command::new(words[0]).args(&words[1..]).output() {
        Ok(out) if out.status.success() => return true,
        Ok(out) => text(&out.stderr),
        Err(e) => e.to_string(),
    };
    let test = std::thread::current();
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED in {}: {}: {}",
        test.name().unwrap_or("a test"),
        words.join(" "),
        why.trim()
    );
    false
}

#[test]
fn a_run_says_why_it_cannot_reach_itself_and_starts_nothing() {
    let namespace = ["unshare", "--net", "--"];
    if !works_or_say_why(&["unshare", "--net", "--", "ip", "link", "show", "lo"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let run = |script: &str| {
        let out = within(
            script,
            &namespace,
            "{\"cmd\": \"touch started\"}\n",
            dir.path(),
        );
        (
            out.status.code(),
            text(&out.stderr),
            dir.path().join("started").exists(),
        )
    };
    let (status, said, started) = run("exec \"$@\"");
    assert_eq!((status, started), (Some(3), false), "{said}");
    assert!(said.contains("ip link set lo up"), "{said}");
    let (status, said, started) = run("ip link set lo up mtu 1227 && exec \"$@\"");
    assert_eq!((status, started), (Some(3), false), "{said}");
    assert!(
        said.contains("1228 bytes") && said.contains("ip link set lo mtu"),
        "{said}"
    );
    // This little is enough.
    let (status, said, started) = run("ip link set lo up mtu 1228 && exec \"$@\"");
    assert_eq!((status, started), (Some(0), true), "{said}");
}

#[test]
fn jobs_with_their_own_directories_run_from_one_that_was_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |jobs: &str| {
        let out = within(
            "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"",
            &["env"],
            jobs,
            dir.path(),
        );
        (out.status.code(), text(&out.stderr))
    };
    let own = format!(
        "{{\"cmd\": \"touch here\", \"cd\": \"{}\"}}\n",
        dir.path().display()
    );
    assert_eq!(run(&own).0, Some(0));
    assert!(dir.path().join("here").exists());
    for other in [
        "{\"cmd\": \"true\"}\n",
        "{\"cmd\": \"true\", \"cd\": \"sub\"}\n",
    ] {
        std::fs::remove_file(dir.path().join("here")).expect("it was there");
        let (status, said) = run(&format!("{own}{other}"));
        assert_eq!(status, Some(2), "{said}");
        assert!(
            said.contains("job 2 has no absolute `cd`") && said.contains("was it removed?"),
            "{said}"
        );
        assert!(!dir.path().join("here").exists(), "nothing is started");
        std::fs::write(dir.path().join("here"), "").expect("written");
    }
}

/// A run of four slots under a limit: it works, or the job or the run ends with the name of the
/// limit.
fn ends_with_its_name(limit: &str, most: u32, out: &Output) {
    let said = text(&out.stdout) + &text(&out.stderr);
    assert!(
        matches!(out.status.code(), Some(0..=3)),
        "ulimit {limit} {most}: {:?}: {said}",
        out.status
    );
    assert!(!said.contains("panicked"), "ulimit {limit} {most}: {said}");
    assert!(
        out.status.success() || said.contains(&format!("`ulimit {limit}`")),
        "ulimit {limit} {most}: {:?}: {said}",
        out.status
    );
}

#[test]
fn a_limit_of_processes_is_named_whoever_meets_it() {
    // root has no limit. Each run has an account of its own: remaining processes of one are not
    // counted for the next.
    let first = 1 << 20 | (std::process::id() & 0xffff) << 5;
    let as_account = |uid: u32| {
        ["timeout", "60", "setpriv", "--clear-groups"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("--reuid={uid}"), format!("--regid={uid}")])
            .collect::<Vec<_>>()
    };
    let account = as_account(first);
    if !works_or_say_why(
        &account
            .iter()
            .map(String::as_str)
            .chain(["true"])
            .collect::<Vec<_>>(),
    ) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("coordinator");
    std::fs::copy(COORDINATOR, &program).expect("copied");
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("set");
    for most in 1..=20 {
        let account = as_account(first + most);
        let wrapper: Vec<&str> = account.iter().map(String::as_str).collect();
        let script = format!(
            "ulimit -u {most} && shift && exec '{}' \"$@\" -j4 --host-timeout 1s",
            program.display()
        );
        let out = within(&script, &wrapper, "{\"cmd\": \"true\"}\n", dir.path());
        ends_with_its_name("-u", most, &out);
    }
}

#[test]
fn a_limit_of_open_files_is_named_whoever_meets_it() {
    let dir = tempfile::tempdir().expect("a directory");
    // Descriptors that this test's own parent has left open count, too: no number may be missing.
    for most in 7..=32 {
        let out = within(
            &format!("ulimit -n {most} && exec \"$@\" -j4 --host-timeout 1s"),
            &["timeout", "60"],
            "{\"cmd\": \"true\"}\n",
            dir.path(),
        );
        ends_with_its_name("-n", most, &out);
    }
}
