//! The tables, and how those of earlier versions are migrated.

use super::{StoreError, unpack};
use mezcal_common::message::client::SetAside;
use mezcal_common::model::outcome::JobResult;
use rusqlite::{Connection, Transaction, params};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of these tables; [`migrate`] brings older ones up to it.
pub(super) const VERSION: i64 = 7;

pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let broken = |source| StoreError::database(path, source);
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(broken)?;
    if found > VERSION {
        return Err(StoreError::Newer {
            path: path.into(),
            found,
        });
    }
    if found == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction().map_err(broken)?;
    if found == 0 {
        transaction.execute_batch(TABLES).map_err(broken)?;
        let id = uuid::Uuid::new_v4().as_u64_pair().0 as i64;
        transaction
            .execute("INSERT INTO meta VALUES ('store', ?)", [id])
            .map_err(broken)?;
    }
    if found < 2 {
        transaction.execute_batch(TABLES_2).map_err(broken)?;
    }
    if found < 3 {
        transaction.execute_batch(TABLES_3).map_err(broken)?;
    }
    if found < 4 {
        transaction.execute_batch(TABLES_4).map_err(broken)?;
    }
    if found < 5 {
        transaction.execute_batch(TABLES_5).map_err(broken)?;
    }
    if found < 6 {
        transaction.execute_batch(TABLES_6).map_err(broken)?;
    }
    transaction.execute_batch(TABLES_7).map_err(broken)?;
    count_aside(&transaction).map_err(broken)?;
    transaction
        .pragma_update(None, "user_version", VERSION)
        .map_err(broken)?;
    transaction.commit().map_err(broken)
}

/// Counts cancelled and skipped jobs where an earlier version has not.
fn count_aside(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut batches: BTreeMap<u32, SetAside> = BTreeMap::new();
    let mut statement = transaction.prepare("SELECT batch, result FROM result WHERE ok = 0")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let packed: Vec<u8> = row.get(1)?;
        // A result that cannot be read counts as failed, as before.
        if let Ok(result) = unpack::<JobResult>("result", &packed) {
            batches.entry(row.get(0)?).or_default().add(&result.outcome);
        }
    }
    for (batch, SetAside { cancelled, skipped }) in batches {
        let sql = "UPDATE batch SET cancelled = ?2, skipped = ?3 WHERE serial = ?1";
        transaction.execute(sql, params![batch, cancelled, skipped])?;
    }
    Ok(())
}

/// Added by version 7: how many jobs of a batch have ended without success and have not failed.
pub(super) const TABLES_7: &str = "
ALTER TABLE batch ADD COLUMN cancelled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
";

/// Added by version 6: how many bytes a job has written.
pub(super) const TABLES_6: &str = "
ALTER TABLE result ADD COLUMN out_bytes INTEGER;
ALTER TABLE result ADD COLUMN err_bytes INTEGER;
";

/// Added by version 5: certificates of known hosts and users that are on no list, where a copy was
/// restored. Times are seconds since the Unix epoch.
pub(super) const TABLES_5: &str = "
CREATE TABLE stranger (
    serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, expires INTEGER NOT NULL, key TEXT, seen INTEGER NOT NULL
) WITHOUT ROWID;
";

/// Added by version 4: beside the wall clock, the boot of the coordinator's host, and microseconds
/// of that boot's clock; and for how many microseconds attempts on a drained host may go on.
pub(super) const TABLES_4: &str = "
ALTER TABLE batch ADD COLUMN opened_boot BLOB;
ALTER TABLE batch ADD COLUMN opened_up INTEGER;
ALTER TABLE host ADD COLUMN evict_after INTEGER;
ALTER TABLE host ADD COLUMN drained_boot BLOB;
ALTER TABLE host ADD COLUMN drained_up INTEGER;
";

/// Added by version 3: when attempts that still run on a drained host are taken away, in
/// microseconds since the Unix epoch.
pub(super) const TABLES_3: &str = "ALTER TABLE host ADD COLUMN evict_at INTEGER;";

/// Added by version 2. Times are seconds since the Unix epoch; secrets are hashes.
pub(super) const TABLES_2: &str = "
CREATE TABLE token (
    id TEXT PRIMARY KEY, secret TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, expires INTEGER NOT NULL, used INTEGER,
    replace INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE certificate (
    serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, expires INTEGER NOT NULL, revoked INTEGER, replaces TEXT, key TEXT
) WITHOUT ROWID;
CREATE INDEX certificate_by_name ON certificate (role, name);
";

/// Version 1. Times are microseconds since the Unix epoch on the coordinator's clock.
pub(super) const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE host (host TEXT PRIMARY KEY, first INTEGER, slots INTEGER, drained TEXT) WITHOUT ROWID;
CREATE TABLE batch (
    serial INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, user TEXT NOT NULL, name TEXT, detached INTEGER NOT NULL, terms BLOB NOT NULL,
    open INTEGER NOT NULL DEFAULT 1, stopped INTEGER NOT NULL DEFAULT 0, stop BLOB, why TEXT,
    opened_at INTEGER NOT NULL, done_at INTEGER,
    jobs INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0, succeeded INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE host_set (batch INTEGER, place INTEGER, hosts BLOB NOT NULL, PRIMARY KEY (batch, place)) WITHOUT ROWID;
CREATE TABLE job (batch INTEGER, job INTEGER, submission BLOB NOT NULL, spec BLOB NOT NULL, PRIMARY KEY (batch, job)) WITHOUT ROWID;
CREATE TABLE forgotten (batch INTEGER PRIMARY KEY);
CREATE TABLE placed (batch INTEGER NOT NULL, host TEXT NOT NULL, lease INTEGER, attempts BLOB NOT NULL);
CREATE INDEX placed_by_batch ON placed (batch);
CREATE TABLE again (batch INTEGER NOT NULL, attempt BLOB NOT NULL, retries INTEGER NOT NULL, losses INTEGER NOT NULL, outcome BLOB);
CREATE INDEX again_by_batch ON again (batch);
CREATE TABLE result (
    batch INTEGER, seq INTEGER, job INTEGER NOT NULL, ok INTEGER NOT NULL, result BLOB NOT NULL, PRIMARY KEY (batch, seq)
) WITHOUT ROWID;
";
