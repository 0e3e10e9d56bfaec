//! The engines of users, one set for each: which have been heard, and which are left out, so that
//! nobody waits for them.
//!
//! ```text
//!            all heard                  keeper gone, an engine silent for long,
//!  Awaited ─────────────▶ Served ◀───┐  or one that does what nobody here knows of
//!     └─ not within [`HEARD_WITHIN`] ─┴──────────────▶ Left out
//! ```
//!
//! A user whose set is left out gets no jobs here. What the set was given is fenced by the
//! coordinator: nothing is said of it, and no lease is renewed for it. An agent that runs only its
//! own jobs has one set, for which it waits as long as it takes.

use super::programs::Replacing;
use mezcal_common::model::clock::BootInstant;
use std::time::Duration;

/// How long the others wait for the engines of one user: starting them takes milliseconds, and a
/// host that is as busy as that is late for everybody.
pub const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// A set that was left out comes back after this at the soonest; each time doubles it, up to
/// [`LONGEST_PAUSE`]: sets that come and go at their user's will must not keep the agent and the
/// coordinator busy.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Long enough to cost nothing, short enough for whoever has mended something.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A set that has been served for so long begins with [`FIRST_PAUSE`] again.
const STEADY: Duration = Duration::from_secs(600);
/// What a set was given is over so long after its lease: the coordinator's margin for killing
/// (`FENCE_MARGIN`).
const OVER_AFTER: Duration = Duration::from_secs(12);

/// How the engines of one user stand.
#[derive(Debug)]
pub(super) struct Set {
    /// Whose jobs they run.
    user: String,
    /// There is a keeper to talk to.
    here: bool,
    /// Jobs of this user run here.
    served: bool,
    /// What the coordinator was told in this session: that it is served, or why not.
    told: Option<Result<(), String>>,
    /// When its engines must have been heard.
    by: Option<BootInstant>,
    /// Why it is left out; none: it is served, or still awaited.
    why: Option<String>,
    /// When nothing can run any more that a set was given which is left out now.
    over: Option<BootInstant>,
    /// Whether its engines are replaced by those of another version.
    replacing: Replacing,
    /// When it may come back.
    back: BootInstant,
    pause: Duration,
    since: BootInstant,
}

impl Set {
    /// One that is awaited.
    pub(super) fn new(user: String) -> Self {
        let never = BootInstant::default();
        Self {
            user,
            here: true,
            served: false,
            told: None,
            by: None,
            why: None,
            over: None,
            replacing: Replacing::No,
            back: never,
            pause: FIRST_PAUSE,
            since: never,
        }
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Whether there is a keeper to talk to.
    pub(super) fn is_here(&self) -> bool {
        self.here
    }

    /// Its keeper has come, or has gone.
    pub(super) fn set_here(&mut self, here: bool) {
        self.here = here;
    }

    /// Whether jobs of this user run here.
    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// Why it is left out; none: it is served, or still awaited.
    pub(super) fn why(&self) -> Option<&String> {
        self.why.as_ref()
    }

    pub(super) fn is_left_out(&self) -> bool {
        self.why.is_some()
    }

    /// Whether the coordinator has to be told how it stands; it is, from now on.
    pub(super) fn tell_standing(&mut self) -> bool {
        let standing = self.standing();
        let news = standing != self.told;
        self.told = standing;
        news
    }

    /// Whether the coordinator knows that it is served.
    pub(super) fn is_told_served(&self) -> bool {
        self.told == Some(Ok(()))
    }

    /// A coordinator has been welcomed, which knows nothing of it.
    pub(super) fn forget_told(&mut self) {
        self.told = None;
    }

    /// Whether nothing can run any more that it was given before it was left out: said once.
    pub(super) fn take_over(&mut self, now: BootInstant) -> bool {
        self.over.take_if(|over| *over <= now).is_some()
    }

    /// All of its engines have been heard, and it goes on.
    pub(super) fn is_heard(&mut self) {
        self.by = None;
    }

    /// Until when its engines are awaited, from now on at the latest.
    pub(super) fn due_by(&mut self, now: BootInstant) -> BootInstant {
        *self.by.get_or_insert(now + HEARD_WITHIN)
    }

    /// How far the replacement of its engines is.
    pub(super) fn replacing(&self) -> Replacing {
        self.replacing
    }

    pub(super) fn set_replacing(&mut self, replacing: Replacing) {
        self.replacing = replacing;
    }

    /// The others wait for it.
    pub(super) fn is_awaited(&self) -> bool {
        self.here && !self.served && self.why.is_none()
    }

    /// How it stands, if that is decided.
    fn standing(&self) -> Option<Result<(), String>> {
        if self.served {
            Some(Ok(()))
        } else {
            self.why.clone().map(Err)
        }
    }

    /// It is served from now on, or as soon as it may be.
    pub(super) fn serve(&mut self, now: BootInstant) -> bool {
        if self.back > now {
            return false;
        }
        (self.served, self.why, self.over, self.by, self.since) = (true, None, None, None, now);
        true
    }

    /// Its engines are those that it gets, whatever they are.
    pub(super) fn is_replaced(&mut self) {
        if matches!(self.replacing, Replacing::Ending { .. }) {
            self.replacing = Replacing::Done;
        }
    }

    /// It is served no more. What it has may run until `lease`.
    pub(super) fn leave_out(&mut self, why: String, lease: Option<BootInstant>, now: BootInstant) {
        if self.served || self.why.is_none() {
            self.over = lease.map(|until| until + OVER_AFTER);
            if self.served && now.since(self.since) > STEADY {
                self.pause = FIRST_PAUSE;
            }
            self.back = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        (self.served, self.why, self.by) = (false, Some(why), None);
    }

    /// When to look at it again.
    pub(super) fn poll_timeout(&self, now_fit: bool) -> Option<BootInstant> {
        let back = Some(self.back).filter(|_| now_fit && self.here && !self.served);
        [self.by, self.over, back].into_iter().flatten().min()
    }
}
