//! The coordinator's driver: one loop owns the [`Scheduler`]; tasks beside it carry messages of
//! agents and clients.
//!
//! Nothing here blocks on a peer. Agents' channels are bounded, and an agent that does not read
//! loses its session. Messages that a client has not taken wait in its outbox, or in the store, and
//! its own acknowledgements bound how many are sent. While a client does not read, its requests are
//! not read either (`intake.rs`).
//!
//! Nor does the loop read a disk: tasks beside it read the store and the list of certificates, and
//! their findings come back as events (`beside.rs`, `reads.rs`). By then the client may have gone
//! and the batch may be forgotten.

mod accept;
mod admit;
mod arrivals;
mod batch;
mod batches;
mod beside;
pub mod config;
mod counters;
mod delivery;
pub mod describe;
mod durable;
mod effects;
pub mod enrol;
mod found;
mod handle;
pub mod http;
mod input;
mod intake;
pub mod listen;
mod members;
pub(crate) mod memory;
mod observe;
mod observed;
mod outlet;
mod pages;
mod peers;
mod permit;
mod reading;
mod reads;
mod requests;
mod revocations;
mod revoke;
mod settings;
mod state;
mod stored;
mod turn;
mod versions;
mod view;
mod visits;

use crate::scheduler::Scheduler;
use crate::store::Store;
use batch::Batch;
use batches::Batches;
use durable::Durable;
pub use handle::{ClientPort, ServiceHandle};
use intake::Intake;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{Epoch, StoreId};
use mezcal_common::system::timer::BootTimer;
pub(crate) use revoke::NAMES as REVOKED_AT_ONCE;
pub use settings::{Adjustable, CLIENT_LEASE, LEASE, LOCALITY_WAIT, Settings};
use state::Service;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::{mpsc, watch};
pub use versions::PROTOCOLS;
pub use view::View;

/// Events that may wait; beyond this, connections are not read.
const EVENTS: usize = 1024;
/// Messages of the store that may wait.
const STORE_DEPTH: usize = 64;

/// Why a service cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gives no timer or no thread.
    #[error("no timer or thread for the service")]
    System(#[from] std::io::Error),
    /// The contents of the store cannot be taken back.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// Starts a service on the current runtime. With a `store` it goes on from the state there; without
/// one it keeps everything in memory, and the batches of a client that goes end with it.
///
/// # Errors
/// [`StartError`].
pub fn start(settings: Settings, store: Option<Store>) -> Result<ServiceHandle, StartError> {
    let (inputs, received) = mpsc::channel(EVENTS);
    let (idle_sender, idle) = watch::channel(false);
    let (behind_sender, behind) = watch::channel(false);
    let timer = BootTimer::new()?;
    let id = store
        .as_ref()
        .map_or_else(|| StoreId(random()), |store| store.id);
    let mut scheduler = Scheduler::new(
        Epoch(random()),
        id,
        settings.lease,
        settings.adjustable.locality_wait,
    );
    scheduler.set_aliases(settings.adjustable.aliases.clone(), BootInstant::now());
    scheduler.set_max_priority(
        settings.adjustable.max_priority,
        &settings.adjustable.admins,
    );
    let (answers, from_store) = mpsc::channel(STORE_DEPTH);
    let mut batches = Batches::default();
    let durable = match store {
        None => None,
        Some(store) => {
            scheduler = scheduler.durable(settings.client_lease);
            scheduler = scheduler.of_generation(store.generation);
            if let Some(first) = store.hold {
                scheduler = scheduler.holding(first, store.lease);
            }
            let now = BootInstant::now();
            let last = store.replay(|record| scheduler.replay(record, now))?;
            scheduler.numbers_in_use(last);
            scheduler.restored(now);
            let (writer, reader) = store.start(answers)?;
            for row in reader.batches()? {
                batches.insert(row.status.id, Batch::stored(&row));
            }
            Some(Durable::new(writer, reader, behind_sender))
        }
    };
    let enrolment = settings.enrolment.clone();
    let service = Service::new(
        scheduler,
        durable,
        batches,
        settings,
        inputs.downgrade(),
        idle_sender,
    );
    tokio::spawn(service.run(received, from_store, timer));
    Ok(ServiceHandle {
        inputs,
        next: Arc::new(AtomicU64::new(1)),
        idle,
        behind,
        enrolment,
        intake: Intake::new(),
    })
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

#[cfg(test)]
mod tests;
