//! The program `certs`: see `cli.rs`.

fn main() -> std::process::ExitCode {
    // SAFETY: this is the first thing that the only thread does.
    unsafe { mezcal_common::system::environment::forget_empty() };
    mezcal_certs::cli::main("certs", std::env::args_os().skip(1))
}
