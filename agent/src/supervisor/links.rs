//! Links to engines: their keepers make them, a task carries the messages over each, and the
//! agent's loop hears all of them in one place.

use crate::kernel::packet;
use crate::supervisor::input::{EngineInput, Link};
use crate::supervisor::users::Finder;
use bytes::BytesMut;
use mezcal_common::message::engine::{
    COUNTS, FromEngine, FromKeeper, TELL_FAILURES, ToEngine, ToKeeper,
};
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::limits;
use mezcal_common::model::outcome::Written;
use mezcal_common::wire::codec;
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::io::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Inputs that may wait; beyond this number the links are not read.
const INPUTS: usize = 1024;

/// Room for the bytes that an engine sends at once.
const ENGINE_MESSAGES: usize = 4096;

/// The engines in which attempts run: the other end of the links to them. Real ones come from
/// [`engines_of`].
pub struct Engines {
    /// The messages of the engines and their keepers.
    pub(super) inputs: mpsc::Receiver<EngineInput>,
    /// For keepers that come later.
    pub(super) sender: mpsc::Sender<EngineInput>,
    /// The keepers of the engines: each has `slots` engines.
    pub(super) keepers: Vec<OwnedFd>,
    /// The finder of the keepers of other users.
    pub(super) finder: Option<Finder>,
}

impl Engines {
    /// Engines that have no keeper, and whose messages come through `sender`.
    pub fn without_keeper(
        sender: mpsc::Sender<EngineInput>,
        inputs: mpsc::Receiver<EngineInput>,
    ) -> Self {
        Self {
            inputs,
            sender,
            keepers: Vec::new(),
            finder: None,
        }
    }

    /// The same engines, and those of other users as they come.
    #[must_use]
    pub fn and_others(self, finder: Finder) -> Self {
        Self {
            finder: Some(finder),
            ..self
        }
    }
}

/// The links to the engines of one host, and the messages over them.
pub(super) struct Links {
    inputs: mpsc::Receiver<EngineInput>,
    /// For keepers that come later.
    sender: mpsc::Sender<EngineInput>,
    present: HashMap<EngineIndex, (Link, mpsc::UnboundedSender<ToEngine>)>,
    host: String,
    slots: u16,
}

impl Links {
    /// The links to these engines, which are in sets of `slots`.
    pub(super) fn new(
        inputs: mpsc::Receiver<EngineInput>,
        sender: mpsc::Sender<EngineInput>,
        host: String,
        slots: u16,
    ) -> Self {
        Self {
            inputs,
            sender,
            present: HashMap::new(),
            host,
            slots,
        }
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<EngineInput> {
        self.inputs.recv().await
    }

    /// Hears another keeper from now on.
    pub(super) fn hear(&self, keeper: &OwnedFd, set: usize) -> Result<()> {
        hear(keeper, set, self.slots, &self.host, &self.sender)
    }

    pub(super) fn replace(
        &mut self,
        index: EngineIndex,
        link: Link,
        sender: mpsc::UnboundedSender<ToEngine>,
    ) {
        self.present.insert(index, (link, sender));
    }

    pub(super) fn is_present(&self, index: EngineIndex, link: Link) -> bool {
        self.present
            .get(&index)
            .is_some_and(|(present, _)| *present == link)
    }

    pub(super) fn remove(&mut self, index: EngineIndex) {
        self.present.remove(&index);
    }

    pub(super) fn remove_all(&mut self, set: usize) {
        self.present
            .retain(|index, _| usize::from(index.0 / self.slots) != set);
    }

    pub(super) fn tell(&self, index: EngineIndex, message: ToEngine) {
        // The end of a closed link is on its way here.
        if let Some((_, link)) = self.present.get(&index)
            && let Err(e) = link.send(message)
        {
            tracing::debug!(engine = index.0, error = %e, "message to an engine dropped");
        }
    }
}

/// Asks the keepers of this host for `slots` engines each and turns their messages into inputs.
/// Must be called within a tokio runtime.
///
/// # Errors
/// No thread can be started.
pub fn engines_of(keepers: Vec<OwnedFd>, slots: u16, host: &str) -> Result<Engines> {
    let (sender, inputs) = mpsc::channel(INPUTS);
    for (set, keeper) in keepers.iter().enumerate() {
        hear(keeper, set, slots, host, &sender)?;
    }
    Ok(Engines {
        inputs,
        sender,
        keepers,
        finder: None,
    })
}

/// Asks one keeper for its engines, and has a thread listen to it.
fn hear(
    keeper: &OwnedFd,
    set: usize,
    slots: u16,
    host: &str,
    inputs: &mpsc::Sender<EngineInput>,
) -> Result<()> {
    // A keeper that is gone already, or does not read, shows when it is listened to.
    let _ = packet::send(
        keeper,
        &ToKeeper::Relink {
            engine: TELL_FAILURES,
        },
        None,
    );
    let _ = packet::send(
        keeper,
        &ToKeeper::Engines {
            count: slots,
            host: host.to_owned(),
        },
        None,
    );
    let (listening, inputs) = (keeper.try_clone()?, inputs.clone());
    let runtime = tokio::runtime::Handle::current();
    let hear = move || {
        let result = hear_keeper(&listening, set, slots, &inputs, &runtime);
        let why = match result {
            Ok(()) => "their keeper is gone".to_owned(),
            Err(e) => {
                tracing::error!(set, error = %e, "the link to a keeper has failed; closing it");
                format!("the link to their keeper has failed: {e}")
            }
        };
        let _ = inputs.blocking_send(EngineInput::KeeperGone(set, why));
    };
    std::thread::Builder::new()
        .name("keeper link".into())
        .spawn(hear)
        .map_err(limits::named)?;
    Ok(())
}

/// Listens to the keeper of one set. It may speak of its own engines only.
fn hear_keeper(
    keeper: &OwnedFd,
    set: usize,
    slots: u16,
    inputs: &mpsc::Sender<EngineInput>,
    runtime: &tokio::runtime::Handle,
) -> Result<()> {
    static LINKS: AtomicU32 = AtomicU32::new(0);
    let own = |engine: EngineIndex| match engine.0 < slots {
        true => Ok(EngineIndex(set as u16 * slots + engine.0)),
        false => Err(Error::other(format!(
            "it names engine {engine} and has {slots}, numbered from 0"
        ))),
    };
    while let Some((message, fd)) = packet::receive::<FromKeeper>(keeper.as_fd())? {
        let input = match (message, fd) {
            (FromKeeper::Link { engine }, Some(fd)) => {
                if packet::peer(&fd)? != packet::peer(keeper)? {
                    return Err(Error::other(
                        "it sends a link that another account has made",
                    ));
                }
                let (engine, link) = (own(engine)?, LINKS.fetch_add(1, Ordering::Relaxed));
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                let (to_engine, outgoing) = mpsc::unbounded_channel();
                if inputs
                    .blocking_send(EngineInput::Linked(engine, link, to_engine))
                    .is_err()
                {
                    return Ok(());
                }
                let inputs = inputs.clone();
                runtime.spawn(async move {
                    talk_to_engine(engine, link, stream, outgoing, &inputs).await;
                    // The agent may have gone.
                    let _ = inputs.send(EngineInput::Unlinked(engine, link)).await;
                });
                continue;
            }
            (FromKeeper::Link { .. }, None) => {
                // The kernel has left the descriptor out.
                return Err(limits::named(rustix::io::Errno::MFILE.into()));
            }
            (FromKeeper::Containment(kind), _) => EngineInput::Containment(kind),
            (
                FromKeeper::EngineEnded {
                    engine,
                    attempt,
                    ended,
                    killed,
                    survivors,
                },
                _,
            ) => EngineInput::Ended {
                engine: own(engine)?,
                attempt,
                ended,
                killed,
                survivors,
            },
            (FromKeeper::EngineFails { engine, why }, _) => EngineInput::Fails(own(engine)?, why),
        };
        if inputs.blocking_send(input).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Carries frames both ways until the link ends.
async fn talk_to_engine(
    index: EngineIndex,
    link: Link,
    stream: std::os::unix::net::UnixStream,
    mut outgoing: mpsc::UnboundedReceiver<ToEngine>,
    inputs: &mpsc::Sender<EngineInput>,
) {
    let Ok(mut stream) = UnixStream::from_std(stream) else {
        return;
    };
    let mut incoming = BytesMut::new();
    let mut buffer = Vec::new();
    // The counts of the outcome that comes next.
    let mut written = Written::default();
    loop {
        // With room to spare one read is enough for all bytes that are there.
        incoming.reserve(ENGINE_MESSAGES);
        tokio::select! {
            read = stream.read_buf(&mut incoming) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => loop {
                    match codec::decode_frame::<FromEngine>(&mut incoming) {
                        Ok(Some(FromEngine::Shown { request: COUNTS, data, .. })) => {
                            written = codec::decode_exact(&data).unwrap_or_default();
                        }
                        Ok(Some(mut message)) => {
                            if let FromEngine::Finished { outcome, .. } = &mut message {
                                outcome.written = std::mem::take(&mut written);
                            }
                            if inputs.send(EngineInput::Said(index, link, message)).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(e) => {
                            tracing::error!(engine = index.0, error = %e, "engine breaks the protocol; closing its link");
                            return;
                        }
                    }
                },
            },
            message = outgoing.recv() => {
                let Some(message) = message else { return };
                buffer.clear();
                let mut next = Some(message);
                while let Some(message) = next {
                    if let Err(e) = codec::encode_frame(&mut buffer, &message) {
                        tracing::error!(engine = index.0, error = %e, "message to an engine cannot be encoded");
                        return;
                    }
                    next = outgoing.try_recv().ok();
                }
                if stream.write_all(&buffer).await.is_err() {
                    return;
                }
            }
        }
    }
}
