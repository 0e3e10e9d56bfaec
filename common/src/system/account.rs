//! Accounts of this host.

/// A user's entry in passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Looks an account up in the databases that the site uses (getpwuid_r(3): files, LDAP, SSSD).
pub fn of(uid: u32) -> Option<Account> {
    // SAFETY: `look_up` gives pointers that are valid for the call.
    look_up(|entry, buffer, length, found| unsafe {
        libc::getpwuid_r(uid, entry, buffer, length, found)
    })
}

/// The same by its login name (getpwnam_r(3)).
pub fn named(name: &str) -> Option<Account> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: as above, and `name` ends with NUL.
    look_up(|entry, buffer, length, found| unsafe {
        libc::getpwnam_r(name.as_ptr(), entry, buffer, length, found)
    })
}

type Found = *mut *mut libc::passwd;

fn look_up(
    call: impl FnOnce(*mut libc::passwd, *mut libc::c_char, usize, Found) -> libc::c_int,
) -> Option<Account> {
    let mut buffer = vec![0; 16 * 1024];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    let code = call(
        entry.as_mut_ptr(),
        buffer.as_mut_ptr(),
        buffer.len(),
        &mut found,
    );
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call has filled it; its strings live in `buffer`, which outlives their copies.
    unsafe {
        let entry = entry.assume_init();
        let text = |p| std::ffi::CStr::from_ptr(p).to_string_lossy().into_owned();
        Some(Account {
            name: text(entry.pw_name),
            uid: entry.pw_uid,
            gid: entry.pw_gid,
            home: text(entry.pw_dir),
            shell: text(entry.pw_shell),
        })
    }
}

/// Becomes the owner of a directory for good, if this process is root and the directory is another
/// account's: a path in it, links included, then leads only to files that its owner could have
/// reached.
///
/// # Errors
/// Those of stat(2), setgroups(2), setresgid(2) and setresuid(2).
pub fn act_as_owner(directory: &std::path::Path) -> std::io::Result<()> {
    let found = match rustix::fs::stat(directory) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        found => found?,
    };
    let (uid, gid) = (found.st_uid, found.st_gid);
    if !rustix::process::geteuid().is_root() || uid == 0 {
        return Ok(());
    }
    let done = |code: libc::c_int| {
        if code == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: they change only the account for which this process acts, in all of its threads
    // (nptl(7)); `gid` lives through the call.
    unsafe {
        done(libc::setgroups(1, &gid))?;
        done(libc::setresgid(gid, gid, gid))?;
        done(libc::setresuid(uid, uid, uid))
    }
}

/// The name of the account that this process runs as, or its number.
pub fn own_name() -> String {
    name_of(rustix::process::geteuid().as_raw())
}

/// The name of an account, or its number.
pub fn name_of(uid: u32) -> String {
    of(uid).map_or_else(|| uid.to_string(), |account| account.name)
}
