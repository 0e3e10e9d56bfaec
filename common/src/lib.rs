//! What all Mezcal processes share: the model (jobs, outcomes, hosts, clocks) and the wire.
//!
//! No decision about scheduling or killing is made here, and no process is started. [`wire`] is the
//! only place that names quinn, rustls and bincode.
//!
//! # Words
//!
//! One word per idea, everywhere; `tests/tests/tidy.rs` knows words of other systems that are not
//! used here.
//!
//! - **job**: one command of a job list, with its number in the batch and perhaps an `id`.
//! - **batch**: the jobs of one `run`, under one id.
//! - **attempt**: one try to run a job. A job has several if it is retried, or if its host was
//!   lost.
//! - **outcome**: how an attempt ended. The outcome of the last attempt is the **result** of the
//!   job.
//! - **coordinator**: the process that knows where every job is.
//! - **agent**: the persistent process of a host; it has the host's key and fetches jobs.
//! - **engine**: the process that runs one attempt at a time and proves it dead. **Slot**: its
//!   place on the host.
//! - **keeper**: the parent of the engines; it outlives the agent.
//! - **session**: one connection of an agent, from its welcome to its end.
//! - **placement**: the decision that an attempt runs on a host.
//! - **lease**: the time for which an agent may run jobs without hearing from the coordinator.
//!   **Fence**: the coordinator's wait until a lease has surely ended.
//! - **drain**: to give a host no more jobs.
//! - **terminate**, **grace**, **kill**: the user's signal, the time after it, and SIGKILL.
//!
//! # Promises
//!
//! P1 once, P2 nothing lost, P3 true cancel, P4 affinity, P5 identity, P6 no crash from outside, P7
//! honest results: `docs/design/README.md` defines them, and the code and the tests refer to them
//! by these numbers.

#[cfg(not(target_os = "linux"))]
compile_error!("Mezcal runs on Linux only: it relies on /proc, subreapers and CLOCK_BOOTTIME");

/// A line on standard error, if that has a reader: `eprintln!` would panic without one, and what
/// the program has still to do would be left undone.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

pub mod doctor;
pub mod message;
pub mod model;
pub mod system;
pub mod version;
pub mod wire;

/// The version of this build, as `--version` prints it and peers exchange it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
