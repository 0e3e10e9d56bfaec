//! Why there is no store, or why it cannot be read.

use super::tables::VERSION;
use mezcal_common::model::ids::MAX_RESTORES;
use mezcal_common::wire::codec;
use rusqlite::{ErrorCode, ffi};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made or opened.
    #[error("cannot use {} for the coordinator's store; `state` in coordinator.toml names another directory", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// It is on a network file system.
    #[error("{} is on a network file system, where a store is not safe; `state` in coordinator.toml names another directory", .0.display())]
    Network(PathBuf),
    /// Another coordinator holds it.
    #[error("another coordinator ({holder}) holds the store in {}", path.display())]
    Held {
        /// Its directory.
        path: PathBuf,
        /// Its process id, as it has written it into the lock file.
        holder: String,
    },
    /// SQLite reports an error.
    #[error("cannot use the store {}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The disk or the account's quota is full.
    #[error("the disk of the store {} is full, or the quota of its account is: make room there; \
        nothing that is in the store is lost", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system or of SQLite.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process has it to itself.
    #[error(
        "one process has the store {} to itself, as a coordinator does that was started on a full \
         disk: no other process can use it until that one has been started again when there is \
         room (`systemctl restart mezcal-coordinator`)",
        path.display()
    )]
    Alone {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Its contents cannot be read just now.
    #[error("the store {} cannot be opened for reading at present; the coordinator may have too many open files (`ulimit -n`): try again", path.display())]
    Reader {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Its contents are not as they were written.
    #[error(
        "the store {} is damaged ({what}); `coordinator restore FILE` puts a copy that `coordinator \
         backup` made in its place and keeps the damaged one beside it: results, batches, tokens \
         and revocations since that copy are lost, and jobs without a result run again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's description of the damage.
        what: String,
    },
    /// Its files do not belong to one store.
    #[error(
        "the store {} cannot be used: {why}, and SQLite would mix the two; `coordinator restore \
         FILE` puts a copy in place of both and keeps them beside it; if you have the right \
         database, put it beside the log",
        path.display()
    )]
    Mixed {
        /// The database.
        path: PathBuf,
        /// The fault of its files.
        why: &'static str,
    },
    /// A restore was interrupted.
    #[error("a `coordinator restore` was interrupted while it exchanged {}: run it again", .0.display())]
    Interrupted(PathBuf),
    /// It belongs to another account.
    #[error("the store {} belongs to the account with number {owner}, and this is {own}: run this \
        as that account, or give the store to this one (chown)", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The account that owns it.
        owner: u32,
        /// The account of this process.
        own: u32,
    },
    /// The file to be restored is not a store.
    #[error("{} is not a copy of a store: {why}; nothing was changed", path.display())]
    NoStore {
        /// The file.
        path: PathBuf,
        /// The fault of the file.
        why: String,
    },
    /// A copy cannot be written.
    #[error("cannot write the copy {}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The numbers of its batches are used up.
    #[error("the store {} was restored {} times, and its numbers are used up: begin with a new one (`state` names another directory)", .0.display(), MAX_RESTORES)]
    WornOut(PathBuf),
    /// It was written by a newer version of Mezcal.
    #[error("the store {} has format {found}, and this version knows formats up to {VERSION}: \
        install the version that wrote it, or a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        found: i64,
    },
    /// A value cannot be decoded.
    #[error("the store has an unreadable {what}")]
    Unreadable {
        /// The kind of value.
        what: &'static str,
        /// The codec's error.
        source: codec::CodecError,
    },
}

impl StoreError {
    /// From SQLite's error about a file: damage is told apart from errors that pass.
    pub(super) fn database(path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged {
                path: path.into(),
                what: source.to_string(),
            },
            _ if lacks_room(&source) => StoreError::Full {
                path: path.into(),
                source: source.into(),
            },
            _ => StoreError::Database {
                path: path.into(),
                source,
            },
        }
    }

    /// From the system's error about the directory or a file in it.
    pub(super) fn file(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full {
                path: path.into(),
                source: source.into(),
            },
            _ => StoreError::Directory {
                path: path.into(),
                source,
            },
        }
    }
}

/// Whether SQLite lacks room on the disk, perhaps for the index that processes share.
pub(super) fn lacks_room(e: &rusqlite::Error) -> bool {
    let shared = |e: &ffi::Error| {
        [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN].contains(&e.extended_code)
    };
    e.sqlite_error_code() == Some(ErrorCode::DiskFull) || e.sqlite_error().is_some_and(shared)
}
