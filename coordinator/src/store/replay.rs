//! The contents of the store, as records that bring a scheduler back to its state.

use super::meta::meta;
use super::{Store, StoreError, unpack, unpack_result};
use crate::scheduler::Record;
use crate::store::clock::Moment;
use bytes::Bytes;
use mezcal_common::message::client::Submission;
use mezcal_common::model::ids::{AttemptId, BatchSerial, EngineId, JobNumber};
use mezcal_common::model::job::MAX_SPEC;
use mezcal_common::model::outcome::Written;
use rusqlite::Row;
use std::time::Duration;

/// Jobs in one record of a replay.
const REPLAY_JOBS: usize = 4096;

impl Store {
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
        let last = meta(&self.connection, "last_batch").map_err(|e| self.broken(e))?;
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
                // An earlier version has not stored its length: then that is the time left.
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

    // Long: the tables of a batch, one after the other.
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
        // The scheduler needs only the length of the text.
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

    pub(super) fn rows<T>(
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
}
