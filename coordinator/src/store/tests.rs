use super::*;
use mezcal_certs::Authority;
use mezcal_common::clock::WallTime;
use mezcal_common::identity::{Identity, Role};
use mezcal_common::job::BatchContext;
use mezcal_common::token::Token;
use mezcal_common::wire::client::BatchTerms;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_store_of_the_first_version_is_brought_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = Connection::open(dir.path().join("store.db")).expect("made");
    old.execute_batch(TABLES).expect("tables");
    old.execute("INSERT INTO meta VALUES ('store', 77)", []).expect("an id");
    old.execute("INSERT INTO host VALUES ('mezcal01', 40, 4, 'a new disk')", []).expect("a host");
    old.pragma_update(None, "user_version", 1).expect("a version");
    drop(old);
    let store = Store::open(dir.path()).expect("brought up");
    assert_eq!(store.id, StoreId(77));
    let mut records = Vec::new();
    store.replay(|record| records.push(record)).expect("readable");
    assert_eq!(records.len(), 2, "its engines and its drain");
    store.connection.execute("UPDATE host SET evict_at = ?", [WallTime::now().0 + 2 * 3_600_000_000]).expect("a deadline");
    let mut left = None;
    store
        .replay(|record| {
            if let Record::Drained { deadline, .. } = record {
                left = deadline
            }
        })
        .expect("readable");
    assert!(left.is_some_and(|left| left > HOUR && left <= 2 * HOUR), "{left:?}");
    assert!(store.registry(true).expect("tables are there").tokens().expect("readable").is_empty());
    drop(store);
    assert_eq!(Store::open(dir.path()).expect("opened again").id, StoreId(77));
}

#[test]
fn a_batch_knows_how_long_ago_it_was_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("made");
    let now = WallTime::now().0;
    for (serial, opened_at) in [(1, now - 3_600_000_000), (2, now + 3_600_000_000)] {
        let context = BatchContext::new(BatchId(uuid::Uuid::from_u128(serial)), "/".into(), 0o22);
        let (id, terms) = (id_bytes(context.batch), pack(&BatchTerms::new(context, HOUR)).expect("fits"));
        let sql = "INSERT INTO batch (serial, id, user, detached, terms, opened_at) VALUES (?, ?, 'okazaki', 0, ?, ?)";
        store.connection.execute(sql, params![serial as u32, id, terms, opened_at]).expect("a batch");
    }
    let mut ages = Vec::new();
    store.replay(|record| ages.extend(if let Record::Opened { age, .. } = record { Some(age) } else { None })).expect("readable");
    assert!(ages[0] >= HOUR && ages[0] < 2 * HOUR, "{ages:?}");
    assert_eq!(ages[1], Duration::ZERO, "the clock was set back since");
}

/// Writes these as a coordinator does, and gives the store to its next life.
fn written(dir: &Path, records: Vec<Record>) -> Store {
    let (answers, mut said) = tokio::sync::mpsc::channel(4);
    let (writer, _) = Store::open(dir).expect("opened").start(answers);
    writer.write(records);
    assert!(matches!(said.blocking_recv(), Some(FromStore::Committed { .. })));
    drop(writer);
    // The writer's thread lets go of the lock when it ends.
    assert!(said.blocking_recv().is_none());
    Store::open(dir).expect("opened again")
}

/// The age of its batch and what is left of its drain.
fn ages(store: &Store) -> (Duration, Duration) {
    let (mut age, mut left) = (None, None);
    let take = |record| match record {
        Record::Opened { age: of, .. } => age = Some(of),
        Record::Drained { deadline, .. } => left = deadline,
        _ => {}
    };
    store.replay(take).expect("readable");
    (age.expect("a batch"), left.expect("a drain"))
}

#[test]
fn a_wall_clock_that_is_set_makes_nothing_older_or_younger_on_the_same_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let terms = Box::new(BatchTerms::new(BatchContext::new(BatchId(uuid::Uuid::from_u128(1)), "/".into(), 0o22), HOUR));
    let store = written(
        dir.path(),
        vec![
            Record::Opened { batch: BatchSerial(1), user: "okazaki".into(), terms, age: Duration::ZERO },
            Record::Drained { host: "mezcal01".into(), reason: Some("new disks".into()), deadline: Some(HOUR) },
        ],
    );
    // As if the wall clock had been two hours behind, or ahead, when they were written.
    for shift in [-7_200_000_000_i64, 14_400_000_000] {
        store.connection.execute("UPDATE batch SET opened_at = opened_at + ?", [shift]).expect("set");
        store.connection.execute("UPDATE host SET evict_at = evict_at + ?", [shift]).expect("set");
        let (age, left) = ages(&store);
        assert!(age < HOUR / 2 && left > HOUR / 2 && left <= HOUR, "{age:?} {left:?}");
    }
    // On another boot the wall clock has to be believed, but never that a drain lasts longer than it was to.
    let other = "UPDATE batch SET opened_boot = zeroblob(16), opened_at = ?1 - 600000000";
    store.connection.execute(other, [WallTime::now().0]).expect("set");
    store.connection.execute("UPDATE host SET drained_boot = zeroblob(16)", []).expect("set");
    let (age, left) = ages(&store);
    assert!(age >= HOUR / 6 && age < HOUR / 2, "{age:?}");
    assert!(left > HOUR / 2 && left <= HOUR, "{left:?}");
}

fn with_authority() -> (tempfile::TempDir, Registry, Authority) {
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(dir.path()).expect("a registry");
    let (authority, _) = Authority::create("mezcal").expect("created");
    (dir, registry, authority)
}

const HOUR: Duration = Duration::from_secs(3600);

fn token(registry: &Registry, name: &str, ttl: Duration, replace: bool) -> Token {
    registry.create_tokens([1; 32], Role::Agent, &[name.into()], ttl, replace).expect("made").remove(0)
}

#[test]
fn of_fifty_who_show_one_token_one_joins() {
    let (_dir, registry, authority) = with_authority();
    let token = token(&registry, "mezcal01", HOUR, false);
    let signed = AtomicUsize::new(0);
    let joined = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    registry.join(token.id, token.secret, Some("mezcal01"), |role, name| {
                        signed.fetch_add(1, Ordering::Relaxed);
                        Ok(authority.issue(role, name, 1).map_err(|e| e.to_string())?.cert)
                    })
                })
            })
            .collect();
        tries.into_iter().map(|t| t.join().expect("no panic")).filter(Result::is_ok).count()
    });
    assert_eq!((joined, signed.into_inner()), (1, 1));
    assert_eq!(registry.certificates().expect("readable").len(), 1);
    assert!(registry.alive_until().expect("readable").is_none());
}

#[test]
fn tokens_are_good_for_their_host_their_time_and_nothing_else() {
    let (_dir, registry, authority) = with_authority();
    let sign = |role: Role, name: &str| Ok(authority.issue(role, name, 1).expect("issued").cert);
    let refused = |result: Result<(Role, String, String), Refusal>| result.expect_err("refused").to_string();
    let good = token(&registry, "mezcal01.lab", HOUR, false);
    assert!(refused(registry.join(good.id, [0; 16], None, sign)).contains("no such token"));
    assert!(refused(registry.join([0; 4], good.secret, None, sign)).contains("no such token"));
    assert!(refused(registry.join(good.id, good.secret, Some("mezcal02"), sign)).contains("for the host mezcal01.lab"));
    assert!(refused(registry.join(good.id, good.secret, Some("mezcal01"), |_, _| Err("no key".into()))).contains("no key"));
    let (role, name, pem) = registry.join(good.id, good.secret, Some("mezcal01"), sign).expect("its short name will do");
    assert_eq!((role, name.as_str()), (Role::Agent, "mezcal01.lab"));
    assert!(refused(registry.join(good.id, good.secret, Some("mezcal01"), sign)).contains("has been used"));
    // Whoever holds a token for something else is told, and it stays good for whom it is for.
    let host = token(&registry, "mezcal04.lab", HOUR, false);
    let said = refused(registry.join(host.id, host.secret, None, sign));
    assert!(said.contains("for the host mezcal04.lab") && said.contains("mezcal-agent join"), "{said}");
    registry.join(host.id, host.secret, Some("mezcal04"), sign).expect("unused");
    let own = registry.create_tokens([1; 32], Role::User, &["okazaki".into()], HOUR, false).expect("made").remove(0);
    let said = refused(registry.join(own.id, own.secret, Some("mezcal05"), sign));
    assert!(said.contains("for the user okazaki") && said.contains("coordinator join"), "{said}");
    registry.join(own.id, own.secret, None, sign).expect("unused");
    let over = token(&registry, "mezcal02", Duration::ZERO, false);
    assert!(refused(registry.join(over.id, over.secret, None, sign)).contains("is over"));
    // Its name is taken until somebody says that it was set up anew.
    let second = token(&registry, "mezcal01.lab", HOUR, false);
    assert!(refused(registry.join(second.id, second.secret, Some("mezcal01"), sign)).contains("--replace"));
    let holder = Identity::new(authority.cluster(), Role::Agent, "mezcal01.lab").expect("a name");
    let der = |pem: &str| mezcal_certs::der_of(pem).expect("a certificate");
    registry.admits(&der(&pem), &holder).expect("the first one counts");
    let third = token(&registry, "mezcal01.lab", HOUR, true);
    let (_, _, newer) = registry.join(third.id, third.secret, Some("mezcal01"), sign).expect("replaced");
    assert!(registry.admits(&der(&pem), &holder).expect_err("replaced").contains("revoked or replaced"));
    registry.admits(&der(&newer), &holder).expect("the new one counts");
    assert_eq!(registry.revoke(Role::Agent, "mezcal01.lab").expect("revoked"), 1);
    assert!(registry.admits(&der(&newer), &holder).is_err());
    // A token alone can be taken back, too.
    let leaked = token(&registry, "mezcal03.lab", HOUR, false);
    assert_eq!(registry.revoke(Role::Agent, "mezcal03.lab").expect("it is taken back"), 0);
    assert!(refused(registry.join(leaked.id, leaked.secret, None, sign)).contains("no such token"));
    assert!(registry.revoke(Role::Agent, "mezcal03.lab").is_err(), "nothing is left of it");
    let unlisted = authority.issue(Role::User, "okazaki", 1).expect("issued");
    let user = Identity::new(authority.cluster(), Role::User, "okazaki").expect("a name");
    assert!(registry.admits(&der(&unlisted.cert), &user).expect_err("not listed").contains("certs import"));
}
