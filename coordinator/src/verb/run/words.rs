//! The words after `coordinator run`: options and a job list, which stand in any order; or options,
//! then a template, then its arguments.

use crate::jobs::template::split;
use clap::ArgMatches;
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A template and the sources that come after it, as they were typed.
#[derive(Clone, Debug)]
pub struct Given {
    /// The words of the template.
    pub template: Vec<OsString>,
    /// From the first `:::` or the like on.
    pub sources: Vec<OsString>,
}

/// The ways to use the verb, when it is called as one of `program`.
pub(crate) fn usage(program: &str) -> String {
    format!(
        "{program} run [OPTIONS] [FILE]\n       \
         {program} run [OPTIONS] <TEMPLATE>... ::: <ARGUMENT>...\n       \
         {program} run [OPTIONS] -a <FILE> | -0 | --array <A-B> <TEMPLATE>..."
    )
}

/// Reads the words of a whole command line, whose first is the program.
///
/// # Errors
/// Those of clap.
pub(crate) fn parse(
    command: clap::Command,
    words: Vec<OsString>,
) -> Result<(ArgMatches, Option<Given>), clap::Error> {
    if words.get(1).is_none_or(|word| word != "run") {
        return Ok((command.try_get_matches_from(words)?, None));
    }
    let (mut head, sources) = split(words.clone());
    // Most command lines are read once.
    if sources.is_empty()
        && let Ok(matches) = command.clone().try_get_matches_from(&words)
        && !mentions_a_source(&matches)
    {
        return Ok((matches, None));
    }
    let ends =
        |run: clap::Command| run.mut_arg("file", |file| file.num_args(1..).trailing_var_arg(true));
    let ended = command.clone().mut_subcommand("run", ends);
    let mut found = ended.clone().try_get_matches_from(&head);
    // `--header :` is how GNU Parallel has it.
    let colon = head
        .windows(2)
        .position(|pair| pair[0] == "--header" && pair[1] == ":");
    if let (Ok(matches), Some(at)) = (&found, colon)
        && template(matches).first().is_some_and(|word| word == ":")
    {
        head.remove(at + 1);
        found = ended.try_get_matches_from(&head);
    }
    match found {
        Err(e) if !sources.is_empty() => Err(e),
        Ok(matches) if !sources.is_empty() || names_a_source(&matches) => {
            let template = template(&matches);
            Ok((matches, Some(Given { template, sources })))
        }
        Ok(ended) => match command.clone().try_get_matches_from(words) {
            Err(e) if e.kind() == ErrorKind::UnknownArgument => {
                Err(without_arguments(command, &template(&ended)).unwrap_or(e))
            }
            matches => Ok((matches?, None)),
        },
        Err(_) => Ok((command.try_get_matches_from(words)?, None)),
    }
}

/// What is wrong, if these words are a template without arguments and not a job list with options.
fn without_arguments(mut command: clap::Command, template: &[OsString]) -> Option<clap::Error> {
    let [first, _, ..] = template else {
        return None;
    };
    if first == "-" || Path::new(first).exists() {
        return None;
    }
    let message = format!(
        "there is no job list called {first:?}; if it begins a template, arguments have to follow, as in `{} ::: ARGUMENT…`",
        template
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    );
    let run = command.find_subcommand_mut("run")?;
    Some(run.error(ErrorKind::UnknownArgument, message))
}

/// The words after the options.
fn template(matches: &ArgMatches) -> Vec<OsString> {
    let run = matches.subcommand_matches("run");
    let words = run.and_then(|run| run.get_many::<PathBuf>("file"));
    words.into_iter().flatten().map(OsString::from).collect()
}

/// Whether an option anywhere can say where arguments are.
fn mentions_a_source(matches: &ArgMatches) -> bool {
    let run = matches.subcommand_matches("run");
    run.is_some_and(|run| {
        run.contains_id("arg_files") || run.contains_id("array") || run.get_flag("null")
    })
}

/// Whether an option before the first other word says where arguments are.
fn names_a_source(matches: &ArgMatches) -> bool {
    let Some(run) = matches.subcommand_matches("run") else {
        return false;
    };
    if run.contains_id("arg_files") || run.contains_id("array") {
        return true;
    }
    let words = template(matches);
    // `run -0 FILE --lines` is a list of commands.
    let list = |file: &OsString| file == "-" || Path::new(file).exists();
    let is_list =
        words.iter().skip(1).any(|word| word == "--lines") && words.first().is_some_and(list);
    run.get_flag("null") && !run.get_flag("lines") && !words.is_empty() && !is_list
}
