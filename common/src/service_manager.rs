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

/// It is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!(error = %e, "the service manager does not listen");
    }
}
