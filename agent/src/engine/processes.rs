//! The processes of one attempt, as the kernel shows them to their subreaper.
//!
//! Signals go to the first process's group while that process is unreaped, and to own unreaped children: never to a
//! number that the kernel could have given to somebody else.

use super::{Exit, Swept};
use mezcal_common::clock::{BootInstant, WallTime};
use mezcal_common::outcome::{Span, Usage, WaitStatus};
use mezcal_common::proc;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::time::Duration;

/// Look, do not wait, do not reap.
const PEEK: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOHANG).union(WaitIdOptions::NOWAIT);

/// The first process of an attempt and whatever else there is below this one.
pub(super) struct Processes {
    first: Option<Pid>,
    started: (WallTime, BootInstant),
    ended: Option<(WallTime, BootInstant)>,
    killed: u32,
}

/// What a look at changed children found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    First,
    Others,
}

impl Processes {
    pub(super) fn new(pid: i32, started: (WallTime, BootInstant)) -> Self {
        Self { first: Pid::from_raw(pid), started, ended: None, killed: 0 }
    }

    /// Whether the first process has ended since the last look. It stays unreaped.
    pub(super) fn first_ended(&mut self) -> bool {
        let Some(first) = self.first.filter(|_| self.ended.is_none()) else { return false };
        let ended = matches!(rustix::process::waitid(WaitId::Pid(first), PEEK), Ok(Some(_)));
        if ended {
            self.ended = Some((WallTime::now(), BootInstant::now()));
        }
        ended
    }

    /// Looks what SIGCHLD was about. Orphans that ended are reaped; the first process is only looked at.
    pub(super) fn look(&mut self) -> Changed {
        if self.first_ended() {
            return Changed::First;
        }
        let Some(first) = self.first.filter(|_| self.ended.is_none()) else { return Changed::Others };
        // The first process is alive. Others that ended are orphans; reaping must not take the first one by accident.
        for pid in proc::own_children().unwrap_or_default() {
            if pid != first.as_raw_nonzero().get() && proc::state_and_parent(pid).is_some_and(|(state, _)| state == 'Z') {
                self.reap(pid);
            }
        }
        Changed::Nothing
    }

    /// TERM and CONT to the group, if its leader is still unreaped.
    pub(super) fn terminate(&self) {
        if let Some(first) = self.first {
            // ESRCH and EPERM change nothing: the sweep that follows counts what is alive.
            let _ = rustix::process::kill_process_group(first, Signal::TERM);
            let _ = rustix::process::kill_process_group(first, Signal::CONT);
        }
    }

    /// Whether any process but the first is alive.
    pub(super) fn others_alive(&self) -> bool {
        let first = self.first.map(|p| p.as_raw_nonzero().get());
        proc::own_children()
            .unwrap_or_default()
            .into_iter()
            .any(|pid| Some(pid) != first && proc::state_and_parent(pid).is_some_and(|(state, _)| state != 'Z'))
    }

    /// One pass: KILL the group, reap, KILL all other children, reap again. Killing a process hands its children to us, so
    /// passes are repeated until one finds no child at all.
    pub(super) fn sweep(&mut self) -> Swept {
        let mut exit = None;
        if let Some(first) = self.first {
            let _ = rustix::process::kill_process_group(first, Signal::KILL);
            exit = self.reap_first();
        }
        let mut alive = 0;
        if !self.reap_others() {
            let children = proc::own_children().unwrap_or_default();
            for pid in children.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            exit = exit.or_else(|| self.reap_first());
            if !self.reap_others() {
                alive = proc::own_children().map_or(1, |left| left.len() as u32).max(1);
            }
        }
        Swept { exit, killed: self.killed, alive, tails: (None, None) }
    }

    fn reap_first(&mut self) -> Option<Exit> {
        let Waited::Ended { status, usage, .. } = wait4(self.first?.as_raw_nonzero().get()) else { return None };
        self.first = None;
        self.count(status);
        let (completed, end) = *self.ended.get_or_insert_with(|| (WallTime::now(), BootInstant::now()));
        let span = Span { started: self.started.0, completed, elapsed: end.since(self.started.1) };
        Some(Exit { status, usage, span })
    }

    /// Reaps what has ended, once the first process has been. True if no child is left at all.
    fn reap_others(&mut self) -> bool {
        if self.first.is_some() {
            return false;
        }
        loop {
            match self.reap(-1) {
                Waited::Ended { .. } => {}
                Waited::Alive => return false,
                Waited::NoChild => return true,
            }
        }
    }

    fn reap(&mut self, pid: i32) -> Waited {
        let waited = wait4(pid);
        if let Waited::Ended { status, .. } = waited {
            self.count(status);
        }
        waited
    }

    fn count(&mut self, status: WaitStatus) {
        if status == WaitStatus::Signaled(Signal::KILL.as_raw()) {
            self.killed += 1;
        }
    }
}

/// What wait4(2) says without waiting.
pub(crate) enum Waited {
    /// This child has ended and is reaped.
    Ended { pid: i32, status: WaitStatus, usage: Usage },
    /// There are such children, all alive.
    Alive,
    /// There is no such child.
    NoChild,
}

/// Reaps one ended child (wait4(2) with `WNOHANG | __WALL`); `pid` −1: any.
pub(crate) fn wait4(pid: i32) -> Waited {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are valid for writing; rusage is plain data, and zeroed is one of its values.
    let (got, usage) = unsafe {
        let got = libc::wait4(pid, &mut status, libc::WNOHANG | libc::__WALL, usage.as_mut_ptr());
        (got, usage.assume_init())
    };
    match got {
        0 => return Waited::Alive,
        ..0 => return Waited::NoChild,
        1.. => {}
    }
    let status = if libc::WIFSIGNALED(status) {
        WaitStatus::Signaled(libc::WTERMSIG(status))
    } else {
        WaitStatus::Exited(libc::WEXITSTATUS(status))
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    let usage = Usage { user: time(usage.ru_utime), system: time(usage.ru_stime), max_rss: usage.ru_maxrss as u64 * 1024 };
    Waited::Ended { pid: got, status, usage }
}
