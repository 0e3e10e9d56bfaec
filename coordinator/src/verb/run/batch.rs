//! A run of one list of jobs as one batch: from the first agent to the last result, across lost
//! connections and signals.

mod answers;

use super::input::{List, Manner};
use super::resume::Noted;
use crate::client::beside::{beside, pass_on, until};
use crate::client::cluster::{Connected, UNWATCHED_WAIT, agent_ended};
use crate::client::context::GRACE;
use crate::client::note;
use crate::client::signals::Signals;
use crate::client::submit::Submitter;
use crate::exit::{self, Exit};
use crate::jobs::Jobs;
use crate::report::output::{self, FromOutput, OutputThread, ToOutput, not_writable};
use crate::report::progress::Progress;
use crate::report::resume::Written;
use mezcal_common::message::client::{BatchTerms, HaltWhy, Selector, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::BatchId;
use mezcal_common::model::job::Stop;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

/// Time between two reminders that no agent is there.
const REMINDER: Duration = Duration::from_secs(5);

/// Messages that may wait for the output thread before further answers are left unread.
const BEHIND: usize = 64;

pub(super) struct Run {
    manner: Manner,
    jobs: Arc<Jobs>,
    terms: BatchTerms,
    batch: BatchId,
    connected: Connected,
    signals: Signals,
    output: OutputThread,
    /// Connected agents and their engines, by the last message.
    fleet: (u32, u32),
    submitter: Submitter,
    received: u64,
    /// The number of jobs that the coordinator has for good; `turned_away`: it refuses the others.
    accepted: u64,
    turned_away: bool,
    /// Which jobs have a result.
    answered: Vec<bool>,
    /// Results that an earlier run of the same batch has written.
    written: Written,
    noted: Option<Noted>,
    /// Messages that the output thread has not taken yet.
    for_output: VecDeque<ToOutput>,
    /// The number of signals so far, and the first one.
    signalled: (u32, u8),
    /// Why the batch was given up early, if it was.
    halted: Option<HaltWhy>,
    /// The exit status, once everything has been cleaned up.
    failure: Option<Exit>,
}

impl Run {
    pub(super) fn new(
        list: List,
        terms: BatchTerms,
        manner: Manner,
        connected: Connected,
        signals: Signals,
    ) -> Result<Self, Exit> {
        let List {
            jobs,
            results,
            log,
            written,
            noted,
            keep_order,
            progress,
        } = list;
        let compat = manner.compat;
        let progress = Progress::new(progress, manner.quiet, log, jobs.len() as u64, compat);
        let watched = results.pipe();
        let form = (compat, results.is_terminal());
        let output = output::start(
            jobs.clone(),
            results.open()?,
            watched,
            progress,
            form,
            keep_order,
        )
        .map_err(|e| Exit::usage(format!("cannot start the thread that writes results: {e}")))?;
        let answered = vec![false; jobs.len()];
        let batch = terms.context.batch;
        Ok(Self {
            manner,
            jobs: jobs.clone(),
            terms,
            batch,
            connected,
            signals,
            output,
            fleet: (0, 0),
            submitter: Submitter::new(jobs.clone(), batch),
            received: 0,
            accepted: 0,
            turned_away: false,
            answered,
            written,
            noted,
            for_output: VecDeque::new(),
            signalled: (0, 0),
            halted: None,
            failure: None,
        })
    }

    /// Everything from the first agent to the last result, and the clean-up.
    pub(super) async fn drive(mut self) -> Result<u8, Exit> {
        if self.wait_for_agents().await {
            self.note();
            self.run_batch().await;
        }
        // All results are here, or the coordinator has taken none of the jobs.
        let nothing_is_left =
            self.received >= self.jobs.len() as u64 || self.turned_away && self.accepted == 0;
        let Run {
            manner,
            jobs,
            connected,
            output,
            for_output,
            mut signals,
            signalled,
            halted,
            mut failure,
            noted,
            ..
        } = self;
        let finishing = async {
            for message in for_output {
                let _ = output.sender.send(message).await;
            }
            tokio::task::spawn_blocking(move || output.finish())
                .await
                .unwrap_or_default()
        };
        let (counts, unwritten) = tokio::select! {
            finished = finishing => finished,
            // All jobs have ended; only the reader of our output delays us.
            number = signals.next() => std::process::exit(128 + i32::from(number)),
        };
        match unwritten {
            Some(e) => drop(failure.get_or_insert(not_writable(&e))),
            None if nothing_is_left => noted
                .into_iter()
                .for_each(|noted| drop(std::fs::remove_file(noted.path))),
            None => {}
        }
        connected.end().await;
        match (failure, signalled) {
            (Some(failure), _) => Err(failure),
            (None, (1.., number)) => Ok(128 + number),
            (None, _) if manner.compat => Ok(0),
            // The successful job was found, or the jobs that were not needed any more do not count.
            (None, _) if halted == Some(HaltWhy::Success) => Ok(0),
            (None, _) if halted == Some(HaltWhy::Done) && counts.failed + counts.skipped == 0 => {
                Ok(0)
            }
            (None, _) if counts.done < jobs.len() as u64 => Ok(exit::FAILED),
            (None, _) => Ok(0),
        }
    }

    /// Waits for the agents; true when there are enough.
    async fn wait_for_agents(&mut self) -> bool {
        let patience = self
            .manner
            .wait_agents
            .or_else(|| (!std::io::stderr().is_terminal()).then_some(UNWATCHED_WAIT));
        let give_up = patience.map(|p| Instant::now() + p);
        let wanted = self.manner.min_agents.max(1);
        let to_output = self.output.sender.clone();
        let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER / 4, REMINDER);
        while self.fleet.0 < wanted {
            tokio::select! {
                answer = self.connected.port.answers.recv() => match answer {
                    Some(answer) => self.answer(answer).await,
                    None => {
                        self.lost().await;
                        return false;
                    }
                },
                why = agent_ended(&mut self.connected.agent) => {
                    self.failure = Some(Exit::unreachable(why));
                    return false;
                }
                permit = to_output.reserve(), if !self.for_output.is_empty() => pass_on(permit, &mut self.for_output),
                number = self.signals.next() => {
                    self.signalled = (1, number);
                    return false;
                }
                _ = reminder.tick() => {
                    let text = match self.fleet.0 {
                        0 => self.connected.waiting_for.clone(),
                        n => format!("{n} of {wanted} agents are connected"),
                    };
                    self.say(text);
                }
                () = until(give_up) => {
                    let missing = match self.fleet.0 {
                        0 => self.connected.waiting_for.clone(),
                        n => format!("only {n} of {wanted} agents are connected"),
                    };
                    let why = format!("{missing}, after {} (--wait-agents)", format_duration(patience.unwrap_or_default()));
                    self.failure = Some(Exit::unreachable(why));
                    return false;
                }
            }
        }
        true
    }

    /// Writes the note beside the results file, before there is a result.
    fn note(&mut self) {
        let Some((path, note)) = self
            .noted
            .as_ref()
            .and_then(|noted| Some((&noted.path, noted.note.as_ref()?)))
        else {
            return;
        };
        if let Err(e) = note::write(path, note) {
            let text = format!(
                "cannot write {}: {e}; if this run is killed, --resume would not know what still runs",
                path.display()
            );
            self.say(text);
        }
    }

    async fn run_batch(&mut self) {
        if self.connected.agent.is_none() && !self.manner.compat {
            self.say(format!("this is batch {}", self.batch));
        }
        self.for_output.push_back(ToOutput::Begin {
            engines: self.fleet.1,
            submitted: WallTime::now(),
        });
        let mut requests = self.open().await;
        let total = self.jobs.len() as u64;
        let to_output = self.output.sender.clone();
        let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER, REMINDER);
        while self.received < total && !self.turned_away {
            let submitting = requests.clone();
            tokio::select! {
                number = self.signals.next() => self.signal(number).await,
                // With the output thread behind, answers wait at the coordinator; signals do not.
                answer = self.connected.port.answers.recv(), if self.for_output.len() < BEHIND => match answer {
                    Some(answer) => self.answer(answer).await,
                    None => match self.reattach().await {
                        true => requests = self.open().await,
                        false => return,
                    },
                },
                permit = to_output.reserve(), if !self.for_output.is_empty() => pass_on(permit, &mut self.for_output),
                why = agent_ended(&mut self.connected.agent) => {
                    self.answer_the_rest(&why);
                    self.failure = Some(Exit::unreachable(why));
                    return;
                }
                Some(answer) = self.output.answers.recv() => self.on_output(answer).await,
                Ok(permit) = submitting.reserve(), if self.submitter.has_more() => permit.send(self.submitter.next_message()),
                _ = reminder.tick() => {
                    if self.fleet.0 == 0 {
                        self.say(self.connected.waiting_for.clone());
                    }
                }
            }
        }
    }

    /// Opens the batch, or continues it after a lost connection.
    async fn open(&mut self) -> Sender<ToService> {
        let requests = self.connected.port.requests.clone();
        let _ = requests
            .send(ToService::Open {
                terms: self.terms.clone(),
                have: self.received,
            })
            .await;
        requests
    }

    /// Reaches the coordinator again after the connection was lost; its jobs go on meanwhile. False
    /// if that fails for good.
    async fn reattach(&mut self) -> bool {
        self.submitter.interrupted();
        if self.connected.is_lost_for_good() {
            self.lost().await;
            return false;
        }
        let patience = self.manner.patience;
        let why = self.connected.why_lost().await;
        self.say(format!(
            "{why}; its jobs go on; trying to reach it again for {}",
            format_duration(patience)
        ));
        let reaching = self.connected.reach_again(patience);
        let reached = beside(
            reaching,
            &self.output.sender,
            &mut self.for_output,
            &mut self.signals,
        )
        .await;
        match reached {
            Ok(true) => {}
            Ok(false) => {
                self.lost().await;
                return false;
            }
            Err(number) => return self.leave(number),
        }
        self.say("connected again".into());
        if self.signalled.0 > 0 {
            self.cancel(if self.signalled.0 == 1 {
                GRACE
            } else {
                Duration::ZERO
            })
            .await;
        }
        true
    }

    /// A signal came while the coordinator is out of reach: nothing can be cancelled.
    fn leave(&mut self, number: u8) -> bool {
        self.signalled = (1, number);
        let why = "the coordinator was out of reach when the run was interrupted";
        self.answer_the_rest(why);
        self.say(format!(
            "left; batch {} is cancelled when its client lease is over, or by `coordinator cancel`",
            self.batch
        ));
        false
    }

    async fn on_output(&mut self, answer: FromOutput) {
        match answer {
            FromOutput::Written(results) => {
                let _ = self
                    .connected
                    .port
                    .requests
                    .send(ToService::Taken {
                        batch: self.batch,
                        results,
                    })
                    .await;
            }
            FromOutput::Failed(e) => {
                self.failure = Some(not_writable(&e));
                self.cancel(GRACE).await;
            }
        }
    }

    async fn signal(&mut self, number: u8) {
        self.signalled = (
            self.signalled.0 + 1,
            if self.signalled.0 == 0 {
                number
            } else {
                self.signalled.1
            },
        );
        match self.signalled.0 {
            1 => {
                self.say("cancelling: TERM now, KILL in 2 s; once more to kill at once".into());
                self.cancel(GRACE).await;
            }
            2 => {
                self.say("killing; once more to leave without waiting".into());
                self.cancel(Duration::ZERO).await;
            }
            _ => std::process::exit(128 + i32::from(number)),
        }
    }

    async fn cancel(&mut self, grace: Duration) {
        // The results show the effect of the cancel.
        let what = vec![Selector::Batch(self.batch.to_string())];
        let _ = self
            .connected
            .port
            .requests
            .send(ToService::Cancel {
                request: 0,
                what,
                stop: Stop::after(grace),
            })
            .await;
    }

    async fn lost(&mut self) {
        let why = self.connected.why_lost().await;
        if self.submitter.has_begun() {
            self.answer_the_rest(&why);
        }
        self.failure = Some(Exit::unreachable(why));
    }

    fn say(&mut self, text: String) {
        if !self.manner.quiet {
            self.for_output.push_back(ToOutput::Say(text));
        }
    }
}
