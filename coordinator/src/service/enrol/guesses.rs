//! Networks that have shown tokens which do not exist, and for how long no tokens from there are
//! checked. A secret has 128 bits, so this is against noise, and for the log.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// For how long a network's tokens are not checked after one that does not exist; twice that after
/// the next, up to the longest. A user who mistypes does not wait long, and a thousand guesses take
/// most of a day.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// After this time without another guess, one is forgotten: an hour makes good for a day's noise.
const FORGIVEN: Duration = Duration::from_secs(120);
/// Networks that are remembered; beyond this number, the ones that have waited longest are
/// forgotten. Some hundred kilobytes.
const MOST: usize = 4096;
/// After this number the log says that somebody is guessing.
const NOTED: u32 = 10;
/// Guesses that count: more do not make the pause longer.
const COUNTED: u32 = 30;

/// The guesses of all networks.
#[derive(Default)]
pub(super) struct Guesses {
    by_network: HashMap<IpAddr, Guessed>,
}

struct Guessed {
    count: u32,
    /// When the last guess came, and when this network's tokens are checked again.
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

/// The network that counts as one: an IPv4 address, or the /64 of an IPv6 one, which is one link
/// with many addresses (RFC 4291, section 2.5.4).
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Guesses {
    /// For how much longer tokens from this address are not checked.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let until = self.by_network.get(&network(address))?.until;
        until
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// A token that does not exist was shown from this address. True if it is time to log it.
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
