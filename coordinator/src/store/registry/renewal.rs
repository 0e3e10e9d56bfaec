//! Certificates that replace others.

use super::{
    RENEWABLE, Refusal, Registry, admit, forget_over, now, remember_key, serial_and_end, way_back,
};
use crate::store::StoreError;
use mezcal_common::model::identity;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::model::token::hex;
use rusqlite::{OptionalExtension, params};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Time between two renewals of one holder, and the share of the old certificate's life that it is
/// at most: an answer that was lost is requested again long before the end, which is half a life
/// away, and a holder who asks without end has a few thousand rows in the list, not millions.
pub(super) const RENEWAL_PAUSE: Duration = Duration::from_secs(300);
const RENEWALS_PER_LIFE: u32 = 16;
/// Certificates of one user that count at a time: those of running commands, and of copies of their
/// files on several machines. A new one ends the one that would have ended first.
const OF_ONE_USER: u32 = 8;
/// Certificates that count which a host has requested with one that it has, and not used yet: it
/// may have received any of them, and several answers may be on their way to it.
pub(super) const ON_THEIR_WAY: u32 = 4;

impl Registry {
    /// Makes a new certificate (in PEM form) beside the one that its holder has. An agent's old
    /// one, and others that were requested with that, count until a new one has been used: an
    /// answer that is lost or late locks nobody out. A user's old one counts until it ends, or
    /// several others have come after it: other commands of the user that run meanwhile have it.
    /// The next one is not available for a while.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn renew(
        &self,
        old: &[u8],
        holder: &Identity,
        sign: impl FnOnce(Role, &str) -> Result<String, String>,
    ) -> Result<String, Refusal> {
        self.renew_at(Instant::now(), old, holder, sign)
    }

    pub(super) fn renew_at(
        &self,
        now: Instant,
        old: &[u8],
        holder: &Identity,
        sign: impl FnOnce(Role, &str) -> Result<String, String>,
    ) -> Result<String, Refusal> {
        let unreadable = || Refusal::No("the old certificate cannot be read".into());
        let (from, until) = identity::validity(old).map_err(|_| unreadable())?;
        let life = Duration::from_secs(until.saturating_sub(from).max(0) as u64);
        let pause = RENEWAL_PAUSE.min(life / RENEWALS_PER_LIFE);
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (holder.role, holder.name.clone());
        if let Some(ago) = renewed
            .get(&key)
            .map(|last| now.saturating_duration_since(*last))
            .filter(|ago| *ago < pause)
        {
            let (ago, pause) = (ago.as_secs(), pause.as_secs_f64());
            return Err(Refusal::No(format!(
                "the {holder} was given another certificate {ago} s ago, and can get one every \
                 {pause} s; use that one, or try again later"
            )));
        }
        let pem = self.replace(old, holder, sign)?;
        renewed.retain(|_, last| now.saturating_duration_since(*last) < RENEWAL_PAUSE);
        renewed.insert(key, now);
        Ok(pem)
    }

    fn replace(
        &self,
        old: &[u8],
        holder: &Identity,
        sign: impl FnOnce(Role, &str) -> Result<String, String>,
    ) -> Result<String, Refusal> {
        let no = |text: &str| Refusal::No(text.into());
        let (old, _) =
            serial_and_end(old).ok_or_else(|| no("the old certificate cannot be read"))?;
        let pem = sign(holder.role, &holder.name).map_err(Refusal::No)?;
        let der = mezcal_certs::der_of(&pem).unwrap_or_default();
        let (serial, expires) =
            serial_and_end(&der).ok_or_else(|| no("the new certificate cannot be read"))?;
        self.change(|db| {
            let sql = "SELECT count(*) FROM certificate WHERE serial = ? AND role = ? AND name = ? AND revoked IS NULL";
            let counts: u64 = db.query_row(sql, params![old, holder.role.as_str(), holder.name], |row| row.get(0))?;
            if counts == 0 && self.listed {
                return Ok(Err(no("the old certificate is not valid any more")));
            }
            admit(db, &serial, holder.role, &holder.name, expires)?;
            remember_key(db, &serial, &der)?;
            db.execute("UPDATE certificate SET replaces = ? WHERE serial = ?", params![old, serial])?;
            if holder.role != Role::User {
                let sql = "DELETE FROM certificate WHERE replaces = ?1 AND revoked IS NULL AND serial <> ?2 AND serial NOT IN (SELECT serial \
                           FROM certificate WHERE replaces = ?1 AND serial <> ?2 ORDER BY expires DESC, serial LIMIT ?3)";
                db.execute(sql, params![old, serial, ON_THEIR_WAY - 1])?;
            } else {
                let sql = "UPDATE certificate SET revoked = ?1 WHERE role = ?2 AND name = ?3 AND revoked IS NULL AND expires > ?1 \
                           AND serial NOT IN (?4, ?5) AND serial NOT IN (SELECT serial FROM certificate WHERE role = ?2 AND name = ?3 \
                           AND revoked IS NULL AND expires > ?1 AND serial NOT IN (?4, ?5) ORDER BY expires DESC, serial LIMIT ?6)";
                db.execute(sql, params![now(), holder.role.as_str(), holder.name, old, serial, OF_ONE_USER - 2])?;
            }
            forget_over(db)?;
            Ok(Ok(()))
        })?;
        Ok(pem)
    }

    /// Whether an expired certificate can be renewed by the holder of its key: it is on the list
    /// with that key, has not been revoked, and has been over for no more than ninety days.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn is_renewable(&self, der: &[u8], holder: &Identity) -> Result<(), Refusal> {
        let Some(((serial, _), key)) = serial_and_end(der).zip(identity::key_hash(der)) else {
            return Err(Refusal::No("the old certificate cannot be read".into()));
        };
        let sql = "SELECT expires, revoked FROM certificate WHERE serial = ? AND role = ? AND name = ? AND key = ?";
        let values = params![serial, holder.role.as_str(), holder.name, hex(&key)];
        let found: Option<(i64, Option<i64>)> = self
            .with(|db| {
                db.query_row(sql, values, |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(Refusal::Store)?;
        match found {
            None => Err(Refusal::No(format!(
                "the certificate of the {holder} is not on this coordinator's list, or has never been used here: {}",
                way_back(holder)
            ))),
            Some((_, Some(_))) => Err(Refusal::No(format!(
                "the certificate of the {holder} was revoked or replaced; if it should be valid, \
                 {}",
                way_back(holder)
            ))),
            Some((expires, None)) if expires + RENEWABLE < now() => Err(Refusal::No(format!(
                "the certificate of the {holder} expired too long ago: {}",
                way_back(holder)
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Whether any expired certificate may still be renewed: no holder of its name has used a newer
    /// one. That a newer one was made says little, since the answer may have been lost.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn any_renewable(&self) -> Result<bool, StoreError> {
        let now = now();
        let sql = "SELECT count(*) FROM certificate AS old WHERE key IS NOT NULL AND revoked IS NULL AND expires <= ?1 AND expires + ?2 >= ?1 \
                   AND NOT EXISTS (SELECT 1 FROM certificate AS new WHERE new.role = old.role AND new.name = old.name \
                   AND new.revoked IS NULL AND new.expires > ?1 AND new.replaces IS NULL)";
        let count: u64 = self.with(|db| db.query_row(sql, [now, RENEWABLE], |row| row.get(0)))?;
        Ok(count > 0)
    }

    /// Notes that a certificate is in use: its key is known from now on. An agent's certificate
    /// that it replaces counts no more, nor do others that were requested with that one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn used(&self, der: &[u8]) -> Result<(), Refusal> {
        let Some((serial, _)) = serial_and_end(der) else {
            return Ok(());
        };
        let sql = "SELECT replaces, key IS NULL FROM certificate WHERE serial = ?";
        let found: Option<(Option<String>, bool)> = self
            .with(|db| {
                db.query_row(sql, [&serial], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(Refusal::Store)?;
        let Some((old, first)) = found.filter(|(old, first)| old.is_some() || *first) else {
            return Ok(());
        };
        self.change(|db| {
            if first {
                remember_key(db, &serial, der)?;
            }
            let sql = "UPDATE certificate SET revoked = ?1 WHERE role <> 'user' AND (serial = ?2 OR replaces = ?2) AND serial <> ?3 AND revoked IS NULL";
            db.execute(sql, params![now(), old, serial])?;
            db.execute("UPDATE certificate SET replaces = NULL WHERE serial = ?", [&serial])?;
            Ok(Ok(()))
        })
    }
}
