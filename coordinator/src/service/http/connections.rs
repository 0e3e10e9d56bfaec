//! Connections of the HTTP server: how many there may be, and how long one may go on without an
//! answer.
//!
//! One rule is for all of them: a connection on which nothing has been written for a while ends,
//! whether its request does not end, does not come at all, or its answer is not read. When there
//! are too many, the connection that has been silent for longest ends, so that a new client is
//! answered now.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

/// A connection ends on which nothing has been written for so long: much longer than any answer
/// takes, and hardly noticed by people. The dashboard is written to twice a second.
const SILENCE: Duration = Duration::from_secs(10);
/// Connections at a time: more viewers than a site has. Each takes a descriptor and some ten
/// kilobytes.
const MOST: usize = 256;
/// The share (one in so many) of the process's descriptors that these connections may have; the
/// rest is left to the store, and to agents and clients.
const SHARE_OF_DESCRIPTORS: u64 = 4;
/// Wait before another try to accept a connection that has failed, during which some descriptor is
/// given back.
const PAUSE: Duration = Duration::from_millis(100);

/// The listener, and the connections that are open.
pub(super) struct Connections {
    listener: TcpListener,
    most: usize,
    open: Vec<Open>,
}

struct Open {
    /// Ends the connection.
    end: oneshot::Sender<()>,
    written: Arc<Mutex<Instant>>,
}

impl Connections {
    pub(super) fn new(listener: TcpListener) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.map_or(MOST, |limit| {
            MOST.min((limit / SHARE_OF_DESCRIPTORS) as usize).max(1)
        });
        Self {
            listener,
            most,
            open: Vec::new(),
        }
    }

    pub(super) fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) async fn next(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = loop {
            match self.listener.accept().await {
                Ok(accepted) => break accepted,
                Err(e) => {
                    tracing::debug!(error = %e, "an HTTP connection is not accepted");
                    self.end_one();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        self.open.retain(|open| !open.end.is_closed());
        if self.open.len() >= self.most {
            self.end_one();
            // The ended connection gives its descriptor back before another one is taken.
            tokio::task::yield_now().await;
        }
        let (end, ended) = oneshot::channel();
        let written = Arc::new(Mutex::new(Instant::now()));
        self.open.push(Open {
            end,
            written: written.clone(),
        });
        (
            Connection {
                stream,
                ended,
                written,
                silence: Box::pin(tokio::time::sleep(SILENCE)),
            },
            address,
        )
    }

    /// Ends the connection that has been silent for longest.
    fn end_one(&mut self) {
        let silent =
            self.open.iter().enumerate().min_by_key(|(_, open)| {
                *open.written.lock().unwrap_or_else(PoisonError::into_inner)
            });
        if let Some((index, _)) = silent {
            // A connection that has just ended needs no word.
            let _ = self.open.swap_remove(index).end.send(());
        }
    }
}

/// A connection that ends after a silence.
pub(super) struct Connection {
    stream: TcpStream,
    ended: oneshot::Receiver<()>,
    written: Arc<Mutex<Instant>>,
    silence: Pin<Box<Sleep>>,
}

impl Connection {
    /// The state of the wait: pending, or the error that ends the connection.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if Pin::new(&mut self.ended).poll(cx).is_ready() {
            return Poll::Ready(Error::new(
                ErrorKind::ConnectionAborted,
                "another connection needs its place",
            ));
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Error::new(
            ErrorKind::TimedOut,
            "nothing was answered for too long",
        ))
    }

    fn written(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                let now = Instant::now();
                *self.written.lock().unwrap_or_else(PoisonError::into_inner) = now;
                self.silence.as_mut().reset(now + SILENCE);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => self.wait(cx).map(Err),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.wait(cx).map(Err),
            read @ Poll::Ready(_) => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
