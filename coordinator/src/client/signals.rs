//! The signals by which users end a client.

use crate::exit::{self, Exit};
use mezcal_common::model::limits;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// INT, TERM and HUP. A signal that was ignored at our start stays ignored: nohup(1), background
/// jobs of a script.
pub(crate) struct Signals(Vec<(u8, Signal)>);

impl Signals {
    pub(crate) fn new() -> Result<Self, Exit> {
        let ignored = mezcal_common::system::proc::ignored_signals();
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let mut signals = Vec::new();
        for kind in kinds
            .into_iter()
            .filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0)
        {
            let handler = signal(kind).map_err(|e| Exit {
                status: exit::BUG,
                message: format!("cannot set a signal handler: {}", limits::named(e)),
            })?;
            signals.push((kind.as_raw_value() as u8, handler));
        }
        Ok(Self(signals))
    }

    /// The number of the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> u8 {
        std::future::poll_fn(|cx| {
            let arrived = self
                .0
                .iter_mut()
                .find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
            arrived.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
