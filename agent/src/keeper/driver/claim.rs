//! The things that a keeper takes into possession before it starts anything: its lock, its control
//! groups, its socket.

use super::ending::LAST_PAUSE;
use super::{ContainmentWish, KeeperArgs, PREDECESSOR};
use crate::engine::can_spawn_into;
use crate::kernel::cgroup::{self, Place, Seat};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::escape::chain;
use mezcal_common::system::files::{self, Directory};
use rustix::event::poll;
use rustix::fd::OwnedFd;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::File;
use std::io::{Error, Result};
use std::path::Path;

pub(super) fn claim(args: &KeeperArgs) -> Result<Option<Place>> {
    if args.containment == ContainmentWish::Subreaper {
        return Ok(None);
    }
    // The same name for every keeper of one socket: the groups that a dead keeper left are found.
    let name = match &args.socket {
        Some(path) => format!("engines-{:016x}", fingerprint(path)),
        None => format!("run-{}", std::process::id()),
    };
    let seat = if args.socket.is_some() {
        Seat::Inside
    } else {
        Seat::Outside
    };
    match Place::claim(&name, seat, can_spawn_into) {
        Ok(place) => Ok(Some(place)),
        Err(e) if args.containment == ContainmentWish::Cgroup2 => Err(Error::new(
            e.kind(),
            format!("containment by control groups is requested but not available: {e}"),
        )),
        Err(e) => {
            tracing::info!("no control groups: {e}");
            Ok(None)
        }
    }
}

/// Waits until no engine of an earlier keeper is left. The processes that the earlier keeper had in
/// control groups are killed at once.
pub(super) fn take_lock(socket: &Path) -> Result<File> {
    let path = socket.with_extension("keeper");
    // In a directory of our own, nobody else can put another socket in the place of ours.
    let dir = Directory::own(files::parent(&path)).map_err(|e| Error::other(chain(&e)))?;
    let lock = dir
        .lock_file(&path.file_name().unwrap_or_default().to_string_lossy())
        .map_err(|e| Error::other(chain(&e)))?;
    let deadline = BootInstant::now() + PREDECESSOR;
    let mut waiting = false;
    while let Err(e) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if e != Errno::WOULDBLOCK || BootInstant::now() > deadline {
            return Err(Error::other(format!(
                "engines of an earlier keeper do not end ({} is locked)",
                path.display()
            )));
        }
        if !std::mem::replace(&mut waiting, true) {
            tracing::warn!("waiting for the engines of a keeper that died");
            cgroup::kill_stale(Path::new(std::fs::read_to_string(&path)?.trim()));
        }
        let _ = poll(&mut [], Some(&LAST_PAUSE));
    }
    lock.set_len(0)?;
    Ok(lock)
}

/// Binds a socket with these permissions. A socket without a listener is replaced.
pub(super) fn listen(path: &Path, mode: u32) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let _ = std::fs::remove_file(path);
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777 & !mode));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// A number of a path: the same path has the same number.
fn fingerprint(path: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}
