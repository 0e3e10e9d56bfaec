//! The output thread: result lines, log lines and progress, away from the loop that talks to the
//! coordinator.
//!
//! Writing may block for as long as a reader likes (`| less`): results then wait at the
//! coordinator, because they are acknowledged only after they have been written.

use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::report::format::{ClientTimes, ResultFormat};
use crate::report::progress::{Counts, Progress};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::limits;
use mezcal_common::model::outcome::JobResult;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages that may wait for the output thread.
const DEPTH: usize = 64;
/// Bytes that are gathered before a write.
const BUFFER: usize = 64 * 1024;

/// A message to the output thread.
pub enum ToOutput {
    /// Agents are there and the jobs have been handed over.
    Begin {
        /// How many engines there are.
        engines: u32,
        /// When the jobs were handed over.
        submitted: WallTime,
    },
    /// Numbers of jobs whose results will come, and are in the file already.
    Known(Vec<u32>),
    /// Results, and when they came.
    Results(Vec<(JobNumber, JobResult)>, WallTime),
    /// A text for the user.
    Say(String),
}

/// An answer of the output thread.
#[derive(Debug)]
pub enum FromOutput {
    /// The total of results written so far.
    Written(u64),
    /// The output can no longer be written.
    Failed(std::io::Error),
}

/// The running output thread.
pub struct OutputThread {
    /// Messages to it.
    pub sender: mpsc::Sender<ToOutput>,
    /// Its answers.
    pub answers: mpsc::UnboundedReceiver<FromOutput>,
    thread: std::thread::JoinHandle<Counts>,
}

/// Starts the thread. Lines are as `compat` has them, or for people at a `terminal`. `watched` is a
/// pipe: if its reader leaves, that is noticed even while nothing is written.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    jobs: Arc<Jobs>,
    writer: Box<dyn Write + Send>,
    watched: Option<OwnedFd>,
    progress: Progress,
    (compat, terminal): (bool, bool),
    keep_order: bool,
) -> std::io::Result<OutputThread> {
    let (sender, receiver) = mpsc::channel(DEPTH);
    // Each message gets at most one answer, and messages are bounded.
    let (answering, answers) = mpsc::unbounded_channel();
    watch_reader(watched, answering.clone())?;
    let output = Output {
        jobs,
        writer,
        buffer: Vec::with_capacity(BUFFER * 2),
        progress,
        format: ResultFormat::new(compat).on_terminal(terminal),
        held: keep_order.then(BTreeMap::new),
        next: 1,
        known: HashSet::new(),
        counts: Counts::default(),
        submitted: WallTime::now(),
        failed: false,
    };
    let thread = std::thread::Builder::new()
        .name("output".into())
        .spawn(move || output.run(receiver, &answering))
        .map_err(limits::named)?;
    Ok(OutputThread {
        sender,
        answers,
        thread,
    })
}

/// Answers with a broken pipe as soon as `pipe` has no reader (poll(2): POLLERR on the write end).
fn watch_reader(
    pipe: Option<OwnedFd>,
    answers: mpsc::UnboundedSender<FromOutput>,
) -> std::io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    let watch = move || {
        loop {
            match poll(&mut [PollFd::new(&pipe, PollFlags::empty())], None) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) => {
                    let _ = answers.send(FromOutput::Failed(std::io::ErrorKind::BrokenPipe.into()));
                    return;
                }
                Err(_) => return,
            }
        }
    };
    // The thread ends with the process.
    std::thread::Builder::new()
        .name("output reader".into())
        .spawn(watch)
        .map(|_| ())
        .map_err(limits::named)
}

impl OutputThread {
    /// Lets the thread write its last results, and waits for its end: how the jobs ended, and the
    /// write error since the last answer taken.
    pub fn finish(mut self) -> (Counts, Option<std::io::Error>) {
        drop(self.sender);
        // The hook has reported a panic there already.
        let counts = self.thread.join().unwrap_or_default();
        let mut failed = None;
        while let Ok(answer) = self.answers.try_recv() {
            if let FromOutput::Failed(e) = answer {
                failed = Some(e);
            }
        }
        (counts, failed)
    }
}

struct Output {
    jobs: Arc<Jobs>,
    writer: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    progress: Progress,
    format: ResultFormat,
    /// With `--keep-order`: results that wait for earlier ones.
    held: Option<BTreeMap<u32, (JobResult, WallTime)>>,
    next: u32,
    /// Jobs whose results are in the file already.
    known: HashSet<u32>,
    counts: Counts,
    submitted: WallTime,
    failed: bool,
}

impl Output {
    fn run(
        mut self,
        mut messages: mpsc::Receiver<ToOutput>,
        answers: &mpsc::UnboundedSender<FromOutput>,
    ) -> Counts {
        while let Some(message) = messages.blocking_recv() {
            match message {
                ToOutput::Begin { engines, submitted } => {
                    self.submitted = submitted;
                    self.progress.begin(engines);
                }
                ToOutput::Results(results, received) => {
                    for (number, result) in results {
                        self.result(number.0, result, received);
                        if self.buffer.len() >= BUFFER {
                            self.flush(answers);
                        }
                    }
                    // With more messages waiting, one write serves all.
                    if messages.is_empty() {
                        self.flush(answers);
                    }
                    let _ = answers.send(FromOutput::Written(self.counts.ended()));
                }
                ToOutput::Known(jobs) => self.known.extend(jobs),
                ToOutput::Say(text) => self.progress.say(&text),
            }
        }
        self.release_held();
        self.flush(answers);
        self.progress.end(self.counts);
        self.counts
    }

    fn result(&mut self, number: u32, result: JobResult, received: WallTime) {
        self.counts.add(&result);
        let jobs = self.jobs.clone();
        self.progress
            .job(self.counts, &result, || jobs.title(number));
        match &mut self.held {
            None => self.line(number, &result, received),
            Some(held) => {
                held.insert(number, (result, received));
                while let Some((result, received)) =
                    self.held.as_mut().and_then(|held| held.remove(&self.next))
                {
                    self.line(self.next, &result, received);
                    self.next += 1;
                }
            }
        }
    }

    /// At the end of a run that was cut short, results that wait for lost predecessors are written
    /// all the same.
    fn release_held(&mut self) {
        for (number, (result, received)) in self.held.take().into_iter().flatten() {
            self.line(number, &result, received);
        }
    }

    fn line(&mut self, number: u32, result: &JobResult, received: WallTime) {
        if !self.known.is_empty() && self.known.remove(&number) {
            return;
        }
        let times = ClientTimes {
            submitted: self.submitted,
            received,
        };
        self.format
            .line(&mut self.buffer, &self.jobs, number, result, times);
    }

    fn flush(&mut self, answers: &mpsc::UnboundedSender<FromOutput>) {
        if !self.failed && !self.buffer.is_empty() {
            let (writer, buffer) = (&mut self.writer, &self.buffer);
            if let Err(e) = self
                .progress
                .aside(|| writer.write_all(buffer).and_then(|()| writer.flush()))
            {
                self.failed = true;
                let _ = answers.send(FromOutput::Failed(e));
            }
        }
        self.buffer.clear();
    }
}

pub(crate) fn not_writable(e: &std::io::Error) -> Exit {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Exit::unwritten(e),
        _ => Exit::output(format!(
            "cannot write results: {e}; jobs that had not ended were cancelled"
        )),
    }
}
