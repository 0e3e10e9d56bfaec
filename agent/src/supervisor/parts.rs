//! The settings and surroundings with which an agent begins, and what it tells the coordinator of
//! them.

use crate::supervisor::generations::Generations;
use crate::supervisor::handover::Carried;
use crate::supervisor::host::{Host, usable_cpus};
use crate::supervisor::keepers;
use crate::supervisor::links::Engines;
use crate::supervisor::users::Finder;
use mezcal_certs::renewal::Renewal;
use mezcal_common::message::agent::{self, Hello};
use mezcal_common::system::{proc, random};
use mezcal_common::wire::endpoint::Connector;
use std::time::Duration;

/// The settings and surroundings of an agent.
pub struct AgentParts {
    /// The host's name, from the certificate.
    pub name: String,
    /// Other names of the host.
    pub aliases: Vec<String>,
    /// Jobs that run at a time.
    pub slots: u16,
    /// The users whose jobs run here, in the order of their keepers; none: everybody's, with one
    /// keeper, which ends with the agent when that is stopped.
    pub users: Option<Vec<String>>,
    /// The things that the agent before this one in the same process has left to it
    /// ([`super::driver::run`]).
    pub carried: Carried,
    /// `HOST:PORT` of the coordinator.
    pub coordinator: String,
    /// The means to connect to the coordinator.
    pub connector: Connector,
    /// How long to wait for a first answer.
    pub connect_timeout: Duration,
    /// This process is a service, and not a run: the service manager hears how the agent stands.
    pub service: bool,
    /// When the agent asks for another certificate; the default: never.
    pub renewal: Renewal,
    /// The generations of stores that this host has met.
    pub generations: Generations,
}

/// The first message to the coordinator.
pub(super) fn hello(parts: &AgentParts, engines: &Engines, host: &Host) -> Hello {
    // Keepers of users come and go: with them the number is that of the directory where they are.
    let keeper = match &engines.finder {
        Some(finder) => Finder::number(finder),
        None => keepers::number(&engines.keepers),
    };
    Hello {
        versions: agent::VERSIONS,
        program: mezcal_common::VERSION.into(),
        keeper: keeper.unwrap_or_else(random::number),
        boot_id: proc::boot_id(),
        slots: parts.slots,
        aliases: parts.aliases.clone(),
        cpus: u32::from(usable_cpus()),
        memory: host.memory(),
        users: parts.users.clone(),
    }
}
