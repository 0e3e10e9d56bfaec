//! The engines of users, where root has enabled some: which there are, and whether they are whose they seem to be.
//!
//! ```text
//!  /run/mezcal/engines/USER/       USER:mezcal-agent 2710: nobody else gets in
//!                          sock    the keeper of `mezcal-engines@USER.service` listens
//! ```

use crate::packet;
use mezcal_common::account;
use rustix::fd::OwnedFd;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at who is there.
const LOOK: Duration = Duration::from_secs(2);
/// Users that one host serves: each has its engines, which are processes.
const MAX_USERS: usize = 64;
/// The socket in a user's directory.
pub const SOCKET: &str = "sock";

/// How many users a host with so many slots can serve: engines are numbered with 16 bits.
fn most(slots: u16) -> usize {
    MAX_USERS.min(usize::from(u16::MAX) / usize::from(slots.max(1)))
}

/// Connects to the keepers of all users in `dir`.
pub fn connect_all(dir: &Path, slots: u16) -> Vec<(String, OwnedFd)> {
    let most = most(slots);
    let mut found: Vec<(String, OwnedFd)> = Vec::new();
    for user in users(dir) {
        if let Some(keeper) = connect(dir, &user) {
            found.push((user, keeper));
        }
    }
    if found.len() > most {
        tracing::warn!("jobs of {} users are not run: {most} can be served with {slots} slots", found.len() - most);
        found.truncate(most);
    }
    found
}

/// Completes when a user's engines are there that are not among `known`; never without users.
pub async fn change(dir: &Path, known: Option<&[String]>, slots: u16) {
    let Some(known) = known else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK).await;
        if known.len() < most(slots) && users(dir).iter().any(|user| !known.contains(user) && connect(dir, user).is_some()) {
            return;
        }
    }
}

/// Names of users with a socket.
fn users(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn socket(dir: &Path, user: &str) -> PathBuf {
    dir.join(user).join(SOCKET)
}

/// Connects to a user's keeper, if that is who listens there.
fn connect(dir: &Path, user: &str) -> Option<OwnedFd> {
    let account = account::named(user)?;
    match packet::connect(&socket(dir, user), account.uid) {
        Ok(keeper) => Some(keeper),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            tracing::error!(user, "this user is not served: {e}");
            None
        }
        // Nobody is there, or not yet.
        Err(_) => None,
    }
}
