//! What systemd is told of a service (sd_notify(3)). Without one that listens, nothing happens.

use sd_notify::NotifyState;

/// The service does its work; and what it does, for `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does now; and that its main loop still turns (`WatchdogSec=` in systemd.service(5)).
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// It reads its configuration again; [`ready`] follows.
pub fn reloading() {
    let states = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    match states {
        Ok(states) => tell(&states),
        Err(e) => tracing::debug!(error = %e, "no monotonic clock"),
    }
}

/// Whether a HUP asks for the configuration to be read again. To a process with a terminal it says
/// that the terminal is gone.
pub fn hangup_reloads() -> bool {
    std::fs::File::open("/dev/tty").is_err()
}

/// It is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!(error = %e, "the service manager does not listen");
    }
}
