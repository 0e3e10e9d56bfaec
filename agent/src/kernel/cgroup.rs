//! Control groups, version 2 (cgroups(7), the kernel's admin-guide/cgroup-v2.rst): a place of our
//! own below the one that we were given.
//!
//! ```text
//!  where the keeper was started      a group that systemd delegated, a container's root, or any group that we may write to
//!  └─ mezcal-…                       claimed by the keeper, given up at its end
//!     ├─ supervisor                  keeper and engines of a service; those of an embedded run stay where they were started
//!     └─ slot-1-7                    the leaf of one engine's attempt
//! ```
//!
//! A leaf serves attempt after attempt until it has been killed for the first time: since Linux
//! 6.14 the kernel compares the kill counts of the parent's group and of the new one, and kills a
//! child that is born into a group which was ever killed. With the memory controller each attempt
//! has a fresh leaf, whose peak is its own.
//!
//! Nothing above our place is touched but `cgroup.subtree_control` of the group that we were given,
//! and that only if no process other than ours is in it. Also a hybrid system's `unified` hierarchy
//! serves: `cgroup.kill` and `cpu.stat` need no controller.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the processes of a keeper that died may take to die.
const STALE_DEATH: Duration = Duration::from_secs(10);
/// Prefix of all places.
const PREFIX: &str = "mezcal-";
const SUPERVISOR: &str = "supervisor";

/// The place of keeper and engines. To move there takes a grace period of RCU, about 10 ms, and so
/// does the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// In the place: a successor of the keeper can kill them with their attempts, and the group
    /// above can pass controllers on.
    Inside,
    /// Where the keeper was started. It shares its parent's fate, and the parent is there, too.
    Outside,
}

/// The keeper's place.
#[derive(Debug)]
pub(crate) struct Place {
    seat: Seat,
    /// Locked, so that another keeper does not take this place for one that a dead keeper left.
    _claim: OwnedFd,
    base: PathBuf,
    dir: PathBuf,
    memory: bool,
    /// The memory controller is on in `base` because of us.
    enabled: bool,
}

impl Place {
    /// Makes a place called `mezcal-NAME` and takes the seat. Processes that a dead keeper left
    /// under the same name are killed. `try_out` says of a leaf whether attempts can run there.
    ///
    /// # Errors
    /// There is no version 2 hierarchy, no permission, a kernel without `cgroup.kill`; and those of
    /// `try_out`.
    pub(crate) fn claim(
        name: &str,
        seat: Seat,
        try_out: impl FnOnce(&Leaf) -> Result<()>,
    ) -> Result<Self> {
        let base = own_group()?;
        remove_empty(&base);
        let dir = base.join(format!("{PREFIX}{name}"));
        if dir.exists() {
            end_stale(&dir)?;
        }
        fs::create_dir(&dir).map_err(|e| named(&dir, e))?;
        let claim = lock(&dir).map_err(|e| named(&dir, e))?;
        let mut place = Self {
            seat,
            _claim: claim,
            base,
            dir,
            memory: false,
            enabled: false,
        };
        match place.settle(try_out) {
            Ok(()) => Ok(place),
            Err(e) => {
                place.give_up();
                Err(e)
            }
        }
    }

    fn settle(&mut self, try_out: impl FnOnce(&Leaf) -> Result<()>) -> Result<()> {
        if !self.dir.join("cgroup.kill").exists() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the kernel has no cgroup.kill (Linux 5.14)",
            ));
        }
        if self.seat == Seat::Inside {
            let supervisor = self.dir.join(SUPERVISOR);
            fs::create_dir(&supervisor).map_err(|e| named(&supervisor, e))?;
            write(&supervisor.join("cgroup.procs"), "0")?;
        }
        let has_memory = |file: &str| {
            fs::read_to_string(file)
                .is_ok_and(|t| t.split_ascii_whitespace().any(|c| c == "memory"))
        };
        let file = |dir: &Path, name: &str| dir.join(name).display().to_string();
        if !has_memory(&file(&self.dir, "cgroup.controllers"))
            && has_memory(&file(&self.base, "cgroup.controllers"))
        {
            // A group with processes cannot pass controllers on; the root can, but it is
            // everybody's.
            let ours_alone = fs::read_to_string(self.base.join("cgroup.procs"))
                .is_ok_and(|pids| pids.is_empty());
            let root = !self.base.join("cgroup.type").exists();
            self.enabled = ours_alone
                && !root
                && write(&self.base.join("cgroup.subtree_control"), "+memory").is_ok();
        }
        self.memory = has_memory(&file(&self.dir, "cgroup.controllers"))
            && write(&self.dir.join("cgroup.subtree_control"), "+memory").is_ok();
        let probe = self.leaves(u16::MAX).next()?;
        let works = try_out(&probe);
        probe.remove();
        works
    }

    /// The leaves for the attempts of one engine.
    pub(crate) fn leaves(&self, slot: u16) -> Leaves {
        Leaves::new(self.dir.clone(), slot, self.memory)
    }

    /// The directory of the place.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Kills the processes in the leaves of one engine, which is dead.
    pub(crate) fn kill_leaves(&self, slot: u16) {
        let prefix = format!("slot-{slot}-");
        for dir in children(&self.dir) {
            if dir
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(&prefix))
            {
                // The leaf may have been killed by the engine that is dead: an attempt of its
                // successor must not be born into it.
                let _ = write(&dir.join("cgroup.kill"), "1");
                remove_tree(&dir);
            }
        }
    }

    /// Moves this process back to where it came from and removes the place. Everything else in it
    /// must have ended.
    pub(crate) fn give_up(&self) {
        if self.enabled {
            let _ = write(&self.dir.join("cgroup.subtree_control"), "-memory");
            let _ = write(&self.base.join("cgroup.subtree_control"), "-memory");
        }
        // A group that cannot be removed is removed by the next keeper that starts here, or goes
        // with the service manager's unit.
        if self.seat == Seat::Inside {
            let _ = write(&self.base.join("cgroup.procs"), "0");
        }
        remove_tree(&self.dir);
    }
}

/// The leaves of one engine.
#[derive(Debug)]
pub(crate) struct Leaves {
    parent: PathBuf,
    slot: u16,
    memory: bool,
    made: u64,
    kept: Option<std::sync::Arc<Leaf>>,
}

impl Leaves {
    pub(crate) fn new(parent: PathBuf, slot: u16, memory: bool) -> Self {
        Self {
            parent,
            slot,
            memory,
            made: 0,
            kept: None,
        }
    }

    /// Whether leaves know their memory, and the processes that were killed for want of it.
    pub(crate) fn count_memory(&self) -> bool {
        self.memory
    }

    /// The leaf for the next attempt. The one before must be empty.
    ///
    /// # Errors
    /// The leaf cannot be made or opened.
    pub(crate) fn next(&mut self) -> Result<std::sync::Arc<Leaf>> {
        if let Some(leaf) = self.kept.take().filter(|leaf| !leaf.is_used_up()) {
            self.kept = Some(leaf.clone());
            return Ok(leaf);
        }
        // A number that an engine which died here may have left is passed over.
        let made = loop {
            self.made += 1;
            match Leaf::make(
                self.parent
                    .join(format!("slot-{}-{}", self.slot, self.made)),
                self.memory,
            ) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                made => break made?,
            }
        };
        let leaf = std::sync::Arc::new(made);
        self.kept = Some(leaf.clone());
        Ok(leaf)
    }
}

/// One control group that holds the processes of one attempt at a time.
#[derive(Debug)]
pub(crate) struct Leaf {
    path: PathBuf,
    dir: OwnedFd,
    kill: OwnedFd,
    events: OwnedFd,
    cpu: OwnedFd,
    /// The leaf has the memory controller, and is for one attempt: a peak cannot be reset.
    memory: bool,
    killed: AtomicBool,
}

impl Leaf {
    fn make(path: PathBuf, memory: bool) -> Result<Self> {
        fs::create_dir(&path).map_err(|e| named(&path, e))?;
        let open = |name: &str, flags| -> Result<OwnedFd> {
            let file = path.join(name);
            rustix::fs::open(&file, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| named(&file, e.into()))
        };
        let files = || -> Result<[OwnedFd; 4]> {
            let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
            let (kill, events) = (
                open("cgroup.kill", OFlags::WRONLY)?,
                open("cgroup.events", OFlags::RDONLY)?,
            );
            Ok([dir, kill, events, open("cpu.stat", OFlags::RDONLY)?])
        };
        match files() {
            Ok([dir, kill, events, cpu]) => Ok(Self {
                path,
                dir,
                kill,
                events,
                cpu,
                memory,
                killed: AtomicBool::new(false),
            }),
            Err(e) => {
                // The next try has another number: each try would leave one more group.
                let _ = fs::remove_dir(&path);
                Err(e)
            }
        }
    }

    /// For `CLONE_INTO_CGROUP` (clone(2)).
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Sends KILL to all processes in it at once, forks under way included.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        // Processes that could not be killed show when `populated` is asked next.
        let _ = rustix::io::pwrite(&self.kill, b"1", 0);
    }

    /// Whether a process is in it, zombies not counted.
    pub(crate) fn populated(&self) -> bool {
        let mut buffer = [0; 64];
        let read = rustix::io::pread(&self.events, &mut buffer, 0).unwrap_or(0);
        buffer[..read].starts_with(b"populated 1")
    }

    /// How many processes are in it.
    pub(crate) fn count(&self) -> u32 {
        fs::read_to_string(self.path.join("cgroup.procs"))
            .map_or(0, |pids| pids.lines().count() as u32)
    }

    /// User and system time of all processes that were ever in it.
    pub(crate) fn cpu(&self) -> Option<(Duration, Duration)> {
        let mut buffer = [0; 256];
        let read = rustix::io::pread(&self.cpu, &mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..read]).ok()?;
        let value = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
            Some(Duration::from_micros(line.trim().parse().ok()?))
        };
        Some((value("user_usec")?, value("system_usec")?))
    }

    /// Largest memory use of all processes in it together, page cache included; Linux 5.19 and the
    /// memory controller.
    pub(crate) fn memory_peak(&self) -> Option<u64> {
        if !self.memory {
            return None;
        }
        fs::read_to_string(self.path.join("memory.peak"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Processes in it that the out-of-memory killer has killed; none without the memory
    /// controller.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        if !self.memory {
            return None;
        }
        let text = fs::read_to_string(self.path.join("memory.events")).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }

    /// Removes the leaf, if it cannot serve another attempt.
    pub(crate) fn remove_if_used_up(&self) {
        if self.is_used_up() {
            self.remove();
        }
    }

    fn is_used_up(&self) -> bool {
        self.memory || self.killed.load(Ordering::Relaxed)
    }

    fn remove(&self) {
        remove_tree(&self.path);
    }
}

/// The directory of the version 2 group that this process is in.
fn own_group() -> Result<PathBuf> {
    let none = |why: &str| Error::new(ErrorKind::Unsupported, why.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // proc(5): "ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAGS…] - TYPE SOURCE OPTIONS"
    let mount = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        right
            .starts_with("cgroup2 ")
            .then_some((fields.next()?, fields.next()?))
    });
    let (root, point) = mount.ok_or_else(|| none("no control groups of version 2 are mounted"))?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| none("this process is in no group"))?;
    let below = Path::new(own)
        .strip_prefix(root)
        .map_err(|_| none("this process's group is outside of what is mounted"))?;
    if below.components().any(|c| c.as_os_str() == "..") {
        return Err(none("this process's group is outside of its namespace"));
    }
    // Joining an empty path would end the name with a slash.
    Ok(if below.as_os_str().is_empty() {
        point.into()
    } else {
        Path::new(point).join(below)
    })
}

/// Kills all processes in the place of a dead keeper, if `dir` is such a place.
pub(crate) fn kill_stale(dir: &Path) {
    if dir
        .file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| n.starts_with(PREFIX))
    {
        let _ = write(&dir.join("cgroup.kill"), "1");
    }
}

/// Ends all processes in a group and removes it: its keeper is dead.
fn end_stale(dir: &Path) -> Result<()> {
    write(&dir.join("cgroup.kill"), "1")?;
    let deadline = Instant::now() + STALE_DEATH;
    while populated(dir) {
        if Instant::now() >= deadline {
            return Err(Error::other(format!(
                "{} holds processes of an earlier keeper that do not die",
                dir.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    remove_tree(dir);
    Ok(())
}

/// Removes the empty places of earlier keepers.
fn remove_empty(base: &Path) {
    for dir in children(base) {
        let ours = dir
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(PREFIX));
        // A keeper that is just starting claims its group a moment after it has made it.
        let old = fs::metadata(&dir)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| t.elapsed().ok());
        if ours
            && !populated(&dir)
            && old.is_some_and(|age| age > STALE_DEATH)
            && lock(&dir).is_ok()
        {
            remove_tree(&dir);
        }
    }
}

/// Locks a group's directory for as long as the descriptor is open; fails if another process holds
/// the lock.
fn lock(dir: &Path) -> Result<OwnedFd> {
    let fd = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

/// Removes a group and the groups that jobs have made below it. A group that is not empty stays,
/// and is removed with its parent or by the next keeper.
fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&child);
    }
    let _ = fs::remove_dir(dir);
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn populated(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.starts_with("populated 1"))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).map_err(|e| named(file, e))
}

/// An error with the file that it is about; its number is kept.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
struct AtFile {
    path: PathBuf,
    error: Error,
}

fn named(path: &Path, error: Error) -> Error {
    Error::new(
        error.kind(),
        AtFile {
            path: path.to_owned(),
            error,
        },
    )
}

/// The system's number behind an error of this module, if there is one.
pub(crate) fn errno(error: &Error) -> Option<rustix::io::Errno> {
    let at_file = error.get_ref().and_then(|e| e.downcast_ref::<AtFile>());
    at_file
        .map_or(error, |at| &at.error)
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
}
