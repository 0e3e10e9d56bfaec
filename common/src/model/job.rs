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

/// The text before `cmd` in `bash -c` (compat.md §1.1: on the same line, so that a syntax error is
/// found before `set` runs).
pub const SHELL_PREFIX: &str = "set -o pipefail; ";

/// The longest single argument the kernel takes, its NUL included (MAX_ARG_STRLEN, execve(2)).
pub const MAX_ARG_STRLEN: usize = 128 * 1024;

/// The largest encoded job (`wire::codec::spec_fits`): fits a frame several times over, and holds
/// any command and environment that execve(2) takes in practice.
pub const MAX_SPEC: usize = 384 * 1024;

/// Most jobs that one job can come after: their numbers have to fit a frame with it.
pub const MAX_AFTER: usize = 100_000;

/// The largest [`BatchContext`], as measured by the decoder (`wire::codec::context_fits`): it goes
/// to an engine in one frame with a job, and 40 KiB of the frame remain for the other fields.
pub const MAX_CONTEXT: usize = 600 * 1024;

/// Bytes kept of each output stream that is not written to a file.
pub const TAIL_BYTES: usize = 4096;

/// The command of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// `/bin/bash -c 'set -o pipefail; TEXT'`.
    Shell(String),
    /// A program and its arguments, without a shell.
    Argv(Vec<String>),
}

/// All data that an engine needs to run one job. The scheduler decodes it only to drop the command
/// of a job that has ended. Commands, paths and environments may contain bytes that are not UTF-8
/// ([`octets`](crate::model::octets)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The user's `id`; without one the job's number is used.
    pub label: Option<String>,
    /// The command to run.
    pub command: Command,
    /// Working directory; relative paths start at the batch's directory.
    pub cd: Option<String>,
    /// File for standard output, opened after the chdir.
    pub out: Option<String>,
    /// File for standard error.
    pub err: Option<String>,
    /// File for standard input instead of `/dev/null`.
    pub stdin: Option<String>,
    /// Environment of this job, which overrides the batch's.
    pub env: Vec<(String, String)>,
    /// Time limit of each attempt, which overrides the batch's.
    pub timeout: Option<Duration>,
    /// Handling of processes that outlive the first one, which overrides the batch's.
    pub leftover: Option<Leftover>,
}

impl JobSpec {
    /// A job that has only a command.
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

/// Handling of a job's processes that are alive when its first process has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftover {
    /// They are killed, and counted in the result.
    #[default]
    Kill,
    /// The job continues until they have ended, too. Its exit status stays that of the first
    /// process.
    Wait,
}

/// How an attempt is asked to end before it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal to its process group: SIGTERM unless the user chooses another one.
    pub signal: i32,
    /// Time between that signal and SIGKILL; zero: SIGKILL at once.
    pub grace: Duration,
}

impl Stop {
    /// SIGKILL at once.
    pub const NOW: Stop = Stop::after(Duration::ZERO);

    /// SIGTERM, and SIGKILL `grace` later.
    pub const fn after(grace: Duration) -> Self {
        Self {
            signal: crate::model::signal::TERM,
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

/// Handling of output that is not written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capture {
    /// The last [`TAIL_BYTES`] come with the result.
    Tail,
    /// All of it is sent while the job runs (`coordinator exec`).
    Stream,
}

/// The settings that all jobs of one batch share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchContext {
    /// Id of the batch.
    pub batch: BatchId,
    /// Working directory of jobs that name none.
    pub cd: String,
    /// Environment added to the engine's own, in order; later entries win.
    pub env: Vec<(String, String)>,
    /// File mode creation mask (umask(2)).
    pub umask: u32,
    /// A line of bash before every shell command.
    pub setup: Option<String>,
    /// Directory for `ID.out` and `ID.err` of jobs that name no files.
    pub output_dir: Option<String>,
    /// Time limit of each attempt of jobs that name none.
    pub timeout: Option<Duration>,
    /// Handling of output that is not written to a file.
    pub capture: Capture,
    /// Handling of processes that outlive the first process of their job, for jobs without
    /// `leftover`.
    pub leftover: Leftover,
}

impl BatchContext {
    /// A batch whose jobs start in `cd`, without options.
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
