//! Copies of a store: how they are made while it is in use, put in its place, and taken up.
//!
//! A copy is marked as one, with its date, before it gets its name: so a coordinator never finds a
//! copy under that name that looks like its original. The mark goes when a coordinator takes the
//! copy up, and in the same transaction the store gets a new [`Generation`].

use super::access::Access;
use super::life::{Header, Life, LifeNote, beside, look, new_file, number, sync_directory_of};
use super::meta::{meta, set_meta};
use super::{Store, StoreError, VERSION, lacks_room, lock};
use mezcal_common::model::clock::WallTime;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params};
use rustix::fs::{AtFlags, CWD, RenameFlags};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The age of a copy that a coordinator takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// When the copy was made; none: it is not known.
    pub made: Option<WallTime>,
    /// The copy is not older than this: the start of the coordinator whose store was copied.
    pub after: Option<WallTime>,
}

impl std::fmt::Display for Copied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.made, self.after) {
            (Some(at), _) => write!(f, "a copy of {at}"),
            (None, Some(after)) => write!(f, "a copy of an unknown date after {after}"),
            (None, None) => write!(f, "a copy of an unknown date"),
        }
    }
}

/// The result of a restore.
#[derive(Debug)]
pub struct Restored {
    /// The copy that is in place now.
    pub copied: Copied,
    /// The store that was there before, under its new name.
    pub kept: Option<PathBuf>,
}

fn is_marked(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row(
        "SELECT count(*) FROM meta WHERE key = 'copied'",
        [],
        |row| row.get(0),
    )
}

fn copied(db: &Connection) -> rusqlite::Result<Copied> {
    Ok(Copied {
        made: meta(db, "copied")?.map(WallTime),
        after: meta(db, "life_at")?.map(WallTime),
    })
}

impl Store {
    /// Begins a life of a coordinator with this store. A copy becomes a store of its own, of a new
    /// generation: its tokens are void, and batches that it has may run for its original, unless an
    /// admin vouches that `nothing_runs`. Returns the age of the copy, if it was one.
    ///
    /// `lease`: how long attempts that this life places may run without a word; it is stored for a
    /// coordinator that takes up a copy of this store.
    ///
    /// # Errors
    /// [`StoreError`]. The disk of a store that is not a copy may be full, or another process may
    /// be writing: then its life begins as soon as it can, before anything else is written.
    pub fn take_up(
        &mut self,
        nothing_runs: bool,
        lease: Duration,
    ) -> Result<Option<Copied>, StoreError> {
        let marked = is_marked(&self.connection).map_err(|e| self.broken(e))?;
        let was = match self.found.foreign || marked {
            true => Some(self.become_an_original()?),
            false => None,
        };
        if nothing_runs {
            self.hold = None;
        }
        // While old batches are held, the longest lease that they may run under counts.
        let longest = self
            .lease
            .filter(|_| self.hold.is_some())
            .map_or(lease, |old| old.max(lease));
        let (path, generation, vouched) = (self.access.path.clone(), self.generation, nothing_runs);
        let life = Life {
            path,
            before: self.found.life,
            number: number(),
            generation,
            lease: longest,
            vouched,
        };
        match life.begin(&mut self.connection) {
            Ok(()) => {}
            Err(e) if e.waits() => self.waiting = Some(life),
            Err(e @ StoreError::Directory { .. }) => {
                tracing::warn!(
                    "the store could not be given a number for this start of the coordinator: {}",
                    crate::exit::chain(&e)
                );
            }
            Err(e) => return Err(e),
        }
        Ok(was)
    }

    fn become_an_original(&mut self) -> Result<Copied, StoreError> {
        let path = self.access.path.clone();
        let broken = |source| StoreError::database(&path, source);
        let next = self
            .generation
            .next(self.found.note.generation, WallTime::now());
        let generation = next.ok_or_else(|| StoreError::WornOut(path.clone()))?;
        let first = generation.first_batch();
        let transaction = self.connection.transaction().map_err(broken)?;
        let was = (|| {
            let was = copied(&transaction)?;
            set_meta(
                &transaction,
                "restores",
                Some(i64::from(generation.restores)),
            )?;
            set_meta(&transaction, "since", Some(generation.since.0))?;
            set_meta(&transaction, "hold", Some(i64::from(first.0)))?;
            set_meta(
                &transaction,
                "copy_of",
                was.made.or(was.after).map(|at| at.0),
            )?;
            transaction.execute("DELETE FROM meta WHERE key = 'copied'", [])?;
            // Otherwise a token that has been used since the copy could be used again.
            transaction.execute("DELETE FROM token", [])?;
            transaction.execute("DELETE FROM stranger", [])?;
            transaction.commit()?;
            Ok(was)
        })();
        let was = was.map_err(broken)?;
        (self.generation, self.hold) = (generation, Some(first));
        Ok(was)
    }
}

/// Copies the store in `directory` to `target`, which must not exist, while a coordinator may be
/// using it. An account that may read the copy may read the store: the mode is the same.
///
/// # Errors
/// [`StoreError`].
pub fn backup(directory: &Path, target: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Copy {
        path: target.into(),
        source,
    };
    let part = beside(target, ".part");
    let mut file = new_file(&part).map_err(|source| StoreError::Copy {
        path: part.clone(),
        source,
    })?;
    let copied = (|| {
        if owner_of(directory).is_some() {
            // Only the store's account may touch the store, and it may not be able to write where
            // the copy goes.
            let near = beside(
                &directory.join("store.db"),
                &format!(".backup-{}", std::process::id()),
            );
            let make = || {
                let made = new_file(&near)
                    .map_err(failed)
                    .and_then(|file| copy_to(directory, &near).map(|()| file));
                let _ = std::fs::remove_file(&near);
                made
            };
            let mut copy = as_owner_of(directory, make).map_err(failed)??;
            copy.seek(SeekFrom::Start(0))
                .and_then(|_| std::io::copy(&mut copy, &mut file))
                .map_err(failed)?;
        } else {
            copy_to(directory, &part)?;
        }
        file.sync_all().map_err(failed)?;
        name_it(&part, target).map_err(failed)?;
        sync_directory_of(target).map_err(failed)
    })();
    copied.inspect_err(|_| drop(std::fs::remove_file(&part)))
}

/// Copies the store into an empty file and marks it.
fn copy_to(directory: &Path, target: &Path) -> Result<(), StoreError> {
    let path = directory.join("store.db");
    look(&path)?;
    let broken = |source| StoreError::database(&path, source);
    let (_, connection) = Access::open(&path)?;
    let name = target.to_string_lossy().into_owned();
    let now = WallTime::now();
    let copied = connection.execute("VACUUM INTO ?", params![Value::Text(name)]);
    copied.map_err(|e| {
        if lacks_room(&e) {
            no_room_for(target)
        } else {
            broken(e)
        }
    })?;
    mark(target, Some(now)).map_err(|e| {
        if lacks_room(&e) {
            no_room_for(target)
        } else {
            StoreError::database(target, e)
        }
    })
}

/// SQLite does not say which disk is full when it copies.
fn no_room_for(copy: &Path) -> StoreError {
    StoreError::Copy {
        path: copy.into(),
        source: std::io::ErrorKind::StorageFull.into(),
    }
}

/// Marks a copy as one. Without a journal: an interrupted copy is not one, and has no name yet.
fn mark(copy: &Path, made: Option<WallTime>) -> rusqlite::Result<()> {
    let db = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.pragma_update(None, "journal_mode", "OFF")?;
    db.pragma_update(None, "application_id", number() as i32)?;
    set_meta(&db, "copied", made.map(|at| at.0))
}

/// Gives a finished file its name, unless that is taken.
fn name_it(part: &Path, target: &Path) -> std::io::Result<()> {
    match rustix::fs::renameat_with(CWD, part, CWD, target, RenameFlags::NOREPLACE) {
        // Not every file system supports this.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            rustix::fs::linkat(CWD, part, CWD, target, AtFlags::empty())?;
            std::fs::remove_file(part)
        }
        done => Ok(done?),
    }
}

/// Puts the copy `file` in the place of the store in `directory`, which no coordinator may be
/// using. The store that was there is kept.
///
/// # Errors
/// [`StoreError`]; the store is then as it was, except after [`StoreError::Interrupted`].
pub fn restore(directory: &Path, mut file: &File, origin: &Path) -> Result<Restored, StoreError> {
    let path = directory.join("store.db");
    let failed = |source: std::io::Error| StoreError::file(directory, source);
    let _lock = lock(directory)?;
    // A restore that was interrupted is done again.
    let note = match look(&path) {
        Ok(found) => found.note,
        Err(StoreError::Mixed { .. } | StoreError::Interrupted(_)) => {
            LifeNote::read(&path).map_err(failed)?
        }
        Err(e) => return Err(e),
    };
    let new = beside(&path, ".restoring");
    let _ = std::fs::remove_file(&new);
    let mut target = new_file(&new).map_err(failed)?;
    let copied = (|| {
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        std::io::copy(&mut file, &mut target).map_err(failed)?;
        let copied = checked(&new, origin)?;
        target.sync_all().map_err(failed)?;
        Ok(copied)
    })();
    let (copied, life) = copied.inspect_err(|_| drop(std::fs::remove_file(&new)))?;
    // From here to the end, a coordinator that finds the directory knows that its parts may not
    // belong together.
    LifeNote {
        restoring: true,
        ..note.clone()
    }
    .write(&path)
    .map_err(failed)?;
    let aside = free_name_beside(&path);
    let mut kept = None;
    for suffix in ["", "-wal", "-journal", "-shm"] {
        match std::fs::rename(beside(&path, suffix), beside(&aside, suffix)) {
            Ok(()) if suffix.is_empty() => kept = Some(aside.clone()),
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    std::fs::rename(&new, &path).map_err(failed)?;
    sync_directory_of(&path).map_err(failed)?;
    LifeNote {
        lives: vec![life],
        generation: note.generation,
        restoring: false,
    }
    .write(&path)
    .map_err(failed)?;
    Ok(Restored { copied, kept })
}

/// The path for the previous store: a name with the time, which no file has yet.
fn free_name_beside(path: &Path) -> PathBuf {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let numbers = std::iter::once(String::new()).chain((1..).map(|n| format!("-{n}")));
    numbers
        .map(|number| beside(path, &format!(".before-{stamp}{number}")))
        .find(|name| !name.exists())
        .unwrap_or_else(|| beside(path, ".before"))
}

/// Checks that a file is a whole store of ours, and marks it as a copy. Returns the number in its
/// header, too.
fn checked(new: &Path, origin: &Path) -> Result<(Copied, u32), StoreError> {
    let not = |why: String| StoreError::NoStore {
        path: origin.into(),
        why,
    };
    let log = std::fs::symlink_metadata(beside(origin, "-wal"));
    if log.is_ok_and(|log| log.len() > 0) {
        return Err(not(
            "its log lies beside it, and it is not complete without that log: \
            `coordinator backup` makes one file of both (`state` in a coordinator.toml names their \
            directory)"
                .into(),
        ));
    }
    let tried = || {
        let db = Connection::open_with_flags(new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.pragma_update(None, "journal_mode", "OFF")?;
        let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('meta', 'batch', 'job', 'result', 'placed')";
        let tables: u32 = db.query_row(tables, [], |row| row.get(0))?;
        let whole: String = db.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        Ok::<_, rusqlite::Error>((found, tables == 5, whole))
    };
    match tried() {
        Err(e) => return Err(not(format!("it is not a database, or is damaged ({e})"))),
        Ok((found, true, _)) if found > VERSION => {
            return Err(StoreError::Newer {
                path: origin.into(),
                found,
            });
        }
        Ok((_, false, _)) => return Err(not("it is a database of another program".into())),
        Ok((_, true, whole)) if whole != "ok" => {
            return Err(not(format!("it is damaged ({whole})")));
        }
        Ok((_, true, _)) => {}
    }
    let failed = |source| StoreError::database(origin, source);
    let db = Connection::open_with_flags(new, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    let copied = copied(&db).map_err(failed)?;
    drop(db);
    // A plain copy of a store's file gets the mark here.
    mark(new, copied.made).map_err(failed)?;
    let header = Header::read(new).map_err(|source| StoreError::Copy {
        path: new.into(),
        source,
    })?;
    Ok((copied, header.map_or(0, |header| header.life)))
}

/// The account that owns a directory, if it is another one and we are root, who may act as it.
fn owner_of(directory: &Path) -> Option<(u32, u32)> {
    let meta = std::fs::metadata(directory).ok()?;
    (rustix::process::geteuid().is_root() && meta.uid() != 0).then(|| (meta.uid(), meta.gid()))
}

/// Calls `act` as the account that owns a directory, if we are root: so root follows no link that
/// this account has made there, and leaves no file that the account cannot use.
///
/// # Errors
/// This root may not become that account, as in some containers.
pub fn as_owner_of<T: Send>(
    directory: &Path,
    act: impl FnOnce() -> T + Send,
) -> std::io::Result<T> {
    let Some((uid, gid)) = owner_of(directory) else {
        return Ok(act());
    };
    // In a thread of its own: on Linux each thread has its own account.
    let acting = std::thread::scope(|scope| {
        let become_and_act = || {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            rustix::thread::set_thread_groups(&[gid])?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            Ok::<_, rustix::io::Errno>(act())
        };
        scope.spawn(become_and_act).join()
    });
    match acting {
        Ok(acted) => Ok(acted?),
        Err(panicked) => std::panic::resume_unwind(panicked),
    }
}
