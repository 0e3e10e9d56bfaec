//! How each record becomes rows.

use super::clock::Moment;
use super::failure::Failure;
use super::meta::set_meta;
use super::{id_bytes, pack};
use crate::scheduler::Record;
use bytes::Bytes;
use mezcal_common::message::client::{SetAside, Submission};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{AttemptId, BatchSerial};
use mezcal_common::model::outcome::JobResult;
use rusqlite::{Transaction, params};
use std::collections::BTreeMap;

/// How many jobs of a batch were submitted and how many ended in one transaction.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) jobs: u64,
    pub(super) ended: u64,
    pub(super) succeeded: u64,
    pub(super) aside: SetAside,
}

/// Writes one record, and notes the attempts that it places and the jobs that it counts.
// Long: an arm for each record.
pub(super) fn insert(
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
            set_meta(db, "last_batch", Some(batch.0.into()))?;
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
            // Engines report these numbers, and an engine that is not ours may report any.
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
