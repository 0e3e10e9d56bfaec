//! Small pieces of the programs' own work, each with its surroundings: for benchmarks by the clock
//! and by the instruction.

use crate::placement::Placing;
use bytes::{Bytes, BytesMut};
use mezcal_common::message::agent::{NumberedReport, Placement, Report, ToAgent, ToCoordinator};
use mezcal_common::message::client::ToService;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, EngineIndex, Epoch, JobKey, JobNumber,
};
use mezcal_common::model::job::{Command, JobSpec};
use mezcal_common::model::outcome::{Ended, JobResult, Outcome, Place, Span, Usage, WaitStatus};
use mezcal_common::wire::codec;
use mezcal_coordinator::client::submit::Submitter;
use mezcal_coordinator::jobs::{Format, Jobs};
use mezcal_coordinator::report::format::{ClientTimes, ResultFormat};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// The number of messages, jobs or results in one piece of work.
pub const COUNT: usize = 1000;

/// One kind of work.
pub struct Case {
    /// The name in the benchmark's output.
    pub name: &'static str,
    /// Prepares the work and returns it; the work treats [`COUNT`] things.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All kinds of work.
pub const CASES: [Case; 10] = [
    Case {
        name: "codec: encode a placement",
        prepare: encode_placements,
    },
    Case {
        name: "codec: decode a placement",
        prepare: decode_placements,
    },
    Case {
        name: "codec: encode a report",
        prepare: encode_reports,
    },
    Case {
        name: "codec: decode a report",
        prepare: decode_reports,
    },
    Case {
        name: "scheduler: accept a job",
        prepare: accept,
    },
    Case {
        name: "scheduler: report, pull and place, anywhere",
        prepare: place_anywhere,
    },
    Case {
        name: "scheduler: report, pull and place, near data",
        prepare: place_near,
    },
    Case {
        name: "job file: read a job",
        prepare: read_jobs,
    },
    Case {
        name: "job file: hand a job over",
        prepare: hand_over,
    },
    Case {
        name: "results: write a line",
        prepare: write_results,
    },
];

/// Does the work. It is a function of its own so that callgrind can count it alone.
#[inline(never)]
pub fn measured(work: &mut dyn FnMut()) {
    work();
}

fn attempt(job: usize) -> AttemptId {
    AttemptId {
        epoch: Epoch(1),
        key: JobKey {
            batch: BatchSerial(1),
            job: JobNumber(job as u32 + 1),
        },
        attempt: 1,
    }
}

fn outcome() -> Outcome {
    let usage = Usage {
        user: Duration::from_millis(3),
        system: Duration::from_millis(2),
        max_rss: Some(3 << 20),
        ..Usage::default()
    };
    let span = Span {
        started: WallTime(1_700_000_000_000_000),
        completed: WallTime(1_700_000_000_250_000),
        elapsed: Duration::from_millis(250),
    };
    Outcome {
        status: Some(WaitStatus::Exited(0)),
        span: Some(span),
        usage: Some(usage),
        stdout_tail: Some(Bytes::from_static(b"done\n")),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

fn placements() -> ToAgent {
    let spec = JobSpec::new(Command::Shell("gzip -9 < in.0001 > out.0001".into()));
    let spec = codec::encode_body(&spec).expect("it fits");
    ToAgent::Run(
        (0..COUNT)
            .map(|job| Placement {
                attempt: attempt(job),
                spec: spec.clone(),
                slots: 1,
            })
            .collect(),
    )
}

fn reports() -> ToCoordinator {
    let report = || Report::Finished {
        engine: Some(EngineIndex(0)),
        outcome: Box::new(outcome()),
    };
    ToCoordinator::Reports(
        (0..COUNT)
            .map(|job| NumberedReport {
                seq: job as u64,
                attempt: attempt(job),
                report: report(),
            })
            .collect(),
    )
}

fn encoding<T: serde::Serialize + 'static>(message: T) -> Box<dyn FnMut()> {
    let mut buffer = Vec::new();
    Box::new(move || {
        buffer.clear();
        codec::encode_frame(&mut buffer, black_box(&message)).expect("it fits");
    })
}

fn decoding<T: serde::Serialize + serde::de::DeserializeOwned>(message: T) -> Box<dyn FnMut()> {
    let mut frame = Vec::new();
    codec::encode_frame(&mut frame, &message).expect("it fits");
    Box::new(move || {
        drop(black_box(
            codec::decode_frame::<T>(&mut BytesMut::from(&frame[..])).expect("ours"),
        ))
    })
}

fn encode_placements() -> Box<dyn FnMut()> {
    encoding(placements())
}

fn decode_placements() -> Box<dyn FnMut()> {
    decoding(placements())
}

fn encode_reports() -> Box<dyn FnMut()> {
    encoding(reports())
}

fn decode_reports() -> Box<dyn FnMut()> {
    decoding(reports())
}

fn accept() -> Box<dyn FnMut()> {
    let mut placing = Placing::new(100);
    Box::new(move || placing.submit(COUNT, false))
}

fn placing(near: bool) -> Box<dyn FnMut()> {
    let mut placing = Placing::new(1000);
    placing.submit(100_000, near);
    placing.begin();
    Box::new(move || placing.rounds(COUNT))
}

fn place_anywhere() -> Box<dyn FnMut()> {
    placing(false)
}

fn place_near() -> Box<dyn FnMut()> {
    placing(true)
}

fn job_list() -> Vec<u8> {
    let line = |n| {
        format!(
            "{{\"id\": \"j{n}\", \"cmd\": \"gzip -9 < in.{n:04} > out.{n:04}\", \"cd\": \"data\", \"prefer\": \"mezcal{:02}\"}}\n",
            n % 12
        )
    };
    (0..COUNT).map(line).collect::<String>().into_bytes()
}

fn read() -> Jobs {
    Jobs::read("jobs.json", job_list(), Format::Json, 0).expect("a good list")
}

fn read_jobs() -> Box<dyn FnMut()> {
    Box::new(|| drop(black_box(read())))
}

fn hand_over() -> Box<dyn FnMut()> {
    let jobs = Arc::new(read());
    Box::new(move || {
        let mut submitter = Submitter::new(jobs.clone(), BatchId(uuid::Uuid::from_u128(1)));
        submitter.opened(0, 0, false);
        while submitter.has_more() {
            black_box::<ToService>(submitter.next_message());
        }
    })
}

fn write_results() -> Box<dyn FnMut()> {
    let jobs = read();
    let place = Place {
        host: "mezcal02".into(),
        engine: EngineId(7),
        clock_offset: Some(0.0),
    };
    let result = JobResult {
        attempt: 1,
        place: Some(place),
        local: Some(true),
        outcome: outcome(),
    };
    let (format, now) = (ResultFormat::new(false), WallTime(1_700_000_000_500_000));
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        for number in 1..=COUNT as u32 {
            format.line(
                &mut out,
                &jobs,
                number,
                black_box(&result),
                ClientTimes {
                    submitted: now,
                    received: now,
                },
            );
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_can_be_done_again_and_again() {
        for case in CASES {
            let mut work = (case.prepare)();
            for _ in 0..2 {
                measured(&mut work);
            }
        }
    }
}
