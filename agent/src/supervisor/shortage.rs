//! A host that lacks the resources to start anything: after a pause it gets one attempt at a time,
//! until one has started.
//!
//! ```text
//!           an engine gives one back                    one is given to an engine
//!  Enough ──────────────────────────▶ Rests ── pause ─▶ Waits ──────────────────▶ Tries
//!    ▲                                  ▲                 ▲  ended without a word of it │
//!    │                                  └── given back ───┼────────────────────────────┤
//!    └──────────────────── has started ───────────────────┴────────────────────────────┘
//! ```

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// The first pause; engines have tried for seconds before. Doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);
/// An attempt that has been with an engine for longer than the engine tries, and has not come back,
/// has started.
const TRIED: Duration = Duration::from_secs(7);

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Shortage {
    #[default]
    Enough,
    /// Nothing is given out.
    Rests { until: BootInstant, pause: Duration },
    /// One attempt may be given out.
    Waits { pause: Duration },
    /// One attempt has been given out; at `over` it has started.
    Tries { over: BootInstant, pause: Duration },
}

impl Shortage {
    pub(super) fn rests(self) -> bool {
        matches!(self, Shortage::Rests { .. })
    }

    pub(super) fn may_start(self) -> bool {
        matches!(self, Shortage::Enough | Shortage::Waits { .. })
    }

    /// An engine was given an attempt.
    pub(super) fn given(&mut self, now: BootInstant) {
        if let Shortage::Waits { pause } = *self {
            *self = Shortage::Tries {
                over: now + TRIED,
                pause,
            };
        }
    }

    /// An attempt has ended. True if the host rests from now on.
    pub(super) fn ended(&mut self, outcome: &Outcome, now: BootInstant) -> bool {
        let short = outcome.ended == Ended::HostShort;
        let next = match *self {
            _ if outcome.status.is_some() => Shortage::Enough,
            Shortage::Enough if short => Shortage::Rests {
                until: now + FIRST,
                pause: FIRST,
            },
            Shortage::Waits { pause } | Shortage::Tries { pause, .. } if short => {
                let pause = (pause * 2).min(LONGEST);
                Shortage::Rests {
                    until: now + pause,
                    pause,
                }
            }
            Shortage::Tries { pause, .. } => Shortage::Waits { pause },
            Shortage::Enough | Shortage::Rests { .. } | Shortage::Waits { .. } => return false,
        };
        *self = next;
        next.rests()
    }

    pub(super) fn poll_timeout(self) -> Option<BootInstant> {
        match self {
            Shortage::Enough | Shortage::Waits { .. } => None,
            Shortage::Rests { until, .. } => Some(until),
            Shortage::Tries { over, .. } => Some(over),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: BootInstant) {
        match *self {
            Shortage::Rests { until, pause } if until <= now => *self = Shortage::Waits { pause },
            Shortage::Tries { over, .. } if over <= now => *self = Shortage::Enough,
            Shortage::Enough
            | Shortage::Rests { .. }
            | Shortage::Waits { .. }
            | Shortage::Tries { .. } => {}
        }
    }
}
