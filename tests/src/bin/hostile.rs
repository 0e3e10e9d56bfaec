//! A job that does not want to die, in a dozen ways. `hostile KIND MARK`: every process of it
//! carries MARK in its command line.
//!
//! All kinds are bounded: none makes more than [`MOST`] processes or lives longer than [`LIFE`].

use std::time::{Duration, Instant};

/// Processes of one fork bomb, and generations of one chain.
const MOST: u32 = 48;
const CHAIN: u32 = 20_000;
/// Every process ends after this, even if it is not killed.
const LIFE: Duration = Duration::from_secs(120);

fn main() {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let end = Instant::now() + LIFE;
    match kind.as_str() {
        "background" => {
            child(|| wait_for_death(end));
            child(|| wait_for_death(end));
        }
        "setsid" => child(|| {
            new_session();
            wait_for_death(end);
        }),
        "daemon" => child(|| {
            new_session();
            child(|| wait_for_death(end));
        }),
        "deaf" => {
            for signal in [
                libc::SIGTERM,
                libc::SIGINT,
                libc::SIGHUP,
                libc::SIGQUIT,
                libc::SIGUSR1,
            ] {
                // SAFETY: SIG_IGN is a valid disposition.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            child(|| wait_for_death(end));
        }
        "masked" => {
            block_all();
            child(|| wait_for_death(end));
        }
        "stopped" => {
            child(|| {
                // SAFETY: stops this process only.
                unsafe { libc::raise(libc::SIGSTOP) };
                wait_for_death(end);
            });
        }
        "bomb" => bomb(MOST, end),
        "chain" => chain(CHAIN, end),
        "breeder" => {
            block_all();
            // Children in sessions of their own, as fast as they are killed or end.
            while Instant::now() < end {
                child(|| {
                    new_session();
                    std::thread::sleep(Duration::from_millis(20));
                });
                reap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        "holder" => child(|| {
            new_session();
            // Standard output and error stay open.
            wait_for_death(end);
        }),
        "zombies" => {
            for _ in 0..8 {
                child(|| {});
            }
        }
        "mover" => child(|| {
            // SAFETY: setpgid(2) of this process.
            unsafe { libc::setpgid(0, 0) };
            child(|| {
                // SAFETY: as above: into the group of the process that started the job, if that
                // were possible.
                unsafe { libc::setpgid(0, libc::getpgid(libc::getppid())) };
                wait_for_death(end);
            });
            wait_for_death(end);
        }),
        other => {
            eprintln!("no kind {other:?}");
            std::process::exit(2);
        }
    }
    wait_for_death(end);
}

/// Runs `body` in a child, which ends after it.
fn child(body: impl FnOnce()) {
    // SAFETY: this program has one thread, so the child may go on as it likes.
    // A fork that is refused is one process less.
    if unsafe { libc::fork() } == 0 {
        body();
        std::process::exit(0);
    }
}

fn new_session() {
    // SAFETY: setsid(2) has no memory effects.
    unsafe { libc::setsid() };
}

fn block_all() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

fn wait_for_death(end: Instant) {
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}

/// Each process makes another one until there are enough.
fn bomb(left: u32, end: Instant) {
    if left > 1 {
        child(|| bomb(left - 1, end));
    }
    wait_for_death(end);
}

/// Each process makes its successor in another session and ends: each lives for a moment only.
fn chain(left: u32, end: Instant) {
    block_all();
    child(|| {
        let mut left = left;
        while left > 0 && Instant::now() < end {
            new_session();
            // SAFETY: as in `child`.
            match unsafe { libc::fork() } {
                0 => left -= 1,
                _ => std::process::exit(0),
            }
        }
    });
}

fn reap() {
    // SAFETY: a null status pointer is allowed by waitpid(2).
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
