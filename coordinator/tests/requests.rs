//! The right to each request of a client, for every identity. A request without a row does not
//! compile.

use mezcal_common::message::agent::LogWish;
use mezcal_common::message::client::{
    Attachment, BatchTerms, Member, Selector, Submission, ToClient, ToService,
};
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, MAX_CONTEXT, Stop};
use mezcal_common::wire::codec;
use mezcal_coordinator::service::enrol::Enrolment;
use mezcal_coordinator::service::{self, Adjustable, ClientPort, ServiceHandle, Settings};
use mezcal_coordinator::store::{CertificateRow, Store};
use std::sync::Arc;
use std::time::Duration;

/// The identities. Each uses a connection of its own: only requests that an identity alone allows
/// are allowed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Owner,
    Stranger,
    Admin,
}

const EVERYBODY: [Who; 3] = [Who::Owner, Who::Stranger, Who::Admin];

/// The identities that may make this request.
fn allowed(request: &ToService) -> &'static [Who] {
    match request {
        // All users may see the hosts.
        ToService::Hello { .. }
        | ToService::Hosts
        | ToService::Unserved { .. }
        | ToService::Standings { .. }
        | ToService::Failing { .. }
        | ToService::Batches { all: false, .. }
        | ToService::Renew { .. }
        // About cancels of the same connection, which has made none here.
        | ToService::CancelWaits { .. } => &EVERYBODY,
        // A batch belongs to its user; another connection of that user continues it.
        ToService::Open { .. } => &[Who::Owner],
        // Only the connection that has opened a batch may add to it or take its results.
        ToService::Submit { .. } | ToService::Close { .. } | ToService::Taken { .. } | ToService::OutputTaken { .. } => &[],
        ToService::Cancel { .. }
        | ToService::Logs { .. }
        | ToService::Why { .. }
        | ToService::Attach { .. }
        | ToService::Retry { .. }
        | ToService::Forget { .. } => &[Who::Owner, Who::Admin],
        ToService::Batches { all: true, .. }
        | ToService::Drain { .. }
        | ToService::ConfirmDead { .. }
        | ToService::CreateTokens { .. }
        | ToService::Tokens { .. }
        | ToService::DeleteToken { .. }
        | ToService::Revoke { .. }
        | ToService::RevokeMembers { .. }
        | ToService::Certificates { .. }
        | ToService::ForgetHosts { .. } => &[Who::Admin],
    }
}

/// One request of each kind, about a running batch, or an ended one where it has to be one.
fn requests(running: BatchId, ended: BatchId) -> Vec<ToService> {
    let (batch, wish) = (
        running.to_string(),
        LogWish {
            out: true,
            err: true,
            follow: false,
        },
    );
    let terms = BatchTerms::new(
        BatchContext::new(running, "/".into(), 0o22),
        Duration::from_secs(60),
    );
    vec![
        ToService::Hello {
            versions: (1, 1),
            program: "test".into(),
        },
        ToService::Hosts,
        ToService::Unserved { request: 1 },
        ToService::Standings { request: 1 },
        ToService::CancelWaits { request: 77 },
        ToService::Batches {
            request: 1,
            all: false,
        },
        ToService::Batches {
            request: 1,
            all: true,
        },
        ToService::Submit {
            batch: running,
            host_sets: vec![],
            jobs: vec![],
        },
        ToService::Close { batch: running },
        ToService::Taken {
            batch: running,
            results: 0,
        },
        ToService::OutputTaken {
            batch: running,
            job: JobNumber(1),
            bytes: 1,
        },
        ToService::Why {
            request: 1,
            batch: batch.clone(),
            job: "1".into(),
        },
        ToService::Logs {
            request: 1,
            batch: batch.clone(),
            job: "1".into(),
            wish,
        },
        ToService::Attach {
            request: 1,
            batch: batch.clone(),
            wish: Attachment::End,
        },
        ToService::Open { terms, have: 0 },
        ToService::Drain {
            request: 1,
            hosts: vec!["h1".into()],
            reason: None,
            deadline: None,
        },
        ToService::ConfirmDead {
            request: 1,
            host: "h1".into(),
        },
        ToService::Retry {
            request: 1,
            batch: ended.to_string(),
            failed: false,
        },
        ToService::Cancel {
            request: 1,
            what: vec![Selector::Job {
                batch,
                job: "1".into(),
            }],
            stop: Stop::NOW,
        },
        ToService::Forget {
            request: 1,
            batch: ended.to_string(),
        },
        ToService::CreateTokens {
            request: 1,
            member: Member::Host,
            names: vec!["h1".into()],
            ttl: Duration::from_secs(60),
            replace: false,
        },
        ToService::Tokens { request: 1 },
        ToService::DeleteToken {
            request: 1,
            id: "00000000".into(),
        },
        ToService::Revoke {
            request: 1,
            member: Member::Host,
            names: vec!["h1".into()],
        },
        ToService::RevokeMembers {
            request: 1,
            member: Member::Host,
            names: vec!["h1".into()],
            keep_batches: false,
            force: false,
        },
        ToService::Certificates { request: 1 },
        ToService::ForgetHosts {
            request: 1,
            hosts: vec!["h1".into()],
        },
        ToService::Renew {
            request: 1,
            csr: vec![].into(),
        },
    ]
}

/// The refusal in an answer, if it is one.
fn refusal(answer: &ToClient) -> Option<String> {
    let said = match answer {
        ToClient::Refused { reason } => Some(reason),
        ToClient::Why {
            reasons: Err(why), ..
        } => Some(why),
        ToClient::LogsAnswer {
            streams: Err(why), ..
        } => Some(why),
        ToClient::Attached {
            batch: Err(why), ..
        } => Some(why),
        ToClient::BatchesApart {
            batches: Err(why), ..
        } => Some(why),
        ToClient::Retried {
            batch: Err(why), ..
        } => Some(why),
        ToClient::Done {
            result: Err(why), ..
        } => Some(why),
        ToClient::TokensCreated {
            tokens: Err(why), ..
        } => Some(why),
        ToClient::Tokens {
            tokens: Err(why), ..
        } => Some(why),
        ToClient::Certificates {
            certificates: Err(why),
            ..
        } => Some(why),
        ToClient::Revoked {
            members: Err(why), ..
        } => Some(why),
        _ => None,
    };
    let phrases = [
        "of yours",
        "you have no such batch",
        "only an admin",
        "exists already",
        "only the client that opened",
    ];
    said.filter(|said| phrases.iter().any(|phrase| said.contains(phrase)))
        .cloned()
}

async fn answer(port: &mut ClientPort) -> ToClient {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), port.answers.recv()).await;
        match next.expect("an answer in time").expect("the service lives") {
            ToClient::Fleet { .. } => {}
            other => return other,
        }
    }
}

/// Opens a batch of one job as the owner, over a connection that stays.
async fn batch(service: &ServiceHandle) -> (BatchId, ClientPort) {
    let (mut port, id) = (service.attach("owner").await, BatchId::random());
    let terms = BatchTerms::new(
        BatchContext::new(id, "/".into(), 0o22),
        Duration::from_secs(60),
    );
    let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small");
    let jobs = vec![Submission::new(JobNumber(1), spec)];
    for request in [
        ToService::Open { terms, have: 0 },
        ToService::Submit {
            batch: id,
            host_sets: vec![],
            jobs,
        },
        ToService::Close { batch: id },
    ] {
        port.requests.send(request).await.expect("it listens");
    }
    while !matches!(
        answer(&mut port).await,
        ToClient::Accepted { closed: true, .. }
    ) {}
    (id, port)
}

#[tokio::test]
async fn every_request_is_allowed_to_those_and_no_others() {
    let dir = tempfile::tempdir().expect("a directory");
    for who in EVERYBODY {
        // A coordinator for each, so that one request does not disturb the next.
        let store = Store::open(&dir.path().join(format!("{who:?}"))).expect("a store");
        let enrolment = Enrolment::new(store.registry(false).expect("a registry"), None);
        let admins = vec!["admin".into()];
        let settings = Settings {
            adjustable: Adjustable {
                admins,
                ..Adjustable::default()
            },
            enrolment: Some(Arc::new(enrolment)),
            ..Settings::new(Some(Duration::from_secs(600)))
        };
        let service = service::start(settings, Some(store)).expect("it starts");
        let (running, _open) = batch(&service).await;
        let (ended, mut port) = batch(&service).await;
        let cancel = ToService::Cancel {
            request: 1,
            what: vec![Selector::Batch(ended.to_string())],
            stop: Stop::NOW,
        };
        port.requests.send(cancel).await.expect("it listens");
        while !matches!(
            answer(&mut port).await,
            ToClient::Results { .. } | ToClient::CountedResults { .. }
        ) {}
        let user = match who {
            Who::Owner => "owner",
            Who::Stranger => "stranger",
            Who::Admin => "admin",
        };
        for request in requests(running, ended) {
            let mut port = service.attach(user).await;
            let may = allowed(&request).contains(&who);
            port.requests
                .send(request.clone())
                .await
                .expect("it listens");
            // A request without an answer is followed by one with an answer.
            port.requests
                .send(ToService::Hosts)
                .await
                .expect("it listens");
            let (mut refused, mut hosts) = (None, false);
            while !hosts {
                let said = answer(&mut port).await;
                hosts = matches!(said, ToClient::HostsPage { more: false, .. });
                refused = refused.or(refusal(&said));
            }
            assert_eq!(
                refused.is_none(),
                may,
                "{who:?} asks {request:?}: {refused:?}"
            );
        }
    }
}

/// A service with a store and an admin; with a list of certificates, on which the owner has one.
fn kept(dir: &std::path::Path, listed: bool) -> (ServiceHandle, Arc<Enrolment>) {
    let store = Store::open(dir).expect("a store");
    let enrolment = Arc::new(Enrolment::new(
        store.registry(listed).expect("a registry"),
        None,
    ));
    let row = CertificateRow {
        serial: "01".into(),
        role: Role::User,
        name: "owner".into(),
        expires: i64::MAX / 2,
        revoked: None,
    };
    enrolment.registry.import(&[row]).expect("admitted");
    let settings = Settings {
        adjustable: Adjustable {
            admins: vec!["admin".into()],
            ..Adjustable::default()
        },
        enrolment: Some(enrolment.clone()),
        ..Settings::new(Some(Duration::from_secs(600)))
    };
    (
        service::start(settings, Some(store)).expect("it starts"),
        enrolment,
    )
}

/// Sends a request as this user, and returns the first answer that is not about the fleet.
async fn ask(service: &ServiceHandle, user: &str, request: ToService) -> ToClient {
    let mut port = service.attach(user).await;
    port.requests.send(request).await.expect("it listens");
    answer(&mut port).await
}

/// A batch of the owner whose only job was cancelled.
async fn ended(service: &ServiceHandle) -> BatchId {
    let (ended, mut port) = batch(service).await;
    let cancel = ToService::Cancel {
        request: 1,
        what: vec![Selector::Batch(ended.to_string())],
        stop: Stop::NOW,
    };
    port.requests.send(cancel).await.expect("it listens");
    while !matches!(
        answer(&mut port).await,
        ToClient::Results { .. } | ToClient::CountedResults { .. }
    ) {}
    ended
}

#[tokio::test]
async fn what_an_admin_retries_runs_as_its_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let (service, enrolment) = kept(dir.path(), true);
    let ended = ended(&service).await;
    let retry = || ToService::Retry {
        request: 1,
        batch: ended.to_string(),
        failed: false,
    };
    let ToClient::Retried {
        batch: Ok((new, 1)),
        ..
    } = ask(&service, "admin", retry()).await
    else {
        panic!("not retried")
    };
    let ToClient::BatchesApart {
        batches: Ok(of_owner),
        ..
    } = ask(
        &service,
        "owner",
        ToService::Batches {
            request: 1,
            all: false,
        },
    )
    .await
    else {
        panic!("no list")
    };
    assert!(
        of_owner
            .iter()
            .any(|batch| batch.id == new && batch.user == "owner"),
        "{of_owner:?}"
    );
    let ToClient::BatchesApart {
        batches: Ok(of_admin),
        ..
    } = ask(
        &service,
        "admin",
        ToService::Batches {
            request: 1,
            all: false,
        },
    )
    .await
    else {
        panic!("no list")
    };
    assert!(of_admin.is_empty(), "{of_admin:?}");
    // No admin may act for a user whose certificates are revoked.
    enrolment
        .registry
        .revoke(Role::User, "owner", None)
        .expect("revoked");
    let ToClient::Retried {
        batch: Err(why), ..
    } = ask(&service, "admin", retry()).await
    else {
        panic!("retried")
    };
    assert!(why.contains("no valid certificate any more"), "{why}");
}

#[tokio::test]
async fn whoever_only_follows_a_batch_changes_nothing_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (service, _) = kept(dir.path(), false);
    let (port, id) = (service.attach("owner").await, BatchId::random());
    let terms = BatchTerms::new(
        BatchContext::new(id, "/".into(), 0o22),
        Duration::from_secs(60),
    );
    port.requests
        .send(ToService::Open { terms, have: 0 })
        .await
        .expect("it listens");
    for user in ["admin", "owner"] {
        let mut other = service.attach(user).await;
        let attach = ToService::Attach {
            request: 1,
            batch: id.to_string(),
            wish: Attachment::End,
        };
        other.requests.send(attach).await.expect("it listens");
        let ToClient::Attached { batch: Ok(_), .. } = answer(&mut other).await else {
            panic!("not attached")
        };
        for request in [
            ToService::Close { batch: id },
            ToService::OutputTaken {
                batch: id,
                job: JobNumber(1),
                bytes: 1,
            },
        ] {
            other
                .requests
                .send(request.clone())
                .await
                .expect("it listens");
            assert!(
                refusal(&answer(&mut other).await).is_some(),
                "{user}: {request:?}"
            );
        }
    }
}

#[tokio::test]
async fn jobs_that_are_short_in_the_store_and_long_in_words_come_in_messages_that_fit() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = service::start(Settings::new(Some(Duration::from_secs(600))), Some(store))
        .expect("it starts");
    let (mut port, id) = (service.attach("owner").await, BatchId::random());
    let terms = BatchTerms::new(
        BatchContext::new(id, "/".into(), 0o22),
        Duration::from_secs(60),
    );
    let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small");
    let jobs = (1..=1000)
        .map(|n| Submission {
            prefer: Some(0),
            ..Submission::new(JobNumber(n), spec.clone())
        })
        .collect();
    let names = (1..=100)
        .map(|n| format!("mezcal{n:03}.cl.ecei.tohoku.ac.jp"))
        .collect();
    for request in [
        ToService::Open { terms, have: 0 },
        ToService::Submit {
            batch: id,
            host_sets: vec![names],
            jobs,
        },
        ToService::Close { batch: id },
        ToService::Cancel {
            request: 1,
            what: vec![Selector::Batch(id.to_string())],
            stop: Stop::NOW,
        },
    ] {
        port.requests.send(request).await.expect("it listens");
    }
    while !matches!(answer(&mut port).await, ToClient::Cancelled { .. }) {}
    let mut other = service.attach("owner").await;
    let wish = Attachment::Results {
        failed: false,
        follow: true,
    };
    other
        .requests
        .send(ToService::Attach {
            request: 1,
            batch: id.to_string(),
            wish,
        })
        .await
        .expect("it listens");
    let mut described = 0;
    let mut taken = 0;
    while described < 1000 {
        let said = answer(&mut other).await;
        assert!(codec::encode_body(&said).expect("it fits").len() <= codec::MAX_FRAME);
        match said {
            ToClient::Described { jobs, .. } => described += jobs.len(),
            ToClient::Results { batch, results } | ToClient::CountedResults { batch, results } => {
                taken += results.len() as u64;
                other
                    .requests
                    .send(ToService::Taken {
                        batch,
                        results: taken,
                    })
                    .await
                    .expect("it listens");
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_batch_whose_surroundings_do_not_fit_is_refused() {
    let service = service::start(Settings::new(None), None).expect("it starts");
    let (mut port, id) = (service.attach("owner").await, BatchId::random());
    let context = BatchContext::new(id, "/".repeat(MAX_CONTEXT), 0o22);
    let terms = BatchTerms::new(context, Duration::from_secs(60));
    port.requests
        .send(ToService::Open { terms, have: 0 })
        .await
        .expect("it listens");
    let ToClient::Refused { reason } = answer(&mut port).await else {
        panic!("another answer")
    };
    assert!(reason.contains("put data into files"), "{reason}");
}

#[tokio::test]
async fn a_batch_can_be_followed_before_it_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = service::start(Settings::new(Some(Duration::from_secs(600))), Some(store))
        .expect("it starts");
    for _ in 0..10 {
        let (mut port, id) = (service.attach("owner").await, BatchId::random());
        let terms = BatchTerms::new(
            BatchContext::new(id, "/".into(), 0o22),
            Duration::from_secs(60),
        );
        port.requests
            .send(ToService::Open { terms, have: 0 })
            .await
            .expect("it listens");
        while !matches!(answer(&mut port).await, ToClient::Opened { .. }) {}
        let mut other = service.attach("owner").await;
        let attach = ToService::Attach {
            request: 1,
            batch: id.to_string(),
            wish: Attachment::End,
        };
        other.requests.send(attach).await.expect("it listens");
        let ToClient::Attached { batch, .. } = answer(&mut other).await else {
            panic!("another answer")
        };
        assert_eq!(batch.expect("it is there").id, id);
    }
}
