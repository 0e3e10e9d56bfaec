//! The loop and what it holds: events in, effects performed, and those held back that wait for the
//! store.

use super::arrivals::Arrivals;
use super::batches::Batches;
use super::delivery::{Batch, Reading, Watch};
use super::intake::{InHand, Load};
use super::members;
use super::observe::Observed;
use super::outlet::{Outlet, Weight};
use super::requests::{Follow, not_stored};
use super::revoke::Revocations;
use super::{Adjustable, CLIENT_DEPTH, ClientId, FromStore, Input, Reader, Settings, Writer};
use crate::scheduler::{Effect, Event, Record, Scheduler, Wanted};
use crate::service::enrol::Enrolment;
use crate::store::READERS;
use bytes::Bytes;
use mezcal_common::message::agent::{LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{Notice, ToClient};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{BatchId, JobKey, SessionId};
use mezcal_common::model::job::Stop;
use mezcal_common::system::timer::BootTimer;
use mezcal_common::wire::bulk::BulkReceiver;
use mezcal_common::wire::endpoint::{Peer, close};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// Events handled between two rounds of sending, and how long that may take: one of them can place
/// hundreds of jobs, and connections share the thread.
const TURN: usize = 256;
const TURN_TIME: Duration = Duration::from_millis(4);
/// Grace for the jobs of a client that is gone, and of a coordinator without a store that stops.
const GONE_GRACE: Duration = Duration::from_secs(2);
/// Jobs on their way to the store. Beyond this, whoever submits waits.
const MAX_UNSTORED_JOBS: usize = 32_768;
/// And their texts, in bytes: as much as a slow disk takes in a second.
const MAX_UNSTORED_BYTES: usize = 32 << 20;
/// After so many bytes of texts the heap is given back once all of them are safe: what they have
/// left in it.
const LARGE_TEXTS: usize = 64 << 20;
/// Bytes that wait for a client beside what it has asked for, mostly output of its jobs, before it
/// is given up: it does not read at all.
const MOST_WAITING: usize = 64 << 20;
/// A store that cannot be written for longer than this refuses what has just come and has not
/// begun; until then it waits, too.
const PASSING: Duration = Duration::from_secs(8);
/// After this those who wait are told why.
const SAID_AFTER: Duration = Duration::from_secs(1);
/// Memory of batches of so many jobs is worth giving back at once.
const LARGE_BATCH: u64 = 10_000;

pub(super) struct AgentLink {
    sender: mpsc::Sender<ToAgent>,
    pub(super) peer: Peer,
}

/// Bytes of a refusal: it may name everything that a request has named, each with why, and has to
/// fit a frame with room to spare.
const MOST_WORDS: usize = 64 * 1024;

/// Cuts words for people that are too long for a message.
fn shorten(message: &mut ToClient) {
    let cut = |text: &mut String| {
        if text.len() > MOST_WORDS {
            let left = text.len() - text.floor_char_boundary(MOST_WORDS);
            text.truncate(text.floor_char_boundary(MOST_WORDS));
            text.push_str(&format!(" ... and {left} bytes more"));
        }
    };
    match message {
        ToClient::Done {
            result: Err(text), ..
        }
        | ToClient::Refused { reason: text } => cut(text),
        ToClient::Why {
            reasons: Err(text), ..
        }
        | ToClient::LogsAnswer {
            streams: Err(text), ..
        } => cut(text),
        ToClient::Attached {
            batch: Err(text), ..
        }
        | ToClient::TokensCreated {
            tokens: Err(text), ..
        } => cut(text),
        ToClient::Why {
            reasons: Ok(lines), ..
        } => {
            let mut bytes = 0;
            let fit = lines.iter().take_while(|line| {
                bytes += line.len() + size_of::<String>();
                bytes <= MOST_WORDS * 8
            });
            let (fit, all) = (fit.count(), lines.len());
            if fit < all {
                lines.truncate(fit);
                lines.push(format!("... and {} lines more", all - fit));
            }
        }
        _ => {}
    }
}

pub(super) struct Client {
    pub(super) outlet: Outlet<ToClient>,
    /// What goes there next, and how many bytes that is.
    outbox: VecDeque<ToClient>,
    waiting: usize,
    /// Somebody will say when there is room.
    told_of_room: bool,
    pub(super) watches: BTreeMap<BatchId, Watch>,
    pub(super) user: String,
    /// None within this process.
    pub(super) peer: Option<Peer>,
    pub(super) version: u16,
    load: Arc<Load>,
    /// The request that is being handled, and those whose answers are in the way of others.
    pub(super) in_hand: Option<InHand>,
    unread: Vec<InHand>,
    /// Its requests that are still known.
    pub(super) asked: usize,
}

impl Client {
    fn new(
        sender: mpsc::Sender<ToClient>,
        user: String,
        peer: Option<Peer>,
        load: Arc<Load>,
        version: u16,
    ) -> Self {
        Self {
            outlet: Outlet::new(sender, load.share()),
            outbox: VecDeque::new(),
            waiting: 0,
            told_of_room: false,
            watches: BTreeMap::new(),
            user,
            peer,
            version,
            load,
            in_hand: None,
            unread: Vec::new(),
            asked: 0,
        }
    }

    pub(super) fn tell(&mut self, mut message: ToClient) {
        shorten(&mut message);
        self.waiting += message.weight();
        self.outbox.push_back(message);
    }

    /// Only the newest of its kind matters to a client that is slow to read.
    fn tell_newest(&mut self, message: ToClient) {
        let kind = std::mem::discriminant(&message);
        let waiting = &mut self.waiting;
        self.outbox.retain(|old| {
            let stays = std::mem::discriminant(old) != kind;
            *waiting -= if stays { 0 } else { old.weight() };
            stays
        });
        self.tell(message);
    }

    /// A request has been handled: it gives its place back, unless the client has not read the
    /// answers to earlier ones.
    fn handled(&mut self, in_hand: Option<InHand>) {
        if self.waiting > self.load.share() {
            self.unread.extend(in_hand.map(InHand::without_jobs));
        }
    }

    /// Moves what waits to where it is read, as far as there is room. True if nothing is left, so
    /// that more may follow.
    pub(super) fn pass_on(&mut self) -> bool {
        while let Some(message) = self.outbox.pop_front() {
            let weight = message.weight();
            if let Err(mpsc::error::TrySendError::Full(message)) = self.outlet.try_send(message) {
                self.outbox.push_front(message);
                return false;
            }
            self.waiting -= weight;
        }
        // The last large answer has left much behind.
        self.outbox.shrink_to(CLIENT_DEPTH);
        self.unread.clear();
        true
    }

    /// Whether somebody has to say when there is room.
    pub(super) fn must_be_told(&mut self) -> bool {
        !self.outlet.has_room() && !std::mem::replace(&mut self.told_of_room, true)
    }
}

/// A request that waits for its answer, and who made it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) client: ClientId,
    /// The client's own number for it.
    pub(super) request: u64,
    /// The agent that has to answer it, if one has.
    pub(super) session: Option<SessionId>,
    pub(super) answered: bool,
}

/// What a service with a store has beside it.
pub(super) struct Kept {
    writer: Writer,
    pub(super) reader: Reader,
    /// Reads beside the loop, and how many do so at a time.
    pub(super) beside: Reader,
    pub(super) readers: Arc<Semaphore>,
    /// Records handed to the store so far, and those that are safe.
    issued: u64,
    committed: u64,
    /// Effects that wait until so many records are safe.
    held: VecDeque<(u64, Effect)>,
    /// Texts of jobs that have been placed and not been sent, and how often they were placed.
    specs: HashMap<JobKey, (Bytes, u32)>,
    /// Why nothing can be written at present.
    pub(super) trouble: Option<String>,
    /// Since when, and whether those who wait have been told.
    since: Option<(BootInstant, bool)>,
    /// Batches of which the store has nothing yet, by the number of the record that opens them.
    opening: VecDeque<(u64, BatchId)>,
    /// Jobs that are not safe yet, by the number of the record that has them, with the bytes of
    /// their texts; and all of them.
    jobs: VecDeque<(u64, usize, usize)>,
    unsafe_jobs: usize,
    unsafe_bytes: usize,
    /// Bytes of texts that have gone to the store since the heap was given back.
    passed: usize,
    behind: watch::Sender<bool>,
}

impl Kept {
    pub(super) fn new(writer: Writer, reader: Reader, behind: watch::Sender<bool>) -> Self {
        Self {
            writer,
            beside: reader.apart(),
            reader,
            readers: Arc::new(Semaphore::new(READERS)),
            issued: 0,
            committed: 0,
            held: VecDeque::new(),
            specs: HashMap::new(),
            trouble: None,
            since: None,
            opening: VecDeque::new(),
            jobs: VecDeque::new(),
            unsafe_jobs: 0,
            unsafe_bytes: 0,
            passed: 0,
            behind,
        }
    }

    fn issue(&mut self, record: &Record) {
        self.issued += 1;
        if let Record::Opened { terms, .. } = record {
            self.opening.push_back((self.issued, terms.context.batch));
        }
        if let Record::Submitted { jobs, .. } = record {
            let bytes = jobs.iter().map(|job| job.spec.len()).sum();
            self.jobs.push_back((self.issued, jobs.len(), bytes));
            self.unsafe_jobs += jobs.len();
            self.unsafe_bytes += bytes;
            self.behind.send_replace(self.is_behind());
        }
    }

    fn is_behind(&self) -> bool {
        self.unsafe_jobs > MAX_UNSTORED_JOBS || self.unsafe_bytes > MAX_UNSTORED_BYTES
    }

    fn committed(&mut self, through: u64) {
        self.committed = through;
        while self
            .opening
            .pop_front_if(|(number, _)| *number <= through)
            .is_some()
        {}
        while let Some((_, jobs, bytes)) = self.jobs.pop_front_if(|(number, ..)| *number <= through)
        {
            self.unsafe_jobs -= jobs;
            self.unsafe_bytes -= bytes;
            self.passed += bytes;
        }
        if self.unsafe_jobs == 0 && self.passed > LARGE_TEXTS {
            self.passed = 0;
            crate::service::memory::give_back();
        }
        let is = self.is_behind();
        self.behind
            .send_if_modified(|was| std::mem::replace(was, is) != is);
    }

    /// The text of a job that is sent; one that was placed again before it was sent once is sent as
    /// often.
    fn text(&mut self, key: JobKey) -> Option<Bytes> {
        let (text, times) = self.specs.get_mut(&key)?;
        *times -= 1;
        let (text, over) = (text.clone(), *times == 0);
        if over {
            self.specs.remove(&key);
        }
        Some(text)
    }

    /// False for a greeting with engine numbers that are on their way themselves: an earlier one
    /// with them waits.
    fn may_greet(&self, effect: &Effect) -> bool {
        let numbers = |message: &ToAgent| {
            if let ToAgent::Welcome { first_engine, .. } = message {
                Some(*first_engine)
            } else {
                None
            }
        };
        let Effect::Greet(_, greeting) = effect else {
            return true;
        };
        !self.held.iter().any(|(_, held)| {
            matches!(held, Effect::ToAgent(_, message) | Effect::Greet(_, message) if numbers(message).is_some_and(|n| Some(n) == numbers(greeting)))
        })
    }

    /// Records on their way.
    pub(super) fn unsaved(&self) -> u64 {
        self.issued - self.committed
    }

    pub(super) fn forget(&self, batch: mezcal_common::model::ids::BatchSerial) {
        self.writer.forget(batch);
    }
}

pub(super) struct Service {
    pub(super) scheduler: Scheduler,
    pub(super) kept: Option<Kept>,
    pub(super) agents: HashMap<SessionId, AgentLink>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) batches: Batches,
    pub(super) admins: Vec<String>,
    pub(super) certificate_until: Option<i64>,
    pub(super) enrolment: Option<Arc<Enrolment>>,
    /// By the scheduler's number.
    pub(super) asked: HashMap<u64, Asked>,
    pub(super) next_request: u64,
    /// Batches that were made of ended ones, until they are safe: who asked, by which request, and
    /// for how many jobs.
    pub(super) retried: HashMap<BatchId, (ClientId, u64, u64)>,
    /// What is being read, and for whom.
    pub(super) readings: BTreeMap<Reading, Vec<ClientId>>,
    /// Those who want to follow batches that are on their way to the store.
    pub(super) too_early: Vec<Follow>,
    pub(super) revocations: Revocations,
    pub(super) arrivals: Arrivals,
    pub(super) stopping: bool,
    /// For what is read beside the loop; does not keep the loop alive.
    pub(super) inputs: mpsc::WeakSender<Input>,
    idle: watch::Sender<bool>,
    /// For whoever looks, if anybody may.
    pub(super) observed: Option<Observed>,
}

impl Service {
    pub(super) fn new(
        scheduler: Scheduler,
        kept: Option<Kept>,
        settings: Settings,
        inputs: mpsc::WeakSender<Input>,
        idle: watch::Sender<bool>,
    ) -> Result<Self, crate::store::StoreError> {
        let mut batches = Batches::default();
        for row in kept
            .as_ref()
            .map(|kept| kept.reader.batches())
            .transpose()?
            .into_iter()
            .flatten()
        {
            batches.insert(row.status.id, Batch::stored(&row));
        }
        Ok(Self {
            scheduler,
            kept,
            agents: HashMap::new(),
            clients: BTreeMap::new(),
            batches,
            admins: settings.adjustable.admins,
            certificate_until: settings.adjustable.certificate_until,
            enrolment: settings.enrolment,
            observed: settings.observed.then(Observed::new),
            asked: HashMap::new(),
            next_request: 1,
            retried: HashMap::new(),
            readings: BTreeMap::new(),
            too_early: Vec::new(),
            arrivals: Arrivals::default(),
            revocations: Revocations::default(),
            stopping: false,
            inputs,
            idle,
        })
    }

    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut from_store: mpsc::Receiver<FromStore>,
        mut timer: BootTimer,
    ) {
        // What was found at the start.
        self.perform();
        loop {
            tokio::select! {
                biased;
                Some(said) = from_store.recv(), if self.kept.is_some() => {
                    if !self.store_said(said) {
                        return;
                    }
                }
                input = inputs.recv() => {
                    let Some(input) = input else { return };
                    let until = BootInstant::now() + TURN_TIME;
                    self.handle(input);
                    for _ in 0..TURN {
                        if BootInstant::now() >= until {
                            break;
                        }
                        let Ok(input) = inputs.try_recv() else { break };
                        self.handle(input);
                    }
                }
                fired = timer.until(self.scheduler.poll_timeout()) => {
                    if let Err(e) = fired {
                        tracing::error!(error = %e, "the timer failed; the coordinator ends");
                        return;
                    }
                    self.scheduler.handle_timeout(BootInstant::now());
                }
            }
            self.perform();
            self.deliver();
            if self.stopping && self.nothing_is_left() {
                let _ = self.idle.send(true);
            }
            // Connections share this thread: new ones must not wait until there is nothing left to
            // do here.
            tokio::task::yield_now().await;
        }
    }

    fn say_who_is_back(&mut self, session: SessionId, now: BootInstant) {
        if !self.arrivals.is_awaited(session) {
            return;
        }
        let Some(host) = self
            .agents
            .get(&session)
            .map(|link| link.peer.identity().name.clone())
        else {
            return;
        };
        if !self.scheduler.is_ready(&host) {
            return;
        }
        if let Some(said) =
            self.arrivals
                .told(session, &host, self.scheduler.attempts_on(&host, now).0)
        {
            tracing::info!(host, "{said}");
        }
    }

    fn nothing_is_left(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.committed == kept.issued,
            None => self.batches.is_empty(),
        }
    }

    fn handle(&mut self, input: Input) {
        let now = BootInstant::now();
        match input {
            Input::AgentHello {
                session,
                name,
                hello,
                sender,
                peer,
            } => {
                // It may have been revoked on its way here.
                if members::admit(self.enrolment.as_ref(), &peer).is_err() {
                    return;
                }
                let held = self.scheduler.attempts_on(&name, now).0;
                if let Some(said) = self.arrivals.came(
                    session,
                    &name,
                    self.scheduler.session_of(&name).is_some(),
                    held,
                    now,
                ) {
                    tracing::info!(
                        host = name,
                        slots = hello.slots,
                        version = hello.program,
                        "{said}"
                    );
                }
                self.agents.insert(session, AgentLink { sender, peer });
                self.scheduler.handle(
                    Event::AgentHello {
                        session,
                        name,
                        hello: *hello,
                    },
                    now,
                );
            }
            // Only the agent that was asked may answer.
            Input::Agent(session, ToCoordinator::LogsAnswer { request, .. })
                if self
                    .asked
                    .get(&request)
                    .is_none_or(|asked| asked.session != Some(session)) => {}
            Input::Agent(session, message) => {
                self.scheduler.handle(Event::Agent(session, message), now);
                self.say_who_is_back(session, now);
            }
            Input::AgentGone(session, reason) => {
                if let Some(AgentLink { peer, .. }) = self.agents.remove(&session) {
                    let host = &peer.identity().name;
                    let here = self
                        .scheduler
                        .session_of(host)
                        .is_some_and(|other| other != session);
                    let is_gone = self.arrivals.went(session, host, here, now);
                    match (peer.was_refused(), is_gone) {
                        // It knows what we cannot: that this store is not the newest.
                        (true, _) => tracing::error!(
                            host,
                            reason,
                            "{host}: the agent refuses this coordinator: {reason}"
                        ),
                        (false, true) => {
                            tracing::info!(host, reason, "agent disconnected: {host}: {reason}")
                        }
                        (false, false) => {}
                    }
                }
                let unanswered = self
                    .asked
                    .values()
                    .filter(|a| a.session == Some(session) && !a.answered);
                for Asked {
                    client, request, ..
                } in unanswered.copied().collect::<Vec<_>>()
                {
                    let streams = Err("its host was lost before it answered".into());
                    self.tell_client(client, ToClient::LogsAnswer { request, streams });
                }
                for (_, Asked { client, .. }) in
                    self.asked.extract_if(|_, a| a.session == Some(session))
                {
                    if let Some(client) = self.clients.get_mut(&client) {
                        client.asked -= 1;
                    }
                }
                self.scheduler.handle(Event::AgentGone(session), now);
            }
            Input::LogStream(session, header, stream) => self.relay(session, header, stream),
            Input::Answer(client, messages, in_hand) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    messages
                        .into_iter()
                        .for_each(|message| client.tell(message));
                    client.handled(in_hand);
                }
            }
            Input::Room(client) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.told_of_room = false;
                }
            }
            Input::Read(what, page) => self.page_read(what, &page),
            Input::ClientConnected {
                client,
                user,
                sender,
                peer,
                load,
                version,
            } => {
                if peer
                    .as_ref()
                    .is_some_and(|peer| members::admit(self.enrolment.as_ref(), peer).is_err())
                {
                    return;
                }
                let (agents, engines) = self.scheduler.fleet();
                let mut new = Client::new(sender, user, peer, load, version);
                new.tell(ToClient::Fleet { agents, engines });
                self.clients.insert(client, new);
            }
            Input::Stop => {
                self.stopping = true;
                if self.kept.is_none() {
                    for batch in self.batches.iter().map(|(id, _)| *id).collect::<Vec<_>>() {
                        self.end_batch(batch, Some("the coordinator was stopped".into()), now);
                    }
                }
            }
            // Whoever has stopped looking needs no answer.
            Input::View(since, reply) => {
                if let Some(view) = self.view(since) {
                    let _ = reply.send(view);
                }
            }
            Input::Metrics(reply) => {
                if let Some(text) = self.metrics() {
                    let _ = reply.send(text);
                }
            }
            Input::Trouble(reply) => {
                let _ = reply.send(self.kept.as_ref().and_then(|kept| kept.trouble.clone()));
            }
            Input::Reload(Adjustable {
                locality_wait,
                admins,
                max_priority,
                aliases,
                certificate_until,
            }) => {
                self.scheduler.set_max_priority(max_priority, &admins);
                self.scheduler.set_locality_wait(locality_wait);
                self.scheduler.set_aliases(aliases, now);
                self.admins = admins;
                self.certificate_until = certificate_until;
            }
            Input::Client(client, ..) if self.revocations.is_out(client) => {}
            Input::Client(client, message, in_hand) => {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.in_hand = Some(in_hand);
                    self.client_message(client, message, now);
                }
                if let Some(known) = self.clients.get_mut(&client) {
                    let in_hand = known.in_hand.take();
                    known.handled(in_hand);
                }
            }
            Input::Revoked(listed) => self.listed(*listed, now),
            Input::ClientGone(client) => {
                self.revocations.client_gone(client);
                let Some(gone) = self.clients.remove(&client) else {
                    return;
                };
                self.asked.retain(|_, asked| asked.client != client);
                for (batch, watch) in gone.watches {
                    if watch.owner {
                        self.client_left(batch, now);
                    }
                    self.let_go(batch);
                }
            }
        }
    }

    /// A client that looked after a batch is gone.
    pub(super) fn client_left(&mut self, batch: BatchId, now: BootInstant) {
        if self
            .clients
            .values()
            .any(|client| client.watches.get(&batch).is_some_and(|watch| watch.owner))
        {
            return;
        }
        if self.kept.is_some() && self.batches.get(batch).is_some_and(|b| b.stored) {
            self.scheduler.handle(Event::Unattended { batch }, now);
        } else {
            self.batches.remove(batch);
            self.end_batch(batch, None, now);
        }
    }

    /// Nobody is there for it any more.
    fn end_batch(&mut self, batch: BatchId, why: Option<Arc<str>>, now: BootInstant) {
        let what = vec![Wanted { batch, job: None }];
        self.scheduler.handle(
            Event::Cancel {
                request: None,
                what,
                stop: Stop::after(GONE_GRACE),
                why,
            },
            now,
        );
        self.scheduler.handle(Event::Close { batch }, now);
    }

    /// False if the service has to end.
    fn store_said(&mut self, said: FromStore) -> bool {
        let Some(kept) = &mut self.kept else {
            return true;
        };
        match said {
            FromStore::Committed { through, specs } => {
                let told = kept.since.take().is_some_and(|(_, told)| told);
                if kept.trouble.take().is_some() {
                    tracing::info!("the store can be written again");
                }
                kept.committed(through);
                for (key, text) in specs {
                    kept.specs.entry(key).or_insert((text, 0)).1 += 1;
                }
                if told {
                    self.tell_all_who_wait(&Notice::StoreTrouble { why: None });
                }
                std::mem::take(&mut self.too_early)
                    .into_iter()
                    .for_each(|asked| self.attach(asked));
            }
            FromStore::Trouble(why) => {
                if kept.trouble.as_ref() != Some(&why) {
                    tracing::error!(
                        why,
                        "the store cannot be written; running jobs go on, and nothing new is accepted"
                    );
                }
                kept.trouble = Some(why.clone());
                let now = BootInstant::now();
                let (since, told) = kept.since.get_or_insert((now, false));
                let lasted = now.since(*since);
                if lasted >= SAID_AFTER && !std::mem::replace(told, true) {
                    self.tell_all_who_wait(&Notice::StoreTrouble {
                        why: Some(why.clone()),
                    });
                }
                if lasted >= PASSING {
                    self.refuse_what_is_new(&not_stored(&why), now);
                }
            }
            FromStore::Broken(why) => {
                tracing::error!(
                    why,
                    "the store is of no more use; the coordinator ends, and running jobs go on"
                );
                return false;
            }
        }
        true
    }

    /// Everybody who waits for results hears why they do not come, or that they do again.
    fn tell_all_who_wait(&mut self, notice: &Notice) {
        for client in self.clients.values_mut() {
            let batches = client
                .watches
                .keys()
                .filter(|batch| self.batches.get(**batch).is_some_and(|known| !known.done));
            for batch in batches.copied().collect::<Vec<_>>() {
                client.tell(ToClient::Notice {
                    batch,
                    notice: notice.clone(),
                });
            }
        }
    }

    /// Whoever waits for the word that a new batch is safe hears that it is not, and nothing of it
    /// runs. A batch that is known goes on waiting.
    fn refuse_what_is_new(&mut self, reason: &str, now: BootInstant) {
        let Some(kept) = &mut self.kept else { return };
        let mut new: BTreeSet<BatchId> = kept.opening.drain(..).map(|(_, batch)| batch).collect();
        // A batch that ends with its client is in no record.
        let held = kept.held.iter().filter_map(|(_, held)| match held {
            Effect::Accepted {
                batch,
                closed: false,
                ..
            } => Some(*batch),
            _ => None,
        });
        new.extend(held.filter(|batch| {
            self.batches
                .get(*batch)
                .is_some_and(|known| !known.stored && !known.begun)
        }));
        for Follow {
            client, request, ..
        } in std::mem::take(&mut self.too_early)
        {
            self.tell_client(
                client,
                ToClient::Attached {
                    request,
                    batch: Err(reason.to_owned()),
                },
            );
        }
        for batch in new {
            self.tell_watchers(
                batch,
                &ToClient::Refused {
                    reason: reason.to_owned(),
                },
            );
            self.is_retried(batch, Err(reason.to_owned()));
            self.end_batch(batch, Some(reason.into()), now);
        }
    }

    fn perform(&mut self) {
        self.release();
        let mut records: Vec<Record> = Vec::new();
        while let Some(effect) = self.scheduler.poll_effect() {
            match (&mut self.kept, effect) {
                (Some(kept), Effect::Persist(record)) => {
                    if let (
                        Some(observed),
                        Record::Again {
                            outcome: Some(outcome),
                            ..
                        },
                    ) = (&self.observed, &record)
                    {
                        observed.attempt(outcome);
                    }
                    kept.issue(&record);
                    records.push(record);
                }
                (Some(kept), effect)
                    if kept.issued > kept.committed
                        && !(effect.overtakes_the_store() && kept.may_greet(&effect)) =>
                {
                    kept.held.push_back((kept.issued, effect));
                }
                (_, effect) => self.carry_out(effect),
            }
        }
        if let Some(kept) = self.kept.as_mut().filter(|_| !records.is_empty()) {
            kept.writer.write(records);
        }
    }

    /// Performs what the store has made safe.
    fn release(&mut self) {
        while let Some(kept) = &mut self.kept
            && let Some((_, effect)) = kept
                .held
                .pop_front_if(|(after, _)| *after <= kept.committed)
        {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) => {}
            Effect::ToAgent(session, message) | Effect::Greet(session, message) => {
                self.tell_agent(session, message)
            }
            Effect::CloseSession {
                session,
                refused,
                reason,
            } => {
                if let Some(link) = self.agents.remove(&session) {
                    link.peer
                        .close(if refused { close::REFUSED } else { close::DONE }, &reason);
                }
            }
            Effect::Result {
                batch,
                job,
                result,
                seq,
            } => self.has_result(batch, seq, job, result),
            Effect::Accepted {
                batch,
                jobs,
                closed,
            } => {
                self.batches
                    .get_mut(batch)
                    .into_iter()
                    .for_each(|known| known.begun = true);
                if closed {
                    self.is_retried(batch, Ok(()));
                }
                self.tell_owners(
                    batch,
                    &ToClient::Accepted {
                        batch,
                        jobs,
                        closed,
                    },
                );
            }
            Effect::Refused { batch, reason } => {
                self.tell_owners(batch, &ToClient::Refused { reason })
            }
            Effect::Notice { batch, notice } => {
                self.tell_watchers(batch, &ToClient::Notice { batch, notice })
            }
            Effect::Output {
                batch,
                job,
                host,
                stream,
                data,
            } => {
                self.tell_owners(
                    batch,
                    &ToClient::Output {
                        batch,
                        job,
                        host,
                        stream,
                        data,
                    },
                );
            }
            Effect::Cancelled { request, result } => {
                if self.revocation_cancelled(request, &result) {
                    return;
                }
                if let Some(Asked {
                    client, request, ..
                }) = self.asked.remove(&request)
                {
                    if let Some(client) = self.clients.get_mut(&client) {
                        client.asked -= 1;
                    }
                    let answer = match result {
                        Ok(summary) => ToClient::Cancelled { request, summary },
                        // What it names may not have been taken any more.
                        Err(_) if self.has_a_successor() => return,
                        Err(reason) => ToClient::Refused { reason },
                    };
                    self.tell_client(client, answer);
                }
            }
            Effect::LogsAnswer { request, streams } => {
                // It stays known for as long as its client: streams may come later.
                let asked = self.asked.get_mut(&request).map(|asked| {
                    asked.answered = true;
                    *asked
                });
                if let Some(Asked {
                    client, request, ..
                }) = asked
                {
                    self.tell_client(client, ToClient::LogsAnswer { request, streams });
                }
            }
            Effect::BatchDone { batch } => {
                let large = self
                    .batches
                    .ended(batch)
                    .is_some_and(|batch| batch.results >= LARGE_BATCH);
                self.let_go(batch);
                if large {
                    crate::service::memory::give_back();
                }
            }
            Effect::Fleet { agents, engines } => {
                for client in self.clients.values_mut() {
                    client.tell_newest(ToClient::Fleet { agents, engines });
                }
            }
        }
    }

    /// Tells whoever wanted an ended batch to run again what has become of it.
    fn is_retried(&mut self, batch: BatchId, result: Result<(), String>) {
        if let Some((client, request, jobs)) = self.retried.remove(&batch) {
            self.tell_client(
                client,
                ToClient::Retried {
                    request,
                    batch: result.map(|()| (batch, jobs)),
                },
            );
        }
    }

    fn tell_agent(&mut self, session: SessionId, message: ToAgent) {
        let clock = WallTime::now();
        if let ToAgent::Logs { request, .. } = &message
            && let Some(asked) = self.asked.get_mut(request)
        {
            asked.session = Some(session);
        }
        let message = match message {
            ToAgent::Welcome {
                version,
                program,
                session,
                store,
                lease,
                first_engine,
                clock: _,
            } => ToAgent::Welcome {
                version,
                program,
                session,
                store,
                lease,
                first_engine,
                clock,
            },
            ToAgent::HeartbeatSeen { sent, clock: _ } => ToAgent::HeartbeatSeen { sent, clock },
            ToAgent::Run(mut run) => {
                for placement in run.iter_mut().filter(|p| p.spec.is_empty()) {
                    let text = self
                        .kept
                        .as_mut()
                        .and_then(|kept| kept.text(placement.attempt.key));
                    placement.spec = text.unwrap_or_default();
                }
                ToAgent::Run(run)
            }
            ToAgent::Logs {
                request,
                attempt,
                spec,
                context,
                wish,
            } if spec.is_empty() => {
                let stored = self.kept.as_ref().map(|kept| kept.reader.spec(attempt.key));
                let spec = stored.and_then(Result::ok).unwrap_or_default();
                ToAgent::Logs {
                    request,
                    attempt,
                    spec,
                    context,
                    wish,
                }
            }
            other => other,
        };
        if let Some(link) = self.agents.get(&session)
            && let Err(mpsc::error::TrySendError::Full(_)) = link.sender.try_send(message)
        {
            let host = &link.peer.identity().name;
            tracing::warn!(
                host,
                "the agent of {host} does not read; closing its session"
            );
            link.peer.close(close::STALLED, "too many unread messages");
            self.agents.remove(&session);
        }
    }

    pub(super) fn tell_client(&mut self, client: ClientId, message: ToClient) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.tell(message);
        }
    }

    /// Tells whoever follows a batch.
    fn tell_watchers(&mut self, batch: BatchId, message: &ToClient) {
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.watches.contains_key(&batch))
        {
            client.tell(message.clone());
        }
    }

    /// Tells whoever has opened a batch.
    fn tell_owners(&mut self, batch: BatchId, message: &ToClient) {
        let owns =
            |client: &&mut Client| client.watches.get(&batch).is_some_and(|watch| watch.owner);
        for client in self.clients.values_mut().filter(owns) {
            client.tell(message.clone());
            if client.waiting > MOST_WAITING
                && let Some(peer) = &client.peer
            {
                tracing::warn!(user = client.user, from = %peer.remote_addr(), "a client of {} does not read; closing its connection", client.user);
                peer.close(close::STALLED, "too much output of its jobs is unread");
                client.outbox.clear();
                client.waiting = 0;
            }
        }
    }

    /// Passes a stream of output on to whoever asked for it.
    fn relay(&mut self, session: SessionId, header: LogHeader, mut from: BulkReceiver) {
        let Some(asked) = self
            .asked
            .get(&header.request)
            .filter(|a| a.session == Some(session))
        else {
            return;
        };
        let Some(peer) = self
            .clients
            .get(&asked.client)
            .and_then(|client| client.peer.clone())
        else {
            return;
        };
        let header = LogHeader {
            request: asked.request,
            stream: header.stream,
        };
        tokio::spawn(async move {
            let mut to = peer.open_bulk(&header).await?;
            loop {
                tokio::select! {
                    read = from.read() => match read? {
                        Some(data) => to.write(&data).await?,
                        None => break,
                    },
                    // A reader that has left must not have to wait for the next line to be let go.
                    () = to.abandoned() => return Ok(()),
                }
            }
            to.finish();
            // A side that is gone has told the other one by resetting its stream.
            Ok::<_, mezcal_common::wire::bulk::CutShort>(())
        });
    }
}
