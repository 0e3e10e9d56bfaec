//! The part of a job's text that is kept after its end if no store has it: where its output went,
//! for clients that ask for the output.

use bytes::Bytes;
use mezcal_common::model::job::{Command, JobSpec};
use mezcal_common::wire::codec;

/// Texts up to so many bytes stay as they are: decoding them would cost more than it saves.
const SHORT: usize = 256;

/// The text without its command.
pub(super) fn ended(text: &Bytes) -> Bytes {
    if text.len() <= SHORT {
        return text.clone();
    }
    // A text that cannot be read belongs to a job that never ran and has no output.
    let Ok(JobSpec {
        label,
        cd,
        out,
        err,
        ..
    }) = codec::decode_exact(text)
    else {
        return Bytes::new();
    };
    codec::encode_body(&JobSpec {
        label,
        cd,
        out,
        err,
        ..JobSpec::new(Command::Shell(String::new()))
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_job_that_has_ended_stays_where_its_output_is() {
        let whereabouts = JobSpec {
            label: Some("l".into()),
            cd: Some("/d".into()),
            out: Some("o".into()),
            err: Some("e".into()),
            ..JobSpec::new(Command::Shell(String::new()))
        };
        let long = JobSpec {
            command: Command::Shell("x".repeat(4000)),
            env: vec![("K".into(), "v".repeat(4000))],
            stdin: Some("i".into()),
            ..whereabouts.clone()
        };
        let text = ended(&codec::encode_body(&long).expect("small"));
        assert!(text.len() < 50, "{}", text.len());
        assert_eq!(
            codec::decode_exact::<JobSpec>(&text).expect("a job"),
            whereabouts
        );
        let short = codec::encode_body(&JobSpec {
            command: Command::Shell("true".into()),
            ..whereabouts
        })
        .expect("small");
        assert_eq!(ended(&short), short);
        assert_eq!(ended(&vec![255; 1000].into()), Bytes::new());
    }
}
