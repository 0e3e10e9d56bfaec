//! Lines of the journal about hosts that come and go: one for each host that goes, and one for each
//! that is back.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::SessionId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Hosts of this life of the coordinator.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Hosts that are gone, and since when.
    gone: HashMap<String, BootInstant>,
    /// For hosts that are back and have not said yet which jobs run there: how long they were gone.
    back: HashMap<SessionId, Duration>,
}

impl Arrivals {
    /// An agent has connected: the line to log now. `here`: its last connection has not ended.
    /// `held`: jobs that it may have.
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
            // The agent has to say first how many of them go on.
            self.back.insert(session, gone);
            return None;
        }
        Some(again(host, gone, 0))
    }

    /// The agent has said which jobs run there: the line for that, once.
    pub(super) fn told(&mut self, session: SessionId, host: &str, held: u64) -> Option<String> {
        Some(again(host, self.back.remove(&session)?, held))
    }

    /// Whether the agent has yet to say which jobs run there.
    pub(super) fn is_awaited(&self, session: SessionId) -> bool {
        self.back.contains_key(&session)
    }

    /// A connection has ended. False if its host has another one: then nothing is logged.
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

    /// A host was removed.
    pub(super) fn forget(&mut self, host: &str) {
        self.gone.remove(host);
    }
}

/// Time between two lines of the same complaint about the same address: a peer that is not let in
/// retries for weeks.
const AGAIN: Duration = Duration::from_secs(3600);
/// Complaints that are remembered: more than a site has hosts that are not let in.
const REMEMBERED: usize = 4096;

/// Reasons why peers were not let in, or were let go.
#[derive(Default)]
pub(super) struct Complaints(HashMap<(IpAddr, String), Instant>);

impl Complaints {
    /// Whether this complaint is to be logged.
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
        // The next connection is there before the end of the last one is noticed.
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
