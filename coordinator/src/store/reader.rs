//! Reads of committed records, over a few connections: a reader that finds none idle waits for one.
//! SQLite keeps the descriptor of a closed connection while others have the file open, so none is
//! closed.

use super::access::Access;
use super::{StoreError, id_bytes, unpack, unpack_result};
use bytes::Bytes;
use mezcal_common::message::client::{BatchStatus, BatchTerms, SetAside, Submission};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, BatchSerial, JobKey, JobNumber};
use mezcal_common::model::job::JobSpec;
use mezcal_common::model::outcome::{JobResult, Written};
use mezcal_common::wire::codec;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The columns that [`batch_row`] reads.
const BATCHES: &str = "SELECT serial, id, user, name, detached, open, stopped, why, opened_at, done_at, jobs, ended, succeeded,
    cancelled, skipped FROM batch";
/// Reads at a time, each over a connection of its own: more would only wait for the same disk, and
/// each costs three descriptors.
pub const READERS: usize = 4;

/// Reads a store.
#[derive(Clone)]
pub struct Reader {
    access: Access,
    pool: Arc<Pool>,
}

#[derive(Default)]
struct Pool {
    connections: Mutex<Connections>,
    returned: Condvar,
}

#[derive(Default)]
struct Connections {
    idle: Vec<Connection>,
    /// The number of idle connections and those in use.
    open: usize,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back to the pool.
struct Borrowed<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut connections = self.pool.lock();
        match self.connection.take() {
            Some(connection) => connections.idle.push(connection),
            None => connections.open -= 1,
        }
        self.pool.returned.notify_one();
    }
}

/// One batch with the store's counts.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRow {
    /// Its number.
    pub serial: BatchSerial,
    /// All but the jobs that are on hosts, which only the scheduler knows.
    pub status: BatchStatus,
}

/// A job with all that the store knows of it.
#[derive(Clone, Debug)]
pub struct Described {
    /// How it was submitted, with its text.
    pub submission: Submission,
    /// The command that it runs.
    pub spec: Option<JobSpec>,
    /// The hosts that it requires, and those that it prefers.
    pub hosts: (Option<Vec<String>>, Option<Vec<String>>),
    /// Its place in the order in which the jobs of its batch ended, and its result.
    pub ended: Option<(u64, JobResult)>,
}

impl Reader {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            pool: Arc::default(),
        }
    }

    /// Another reader of the same store, with connections of its own: neither waits for the other.
    pub fn apart(&self) -> Self {
        Self::new(self.access.clone())
    }

    fn borrow(&self) -> Result<Borrowed<'_>, StoreError> {
        let mut refused = None;
        let mut connections = self.pool.lock();
        loop {
            if let Some(idle) = connections.idle.pop() {
                return Ok(Borrowed {
                    pool: &self.pool,
                    connection: Some(idle),
                });
            }
            if let Some(source) = refused.take_if(|_| connections.open == 0) {
                return Err(StoreError::Reader {
                    path: self.access.path.clone(),
                    source,
                });
            }
            if connections.open < READERS && refused.is_none() {
                connections.open += 1;
                drop(connections);
                let mut new = Borrowed {
                    pool: &self.pool,
                    connection: None,
                };
                match self.access.reading() {
                    Ok(connection) => {
                        new.connection = Some(connection);
                        return Ok(new);
                    }
                    // There may be no descriptors left: then one of the open connections has to do.
                    Err(e) => refused = Some(e),
                }
                drop(new);
                connections = self.pool.lock();
                continue;
            }
            connections = self
                .pool
                .returned
                .wait(connections)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        super::gate::pass(&self.access.path);
        let borrowed = self.borrow()?;
        let connection = borrowed
            .connection
            .as_ref()
            .expect("it was borrowed with one");
        read(connection).map_err(|e| match e {
            ReadError::Database(source) => StoreError::database(&self.access.path, source),
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
            let terms: Vec<u8> = db.query_row(
                "SELECT terms FROM batch WHERE serial = ?",
                [batch.0],
                |row| row.get(0),
            )?;
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

    /// Results after the first `after` of a batch, at least one if there is one, then as many as
    /// fit in `bytes`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn results(
        &self,
        batch: BatchSerial,
        after: u64,
        bytes: usize,
    ) -> Result<Vec<(JobNumber, JobResult)>, StoreError> {
        self.with(|db| {
            let sql = "SELECT job, result, out_bytes, err_bytes FROM result WHERE batch = ? AND seq > ? ORDER BY seq";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params![batch.0, after])?;
            let (mut results, mut room) = (Vec::new(), bytes);
            while let Some(row) = rows.next()? {
                let packed: Vec<u8> = row.get(1)?;
                let written = Written { out: row.get(2)?, err: row.get(3)? };
                results.push((JobNumber(row.get(0)?), unpack_result(&packed, written)?));
                let Some(left) = room.checked_sub(packed.len() + ROW) else { break };
                room = left;
            }
            Ok(results)
        })
    }

    /// The same with the jobs themselves; with `failed`, only jobs that did not succeed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ended(
        &self,
        batch: BatchSerial,
        after: u64,
        failed: bool,
        bytes: usize,
    ) -> Result<Vec<Described>, StoreError> {
        let sql = "SELECT j.submission, j.spec, r.seq, r.result, r.out_bytes, r.err_bytes FROM result r JOIN job j ON j.batch = r.batch AND j.job = r.job
                   WHERE r.batch = ?1 AND r.seq > ?2 AND (r.ok = 0 OR NOT ?3) ORDER BY r.seq";
        self.described(sql, params![batch.0, after, failed], batch, bytes)
    }

    /// Jobs of a batch after number `after`, whether or not they have ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn jobs(
        &self,
        batch: BatchSerial,
        after: JobNumber,
        bytes: usize,
    ) -> Result<Vec<Described>, StoreError> {
        let sql = "SELECT submission, spec, NULL, NULL, NULL, NULL FROM job WHERE batch = ? AND job > ? ORDER BY job";
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
                let written = Written {
                    out: row.get(4)?,
                    err: row.get(5)?,
                };
                let size = packed.len() + spec.len() + result.as_ref().map_or(0, Vec::len) + ROW;
                let submission: Submission = unpack("job", &packed)?;
                let result = result
                    .map(|result| unpack_result(&result, written))
                    .transpose()?;
                let hosts = (
                    host_set(db, batch, submission.hosts)?,
                    host_set(db, batch, submission.prefer)?,
                );
                // A job that could not even be sent has no readable spec.
                let parsed = codec::decode_exact(&spec).ok();
                let submission = Submission {
                    spec: spec.into(),
                    ..submission
                };
                jobs.push(Described {
                    submission,
                    spec: parsed,
                    hosts,
                    ended: seq.zip(result),
                });
                let Some(left) = room.checked_sub(size) else {
                    break;
                };
                room = left;
            }
            Ok(jobs)
        })
    }
}

/// Bytes that a row costs beside its values.
const ROW: usize = 64;

fn host_set(
    db: &Connection,
    batch: BatchSerial,
    place: Option<u32>,
) -> Result<Option<Vec<String>>, ReadError> {
    let Some(place) = place else { return Ok(None) };
    let mut statement =
        db.prepare_cached("SELECT hosts FROM host_set WHERE batch = ? AND place = ?")?;
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
        aside: Some(SetAside {
            cancelled: row.get(13)?,
            skipped: row.get(14)?,
        }),
    };
    Ok(BatchRow {
        serial: BatchSerial(row.get(0)?),
        status,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn many_who_read_share_a_few_connections_and_none_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        Connection::open(&path)
            .expect("opened")
            .execute_batch("CREATE TABLE t (x)")
            .expect("made");
        let access = Access {
            path: path.clone(),
            alone: false,
        };
        let (reader, reading, most) = (
            Reader::new(access),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    let counted = reader.with(|db| {
                        most.fetch_max(
                            reading.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        let count: u64 =
                            db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
                        std::thread::yield_now();
                        reading.fetch_sub(1, Ordering::SeqCst);
                        Ok(count)
                    });
                    assert_eq!(counted.expect("it is read"), 0);
                });
            }
        });
        assert!(
            (1..=READERS).contains(&most.load(Ordering::SeqCst)),
            "{most:?}"
        );
        let open = reader.pool.lock();
        assert_eq!(open.open, open.idle.len());
        drop(open);
        // A reader that cannot open another connection waits for one of those, and is refused if
        // there is none.
        std::fs::remove_file(&path).expect("removed");
        assert!(reader.with(|_| Ok(())).is_ok());
        let refused = reader
            .apart()
            .with(|_| Ok(()))
            .expect_err("nothing can be opened");
        assert!(refused.passes(), "files may be closed again");
        let refused = refused.to_string();
        assert!(
            refused.contains("open files") && !refused.contains("backup"),
            "{refused}"
        );
    }
}
