//! The program for everything: under its own name, and under the names of the links to it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn call(dir: &Path, name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(dir.join(name));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    for variable in [
        "MEZCAL_PROFILE",
        "MEZCAL_CONFIG",
        "MEZCAL_PKI",
        "MEZCAL_LOG",
    ] {
        command.env_remove(variable);
    }
    command
        .env("XDG_CONFIG_HOME", dir)
        .output()
        .expect("it runs")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

fn installed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["mezcal", "coordinator", "mezcal-agent", "mezcal-certs"] {
        symlink(env!("CARGO_BIN_EXE_mezcal"), dir.path().join(name)).expect("linked");
    }
    std::fs::write(dir.path().join("jobs"), "echo one\nexit 3\n").expect("written");
    dir
}

#[test]
fn one_file_is_each_program_by_its_name() {
    let dir = installed();
    let version = env!("CARGO_PKG_VERSION");
    for (name, args) in [
        ("mezcal", "agent"),
        ("mezcal", "certs"),
        ("coordinator", ""),
        ("mezcal-agent", ""),
        ("mezcal-certs", ""),
    ] {
        let words: Vec<&str> = [args, "--help"]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let text = said(&call(dir.path(), name, &words));
        let usage = format!("Usage: {} ", [name, args].join(" ").trim_end());
        assert!(text.contains(&usage), "{name} {words:?}: {text}");
    }
    for name in ["mezcal", "coordinator", "mezcal-agent", "mezcal-certs"] {
        assert_eq!(
            said(&call(dir.path(), name, &["--version"])),
            format!("{name} {version}\n")
        );
    }
}

#[test]
fn the_usage_of_a_verb_has_the_name_that_was_called() {
    let dir = installed();
    for name in ["mezcal", "coordinator"] {
        for (verb, wrong) in [("exec", "--all"), ("run", "--no-such-option")] {
            let usage = format!("Usage: {name} {verb} ");
            for words in [[verb, "--help"], [verb, wrong]] {
                let text = said(&call(dir.path(), name, &words));
                assert!(text.contains(&usage), "{name} {words:?}: {text}");
            }
        }
        let text = said(&call(dir.path(), name, &["exec", "--help"]));
        let either = format!("       {name} exec [OPTIONS] --all -- <CMD>...");
        assert!(text.contains(&either), "{text}");
    }
}

#[test]
fn jobs_run_by_either_name() {
    let dir = installed();
    for name in ["mezcal", "coordinator"] {
        let out = call(
            dir.path(),
            name,
            &["run", "--lines", "jobs", "-q", "--keep-order"],
        );
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        let codes: Vec<serde_json::Value> = String::from_utf8_lossy(&out.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert!(
            codes.len() == 2 && codes[0]["result"]["code"] == 0 && codes[1]["result"]["code"] == 3,
            "{}",
            said(&out)
        );
    }
    let closed = Command::new("bash")
        .args(["-c", "exec ./mezcal run --lines jobs >&-"])
        .current_dir(dir.path())
        .output()
        .expect("it runs");
    assert_eq!(closed.status.code(), Some(74), "{}", said(&closed));
}

#[test]
fn it_writes_manual_pages_and_completions_for_its_own_name() {
    let dir = installed();
    for (name, page, usage) in [
        ("mezcal", "mezcal-run.1", "mezcal run"),
        ("coordinator", "coordinator-run.1", "coordinator run"),
        ("mezcal-agent", "mezcal-agent-join.1", "mezcal-agent join"),
        ("mezcal-certs", "mezcal-certs-init.1", "mezcal-certs init"),
    ] {
        let out = call(dir.path(), name, &["manual", "."]);
        assert!(out.status.success(), "{}", said(&out));
        let text = std::fs::read_to_string(dir.path().join(page)).expect("a page");
        let synopsis = format!("\\fB{usage}\\fR");
        assert!(
            text.replace("\\-", "-").contains(&synopsis),
            "{page}: {text}"
        );
    }
    for name in ["mezcal", "coordinator"] {
        let out = Command::new(dir.path().join(name))
            .env("MEZCAL_COMPLETE", "fish")
            .current_dir(dir.path())
            .output()
            .expect("it runs");
        let text = said(&out);
        assert!(text.contains(&format!("--command {name} ")), "{text}");
    }
}

#[test]
fn an_archive_of_three_programs_is_refused_before_any_host_is_touched() {
    let dir = installed();
    let make = "mkdir -p config/mezcal/profiles mezcal-0.1.0/man; echo x > mezcal-0.1.0/agent; echo x > mezcal-0.1.0/man/mezcal; \
                tar -czf old.tar.gz mezcal-0.1.0; \
                printf 'coordinator = \"127.0.0.1:1\"\\nidentity = \"none\"\\n' > config/mezcal/profiles/default.toml";
    let made = Command::new("sh")
        .args(["-ec", make])
        .current_dir(dir.path())
        .status()
        .expect("it runs");
    assert!(made.success());
    let out = Command::new(dir.path().join("mezcal"))
        .args(["provision", "host", "--ssh", "false"])
        .args(["--archive", "old.tar.gz"])
        .env_remove("MEZCAL_PROFILE")
        .env("XDG_CONFIG_HOME", dir.path().join("config"))
        .current_dir(dir.path())
        .output()
        .expect("it runs");
    let text = said(&out);
    assert!(
        out.status.code() == Some(2)
            && text
                .contains("old.tar.gz is not an archive that systemd/pack.sh of this version made")
            && text.contains("make one from the build"),
        "{:?} {text}",
        out.status
    );
}

#[test]
fn certificates_are_made_and_listed_under_one_verb() {
    let dir = installed();
    let out = call(
        dir.path(),
        "mezcal",
        &["certs", "init", "pki", "--cluster", "test"],
    );
    assert!(
        out.status.success() && dir.path().join("pki/ca.pem").exists(),
        "{}",
        said(&out)
    );
    let out = call(
        dir.path(),
        "mezcal",
        &["certs", "issue", "user", "somebody", "--dir", "pki"],
    );
    assert!(out.status.success(), "{}", said(&out));
    let out = call(
        dir.path(),
        "mezcal-certs",
        &["show", "pki/users/somebody/cert.pem"],
    );
    assert!(
        out.status.success() && said(&out).contains("somebody"),
        "{}",
        said(&out)
    );
    // It connects to a coordinator, which does not exist.
    let out = call(dir.path(), "mezcal", &["certs", "list"]);
    assert!(
        out.status.code() == Some(2) && said(&out).contains("profile"),
        "{:?} {}",
        out.status,
        said(&out)
    );
    let out = call(dir.path(), "mezcal", &["certs", "--help"]);
    let text = said(&out);
    assert!(
        ["init", "issue", "show", "list", "import", "adopt"]
            .iter()
            .all(|verb| text.contains(&format!("\n  {verb}"))),
        "{text}"
    );
}
