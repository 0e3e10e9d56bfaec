//! Packets between agent, keeper and engines: one message each, with at most one descriptor (unix(7), SOCK_SEQPACKET, SCM_RIGHTS).

use mezcal_common::wire::codec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;

/// Messages to and from keepers are a few bytes, and in one of them a host's name, which may have 253 (RFC 1035).
const MAX_PACKET: usize = 512;

/// A connected pair of packet sockets.
///
/// # Errors
/// socketpair(2)'s.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connected pair of stream sockets, for frames.
///
/// # Errors
/// socketpair(2)'s.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends `message`, and a copy of `fd` with it, without waiting for room.
///
/// # Errors
/// sendmsg(2)'s: `BrokenPipe` if the other side is gone, `WouldBlock` if it does not read.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let body = codec::encode_body(message).map_err(Error::other)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    retry(|| rustix::net::sendmsg(&socket, &[IoSlice::new(&body)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))?;
    Ok(())
}

/// Receives a message and what came with it, waiting for it; `None` at the end of the connection.
///
/// # Errors
/// recvmsg(2)'s, and `InvalidData` for what is not such a message.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC)
}

/// The same without waiting.
///
/// # Errors
/// As above, and `WouldBlock`.
pub fn try_receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
}

fn receive_with<T: DeserializeOwned>(socket: impl AsFd, flags: RecvFlags) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut body = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = retry(|| rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut body)], &mut ancillary, flags))?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let fd = ancillary
        .drain()
        .find_map(|message| if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None });
    let message = codec::decode_exact(&body[..got.bytes]).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
    Ok(Some((message, fd)))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::ids::EngineIndex;
    use mezcal_common::wire::engine::FromKeeper;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_travels_with_its_packet() {
        let (a, b) = pair().expect("a pair");
        let (mine, theirs) = stream_pair().expect("a pair");
        let link = FromKeeper::Link { engine: EngineIndex(3) };
        send(&a, &link, Some(theirs.as_fd())).expect("sent");
        drop(theirs);
        let (message, fd) = receive::<FromKeeper>(&b).expect("received").expect("a packet");
        assert_eq!(message, link);
        let mut far = std::os::unix::net::UnixStream::from(fd.expect("a descriptor"));
        far.write_all(b"x").expect("written");
        let mut byte = [0];
        std::os::unix::net::UnixStream::from(mine).read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"x");
        drop(a);
        assert!(receive::<FromKeeper>(&b).expect("an end").is_none());
    }
}
