//! Facts from /proc (proc(5)) that several crates need.

use std::path::Path;

/// The fields of a `stat` file (proc_pid_stat(5)) from the third on: the second, the command, may
/// contain spaces and parentheses.
fn stat_fields(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat[stat.rfind(')')? + 1..].split_ascii_whitespace())
}

/// The state letter and parent of a process, from `/proc/PID/stat`; `None` if it does not exist.
pub fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat_fields(&stat)?;
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A number for a process that no other process of this boot has: its pid and its start time (field
/// 22 of `/proc/PID/stat`).
pub fn unique_number(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start: u64 = stat_fields(&stat)?.nth(19)?.parse().ok()?;
    Some((u64::from(pid.unsigned_abs()) << 40) ^ start)
}

/// Pids whose parent is this process, zombies included: from the `children` files of its threads,
/// or, on kernels without them (CONFIG_PROC_CHILDREN), by asking every process for its parent.
///
/// # Errors
/// /proc cannot be read.
pub fn own_children() -> std::io::Result<Vec<i32>> {
    if !Path::new("/proc/thread-self/children").exists() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let pids = std::fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        return Ok(pids
            .filter(|pid| state_and_parent(*pid).is_some_and(|(_, parent)| parent == own))
            .collect());
    }
    let mut pids = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        // The children of a thread that has ended meanwhile are listed at another one.
        if let Ok(text) = std::fs::read_to_string(thread?.path().join("children")) {
            pids.extend(
                text.split_ascii_whitespace()
                    .filter_map(|p| p.parse::<i32>().ok()),
            );
        }
    }
    Ok(pids)
}

/// The signals that this process ignores, signal 1 in the lowest bit (`SigIgn` of proc(5)). It
/// inherits what its parent ignored.
pub fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// The place of this process's command line in its memory, and in that of its copies (fork(2)).
#[derive(Debug)]
pub struct CommandLine(std::ops::Range<usize>);

impl CommandLine {
    /// Finds it by `arg_start` and `arg_end` of `/proc/self/stat` (proc(5)); empty if the kernel
    /// gives none.
    pub fn find() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields =
            stat_fields(&stat).map(|fields| fields.map(|field| field.parse().unwrap_or(0)));
        // Fields 48 and 49.
        Self(
            fields
                .and_then(|mut fields| Some(fields.nth(45)?..fields.next()?))
                .filter(|at| at.start > 0)
                .unwrap_or(0..0),
        )
    }

    /// Gives this process another name, for top(1) and ps(1): its `comm` (the first word) and its
    /// command line, each as far as it has room. To be called while there is only one thread.
    pub fn rename(&self, name: &str) {
        if let Ok(comm) = std::ffi::CString::new(name.split(' ').next().unwrap_or(name)) {
            let _ = rustix::thread::set_name(&comm);
        }
        let text = name
            .bytes()
            .chain(std::iter::repeat(0))
            .take(self.0.len().saturating_sub(1))
            .chain([0]);
        for (at, byte) in self.0.clone().zip(text) {
            // SAFETY: the kernel has put the arguments there, on the stack, for the program to
            // write to as in `main(argc, argv)` of C; no other code reads or writes them now, and
            // they end with a NUL byte as before.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(byte) };
        }
    }
}

/// The kernel's random id of this boot.
pub fn boot_id() -> [u8; 16] {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::parse_str(text.trim()).ok())
        .map_or([0; 16], |id| *id.as_bytes())
}
