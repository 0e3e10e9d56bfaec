//! The thread that writes: everything that has come since the last commit goes into the next one.

use super::clock::Moment;
use super::life::Life;
use super::{StoreError, id_bytes, pack};
use crate::exit::chain;
use crate::scheduler::Record;
use bytes::Bytes;
use mezcal_common::message::client::{SetAside, Submission};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{AttemptId, BatchSerial, JobKey};
use mezcal_common::model::outcome::JobResult;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, ffi, params};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Records in one transaction.
const GROUP: usize = 16_384;
/// Rows of a forgotten batch that are deleted at a time.
const TIDY_ROWS: usize = 20_000;
/// Between two tries while the disk is full or busy: most of that passes at once, so the first
/// pause is short, and each is twice as long as the one before, up to what somebody who has made
/// room does not mind to wait.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the store says.
#[derive(Debug)]
pub enum FromStore {
    /// All records up to this number are safe; and the specs of the jobs that they place.
    Committed {
        /// Counted from 1.
        through: u64,
        /// By job.
        specs: Vec<(JobKey, Bytes)>,
    },
    /// Nothing can be written at present, and why; said again after each try. Nothing that was
    /// committed is lost, and what was handed over waits.
    Trouble(String),
    /// It can go on no more: the file is damaged, or somebody else has changed it.
    Broken(String),
}

enum Write {
    Records(Vec<Record>),
    Forget(BatchSerial),
}

/// The way to the writer.
pub struct Writer {
    writes: Sender<Write>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        life: Option<Life>,
        lock: OwnedFd,
        answers: mpsc::Sender<FromStore>,
    ) -> std::io::Result<Self> {
        let (writes, received) = channel();
        let thread = std::thread::Builder::new().name("store".into());
        let run = move || {
            let _lock = lock;
            run(connection, life, &received, &answers);
        };
        thread
            .spawn(run)
            .map_err(mezcal_common::system::limits::named)?;
        Ok(Self { writes })
    }

    /// Hands records over. Whoever does so bounds how many are on their way.
    pub fn write(&self, records: Vec<Record>) {
        // A writer that has ended has said why.
        let _ = self.writes.send(Write::Records(records));
    }

    /// Deletes an ended batch with all that belongs to it.
    pub fn forget(&self, batch: BatchSerial) {
        let _ = self.writes.send(Write::Forget(batch));
    }
}

/// `life`: one that has not begun, and does before anything else is written.
fn run(
    mut connection: Connection,
    mut life: Option<Life>,
    writes: &Receiver<Write>,
    answers: &mpsc::Sender<FromStore>,
) {
    let mut through = 0;
    // Space of forgotten batches is given back bit by bit while there is nothing else to do.
    let mut untidy = true;
    loop {
        let mut group = Vec::new();
        // Without anything to write it is tried, too: so it is known whether anything can be.
        if life.is_none() {
            match if untidy {
                writes.try_recv()
            } else {
                writes.recv().map_err(|_| TryRecvError::Disconnected)
            } {
                Ok(first) => group.push(first),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    // If it cannot be done now, it is done with the next batch that is forgotten.
                    untidy = tidy_up(&mut connection).unwrap_or(false);
                    continue;
                }
            }
        }
        let size = |write: &Write| {
            if let Write::Records(records) = write {
                records.len()
            } else {
                1
            }
        };
        let mut count: usize = group.iter().map(size).sum();
        while count < GROUP
            && let Ok(next) = writes.try_recv()
        {
            count += size(&next);
            group.push(next);
        }
        let work = |group: &[Write]| {
            if let Some(waiting) = &life {
                waiting.begin(&mut connection)?;
                life = None;
            }
            apply(&mut connection, group)
        };
        let Some(placed) = persist(work, &mut group, writes, answers) else {
            return;
        };
        untidy |= group.iter().any(|write| matches!(write, Write::Forget(_)));
        through += group
            .iter()
            .map(|w| {
                if let Write::Records(r) = w {
                    r.len() as u64
                } else {
                    0
                }
            })
            .sum::<u64>();
        // What comes until they are read is of the next group.
        let Some(specs) = persist(
            |_| specs(&connection, &placed).map_err(Failure::from),
            &mut Vec::new(),
            writes,
            answers,
        ) else {
            return;
        };
        if answers
            .blocking_send(FromStore::Committed { through, specs })
            .is_err()
        {
            return;
        }
    }
}

/// Does something with a group until it works. None: it cannot work, which has been said, or nobody
/// is there any more for whom it would.
fn persist<T>(
    mut work: impl FnMut(&[Write]) -> Result<T, Failure>,
    group: &mut Vec<Write>,
    writes: &Receiver<Write>,
    answers: &mpsc::Sender<FromStore>,
) -> Option<T> {
    let mut pause = FIRST_PAUSE;
    loop {
        match work(group) {
            Ok(done) => return Some(done),
            Err(Failure::Passing(why)) => answers.blocking_send(FromStore::Trouble(why)).ok()?,
            Err(Failure::Lasting(why)) => {
                // A service that has ended has nobody to tell.
                let _ = answers.blocking_send(FromStore::Broken(why));
                return None;
            }
        }
        // What comes meanwhile belongs to the same group.
        let next = Instant::now() + pause;
        while let Some(left) = next
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            match writes.recv_timeout(left) {
                Ok(more) => group.push(more),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

enum Failure {
    /// The disk is full or does not answer, or somebody else is at it: another time it may work.
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

/// Whether what SQLite says may be otherwise another time.
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
        // has another name now has no way back.
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
    /// Whether it may be otherwise another time.
    pub fn passes(&self) -> bool {
        match self {
            StoreError::Database { source, .. } => passes(source),
            StoreError::Full { .. } => true,
            _ => false,
        }
    }
}

impl From<mezcal_common::wire::codec::CodecError> for Failure {
    fn from(e: mezcal_common::wire::codec::CodecError) -> Self {
        Failure::Lasting(e.to_string())
    }
}

/// How many jobs of a batch have come and gone in one transaction.
#[derive(Default)]
struct Counts {
    jobs: u64,
    ended: u64,
    succeeded: u64,
    aside: SetAside,
}

/// Writes a group in one transaction and gives back what it places.
fn apply(connection: &mut Connection, group: &[Write]) -> Result<Vec<AttemptId>, Failure> {
    let transaction = connection.transaction()?;
    let (mut placed, mut counts) = (Vec::new(), BTreeMap::new());
    for write in group {
        match write {
            Write::Records(records) => {
                for record in records {
                    insert(&transaction, record, &mut placed, &mut counts)?;
                }
            }
            Write::Forget(batch) => forget(&transaction, *batch)?,
        }
    }
    for (
        batch,
        Counts {
            jobs,
            ended,
            succeeded,
            aside: SetAside { cancelled, skipped },
        },
    ) in counts
    {
        let sql =
            "UPDATE batch SET jobs = jobs + ?2, ended = ended + ?3, succeeded = succeeded + ?4,
                   cancelled = cancelled + ?5, skipped = skipped + ?6 WHERE serial = ?1";
        transaction
            .prepare_cached(sql)?
            .execute(params![batch.0, jobs, ended, succeeded, cancelled, skipped])?;
    }
    transaction.commit()?;
    Ok(placed)
}

fn insert(
    db: &Transaction<'_>,
    record: &Record,
    placed: &mut Vec<AttemptId>,
    counts: &mut BTreeMap<BatchSerial, Counts>,
) -> Result<(), Failure> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
        db.prepare_cached(sql)?.execute(params).map(|_| ())
    };
    match record {
        Record::Opened {
            batch,
            user,
            terms,
            age: _,
        } => {
            let id = id_bytes(terms.context.batch);
            let opened = Moment::now();
            let (boot, up) = opened.columns();
            let sql = "INSERT INTO batch (serial, id, user, name, detached, terms, opened_at, opened_boot, opened_up) \
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
            run(
                sql,
                params![
                    batch.0,
                    id,
                    user,
                    terms.name,
                    terms.detached,
                    pack(&**terms)?,
                    opened.wall.0,
                    boot,
                    up
                ],
            )?;
            run(
                "INSERT INTO meta VALUES ('last_batch', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                params![batch.0],
            )?;
        }
        Record::HostSets { batch, sets } => {
            let sql = "INSERT INTO host_set SELECT ?1, COALESCE(MAX(place) + 1, 0), ?2 FROM host_set WHERE batch = ?1";
            for set in sets {
                run(sql, params![batch.0, pack(set)?])?;
            }
        }
        Record::Submitted { batch, jobs } => {
            counts.entry(*batch).or_default().jobs += jobs.len() as u64;
            for job in jobs {
                let number = job.job.0;
                let without = Submission {
                    spec: Bytes::new(),
                    ..job.clone()
                };
                run(
                    "INSERT INTO job VALUES (?, ?, ?, ?)",
                    params![batch.0, number, pack(&without)?, job.spec.as_ref()],
                )?;
            }
        }
        Record::Closed { batch } => run(
            "UPDATE batch SET open = 0 WHERE serial = ?",
            params![batch.0],
        )?,
        Record::Stopped { batch, stop, why } => {
            let stop = stop.as_ref().map(pack).transpose()?;
            let sql = "UPDATE batch SET stopped = 1, stop = COALESCE(?2, stop), why = COALESCE(?3, why) WHERE serial = ?1";
            run(sql, params![batch.0, stop, why.as_deref()])?;
        }
        Record::Placed {
            host,
            lease,
            attempts,
        } => {
            placed.extend(attempts);
            let lease = lease.map(|lease| lease.as_millis() as i64);
            for one in attempts.chunk_by(|a, b| a.key.batch == b.key.batch) {
                let values = params![one[0].key.batch.0, &**host, lease, pack(&one)?];
                run("INSERT INTO placed VALUES (?, ?, ?, ?)", values)?;
            }
        }
        Record::Again {
            attempt,
            retries,
            losses,
            outcome,
        } => {
            let outcome = outcome.as_ref().map(|o| pack(&**o)).transpose()?;
            let values = params![
                attempt.key.batch.0,
                pack(attempt)?,
                retries,
                losses,
                outcome
            ];
            run("INSERT INTO again VALUES (?, ?, ?, ?, ?)", values)?;
        }
        Record::Ended {
            batch,
            seq,
            job,
            result,
        } => {
            let result: &JobResult = result;
            let ok = result.outcome.succeeded();
            let count = counts.entry(*batch).or_default();
            (count.ended, count.succeeded) = (count.ended + 1, count.succeeded + u64::from(ok));
            count.aside.add(&result.outcome);
            // Engines count, and one that is somebody else's may say anything.
            let count = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok());
            let (out, err) = (
                count(result.outcome.written.out),
                count(result.outcome.written.err),
            );
            let values = params![batch.0, seq, job.0, ok, pack(result)?, out, err];
            run("INSERT INTO result VALUES (?, ?, ?, ?, ?, ?, ?)", values)?;
        }
        Record::Done { batch } => {
            run(
                "UPDATE batch SET done_at = ?2 WHERE serial = ?1",
                params![batch.0, WallTime::now().0],
            )?;
            run("DELETE FROM placed WHERE batch = ?", params![batch.0])?;
        }
        Record::Engines { host, first, slots } => {
            let sql = "INSERT INTO host (host, first, slots) VALUES (?1, ?2, ?3) ON CONFLICT (host) DO UPDATE SET first = ?2, slots = ?3";
            run(sql, params![&**host, first.0, slots])?;
        }
        Record::Released => run("DELETE FROM meta WHERE key = 'hold'", &[])?,
        Record::HostForgotten { host } => run("DELETE FROM host WHERE host = ?", params![&**host])?,
        Record::Drained {
            host,
            reason,
            deadline,
        } => {
            let now = Moment::now();
            let (boot, up) = now.columns();
            let evict_after =
                deadline.map(|limit| i64::try_from(limit.as_micros()).unwrap_or(i64::MAX));
            let evict_at = evict_after.map(|limit| now.wall.0.saturating_add(limit));
            let sql = "INSERT INTO host (host, drained, evict_at, evict_after, drained_boot, drained_up) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                ON CONFLICT (host) DO UPDATE SET drained = ?2, evict_at = ?3, evict_after = ?4, drained_boot = ?5, drained_up = ?6";
            run(
                sql,
                params![&**host, reason.as_deref(), evict_at, evict_after, boot, up],
            )?;
        }
    }
    Ok(())
}

/// The batch is gone at once; what belongs to it goes bit by bit.
fn forget(db: &Transaction<'_>, batch: BatchSerial) -> Result<(), Failure> {
    db.execute("INSERT INTO forgotten VALUES (?)", [batch.0])?;
    db.execute("DELETE FROM batch WHERE serial = ?", [batch.0])?;
    Ok(())
}

/// Deletes some of what belongs to a forgotten batch, or gives some free pages back to the file
/// system. False if nothing was left to do.
fn tidy_up(connection: &mut Connection) -> rusqlite::Result<bool> {
    let batch: Option<u32> = connection
        .query_row("SELECT batch FROM forgotten LIMIT 1", [], |row| row.get(0))
        .optional()?;
    if let Some(batch) = batch {
        let transaction = connection.transaction()?;
        let mut room = TIDY_ROWS;
        for (table, key) in [
            ("job", "job"),
            ("result", "seq"),
            ("host_set", "place"),
            ("placed", "rowid"),
            ("again", "rowid"),
        ] {
            let some =
                format!("SELECT {key} FROM {table} WHERE batch = ?1 ORDER BY {key} LIMIT ?2");
            let sql = format!("DELETE FROM {table} WHERE batch = ?1 AND {key} IN ({some})");
            room -= transaction.execute(&sql, params![batch, room])?.min(room);
        }
        if room == TIDY_ROWS {
            transaction.execute("DELETE FROM forgotten WHERE batch = ?", [batch])?;
        }
        transaction.commit()?;
        return Ok(true);
    }
    let free: u32 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free > 0 {
        let mut statement = connection.prepare_cached("PRAGMA incremental_vacuum(2048)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        return Ok(true);
    }
    // A log that has grown in one go shrinks again.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(false)
}

fn specs(connection: &Connection, placed: &[AttemptId]) -> rusqlite::Result<Vec<(JobKey, Bytes)>> {
    let mut statement =
        connection.prepare_cached("SELECT spec FROM job WHERE batch = ? AND job = ?")?;
    let read = |attempt: &AttemptId| {
        let key = attempt.key;
        let spec: Vec<u8> = statement.query_row([key.batch.0, key.job.0], |row| row.get(0))?;
        Ok((key, Bytes::from(spec)))
    };
    placed.iter().map(read).collect()
}
