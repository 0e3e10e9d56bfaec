//! Facts about this host. The only code that names sysinfo.

use crate::supervisor::{Event, HEARTBEAT};
use mezcal_common::message::agent::Load;
use mezcal_common::model::clock::{BootInstant, OffsetEstimate, WallTime};
use sysinfo::System;

/// Reads load and memory without walking the process table.
pub struct Host {
    /// None where the system's tables cannot be read; readings are then zero.
    system: Option<System>,
}

impl Host {
    /// A first reading.
    pub fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_memory();
        }
        Self { system }
    }

    /// Physical memory in bytes.
    pub fn memory(&self) -> u64 {
        self.system.as_ref().map_or(0, System::total_memory)
    }

    /// The load now.
    pub fn load(&mut self) -> Load {
        if let Some(system) = &mut self.system {
            system.refresh_memory();
        }
        Load {
            one_minute: System::load_average().map_or(0.0, |load| load.one),
            available: self.system.as_ref().map_or(0, System::available_memory),
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// The readings of this host for heartbeats, and when to take the next one.
pub(super) struct Readings {
    host: Host,
    offset: OffsetEstimate,
    next: BootInstant,
}

impl Readings {
    /// The first reading is due at once.
    pub(super) fn of(host: Host) -> Self {
        Self {
            host,
            offset: OffsetEstimate::default(),
            next: BootInstant::now(),
        }
    }

    /// When the next reading is due.
    pub(super) fn due(&self) -> BootInstant {
        self.next
    }

    /// Whether a reading is due; if it is, the next one follows after the time of a heartbeat.
    pub(super) fn take_due(&mut self, now: BootInstant) -> bool {
        let due = self.next <= now;
        if due {
            self.next = now + HEARTBEAT;
        }
        due
    }

    /// The coordinator's clock has been heard: `sent` is when it was asked, by both our clocks.
    pub(super) fn sample(
        &mut self,
        sent: (WallTime, BootInstant),
        clock: WallTime,
        now: BootInstant,
    ) {
        self.offset.sample(sent, clock, now);
    }

    /// The present readings.
    pub(super) fn event(&mut self) -> Event {
        Event::Measured {
            load: self.host.load(),
            clock_offset: self.offset.seconds(),
        }
    }
}

/// CPUs that this process may use: affinity and cgroup quota counted (std's
/// `available_parallelism`).
pub fn usable_cpus() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(usize::from(u16::MAX)) as u16)
}
