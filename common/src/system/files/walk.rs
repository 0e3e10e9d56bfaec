//! The way to a directory, name by name: the links that are followed, and the directories that are
//! accepted.

use super::{PlaceError, Result, called, failed, us};
use crate::system::account;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// As many links in one path as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Permission bits that let accounts other than the owner write.
pub(super) const WRITABLE: u32 = 0o022;

/// In a directory with this bit only owners can rename and remove files (`/tmp`).
const STICKY: u32 = 0o1000;

/// Everybody may write.
const OTHERS: u32 = 0o002;

/// Rule for the directories on a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Of this account, closed to others, and reached by ways that nobody else can change.
    Own,
    /// Of any account; only links of others are not followed.
    Any,
}

/// The walk along a path.
pub(super) struct Way {
    pub(super) at: OwnedFd,
    pub(super) seen: PathBuf,
    /// The remaining names, the next one last.
    pub(super) left: Vec<OsString>,
    pub(super) links: u32,
    /// The last name if it was just made: parent and name.
    pub(super) made: Option<(OwnedFd, OsString)>,
    /// Whether it stands at this account's home, which is trusted whoever owns it.
    pub(super) home: bool,
    /// The owner of `/`, who can change everything: root, or where root's id is not mapped
    /// (user_namespaces(7)), the id that stands for unmapped ones.
    pub(super) root: u32,
}

impl Way {
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let whole = std::path::absolute(path).map_err(|source| PlaceError::Failed {
            verb: "find",
            path: path.into(),
            source,
        })?;
        let (begin, rest, home) = match home_of(&whole) {
            Some((home, rest)) => (home, rest, true),
            None => (PathBuf::from("/"), whole, false),
        };
        let root = rustix::fs::stat("/")
            .map_err(failed("look at", Path::new("/")))?
            .st_uid;
        let at = Self::open(CWD, begin.as_os_str(), true, &begin)?;
        let mut way = Self {
            at,
            seen: begin,
            left: Vec::new(),
            links: 0,
            made: None,
            home,
            root,
        };
        way.push(&rest);
        Ok(way)
    }

    pub(super) fn open(
        at: impl AsFd,
        name: &std::ffi::OsStr,
        follow: bool,
        path: &Path,
    ) -> Result<OwnedFd> {
        let more = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        rustix::fs::openat(at, name, flags, Mode::empty()).map_err(failed("open", path))
    }

    /// Puts names before the remaining ones.
    fn push(&mut self, path: &Path) {
        let names = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        });
        self.left.extend(names);
    }

    fn trusts(&self, uid: u32) -> bool {
        uid == us() || uid == 0 || uid == self.root
    }

    /// Fails for a directory in which others than root and this account can make changes.
    fn must_be_ours(&self, dir: &Stat) -> Result<()> {
        let mode = dir.st_mode & 0o7777;
        let (path, owner) = (self.seen.clone(), called(dir.st_uid));
        if !self.trusts(dir.st_uid) {
            let wanted = called(us());
            return Err(PlaceError::Foreign {
                path,
                owner,
                wanted,
            });
        }
        if mode & OTHERS != 0 && mode & STICKY == 0 {
            return Err(PlaceError::Open { path, owner, mode });
        }
        Ok(())
    }

    pub(super) fn step(&mut self, name: OsString, rule: Rule, make: Option<u32>) -> Result<()> {
        let dir = rustix::fs::fstat(&self.at).map_err(failed("look at", &self.seen))?;
        let mode = dir.st_mode & 0o7777;
        if rule == Rule::Own && !self.home {
            self.must_be_ours(&dir)?;
        }
        let path = self.seen.join(&name);
        let found = match rustix::fs::statat(&self.at, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => match make {
                Some(mode) => {
                    match rustix::fs::mkdirat(&self.at, &*name, Mode::from_raw_mode(mode)) {
                        // Another process may have made it first.
                        made @ (Ok(()) | Err(Errno::EXIST)) => {
                            let last = made.is_ok() && self.left.is_empty();
                            let parent = if last { self.at.try_clone().ok() } else { None };
                            self.made = parent.map(|parent| (parent, name.clone()));
                            rustix::fs::statat(&self.at, &*name, AtFlags::SYMLINK_NOFOLLOW)
                        }
                        Err(e) => return Err(failed("make directory", &path)(e)),
                    }
                }
                None => Err(Errno::NOENT),
            },
            found => found,
        };
        let found = found.map_err(failed("open", &path))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            (self.at, self.seen) = (Self::open(&self.at, &name, false, &path)?, path);
            self.home = false;
            return Ok(());
        }
        // A directory that others can write to may contain links of theirs, and its owner may put
        // any link there.
        let ours = self.trusts(dir.st_uid) && (mode & WRITABLE == 0 || self.trusts(found.st_uid));
        if !self.home && !ours {
            return Err(PlaceError::Link {
                path,
                owner: called(found.st_uid),
            });
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(failed("open", &path)(Errno::LOOP));
        }
        let target =
            rustix::fs::readlinkat(&self.at, &*name, Vec::new()).map_err(failed("read", &path))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            (self.at, self.seen) = (
                Self::open(CWD, "/".as_ref(), true, Path::new("/"))?,
                "/".into(),
            );
            self.home = false;
        }
        self.push(&target);
        Ok(())
    }
}

/// The home that a path is below, and the rest of it. Directories above a home are not checked
/// (sshd's `StrictModes` ends there, too).
fn home_of(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let uid = us();
    let passwd = account::of(uid).map(|account| PathBuf::from(account.home));
    // With sudo(8) root's HOME may be another account's.
    let lent = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|_| uid != 0);
    let homes = passwd
        .into_iter()
        .chain(lent)
        .filter(|home| home.is_absolute() && home.parent().is_some());
    homes
        .filter_map(|home| Some((home.clone(), path.strip_prefix(&home).ok()?.to_path_buf())))
        .find(|(home, _)| home.is_dir())
}
