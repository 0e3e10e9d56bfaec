//! What the environment says to our own programs.

use std::os::unix::ffi::OsStrExt;

/// Of variables whose names begin so.
const OURS: &[u8] = b"MEZCAL_";

/// Takes our variables that are set to nothing out of this process's environment: `MEZCAL_PROFILE=
/// coordinator …` is how shells and service managers unset one for a single program.
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
