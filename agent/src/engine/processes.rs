//! The processes of one attempt, as the kernel shows them to their subreaper.
//!
//! Signals go to the first process's group while that process is unreaped, and to unreaped children
//! of our own: never to a number that the kernel could have given to a stranger.

use super::counters::HostCounters;
use super::wait::{Waited, kill_with_group, wait4};
use super::{Exit, OutOfMemory, Swept};
use crate::kernel::cgroup::Leaf;
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::outcome::{Span, Usage, UsageSource, WaitStatus, Written};
use mezcal_common::system::proc;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::sync::Arc;
use std::time::Duration;

/// Only look: do not wait, do not reap.
const PEEK: WaitIdOptions = WaitIdOptions::EXITED
    .union(WaitIdOptions::NOHANG)
    .union(WaitIdOptions::NOWAIT);
/// Passes of one sweep that follow each other at once, as long as each finds something dead: a job
/// that keeps forking is outrun sooner than by waiting between the passes.
const PASSES: u32 = 32;

/// Processes that survive KILL for this long are named, the first few of them.
const NAMED_AFTER: Duration = Duration::from_secs(5);
const NAMED: usize = 8;

/// The first process of an attempt and all other processes below this one.
pub(super) struct Processes {
    first: Option<Pid>,
    leaf: Option<Arc<Leaf>>,
    /// CPU times of the leaf before the attempt.
    cpu_before: Option<(Duration, Duration)>,
    /// Kills by the out-of-memory killer on this host before the attempt.
    oom_before: Option<u64>,
    started: (WallTime, BootInstant),
    ended: Option<(WallTime, BootInstant)>,
    /// When KILL was sent first: processes that die by KILL from then on died by ours.
    killing: Option<BootInstant>,
    /// The first process was alive at that time.
    first_killed: bool,
    /// The first process ended by a KILL that was not ours.
    killed_from_elsewhere: bool,
    /// Processes that were seen to end by our KILL. Those that a dying parent has reaped do not
    /// count.
    killed: u32,
    /// Processes in the control group when it was first killed.
    in_group: u32,
    usage: Usage,
    /// This process's memory peak after the first process was started.
    own_peak: u64,
}

/// The control group of an attempt, and the CPU times that it had when the attempt began.
pub(super) type Born = (Arc<Leaf>, Option<(Duration, Duration)>);

/// The findings of a look at changed children.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    First,
    Others,
}

impl Processes {
    pub(super) fn new(
        pid: i32,
        born: Option<Born>,
        started: (WallTime, BootInstant),
        oom_before: Option<u64>,
    ) -> Self {
        let (leaf, cpu_before) = born.map_or((None, None), |(leaf, cpu)| (Some(leaf), cpu));
        Self {
            first: Pid::from_raw(pid),
            leaf,
            cpu_before,
            oom_before,
            started,
            ended: None,
            killing: None,
            first_killed: false,
            killed_from_elsewhere: false,
            killed: 0,
            in_group: 0,
            usage: Usage::default(),
            own_peak: 0,
        }
    }

    /// Whether the first process has ended since the last look. It stays unreaped.
    pub(super) fn first_ended(&mut self) -> bool {
        let Some(first) = self.first.filter(|_| self.ended.is_none()) else {
            return false;
        };
        let ended = matches!(
            rustix::process::waitid(WaitId::Pid(first), PEEK),
            Ok(Some(_))
        );
        if ended {
            self.ended = Some((WallTime::now(), BootInstant::now()));
        }
        ended
    }

    /// Finds the children that SIGCHLD was about. Orphans that ended are reaped; the first process
    /// is only looked at.
    pub(super) fn look(&mut self) -> Changed {
        if self.first_ended() {
            return Changed::First;
        }
        let Some(first) = self.first else {
            return Changed::Others;
        };
        // Other children that ended are orphans; reaping must not take the first process by
        // accident.
        for pid in proc::own_children().unwrap_or_default() {
            if pid != first.as_raw_nonzero().get()
                && proc::state_and_parent(pid).is_some_and(|(state, _)| state == 'Z')
            {
                self.reap(pid);
            }
        }
        if self.ended.is_some() {
            Changed::Others
        } else {
            Changed::Nothing
        }
    }

    /// Sends `signal` and CONT to the group, if its leader is still unreaped.
    pub(super) fn terminate(&self, signal: i32) {
        if let Some(first) = self.first {
            // ESRCH and EPERM change nothing: the sweep that follows counts the processes that are
            // alive.
            // SAFETY: kill(2) has no memory effects.
            unsafe { libc::kill(-first.as_raw_nonzero().get(), signal) };
            let _ = rustix::process::kill_process_group(first, Signal::CONT);
        }
    }

    /// Whether any process but the first is alive. If none is, and the first has ended, then the
    /// attempt has ended at this time.
    pub(super) fn others_alive(&mut self) -> bool {
        let first = self.first.map(|p| p.as_raw_nonzero().get());
        let is_alive = |pid: &i32| {
            Some(*pid) != first
                && proc::state_and_parent(*pid).is_some_and(|(state, _)| state != 'Z')
        };
        let mut seen = proc::own_children().unwrap_or_default();
        let alive = loop {
            if seen.iter().any(is_alive) {
                break true;
            }
            // A process that has ended since it was listed may have left us its children.
            let again = proc::own_children().unwrap_or_default();
            if again == seen {
                break false;
            }
            seen = again;
        };
        if !alive && self.ended.is_some() {
            self.ended = Some((WallTime::now(), BootInstant::now()));
        }
        alive
    }

    /// KILL to the control group and the process group, reap, KILL to all other children and their
    /// groups, reap again. Killing a process hands its children to us, so passes are repeated until
    /// one finds no child at all, or nothing newly dead.
    pub(super) fn sweep(&mut self, host: &HostCounters) -> Swept {
        let mut exit = None;
        if let Some(first) = self.first {
            self.first_killed |= self.ended.is_none();
            let _ = rustix::process::kill_process_group(first, Signal::KILL);
        }
        self.killing.get_or_insert_with(BootInstant::now);
        let mut alive = 0;
        for _ in 0..PASSES {
            let occupied = self.leaf.clone().filter(|leaf| leaf.populated());
            if let Some(leaf) = &occupied {
                self.in_group = self.in_group.max(leaf.count());
                leaf.kill();
            }
            exit = exit.or_else(|| self.reap_first(host));
            let before = self.killed;
            let none_left = self.reap_others();
            alive = match (none_left, occupied) {
                // A child of another process that is in our group all the same.
                (true, Some(leaf)) if leaf.populated() => leaf.count().max(1),
                (true, _) => 0,
                (false, _) => self.kill_children(),
            };
            if alive == 0 || (self.killed == before && exit.is_none()) {
                break;
            }
        }
        let out_of_memory = self.out_of_memory(host);
        if alive == 0 {
            self.account();
        }
        let mut usage = self.usage;
        usage.max_rss = usage.max_rss.filter(|peak| *peak > self.own_peak);
        let killed = self.killed.max(self.in_group);
        let whole = (alive == 0).then(|| self.span((WallTime::now(), BootInstant::now())));
        Swept {
            exit,
            whole,
            killed,
            alive,
            names: self.names(alive),
            usage,
            out_of_memory,
            tails: (None, None),
            written: Written::default(),
        }
    }

    /// The names of the processes that do not die, once they have had their time.
    fn names(&self, alive: u32) -> String {
        if alive == 0
            || self
                .killing
                .is_none_or(|since| BootInstant::now().since(since) < NAMED_AFTER)
        {
            return String::new();
        }
        let children = proc::own_children().unwrap_or_default();
        let name = |pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let state = proc::state_and_parent(*pid).map_or('?', |(state, _)| state);
            format!("{pid} ({}, {state})", comm.trim_end())
        };
        children
            .iter()
            .take(NAMED)
            .map(name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Sends KILL to each child and to the group that it is in; the number of children, zombies
    /// included.
    fn kill_children(&self) -> u32 {
        let children = proc::own_children().unwrap_or_default();
        children
            .iter()
            .filter_map(|pid| Pid::from_raw(*pid))
            .for_each(kill_with_group);
        (children.len() as u32).max(1)
    }

    fn reap_first(&mut self, host: &HostCounters) -> Option<Exit> {
        let Waited::Ended { status, usage, .. } = wait4(self.first?.as_raw_nonzero().get()) else {
            return None;
        };
        self.first = None;
        if self.first_killed {
            self.count(status);
        } else {
            self.killed_from_elsewhere = status == WaitStatus::Signaled(Signal::KILL.as_raw());
        }
        // execve(2) has passed our own memory peak on to the process (ru_maxrss, getrusage(2)): a
        // peak that is not above ours says nothing of the job.
        self.own_peak = host.own_peak();
        self.add(usage);
        let ended = *self
            .ended
            .get_or_insert_with(|| (WallTime::now(), BootInstant::now()));
        Some(Exit {
            status,
            span: self.span(ended),
        })
    }

    fn span(&self, (completed, end): (WallTime, BootInstant)) -> Span {
        Span {
            started: self.started.0,
            completed,
            elapsed: end.since(self.started.1),
        }
    }

    /// Reaps the children that have ended, once the first process has been reaped. True if no child
    /// is left at all.
    fn reap_others(&mut self) -> bool {
        if self.first.is_some() {
            return false;
        }
        loop {
            match self.reap(-1) {
                Waited::Ended { .. } => {}
                Waited::Stopped { .. } | Waited::Alive => return false,
                Waited::NoChild => return true,
            }
        }
    }

    fn reap(&mut self, pid: i32) -> Waited {
        let waited = wait4(pid);
        if let Waited::Ended { status, usage, .. } = waited {
            self.count(status);
            self.add(usage);
        }
        waited
    }

    fn count(&mut self, status: WaitStatus) {
        if self.killing.is_some() && status == WaitStatus::Signaled(Signal::KILL.as_raw()) {
            self.killed += 1;
        }
    }

    fn add(&mut self, usage: Usage) {
        self.usage.user += usage.user;
        self.usage.system += usage.system;
        self.usage.max_rss = self.usage.max_rss.max(usage.max_rss);
    }

    /// Takes the usage that the control group knows better: processes that nobody waited for count
    /// there, too.
    fn account(&mut self) {
        let Some(leaf) = &self.leaf else { return };
        if let (Some((user, system)), Some(before)) = (leaf.cpu(), self.cpu_before) {
            self.usage.user = user.saturating_sub(before.0);
            self.usage.system = system.saturating_sub(before.1);
            self.usage.source = UsageSource::Cgroup2;
        }
        self.usage.memory_peak = leaf.memory_peak();
        leaf.remove_if_used_up();
    }

    fn out_of_memory(&self, host: &HostCounters) -> OutOfMemory {
        match self.leaf.as_ref().and_then(|leaf| leaf.oom_kills()) {
            Some(0) => OutOfMemory::No,
            Some(1..) => OutOfMemory::Killed,
            None if self.killed_from_elsewhere
                && self
                    .oom_before
                    .is_some_and(|before| host.oom_kills(BootInstant::now()) > Some(before)) =>
            {
                OutOfMemory::OnThisHost
            }
            None => OutOfMemory::No,
        }
    }
}
