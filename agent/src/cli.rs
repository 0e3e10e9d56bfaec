//! The `agent` command.

use crate::keeper::driver::KeeperArgs;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mezcal_common::system::output::{PIPE, Unwritten};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status for usage, configuration and certificates that a person has to mend.
const EXIT_USAGE: u8 = 2;
/// Exit status for credentials that cannot be used, and for a coordinator that gives none.
const EXIT_CREDENTIALS: u8 = 3;

/// The persistent worker of one host.
#[derive(Parser)]
#[command(name = "agent", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Connect to the coordinator and run its jobs until stopped; a lost connection is made again.
    Run {
        /// The configuration file (default: /etc/mezcal/agent.toml, or the one that `agent join`
        /// made without root).
        #[arg(long, env = "MEZCAL_CONFIG")]
        config: Option<PathBuf>,
    },
    Join(crate::verb::join::JoinArgs),
    Engines(crate::verb::engines::EnginesArgs),
    Doctor(crate::verb::doctor::DoctorArgs),
    AtBoot(crate::boot::BootArgs),
    /// Print where this host's files are, as assignments of a shell.
    #[command(hide = true)]
    Paths,
    /// Write the manual pages.
    #[command(hide = true)]
    Manual {
        /// Where to.
        dir: PathBuf,
    },
}

/// What the programs start themselves.
#[derive(Parser)]
struct HiddenCli {
    #[command(subcommand)]
    verb: Hidden,
}

/// Its verbs.
#[derive(Clone, Debug, Subcommand)]
pub enum Hidden {
    /// The engines' parent, and the engines.
    Keeper(KeeperArgs),
}

impl Hidden {
    /// The verb of this process, if it was started with one of these. It is known before anything
    /// else is: describing all verbs takes longer than a keeper needs to begin.
    pub fn of_this_process() -> Option<Self> {
        let first = std::env::args_os().nth(1)?;
        (first == "keeper").then(|| HiddenCli::parse().verb)
    }

    /// Runs the process to its end.
    pub fn run(self) -> ExitCode {
        mezcal_common::system::logging::init("warn");
        let Hidden::Keeper(args) = self;
        // A session of its own: no signal of a terminal reaches the processes below, and no job can
        // wait for its keyboard. EPERM: this process leads a session already, as the first process
        // of a unit does.
        if let Err(e) = rustix::process::setsid()
            && e != rustix::io::Errno::PERM
        {
            tracing::warn!(error = %e, "no session of its own");
        }
        match crate::keeper::driver::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                tracing::error!(error = %e, "keeper ends");
                ExitCode::FAILURE
            }
        }
    }
}

/// The program from its command line to its exit.
pub fn main(name: &'static str, args: impl Iterator<Item = OsString>) -> ExitCode {
    crate::kernel::signals::heed_children();
    if let Some(hidden) = Hidden::of_this_process() {
        return hidden.run();
    }
    let command = Cli::command().name(name).bin_name(name);
    let verb = match Cli::from_arg_matches(
        &command.get_matches_from([OsString::from(name)].into_iter().chain(args)),
    ) {
        Ok(cli) => cli.verb,
        Err(e) => e.exit(),
    };
    match verb {
        Verb::Run { config } => {
            mezcal_common::system::logging::init("info");
            ended(
                config
                    .map_or_else(crate::config::default_path, Ok)
                    .map_err(Into::into)
                    .and_then(|path| crate::verb::run::run(&path)),
            )
        }
        Verb::Paths => ended(crate::verb::run::paths()),
        Verb::Manual { dir } => {
            // The name by which the program is called where it is installed.
            let command = Cli::command().name("mezcal-agent").bin_name("mezcal-agent");
            ended(clap_mangen::generate_to(command, dir).map_err(Into::into))
        }
        Verb::Engines(args) => {
            mezcal_common::system::logging::init("info");
            ended(crate::verb::engines::run(&args))
        }
        Verb::Doctor(args) => {
            mezcal_common::system::logging::init("error");
            answered(crate::verb::doctor::run(&args))
        }
        Verb::AtBoot(args) => {
            mezcal_common::system::logging::init("error");
            answered(crate::boot::run(name, &args))
        }
        Verb::Join(args) => {
            mezcal_common::system::logging::init("warn");
            ended(crate::verb::join::run(&args))
        }
    }
}

/// Success is a yes.
fn answered(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => ended(Err(e)),
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    let Err(e) = result else {
        return ExitCode::SUCCESS;
    };
    if (e.downcast_ref::<Unwritten>()).is_some_and(Unwritten::has_no_reader) {
        return ExitCode::from(PIPE);
    }
    for line in mezcal_common::model::limits::named_in(&format!("{e:#}")).lines() {
        tell!(
            "agent: {}",
            mezcal_common::model::escape::for_terminal(line)
        );
    }
    let credentials = e
        .downcast_ref::<mezcal_common::wire::tls::CredentialsError>()
        .is_some();
    let refused = e.downcast_ref::<mezcal_certs::JoinError>().is_some();
    ExitCode::from(if credentials || refused {
        EXIT_CREDENTIALS
    } else {
        EXIT_USAGE
    })
}
