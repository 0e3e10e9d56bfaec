//! Agents with engines that answer at once: the real driver and the real wire, without jobs behind
//! them.

use mezcal_agent::supervisor::input::EngineInput;
use mezcal_agent::supervisor::links::Engines;
use mezcal_agent::supervisor::parts::AgentParts;
use mezcal_agent::supervisor::{Carried, driver};
use mezcal_certs::renewal::Renewal;
use mezcal_common::message::agent::ALPN;
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::{Ended, Outcome, Span, WaitStatus};
use mezcal_common::wire::endpoint::Connector;
use mezcal_common::wire::tls::Credentials;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Runs an agent with these credentials for ever.
pub async fn agent(identity: &Path, name: &str, coordinator: String, slots: u16) {
    let credentials = Credentials::load(identity, Role::Agent).expect("credentials");
    let (inputs, received) = mpsc::channel(1024);
    for slot in 0..slots {
        let (to_engine, orders) = mpsc::unbounded_channel();
        let index = EngineIndex(slot);
        inputs
            .send(EngineInput::Linked(index, 0, to_engine))
            .await
            .expect("room");
        inputs
            .send(EngineInput::Said(
                index,
                0,
                FromEngine::Ready { running: None },
            ))
            .await
            .expect("room");
        tokio::spawn(engine(index, orders, inputs.clone()));
    }
    let parts = AgentParts {
        name: name.into(),
        aliases: vec![],
        slots,
        users: None,
        carried: Carried::default(),
        coordinator,
        connector: Connector::new(&credentials, ALPN).expect("a connector"),
        connect_timeout: Duration::from_secs(5),
        service: false,
        renewal: Renewal::default(),
        generations: mezcal_agent::supervisor::generations::Generations::of_one_life(),
    };
    let _ = driver::run(
        parts,
        Engines::without_keeper(inputs, received),
        std::future::pending(),
        std::future::pending(),
    )
    .await;
}

/// An engine whose attempts all succeed at once.
async fn engine(
    index: EngineIndex,
    mut orders: mpsc::UnboundedReceiver<ToEngine>,
    inputs: mpsc::Sender<EngineInput>,
) {
    while let Some(order) = orders.recv().await {
        if let ToEngine::Run { attempt, .. } = order {
            let now = WallTime::now();
            let span = Span {
                started: now,
                completed: now,
                elapsed: Duration::ZERO,
            };
            let status = Some(WaitStatus::Exited(0));
            let outcome = Outcome {
                status,
                span: Some(span),
                ..Outcome::never_ran(Ended::Exited, None)
            };
            if inputs
                .send(EngineInput::Said(
                    index,
                    0,
                    FromEngine::Finished { attempt, outcome },
                ))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}
