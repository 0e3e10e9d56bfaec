//! Who may join, and who has: join tokens, and the certificates that count.
//!
//! It has a connection of its own beside the writer's: what is decided here has to be decided in
//! one transaction, and nobody waits for it but whoever asked. Times are seconds since the Unix
//! epoch, as in certificates.

use super::access::Access;
use super::{StoreError, pack};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity::{self, Identity, Role};
use mezcal_common::model::job::Stop;
use mezcal_common::model::token::{Token, hex, sha256};
use mezcal_common::wire::codec::CodecError;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Tokens that may be alive at a time: more than a large site provisions at once.
const MAX_TOKENS: u64 = 10_000;
/// Seconds after its end in which a certificate can be renewed by whoever has its key: a host that
/// was off for a summer.
const RENEWABLE: i64 = 90 * 86_400;
/// Certificates of one host that are remembered when they were refused: it has one, and a thief may
/// have another.
const MAX_STRANGERS: u32 = 4;
/// How long a token that was used or is over can still be seen in the list.
const TOKEN_HISTORY: i64 = 7 * 86_400;
/// Between two renewals of one holder, and the part of the old certificate's life that it is at
/// most: an answer that was lost is asked for again long before the end, which is half a life away,
/// and a holder who asks without end has a few thousand rows in the list, not millions.
const RENEWAL_PAUSE: Duration = Duration::from_secs(300);
const RENEWALS_PER_LIFE: u32 = 16;
/// Certificates of one user that count at a time: those of commands that are running, and of copies
/// of their files on several machines. A new one ends the one that would have ended first.
const OF_ONE_USER: u32 = 8;
/// Certificates that count of those which a host has asked for with one that it has, and not come
/// with: whichever answer it had is good, and several may be on their way to it.
const ON_THEIR_WAY: u32 = 4;

/// Tokens and certificates.
pub struct Registry {
    /// Waits for the store's writer; whoever only looks does not wait for that.
    writing: Mutex<Connection>,
    reading: Mutex<Connection>,
    access: Access,
    /// Only listed certificates count; otherwise all of the cluster's that have not been revoked.
    listed: bool,
    /// When the copy was made that this store was restored from, in microseconds since the Unix
    /// epoch; zero: nobody knows.
    copy_of: Option<i64>,
    changed: watch::Sender<u64>,
    ended: watch::Sender<Ended>,
    /// When holders were given their last one.
    renewed: Mutex<HashMap<(Role, String), Instant>>,
    /// Hashes of revoked certificates whose connections have to last for an answer.
    leaving: Mutex<HashSet<[u8; 32]>>,
}

/// Serial numbers of certificates that do not count any more although they would be valid.
pub type Ended = Arc<HashSet<String>>;

/// A token as it is shown: never its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// By which it is deleted.
    pub id: String,
    /// Whether it is for a host or a user.
    pub role: Role,
    /// Which.
    pub name: String,
    /// Until when.
    pub expires: i64,
    /// When it was used.
    pub used: Option<i64>,
    /// It takes the place of a certificate that its name has.
    pub replace: bool,
}

/// What has ended with the certificates of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Certificates that counted until then.
    pub certificates: u64,
    /// Tokens that were not used yet.
    pub tokens: u64,
    /// When the last one was revoked before; none: none was.
    pub before: Option<i64>,
}

/// A certificate that counts, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// Hexadecimal.
    pub serial: String,
    /// Of a host or a user.
    pub role: Role,
    /// Which.
    pub name: String,
    /// Until when.
    pub expires: i64,
    /// When it was revoked or replaced.
    pub revoked: Option<i64>,
}

/// A certificate of a known host or user that is on no list: of a renewal after the copy was made
/// that this store was restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Hexadecimal.
    pub serial: String,
    /// Until when.
    pub expires: i64,
    /// When it was refused last.
    pub seen: i64,
}

/// Why somebody does not get what they ask for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// For the one who asked. A wrong secret and an unknown id look the same.
    #[error("{0}")]
    No(String),
    /// Guessing does not help either.
    #[error("there is no such token; it may have been deleted, or come from another cluster")]
    Unknown,
    /// The store.
    #[error("the coordinator's store cannot be used at present")]
    Store(#[source] StoreError),
}

impl Registry {
    pub(super) fn new(
        access: Access,
        writing: Connection,
        listed: bool,
    ) -> Result<Self, StoreError> {
        let broken = |source| StoreError::database(&access.path, source);
        writing
            .pragma_update(None, "synchronous", "FULL")
            .map_err(broken)?;
        let reading = access.reading().map_err(broken)?;
        let copy_of = "SELECT coalesce(value, 0) FROM meta WHERE key = 'copy_of'";
        let copy_of = reading
            .query_row(copy_of, [], |row| row.get(0))
            .optional()
            .map_err(broken)?;
        Ok(Self {
            writing: Mutex::new(writing),
            reading: Mutex::new(reading),
            access,
            listed,
            copy_of,
            changed: watch::channel(0).0,
            ended: watch::channel(Ended::default()).0,
            renewed: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// Tells of every change of tokens and revocations.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells when certificates do not count any more, and which, without another look into the
    /// store.
    pub fn ended(&self) -> watch::Receiver<Ended> {
        self.ended.subscribe()
    }

    /// Whether a certificate (DER) is among those, which takes no look into the store either.
    pub fn has_ended(&self, der: &[u8]) -> bool {
        serial(der).is_some_and(|serial| self.ended.borrow().contains(&serial))
    }

    /// One new token for each name.
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
                return Ok(Err(Refusal::No(format!("there may be {MAX_TOKENS} tokens at a time, and {alive} are alive"))));
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

    /// All tokens that are alive or were lately.
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

    /// When the last token that is alive will be over; none: nobody can join.
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
    /// many who show the same token, one gets it.
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
            // Hashes of 128 random bits: how long it takes to compare them says nothing about the
            // secret.
            if hash != hex(&sha256(&secret)) {
                return Ok(Err(Refusal::Unknown));
            }
            let no = |text: String| Ok(Err(Refusal::No(text)));
            if used.is_some() {
                return no("that token has been used; each is good for one time".into());
            }
            if expires <= now {
                return no("that token is over; `coordinator token create` makes another".into());
            }
            let role = role(&kind);
            // Hosts say what they call themselves, and users do not.
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
                return no(format!("that token is for the host {name}, and this one calls itself {host} (`--name` says otherwise)"));
            }
            let taken = "SELECT count(*) FROM certificate WHERE role = ? AND name = ? AND revoked IS NULL AND expires > ?";
            let taken: u64 = db.query_row(taken, params![kind, name, now], |row| row.get(0))?;
            if taken > 0 && !replace {
                return no(format!(
                    "{name} has joined already; for a host or user that was set up anew, `coordinator token create --replace` makes a token"
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

    /// A new certificate (in PEM form) beside the one that its holder has. An agent's old one, and
    /// others that were asked for with that, count until a new one has been used: an answer that is
    /// lost or late locks nobody out. A user's old one counts until it ends, or several others have
    /// come after it: others of the user's commands, which run meanwhile, have it. The next one is
    /// not to be had for a while.
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

    fn renew_at(
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
                "the {holder} was given another certificate {ago} s ago, and gets one in {pause} s; use that one, or try again later"
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
                return Ok(Err(no("the old certificate does not count any more")));
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

    /// Whether an expired certificate can be renewed by whoever has its key: it is on the list with
    /// that key, has not been revoked, and has been over for no more than ninety days.
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
                "the certificate of the {holder} was revoked or replaced; if it should count, {}",
                way_back(holder)
            ))),
            Some((expires, None)) if expires + RENEWABLE < now() => Err(Refusal::No(format!(
                "the certificate of the {holder} has been over for too long: {}",
                way_back(holder)
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Whether somebody may come with a certificate that has expired: nobody of their name has come
    /// with a newer one. That it was made says little, since the answer may have been lost.
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

    /// A certificate is in use: its key is known from now on, and of an agent the one that it
    /// replaces counts no more, nor do others that were asked for with that.
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

    /// Whether somebody of this name may still come: some certificate of theirs counts, or could be
    /// renewed. Without a list that is so unless all that are known were revoked.
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

    /// Whether a certificate counts; why not, for its holder.
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
                no("that serial number is somebody else's".into())
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
                "the certificate of the {holder} is not on this coordinator's list: `coordinator certs import` admits what `mezcal certs issue` made"
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

    /// Remembers a certificate that was refused, for whoever adopts it: of a host that is known,
    /// and on no list since the store was restored.
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

    /// Hosts that were refused since the store was restored, with what they showed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn strangers(&self) -> Result<Vec<(String, Stranger)>, StoreError> {
        self.rows("SELECT name, serial, expires, seen FROM stranger WHERE role = 'agent' ORDER BY name, seen", |row| {
            Ok((row.get(0)?, Stranger { serial: row.get(1)?, expires: row.get(2)?, seen: row.get(3)? }))
        })
    }

    /// Puts a certificate that was refused on the list, in the place of those that its host has
    /// there.
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

    /// Lets no certificate and no token of this name count any more. `stop`: in the same
    /// transaction it is remembered that all batches of the user of this name are stopped, how, and
    /// why.
    ///
    /// # Errors
    /// [`Refusal`]: nothing is known of that name.
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
                    "no certificate of the {} {name} is on this coordinator's list; `coordinator certs import` puts those of `mezcal certs issue` there",
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

    /// Whoever has this certificate (DER) has revoked it, and is still to hear the answer.
    pub fn let_finish(&self, der: &[u8]) {
        self.leaving().insert(sha256(der));
    }

    /// Whether that is so.
    pub fn is_leaving(&self, der: &[u8]) -> bool {
        self.leaving().contains(&sha256(der))
    }

    /// They have heard it, or should have.
    pub fn finished(&self, der: &[u8]) {
        self.leaving().remove(&sha256(der));
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hosts on the list that are meant by these names, each short or in full; a name that none
    /// of them has stands for itself.
    ///
    /// # Errors
    /// For a name: it may be any of several, in words.
    pub fn hosts_meant(&self, names: &[String]) -> Vec<Result<String, String>> {
        // If the list cannot be read, whatever is done next says so.
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

    /// All certificates that are known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.rows("SELECT serial, role, name, expires, revoked FROM certificate ORDER BY role, name, expires", |row| {
            Ok(CertificateRow {
                serial: row.get(0)?,
                role: role(&row.get::<_, String>(1)?),
                name: row.get(2)?,
                expires: row.get(3)?,
                revoked: row.get(4)?,
            })
        })
    }

    /// Admits certificates that were made elsewhere, and gives back how many of them were new. What
    /// was revoked stays so.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn import(&self, certificates: &[CertificateRow]) -> Result<u64, Refusal> {
        self.change(|db| {
            let mut count = 0;
            for c in certificates {
                count += admit(db, &c.serial, c.role, &c.name, c.expires)? as u64;
            }
            Ok(Ok(count))
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let mut connection = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = |source| Refusal::Store(StoreError::database(&self.access.path, source));
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(broken)?;
        let result = change(&transaction).map_err(broken)??;
        let ended = transaction
            .prepare_cached(
                "SELECT serial FROM certificate WHERE revoked IS NOT NULL AND expires > ?",
            )
            .and_then(|mut rows| {
                rows.query_map([now()], |row| row.get(0))?
                    .collect::<rusqlite::Result<HashSet<String>>>()
            })
            .map_err(broken)?;
        transaction.commit().map_err(broken)?;
        self.changed.send_modify(|generation| *generation += 1);
        self.ended.send_if_modified(|before| {
            let differs = **before != ended;
            if differs {
                *before = Arc::new(ended);
            }
            differs
        });
        Ok(result)
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let connection = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        read(&connection).map_err(|source| StoreError::database(&self.access.path, source))
    }

    fn rows<T>(
        &self,
        sql: &str,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.with(|db| db.prepare_cached(sql)?.query_map([], read)?.collect())
    }
}

/// Certificates that are over are forgotten: those that did not count any more, and those that
/// cannot be renewed any more.
fn forget_over(db: &Transaction<'_>) -> rusqlite::Result<usize> {
    let sql = "DELETE FROM certificate WHERE (revoked IS NOT NULL AND expires <= ?1) OR expires + ?2 < ?1";
    db.execute(sql, [now(), RENEWABLE])
}

/// What somebody can do who has no certificate that counts, nor one that can be renewed.
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

/// The serial number of a certificate (DER).
pub(crate) fn serial(der: &[u8]) -> Option<String> {
    Some(identity::details(der).ok()?.serial)
}

/// The hash of a certificate's key, by which its holder is known when it has expired.
fn remember_key(db: &Transaction<'_>, serial: &str, der: &[u8]) -> rusqlite::Result<usize> {
    let key = identity::key_hash(der).map(|hash| hex(&hash));
    db.execute(
        "UPDATE certificate SET key = ? WHERE serial = ?",
        params![key, serial],
    )
}

fn admit(
    db: &Transaction<'_>,
    serial: &str,
    role: Role,
    name: &str,
    expires: i64,
) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO certificate (serial, role, name, expires) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
    db.execute(sql, params![serial, role.as_str(), name, expires])
}

fn serial_and_end(der: &[u8]) -> Option<(String, i64)> {
    Some((
        identity::details(der).ok()?.serial,
        identity::validity(der).ok()?.1,
    ))
}

/// As [`Role::as_str`] wrote it.
fn role(text: &str) -> Role {
    match text {
        "agent" => Role::Agent,
        "user" => Role::User,
        _ => Role::Coordinator,
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use mezcal_certs::Authority;

    struct Site {
        registry: Registry,
        authority: Authority,
        _dir: tempfile::TempDir,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let (authority, _) = Authority::create("mezcal").expect("created");
            let registry = Store::open(dir.path())
                .expect("a store")
                .registry(true)
                .expect("a registry");
            Self {
                registry,
                authority,
                _dir: dir,
            }
        }

        fn certificate(&self, role: Role, name: &str, life: Duration) -> Vec<u8> {
            let (_, request) = mezcal_certs::request().expect("a key");
            let pem = self
                .authority
                .sign(role, name, life, &request)
                .expect("signed")
                .cert;
            mezcal_certs::der_of(&pem).expect("a certificate")
        }

        /// One that is on the list.
        fn listed(&self, role: Role, name: &str, life: Duration) -> Vec<u8> {
            let der = self.certificate(role, name, life);
            let (serial, expires) = serial_and_end(&der).expect("readable");
            let row = CertificateRow {
                serial,
                role,
                name: name.into(),
                expires,
                revoked: None,
            };
            self.registry.import(&[row]).expect("imported");
            der
        }

        fn renew(&self, now: Instant, old: &[u8], life: Duration) -> Result<Vec<u8>, Refusal> {
            let holder = Identity::from_der(old).expect("an identity");
            let sign = |role, name: &str| {
                let (_, request) = mezcal_certs::request().expect("a key");
                self.authority
                    .sign(role, name, life, &request)
                    .map(|signed| signed.cert)
                    .map_err(|e| e.to_string())
            };
            self.registry
                .renew_at(now, old, &holder, sign)
                .map(|pem| mezcal_certs::der_of(&pem).expect("a certificate"))
        }

        fn counts(&self, der: &[u8]) -> bool {
            self.registry
                .admits(der, &Identity::from_der(der).expect("an identity"))
                .is_ok()
        }
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_holder_gets_one_certificate_in_a_while() {
        let site = Site::new();
        let (okazaki, sato) = (
            site.listed(Role::User, "okazaki", 30 * DAY),
            site.listed(Role::User, "sato", 30 * DAY),
        );
        let begin = Instant::now();
        let made = (0..1000)
            .filter(|n| {
                site.renew(begin + Duration::from_millis(*n), &okazaki, 30 * DAY)
                    .is_ok()
            })
            .count();
        assert_eq!(made, 1);
        assert!(
            site.renew(begin, &sato, 30 * DAY).is_ok(),
            "that is somebody else"
        );
        assert!(
            site.renew(begin + RENEWAL_PAUSE, &okazaki, 30 * DAY)
                .is_ok()
        );
        // One whose life is a minute has to have another in half of that, even if an answer is
        // lost.
        let short = site.listed(Role::Agent, "h1", Duration::from_secs(60));
        assert!(site.renew(begin, &short, Duration::from_secs(60)).is_ok());
        assert!(
            site.renew(
                begin + Duration::from_secs(1),
                &short,
                Duration::from_secs(60)
            )
            .is_err()
        );
        assert!(
            site.renew(
                begin + Duration::from_secs(5),
                &short,
                Duration::from_secs(60)
            )
            .is_ok()
        );
    }

    #[test]
    fn of_a_users_certificates_those_that_end_last_count() {
        let site = Site::new();
        let first = site.listed(Role::User, "okazaki", 10 * DAY);
        let (mut now, mut all) = (Instant::now(), vec![first.clone()]);
        for n in 1..=20 {
            now += RENEWAL_PAUSE;
            all.push(
                site.renew(now, &first, (10 + n) * DAY)
                    .expect("another one"),
            );
        }
        let counting: Vec<usize> = (0..all.len()).filter(|n| site.counts(&all[*n])).collect();
        assert_eq!(
            counting,
            [0, 14, 15, 16, 17, 18, 19, 20],
            "that with which they were asked for, and the newest"
        );
    }

    #[test]
    fn whichever_answer_a_host_had_is_good() {
        let site = Site::new();
        let old = site.listed(Role::Agent, "h1", 30 * DAY);
        let ask = |n: u32| {
            site.renew(Instant::now() + n * RENEWAL_PAUSE, &old, 30 * DAY)
                .expect("another one")
        };
        let asked: Vec<_> = (0..ON_THEIR_WAY).map(ask).collect();
        assert!(asked.iter().chain([&old]).all(|der| site.counts(der)));
        site.registry.used(&asked[0]).expect("the first was late");
        assert!(
            site.counts(&asked[0]) && !asked[1..].iter().chain([&old]).any(|der| site.counts(der)),
            "of one host one counts"
        );
        assert!(
            site.renew(Instant::now() + 9 * RENEWAL_PAUSE, &old, DAY)
                .is_err(),
            "nor does what is asked for with an old one"
        );
        // Whoever asks without end has few.
        let many: Vec<_> = (20..40)
            .map(|n| {
                site.renew(Instant::now() + n * RENEWAL_PAUSE, &asked[0], n * DAY)
                    .expect("made")
            })
            .collect();
        assert_eq!(
            many.iter().filter(|der| site.counts(der)).count(),
            ON_THEIR_WAY as usize
        );
        assert!(site.counts(&many[19]) && site.counts(&asked[0]));
    }

    #[test]
    fn whoever_did_not_get_the_answer_can_ask_again_though_the_old_certificate_is_over() {
        for role in [Role::Agent, Role::User] {
            let site = Site::new();
            let old = site.listed(role, "okazaki", Duration::ZERO);
            let holder = Identity::from_der(&old).expect("an identity");
            assert!(
                site.registry.is_renewable(&old, &holder).is_err(),
                "its key has not been seen"
            );
            site.registry.used(&old).expect("it comes");
            assert!(site.registry.any_renewable().expect("readable"));
            let mut now = Instant::now();
            for _ in 0..3 {
                now += RENEWAL_PAUSE;
                let lost = site.renew(now, &old, 30 * DAY).expect("another one");
                assert!(
                    site.counts(&lost) && site.registry.any_renewable().expect("readable"),
                    "it may not have it: {role:?}"
                );
                site.registry
                    .is_renewable(&old, &holder)
                    .expect("nor anything else");
            }
            let new = site
                .renew(now + RENEWAL_PAUSE, &old, 30 * DAY)
                .expect("another one");
            site.registry.used(&new).expect("it comes with it");
            assert!(
                !site.registry.any_renewable().expect("readable"),
                "nobody is missing: {role:?}"
            );
        }
    }

    #[test]
    fn connections_hear_of_what_has_ended_and_of_nothing_else() {
        let site = Site::new();
        let (okazaki, sato) = (
            site.listed(Role::User, "okazaki", DAY),
            site.listed(Role::User, "sato", DAY),
        );
        let mut ended = site.registry.ended();
        site.registry
            .create_tokens([0; 32], Role::Agent, &["h1".into()], DAY, false)
            .expect("made");
        site.listed(Role::User, "endo", DAY);
        site.renew(Instant::now(), &okazaki, DAY)
            .expect("another one");
        assert!(
            !ended.has_changed().expect("it is there"),
            "none of these ends a connection"
        );
        site.registry
            .revoke(Role::User, "sato", None)
            .expect("revoked");
        assert!(ended.has_changed().expect("it is there"));
        let ended = ended.borrow_and_update();
        let has = |der: &[u8]| ended.contains(&serial(der).expect("readable"));
        assert_eq!((has(&okazaki), has(&sato)), (false, true));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let site = Site::new();
        let good = site.listed(Role::User, "okazaki", DAY);
        let row = |serial: &str, expires: i64| CertificateRow {
            serial: serial.into(),
            role: Role::User,
            name: "sato".into(),
            expires: now() + expires,
            revoked: None,
        };
        site.registry
            .import(&[row("01", -1), row("02", -RENEWABLE - 10)])
            .expect("imported");
        site.renew(Instant::now(), &good, DAY).expect("another one");
        let serials = || -> Vec<String> {
            site.registry
                .certificates()
                .expect("a list")
                .into_iter()
                .map(|c| c.serial)
                .collect()
        };
        assert!(
            serials().contains(&"01".into()) && !serials().contains(&"02".into()),
            "the first can be renewed yet"
        );
        site.registry
            .revoke(Role::User, "sato", None)
            .expect("revoked");
        site.renew(Instant::now() + RENEWAL_PAUSE, &good, DAY)
            .expect("another one");
        assert!(!serials().contains(&"01".into()));
    }
}
