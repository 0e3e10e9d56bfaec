//! A job and its batch, as they travel from client to engine.

use crate::model::ids::BatchId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Environment names that Mezcal sets for every job. Setting them in `env` is refused.
pub const RESERVED_ENV: [&str; 6] = [
    "MEZCAL_JOB_ID",
    "MEZCAL_ATTEMPT",
    "MEZCAL_ENGINE_ID",
    "MEZCAL_SLOT",
    "MEZCAL_HOST",
    "MEZCAL_BATCH",
];

/// What precedes `cmd` in `bash -c` (compat.md §1.1: on the same line, so that a syntax error is
/// found before `set` runs).
pub const SHELL_PREFIX: &str = "set -o pipefail; ";

/// The longest single argument the kernel takes, its NUL included (MAX_ARG_STRLEN, execve(2)).
pub const MAX_ARG_STRLEN: usize = 128 * 1024;

/// The largest encoded job (`wire::codec::spec_fits`): fits a frame several times over, and holds
/// any command and environment that execve(2) takes in practice.
pub const MAX_SPEC: usize = 384 * 1024;

/// The most jobs that a job comes after: their numbers have to fit a frame beside it.
pub const MAX_AFTER: usize = 100_000;

/// The largest [`BatchContext`], by the measure of those who decode it
/// (`wire::codec::context_fits`): it goes to an engine in one frame with a job, and 40 KiB of the
/// frame are left for the rest.
pub const MAX_CONTEXT: usize = 600 * 1024;

/// Bytes kept of each output stream that no file takes.
pub const TAIL_BYTES: usize = 4096;

/// What a job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// `/bin/bash -c 'set -o pipefail; TEXT'`.
    Shell(String),
    /// A program and its arguments, without a shell.
    Argv(Vec<String>),
}

/// What an engine needs to know to run one job. The scheduler looks inside only to forget what has
/// run. Commands, paths and environments may have bytes in them that are no text
/// ([`octets`](crate::model::octets)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The user's `id`; without one the job's number serves.
    pub label: Option<String>,
    /// What runs.
    pub command: Command,
    /// Working directory; relative ones start at the batch's.
    pub cd: Option<String>,
    /// File for standard output, opened after the chdir.
    pub out: Option<String>,
    /// File for standard error.
    pub err: Option<String>,
    /// File for standard input instead of `/dev/null`.
    pub stdin: Option<String>,
    /// Environment of this job, over the batch's.
    pub env: Vec<(String, String)>,
    /// Longest run, over the batch's.
    pub timeout: Option<Duration>,
    /// What to do with processes that outlive the first one, over the batch's.
    pub leftover: Option<Leftover>,
}

impl JobSpec {
    /// A job that names nothing but its command.
    pub fn new(command: Command) -> Self {
        Self {
            label: None,
            command,
            cd: None,
            out: None,
            err: None,
            stdin: None,
            env: Vec::new(),
            timeout: None,
            leftover: None,
        }
    }
}

/// What happens to processes of a job that are alive when its first process has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftover {
    /// They are killed, and counted in the result.
    #[default]
    Kill,
    /// The job goes on until they have ended, too. Its exit status stays the first process's.
    Wait,
}

/// How an attempt is asked to end before it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal to its process group: SIGTERM unless the user wants another one.
    pub signal: i32,
    /// Between that signal and KILL; nothing: KILL at once.
    pub grace: Duration,
}

impl Stop {
    /// KILL at once.
    pub const NOW: Stop = Stop::after(Duration::ZERO);

    /// TERM, and KILL `grace` later.
    pub const fn after(grace: Duration) -> Self {
        Self {
            signal: crate::system::signal::TERM,
            grace,
        }
    }

    /// The stricter of two: the shorter grace, with its signal.
    pub fn stricter(self, other: Self) -> Self {
        if other.grace < self.grace {
            other
        } else {
            self
        }
    }
}

/// Where output goes that no file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capture {
    /// The last [`TAIL_BYTES`] come back with the result.
    Tail,
    /// Everything comes back while the job runs (`coordinator exec`).
    Stream,
}

/// What all jobs of one batch have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchContext {
    /// The batch.
    pub batch: BatchId,
    /// Directory in which jobs start that name none.
    pub cd: String,
    /// Environment over the engine's own, in order, later ones win.
    pub env: Vec<(String, String)>,
    /// File mode creation mask (umask(2)).
    pub umask: u32,
    /// A line of bash before every shell command.
    pub setup: Option<String>,
    /// Directory for `ID.out` and `ID.err` of jobs that name no files.
    pub output_dir: Option<String>,
    /// Longest run of each job that names none.
    pub timeout: Option<Duration>,
    /// Where output goes that no file takes.
    pub capture: Capture,
    /// What happens to processes that outlive the first process of their job, for jobs without
    /// `leftover`.
    pub leftover: Leftover,
}

impl BatchContext {
    /// A batch that starts its jobs in `cd` and asks for nothing else.
    pub fn new(batch: BatchId, cd: String, umask: u32) -> Self {
        let capture = Capture::Tail;
        let leftover = Leftover::default();
        Self {
            batch,
            cd,
            env: Vec::new(),
            umask,
            setup: None,
            output_dir: None,
            timeout: None,
            capture,
            leftover,
        }
    }
}
