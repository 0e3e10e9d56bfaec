//! The `agent` program; everything is in the library.

fn main() -> std::process::ExitCode {
    // SAFETY: this is the first thing that the only thread does.
    unsafe { mezcal_common::system::environment::forget_empty() };
    mezcal_agent::cli::main("agent", std::env::args_os().skip(1))
}
