//! One way to set up tracing for all programs.

use std::os::unix::fs::MetadataExt;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Sends log records to stderr; or to the journal, with a field for each value (`MEZCAL_HOST=`, …),
/// if stderr leads there. `MEZCAL_LOG` (the syntax of tracing's `EnvFilter`) overrides `default`. A
/// second call has no effect.
pub fn init(default: &str) {
    let filter = std::env::var("MEZCAL_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    if stderr_is_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let _ = tracing_subscriber::registry()
            .with(filter)
            .with(journal.with_field_prefix(Some("MEZCAL".into())))
            .try_init();
        return;
    }
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would use eprintln!, whose panic would end a program whose stderr has been closed.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init();
}

/// Whether standard error still is the stream that systemd has connected to the journal
/// ($JOURNAL_STREAM in systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Some((device, inode)) = std::env::var("JOURNAL_STREAM").ok().and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    }) else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|meta| (meta.dev(), meta.ino()) == (device, inode))
}
