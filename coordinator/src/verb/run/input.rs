//! What a run takes in: the job list, where its inputs are, and what all of its jobs have in common.

use super::args::{Compat, LeftoverArg, RunArgs, as_text};
use crate::client::context::{absolute, current_umask};
use crate::client::profile::Profile;
use crate::exit::Exit;
use crate::jobs::{Format, Jobs, check_env_name, too_large};
use mezcal_common::message::client::BatchTerms;
use mezcal_common::model::ids::BatchId;
use mezcal_common::model::job::{BatchContext, Leftover};
use mezcal_common::model::octets;
use std::ffi::OsStr;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn terms(args: &RunArgs, context: BatchContext) -> BatchTerms {
    let (halt, time_limit, name) = (args.halt, args.time_limit, args.name.clone());
    BatchTerms {
        halt,
        time_limit,
        name,
        ..BatchTerms::new(context, args.host_timeout)
    }
}

pub(super) fn read_jobs(args: &RunArgs) -> Result<Jobs, Exit> {
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
pub(super) fn find_inputs(jobs: &mut Jobs, args: &RunArgs, profile: &Profile, cd: &str) {
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

pub(super) fn batch_context(args: &RunArgs, profile: &Profile) -> Result<BatchContext, Exit> {
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
