//! A service's messages to systemd (sd_notify(3)). Without a systemd that listens, they have no
//! effect.

use sd_notify::NotifyState;

/// The service is ready; `status` is for `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The present status, and a sign that the main loop still runs (`WatchdogSec=` in
/// systemd.service(5)).
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// The service reads its configuration again; [`ready`] follows.
pub fn reloading() {
    let states = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    match states {
        Ok(states) => tell(&states),
        Err(e) => tracing::debug!(error = %e, "no monotonic clock"),
    }
}

/// Whether SIGHUP requests that the configuration is read again. To a process with a terminal it
/// means that the terminal is gone.
pub fn hangup_reloads() -> bool {
    std::fs::File::open("/dev/tty").is_err()
}

/// The service is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!(error = %e, "the service manager does not listen");
    }
}
