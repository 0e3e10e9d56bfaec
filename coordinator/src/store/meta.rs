//! The table `meta`: single values, each under its key.

use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchSerial, Generation};
use rusqlite::{Connection, OptionalExtension, params};

/// Reads a value of the table `meta`.
pub(super) fn meta<T: rusqlite::types::FromSql>(
    db: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    let found = db
        .query_row("SELECT value FROM meta WHERE key = ?", [key], |row| {
            row.get::<_, Option<T>>(0)
        })
        .optional()?;
    Ok(found.flatten())
}

pub(super) fn set_meta(db: &Connection, key: &str, value: Option<i64>) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    db.execute(sql, params![key, value]).map(drop)
}

/// The generation that a database has in its tables.
pub(super) fn generation(db: &Connection) -> rusqlite::Result<Generation> {
    let (since, restores) = (
        meta(db, "since")?.unwrap_or(0),
        meta(db, "restores")?.unwrap_or(0),
    );
    Ok(Generation {
        since: WallTime(since),
        restores,
    })
}

/// The first batch that is the store's own, if older ones are held.
pub(super) fn hold(db: &Connection) -> rusqlite::Result<Option<BatchSerial>> {
    Ok(meta::<i64>(db, "hold")?
        .and_then(|first| u32::try_from(first).ok())
        .map(BatchSerial))
}
