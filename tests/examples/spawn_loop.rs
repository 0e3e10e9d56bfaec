//! The reference that per-job cost is compared with: posix_spawn of the same bash command, N at a
//! time, and nothing else.
//!
//! `spawn_loop JOBS SLOTS [PROGRAM [ARGUMENT]]` prints the seconds that it took; with a program, of
//! that one.

use std::process::{Command, Stdio};

#[expect(
    clippy::zombie_processes,
    reason = "reaped by wait, any child at a time"
)]
fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default| {
        args.next().map_or(default, |a| {
            a.parse::<usize>().expect("two numbers: JOBS SLOTS")
        })
    };
    let (jobs, slots) = (number(5000), number(4));
    let mut wanted: Vec<String> = args.collect();
    if wanted.is_empty() {
        wanted = ["/bin/bash", "-c", "set -o pipefail; true"]
            .map(String::from)
            .to_vec();
    }
    let begin = std::time::Instant::now();
    let (mut started, mut running) = (0, 0);
    while started < jobs || running > 0 {
        while started < jobs && running < slots {
            // No pre_exec, no uid, an absolute path: std stays on posix_spawn(3).
            Command::new(&wanted[0])
                .args(&wanted[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it starts");
            started += 1;
            running += 1;
        }
        // SAFETY: a null status pointer is allowed by wait(2).
        let pid = unsafe { libc::wait(std::ptr::null_mut()) };
        assert!(pid > 0, "a child ends");
        running -= 1;
    }
    println!("{:.6}", begin.elapsed().as_secs_f64());
}
