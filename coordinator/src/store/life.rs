//! Which files make one store: SQLite replays any `-wal` that lies beside a database, even the log
//! of another one, if only the log's own checksums are right.
//!
//! Each life of a coordinator writes a number of its own into the database's header
//! (`application_id`), and beside it, into `store.db-id`. A log belongs to the database whose
//! number the note has; a database with another number was put there by hand, and is a copy.
//!
//! ```text
//!  note: old, new ──▶ header: new (in the log) ──▶ log into the database, emptied ──▶ note: new
//! ```
//! A coordinator that dies in between leaves a header whose number is in the note.

use super::StoreError;
use super::meta::set_meta;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::Generation;
use mezcal_common::system::files;
use rusqlite::{Connection, ErrorCode};
use rustix::fs::{Mode, OFlags};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// SQLite's file format, §1.3: the places in the header of the number that says how the file is
/// written (2: with a log), and of the application's own number.
const HEADER: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";
const WRITE_VERSION: usize = 18;
const APPLICATION_ID: usize = 68;
/// The header of a log, before its first frame: a log that is not longer is empty (file format,
/// §4.1).
const LOG_HEADER: u64 = 32;
/// The largest note in bytes: a note has a few lines.
const MAX_NOTE: u64 = 4096;

/// The note beside a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LifeNote {
    /// Numbers of lives that the database's header may have.
    pub(super) lives: Vec<u32>,
    /// The generation of the last one that was served here.
    pub(super) generation: Generation,
    /// Whether a restore is exchanging the files.
    pub(super) restoring: bool,
}

/// The state of a store before it is opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) note: LifeNote,
    /// Its log may have records that the database does not have yet: it was not closed.
    pub(super) unclosed: bool,
    /// It is not the database that the last coordinator had here, or no coordinator ever had it.
    pub(super) foreign: bool,
    /// The number in its header.
    pub(super) life: u32,
}

/// A life of a coordinator that begins.
pub(super) struct Life {
    pub(super) path: PathBuf,
    /// The number that the database's header had before, without its log.
    pub(super) before: u32,
    /// The number of this life.
    pub(super) number: u32,
    pub(super) generation: Generation,
    /// For how long attempts may run without a word that are placed in this life, or were placed by
    /// an original of this store.
    pub(super) lease: Duration,
    /// No attempt runs that an original of this store has placed.
    pub(super) vouched: bool,
}

/// A number for one life: different from any other, and never zero, which is the number of stores
/// of the first version.
pub(super) fn number() -> u32 {
    (uuid::Uuid::new_v4().as_u64_pair().0 as u32).max(1)
}

impl Life {
    /// Gives the database and its note the number of this life, and stores the facts there that a
    /// coordinator needs which takes up a copy. May be tried again.
    ///
    /// # Errors
    /// [`StoreError`]; the parts of the store belong together as before.
    pub(super) fn begin(&self, db: &mut Connection) -> Result<(), StoreError> {
        let failed = |source| StoreError::file(&self.path, source);
        let broken = |source| StoreError::database(&self.path, source);
        let note = |lives| LifeNote {
            lives,
            generation: self.generation,
            restoring: false,
        };
        // The log may have another number than the header, and bring it there at any time: after an
        // end in the middle of this.
        let logged: i64 = db
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(broken)?;
        note(vec![self.before, logged as u32, self.number])
            .write(&self.path)
            .map_err(failed)?;
        let transaction = db.transaction().map_err(broken)?;
        let began = (|| {
            transaction.pragma_update(None, "application_id", self.number as i32)?;
            set_meta(&transaction, "life_at", Some(WallTime::now().0))?;
            set_meta(&transaction, "lease", Some(self.lease.as_millis() as i64))?;
            if self.vouched {
                transaction.execute("DELETE FROM meta WHERE key = 'hold'", [])?;
            }
            transaction.commit()
        })();
        began.map_err(broken)?;
        // While another process reads, or the disk has no room for all of the log, the header may
        // have an old number: the note has that.
        let emptied = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            row.get(0).map(|busy: bool| !busy)
        });
        if emptied.unwrap_or(false) {
            note(vec![self.number]).write(&self.path).map_err(failed)?;
        }
        Ok(())
    }
}

impl StoreError {
    /// Whether a store that can be read may be written once there is room, or once another process
    /// is done with it.
    pub(super) fn waits(&self) -> bool {
        match self {
            StoreError::Full { .. } => true,
            StoreError::Database { source, .. } => {
                matches!(
                    source.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::SystemIoFailure)
                )
            }
            _ => false,
        }
    }
}

/// The file beside `path`, with `suffix` after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Checks the files of the store `path`. Never in a process that has it open: closing a file ends
/// all locks of the process on it (fcntl(2)), SQLite's too.
///
/// # Errors
/// Parts are missing, or do not belong together.
pub(super) fn look(path: &Path) -> Result<Found, StoreError> {
    let failed = |source| StoreError::file(path, source);
    let note = LifeNote::read(path).map_err(failed)?;
    if note.restoring {
        return Err(StoreError::Interrupted(path.into()));
    }
    let log = match std::fs::symlink_metadata(beside(path, "-wal")) {
        Ok(log) => log.len() > LOG_HEADER,
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(failed(e)),
    };
    let Some(header) = Header::read(path).map_err(failed)? else {
        return match log {
            true => Err(StoreError::Mixed {
                path: path.into(),
                why: "its log is there and the database is not",
            }),
            false => Ok(Found {
                note,
                unclosed: false,
                foreign: false,
                life: 0,
            }),
        };
    };
    // Stores of the first version have no number, and no note.
    let known = if note.lives.is_empty() {
        header.life == 0
    } else {
        note.lives.contains(&header.life)
    };
    if log && !(known && header.logged) {
        return Err(StoreError::Mixed {
            path: path.into(),
            why: "its log belongs to another database",
        });
    }
    Ok(Found {
        note,
        unclosed: log,
        foreign: !known || !header.logged,
        life: header.life,
    })
}

/// The header of a database's file, without its log.
pub(super) struct Header {
    pub(super) life: u32,
    /// A coordinator has opened it: a copy that SQLite has made has never had a log.
    logged: bool,
}

impl Header {
    /// None: the file does not exist, or is empty.
    pub(super) fn read(path: &Path) -> std::io::Result<Option<Self>> {
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = [0; HEADER];
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let life = u32::from_be_bytes([0, 1, 2, 3].map(|at| bytes[APPLICATION_ID + at]));
        Ok(bytes.starts_with(MAGIC).then_some(Self {
            life,
            logged: bytes[WRITE_VERSION] == 2,
        }))
    }
}

impl LifeNote {
    fn path(store: &Path) -> PathBuf {
        beside(store, "-id")
    }

    /// Reads the note beside a store. Lines without a known meaning are left out: then the store
    /// counts as one that was put there by hand.
    pub(super) fn read(store: &Path) -> std::io::Result<Self> {
        let mut text = String::new();
        match std::fs::File::open(Self::path(store)) {
            Ok(file) => file.take(MAX_NOTE).read_to_string(&mut text)?,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let mut note = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words.as_slice() {
                ["life", lives @ ..] => note
                    .lives
                    .extend(lives.iter().filter_map(|life| life.parse::<u32>().ok())),
                ["generation", restores, since] => {
                    if let (Ok(restores), Ok(since)) = (restores.parse(), since.parse()) {
                        note.generation = Generation {
                            since: WallTime(since),
                            restores,
                        };
                    }
                }
                ["restoring"] => note.restoring = true,
                _ => {}
            }
        }
        Ok(note)
    }

    /// Replaces the note beside a store, as a whole.
    pub(super) fn write(&self, store: &Path) -> std::io::Result<()> {
        let lives: Vec<String> = self.lives.iter().map(u32::to_string).collect();
        let Generation { since, restores } = self.generation;
        let restoring = if self.restoring { "restoring\n" } else { "" };
        let text = format!(
            "life {}\ngeneration {restores} {}\n{restoring}",
            lives.join(" "),
            since.0
        );
        let new = beside(store, "-id.new");
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let mut file = new_file(&new)?;
        if rustix::process::geteuid().is_root() {
            // As SQLite does with a log that root makes: the store's account has to be able to read
            // the note.
            let owner =
                std::fs::metadata(store).or_else(|_| std::fs::metadata(files::parent(store)))?;
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all());
        written
            .and_then(|()| std::fs::rename(&new, Self::path(store)))
            .inspect_err(|_| drop(std::fs::remove_file(&new)))?;
        sync_directory_of(store)
    }
}

/// Makes a file that must not exist, for its owner alone; follows no link.
pub(super) fn new_file(path: &Path) -> std::io::Result<std::fs::File> {
    let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as i32;
    let mode = (Mode::RUSR | Mode::WUSR).bits();
    std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(flags)
        .open(path)
}

/// Makes names in the directory of `path` safe.
pub(super) fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(files::parent(path))?.sync_all()
}
