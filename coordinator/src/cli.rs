//! The `coordinator` command.

use crate::client::embedded::Hidden;
use crate::exit::{self, Exit};
use crate::verb::{
    batches, cancel, certs, doctor, exec, follow, hosts, join, logs, manage, provision, revoke,
    run, serve, token, why,
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run many shell commands, on this machine or on a cluster.
#[derive(Parser)]
#[command(
    name = "coordinator",
    version,
    after_help = "Exit status: 0 all jobs ended with 0; 1 some did not; 2 usage or bad input; \
3 coordinator unreachable or refused us, or no agents; 74 output not writable; 130 Ctrl-C, 143 TERM, 129 HUP, 141 stdout closed; 70 a bug."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
    Hosts(hosts::HostsArgs),
    Cancel(cancel::CancelArgs),
    Logs(logs::LogsArgs),
    Why(why::WhyArgs),
    Batches(batches::BatchesArgs),
    Status(batches::StatusArgs),
    Attach(follow::AttachArgs),
    Wait(follow::WaitArgs),
    Results(follow::ResultsArgs),
    Retry(manage::RetryArgs),
    Forget(manage::ForgetArgs),
    Drain(manage::DrainArgs),
    Undrain(manage::UndrainArgs),
    ConfirmDead(manage::ConfirmDeadArgs),
    ForgetHost(manage::ForgetHostArgs),
    Backup(manage::BackupArgs),
    Restore(manage::RestoreArgs),
    Provision(Box<provision::ProvisionArgs>),
    Doctor(doctor::DoctorArgs),
    Token(token::TokenArgs),
    Revoke(revoke::RevokeArgs),
    Certs(certs::CertsArgs),
    Join(join::JoinArgs),
    Serve(serve::ServeArgs),
    /// Write the manual pages.
    #[command(hide = true)]
    Manual {
        /// Where to.
        dir: PathBuf,
    },
}

impl Verb {
    /// Whether its results, or the id of the batch that it starts, go to standard output.
    fn answers_on_stdout(&self) -> bool {
        match self {
            Verb::Run(args) => {
                args.detach
                    || args.dry_run
                    || args
                        .output
                        .as_ref()
                        .is_none_or(|path| path.as_os_str() == "-")
            }
            Verb::Exec(_)
            | Verb::Hosts(_)
            | Verb::Logs(_)
            | Verb::Why(_)
            | Verb::Batches(_)
            | Verb::Status(_)
            | Verb::Attach(_)
            | Verb::Results(_)
            | Verb::Retry(_)
            | Verb::Token(_)
            | Verb::Certs(_) => true,
            Verb::Cancel(_)
            | Verb::Wait(_)
            | Verb::Forget(_)
            | Verb::Drain(_)
            | Verb::Undrain(_)
            | Verb::ConfirmDead(_)
            | Verb::ForgetHost(_)
            | Verb::Backup(_)
            | Verb::Restore(_)
            | Verb::Provision(_)
            | Verb::Doctor(_)
            | Verb::Revoke(_)
            | Verb::Join(_)
            | Verb::Serve(_)
            | Verb::Manual { .. } => false,
        }
    }
}

impl Verb {
    fn run(self, command: fn() -> clap::Command) -> Result<u8, Exit> {
        match self {
            Verb::Run(args) => run::run(&args),
            Verb::Exec(args) => exec::run(&args),
            Verb::Hosts(args) => hosts::run(&args),
            Verb::Cancel(args) => cancel::run(&args),
            Verb::Logs(args) => logs::run(&args),
            Verb::Why(args) => why::run(&args),
            Verb::Batches(args) => batches::run(&args),
            Verb::Status(args) => batches::status(&args),
            Verb::Attach(args) => follow::attach(&args),
            Verb::Wait(args) => follow::wait(&args),
            Verb::Results(args) => follow::results(&args),
            Verb::Retry(args) => manage::retry(&args),
            Verb::Forget(args) => manage::forget(&args),
            Verb::Drain(args) => manage::drain(&args),
            Verb::Undrain(args) => manage::undrain(&args),
            Verb::ConfirmDead(args) => manage::confirm_dead(&args),
            Verb::ForgetHost(args) => manage::forget_host(&args),
            Verb::Backup(args) => manage::backup(&args),
            Verb::Restore(args) => manage::restore(&args),
            Verb::Doctor(args) => doctor::run(&args),
            Verb::Provision(args) => provision::run(&args),
            Verb::Token(args) => token::run(&args),
            Verb::Revoke(args) => revoke::run(&args),
            Verb::Certs(args) => certs::run(&args),
            Verb::Join(args) => join::run(&args),
            Verb::Serve(args) => serve::run(&args),
            Verb::Manual { dir } => clap_mangen::generate_to(command(), dir)
                .map(|()| 0)
                .map_err(Exit::output),
        }
    }
}

/// The command line of this program.
pub fn command() -> clap::Command {
    command_of("coordinator")
}

/// The same for a program of another name, which may have more.
pub fn command_of(program: &'static str) -> clap::Command {
    Cli::command()
        .name(program)
        .bin_name(program)
        .mut_subcommand("exec", |exec| exec.override_usage(exec::usage(program)))
        .mut_subcommand("run", |run| run.override_usage(run::usage(program)))
}

/// Reads the words of a command line; a template has a grammar of its own.
fn read(command: clap::Command, words: Vec<OsString>) -> Result<Verb, clap::Error> {
    let (matches, template) = run::parse(command, words)?;
    let mut verb = Cli::from_arg_matches(&matches)?.verb;
    if let (Verb::Run(args), Some(template)) = (&mut verb, template) {
        args.file = None;
        args.given = Some(template);
    }
    Ok(verb)
}

/// Runs the program with the command line `command`. `stdout_was_closed`: before its start.
pub fn main(stdout_was_closed: bool, command: fn() -> clap::Command) -> ExitCode {
    crate::client::embedded::heed_children();
    // A shell sets this variable to ask for completions: the process answers and ends.
    clap_complete::CompleteEnv::with_factory(command)
        .var("MEZCAL_COMPLETE")
        .complete();
    if let Some(hidden) = Hidden::of_this_process() {
        return hidden.run();
    }
    let verb = match read(command(), std::env::args_os().collect()) {
        Ok(verb) => verb,
        Err(e) => e.exit(),
    };
    if stdout_was_closed && verb.answers_on_stdout() {
        tell!(
            "coordinator: standard output is closed, and results would go nowhere; redirect it to a file, or to /dev/null"
        );
        return ExitCode::from(exit::OUTPUT);
    }
    // A bug in any thread ends the program at once, with a status of its own.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        tell!("coordinator: this is a bug; please report it with the lines above");
        std::process::exit(exit::BUG.into());
    }));
    // `serve` sets up its own logging.
    if !matches!(verb, Verb::Serve(_)) {
        mezcal_common::system::logging::init("warn");
    }
    match verb.run(command) {
        Ok(status) => ExitCode::from(status),
        Err(Exit { status, message }) => {
            for line in mezcal_common::model::limits::named_in(&message).lines() {
                // The message may quote texts from other hosts and users.
                tell!(
                    "coordinator: {}",
                    mezcal_common::model::escape::for_terminal(line)
                );
            }
            ExitCode::from(status)
        }
    }
}
