//! The messages to the service manager about an agent that is a service.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::system::service_manager;
use std::time::Duration;

/// A service without a coordinator counts as up after this time all the same: a host must not fail
/// to boot for that.
const READY_WITHOUT: Duration = Duration::from_secs(30);

/// The standing of the agent, as it was told last.
pub(super) struct Standing {
    coordinator: String,
    ready: bool,
    since: BootInstant,
}

impl Standing {
    pub(super) fn new(coordinator: &str) -> Self {
        Self {
            coordinator: coordinator.into(),
            ready: false,
            since: BootInstant::now(),
        }
    }

    pub(super) fn connected(&mut self) {
        self.ready = true;
        service_manager::ready(&format!("connected to {}", self.coordinator));
    }

    /// The loop has come round.
    pub(super) fn tick(&mut self, connected: bool, (busy, slots): (usize, usize)) {
        let status = match connected {
            true => format!(
                "connected to {}, {busy}/{slots} slots busy",
                self.coordinator
            ),
            false => format!(
                "{} is out of reach, trying; {busy}/{slots} slots busy",
                self.coordinator
            ),
        };
        if !self.ready && BootInstant::now().since(self.since) >= READY_WITHOUT {
            self.ready = true;
            service_manager::ready(&status);
        }
        service_manager::alive(&status);
    }
}
