//! The Rust source of this repository as facts for the rules: each file is read and parsed once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use syn::visit::{self, Visit};
use syn::{Pat, UseTree};

/// The root of the repository.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of Rust source that is not one of unit tests.
pub(super) struct Source {
    /// Its path below the root.
    pub(super) name: String,
    pub(super) text: String,
    /// Its text without comments and without the unit tests at its end.
    pub(super) code: String,
    pub(super) facts: Facts,
}

impl Source {
    fn read(path: &Path) -> Self {
        let below = path.strip_prefix(root()).expect("below the root");
        let name = below.display().to_string();
        Self::of(name, std::fs::read_to_string(path).expect("readable"))
    }

    pub(super) fn of(name: String, text: String) -> Self {
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut facts = Facts::default();
        facts.visit_file(&file);
        Self {
            code: code(&text),
            name,
            text,
            facts,
        }
    }

    /// Whether it is a script of tests.
    pub(super) fn is_of_tests(&self) -> bool {
        self.name.contains("/tests/")
    }

    /// The modules from its crate's folder to it; none: it is a program of its own.
    pub(super) fn module(&self) -> Option<Vec<&str>> {
        let (crate_folder, below) = self.name.strip_suffix(".rs")?.split_once("/src/")?;
        let modules: Vec<&str> = below.split('/').collect();
        match modules[..] {
            ["bin", ..] => None,
            ["lib" | "main"] => Some(vec![crate_folder]),
            _ => Some([&[crate_folder], &modules[..]].concat()),
        }
    }

    /// The paths that it imports, as they are written.
    pub(super) fn imports(&self) -> impl Iterator<Item = &[String]> {
        self.facts.imports.iter().map(Vec::as_slice)
    }

    /// The paths of modules and their items that it names, each from its crate's folder on.
    pub(super) fn names(&self) -> BTreeSet<Vec<&str>> {
        let Some(module) = self.module() else {
            return BTreeSet::new();
        };
        let imported = self.facts.imports.iter();
        let imported = imported.map(|path| path.iter().map(String::as_str).collect());
        let named: Vec<Vec<&str>> = imported.chain(paths_in(&self.code)).collect();
        let absolute = named.into_iter().filter_map(|path| {
            let ups = path.iter().take_while(|name| **name == "super").count();
            let start = match (path.first().copied()?, ups) {
                ("crate", _) => &module[..1],
                ("self", _) => &module[..],
                (_, 0) => return None,
                (_, ups) => &module[..module.len().checked_sub(ups)?],
            };
            Some([start, &path[ups.max(1)..]].concat())
        });
        absolute.collect()
    }
}

/// The paths in `code` that begin with `crate`, `super` or `self`, as far as a group in braces.
fn paths_in(code: &str) -> Vec<Vec<&str>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let path_at = |at: usize| {
        let rest = &code[at..];
        let end = rest.find(|c: char| !is_name(c) && c != ':');
        let names = rest[..end.unwrap_or(rest.len())].split("::");
        names.take_while(|name| !name.is_empty()).collect()
    };
    let starts = ["crate::", "super::", "self::"].into_iter();
    starts
        .flat_map(|start| code.match_indices(start))
        .filter(|(at, _)| !code[..*at].ends_with(|c| is_name(c) || c == ':'))
        .map(|(at, _)| path_at(at))
        .collect()
}

fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The things that rules ask of a file, apart from its unit tests.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) functions: Vec<Function>,
    /// The names of the enums that it defines.
    pub(super) enums: Vec<String>,
    pub(super) open_matches: Vec<OpenMatch>,
    /// The paths that it imports.
    imports: Vec<Vec<String>>,
    /// The types whose methods are being read, the innermost last.
    of: Vec<Option<String>>,
}

pub(super) struct Function {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) lines: usize,
}

/// A match with an arm for everything that no other arm takes.
pub(super) struct OpenMatch {
    /// The line of that arm.
    pub(super) line: usize,
    /// The enums of which other arms name variants.
    pub(super) enums: Vec<String>,
}

impl Facts {
    fn add_function(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        self.functions.push(Function {
            name: signature.ident.to_string(),
            line,
            lines: body.brace_token.span.close().end().line + 1 - line,
        });
    }

    /// The enums of which a pattern names variants: the pattern itself, not those within it.
    fn names_variant(&self, pattern: &Pat) -> Vec<String> {
        let path = match pattern {
            Pat::Or(all) => {
                let cases = all.cases.iter();
                return cases.flat_map(|case| self.names_variant(case)).collect();
            }
            Pat::Ident(named) => {
                let within = named.subpat.iter();
                return within.flat_map(|(_, p)| self.names_variant(p)).collect();
            }
            Pat::Paren(within) => return self.names_variant(&within.pat),
            Pat::Reference(to) => return self.names_variant(&to.pat),
            Pat::Path(one) => &one.path,
            Pat::Struct(one) => &one.path,
            Pat::TupleStruct(one) => &one.path,
            _ => return Vec::new(),
        };
        let of = path.segments.iter().rev().nth(1);
        let of = of.map(|segment| segment.ident.to_string());
        match of.as_deref() {
            Some("Self") => self.of.last().cloned().flatten().into_iter().collect(),
            _ => of.into_iter().collect(),
        }
    }
}

/// The line of an arm that takes everything. With a condition it leaves the other variants to their
/// own arms.
fn takes_the_rest(arm: &syn::Arm) -> Option<usize> {
    let span = match &arm.pat {
        Pat::Wild(rest) => rest.underscore_token.spans[0],
        // A name in capitals is that of a constant.
        Pat::Ident(name)
            if name.subpat.is_none() && !name.ident.to_string().starts_with(char::is_uppercase) =>
        {
            name.ident.span()
        }
        _ => return None,
    };
    arm.guard.is_none().then(|| span.start().line)
}

fn add_imports(tree: &UseTree, above: &[String], imports: &mut Vec<Vec<String>>) {
    let with = |name: &syn::Ident| [above, &[name.to_string()]].concat();
    match tree {
        UseTree::Path(path) => add_imports(&path.tree, &with(&path.ident), imports),
        UseTree::Group(group) => {
            let trees = group.items.iter();
            trees.for_each(|tree| add_imports(tree, above, imports));
        }
        UseTree::Name(name) if name.ident != "self" => imports.push(with(&name.ident)),
        UseTree::Rename(name) if name.ident != "self" => imports.push(with(&name.ident)),
        UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => imports.push(above.to_vec()),
    }
}

impl<'ast> Visit<'ast> for Facts {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        add_imports(&item.tree, &[], &mut self.imports);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.enums.push(item.ident.to_string());
        visit::visit_item_enum(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of = match &*item.self_ty {
            syn::Type::Path(of) => of.path.segments.last(),
            _ => None,
        };
        self.of.push(of.map(|segment| segment.ident.to_string()));
        visit::visit_item_impl(self, item);
        self.of.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add_function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add_function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_expr_match(&mut self, item: &'ast syn::ExprMatch) {
        if let Some(line) = item.arms.iter().find_map(takes_the_rest) {
            let arms = item.arms.iter();
            let enums = arms.flat_map(|arm| self.names_variant(&arm.pat)).collect();
            self.open_matches.push(OpenMatch { line, enums });
        }
        visit::visit_expr_match(self, item);
    }
}

/// The files below a folder that are not of unit tests.
fn below(folder: &Path, found: &mut Vec<Source>) {
    let entries = std::fs::read_dir(folder).expect("readable").flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs")
            && path.file_name().is_some_and(|n| n != "tests.rs")
        {
            found.push(Source::read(&path));
        }
    }
}

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut found = Vec::new();
    for folder in ["agent", "certs", "common", "coordinator", "tests"] {
        below(&root().join(folder).join("src"), &mut found);
    }
    found
});

/// The product's source and that of its tests.
pub(super) fn with_tests() -> impl Iterator<Item = &'static Source> {
    SOURCES.iter()
}

/// The product's source.
pub(super) fn all() -> impl Iterator<Item = &'static Source> {
    with_tests().filter(|source| !source.name.starts_with("tests/"))
}

/// Sources below a folder.
pub(super) fn sources(folder: &'static str) -> impl Iterator<Item = &'static Source> {
    all().filter(move |source| {
        let below = source.name.strip_prefix(folder);
        below.is_some_and(|below| below.starts_with('/'))
    })
}
