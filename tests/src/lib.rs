//! The harness of the cluster ring: hosts, certificates, real agents and coordinators, and what /proc says of them.
//!
//! A host is a network and a UTS namespace held by one process; everything that runs there is ended with it. Waiting is one function
//! with a condition and a deadline.

pub mod cluster;
pub mod lab;
pub mod programs;

use std::time::{Duration, Instant};

/// Waits until `condition` gives something, and panics saying what was waited for when `limit` has passed.
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

/// Says in the output of a passing test, too, what it could not do here: libtest captures only the printing macros.
pub fn say_skipped(what: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED in {}: {what}", thread.name().unwrap_or("a test"));
}

/// Pids of live processes (zombies are not alive) whose command line contains `mark`.
pub fn alive_with(mark: &str) -> Vec<i32> {
    let own = std::process::id() as i32;
    pids()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(mark)
        })
        .filter(|pid| mezcal_common::proc::state_and_parent(*pid).is_some_and(|(state, _)| state != 'Z' && state != 'X'))
        .collect()
}

/// All process ids.
pub fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
