//! The files of a certificate: read as a whole, even while they are being replaced.

use super::error::CredentialsError;
use crate::system::files;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The content of the files of one directory, all of one time: a renewal replaces the whole
/// directory.
pub struct IdentityFiles {
    /// Content of `cert.pem`.
    pub cert: Vec<u8>,
    /// Content of `key.pem`.
    pub key: Vec<u8>,
    /// Content of `ca.pem`.
    pub ca: Vec<u8>,
    pub(super) key_stat: Stat,
}

/// End of the name of a directory that is set aside, beside its place, while another takes that
/// place, on file systems that cannot exchange the two.
pub const SET_ASIDE: &str = "old";

/// Puts a directory back that was set aside: the process that exchanged two directories in steps
/// may have been killed between them. If it is still running, its exchange fails.
fn put_back(dir: &Path) {
    let begin = format!(
        ".{}.",
        dir.file_name().unwrap_or_default().to_string_lossy()
    );
    for entry in std::fs::read_dir(files::parent(dir))
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let aside = entry.file_name().to_string_lossy().starts_with(&begin)
            && path.extension().is_some_and(|e| e == SET_ASIDE);
        if aside && files::is_our_directory(&path).unwrap_or(false) {
            let _ = std::fs::rename(&path, dir);
        }
    }
}

impl IdentityFiles {
    /// Reads the files of `dir`.
    ///
    /// # Errors
    /// [`CredentialsError::Read`].
    pub fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let failed = |e: Errno| CredentialsError::Read {
            path: dir.join("cert.pem"),
            source: e.into(),
        };
        let open = || {
            rustix::fs::open(
                dir,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        loop {
            let opened = match open() {
                Err(Errno::NOENT) => {
                    put_back(dir);
                    open()
                }
                opened => opened,
            };
            let opened = opened.map_err(failed)?;
            let read = Self::read_in(&opened, dir);
            let gone = |e: &CredentialsError| matches!(e, CredentialsError::Read { source, .. } if source.kind() == ErrorKind::NotFound);
            if !read.as_ref().is_err_and(gone) {
                return read;
            }
            let place = |stat: Stat| (stat.st_dev, stat.st_ino);
            // Otherwise another directory has come into its place, and this one is being removed.
            let ours = place(rustix::fs::fstat(&opened).map_err(failed)?);
            if rustix::fs::stat(dir).is_ok_and(|now| place(now) == ours) {
                return read;
            }
        }
    }

    fn read_in(opened: &OwnedFd, dir: &Path) -> Result<Self, CredentialsError> {
        let read = |name: &str| {
            let read = || {
                let mut file = File::from(rustix::fs::openat(
                    opened,
                    name,
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?);
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok((bytes, rustix::fs::fstat(&file)?))
            };
            read().map_err(|source| CredentialsError::Read {
                path: dir.join(name),
                source,
            })
        };
        let ((cert, _), (key, key_stat), (ca, _)) =
            (read("cert.pem")?, read("key.pem")?, read("ca.pem")?);
        Ok(Self {
            cert,
            key,
            ca,
            key_stat,
        })
    }
}
