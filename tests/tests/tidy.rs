//! Rules about the source itself: one owner for each outside dependency, dependencies between the
//! wings of the coordinator, verbs that stand alone, no circles, pure cores, a map that is true, and
//! sizes.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/source.rs"]
mod source;

use source::{Source, all, root, sources, with_tests};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[test]
fn each_outside_dependency_has_one_owner() {
    let owners = [
        ("quinn", "common/src/wire/"),
        ("rustls", "common/src/wire/"),
        ("bincode", "common/src/wire/codec.rs"),
        ("x509_parser", "common/src/model/identity.rs"),
        ("rcgen", "certs/src/authority.rs"),
        ("sysinfo", "agent/src/supervisor/host.rs"),
        ("rusqlite", "coordinator/src/store"),
        ("axum", "coordinator/src/service/http.rs"),
        ("prometheus_client", "coordinator/src/service/counters.rs"),
        ("indicatif", "coordinator/src/report/progress.rs"),
        ("mezcal_agent", "coordinator/src/client/embedded.rs"),
    ];
    for Source { name, code, .. } in all() {
        if name.ends_with("src/main.rs") {
            continue;
        }
        for (dependency, owner) in owners {
            // The program for everything contains the agent's command beside the coordinator's.
            if (name.as_str(), dependency) == ("coordinator/src/bin/mezcal.rs", "mezcal_agent") {
                continue;
            }
            let named = code.contains(&format!("{dependency}::"));
            assert!(
                !named || name.starts_with(owner),
                "{name} names {dependency}, which belongs to {owner}"
            );
        }
    }
}

/// The first names of the paths in `code` that begin with `start`: for `crate::verb::run` and
/// `crate::` it is `verb`. A group in braces gives no name.
fn named_below<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(start).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn no_verb_knows_another_one() {
    for Source { name, code, .. } in sources("coordinator/src/verb") {
        let below = &name["coordinator/src/verb/".len()..];
        let own = below.split(['/', '.']).next();
        for other in named_below(code, "crate::verb::") {
            assert!(
                own == Some(other),
                "{name} names the verb {other:?}: what two verbs need lies in client, report or jobs"
            );
        }
        let others = if below.contains('/') {
            "super::super::"
        } else {
            "super::"
        };
        assert!(
            !code.contains(others),
            "{name} looks at other verbs by {others}"
        );
    }
}

/// The wings of the coordinator, and the other wings that each may name.
const WINGS: [(&str, &[&str]); 9] = [
    ("cli", &["client", "exit", "verb"]),
    ("verb", &["client", "exit", "jobs", "report"]),
    ("client", &["exit", "jobs"]),
    ("report", &["exit", "jobs"]),
    ("jobs", &[]),
    ("service", &["exit", "jobs", "scheduler", "store"]),
    ("store", &["exit", "scheduler"]),
    ("scheduler", &[]),
    ("exit", &[]),
];

/// Files that may name more: those where a client has a coordinator in its own process, or on its
/// own host.
const DOORS: [(&str, &[&str]); 8] = [
    ("client.rs", &["service"]),
    ("client/cluster.rs", &["service"]),
    ("client/embedded.rs", &["scheduler", "service"]),
    ("verb/certs.rs", &["service", "store"]),
    ("verb/doctor.rs", &["service"]),
    ("verb/manage.rs", &["service", "store"]),
    ("verb/revoke.rs", &["service"]),
    ("verb/serve.rs", &["scheduler", "service", "store"]),
];

#[test]
fn the_wings_of_the_coordinator_name_only_those_below_them() {
    let mut used = BTreeSet::new();
    let files = sources("coordinator/src").filter(|source| !source.is_of_tests());
    for Source { name, code, .. } in files {
        let file = &name["coordinator/src/".len()..];
        // Programs, and the list of wings.
        if ["main.rs", "lib.rs", "early.rs", "bin/mezcal.rs"].contains(&file) {
            continue;
        }
        let wing = file.split(['/', '.']).next().unwrap_or_default();
        let (_, below) = WINGS
            .iter()
            .find(|(known, _)| *known == wing)
            .unwrap_or_else(|| panic!("{name} is in no wing"));
        let doors = DOORS.iter().find(|(door, _)| *door == file);
        for other in named_below(code, "crate::").filter(|other| *other != wing) {
            let by_door = doors.is_some_and(|(_, more)| more.contains(&other));
            used.extend(by_door.then(|| (file.to_owned(), other.to_owned())));
            assert!(
                below.contains(&other) || by_door,
                "{name} names {other:?}, which is not below {wing} (ARCHITECTURE.md)"
            );
        }
    }
    for (file, more) in DOORS {
        for other in more {
            let pair = (file.to_owned(), (*other).to_owned());
            assert!(
                used.contains(&pair),
                "{file} does not name {other} any more"
            );
        }
    }
}

/// Circles of files of one folder that may be: the folder, the files, and why. A file stands for
/// the folder beside it, too.
const CIRCLES: &[(&str, &[&str], &str)] = &[];

/// For each `src` of a crate and each folder below it the files in it, each with the files of the
/// same folder that it names. The file above a folder (`x.rs` of `x/`) is not in it: parts name what
/// they are parts of.
fn named_within_folders() -> BTreeMap<String, BTreeMap<&'static str, BTreeSet<&'static str>>> {
    let modules: BTreeSet<Vec<&str>> = with_tests().filter_map(Source::module).collect();
    let mut folders: BTreeMap<String, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
    for source in with_tests().filter(|source| !source.is_of_tests()) {
        let from = source.module().unwrap_or_default();
        for to in source.names() {
            let pairs = from.iter().zip(&to);
            let same = pairs.take_while(|(from, to)| from == to).count();
            if same == 0
                || same == from.len()
                || to.len() == same
                || !modules.contains(&to[..=same])
            {
                continue;
            }
            let folder = [&[from[0], "src"], &from[1..same]].concat().join("/");
            let named = folders.entry(folder).or_default();
            named.entry(from[same]).or_default().insert(to[same]);
        }
    }
    folders
}

/// The largest groups of files that all lead to each other.
fn circles(named: &BTreeMap<&'static str, BTreeSet<&'static str>>) -> BTreeSet<Vec<&'static str>> {
    let reached_from = |file: &str| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = named.get(file).into_iter().flatten().copied().collect();
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(named.get(file).into_iter().flatten());
            }
        }
        reached
    };
    let all: BTreeMap<&str, BTreeSet<&str>> = named
        .keys()
        .map(|file| (*file, reached_from(file)))
        .collect();
    all.iter()
        .filter(|(file, reached)| reached.contains(*file))
        .map(|(file, reached)| {
            let back = |other: &&&str| all.get(**other).is_some_and(|there| there.contains(file));
            reached.iter().filter(back).copied().collect()
        })
        .collect()
}

#[test]
fn the_files_of_a_folder_do_not_name_each_other_in_a_circle() {
    let mut found: BTreeSet<(&str, &[&str], &str)> = BTreeSet::new();
    for (folder, named) in named_within_folders() {
        for circle in circles(&named) {
            let known = CIRCLES
                .iter()
                .find(|(of, files, _)| folder == *of && circle == *files);
            let files: BTreeSet<&str> = circle.iter().copied().collect();
            let who = circle.iter();
            let who = who.map(|file| format!("{file} names {:?}", &named[file] & &files));
            let who: Vec<String> = who.collect();
            assert!(
                known.is_some(),
                "files of {folder} name each other in a circle: move the things that they share to a \
                 file below them\n{}",
                who.join("\n")
            );
            found.extend(known);
        }
    }
    for circle in CIRCLES {
        assert!(found.contains(circle), "{circle:?} is no circle any more");
    }
}

/// The pure cores: for each the file of this name and the folder beside it.
const CORES: [&str; 6] = [
    "agent/src/engine",
    "agent/src/keeper",
    "agent/src/supervisor",
    "certs/src/renewal",
    "coordinator/src/jobs/template",
    "coordinator/src/scheduler",
];

/// Files in the folders of cores that drive them or call the kernel for them, with the folders
/// beside these files.
const DRIVERS: [&str; 25] = [
    "agent/src/engine/clone",
    "agent/src/engine/counters",
    "agent/src/engine/driver",
    "agent/src/engine/environment",
    "agent/src/engine/open",
    "agent/src/engine/order",
    "agent/src/engine/processes",
    "agent/src/engine/program",
    "agent/src/engine/spawn",
    "agent/src/engine/wait",
    "agent/src/keeper/driver",
    "agent/src/keeper/start",
    "agent/src/supervisor/connection",
    "agent/src/supervisor/driver",
    "agent/src/supervisor/generations",
    "agent/src/supervisor/greeting",
    "agent/src/supervisor/host",
    "agent/src/supervisor/input",
    "agent/src/supervisor/keepers",
    "agent/src/supervisor/links",
    "agent/src/supervisor/logs",
    "agent/src/supervisor/parts",
    "agent/src/supervisor/renewal",
    "agent/src/supervisor/standing",
    "agent/src/supervisor/users",
];

fn is_core(name: &str) -> bool {
    let of = |part: &&str| {
        let rest = name.strip_prefix(*part);
        rest.is_some_and(|rest| rest.starts_with(['.', '/']))
    };
    CORES.iter().any(of) && !DRIVERS.iter().any(of)
}

#[test]
fn cores_have_no_clock_no_lock_and_no_io() {
    for named in CORES.iter().chain(&DRIVERS) {
        let file = root().join(format!("{named}.rs"));
        assert!(file.exists(), "{named}.rs is not there");
    }
    let forbidden = [
        "::now()",
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "std::sync::Mutex",
        "tokio",
        "rustix",
        "libc::",
        "async ",
        ".await",
        "unsafe",
        "getrandom",
        "println!",
    ];
    for Source { name, code, .. } in all().filter(|source| is_core(&source.name)) {
        for word in forbidden {
            assert!(
                !code.contains(word),
                "{name}, a pure core, contains {word:?}"
            );
        }
    }
}

/// The rows of the codemap in ARCHITECTURE.md: the paths of each, below the root, and its text.
fn codemap() -> Vec<(Vec<String>, String)> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    let mut below = String::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.splitn(3, " | ").collect();
        let [place, says, ..] = cells[..] else {
            continue;
        };
        if let Some(folder) = place.strip_prefix("| **") {
            let folder = folder.trim_end_matches("**");
            let is_folder = root().join(folder).is_dir();
            below = if is_folder {
                format!("{folder}/")
            } else {
                String::new()
            };
        } else if place.starts_with("| `") {
            let paths = in_backticks(place).flat_map(alternatives);
            rows.push((
                paths.map(|path| below.clone() + &path).collect(),
                says.into(),
            ));
        }
    }
    rows
}

fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The paths that one with a group in braces stands for.
fn alternatives(path: &str) -> Vec<String> {
    let group = path.split_once('{').and_then(|(before, rest)| {
        let (group, after) = rest.split_once('}')?;
        Some((before, group, after))
    });
    match group {
        None => vec![path.to_owned()],
        Some((before, group, after)) => group
            .split(',')
            .map(|one| format!("{before}{one}{after}"))
            .collect(),
    }
}

#[test]
fn the_codemap_names_every_file_and_no_others() {
    let rows = codemap();
    for (paths, says) in &rows {
        for path in paths {
            assert!(root().join(path).exists(), "ARCHITECTURE.md: no {path}");
        }
        for file in in_backticks(says).filter(|name| name.ends_with(".rs")) {
            let beside = |path: &String| {
                let folder = path.trim_end_matches(".rs").trim_end_matches('/');
                let folder = Path::new(folder);
                let within =
                    with_tests().filter(|source| Path::new(&source.name).starts_with(folder));
                let mut within = within.map(|source| Path::new(&source.name));
                within.any(|name| name.ends_with(file))
                    || folder
                        .parent()
                        .is_some_and(|above| root().join(above).join(file).exists())
            };
            assert!(
                paths.iter().any(beside),
                "ARCHITECTURE.md: no {file} in {paths:?}"
            );
        }
    }
    let places: Vec<&str> = rows
        .iter()
        .flat_map(|(paths, _)| paths)
        .map(String::as_str)
        .collect();
    let is_there = |name: &str| {
        places.iter().any(|place| match place.strip_suffix('/') {
            // With the file above the folder.
            Some(folder) => name.starts_with(place) || name.strip_suffix(".rs") == Some(folder),
            None => name == *place,
        })
    };
    // Roots of crates name their wings.
    let is_root = |name: &str| name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    for source in all().filter(|source| !source.is_of_tests() && !is_root(&source.name)) {
        assert!(
            is_there(&source.name),
            "ARCHITECTURE.md: {} has no row",
            source.name
        );
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for Source { name, text, .. } in all() {
        assert!(
            text.starts_with("//!"),
            "{name} does not begin with its own description"
        );
    }
}

#[test]
fn what_the_design_calls_something_else_is_not_used() {
    for Source { name, text, .. } in all() {
        for word in ["worker", "master", "Manager", "Helper"] {
            // The one phrase that administrators search for.
            let text = text.replace("persistent worker", "");
            // A key of other programs, which is refused.
            let text = text.replace("(\"worker\", ", "");
            assert!(
                !text.contains(word),
                "{name} says {word:?}; see the glossary in common/src/lib.rs"
            );
        }
    }
}

/// Most lines of a file, and of a function: more needs a reason beside it.
const FILE: usize = 500;
const FUNCTION: usize = 70;

/// The prefix of the reason for a greater length, in the description of a file or in a comment
/// above a function.
const REASON: &str = "Long: ";

#[test]
fn files_and_functions_are_short_or_say_why_not() {
    let mut found = Vec::new();
    // Scripts of tests may be of any length.
    for source in all().filter(|source| !source.is_of_tests()) {
        let Source { name, text, .. } = source;
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or(text);
        let length = code.lines().count();
        let mut head = text.lines().take_while(|line| line.starts_with("//!"));
        if length > FILE && !head.any(|line| line.contains(REASON)) {
            found.push(format!("{name}: {length} lines"));
        }
        let lines: Vec<&str> = text.lines().collect();
        for function in &source.facts.functions {
            let above = lines[..function.line - 1].iter().rev();
            let mut comments = above.take_while(|line| line.trim_start().starts_with(['/', '#']));
            if function.lines > FUNCTION && !comments.any(|line| line.contains(REASON)) {
                let source::Function {
                    name: function,
                    line,
                    lines,
                } = function;
                found.push(format!("{name}: {function}, line {line}: {lines} lines"));
            }
        }
    }
    assert!(
        found.is_empty(),
        "longer than {FILE} lines (a file) or {FUNCTION} (a function), without a comment that begins \
         with {REASON:?} and says why:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_new_variant_is_seen_by_every_match_of_a_core() {
    let enums: BTreeSet<&str> = all()
        .flat_map(|source| &source.facts.enums)
        .map(String::as_str)
        .collect();
    let is_ours = |name: &String| enums.contains(name.as_str());
    let cores = all().filter(|source| is_core(&source.name) && !source.is_of_tests());
    let found: Vec<String> = cores
        .flat_map(|source| {
            let open = source.facts.open_matches.iter();
            open.filter(|open| open.enums.iter().any(is_ours))
                .map(move |open| format!("{}:{}", source.name, open.line))
        })
        .collect();
    assert!(
        found.is_empty(),
        "an arm for all other variants (`_ =>`, `other =>`) beside variants of an enum of ours:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_facts_of_a_file_are_those_that_the_rules_ask_for() {
    let text = r#"
use super::{hosts::Host, names::{self, Name as N}};
use crate::store::*;
impl Kind {
    fn a(&self) { match self { Self::A | Self::B => {} other => drop(other) } }
    fn b(x: Other) { match x { Other::A => {} LIMIT => {} } }
    fn c(x: Option<Kind>) { match x { Some(Kind::A) => {} _ => {} } }
    fn d(x: Kind) { match x { k @ (Kind::A | Kind::B) => {} _ if true => {} _ => {} } }
    fn e() { tell!("{}", crate::client::names::of(super::super::exit::code())) }
}
"#;
    let source = Source::of("coordinator/src/scheduler/part.rs".into(), text.into());
    let open = source.facts.open_matches.iter();
    let open: Vec<_> = open.map(|open| (open.line, open.enums.join(" "))).collect();
    assert_eq!(
        open,
        [
            (5, "Kind Kind".to_owned()),
            (7, String::new()),
            (8, "Kind Kind".to_owned())
        ]
    );
    let named: Vec<String> = source.names().iter().map(|path| path.join("/")).collect();
    assert_eq!(
        named,
        [
            "coordinator/client/names/of",
            "coordinator/exit/code",
            "coordinator/scheduler",
            "coordinator/scheduler/hosts/Host",
            "coordinator/scheduler/names",
            "coordinator/scheduler/names/Name",
            "coordinator/store"
        ]
    );
}
