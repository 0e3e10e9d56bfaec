//! The program `certs`: see `cli.rs`.

fn main() -> std::process::ExitCode {
    // SAFETY: this is the first action of the only thread.
    unsafe { mezcal_common::system::environment::forget_empty() };
    mezcal_certs::cli::main("certs", std::env::args_os().skip(1))
}
