//! The life of a certificate: when another one is requested, and the consequences if there is none.
//!
//! ```text
//!           half of its life is over              granted
//!  ┌─ Good ─────────────────────────▶ Asked ──────────────────▶ install it ─┐
//!  │   ▲                             ↺ again after a pause                  │
//!  │   └──────────────────────────────────────────────────────────── no use ┘
//!  └── expired, nobody to ask ──▶ Expired: asked for with the key that it had, until there is one
//! ```
//!
//! No clock, no I/O: events in, effects out. A certificate that is installed has a renewal of its
//! own. Agents drive it: they request over the connection that the certificate has opened or, when
//! it has expired, at the port for joining. Clients request once, when they leave, and only ask it
//! whether it is time.

use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::pause;
use std::collections::VecDeque;
use std::time::Duration;

/// The share of its life after which another one is requested.
const HALF: f64 = 0.5;
/// Random deviation from that share: hosts that joined together do not come together.
const SPREAD: f64 = 0.1;
/// Pause between two tries, as a share of its life.
const PAUSE: f64 = 0.01;
/// The shortest pause.
const SHORTEST: Duration = Duration::from_secs(2);
/// Pause between two tries when it has expired and no coordinator answers.
const UNANSWERED: Duration = Duration::from_secs(5);
/// The middle of the spread: for holders that come alone.
pub const ALONE: f64 = 0.5;

/// A time by both clocks: certificates are valid by the wall clock, and pauses are measured by the
/// boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, for the ends of certificates.
    pub wall: WallTime,
    /// Boot clock, for pauses.
    pub boot: BootInstant,
}

/// An event in the life of a certificate.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A regular look: it may be time to act.
    Looked {
        /// Whether a coordinator can be asked.
        reachable: bool,
    },
    /// Another one was granted.
    Granted {
        /// Its text and the certificates between it and the root, in PEM form.
        cert: String,
    },
    /// A request was refused, with the reason.
    Refused(String),
    /// The granted certificate cannot be installed.
    Useless,
    /// It cannot be used any more; also: a certificate that a person has put in its place cannot be
    /// used.
    Expired,
    /// A request with its key has failed.
    Failed {
        /// The reason.
        why: String,
        /// Waiting alone does not help.
        needs_a_person: bool,
    },
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Request another one, over the connection.
    Ask,
    /// Request another one at the port for joining, with the key of the expired one.
    AskByKey,
    /// Install this one.
    Install {
        /// Its text and the certificates between it and the root, in PEM form.
        cert: String,
    },
    /// Show people a message.
    Say {
        /// Nothing works until the cause is removed.
        urgent: bool,
        /// The event and its reason.
        text: String,
    },
}

/// The life of a certificate, and times derived from it.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// The time from which another one is requested.
    at: WallTime,
    end: WallTime,
    pause: Duration,
}

impl Life {
    fn new((from, until): (i64, i64), drawn: f64) -> Self {
        let life = until.saturating_sub(from).max(0) as f64;
        let share = HALF + SPREAD * (drawn - ALONE) * 2.0;
        let at = from
            .saturating_mul(1_000_000)
            .saturating_add((life * share * 1e6) as i64);
        Self {
            at: WallTime(at),
            end: WallTime(until.saturating_mul(1_000_000)),
            pause: Duration::from_secs_f64(life * PAUSE).max(SHORTEST),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Good,
    /// Requested, and not granted yet.
    Asked {
        /// When to request again.
        again: BootInstant,
    },
    /// It cannot be used.
    Expired {
        /// When to request again; `None`: an answer is awaited.
        again: Option<BootInstant>,
        /// Number of failures so far that only a person can end.
        refusals: u32,
    },
}

/// The renewal of one certificate, from the moment in which it is in use. The default is that of a
/// certificate of which nothing is known: nobody asks for another one before it has expired.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// `None`: nothing is known of it.
    life: Option<Life>,
    state: State,
    /// The last message to people about an expired one.
    said: String,
    effects: VecDeque<Effect>,
}

impl Renewal {
    /// The renewal of a certificate (DER); `drawn` is its random place in the spread, between 0 and
    /// 1.
    pub fn of(certificate: &[u8], drawn: f64) -> Self {
        let validity = mezcal_common::model::identity::validity(certificate);
        validity.map_or_else(|_| Self::default(), |life| Self::of_life(life, drawn))
    }

    /// The renewal of a certificate with this begin and end of its validity, in seconds since the
    /// Unix epoch.
    pub fn of_life(validity: (i64, i64), drawn: f64) -> Self {
        Self {
            life: Some(Life::new(validity, drawn)),
            ..Self::default()
        }
    }

    /// Handles an event at `now`.
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Looked { reachable } => self.looked(reachable, now),
            Event::Granted { cert } => {
                // A repeated answer is to a request that has been answered.
                if let State::Asked { .. } = self.state {
                    self.state = State::Good;
                    self.effects.push_back(Effect::Install { cert });
                }
            }
            Event::Refused(why) => self.effects.push_back(Effect::Say {
                urgent: false,
                text: format!("no new certificate: {why}; trying again"),
            }),
            Event::Useless => {
                self.state = State::Good;
                if let Some(life) = &mut self.life {
                    let later = life.pause.as_micros() as i64;
                    life.at = life.at.max(WallTime(now.wall.0.saturating_add(later)));
                }
            }
            Event::Expired => self.ask_by_key(),
            Event::Failed {
                why,
                needs_a_person,
            } => self.failed(why, needs_a_person, now),
        }
    }

    fn looked(&mut self, reachable: bool, now: Now) {
        let again = match self.state {
            State::Good => now.boot,
            State::Asked { again } => again,
            State::Expired { again, .. } => {
                if again.is_some_and(|again| again <= now.boot) {
                    self.ask_by_key();
                }
                return;
            }
        };
        let Some(life) = self.life else { return };
        if reachable && self.is_due(now.wall) && again <= now.boot {
            let again = now.boot + life.pause;
            self.state = State::Asked { again };
            self.effects.push_back(Effect::Ask);
        } else if !reachable && self.is_over(now.wall) {
            self.ask_by_key();
        }
    }

    fn ask_by_key(&mut self) {
        let refusals = match self.state {
            State::Expired { refusals, .. } => refusals,
            State::Good | State::Asked { .. } => {
                self.said.clear();
                0
            }
        };
        let again = None;
        self.state = State::Expired { again, refusals };
        self.effects.push_back(Effect::AskByKey);
    }

    fn failed(&mut self, why: String, needs_a_person: bool, now: Now) {
        let State::Expired { refusals, .. } = self.state else {
            return;
        };
        let (pause, refusals) = if needs_a_person {
            (pause::refused(refusals), refusals.saturating_add(1))
        } else {
            (UNANSWERED, refusals)
        };
        let again = Some(now.boot + pause);
        self.state = State::Expired { again, refusals };
        // Each complaint only once: a host may wait for its coordinator for weeks.
        if why != self.said {
            let text =
                format!("the certificate has expired and is not renewed: {why}; trying again");
            self.effects.push_back(Effect::Say { urgent: true, text });
            self.said = why;
        }
    }

    /// The next action.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to look again, if it has expired.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        match self.state {
            State::Expired { again, .. } => again,
            State::Good | State::Asked { .. } => None,
        }
    }

    /// Why an expired one has not been renewed.
    pub fn complaint(&self) -> &str {
        &self.said
    }

    /// Whether it has expired.
    pub fn is_over(&self, wall: WallTime) -> bool {
        self.life.is_some_and(|life| wall > life.end)
    }

    /// Whether it is time to request another one.
    pub fn is_due(&self, wall: WallTime) -> bool {
        self.life.is_some_and(|life| wall >= life.at)
    }

    /// Time until another one should be requested; when that is over, the pause after a request:
    /// long, but short enough for several requests before the end.
    pub fn due_in(&self, wall: WallTime) -> Duration {
        let Some(life) = self.life else {
            return Duration::ZERO;
        };
        let until = |at: WallTime| Duration::from_micros(at.0.saturating_sub(wall.0).max(0) as u64);
        until(life.at).max(life.pause.min(until(life.end) / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This many seconds, by both clocks.
    fn at(seconds: i64) -> Now {
        Now {
            wall: WallTime(seconds * 1_000_000),
            boot: BootInstant(Duration::from_secs(seconds as u64)),
        }
    }

    fn of(validity: (i64, i64)) -> Renewal {
        Renewal::of_life(validity, ALONE)
    }

    fn all(renewal: &mut Renewal) -> Vec<Effect> {
        std::iter::from_fn(|| renewal.poll_effect()).collect()
    }

    fn look(renewal: &mut Renewal, reachable: bool, seconds: i64) -> Vec<Effect> {
        renewal.handle(Event::Looked { reachable }, at(seconds));
        all(renewal)
    }

    fn granted() -> (Event, Effect) {
        let cert = "new".to_owned();
        let effect = Effect::Install { cert: cert.clone() };
        (Event::Granted { cert }, effect)
    }

    #[test]
    fn nobody_asks_before_it_is_time() {
        let mut renewal = of((0, 20));
        assert_eq!(look(&mut renewal, true, 9), []);
        assert_eq!(look(&mut renewal, true, 10), [Effect::Ask]);
        assert_eq!(
            (
                renewal.is_over(at(20).wall),
                renewal.is_over(WallTime(20_000_001))
            ),
            (false, true)
        );
        let mut never = Renewal::default();
        assert!(look(&mut never, true, 30).is_empty() && !never.is_over(at(30).wall));
        assert_eq!(look(&mut never, false, 30), []);
    }

    #[test]
    fn it_is_asked_for_again_and_again_until_it_is_granted_once() {
        let mut renewal = of((0, 1000));
        assert_eq!(look(&mut renewal, true, 500), [Effect::Ask]);
        assert_eq!(look(&mut renewal, true, 509), [], "a hundredth of its life");
        assert_eq!(look(&mut renewal, true, 510), [Effect::Ask]);
        renewal.handle(Event::Refused("busy".into()), at(511));
        let text = "no new certificate: busy; trying again".to_owned();
        let urgent = false;
        assert_eq!(all(&mut renewal), [Effect::Say { urgent, text }]);
        assert_eq!(look(&mut renewal, true, 520), [Effect::Ask]);
        let (event, install) = granted();
        renewal.handle(event.clone(), at(521));
        assert_eq!(all(&mut renewal), [install]);
        renewal.handle(event, at(521));
        assert_eq!(all(&mut renewal), [], "that was to the same question");
    }

    #[test]
    fn what_cannot_be_used_is_not_asked_for_again_at_once() {
        let mut renewal = of((0, 1000));
        look(&mut renewal, true, 500);
        renewal.handle(granted().0, at(501));
        all(&mut renewal);
        renewal.handle(Event::Useless, at(501));
        assert_eq!(look(&mut renewal, true, 510), []);
        assert_eq!(look(&mut renewal, true, 511), [Effect::Ask]);
    }

    #[test]
    fn hosts_that_joined_together_do_not_come_together() {
        let due = |drawn| {
            let renewal = Renewal::of_life((0, 1000), drawn);
            renewal.due_in(WallTime(0)).as_secs()
        };
        assert_eq!((due(0.0), due(ALONE), due(1.0)), (400, 500, 600));
    }

    #[test]
    fn with_an_expired_one_its_key_asks_and_people_hear_each_complaint_once() {
        let mut renewal = of((0, 20));
        assert_eq!(
            look(&mut renewal, true, 21),
            [Effect::Ask],
            "over what is there"
        );
        assert_eq!(look(&mut renewal, false, 21), [Effect::AskByKey]);
        assert_eq!(look(&mut renewal, false, 1000), [], "an answer is awaited");
        let failed = |why: &str, needs_a_person| Event::Failed {
            why: why.to_owned(),
            needs_a_person,
        };
        renewal.handle(failed("no answer", false), at(1000));
        let said = all(&mut renewal);
        assert!(
            matches!(&said[..], [Effect::Say { urgent: true, text }] if text.contains("no answer")),
            "{said:?}"
        );
        assert_eq!(renewal.poll_timeout(), Some(at(1005).boot));
        assert_eq!(look(&mut renewal, false, 1004), []);
        assert_eq!(look(&mut renewal, false, 1005), [Effect::AskByKey]);
        renewal.handle(failed("no answer", false), at(1005));
        assert_eq!(all(&mut renewal), [], "that has been said");
        assert_eq!(renewal.complaint(), "no answer");
        // A program that looks at the files starts over at once.
        renewal.handle(Event::Expired, at(1006));
        assert_eq!(all(&mut renewal), [Effect::AskByKey]);
    }

    #[test]
    fn what_only_a_person_can_mend_is_tried_ever_more_seldom() {
        let mut renewal = Renewal::default();
        let pauses = (0..8).map(|_| {
            renewal.handle(Event::Expired, at(0));
            let (why, needs_a_person) = ("revoked".to_owned(), true);
            let failed = Event::Failed {
                why,
                needs_a_person,
            };
            renewal.handle(failed, at(0));
            let again = renewal.poll_timeout().expect("it is tried again");
            again.since(at(0).boot).as_secs()
        });
        assert_eq!(
            pauses.collect::<Vec<_>>(),
            [5, 10, 20, 40, 80, 160, 300, 300]
        );
    }

    #[test]
    fn whoever_waits_for_it_comes_at_half_its_life_and_then_often_enough() {
        let renewal = of((0, 1000));
        let due = |seconds| renewal.due_in(at(seconds).wall).as_secs();
        assert_eq!((due(0), due(400), due(490)), (500, 100, 10));
        assert_eq!((due(500), due(900), due(990), due(1000)), (10, 10, 5, 0));
        assert_eq!(Renewal::default().due_in(WallTime(0)), Duration::ZERO);
    }
}
