//! The `coordinator` program; everything is in the library.

fn main() -> std::process::ExitCode {
    mezcal_coordinator::cli::main()
}
