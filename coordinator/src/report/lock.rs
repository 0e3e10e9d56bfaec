//! One writer for each file of results.

use crate::exit::Exit;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes this run the only writer of a file until it ends: flock(2).
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), Exit> {
    let shown = path.display();
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let holder = holder_of(file).map_or_else(
                || "another process, perhaps on another host".into(),
                |pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    format!(
                        "process {pid} ({})",
                        mezcal_common::model::escape::for_terminal(line.trim())
                    )
                },
            );
            Err(Exit::usage(format!(
                "{shown} is being written by {holder}; wait for its end, or choose another file"
            )))
        }
        // Some network file systems have no locks.
        Err(e) => {
            tell!(
                "coordinator: {shown} cannot be locked ({e}): make sure that no other run writes it"
            );
            Ok(())
        }
    }
}

/// The process that has locked a file, from /proc/locks (proc_locks(5)): `1: FLOCK  ADVISORY  WRITE
/// 708 00:21:1233 0 EOF`.
fn holder_of(file: &File) -> Option<i32> {
    let meta = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let fields = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|line| line.get(1) == Some(&"FLOCK") && line.get(5) == Some(&place.as_str()))
        .find_map(|line| line.get(4)?.parse().ok())
}
