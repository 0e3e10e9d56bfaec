//! The control plane alone: trivial job lines through parser, scheduler, codec and QUIC to a null
//! executor, and results streamed out.
//!
//! `million [JOBS] [SLOTS]` runs `coordinator run --listen` as a process of its own, connects the
//! real agent driver with engines that answer at once, and prints jobs per second and the
//! coordinator's peak resident set against the jobs' own text and 0.5 KiB each.

use mezcal_certs::Authority;
use mezcal_common::model::identity::Role;
use mezcal_tests::null;
use mezcal_tests::programs::program;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

#[expect(
    clippy::zombie_processes,
    reason = "reaped by wait4, which gives the peak RSS"
)]
fn main() {
    let mut args = std::env::args()
        .skip(1)
        .map(|a| a.parse::<u64>().expect("numbers: JOBS SLOTS"));
    let (jobs, slots) = (
        args.next().unwrap_or(1_000_000),
        args.next().unwrap_or(16) as u16,
    );
    let dir = tempfile::tempdir().expect("a directory");
    let (authority, _) = Authority::create("million").expect("created");
    for (role, name) in [(Role::Coordinator, ""), (Role::Agent, "null")] {
        authority
            .issue(role, name, 1)
            .expect("issued")
            .write(&dir.path().join(role.as_str()))
            .expect("written");
    }
    let mut file =
        std::io::BufWriter::new(std::fs::File::create(dir.path().join("jobs.json")).expect("made"));
    for _ in 0..jobs {
        file.write_all(b"{\"cmd\": \"true\"}\n").expect("written");
    }
    file.flush().expect("written");
    let text = std::fs::metadata(dir.path().join("jobs.json"))
        .expect("there")
        .len();
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|s| s.local_addr())
        .expect("a port")
        .port();
    let address = format!("127.0.0.1:{port}");

    let coordinator = program("coordinator");
    let begin = Instant::now();
    let child = Command::new(coordinator)
        .args([
            "run",
            "jobs.json",
            "-q",
            "-o",
            "results.json",
            "--listen",
            &address,
            "--identity",
            "coordinator",
        ])
        .current_dir(dir.path())
        .env("XDG_CONFIG_HOME", dir.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("the coordinator starts");
    let identity = dir.path().join("agent");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(null::agent(&identity, "null", address, slots));
    });
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are valid, and the child is ours and unreaped.
    let usage = unsafe {
        libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(status, 0, "the run succeeds");
    let lines = std::fs::read(dir.path().join("results.json"))
        .expect("results")
        .iter()
        .filter(|b| **b == b'\n')
        .count() as u64;
    assert_eq!(lines, jobs, "one result for each job");
    let (peak, allowed) = (usage.ru_maxrss as u64 * 1024, text + jobs * 512);
    let cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
    println!(
        "{jobs} jobs in {seconds:.2} s: {:.0} jobs/s, {cpu} s of CPU in the coordinator",
        jobs as f64 / seconds
    );
    println!(
        "peak RSS {:.1} MiB = text {:.1} MiB + {:.0} bytes per job (allowed {:.1} MiB)",
        mib(peak),
        mib(text),
        peak.saturating_sub(text) as f64 / jobs as f64,
        mib(allowed)
    );
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
