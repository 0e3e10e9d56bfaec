//! The hosts and users that may join or have joined: tokens, and the certificates that count.
//!
//! It has a connection of its own beside the writer's: each decision here has to be made in one
//! transaction, and only the client that asked waits for it. Times are seconds since the Unix
//! epoch, as in certificates.

mod admission;
mod renewal;
mod revocation;
mod tokens;

use super::StoreError;
use super::access::Access;
pub(crate) use admission::way_back;
use mezcal_common::model::identity::{self, Role};
use mezcal_common::model::token::hex;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};
use tokio::sync::watch;

/// Seconds after its end in which a certificate can be renewed by the holder of its key: a host
/// that was off for a summer.
const RENEWABLE: i64 = 90 * 86_400;

/// Tokens and certificates.
pub struct Registry {
    /// Waits for the store's writer; reads do not wait for it.
    writing: Mutex<Connection>,
    reading: Mutex<Connection>,
    access: Access,
    /// Only listed certificates count; otherwise all of the cluster's that were not revoked.
    listed: bool,
    /// When the copy was made that this store was restored from, in microseconds since the Unix
    /// epoch; zero: it is not known.
    copy_of: Option<i64>,
    changed: watch::Sender<u64>,
    ended: watch::Sender<Ended>,
    /// When holders were given their last certificate.
    renewed: Mutex<HashMap<(Role, String), Instant>>,
    /// Hashes of revoked certificates whose connections have to last for an answer.
    leaving: Mutex<HashSet<[u8; 32]>>,
}

/// Serial numbers of certificates that do not count any more although they would be valid.
pub type Ended = Arc<HashSet<String>>;

/// A token as lists show it: never its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The id by which it is deleted.
    pub id: String,
    /// Whether it is for a host or a user.
    pub role: Role,
    /// The host or user.
    pub name: String,
    /// When it ends.
    pub expires: i64,
    /// When it was used.
    pub used: Option<i64>,
    /// Whether it replaces a certificate that its name has.
    pub replace: bool,
}

/// The certificates and tokens of a name that a revocation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Certificates that counted until then.
    pub certificates: u64,
    /// Tokens that were not used yet.
    pub tokens: u64,
    /// When the last certificate was revoked before; none: none was.
    pub before: Option<i64>,
}

/// A certificate that counts, or has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// The serial number in hexadecimal.
    pub serial: String,
    /// Whether it is of a host or a user.
    pub role: Role,
    /// The host or user.
    pub name: String,
    /// When it ends.
    pub expires: i64,
    /// When it was revoked or replaced.
    pub revoked: Option<i64>,
}

/// A certificate of a known host or user that is on no list: it was renewed after the copy was made
/// that this store was restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The serial number in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub expires: i64,
    /// When it was refused last.
    pub seen: i64,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// For the client that asked. A wrong secret and an unknown id look the same.
    #[error("{0}")]
    No(String),
    /// No such token: guessing does not help either.
    #[error("there is no such token; it may have been deleted, or come from another cluster")]
    Unknown,
    /// The store cannot be used.
    #[error("the coordinator's store cannot be used at present")]
    Store(#[source] StoreError),
}

impl Registry {
    pub(super) fn new(
        access: Access,
        writing: Connection,
        listed: bool,
    ) -> Result<Self, StoreError> {
        let broken = |source| StoreError::database(&access.path, source);
        writing
            .pragma_update(None, "synchronous", "FULL")
            .map_err(broken)?;
        let reading = access.reading().map_err(broken)?;
        let copy_of = "SELECT coalesce(value, 0) FROM meta WHERE key = 'copy_of'";
        let copy_of = reading
            .query_row(copy_of, [], |row| row.get(0))
            .optional()
            .map_err(broken)?;
        Ok(Self {
            writing: Mutex::new(writing),
            reading: Mutex::new(reading),
            access,
            listed,
            copy_of,
            changed: watch::channel(0).0,
            ended: watch::channel(Ended::default()).0,
            renewed: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// Notifies of every change of tokens and revocations.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notifies when certificates do not count any more, and which, without another read of the
    /// store.
    pub fn ended(&self) -> watch::Receiver<Ended> {
        self.ended.subscribe()
    }

    /// Whether a certificate (DER) has ended; this does not read the store either.
    pub fn has_ended(&self, der: &[u8]) -> bool {
        serial(der).is_some_and(|serial| self.ended.borrow().contains(&serial))
    }

    /// All known certificates.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.rows("SELECT serial, role, name, expires, revoked FROM certificate ORDER BY role, name, expires", |row| {
            Ok(CertificateRow {
                serial: row.get(0)?,
                role: role(&row.get::<_, String>(1)?),
                name: row.get(2)?,
                expires: row.get(3)?,
                revoked: row.get(4)?,
            })
        })
    }

    /// Admits certificates that were made elsewhere, and returns how many of them were new. Revoked
    /// ones stay revoked.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn import(&self, certificates: &[CertificateRow]) -> Result<u64, Refusal> {
        self.change(|db| {
            let mut count = 0;
            for c in certificates {
                count += admit(db, &c.serial, c.role, &c.name, c.expires)? as u64;
            }
            Ok(Ok(count))
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let mut connection = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = |source| Refusal::Store(StoreError::database(&self.access.path, source));
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(broken)?;
        let result = change(&transaction).map_err(broken)??;
        let ended = transaction
            .prepare_cached(
                "SELECT serial FROM certificate WHERE revoked IS NOT NULL AND expires > ?",
            )
            .and_then(|mut rows| {
                rows.query_map([now()], |row| row.get(0))?
                    .collect::<rusqlite::Result<HashSet<String>>>()
            })
            .map_err(broken)?;
        transaction.commit().map_err(broken)?;
        self.changed.send_modify(|generation| *generation += 1);
        self.ended.send_if_modified(|before| {
            let differs = **before != ended;
            if differs {
                *before = Arc::new(ended);
            }
            differs
        });
        Ok(result)
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let connection = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        read(&connection).map_err(|source| StoreError::database(&self.access.path, source))
    }

    fn rows<T>(
        &self,
        sql: &str,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.with(|db| db.prepare_cached(sql)?.query_map([], read)?.collect())
    }
}

/// Forgets certificates that are over: those that did not count any more, and those that cannot be
/// renewed any more.
fn forget_over(db: &Transaction<'_>) -> rusqlite::Result<usize> {
    let sql = "DELETE FROM certificate WHERE (revoked IS NOT NULL AND expires <= ?1) OR expires + ?2 < ?1";
    db.execute(sql, [now(), RENEWABLE])
}

/// The serial number of a certificate (DER).
pub(crate) fn serial(der: &[u8]) -> Option<String> {
    Some(identity::details(der).ok()?.serial)
}

/// Stores the hash of a certificate's key, by which its holder is known when it has expired.
fn remember_key(db: &Transaction<'_>, serial: &str, der: &[u8]) -> rusqlite::Result<usize> {
    let key = identity::key_hash(der).map(|hash| hex(&hash));
    db.execute(
        "UPDATE certificate SET key = ? WHERE serial = ?",
        params![key, serial],
    )
}

fn admit(
    db: &Transaction<'_>,
    serial: &str,
    role: Role,
    name: &str,
    expires: i64,
) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO certificate (serial, role, name, expires) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
    db.execute(sql, params![serial, role.as_str(), name, expires])
}

fn serial_and_end(der: &[u8]) -> Option<(String, i64)> {
    Some((
        identity::details(der).ok()?.serial,
        identity::validity(der).ok()?.1,
    ))
}

/// Reads the text that [`Role::as_str`] wrote.
fn role(text: &str) -> Role {
    match text {
        "agent" => Role::Agent,
        "user" => Role::User,
        _ => Role::Coordinator,
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

#[cfg(test)]
mod tests;
