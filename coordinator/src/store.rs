//! The state that outlives the coordinator: SQLite in one directory, held by one process at a time.
//!
//! One thread writes ([`Writer`]): it gathers waiting records into one transaction, and says which
//! are safe after its commit. A [`Reader`] has connections of its own and sees only committed
//! records. Values that no query selects by are bytes of the wire codec after one byte that names
//! their format; `PRAGMA user_version` says which tables there are.

mod access;
mod clock;
mod copy;
mod error;
mod failure;
#[cfg(test)]
pub(crate) mod gate;
mod insert;
mod life;
mod meta;
mod reader;
mod registry;
mod replay;
mod tables;
mod writer;

pub use copy::{Copied, Restored, as_owner_of, backup, restore};
pub use error::StoreError;
pub use reader::{BatchRow, Described, READERS, Reader};
pub(crate) use registry::serial;
pub(crate) use registry::way_back;
pub use registry::{CertificateRow, Ended, Refusal, Registry, Revoked, Stranger, TokenRow};
pub use writer::{FromStore, Writer};

use access::Access;
use bytes::Bytes;
use error::lacks_room;
use life::Life;
use mezcal_common::model::ids::{BatchId, BatchSerial, Generation, StoreId};
use mezcal_common::model::outcome::{JobResult, Written};
use mezcal_common::wire::codec;
use rusqlite::Connection;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tables::{VERSION, migrate};

/// The byte before the bytes of a value.
const FORMAT: u8 = 1;
/// How long to wait for another process that holds the database for a moment, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// An open store, not in use yet.
pub struct Store {
    connection: Connection,
    access: Access,
    /// The number that tells this store from others.
    pub id: StoreId,
    /// How often it was restored, and when. A copy that no coordinator has taken up has the
    /// generation of the original.
    pub generation: Generation,
    /// Batches before this one may run for another store, which this one is a copy of.
    pub hold: Option<BatchSerial>,
    /// For how long attempts that its last coordinator placed may run without a word.
    pub lease: Option<Duration>,
    found: life::Found,
    /// A life that could not begin, because the disk is full or another process writes: nothing is
    /// written before it does.
    waiting: Option<Life>,
    /// Held until the writer's thread ends.
    lock: OwnedFd,
}

impl Store {
    /// Opens the store in `directory`, making it if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |source: std::io::Error| StoreError::file(directory, source);
        std::fs::create_dir_all(directory).map_err(failed)?;
        // SQLite needs working locks and shared memory.
        if mezcal_common::system::config::is_on_network(directory) {
            return Err(StoreError::Network(directory.into()));
        }
        let lock = lock(directory)?;
        let path = directory.join("store.db");
        let found = life::look(&path)?;
        let broken = |source| StoreError::database(&path, source);
        is_ours(&path)?;
        // Closed to other accounts from the first moment; SQLite gives its log the same mode.
        if let Err(e) = life::new_file(&path)
            && e.kind() != ErrorKind::AlreadyExists
        {
            return Err(failed(e));
        }
        rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        let (access, mut connection) = Access::open(&path)?;
        // A store is opened on a full disk, too: nothing is written to one that exists.
        let pages: u32 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .map_err(broken)?;
        if pages == 0 {
            // Set before the first table, or it has no effect.
            connection
                .pragma_update(None, "auto_vacuum", "INCREMENTAL")
                .map_err(broken)?;
        }
        if found.unclosed {
            check(&connection, &path)?;
        }
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(broken)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(broken)?;
        migrate(&mut connection, &path)?;
        let id: i64 = connection
            .query_row("SELECT value FROM meta WHERE key = 'store'", [], |row| {
                row.get(0)
            })
            .map_err(broken)?;
        let generation = meta::generation(&connection).map_err(broken)?;
        let hold = meta::hold(&connection).map_err(broken)?;
        let lease: Option<i64> = meta::meta(&connection, "lease").map_err(broken)?;
        let lease = lease
            .and_then(|millis| u64::try_from(millis).ok())
            .map(Duration::from_millis);
        Ok(Self {
            connection,
            access,
            id: StoreId(id as u64),
            generation,
            hold,
            lease,
            found,
            waiting: None,
            lock,
        })
    }

    fn broken(&self, source: rusqlite::Error) -> StoreError {
        StoreError::database(&self.access.path, source)
    }

    /// The tokens and certificates. With `listed`, only certificates count that are on the list.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn registry(&self, listed: bool) -> Result<Registry, StoreError> {
        let writing = self.access.writing().map_err(|e| self.broken(e))?;
        Registry::new(self.access.clone(), writing, listed)
    }

    /// Starts the writer's thread, and returns the writer and a reader.
    ///
    /// # Errors
    /// The thread cannot be started; the limit is named.
    pub fn start(
        self,
        answers: tokio::sync::mpsc::Sender<FromStore>,
    ) -> std::io::Result<(Writer, Reader)> {
        let reader = Reader::new(self.access);
        Ok((
            Writer::start(self.connection, self.waiting, self.lock, answers)?,
            reader,
        ))
    }

    /// Whether no other process can use the store while this one has it: there was no room for the
    /// index that they would share.
    pub fn is_alone(&self) -> bool {
        self.access.alone
    }
}

/// The tokens and certificates of the store in `directory`, which a coordinator may be using.
///
/// # Errors
/// [`StoreError`]; a coordinator has to have made the store before.
pub fn registry(directory: &Path) -> Result<Registry, StoreError> {
    let path = directory.join("store.db");
    if !path.exists() {
        // Makes the store, and releases it again.
        drop(Store::open(directory)?);
    }
    life::look(&path)?;
    let (access, writing) = Access::open(&path)?;
    Registry::new(access, writing, true)
}

/// A store of another account is not used, and its mode not changed. Root may use any store.
fn is_ours(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid();
    match std::fs::metadata(path) {
        Ok(meta) if meta.uid() != own.as_raw() && !own.is_root() => Err(StoreError::Owner {
            path: path.into(),
            owner: meta.uid(),
            own: own.as_raw(),
        }),
        // SQLite reports any other fault.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Checks that a store which was not closed is whole: its log may have been cut short anywhere, or
/// the disk may have lost writes.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let what: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(|e| StoreError::database(path, e))?;
    if what == "ok" {
        Ok(())
    } else {
        Err(StoreError::Damaged {
            path: path.into(),
            what,
        })
    }
}

fn lock(directory: &Path) -> Result<OwnedFd, StoreError> {
    let path = directory.join("lock");
    let failed = |e: rustix::io::Errno| StoreError::file(&path, e.into());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let pid = format!("process {}", std::process::id());
            // Written in place: the disk may have no other room. If nothing can be written, the
            // lock holds all the same.
            let said = rustix::io::pwrite(&lock, pid.as_bytes(), 0).unwrap_or(0);
            rustix::fs::ftruncate(&lock, said as u64).map_err(failed)?;
            Ok(lock)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = std::fs::File::from(lock).read_to_string(&mut holder);
            Err(StoreError::Held {
                path: directory.into(),
                holder,
            })
        }
        Err(e) => Err(failed(e)),
    }
}

/// The stored form of a value.
fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, codec::CodecError> {
    let body: Bytes = codec::encode_body(value)?;
    let mut bytes = Vec::with_capacity(1 + body.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn unpack<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    let source = match bytes.split_first() {
        Some((&FORMAT, body)) => match codec::decode_exact(body) {
            Ok(value) => return Ok(value),
            Err(source) => source,
        },
        Some((&other, _)) => codec::CodecError::UnknownCodec(other),
        None => codec::CodecError::UnknownCodec(0),
    };
    Err(StoreError::Unreadable { what, source })
}

/// Reads a result; a column of its own has the number of bytes that its job has written.
fn unpack_result(packed: &[u8], written: Written) -> Result<JobResult, StoreError> {
    let mut result: JobResult = unpack("result", packed)?;
    result.outcome.written = written;
    Ok(result)
}

fn id_bytes(batch: BatchId) -> [u8; 16] {
    *batch.0.as_bytes()
}

#[cfg(test)]
mod tests;
