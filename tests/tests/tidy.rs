//! Rules about the source itself: one owner for each outside dependency, dependencies between the
//! wings of the coordinator, verbs that stand alone, pure cores, and sizes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rust sources below a folder, with their text. Files of unit tests are left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs")
                && path.file_name().is_some_and(|n| n != "tests.rs")
            {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    let name = |p: &Path| {
        p.strip_prefix(root())
            .expect("below the root")
            .display()
            .to_string()
    };
    paths
        .iter()
        .map(|p| (name(p), std::fs::read_to_string(p).expect("readable")))
        .collect()
}

fn all() -> Vec<(String, String)> {
    ["common/src", "certs/src", "agent/src", "coordinator/src"]
        .iter()
        .flat_map(|f| sources(f))
        .collect()
}

/// Code without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

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
    for (name, text) in all() {
        if name.ends_with("src/main.rs") {
            continue;
        }
        for (dependency, owner) in owners {
            // The program for everything contains the agent's command beside the coordinator's.
            if (name.as_str(), dependency) == ("coordinator/src/bin/mezcal.rs", "mezcal_agent") {
                continue;
            }
            let named = code(&text).contains(&format!("{dependency}::"));
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

/// Whether a file has only tests.
fn is_of_tests(name: &str) -> bool {
    name.contains("/tests/")
}

#[test]
fn no_verb_knows_another_one() {
    for (name, text) in sources("coordinator/src/verb") {
        let (below, code) = (&name["coordinator/src/verb/".len()..], code(&text));
        let own = below.split(['/', '.']).next();
        for other in named_below(&code, "crate::verb::") {
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
    let files = sources("coordinator/src").into_iter();
    for (name, text) in files.filter(|(name, _)| !is_of_tests(name)) {
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
        for other in named_below(&code(&text), "crate::").filter(|other| *other != wing) {
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

/// The pure cores: for each the file of this name and the folder beside it.
const CORES: [&str; 5] = [
    "agent/src/engine",
    "agent/src/keeper",
    "agent/src/supervisor",
    "certs/src/renewal",
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
    for driver in DRIVERS {
        let file = root().join(format!("{driver}.rs"));
        assert!(file.exists(), "{driver}.rs is not there");
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
    for (name, text) in all().into_iter().filter(|(name, _)| is_core(name)) {
        for word in forbidden {
            assert!(
                !code(&text).contains(word),
                "{name}, a pure core, contains {word:?}"
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for (name, text) in all() {
        assert!(
            text.starts_with("//!"),
            "{name} does not begin with its own description"
        );
    }
}

#[test]
fn what_the_design_calls_something_else_is_not_used() {
    for (name, text) in all() {
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

/// Functions of a file that are longer than allowed, each with its line.
struct Long<'a> {
    lines: Vec<&'a str>,
    found: Vec<String>,
}

impl Long<'_> {
    fn look_at(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let first = signature.fn_token.span.start().line;
        let length = body.brace_token.span.close().end().line + 1 - first;
        let above = self.lines[..first - 1].iter().rev();
        let mut comments = above.take_while(|line| line.trim_start().starts_with(['/', '#']));
        if length > FUNCTION && !comments.any(|line| line.contains(REASON)) {
            let name = &signature.ident;
            self.found
                .push(format!("{name}, line {first}: {length} lines"));
        }
    }
}

impl<'ast> Visit<'ast> for Long<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.look_at(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.look_at(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}

#[test]
fn files_and_functions_are_short_or_say_why_not() {
    let mut found = Vec::new();
    for (name, text) in all() {
        // Scripts of tests may be of any length.
        if name.contains("/tests/") {
            continue;
        }
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or(&text);
        let length = code.lines().count();
        let head = text.lines().take_while(|line| line.starts_with("//!"));
        if length > FILE && !head.into_iter().any(|line| line.contains(REASON)) {
            found.push(format!("{name}: {length} lines"));
        }
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut long = Long {
            lines: text.lines().collect(),
            found: Vec::new(),
        };
        long.visit_file(&file);
        found.extend(
            long.found
                .iter()
                .map(|function| format!("{name}: {function}")),
        );
    }
    assert!(
        found.is_empty(),
        "longer than {FILE} lines (a file) or {FUNCTION} (a function), without a comment that begins \
         with {REASON:?} and says why:\n{}",
        found.join("\n")
    );
}

/// Names of the enums of this repository.
struct Enums(BTreeSet<String>);

impl<'ast> Visit<'ast> for Enums {
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.0.insert(item.ident.to_string());
    }
}

/// Matches on enums of this repository that have an arm for all other variants.
struct Wildcards<'a> {
    enums: &'a BTreeSet<String>,
    found: Vec<usize>,
}

/// Whether a pattern names a variant of one of the enums.
struct Names<'a> {
    enums: &'a BTreeSet<String>,
    found: bool,
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut names = path.segments.iter().rev().skip(1);
        let of = names.next().map(|segment| segment.ident.to_string());
        self.found |= of.is_some_and(|name| self.enums.contains(&name));
    }
}

impl<'ast> Visit<'ast> for Wildcards<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_expr_match(&mut self, item: &'ast syn::ExprMatch) {
        // The patterns themselves, not those within tuples or other enums.
        let own = |arm: &syn::Arm| {
            let mut names = Names {
                enums: self.enums,
                found: false,
            };
            match &arm.pat {
                syn::Pat::Or(_)
                | syn::Pat::Path(_)
                | syn::Pat::Struct(_)
                | syn::Pat::TupleStruct(_) => outer(&arm.pat, &mut names),
                _ => {}
            }
            names.found
        };
        let rest = item.arms.iter().find_map(|arm| match &arm.pat {
            // With a condition it leaves the other variants to their own arms.
            syn::Pat::Wild(rest) if arm.guard.is_none() => {
                Some(rest.underscore_token.spans[0].start().line)
            }
            _ => None,
        });
        if let Some(rest) = rest
            && item.arms.iter().any(own)
        {
            self.found.push(rest);
        }
        visit::visit_expr_match(self, item);
    }
}

fn outer(pattern: &syn::Pat, names: &mut Names<'_>) {
    match pattern {
        syn::Pat::Or(all) => all.cases.iter().for_each(|case| outer(case, names)),
        syn::Pat::Path(one) => names.visit_path(&one.path),
        syn::Pat::Struct(one) => names.visit_path(&one.path),
        syn::Pat::TupleStruct(one) => names.visit_path(&one.path),
        _ => {}
    }
}

#[test]
fn a_new_variant_is_seen_by_every_match_of_a_core() {
    let parsed: Vec<(String, syn::File)> = all()
        .into_iter()
        .map(|(name, text)| {
            let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, file)
        })
        .collect();
    let mut enums = Enums(BTreeSet::new());
    for (_, file) in &parsed {
        enums.visit_file(file);
    }
    let mut found = Vec::new();
    for (name, file) in parsed
        .iter()
        .filter(|(name, _)| is_core(name) && !is_of_tests(name))
    {
        let mut wildcards = Wildcards {
            enums: &enums.0,
            found: Vec::new(),
        };
        wildcards.visit_file(file);
        found.extend(wildcards.found.iter().map(|line| format!("{name}:{line}")));
    }
    assert!(
        found.is_empty(),
        "`_ =>` beside variants of an enum of ours:\n{}",
        found.join("\n")
    );
}
