//! `coordinator run`: a job list in, results out.

mod detach;
mod halt;
mod stream;

use crate::client::ReconnectArgs;
use crate::client::beside::{beside, pass_on, until};
use crate::client::cluster::{Connected, UNWATCHED_WAIT, agent_ended, connect};
use crate::client::context::{GRACE, absolute, current_umask};
use crate::client::embedded::{self, ContainmentWish};
use crate::client::note::{self, Note};
use crate::client::profile::{Cluster, Profile, ProfileArgs};
use crate::client::signals::Signals;
use crate::client::submit::{SUBMIT_JOBS, Submitter};
use crate::exit::{self, Exit};
use crate::jobs::{Format, Jobs, check_env_name, too_large};
use crate::report::format::counted;
use crate::report::notice::describe;
use crate::report::output::{self, FromOutput, OutputThread, ToOutput, not_writable};
use crate::report::outputs::{Old, Results, Wishes};
use crate::report::progress::{Progress, ProgressKind};
use crate::report::resume::{self, Plan, Resume, TakenUp, Written};
use clap::builder::TypedValueParser;
use mezcal_common::message::client::{
    BatchTerms, Halt, HaltWhy, Notice, Selector, ToClient, ToService,
};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::{format_duration, parse_duration};
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Leftover, Stop};
use mezcal_common::model::octets;
use mezcal_common::model::outcome::{Ended, JobResult, Outcome};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

/// Between two reminders that no agent is there.
const REMINDER: Duration = Duration::from_secs(5);

/// Run a list of jobs and stream their results.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The job list: JSON Lines or one JSON array; - or nothing: standard input
    #[arg(value_name = "FILE", conflicts_with = "input")]
    pub file: Option<PathBuf>,
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
    #[arg(help_heading = "Where jobs run", short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub slots: Option<u16>,
    /// Be the coordinator for this run: agents connect to ADDR, for example 0.0.0.0:7433
    #[arg(help_heading = "Where jobs run", long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Run here, whatever the profile says
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
    /// What to call the batch
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
    #[arg(help_heading = "Results", long)]
    pub keep_order: bool,
    /// Read and write exactly as another program did
    #[arg(help_heading = "Input", long, value_name = "PROGRAM")]
    pub compat: Option<Compat>,
    /// One shell command per line instead of JSON
    #[arg(help_heading = "Input", long, conflicts_with = "compat")]
    pub lines: bool,
    /// The commands of --lines are separated by NUL bytes, and may contain line breaks
    #[arg(help_heading = "Input", short = '0', long, requires = "lines")]
    pub null: bool,
    /// Directory in which jobs without `cd` start (default: this one)
    #[arg(help_heading = "Jobs", long, value_name = "DIR")]
    pub cd: Option<PathBuf>,
    /// Environment for every job; without a value, this process's
    #[arg(help_heading = "Jobs", long = "env", value_name = "NAME[=VALUE]", value_parser = clap::builder::OsStringValueParser::new().map(as_text))]
    pub env: Vec<String>,
    /// Longest run of jobs without `timeout`
    #[arg(help_heading = "Jobs", long, value_name = "DURATION", value_parser = some_time)]
    pub timeout: Option<Duration>,
    /// Cancel all jobs that have not ended this long after the start of the run
    #[arg(help_heading = "The run", long, value_name = "DURATION", value_parser = some_time)]
    pub time_limit: Option<Duration>,
    /// Give up early, as GNU Parallel: WHEN,WHY=N or N%, with soon or now, and fail, success or
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
    /// Run only jobs without a successful result in the file of -o, and append to it
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

/// A name that fits a line.
fn batch_name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        Ok(text.into())
    } else {
        Err("it must have 1 to 64 characters, none of them control characters".into())
    }
}

/// `--halt`; none: never.
pub type HaltRule = Option<Halt>;

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

/// Runs the verb; the exit status is the answer.
///
/// # Errors
/// [`Exit`] with the status and a message.
pub fn run(args: &RunArgs) -> Result<u8, Exit> {
    let profile = args.profile.resolve(args.local, args.listen)?;
    if profile.cluster != Cluster::Embedded && args.slots.is_some() {
        return Err(Exit::usage(
            "-j sets the slots of a run on this host; on a cluster each agent has its own (`slots` in agent.toml)",
        ));
    }
    if matches!(profile.cluster, Cluster::Remote { .. }) && args.locality_wait.is_some() {
        return Err(Exit::usage(
            "--locality-wait is for a run that is its own coordinator; that of a cluster has `locality_wait` in coordinator.toml",
        ));
    }
    if profile.cluster == Cluster::Embedded && args.min_agents > 1 {
        return Err(Exit::usage(
            "--min-agents: a run on this host has one agent; name a cluster with -p or --listen",
        ));
    }
    if profile.cluster != Cluster::Embedded && args.containment != ContainmentWish::Auto {
        return Err(Exit::usage(
            "--containment is for a run on this host; on a cluster each agent has its own (agent.toml)",
        ));
    }
    if args.detach && !matches!(profile.cluster, Cluster::Remote { .. }) {
        return Err(Exit::usage(
            "--detach leaves the jobs to a running coordinator; name one with -p",
        ));
    }
    let outputs = outputs(args);
    if !args.stream {
        outputs.check()?;
    }
    let keeper = match profile.cluster {
        Cluster::Embedded => Some(embedded::start_keeper(args.containment)?),
        Cluster::Listen { .. } | Cluster::Remote { .. } => None,
    };
    let context = batch_context(args, &profile)?;
    if args.stream {
        return stream(args, &profile, keeper, context);
    }
    let mut jobs = read_jobs(args)?;
    if context.cd.is_empty()
        && let Some(number) = jobs.first_without_directory()
        && let Err(why) = absolute(Path::new(""))
    {
        return Err(Exit::usage(format!(
            "job {number} has no absolute `cd`, and {}",
            why.message
        )));
    }
    let Begun {
        batch,
        kept,
        written,
        noted,
    } = begin(args, &profile, &mut jobs, context.batch)?;
    let context = BatchContext { batch, ..context };
    if let (true, true, Some(path)) = (
        jobs.is_empty(),
        args.resume || args.resume_failed,
        &args.output,
    ) {
        // Perhaps a last line that is torn.
        let cannot = |e| Exit::output(format!("cannot write {}: {e}", path.display()));
        kept.map_or(Ok(()), |kept| {
            mezcal_common::system::files::rewrite(path, &kept)
        })
        .map_err(cannot)?;
        noted
            .into_iter()
            .for_each(|noted| drop(std::fs::remove_file(noted.path)));
        return Ok(0);
    }
    let slots = args.slots.unwrap_or_else(embedded::usable_cpus);
    let (most, number) = jobs.widest();
    if profile.cluster == Cluster::Embedded && most > slots {
        return Err(Exit::usage(format!(
            "job {number} takes {most} slots, and this run has {slots}; -j {most} gives it as many"
        )));
    }
    find_inputs(&mut jobs, args, &profile, &context.cd);
    let jobs = Arc::new(jobs);
    let results = if args.detach {
        None
    } else {
        Some(outputs.results(kept)?)
    };
    let log = outputs.log()?;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let connected = tokio::select! {
            connected = connect(&profile, keeper, args.slots, args.locality_wait) => connected?,
            // Nothing has been started yet.
            number = signals.next() => return Ok(128 + number),
        };
        let terms = terms(args, context);
        let Some(results) = results else {
            let remote = connected.into_remote().ok_or_else(|| Exit {
                status: exit::BUG,
                message: "nobody to leave the jobs to".into(),
            })?;
            return detach::submit(remote, jobs, terms, signals, args.reconnect.reconnect).await;
        };
        let run = Run::new(args, jobs, terms, results, log, connected, signals)?;
        Run {
            written,
            noted,
            ..run
        }
        .drive()
        .await
    });
    // Reads of stdin and the like may still block a thread of the runtime.
    runtime.shutdown_background();
    status
}

/// How a run begins: anew, with what others have left, or with a batch that goes on.
struct Begun {
    batch: BatchId,
    /// What is to stay of the results file, if not all of it.
    kept: Option<Vec<u8>>,
    /// Results of the batch that the file has already.
    written: Written,
    noted: Option<Noted>,
}

/// The note beside a results file, and what it has to say, if it does not say so already.
struct Noted {
    path: PathBuf,
    note: Option<Note>,
}

/// Takes out of a list what need not run, or what does not belong to the batch that an earlier run
/// has left.
fn begin(
    args: &RunArgs,
    profile: &Profile,
    jobs: &mut Jobs,
    batch: BatchId,
) -> Result<Begun, Exit> {
    let again = match (args.resume, args.resume_failed) {
        (true, _) => Some(Resume::Unfinished),
        (_, true) => Some(Resume::Failed),
        (false, false) => None,
    };
    let results = args.output.as_deref().filter(|path| {
        let stays = path.as_os_str() != "-" && (path.is_file() || !path.exists());
        stays && args.compat.is_none() && !args.detach
    });
    let anew = Begun {
        batch,
        kept: None,
        written: Written::default(),
        noted: None,
    };
    let Some(path) = results else {
        // Whoever goes on needs a file; what is none is refused with a reason.
        return match (again, &args.output) {
            (Some(_), Some(path)) => resume::read(path).map(|_| anew),
            _ => Ok(anew),
        };
    };
    let note = note::beside(path);
    let left = if args.force { None } else { note::read(&note)? };
    let going_on = match (&left, again, &profile.cluster) {
        (None, ..) => None,
        (Some(left), Some(_), Cluster::Remote { coordinator, .. })
            if *coordinator == left.coordinator =>
        {
            note::ask(&args.profile, left.batch)?
        }
        (
            Some(Note {
                batch, coordinator, ..
            }),
            ..,
        ) => {
            let way = match again {
                Some(_) => "resume with a profile that names this coordinator".to_owned(),
                None => format!(
                    "--resume goes on with it, --force leaves it alone (`coordinator cancel {batch}` ends it)"
                ),
            };
            return Err(Exit::usage(format!(
                "batch {batch} at {coordinator}, whose results go to {}, may still run ({} says so): {way}; or remove that note",
                path.display(),
                note.display()
            )));
        }
    };
    let text = again.map_or(Ok(String::new()), |_| resume::read(path))?;
    if let (Some(left), Some(status)) = (&left, going_on) {
        let keep = left.jobs_of(jobs).ok_or_else(|| {
            Exit::usage(format!(
                "this is not the list of batch {}, whose results go to {} and which may still run: resume with its list, or see to it with \
                 `coordinator attach {}` and remove {}",
                left.batch,
                path.display(),
                left.batch,
                note.display()
            ))
        })?;
        let TakenUp { kept, written } =
            resume::take_up(jobs, path, &text, left.results_in(&text), &keep)?;
        // With all of them here it is as if it had never been interrupted.
        if status.done.is_none() || (written.count() as u64) < status.jobs {
            jobs.retain(&keep);
            if !args.quiet {
                let have = written.count();
                tell!(
                    "coordinator: batch {} goes on; {have} of its {} results are in {}",
                    left.batch,
                    jobs.len(),
                    path.display()
                );
            }
            let kept = kept.map(String::into_bytes);
            return Ok(Begun {
                batch: left.batch,
                kept,
                written,
                noted: Some(Noted {
                    path: note,
                    note: None,
                }),
            });
        }
    }
    let (keep, kept) = match again {
        Some(what) => {
            let Plan { keep, kept } = resume::plan(jobs, path, &text, what)?;
            if !args.quiet {
                let done = counted(
                    keep.iter().filter(|keep| !**keep).count() as u64,
                    "job",
                    "jobs",
                );
                tell!("coordinator: {done} need not run ({})", path.display());
            }
            (keep, kept)
        }
        None => (vec![true; jobs.len()], None),
    };
    let noted = match &profile.cluster {
        Cluster::Remote { coordinator, .. } => {
            let says = Note::new(
                batch,
                coordinator,
                jobs,
                &keep,
                kept.as_deref().unwrap_or(&text),
            );
            Some(Noted {
                path: note,
                note: Some(says),
            })
        }
        // Its jobs end with it.
        Cluster::Embedded | Cluster::Listen { .. } => None,
    };
    if again.is_some() {
        jobs.retain(&keep);
    }
    Ok(Begun {
        kept: kept.map(String::into_bytes),
        noted,
        ..anew
    })
}

/// Runs jobs that come while others run.
fn stream(
    args: &RunArgs,
    profile: &Profile,
    keeper: Option<embedded::Keeper>,
    context: BatchContext,
) -> Result<u8, Exit> {
    if args
        .file
        .as_ref()
        .is_some_and(|file| file.as_os_str() != "-")
    {
        return Err(Exit::usage(
            "--stream reads standard input; a file of jobs needs no stream",
        ));
    }
    let widest = match profile.cluster {
        Cluster::Embedded => args.slots.unwrap_or_else(embedded::usable_cpus),
        Cluster::Listen { .. } | Cluster::Remote { .. } => u16::MAX,
    };
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let status = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let connected = tokio::select! {
            connected = connect(profile, keeper, args.slots, args.locality_wait) => connected?,
            number = signals.next() => return Ok(128 + number),
        };
        stream::run(args, connected, terms(args, context), widest, signals).await
    });
    // The thread that reads may wait for a line for ever.
    runtime.shutdown_background();
    status
}

fn terms(args: &RunArgs, context: BatchContext) -> BatchTerms {
    let (halt, time_limit, name) = (args.halt, args.time_limit, args.name.clone());
    BatchTerms {
        halt,
        time_limit,
        name,
        ..BatchTerms::new(context, args.host_timeout)
    }
}

fn read_jobs(args: &RunArgs) -> Result<Jobs, Exit> {
    let path = args
        .file
        .as_ref()
        .or(args.input.as_ref())
        .filter(|p| p.as_os_str() != "-");
    let (name, bytes) = match path {
        Some(path) => {
            let name = path.display().to_string();
            let bytes =
                std::fs::read(path).map_err(|e| Exit::usage(format!("cannot read {name}: {e}")))?;
            (name, bytes)
        }
        None => {
            let mut bytes = Vec::new();
            if std::io::stdin().is_terminal() && !args.quiet {
                tell!("coordinator: reading jobs from the terminal; end with Ctrl-D");
            }
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .map_err(|e| Exit::usage(format!("cannot read standard input: {e}")))?;
            ("standard input".to_owned(), bytes)
        }
    };
    let format = match (args.compat, args.lines, args.null) {
        (Some(Compat::Bakapara), ..) => Format::Bakapara,
        (None, _, true) => Format::NulLines,
        (None, true, false) => Format::Lines,
        (None, false, false) => Format::Json,
    };
    let jobs = Jobs::read(&name, bytes, format, args.retries).map_err(Exit::usage)?;
    if !args.quiet {
        jobs.warnings()
            .iter()
            .for_each(|warning| tell!("coordinator: {name}: {warning}"));
    }
    Ok(jobs)
}

/// Asks where the inputs of jobs are. Whatever goes wrong, they can run anywhere.
fn find_inputs(jobs: &mut Jobs, args: &RunArgs, profile: &Profile, cd: &str) {
    let paths = jobs.inputs(cd);
    if paths.is_empty() {
        return;
    }
    let found = match &profile.locate {
        Some(command) => crate::jobs::locate::ask(command, &paths),
        None => Err("the profile has no `locate`, a command that says where files are".into()),
    };
    match found {
        Ok(places) => jobs.locate(cd, &places),
        Err(why) if !args.quiet => {
            tell!(
                "coordinator: jobs with `inputs` run anywhere: {}",
                mezcal_common::model::escape::for_terminal(&why)
            );
        }
        Err(_) => {}
    }
}

/// A text that stands for any bytes.
fn as_text(bytes: OsString) -> String {
    octets::text(bytes.into_vec())
}

fn batch_context(args: &RunArgs, profile: &Profile) -> Result<BatchContext, Exit> {
    let mut env: Vec<_> = profile
        .env
        .iter()
        .map(|(name, value)| (name.clone(), as_text(value.into())))
        .collect();
    for item in &args.env {
        let name = item.split_once('=').map_or(item.as_str(), |(name, _)| name);
        check_env_name(name).map_err(|e| Exit::usage(format!("--env {item:?}: {e}")))?;
        match item.split_once('=') {
            Some((name, value)) => env.push((name.to_owned(), value.to_owned())),
            None => {
                // A function that bash has exported is a variable of this name.
                let names = [item.clone(), format!("BASH_FUNC_{item}%%")];
                let found = names.into_iter().find_map(|name| {
                    Some((
                        as_text(std::env::var_os(OsStr::from_bytes(&octets::of(&name)))?),
                        name,
                    ))
                });
                let (value, name) = found.ok_or_else(|| {
                    let item = octets::shown(item);
                    Exit::usage(format!(
                        "--env {item}: it is not set here; write --env {item}=VALUE (or `export {item}`; `export -f {item}` if it is a function of bash)"
                    ))
                })?;
                env.push((name, value));
            }
        }
    }
    for (name, _) in &env {
        check_env_name(name).map_err(|e| Exit::usage(format!("--env or the profile: {e}")))?;
    }
    let cd = match absolute(args.cd.as_deref().unwrap_or(Path::new(""))) {
        // Jobs that are read as a whole may need none.
        Err(_) if args.cd.is_none() && !args.stream => String::new(),
        cd => cd?,
    };
    let context = BatchContext {
        env,
        setup: profile.setup.clone(),
        output_dir: args.output_dir.as_deref().map(absolute).transpose()?,
        timeout: args.timeout,
        leftover: match args.leftover {
            LeftoverArg::Kill => Leftover::Kill,
            LeftoverArg::Wait => Leftover::Wait,
        },
        ..BatchContext::new(BatchId::random(), cd, current_umask())
    };
    too_large(&context).map_or(Ok(context), |why| Err(Exit::usage(why)))
}

/// The files of a run.
fn outputs(args: &RunArgs) -> Wishes<'_> {
    Wishes {
        input: args.file.as_deref().or(args.input.as_deref()),
        results: args.output.as_deref(),
        log: args.logging.as_deref(),
        old: match () {
            () if args.compat.is_some() => Old::Emptied,
            () if args.resume || args.resume_failed => Old::Kept,
            () if args.force => Old::Replaced,
            () => Old::Refused,
        },
    }
}

struct Run<'a> {
    args: &'a RunArgs,
    jobs: Arc<Jobs>,
    terms: BatchTerms,
    batch: BatchId,
    connected: Connected,
    signals: Signals,
    output: OutputThread,
    /// Connected agents and their engines, as far as we have heard.
    fleet: (u32, u32),
    submitter: Submitter,
    received: u64,
    /// So many jobs the coordinator has for good; or it does not want them all.
    accepted: u64,
    turned_away: bool,
    /// Which jobs have a result.
    answered: Vec<bool>,
    /// Results that an earlier run of the same batch has written.
    written: Written,
    noted: Option<Noted>,
    /// What the output thread has not taken yet.
    for_output: VecDeque<ToOutput>,
    /// How many signals have come, and the first one.
    signalled: (u32, u8),
    /// The batch was given up early, and for what.
    halted: Option<HaltWhy>,
    /// What will be the exit status when everything has been cleaned up.
    failure: Option<Exit>,
}

impl<'a> Run<'a> {
    fn new(
        args: &'a RunArgs,
        jobs: Arc<Jobs>,
        terms: BatchTerms,
        results: Results,
        log: Option<File>,
        connected: Connected,
        signals: Signals,
    ) -> Result<Self, Exit> {
        let compat = args.compat.is_some();
        let progress = Progress::new(args.progress, args.quiet, log, jobs.len() as u64, compat);
        let watched = results.pipe();
        let form = (compat, results.is_terminal());
        let output = output::start(
            jobs.clone(),
            results.open()?,
            watched,
            progress,
            form,
            args.keep_order,
        )
        .map_err(|e| Exit::usage(format!("cannot start the thread that writes results: {e}")))?;
        let answered = vec![false; jobs.len()];
        let batch = terms.context.batch;
        Ok(Self {
            args,
            jobs: jobs.clone(),
            terms,
            batch,
            connected,
            signals,
            output,
            fleet: (0, 0),
            submitter: Submitter::new(jobs.clone(), batch),
            received: 0,
            accepted: 0,
            turned_away: false,
            answered,
            written: Written::default(),
            noted: None,
            for_output: VecDeque::new(),
            signalled: (0, 0),
            halted: None,
            failure: None,
        })
    }

    /// Everything from the first agent to the last result, and the clean-up.
    async fn drive(mut self) -> Result<u8, Exit> {
        if self.wait_for_agents().await {
            self.note();
            self.run_batch().await;
        }
        // All results are here, or the coordinator has taken none of the jobs.
        let nothing_is_left =
            self.received >= self.jobs.len() as u64 || self.turned_away && self.accepted == 0;
        let Run {
            args,
            jobs,
            connected,
            output,
            for_output,
            mut signals,
            signalled,
            halted,
            mut failure,
            noted,
            ..
        } = self;
        let finishing = async {
            for message in for_output {
                let _ = output.sender.send(message).await;
            }
            tokio::task::spawn_blocking(move || output.finish())
                .await
                .unwrap_or_default()
        };
        let (counts, unwritten) = tokio::select! {
            finished = finishing => finished,
            // Everything has ended; only the reader of our output is in the way.
            number = signals.next() => std::process::exit(128 + i32::from(number)),
        };
        match unwritten {
            Some(e) => drop(failure.get_or_insert(not_writable(&e))),
            None if nothing_is_left => noted
                .into_iter()
                .for_each(|noted| drop(std::fs::remove_file(noted.path))),
            None => {}
        }
        connected.end().await;
        match (failure, signalled) {
            (Some(failure), _) => Err(failure),
            (None, (1.., number)) => Ok(128 + number),
            (None, _) if args.compat.is_some() => Ok(0),
            // What was looked for has been found, and what was not needed any more does not count.
            (None, _) if halted == Some(HaltWhy::Success) => Ok(0),
            (None, _) if halted == Some(HaltWhy::Done) && counts.failed + counts.skipped == 0 => {
                Ok(0)
            }
            (None, _) if counts.done < jobs.len() as u64 => Ok(exit::FAILED),
            (None, _) => Ok(0),
        }
    }

    /// True when enough agents are there.
    async fn wait_for_agents(&mut self) -> bool {
        let patience = self
            .args
            .wait_agents
            .or_else(|| (!std::io::stderr().is_terminal()).then_some(UNWATCHED_WAIT));
        let give_up = patience.map(|p| Instant::now() + p);
        let wanted = self.args.min_agents.max(1);
        let to_output = self.output.sender.clone();
        let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER / 4, REMINDER);
        while self.fleet.0 < wanted {
            tokio::select! {
                answer = self.connected.port.answers.recv() => match answer {
                    Some(answer) => self.answer(answer).await,
                    None => {
                        self.lost().await;
                        return false;
                    }
                },
                why = agent_ended(&mut self.connected.agent) => {
                    self.failure = Some(Exit::unreachable(why));
                    return false;
                }
                permit = to_output.reserve(), if !self.for_output.is_empty() => pass_on(permit, &mut self.for_output),
                number = self.signals.next() => {
                    self.signalled = (1, number);
                    return false;
                }
                _ = reminder.tick() => {
                    let text = match self.fleet.0 {
                        0 => self.connected.waiting_for.clone(),
                        n => format!("{n} of {wanted} agents are connected"),
                    };
                    self.say(text);
                }
                () = until(give_up) => {
                    let missing = match self.fleet.0 {
                        0 => self.connected.waiting_for.clone(),
                        n => format!("only {n} of {wanted} agents are connected"),
                    };
                    let why = format!("{missing}, after {} (--wait-agents)", format_duration(patience.unwrap_or_default()));
                    self.failure = Some(Exit::unreachable(why));
                    return false;
                }
            }
        }
        true
    }

    /// Says beside the results file which batch they come from, before there is one.
    fn note(&mut self) {
        let Some((path, note)) = self
            .noted
            .as_ref()
            .and_then(|noted| Some((&noted.path, noted.note.as_ref()?)))
        else {
            return;
        };
        if let Err(e) = note::write(path, note) {
            let text = format!(
                "cannot write {}: {e}; if this run is killed, --resume would not know what still runs",
                path.display()
            );
            self.say(text);
        }
    }

    async fn run_batch(&mut self) {
        if self.connected.agent.is_none() && self.args.compat.is_none() {
            self.say(format!("this is batch {}", self.batch));
        }
        self.for_output.push_back(ToOutput::Begin {
            engines: self.fleet.1,
            submitted: WallTime::now(),
        });
        let mut requests = self.open().await;
        let total = self.jobs.len() as u64;
        let to_output = self.output.sender.clone();
        let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER, REMINDER);
        while self.received < total && !self.turned_away {
            let submitting = requests.clone();
            tokio::select! {
                number = self.signals.next() => self.signal(number).await,
                // With the output thread behind, answers wait at the coordinator; signals do not.
                answer = self.connected.port.answers.recv(), if self.for_output.len() < BEHIND => match answer {
                    Some(answer) => self.answer(answer).await,
                    None => match self.reattach().await {
                        true => requests = self.open().await,
                        false => return,
                    },
                },
                permit = to_output.reserve(), if !self.for_output.is_empty() => pass_on(permit, &mut self.for_output),
                why = agent_ended(&mut self.connected.agent) => {
                    self.answer_the_rest(&why);
                    self.failure = Some(Exit::unreachable(why));
                    return;
                }
                Some(answer) = self.output.answers.recv() => self.on_output(answer).await,
                Ok(permit) = submitting.reserve(), if self.submitter.has_more() => permit.send(self.submitter.next_message()),
                _ = reminder.tick() => {
                    if self.fleet.0 == 0 {
                        self.say(self.connected.waiting_for.clone());
                    }
                }
            }
        }
    }

    /// Opens the batch, or goes on with it after a connection was lost.
    async fn open(&mut self) -> Sender<ToService> {
        let requests = self.connected.port.requests.clone();
        let _ = requests
            .send(ToService::Open {
                terms: self.terms.clone(),
                have: self.received,
            })
            .await;
        requests
    }

    /// Reaches the coordinator again after the connection was lost: what it has goes on meanwhile.
    /// False if that is hopeless.
    async fn reattach(&mut self) -> bool {
        self.submitter.interrupted();
        if self.connected.is_lost_for_good() {
            self.lost().await;
            return false;
        }
        let patience = self.args.reconnect.reconnect;
        let why = self.connected.why_lost().await;
        self.say(format!(
            "{why}; its jobs go on; trying to reach it again for {}",
            format_duration(patience)
        ));
        let reaching = self.connected.reach_again(patience);
        let reached = beside(
            reaching,
            &self.output.sender,
            &mut self.for_output,
            &mut self.signals,
        )
        .await;
        match reached {
            Ok(true) => {}
            Ok(false) => {
                self.lost().await;
                return false;
            }
            Err(number) => return self.leave(number),
        }
        self.say("connected again".into());
        if self.signalled.0 > 0 {
            self.cancel(if self.signalled.0 == 1 {
                GRACE
            } else {
                Duration::ZERO
            })
            .await;
        }
        true
    }

    /// Somebody wants to go while the coordinator is out of reach: nothing can be cancelled.
    fn leave(&mut self, number: u8) -> bool {
        self.signalled = (1, number);
        let why = "the coordinator was out of reach when the run was interrupted";
        self.answer_the_rest(why);
        self.say(format!(
            "left; batch {} is cancelled when its client lease is over, or by `coordinator cancel`",
            self.batch
        ));
        false
    }

    async fn answer(&mut self, answer: ToClient) {
        match answer {
            ToClient::Fleet { agents, engines } => self.fleet = (agents, engines),
            ToClient::Results { results, .. } | ToClient::CountedResults { results, .. } => {
                self.received += results.len() as u64;
                for (job, _) in &results {
                    if let Some(answered) = self.answered.get_mut(job.0 as usize - 1) {
                        *answered = true;
                    }
                }
                let known = results.iter().filter(|(job, result)| {
                    self.written.take(|| self.jobs.as_object(job.0), result)
                });
                let known: Vec<u32> = known.map(|(job, _)| job.0).collect();
                if !known.is_empty() {
                    self.for_output.push_back(ToOutput::Known(known));
                }
                self.for_output
                    .push_back(ToOutput::Results(results, WallTime::now()));
            }
            ToClient::Notice { notice, .. } => {
                if let Notice::Halted { why, .. } = notice {
                    self.halted = Some(why);
                }
                self.say(describe(&notice));
            }
            ToClient::Refused { reason } => {
                let first = self.failure.is_none();
                self.failure.get_or_insert(Exit::unreachable(format!(
                    "the coordinator refused a request: {reason}"
                )));
                // Without its word that it has all of them there is nothing to wait for.
                if self.accepted < self.jobs.len() as u64 && !self.turned_away {
                    self.turned_away = true;
                    if self.accepted > 0 {
                        self.answer_with(&format!(
                            "the coordinator refused a part of the batch: {reason}"
                        ));
                    }
                }
                if first {
                    self.cancel(Duration::ZERO).await;
                }
            }
            ToClient::Opened {
                host_sets,
                jobs,
                closed,
                ..
            } => {
                self.accepted = self.accepted.max(jobs);
                self.submitter.opened(host_sets, jobs, closed);
            }
            ToClient::Accepted { jobs, .. } => self.accepted = self.accepted.max(jobs),
            ToClient::Welcome { .. }
            | ToClient::Hosts(_)
            | ToClient::HostsPage { .. }
            | ToClient::Output { .. }
            | ToClient::Cancelled { .. }
            | ToClient::LogsAnswer { .. }
            | ToClient::Attached { .. }
            | ToClient::Described { .. }
            | ToClient::Ended { .. }
            | ToClient::Batches { .. }
            | ToClient::BatchesApart { .. }
            | ToClient::Retried { .. }
            | ToClient::Done { .. }
            | ToClient::Why { .. }
            | ToClient::Unserved { .. }
            | ToClient::Standings { .. }
            | ToClient::Failing { .. }
            | ToClient::TokensCreated { .. }
            | ToClient::Tokens { .. }
            | ToClient::Certificates { .. }
            | ToClient::Renewed { .. }
            | ToClient::CancelWaits { .. }
            | ToClient::Revoked { .. } => {}
        }
    }

    async fn on_output(&mut self, answer: FromOutput) {
        match answer {
            FromOutput::Written(results) => {
                let _ = self
                    .connected
                    .port
                    .requests
                    .send(ToService::Taken {
                        batch: self.batch,
                        results,
                    })
                    .await;
            }
            FromOutput::Failed(e) => {
                self.failure = Some(not_writable(&e));
                self.cancel(GRACE).await;
            }
        }
    }

    async fn signal(&mut self, number: u8) {
        self.signalled = (
            self.signalled.0 + 1,
            if self.signalled.0 == 0 {
                number
            } else {
                self.signalled.1
            },
        );
        match self.signalled.0 {
            1 => {
                self.say("cancelling: TERM now, KILL in 2 s; once more to kill at once".into());
                self.cancel(GRACE).await;
            }
            2 => {
                self.say("killing; once more to leave without waiting".into());
                self.cancel(Duration::ZERO).await;
            }
            _ => std::process::exit(128 + i32::from(number)),
        }
    }

    async fn cancel(&mut self, grace: Duration) {
        // Results tell what it has come to.
        let what = vec![Selector::Batch(self.batch.to_string())];
        let _ = self
            .connected
            .port
            .requests
            .send(ToService::Cancel {
                request: 0,
                what,
                stop: Stop::after(grace),
            })
            .await;
    }

    async fn lost(&mut self) {
        let why = self.connected.why_lost().await;
        if self.submitter.has_begun() {
            self.answer_the_rest(&why);
        }
        self.failure = Some(Exit::unreachable(why));
    }

    /// Every job gets a result: what the coordinator still had is lost to us.
    fn answer_the_rest(&mut self, why: &str) {
        let error = match &self.connected.agent {
            // Its engines end with it.
            Some(_) => why.to_owned(),
            None => format!("{why}; it may run on until a coordinator is back or its lease ends"),
        };
        self.answer_with(&error);
    }

    fn answer_with(&mut self, error: &str) {
        let open: Vec<u32> = (1..)
            .zip(&self.answered)
            .filter(|(_, answered)| !**answered)
            .map(|(number, _)| number)
            .collect();
        for numbers in open.chunks(SUBMIT_JOBS) {
            let lost = |number: &u32| {
                let outcome = Outcome::never_ran(Ended::Lost, error.to_owned());
                (
                    JobNumber(*number),
                    JobResult {
                        attempt: 0,
                        place: None,
                        local: None,
                        outcome,
                    },
                )
            };
            self.for_output.push_back(ToOutput::Results(
                numbers.iter().map(lost).collect(),
                WallTime::now(),
            ));
        }
    }

    fn say(&mut self, text: String) {
        if !self.args.quiet {
            self.for_output.push_back(ToOutput::Say(text));
        }
    }
}

/// Messages that may wait for the output thread before answers are left unread.
const BEHIND: usize = 64;
