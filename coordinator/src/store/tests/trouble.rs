//! A store that cannot be written for a while, under a service that goes on.

use super::*;
use crate::service::{self, ClientPort, ServiceHandle, Settings};
use mezcal_common::message::client::{Notice, ToClient, ToService};
use mezcal_common::model::job::{Command, JobSpec};

/// A service whose store gives up waiting for another process after a moment.
fn impatient(dir: &Path) -> ServiceHandle {
    let store = Store::open(dir).expect("a store");
    store
        .connection
        .busy_timeout(Duration::from_millis(20))
        .expect("set");
    service::start(Settings::new(Some(HOUR)), Some(store)).expect("it starts")
}

fn jobs(first: u32, last: u32) -> Vec<Submission> {
    let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small");
    (first..=last)
        .map(|n| Submission::new(JobNumber(n), spec.clone()))
        .collect()
}

async fn say(port: &ClientPort, request: ToService) {
    port.requests.send(request).await.expect("it listens");
}

/// The first answer of this kind, and those before it.
async fn until(port: &mut ClientPort, wanted: impl Fn(&ToClient) -> bool) -> Vec<ToClient> {
    let mut said = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), port.answers.recv()).await;
        said.push(
            next.unwrap_or_else(|_| panic!("not in time, after {said:?}"))
                .expect("the service lives"),
        );
        if said.last().is_some_and(&wanted) {
            return said;
        }
    }
}

/// Waits until the service says that its store can be written, or that it cannot.
async fn in_trouble(service: &ServiceHandle, wanted: bool) {
    let says_so = async {
        while service.trouble().await.expect("it lives").is_some() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), says_so)
        .await
        .expect("in time");
}

#[tokio::test]
async fn a_store_that_is_busy_for_a_while_ends_nothing_of_a_batch_that_it_knows() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = impatient(dir.path());
    let (mut port, id) = (service.attach("okazaki").await, BatchId::random());
    let context = BatchContext::new(id, "/".into(), 0o22);
    say(
        &port,
        ToService::Open {
            terms: BatchTerms::new(context, HOUR),
            have: 0,
        },
    )
    .await;
    say(
        &port,
        ToService::Submit {
            batch: id,
            host_sets: vec![],
            jobs: jobs(1, 1),
        },
    )
    .await;
    until(&mut port, |said| {
        matches!(said, ToClient::Accepted { jobs: 1, .. })
    })
    .await;
    let other = Connection::open(dir.path().join("store.db")).expect("opened");
    other
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    say(
        &port,
        ToService::Submit {
            batch: id,
            host_sets: vec![],
            jobs: jobs(2, 2),
        },
    )
    .await;
    until(&mut port, |said| {
        matches!(
            said,
            ToClient::Notice {
                notice: Notice::StoreTrouble { why: Some(_) },
                ..
            }
        )
    })
    .await;
    assert!(service.trouble().await.flatten().is_some());
    // Jobs of a known batch wait with it, and a new batch is refused.
    say(
        &port,
        ToService::Submit {
            batch: id,
            host_sets: vec![],
            jobs: jobs(3, 3),
        },
    )
    .await;
    let (mut newcomer, new) = (service.attach("sato").await, BatchId::random());
    let terms = BatchTerms::new(BatchContext::new(new, "/".into(), 0o22), HOUR);
    say(&newcomer, ToService::Open { terms, have: 0 }).await;
    let said = until(&mut newcomer, |said| {
        matches!(said, ToClient::Refused { .. })
    })
    .await;
    assert!(
        matches!(said.last(), Some(ToClient::Refused { reason }) if reason.contains("cannot be written")),
        "{said:?}"
    );
    other.execute_batch("COMMIT").expect("let go");
    let said = until(&mut port, |said| {
        matches!(said, ToClient::Accepted { jobs: 3, .. })
    })
    .await;
    let wrong = |said: &ToClient| {
        matches!(
            said,
            ToClient::Refused { .. } | ToClient::Results { .. } | ToClient::CountedResults { .. }
        )
    };
    assert!(!said.iter().any(wrong), "{said:?}");
    assert_eq!(service.trouble().await, Some(None));
    say(
        &port,
        ToService::Batches {
            request: 1,
            all: false,
        },
    )
    .await;
    let said = until(&mut port, |said| {
        matches!(said, ToClient::BatchesApart { .. })
    })
    .await;
    let Some(ToClient::BatchesApart {
        batches: Ok(batches),
        ..
    }) = said.last()
    else {
        panic!("{said:?}")
    };
    assert_eq!(
        batches
            .iter()
            .map(|b| (b.jobs, b.ended, b.stopped.clone()))
            .collect::<Vec<_>>(),
        [(3, 0, None)]
    );
}

#[tokio::test]
async fn what_has_just_come_waits_for_a_moment_of_trouble_and_is_then_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = impatient(dir.path());
    let other = Connection::open(dir.path().join("store.db")).expect("opened");
    other
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    let (mut port, id) = (service.attach("okazaki").await, BatchId::random());
    let terms = BatchTerms::new(BatchContext::new(id, "/".into(), 0o22), HOUR);
    say(&port, ToService::Open { terms, have: 0 }).await;
    say(
        &port,
        ToService::Submit {
            batch: id,
            host_sets: vec![],
            jobs: jobs(1, 1),
        },
    )
    .await;
    until(&mut port, |said| {
        matches!(
            said,
            ToClient::Notice {
                notice: Notice::StoreTrouble { why: Some(_) },
                ..
            }
        )
    })
    .await;
    other.execute_batch("COMMIT").expect("let go");
    let said = until(&mut port, |said| {
        matches!(said, ToClient::Accepted { jobs: 1, .. })
    })
    .await;
    assert!(
        !said
            .iter()
            .any(|said| matches!(said, ToClient::Refused { .. })),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_coordinator_that_cannot_write_at_its_start_says_so_and_begins_when_it_can() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut copy = Store::open(dir.path()).expect("made");
    copy.found.foreign = true;
    copy.take_up(false, HOUR)
        .expect("taken up")
        .expect("a copy");
    drop(copy);
    let mut store = Store::open(dir.path()).expect("opened");
    store
        .connection
        .busy_timeout(Duration::from_millis(20))
        .expect("set");
    let other = Connection::open(dir.path().join("store.db")).expect("opened");
    other
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes");
    assert_eq!(store.take_up(true, HOUR / 2).expect("it waits"), None);
    let service = service::start(Settings::new(Some(HOUR / 2)), Some(store)).expect("it starts");
    // No client has asked it to write anything.
    in_trouble(&service, true).await;
    let (mut port, id) = (service.attach("okazaki").await, BatchId::random());
    let terms = BatchTerms::new(BatchContext::new(id, "/".into(), 0o22), HOUR);
    say(&port, ToService::Open { terms, have: 0 }).await;
    let said = until(&mut port, |said| matches!(said, ToClient::Refused { .. })).await;
    assert!(
        matches!(said.last(), Some(ToClient::Refused { reason }) if reason.contains("cannot be written")),
        "{said:?}"
    );
    other.execute_batch("COMMIT").expect("let go");
    in_trouble(&service, false).await;
    let kept = |key| meta::meta::<i64>(&other, key).expect("readable");
    assert_eq!(
        (kept("lease"), kept("hold")),
        (Some((HOUR / 2).as_millis() as i64), None),
        "this life has begun, and somebody vouches"
    );
}

#[test]
fn what_passes_is_told_apart_from_what_lasts() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let said = |result: rusqlite::Result<()>| StoreError::Database {
        path: path.clone(),
        source: result.expect_err("it fails"),
    };
    std::fs::write(&path, [7; 4096]).expect("written");
    let damaged = Connection::open(&path).expect("opened");
    assert!(!said(damaged.execute_batch("SELECT * FROM sqlite_schema")).passes());
    let missing = Connection::open(dir.path().join("no/such")).map(drop);
    assert!(said(missing).passes(), "too many open files look the same");
    let full = Connection::open_in_memory().expect("opened");
    full.pragma_update(None, "max_page_count", 1).expect("set");
    let full = full
        .execute_batch("CREATE TABLE t (x); CREATE TABLE u (x)")
        .expect_err("there is no room");
    for full in [
        StoreError::database(&path, full),
        StoreError::file(&path, std::io::ErrorKind::StorageFull.into()),
    ] {
        assert!(full.passes() && full.waits());
        let said = full.to_string();
        assert!(
            said.contains("is full") && !said.contains("restore"),
            "{said}"
        );
    }
    // An error that does not pass by itself is reported, and the store does not wait for it.
    for kind in [
        std::io::ErrorKind::ReadOnlyFilesystem,
        std::io::ErrorKind::PermissionDenied,
    ] {
        let other = StoreError::file(&path, kind.into());
        assert!(
            !other.waits() && !other.to_string().contains("full"),
            "{other}"
        );
    }
}
