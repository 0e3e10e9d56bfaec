//! The thread that writes: all records that have come since the last commit go into the next one.

use super::failure::Failure;
use super::insert::{Counts, insert};
use super::life::Life;
use crate::scheduler::Record;
use bytes::Bytes;
use mezcal_common::message::client::SetAside;
use mezcal_common::model::ids::{AttemptId, BatchSerial, JobKey};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Records in one transaction.
const GROUP: usize = 16_384;
/// Rows of a forgotten batch that are deleted at a time.
const TIDY_ROWS: usize = 20_000;
/// Time between two tries while the disk is full or busy: most of these errors pass at once, so the
/// first pause is short, and each is twice as long as the one before, up to a time that an admin
/// who has made room does not mind to wait.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Messages of the store.
#[derive(Debug)]
pub enum FromStore {
    /// All records up to this number are safe, and these are the specs of the jobs that they place.
    Committed {
        /// The number of the last safe record, counted from 1.
        through: u64,
        /// The specs by job.
        specs: Vec<(JobKey, Bytes)>,
    },
    /// Nothing can be written at present, and why; said again after each try. Nothing that was
    /// committed is lost, and records that were handed over wait.
    Trouble(String),
    /// The store cannot go on: the file is damaged, or another program has changed it.
    Broken(String),
}

enum Write {
    Records(Vec<Record>),
    Forget(BatchSerial),
}

impl Write {
    fn records(&self) -> u64 {
        match self {
            Write::Records(records) => records.len() as u64,
            Write::Forget(_) => 0,
        }
    }

    /// How many records it counts for in a group.
    fn size(&self) -> usize {
        match self {
            Write::Records(records) => records.len(),
            Write::Forget(_) => 1,
        }
    }
}

/// The channel to the writer's thread.
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
            .map_err(mezcal_common::model::limits::named)?;
        Ok(Self { writes })
    }

    /// Hands records over. The caller bounds how many are on their way.
    pub fn write(&self, records: Vec<Record>) {
        // A writer that has ended has said why.
        let _ = self.writes.send(Write::Records(records));
    }

    /// Deletes an ended batch with all rows that belong to it.
    pub fn forget(&self, batch: BatchSerial) {
        let _ = self.writes.send(Write::Forget(batch));
    }
}

/// `life`: a life that has not begun, and begins before anything else is written.
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
        // Tried even without records to write: this shows whether writing is possible.
        if life.is_none() {
            match if untidy {
                writes.try_recv()
            } else {
                writes.recv().map_err(|_| TryRecvError::Disconnected)
            } {
                Ok(first) => group.push(first),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    // If this fails now, it is done after the next batch that is forgotten.
                    untidy = tidy_up(&mut connection).unwrap_or(false);
                    continue;
                }
            }
        }
        let mut count: usize = group.iter().map(Write::size).sum();
        while count < GROUP
            && let Ok(next) = writes.try_recv()
        {
            count += next.size();
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
        through += group.iter().map(Write::records).sum::<u64>();
        // Records that come until the specs are read belong to the next group.
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

/// Repeats `work` on a group until it succeeds. None: it cannot succeed, which has been reported,
/// or the service has ended.
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
                // A service that has ended needs no word.
                let _ = answers.blocking_send(FromStore::Broken(why));
                return None;
            }
        }
        // Records that come meanwhile belong to the same group.
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

/// Writes a group in one transaction and returns the attempts that it places.
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

/// Deletes the batch at once; the rows that belong to it go bit by bit.
fn forget(db: &Transaction<'_>, batch: BatchSerial) -> Result<(), Failure> {
    db.execute("INSERT INTO forgotten VALUES (?)", [batch.0])?;
    db.execute("DELETE FROM batch WHERE serial = ?", [batch.0])?;
    Ok(())
}

/// Deletes some of the rows of a forgotten batch, or gives some free pages back to the file system.
/// False if nothing was left to do.
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
