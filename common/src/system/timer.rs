//! A timer on CLOCK_BOOTTIME for tokio's loops (timerfd_create(2)): deadlines also pass while the
//! host sleeps.

use crate::model::clock::BootInstant;
use rustix::fd::{AsFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// One timer, armed for at most one instant.
pub struct BootTimer {
    fd: AsyncFd<OwnedFd>,
    armed: Option<BootInstant>,
}

impl BootTimer {
    /// A timer that is not armed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new() -> std::io::Result<Self> {
        let fd = new_timerfd()?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same as long as it is
        // registered.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd, armed: None })
    }

    /// Waits until `instant` or a little less, for ever if there is none. Cancel-safe.
    ///
    /// A timer that is armed for an earlier instant is left alone, and fires then: deadlines that
    /// mostly move forward would otherwise cost a system call each time.
    ///
    /// # Errors
    /// Those of timerfd_settime(2).
    pub async fn until(&mut self, instant: Option<BootInstant>) -> std::io::Result<()> {
        if instant.is_some_and(|wanted| self.armed.is_none_or(|armed| wanted < armed)) {
            arm(self.fd.get_ref(), instant)?;
            self.armed = instant;
        }
        loop {
            let mut guard = self.fd.readable().await?;
            let mut count = [0; 8];
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(done) => {
                    self.armed = None;
                    return done.map(|_| ());
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// A non-blocking timerfd on CLOCK_BOOTTIME, for loops without tokio.
///
/// # Errors
/// Those of timerfd_create(2).
pub fn new_timerfd() -> std::io::Result<OwnedFd> {
    Ok(timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?)
}

/// About 270 years, in seconds.
const FAR: u64 = 1 << 33;

/// Arms a timerfd for an absolute instant, or disarms it.
///
/// # Errors
/// Those of timerfd_settime(2).
pub fn arm(fd: impl AsFd, instant: Option<BootInstant>) -> std::io::Result<()> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // An all-zero value would disarm: an instant in the past is at least a nanosecond after boot.
    let value = instant.map_or(zero, |i| {
        let d = i.0.max(Duration::from_nanos(1));
        // A deadline centuries away never comes; the kernel refuses larger numbers.
        Timespec {
            tv_sec: d.as_secs().min(FAR) as i64,
            tv_nsec: i64::from(d.subsec_nanos()),
        }
    });
    timerfd_settime(
        fd,
        TimerfdTimerFlags::ABSTIME,
        &Itimerspec {
            it_interval: zero,
            it_value: value,
        },
    )?;
    Ok(())
}
