//! A bad road between one agent and the coordinator: a UDP relay with delay, loss, and cuts in one
//! direction or both.
//!
//! It runs on the coordinator's host and sends datagram by datagram, so that loss is per packet,
//! however the kernel bundles them on a bridge.

use crate::lab::Lab;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

/// One direction of the road.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// Datagrams lost out of a hundred; 100 is a cut.
    pub loss: u32,
    /// Delay of each datagram.
    pub delay: Duration,
}

impl Way {
    /// Nothing gets through.
    pub const CUT: Way = Way {
        loss: 100,
        delay: Duration::ZERO,
    };
}

/// Both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Road {
    /// From the agent to the coordinator.
    pub out: Way,
    /// From the coordinator to the agent.
    pub back: Way,
}

/// A running relay; dropping it ends it.
pub struct Relay {
    address: SocketAddr,
    road: Arc<Mutex<Road>>,
    _end: tokio::sync::oneshot::Sender<()>,
}

/// Datagrams that may wait for their time; further ones are lost, as in any router.
const QUEUE: usize = 4096;

impl Relay {
    /// Starts a relay on the coordinator's host to its address.
    pub fn start(lab: &Lab, target: &str) -> Self {
        let target: SocketAddr = target.parse().expect("an address");
        let road = Arc::new(Mutex::new(Road::default()));
        let (end, ended) = tokio::sync::oneshot::channel();
        let (said, heard) = mpsc::channel();
        let (enter, shared) = (lab.entrance(0), road.clone());
        std::thread::spawn(move || {
            enter();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let near = Arc::new(
                    UdpSocket::bind((target.ip(), 0))
                        .await
                        .expect("a port for the agent"),
                );
                let far = Arc::new(
                    UdpSocket::bind((target.ip(), 0))
                        .await
                        .expect("a port for the coordinator"),
                );
                said.send(near.local_addr().expect("bound"))
                    .expect("the test listens");
                // An agent that starts again has another port.
                let agent = Arc::new(Mutex::new(None));
                let (road, known) = (shared.clone(), agent.clone());
                let out = carry(near.clone(), far.clone(), move |from| {
                    *known.lock().expect("not poisoned") = Some(from);
                    (road.lock().expect("not poisoned").out, Some(target))
                });
                let back = carry(far, near, move |_| {
                    (
                        shared.lock().expect("not poisoned").back,
                        *agent.lock().expect("not poisoned"),
                    )
                });
                tokio::select! {
                    () = out => {},
                    () = back => {},
                    _ = ended => {},
                }
            });
        });
        Self {
            address: heard.recv().expect("a relay"),
            road,
            _end: end,
        }
    }

    /// The address for the agent to connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes the road from now on.
    pub fn set(&self, road: Road) {
        *self.road.lock().expect("not poisoned") = road;
    }
}

/// Carries datagrams of `from`, by the socket `by`, to the address that `way` returns.
async fn carry(
    from: Arc<UdpSocket>,
    by: Arc<UdpSocket>,
    way: impl Fn(SocketAddr) -> (Way, Option<SocketAddr>),
) {
    let (sender, mut waiting) = tokio::sync::mpsc::channel::<(Instant, SocketAddr, Vec<u8>)>(QUEUE);
    let deliver = async {
        while let Some((at, to, data)) = waiting.recv().await {
            sleep_until(at).await;
            // A datagram to an address without a receiver is lost.
            let _ = by.send_to(&data, to).await;
        }
    };
    let receive = async {
        let mut buffer = vec![0; 65_536];
        let mut count = 0u32;
        loop {
            let Ok((length, sender_address)) = from.recv_from(&mut buffer).await else {
                continue;
            };
            count = count.wrapping_add(1);
            let (Way { loss, delay }, to) = way(sender_address);
            // A multiplier spreads losses evenly, and not regularly for a sender of bursts (Knuth,
            // TAOCP 6.4).
            let lost = (count.wrapping_mul(2_654_435_761) >> 16) % 100 < loss;
            if let Some(to) = to.filter(|_| !lost) {
                let _ = sender.try_send((Instant::now() + delay, to, buffer[..length].to_vec()));
            }
        }
    };
    tokio::join!(deliver, receive);
}
