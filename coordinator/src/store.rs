//! What survives the coordinator: SQLite in one directory, which one process holds at a time.
//!
//! One thread writes ([`Writer`]): it gathers what has come meanwhile into one transaction, and
//! says what is safe after its commit. A [`Reader`] has connections of its own and sees only what
//! is committed. Values that nobody selects by are kept as the bytes of the wire codec behind one
//! byte that says which format they have; `PRAGMA user_version` says which tables there are.

mod access;
mod clock;
mod copy;
#[cfg(test)]
pub(crate) mod gate;
mod life;
mod reader;
mod registry;
mod writer;

pub use copy::{Copied, Restored, as_owner_of, backup, restore};
pub use reader::{BatchRow, Described, READERS, Reader};
pub(crate) use registry::serial;
pub(crate) use registry::way_back;
pub use registry::{CertificateRow, Ended, Refusal, Registry, Revoked, Stranger, TokenRow};
pub use writer::{FromStore, Writer};

use crate::scheduler::Record;
use access::Access;
use bytes::Bytes;
use clock::Moment;
use life::Life;
use mezcal_common::message::client::{SetAside, Submission};
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, Generation, JobNumber, StoreId,
};
use mezcal_common::model::job::MAX_SPEC;
use mezcal_common::model::outcome::{JobResult, Written};
use mezcal_common::wire::codec;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, ffi, params};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tables of this version; [`migrate`] brings older ones up.
const VERSION: i64 = 7;
/// What stands before the bytes of a value.
const FORMAT: u8 = 1;
/// Jobs in one record when they are taken back.
const REPLAY_JOBS: usize = 4096;
/// How long to wait for another process that holds the database for a moment: a backup.
const BUSY: Duration = Duration::from_secs(5);

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
    #[error("the store {} was restored {} times, and its numbers are used up: begin with a new one (`state` names another directory)", .0.display(), copy::MOST)]
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
    fn database(path: &Path, source: rusqlite::Error) -> Self {
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
    fn file(path: &Path, source: std::io::Error) -> Self {
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
fn lacks_room(e: &rusqlite::Error) -> bool {
    let shared = |e: &ffi::Error| {
        [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN].contains(&e.extended_code)
    };
    e.sqlite_error_code() == Some(ErrorCode::DiskFull) || e.sqlite_error().is_some_and(shared)
}

/// An open store, not in use yet.
pub struct Store {
    connection: Connection,
    access: Access,
    /// Which store it is.
    pub id: StoreId,
    /// How often it was restored, and when. Of a copy that nobody has taken up it is that of the
    /// original.
    pub generation: Generation,
    /// Batches before this one may run for another store, which this one is a copy of.
    pub hold: Option<BatchSerial>,
    /// For how long what its last coordinator placed may run without a word.
    pub lease: Option<Duration>,
    found: life::Found,
    /// A life that could not begin for want of room, or for somebody else who writes: nothing is
    /// written before it does.
    waiting: Option<Life>,
    /// Held for as long as the process lives.
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
        // SQLite relies on locks and shared memory.
        if mezcal_common::system::config::is_on_network(directory) {
            return Err(StoreError::Network(directory.into()));
        }
        let lock = lock(directory)?;
        let path = directory.join("store.db");
        let found = life::look(&path)?;
        let broken = |source| StoreError::database(&path, source);
        is_ours(&path)?;
        // Nobody else's from the first moment; SQLite gives its log the same mode.
        if let Err(e) = life::new_file(&path)
            && e.kind() != ErrorKind::AlreadyExists
        {
            return Err(failed(e));
        }
        rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        let (access, mut connection) = Access::open(&path)?;
        // On a full disk a store is opened, too: nothing is written to one that there is.
        let pages: u32 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .map_err(broken)?;
        if pages == 0 {
            // Before the first table, or it has no effect.
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
        let generation = copy::generation(&connection).map_err(broken)?;
        let hold = copy::hold(&connection).map_err(broken)?;
        let lease: Option<i64> = copy::meta(&connection, "lease").map_err(broken)?;
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

    /// Gives the records of all batches that have not ended, and the highest number that a batch
    /// ever had.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replay(&self, mut take: impl FnMut(Record)) -> Result<BatchSerial, StoreError> {
        self.replay_hosts(&mut take)?;
        let serials: Vec<u32> = self.rows(
            "SELECT serial FROM batch WHERE done_at IS NULL ORDER BY serial",
            [],
            |row| row.get(0),
        )?;
        for batch in serials.into_iter().map(BatchSerial) {
            self.replay_batch(batch, &mut take)?;
        }
        let last = "SELECT value FROM meta WHERE key = 'last_batch'";
        let last: Option<u32> = self
            .connection
            .query_row(last, [], |row| row.get(0))
            .optional()
            .map_err(|e| self.broken(e))?;
        Ok(BatchSerial(last.unwrap_or(0)))
    }

    fn replay_hosts(&self, take: &mut impl FnMut(Record)) -> Result<(), StoreError> {
        type Row = (
            String,
            Option<u32>,
            Option<u16>,
            Option<String>,
            Option<Duration>,
        );
        let now = Moment::now();
        let sql = "SELECT host, first, slots, drained, evict_at, evict_after, drained_boot, drained_up FROM host ORDER BY host";
        let hosts: Vec<Row> = self.rows(sql, [], |row| {
            let (at, after, boot): (Option<i64>, Option<i64>, Option<Vec<u8>>) =
                (row.get(4)?, row.get(5)?, row.get(6)?);
            let up = row.get(7)?;
            let left = |at: i64| {
                // An earlier version has not written how long it was: it is what is left.
                let limit = after.unwrap_or_else(|| at.saturating_sub(now.wall.0));
                let since = Moment::stored(at.saturating_sub(limit), boot.as_deref(), up);
                Duration::from_micros(u64::try_from(limit).unwrap_or(0))
                    .saturating_sub(since.age(&now))
            };
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                at.map(left),
            ))
        })?;
        for (name, first, slots, drained, deadline) in hosts {
            let host: std::sync::Arc<str> = name.into();
            if let Some((first, slots)) = first.zip(slots) {
                take(Record::Engines {
                    host: host.clone(),
                    first: EngineId(first),
                    slots,
                });
            }
            if let Some(reason) = drained {
                take(Record::Drained {
                    host,
                    reason: Some(reason.into()),
                    deadline,
                });
            }
        }
        Ok(())
    }

    fn replay_batch(
        &self,
        batch: BatchSerial,
        take: &mut impl FnMut(Record),
    ) -> Result<(), StoreError> {
        type Row = (
            String,
            Vec<u8>,
            Moment,
            bool,
            Option<Vec<u8>>,
            Option<String>,
            bool,
        );
        let sql = "SELECT user, terms, opened_at, open, stop, why, stopped, opened_boot, opened_up FROM batch WHERE serial = ?";
        let (user, terms, opened, open, stop, why, stopped): Row = self
            .connection
            .query_row(sql, [batch.0], |row| {
                let boot: Option<Vec<u8>> = row.get(7)?;
                let opened = Moment::stored(row.get(2)?, boot.as_deref(), row.get(8)?);
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    opened,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                ))
            })
            .map_err(|e| self.broken(e))?;
        take(Record::Opened {
            batch,
            user,
            terms: unpack("batch", &terms)?,
            age: opened.age(&Moment::now()),
        });
        let sets: Vec<Vec<u8>> = self.rows(
            "SELECT hosts FROM host_set WHERE batch = ? ORDER BY place",
            [batch.0],
            |row| row.get(0),
        )?;
        let sets = sets
            .iter()
            .map(|set| unpack("host set", set))
            .collect::<Result<Vec<_>, _>>()?;
        take(Record::HostSets { batch, sets });
        self.replay_jobs(batch, take)?;
        let placed: Vec<(String, Option<i64>, Vec<u8>)> = self.rows(
            "SELECT host, lease, attempts FROM placed WHERE batch = ? ORDER BY rowid",
            [batch.0],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        for (host, lease, attempts) in placed {
            let lease = lease.map(|millis| Duration::from_millis(millis as u64));
            let attempts: Vec<AttemptId> = unpack("placement", &attempts)?;
            take(Record::Placed {
                host: host.into(),
                lease,
                attempts,
            });
        }
        let again: Vec<(Vec<u8>, u32, u8)> = self.rows(
            "SELECT attempt, retries, losses FROM again WHERE batch = ? ORDER BY rowid",
            [batch.0],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        for (attempt, retries, losses) in again {
            take(Record::Again {
                attempt: unpack("attempt", &attempt)?,
                retries,
                losses,
                outcome: None,
            });
        }
        let sql = "SELECT seq, job, result, out_bytes, err_bytes FROM result WHERE batch = ? ORDER BY seq";
        let results: Vec<(u64, u32, Vec<u8>, Written)> = self.rows(sql, [batch.0], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                Written {
                    out: row.get(3)?,
                    err: row.get(4)?,
                },
            ))
        })?;
        for (seq, job, result, written) in results {
            take(Record::Ended {
                batch,
                seq,
                job: JobNumber(job),
                result: Box::new(unpack_result(&result, written)?),
            });
        }
        if stopped {
            let stop = stop.map(|stop| unpack("stop", &stop)).transpose()?;
            take(Record::Stopped {
                batch,
                stop,
                why: why.map(Into::into),
            });
        }
        if !open {
            take(Record::Closed { batch });
        }
        Ok(())
    }

    fn replay_jobs(
        &self,
        batch: BatchSerial,
        take: &mut impl FnMut(Record),
    ) -> Result<(), StoreError> {
        // Of the text only the length matters to whoever takes it back.
        let room = Bytes::from(vec![0; MAX_SPEC]);
        let sql = "SELECT submission, length(spec) FROM job WHERE batch = ? ORDER BY job";
        let mut statement = self.connection.prepare(sql).map_err(|e| self.broken(e))?;
        let mut rows = statement.query([batch.0]).map_err(|e| self.broken(e))?;
        let mut jobs: Vec<Submission> = Vec::new();
        while let Some(row) = rows.next().map_err(|e| self.broken(e))? {
            let read =
                |row: &Row<'_>| Ok::<(Vec<u8>, usize), rusqlite::Error>((row.get(0)?, row.get(1)?));
            let (submission, length) = read(row).map_err(|e| self.broken(e))?;
            let submission: Submission = unpack("job", &submission)?;
            jobs.push(Submission {
                spec: room.slice(..length.min(MAX_SPEC)),
                ..submission
            });
            if jobs.len() == REPLAY_JOBS {
                take(Record::Submitted {
                    batch,
                    jobs: std::mem::take(&mut jobs),
                });
            }
        }
        take(Record::Submitted { batch, jobs });
        Ok(())
    }

    fn rows<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare(sql).map_err(|e| self.broken(e))?;
        let rows = statement
            .query_map(params, read)
            .and_then(Iterator::collect);
        rows.map_err(|e| self.broken(e))
    }

    fn broken(&self, source: rusqlite::Error) -> StoreError {
        StoreError::database(&self.access.path, source)
    }

    /// Who may join, and who has. With `listed`, only certificates count that are on the list.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn registry(&self, listed: bool) -> Result<Registry, StoreError> {
        let writing = self.access.writing().map_err(|e| self.broken(e))?;
        Registry::new(self.access.clone(), writing, listed)
    }

    /// Starts the writer's thread, and gives readers.
    ///
    /// # Errors
    /// There is no room for the thread; the limit is named.
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

    /// Whether no other process can have it while this one has: there was no room for what they
    /// would share.
    pub fn is_alone(&self) -> bool {
        self.access.alone
    }
}

/// Who may join, and who has, from the store in `directory`, which a coordinator may be using.
///
/// # Errors
/// [`StoreError`]; a coordinator has to have made the store before.
pub fn registry(directory: &Path) -> Result<Registry, StoreError> {
    let path = directory.join("store.db");
    if !path.exists() {
        // Makes it, and lets it go again.
        drop(Store::open(directory)?);
    }
    life::look(&path)?;
    let (access, writing) = Access::open(&path)?;
    Registry::new(access, writing, true)
}

/// A store that is somebody else's is not used, and its mode not changed. Root may use any.
fn is_ours(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid();
    match std::fs::metadata(path) {
        Ok(meta) if meta.uid() != own.as_raw() && !own.is_root() => Err(StoreError::Owner {
            path: path.into(),
            owner: meta.uid(),
            own: own.as_raw(),
        }),
        // What else is wrong with it SQLite says.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether a store that nobody has closed is whole: its log may have been cut short in any way, or
/// the disk have lied.
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
            // In the room that it has: there may be no other. Whoever finds nothing there finds the
            // lock all the same.
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

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
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

/// Added by version 4: beside the wall clock, which boot of the coordinator's host it was, and
/// microseconds of that boot's clock; and for how many microseconds what runs on a drained host may
/// go on.
const TABLES_4: &str = "
ALTER TABLE batch ADD COLUMN opened_boot BLOB;
ALTER TABLE batch ADD COLUMN opened_up INTEGER;
ALTER TABLE host ADD COLUMN evict_after INTEGER;
ALTER TABLE host ADD COLUMN drained_boot BLOB;
ALTER TABLE host ADD COLUMN drained_up INTEGER;
";

/// Added by version 5: certificates of known hosts and users that are on no list, where a copy was
/// restored. Times are seconds since the Unix epoch.
const TABLES_5: &str = "
CREATE TABLE stranger (
    serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, expires INTEGER NOT NULL, key TEXT, seen INTEGER NOT NULL
) WITHOUT ROWID;
";

/// Added by version 6: how many bytes a job has written.
const TABLES_6: &str = "
ALTER TABLE result ADD COLUMN out_bytes INTEGER;
ALTER TABLE result ADD COLUMN err_bytes INTEGER;
";

/// Added by version 7: how many jobs of a batch have ended without success and have not failed.
const TABLES_7: &str = "
ALTER TABLE batch ADD COLUMN cancelled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
";

/// Counts them where an earlier version has not.
fn count_aside(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut batches: BTreeMap<u32, SetAside> = BTreeMap::new();
    let mut statement = transaction.prepare("SELECT batch, result FROM result WHERE ok = 0")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let packed: Vec<u8> = row.get(1)?;
        // One that cannot be read counts as failed, as it has until now.
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

/// Added by version 3: when what still runs on a drained host is taken away, in microseconds since
/// the Unix epoch.
const TABLES_3: &str = "ALTER TABLE host ADD COLUMN evict_at INTEGER;";

/// Added by version 2. Times are seconds since the Unix epoch; secrets are hashes.
const TABLES_2: &str = "
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
const TABLES: &str = "
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

/// A value as it is kept.
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

/// A result, of which a column of its own has what its job has written.
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
