//! How a scheduler begins: empty. [`Scheduler::durable`], [`Scheduler::of_generation`] and
//! [`Scheduler::holding`] come next, where its store is on a disk, and may be a copy.

use super::hosts::Hosts;
use super::queues::Queues;
use super::timers::Timers;
use super::users::Users;
use super::{Batches, Scheduler, absence, after, cancel, fleet, names, record, wide};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{Epoch, Generation, StoreId};
use std::collections::VecDeque;
use std::time::Duration;

impl Scheduler {
    /// An empty coordinator. Without a `lease`, agents share its fate: a lost session means that
    /// everything on the host is dead. A slot that has been idle for `locality_wait` gets a job
    /// that prefers another host.
    ///
    /// `store`: attempts known to another store are strangers here.
    pub fn new(
        epoch: Epoch,
        store: StoreId,
        lease: Option<Duration>,
        locality_wait: Duration,
    ) -> Self {
        Self {
            epoch,
            store,
            generation: Generation::default(),
            hold: None,
            durable: false,
            restoring: record::Restoring::default(),
            client_lease: Duration::MAX,
            lease,
            leases_grow: false,
            batches: Batches::default(),
            hosts: Hosts::default(),
            names: names::Names::default(),
            present: fleet::Present::default(),
            told: absence::Told::default(),
            queues: Queues::default(),
            users: Users::default(),
            keeping: wide::Keeping::default(),
            unserved: false,
            locality_wait,
            looked_at: BootInstant::default(),
            pending: after::Pending::default(),
            cancels: cancel::Cancels::default(),
            timers: Timers::default(),
            effects: VecDeque::new(),
            mistake: None,
            findings: None,
        }
    }
}
