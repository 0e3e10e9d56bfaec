//! The `agent` command line: the inputs that it refuses, and its messages.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    (
        out.status.code(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

#[test]
fn a_bad_configuration_is_named_with_line_and_key() {
    let (status, said) = agent("coordinator = \"h:1\"\nidentity = \"/x\"\nslotz = 3\n");
    assert_eq!(status, Some(2));
    assert!(
        said.contains("agent.toml") && said.contains("slotz") && said.contains("line 3"),
        "{said}"
    );
    for (config, word) in [
        (
            "coordinator = \"h\"\nidentity = \"/x\"\nallow_root_jobs = true\n",
            "HOST:PORT",
        ),
        (
            "coordinator = \"h:1\"\nidentity = \"/x\"\nslots = 0\nallow_root_jobs = true\n",
            "slots",
        ),
    ] {
        let (status, said) = agent(config);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn missing_credentials_are_exit_3() {
    let (status, said) =
        agent("coordinator = \"h:1\"\nidentity = \"/no/such/dir\"\nallow_root_jobs = true\n");
    assert_eq!(status, Some(3), "{said}");
    assert!(
        said.contains("/no/such/dir/cert.pem") && said.contains("certs issue"),
        "{said}"
    );
}

#[test]
fn jobs_as_root_have_to_be_allowed() {
    if !rustix::process::geteuid().is_root() {
        // Past libtest's capture: a skipped test is never silent.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED jobs_as_root_have_to_be_allowed: not root"
        );
        return;
    }
    let (status, said) = agent("coordinator = \"h:1\"\nidentity = \"/x\"\n");
    assert_eq!(status, Some(2));
    assert!(said.contains("allow_root_jobs = true"), "{said}");
}

/// Another account has made the runtime directory before, and listens at the keeper's address:
/// neither is used.
#[test]
fn a_runtime_directory_of_somebody_elses_is_refused_by_name() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED a_runtime_directory_of_somebody_elses_is_refused_by_name: not root"
        );
        return;
    }
    let (us, them) = (65_534, 1);
    let dir = tempfile::tempdir().expect("a directory");
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod")
    };
    open(dir.path(), 0o755);
    let shared = dir.path().join("tmp");
    std::fs::create_dir(&shared).expect("made");
    open(&shared, 0o1777);
    let runtime = shared.join(format!("mezcal-{us}"));
    std::fs::create_dir_all(runtime.join("engines")).expect("made");
    for path in [&runtime, &runtime.join("engines")] {
        open(path, 0o777);
        chown(path, Some(them), None).expect("chown");
    }
    let config = dir.path().join("agent.toml");
    let text = format!(
        "coordinator = \"127.0.0.1:1\"\nidentity = \"/x\"\nruntime = \"{}\"\n",
        runtime.display()
    );
    std::fs::write(&config, text).expect("written");
    // In a place where the test's account may execute it.
    let program = dir.path().join("agent");
    std::fs::copy(env!("CARGO_BIN_EXE_agent"), &program).expect("copied");
    let mut command = Command::new(program);
    command
        .args(["run", "--config"])
        .arg(&config)
        .uid(us)
        .gid(us)
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null());
    // A neighbouring test that forks while the copy is written keeps it open for writing until it
    // executes its own program.
    let deadline = Instant::now() + Duration::from_secs(30);
    let out = loop {
        match command.output() {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            out => break out.expect("it runs"),
        }
    };
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    let named = format!("{} belongs to ", runtime.display());
    assert!(
        said.contains(&named)
            && said.contains("(uid 1)")
            && said.contains("`runtime` in agent.toml"),
        "{said}"
    );
    assert_eq!(
        std::fs::read_dir(runtime.join("engines"))
            .expect("readable")
            .count(),
        0,
        "nothing was made there"
    );
}
