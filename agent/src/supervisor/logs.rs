//! The output of this host's jobs, for everybody who requests it: files as they are and grow, and
//! the part of captured output that engines keep.
//!
//! Each stream of output goes over a QUIC stream of its own, at the reader's pace; nothing here
//! holds a job up. A file is read by a thread for blocking work, so a dead mount stops nobody else.

use crate::kernel::paths;
use bytes::Bytes;
use mezcal_common::message::agent::{LogHeader, LogWish, Stream, ToCoordinator};
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::job::{BatchContext, JobSpec};
use mezcal_common::system::account;
use mezcal_common::wire::bulk::{BulkSender, CutShort};
use mezcal_common::wire::codec;
use mezcal_common::wire::endpoint::Peer;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, inotify};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc, watch};

/// Requests that may be served at a time.
const MAX_REQUESTS: usize = 64;
/// Pieces of captured output that may wait for a reader; more are dropped, as an engine keeps only
/// the end of it anyway.
const DEPTH: usize = 64;
/// Bytes read from a file at a time.
const CHUNK: usize = 64 * 1024;

/// One request for output, with everything that it takes to serve it.
pub(crate) struct Request {
    /// The number of the request.
    pub(crate) request: u64,
    /// The attempt whose output is wanted.
    pub(crate) attempt: AttemptId,
    /// The job that the attempt runs, encoded.
    pub(crate) spec: Bytes,
    /// The context of its batch.
    pub(crate) context: Box<BatchContext>,
    /// The part of the output that is wanted.
    pub(crate) wish: LogWish,
    /// The users whose files may be read: of agents that run jobs of others, who choose the paths.
    /// None: the jobs are the agent's own.
    pub(crate) owners: Option<Vec<String>>,
}

/// The requests that are being served.
pub(crate) struct Logs {
    places: Arc<Semaphore>,
    /// True once the attempt has ended.
    over: HashMap<AttemptId, watch::Sender<bool>>,
    /// The readers of captured output, by request.
    captured: HashMap<u64, Captured>,
}

/// The ways to readers of standard output and error.
type Senders = [Option<mpsc::Sender<Bytes>>; 2];

/// Readers of output that an engine keeps.
struct Captured {
    attempt: AttemptId,
    /// The engine that was asked: no other engine's word counts.
    engine: Option<EngineIndex>,
    senders: Senders,
}

impl Logs {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_REQUESTS)),
            over: HashMap::new(),
            captured: HashMap::new(),
        }
    }

    /// Begins to serve a request; `engine` has the attempt now, if it is running. True if that
    /// engine has to be asked to show its output.
    pub(crate) fn begin(
        &mut self,
        request: Request,
        engine: Option<EngineIndex>,
        peer: Peer,
        answers: mpsc::Sender<ToCoordinator>,
    ) -> bool {
        let Request {
            request,
            attempt,
            spec,
            context,
            wish,
            owners,
        } = request;
        let refuse = |why: String| refuse(request, why, answers.clone());
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return refuse(format!(
                "{MAX_REQUESTS} readers are being served on that host already"
            ));
        };
        let Ok(spec) = codec::decode_exact::<JobSpec>(&spec) else {
            return refuse("its description cannot be read there".into());
        };
        let (sources, senders) = wanted_of(&spec, attempt, &context, wish, engine.is_some());
        if sources.is_empty() {
            return refuse(
                "its output went to no file; the last 4 KiB of it are in its result".into(),
            );
        }
        let show = senders.iter().any(Option::is_some);
        if show {
            self.captured.insert(
                request,
                Captured {
                    attempt,
                    engine,
                    senders,
                },
            );
        }
        let over = match engine.filter(|_| wish.follow) {
            Some(_) => self
                .over
                .entry(attempt)
                .or_insert_with(|| watch::channel(false).0)
                .subscribe(),
            None => watch::channel(true).1,
        };
        tokio::spawn(async move {
            let _place = place;
            serve(request, sources, owners, over, &peer, &answers).await;
        });
        show
    }

    /// Ends the following of attempts that do not run any more. Returns the running attempts whose
    /// readers have left, with their requests.
    pub(crate) fn settle(&mut self, runs: impl Fn(AttemptId) -> bool) -> Vec<(AttemptId, u64)> {
        let mut left = Vec::new();
        // The output that an engine has shown comes before the end of its attempt, and output that
        // a dead engine has not shown will not come.
        self.captured.retain(|request, captured| {
            let read = captured
                .senders
                .iter()
                .flatten()
                .any(|sender| !sender.is_closed());
            if !read && runs(captured.attempt) {
                left.push((captured.attempt, *request));
            }
            read && runs(captured.attempt)
        });
        if !self.over.is_empty() {
            self.over.retain(|attempt, over| {
                let goes_on = runs(*attempt) && over.receiver_count() > 0;
                // There may be no follower left.
                over.send_if_modified(|over| std::mem::replace(over, !goes_on) == goes_on);
                goes_on
            });
        }
        left
    }

    /// An engine shows output of an attempt.
    pub(crate) fn shown(&mut self, engine: EngineIndex, request: u64, stream: Stream, data: Bytes) {
        if let Some(captured) = self
            .captured
            .get(&request)
            .filter(|captured| captured.engine == Some(engine))
            && let Some(sender) = &captured.senders[usize::from(stream == Stream::Err)]
        {
            // A reader that is too slow misses some of it.
            let _ = sender.try_send(data);
        }
    }

    /// The engine has shown all of it.
    pub(crate) fn shown_all(&mut self, engine: EngineIndex, request: u64) {
        if self
            .captured
            .get(&request)
            .is_some_and(|captured| captured.engine == Some(engine))
        {
            self.captured.remove(&request);
        }
    }

    /// The connection is gone, and the readers with it.
    pub(crate) fn clear(&mut self) {
        self.over.clear();
        self.captured.clear();
    }
}

/// Says why a request is not served. False: no engine has to be asked.
fn refuse(request: u64, why: String, answers: mpsc::Sender<ToCoordinator>) -> bool {
    tokio::spawn(async move {
        let streams = Err(why);
        // A connection that has ended needs no answer.
        let _ = answers
            .send(ToCoordinator::LogsAnswer { request, streams })
            .await;
    });
    false
}

/// The sources of an attempt's wanted output, and the ways to its readers for the part that an
/// engine captures.
fn wanted_of(
    spec: &JobSpec,
    attempt: AttemptId,
    context: &BatchContext,
    wish: LogWish,
    runs: bool,
) -> (Vec<(Stream, Source)>, Senders) {
    let cd = paths::directory(spec, context);
    let (out, err) = (
        paths::out(spec, attempt, context),
        paths::err(spec, attempt, context),
    );
    let same = out.is_some() && out == err;
    let wanted = [
        (wish.out || (wish.err && same), out, Stream::Out),
        (wish.err && !same, err, Stream::Err),
    ];
    let (mut sources, mut senders) = (Vec::new(), [None, None]);
    for (_, file, stream) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
        match file {
            Some(file) => sources.push((stream, Source::File(cd.join(file.path)))),
            None if runs => {
                let (sender, receiver) = mpsc::channel(DEPTH);
                senders[usize::from(stream == Stream::Err)] = Some(sender);
                sources.push((stream, Source::Captured(receiver)));
            }
            None => {}
        }
    }
    (sources, senders)
}

enum Source {
    File(PathBuf),
    Captured(mpsc::Receiver<Bytes>),
}

async fn serve(
    request: u64,
    sources: Vec<(Stream, Source)>,
    owners: Option<Vec<String>>,
    over: watch::Receiver<bool>,
    peer: &Peer,
    answers: &mpsc::Sender<ToCoordinator>,
) {
    let mut opened = Vec::new();
    for (stream, source) in sources {
        let ready = match source {
            Source::Captured(pieces) => Ok((stream, Opened::Captured(pieces))),
            Source::File(path) => {
                let owners = owners.clone();
                let opening = tokio::task::spawn_blocking(move || open(&path, owners.as_deref()));
                opening
                    .await
                    .unwrap_or_else(|e| Err(e.to_string()))
                    .map(|file| (stream, Opened::File(Arc::new(file))))
            }
        };
        match ready {
            Ok(ready) => opened.push(ready),
            Err(why) => {
                // A connection that has ended needs no answer.
                let _ = answers
                    .send(ToCoordinator::LogsAnswer {
                        request,
                        streams: Err(why),
                    })
                    .await;
                return;
            }
        }
    }
    let _ = answers
        .send(ToCoordinator::LogsAnswer {
            request,
            streams: Ok(opened.len() as u8),
        })
        .await;
    let mut sending = tokio::task::JoinSet::new();
    for (stream, source) in opened {
        let (peer, over) = (peer.clone(), over.clone());
        sending.spawn(async move {
            let mut to = peer.open_bulk(&LogHeader { request, stream }).await?;
            match source {
                Opened::File(file) => send_file(&file, &mut to, over).await?,
                Opened::Captured(mut pieces) => loop {
                    tokio::select! {
                        piece = pieces.recv() => match piece {
                            Some(piece) => to.write(&piece).await?,
                            None => break,
                        },
                        () = to.abandoned() => return Ok(()),
                    }
                },
            }
            to.finish();
            Ok::<_, CutShort>(())
        });
    }
    while let Some(sent) = sending.join_next().await {
        if let Ok(Err(e)) = sent {
            tracing::debug!(error = %e, "a reader of output is gone");
        }
    }
}

enum Opened {
    File(Arc<OwnedFd>),
    Captured(mpsc::Receiver<Bytes>),
}

/// Opens a file for reading, never waiting for a partner; if `owners` are given, only a file of
/// theirs, whatever this process may read.
fn open(path: &Path, owners: Option<&[String]>) -> Result<OwnedFd, String> {
    let cannot = |e: rustix::io::Errno| {
        format!(
            "cannot read {}: {}",
            path.display(),
            std::io::Error::from(e)
        )
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(cannot)?;
    let found = rustix::fs::fstat(&file).map_err(cannot)?;
    if let Some(owners) = owners
        && !account::of(found.st_uid).is_some_and(|owner| owners.contains(&owner.name))
    {
        return Err(format!(
            "{} is not a file of {}'s, and is not shown",
            path.display(),
            owners.join("'s or ")
        ));
    }
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind != FileType::RegularFile {
        return Err(format!(
            "{} is not a regular file: what was written to it is gone",
            path.display()
        ));
    }
    Ok(file)
}

/// Sends a file to its end; while the attempt runs, its end moves.
async fn send_file(
    file: &Arc<OwnedFd>,
    to: &mut BulkSender,
    mut over: watch::Receiver<bool>,
) -> Result<(), CutShort> {
    let watched = file.clone();
    let ended = *over.borrow();
    let changes = match ended {
        true => None,
        // To watch may ask the file's server for permission.
        false => tokio::task::spawn_blocking(move || watch(&watched))
            .await
            .ok()
            .flatten()
            .and_then(registered),
    };
    let mut at = 0;
    loop {
        // Before reading: bytes written after the last read are not missed.
        let ended = *over.borrow_and_update();
        let reading = file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK];
            let n = rustix::io::pread(&*reading, &mut chunk, at)?;
            chunk.truncate(n);
            let size = if n == 0 {
                rustix::fs::fstat(&*reading)?.st_size as u64
            } else {
                at
            };
            Ok::<_, rustix::io::Errno>((chunk, size))
        });
        let Ok(Ok((chunk, size))) = read.await else {
            return Ok(());
        };
        if !chunk.is_empty() {
            at += chunk.len() as u64;
            to.write(&chunk).await?;
        } else if size < at {
            // The file was truncated: it begins anew.
            at = 0;
        } else if ended {
            return Ok(());
        } else {
            tokio::select! {
                () = changed(changes.as_ref()) => {}
                // A sender that is gone means the same.
                _ = over.changed() => {}
                () = to.abandoned() => return Ok(()),
            }
        }
    }
}

/// Tells of changes to an open file (inotify(7)).
fn watch(file: &OwnedFd) -> Option<OwnedFd> {
    let watcher =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify::add_watch(&watcher, path, inotify::WatchFlags::MODIFY).ok()?;
    Some(watcher)
}

fn registered(watcher: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd, so it stays open and the same for as long as
    // it is registered.
    unsafe { AsyncFd::register(watcher) }.ok()
}

async fn changed(watcher: Option<&AsyncFd<OwnedFd>>) {
    let Some(watcher) = watcher else {
        return std::future::pending().await;
    };
    if let Ok(mut ready) = watcher.readable().await {
        let mut events = [0; 4096];
        while rustix::io::read(watcher.get_ref(), &mut events).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
    }
}
