//! Messages that wait for a peer to read them, measured in bytes: a channel that says when it is
//! full, and when there is room again.

use mezcal_common::message::client::{BatchStatus, HostStatus, ToClient};
use mezcal_common::model::outcome::JobResult;
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// About how many bytes of memory a message takes.
pub(super) trait Weight {
    fn weight(&self) -> usize;
}

pub(super) fn size_estimate(result: &JobResult) -> usize {
    let outcome = &result.outcome;
    let tails = [&outcome.stdout_tail, &outcome.stderr_tail]
        .into_iter()
        .flatten()
        .map(bytes::Bytes::len)
        .sum::<usize>();
    128 + tails + outcome.error.as_ref().map_or(0, String::len)
}

/// A channel to a peer that is bounded in bytes.
pub(super) struct Outlet<T> {
    sender: mpsc::Sender<T>,
    /// How many bytes.
    most: usize,
    /// Weights of the messages in the channel, oldest first, and their sum. Other senders may put
    /// messages there, too: then these weights are counted for somewhat too long.
    weights: VecDeque<usize>,
    bytes: usize,
}

impl<T: Weight + Send + 'static> Outlet<T> {
    /// An empty outlet that takes no more once it holds `most` bytes.
    pub(super) fn new(sender: mpsc::Sender<T>, most: usize) -> Self {
        Self {
            sender,
            most,
            weights: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Bytes that the peer has not begun to read.
    pub(super) fn unread(&mut self) -> usize {
        let inside = self.sender.max_capacity() - self.sender.capacity();
        while self.weights.len() > inside {
            self.bytes -= self.weights.pop_front().unwrap_or(0);
        }
        self.bytes
    }

    /// Whether another message may go in. A channel that no peer reads any more has room for all.
    pub(super) fn has_room(&mut self) -> bool {
        self.sender.is_closed() || (self.unread() < self.most && self.sender.capacity() > 0)
    }

    /// Puts a message in, or gives it back if there is not enough room. A message larger than all
    /// room goes in alone.
    pub(super) fn try_send(&mut self, message: T) -> Result<(), TrySendError<T>> {
        if !self.has_room() {
            return Err(TrySendError::Full(message));
        }
        let weight = message.weight();
        self.sender.try_send(message)?;
        self.weights.push_back(weight);
        self.bytes += weight;
        Ok(())
    }

    /// Resolves when half of the messages that are in the channel now have been taken out, or no
    /// peer will take them. No message goes in before.
    pub(super) fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let (sender, places) = (self.sender.clone(), self.sender.max_capacity());
        let inside = places - sender.capacity();
        async move {
            // The places are given back at once: this only waits.
            let _ = sender.reserve_many(places - inside / 2).await;
        }
    }
}

impl Weight for ToClient {
    // Long: an arm for each message.
    fn weight(&self) -> usize {
        fn of<T, E>(result: &Result<T, E>, weight: impl Fn(&T) -> usize) -> usize {
            result.as_ref().map_or(0, weight)
        }
        fn each<T>(items: &[T], weight: impl Fn(&T) -> usize) -> usize {
            items.iter().map(|item| size_of::<T>() + weight(item)).sum()
        }
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let status = |b: &BatchStatus| b.user.len() + text(&b.name) + text(&b.stopped);
        let host = |h: &HostStatus| {
            h.name.len()
                + h.program.len()
                + text(&h.drained)
                + h.quarantined.as_ref().map_or(0, |(_, why)| why.len())
        };
        let beside = match self {
            ToClient::Results { results, .. } | ToClient::CountedResults { results, .. } => {
                each(results, |(_, result): &(_, JobResult)| {
                    size_estimate(result)
                })
            }
            ToClient::Described { jobs, .. } => each(jobs, |(_, text)| text.len()),
            ToClient::Hosts(hosts) | ToClient::HostsPage { hosts, .. } => each(hosts, host),
            ToClient::Batches { batches, .. } | ToClient::BatchesApart { batches, .. } => {
                of(batches, |batches| each(batches, status))
            }
            ToClient::Attached { batch, .. } => {
                of(batch, |batch| size_of::<BatchStatus>() + status(batch))
            }
            ToClient::Output { data, .. } => data.len(),
            ToClient::Refused { reason } => reason.len(),
            ToClient::Why { reasons, .. } => match reasons {
                Ok(lines) => each(lines, String::len),
                Err(why) => why.len(),
            },
            ToClient::Unserved { users, .. } => each(users, |(host, user, why)| {
                host.len() + user.len() + why.len()
            }),
            ToClient::Failing { hosts, .. } => each(hosts, |host| host.name.len() + host.why.len()),
            ToClient::Standings { hosts, .. } => of(hosts, |hosts| {
                each(hosts, |host| {
                    host.name.len() + each(&host.engines, |(version, _)| version.len())
                })
            }),
            ToClient::TokensCreated { tokens, .. } => of(tokens, |tokens| {
                each(tokens, |(name, token)| name.len() + token.len())
            }),
            ToClient::Tokens { tokens, .. } => {
                of(tokens, |tokens| each(tokens, |t| t.id.len() + t.name.len()))
            }
            ToClient::Certificates { certificates, .. } => of(certificates, |all| {
                each(all, |c| c.serial.len() + c.name.len())
            }),
            ToClient::Revoked { members, .. } => {
                of(members, |all| each(all, |m| m.name.len() + text(&m.failed)))
            }
            ToClient::Renewed { cert, .. } => cert.as_ref().map_or_else(String::len, String::len),
            ToClient::Done { result, .. } => result.as_ref().map_or_else(String::len, |()| 0),
            ToClient::Retried { batch, .. } => batch.as_ref().map_or_else(String::len, |_| 0),
            ToClient::LogsAnswer { streams, .. } => {
                streams.as_ref().map_or_else(String::len, |_| 0)
            }
            ToClient::CancelWaits { hosts, .. } => each(hosts, |wait| wait.host.len()),
            ToClient::Welcome { .. }
            | ToClient::Fleet { .. }
            | ToClient::Opened { .. }
            | ToClient::Accepted { .. }
            | ToClient::Ended { .. }
            | ToClient::Notice { .. }
            | ToClient::Cancelled { .. } => 0,
        };
        size_of::<Self>() + beside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 20;

    fn refused(bytes: usize) -> ToClient {
        ToClient::Refused {
            reason: "x".repeat(bytes),
        }
    }

    #[tokio::test]
    async fn a_channel_is_full_by_bytes_and_says_when_there_is_room_again() {
        let (sender, mut receiver) = mpsc::channel(1024);
        let mut outlet = Outlet::new(sender, MOST);
        let mut went = 0;
        while outlet.try_send(refused(MOST / 4)).is_ok() {
            went += 1;
        }
        assert_eq!(
            went, 4,
            "not the thousand messages for which there are places"
        );
        let drained = tokio::spawn(outlet.drained());
        for _ in 0..2 {
            assert!(!drained.is_finished());
            receiver.recv().await.expect("a message");
            tokio::task::yield_now().await;
        }
        drained.await.expect("it waits for nothing else");
        assert!(outlet.has_room() && outlet.unread() <= MOST);
        // A message that is larger than all room goes in alone.
        receiver.recv().await.expect("a message");
        receiver.recv().await.expect("a message");
        outlet.try_send(refused(2 * MOST)).expect("it is empty");
        assert!(!outlet.has_room());
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_waited_for_no_longer() {
        let (sender, receiver) = mpsc::channel(8);
        let mut outlet = Outlet::new(sender, MOST);
        outlet.try_send(refused(2 * MOST)).expect("it is empty");
        let drained = outlet.drained();
        drop(receiver);
        drained.await;
        assert!(matches!(
            outlet.try_send(refused(1)),
            Err(TrySendError::Closed(_))
        ));
    }
}
