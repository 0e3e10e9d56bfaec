//! What the journal says of hosts that come and go: one line for each of them that goes, and one
//! for each that is back.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::SessionId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Hosts of this life of the coordinator.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Since when they are gone.
    gone: HashMap<String, BootInstant>,
    /// Those that are back, and have not said yet what runs there: for how long they were gone.
    back: HashMap<SessionId, Duration>,
}

impl Arrivals {
    /// An agent is there: what is said of it now. `here`: so is its last connection. `held`: jobs
    /// that it may have.
    pub(super) fn came(
        &mut self,
        session: SessionId,
        host: &str,
        here: bool,
        held: u64,
        now: BootInstant,
    ) -> Option<String> {
        let gone = match (self.gone.remove(host), here) {
            (Some(since), _) => now.since(since),
            (None, true) => Duration::ZERO,
            (None, false) => return Some(format!("agent connected: {host}")),
        };
        if held > 0 {
            // How many of them go on it has to say first.
            self.back.insert(session, gone);
            return None;
        }
        Some(again(host, gone, 0))
    }

    /// It has said what runs there: what is said of that, once.
    pub(super) fn told(&mut self, session: SessionId, host: &str, held: u64) -> Option<String> {
        Some(again(host, self.back.remove(&session)?, held))
    }

    /// Whether that is still to be said.
    pub(super) fn is_awaited(&self, session: SessionId) -> bool {
        self.back.contains_key(&session)
    }

    /// A connection has ended. False if its host has another one: then there is nothing to be said.
    pub(super) fn went(
        &mut self,
        session: SessionId,
        host: &str,
        here: bool,
        now: BootInstant,
    ) -> bool {
        self.back.remove(&session);
        if !here {
            self.gone.insert(host.to_owned(), now);
        }
        !here
    }

    /// A host is known no more.
    pub(super) fn forget(&mut self, host: &str) {
        self.gone.remove(host);
    }
}

/// Between two lines of the same complaint about the same address: whoever is not let in tries
/// again for weeks.
const AGAIN: Duration = Duration::from_secs(3600);
/// Complaints that are remembered: more than a site has hosts that are not let in.
const REMEMBERED: usize = 4096;

/// Why somebody was not let in, or let go.
#[derive(Default)]
pub(super) struct Complaints(HashMap<(IpAddr, String), Instant>);

impl Complaints {
    /// Whether that is to be said.
    pub(super) fn is_new(&mut self, from: IpAddr, text: &str, now: Instant) -> bool {
        let key = (from, text.to_owned());
        if self
            .0
            .get(&key)
            .is_some_and(|said| now.saturating_duration_since(*said) < AGAIN)
        {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0
                .retain(|_, said| now.saturating_duration_since(*said) < AGAIN);
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
        }
        self.0.insert(key, now);
        true
    }
}

fn again(host: &str, gone: Duration, held: u64) -> String {
    let after = match gone.is_zero() {
        true => "in the place of its last connection".to_owned(),
        false => format!(
            "after {}",
            format_duration(Duration::from_secs(gone.as_secs().max(1)))
        ),
    };
    let jobs = match held {
        0 => String::new(),
        1 => "; 1 job goes on".into(),
        held => format!("; {held} jobs go on"),
    };
    format!("agent {host} connected again {after}{jobs}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_comes_back_is_told_of_once() {
        let mut arrivals = Arrivals::default();
        let at = |seconds| BootInstant::default() + Duration::from_secs(seconds);
        let (first, second, third) = (SessionId(1), SessionId(2), SessionId(3));
        assert_eq!(
            arrivals.came(first, "a", false, 0, at(0)).as_deref(),
            Some("agent connected: a")
        );
        assert_eq!(arrivals.told(first, "a", 0), None, "it has been said");
        assert!(arrivals.went(first, "a", false, at(10)));
        assert_eq!(arrivals.came(second, "a", false, 4, at(75)), None);
        assert!(arrivals.is_awaited(second));
        assert_eq!(
            arrivals.told(second, "a", 3).as_deref(),
            Some("agent a connected again after 1m 5s; 3 jobs go on")
        );
        assert_eq!(arrivals.told(second, "a", 3), None, "once");
        // The next connection is there before the end of the last one is seen.
        let said = arrivals.came(third, "a", true, 0, at(80));
        assert_eq!(
            said.as_deref(),
            Some("agent a connected again in the place of its last connection")
        );
        assert!(!arrivals.went(second, "a", true, at(81)));
        arrivals.went(third, "a", false, at(90));
        arrivals.forget("a");
        assert_eq!(
            arrivals.came(first, "a", false, 0, at(99)).as_deref(),
            Some("agent connected: a")
        );
    }

    #[test]
    fn whoever_is_refused_again_and_again_is_told_of_once_an_hour() {
        let mut complaints = Complaints::default();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said = [
            (one, "x", 0),
            (one, "x", 5),
            (other, "x", 5),
            (one, "y", 5),
            (one, "x", 3599),
            (one, "x", 3600),
        ];
        assert_eq!(
            said.map(|(from, text, seconds)| complaints.is_new(from, text, at(seconds))),
            [true, false, true, true, false, true]
        );
        for n in 0..2 * REMEMBERED {
            complaints.is_new(one, &n.to_string(), at(3600));
        }
        assert!(complaints.0.len() <= REMEMBERED);
    }
}
