//! The `coordinator` program; all but its first check is in the library.

mod early;

fn main() -> std::process::ExitCode {
    // SAFETY: this is the first thing that the only thread does.
    unsafe { mezcal_common::system::environment::forget_empty() };
    mezcal_coordinator::cli::main(early::stdout_was_closed(), mezcal_coordinator::cli::command)
}
