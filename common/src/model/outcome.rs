//! How an attempt ended, as data. Numbers are the kernel's own (P7), never inferred.

use crate::model::clock::WallTime;
use crate::model::ids::EngineId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ended {
    /// The command ran to its own end and exited.
    Exited,
    /// A signal that Mezcal did not send ended it.
    Signaled,
    /// It ran longer than its timeout and was killed.
    Timeout,
    /// It was cancelled: killed, or never started.
    Cancelled,
    /// The kernel's out-of-memory killer ended it.
    OutOfMemory,
    /// It could not be started.
    StartFailed,
    /// No host that may run it was connected for the length of the host timeout.
    NoHost,
    /// A job that it comes after failed.
    Skipped,
    /// Its host was lost, too often or for good.
    Lost,
    /// It was killed and did not die.
    Unkillable,
    /// Its host was short of something needed to start a process: it has not run, and is returned.
    /// No job ends in this way.
    HostShort,
}

impl Ended {
    /// The value of `outcome` in a result.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Exited => "exited",
            Ended::Signaled => "signaled",
            Ended::Timeout => "timeout",
            Ended::Cancelled => "cancelled",
            Ended::OutOfMemory => "oom",
            Ended::StartFailed => "start_failed",
            Ended::NoHost => "no_host",
            Ended::Skipped => "skipped",
            Ended::Lost => "lost",
            Ended::Unkillable => "unkillable",
            Ended::HostShort => "host_short",
        }
    }

    /// The value of `status` in a result: `ok` if the command ran to its own end, `aborted` if
    /// cancelled, else `error`.
    pub fn status(self) -> &'static str {
        match self {
            Ended::Exited | Ended::Signaled => "ok",
            Ended::Cancelled => "aborted",
            Ended::Timeout
            | Ended::OutOfMemory
            | Ended::StartFailed
            | Ended::NoHost
            | Ended::Skipped
            | Ended::Lost
            | Ended::Unkillable
            | Ended::HostShort => "error",
        }
    }
}

/// How jobs have ended, in the groups that people count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Exit status 0.
    Done,
    /// Any other end without success.
    Failed,
    /// Cancelled, or not started because of a cancel.
    Cancelled,
    /// Not started because of another job that had not succeeded.
    Skipped,
}

/// The wait status of the job's first process, from wait4(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitStatus {
    /// Exit status 0–255.
    Exited(i32),
    /// Signal number.
    Signaled(i32),
}

impl WaitStatus {
    /// The code as in Python's subprocess: the exit status, or −N for signal N.
    pub fn code(self) -> i32 {
        match self {
            WaitStatus::Exited(code) => code,
            WaitStatus::Signaled(signal) => -signal,
        }
    }
}

/// How the processes of an attempt are kept together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Containment {
    /// A process group, and the engine as the parent of every orphan (PR_SET_CHILD_SUBREAPER of
    /// prctl(2)).
    Subreaper,
    /// The same, and a control group of its own that dies at one write (`cgroup.kill`, Linux 5.14).
    Cgroup2,
}

impl Containment {
    /// The name in results and in `coordinator hosts`.
    pub fn as_str(self) -> &'static str {
        match self {
            Containment::Subreaper => "subreaper",
            Containment::Cgroup2 => "cgroup2",
        }
    }
}

/// The source of CPU times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsageSource {
    /// wait4(2): the processes that the engine reaped, and the processes that these had waited for.
    #[default]
    Wait4,
    /// `cpu.stat` of the attempt's control group: every process that was ever in it.
    Cgroup2,
}

impl UsageSource {
    /// The value of `usage_source` in a result.
    pub fn as_str(self) -> &'static str {
        match self {
            UsageSource::Wait4 => "wait4",
            UsageSource::Cgroup2 => "cgroup2",
        }
    }
}

/// Resource use of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The source of the two times.
    pub source: UsageSource,
    /// Largest resident set of any one process, in bytes (`ru_maxrss` of wait4(2)). `None` when it
    /// is not above the engine's own: execve(2) passes on the memory peak of the process that
    /// starts a program.
    pub max_rss: Option<u64>,
    /// Largest memory use of all its processes together, page cache included (`memory.peak`, Linux
    /// 5.19).
    pub memory_peak: Option<u64>,
}

/// When an attempt ran, on its host's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Wall clock just before the spawn.
    pub started: WallTime,
    /// Wall clock when the end was seen: that of the first process, or of all processes that were
    /// waited for (`leftover: wait`) or killed with it.
    pub completed: WallTime,
    /// Time between the two on CLOCK_BOOTTIME, which cannot be set.
    pub elapsed: Duration,
}

/// Byte counts of an attempt's output, counted by its engine while it read. `None` where the output
/// went to a file, or where there is no count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Bytes of standard output.
    pub out: Option<u64>,
    /// Bytes of standard error.
    pub err: Option<u64>,
}

impl Written {
    /// Whether anything was counted.
    pub fn is_known(self) -> bool {
        self.out.is_some() || self.err.is_some()
    }

    /// Whether a stream was longer than its kept tail.
    pub fn exceeds_tails(self) -> bool {
        [self.out, self.err]
            .into_iter()
            .flatten()
            .any(|bytes| bytes > crate::model::job::TAIL_BYTES as u64)
    }
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it has ended.
    pub ended: Ended,
    /// Wait status of the first process, if one ever ran.
    pub status: Option<WaitStatus>,
    /// For people: the error, where it is more than an exit status.
    pub error: Option<String>,
    /// When it ran, if it did.
    pub span: Option<Span>,
    /// Its use of resources, if it ran.
    pub usage: Option<Usage>,
    /// Processes that Mezcal killed, at a cancel or as leftovers of a normal end.
    pub killed: u32,
    /// Processes that are still alive: 0, or the attempt is `Unkillable`.
    pub survivors: u32,
    /// How its processes were kept together, if it ran.
    pub containment: Option<Containment>,
    /// The last bytes of standard output, if it was not written to a file.
    pub stdout_tail: Option<Bytes>,
    /// The last bytes of standard error, if it was not written to a file.
    pub stderr_tail: Option<Bytes>,
    /// Byte counts of the two streams. Peers of earlier versions do not know them, so they are not
    /// part of the common encoding: newer messages carry them beside the rest ([`counted`],
    /// [`counted_results`]), and so does the store.
    #[serde(skip)]
    pub written: Written,
}

impl Outcome {
    /// An outcome of an attempt that never ran. Only the beginning of a very long error is kept: it
    /// contains paths and words from users.
    pub fn never_ran(ended: Ended, error: impl Into<Option<String>>) -> Self {
        Self {
            ended,
            status: None,
            error: error.into().map(shortened),
            span: None,
            usage: None,
            killed: 0,
            survivors: 0,
            containment: None,
            stdout_tail: None,
            stderr_tail: None,
            written: Written::default(),
        }
    }

    /// The same with texts no longer than an honest engine makes them: many of them have to fit one
    /// message.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        self.error = self.error.map(|text| {
            if text.len() > ERROR_BYTES + CUT.len() {
                shortened(text)
            } else {
                text
            }
        });
        for tail in [&mut self.stdout_tail, &mut self.stderr_tail]
            .into_iter()
            .flatten()
        {
            if tail.len() > crate::model::job::TAIL_BYTES {
                *tail = tail.slice(tail.len() - crate::model::job::TAIL_BYTES..);
            }
        }
        self
    }

    /// The group in which this outcome is counted.
    pub fn way(&self) -> Way {
        match self.ended {
            _ if self.succeeded() => Way::Done,
            Ended::Cancelled => Way::Cancelled,
            Ended::Skipped => Way::Skipped,
            _ => Way::Failed,
        }
    }

    /// Whether the job succeeded: exit status 0.
    pub fn succeeded(&self) -> bool {
        self.ended == Ended::Exited && self.status == Some(WaitStatus::Exited(0))
    }
}

/// Bytes kept of an error text: many of them have to fit one frame.
const ERROR_BYTES: usize = 4096;
/// Mark of a text that was cut.
const CUT: &str = "…";

fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES {
        let end = (0..=ERROR_BYTES)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

/// The final result of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The attempt that counts, from 1; 0 if none was placed.
    pub attempt: u32,
    /// The host and engine where it ran, if it did.
    pub place: Option<Place>,
    /// Whether it ran on a host that the job prefers; `None` if the job prefers none.
    pub local: Option<bool>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Where an attempt ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The host's name, from its agent's certificate.
    pub host: std::sync::Arc<str>,
    /// The engine's cluster-wide number.
    pub engine: EngineId,
    /// Seconds to add to the host's clock to get the coordinator's.
    pub clock_offset: Option<f64>,
}

/// An outcome with its [`Written`].
pub mod counted {
    use super::{Outcome, Written};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
        (outcome, outcome.written).serialize(serializer)
    }

    /// # Errors
    /// The deserializer's own.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Box<Outcome>, D::Error> {
        let (outcome, written) = <(Box<Outcome>, Written)>::deserialize(deserializer)?;
        Ok(Box::new(Outcome {
            written,
            ..*outcome
        }))
    }
}

/// Results, each with the [`Written`] of its job.
pub mod counted_results {
    use super::{JobResult, Written};
    use crate::model::ids::JobNumber;
    use serde::{Deserialize, Deserializer, Serializer};

    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(
        results: &[(JobNumber, JobResult)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            results
                .iter()
                .map(|(job, result)| (job, result, result.outcome.written)),
        )
    }

    /// # Errors
    /// The deserializer's own.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(JobNumber, JobResult)>, D::Error> {
        let results = Vec::<(JobNumber, JobResult, Written)>::deserialize(deserializer)?;
        let with = |(job, mut result, written): (JobNumber, JobResult, Written)| {
            result.outcome.written = written;
            (job, result)
        };
        Ok(results.into_iter().map(with).collect())
    }
}

/// Keeps the last [`crate::model::job::TAIL_BYTES`] of a stream.
#[derive(Debug, Default)]
pub struct Tail(std::collections::VecDeque<u8>);

impl Tail {
    /// Appends more of the stream.
    pub fn push(&mut self, data: &[u8]) {
        let keep = &data[data.len().saturating_sub(crate::model::job::TAIL_BYTES)..];
        let over = (self.0.len() + keep.len()).saturating_sub(crate::model::job::TAIL_BYTES);
        self.0.drain(..over);
        self.0.extend(keep);
    }

    /// A copy of the kept bytes.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.0.iter().copied().collect::<Vec<u8>>())
    }

    /// The kept bytes.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(Vec::from(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_stands_beside_an_outcome_that_earlier_versions_can_read() {
        use crate::message::agent::Report;
        use crate::message::client::ToClient;
        use crate::model::ids::{BatchId, JobNumber};
        use crate::wire::codec::{decode_exact, encode_body};
        let plain = Outcome {
            stdout_tail: Some("x".into()),
            ..Outcome::never_ran(Ended::Exited, None)
        };
        let counted = Outcome {
            written: Written {
                out: Some(5000),
                err: None,
            },
            ..plain.clone()
        };
        assert_eq!(
            encode_body(&plain).expect("short"),
            encode_body(&counted).expect("short")
        );
        let report = Report::Counted {
            engine: None,
            outcome: Box::new(counted.clone()),
        };
        assert_eq!(
            decode_exact::<Report>(&encode_body(&report).expect("short")).expect("the same"),
            report
        );
        let result = JobResult {
            attempt: 1,
            place: None,
            local: None,
            outcome: counted,
        };
        let batch = BatchId(uuid::Uuid::nil());
        let results = ToClient::CountedResults {
            batch,
            results: vec![(JobNumber(1), result)],
        };
        assert_eq!(
            decode_exact::<ToClient>(&encode_body(&results).expect("short")).expect("the same"),
            results
        );
    }

    #[test]
    fn a_tail_keeps_the_last_bytes_however_they_come() {
        let data: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for step in [1, 7, 4095, 4096, 4097, 10_000] {
            let mut tail = Tail::default();
            data.chunks(step).for_each(|c| tail.push(c));
            assert_eq!(tail.into_bytes(), data[10_000 - 4096..], "{step}");
        }
    }
}
