//! `coordinator run --stream`: jobs arrive on standard input while others run, results leave on
//! standard output as they come. The interface for programs; docs/stream.md describes its lines.

use super::input::{Lines, Manner};
use crate::client::beside::{beside, pass_on, until};
use crate::client::cluster::{Connected, UNWATCHED_WAIT, agent_ended};
use crate::client::context::GRACE;
use crate::client::signals::Signals;
use crate::client::submit::{SUBMIT_BYTES, fits};
use crate::exit::{self, Exit};
use crate::jobs::{Format, Jobs, members};
use crate::report::format::{ClientTimes, ResultFormat};
use crate::report::notice::describe;
use crate::report::output::not_writable;
use bytes::Bytes;
use mezcal_common::message::client::{
    BatchTerms, CancelSummary, HostStatus, Selector, Submission, ToClient, ToService,
};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::escape::json_for_terminal;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::JobResult;
use mezcal_common::system::limits;
use rustix::fd::AsFd;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Longest line of the input, in bytes.
const MAX_LINE: u64 = 8 << 20;
/// Bytes that are read together.
const BUFFER: usize = 256 * 1024;
/// Lines that are handed over together by the thread that reads.
const LINES: usize = 1024;
/// Such handfuls, of lines and of output, that may wait.
const DEPTH: usize = 8;
/// Jobs that are cancelled by one message.
const CANCELS: usize = 4096;
/// Jobs that the coordinator has not accepted yet, before no more are read.
const MAX_WAITING: usize = 16_384;

/// A line that is no job.
#[derive(Debug, Deserialize)]
#[serde(tag = "control", rename_all = "lowercase", deny_unknown_fields)]
enum Control {
    /// No more jobs will come.
    Close,
    /// These jobs, or all, are killed. The answer repeats `request`.
    Cancel {
        jobs: Option<Vec<u32>>,
        grace: Option<String>,
        signal: Option<String>,
        request: Option<Value>,
    },
    /// What hosts there are; the same of the answer.
    Hosts { request: Option<Value> },
}

/// What the thread that reads has found.
enum Input {
    /// A job, and the sets of hosts to which its indices refer.
    Job(Box<Submission>, Vec<Vec<String>>),
    Control(Control),
    /// A line that is neither: why.
    Refused(String),
    /// Nothing more can be read: why.
    Broken(String),
}

/// What is to be said to the coordinator, in this order.
enum Item {
    Job(Box<Submission>),
    Say(Box<ToService>),
}

/// A cancel that has not been answered.
struct Cancelling {
    /// What the answer repeats.
    name: Option<Value>,
    what: Vec<Selector>,
    stop: Stop,
    /// How many of its messages have no answer yet, and the sum of those that have.
    left: usize,
    sum: CancelSummary,
}

struct Stream {
    manner: Manner,
    attended: bool,
    connected: Connected,
    terms: BatchTerms,
    batch: BatchId,
    /// When jobs came: by the first of those that came together, with how many of them have no
    /// result yet.
    submitted: BTreeMap<u32, (WallTime, usize)>,
    format: ResultFormat,
    /// The batch's table of host sets, where each is in it, and how many the coordinator has.
    sets: Vec<Vec<String>>,
    places: HashMap<Vec<String>, u32>,
    sets_sent: usize,
    /// What the coordinator has not accepted, and how much of it has been sent.
    items: VecDeque<Item>,
    sent: usize,
    /// Whether the coordinator has said what it has.
    ready: bool,
    /// An agent has been there.
    seen_agents: bool,
    given: u64,
    received: u64,
    failed: u64,
    /// No more jobs will come.
    closing: bool,
    /// The input has ended.
    over: bool,
    /// The coordinator has been told that no more jobs come, over this connection.
    close_sent: bool,
    /// It has acknowledged that.
    closed: bool,
    /// It has refused something, and takes no more.
    refused: bool,
    next_request: u64,
    /// Questions for the hosts that have not been answered, by what each answer repeats, and
    /// cancels by their request.
    hosts_asked: VecDeque<Option<Value>>,
    /// Hosts of an answer that is not complete yet.
    hosts: Vec<HostStatus>,
    cancels: BTreeMap<u64, Cancelling>,
    output: VecDeque<(Vec<u8>, u64)>,
    signalled: (u32, u8),
    failure: Option<Exit>,
}

/// Runs jobs from standard input until it is closed and all of them have ended.
///
/// # Errors
/// [`Exit`] with the status and a message.
pub(super) async fn run(
    Lines {
        widest,
        retries,
        attended,
    }: Lines,
    terms: BatchTerms,
    manner: Manner,
    connected: Connected,
    mut signals: Signals,
) -> Result<u8, Exit> {
    let compat = manner.compat;
    let (to_stream, mut input) = mpsc::channel(DEPTH);
    let format = if compat {
        Format::Bakapara
    } else {
        Format::Json
    };
    let thread = |e| {
        Exit::usage(format!(
            "cannot read jobs or write results: {}",
            limits::named(e)
        ))
    };
    let stdin = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(std::fs::File::from)
        .map_err(thread)?;
    let reader = move || {
        read(
            stdin,
            &to_stream,
            Parser {
                format,
                retries,
                widest,
                number: 0,
            },
        )
    };
    std::thread::Builder::new()
        .name("input".into())
        .spawn(reader)
        .map_err(thread)?;
    let (writer, to_write) = mpsc::channel(DEPTH);
    let (acknowledge, mut written) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("output".into())
        .spawn(move || write(to_write, &acknowledge))
        .map_err(thread)?;
    let mut me = Stream {
        manner,
        attended,
        batch: terms.context.batch,
        connected,
        terms,
        submitted: BTreeMap::new(),
        format: ResultFormat::new(compat),
        sets: Vec::new(),
        places: HashMap::new(),
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
    };
    me.say(json!({"event": "batch", "batch": me.batch.to_string()}));
    me.drive(&mut input, &writer, &mut written, &mut signals)
        .await;
    let end =
        json!({"event": "end", "jobs": me.given, "received": me.received, "failed": me.failed});
    me.say(end);
    // What is still to be written: whoever reads slowly is waited for, and whoever has left is not.
    let chunks = std::mem::take(&mut me.output);
    let finishing = async move {
        for chunk in chunks {
            let _ = writer.send(chunk).await;
        }
        drop(writer);
        let mut failed = None;
        while let Some(said) = written.recv().await {
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
    let Stream {
        connected,
        failure,
        signalled,
        failed,
        ..
    } = me;
    connected.end().await;
    match (failure, signalled) {
        (Some(failure), _) => Err(failure),
        (None, (1.., number)) => Ok(128 + number),
        (None, _) => Ok(if failed > 0 && !compat {
            exit::FAILED
        } else {
            0
        }),
    }
}

impl Stream {
    async fn drive(
        &mut self,
        input: &mut mpsc::Receiver<Vec<Input>>,
        writer: &mpsc::Sender<(Vec<u8>, u64)>,
        written: &mut mpsc::UnboundedReceiver<std::io::Result<u64>>,
        signals: &mut Signals,
    ) {
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
                    Some(lines) => self.inputs(lines),
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

    /// Whether all is done that was wanted, and the coordinator has been told so: a batch that is
    /// left open stays until its client lease ends.
    fn is_through(&self) -> bool {
        self.closing && self.received >= self.given && (self.closed || self.refused)
    }

    /// Opens the batch, or goes on with it after a connection was lost.
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

    fn inputs(&mut self, inputs: Vec<Input>) {
        let before = self.given;
        inputs.into_iter().for_each(|input| self.input(input));
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

    fn input(&mut self, input: Input) {
        match input {
            Input::Job(job, _) if self.closing => {
                self.say(json!({"event": "refused", "job": job.job.0, "text": "it came after the end of the jobs"}));
            }
            Input::Job(mut job, sets) => {
                self.given += 1;
                let places: Vec<u32> = sets.into_iter().map(|set| self.place(set)).collect();
                let of = |index: Option<u32>| {
                    index.and_then(|index| places.get(index as usize).copied())
                };
                (job.hosts, job.prefer) = (of(job.hosts), of(job.prefer));
                self.items.push_back(Item::Job(job));
            }
            Input::Control(Control::Close) => self.closing = true,
            Input::Control(Control::Hosts { request }) => {
                self.hosts_asked.push_back(request);
                self.items.push_back(Item::Say(Box::new(ToService::Hosts)));
            }
            Input::Control(Control::Cancel {
                jobs,
                grace,
                signal,
                request,
            }) => {
                let stop = match stop(grace.as_deref(), signal.as_deref()) {
                    Ok(stop) => stop,
                    Err(why) => {
                        return self.say(answer(json!({"event": "refused", "text": why}), request));
                    }
                };
                if let Some(job) = jobs
                    .iter()
                    .flatten()
                    .find(|job| **job == 0 || u64::from(**job) > self.given)
                {
                    let refused = json!({"event": "refused", "job": job, "text": "no job with this number has come"});
                    return self.say(answer(refused, request));
                }
                let batch = self.batch.to_string();
                let what = match jobs {
                    None => vec![Selector::Batch(batch)],
                    Some(jobs) => jobs
                        .iter()
                        .map(|job| Selector::Number {
                            batch: batch.clone(),
                            job: JobNumber(*job),
                        })
                        .collect(),
                };
                self.cancel(request, what, stop);
            }
            Input::Refused(why) => self.say(json!({"event": "refused", "text": why})),
            Input::Broken(why) => {
                self.failure.get_or_insert(Exit::usage(why));
                self.cancel_all(GRACE);
            }
        }
    }

    /// In an attended run this means that the program at the other end is gone: what has not ended
    /// is cancelled.
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

    /// Where a set of hosts is in the batch's table.
    fn place(&mut self, set: Vec<String>) -> u32 {
        let next = self.sets.len() as u32;
        *self.places.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        })
    }

    /// Nothing more is read, and everything is killed.
    fn cancel_all(&mut self, grace: Duration) {
        self.closing = true;
        self.cancel(
            None,
            vec![Selector::Batch(self.batch.to_string())],
            Stop::after(grace),
        );
    }

    fn cancel(&mut self, name: Option<Value>, what: Vec<Selector>, stop: Stop) {
        let request = self.next_request;
        self.next_request += 1;
        self.cancels.insert(
            request,
            Cancelling {
                name,
                what,
                stop,
                left: 0,
                sum: CancelSummary::default(),
            },
        );
        self.send_cancel(request);
    }

    /// In as many messages as it takes, all of the same request, behind the jobs that have come
    /// before it.
    fn send_cancel(&mut self, request: u64) {
        let Some(cancelling) = self.cancels.get_mut(&request) else {
            return;
        };
        (cancelling.left, cancelling.sum) = (
            cancelling.what.len().div_ceil(CANCELS),
            CancelSummary::default(),
        );
        for what in cancelling.what.chunks(CANCELS) {
            let message = ToService::Cancel {
                request,
                what: what.to_vec(),
                stop: cancelling.stop,
            };
            self.items.push_back(Item::Say(Box::new(message)));
        }
        self.answer_cancel(request);
    }

    /// One of its messages has been answered.
    fn cancelled(&mut self, request: u64, answer: &CancelSummary) {
        let Some(Cancelling { left, sum, .. }) = self.cancels.get_mut(&request) else {
            return;
        };
        *left = left.saturating_sub(1);
        sum.jobs += answer.jobs;
        sum.killed += answer.killed;
        sum.survivors += answer.survivors;
        sum.unreachable += answer.unreachable;
        self.answer_cancel(request);
    }

    /// Says what a cancel has come to, if all is known.
    fn answer_cancel(&mut self, request: u64) {
        if self
            .cancels
            .get(&request)
            .is_none_or(|cancelling| cancelling.left > 0)
        {
            return;
        }
        if let Some(Cancelling { name, sum, .. }) = self.cancels.remove(&request) {
            let said = json!({
                "event": "cancelled", "jobs": sum.jobs, "killed": sum.killed, "survivors": sum.survivors, "unreachable": sum.unreachable
            });
            self.say(answer(said, name));
        }
    }

    /// Over a new connection: what was on its way may not have arrived.
    fn ask_again(&mut self) {
        self.items.retain(|item| matches!(item, Item::Job(_)));
        self.hosts.clear();
        for _ in 0..self.hosts_asked.len() {
            self.items.push_back(Item::Say(Box::new(ToService::Hosts)));
        }
        let requests: Vec<u64> = self.cancels.keys().copied().collect();
        requests
            .into_iter()
            .for_each(|request| self.send_cancel(request));
    }

    fn has_more(&self) -> bool {
        self.ready && (self.sent < self.items.len() || (self.closing && !self.close_sent))
    }

    /// Host sets first, then jobs and requests in order, then the word that there are no more.
    fn next_message(&mut self) -> Option<ToService> {
        let batch = self.batch;
        if self.sets_sent < self.sets.len() {
            let mut bytes = 0;
            let fits = |set: &&Vec<String>| {
                bytes += set.iter().map(|name| name.len() + 8).sum::<usize>();
                bytes < SUBMIT_BYTES
            };
            let host_sets: Vec<Vec<String>> = self.sets[self.sets_sent..]
                .iter()
                .take_while(fits)
                .cloned()
                .collect();
            // One that is too long alone is sent alone.
            let host_sets = if host_sets.is_empty() {
                vec![self.sets[self.sets_sent].clone()]
            } else {
                host_sets
            };
            self.sets_sent += host_sets.len();
            return Some(ToService::Submit {
                batch,
                host_sets,
                jobs: Vec::new(),
            });
        }
        if let Some(Item::Say(_)) = self.items.get(self.sent) {
            return match self.items.remove(self.sent) {
                Some(Item::Say(message)) => Some(*message),
                _ => None,
            };
        }
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while let Some(Item::Job(job)) = self.items.get(self.sent)
            && fits(job, &jobs, &mut bytes)
        {
            jobs.push((**job).clone());
            self.sent += 1;
        }
        if jobs.is_empty() {
            self.close_sent = true;
            return Some(ToService::Close { batch });
        }
        Some(ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs,
        })
    }

    /// The coordinator has the jobs up to this one for good.
    fn accepted(&mut self, through: u64) {
        while let Some(Item::Job(job)) = self.items.front()
            && u64::from(job.job.0) <= through
        {
            self.items.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    fn answer(&mut self, answer: ToClient) {
        match answer {
            ToClient::Fleet { agents, engines } => {
                self.seen_agents |= agents > 0;
                self.say(json!({"event": "fleet", "agents": agents, "engines": engines}));
            }
            ToClient::Opened {
                host_sets,
                jobs,
                closed,
                ..
            } => {
                self.accepted(jobs);
                (self.sent, self.ready) = (0, true);
                (self.close_sent, self.closed) = (closed, closed);
                self.ask_again();
                self.sets_sent =
                    usize::try_from(host_sets).map_or(self.sets.len(), |n| n.min(self.sets.len()));
            }
            ToClient::Accepted { jobs, closed, .. } => {
                self.accepted(jobs);
                self.closed |= closed;
            }
            ToClient::Results { results, .. } | ToClient::CountedResults { results, .. } => {
                self.results(results)
            }
            ToClient::Notice { notice, .. } => {
                self.say(json!({"event": "notice", "text": describe(&notice)}))
            }
            ToClient::Hosts(hosts) => self.hosts(hosts, false),
            ToClient::HostsPage { hosts, more } => self.hosts(hosts, more),
            ToClient::Cancelled { request, summary } => self.cancelled(request, &summary),
            ToClient::Refused { reason } => {
                self.say(json!({"event": "refused", "text": reason}));
                self.failure.get_or_insert(Exit::unreachable(format!(
                    "the coordinator refused a request: {reason}"
                )));
                self.refused = true;
                // Of what it has not taken there will be no results.
                let first = self.items.iter().find_map(|item| {
                    if let Item::Job(job) = item {
                        Some(job.job.0)
                    } else {
                        None
                    }
                });
                self.given = first.map_or(self.given, |first| u64::from(first) - 1);
                self.items.clear();
                self.sent = 0;
                self.cancel_all(Duration::ZERO);
            }
            ToClient::Welcome { .. }
            | ToClient::Output { .. }
            | ToClient::LogsAnswer { .. }
            | ToClient::Attached { .. }
            | ToClient::Described { .. }
            | ToClient::Ended { .. }
            | ToClient::Batches { .. }
            | ToClient::BatchesApart { .. }
            | ToClient::Retried { .. }
            | ToClient::Done { .. }
            | ToClient::Why { .. }
            | ToClient::Unserved { .. }
            | ToClient::Standings { .. }
            | ToClient::Failing { .. }
            | ToClient::TokensCreated { .. }
            | ToClient::Tokens { .. }
            | ToClient::Certificates { .. }
            | ToClient::Renewed { .. }
            | ToClient::CancelWaits { .. }
            | ToClient::Revoked { .. } => {}
        }
    }

    fn hosts(&mut self, hosts: Vec<HostStatus>, more: bool) {
        self.hosts.extend(hosts);
        if !more {
            let name = self.hosts_asked.pop_front().flatten();
            let event = hosts_event(&std::mem::take(&mut self.hosts));
            self.say(answer(event, name));
        }
    }

    fn results(&mut self, results: Vec<(JobNumber, JobResult)>) {
        let (mut lines, received) = (Vec::new(), WallTime::now());
        let count = results.len() as u64;
        self.received += count;
        for (job, result) in results {
            self.failed += u64::from(!result.outcome.succeeded());
            let times = ClientTimes {
                submitted: self.submitted(job).unwrap_or(received),
                received,
            };
            self.format.object_line(
                &mut lines,
                &format!("{{\"job\": {}}}", job.0),
                &result,
                times,
            );
        }
        self.output.push_back((lines, count));
    }

    fn say(&mut self, line: Value) {
        self.output
            .push_back(((line.to_string() + "\n").into_bytes(), 0));
    }
}

/// An answer, with what its request was called by whoever made it.
fn answer(mut line: Value, name: Option<Value>) -> Value {
    if let Some(name) = name {
        line["request"] = name;
    }
    line
}

/// How jobs are to be killed.
fn stop(grace: Option<&str>, signal: Option<&str>) -> Result<Stop, String> {
    let grace = grace
        .map(parse_duration)
        .transpose()
        .map_err(|why| format!("\"grace\": {why}"))?
        .unwrap_or(GRACE);
    let signal = signal
        .map(mezcal_common::system::signal::parse)
        .transpose()
        .map_err(|why| format!("\"signal\": {why}"))?;
    let stop = Stop::after(grace);
    Ok(Stop {
        signal: signal.unwrap_or(stop.signal),
        ..stop
    })
}

fn hosts_event(hosts: &[HostStatus]) -> Value {
    let hosts = hosts
        .iter()
        .filter(|h| h.connected)
        .map(|h| json!({"name": h.name, "slots": h.slots, "busy": h.busy, "first_engine": h.first_engine.0, "cpus": h.cpus}));
    json!({"event": "hosts", "hosts": hosts.collect::<Vec<_>>()})
}

/// Makes jobs of lines.
struct Parser {
    format: Format,
    retries: u32,
    /// Slots that a job can take.
    widest: u16,
    /// Of the last job.
    number: u32,
}

impl Parser {
    /// What a line says. One that is no control line is a job: whatever is wrong with it will be
    /// its result.
    fn parse(&mut self, line: Vec<u8>) -> Input {
        match control(&line) {
            Some(Ok(control)) => return Input::Control(control),
            Some(Err(why)) => return Input::Refused(why),
            None => {}
        }
        self.number += 1;
        let job = JobNumber(self.number);
        match self.job(line) {
            Ok((submission, sets)) => Input::Job(Box::new(Submission { job, ..submission }), sets),
            Err(why) => Input::Job(
                Box::new(Submission {
                    stillborn: Some(why),
                    ..Submission::new(job, Bytes::new())
                }),
                Vec::new(),
            ),
        }
    }

    fn job(&self, line: Vec<u8>) -> Result<(Submission, Vec<Vec<String>>), String> {
        if line.trim_ascii_start().first() != Some(&b'{') {
            return Err("each line of a stream is one JSON object".into());
        }
        let jobs = Jobs::read_next(self.number, line, self.format, self.retries)?;
        let (slots, _) = jobs.widest();
        if slots > self.widest {
            return Err(format!(
                "it takes {slots} slots, and this run has {}; -j {slots} gives it as many",
                self.widest
            ));
        }
        let submission = jobs.submission(1).ok_or("it cannot be read")?;
        Ok((submission, jobs.host_sets()))
    }
}

/// A control line, or what is wrong with it, if it is one: it has the key `control` and no command.
fn control(line: &[u8]) -> Option<Result<Control, String>> {
    // Nearly all lines are jobs, and say nothing of it.
    let text = std::str::from_utf8(line)
        .ok()
        .filter(|text| text.contains("\"control\""))?;
    let keys = members(text).ok()?;
    let has = |wanted: &str| keys.iter().any(|(key, _)| key == wanted);
    if !has("control") || has("cmd") || has("argv") {
        return None;
    }
    Some(serde_json::from_str(text).map_err(|e| format!("not a control line: {e}")))
}

/// Reads lines until there are no more, or nobody wants them.
fn read(input: impl Read, to: &mpsc::Sender<Vec<Input>>, mut parser: Parser) {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut handful = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let broken = match &read {
            Err(e) => Some(format!("cannot read standard input: {e}")),
            Ok(n) if *n as u64 == MAX_LINE => Some(format!(
                "a line after job {} is longer than {MAX_LINE} bytes",
                parser.number
            )),
            Ok(_) => None,
        };
        let over = broken.is_some() || line.is_empty();
        match broken {
            Some(why) => handful.push(Input::Broken(why)),
            None if line.trim_ascii().is_empty() => {}
            None => handful.push(parser.parse(line)),
        }
        // Whoever waits for a result before the next line must not wait for company.
        let waiting = over || handful.len() == LINES || !input.buffer().contains(&b'\n');
        if waiting && !handful.is_empty() && to.blocking_send(std::mem::take(&mut handful)).is_err()
        {
            return;
        }
        if over {
            return;
        }
    }
}

/// Writes what comes, and says how many results have been written.
fn write(
    mut from: mpsc::Receiver<(Vec<u8>, u64)>,
    to: &mpsc::UnboundedSender<std::io::Result<u64>>,
) {
    let mut output = std::io::stdout().lock();
    let terminal = output.is_terminal();
    while let Some((lines, results)) = from.blocking_recv() {
        let written = match terminal {
            true => {
                output.write_all(json_for_terminal(&String::from_utf8_lossy(&lines)).as_bytes())
            }
            false => output.write_all(&lines),
        };
        let written = written.and_then(|()| output.flush());
        let failed = written.is_err();
        if to.send(written.map(|()| results)).is_err() || failed {
            return;
        }
    }
}
