//! Why there is no store, or nothing of it.

use super::tables::VERSION;
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
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is on a network file system.
    #[error("{} is on a network file system, where a store is not safe; `state` in coordinator.toml names another directory", .0.display())]
    Network(PathBuf),
    /// Another coordinator has it.
    #[error("another coordinator ({holder}) holds the store in {}", path.display())]
    Held {
        /// Which.
        path: PathBuf,
        /// Its process id, as it says.
        holder: String,
    },
    /// SQLite says no.
    #[error("cannot use the store {}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There is no room for what has to be written.
    #[error("the disk of the store {} is full, or its account may have no more of it: make room there; nothing that is in the store is lost", path.display())]
    Full {
        /// Which file.
        path: PathBuf,
        /// Who says so.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process keeps it to itself.
    #[error(
        "the store {} is another process's alone, as that of a coordinator that was started on a full disk: nobody else can have it until that \
         has been started again when there is room (`systemctl restart mezcal-coordinator`)",
        path.display()
    )]
    Alone {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// What is in it cannot be read just now.
    #[error("the store {} cannot be opened for reading at present; the coordinator may have too many open files (`ulimit -n`): try again", path.display())]
    Reader {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// What is in it is not what was written.
    #[error(
        "the store {} is damaged ({what}); `coordinator restore FILE` puts a copy that `coordinator backup` made in its place and keeps it beside: \
         results, batches, tokens and revocations since that copy are lost, and jobs without a result run again",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What SQLite says of it.
        what: String,
    },
    /// Its files do not make one store.
    #[error(
        "the store {} cannot be used: {why}, and SQLite would mix the two; `coordinator restore FILE` puts a copy in place of both and keeps \
         them beside; if the right database is at hand, put that where the log is",
        path.display()
    )]
    Mixed {
        /// Which database.
        path: PathBuf,
        /// What is wrong with its files.
        why: &'static str,
    },
    /// A restore has not come to its end.
    #[error("a `coordinator restore` was interrupted while it exchanged {}: run it again", .0.display())]
    Interrupted(PathBuf),
    /// Another account's.
    #[error("the store {} belongs to the account with number {owner}, and this is {own}: run this as that account, or give it to this one (chown)", path.display())]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// What should be restored is no store.
    #[error("{} is not a copy of a store: {why}; nothing was changed", path.display())]
    NoStore {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A copy cannot be written.
    #[error("cannot write the copy {}", path.display())]
    Copy {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The numbers of its batches are used up.
    #[error("the store {} was restored {} times, and its numbers are used up: begin with a new one (`state` names another directory)", .0.display(), super::copy::MOST)]
    WornOut(PathBuf),
    /// It was written by a newer version.
    #[error("the store {} has format {found}, and this version knows {VERSION} at most: install the version that wrote it, or a newer one", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// A value is not what it should be.
    #[error("the store has an unreadable {what}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        source: codec::CodecError,
    },
}

impl StoreError {
    /// What SQLite says of a file: damage is told apart from whatever passes.
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

    /// What the kernel says of the directory or a file in it.
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

/// Whether SQLite lacks room on the disk, be it for the index that it shares with other processes.
pub(super) fn lacks_room(e: &rusqlite::Error) -> bool {
    let shared = |e: &ffi::Error| {
        [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN].contains(&e.extended_code)
    };
    e.sqlite_error_code() == Some(ErrorCode::DiskFull) || e.sqlite_error().is_some_and(shared)
}
