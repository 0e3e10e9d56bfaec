//! The context that a client's process gives its jobs: its directory, its umask, its patience.

use crate::exit::Exit;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

/// Time between TERM and KILL after the first Ctrl-C.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// A path on any host, relative to the directory of this process, as a text that stands for its
/// bytes.
pub(crate) fn absolute(path: &Path) -> Result<String, Exit> {
    let path = match path.is_absolute() {
        true => path.to_owned(),
        false => std::env::current_dir().map(|here| here.join(path)).map_err(|e| {
            Exit::usage(format!(
                "this directory has no name ({e}; was it removed?): go to another one, or give --cd an absolute path"
            ))
        })?,
    };
    Ok(mezcal_common::model::octets::text(
        path.into_os_string().into_vec(),
    ))
}

/// umask(2) can only be read by setting it; nothing else runs yet.
pub(crate) fn current_umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode()
}
