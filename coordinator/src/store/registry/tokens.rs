//! Join tokens: how they are made, listed, deleted and used up.

use super::{
    Refusal, Registry, TokenRow, admit, forget_over, now, remember_key, role, serial_and_end,
};
use crate::store::StoreError;
use mezcal_common::model::identity::Role;
use mezcal_common::model::token::{Token, hex, sha256};
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

/// Tokens that may be valid at a time: more than a large site provisions at once.
const MAX_TOKENS: u64 = 10_000;
/// Seconds for which a token that was used or is over is still listed.
const TOKEN_HISTORY: i64 = 7 * 86_400;

impl Registry {
    /// Makes one new token for each name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn create_tokens(
        &self,
        root: [u8; 32],
        role: Role,
        names: &[String],
        ttl: Duration,
        replace: bool,
    ) -> Result<Vec<Token>, Refusal> {
        let (now, tokens) = (
            now(),
            names
                .iter()
                .map(|_| Token::new(root))
                .collect::<Result<Vec<_>, _>>(),
        );
        let tokens = tokens.map_err(|e| Refusal::No(e.to_string()))?;
        let expires = now.saturating_add_unsigned(ttl.as_secs());
        self.change(|db| {
            db.execute("DELETE FROM token WHERE max(expires, coalesce(used, 0)) < ?", [now - TOKEN_HISTORY])?;
            let sql = "SELECT count(*) FROM token WHERE used IS NULL AND expires > ?";
            let alive: u64 = db.query_row(sql, [now], |row| row.get(0))?;
            if alive + names.len() as u64 > MAX_TOKENS {
                return Ok(Err(Refusal::No(format!("there can be {MAX_TOKENS} tokens at a time, and \
                    {alive} are valid"))));
            }
            for (token, name) in tokens.iter().zip(names) {
                let hash = hex(&sha256(&token.secret));
                let values = params![token.name(), hash, role.as_str(), name, expires, replace];
                db.execute("INSERT INTO token (id, secret, role, name, expires, replace) VALUES (?, ?, ?, ?, ?, ?)", values)?;
            }
            Ok(Ok(()))
        })?;
        Ok(tokens)
    }

    /// All tokens that are valid or were lately.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.rows(
            "SELECT id, role, name, expires, used, replace FROM token ORDER BY expires, name",
            |row| {
                Ok(TokenRow {
                    id: row.get(0)?,
                    role: role(&row.get::<_, String>(1)?),
                    name: row.get(2)?,
                    expires: row.get(3)?,
                    used: row.get(4)?,
                    replace: row.get(5)?,
                })
            },
        )
    }

    /// When the last valid token ends; none: no token lets anybody join.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn alive_until(&self) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT max(expires) FROM token WHERE used IS NULL AND expires > ?";
        self.with(|db| db.query_row(sql, [now()], |row| row.get(0)))
    }

    /// Deletes an unused token.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn delete_token(&self, id: &str) -> Result<(), Refusal> {
        self.change(|db| {
            let gone = db.execute("DELETE FROM token WHERE id = ? AND used IS NULL", [id])?;
            Ok(if gone == 1 {
                Ok(())
            } else {
                Err(Refusal::No(format!("there is no unused token {id}")))
            })
        })
    }

    /// Uses a token up, for the certificate that `sign` makes (in PEM form). One transaction: of
    /// many that show the same token, one gets it.
    ///
    /// # Errors
    /// [`Refusal`]; the token is unused then.
    pub fn join(
        &self,
        id: [u8; 4],
        secret: [u8; 16],
        host: Option<&str>,
        sign: impl FnOnce(Role, &str) -> Result<String, String>,
    ) -> Result<(Role, String, String), Refusal> {
        let now = now();
        self.change(|db| {
            type Found = (String, String, String, i64, Option<i64>, bool);
            let sql = "SELECT secret, role, name, expires, used, replace FROM token WHERE id = ?";
            let found: Option<Found> = db
                .query_row(sql, [hex(&id)], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
                })
                .optional()?;
            let Some((hash, kind, name, expires, used, replace)) = found else { return Ok(Err(Refusal::Unknown)) };
            // Hashes of 128 random bits: the time of a comparison says nothing about the secret.
            if hash != hex(&sha256(&secret)) {
                return Ok(Err(Refusal::Unknown));
            }
            let no = |text: String| Ok(Err(Refusal::No(text)));
            if used.is_some() {
                return no("that token has been used; each can be used once".into());
            }
            if expires <= now {
                return no("that token has expired; `coordinator token create` makes another".into());
            }
            let role = role(&kind);
            // Hosts say their own name, and users do not.
            match (role, host) {
                (Role::User, Some(_)) => {
                    return no(format!("that token is for the user {name}, who joins with `coordinator join`; this host's is made by `coordinator token create --host`"));
                }
                (Role::Agent, None) => return no(format!("that token is for the host {name}, which joins with `mezcal-agent join`")),
                (Role::User, None) | (Role::Agent | Role::Coordinator, _) => {}
            }
            if let (Role::Agent, Some(host)) = (role, host)
                && host != name
                && mezcal_common::model::hosts::short(&name) != Some(host)
                && mezcal_common::model::hosts::short(host) != Some(&name)
            {
                return no(format!("that token is for the host {name}, and this one calls itself \
                    {host} (`--name` gives it another name)"));
            }
            let taken = "SELECT count(*) FROM certificate WHERE role = ? AND name = ? AND revoked IS NULL AND expires > ?";
            let taken: u64 = db.query_row(taken, params![kind, name, now], |row| row.get(0))?;
            if taken > 0 && !replace {
                return no(format!(
                    "{name} has joined already; for a host or user that was reinstalled, \
                     `coordinator token create --replace` makes a token"
                ));
            }
            let pem = match sign(role, &name) {
                Ok(pem) => pem,
                Err(why) => return no(why),
            };
            let der = mezcal_certs::der_of(&pem).unwrap_or_default();
            let Some((serial, expires)) = serial_and_end(&der) else { return no("the new certificate cannot be read".into()) };
            db.execute(
                "UPDATE certificate SET revoked = ? WHERE role = ? AND name = ? AND revoked IS NULL",
                params![now, kind, name],
            )?;
            admit(db, &serial, role, &name, expires)?;
            remember_key(db, &serial, &der)?;
            db.execute("UPDATE token SET used = ? WHERE id = ?", params![now, hex(&id)])?;
            forget_over(db)?;
            Ok(Ok((role, name, pem)))
        })
    }
}
