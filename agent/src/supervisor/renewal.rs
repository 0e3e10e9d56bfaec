//! Asking for another certificate over the connection, and the key for it.

use bytes::Bytes;
use mezcal_certs::CertsError;
use mezcal_certs::renewal::{Effect, Event, Now, Renewal};
use mezcal_common::message::agent::ToCoordinator;
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::system::random;

/// The things to do about the certificate of the connection.
pub(crate) enum Wish {
    /// Ask the coordinator.
    Ask(ToCoordinator),
    /// Put another certificate in place, for this key.
    Install { cert: String, key: String },
    /// Ask elsewhere: the certificate has expired.
    AskElsewhere,
}

/// Asks, again and again, until there is an answer.
pub(crate) struct Asking {
    renewal: Renewal,
    /// The new key and the request for its certificate. An answer does not say which request it is
    /// to, and several may be on their way: all of them are for the same key, so that any
    /// certificate fits.
    wanted: Option<(String, Bytes)>,
}

impl Asking {
    pub(crate) fn new(renewal: Renewal) -> Self {
        Self {
            renewal,
            wanted: None,
        }
    }

    /// The next thing to do after this has happened.
    ///
    /// # Errors
    /// No key can be made.
    pub(crate) fn handle(&mut self, event: Event, now: Now) -> Result<Option<Wish>, CertsError> {
        self.renewal.handle(event, now);
        while let Some(effect) = self.renewal.poll_effect() {
            match effect {
                Effect::Ask => return self.question().map(Some),
                Effect::Install { cert } => {
                    let wanted = self.wanted.take();
                    return Ok(wanted.map(|(key, _)| Wish::Install { cert, key }));
                }
                Effect::AskByKey => return Ok(Some(Wish::AskElsewhere)),
                Effect::Say { urgent, text } => say(urgent, &text),
            }
        }
        Ok(None)
    }

    fn question(&mut self) -> Result<Wish, CertsError> {
        let (_, request) = match &mut self.wanted {
            Some(wanted) => wanted,
            none => {
                let (key, request) = mezcal_certs::request()?;
                none.insert((key, request.into()))
            }
        };
        let request = request.clone();
        Ok(Wish::Ask(ToCoordinator::Renew { request }))
    }
}

/// The time by both clocks.
pub(crate) fn now() -> Now {
    Now {
        wall: WallTime::now(),
        boot: BootInstant::now(),
    }
}

/// When the certificate (DER) of an agent is renewed.
pub(crate) fn of(certificate: &[u8]) -> Renewal {
    let drawn = f64::from(random::number() as u32) / f64::from(u32::MAX);
    Renewal::of(certificate, drawn)
}

pub(crate) fn say(urgent: bool, text: &str) {
    if urgent {
        tracing::error!("{text}");
    } else {
        tracing::warn!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_certs::Authority;
    use mezcal_certs::renewal::ALONE;
    use mezcal_common::model::identity::Role;
    use mezcal_common::wire::tls::Credentials;
    use std::path::Path;
    use std::time::Duration;

    /// A coordinator that stands still for a while finds several requests when it goes on, and
    /// answers the first.
    #[test]
    fn whichever_question_is_answered_the_key_is_that_of_the_certificate() {
        let (authority, _) = Authority::create("mezcal").expect("created");
        let (begin, hour) = (BootInstant::now(), Duration::from_secs(3600));
        let at = |second| Now {
            wall: WallTime(1),
            boot: begin + Duration::from_secs(second),
        };
        for answered in 0..3 {
            let mut asking = Asking::new(Renewal::of_life((-100, 100), ALONE));
            let reachable = true;
            let questions: Vec<Bytes> = (0..6)
                .filter_map(|second| {
                    asking
                        .handle(Event::Looked { reachable }, at(second))
                        .expect("a key")
                })
                .map(|wish| match wish {
                    Wish::Ask(ToCoordinator::Renew { request }) => request,
                    Wish::Ask(_) | Wish::Install { .. } | Wish::AskElsewhere => {
                        panic!("no question")
                    }
                })
                .collect();
            assert_eq!(questions.len(), 3, "one each two seconds");
            let signed = authority
                .sign(Role::Agent, "mezcal01", hour, &questions[answered])
                .expect("signed");
            let cert = signed.cert;
            let mut grant = || {
                let cert = cert.clone();
                asking
                    .handle(Event::Granted { cert }, at(6))
                    .expect("no key is needed")
            };
            let Some(Wish::Install { cert, key }) = grant() else {
                panic!("asked for");
            };
            let (cert, ca) = (cert.as_bytes(), signed.ca.as_bytes());
            Credentials::from_pem(cert, key.as_bytes(), ca, Role::Agent, Path::new("d"))
                .map(|_| ())
                .expect("a pair");
            assert!(grant().is_none(), "the next one has no key");
        }
    }
}
