//! Hosts that fail every job: a full disk, a missing mount or a broken library turns a host into
//! the fastest one of the cluster, and it empties the queue.
//!
//! Suspicion belongs to a batch: its own mistakes must not touch others. It counts quick failures
//! of different jobs that could have run anywhere, in a row on one host, against successes of the
//! same batch elsewhere that began after that row did. The more of the batch fails elsewhere, too,
//! and the longer the rows are that end with a success, the longer the row has to be. If a batch
//! runs nowhere else, the row alone counts if another batch of the same user suspects the host. A
//! suspected host is on probation for that batch: one of its jobs at a time, after each failure a
//! longer pause; a success ends it, and so do ends elsewhere that make the row likely.
//!
//! A host that batches of two users suspect at the same time is quarantined: for a while it gets no
//! jobs at all.

use super::queues::QueueKey;
use super::{Effect, Host, Scheduler, Timer};
use mezcal_common::message::client::Notice;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, JobKey};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Failures in a row: few enough to save most of a queue, more than a bad spot in an input causes.
const STREAK: u32 = 10;
/// A failure that took longer has done some work: the job itself may well be the cause.
const QUICK: Duration = Duration::from_secs(1);
/// A host is suspected if a host like the others would have failed so often in a row with less than
/// this probability.
const UNLIKELY: f64 = 1e-6;
/// The suspicion ends if later ends elsewhere raise that probability above this.
const LIKELY: f64 = 1e-3;
/// How many of a batch's last ends are kept to tell how it does elsewhere.
const ENDS: usize = 64;
/// The first pause; each further one without a success in between is twice as long.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Failures of a batch's jobs in a row on a host.
#[derive(Debug)]
pub(super) struct Streak {
    length: u32,
    /// When the first of them began.
    began: BootInstant,
    last: JobKey,
}

/// A batch suspects a host.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Failures since the suspicion began.
    times: u32,
    /// No job of the batch is placed there before then.
    until: Option<BootInstant>,
}

/// The evidence against a host.
#[derive(Debug, Default)]
pub(super) struct Failures {
    streaks: BTreeMap<BatchSerial, Streak>,
    pub(super) suspicions: BTreeMap<BatchSerial, Suspicion>,
    /// Quarantines without a success between them.
    times: u32,
    /// No job is placed there before then.
    pub(super) until: Option<BootInstant>,
}

impl Failures {
    /// Forgets a batch that has ended.
    pub(super) fn forget(&mut self, batch: BatchSerial) {
        self.streaks.remove(&batch);
        self.suspicions.remove(&batch);
    }
}

/// How the jobs of a batch have ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The last ends: the host, when the attempt began, and whether it succeeded.
    last: VecDeque<(u32, BootInstant, bool)>,
    /// The longest row of failures on a host that a success has ended: the batch causes such rows
    /// by itself.
    longest: u32,
    /// Hosts with enough failures in a row to be suspected.
    doubtful: BTreeSet<u32>,
}

impl Ends {
    fn add(&mut self, host: u32, began: BootInstant, well: bool) {
        if self.last.len() == ENDS {
            self.last.pop_front();
        }
        self.last.push_back((host, began, well));
    }

    /// The verdict on a host, which is `suspected` or not; none: no change. `known`: another batch
    /// of this user suspects it, which counts where nothing has run elsewhere.
    fn judge(&self, host: u32, streak: &Streak, suspected: bool, known: bool) -> Option<Verdict> {
        let enough = streak.length >= STREAK.max(2 * self.longest);
        let chance = self.chance(host, streak);
        match suspected {
            true if !enough || chance.is_some_and(|chance| chance > LIKELY) => {
                Some(Verdict::Innocent)
            }
            false if enough && chance.map_or(known, |chance| chance < UNLIKELY) => {
                Some(Verdict::Suspect)
            }
            true | false => None,
        }
    }

    /// The probability of such a streak on this host if it were like the others; none: nothing is
    /// known of the others.
    fn chance(&self, host: u32, streak: &Streak) -> Option<f64> {
        let elsewhere = self
            .last
            .iter()
            .filter(|(other, began, _)| *other != host && *began >= streak.began);
        let (ends, failures) = elsewhere.fold((0u32, 0u32), |(n, failed), (.., well)| {
            (n + 1, failed + u32::from(!well))
        });
        (ends > 0)
            .then(|| (f64::from(failures) / f64::from(ends)).powi(streak.length.min(10_000) as i32))
    }
}

enum Verdict {
    Suspect,
    Innocent,
}

fn pause(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(10)).min(LONGEST)
}

impl Scheduler {
    /// Judges a host by an attempt that has ended there by itself.
    pub(super) fn judge(&mut self, name: &str, key: JobKey, outcome: &Outcome, now: BootInstant) {
        let anywhere = self
            .batches
            .job(key)
            .is_some_and(|job| job.queue.hosts.is_none());
        let elapsed = outcome.span.map_or(Duration::ZERO, |span| span.elapsed);
        let well = outcome.succeeded();
        let failed = matches!(
            outcome.ended,
            Ended::Exited | Ended::Signaled | Ended::StartFailed
        );
        let counts = well || failed && anywhere && elapsed < QUICK;
        if !counts {
            return;
        }
        let (Some(host), Some(batch)) =
            (self.hosts.get_mut(name), self.batches.get_mut(&key.batch))
        else {
            return;
        };
        let began = BootInstant(now.0.saturating_sub(elapsed));
        batch.ends.add(host.index, began, well);
        if well {
            batch.ends.doubtful.remove(&host.index);
            let ended = host
                .failures
                .streaks
                .remove(&key.batch)
                .map_or(0, |streak| streak.length);
            batch.ends.longest = batch.ends.longest.max(ended);
            (host.failures.times, host.failures.until) = (0, None);
            // The host asks for jobs of the batch later, or has asked already.
            self.unserved |= host.failures.suspicions.remove(&key.batch).is_some();
        } else {
            let streak = host.failures.streaks.entry(key.batch);
            let streak = streak
                .and_modify(|s| s.length += u32::from(s.last != key))
                .or_insert(Streak {
                    length: 1,
                    began,
                    last: key,
                });
            streak.last = key;
            if streak.length >= STREAK {
                batch.ends.doubtful.insert(host.index);
            }
            if let Some(suspicion) = host.failures.suspicions.get_mut(&key.batch) {
                let (length, id, host_name) =
                    (pause(suspicion.times), batch.id, host.name.to_string());
                (suspicion.times, suspicion.until) = (suspicion.times + 1, Some(now + length));
                let timer = Timer::Probation(host.index, key.batch);
                self.timers.set(timer, now + length);
                let reason =
                    format!("one of this batch's jobs has failed there again; {SUSPECTED}");
                self.effects.push_back(Effect::Notice {
                    batch: id,
                    notice: Notice::Quarantined {
                        host: host_name,
                        length,
                        reason,
                    },
                });
            }
        }
        self.weigh(key.batch, now);
    }

    /// Judges the hosts where many jobs of a batch failed in a row.
    fn weigh(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self.batches.get(&serial) else {
            return;
        };
        let verdicts = batch.ends.doubtful.iter().filter_map(|index| {
            let host = self.hosts.at(*index)?;
            let suspected = host.failures.suspicions.contains_key(&serial);
            let mut others = host
                .failures
                .suspicions
                .keys()
                .filter_map(|other| self.batches.get(other));
            let known = others.any(|other| other.user == batch.user);
            Some((
                host.name.clone(),
                batch.ends.judge(
                    *index,
                    host.failures.streaks.get(&serial)?,
                    suspected,
                    known,
                )?,
            ))
        });
        for (name, verdict) in verdicts.collect::<Vec<_>>() {
            match verdict {
                Verdict::Suspect => self.suspect(&name, serial, now),
                Verdict::Innocent => {
                    if let Some(host) = self.hosts.get_mut(&name) {
                        host.failures.suspicions.remove(&serial);
                    }
                    self.unserved = true;
                }
            }
        }
    }

    fn suspect(&mut self, name: &str, serial: BatchSerial, now: BootInstant) {
        let (Some(host), Some(batch)) = (self.hosts.get_mut(name), self.batches.get(&serial))
        else {
            return;
        };
        host.failures
            .suspicions
            .insert(serial, Suspicion::default());
        let (host_name, user) = (host.name.to_string(), batch.user);
        tracing::warn!(host = host_name, batch = %batch.id, "{host_name} is suspected by a batch: {SUSPECTED}");
        let notice = Notice::Quarantined {
            host: host_name,
            length: Duration::ZERO,
            reason: SUSPECTED.into(),
        };
        self.effects.push_back(Effect::Notice {
            batch: batch.id,
            notice,
        });
        let others = host
            .failures
            .suspicions
            .keys()
            .filter_map(|other| self.batches.get(other));
        let agree = others.into_iter().any(|other| other.user != user);
        // The attempts that were sent to it in advance.
        self.retract_unstarted(name, |attempt| attempt.key.batch == serial);
        if agree {
            self.quarantine(name, now);
        }
    }

    /// Quarantines a host: it gets no jobs for a while.
    fn quarantine(&mut self, name: &str, now: BootInstant) {
        let Some(host) = self
            .hosts
            .get_mut(name)
            .filter(|host| host.failures.until.is_none())
        else {
            return;
        };
        let length = pause(host.failures.times);
        (host.failures.times, host.failures.until) = (host.failures.times + 1, Some(now + length));
        let host_name = host.name.to_string();
        tracing::warn!(
            host = host_name,
            ?length,
            "{host_name} is quarantined: {REASON}"
        );
        self.timers.set(Timer::Quarantine(host.index), now + length);
        for batch in self.batches.values() {
            let notice = Notice::Quarantined {
                host: host_name.clone(),
                length,
                reason: REASON.into(),
            };
            self.effects.push_back(Effect::Notice {
                batch: batch.id,
                notice,
            });
        }
    }

    /// Ends the quarantine of a host, if its time is over.
    pub(super) fn end_quarantine(&mut self, index: u32, now: BootInstant) {
        if let Some(host) = self.hosts.at_mut(index) {
            host.failures.until = host.failures.until.filter(|until| *until > now);
            self.unserved = true;
        }
    }

    /// Batches of which a host gets no jobs now, except those that require certain hosts.
    pub(super) fn barred(&self, host: &Host, now: BootInstant) -> Vec<BatchSerial> {
        let suspicions = host.failures.suspicions.iter();
        let barred = suspicions.filter(|(batch, suspicion)| {
            suspicion.until.is_some_and(|until| until > now)
                || host
                    .attempts
                    .ids()
                    .any(|attempt| attempt.key.batch == **batch)
        });
        barred.map(|(batch, _)| *batch).collect()
    }

    /// Whether a queue's batch keeps its jobs from a host that it suspects; until when, if known.
    pub(super) fn is_barred(
        &self,
        host: &Host,
        key: QueueKey,
        now: BootInstant,
    ) -> Option<Option<BootInstant>> {
        let suspicion = host.failures.suspicions.get(&key.batch)?;
        (key.hosts.is_none() && self.barred(host, now).contains(&key.batch))
            .then_some(suspicion.until)
    }
}

/// Reasons for people.
pub(super) const REASON: &str = "batches of several users fail there, and not elsewhere";
pub(super) const SUSPECTED: &str = "ten or more jobs of this batch in a row have failed there within a second each, while others succeed elsewhere; \
                                    it gets one at a time until one succeeds";
