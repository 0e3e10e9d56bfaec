//! The files that a run writes: they are compared with each other and with its input, and opened
//! only when the job list has been accepted.
//!
//! Files are compared, not spellings: `./x`, a link to `x` and `x` as standard input are one file.
//! A results file has one writer at a time.

use crate::exit::Exit;
use crate::report::lock::lock;
use crate::report::resume::Rewritten;
use mezcal_common::system::files;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FileType;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most links that are followed to the place of a new file; the kernel's own limit
/// (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The files that a run is told to write, and its inputs.
#[derive(Clone, Debug)]
pub struct Wishes<'a> {
    /// The job list, or the files with arguments of a template; `-`: standard input.
    pub inputs: Vec<PathBuf>,
    /// `-o`; none: standard output.
    pub results: Option<&'a Path>,
    /// `-l`; none: standard error.
    pub log: Option<&'a Path>,
    /// What happens to the old content of the files.
    pub old: Old,
}

/// The treatment of an output file that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// A results file that is not empty is refused; a log is appended to.
    Refused,
    /// Results take its place (`--force`); a log is appended to.
    Replaced,
    /// Results and log are appended to (`--resume`).
    Kept,
    /// Results and log are emptied, as Bakapara did.
    Emptied,
}

/// One regular file, by any of its names.
#[derive(Debug, PartialEq, Eq)]
enum Which {
    /// An existing file, by device and inode.
    There(u64, u64),
    /// A file that would be made here.
    New(PathBuf),
}

impl Which {
    fn of(path: &Path) -> Option<Self> {
        match std::fs::metadata(path) {
            Ok(meta) => meta.is_file().then(|| Self::There(meta.dev(), meta.ino())),
            Err(_) => {
                let mut path = path.to_owned();
                for _ in 0..MAX_LINKS {
                    let Ok(target) = std::fs::read_link(&path) else {
                        break;
                    };
                    path = path.parent().unwrap_or(Path::new("")).join(target);
                }
                let parent = files::parent(&path).canonicalize().ok()?;
                Some(Self::New(parent.join(path.file_name()?)))
            }
        }
    }

    fn of_open(fd: impl AsFd) -> Option<Self> {
        let stat = rustix::fs::fstat(fd).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
            .then_some(Self::There(stat.st_dev, stat.st_ino))
    }
}

/// The path, unless it is `-`, which means the standard stream.
fn named(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| path.as_os_str() != "-")
}

/// The mode of a new file that has texts of jobs from these files: a user who may not read them
/// there may not read them here. The umask applies, as everywhere.
fn mode_like(sources: &[PathBuf]) -> u32 {
    let files = sources
        .iter()
        .filter_map(|path| std::fs::metadata(named(Some(path))?).ok())
        .filter(std::fs::Metadata::is_file);
    files.fold(0o666, |mode, meta| mode & meta.mode()) | 0o600
}

impl Wishes<'_> {
    /// Refuses files that would be written and read, or written twice. Opens and makes nothing.
    ///
    /// # Errors
    /// Exit 2 naming both files.
    pub fn check(&self) -> Result<(), Exit> {
        let input = |path: &PathBuf| match named(Some(path)) {
            Some(path) => Which::of(path),
            None => Which::of_open(std::io::stdin()),
        };
        let inputs: Vec<Which> = self.inputs.iter().filter_map(input).collect();
        let is_read =
            |file: &Option<Which>| file.as_ref().is_some_and(|file| inputs.contains(file));
        let (results, shown) = match named(self.results) {
            Some(path) => (Which::of(path), path.display().to_string()),
            None => (
                Which::of_open(std::io::stdout()),
                "standard output".to_owned(),
            ),
        };
        let log = named(self.log).map(|path| (Which::of(path), path.display()));
        if is_read(&results) {
            return Err(Exit::usage(format!(
                "{shown} is the input, too: results would overwrite it; choose another file for -o"
            )));
        }
        if let Some((log, path)) = log {
            if is_read(&log) {
                return Err(Exit::usage(format!(
                    "{path} is the input, too: log lines would be written into it; choose another file for -l"
                )));
            }
            if log.is_some() && results == log {
                return Err(Exit::usage(format!(
                    "{path} gets the results ({shown}), too: log lines would be mixed with them; choose another file for -l"
                )));
            }
        }
        Ok(())
    }

    /// Opens the results file. [`Results::open`] empties it, when everything else is ready.
    ///
    /// # Errors
    /// Exit 2: it cannot be written, it has results, or another run writes it.
    pub fn results(&self, kept: Option<Vec<u8>>) -> Result<Results, Exit> {
        let Some(path) = named(self.results) else {
            return Ok(Results::Stdout);
        };
        let shown = path.display();
        let file = loop {
            let mode = mode_like(&self.inputs);
            let open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .open(path);
            // A device or a pipe may allow only writing.
            let open = open.or_else(|_| OpenOptions::new().write(true).open(path));
            let file = open.map_err(|e| Exit::usage(format!("cannot write {shown}: {e}")))?;
            if !file.metadata().is_ok_and(|meta| meta.is_file()) {
                break file;
            }
            lock(&file, path)?;
            // A run that has just ended may have replaced the file.
            if Which::of_open(&file) == Which::of(path) {
                break file;
            }
        };
        let meta = file
            .metadata()
            .map_err(|e| Exit::usage(format!("cannot examine {shown}: {e}")))?;
        if meta.is_file() && meta.len() > 0 && self.old == Old::Refused {
            return Err(Exit::usage(format!(
                "{shown} is not empty; --force overwrites it, and --resume continues it"
            )));
        }
        Ok(Results::File {
            file,
            path: path.to_owned(),
            append: self.old == Old::Kept,
            kept,
        })
    }

    /// Opens the log.
    ///
    /// # Errors
    /// Exit 2: it cannot be written.
    pub fn log(&self) -> Result<Option<File>, Exit> {
        let Some(path) = named(self.log) else {
            return Ok(None);
        };
        let mut options = OpenOptions::new();
        let options = match self.old {
            Old::Emptied => options.write(true).truncate(true),
            Old::Refused | Old::Replaced | Old::Kept => options.append(true),
        };
        options
            .create(true)
            .mode(mode_like(&self.inputs))
            .open(path)
            .map(Some)
            .map_err(|e| Exit::usage(format!("cannot write {}: {e}", path.display())))
    }
}

/// The place for results: checked first, emptied only when everything else is ready.
pub enum Results {
    /// Standard output.
    Stdout,
    /// A file without another writer.
    File {
        /// The open and locked file.
        file: File,
        /// Its path.
        path: PathBuf,
        /// Whether new lines are appended.
        append: bool,
        /// The old content that stays, once the first new line comes, if some of it goes.
        kept: Option<Vec<u8>>,
    },
}

impl Results {
    /// Standard output, if it is a pipe.
    pub fn pipe(&self) -> Option<OwnedFd> {
        let stdout = std::io::stdout();
        let kind = rustix::fs::fstat(&stdout)
            .ok()
            .map(|s| FileType::from_raw_mode(s.st_mode));
        match self {
            Results::Stdout if kind == Some(FileType::Fifo) => {
                stdout.as_fd().try_clone_to_owned().ok()
            }
            Results::Stdout | Results::File { .. } => None,
        }
    }

    /// Whether results go to a terminal.
    pub fn is_terminal(&self) -> bool {
        match self {
            Results::Stdout => std::io::stdout().is_terminal(),
            Results::File { file, .. } => file.is_terminal(),
        }
    }

    /// Begins to write.
    ///
    /// # Errors
    /// Exit 74: the file cannot be written.
    pub fn open(self) -> Result<Box<dyn Write + Send>, Exit> {
        match self {
            Results::Stdout => Ok(Box::new(std::io::stdout())),
            Results::File {
                file,
                path,
                append: true,
                kept: Some(kept),
            } => Ok(Box::new(Rewritten::new(file, path, kept))),
            Results::File {
                mut file,
                path,
                append: true,
                kept: None,
            } => {
                let end = file.seek(SeekFrom::End(0));
                end.map_err(|e| Exit::output(format!("cannot append to {}: {e}", path.display())))?;
                Ok(Box::new(file))
            }
            Results::File {
                file,
                path,
                append: false,
                ..
            } => {
                if file.metadata().is_ok_and(|m| m.is_file()) {
                    file.set_len(0).map_err(|e| {
                        Exit::output(format!("cannot empty {}: {e}", path.display()))
                    })?;
                }
                Ok(Box::new(file))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn wishes<'a>(input: &'a Path, results: Option<&'a Path>, log: Option<&'a Path>) -> Wishes<'a> {
        Wishes {
            inputs: vec![input.to_owned()],
            results,
            log,
            old: Old::Replaced,
        }
    }

    #[test]
    fn one_file_in_two_roles_is_refused_however_it_is_spelled() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("jobs"), "{}\n").expect("written");
        std::fs::create_dir(at("sub")).expect("made");
        symlink(at("jobs"), at("link")).expect("linked");
        std::fs::hard_link(at("jobs"), at("hard")).expect("linked");
        symlink("nowhere", at("dangling")).expect("linked");
        let (jobs, other) = (at("jobs"), at("other"));
        for spelling in ["jobs", "./jobs", "sub/../jobs", "link", "hard"].map(at) {
            assert!(
                wishes(&jobs, Some(&spelling), None).check().is_err(),
                "{spelling:?} as results"
            );
            assert!(
                wishes(&jobs, Some(&other), Some(&spelling))
                    .check()
                    .is_err(),
                "{spelling:?} as log"
            );
            assert!(
                wishes(&spelling, Some(&jobs), None).check().is_err(),
                "{spelling:?} as input"
            );
        }
        for (results, log) in [
            ("new", "./new"),
            ("new", "sub/../new"),
            ("nowhere", "dangling"),
            ("dangling", "sub/../nowhere"),
        ] {
            let refused = wishes(&jobs, Some(&at(results)), Some(&at(log))).check();
            assert!(refused.is_err(), "{results} and {log}");
        }
        assert!(
            wishes(&jobs, Some(&at("new")), Some(&at("newer")))
                .check()
                .is_ok()
        );
        let null = Path::new("/dev/null");
        assert!(
            wishes(&jobs, Some(null), Some(null)).check().is_ok(),
            "a device takes everything"
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            5,
            "nothing was made"
        );
    }

    #[test]
    fn a_results_file_has_one_writer_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().expect("a directory");
        let (jobs, path) = (dir.path().join("jobs"), dir.path().join("results"));
        let wishes = Wishes {
            old: Old::Kept,
            ..wishes(&jobs, Some(&path), None)
        };
        let first = wishes.results(None).expect("free");
        let refused = wishes.results(None).err().expect("it is taken");
        assert_eq!(refused.status, crate::exit::USAGE);
        assert!(
            refused
                .message
                .contains(&format!("process {}", std::process::id())),
            "{}",
            refused.message
        );
        drop(first);
        assert!(wishes.results(None).is_ok());
    }

    #[test]
    fn a_log_keeps_what_it_has_unless_bakapara_is_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (jobs, log) = (dir.path().join("jobs"), dir.path().join("log"));
        std::fs::write(&log, "old\n").expect("written");
        let wishes = wishes(&jobs, None, Some(&log));
        writeln!(wishes.log().expect("opened").expect("a file"), "new").expect("written");
        assert_eq!(
            std::fs::read_to_string(&log).expect("readable"),
            "old\nnew\n"
        );
        let emptied = Wishes {
            old: Old::Emptied,
            ..wishes.clone()
        };
        drop(emptied.log().expect("opened"));
        assert_eq!(std::fs::read_to_string(&log).expect("readable"), "");
        assert!(
            Wishes {
                log: Some(Path::new("-")),
                ..wishes
            }
            .log()
            .expect("standard error")
            .is_none()
        );
    }
}
