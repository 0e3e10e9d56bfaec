//! The `agent` command line: what it refuses, and how it says so.

use std::io::Write;
use std::process::{Command, Stdio};

fn agent(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, config).expect("written");
    let out = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["run", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_bad_configuration_is_named_with_line_and_key() {
    let (status, said) = agent("coordinator = \"h:1\"\nidentity = \"/x\"\nslotz = 3\n");
    assert_eq!(status, Some(2));
    assert!(said.contains("agent.toml") && said.contains("slotz") && said.contains("line 3"), "{said}");
    for (config, word) in [
        ("coordinator = \"h\"\nidentity = \"/x\"\nallow_root_jobs = true\n", "HOST:PORT"),
        ("coordinator = \"h:1\"\nidentity = \"/x\"\nslots = 0\nallow_root_jobs = true\n", "slots"),
    ] {
        let (status, said) = agent(config);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn missing_credentials_are_exit_3() {
    let (status, said) = agent("coordinator = \"h:1\"\nidentity = \"/no/such/dir\"\nallow_root_jobs = true\n");
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("/no/such/dir/cert.pem") && said.contains("certs issue"), "{said}");
}

#[test]
fn jobs_as_root_have_to_be_allowed() {
    if !rustix::process::geteuid().is_root() {
        // Past libtest's capture: a skipped test is never silent.
        let _ = writeln!(std::io::stderr(), "SKIPPED jobs_as_root_have_to_be_allowed: not root");
        return;
    }
    let (status, said) = agent("coordinator = \"h:1\"\nidentity = \"/x\"\n");
    assert_eq!(status, Some(2));
    assert!(said.contains("allow_root_jobs = true"), "{said}");
}
