//! The table of messages in `docs/threats.md`: each field of each message has a row with its
//! permitted senders and subjects, and the place of the check. The test fails for a field without a
//! row, a row without its field, and a check that is not in the place given.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files with the types that travel between processes, and with those inside them.
const SOURCES: [&str; 12] = [
    "common/src/message/agent.rs",
    "common/src/message/client.rs",
    "common/src/message/client/members.rs",
    "common/src/message/client/notice.rs",
    "common/src/message/client/selection.rs",
    "common/src/message/client/status.rs",
    "common/src/message/client/submission.rs",
    "common/src/message/engine.rs",
    "common/src/wire/enrol.rs",
    "common/src/model/job.rs",
    "common/src/model/outcome.rs",
    "common/src/model/ids.rs",
];

/// The heading above the table.
const HEADING: &str = "## Who may say what";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether bytes from another process can be decoded as this type.
fn travels(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut derived = false;
        // Attributes of other forms derive nothing.
        let _ = attribute.path().is_ident("derive").then(|| {
            attribute.parse_nested_meta(|meta| {
                derived |= meta
                    .path
                    .segments
                    .last()
                    .is_some_and(|last| last.ident == "Deserialize");
                Ok(())
            })
        });
        derived
    })
}

/// `Type` or `Type::Variant`, with a field; an unnamed field is `0`, and a message without fields
/// has `none`.
type Row = (String, String);

fn fields_of(name: &str, fields: &syn::Fields, alone: bool, rows: &mut BTreeSet<Row>) {
    for (at, field) in fields.iter().enumerate() {
        let field = field
            .ident
            .as_ref()
            .map_or_else(|| at.to_string(), ToString::to_string);
        rows.insert((name.to_owned(), field));
    }
    if fields.is_empty() && alone {
        rows.insert((name.to_owned(), "none".to_owned()));
    }
}

/// All fields that can come from another process.
fn fields() -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    for source in SOURCES {
        let file = syn::parse_file(&read(source)).unwrap_or_else(|e| panic!("{source}: {e}"));
        for item in file.items {
            match item {
                syn::Item::Struct(item) if travels(&item.attrs) => {
                    fields_of(&item.ident.to_string(), &item.fields, false, &mut rows);
                }
                syn::Item::Enum(item) if travels(&item.attrs) => {
                    let name = item.ident.to_string();
                    // A variant without fields has a meaning where it is a message by itself.
                    let message = name.starts_with("To")
                        || name.starts_with("From")
                        || name.contains("To")
                        || name == "Report";
                    for variant in &item.variants {
                        fields_of(
                            &format!("{name}::{}", variant.ident),
                            &variant.fields,
                            message,
                            &mut rows,
                        );
                    }
                }
                _ => {}
            }
        }
    }
    rows
}

/// The rows of the table, with their last column. One row may list several fields of a message.
fn table() -> BTreeMap<Row, String> {
    let text = read("docs/threats.md");
    let (_, table) = text
        .split_once(HEADING)
        .unwrap_or_else(|| panic!("docs/threats.md has no heading {HEADING:?}"));
    let mut rows = BTreeMap::new();
    for line in table
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [message, named, says, checked] = cells[..] else {
            panic!("not four columns: {line}")
        };
        assert!(says.len() > 3, "who may say it about what? {line}");
        for field in named.split(',') {
            let row = (
                message.trim_matches('`').to_owned(),
                field.trim().trim_matches('`').to_owned(),
            );
            assert!(
                rows.insert(row, checked.to_owned()).is_none(),
                "said twice: {line}"
            );
        }
    }
    rows
}

#[test]
fn every_field_of_every_message_has_a_row_that_says_who_may_say_it() {
    let (fields, table) = (fields(), table());
    assert!(
        fields.len() > 200,
        "only {} fields were found in the sources",
        fields.len()
    );
    let show = |rows: Vec<&Row>| {
        rows.iter()
            .map(|(message, field)| format!("| `{message}` | `{field}` |\n"))
            .collect::<String>()
    };
    let missing = show(
        fields
            .iter()
            .filter(|row| !table.contains_key(*row))
            .collect(),
    );
    assert!(
        missing.is_empty(),
        "docs/threats.md says nothing of these fields:\n{missing}"
    );
    let stale = show(table.keys().filter(|row| !fields.contains(*row)).collect());
    assert!(
        stale.is_empty(),
        "docs/threats.md has rows of fields that are gone:\n{stale}"
    );
}

#[test]
fn every_check_is_where_its_row_says() {
    let (mut texts, mut wrong) = (BTreeMap::new(), Vec::new());
    for ((message, field), checked) in table() {
        let at = format!("docs/threats.md, {message} {field}");
        // `path` `function`, once or several times; or, in words, that no decision depends on the
        // field.
        let quoted: Vec<&str> = checked.split('`').skip(1).step_by(2).collect();
        assert!(
            !quoted.is_empty() || checked.starts_with("nothing"),
            "{at}: no place, and not \"nothing …\": {checked}"
        );
        let mut path = None;
        for word in quoted {
            if word.ends_with(".rs") {
                path = Some(word);
                continue;
            }
            let path = path.unwrap_or_else(|| panic!("{at}: `{word}` is named without its file"));
            let text: &String = texts.entry(path.to_owned()).or_insert_with(|| read(path));
            let found = ["fn", "const", "enum", "struct"].iter().any(|kind| {
                text.match_indices(&format!("{kind} {word}"))
                    .any(|(at, found)| {
                        !text[at + found.len()..]
                            .starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
            });
            if !found {
                wrong.push(format!("{at}: {path} has no {word}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "checks that are not where their rows say:\n{}",
        wrong.join("\n")
    );
}
