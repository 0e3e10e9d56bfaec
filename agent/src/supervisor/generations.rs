//! Which generation of which coordinator's store this host has met. A store that was restored from
//! a copy and its original give out jobs without knowing of each other; an agent that has met the
//! newer one does not work for the other any more.
//!
//! The generation is kept for as long as the host exists: an agent that was started again, also
//! after a reboot, must not go back. Nothing else of an agent is kept so long.

use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{Generation, StoreId};
use mezcal_common::system::files;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Restored stores that are remembered: those of one cluster's coordinators, over the years. The
/// newest stay.
const MOST: usize = 64;

/// The generations met, of stores that were ever restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met(BTreeMap<StoreId, Generation>);

/// The judgement of an agent on a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The agent has met this generation, or it is an original.
    Known,
    /// This generation counts from now on, once it is remembered.
    Newer,
    /// The agent has met this other generation, which is newer.
    Older(Generation),
}

impl Met {
    /// Judges a coordinator's store of this generation.
    pub fn judge(&self, store: StoreId, generation: Generation) -> Meeting {
        let met = self.0.get(&store).copied().unwrap_or_default();
        match generation.cmp(&met) {
            std::cmp::Ordering::Less => Meeting::Older(met),
            std::cmp::Ordering::Equal => Meeting::Known,
            std::cmp::Ordering::Greater => Meeting::Newer,
        }
    }

    /// This generation counts from now on.
    pub fn remember(&mut self, store: StoreId, generation: Generation) {
        self.0.insert(store, generation);
        while self.0.len() > MOST
            && let Some(oldest) = self
                .0
                .iter()
                .min_by_key(|(_, generation)| **generation)
                .map(|(store, _)| *store)
        {
            self.0.remove(&oldest);
        }
    }
}

/// The generations met, and the file that keeps them.
#[derive(Debug)]
pub struct Generations {
    met: Met,
    /// None: this agent ends with its coordinator.
    file: Option<PathBuf>,
}

impl Generations {
    /// The generations of an agent that ends with its coordinator, and never meets another one.
    pub fn of_one_life() -> Self {
        Self {
            met: Met::default(),
            file: None,
        }
    }

    /// The generations that `file` has; none if the file is not there yet.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn load(file: PathBuf) -> std::io::Result<Self> {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let mut met = Met::default();
        for line in text.lines() {
            let (store, generation) = read_line(line).ok_or_else(|| {
                std::io::Error::new(
                    ErrorKind::InvalidData,
                    format!("{line:?} is not a generation"),
                )
            })?;
            met.remember(store, generation);
        }
        Ok(Self {
            met,
            file: Some(file),
        })
    }

    /// Meets a coordinator. A newer generation is remembered before any work is done for it.
    ///
    /// # Errors
    /// The text says that the agent does not work for this coordinator, and the way out.
    pub fn meet(&mut self, store: StoreId, generation: Generation) -> Result<(), String> {
        match self.met.judge(store, generation) {
            Meeting::Known => Ok(()),
            Meeting::Newer => {
                let mut met = self.met.clone();
                met.remember(store, generation);
                if let Some(file) = &self.file {
                    write(file, &met).map_err(|e| {
                        format!(
                            "its store was {generation}, and that cannot be recorded in {}: {e}; \
                             fix that, so that this host never works for an older copy beside it",
                            file.display()
                        )
                    })?;
                }
                self.met = met;
                Ok(())
            }
            Meeting::Older(met) => Err(format!(
                "its store was {generation}, and this host has worked for the same store as {met}: only the newest may give out jobs; stop this \
                 coordinator, or, if it is the one to keep, make a copy of its store (`coordinator backup`) and put that in place (`coordinator \
                 restore`), which makes it the newest"
            )),
        }
    }
}

fn read_line(line: &str) -> Option<(StoreId, Generation)> {
    let mut words = line.split_ascii_whitespace();
    let store = StoreId(u64::from_str_radix(words.next()?, 16).ok()?);
    let (restores, since) = (
        words.next()?.parse().ok()?,
        WallTime(words.next()?.parse().ok()?),
    );
    words
        .next()
        .is_none()
        .then_some((store, Generation { since, restores }))
}

fn write(file: &Path, met: &Met) -> std::io::Result<()> {
    let lines = met.0.iter().map(|(store, generation)| {
        format!(
            "{:016x} {} {}\n",
            store.0, generation.restores, generation.since.0
        )
    });
    let text: String = lines.collect();
    let directory = files::parent(file);
    std::fs::create_dir_all(directory)?;
    let new = file.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    // A new file follows no symbolic link.
    let mut out = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&new, file)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(since: i64) -> Generation {
        Generation {
            since: WallTime(since),
            restores: 1,
        }
    }

    #[test]
    fn a_host_that_has_met_a_restored_store_works_for_no_older_one_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("state/generations");
        let store = StoreId(0xfeed_0000_0000_0001);
        let mut generations = Generations::load(file.clone()).expect("there is none yet");
        generations
            .meet(store, Generation::default())
            .expect("an original");
        assert!(!file.exists(), "of originals nothing is kept");
        generations.meet(store, restored(100)).expect("newer");
        let mut again = Generations::load(file.clone()).expect("readable");
        again.meet(store, restored(100)).expect("known");
        for older in [Generation::default(), restored(99)] {
            let said = again.meet(store, older).expect_err("older");
            assert!(
                said.contains("only the newest may give out jobs")
                    && said.contains("coordinator restore"),
                "{said}"
            );
        }
        again
            .meet(StoreId(5), Generation::default())
            .expect("another store is another matter");
        again.meet(store, restored(101)).expect("newer yet");
        std::fs::write(&file, "nonsense").expect("written");
        assert!(
            Generations::load(file).is_err(),
            "what cannot be read is not taken for nothing"
        );
    }

    #[test]
    fn a_generation_that_cannot_be_remembered_is_not_worked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("state"), "a file, and no directory").expect("written");
        let mut generations = Generations {
            met: Met::default(),
            file: Some(dir.path().join("state/generations")),
        };
        let said = generations
            .meet(StoreId(1), restored(100))
            .expect_err("it is forgotten at the next start");
        assert!(said.contains("cannot be recorded in"), "{said}");
        generations
            .meet(StoreId(1), Generation::default())
            .expect("nothing was met");
    }

    #[test]
    fn as_many_stores_are_remembered_as_a_site_can_have() {
        let mut met = Met::default();
        for n in 0..200 {
            met.remember(StoreId(n), restored(1000 - n as i64));
        }
        assert_eq!(
            (met.0.len(), met.judge(StoreId(0), Generation::default())),
            (MOST, Meeting::Older(restored(1000)))
        );
    }
}
