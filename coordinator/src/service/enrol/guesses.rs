//! Who has shown tokens that do not exist, and for how long they are not heard: each network for
//! itself. A secret has 128 bits, so this is against noise, and for the log.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a network's tokens are not looked at after one that does not exist; twice that after
/// the next, up to the longest. Nobody who mistypes waits for long, and a thousand guesses take
/// most of a day.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// After so long without another one, one is forgotten: an hour makes good for a day's noise.
const FORGIVEN: Duration = Duration::from_secs(120);
/// Of so many it is known; beyond, those who have waited longest are forgotten. Some hundred
/// kilobytes.
const MOST: usize = 4096;
/// After so many the log says that somebody guesses.
const NOTED: u32 = 10;
/// Bad ones that count: more do not make the pause longer.
const COUNTED: u32 = 30;

/// The guesses of all networks.
#[derive(Default)]
pub(super) struct Guesses {
    by_network: HashMap<IpAddr, Guessed>,
}

struct Guessed {
    count: u32,
    /// When the last one came, and when this network is heard again.
    last: Instant,
    until: Instant,
}

impl Guessed {
    fn left(&self, now: Instant) -> u32 {
        let forgiven = now.saturating_duration_since(self.last).as_secs() / FORGIVEN.as_secs();
        self.count
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

/// What somebody can easily have many addresses of: an IPv4 address, or the /64 of an IPv6 one,
/// which is one link (RFC 4291, section 2.5.4).
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Guesses {
    /// How much longer tokens from there are not looked at.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let until = self.by_network.get(&network(address))?.until;
        until
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// A token that does not exist was shown from there. True if it is time to say so.
    pub(super) fn bad(&mut self, address: IpAddr, now: Instant) -> bool {
        let network = network(address);
        if self.by_network.len() >= MOST && !self.by_network.contains_key(&network) {
            self.by_network.retain(|_, guessed| guessed.left(now) > 0);
            let first = self
                .by_network
                .iter()
                .min_by_key(|(_, guessed)| guessed.until)
                .map(|(network, _)| *network);
            if let Some(first) = first.filter(|_| self.by_network.len() >= MOST) {
                self.by_network.remove(&first);
            }
        }
        let before = self
            .by_network
            .get(&network)
            .map_or(0, |guessed| guessed.left(now));
        let pause = FIRST.saturating_mul(1 << before.min(COUNTED)).min(LONGEST);
        let count = (before + 1).min(COUNTED);
        self.by_network.insert(
            network,
            Guessed {
                count,
                last: now,
                until: now + pause,
            },
        );
        before < NOTED && count == NOTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn pauses_grow_and_are_forgotten_and_nobody_elses_address_has_them() {
        let (mut guesses, mut now) = (Guesses::default(), Instant::now());
        let pauses: Vec<u64> = (0..8)
            .map(|_| {
                guesses.bad(at("192.0.2.1"), now);
                let pause = guesses.wait(at("192.0.2.1"), now).expect("it waits");
                assert_eq!(
                    guesses.wait(at("::ffff:192.0.2.1"), now),
                    Some(pause),
                    "another spelling"
                );
                assert_eq!(guesses.wait(at("192.0.2.2"), now), None);
                now += pause;
                assert_eq!(guesses.wait(at("192.0.2.1"), now), None);
                pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        now += FORGIVEN * 8;
        guesses.bad(at("192.0.2.1"), now);
        assert_eq!(guesses.wait(at("192.0.2.1"), now), Some(FIRST));
    }

    #[test]
    fn a_link_is_one_guesser_and_the_log_hears_of_it_once() {
        let (mut guesses, now) = (Guesses::default(), Instant::now());
        let said = (0..100u128)
            .filter(|n| guesses.bad(IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n)), now))
            .count();
        assert_eq!(said, 1);
        assert!(
            guesses
                .wait(at("2001:db8::ffff:ffff:ffff:ffff"), now)
                .is_some()
        );
        assert_eq!(guesses.wait(at("2001:db8:0:1::"), now), None);
    }

    #[test]
    fn the_table_does_not_grow_without_end() {
        let (mut guesses, now) = (Guesses::default(), Instant::now());
        for n in 0..3 * MOST as u128 {
            guesses.bad(
                IpAddr::V6(Ipv6Addr::from_bits(n << 64)),
                now + Duration::from_millis(n as u64 / 100),
            );
        }
        assert_eq!(guesses.by_network.len(), MOST);
        let last = IpAddr::V6(Ipv6Addr::from_bits((3 * MOST as u128 - 1) << 64));
        assert!(guesses.wait(last, now).is_some(), "the newest are known");
    }
}
