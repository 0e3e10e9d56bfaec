//! The framed channel on a stream: a reader and a writer task between it and two channels that are
//! bounded in messages and in bytes.

use super::{CHANNEL_DEPTH, close};
use crate::wire::codec::{self, CodecError};
use bytes::BytesMut;
use quinn::VarInt;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Most bytes of frames that wait on the receiving side before reading pauses: two of the largest,
/// or eight with as many jobs as clients put into one. A larger frame waits alone.
const CHANNEL_BYTES: usize = 2 << 20;

/// Most bytes gathered into one write.
const WRITE_BATCH: usize = 256 * 1024;

/// Messages both ways over one stream.
pub struct Channel<S, R> {
    /// To the peer.
    pub sender: mpsc::Sender<S>,
    /// From the peer. Ends with the stream; the reason is in [`Peer::closed`](super::Peer::closed).
    pub receiver: mpsc::Receiver<R>,
}

impl<S, R> Channel<S, R>
where
    S: Serialize + Send + 'static,
    R: DeserializeOwned + Send + 'static,
{
    pub(in crate::wire) fn start(
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        connection: quinn::Connection,
    ) -> Self {
        let (sender, outgoing) = mpsc::channel(CHANNEL_DEPTH);
        let (incoming, receiver) = mpsc::channel(CHANNEL_DEPTH);
        tokio::spawn(write_frames(send, outgoing, connection.clone()));
        tokio::spawn(read_frames(recv, incoming, connection));
        Self { sender, receiver }
    }
}

async fn write_frames<S: Serialize>(
    mut stream: quinn::SendStream,
    mut outgoing: mpsc::Receiver<S>,
    connection: quinn::Connection,
) {
    let mut buffer = Vec::new();
    while let Some(mut message) = outgoing.recv().await {
        buffer.clear();
        loop {
            if let Err(e) = codec::encode_frame(&mut buffer, &message) {
                // Our own fault: senders bound their messages. Log it as an error, and end the
                // connection rather than skip a message.
                tracing::error!(error = %e, "message cannot be sent");
                connection.close(VarInt::from_u32(close::PROTOCOL), b"message cannot be sent");
                return;
            }
            match outgoing.try_recv() {
                Ok(next) if buffer.len() < WRITE_BATCH => message = next,
                Ok(next) => {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                    buffer.clear();
                    message = next;
                }
                Err(_) => break,
            }
        }
        if stream.write_all(&buffer).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
    let _ = stream.stopped().await;
}

async fn read_frames<R: DeserializeOwned>(
    mut stream: quinn::RecvStream,
    incoming: mpsc::Sender<R>,
    connection: quinn::Connection,
) {
    let (mut buffer, mut waiting) = (BytesMut::new(), Waiting::default());
    let refused = |e: CodecError| {
        tracing::warn!(peer = %connection.remote_address(), error = %e, "peer breaks the protocol; closing");
        connection.close(VarInt::from_u32(close::PROTOCOL), e.to_string().as_bytes());
    };
    while let Ok(Some(chunk)) = stream.read_chunk(WRITE_BATCH, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        loop {
            let before = buffer.len();
            match codec::decode_frame(&mut buffer) {
                Ok(Some(message)) => {
                    waiting.make_room(&incoming, before - buffer.len()).await;
                    if incoming.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(e) => return refused(e),
            }
        }
    }
}

/// The sizes of messages in a channel that has one sender.
#[derive(Default)]
struct Waiting {
    /// Oldest first.
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Waiting {
    /// Waits until a message of this size may follow those in the channel, and counts it.
    async fn make_room<R>(&mut self, channel: &mpsc::Sender<R>, size: usize) {
        let places = channel.max_capacity();
        self.taken(places - channel.capacity());
        let (mut bytes, mut in_the_way) = (self.bytes, 0);
        while let Some(oldest) = self
            .sizes
            .get(in_the_way)
            .filter(|_| bytes + size > CHANNEL_BYTES)
        {
            bytes -= oldest;
            in_the_way += 1;
        }
        if in_the_way > 0 {
            let left = self.sizes.len() - in_the_way;
            // The places are returned at once: this only waits. The code that sends notices a
            // receiver that has gone.
            let _ = channel.reserve_many(places - left).await.map(drop);
            self.taken(left);
        }
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// Forgets all but the newest `left` messages, which are still in the channel.
    pub(super) fn taken(&mut self, left: usize) {
        while self.sizes.len() > left {
            self.bytes -= self.sizes.pop_front().unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_channel_holds_so_many_bytes_however_few_messages_they_are() {
        let (sender, mut receiver) = mpsc::channel(CHANNEL_DEPTH);
        let mut waiting = Waiting::default();
        let half = CHANNEL_BYTES / 2;
        for n in 0..2 {
            waiting.make_room(&sender, half).await;
            sender.send(n).await.expect("it is there");
        }
        let patience = Duration::from_millis(20);
        assert!(
            tokio::time::timeout(patience, waiting.make_room(&sender, 1))
                .await
                .is_err(),
            "those two are all that fits"
        );
        assert_eq!(receiver.recv().await, Some(0));
        waiting.make_room(&sender, 1).await;
        sender.send(2).await.expect("it is there");
        // A message above the limit waits until it is alone.
        let large = tokio::spawn(async move {
            waiting.make_room(&sender, 2 * CHANNEL_BYTES).await;
            sender.send(3).await.expect("it is there");
        });
        for n in [1, 2] {
            tokio::task::yield_now().await;
            assert!(!large.is_finished());
            assert_eq!(receiver.recv().await, Some(n));
        }
        large.await.expect("it waits for nothing else");
        assert_eq!(receiver.recv().await, Some(3));
    }
}
