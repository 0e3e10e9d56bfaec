//! Certificates that count no more.

use super::{Refusal, Registry, Revoked, now};
use crate::store::{StoreError, pack};
use mezcal_common::model::identity::Role;
use mezcal_common::model::job::Stop;
use mezcal_common::model::token::sha256;
use mezcal_common::wire::codec::CodecError;
use rusqlite::params;
use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

impl Registry {
    /// Lets no certificate and no token of this name count any more. `stop`: the same transaction
    /// stores that all batches of the user of this name are stopped, how, and why.
    ///
    /// # Errors
    /// [`Refusal`]: the name has no certificates and no tokens.
    pub fn revoke(
        &self,
        role: Role,
        name: &str,
        stop: Option<(Stop, &str)>,
    ) -> Result<Revoked, Refusal> {
        let stop = stop
            .map(|(stop, why)| Ok::<_, CodecError>((pack(&stop)?, why)))
            .transpose();
        let stop = stop.map_err(|e| Refusal::No(e.to_string()))?;
        self.change(|db| {
            let sql = "SELECT max(revoked) FROM certificate WHERE role = ? AND name = ?";
            let before: Option<i64> = db.query_row(sql, params![role.as_str(), name], |row| row.get(0))?;
            let sql = "UPDATE certificate SET revoked = ? WHERE role = ? AND name = ? AND revoked IS NULL";
            let certificates = db.execute(sql, params![now(), role.as_str(), name])? as u64;
            let sql = "DELETE FROM token WHERE role = ? AND name = ? AND used IS NULL";
            let tokens = db.execute(sql, params![role.as_str(), name])? as u64;
            if certificates == 0 && tokens == 0 && before.is_none() {
                return Ok(Err(Refusal::No(format!(
                    "no certificate of the {} {name} is on this coordinator's list; `coordinator \
                     certs import` adds those that `mezcal certs issue` made",
                    role.as_str()
                ))));
            }
            if let Some((stop, why)) = stop {
                let sql = "UPDATE batch SET stopped = 1, open = 0, stop = COALESCE(stop, ?2), why = COALESCE(why, ?3) \
                           WHERE user = ?1 AND done_at IS NULL";
                db.execute(sql, params![name, stop, why])?;
            }
            Ok(Ok(Revoked { certificates, tokens, before }))
        })
    }

    /// Hosts that were revoked, and when: none of their certificates counts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revoked_hosts(&self) -> Result<HashMap<String, i64>, StoreError> {
        let sql = "SELECT name, max(revoked) FROM certificate WHERE role = 'agent' GROUP BY name HAVING count(*) = count(revoked)";
        self.with(|db| {
            db.prepare_cached(sql)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }

    /// The user who has this certificate (DER) has revoked it, and still has to get the answer.
    pub fn let_finish(&self, der: &[u8]) {
        self.leaving().insert(sha256(der));
    }

    /// Whether the holder of this certificate (DER) still has to get that answer.
    pub fn is_leaving(&self, der: &[u8]) -> bool {
        self.leaving().contains(&sha256(der))
    }

    /// The holder has got the answer, or should have.
    pub fn finished(&self, der: &[u8]) {
        self.leaving().remove(&sha256(der));
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hosts on the list that these names mean, each short or in full; a name that none of them
    /// has stands for itself.
    ///
    /// # Errors
    /// For a name: the reason, in words, if it may be any of several hosts.
    pub fn hosts_meant(&self, names: &[String]) -> Vec<Result<String, String>> {
        // If the list cannot be read, the next step reports that.
        let known = self.rows(
            "SELECT DISTINCT name FROM certificate WHERE role = 'agent'",
            |row| row.get::<_, String>(0),
        );
        let known: HashSet<String> = known.unwrap_or_default().into_iter().collect();
        let meant = |name: &String| {
            if known.contains(name) {
                return Ok(name.clone());
            }
            match mezcal_common::model::hosts::meant(name, known.iter().map(String::as_str)) {
                Ok(meant) => Ok(meant.unwrap_or(name).to_owned()),
                Err(several) => Err(format!(
                    "{name} may be any of {}; write the full name",
                    several.join(",")
                )),
            }
        };
        names.iter().map(meant).collect()
    }
}
