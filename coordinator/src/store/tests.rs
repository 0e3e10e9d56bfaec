mod trouble;

use super::tables::{TABLES, TABLES_2, TABLES_3, TABLES_4, TABLES_5, TABLES_6};
use super::*;
use crate::scheduler::Record;
use mezcal_certs::Authority;
use mezcal_common::message::client::{BatchTerms, SetAside, Submission};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::{Ended, Outcome};
use mezcal_common::model::token::Token;
use rusqlite::params;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_store_of_the_first_version_is_brought_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = Connection::open(dir.path().join("store.db")).expect("made");
    old.execute_batch(TABLES).expect("tables");
    old.execute("INSERT INTO meta VALUES ('store', 77)", [])
        .expect("an id");
    old.execute(
        "INSERT INTO host VALUES ('mezcal01', 40, 4, 'a new disk')",
        [],
    )
    .expect("a host");
    old.pragma_update(None, "user_version", 1)
        .expect("a version");
    drop(old);
    let store = Store::open(dir.path()).expect("brought up");
    assert_eq!(store.id, StoreId(77));
    let mut records = Vec::new();
    store
        .replay(|record| records.push(record))
        .expect("readable");
    assert_eq!(records.len(), 2, "its engines and its drain");
    store
        .connection
        .execute(
            "UPDATE host SET evict_at = ?",
            [WallTime::now().0 + 2 * 3_600_000_000],
        )
        .expect("a deadline");
    let mut left = None;
    store
        .replay(|record| {
            if let Record::Drained { deadline, .. } = record {
                left = deadline
            }
        })
        .expect("readable");
    assert!(
        left.is_some_and(|left| left > HOUR && left <= 2 * HOUR),
        "{left:?}"
    );
    assert!(
        store
            .registry(true)
            .expect("tables are there")
            .tokens()
            .expect("readable")
            .is_empty()
    );
    drop(store);
    assert_eq!(
        Store::open(dir.path()).expect("opened again").id,
        StoreId(77)
    );
}

#[test]
fn a_batch_knows_how_long_ago_it_was_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("made");
    let now = WallTime::now().0;
    for (serial, opened_at) in [(1, now - 3_600_000_000), (2, now + 3_600_000_000)] {
        let context = BatchContext::new(BatchId(uuid::Uuid::from_u128(serial)), "/".into(), 0o22);
        let (id, terms) = (
            id_bytes(context.batch),
            pack(&BatchTerms::new(context, HOUR)).expect("fits"),
        );
        let sql = "INSERT INTO batch (serial, id, user, detached, terms, opened_at) VALUES (?, ?, 'okazaki', 0, ?, ?)";
        store
            .connection
            .execute(sql, params![serial as u32, id, terms, opened_at])
            .expect("a batch");
    }
    let mut ages = Vec::new();
    store
        .replay(|record| {
            ages.extend(if let Record::Opened { age, .. } = record {
                Some(age)
            } else {
                None
            })
        })
        .expect("readable");
    assert!(ages[0] >= HOUR && ages[0] < 2 * HOUR, "{ages:?}");
    assert_eq!(ages[1], Duration::ZERO, "the clock was set back since");
}

/// Writes records as a coordinator does, and returns the store for its next life.
fn written(dir: &Path, records: Vec<Record>) -> Store {
    let (answers, mut said) = tokio::sync::mpsc::channel(4);
    let (writer, _) = Store::open(dir)
        .expect("opened")
        .start(answers)
        .expect("a thread");
    writer.write(records);
    assert!(matches!(
        said.blocking_recv(),
        Some(FromStore::Committed { .. })
    ));
    drop(writer);
    // The writer's thread releases the lock when it ends.
    assert!(said.blocking_recv().is_none());
    Store::open(dir).expect("opened again")
}

/// The age of its batch and the time left of its drain.
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
    let terms = Box::new(BatchTerms::new(
        BatchContext::new(BatchId(uuid::Uuid::from_u128(1)), "/".into(), 0o22),
        HOUR,
    ));
    let store = written(
        dir.path(),
        vec![
            Record::Opened {
                batch: BatchSerial(1),
                user: "okazaki".into(),
                terms,
                age: Duration::ZERO,
            },
            Record::Drained {
                host: "mezcal01".into(),
                reason: Some("new disks".into()),
                deadline: Some(HOUR),
            },
        ],
    );
    // As if the wall clock had been two hours behind, or ahead, when they were written.
    for shift in [-7_200_000_000_i64, 14_400_000_000] {
        store
            .connection
            .execute("UPDATE batch SET opened_at = opened_at + ?", [shift])
            .expect("set");
        store
            .connection
            .execute("UPDATE host SET evict_at = evict_at + ?", [shift])
            .expect("set");
        let (age, left) = ages(&store);
        assert!(
            age < HOUR / 2 && left > HOUR / 2 && left <= HOUR,
            "{age:?} {left:?}"
        );
    }
    // On another boot the wall clock has to be believed, but never that a drain lasts longer than
    // its limit.
    let other = "UPDATE batch SET opened_boot = zeroblob(16), opened_at = ?1 - 600000000";
    store
        .connection
        .execute(other, [WallTime::now().0])
        .expect("set");
    store
        .connection
        .execute("UPDATE host SET drained_boot = zeroblob(16)", [])
        .expect("set");
    let (age, left) = ages(&store);
    assert!(age >= HOUR / 6 && age < HOUR / 2, "{age:?}");
    assert!(left > HOUR / 2 && left <= HOUR, "{left:?}");
}

#[test]
fn stores_of_all_versions_are_brought_up() {
    for version in [1, 2, 3, 4, 5, 6] {
        let dir = tempfile::tempdir().expect("a directory");
        let old = Connection::open(dir.path().join("store.db")).expect("made");
        for tables in [TABLES, TABLES_2, TABLES_3, TABLES_4, TABLES_5, TABLES_6]
            .into_iter()
            .take(version)
        {
            old.execute_batch(tables).expect("tables");
        }
        old.execute("INSERT INTO meta VALUES ('store', 77)", [])
            .expect("an id");
        old.pragma_update(None, "user_version", version as i64)
            .expect("a version");
        // The files as a coordinator leaves them.
        old.pragma_update(None, "journal_mode", "WAL")
            .expect("a log");
        drop(old);
        let mut store = Store::open(dir.path()).expect("brought up");
        assert_eq!(
            (store.id, store.generation, store.hold),
            (StoreId(77), Generation::default(), None)
        );
        assert_eq!(
            store.take_up(false, HOUR).expect("taken up"),
            None,
            "it is no copy"
        );
        drop(store);
        let store = Store::open(dir.path()).expect("opened again");
        assert_eq!(
            (store.generation, store.hold, store.lease),
            (Generation::default(), None, Some(HOUR))
        );
    }
}

#[test]
fn what_an_earlier_version_called_failed_is_counted_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = Connection::open(dir.path().join("store.db")).expect("made");
    for tables in [TABLES, TABLES_2, TABLES_3, TABLES_4, TABLES_5, TABLES_6] {
        old.execute_batch(tables).expect("tables");
    }
    old.execute("INSERT INTO meta VALUES ('store', 77)", [])
        .expect("an id");
    let id = id_bytes(BatchId(uuid::Uuid::from_u128(1)));
    let batch = "INSERT INTO batch (serial, id, user, detached, terms, opened_at, ended) VALUES (1, ?, 'okazaki', 0, x'', 0, 4)";
    old.execute(batch, [id]).expect("a batch");
    for (seq, ended) in [
        Ended::Skipped,
        Ended::Exited,
        Ended::Cancelled,
        Ended::Skipped,
    ]
    .into_iter()
    .enumerate()
    {
        let result = JobResult {
            attempt: 1,
            place: None,
            local: None,
            outcome: Outcome::never_ran(ended, None),
        };
        let packed = pack(&result).expect("short");
        old.execute(
            "INSERT INTO result VALUES (1, ?1, ?1, 0, ?2, NULL, NULL)",
            params![seq as u64, packed],
        )
        .expect("a result");
    }
    old.pragma_update(None, "user_version", 6)
        .expect("a version");
    old.pragma_update(None, "journal_mode", "WAL")
        .expect("a log");
    drop(old);
    let store = Store::open(dir.path()).expect("brought up");
    let batch = Reader::new(store.access.clone())
        .batches()
        .expect("readable")
        .remove(0)
        .status;
    assert_eq!(
        (batch.aside, batch.failed()),
        (
            Some(SetAside {
                cancelled: 1,
                skipped: 2
            }),
            1
        )
    );
}

/// A store that a coordinator has taken up and written a batch to.
fn served(dir: &Path) -> Store {
    let mut store = Store::open(dir).expect("made");
    store.take_up(false, HOUR).expect("taken up");
    add_batch(&store, 1);
    store
}

fn add_batch(store: &Store, serial: u32) {
    let context = BatchContext::new(
        BatchId(uuid::Uuid::from_u128(u128::from(serial))),
        "/".into(),
        0o22,
    );
    let (id, terms) = (
        id_bytes(context.batch),
        pack(&BatchTerms::new(context, HOUR)).expect("fits"),
    );
    let sql = "INSERT INTO batch (serial, id, user, detached, terms, opened_at) VALUES (?, ?, 'okazaki', 0, ?, ?)";
    store
        .connection
        .execute(sql, params![serial, id, terms, WallTime::now().0])
        .expect("a batch");
}

fn batches(store: &Store) -> u32 {
    store
        .connection
        .query_row("SELECT count(*) FROM batch", [], |row| row.get(0))
        .expect("readable")
}

/// The files that a killed coordinator leaves: as they are while it has them open.
fn as_killed(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["store.db", "store.db-wal", "store.db-id"] {
        std::fs::copy(from.join(name), dir.path().join(name)).expect("copied");
    }
    dir
}

fn restore_file(dir: &Path, copy: &Path) -> Result<Restored, StoreError> {
    restore(dir, &std::fs::File::open(copy).expect("there"), copy)
}

#[test]
fn a_copy_is_for_its_owner_alone_and_takes_nobodys_place() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let dir = tempfile::tempdir().expect("a directory");
    let store = served(&dir.path().join("state"));
    let copy = |name: &str| dir.path().join(name);
    backup(&dir.path().join("state"), &copy("copy.db")).expect("copied");
    assert_eq!(
        std::fs::metadata(copy("copy.db")).expect("there").mode() & 0o777,
        0o600
    );
    symlink(copy("elsewhere"), copy("link")).expect("a link");
    for taken in ["copy.db", "link"] {
        let before = std::fs::read(copy("copy.db")).expect("readable");
        assert!(
            matches!(
                backup(&dir.path().join("state"), &copy(taken)),
                Err(StoreError::Copy { .. })
            ),
            "{taken}"
        );
        assert_eq!(std::fs::read(copy("copy.db")).expect("readable"), before);
    }
    assert!(!copy("elsewhere").exists());
    let names = std::fs::read_dir(dir.path())
        .expect("readable")
        .map(|entry| entry.expect("read").file_name());
    assert!(
        names
            .into_iter()
            .all(|name| !name.to_string_lossy().ends_with(".part")),
        "nothing is left of what did not come to be"
    );
    drop(store);
}

#[test]
fn root_makes_a_copy_as_the_account_that_owns_the_store() {
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root is anybody else");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (state, copy) = (dir.path().join("state"), dir.path().join("copy.db"));
    drop(served(&state));
    // A number that no account has.
    let account = 3_999_999;
    for entry in std::fs::read_dir(&state).expect("readable").flatten() {
        chown(entry.path(), Some(account), Some(account)).expect("given");
    }
    chown(&state, Some(account), Some(account)).expect("given");
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .expect("set");
    backup(&state, &copy).expect("copied");
    let made = std::fs::metadata(&copy).expect("there");
    assert_eq!(
        (made.uid(), made.mode() & 0o777),
        (0, 0o600),
        "it is root's"
    );
    // A link to a file that only root may touch leads nowhere.
    let secret = dir.path().join("secret.db");
    backup(&state, &secret).expect("copied");
    std::fs::remove_file(state.join("store.db")).expect("removed");
    symlink(&secret, state.join("store.db")).expect("a link");
    assert!(backup(&state, &dir.path().join("second.db")).is_err());
    std::fs::remove_file(state.join("store.db")).expect("removed");
    // The file that is put in place belongs to the account.
    let file = std::fs::File::open(&copy).expect("readable");
    as_owner_of(&state, || restore(&state, &file, &copy))
        .expect("root is anybody")
        .expect("restored");
    let placed = std::fs::metadata(state.join("store.db")).expect("there");
    assert_eq!(
        (placed.uid(), placed.gid(), placed.mode() & 0o777),
        (account, account, 0o600)
    );
}

#[test]
fn a_copy_knows_that_it_is_one_and_becomes_a_store_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, new, copy) = (
        dir.path().join("old"),
        dir.path().join("new"),
        dir.path().join("copy.db"),
    );
    let store = served(&old);
    let registry = store.registry(true).expect("opened");
    token(&registry, "mezcal01", HOUR, false);
    let before = WallTime::now();
    backup(&old, &copy).expect("copied");
    std::fs::create_dir(&new).expect("made");
    let Restored { copied, kept } = restore_file(&new, &copy).expect("restored");
    assert!(
        copied
            .made
            .is_some_and(|made| made >= before && made <= WallTime::now())
            && kept.is_none(),
        "{copied:?}"
    );
    let mut taken = Store::open(&new).expect("opened");
    assert_eq!(
        (taken.id, taken.generation),
        (store.id, Generation::default()),
        "nobody has taken it up yet"
    );
    assert_eq!(
        taken
            .take_up(false, Duration::from_secs(15))
            .expect("taken up"),
        Some(copied)
    );
    assert!(taken.generation > store.generation && taken.generation.restores == 1);
    let first = taken.generation.first_batch();
    assert_eq!((taken.hold, batches(&taken)), (Some(first), 1));
    assert!(
        taken
            .registry(true)
            .expect("opened")
            .tokens()
            .expect("readable")
            .is_empty(),
        "tokens of a copy are void"
    );
    // The wait begins anew with each life, until it is over: attempts of its original may run.
    drop(taken);
    let mut again = Store::open(&new).expect("opened again");
    assert_eq!(
        again
            .take_up(false, Duration::from_secs(15))
            .expect("taken up"),
        None,
        "it is no copy any more"
    );
    assert_eq!((again.hold, again.generation.restores), (Some(first), 1));
    drop(again);
    let mut again = Store::open(&new).expect("opened again");
    assert_eq!(
        again.lease,
        Some(HOUR),
        "the original's lease is longer than ours"
    );
    again
        .take_up(true, Duration::from_secs(15))
        .expect("taken up");
    assert_eq!(again.hold, None, "somebody vouches");
    drop(again);
    assert_eq!(Store::open(&new).expect("opened again").hold, None);
}

#[test]
fn a_host_that_renewed_its_certificate_after_the_copy_is_admitted_by_an_admin() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, new, copy) = (
        dir.path().join("old"),
        dir.path().join("new"),
        dir.path().join("copy.db"),
    );
    let (authority, _) = Authority::create("mezcal").expect("created");
    let issue = |role, name: &str| authority.issue(role, name, 1).expect("issued").cert;
    let der = |pem: &str| mezcal_certs::der_of(pem).expect("a certificate");
    let holder =
        |name: &str| Identity::new(authority.cluster(), Role::Agent, name).expect("a name");
    let host = holder("mezcal01.lab");
    let store = served(&old);
    let registry = store.registry(true).expect("opened");
    let before = registry_with(&registry, "mezcal01.lab", &authority);
    backup(&old, &copy).expect("copied");
    let sign = |_: Role, name: &str| Ok(issue(Role::Agent, name));
    let renewed = registry.renew(&der(&before), &host, sign).expect("renewed");
    registry.used(&der(&renewed)).expect("in use");
    std::fs::create_dir(&new).expect("made");
    restore_file(&new, &copy).expect("restored");
    let mut restored = Store::open(&new).expect("opened");
    restored.take_up(false, HOUR).expect("taken up");
    let list = restored.registry(true).expect("opened");
    list.admits(&der(&before), &host)
        .expect("it has not heard of the renewal");
    let said = list
        .admits(&der(&renewed), &host)
        .expect_err("not on its list")
        .to_string();
    assert!(
        said.contains("restored from a copy of 2")
            && said.contains("`coordinator certs adopt mezcal01.lab`"),
        "{said}"
    );
    // An unknown host is not remembered, nor more than a few certificates of one that retries.
    list.was_refused(&der(&renewed), &host).expect("remembered");
    list.was_refused(&der(&renewed), &host).expect("known");
    list.was_refused(
        &der(&issue(Role::Agent, "mezcal09.lab")),
        &holder("mezcal09.lab"),
    )
    .expect("not remembered");
    let refused = list.strangers().expect("readable");
    assert_eq!(
        refused
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>(),
        ["mezcal01.lab"]
    );
    let (_, stranger) = &refused[0];
    assert!(
        list.adopt("mezcal09.lab", &stranger.serial).is_err(),
        "it came with another name"
    );
    list.adopt("mezcal01.lab", &stranger.serial)
        .expect("adopted");
    list.admits(&der(&renewed), &host).expect("it counts");
    assert!(
        list.admits(&der(&before), &host).is_err(),
        "the one before does not any more"
    );
    assert!(list.strangers().expect("readable").is_empty());
    for _ in 0..10 {
        list.was_refused(&der(&issue(Role::Agent, "mezcal01.lab")), &host)
            .expect("remembered");
    }
    assert_eq!(
        list.strangers().expect("readable").len(),
        4,
        "a thief fills no store"
    );
    drop(restored);
}

/// A certificate of a host that is on the list.
fn registry_with(registry: &Registry, name: &str, authority: &Authority) -> String {
    let token = token(registry, name, HOUR, false);
    let sign = |role: Role, name: &str| {
        Ok(authority
            .issue(role, name, 1)
            .map_err(|e| e.to_string())?
            .cert)
    };
    registry
        .join(token.id, token.secret, Some(name), sign)
        .expect("joined")
        .2
}

#[test]
fn a_log_that_belongs_to_another_database_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (state, copy) = (dir.path().join("state"), dir.path().join("copy.db"));
    let store = served(&state);
    backup(&state, &copy).expect("copied");
    // A copy as the first version made it: without a mark.
    let plain = dir.path().join("plain.db");
    store
        .connection
        .execute("VACUUM INTO ?", [plain.to_str()])
        .expect("copied");
    add_batch(&store, 2);
    let killed = as_killed(&state);
    let again = Store::open(killed.path()).expect("its own log is replayed");
    assert_eq!(batches(&again), 2);
    drop(again);
    for by_hand in [&copy, &plain] {
        let killed = as_killed(&state);
        let files = ["store.db-wal", "store.db"].map(|name| killed.path().join(name));
        std::fs::copy(by_hand, &files[1]).expect("copied");
        let was = files
            .each_ref()
            .map(|file| std::fs::read(file).expect("readable"));
        for refused in [
            Store::open(killed.path()).map(drop),
            super::registry(killed.path()).map(drop),
            backup(killed.path(), &dir.path().join("never.db")),
        ] {
            let said = refused.expect_err("mixed").to_string();
            assert!(
                said.contains("belongs to another database")
                    && said.contains("coordinator restore FILE"),
                "{said}"
            );
        }
        assert_eq!(
            files
                .each_ref()
                .map(|file| std::fs::read(file).expect("readable")),
            was,
            "nothing was replayed"
        );
        // The command `restore` does it right.
        let kept = restore_file(killed.path(), by_hand)
            .expect("restored")
            .kept
            .expect("the old one is kept");
        assert!(kept.exists() && life::beside(&kept, "-wal").exists());
        let mut restored = Store::open(killed.path()).expect("opened");
        assert!(restored.take_up(false, HOUR).expect("taken up").is_some());
        assert_eq!(batches(&restored), 1);
    }
    // A log alone does not make a new store.
    let killed = as_killed(&state);
    std::fs::remove_file(killed.path().join("store.db")).expect("removed");
    let said = Store::open(killed.path())
        .map(drop)
        .expect_err("a log alone")
        .to_string();
    assert!(said.contains("the database is not"), "{said}");
}

#[test]
fn a_file_that_was_put_in_place_by_hand_is_taken_for_a_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let (state, saved) = (dir.path().join("state"), dir.path().join("saved.db"));
    drop(served(&state));
    std::fs::copy(state.join("store.db"), &saved).expect("copied");
    let mut later = Store::open(&state).expect("opened");
    assert_eq!(later.take_up(false, HOUR).expect("taken up"), None);
    add_batch(&later, 2);
    drop(later);
    std::fs::copy(&saved, state.join("store.db")).expect("copied");
    let mut back = Store::open(&state).expect("opened");
    let copied = back
        .take_up(false, HOUR)
        .expect("taken up")
        .expect("a copy");
    assert!(
        copied.made.is_none() && copied.after.is_some(),
        "{copied:?}"
    );
    assert_eq!((batches(&back), back.generation.restores), (1, 1));
    drop(back);
    // The same again: each is newer than the last one here, though the file is the same.
    std::fs::copy(&saved, state.join("store.db")).expect("copied");
    let mut back = Store::open(&state).expect("opened");
    back.take_up(false, HOUR)
        .expect("taken up")
        .expect("a copy");
    assert_eq!(back.generation.restores, 2);
}

#[test]
fn a_store_is_opened_without_a_word_being_written_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = served(dir.path());
    let (killed, closed) = (as_killed(dir.path()), dir.path());
    drop(store);
    for dir in [killed.path(), closed] {
        let parts = || {
            ["store.db", "store.db-wal", "store.db-id"]
                .map(|name| std::fs::read(dir.join(name)).unwrap_or_default())
        };
        let before = parts();
        let store = Store::open(dir).expect("opened");
        assert_eq!(batches(&store), 1);
        assert!(parts() == before, "on a full disk nothing can be");
        let vacuum: u32 = store
            .connection
            .pragma_query_value(None, "auto_vacuum", |row| row.get(0))
            .expect("readable");
        assert_eq!(vacuum, 2, "it was set when the store was made");
    }
}

#[test]
fn one_process_can_have_a_store_without_a_file_to_share() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(served(dir.path()));
    let path = dir.path().join("store.db");
    let alone = Access { path, alone: true };
    let (first, second) = (
        alone.writing().expect("opened"),
        alone.reading().expect("opened"),
    );
    let count = |db: &Connection| {
        db.query_row("SELECT count(*) FROM batch", [], |row| row.get::<_, u32>(0))
            .expect("readable")
    };
    assert_eq!((count(&first), count(&second)), (1, 1));
    first.execute("DELETE FROM batch", []).expect("written");
    assert_eq!(
        (count(&first), count(&second)),
        (0, 0),
        "connections of one process see the same"
    );
    assert!(!dir.path().join("store.db-shm").exists());
}

#[test]
fn a_life_that_cannot_begin_makes_no_copy_of_its_store() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(served(dir.path()));
    // Another process reads: the writes of this life stay in the log.
    let mut store = Store::open(dir.path()).expect("opened");
    store.connection.busy_timeout(Duration::ZERO).expect("set");
    let reader = Connection::open(dir.path().join("store.db")).expect("opened");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM batch")
        .expect("reads");
    assert_eq!(store.take_up(false, HOUR).expect("taken up"), None);
    let killed = as_killed(dir.path());
    drop((store, reader));
    // And the next life writes nothing, not even when it is tried again.
    for _ in 0..2 {
        let mut store = Store::open(killed.path()).expect("opened");
        store.connection.busy_timeout(Duration::ZERO).expect("set");
        let writer = Connection::open(killed.path().join("store.db")).expect("opened");
        writer
            .execute_batch("BEGIN IMMEDIATE")
            .expect("nobody else writes");
        assert_eq!(store.take_up(false, HOUR / 2).expect("it waits"), None);
        assert!(store.waiting.is_some());
        writer.execute_batch("COMMIT").expect("let go");
        // The last connection to close brings the log into the database.
        drop((store, writer));
    }
    let mut store = Store::open(killed.path()).expect("opened");
    assert_eq!(
        store.take_up(false, HOUR / 2).expect("taken up"),
        None,
        "it is no copy"
    );
    assert_eq!((store.generation.restores, store.hold), (0, None));
    assert!(store.waiting.is_none());
    drop(store);
    assert_eq!(
        Store::open(killed.path()).expect("opened").lease,
        Some(HOUR / 2)
    );
}

#[test]
fn what_is_no_store_takes_nobodys_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let (state, copy) = (dir.path().join("state"), dir.path().join("copy.db"));
    let store = served(&state);
    backup(&state, &copy).expect("copied");
    let file = |name: &str, content: &[u8]| {
        std::fs::write(dir.path().join(name), content).expect("written");
        dir.path().join(name)
    };
    let whole = std::fs::read(&copy).expect("readable");
    let mut torn = whole.clone();
    torn[4096..8192].fill(0x5a);
    Connection::open(dir.path().join("other.db"))
        .expect("made")
        .execute_batch("CREATE TABLE t (a)")
        .expect("a table");
    std::fs::copy(&copy, dir.path().join("newer.db")).expect("copied");
    Connection::open(dir.path().join("newer.db"))
        .expect("opened")
        .pragma_update(None, "user_version", 99)
        .expect("a version");
    std::fs::copy(&copy, dir.path().join("logged.db")).expect("copied");
    file("logged.db-wal", b"something");
    let held = restore_file(&state, &copy).expect_err("a coordinator has it");
    assert!(matches!(held, StoreError::Held { .. }), "{held}");
    drop(store);
    let before = std::fs::read(state.join("store.db")).expect("readable");
    for (wrong, why) in [
        (file("text.db", b"not a database at all"), "not a database"),
        (file("empty.db", b""), "another program"),
        (file("short.db", &whole[..whole.len() / 2]), "damaged"),
        (file("torn.db", &torn), "damaged"),
        (dir.path().join("other.db"), "another program"),
        (dir.path().join("newer.db"), "format 99"),
        (dir.path().join("logged.db"), "its log lies beside it"),
    ] {
        let said = restore_file(&state, &wrong)
            .expect_err("refused")
            .to_string();
        assert!(said.contains(why), "{}: {said}", wrong.display());
        assert_eq!(
            std::fs::read(state.join("store.db")).expect("readable"),
            before
        );
    }
    assert_eq!(batches(&Store::open(&state).expect("as it was")), 1);
    // After an interrupted restore it is not taken for either, and the restore can be repeated.
    let note = life::LifeNote::read(&state.join("store.db")).expect("readable");
    life::LifeNote {
        restoring: true,
        ..note
    }
    .write(&state.join("store.db"))
    .expect("written");
    assert!(matches!(
        Store::open(&state).map(drop),
        Err(StoreError::Interrupted(_))
    ));
    restore_file(&state, &copy).expect("restored");
    assert!(
        Store::open(&state)
            .expect("opened")
            .take_up(false, HOUR)
            .expect("taken up")
            .is_some()
    );
}

#[test]
fn a_store_that_was_not_closed_is_looked_through_before_it_is_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = served(&dir.path().join("state"));
    for serial in 2..300 {
        add_batch(&store, serial);
    }
    let killed = as_killed(&dir.path().join("state"));
    // A page of the database that is not in the log.
    let path = killed.path().join("store.db");
    let mut bytes = std::fs::read(&path).expect("readable");
    let last = bytes.len() - 4096;
    bytes[last..].fill(0x5a);
    std::fs::write(&path, bytes).expect("written");
    let said = Store::open(killed.path())
        .map(drop)
        .expect_err("damaged")
        .to_string();
    assert!(
        said.contains("is damaged") && said.contains("are lost"),
        "{said}"
    );
}

fn with_authority() -> (tempfile::TempDir, Registry, Authority) {
    let dir = tempfile::tempdir().expect("a directory");
    let registry = registry(dir.path()).expect("a registry");
    let (authority, _) = Authority::create("mezcal").expect("created");
    (dir, registry, authority)
}

const HOUR: Duration = Duration::from_secs(3600);

fn token(registry: &Registry, name: &str, ttl: Duration, replace: bool) -> Token {
    registry
        .create_tokens([1; 32], Role::Agent, &[name.into()], ttl, replace)
        .expect("made")
        .remove(0)
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
                        Ok(authority
                            .issue(role, name, 1)
                            .map_err(|e| e.to_string())?
                            .cert)
                    })
                })
            })
            .collect();
        tries
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .filter(Result::is_ok)
            .count()
    });
    assert_eq!((joined, signed.into_inner()), (1, 1));
    assert_eq!(registry.certificates().expect("readable").len(), 1);
    assert!(registry.alive_until().expect("readable").is_none());
}

#[test]
fn tokens_are_good_for_their_host_their_time_and_nothing_else() {
    let (_dir, registry, authority) = with_authority();
    let sign = |role: Role, name: &str| Ok(authority.issue(role, name, 1).expect("issued").cert);
    let refused =
        |result: Result<(Role, String, String), Refusal>| result.expect_err("refused").to_string();
    let good = token(&registry, "mezcal01.lab", HOUR, false);
    assert!(refused(registry.join(good.id, [0; 16], None, sign)).contains("no such token"));
    assert!(refused(registry.join([0; 4], good.secret, None, sign)).contains("no such token"));
    assert!(
        refused(registry.join(good.id, good.secret, Some("mezcal02"), sign))
            .contains("for the host mezcal01.lab")
    );
    assert!(
        refused(
            registry.join(good.id, good.secret, Some("mezcal01"), |_, _| Err(
                "no key".into()
            ))
        )
        .contains("no key")
    );
    let (role, name, pem) = registry
        .join(good.id, good.secret, Some("mezcal01"), sign)
        .expect("its short name will do");
    assert_eq!((role, name.as_str()), (Role::Agent, "mezcal01.lab"));
    assert!(
        refused(registry.join(good.id, good.secret, Some("mezcal01"), sign))
            .contains("has been used")
    );
    // A holder of another name or role is told, and the token stays good for the right one.
    let host = token(&registry, "mezcal04.lab", HOUR, false);
    let said = refused(registry.join(host.id, host.secret, None, sign));
    assert!(
        said.contains("for the host mezcal04.lab") && said.contains("mezcal-agent join"),
        "{said}"
    );
    registry
        .join(host.id, host.secret, Some("mezcal04"), sign)
        .expect("unused");
    let own = registry
        .create_tokens([1; 32], Role::User, &["okazaki".into()], HOUR, false)
        .expect("made")
        .remove(0);
    let said = refused(registry.join(own.id, own.secret, Some("mezcal05"), sign));
    assert!(
        said.contains("for the user okazaki") && said.contains("coordinator join"),
        "{said}"
    );
    registry
        .join(own.id, own.secret, None, sign)
        .expect("unused");
    let over = token(&registry, "mezcal02", Duration::ZERO, false);
    assert!(refused(registry.join(over.id, over.secret, None, sign)).contains("has expired"));
    // Its name is taken until an admin says that the host was set up anew.
    let second = token(&registry, "mezcal01.lab", HOUR, false);
    assert!(
        refused(registry.join(second.id, second.secret, Some("mezcal01"), sign))
            .contains("--replace")
    );
    let holder = Identity::new(authority.cluster(), Role::Agent, "mezcal01.lab").expect("a name");
    let der = |pem: &str| mezcal_certs::der_of(pem).expect("a certificate");
    registry
        .admits(&der(&pem), &holder)
        .expect("the first one counts");
    let third = token(&registry, "mezcal01.lab", HOUR, true);
    let (_, _, newer) = registry
        .join(third.id, third.secret, Some("mezcal01"), sign)
        .expect("replaced");
    assert!(
        registry
            .admits(&der(&pem), &holder)
            .expect_err("replaced")
            .to_string()
            .contains("revoked or replaced")
    );
    registry
        .admits(&der(&newer), &holder)
        .expect("the new one counts");
    assert_eq!(
        registry
            .revoke(Role::Agent, "mezcal01.lab", None)
            .expect("revoked")
            .certificates,
        1
    );
    assert!(registry.admits(&der(&newer), &holder).is_err());
    // A token alone can be revoked, too.
    let leaked = token(&registry, "mezcal03.lab", HOUR, false);
    assert_eq!(
        registry
            .revoke(Role::Agent, "mezcal03.lab", None)
            .expect("it is taken back")
            .certificates,
        0
    );
    assert!(refused(registry.join(leaked.id, leaked.secret, None, sign)).contains("no such token"));
    assert!(
        registry.revoke(Role::Agent, "mezcal03.lab", None).is_err(),
        "nothing is left of it"
    );
    let unlisted = authority.issue(Role::User, "okazaki", 1).expect("issued");
    let user = Identity::new(authority.cluster(), Role::User, "okazaki").expect("a name");
    assert!(
        registry
            .admits(&der(&unlisted.cert), &user)
            .expect_err("not listed")
            .to_string()
            .contains("certs import")
    );
}
