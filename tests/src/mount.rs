//! File systems that behave badly: one that hangs, by FUSE (the kernel's filesystems/fuse
//! documentation) with a server that answers only the first message; and one that is full.

use crate::wait_for;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A mount that hangs until it is dropped.
pub struct HungMount {
    dir: PathBuf,
}

/// FUSE_INIT and the sizes of its messages (linux/fuse.h).
const INIT: u32 = 26;
const OUT_HEADER: usize = 16;
const INIT_OUT: usize = 64;
/// The smallest buffer that the kernel accepts for reading requests is 8 KiB.
const BUFFER: usize = 64 * 1024;

impl HungMount {
    /// Mounts it at `dir`, which is created. With `deaf`, requests are taken and never answered: a
    /// process that waits for one cannot even be killed. Otherwise they are not taken, and SIGKILL
    /// ends the wait. `None`, with the reason printed, where it cannot be mounted.
    pub fn new(dir: &Path, deaf: bool) -> Option<Self> {
        std::fs::create_dir(dir).expect("a directory");
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(e) => {
                crate::say_skipped(&format!("a hung mount (/dev/fuse: {e})"));
                return None;
            }
        };
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let c = |text: &str| std::ffi::CString::new(text).expect("no NUL");
        let (source, target, kind, data) = (
            c("mezcal-hung"),
            c(&dir.display().to_string()),
            c("fuse"),
            c(&options),
        );
        // SAFETY: all strings end with NUL and outlive the call.
        let mounted = unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                0,
                data.as_ptr().cast(),
            )
        };
        if mounted != 0 {
            crate::say_skipped(&format!(
                "a hung mount (mount: {})",
                std::io::Error::last_os_error()
            ));
            return None;
        }
        std::thread::spawn(move || serve(device, deaf));
        Some(Self { dir: dir.into() })
    }
}

fn serve(mut device: File, deaf: bool) {
    let mut request = vec![0; BUFFER];
    // Ends with an error when the file system is unmounted.
    while let Ok(n) = device.read(&mut request) {
        let word =
            |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        if n >= 16 && word(4) == INIT {
            let mut answer = vec![0u8; OUT_HEADER + INIT_OUT];
            answer[..4].copy_from_slice(&((OUT_HEADER + INIT_OUT) as u32).to_ne_bytes());
            answer[8..16].copy_from_slice(&request[8..16]);
            // Version 7.31, nothing else: no flags, default sizes.
            answer[16..20].copy_from_slice(&7u32.to_ne_bytes());
            answer[20..24].copy_from_slice(&31u32.to_ne_bytes());
            answer[36..40].copy_from_slice(&4096u32.to_ne_bytes());
            device
                .write_all(&answer)
                .expect("the kernel takes the answer");
            if !deaf {
                // The device stays open, and no more requests are read.
                std::thread::park();
            }
        }
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        let target = std::ffi::CString::new(self.dir.display().to_string()).expect("no NUL");
        // SAFETY: the string outlives the call. Forced: a process that waits gets an error.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

/// A disk that can be filled: a file system in memory, in a mount namespace of its own that lasts
/// as long as this value.
pub struct Disk {
    /// It reads from us, and so ends with us.
    holder: Child,
    dir: PathBuf,
}

impl Disk {
    /// Mounts a disk at `dir`, which is created; `size` as for mount(8). Needs root.
    pub fn mount(dir: &Path, size: &str) -> Self {
        std::fs::create_dir_all(dir).expect("made");
        let script = "mount -t tmpfs -o size=\"$1\" none \"$2\" && exec cat";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh", size])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let holder = command.spawn().expect("unshare starts");
        let comm = format!("/proc/{}/comm", holder.id());
        wait_for("the disk is mounted", Duration::from_secs(10), || {
            std::fs::read_to_string(&comm)
                .ok()
                .filter(|comm| comm.trim() == "cat")
        });
        Self {
            holder,
            dir: dir.into(),
        }
    }

    /// The option with which nsenter(1) runs a program where the disk is visible.
    pub fn entrance(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.holder.id())
    }

    /// The path of its directory from here.
    pub fn path(&self) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.holder.id()))
            .join(self.dir.strip_prefix("/").expect("an absolute path"))
    }

    /// Fills the disk.
    pub fn fill(&self) {
        let ballast = File::options()
            .create(true)
            .append(true)
            .open(self.ballast());
        let mut ballast = ballast.expect("made");
        while ballast.write_all(&[7; 4096]).is_ok() {}
    }

    /// Frees the space again.
    pub fn free(&self) {
        // The disk may not have been filled.
        let _ = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
