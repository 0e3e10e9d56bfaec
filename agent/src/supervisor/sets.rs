//! The engines of users, one set for each: which have been heard, and which are left out, so that
//! nobody waits for them.
//!
//! ```text
//!            all heard                  keeper gone, an engine silent for long,
//!  Awaited ─────────────▶ Served ◀───┐  or one that runs something unknown here
//!     └─ not within [`HEARD_WITHIN`] ─┴──────────────▶ Left out
//! ```
//!
//! A user whose set is left out gets no jobs here. The coordinator fences the attempts that the set
//! was given: nothing is said of them, and no lease is renewed for them. An agent that runs only
//! its own jobs has one set, for which it waits as long as it takes.

use super::programs::Replacing;
use mezcal_common::model::clock::BootInstant;
use std::time::Duration;

/// How long the others wait for the engines of one user: starting them takes milliseconds, and a
/// host that is so busy that it takes longer is late for everybody.
pub const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// The shortest time after which a set that was left out comes back; each time doubles it, up to
/// [`LONGEST_PAUSE`]: sets that come and go at their user's will must not keep the agent and the
/// coordinator busy.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Long enough to cost nothing, short enough for a person who has mended something.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A set that has been served for so long begins with [`FIRST_PAUSE`] again.
const STEADY: Duration = Duration::from_secs(600);
/// How long after its lease all attempts that a set was given are over: the coordinator's margin
/// for killing (`FENCE_MARGIN`).
const OVER_AFTER: Duration = Duration::from_secs(12);

/// The standing of one user's engines.
#[derive(Debug)]
pub(super) struct Set {
    /// The user whose jobs they run.
    user: String,
    /// There is a keeper to talk to.
    here: bool,
    /// Jobs of this user run here.
    served: bool,
    /// What the coordinator was told in this session: that it is served, or why not.
    told: Option<Result<(), String>>,
    /// When the engines must have been heard.
    by: Option<BootInstant>,
    /// Why the set is left out; none: it is served, or still awaited.
    why: Option<String>,
    /// When the attempts cannot run any more that a set was given which is left out now.
    over: Option<BootInstant>,
    /// Whether the engines are replaced by those of another version.
    replacing: Replacing,
    /// When the set may come back.
    back: BootInstant,
    pause: Duration,
    since: BootInstant,
}

impl Set {
    /// A set that is awaited.
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

    /// The keeper of the set has come, or has gone.
    pub(super) fn set_here(&mut self, here: bool) {
        self.here = here;
    }

    /// Whether jobs of this user run here.
    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// Why the set is left out; none: it is served, or still awaited.
    pub(super) fn why(&self) -> Option<&String> {
        self.why.as_ref()
    }

    pub(super) fn is_left_out(&self) -> bool {
        self.why.is_some()
    }

    /// Whether the coordinator has to be told the standing of the set; it counts as told from now
    /// on.
    pub(super) fn tell_standing(&mut self) -> bool {
        let standing = self.standing();
        let news = standing != self.told;
        self.told = standing;
        news
    }

    /// Whether the coordinator knows that the set is served.
    pub(super) fn is_told_served(&self) -> bool {
        self.told == Some(Ok(()))
    }

    /// A coordinator has been welcomed that knows nothing of the set.
    pub(super) fn forget_told(&mut self) {
        self.told = None;
    }

    /// Whether no attempt can run any more that the set was given before it was left out: true
    /// once.
    pub(super) fn take_over(&mut self, now: BootInstant) -> bool {
        self.over.take_if(|over| *over <= now).is_some()
    }

    /// All engines of the set have been heard, and it goes on.
    pub(super) fn is_heard(&mut self) {
        self.by = None;
    }

    /// Until when the engines of the set are awaited; the time counts from now at the latest.
    pub(super) fn due_by(&mut self, now: BootInstant) -> BootInstant {
        *self.by.get_or_insert(now + HEARD_WITHIN)
    }

    /// How far the replacement of the engines is.
    pub(super) fn replacing(&self) -> Replacing {
        self.replacing
    }

    pub(super) fn set_replacing(&mut self, replacing: Replacing) {
        self.replacing = replacing;
    }

    /// Whether the others wait for the set.
    pub(super) fn is_awaited(&self) -> bool {
        self.here && !self.served && self.why.is_none()
    }

    /// The standing of the set, if that is decided.
    fn standing(&self) -> Option<Result<(), String>> {
        if self.served {
            Some(Ok(()))
        } else {
            self.why.clone().map(Err)
        }
    }

    /// Serves the set, if it may come back already; true if it does.
    pub(super) fn serve(&mut self, now: BootInstant) -> bool {
        if self.back > now {
            return false;
        }
        (self.served, self.why, self.over, self.by, self.since) = (true, None, None, None, now);
        true
    }

    /// The replacement of the engines is over: the present ones stay, whatever they are.
    pub(super) fn is_replaced(&mut self) {
        if matches!(self.replacing, Replacing::Ending { .. }) {
            self.replacing = Replacing::Done;
        }
    }

    /// The set is not served any more. Its attempts may run until `lease`.
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

    /// When to look at the set again.
    pub(super) fn poll_timeout(&self, now_fit: bool) -> Option<BootInstant> {
        let back = Some(self.back).filter(|_| now_fit && self.here && !self.served);
        [self.by, self.over, back].into_iter().flatten().min()
    }
}
