//! Mistakes that are planted, to show that the checks find them.

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The coordinator waits no longer for a lost host than its attempts may run.
    NoMargin,
    /// An engine that never hears of a lease.
    NoDeadline,
    /// An engine that forgets an outcome as soon as it has sent it.
    ForgetsEarly,
    /// An inventory that is sent before the engines have been heard.
    EarlyInventory,
    /// A report of an earlier attempt that counts for the present one.
    StaleReport,
    /// A cancel that is answered when it is sent.
    HastyCancel,
    /// A job that is taken back is placed elsewhere before its agent has answered.
    HastyRetract,
    /// The coordinator acts on what its store does not have yet.
    HastyStore,
    /// A slot waits for its own jobs for longer than it may.
    LongWait,
    /// An agent that holds on to the longest lease that it was ever given.
    LongestLease,
    /// A batch that is given up keeps those of its jobs that have just been released.
    OverlooksReleased,
    /// Idle slots are kept for a wide job as long the next time as the last.
    KeepsNoLonger,
    /// Slots that have been idle for long take jobs though a slot that those prefer is idle, too.
    TakesFromNear,
    /// What one user's engines say of another's attempts counts.
    BelievesAnybody,
    /// What engines have that were not heard counts as absent.
    SilenceIsAbsence,
    /// A copy of the store whose batches are placed at once.
    HastyRestore,
    /// A copy of the store that passes for its original.
    SameGeneration,
    /// An agent that forgets which generations it has met when it is started again.
    ForgetfulAgent,
}
