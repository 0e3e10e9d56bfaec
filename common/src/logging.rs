//! One way to set up tracing for every binary.

use tracing_subscriber::EnvFilter;

/// Sends log records to stderr. `MEZCAL_LOG` (the syntax of tracing's `EnvFilter`) overrides `default`.
/// A second call has no effect.
pub fn init(default: &str) {
    let filter =
        std::env::var("MEZCAL_LOG").ok().and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(default));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init();
}
