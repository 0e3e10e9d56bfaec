//! The harness of the cluster ring: hosts, certificates, real agents and coordinators, and their
//! processes in /proc.
//!
//! A host is a network and a UTS namespace held by one process; all processes there end with it.
//! Waiting is one function with a condition and a deadline.

pub mod browser;
pub mod cluster;
pub mod fuzz;
pub mod lab;
pub mod machine;
pub mod micro;
pub mod mount;
pub mod null;
pub mod placement;
pub mod programs;
pub mod relay;
pub mod sim;

use std::time::{Duration, Instant};

/// Waits until `condition` returns a value, and panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Prints what a test could not do here, even if the test passes: libtest captures only the
/// printing macros.
pub fn say_skipped(what: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED in {}: {what}",
        thread.name().unwrap_or("a test")
    );
}

/// Pids of live processes (zombies are not alive) whose command line contains `mark`.
pub fn alive_with(mark: &str) -> Vec<i32> {
    let own = std::process::id() as i32;
    pids()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line)
                .replace('\0', " ")
                .contains(mark)
        })
        .filter(|pid| {
            mezcal_common::system::proc::state_and_parent(*pid)
                .is_some_and(|(state, _)| state != 'Z' && state != 'X')
        })
        .collect()
}

/// Whether control groups can be used here; if not, prints the reason with the test's name.
pub fn control_groups_or_say_why() -> bool {
    use std::process::{Command, Stdio};
    let mut command = Command::new(programs::program("coordinator"));
    command
        .args([
            "run",
            "--lines",
            "-",
            "--local",
            "--containment",
            "cgroup2",
            "-q",
        ])
        .stdin(Stdio::null());
    let mut probe = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    std::io::Write::write_all(&mut probe.stdin.take().expect("a pipe"), b"true\n")
        .expect("written");
    let out = probe.wait_with_output().expect("it ends");
    if !out.status.success() {
        say_skipped(&format!(
            "control groups: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        ));
    }
    out.status.success()
}

/// Sends a signal, and ignores errors.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) has no memory effects.
    unsafe { libc::kill(pid, signal) };
}

/// The ids of all processes.
pub fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// What the kernel says of the processes that work below a directory or name it: for a test that
/// has failed because one of them did not do what it should.
pub fn states_below(dir: &std::path::Path) -> String {
    let named = alive_with(&dir.display().to_string());
    let below = |pid: &i32| {
        let there = std::fs::read_link(format!("/proc/{pid}/cwd"));
        there.is_ok_and(|there| there.starts_with(dir))
    };
    let mut text = String::new();
    for pid in pids().filter(|pid| named.contains(pid) || below(pid)) {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let line = read("cmdline").unwrap_or_default().replace('\0', " ");
        text += &format!("{pid}: {line}\n");
        let status = read("status").unwrap_or_default();
        let wanted = [
            "State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:",
        ];
        for line in status.lines() {
            if wanted.iter().any(|key| line.starts_with(key)) {
                text += &format!("  {line}\n");
            }
        }
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let (name, place) = (read("comm"), read("wchan"));
            text += &format!("  thread {} waits in {place}\n", name.trim());
        }
    }
    text
}
