//! Which certificates count, and the memory of those that were refused.

use super::{RENEWABLE, Refusal, Registry, Stranger, admit, now, serial_and_end};
use crate::store::StoreError;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::model::token::hex;
use rusqlite::{OptionalExtension, params};

/// Refused certificates of one host that are remembered: a host has one, and a thief may have
/// another.
const MAX_STRANGERS: u32 = 4;

impl Registry {
    /// Whether a host or user of this name may still come: a certificate of that name counts, or
    /// can be renewed. Without a list this holds unless all known certificates were revoked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_member(&self, role: Role, name: &str) -> Result<bool, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(revoked IS NULL AND expires + ?3 > ?4), 0) FROM certificate WHERE role = ?1 AND name = ?2";
        let values = params![role.as_str(), name, RENEWABLE, now()];
        let (known, good): (u64, u64) =
            self.with(|db| db.query_row(sql, values, |row| Ok((row.get(0)?, row.get(1)?))))?;
        Ok(good > 0 || known == 0 && !self.listed)
    }

    /// Whether a certificate counts; if not, the reason for its holder.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admits(&self, der: &[u8], holder: &Identity) -> Result<(), Refusal> {
        let no = |text: String| Err(Refusal::No(text));
        let Some((serial, _)) = serial_and_end(der) else {
            return no("its certificate has no serial number".into());
        };
        let sql = "SELECT role, name, revoked FROM certificate WHERE serial = ?";
        let found: Option<(String, String, Option<i64>)> = self
            .with(|db| {
                db.query_row(sql, [&serial], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
            })
            .map_err(Refusal::Store)?;
        match found {
            Some((_, _, Some(_))) => no(format!(
                "the certificate of the {holder} was revoked or replaced"
            )),
            Some((role, name, None)) if role != holder.role.as_str() || name != holder.name => {
                no("that serial number belongs to another certificate".into())
            }
            None if self.listed && self.copy_of.is_some() && self.knows(holder) => {
                let of = self.copy_of.filter(|at| *at != 0).map_or_else(
                    || "a copy".into(),
                    |at| format!("a copy of {}", WallTime(at)),
                );
                let way_out = match holder.role {
                    Role::User => way_back(holder),
                    Role::Agent | Role::Coordinator => {
                        format!(
                            "`coordinator certs adopt {}`, on the coordinator's host, admits it",
                            holder.name
                        )
                    }
                };
                no(format!(
                    "the certificate of the {holder} is not on this coordinator's list, whose store was restored from {of}: if it was renewed \
                     since, {way_out}"
                ))
            }
            None if self.listed => no(format!(
                "the certificate of the {holder} is not on this coordinator's list: `coordinator \
                 certs import` admits certificates that `mezcal certs issue` made"
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether this host or user has ever had a certificate that is on the list.
    fn knows(&self, holder: &Identity) -> bool {
        let sql = "SELECT count(*) FROM certificate WHERE role = ? AND name = ?";
        let known = self.with(|db| {
            db.query_row(sql, params![holder.role.as_str(), holder.name], |row| {
                row.get::<_, u64>(0)
            })
        });
        known.is_ok_and(|count| count > 0)
    }

    /// Remembers a certificate that was refused, for an admin who adopts it: one of a known host
    /// that is on no list since the store was restored.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn was_refused(&self, der: &[u8], holder: &Identity) -> Result<(), Refusal> {
        let Some((serial, expires)) = serial_and_end(der) else {
            return Ok(());
        };
        if holder.role != Role::Agent
            || !self.listed
            || self.copy_of.is_none()
            || !self.knows(holder)
        {
            return Ok(());
        }
        let sql = "SELECT (SELECT count(*) FROM certificate WHERE serial = ?1) + (SELECT count(*) FROM stranger WHERE serial = ?1)";
        let known: u64 = self
            .with(|db| db.query_row(sql, [&serial], |row| row.get(0)))
            .map_err(Refusal::Store)?;
        if known > 0 {
            return Ok(());
        }
        let key = identity::key_hash(der).map(|hash| hex(&hash));
        self.change(|db| {
            let values = params![serial, holder.role.as_str(), holder.name, expires, key, now()];
            db.execute("INSERT INTO stranger (serial, role, name, expires, key, seen) VALUES (?, ?, ?, ?, ?, ?)", values)?;
            let oldest = "DELETE FROM stranger WHERE role = ?1 AND name = ?2 AND serial NOT IN \
                          (SELECT serial FROM stranger WHERE role = ?1 AND name = ?2 ORDER BY seen DESC, serial LIMIT ?3)";
            db.execute(oldest, params![holder.role.as_str(), holder.name, MAX_STRANGERS])?;
            Ok(Ok(()))
        })
    }

    /// Hosts that were refused since the store was restored, with their certificates.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn strangers(&self) -> Result<Vec<(String, Stranger)>, StoreError> {
        self.rows("SELECT name, serial, expires, seen FROM stranger WHERE role = 'agent' ORDER BY name, seen", |row| {
            Ok((row.get(0)?, Stranger { serial: row.get(1)?, expires: row.get(2)?, seen: row.get(3)? }))
        })
    }

    /// Puts a certificate that was refused on the list, in the place of the certificates that its
    /// host has there.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn adopt(&self, host: &str, serial: &str) -> Result<(), Refusal> {
        let now = now();
        self.change(|db| {
            let sql = "SELECT expires, key FROM stranger WHERE role = 'agent' AND name = ? AND serial = ?";
            let found: Option<(i64, Option<String>)> =
                db.query_row(sql, [host, serial], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let Some((expires, key)) = found else {
                return Ok(Err(Refusal::No(format!("no certificate {serial} of {host} was refused"))));
            };
            db.execute(
                "UPDATE certificate SET revoked = ? WHERE role = 'agent' AND name = ? AND revoked IS NULL",
                params![now, host],
            )?;
            admit(db, serial, Role::Agent, host, expires)?;
            db.execute("UPDATE certificate SET key = ? WHERE serial = ?", params![key, serial])?;
            db.execute("DELETE FROM stranger WHERE role = 'agent' AND name = ?", [host])?;
            Ok(Ok(()))
        })
    }
}

/// How a holder gets back who has no certificate that counts or can be renewed.
pub(crate) fn way_back(holder: &Identity) -> String {
    let kind = match holder.role {
        Role::Agent => "host",
        Role::User => "user",
        Role::Coordinator => return "`mezcal certs issue coordinator` makes another".into(),
    };
    format!(
        "an admin's `coordinator token create --{kind} {} --replace` makes a token to join again",
        holder.name
    )
}
