//! How one process opens its connections to a store.
//!
//! Even a reader of a log needs an index of it, which SQLite keeps in a file (`-shm`) that all
//! processes share, and which is gone after an orderly end. On a disk without room for that file,
//! the index is in the memory of this process, and then no other process can use the store.

use super::{BUSY, StoreError, lacks_room};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};

/// The one of SQLite's file layers (vfs.html, "unix-excl") that takes a file for one process alone
/// and shares nothing by files.
const ALONE: &std::ffi::CStr = c"unix-excl";
/// Each connection is used by one thread at a time.
const READING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);
const WRITING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// The way to one store, the same for all connections of this process.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// The database's file.
    pub(super) path: PathBuf,
    /// No other process can use the store, for as long as this one has it.
    pub(super) alone: bool,
}

impl Access {
    /// Opens the database, which exists, and reads it once. The connection must outlive the later
    /// ones: it holds the lock for all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(path: &Path) -> Result<(Self, Connection), StoreError> {
        let shared = Self {
            path: path.into(),
            alone: false,
        };
        let opened = match shared.look_into() {
            Err(e) if lacks_room(&e) => {
                let alone = Self {
                    alone: true,
                    ..shared
                };
                alone.look_into().map(|connection| (alone, connection))
            }
            opened => opened.map(|connection| (shared, connection)),
        };
        opened.map_err(|e| match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => StoreError::Alone {
                path: path.into(),
                source: e,
            },
            _ => StoreError::database(path, e),
        })
    }

    fn look_into(&self) -> rusqlite::Result<Connection> {
        let connection = self.writing()?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(connection)
    }

    /// Another connection, which can write.
    pub(super) fn writing(&self) -> rusqlite::Result<Connection> {
        self.connect(WRITING)
    }

    /// Another connection, for reading alone.
    pub(super) fn reading(&self) -> rusqlite::Result<Connection> {
        self.connect(READING)
    }

    fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let connection = match self.alone {
            true => Connection::open_with_flags_and_vfs(&self.path, flags, ALONE)?,
            false => Connection::open_with_flags(&self.path, flags)?,
        };
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    }
}
