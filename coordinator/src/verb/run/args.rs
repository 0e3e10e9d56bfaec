//! The command line of `coordinator run`.

use super::halt;
use super::words::Given;
use crate::client::ReconnectArgs;
use crate::client::embedded::ContainmentWish;
use crate::client::profile::{Cluster, Profile, ProfileArgs};
use crate::exit::Exit;
use crate::jobs::template::{Array, ColumnSeparator};
use crate::report::outputs::{Old, Wishes};
use crate::report::progress::ProgressKind;
use clap::builder::{OsStringValueParser, TypedValueParser};
use mezcal_common::message::client::Halt;
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::octets;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

/// Run a list of jobs and stream their results.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The job list: JSON Lines or one JSON array; - or nothing: standard input
    #[arg(value_name = "FILE", conflicts_with = "input", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub file: Option<PathBuf>,
    /// A template, which takes the place of the job list.
    #[arg(skip)]
    pub given: Option<Given>,
    /// Arguments of a template, one on each line of FILE; -: standard input. Several files are
    /// combined
    #[arg(
        help_heading = "Templates",
        short = 'a',
        long = "arg-file",
        value_name = "FILE"
    )]
    pub arg_files: Vec<PathBuf>,
    /// Whole numbers as arguments: A-B, A-B:STEP, or several of them with commas between
    #[arg(help_heading = "Templates", long, value_name = "A-B[:STEP]", value_parser = Array::read)]
    pub array: Option<Array>,
    /// Arguments have columns with TEXT between them (\t: a tab, \s+: white space): {1}, {2}
    #[arg(help_heading = "Templates", short = 'C', long, value_name = "TEXT", value_parser = ColumnSeparator::read)]
    pub colsep: Option<ColumnSeparator>,
    /// The first argument of each source names its columns: {NAME}
    #[arg(help_heading = "Templates", long)]
    pub header: bool,
    /// So many arguments for each job: {1} to {N}, or all with {}
    #[arg(help_heading = "Templates", short = 'N', long = "max-args", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_args: Option<u32>,
    /// Print the jobs as a job list, and run nothing
    #[arg(help_heading = "Input", long, alias = "dryrun", conflicts_with_all = ["stream", "detach", "resume", "resume_failed"])]
    pub dry_run: bool,
    /// The job list, under the name of Bakapara's option
    #[arg(help_heading = "Input", short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Where results go (default: standard output)
    #[arg(help_heading = "Results", short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where log lines go (default: standard error)
    #[arg(help_heading = "Messages", short, long, value_name = "FILE")]
    pub logging: Option<PathBuf>,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Jobs at a time in an embedded run (default: the CPUs)
    #[arg(help_heading = "Where jobs run", short = 'j', short_alias = 'P', long, alias = "jobs", value_name = "N", value_parser = slots)]
    pub slots: Option<u16>,
    /// Be the coordinator for this run: agents connect to ADDR, for example 0.0.0.0:7433
    #[arg(help_heading = "Where jobs run", long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Run on this host, even if the profile names a cluster
    #[arg(help_heading = "Where jobs run", long, conflicts_with = "listen")]
    pub local: bool,
    /// Start when this many agents are connected
    #[arg(
        help_heading = "Where jobs run",
        long,
        value_name = "N",
        default_value_t = 1
    )]
    pub min_agents: u32,
    /// Give up if they are not connected after this long (default: never on a terminal, otherwise
    /// 5m)
    #[arg(help_heading = "Where jobs run", long, value_name = "DURATION", value_parser = parse_duration)]
    pub wait_agents: Option<Duration>,
    /// How long a job waits for a host that is not connected
    #[arg(help_heading = "Where jobs run", long, value_name = "DURATION", value_parser = parse_duration, default_value = "5m")]
    pub host_timeout: Duration,
    /// How long a slot is idle before it gets a job that prefers another host; for a run that is
    /// its own coordinator [default: 3s]
    #[arg(help_heading = "Where jobs run", long, value_name = "DURATION", value_parser = parse_duration)]
    pub locality_wait: Option<Duration>,
    /// Hand the jobs over, print the batch's id, and leave them to the coordinator
    #[arg(help_heading = "The run", long, conflicts_with_all = ["output", "local", "listen", "keep_order", "compat", "min_agents"])]
    pub detach: bool,
    /// Name of the batch
    #[arg(help_heading = "The run", long, value_name = "NAME", value_parser = batch_name)]
    pub name: Option<String>,
    /// What to do about a lost connection
    #[command(flatten)]
    pub reconnect: ReconnectArgs,
    /// Run jobs as they come on standard input, with results and events on standard output
    /// (docs/stream.md)
    #[arg(help_heading = "Input", long, conflicts_with_all = ["detach", "input", "output", "logging", "lines", "keep_order", "resume", "resume_failed", "progress", "min_agents"])]
    pub stream: bool,
    /// Cancel everything when standard input ends before the run does, because the program at the
    /// other end is gone
    #[arg(help_heading = "Input", long, requires = "stream")]
    pub attended: bool,
    /// Write results in the order of the input
    #[arg(help_heading = "Results", short = 'k', long)]
    pub keep_order: bool,
    /// Read and write exactly as another program does
    #[arg(help_heading = "Input", long, value_name = "PROGRAM")]
    pub compat: Option<Compat>,
    /// One shell command per line instead of JSON
    #[arg(help_heading = "Input", long, conflicts_with = "compat")]
    pub lines: bool,
    /// The commands of --lines, or the arguments of a template, end with NUL bytes and may contain
    /// line breaks; a template without another source reads standard input
    #[arg(help_heading = "Input", short = '0', long)]
    pub null: bool,
    /// Directory in which jobs without `cd` start (default: this one)
    #[arg(help_heading = "Jobs", long, value_name = "DIR")]
    pub cd: Option<PathBuf>,
    /// Environment for every job; without a value, this process's
    #[arg(help_heading = "Jobs", long = "env", value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().map(as_text))]
    pub env: Vec<String>,
    /// Longest run of jobs without `timeout`
    #[arg(help_heading = "Jobs", long, value_name = "DURATION", value_parser = some_time)]
    pub timeout: Option<Duration>,
    /// Cancel all jobs that have not ended this long after the start of the run
    #[arg(help_heading = "The run", long, value_name = "DURATION", value_parser = some_time)]
    pub time_limit: Option<Duration>,
    /// Give up early, as GNU Parallel does: WHEN,WHY=N or N%; WHEN: soon, now; WHY: fail, success,
    /// done
    #[arg(help_heading = "The run", long, value_name = "RULE", value_parser = halt::parse, default_value = "never")]
    pub halt: HaltRule,
    /// What happens to processes that outlive the first process of their job, for jobs without
    /// `leftover`
    #[arg(
        help_heading = "Jobs",
        long,
        value_name = "WHAT",
        default_value = "kill"
    )]
    pub leftover: LeftoverArg,
    /// What holds the processes of a job together in an embedded run
    #[arg(
        help_heading = "Where jobs run",
        long,
        value_name = "KIND",
        default_value = "auto"
    )]
    pub containment: ContainmentWish,
    /// Further attempts of failing jobs without `retries`
    #[arg(help_heading = "Jobs", long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub retries: u32,
    /// Write output of jobs that name no files to DIR/ID.out and DIR/ID.err, on the hosts where
    /// they run; ids with other characters than a-z, 0-9, ., _ and - get a suffix after a ~, so
    /// that no two jobs share a file
    #[arg(help_heading = "Jobs", long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Run only jobs without a successful result in the file of -o; new results are added to it, in
    /// the place of failed ones
    #[arg(help_heading = "Results", long, requires = "output", conflicts_with_all = ["force", "detach", "compat"])]
    pub resume: bool,
    /// Run only jobs whose result in the file of -o is a failure, and replace that result
    #[arg(help_heading = "Results", long, requires = "output", conflicts_with_all = ["resume", "force", "detach", "compat"])]
    pub resume_failed: bool,
    /// Overwrite a results file that is not empty
    #[arg(help_heading = "Results", long)]
    pub force: bool,
    /// Print only errors
    #[arg(help_heading = "Messages", short, long)]
    pub quiet: bool,
    /// Progress on standard error
    #[arg(
        help_heading = "Messages",
        long,
        value_name = "KIND",
        default_value = "auto"
    )]
    pub progress: ProgressKind,
}

impl RunArgs {
    /// Refuses options without a meaning in a run of this kind.
    ///
    /// # Errors
    /// Exit 2.
    pub(super) fn check(&self, profile: &Profile) -> Result<(), Exit> {
        self.check_input()?;
        if profile.cluster != Cluster::Embedded && self.slots.is_some() {
            return Err(Exit::usage(
                "-j sets the slots of a run on this host; on a cluster each agent has its own (`slots` in agent.toml)",
            ));
        }
        if matches!(profile.cluster, Cluster::Remote { .. }) && self.locality_wait.is_some() {
            return Err(Exit::usage(
                "--locality-wait is for a run that is its own coordinator; that of a cluster has `locality_wait` in coordinator.toml",
            ));
        }
        if profile.cluster == Cluster::Embedded && self.min_agents > 1 {
            return Err(Exit::usage(
                "--min-agents: a run on this host has one agent; name a cluster with -p or --listen",
            ));
        }
        if profile.cluster != Cluster::Embedded && self.containment != ContainmentWish::Auto {
            return Err(Exit::usage(
                "--containment is for a run on this host; on a cluster each agent has its own (agent.toml)",
            ));
        }
        if self.detach && !matches!(profile.cluster, Cluster::Remote { .. }) {
            return Err(Exit::usage(
                "--detach leaves the jobs to a running coordinator; name one with -p",
            ));
        }
        Ok(())
    }

    /// Refuses options that belong to the other kind of input: a job list or a template.
    fn check_input(&self) -> Result<(), Exit> {
        for (option, is_set) in [
            ("--lines", self.lines),
            ("--stream", self.stream),
            ("--compat bakapara", self.compat.is_some()),
        ] {
            if self.given.is_some() && is_set {
                return Err(Exit::usage(format!(
                    "{option} is for a job list, and a template makes one of its own"
                )));
            }
        }
        if self.given.is_none() && (!self.arg_files.is_empty() || self.array.is_some()) {
            return Err(Exit::usage(
                "-a and --array give a template its arguments; options go before the template, as in `coordinator run -a FILE 'gzip -9 {}'`",
            ));
        }
        if self.given.is_none() && self.null && !self.lines {
            return Err(Exit::usage(
                "-0 is for --lines, whose commands then end with NUL bytes, or for a template, whose arguments do",
            ));
        }
        for (option, is_set) in [
            ("--colsep", self.colsep.is_some()),
            ("--header", self.header),
            ("-N", self.max_args.is_some()),
        ] {
            if self.given.is_none() && is_set {
                return Err(Exit::usage(format!(
                    "{option} is for a template, and there are no arguments for one: name them with `:::`, -a, -0 or --array"
                )));
            }
        }
        Ok(())
    }

    /// The files of a run, as its options name them.
    pub(super) fn outputs(&self, inputs: Vec<PathBuf>) -> Wishes<'_> {
        Wishes {
            inputs,
            results: self.output.as_deref(),
            log: self.logging.as_deref(),
            old: match () {
                () if self.compat.is_some() => Old::Emptied,
                () if self.resume || self.resume_failed => Old::Kept,
                () if self.force => Old::Replaced,
                () => Old::Refused,
            },
        }
    }
}

/// A duration that is greater than zero.
fn some_time(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|d| {
        if d.is_zero() {
            Err("it must be greater than zero".into())
        } else {
            Ok(d)
        }
    })
}

fn slots(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.filter(|n| (1..=4096).contains(n)).ok_or_else(|| {
        "give a number from 1 to 4096 (GNU Parallel's +N and N% are not known here)".to_owned()
    })
}

/// A batch name: 1 to 64 characters, none of them a control character.
fn batch_name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        Ok(text.into())
    } else {
        Err("it must have 1 to 64 characters, none of them control characters".into())
    }
}

/// Any bytes as a text that stands for them.
pub(super) fn as_text(bytes: OsString) -> String {
    octets::text(bytes.into_vec())
}

/// `--halt`; none: never.
type HaltRule = Option<Halt>;

/// `--leftover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LeftoverArg {
    /// They are killed, and counted in the result.
    Kill,
    /// The job goes on until they have ended, too.
    Wait,
}

/// Programs whose ways can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compat {
    /// bakapara.py: five keys, twelve result keys, naive local times, exit status 0.
    Bakapara,
}
