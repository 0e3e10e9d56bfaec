//! `coordinator run --stream`: jobs arrive on standard input while others run, results leave on
//! standard output as they come. The interface for programs; docs/stream.md describes its lines.

mod answers;
mod cancels;
mod lines;
mod outbox;

use self::cancels::OpenCancel;
use self::lines::{Control, Line, Parser, read, write};
use self::outbox::Item;
use super::input::{Lines, Manner};
use crate::client::beside::{beside, pass_on, until};
use crate::client::cluster::{Connected, UNWATCHED_WAIT, agent_ended};
use crate::client::context::GRACE;
use crate::client::signals::Signals;
use crate::exit::{self, Exit};
use crate::jobs::Format;
use crate::report::format::ResultFormat;
use crate::report::output::not_writable;
use mezcal_common::message::client::{BatchTerms, HostStatus, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::limits;
use rustix::fd::AsFd;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Groups of lines, and of output, that may wait.
const DEPTH: usize = 8;
/// Jobs without the coordinator's acceptance at which reading pauses.
const MAX_WAITING: usize = 16_384;

struct Stream {
    manner: Manner,
    attended: bool,
    connected: Connected,
    terms: BatchTerms,
    batch: BatchId,
    /// When jobs came: by the first of those that came together, with the number of them that have
    /// no result yet.
    submitted: BTreeMap<u32, (WallTime, usize)>,
    format: ResultFormat,
    /// The table of host sets, the index of each, and how many the coordinator has.
    sets: Vec<Vec<String>>,
    indices: HashMap<Vec<String>, u32>,
    sets_sent: usize,
    /// Messages that the coordinator has not accepted, and how many of them have been sent.
    items: VecDeque<Item>,
    sent: usize,
    /// Whether the coordinator has said how much of the batch it has.
    ready: bool,
    /// An agent has been connected.
    seen_agents: bool,
    given: u64,
    received: u64,
    failed: u64,
    /// No more jobs will come.
    closing: bool,
    /// The input has ended.
    over: bool,
    /// The coordinator has been told over this connection that no more jobs come.
    close_sent: bool,
    /// It has acknowledged that.
    closed: bool,
    /// It has refused a request, and takes no more.
    refused: bool,
    next_request: u64,
    /// Requests for the hosts without an answer, each by the name that the answer repeats; and
    /// cancels by their request.
    hosts_asked: VecDeque<Option<Value>>,
    /// Hosts of an answer that is not complete yet.
    hosts: Vec<HostStatus>,
    cancels: BTreeMap<u64, OpenCancel>,
    output: VecDeque<(Vec<u8>, u64)>,
    signalled: (u32, u8),
    failure: Option<Exit>,
}

/// The ends of the threads that read lines and write them.
struct Ends {
    input: mpsc::Receiver<Vec<Line>>,
    writer: mpsc::Sender<(Vec<u8>, u64)>,
    /// The number of results that have been written, or why no more can be.
    written: mpsc::UnboundedReceiver<std::io::Result<u64>>,
}

impl Ends {
    fn start(parser: Parser) -> std::io::Result<Self> {
        let (to_stream, input) = mpsc::channel(DEPTH);
        let stdin = std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || read(stdin, &to_stream, parser))?;
        let (writer, to_write) = mpsc::channel(DEPTH);
        let (acknowledge, written) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("output".into())
            .spawn(move || write(to_write, &acknowledge))?;
        Ok(Self {
            input,
            writer,
            written,
        })
    }
}

/// Runs jobs from standard input until it is closed and all of them have ended.
///
/// # Errors
/// [`Exit`] with the status and a message.
pub(super) async fn run(
    lines: Lines,
    terms: BatchTerms,
    manner: Manner,
    connected: Connected,
    mut signals: Signals,
) -> Result<u8, Exit> {
    let compat = manner.compat;
    let parser = Parser {
        format: if compat {
            Format::Bakapara
        } else {
            Format::Json
        },
        retries: lines.retries,
        widest: lines.widest,
        number: 0,
    };
    let mut ends = Ends::start(parser).map_err(|e| {
        Exit::usage(format!(
            "cannot read jobs or write results: {}",
            limits::named(e)
        ))
    })?;
    let mut me = Stream::new(lines.attended, terms, manner, connected);
    me.say(json!({"event": "batch", "batch": me.batch.to_string()}));
    me.drive(&mut ends, &mut signals).await;
    let end =
        json!({"event": "end", "jobs": me.given, "received": me.received, "failed": me.failed});
    me.say(end);
    // Output that is still to be written: a slow reader is waited for, one that has left is not.
    let chunks = std::mem::take(&mut me.output);
    let finishing = async move {
        for chunk in chunks {
            let _ = ends.writer.send(chunk).await;
        }
        drop(ends.writer);
        let mut failed = None;
        while let Some(said) = ends.written.recv().await {
            failed = failed.or(said.err());
        }
        failed
    };
    let failed = tokio::select! {
        failed = finishing => failed,
        number = signals.next() => std::process::exit(128 + i32::from(number)),
    };
    if let Some(e) = failed {
        me.failure.get_or_insert(not_writable(&e));
    }
    me.connected.end().await;
    match (me.failure, me.signalled) {
        (Some(failure), _) => Err(failure),
        (None, (1.., number)) => Ok(128 + number),
        (None, _) if me.failed > 0 && !compat => Ok(exit::FAILED),
        (None, _) => Ok(0),
    }
}

impl Stream {
    fn new(attended: bool, terms: BatchTerms, manner: Manner, connected: Connected) -> Self {
        Self {
            attended,
            batch: terms.context.batch,
            connected,
            terms,
            submitted: BTreeMap::new(),
            format: ResultFormat::new(manner.compat),
            manner,
            sets: Vec::new(),
            indices: HashMap::new(),
            sets_sent: 0,
            items: VecDeque::new(),
            sent: 0,
            ready: false,
            seen_agents: false,
            given: 0,
            received: 0,
            failed: 0,
            closing: false,
            over: false,
            close_sent: false,
            closed: false,
            refused: false,
            next_request: 1,
            hosts_asked: VecDeque::new(),
            hosts: Vec::new(),
            cancels: BTreeMap::new(),
            output: VecDeque::new(),
            signalled: (0, 0),
            failure: None,
        }
    }

    async fn drive(&mut self, ends: &mut Ends, signals: &mut Signals) {
        let Ends {
            input,
            writer,
            written,
        } = ends;
        let mut requests = self.open().await;
        let mut taken = 0;
        let give_up = Instant::now() + self.manner.wait_agents.unwrap_or(UNWATCHED_WAIT);
        while !self.is_through() {
            let (sending, writing) = (requests.clone(), writer.clone());
            tokio::select! {
                number = signals.next() => {
                    self.signalled = (self.signalled.0 + 1, if self.signalled.0 == 0 { number } else { self.signalled.1 });
                    match self.signalled.0 {
                        1 => self.cancel_all(GRACE),
                        2 => self.cancel_all(Duration::ZERO),
                        _ => std::process::exit(128 + i32::from(number)),
                    }
                }
                answer = self.connected.port.answers.recv(), if self.output.len() < DEPTH => match answer {
                    Some(answer) => self.answer(answer),
                    None => match self.reattach(signals, writer).await {
                        true => requests = self.open().await,
                        false => return,
                    },
                },
                lines = input.recv(), if !self.over && self.items.len() < MAX_WAITING => match lines {
                    Some(lines) => self.lines(lines),
                    None => self.end_of_input(),
                },
                permit = writing.reserve(), if !self.output.is_empty() => pass_on(permit, &mut self.output),
                Some(said) = written.recv() => match said {
                    Ok(results) => {
                        taken += results;
                        let _ = requests.send(ToService::Taken { batch: self.batch, results: taken }).await;
                    }
                    Err(e) => {
                        if self.failure.is_none() {
                            self.failure = Some(not_writable(&e));
                            self.give_up();
                        }
                    }
                },
                Ok(permit) = sending.reserve(), if self.has_more() => {
                    if let Some(message) = self.next_message() {
                        permit.send(message);
                    }
                }
                why = agent_ended(&mut self.connected.agent) => {
                    self.failure = Some(Exit::unreachable(why));
                    return;
                }
                () = until(Some(give_up)), if !self.seen_agents => {
                    self.failure = Some(Exit::unreachable(format!("{} (--wait-agents)", self.connected.waiting_for)));
                    return;
                }
            }
        }
    }

    /// Whether all jobs have a result and the coordinator knows that no more come: a batch that is
    /// left open stays until its client lease ends.
    fn is_through(&self) -> bool {
        self.closing && self.received >= self.given && (self.closed || self.refused)
    }

    /// Opens the batch, or continues it after a lost connection.
    async fn open(&mut self) -> mpsc::Sender<ToService> {
        let requests = self.connected.port.requests.clone();
        let _ = requests
            .send(ToService::Open {
                terms: self.terms.clone(),
                have: self.received,
            })
            .await;
        requests
    }

    async fn reattach(
        &mut self,
        signals: &mut Signals,
        writer: &mpsc::Sender<(Vec<u8>, u64)>,
    ) -> bool {
        self.ready = false;
        let why = self.connected.why_lost().await;
        if self.connected.is_lost_for_good() {
            self.failure = Some(Exit::unreachable(why));
            return false;
        }
        self.say(json!({"event": "lost", "text": why}));
        let reaching = self.connected.reach_again(self.manner.patience);
        match beside(reaching, writer, &mut self.output, signals).await {
            Ok(true) => {
                self.say(json!({"event": "connected"}));
                return true;
            }
            Ok(false) => self.failure = Some(Exit::unreachable(why)),
            Err(number) => self.signalled = (1, number),
        }
        false
    }

    fn lines(&mut self, lines: Vec<Line>) {
        let before = self.given;
        lines.into_iter().for_each(|line| self.line(line));
        if self.given > before {
            self.submitted.insert(
                before as u32 + 1,
                (WallTime::now(), (self.given - before) as usize),
            );
        }
    }

    /// When a job came that has a result now.
    fn submitted(&mut self, job: JobNumber) -> Option<WallTime> {
        let (first, (when, left)) = self.submitted.range_mut(..=job.0).next_back()?;
        let (first, when) = (*first, *when);
        *left -= 1;
        if *left == 0 {
            self.submitted.remove(&first);
        }
        Some(when)
    }

    fn line(&mut self, line: Line) {
        match line {
            Line::Job(job, _) if self.closing => {
                self.say(json!({"event": "refused", "job": job.job.0, "text": "it came after the end of the jobs"}));
            }
            Line::Job(mut job, sets) => {
                self.given += 1;
                let indices: Vec<u32> = sets.into_iter().map(|set| self.index_of(set)).collect();
                let of = |index: Option<u32>| {
                    index.and_then(|index| indices.get(index as usize).copied())
                };
                (job.hosts, job.prefer) = (of(job.hosts), of(job.prefer));
                self.items.push_back(Item::Job(job));
            }
            Line::Control(Control::Close) => self.closing = true,
            Line::Control(Control::Hosts { request }) => {
                self.hosts_asked.push_back(request);
                self.items.push_back(Item::Say(Box::new(ToService::Hosts)));
            }
            Line::Control(Control::Cancel {
                jobs,
                grace,
                signal,
                request,
            }) => {
                if let Err(refused) = self.cancel_jobs(jobs, &grace, &signal, &request) {
                    self.say(answer(refused, request));
                }
            }
            Line::Refused(why) => self.say(json!({"event": "refused", "text": why})),
            Line::Broken(why) => {
                self.failure.get_or_insert(Exit::usage(why));
                self.cancel_all(GRACE);
            }
        }
    }

    /// In an attended run the end of the input means that the program at the other end is gone: the
    /// jobs that have not ended are cancelled.
    fn end_of_input(&mut self) {
        (self.closing, self.over) = (true, true);
        if self.attended {
            self.give_up();
        }
    }

    /// Cancels jobs that have not ended, if there are any.
    fn give_up(&mut self) {
        self.closing = true;
        if self.received < self.given {
            self.cancel_all(GRACE);
        }
    }

    fn say(&mut self, line: Value) {
        self.output
            .push_back(((line.to_string() + "\n").into_bytes(), 0));
    }
}

/// An answer with the name that the user gave to its request.
fn answer(mut line: Value, name: Option<Value>) -> Value {
    if let Some(name) = name {
        line["request"] = name;
    }
    line
}
