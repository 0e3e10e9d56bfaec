//! The arguments of a template: reads the files and standard input that have them.

use super::args::{RunArgs, as_text};
use super::words::Given;
use crate::exit::Exit;
use crate::jobs::Jobs;
use crate::jobs::template::{self, Manner, Named, Origin, Source, Sources, Template};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// The jobs of a template.
///
/// # Errors
/// [`Exit`]: the command line has a mistake, a file cannot be read, or there are no arguments.
pub(super) fn jobs(args: &RunArgs, given: &Given) -> Result<Jobs, Exit> {
    template::check(&given.template).map_err(Exit::usage)?;
    let sources = sources(args, given)?;
    let manner = Manner {
        columns: args.colsep.clone(),
        header: args.header,
        each: args.max_args,
    };
    let words: Vec<String> = given.template.iter().cloned().map(as_text).collect();
    let template = Sources::new(sources, manner)
        .and_then(|sources| Template::new(&words, sources))
        .map_err(Exit::usage)?;
    if template.jobs() == 0 {
        // As a filter with no input ends.
        let message = "no arguments, so nothing was run".to_owned();
        return Err(Exit { status: 0, message });
    }
    Jobs::made(template, args.retries).map_err(Exit::usage)
}

/// The files that arguments are read from; `-`: standard input.
pub(super) fn files(args: &RunArgs, given: &Given) -> Vec<PathBuf> {
    // A command line with a mistake reads nothing.
    let (files, after) = named(args, given).unwrap_or_default();
    let path = |named: Named| match named.origin {
        Origin::File(path) => Some(path),
        Origin::Words(_) => None,
    };
    files.into_iter().chain(after).filter_map(path).collect()
}

/// The files that options name, and the sources after the template.
fn named(args: &RunArgs, given: &Given) -> Result<(Vec<Named>, Vec<Named>), String> {
    let mut files: Vec<PathBuf> = args.arg_files.clone();
    let earlier = !files.is_empty() || args.array.is_some();
    let after = template::sources(&given.sources, earlier)?;
    if args.null && !earlier && after.is_empty() {
        files.push("-".into());
    }
    let named = |path| Named {
        origin: Origin::File(path),
        linked: false,
    };
    Ok((files.into_iter().map(named).collect(), after))
}

/// The sources of arguments: those that options name, then those after the template.
fn sources(args: &RunArgs, given: &Given) -> Result<Vec<Source>, Exit> {
    let (files, after) = named(args, given).map_err(Exit::usage)?;
    let is_file = |named: &&Named| matches!(named.origin, Origin::File(_));
    let is_input = |named: &&Named| named.origin == Origin::File("-".into());
    let all = || files.iter().chain(&after);
    if args.null && all().find(is_file).is_none() {
        return Err(Exit::usage(
            "-0 is about arguments in files or standard input, and all are on the command line; -a - reads standard input, too",
        ));
    }
    if all().filter(is_input).count() > 1 {
        return Err(Exit::usage(
            "two sources are standard input (-), which can be read only once",
        ));
    }
    let of_words = all().count() - all().filter(is_file).count();
    let mut number = 0;
    let mut read = |named: &Named| {
        let source = match &named.origin {
            Origin::Words(words) => {
                number += 1;
                let name = match of_words {
                    1 => "`:::`".to_owned(),
                    _ => format!("`:::` number {number}"),
                };
                Source::words(name, words.clone())
            }
            Origin::File(path) => file(args, path)?,
        };
        Ok(source.linked(named.linked))
    };
    let mut sources: Vec<Source> = files.iter().map(&mut read).collect::<Result<_, Exit>>()?;
    let array = args.array.clone();
    sources.extend(array.map(|array| Source::numbers("--array".to_owned(), array)));
    for named in &after {
        sources.push(read(named)?);
    }
    Ok(sources)
}

/// The arguments in a file, or on standard input.
fn file(args: &RunArgs, path: &Path) -> Result<Source, Exit> {
    let (name, bytes) = match path.as_os_str() == "-" {
        false => (path.display().to_string(), std::fs::read(path)),
        true => {
            let mut stdin = std::io::stdin().lock();
            if stdin.is_terminal() && !args.quiet {
                tell!("coordinator: reading arguments from the terminal; end with Ctrl-D");
            }
            let mut bytes = Vec::new();
            let read = stdin.read_to_end(&mut bytes).map(|_| bytes);
            ("standard input".to_owned(), read)
        }
    };
    let bytes =
        bytes.map_err(|e| Exit::usage(format!("cannot read the arguments in {name}: {e}")))?;
    let table = args.header || args.colsep.is_some();
    Ok(match (args.null, table) {
        (true, _) => Source::pieces(name, bytes),
        (false, true) => Source::table(name, bytes),
        (false, false) => Source::lines(name, bytes),
    })
}
