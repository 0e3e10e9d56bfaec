//! The thread that opens files and spawns, and the orders for it: opening and spawning can hang on
//! a dead mount.

use super::output::Output;
use super::{Driver, QUIET, QUIET_WATCHED, SHORT};
use crate::engine::order::{Order, OutputTo};
use crate::engine::processes::Processes;
use crate::engine::spawn::{self, Started, Surroundings};
use crate::engine::{Event, NotStarted};
use mezcal_common::model::clock::{BootInstant, WallTime};
use rustix::fd::OwnedFd;
use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// The answer of the spawner: the job, or the order that it could not carry out, and when its spawn
/// began.
pub(super) type SpawnAnswer = (
    std::result::Result<Started, (NotStarted, Order)>,
    (WallTime, BootInstant),
);

/// An order, with the places where standard output and error go.
pub(super) type SpawnOrder = (Order, [OutputTo; 2]);

/// The spawner thread: opens, spawns, answers. It wakes the other thread only if that one waits for
/// the answer.
pub(super) fn spawner(
    around: &mut Surroundings,
    orders: &mpsc::Receiver<SpawnOrder>,
    answers: &mpsc::Sender<SpawnAnswer>,
    wake: &OwnedFd,
    awaited: &AtomicBool,
) {
    while let Ok((order, outputs)) = orders.recv() {
        let began = (WallTime::now(), BootInstant::now());
        let result = spawn::start(around, &order, &outputs).map_err(|why| (why, order));
        // Our write ends close with it: once the job is dead and this thread has answered, a pipe
        // comes to its end.
        drop(outputs);
        let failed = result.is_err();
        if answers.send((result, began)).is_err() {
            return;
        }
        // A failed spawn leaves no child that SIGCHLD would announce.
        if awaited.swap(false, Ordering::SeqCst) || failed {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }
}

impl Driver {
    pub(super) fn spawn(&mut self, order: Order) -> Result<()> {
        let now = BootInstant::now();
        self.attempt = Some(order.attempt);
        self.deaf = self.output.written;
        (self.processes, self.held) = (None, None);
        let outputs = match self.output.begin(&order) {
            Ok(outputs) => outputs,
            Err(why) => {
                self.not_started(why, order);
                return Ok(());
            }
        };
        self.quiet_until = now
            + if self.output.streaming {
                QUIET_WATCHED
            } else {
                QUIET
            };
        self.short_until = Some(now + SHORT);
        self.oom_before = self.counters.recent_oom_kills(now);
        self.spawning = true;
        self.orders
            .send((order, outputs))
            .map_err(|_| Error::other("the spawner thread is gone"))
    }

    /// Takes the spawner's answer, if there is one. True if the first process has ended already.
    pub(super) fn collect_spawned(&mut self) -> bool {
        let Some((result, began)) = self
            .spawning
            .then(|| self.from_spawner.try_recv().ok())
            .flatten()
        else {
            return false;
        };
        self.spawning = false;
        self.awaited.store(false, Ordering::SeqCst);
        match result {
            Ok(Started { pid, born }) => {
                self.processes = Some(Processes::new(pid, born, began, self.oom_before));
                self.engine
                    .handle(Event::Spawned(Ok(())), BootInstant::now());
            }
            Err((why, order)) => self.not_started(why, order),
        }
        // The process may have ended before we knew its number.
        let ended = self.processes.as_mut().is_some_and(Processes::first_ended);
        if ended {
            self.engine.handle(Event::FirstEnded, BootInstant::now());
        }
        ended
    }

    /// The attempt never ran; its pipes belong to nobody.
    pub(super) fn not_started(&mut self, why: NotStarted, order: Order) {
        self.output = Output::default();
        self.unstarted = matches!(why, NotStarted::Short(_)).then_some(order);
        self.engine
            .handle(Event::Spawned(Err(why)), BootInstant::now());
    }
}
