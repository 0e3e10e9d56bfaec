//! A service whose store is slow to read: it goes on, and changes that came before the read ended
//! count.

use super::*;
use crate::service::enrol::Enrolment;
use crate::store::CertificateRow;
use crate::store::gate::Gate;
use mezcal_common::message::client::{
    Attachment, BatchStatus, BatchTerms, Member, Selector, Submission, ToClient, ToService,
};
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Stop};
use mezcal_common::wire::codec;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

/// A client in the name of a user.
struct Client(ClientPort);

impl Client {
    async fn of(service: &ServiceHandle, user: &str) -> Self {
        Self(service.attach(user).await)
    }

    async fn say(&self, request: ToService) {
        let said = self.0.requests.send(request).await;
        said.expect("the service lives");
    }

    /// The first answer of this kind.
    async fn hears<T>(&mut self, wanted: impl Fn(ToClient) -> Option<T>) -> T {
        let hears = async {
            loop {
                let answer = self.0.answers.recv().await.expect("the service lives");
                if let Some(wanted) = wanted(answer) {
                    return wanted;
                }
            }
        };
        tokio::time::timeout(PATIENCE, hears)
            .await
            .expect("it hears of it in time")
    }

    /// All answers so far, except those with the number of agents.
    fn heard(&mut self) -> Vec<ToClient> {
        let heard = std::iter::from_fn(|| self.0.answers.try_recv().ok());
        heard
            .filter(|answer| !matches!(answer, ToClient::Fleet { .. }))
            .collect()
    }

    /// Submits a batch of two jobs and waits until the coordinator has accepted them.
    async fn submits(&mut self) -> BatchId {
        let batch = BatchId::random();
        let terms = BatchTerms::new(BatchContext::new(batch, "/".into(), 0o22), HOUR);
        self.say(ToService::Open { terms, have: 0 }).await;
        let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into())));
        let spec = spec.expect("it is small");
        let jobs = [1, 2].map(|n| Submission::new(JobNumber(n), spec.clone()));
        self.say(ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs: jobs.to_vec(),
        })
        .await;
        self.say(ToService::Close { batch }).await;
        self.hears(|answer| match answer {
            ToClient::Accepted { closed: true, .. } => Some(()),
            _ => None,
        })
        .await;
        batch
    }

    /// Makes a batch that has ended without a success.
    async fn has_ended(&mut self) -> BatchId {
        let batch = self.submits().await;
        self.say(ToService::Cancel {
            request: 1,
            what: vec![Selector::Batch(batch.to_string())],
            stop: Stop::NOW,
        })
        .await;
        let mut left = 2;
        while left > 0 {
            left -= self
                .hears(|answer| match answer {
                    ToClient::CountedResults { results, .. } => Some(results.len()),
                    _ => None,
                })
                .await;
        }
        batch
    }

    async fn lists(&self) {
        self.say(ToService::Batches {
            request: 2,
            all: false,
        })
        .await;
    }

    async fn hears_list(&mut self) -> Vec<BatchStatus> {
        let list = self.hears(|answer| match answer {
            ToClient::BatchesApart { batches, .. } => Some(batches),
            _ => None,
        });
        list.await.expect("it is readable")
    }

    async fn follows(&self, batch: BatchId) {
        self.say(ToService::Attach {
            request: 3,
            batch: batch.to_string(),
            wish: Attachment::End,
        })
        .await;
    }

    async fn hears_attached(&mut self) -> Result<BatchId, String> {
        self.hears(|answer| match answer {
            ToClient::Attached { batch, .. } => Some(batch.map(|batch| batch.id)),
            _ => None,
        })
        .await
    }

    async fn retries(&self, batch: BatchId) {
        self.say(ToService::Retry {
            request: 4,
            batch: batch.to_string(),
            failed: true,
        })
        .await;
    }

    async fn hears_retried(&mut self) -> Result<(BatchId, u64), String> {
        self.hears(|answer| match answer {
            ToClient::Retried { batch, .. } => Some(batch),
            _ => None,
        })
        .await
    }
}

/// A service with a store that is read as soon as the gate opens, and an ended batch of okazaki's.
async fn slow() -> (TempDir, ServiceHandle, Arc<Gate>, BatchId) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = start(Settings::new(Some(HOUR)), Some(store)).expect("it starts");
    let batch = Client::of(&service, "okazaki").await.has_ended().await;
    let gate = Gate::shut(dir.path());
    (dir, service, gate, batch)
}

#[tokio::test]
async fn the_service_goes_on_while_the_store_is_slow_to_read() {
    let (_dir, service, gate, batch) = slow().await;
    let mut lists = Client::of(&service, "okazaki").await;
    let mut follows = Client::of(&service, "okazaki").await;
    let mut retries = Client::of(&service, "okazaki").await;
    lists.lists().await;
    follows.follows(batch).await;
    retries.retries(batch).await;
    let holds = tokio::time::timeout(PATIENCE, gate.holds(3));
    holds.await.expect("all three are being read for");
    // Other clients are served, and their jobs are stored.
    let trouble = tokio::time::timeout(PATIENCE, service.trouble());
    assert_eq!(trouble.await.expect("it answers"), Some(None));
    let new = Client::of(&service, "sato").await.submits().await;
    for client in [&mut lists, &mut follows, &mut retries] {
        assert_eq!(client.heard(), []);
    }
    gate.open();
    let listed: Vec<BatchId> = lists.hears_list().await.iter().map(|b| b.id).collect();
    assert!(listed.contains(&batch) && !listed.contains(&new));
    assert_eq!(follows.hears_attached().await, Ok(batch));
    let (again, jobs) = retries.hears_retried().await.expect("they run again");
    assert!(again != batch && jobs == 2);
}

#[tokio::test]
async fn questions_of_one_connection_are_answered_in_their_order() {
    let (_dir, service, gate, batch) = slow().await;
    let mut client = Client::of(&service, "okazaki").await;
    client.follows(batch).await;
    client.follows(batch).await;
    client.say(ToService::Unserved { request: 5 }).await;
    gate.holds(1).await;
    assert_eq!(service.trouble().await, Some(None));
    assert_eq!(client.heard(), []);
    gate.open();
    assert_eq!(client.hears_attached().await, Ok(batch));
    let twice = client.hears_attached().await.expect_err("it does already");
    assert!(twice.contains("follows that batch already"), "{twice}");
    client
        .hears(|answer| match answer {
            ToClient::Unserved { request: 5, .. } => Some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn two_clients_that_retry_one_batch_get_one_new_batch_each() {
    let (_dir, service, gate, batch) = slow().await;
    let mut clients = [
        Client::of(&service, "okazaki").await,
        Client::of(&service, "okazaki").await,
    ];
    for client in &clients {
        client.retries(batch).await;
    }
    // Whole batches are read one after the other.
    gate.holds(1).await;
    gate.open();
    let mut all = vec![batch];
    for client in &mut clients {
        let (new, jobs) = client.hears_retried().await.expect("they run again");
        assert!(!all.contains(&new) && jobs == 2);
        all.push(new);
    }
    clients[0].lists().await;
    assert_eq!(clients[0].hears_list().await.len(), 3);
}

#[tokio::test]
async fn nothing_is_begun_for_a_client_that_has_gone_before_it_was_read() {
    let (_dir, service, gate, batch) = slow().await;
    let Client(ClientPort {
        requests,
        mut answers,
    }) = Client::of(&service, "okazaki").await;
    let request = ToService::Retry {
        request: 4,
        batch: batch.to_string(),
        failed: false,
    };
    requests.send(request).await.expect("the service lives");
    gate.holds(1).await;
    drop(requests);
    let gone = async { while answers.recv().await.is_some() {} };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    gone.expect("the service lets it go");
    // Its turn comes after the other read's.
    let mut other = Client::of(&service, "okazaki").await;
    other.retries(batch).await;
    gate.open();
    let (new, _) = other.hears_retried().await.expect("they run again");
    other.lists().await;
    let listed = other.hears_list().await.into_iter().map(|b| b.id);
    assert_eq!(listed.collect::<Vec<_>>(), [batch, new]);
}

#[tokio::test]
async fn a_batch_that_is_forgotten_while_it_is_read_is_there_for_nobody() {
    let (_dir, service, gate, batch) = slow().await;
    let mut lists = Client::of(&service, "okazaki").await;
    let mut follows = Client::of(&service, "okazaki").await;
    let mut retries = Client::of(&service, "okazaki").await;
    lists.lists().await;
    follows.follows(batch).await;
    retries.retries(batch).await;
    gate.holds(3).await;
    let mut forgets = Client::of(&service, "okazaki").await;
    forgets
        .say(ToService::Forget {
            request: 5,
            batch: batch.to_string(),
        })
        .await;
    let done = forgets.hears(|answer| match answer {
        ToClient::Done { result, .. } => Some(result),
        _ => None,
    });
    assert_eq!(done.await, Ok(()));
    gate.open();
    assert_eq!(lists.hears_list().await, []);
    for refused in [
        follows.hears_attached().await.map(drop),
        retries.hears_retried().await.map(drop),
    ] {
        let why = refused.expect_err("it is gone");
        assert!(why.contains("forgotten in the meantime"), "{why}");
    }
}

#[tokio::test]
async fn nothing_is_begun_for_a_user_who_was_revoked_while_it_was_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let registry = store.registry(true).expect("a list");
    let expires = i64::MAX / 2;
    let sato = CertificateRow {
        serial: "05".into(),
        role: Role::User,
        name: "sato".into(),
        expires,
        revoked: None,
    };
    registry.import(&[sato]).expect("it is on the list");
    let mut settings = Settings::new(Some(HOUR));
    settings.enrolment = Some(Arc::new(Enrolment::new(registry, None)));
    settings.adjustable.admins = vec!["okazaki".into()];
    let service = start(settings, Some(store)).expect("it starts");
    let batch = Client::of(&service, "sato").await.has_ended().await;
    let gate = Gate::shut(dir.path());
    let mut retries = Client::of(&service, "okazaki").await;
    retries.retries(batch).await;
    gate.holds(1).await;
    let mut revokes = Client::of(&service, "okazaki").await;
    revokes
        .say(ToService::RevokeMembers {
            request: 5,
            member: Member::User,
            names: vec!["sato".into()],
            keep_batches: false,
            force: false,
        })
        .await;
    let revoked = revokes.hears(|answer| match answer {
        ToClient::Revoked { members, .. } => Some(members),
        _ => None,
    });
    assert_eq!(revoked.await.expect("it is done")[0].certificates, 1);
    gate.open();
    let why = retries.hears_retried().await.expect_err("nobody's jobs");
    assert!(why.contains("no valid certificate any more"), "{why}");
}

#[tokio::test]
async fn a_batch_on_its_way_to_the_store_is_followed_when_it_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = start(Settings::new(Some(HOUR)), Some(store)).expect("it starts");
    let other = rusqlite::Connection::open(dir.path().join("store.db")).expect("opened");
    let busy = other.execute_batch("BEGIN IMMEDIATE");
    busy.expect("nobody else writes");
    let opens = Client::of(&service, "okazaki").await;
    let mut follows = Client::of(&service, "okazaki").await;
    let batch = BatchId::random();
    let terms = BatchTerms::new(BatchContext::new(batch, "/".into(), 0o22), HOUR);
    opens.say(ToService::Open { terms, have: 0 }).await;
    follows.follows(batch).await;
    assert_eq!(service.trouble().await, Some(None));
    assert_eq!(follows.heard(), []);
    other.execute_batch("COMMIT").expect("let go");
    assert_eq!(follows.hears_attached().await, Ok(batch));
}
