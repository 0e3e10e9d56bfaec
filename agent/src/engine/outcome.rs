//! The outcome of an attempt, from the end of its first process, the reason for which it was
//! killed, and the findings of the last sweep.

use super::UNKILLABLE_AFTER;
use super::event::{Exit, OutOfMemory, Swept};
use super::state::Reason;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::outcome::{Containment, Ended, Outcome, WaitStatus};

/// SIGKILL's number (signal(7)).
pub(super) const KILL: i32 = 9;

pub(super) fn outcome(
    reason: Option<Reason>,
    exit: Option<Exit>,
    swept: Swept,
    containment: Containment,
) -> Outcome {
    let status = exit.as_ref().map(|e| e.status);
    let survivors = swept.alive;
    let by_kill = matches!(status, Some(WaitStatus::Signaled(signal)) if signal == KILL);
    let (ended, error) = match (reason, swept.out_of_memory) {
        _ if survivors > 0 => {
            let names = swept.names;
            (Ended::Unkillable, Some(format!("{survivors} processes did not die within {UNKILLABLE_AFTER:?} of SIGKILL: {names}")))
        }
        (None, OutOfMemory::Killed) if status != Some(WaitStatus::Exited(0)) => {
            (Ended::OutOfMemory, Some("the kernel's out-of-memory killer ended a process of it".into()))
        }
        (None, OutOfMemory::OnThisHost) if by_kill => (
            Ended::Signaled,
            Some("SIGKILL from elsewhere; the kernel's out-of-memory killer was at work on this host while it ran".into()),
        ),
        (None, _) if matches!(status, Some(WaitStatus::Signaled(_))) => (Ended::Signaled, None),
        (None, _) => (Ended::Exited, None),
        (Some(Reason::Cancelled), _) => (Ended::Cancelled, None),
        (Some(Reason::Timeout(limit)), _) => {
            (Ended::Timeout, Some(format!("killed after its timeout of {}", format_duration(limit))))
        }
        (Some(Reason::LeaseOver), _) => {
            (Ended::Lost, Some("killed: the coordinator was out of reach for longer than the lease".into()))
        }
        (Some(Reason::Stopped), _) => (Ended::Lost, Some("killed: the engines of its host were stopped".into())),
    };
    Outcome {
        ended,
        status,
        error,
        // An attempt that ended by itself ended with its first process, whatever it left; an
        // attempt that we end has ended when all of it is dead.
        span: swept
            .whole
            .filter(|_| reason.is_some())
            .or(exit.as_ref().map(|e| e.span)),
        usage: exit.map(|_| swept.usage),
        killed: swept.killed,
        survivors,
        containment: Some(containment),
        stdout_tail: swept.tails.0,
        stderr_tail: swept.tails.1,
        written: swept.written,
    }
}
