//! Messages of released versions are still understood, with the same meaning.

use mezcal_common::message::agent::{LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission, ToClient, ToService};
use mezcal_common::message::engine::{
    EngineToKeeper, FromEngine, FromKeeper, KeeperToEngine, ToEngine, ToKeeper,
};
use mezcal_common::wire::codec;
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// Messages of peers, and records that a store keeps in the same form.
const SPOKEN: [(&str, Understand); 13] = [
    ("agent::ToCoordinator", understand::<ToCoordinator>),
    ("agent::ToAgent", understand::<ToAgent>),
    ("agent::LogHeader", understand::<LogHeader>),
    ("client::ToService", understand::<ToService>),
    ("client::ToClient", understand::<ToClient>),
    ("client::BatchTerms", understand::<BatchTerms>),
    ("client::Submission", understand::<Submission>),
    ("engine::ToEngine", understand::<ToEngine>),
    ("engine::FromEngine", understand::<FromEngine>),
    ("engine::ToKeeper", understand::<ToKeeper>),
    ("engine::FromKeeper", understand::<FromKeeper>),
    ("engine::KeeperToEngine", understand::<KeeperToEngine>),
    ("engine::EngineToKeeper", understand::<EngineToKeeper>),
];

/// Decodes a message; returns its bytes as this build encodes it.
type Understand = fn(&[u8]) -> Result<Vec<u8>, codec::CodecError>;

fn understand<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<Vec<u8>, codec::CodecError> {
    codec::encode_body(&codec::decode_exact::<T>(body)?).map(|bytes| bytes.to_vec())
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}

#[test]
fn every_released_version_is_understood() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = 0;
    for entry in std::fs::read_dir(dir).expect("transcripts") {
        let path = entry.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("a transcript");
        for (number, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            let (name, hex) = line
                .split_once(' ')
                .unwrap_or_else(|| panic!("{at}: a type and its bytes"));
            let (_, understand) = SPOKEN
                .iter()
                .find(|(known, _)| *known == name)
                .unwrap_or_else(|| panic!("{at}: {name} is gone"));
            let said = bytes(hex);
            let again = understand(&said)
                .unwrap_or_else(|e| panic!("{at}: {name} is not understood any more: {e:?}"));
            assert_eq!(again, said, "{at}: {name} means something else now");
        }
        files += 1;
    }
    assert!(files > 0);
}
