//! Counters of this host and of this process that tell why a job was killed and how much it has
//! used.

use mezcal_common::model::clock::BootInstant;
use rustix::fd::OwnedFd;
use std::cell::Cell;
use std::time::Duration;

/// The count of out-of-memory kills is read again after this long: the kernel writes two hundred
/// lines for it.
const OOM_KILLS_RECENT: Duration = Duration::from_millis(250);

/// Counters of this host and of this process, from files that stay open.
pub(super) struct HostCounters {
    /// None if the control groups count better.
    vmstat: Option<OwnedFd>,
    /// When the count was read last, and its value.
    oom_kills: Cell<Option<(BootInstant, u64)>>,
    status: Option<OwnedFd>,
    /// This process's page faults when its memory peak was read, and that peak.
    peak: Cell<(i64, u64)>,
}

impl HostCounters {
    pub(super) fn open(groups_count_memory: bool) -> Self {
        let open = |path| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
        };
        Self {
            vmstat: if groups_count_memory {
                None
            } else {
                open("/proc/vmstat")
            },
            oom_kills: Cell::new(None),
            status: open("/proc/self/status"),
            peak: Cell::new((-1, u64::MAX)),
        }
    }

    /// Processes that the kernel had killed for want of memory by `now` or shortly before, since
    /// boot.
    pub(super) fn recent_oom_kills(&self, now: BootInstant) -> Option<u64> {
        let recent = self
            .oom_kills
            .get()
            .filter(|(read, _)| now.since(*read) < OOM_KILLS_RECENT);
        recent
            .map(|(_, kills)| kills)
            .or_else(|| self.oom_kills(now))
    }

    /// The same count as of now (`oom_kill` of /proc/vmstat, Linux 4.13).
    pub(super) fn oom_kills(&self, now: BootInstant) -> Option<u64> {
        let kills = number_after(self.vmstat.as_ref()?, "oom_kill ");
        self.oom_kills.set(kills.map(|kills| (now, kills)));
        kills
    }

    /// This process's own memory peak, in bytes (`VmHWM`, proc(5)). Memory grows by page faults: if
    /// there are no new ones, the peak has not changed.
    pub(super) fn own_peak(&self) -> u64 {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is valid for writing; rusage is plain data, and zeroed is one of its
        // values.
        let faults = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init().ru_minflt
        };
        if self.peak.get().0 != faults {
            let peak = self
                .status
                .as_ref()
                .and_then(|file| number_after(file, "VmHWM:"));
            self.peak
                .set((faults, peak.map_or(u64::MAX, |kib| kib * 1024)));
        }
        self.peak.get().1
    }
}

/// The number behind `key` at the start of a line of a file in /proc.
fn number_after(file: &OwnedFd, key: &str) -> Option<u64> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut offset = 0;
    loop {
        // Whole lines, and no more than a page of them at a time.
        let (text, _) = rustix::io::pread(file, &mut buffer, offset).ok()?;
        if text.is_empty() {
            return None;
        }
        if let Some(rest) = std::str::from_utf8(text)
            .ok()?
            .lines()
            .find_map(|line| line.strip_prefix(key))
        {
            return rest.split_ascii_whitespace().next()?.parse().ok();
        }
        offset += text.len() as u64;
    }
}
