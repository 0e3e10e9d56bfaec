//! The files of a certificate: written, or put in the place of others, both at once, even if the
//! process is killed.

use crate::CertsError;
use mezcal_common::model::identity::Role;
use mezcal_common::system::files::{self, Directory, Owner, PRIVATE};
use mezcal_common::wire::tls::{Credentials, SET_ASIDE};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Longer than any process takes to replace a certificate.
const TAKES_LESS: Duration = Duration::from_secs(3600);

/// A certificate with its key and root, as the three files `cert.pem`, `key.pem` and `ca.pem` hold
/// them.
pub struct Issued {
    /// The leaf.
    pub cert: String,
    /// Its private key.
    pub key: String,
    /// The root.
    pub ca: String,
}

impl Issued {
    /// Writes the three files into `dir`, which is made with mode 0700; the key has 0600 from its
    /// first byte. Existing files are replaced, each by a rename.
    ///
    /// # Errors
    /// [`CertsError::Place`].
    pub fn write(&self, dir: &Path) -> Result<(), CertsError> {
        self.write_into(&Directory::make(dir, PRIVATE)?, None)
    }

    /// The same in an open directory, for the account that should own the files.
    ///
    /// # Errors
    /// [`CertsError::Place`].
    pub fn write_into(&self, dir: &Directory, owner: Option<Owner>) -> Result<(), CertsError> {
        for (name, text, mode) in [
            ("key.pem", &self.key, 0o600),
            ("ca.pem", &self.ca, 0o644),
            ("cert.pem", &self.cert, 0o644),
        ] {
            dir.replace(name, text.as_bytes(), mode, owner)?;
        }
        Ok(())
    }
}

/// Puts a new certificate and its key in the place of those in `dir`, after checking that they can
/// be used: both at once, even if the process is killed.
///
/// # Errors
/// [`CertsError`]; the old ones stay.
pub fn replace(dir: &Path, role: Role, cert: String, key: String) -> Result<(), CertsError> {
    let path = dir.join("ca.pem");
    let ca = std::fs::read_to_string(&path).map_err(|source| CertsError::File {
        verb: "read",
        path,
        source,
    })?;
    Credentials::from_pem(cert.as_bytes(), key.as_bytes(), ca.as_bytes(), role, dir)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // Several commands of a user may do this at once.
    let new = format!(".{name}.{}.new", std::process::id());
    let beside = dir.with_file_name(&new);
    let failed = |source: std::io::Error| CertsError::File {
        verb: "replace",
        path: dir.into(),
        source,
    };
    // Directories of interrupted tries; their content, which may come from others, is not read.
    for left in left_beside(dir, &name, TAKES_LESS) {
        if files::is_our_directory(&left)? {
            keep_others(&left, dir)
                .and_then(|()| std::fs::remove_dir_all(&left))
                .map_err(failed)?;
        }
    }
    let parent = Directory::existing(files::parent(dir))?;
    // Root may do this for the account that owns the files.
    let owner = if rustix::process::geteuid().is_root() {
        Some(Directory::existing(dir)?.owner())
    } else {
        None
    };
    let mut made = parent.create_new(&new)?;
    Issued { cert, key, ca }.write_into(&made, owner)?;
    made.sync();
    if let Some(owner) = owner {
        made.give_to(owner)?;
    }
    let here = rustix::fs::CWD;
    let exchanged = match rustix::fs::renameat_with(
        here,
        &beside,
        here,
        dir,
        rustix::fs::RenameFlags::EXCHANGE,
    ) {
        // As on NFS (rename(2), RENAME_EXCHANGE).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => exchange(&beside, dir),
        exchanged => exchanged.map_err(Into::into),
    };
    if let Err(e) = exchanged {
        let _ = std::fs::remove_dir_all(&beside);
        return Err(failed(e));
    }
    // The new one is in place, even if the old one's directory cannot be removed: the next renewal
    // removes it.
    if keep_others(&beside, dir).is_ok() {
        let _ = std::fs::remove_dir_all(&beside);
    }
    // A coordinator that revokes the old one when it sees the new one must not find the old one
    // here after a power failure.
    parent.sync();
    Ok(())
}

/// Checks that [`replace`] could write there, before a certificate is requested.
///
/// # Errors
/// [`CertsError::Place`].
pub fn can_replace(dir: &Path) -> Result<(), CertsError> {
    Ok(Directory::existing(files::parent(dir))?.try_writing()?)
}

/// Other files that were kept beside a certificate stay beside the new one.
fn keep_others(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if !["key.pem", "ca.pem", "cert.pem"]
            .iter()
            .any(|ours| entry.file_name() == *ours)
        {
            std::fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Directories of this account that remain from processes that were killed while they replaced the
/// certificate in `dir`: those of this process's number, and those that are at least as old as
/// `rest`.
fn left_beside(dir: &Path, name: &str, rest: Duration) -> Vec<PathBuf> {
    let is_left = |path: &Path| {
        // A rename counts; changes inside the directory do not.
        let since = std::fs::symlink_metadata(path)
            .map(|meta| UNIX_EPOCH + Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32));
        since.is_ok_and(|since| since.elapsed().is_ok_and(|ago| ago >= rest))
            && files::is_our_directory(path).unwrap_or(false)
    };
    let number = |path: &Path| {
        let rest = path
            .file_name()?
            .to_str()?
            .strip_prefix(&format!(".{name}."))?;
        rest.strip_suffix(".new")
            .or_else(|| rest.strip_suffix(&format!(".{SET_ASIDE}")))?
            .parse::<u32>()
            .ok()
    };
    let entries = std::fs::read_dir(files::parent(dir))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| {
            number(path).is_some_and(|number| number == std::process::id() || is_left(path))
        })
        .collect()
}

fn third(beside: &Path) -> PathBuf {
    beside.with_extension(SET_ASIDE)
}

/// Exchanges two directories in steps, where the file system cannot do it at once.
fn exchange(beside: &Path, dir: &Path) -> std::io::Result<()> {
    let third = third(beside);
    std::fs::rename(dir, &third)?;
    if let Err(e) = std::fs::rename(beside, dir) {
        let _ = std::fs::rename(&third, dir);
        return Err(e);
    }
    std::fs::rename(&third, beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, request};
    use mezcal_common::wire::tls::{CredentialsError, IdentityFiles};

    // Long: one directory from its first replacement to one that was killed halfway.
    #[test]
    fn a_new_certificate_takes_the_place_of_the_old_one_and_of_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = dir.path().join("mezcal");
        let (authority, _) = Authority::create("mezcal").expect("created");
        authority
            .issue(Role::User, "okazaki", 1)
            .expect("issued")
            .write(&identity)
            .expect("written");
        std::fs::create_dir(identity.join("profiles")).expect("made");
        std::fs::write(identity.join("profiles/mezcal.toml"), "kept").expect("written");
        let new = authority.issue(Role::User, "okazaki", 1).expect("issued");
        // A certificate of another key does not.
        let (old, (other, _)) = (
            std::fs::read_to_string(identity.join("key.pem")).expect("there"),
            request().expect("a key"),
        );
        let refused = replace(&identity, Role::User, new.cert.clone(), other).expect_err("no pair");
        assert!(
            matches!(refused, CertsError::Useless(CredentialsError::Pair { .. })),
            "{refused:?}"
        );
        assert_eq!(
            std::fs::read_to_string(identity.join("key.pem")).expect("there"),
            old
        );
        // Some tries were interrupted; other directories are too new to tell.
        let interrupted = |number: u32| dir.path().join(format!(".mezcal.{number}.new"));
        for (number, file) in [(std::process::id(), "more"), (0, "theirs")] {
            std::fs::create_dir(interrupted(number)).expect("made");
            std::fs::write(interrupted(number).join(file), "kept").expect("written");
        }
        std::fs::create_dir(dir.path().join(".mezcal.no.new")).expect("made");
        assert_eq!(
            left_beside(&identity, "mezcal", TAKES_LESS),
            [interrupted(std::process::id())]
        );
        assert_eq!(
            left_beside(&identity, "mezcal", Duration::ZERO).len(),
            2,
            "later on they are left, too"
        );
        std::fs::remove_dir(dir.path().join(".mezcal.no.new")).expect("removed");
        replace(&identity, Role::User, new.cert.clone(), new.key).expect("replaced");
        assert_eq!(
            std::fs::read_to_string(identity.join("more")).expect("there"),
            "kept"
        );
        std::fs::remove_dir_all(interrupted(0)).expect("left to whoever is at it");
        assert_eq!(
            std::fs::read_to_string(identity.join("cert.pem")).expect("there"),
            new.cert
        );
        assert_eq!(
            std::fs::read_to_string(identity.join("profiles/mezcal.toml")).expect("there"),
            "kept"
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            1,
            "nothing is left beside it"
        );
        // In steps.
        let other = dir.path().join("other.new");
        std::fs::create_dir(&other).expect("made");
        exchange(&other, &identity).expect("exchanged");
        assert!(other.join("profiles").exists() && !identity.join("profiles").exists());
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            2,
            "nothing else is left"
        );
        assert!(
            exchange(&dir.path().join("none"), &identity).is_err() && identity.exists(),
            "it is put back"
        );
        // Killed between two steps.
        std::fs::rename(&identity, third(&dir.path().join(".mezcal.1.new"))).expect("renamed");
        assert!(
            IdentityFiles::read(&identity).is_err() && identity.exists(),
            "it is put back, and is the empty one"
        );
    }

    #[test]
    fn whoever_reads_while_a_certificate_is_replaced_finds_a_pair() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = dir.path().join("mezcal");
        let (authority, _) = Authority::create("mezcal").expect("created");
        authority
            .issue(Role::User, "okazaki", 1)
            .expect("issued")
            .write(&identity)
            .expect("written");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    Credentials::load(&identity, Role::User)
                        .map(|_| ())
                        .expect("a pair");
                }
            });
            for _ in 0..200 {
                let new = authority.issue(Role::User, "okazaki", 1).expect("issued");
                replace(&identity, Role::User, new.cert, new.key).expect("replaced");
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().expect("it found a pair each time");
        });
    }
}
