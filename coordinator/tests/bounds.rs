//! Limits on the data that one user can make a coordinator keep: answers, batches, host sets, jobs.

use mezcal_common::message::client::{BatchTerms, Selector, Submission, ToClient, ToService};
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Stop};
use mezcal_common::wire::codec;
use mezcal_coordinator::service::{self, ClientPort, Settings};
use mezcal_coordinator::store::Store;
use std::time::Duration;

async fn answer(port: &mut ClientPort) -> ToClient {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), port.answers.recv()).await;
        match next.expect("an answer in time").expect("the service lives") {
            ToClient::Fleet { .. } => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_and_goes_on_when_it_does() {
    let service = service::start(Settings::new(None), None).expect("it starts");
    let mut port = service.attach("owner").await;
    let request = ToService::Close {
        batch: BatchId::random(),
    };
    let mut sent = 0;
    let patience = Duration::from_millis(500);
    while let Ok(went) = tokio::time::timeout(patience, port.requests.send(request.clone())).await {
        went.expect("it listens");
        sent += 1;
        assert!(
            sent < 200_000,
            "everything that it sends is taken, and the answers are kept"
        );
    }
    assert!(sent > 1000, "{sent}");
    // Another user is served meanwhile.
    let mut other = service.attach("other").await;
    other
        .requests
        .send(ToService::Hosts)
        .await
        .expect("it listens");
    while !matches!(
        answer(&mut other).await,
        ToClient::HostsPage { more: false, .. }
    ) {}
    let mut answered = 0;
    while answered < sent {
        answered += u32::from(matches!(answer(&mut port).await, ToClient::Refused { .. }));
    }
    port.requests
        .send(ToService::Hosts)
        .await
        .expect("it listens");
    while !matches!(
        answer(&mut port).await,
        ToClient::HostsPage { more: false, .. }
    ) {}
}

/// Opens a batch, and returns the first answer about it.
async fn open(port: &mut ClientPort, terms: BatchTerms) -> ToClient {
    port.requests
        .send(ToService::Open { terms, have: 0 })
        .await
        .expect("it listens");
    loop {
        let said = answer(port).await;
        if matches!(said, ToClient::Opened { .. } | ToClient::Refused { .. }) {
            return said;
        }
    }
}

fn plain_terms() -> BatchTerms {
    BatchTerms::new(
        BatchContext::new(BatchId::random(), "/".into(), 0o22),
        Duration::from_secs(60),
    )
}

#[tokio::test]
async fn a_user_has_so_many_batches_at_a_time_and_another_one_theirs() {
    let service = service::start(Settings::new(None), None).expect("it starts");
    let mut port = service.attach("owner").await;
    for _ in 0..1000 {
        assert!(matches!(
            open(&mut port, plain_terms()).await,
            ToClient::Opened { .. }
        ));
    }
    let ToClient::Refused { reason } = open(&mut port, plain_terms()).await else {
        panic!("one too many")
    };
    assert!(
        reason.contains("owner has 1000 batches") && reason.contains("cancel them"),
        "{reason}"
    );
    let mut other = service.attach("other").await;
    assert!(matches!(
        open(&mut other, plain_terms()).await,
        ToClient::Opened { .. }
    ));
    port.requests
        .send(ToService::Cancel {
            request: 1,
            what: vec![Selector::Mine; 1000],
            stop: Stop::NOW,
        })
        .await
        .expect("it listens");
    while !matches!(answer(&mut port).await, ToClient::Cancelled { .. }) {}
}

#[tokio::test]
async fn host_sets_are_bounded_and_none_come_to_a_batch_that_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = service::start(Settings::new(Some(Duration::from_secs(600))), Some(store))
        .expect("it starts");
    let mut port = service.attach("owner").await;
    let terms = plain_terms();
    let batch = terms.context.batch;
    open(&mut port, terms.clone()).await;
    let sets = |count: usize, each: usize| vec![vec!["h".to_owned(); each]; count];
    for host_sets in [sets(1, 1), sets(20, 100_000)] {
        port.requests
            .send(ToService::Submit {
                batch,
                host_sets,
                jobs: Vec::new(),
            })
            .await
            .expect("it listens");
    }
    let reason = loop {
        if let ToClient::Refused { reason } = answer(&mut port).await {
            break reason;
        }
    };
    assert!(reason.contains("its jobs name more than"), "{reason}");
    let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small");
    let jobs = vec![Submission {
        hosts: Some(0),
        ..Submission::new(JobNumber(1), spec)
    }];
    port.requests
        .send(ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs,
        })
        .await
        .expect("it listens");
    port.requests
        .send(ToService::Close { batch })
        .await
        .expect("it listens");
    port.requests
        .send(ToService::Submit {
            batch,
            host_sets: sets(5, 5),
            jobs: Vec::new(),
        })
        .await
        .expect("it listens");
    let ToClient::Opened {
        host_sets,
        jobs,
        closed,
        ..
    } = open(&mut port, terms).await
    else {
        panic!("another answer")
    };
    assert_eq!((host_sets, jobs, closed), (1, 1, true));
}

#[tokio::test]
async fn a_batch_that_is_not_stored_stays_small() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = service::start(Settings::new(Some(Duration::from_secs(600))), Some(store))
        .expect("it starts");
    let mut port = service.attach("owner").await;
    let terms = BatchTerms {
        once: true,
        ..plain_terms()
    };
    let batch = terms.context.batch;
    open(&mut port, terms).await;
    let mut next = 1;
    let reason = loop {
        let jobs = (next..next + 4096)
            .map(|n| Submission::new(JobNumber(n), vec![0].into()))
            .collect();
        next += 4096;
        port.requests
            .send(ToService::Submit {
                batch,
                host_sets: Vec::new(),
                jobs,
            })
            .await
            .expect("it listens");
        if let ToClient::Refused { reason } = answer(&mut port).await {
            break reason;
        }
        assert!(next < 200_000, "it stays in memory");
    };
    assert!(
        reason.contains("65536 jobs") && reason.contains("coordinator run"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_batch_that_is_not_stored_is_not_opened_a_second_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let service = service::start(Settings::new(Some(Duration::from_secs(600))), Some(store))
        .expect("it starts");
    let (mut port, mut other) = (service.attach("owner").await, service.attach("owner").await);
    let terms = BatchTerms {
        once: true,
        ..plain_terms()
    };
    let batch = terms.context.batch;
    open(&mut port, terms.clone()).await;
    let jobs = vec![Submission {
        stillborn: Some("no such file".into()),
        ..Submission::new(JobNumber(1), vec![0].into())
    }];
    port.requests
        .send(ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs,
        })
        .await
        .expect("it listens");
    while !matches!(
        answer(&mut port).await,
        ToClient::Results { .. } | ToClient::CountedResults { .. }
    ) {}
    // Its result has gone to the first client, and a search for it would never end.
    let ToClient::Refused { reason } = open(&mut other, terms).await else {
        panic!("another answer")
    };
    assert!(reason.contains("over another one"), "{reason}");
}

#[tokio::test]
async fn ten_thousand_hosts_come_in_messages_that_fit() {
    const HOSTS: u32 = 10_000;
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path()).expect("a store"));
    let db = rusqlite::Connection::open(dir.path().join("store.db")).expect("opened");
    let sql = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1) \
               INSERT INTO host (host, first, slots, drained) SELECT printf('mezcal%05d.cl.ecei.tohoku.ac.jp', i), i, 1, ?2 FROM n";
    db.execute(sql, rusqlite::params![HOSTS, "x".repeat(200)])
        .expect("inserted");
    drop(db);
    let store = Store::open(dir.path()).expect("a store");
    let mut settings = Settings::new(Some(Duration::from_secs(600)));
    settings.adjustable.admins = vec!["admin".into()];
    let service = service::start(settings, Some(store)).expect("it starts");
    let mut port = service.attach("admin").await;
    port.requests
        .send(ToService::Hosts)
        .await
        .expect("it listens");
    let (mut names, mut messages) = (std::collections::BTreeSet::new(), 0);
    loop {
        let said = answer(&mut port).await;
        assert!(codec::encode_body(&said).expect("it fits").len() <= codec::MAX_FRAME / 2);
        let ToClient::HostsPage { hosts, more } = said else {
            panic!("another answer")
        };
        names.extend(hosts.into_iter().map(|host| host.name));
        messages += 1;
        if !more {
            break;
        }
    }
    assert_eq!(names.len(), HOSTS as usize);
    assert!(messages > 1);
    // A refusal that lists all requested names fits, too.
    let unknown: Vec<String> = (0..10_000)
        .map(|n| format!("no-such-host-{n}.with.a.name.that.is.quite.long.example.org"))
        .collect();
    for request in [
        ToService::ForgetHosts {
            request: 1,
            hosts: unknown.clone(),
        },
        ToService::Drain {
            request: 2,
            hosts: unknown,
            reason: Some("x".into()),
            deadline: None,
        },
    ] {
        port.requests.send(request).await.expect("it listens");
        let said = answer(&mut port).await;
        assert!(codec::encode_body(&said).expect("it fits").len() <= codec::MAX_FRAME / 2);
        let ToClient::Done {
            result: Err(why), ..
        } = said
        else {
            panic!("another answer")
        };
        assert!(
            why.contains("no-such-host-1.") && why.ends_with("bytes more"),
            "{}",
            &why[..200]
        );
    }
}
