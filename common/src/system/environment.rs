//! Environment variables of our own programs.

use std::os::unix::ffi::OsStrExt;

/// The prefix of their names.
const OURS: &[u8] = b"MEZCAL_";

/// Removes our variables that are set to nothing from this process's environment: with
/// `MEZCAL_PROFILE= coordinator …` shells and service managers unset one for a single program.
///
/// # Safety
/// No other thread may run yet: it could read the environment meanwhile (setenv(3)).
pub unsafe fn forget_empty() {
    let empty = std::env::vars_os()
        .filter(|(name, value)| name.as_bytes().starts_with(OURS) && value.is_empty());
    for (name, _) in empty.collect::<Vec<_>>() {
        // SAFETY: our caller's promise.
        unsafe { std::env::remove_var(name) };
    }
}
