//! The layers within the coordinator's service: a file names only files of its own layer and of
//! those below.

use super::source::{Source, sources};
use std::collections::BTreeMap;

/// The folder of the service, as modules.
const SERVICE: [&str; 2] = ["coordinator", "service"];

/// The layers, the highest first, with the files of each. A file stands for the folder beside it,
/// too. Circles within a layer are for the rule about circles.
const LAYERS: [(&str, &[&str]); 8] = [
    ("the loop", &["turn"]),
    (
        "the steps of the loop",
        &[
            "beside", "delivery", "effects", "members", "observe", "requests", "revoke", "stored",
            "visits",
        ],
    ),
    ("the conditions of the steps", &["permit"]),
    ("the state of the loop", &["state"]),
    (
        "the tasks beside the loop, which know its inputs and nothing else of it",
        &["accept", "handle", "http"],
    ),
    ("the inputs of the loop", &["input"]),
    (
        "nouns",
        &[
            "admit",
            "batch",
            "batches",
            "config",
            "durable",
            "enrol",
            "found",
            "listen",
            "observed",
            "peers",
            "reading",
            "revocations",
            "settings",
            "view",
        ],
    ),
    (
        "values and bounds",
        &[
            "arrivals", "counters", "describe", "intake", "memory", "outlet", "pages", "reads",
            "versions",
        ],
    ),
];

/// The place of a file's layer in the list.
fn layer_of(file: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, files)| files.contains(&file))
}

/// The names in `face`, the file above the folder, of things in files of the folder.
fn shown_by(face: &Source) -> BTreeMap<&str, &str> {
    let imports = face.imports().filter_map(|path| match path {
        [file, .., name] => layer_of(file).map(|_| (name.as_str(), file.as_str())),
        _ => None,
    });
    imports.collect()
}

/// The files in no layer, and the arrows that point up.
fn faults<'a>(
    files: impl Iterator<Item = &'a Source>,
    shown: &BTreeMap<&str, &str>,
) -> Vec<String> {
    let mut found = Vec::new();
    for source in files.filter(|source| !source.is_of_tests()) {
        let module = source.module().unwrap_or_default();
        let [file, ..] = module[SERVICE.len()..] else {
            continue;
        };
        let Some(own) = layer_of(file) else {
            found.push(format!("{}: {file} is in no layer", source.name));
            continue;
        };
        for path in source.names() {
            let Some([named, ..]) = path.strip_prefix(&SERVICE) else {
                continue;
            };
            let named = shown.get(named).unwrap_or(named);
            if let Some(layer) = layer_of(named).filter(|layer| *layer < own) {
                found.push(format!(
                    "{} ({}) names {named} ({})",
                    source.name, LAYERS[own].0, LAYERS[layer].0
                ));
            }
        }
    }
    found
}

#[test]
fn the_files_of_the_service_name_only_those_of_their_layer_and_below() {
    let mut above = sources("coordinator/src");
    let face = above.find(|source| source.name == "coordinator/src/service.rs");
    let shown = shown_by(face.expect("the service has a face"));
    let found = faults(sources("coordinator/src/service"), &shown);
    assert!(
        found.is_empty(),
        "the layers of the service (LAYERS):\n{}",
        found.join("\n")
    );
    for file in LAYERS.iter().flat_map(|(_, files)| *files) {
        let name = format!("coordinator/src/service/{file}.rs");
        assert!(
            sources("coordinator/src/service").any(|source| source.name == name),
            "{name} is in LAYERS and does not exist"
        );
    }
}

#[test]
fn an_arrow_that_points_up_and_a_file_in_no_layer_are_seen() {
    let at = |file: &str, text: &str| {
        Source::of(
            format!("coordinator/src/service/{file}.rs"),
            text.to_owned(),
        )
    };
    let face = Source::of(
        "coordinator/src/service.rs".into(),
        "mod handle;\npub use handle::{ClientPort, ServiceHandle};".into(),
    );
    let files = [
        at("turn", "use super::{delivery, state::Service};"),
        at("peers", "use super::batch::Watch;\nuse super::turn::Turn;"),
        at("requests/jobs", "fn a() { super::super::turn::go() }"),
        at("http/connections", "use crate::service::permit::FORGOTTEN;"),
        at("input", "use super::ServiceHandle;"),
        at("fresh", ""),
    ];
    let found = faults(files.iter(), &shown_by(&face));
    assert_eq!(
        found,
        [
            "coordinator/src/service/peers.rs (nouns) names turn (the loop)",
            "coordinator/src/service/requests/jobs.rs (the steps of the loop) names turn (the loop)",
            "coordinator/src/service/http/connections.rs (the tasks beside the loop, which know its \
             inputs and nothing else of it) names permit (the conditions of the steps)",
            "coordinator/src/service/input.rs (the inputs of the loop) names handle (the tasks beside \
             the loop, which know its inputs and nothing else of it)",
            "coordinator/src/service/fresh.rs: fresh is in no layer",
        ]
    );
}
