//! The input of a run: the job list, the places of inputs, the settings that all jobs share.

use super::args::{Compat, LeftoverArg, RunArgs, as_text};
use super::arguments;
use super::resume::{Begun, Noted, begin};
use crate::client::context::{absolute, current_umask};
use crate::client::embedded;
use crate::client::profile::{Cluster, Profile};
use crate::exit::Exit;
use crate::jobs::{Format, Jobs, check_env_name, too_large, write_json};
use crate::report::format::show;
use crate::report::outputs::{Results, Wishes};
use crate::report::progress::ProgressKind;
use crate::report::resume::Written;
use mezcal_common::message::client::BatchTerms;
use mezcal_common::model::escape::shell_word;
use mezcal_common::model::ids::BatchId;
use mezcal_common::model::job::{BatchContext, Leftover};
use mezcal_common::model::octets;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a printed job list that are written together.
const PRINTED_AT_ONCE: usize = 64 * 1024;

/// The work of a run, read and checked; the rest of the run does not look at the command line.
pub(super) struct Prepared {
    pub(super) work: Work,
    pub(super) terms: BatchTerms,
    pub(super) manner: Manner,
}

/// Where the jobs of a run come from, and where their results go.
pub(super) enum Work {
    /// A list, whose results are written.
    List(Box<List>),
    /// A list that is left to the coordinator (`--detach`).
    Left(Arc<Jobs>),
    /// Jobs that come while others run.
    Stream(Lines),
}

/// A list of jobs whose results are written.
pub(super) struct List {
    pub(super) jobs: Arc<Jobs>,
    pub(super) results: Results,
    pub(super) log: Option<File>,
    /// Results that an earlier run of the same batch has written.
    pub(super) written: Written,
    pub(super) noted: Option<Noted>,
    pub(super) keep_order: bool,
    pub(super) progress: ProgressKind,
}

/// How jobs that come on standard input are read.
pub(super) struct Lines {
    /// The most slots that a job can take.
    pub(super) widest: u16,
    /// Retries of jobs without `retries`.
    pub(super) retries: u32,
    /// The end of the input cancels everything.
    pub(super) attended: bool,
}

/// How a run treats its coordinator and its user.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Like bakapara.py.
    pub(super) compat: bool,
    pub(super) quiet: bool,
    /// Agents to wait for, and how long; without a time, for ever if a person watches.
    pub(super) min_agents: u32,
    pub(super) wait_agents: Option<Duration>,
    /// How long the run tries to reach a lost coordinator.
    pub(super) patience: Duration,
}

/// The files that the jobs of a run are made from; `-`: standard input.
pub(super) fn files(args: &RunArgs) -> Vec<PathBuf> {
    if let Some(given) = &args.given {
        return arguments::files(args, given);
    }
    let list = args.file.as_ref().or(args.input.as_ref());
    vec![list.cloned().unwrap_or_else(|| "-".into())]
}

/// Reads the jobs, unless they come while others run, and opens the files for their results.
/// `None`: all jobs have a result.
///
/// # Errors
/// [`Exit`]: an argument, the job list or a file cannot be used.
pub(super) fn prepare(
    args: &RunArgs,
    profile: &Profile,
    outputs: &Wishes<'_>,
) -> Result<Option<Prepared>, Exit> {
    let context = batch_context(args, profile)?;
    let manner = Manner {
        compat: args.compat.is_some(),
        quiet: args.quiet,
        min_agents: args.min_agents,
        wait_agents: args.wait_agents,
        patience: args.reconnect.reconnect,
    };
    if args.stream {
        return Ok(Some(Prepared {
            work: Work::Stream(lines(args, profile)?),
            terms: terms(args, context),
            manner,
        }));
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
    } = begin(args, profile, &mut jobs, context.batch)?;
    let context = BatchContext { batch, ..context };
    if let (true, true, Some(path)) = (
        jobs.is_empty(),
        args.resume || args.resume_failed,
        &args.output,
    ) {
        return all_have_results(path, kept, noted).map(|()| None);
    }
    check_slots(args, profile, &jobs)?;
    jobs.keep_names_in(context.output_dir.clone());
    find_inputs(&mut jobs, args, profile, &context.cd);
    let jobs = Arc::new(jobs);
    let results = (!args.detach).then(|| outputs.results(kept)).transpose()?;
    let log = outputs.log()?;
    let work = match results {
        None => Work::Left(jobs),
        Some(results) => Work::List(Box::new(List {
            jobs,
            results,
            log,
            written,
            noted,
            keep_order: args.keep_order,
            progress: args.progress,
        })),
    };
    Ok(Some(Prepared {
        work,
        terms: terms(args, context),
        manner,
    }))
}

/// Refuses a job that takes more slots than an embedded run has.
fn check_slots(args: &RunArgs, profile: &Profile, jobs: &Jobs) -> Result<(), Exit> {
    let slots = args.slots.unwrap_or_else(embedded::usable_cpus);
    let (most, number) = jobs.widest();
    if profile.cluster == Cluster::Embedded && most > slots {
        return Err(Exit::usage(format!(
            "job {number} takes {most} slots, and this run has {slots}; -j {most} gives it as many"
        )));
    }
    Ok(())
}

/// Completes a results file that has a result of every job.
fn all_have_results(path: &Path, kept: Option<Vec<u8>>, noted: Option<Noted>) -> Result<(), Exit> {
    // `kept` is without a torn last line.
    if let Some(kept) = kept {
        mezcal_common::system::files::rewrite(path, &kept)
            .map_err(|e| Exit::output(format!("cannot write {}: {e}", path.display())))?;
    }
    if let Some(noted) = noted {
        let _ = std::fs::remove_file(noted.path);
    }
    Ok(())
}

fn lines(args: &RunArgs, profile: &Profile) -> Result<Lines, Exit> {
    if args
        .file
        .as_ref()
        .is_some_and(|file| file.as_os_str() != "-")
    {
        return Err(Exit::usage(
            "--stream reads standard input; a file of jobs needs no stream",
        ));
    }
    Ok(Lines {
        widest: match profile.cluster {
            Cluster::Embedded => args.slots.unwrap_or_else(embedded::usable_cpus),
            Cluster::Listen { .. } | Cluster::Remote { .. } => u16::MAX,
        },
        retries: args.retries,
        attended: args.attended,
    })
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

/// Prints the jobs as a job list.
///
/// # Errors
/// [`Exit`]: as for a run, or standard output takes no more.
pub(super) fn dry_run(args: &RunArgs) -> Result<u8, Exit> {
    let jobs = read_jobs(args)?;
    let keys = given_keys(args);
    let mut lines = Vec::new();
    for number in 1..=jobs.len() as u32 {
        let mut object = jobs.as_object(number);
        // A command has no keys that could be the same.
        object.insert_str(object.len() - usize::from(!keys.is_empty()), &keys);
        write_json(&mut lines, &object, false);
        lines.push(b'\n');
        if lines.len() >= PRINTED_AT_ONCE || number == jobs.len() as u32 {
            show(&String::from_utf8_lossy(&lines))?;
            lines.clear();
        }
    }
    Ok(0)
}

/// The keys that options give to jobs of a template or of --lines, as the end of an object.
fn given_keys(args: &RunArgs) -> String {
    let mut keys = String::new();
    if args.given.is_none() && !args.lines {
        return keys;
    }
    if let Some(timeout) = args.timeout {
        let seconds = timeout.as_secs_f64();
        keys.push_str(&format!(", \"timeout\": {seconds}"));
    }
    if args.retries > 0 {
        keys.push_str(&format!(", \"retries\": {}", args.retries));
    }
    keys
}

fn read_jobs(args: &RunArgs) -> Result<Jobs, Exit> {
    if let Some(given) = &args.given {
        let jobs = arguments::jobs(args, given)?;
        warn(args, &jobs, "the template");
        return Ok(jobs);
    }
    let path = args
        .file
        .as_ref()
        .or(args.input.as_ref())
        .filter(|p| p.as_os_str() != "-");
    let (name, bytes) = match path {
        Some(path) => {
            let name = path.display().to_string();
            let bytes = std::fs::read(path).map_err(|e| Exit::usage(unreadable(&name, &e)))?;
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
            if bytes.trim_ascii().is_empty() {
                // As a filter with no input ends.
                let message = "no jobs in standard input, so nothing was run".to_owned();
                return Err(Exit { status: 0, message });
            }
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
    warn(args, &jobs, &name);
    Ok(jobs)
}

fn warn(args: &RunArgs, jobs: &Jobs, name: &str) {
    if !args.quiet {
        jobs.warnings()
            .iter()
            .for_each(|warning| tell!("coordinator: {name}: {warning}"));
    }
}

/// Why a job list cannot be read; its name may be a command.
fn unreadable(name: &str, e: &std::io::Error) -> String {
    let command = name.contains(|c: char| c.is_whitespace() || c == '{');
    if !command || e.kind() != std::io::ErrorKind::NotFound {
        return format!("cannot read {name}: {e}");
    }
    let word = shell_word(name);
    format!(
        "there is no job list called {name:?}. If it is a command,\n\
         with arguments it is a template:  coordinator run {word} ::: ARGUMENT…  (or -a FILE, -0, --array A-B)\n\
         without any it is one job:        printf '%s\\n' {word} | coordinator run --lines -"
    )
}

/// Asks where the inputs of jobs are. After a failure the jobs can still run anywhere.
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
                // Bash exports a function as a variable of this name.
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
        // A whole list may name a directory in every job.
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
