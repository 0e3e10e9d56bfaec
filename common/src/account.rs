//! Accounts of this host.

/// What passwd(5) says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Looks an account up where every site keeps its own (getpwuid_r(3): files, LDAP, SSSD).
pub fn of(uid: u32) -> Option<Account> {
    let mut buffer = vec![0; 16 * 1024];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call; the strings of the entry live in `buffer`, which outlives their copies.
    unsafe {
        let code = libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found);
        if code != 0 || found.is_null() {
            return None;
        }
        let entry = entry.assume_init();
        let text = |p| std::ffi::CStr::from_ptr(p).to_string_lossy().into_owned();
        Some(Account { name: text(entry.pw_name), home: text(entry.pw_dir), shell: text(entry.pw_shell) })
    }
}

/// The name of the account that this process runs as, or its number.
pub fn own_name() -> String {
    let uid = rustix::process::geteuid().as_raw();
    of(uid).map_or_else(|| uid.to_string(), |account| account.name)
}
