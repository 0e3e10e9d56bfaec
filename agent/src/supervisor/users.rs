//! The engines of users, where root has enabled some: which there are, and whether they belong to
//! the users whose they seem to be.
//!
//! ```text
//!  /run/mezcal/engines/USER/       USER:mezcal-agent 2710: nobody else gets in
//!                          sock    the keeper of `mezcal-engines@USER.service` listens
//! ```

use crate::kernel::packet;
use crate::supervisor::input::EngineInput;
use mezcal_common::message::agent::Hello;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::system::account;
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The time between two looks at the users who are there.
const LOOK: Duration = Duration::from_secs(2);
/// Longest pause before a look for a keeper that has gone again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A keeper that was there for so long has its pauses forgotten.
const STEADY: Duration = Duration::from_secs(600);
/// Users that one host serves: each has its engines, which are processes.
const MAX_USERS: usize = 64;
/// The socket in a user's directory.
pub const SOCKET: &str = "sock";

/// How many users a host with this many slots can serve: engines are numbered with 16 bits.
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
        tracing::warn!(
            "jobs of {} users are not run: {most} can be served with {slots} slots",
            found.len() - most
        );
        found.truncate(most);
    }
    found
}

/// Looks for users' keepers that come later, or come back.
#[derive(Debug)]
pub struct Finder {
    dir: PathBuf,
    most: usize,
    /// When each user was found last, and how long not to look for that user again.
    found: HashMap<String, (BootInstant, Duration)>,
}

impl Finder {
    /// A finder in this directory, for a host with this many slots.
    pub fn new(dir: &Path, slots: u16) -> Self {
        Self {
            dir: dir.into(),
            most: most(slots),
            found: HashMap::new(),
        }
    }

    /// A number that tells the directory from any other on this boot.
    pub(crate) fn number(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(&self.dir).ok()?;
        Some(meta.dev().rotate_left(32) ^ meta.ino())
    }

    /// Hands on the keepers of users whom the hello does not name, for as long as somebody takes
    /// them.
    pub(crate) async fn look(
        mut self,
        hello: watch::Receiver<Hello>,
        inputs: mpsc::Sender<EngineInput>,
    ) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = BootInstant::now();
            let known = hello.borrow().users.clone().unwrap_or_default();
            for user in users(&self.dir) {
                let room =
                    self.found.contains_key(&user) || known.len().max(self.found.len()) < self.most;
                if known.contains(&user)
                    || !room
                    || self
                        .found
                        .get(&user)
                        .is_some_and(|(at, pause)| now.since(*at) < *pause)
                {
                    continue;
                }
                let Some(keeper) = connect(&self.dir, &user) else {
                    continue;
                };
                // A keeper that comes and goes must not keep the agent busy.
                let pause = match self.found.get(&user) {
                    Some((at, pause)) if now.since(*at) < STEADY => (*pause * 2).min(LONGEST_PAUSE),
                    _ => LOOK,
                };
                self.found.insert(user.clone(), (now, pause));
                if inputs.send(EngineInput::Found(user, keeper)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The users whose engines are there: the hello of the next connection names them, and the task
/// that looks for others passes them over.
pub(super) struct Present {
    hello: watch::Sender<Hello>,
    looking: Option<JoinHandle<()>>,
}

impl Present {
    /// The users that the hello names; `finder` looks for others from now on.
    pub(super) fn new(
        hello: watch::Sender<Hello>,
        finder: Option<Finder>,
        inputs: &mpsc::Sender<EngineInput>,
    ) -> Self {
        let look = |finder: Finder| tokio::spawn(finder.look(hello.subscribe(), inputs.clone()));
        let looking = finder.map(look);
        Self { hello, looking }
    }

    pub(super) fn comes(&self, user: String) {
        self.change(|users| users.push(user));
    }

    pub(super) fn goes(&self, gone: Option<&str>) {
        self.change(|users| users.retain(|user| Some(user.as_str()) != gone));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>)) {
        self.hello
            .send_modify(|hello| change(hello.users.get_or_insert_default()));
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}

/// Names of users with a socket.
fn users(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn socket(dir: &Path, user: &str) -> PathBuf {
    dir.join(user).join(SOCKET)
}

/// Connects to a user's keeper, if the process that listens there is that user's.
fn connect(dir: &Path, user: &str) -> Option<OwnedFd> {
    let account = account::named(user)?;
    match packet::connect(&socket(dir, user), account.uid) {
        Ok(keeper) => Some(keeper),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            tracing::error!(user, "{user} is not served: {e}");
            None
        }
        // Nobody listens, or not yet.
        Err(_) => None,
    }
}
