//! Files and directories in places where others may write, too: what is made here is not led
//! elsewhere by a link that somebody else has put in the way, and what others have made there is
//! refused.
//!
//! Paths are walked name by name, each opened below the one before (openat(2)) without following
//! it. A link is followed by hand where nobody but root and this account could have made it:
//! `/var/run`, `/lib`, or one's own below the home.

mod walk;

use crate::system::account;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use walk::{Rule, WRITABLE, Way};

/// Mode of directories that are nobody else's business.
pub const PRIVATE: u32 = 0o700;

/// Why a place is not used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// What the system refuses.
    #[error("cannot {verb} {}", path.display())]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its owner could change what is there at any time.
    #[error("{} belongs to {owner}, not to {wanted}: remove it, or choose another place", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Whose it should be.
        wanted: String,
    },
    /// Others could change what is there at any time.
    #[error("{} (of {owner}) can be changed by others (mode {mode:03o}): run `chmod go-w {}`, or choose another place", path.display(), path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A link where somebody else may make links.
    #[error("{} is a link that {owner} has made, where others than root and this account may make links: it is not followed; remove it, or choose another place", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Whose it is.
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

/// An account as people know it.
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

/// A directory that is open, and known by that: whatever happens to its name meanwhile, files go
/// there.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
    /// Where it was made just now, and under which name.
    made: Option<(OwnedFd, OsString)>,
}

impl Directory {
    /// A directory of this account's that nobody else can write to, for sockets, locks and state.
    /// What is missing is made, with mode 0700.
    ///
    /// # Errors
    /// [`PlaceError`] naming the file or directory on the way that is another's, open to others, or
    /// another's link.
    pub fn own(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Own, Some(PRIVATE))
    }

    /// The same for one that should be there.
    ///
    /// # Errors
    /// The same; `NotFound` if it is not there.
    pub fn existing_own(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Own, None)
    }

    /// A directory that somebody has named, whosever it is; without following others' links. What
    /// is missing is made with this mode.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn make(path: &Path, mode: u32) -> Result<Self> {
        Self::walk(path, Rule::Any, Some(mode))
    }

    /// The same for one that should be there.
    ///
    /// # Errors
    /// The same; `NotFound` if it is not there.
    pub fn existing(path: &Path) -> Result<Self> {
        Self::walk(path, Rule::Any, None)
    }

    /// A new directory in this one, with mode 0700.
    ///
    /// # Errors
    /// [`PlaceError::Failed`], also if there is something of that name.
    pub fn create_new(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(failed("make directory", &path))?;
        let made = Self::open(self.fd.as_fd(), name, path)?;
        made.must_be(us())?;
        Ok(made)
    }

    /// Gives the directory to an account, unless it is another one's than that or ours.
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

    /// Removes it again, if it was made just now and nothing has been put there.
    pub fn discard(self) {
        if let Some((parent, name)) = self.made {
            let _ = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        (self.stat.st_uid, self.stat.st_gid)
    }

    /// As it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it, which may be read by nobody else until its mode is set.
    ///
    /// # Errors
    /// [`PlaceError::Failed`], also if there is something of that name.
    pub fn create_file(&self, name: &str) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from)
            .map_err(failed("make", &self.path.join(name)))
    }

    /// Puts a file in the place of the one of that name, which is left as it is if that cannot be
    /// done; by a rename, so that there always is one. With an owner, it belongs to that account.
    ///
    /// # Errors
    /// [`PlaceError::Failed`].
    pub fn replace(&self, name: &str, bytes: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
        let beside = format!("{name}.new");
        // Of a try that was interrupted. A name, whatever it is of: nothing is followed.
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

    /// A file of this account's for a lock: there already, or made now with mode 0600.
    ///
    /// # Errors
    /// [`PlaceError`], also if it is a link or another's.
    pub fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match file {
            // What NOFOLLOW says of a link.
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

    /// Makes a file and removes it: whoever is about to ask for something that can be had once has
    /// to know that it can be kept.
    ///
    /// # Errors
    /// [`PlaceError::Failed`].
    pub fn try_writing(&self) -> Result<()> {
        let name = unused(".try");
        let path = self.path.join(&name);
        let file = self.create_file(&name)?;
        // A full disk shows when something is written.
        let written = (&file).write_all(&[0; 4096]).and_then(|()| file.sync_all());
        let removed = rustix::fs::unlinkat(&self.fd, &*name, AtFlags::empty()).map_err(Into::into);
        written.and(removed).map_err(|source| PlaceError::Failed {
            verb: "write",
            path,
            source,
        })
    }

    /// Makes the names in it last (fsync(2)), where the file system can.
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
            // Files can be made in what cannot be listed.
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
    // Whoever may read it is decided when all of it is there.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// The directory that something is in.
pub fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Whether a directory of this account's is there.
///
/// # Errors
/// [`PlaceError::Foreign`]: there is something else, whosever it is.
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

/// A name that nobody can foresee.
fn unused(stem: &str) -> String {
    let mut random = [0; 8];
    // A failure only makes it foreseeable: then there may be something of that name, and nothing is
    // made.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    format!("{stem}.{:016x}", u64::from_ne_bytes(random))
}

/// Replaces what is in a file in one step: whoever is interrupted leaves the old one or the new
/// one. Mode, and as root owner, stay as they are. A link to it is followed, as whoever named it
/// wants; in its directory, where others may write too, nothing is.
///
/// # Errors
/// Those of the files.
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
