//! Ends of children, by wait4(2), and KILL to one that has not been reaped.

use mezcal_common::model::outcome::{Usage, WaitStatus};
use rustix::process::{Pid, Signal};
use std::time::Duration;

/// KILL to an unreaped child and to the group that it is in. As long as the child is unreaped its
/// number is its own, and so is its group's; and since each attempt has a session of its own, the
/// whole group is of its attempt.
pub(crate) fn kill_with_group(child: Pid) {
    if let Ok(group) = rustix::process::getpgid(Some(child))
        && group != rustix::process::getpgrp()
    {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    // A child that has ended meanwhile is a zombie, which takes no harm; EPERM leaves the child
    // alive, which the sweep sees.
    let _ = rustix::process::kill_process(child, Signal::KILL);
}

/// The answer of wait4(2) without waiting.
pub(crate) enum Waited {
    /// This child has ended and is reaped.
    Ended {
        pid: i32,
        status: WaitStatus,
        usage: Usage,
    },
    /// This child has been stopped by a signal.
    Stopped { pid: i32 },
    /// There are such children, and all of them are alive.
    Alive,
    /// There is no such child.
    NoChild,
}

/// Reaps one ended child (wait4(2) with `WNOHANG | __WALL`); `pid` −1: any child.
pub(crate) fn wait4(pid: i32) -> Waited {
    wait_with(pid, libc::WNOHANG | libc::__WALL)
}

/// The same, and also tells of children that were stopped (`WUNTRACED`).
pub(crate) fn wait4_or_stopped(pid: i32) -> Waited {
    wait_with(pid, libc::WNOHANG | libc::__WALL | libc::WUNTRACED)
}

/// Waits for a child that is ending, and reaps it.
pub(super) fn wait4_blocking(pid: i32) {
    let _ = wait_with(pid, libc::__WALL);
}

fn wait_with(pid: i32, options: libc::c_int) -> Waited {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are valid for writing; rusage is plain data, and zeroed is one of its
    // values.
    let (got, usage) = unsafe {
        let got = libc::wait4(pid, &mut status, options, usage.as_mut_ptr());
        (got, usage.assume_init())
    };
    match got {
        0 => return Waited::Alive,
        ..0 => return Waited::NoChild,
        1.. => {}
    }
    if libc::WIFSTOPPED(status) {
        return Waited::Stopped { pid: got };
    }
    let status = if libc::WIFSIGNALED(status) {
        WaitStatus::Signaled(libc::WTERMSIG(status))
    } else {
        WaitStatus::Exited(libc::WEXITSTATUS(status))
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    let usage = Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss: Some(usage.ru_maxrss as u64 * 1024),
        ..Usage::default()
    };
    Waited::Ended {
        pid: got,
        status,
        usage,
    }
}
