//! Bulk bytes on unidirectional streams of their own, below the control stream in priority: a
//! header frame, then raw bytes.
//!
//! QUIC's flow control is the back-pressure: a sender waits for its reader. A stream that ends
//! without its `finish` was cut short.

use super::codec;
use super::endpoint::{Peer, explain};
use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Below the control stream, which has 0.
const PRIORITY: i32 = -1;
/// Most bytes taken from a stream at a time.
const CHUNK: usize = 64 * 1024;

/// The sending end. Dropped without [`BulkSender::finish`], it tells the reader that bytes are
/// missing.
pub struct BulkSender {
    stream: quinn::SendStream,
    finished: bool,
}

/// The receiving end of a stream.
pub struct BulkReceiver {
    stream: quinn::RecvStream,
    /// Bytes that came after the header in its packets.
    rest: BytesMut,
}

/// The stream ended before its sender had finished.
#[derive(Debug, thiserror::Error)]
#[error("the output was cut short: {0}")]
pub struct CutShort(String);

impl Peer {
    /// Opens a stream that begins with `header`.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn open_bulk<H: Serialize>(&self, header: &H) -> Result<BulkSender, CutShort> {
        let cut = |e: String| CutShort(e);
        let mut stream = self
            .connection
            .open_uni()
            .await
            .map_err(|e| cut(explain(&e)))?;
        // A stream that has ended meanwhile has no priority to set; the next write reports its end.
        let _ = stream.set_priority(PRIORITY);
        let mut frame = Vec::new();
        codec::encode_frame(&mut frame, header).map_err(|e| cut(e.to_string()))?;
        stream
            .write_all(&frame)
            .await
            .map_err(|e| cut(e.to_string()))?;
        Ok(BulkSender {
            stream,
            finished: false,
        })
    }

    /// The next stream that the peer opens, with its header.
    ///
    /// # Errors
    /// The connection has ended, or the header cannot be decoded.
    pub async fn accept_bulk<H: DeserializeOwned>(&self) -> Result<(H, BulkReceiver), CutShort> {
        let mut stream = self
            .connection
            .accept_uni()
            .await
            .map_err(|e| CutShort(explain(&e)))?;
        let mut rest = BytesMut::new();
        loop {
            if let Some(header) =
                codec::decode_frame(&mut rest).map_err(|e| CutShort(e.to_string()))?
            {
                return Ok((header, BulkReceiver { stream, rest }));
            }
            match stream.read_chunk(CHUNK, true).await {
                Ok(Some(chunk)) => rest.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(CutShort("no header".into())),
                Err(e) => return Err(CutShort(e.to_string())),
            }
        }
    }
}

impl BulkSender {
    /// Sends more bytes, as fast as the reader takes them.
    ///
    /// # Errors
    /// The reader has stopped, or the connection has ended.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), CutShort> {
        self.stream
            .write_all(data)
            .await
            .map_err(|e| CutShort(e.to_string()))
    }

    /// Ends the stream: it is complete.
    pub fn finish(mut self) {
        self.finished = true;
        // A reader that has stopped needs no end, either.
        let _ = self.stream.finish();
    }

    /// Completes when the reader has stopped.
    pub async fn abandoned(&self) {
        let _ = self.stream.stopped().await;
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(0u32.into());
        }
    }
}

impl BulkReceiver {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The sender has stopped without finishing.
    pub async fn read(&mut self) -> Result<Option<Bytes>, CutShort> {
        if !self.rest.is_empty() {
            return Ok(Some(self.rest.split().freeze()));
        }
        match self.stream.read_chunk(CHUNK, true).await {
            Ok(chunk) => Ok(chunk.map(|c| c.bytes)),
            Err(e) => Err(CutShort(e.to_string())),
        }
    }
}
