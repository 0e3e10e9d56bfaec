//! When an agent asks for another certificate, and for which key.

use bytes::Bytes;
use mezcal_common::message::agent::ToCoordinator;
use mezcal_common::model::clock::{BootInstant, WallTime};
use std::time::Duration;

/// Shortest pause between two tries to get a new certificate.
const PAUSE: Duration = Duration::from_secs(2);

/// When to renew a certificate, on the wall clock: certificates know no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// From then on.
    pub at: WallTime,
    /// Between two tries.
    pub pause: Duration,
    /// When it is too late.
    pub end: WallTime,
}

impl Renewal {
    /// At half the life of this certificate (DER), give or take a tenth, so that hosts that joined
    /// together do not come together.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (from, until) = mezcal_common::model::identity::validity(certificate).ok()?;
        let life = until.saturating_sub(from).max(0) as f64;
        let share = 0.5
            + 0.1
                * (f64::from(crate::supervisor::driver::random() as u32) / f64::from(u32::MAX)
                    - 0.5)
                * 2.0;
        let at = WallTime(
            from.saturating_mul(1_000_000)
                .saturating_add((life * share * 1e6) as i64),
        );
        let end = WallTime(until.saturating_mul(1_000_000));
        Some(Self {
            at,
            end,
            pause: Duration::from_secs_f64(life / 100.0).max(PAUSE),
        })
    }

    /// The same, not before its pause is over: a try has been in vain.
    pub fn later(self) -> Self {
        let at = WallTime(
            WallTime::now()
                .0
                .saturating_add(self.pause.as_micros() as i64),
        );
        Self {
            at: self.at.max(at),
            ..self
        }
    }
}

/// Asks, again and again, until there is an answer.
pub(crate) struct Asking {
    renewal: Option<Renewal>,
    next: BootInstant,
    /// The new key and the request for it. An answer does not say which question it is to, and
    /// several may be on their way: all of them are for the same key, so that any certificate fits.
    wanted: Option<(String, Bytes)>,
}

impl Asking {
    pub(crate) fn new(renewal: Option<Renewal>, now: BootInstant) -> Self {
        Self {
            renewal,
            next: now,
            wanted: None,
        }
    }

    /// Whether the certificate has expired.
    pub(crate) fn is_over(&self, wall: WallTime) -> bool {
        self.renewal.is_some_and(|renewal| wall > renewal.end)
    }

    /// The question, if it is time for one.
    ///
    /// # Errors
    /// No key can be made.
    pub(crate) fn ask(
        &mut self,
        wall: WallTime,
        now: BootInstant,
    ) -> Result<Option<ToCoordinator>, mezcal_certs::CertsError> {
        let Some(renewal) = self
            .renewal
            .filter(|renewal| wall >= renewal.at && self.next <= now)
        else {
            return Ok(None);
        };
        self.next = now + renewal.pause;
        let (_, request) = match &mut self.wanted {
            Some(wanted) => wanted,
            none => {
                let (key, request) = mezcal_certs::request()?;
                none.insert((key, request.into()))
            }
        };
        Ok(Some(ToCoordinator::Renew {
            request: request.clone(),
        }))
    }

    /// The key of a certificate that has come; none: nobody has asked for it.
    pub(crate) fn answered(&mut self) -> Option<String> {
        self.wanted.take().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_certs::Authority;
    use mezcal_common::model::identity::Role;
    use mezcal_common::wire::tls::Credentials;
    use std::path::Path;

    /// A coordinator that stands still for a while finds several questions when it goes on, and
    /// answers the first.
    #[test]
    fn whichever_question_is_answered_the_key_is_that_of_the_certificate() {
        let (authority, _) = Authority::create("mezcal").expect("created");
        let (begin, hour) = (BootInstant::now(), Duration::from_secs(3600));
        for answered in 0..3 {
            let renewal = Renewal {
                at: WallTime(0),
                pause: PAUSE,
                end: WallTime(i64::MAX),
            };
            let mut asking = Asking::new(Some(renewal), begin);
            let questions: Vec<Bytes> = (0..6)
                .filter_map(|second| {
                    asking
                        .ask(WallTime(1), begin + Duration::from_secs(second))
                        .expect("a key")
                })
                .map(|question| match question {
                    ToCoordinator::Renew { request } => request,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(questions.len(), 3, "one each two seconds");
            let signed = authority
                .sign(Role::Agent, "mezcal01", hour, &questions[answered])
                .expect("signed");
            let key = asking.answered().expect("asked for");
            let (cert, ca) = (signed.cert.as_bytes(), signed.ca.as_bytes());
            Credentials::from_pem(cert, key.as_bytes(), ca, Role::Agent, Path::new("d"))
                .map(|_| ())
                .expect("a pair");
            assert!(asking.answered().is_none(), "the next one has no key");
        }
    }

    #[test]
    fn nobody_asks_before_it_is_time() {
        let (begin, later) = (
            BootInstant::now(),
            BootInstant::now() + Duration::from_secs(3600),
        );
        let renewal = Renewal {
            at: WallTime(10),
            pause: PAUSE,
            end: WallTime(20),
        };
        let mut asking = Asking::new(Some(renewal), begin);
        assert!(
            asking
                .ask(WallTime(9), later)
                .expect("no key is needed")
                .is_none()
        );
        assert!(asking.ask(WallTime(10), later).expect("a key").is_some());
        assert_eq!(
            (asking.is_over(WallTime(20)), asking.is_over(WallTime(21))),
            (false, true)
        );
        let mut never = Asking::new(None, begin);
        assert!(
            never
                .ask(WallTime(30), later)
                .expect("no key is needed")
                .is_none()
                && !never.is_over(WallTime(30))
        );
    }
}
