//! Files and directories in places where others may write, too: a new file is not led elsewhere by
//! a link that somebody else has put in the way, and files of others there are refused.
//!
//! Paths are walked name by name, each opened below the one before (openat(2)) without following
//! it. A link is followed by hand where only root or this account could have made it: `/var/run`,
//! `/lib`, or one's own below the home.

mod walk;

use crate::system::{account, random};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use walk::{Rule, WRITABLE, Way};

/// Mode of directories that only their owner may enter.
pub const PRIVATE: u32 = 0o700;

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The system refuses an operation.
    #[error("cannot {verb} {}", path.display())]
    Failed {
        /// The operation.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It belongs to another account, which could change its content at any time.
    #[error("{} belongs to {owner}, not to {wanted}: remove it, or choose another place", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: String,
        /// The owner that it should have.
        wanted: String,
    },
    /// Others can change its content at any time.
    #[error("{} (of {owner}) can be changed by others (mode {mode:03o}): run `chmod go-w {}`, or choose another place", path.display(), path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A link in a place where other accounts may make links.
    #[error("{} is a link that {owner} has made, where others than root and this account may make links: it is not followed; remove it, or choose another place", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Its owner.
        owner: String,
    },
}

type Result<T> = std::result::Result<T, PlaceError>;

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(Errno) -> PlaceError {
    let path = path.to_path_buf();
    move |e| PlaceError::Failed {
        verb,
        path,
        source: e.into(),
    }
}

/// The name of an account in messages.
fn called(uid: u32) -> String {
    account::of(uid).map_or_else(
        || format!("uid {uid}"),
        |account| format!("{} (uid {uid})", account.name),
    )
}

fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// An account: user and primary group.
pub type Owner = (u32, u32);

/// An open directory: files go there even if its name comes to mean another one meanwhile.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
    /// The parent in which it was just made, and its name there.
    made: Option<(OwnedFd, OsString)>,
}

impl Directory {
    /// A directory of this account to which nobody else can write, for sockets, locks and state.
    /// Missing directories on the way are made with mode 0700.
    ///
    /// # Errors
    /// [`PlaceError`] naming the file or directory on the way that belongs to another account or is
    /// open to others, or another account's link.
    pub fn own(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Own, Some(PRIVATE))
    }

    /// The same for a directory that should exist.
    ///
    /// # Errors
    /// The same; `NotFound` if it does not exist.
    pub fn existing_own(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Own, None)
    }

    /// A directory that a user has named, whoever owns it; links of others are not followed.
    /// Missing directories are made with this mode.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn make(path: &Path, mode: u32) -> Result<Self> {
        Self::walk(path, Rule::Any, Some(mode))
    }

    /// The same for a directory that should exist.
    ///
    /// # Errors
    /// The same; `NotFound` if it does not exist.
    pub fn existing(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Any, None)
    }

    /// A new directory in this one, with mode 0700.
    ///
    /// # Errors
    /// [`PlaceError::Failed`], also if the name is taken.
    pub fn create_new(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(failed("make directory", &path))?;
        let made = Self::open(self.fd.as_fd(), name, path)?;
        made.must_be(us())?;
        Ok(made)
    }

    /// Gives the directory to an account; one that belongs to a third account is refused.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn give_to(&mut self, (uid, gid): Owner) -> Result<()> {
        if self.stat.st_uid != us() {
            self.must_be(uid)?;
        }
        if (self.stat.st_uid, self.stat.st_gid) != (uid, gid) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(&self.fd, Some(uid), Some(gid))
                .map_err(failed("change the owner of", &self.path))?;
            self.stat = rustix::fs::fstat(&self.fd).map_err(failed("look at", &self.path))?;
        }
        Ok(())
    }

    /// Removes it again, if it was just made and is empty.
    pub fn discard(self) {
        if let Some((parent, name)) = self.made {
            let _ = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }

    /// Its owner.
    pub fn owner(&self) -> Owner {
        (self.stat.st_uid, self.stat.st_gid)
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it, which nobody else may read until its mode is set.
    ///
    /// # Errors
    /// [`PlaceError::Failed`], also if the name is taken.
    pub fn create_file(&self, name: &str) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from)
            .map_err(failed("make", &self.path.join(name)))
    }

    /// Puts a file in the place of the one of that name, by a rename, so that there always is one;
    /// on an error the old file stays. With an owner, it belongs to that account.
    ///
    /// # Errors
    /// [`PlaceError::Failed`].
    pub fn replace(&self, name: &str, bytes: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
        let beside = format!("{name}.new");
        // Left by a try that was interrupted. It is unlinked by name: no link is followed.
        match rustix::fs::unlinkat(&self.fd, &*beside, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("remove", &self.path.join(&beside))(e)),
        }
        let file = self.create_file(&beside)?;
        let written = fill(&file, bytes, mode, owner).and_then(|()| {
            rustix::fs::renameat(&self.fd, &*beside, &self.fd, name)?;
            Ok(())
        });
        written.map_err(|source| {
            let _ = rustix::fs::unlinkat(&self.fd, &*beside, AtFlags::empty());
            PlaceError::Failed {
                verb: "write",
                path: self.path.join(name),
                source,
            }
        })
    }

    /// A lock file of this account: an existing one, or a new one with mode 0600.
    ///
    /// # Errors
    /// [`PlaceError`], also if it is a link or belongs to another account.
    pub fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match file {
            // The answer of NOFOLLOW to a link.
            Err(Errno::LOOP) => {
                let link = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("look at", &path))?;
                return Err(PlaceError::Link {
                    path,
                    owner: called(link.st_uid),
                });
            }
            file => file.map_err(failed("open", &path))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(failed("look at", &path))?;
        if stat.st_uid != us() {
            return Err(PlaceError::Foreign {
                path,
                owner: called(stat.st_uid),
                wanted: called(us()),
            });
        }
        Ok(file.into())
    }

    /// Makes a file and removes it: a program that is about to request something that is given only
    /// once has to know that it can store it.
    ///
    /// # Errors
    /// [`PlaceError::Failed`].
    pub fn try_writing(&self) -> Result<()> {
        let name = unused(".try");
        let path = self.path.join(&name);
        let file = self.create_file(&name)?;
        // A full disk shows only when data is written.
        let written = (&file).write_all(&[0; 4096]).and_then(|()| file.sync_all());
        let removed = rustix::fs::unlinkat(&self.fd, &*name, AtFlags::empty()).map_err(Into::into);
        written.and(removed).map_err(|source| PlaceError::Failed {
            verb: "write",
            path,
            source,
        })
    }

    /// Makes the names in it durable (fsync(2)), where the file system can.
    pub fn sync(&self) {
        let _ = rustix::fs::fsync(&self.fd);
    }

    fn must_be(&self, wanted: u32) -> Result<()> {
        match self.stat.st_uid == wanted {
            true => Ok(()),
            false => Err(PlaceError::Foreign {
                path: self.path.clone(),
                owner: called(self.stat.st_uid),
                wanted: called(wanted),
            }),
        }
    }

    fn open(at: impl AsFd, name: &str, path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            // Files can be made in a directory that cannot be listed.
            Err(Errno::ACCESS) => rustix::fs::openat(at, name, flags | OFlags::PATH, Mode::empty()),
            opened => opened,
        };
        let fd = fd.map_err(failed("open", &path))?;
        let stat = rustix::fs::fstat(&fd).map_err(failed("look at", &path))?;
        Ok(Self {
            fd,
            path,
            stat,
            made: None,
        })
    }

    fn walk(path: &Path, rule: Rule, make: Option<u32>) -> Result<Self> {
        let mut way = Way::begin(path)?;
        while let Some(name) = way.left.pop() {
            way.step(name, rule, make)?;
        }
        let mut found = Self::open(way.at.as_fd(), ".", way.seen.clone())?;
        if rule == Rule::Own {
            found.must_be(us())?;
            let mode = found.stat.st_mode & 0o7777;
            if mode & WRITABLE != 0 {
                return Err(PlaceError::Open {
                    path: found.path,
                    owner: called(us()),
                    mode,
                });
            }
        }
        (found.path, found.made) = (path.to_path_buf(), way.made);
        Ok(found)
    }
}

fn fill(mut file: &File, bytes: &[u8], mode: u32, owner: Option<Owner>) -> std::io::Result<()> {
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    file.write_all(bytes)?;
    // Its readers are decided when it is complete.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// The directory that a path lies in.
pub fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Whether this path is a directory of this account.
///
/// # Errors
/// [`PlaceError::Foreign`]: it belongs to another account or is not a directory.
pub fn is_our_directory(path: &Path) -> Result<bool> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(failed("look at", path)(e)),
        Ok(stat)
            if stat.st_uid == us()
                && FileType::from_raw_mode(stat.st_mode) == FileType::Directory =>
        {
            Ok(true)
        }
        Ok(stat) => {
            let wanted = format!("{} as a directory", called(us()));
            Err(PlaceError::Foreign {
                path: path.into(),
                owner: called(stat.st_uid),
                wanted,
            })
        }
    }
}

/// A name that nobody can predict.
fn unused(stem: &str) -> String {
    // Without randomness the name is only predictable: if it is taken, no file is made.
    format!("{stem}.{:016x}", random::number())
}

/// Replaces the content of a file in one step: after an interruption it has the old content or the
/// new one. Mode, and as root owner, stay as they are. A link to it is followed, as the user who
/// named it wants; links in its directory, where others may write too, are not.
///
/// # Errors
/// The system's errors.
pub fn rewrite(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let path = path.canonicalize()?;
    let before = rustix::fs::stat(&path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(unused(&format!(".{name}")));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&beside, flags, Mode::RUSR | Mode::WUSR)?);
    let owner = (us() == 0).then_some((before.st_uid, before.st_gid));
    let written = fill(&file, bytes, before.st_mode & 0o777, owner)
        .and_then(|()| std::fs::rename(&beside, &path));
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests;
