//! What is committed, for whoever asks: each reader has a connection of its own, and runs beside the coordinator's loop.

use super::{BUSY, StoreError, id_bytes, unpack};
use bytes::Bytes;
use mezcal_common::clock::WallTime;
use mezcal_common::ids::{BatchId, BatchSerial, JobKey, JobNumber};
use mezcal_common::job::JobSpec;
use mezcal_common::outcome::JobResult;
use mezcal_common::wire::client::{BatchStatus, BatchTerms, Submission};
use mezcal_common::wire::codec;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The columns that [`batch_row`] reads.
const BATCHES: &str =
    "SELECT serial, id, user, name, detached, open, stopped, why, opened_at, done_at, jobs, ended, succeeded FROM batch";
/// Idle connections that are kept.
const KEPT: usize = 4;

/// Reads a store.
#[derive(Clone)]
pub struct Reader {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// One batch as the store counts it.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRow {
    /// Its number.
    pub serial: BatchSerial,
    /// All but what is on hosts, which only the scheduler knows.
    pub status: BatchStatus,
}

/// A job with all that is known of it.
#[derive(Clone, Debug)]
pub struct Described {
    /// How it was submitted, with its text.
    pub submission: Submission,
    /// What it runs.
    pub spec: Option<JobSpec>,
    /// The hosts that it requires, and those that it prefers.
    pub hosts: (Option<Vec<String>>, Option<Vec<String>>),
    /// The how manieth of its batch it was to end, and how.
    pub ended: Option<(u64, JobResult)>,
}

impl Reader {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Arc::default() }
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T, ReadError>) -> Result<T, StoreError> {
        let broken = |source| StoreError::Database { path: self.path.clone(), source };
        let idle = || self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = idle().pop();
        let connection = match known {
            Some(connection) => connection,
            None => {
                let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(broken)?;
                connection.busy_timeout(BUSY).map_err(broken)?;
                connection
            }
        };
        let result = read(&connection);
        let mut idle = idle();
        if idle.len() < KEPT {
            idle.push(connection);
        }
        result.map_err(|e| match e {
            ReadError::Database(source) => broken(source),
            ReadError::Value(e) => e,
        })
    }

    /// All batches, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn batches(&self) -> Result<Vec<BatchRow>, StoreError> {
        self.with(|db| {
            let mut statement = db.prepare_cached(&format!("{BATCHES} ORDER BY serial"))?;
            let rows = statement.query_map([], batch_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// One batch by its id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn batch(&self, id: BatchId) -> Result<Option<BatchRow>, StoreError> {
        self.with(|db| {
            let mut statement = db.prepare_cached(&format!("{BATCHES} WHERE id = ?"))?;
            Ok(statement.query_row([id_bytes(id)], batch_row).optional()?)
        })
    }

    /// A batch's terms.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn terms(&self, batch: BatchSerial) -> Result<BatchTerms, StoreError> {
        self.with(|db| {
            let terms: Vec<u8> = db.query_row("SELECT terms FROM batch WHERE serial = ?", [batch.0], |row| row.get(0))?;
            Ok(unpack("batch", &terms)?)
        })
    }

    /// A job's text.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn spec(&self, key: JobKey) -> Result<Bytes, StoreError> {
        self.with(|db| {
            let sql = "SELECT spec FROM job WHERE batch = ? AND job = ?";
            let spec: Vec<u8> = db.query_row(sql, [key.batch.0, key.job.0], |row| row.get(0))?;
            Ok(spec.into())
        })
    }

    /// Results after the first `after` of a batch, at least one if there is one, then up to `bytes` of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn results(&self, batch: BatchSerial, after: u64, bytes: usize) -> Result<Vec<(JobNumber, JobResult)>, StoreError> {
        self.with(|db| {
            let sql = "SELECT job, result FROM result WHERE batch = ? AND seq > ? ORDER BY seq";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params![batch.0, after])?;
            let (mut results, mut room) = (Vec::new(), bytes);
            while let Some(row) = rows.next()? {
                let packed: Vec<u8> = row.get(1)?;
                results.push((JobNumber(row.get(0)?), unpack("result", &packed)?));
                let Some(left) = room.checked_sub(packed.len() + ROW) else { break };
                room = left;
            }
            Ok(results)
        })
    }

    /// The same with the jobs themselves; with `failed` only those that did not succeed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ended(&self, batch: BatchSerial, after: u64, failed: bool, bytes: usize) -> Result<Vec<Described>, StoreError> {
        let sql = "SELECT j.submission, j.spec, r.seq, r.result FROM result r JOIN job j ON j.batch = r.batch AND j.job = r.job
                   WHERE r.batch = ?1 AND r.seq > ?2 AND (r.ok = 0 OR NOT ?3) ORDER BY r.seq";
        self.described(sql, params![batch.0, after, failed], batch, bytes)
    }

    /// Jobs of a batch after number `after`, whatever has become of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn jobs(&self, batch: BatchSerial, after: JobNumber, bytes: usize) -> Result<Vec<Described>, StoreError> {
        let sql = "SELECT submission, spec, NULL, NULL FROM job WHERE batch = ? AND job > ? ORDER BY job";
        self.described(sql, params![batch.0, after.0], batch, bytes)
    }

    fn described(
        &self,
        sql: &str,
        params: &[&dyn rusqlite::ToSql],
        batch: BatchSerial,
        bytes: usize,
    ) -> Result<Vec<Described>, StoreError> {
        self.with(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params)?;
            let (mut jobs, mut room) = (Vec::new(), bytes);
            while let Some(row) = rows.next()? {
                let (packed, spec): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let (seq, result): (Option<u64>, Option<Vec<u8>>) = (row.get(2)?, row.get(3)?);
                let size = packed.len() + spec.len() + result.as_ref().map_or(0, Vec::len) + ROW;
                let submission: Submission = unpack("job", &packed)?;
                let result = result.map(|result| unpack("result", &result)).transpose()?;
                let hosts = (host_set(db, batch, submission.hosts)?, host_set(db, batch, submission.prefer)?);
                // A job that could not even be sent has none.
                let parsed = codec::decode_exact(&spec).ok();
                let submission = Submission { spec: spec.into(), ..submission };
                jobs.push(Described { submission, spec: parsed, hosts, ended: seq.zip(result) });
                let Some(left) = room.checked_sub(size) else { break };
                room = left;
            }
            Ok(jobs)
        })
    }
}

/// What a row costs beside its values.
const ROW: usize = 64;

fn host_set(db: &Connection, batch: BatchSerial, place: Option<u32>) -> Result<Option<Vec<String>>, ReadError> {
    let Some(place) = place else { return Ok(None) };
    let mut statement = db.prepare_cached("SELECT hosts FROM host_set WHERE batch = ? AND place = ?")?;
    let packed: Vec<u8> = statement.query_row([batch.0, place], |row| row.get(0))?;
    Ok(Some(unpack("host set", &packed)?))
}

fn batch_row(row: &Row<'_>) -> rusqlite::Result<BatchRow> {
    let id: [u8; 16] = row.get(1)?;
    let (stopped, why): (bool, Option<String>) = (row.get(6)?, row.get(7)?);
    let status = BatchStatus {
        id: BatchId(uuid::Uuid::from_bytes(id)),
        user: row.get(2)?,
        name: row.get(3)?,
        detached: row.get(4)?,
        open: row.get(5)?,
        stopped: stopped.then(|| why.unwrap_or_default()),
        opened: WallTime(row.get(8)?),
        done: row.get::<_, Option<i64>>(9)?.map(WallTime),
        jobs: row.get(10)?,
        placed: 0,
        ended: row.get(11)?,
        succeeded: row.get(12)?,
    };
    Ok(BatchRow { serial: BatchSerial(row.get(0)?), status })
}

enum ReadError {
    Database(rusqlite::Error),
    Value(StoreError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(e: rusqlite::Error) -> Self {
        ReadError::Database(e)
    }
}

impl From<StoreError> for ReadError {
    fn from(e: StoreError) -> Self {
        ReadError::Value(e)
    }
}
