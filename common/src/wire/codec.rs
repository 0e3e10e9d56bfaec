//! Frames: `u32` length (little endian), one codec byte, a bincode 2 body (`standard()`, limited),
//! and no byte after it.
//!
//! Every limit against a hostile peer is here: a frame is at most [`MAX_FRAME`] bytes, decoding
//! allocates no more than the limit at once, trailing bytes are refused. Wire types hold no `Vec`
//! of zero-sized items, which would escape the limit.

use crate::model::job::{BatchContext, JobSpec, MAX_CONTEXT, MAX_SPEC};
use bytes::{Buf, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Largest body of a frame: many times the largest job, small enough to buffer for every
/// connection.
pub const MAX_FRAME: usize = 1 << 20;

/// Bytes before the body.
const HEADER: usize = 5;

/// The codec byte of bincode 2 with variable-length integers.
const BINCODE_2: u8 = 1;

type Limited = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_FRAME>,
>;

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that gives it its limit"
)]
const CONFIG: Limited = bincode::config::standard().with_limit::<MAX_FRAME>();

/// Why bytes cannot be decoded, or a message cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The peer announces, or we would send, more than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// A codec byte that this version does not know.
    #[error("unknown codec {0}")]
    UnknownCodec(u8),
    /// The body is not a message of this type.
    #[error("undecodable frame")]
    Decode(#[source] bincode::error::DecodeError),
    /// The body has bytes after the message.
    #[error("{0} bytes after the message")]
    Trailing(usize),
    /// The message cannot be encoded.
    #[error("unencodable message")]
    Encode(#[source] bincode::error::EncodeError),
}

/// Appends `message` to `buffer` as one frame. On error the buffer is as it was.
///
/// # Errors
/// [`CodecError::TooLarge`], [`CodecError::Encode`].
pub fn encode_frame<T: Serialize>(buffer: &mut Vec<u8>, message: &T) -> Result<(), CodecError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0, 0, 0, 0, BINCODE_2]);
    let written = bincode::serde::encode_into_std_write(message, buffer, CONFIG);
    let body = buffer.len() - start - HEADER;
    let failed = match written {
        Ok(_) if body <= MAX_FRAME => {
            buffer[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
            record::<T>(&buffer[start + HEADER..]);
            return Ok(());
        }
        Ok(_) => CodecError::TooLarge(body),
        Err(e) => CodecError::Encode(e),
    };
    buffer.truncate(start);
    Err(failed)
}

/// Takes the first complete frame off `buffer`; `None` until more bytes have come.
///
/// # Errors
/// Any [`CodecError`] of decoding; the stream cannot be used after it.
pub fn decode_frame<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, CodecError> {
    let Some((header, rest)) = buffer.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let body = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if body > MAX_FRAME {
        return Err(CodecError::TooLarge(body));
    }
    if header[4] != BINCODE_2 {
        return Err(CodecError::UnknownCodec(header[4]));
    }
    let Some(bytes) = rest.get(..body) else {
        return Ok(None);
    };
    let message = decode_exact(bytes)?;
    buffer.advance(HEADER + body);
    Ok(Some(message))
}

/// Encodes a message without a frame, to be carried inside another message.
///
/// # Errors
/// [`CodecError::Encode`].
pub fn encode_body<T: Serialize>(message: &T) -> Result<Bytes, CodecError> {
    let mut body = bincode::serde::encode_to_vec(message, CONFIG).map_err(CodecError::Encode)?;
    // It may be kept for long, and there may be millions.
    body.shrink_to_fit();
    record::<T>(&body);
    Ok(Bytes::from(body))
}

/// Whether a peer can read `message` within `LIMIT`, by the decoder's own measure: each text adds
/// the bytes of its length, and every number counts in its full width, so that many short words
/// count for several times their bytes on the wire.
fn fits<T: Serialize + DeserializeOwned, const LIMIT: usize>(message: &T) -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "only what we have encoded ourselves is decoded with it"
    )]
    let limited = bincode::config::standard().with_limit::<LIMIT>();
    let Ok(body) = bincode::serde::encode_to_vec(message, CONFIG) else {
        return false;
    };
    body.len() <= LIMIT && bincode::serde::decode_from_slice::<T, _>(&body, limited).is_ok()
}

/// Whether an engine can receive a job of this size.
pub fn spec_fits(spec: &JobSpec) -> bool {
    // It travels as bytes within another message, and is decoded separately.
    encode_body(spec).is_ok_and(|body| body.len() <= MAX_SPEC) && fits::<_, MAX_FRAME>(spec)
}

/// Whether an engine can receive this context in one message with the largest of jobs.
pub fn context_fits(context: &BatchContext) -> bool {
    fits::<_, MAX_CONTEXT>(context)
}

/// Logs each sent message (`MEZCAL_LOG=mezcal::wire=trace`), for making transcripts.
fn record<T>(body: &[u8]) {
    if tracing::enabled!(target: "mezcal::wire", tracing::Level::TRACE) {
        tracing::trace!(target: "mezcal::wire", "sent {} {}", std::any::type_name::<T>(), crate::model::token::hex(body));
    }
}

/// Decodes the bytes that [`encode_body`] made.
///
/// # Errors
/// [`CodecError::Decode`], [`CodecError::Trailing`].
pub fn decode_exact<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(CodecError::Decode)?;
    match bytes.len() - used {
        0 => Ok(message),
        over => Err(CodecError::Trailing(over)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::agent::{LogWish, ToAgent, ToCoordinator};
    use crate::message::client::{BatchTerms, ToService};
    use crate::message::engine::ToEngine;
    use crate::model::ids::{AttemptId, BatchId, BatchSerial, EngineId, Epoch, JobKey, JobNumber};
    use crate::model::job::Command;
    use proptest::prelude::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        for n in 0..5u64 {
            encode_frame(&mut bytes, &ToAgent::Acknowledge { through: n * 1000 }).expect("small");
        }
        for step in [1, 3, 7, bytes.len()] {
            let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
            for chunk in bytes.chunks(step) {
                buffer.extend_from_slice(chunk);
                while let Some(m) = decode_frame::<ToAgent>(&mut buffer).expect("whole frames") {
                    out.push(m);
                }
            }
            assert_eq!(out.len(), 5);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn the_bytes_of_a_frame_do_not_change() {
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, &ToAgent::Acknowledge { through: 300 }).expect("small");
        assert_eq!(bytes, [4, 0, 0, 0, 1, 4, 251, 44, 1]);
    }

    #[test]
    fn oversized_and_padded_frames_are_refused() {
        let mut huge = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert!(matches!(
            decode_frame::<ToAgent>(&mut huge),
            Err(CodecError::TooLarge(_))
        ));
        let mut padded = BytesMut::from(&[5, 0, 0, 0, 1, 4, 251, 44, 1, 9][..]);
        assert!(matches!(
            decode_frame::<ToAgent>(&mut padded),
            Err(CodecError::Trailing(1))
        ));
        let mut other = BytesMut::from(&[1, 0, 0, 0, 9, 0][..]);
        assert!(matches!(
            decode_frame::<ToAgent>(&mut other),
            Err(CodecError::UnknownCodec(9))
        ));
        // A string that claims 2^46 bytes must give an error, not an allocation.
        let claim = [13, 0, 0, 0, 1, 0, 253, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0];
        assert!(decode_frame::<ToCoordinator>(&mut BytesMut::from(&claim[..])).is_err());
    }

    /// The largest of these contexts that fits, by its number of entries.
    fn largest(entry: impl Fn(usize) -> (String, String)) -> BatchContext {
        // More entries than can fit.
        let most = MAX_FRAME / (entry(0).0.len() + entry(0).1.len() + 8);
        let of = |entries: usize| {
            let env = (0..entries).map(&entry).collect();
            BatchContext {
                env,
                ..BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22)
            }
        };
        let (mut fits, mut over) = (0, most);
        while over - fits > 1 {
            let middle = (fits + over) / 2;
            if context_fits(&of(middle)) {
                fits = middle
            } else {
                over = middle
            }
        }
        of(fits)
    }

    fn is_read<T: Serialize + DeserializeOwned>(message: &T) {
        let mut frame = Vec::new();
        encode_frame(&mut frame, message).expect("it can be sent");
        decode_frame::<T>(&mut BytesMut::from(&frame[..]))
            .expect("it can be read")
            .expect("whole");
    }

    #[test]
    fn what_fits_is_read_by_everybody_on_its_way() {
        let shapes: [fn(usize) -> (String, String); 3] = [
            |_| Default::default(),
            |n| (format!("N{n}"), "x".into()),
            |n| (format!("NAME{n}"), "x".repeat(5000)),
        ];
        for shape in shapes {
            let context = largest(shape);
            let (batch, user) = (BatchSerial(u32::MAX), "u".repeat(253));
            let key = JobKey {
                batch,
                job: JobNumber(u32::MAX),
            };
            let attempt = AttemptId {
                epoch: Epoch(u64::MAX),
                key,
                attempt: u32::MAX,
            };
            let spec = Bytes::from(vec![0; MAX_SPEC]);
            let wish = LogWish {
                out: true,
                err: true,
                follow: true,
            };
            is_read(&ToAgent::Context {
                batch,
                context: context.clone(),
                user,
            });
            let logs = ToAgent::Logs {
                request: u64::MAX,
                attempt,
                spec: spec.clone(),
                context: Box::new(context.clone()),
                wish,
            };
            is_read(&logs);
            let terms = BatchTerms::new(context.clone(), std::time::Duration::MAX);
            is_read(&ToService::Open {
                terms,
                have: u64::MAX,
            });
            let (context, engine) = (Some(context), EngineId(u32::MAX));
            is_read(&ToEngine::Run {
                attempt,
                spec,
                context,
                engine,
                slots: u16::MAX,
            });
        }
    }

    #[test]
    fn what_nobody_could_read_does_not_fit() {
        let words = |count| JobSpec::new(Command::Argv(vec!["ab".into(); count]));
        assert!(
            spec_fits(&words(50_000)) && !spec_fits(&words(110_000)),
            "as bytes both are smaller than a job may be"
        );
        assert!(encode_body(&words(110_000)).expect("it can be sent").len() < MAX_SPEC);
        assert!(
            decode_exact::<JobSpec>(&encode_body(&words(110_000)).expect("it can be sent"))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
            framed.push(BINCODE_2);
            framed.extend(bytes);
            let _ = decode_frame::<ToCoordinator>(&mut BytesMut::from(&framed[..]));
            let _ = decode_frame::<ToAgent>(&mut BytesMut::from(&framed[..]));
            let _ = decode_frame::<crate::message::client::ToService>(&mut BytesMut::from(&framed[..]));
        }
    }
}
