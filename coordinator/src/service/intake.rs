//! How much a user and a connection may have under way, so that no user's requests are in the way
//! of other users'.
//!
//! A request takes a place of its connection until it has been handled and its answer has found
//! room. So from a client that does not read its answers nothing is read either, and its further
//! requests stay with it (flow control of QUIC).

use mezcal_common::message::client::{Submission, ToService};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Connections that a user may have at a time: several hundred commands that wait for a batch, each
/// of which costs its buffers. Few enough that the part of each in [`UNREAD_PER_USER`] is not less
/// than a client that has filled its own channels may be owed.
const MAX_CONNECTIONS: usize = 400;
/// Bytes of answers that wait for all connections of a user together, counted twice: in their
/// channels, and beside these. A connection that has more than its part of them is not read.
const UNREAD_PER_USER: usize = 64 << 20;
/// The most that one connection's part can be: several messages of the largest usual kind, enough
/// to keep it busy.
const MOST_UNREAD: usize = 1 << 20;
/// Requests of one connection that wait for the loop at a time: enough to keep the loop busy while
/// more come in.
const IN_HAND: u32 = 64;
/// Questions of a user that are answered at once, and how many more each second. People and their
/// scripts ask some dozens; a question about ten thousand hosts takes milliseconds of the one
/// thread that serves everybody. Further questions wait.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 100;
/// KiB of jobs between their connections and the store, of all users together: some hundred
/// messages of the usual size.
const JOBS_IN_HAND: u32 = 32 << 10;

/// The requests and connections that all users have under way.
#[derive(Clone)]
pub(super) struct Intake {
    /// By user: there are no more than users in the cluster, who have certificates.
    users: Arc<Mutex<HashMap<String, Arc<Load>>>>,
    jobs: Arc<Semaphore>,
}

/// The connections and questions that one user has under way.
pub(super) struct Load {
    connections: AtomicUsize,
    /// When all questions so far would have been answered at [`PER_SECOND`].
    paid: Mutex<Instant>,
}

/// A connection's place among those of its user.
pub(super) struct Connected {
    pub(super) load: Arc<Load>,
    requests: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
}

/// The places that a request takes until it has been handled.
pub(super) struct InHand {
    _places: OwnedSemaphorePermit,
    jobs: Option<OwnedSemaphorePermit>,
}

impl InHand {
    /// The request has been handled: others may hand over jobs.
    pub(super) fn without_jobs(mut self) -> Self {
        drop(self.jobs.take());
        self
    }
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            users: Arc::default(),
            jobs: Arc::new(Semaphore::new(JOBS_IN_HAND as usize)),
        }
    }

    /// Adds a connection of this user.
    ///
    /// # Errors
    /// The user has too many connections; in words.
    pub(super) fn connect(&self, user: &str) -> Result<Connected, String> {
        let load = self
            .users
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(user.to_owned())
            .or_default()
            .clone();
        if load.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            load.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(format!(
                "{user} has {MAX_CONNECTIONS} connections to this coordinator, and more are not \
                 served; close some"
            ));
        }
        Ok(self.place(load))
    }

    /// A connection within this process, which is a load for itself alone.
    pub(super) fn within(&self) -> Connected {
        let load = Arc::new(Load::default());
        load.connections.store(1, Ordering::Relaxed);
        self.place(load)
    }

    fn place(&self, load: Arc<Load>) -> Connected {
        Connected {
            load,
            requests: Arc::new(Semaphore::new(IN_HAND as usize)),
            jobs: self.jobs.clone(),
        }
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            connections: AtomicUsize::new(0),
            paid: Mutex::new(Instant::now()),
        }
    }
}

impl Load {
    /// Bytes of answers that may wait in a connection's channel, and the same number beside it.
    pub(super) fn share(&self) -> usize {
        (UNREAD_PER_USER / self.connections.load(Ordering::Relaxed).max(1)).min(MOST_UNREAD)
    }

    /// How long a question has to wait.
    fn ask(&self, now: Instant) -> Duration {
        let each = Duration::from_secs(1) / PER_SECOND;
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + each;
        (*paid - now).saturating_sub(each * BURST)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected {
    /// Waits until a request may go to the loop.
    pub(super) async fn take(&self, message: &ToService) -> InHand {
        let places = if is_question(message) {
            tokio::time::sleep(self.load.ask(Instant::now())).await;
            // Its answer may be large: it is its connection's only request until that has gone.
            IN_HAND
        } else {
            1
        };
        let jobs = match message {
            ToService::Submit { jobs, .. } => Some(acquire(&self.jobs, kibibytes(jobs)).await),
            _ => None,
        };
        InHand {
            _places: acquire(&self.requests, places).await,
            jobs,
        }
    }
}

async fn acquire(places: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    places
        .clone()
        .acquire_many_owned(count)
        .await
        .expect("never closed")
}

fn kibibytes(jobs: &[Submission]) -> u32 {
    let bytes: usize = jobs
        .iter()
        .map(|job| size_of::<Submission>() + job.size())
        .sum();
    u32::try_from(bytes / 1024 + 1)
        .unwrap_or(u32::MAX)
        .min(JOBS_IN_HAND)
}

/// Whether it asks for an answer of its own. Other messages carry a batch forward, and are bounded
/// by its jobs.
fn is_question(message: &ToService) -> bool {
    match message {
        ToService::Hello { .. }
        | ToService::Submit { .. }
        | ToService::Close { .. }
        | ToService::Taken { .. }
        | ToService::OutputTaken { .. }
        | ToService::Cancel { .. } => false,
        ToService::Open { .. }
        | ToService::Hosts
        | ToService::Logs { .. }
        | ToService::Attach { .. }
        | ToService::Batches { .. }
        | ToService::Retry { .. }
        | ToService::Forget { .. }
        | ToService::Drain { .. }
        | ToService::ConfirmDead { .. }
        | ToService::Why { .. }
        | ToService::Unserved { .. }
        | ToService::Standings { .. }
        | ToService::Failing { .. }
        | ToService::CreateTokens { .. }
        | ToService::Tokens { .. }
        | ToService::DeleteToken { .. }
        | ToService::Revoke { .. }
        | ToService::RevokeMembers { .. }
        | ToService::Certificates { .. }
        | ToService::ForgetHosts { .. }
        | ToService::CancelWaits { .. }
        | ToService::Renew { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_connections_and_others_have_theirs() {
        let intake = Intake::new();
        let all: Vec<Connected> = (0..MAX_CONNECTIONS)
            .map(|_| intake.connect("okazaki").expect("there is room"))
            .collect();
        let refused = intake.connect("okazaki").err().expect("there is none");
        assert!(refused.contains("okazaki has 400 connections"), "{refused}");
        let other = intake.connect("sato").expect("that is somebody else");
        assert_eq!(other.load.share(), MOST_UNREAD);
        assert_eq!(all[0].load.share(), UNREAD_PER_USER / MAX_CONNECTIONS);
        drop(all);
        assert_eq!(
            intake
                .connect("okazaki")
                .expect("they have gone")
                .load
                .share(),
            MOST_UNREAD
        );
    }

    #[test]
    fn whoever_asks_too_often_waits_and_is_not_refused() {
        let (load, begin) = (Load::default(), Instant::now());
        assert!((0..BURST).all(|_| load.ask(begin).is_zero()));
        let (first, second) = (load.ask(begin), load.ask(begin));
        assert_eq!(
            [first, second],
            [Duration::from_millis(10), Duration::from_millis(20)]
        );
        assert!(
            load.ask(begin + Duration::from_secs(60)).is_zero(),
            "a minute later it has been forgotten"
        );
    }

    #[tokio::test]
    async fn a_question_is_alone_in_its_connection_and_jobs_are_counted_by_their_bytes() {
        let (intake, taken) = (
            Intake::new(),
            ToService::Taken {
                batch: mezcal_common::model::ids::BatchId::random(),
                results: 1,
            },
        );
        let connected = intake.connect("okazaki").expect("there is room");
        let small = [connected.take(&taken).await, connected.take(&taken).await];
        let asks = async |message: &ToService| {
            tokio::time::timeout(Duration::from_millis(20), connected.take(message))
                .await
                .ok()
        };
        assert!(
            asks(&ToService::Hosts).await.is_none(),
            "others are before it"
        );
        drop(small);
        let question = asks(&ToService::Hosts).await.expect("it is alone");
        assert!(asks(&taken).await.is_none(), "it is alone");
        drop(question);
        let jobs = vec![Submission::new(
            mezcal_common::model::ids::JobNumber(1),
            vec![0; 20 << 20].into(),
        )];
        let submit = ToService::Submit {
            batch: mezcal_common::model::ids::BatchId::random(),
            host_sets: Vec::new(),
            jobs,
        };
        let first = asks(&submit).await.expect("there is room");
        assert!(asks(&submit).await.is_none() && asks(&taken).await.is_some());
        drop(first);
        assert!(asks(&submit).await.is_some());
    }
}
