//! Long answers in several messages.

use mezcal_common::message::client::ToClient;
use mezcal_common::wire::codec;

/// Tokens, certificates, batches or hosts in one message, a few hundred bytes each; and their
/// bytes, in case users have given long names.
const ROWS_PER_MESSAGE: usize = 1000;
const BYTES_PER_MESSAGE: usize = 256 * 1024;

/// Rows in messages that fit a frame. A row too long for a frame is left out: it would end the
/// connection.
pub(super) fn paged<R, S: serde::Serialize>(
    rows: Result<Vec<R>, String>,
    status: impl Fn(&R) -> S,
    message: impl Fn(Result<Vec<S>, String>, bool) -> ToClient,
) -> Vec<ToClient> {
    let rows = match rows {
        Err(why) => return vec![message(Err(why), false)],
        Ok(rows) => rows,
    };
    let (mut pages, mut page, mut bytes) = (Vec::new(), Vec::new(), 0);
    for row in rows.iter().map(status) {
        let Ok(size) = codec::encode_body(&row).map(|body| body.len()) else {
            continue;
        };
        bytes += size;
        if !page.is_empty() && (page.len() == ROWS_PER_MESSAGE || bytes > BYTES_PER_MESSAGE) {
            bytes = size;
            pages.push(message(Ok(std::mem::take(&mut page)), true));
        }
        page.push(row);
    }
    pages.push(message(Ok(page), false));
    pages
}
