//! What failed in the store: whether a later try may succeed.

use super::StoreError;
use crate::exit::chain;
use rusqlite::{ErrorCode, ffi};

pub(super) enum Failure {
    /// The disk is full or does not answer, or the file is in use: a later try may succeed.
    Passing(String),
    Lasting(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        if passes(&e) {
            Failure::Passing(e.to_string())
        } else {
            Failure::Lasting(e.to_string())
        }
    }
}

/// Whether SQLite may succeed at a later try.
fn passes(e: &rusqlite::Error) -> bool {
    match e.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::CannotOpen
            | ErrorCode::OutOfMemory
            | ErrorCode::PermissionDenied
            | ErrorCode::FileLockingProtocolFailed,
        ) => true,
        // A file system that was remounted for reading alone may be remounted again; a file that
        // was renamed does not come back.
        Some(ErrorCode::ReadOnly) => e
            .sqlite_error()
            .is_none_or(|e| e.extended_code != ffi::SQLITE_READONLY_DBMOVED),
        _ => false,
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Database { source, .. } => source.into(),
            StoreError::Full { source, .. } => Failure::Passing(source.to_string()),
            StoreError::Directory { .. } => Failure::Passing(chain(&e)),
            e => Failure::Lasting(chain(&e)),
        }
    }
}

impl StoreError {
    /// Whether a later try may succeed.
    pub fn passes(&self) -> bool {
        match self {
            StoreError::Database { source, .. } => passes(source),
            StoreError::Full { .. } | StoreError::Reader { .. } => true,
            _ => false,
        }
    }
}

impl From<mezcal_common::wire::codec::CodecError> for Failure {
    fn from(e: mezcal_common::wire::codec::CodecError) -> Self {
        Failure::Lasting(e.to_string())
    }
}
