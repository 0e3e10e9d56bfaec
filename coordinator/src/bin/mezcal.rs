//! The program `mezcal`: all programs in one file. It is installed once, and `coordinator`,
//! `mezcal-agent` and `mezcal-certs` are links to it.
//!
//! Called by one of these names, it is that program. As `mezcal` it has the verbs of the
//! coordinator, `mezcal agent` is the agent, and `mezcal certs` has the verbs of `mezcal-certs`
//! beside those of `coordinator certs`.

#[path = "../early.rs"]
mod early;

use clap::Command;
use mezcal_coordinator::cli as coordinator;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: this is the first thing that the only thread does.
    unsafe { mezcal_common::system::environment::forget_empty() };
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    let word = |at: usize| rest.get(at).and_then(|word| word.to_str());
    let from = |at: usize| rest.iter().skip(at).cloned();
    match Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("mezcal-agent" | "agent") => mezcal_agent::cli::main("mezcal-agent", from(0)),
        Some("mezcal-certs" | "certs") => mezcal_certs::cli::main("mezcal-certs", from(0)),
        Some("coordinator") => coordinator::main(early::stdout_was_closed(), coordinator::command),
        _ => match (word(0), word(1)) {
            (Some("agent"), _) => mezcal_agent::cli::main("mezcal agent", from(1)),
            (Some("certs"), Some("init" | "issue" | "show")) => {
                mezcal_certs::cli::main("mezcal certs", from(1))
            }
            _ => coordinator::main(early::stdout_was_closed(), command),
        },
    }
}

/// The coordinator's command line with the subcommands of the other programs.
fn command() -> Command {
    let agent = Command::new("agent")
        .about("Be the persistent worker of one host, or join a cluster as one");
    let own = |name, about| Command::new(name).about(about);
    coordinator::command_of("mezcal")
        .subcommand(agent)
        .mut_subcommand("certs", |certs| {
            certs
                .about("Make, show, list and admit certificates")
                .subcommand(own(
                    "init",
                    "Make a new cluster: a root certificate and its key",
                ))
                .subcommand(own("issue", "Make a certificate and its key"))
                .subcommand(own("show", "Show what a certificate says"))
        })
}
