//! The end of engines and of the processes that they leave: one after another, and all at the end.

use super::Driver;
use crate::engine::{Waited, kill_with_group, wait4};
use crate::kernel::signals::take_signals;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::outcome::WaitStatus;
use mezcal_common::system::proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use std::time::Duration;

/// How long engines may take to kill their attempts when everything ends, before they are killed
/// themselves.
const LAST_MERCY: Duration = Duration::from_secs(15);

/// Pause between two looks at processes that are ending.
pub(super) const LAST_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

impl Driver {
    /// Sends KILL to every child that is not an engine, and to its group; reaps: (killed, still
    /// alive).
    pub(super) fn sweep(&mut self) -> (u32, u32) {
        let orphans = || -> Vec<Pid> {
            let children = proc::own_children().unwrap_or_default().into_iter();
            children
                .filter(|pid| !self.engines.iter().any(|e| e.pid == *pid))
                .filter_map(Pid::from_raw)
                .collect()
        };
        let mut killed = std::mem::take(&mut self.killed);
        for orphan in orphans() {
            kill_with_group(orphan);
            if let Waited::Ended { status, .. } = wait4(orphan.as_raw_nonzero().get()) {
                killed += u32::from(status == WaitStatus::Signaled(Signal::KILL.as_raw()));
            }
        }
        (killed, orphans().len() as u32)
    }

    /// Waits a little, or until a child has ended.
    fn pause_for_a_child(&mut self) {
        let _ = poll(
            &mut [PollFd::new(&self.signals, PollFlags::IN)],
            Some(&LAST_PAUSE),
        );
        take_signals(&self.signals);
    }

    /// Asks all engines to end: their attempts have their grace, and the agent gives nothing more
    /// to engines that are idle.
    pub(super) fn ask_engines(&mut self) {
        if self.asked.is_some() {
            return;
        }
        tracing::info!("asked to end");
        self.asked = Some(BootInstant::now() + LAST_MERCY);
        for pid in self.engines.iter().filter_map(|e| Pid::from_raw(e.pid)) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            // A stopped engine must be able to see the signal.
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
    }

    /// Ends all engines: their sockets close, they kill their attempts and exit; engines that do
    /// not are killed.
    pub(super) fn end(&mut self) {
        let engines = std::mem::take(&mut self.engines);
        let mut left: Vec<Pid> = engines
            .iter()
            .filter_map(|e| Pid::from_raw(e.pid))
            .collect();
        drop(engines);
        let deadline = BootInstant::now() + LAST_MERCY;
        for pid in &left {
            // A stopped engine must be able to see that.
            let _ = rustix::process::kill_process(*pid, Signal::CONT);
        }
        while !left.is_empty() && BootInstant::now() < deadline {
            left.retain(|pid| matches!(wait4(pid.as_raw_nonzero().get()), Waited::Alive));
            if !left.is_empty() {
                self.pause_for_a_child();
            }
        }
        // With the engine list empty every child counts as an orphan, late engines included.
        let deadline = BootInstant::now() + crate::engine::UNKILLABLE_AFTER;
        let (mut killed, mut alive) = self.sweep();
        while alive > 0 && BootInstant::now() < deadline {
            self.pause_for_a_child();
            let (more, left) = self.sweep();
            (killed, alive) = (killed + more, left);
        }
        if killed > 0 || alive > 0 {
            tracing::warn!(killed, survivors = alive, "processes were left at the end");
        }
        if let Some(place) = &self.place {
            place.give_up();
        }
        if let Some(path) = &self.args.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}
