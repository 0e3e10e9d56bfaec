//! What there is to know of this host. The only code that names sysinfo.

use mezcal_common::message::agent::Load;
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

/// CPUs that this process may use: affinity and cgroup quota counted (std's
/// `available_parallelism`).
pub fn usable_cpus() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(usize::from(u16::MAX)) as u16)
}
