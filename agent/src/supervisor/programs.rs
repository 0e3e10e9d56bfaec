//! Engines that an upgrade has not reached, and how it reaches them: set by set, without touching
//! attempts that run.
//!
//! ```text
//!           engines older than the agent             all idle, all acknowledged        new ones are heard
//!  As it is ───────────────────────────▶ Draining ─────────────────────────▶ Ending ────────────────────▶ Done
//! ```
//!
//! Engines are copies of their keeper and outlive agents. In a set that is drained, an engine that
//! is idle takes no new job; when the last job has ended, and no report of the set waits for an
//! acknowledgement, its keeper is asked to end: the keeper that starts next is of the new program.
//! That is done once: engines that are still old then are used as they are, since this agent does
//! not start them.

use super::session::Session;
use super::slot::{Engine, Slot};
use super::{Effect, Supervisor};
use mezcal_common::message::agent::{TELLS_ENGINES, ToCoordinator};
use mezcal_common::message::engine::ToKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::version::is_older;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Longest name of a version that is passed on, in characters: engines are their users'.
const VERSION_CHARS: usize = 32;
/// How long the next keeper is expected: service managers start it within seconds.
const NEXT_KEEPER: Duration = Duration::from_secs(60);
/// Versions that are passed on.
const MOST_VERSIONS: usize = 16;

/// How far the replacement of a set's engines is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Replacing {
    #[default]
    No,
    /// Idle engines take no job.
    Draining,
    /// Its keeper has been asked to end, and another one is expected.
    Ending {
        /// The other keeper is not expected after this time.
        until: BootInstant,
    },
    /// The replacement is over.
    Done,
}

/// Versions, and how many engines have each.
type Versions = Vec<(String, u16)>;

/// The version of the agent's own program, and the coordinator's knowledge of the engines'
/// versions.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// None: engines are good, whatever version they run.
    own: Option<String>,
    /// The last message about the engines in this session: versions, and users who get new ones.
    told: Option<(Versions, Vec<String>)>,
    /// Since the last look an engine has been heard or is gone, or a set has new ones.
    changed: bool,
}

impl Programs {
    /// The engines may have changed since the last look.
    pub(super) fn look_again(&mut self) {
        self.changed = true;
    }

    /// A coordinator has been welcomed that knows of no versions.
    pub(super) fn forget_told(&mut self) {
        self.told = None;
    }
}

impl Supervisor {
    /// From now on engines that are older than this version are replaced.
    #[must_use]
    pub fn of_version(mut self, version: &str) -> Self {
        self.programs.own = Some(version.to_owned());
        self
    }

    /// Whether the keeper of the agent's own engines has been asked to end, so that new ones take
    /// their place.
    pub fn replaces_engines(&self) -> bool {
        !self.shared
            && self
                .sets
                .iter()
                .any(|set| matches!(set.replacing(), Replacing::Ending { .. }))
    }

    /// An engine says the version of its program.
    pub(super) fn engine_runs(&mut self, engine: usize, version: &str) {
        if let Some(engine) = self.engines.get_mut(engine) {
            engine.program = Some(version.chars().take(VERSION_CHARS).collect());
            self.programs.changed = true;
        }
    }

    /// Whether engines of a set take nothing more. If a coordinator cannot be told that a user gets
    /// no jobs here for a while, no jobs are refused: it would send them again at once.
    pub(super) fn holds_back(&self, set: usize) -> bool {
        match self.sets[set].replacing() {
            Replacing::No | Replacing::Done => false,
            Replacing::Draining => !self.shared || self.speaks(TELLS_ENGINES),
            Replacing::Ending { .. } => true,
        }
    }

    /// The next time after which the successor of a keeper that was asked to end is not expected
    /// any more.
    pub(super) fn replacements_end(&self) -> Option<BootInstant> {
        let ends =
            self.sets
                .iter()
                .filter(|_| self.shared)
                .filter_map(|set| match set.replacing() {
                    Replacing::Ending { until } => Some(until),
                    Replacing::No | Replacing::Draining | Replacing::Done => None,
                });
        ends.min()
    }

    /// Whether nothing at all can start here until there are new engines.
    pub(super) fn rests_for_engines(&self) -> bool {
        !self.shared && self.sets.first().is_some_and(|_| self.holds_back(0))
    }

    /// Drains sets of old engines, and has sets replaced that have nothing left to do.
    pub(super) fn look_at_programs(&mut self, now: BootInstant) {
        if self.programs.own.is_none() {
            return;
        }
        let mut changed = std::mem::take(&mut self.programs.changed);
        if changed && let Some(own) = self.programs.own.clone() {
            for set in (0..self.sets.len())
                .filter(|set| self.sets[*set].replacing() == Replacing::No)
                .collect::<Vec<_>>()
            {
                let old = |engine: &Engine| {
                    engine
                        .program
                        .as_deref()
                        .is_some_and(|version| is_older(version, &own))
                };
                if let Some(old) = self.engines[self.engines_of(set)]
                    .iter()
                    .find(|engine| old(engine))
                {
                    let (user, version) = (
                        self.sets[set].user(),
                        in_words(old.program.as_deref().unwrap_or_default()),
                    );
                    tracing::info!(
                        user,
                        "the engines are of {version}, and this agent of {own}: new ones take \
                         their place when the jobs that run there have ended"
                    );
                    self.sets[set].set_replacing(Replacing::Draining);
                }
            }
        }
        for set in self.sets.iter_mut().filter(|_| self.shared) {
            if matches!(set.replacing(), Replacing::Ending { until } if until <= now) {
                set.is_replaced();
                changed = true;
            }
        }
        // Nothing else changes the message, except that a session has been welcomed.
        if changed || self.programs.told.is_none() {
            self.tell_programs();
        }
        for set in 0..self.sets.len() {
            if self.sets[set].replacing() == Replacing::Draining {
                self.give_back_of(set);
                if self.has_nothing_left(set) {
                    self.replace(set, now);
                }
            }
        }
        let has_credit = self.is_known() && self.session.as_ref().is_some_and(Session::has_credit);
        if self.rests_for_engines() && (has_credit || !self.queue.is_empty()) {
            self.give_back();
        }
    }

    /// Gives back the attempts that wait for engines that take nothing more: they run elsewhere.
    fn give_back_of(&mut self, set: usize) {
        if !self.shared || !self.holds_back(set) || self.queue.is_empty() {
            return;
        }
        let theirs = |attempt: &AttemptId| {
            self.batches.owner(attempt.key.batch) == Some(self.sets[set].user())
        };
        let waiting: HashSet<AttemptId> = self.queue.attempts().filter(theirs).collect();
        self.return_some(&waiting);
    }

    /// Whether a set runs nothing, and has sent nothing that would be lost with it.
    fn has_nothing_left(&self, set: usize) -> bool {
        let mine = |of: Option<usize>| !self.shared || of == Some(set);
        self.is_known()
            && self.sets[set].is_here()
            && self.engines[self.engines_of(set)]
                .iter()
                .all(|engine| engine.slot == Slot::Idle)
            && !self.reports.iter().any(|entry| mine(entry.set()))
            && !self
                .queue
                .attempts()
                .any(|attempt| mine(self.owner(attempt)))
    }

    fn replace(&mut self, set: usize, now: BootInstant) {
        let until = now + NEXT_KEEPER;
        self.sets[set].set_replacing(Replacing::Ending { until });
        self.effects
            .push_back(Effect::ToKeeper(set, ToKeeper::Stop));
        if self.shared {
            self.sets[set].set_here(false);
            self.leave_out(
                set,
                "their engines are being replaced by those of another version".into(),
                now,
            );
            // Before any more of its jobs come.
            self.send_inventory();
        }
    }

    /// Tells the coordinator the versions of the engines, and the users whose engines take nothing
    /// more, when that has changed.
    fn tell_programs(&mut self) {
        if !(self.is_known() && self.speaks(TELLS_ENGINES)) {
            return;
        }
        let mut versions: BTreeMap<&str, u16> = BTreeMap::new();
        for version in self
            .engines
            .iter()
            .filter_map(|engine| engine.program.as_deref())
        {
            *versions.entry(version).or_default() += 1;
        }
        let versions: Versions = versions
            .into_iter()
            .take(MOST_VERSIONS)
            .map(|(version, count)| (version.to_owned(), count))
            .collect();
        let replaced = |set: &usize| self.shared && self.holds_back(*set);
        let replacing = (0..self.sets.len())
            .filter(replaced)
            .map(|set| self.sets[set].user().to_owned())
            .collect();
        let now = (versions, replacing);
        if self.programs.told.as_ref() == Some(&now) {
            return;
        }
        let (versions, replacing) = now.clone();
        // A session that has just begun knows of no versions.
        if self.programs.told.is_some() || !versions.is_empty() {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Engines {
                    versions,
                    replacing,
                }));
        }
        self.programs.told = Some(now);
    }
}

fn in_words(version: &str) -> String {
    if version.is_empty() {
        "an earlier version".to_owned()
    } else {
        format!("version {version}")
    }
}
