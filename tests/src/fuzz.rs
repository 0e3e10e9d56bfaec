//! Properties that hold for any bytes from outside. The targets below `tests/fuzz` search for bytes
//! that break them; interesting inputs are kept there and tried again by `tests/tests/corpus.rs`.

use bytes::BytesMut;
use mezcal_common::message::agent::{LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission, ToClient, ToService};
use mezcal_common::message::engine::{EngineToKeeper, FromEngine, FromKeeper, ToEngine, ToKeeper};
use mezcal_common::wire::codec;
use mezcal_coordinator::jobs::{Format, Jobs};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes from the network: no decoder panics, and a decoded message that is encoded again decodes
/// to the same message. The first byte chooses the type; with its highest bit the rest is a stream
/// of frames, otherwise one body.
pub fn frames(data: &[u8]) {
    const TYPES: [fn(&[u8], bool); 12] = [
        check::<ToCoordinator>,
        check::<ToAgent>,
        check::<LogHeader>,
        check::<ToService>,
        check::<ToClient>,
        check::<BatchTerms>,
        check::<Submission>,
        check::<ToEngine>,
        check::<FromEngine>,
        check::<ToKeeper>,
        check::<FromKeeper>,
        check::<EngineToKeeper>,
    ];
    if let Some((first, rest)) = data.split_first() {
        TYPES[usize::from(first & 0x7f) % TYPES.len()](rest, first & 0x80 != 0);
    }
}

fn check<T: Serialize + DeserializeOwned>(data: &[u8], framed: bool) {
    if framed {
        let mut buffer = BytesMut::from(data);
        while let Ok(Some(message)) = codec::decode_frame::<T>(&mut buffer) {
            same(&message);
        }
    } else if let Ok(message) = codec::decode_exact::<T>(data) {
        same(&message);
    }
}

/// Compares bytes, because NaN is not equal to itself.
fn same<T: Serialize + DeserializeOwned>(message: &T) {
    let said = codec::encode_body(message).expect("what was understood can be said");
    let heard: T = codec::decode_exact(&said).expect("what is said is understood");
    assert_eq!(codec::encode_body(&heard).expect("said once already"), said);
}

/// A job list: no reader panics, and accepted jobs can be submitted. The first byte chooses the
/// format.
pub fn job_file(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let format = [Format::Json, Format::Lines, Format::Bakapara][usize::from(*first) % 3];
    if let Ok(jobs) = Jobs::read("jobs", rest.to_vec(), format, 0) {
        let mut objects = Vec::new();
        for number in 1..=jobs.len() as u32 {
            let submission = jobs.submission(number).expect("a job that passed");
            codec::encode_body(&submission).expect("it fits a frame");
            objects.push(jobs.as_object(number));
        }
        let objects = format!("[{}]", objects.join(","));
        let format = if format == Format::Lines {
            Format::Json
        } else {
            format
        };
        let again = Jobs::read("again", objects.into_bytes(), format, 0);
        assert!(
            again.is_ok_and(|again| again.len() == jobs.len()),
            "what has passed does not pass again"
        );
    }
}
