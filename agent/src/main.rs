//! The `agent` program; everything is in the library.

fn main() -> std::process::ExitCode {
    mezcal_agent::cli::main()
}
