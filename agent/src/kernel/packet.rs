//! Packets between agent, keeper and engines: one message each, with at most one descriptor
//! (unix(7), SOCK_SEQPACKET, SCM_RIGHTS).

use mezcal_common::wire::codec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::path::Path;

/// Messages to and from keepers are a few bytes, and one of them has a host's name, which may be
/// 253 bytes long (RFC 1035).
const MAX_PACKET: usize = 512;

/// A connected pair of packet sockets.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A connected pair of stream sockets, for frames.
///
/// # Errors
/// Those of socketpair(2).
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Connects to a socket in the file system where a process of this account should listen. Another
/// account that may enter its directory might have put another socket there; the kernel says who
/// called listen(2) (SO_PEERCRED of unix(7)).
///
/// # Errors
/// Those of socket(2) and connect(2); `PermissionDenied`, which names the path and the account, if
/// another account listens.
pub fn connect(path: &Path, owner: u32) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // A process that listens and accepts nobody must not make us wait for that.
    rustix::net::connect(&socket, &address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    match peer(&socket)? {
        uid if uid == owner => Ok(socket),
        uid => {
            let text = format!(
                "uid {uid} listens at {}, where uid {owner} should: not used; end that process and remove the socket",
                path.display()
            );
            Err(Error::new(ErrorKind::PermissionDenied, text))
        }
    }
}

/// The account of the process at the other end: of the process that listens, has connected, or has
/// made the pair.
///
/// # Errors
/// Those of getsockopt(2), if the socket is not of this kind.
pub fn peer(socket: impl AsFd) -> Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// Sends `message`, and a copy of `fd` with it, without waiting for room.
///
/// # Errors
/// Those of sendmsg(2): `BrokenPipe` if the other side is gone, `WouldBlock` if it does not read.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let body = codec::encode_body(message).map_err(Error::other)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    retry(|| {
        rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(&body)],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    })?;
    Ok(())
}

/// Receives a message and the descriptor that came with it, waiting for them; `None` at the end of
/// the connection, also where the other side has left without reading everything that it was sent.
///
/// # Errors
/// Those of recvmsg(2), and `InvalidData` for bytes that are not such a message.
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

fn receive_with<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut body = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        retry(|| {
            rustix::net::recvmsg(
                &socket,
                &mut [IoSliceMut::new(&mut body)],
                &mut ancillary,
                flags,
            )
        })
    };
    let got = match receive() {
        // The kernel says once that the other side has left something unread (`unix_release_sock`),
        // and says it before it hands over the packets that came from there: those are next, then
        // the end.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => receive(),
        got => got,
    }?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let fd = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            fds.next()
        } else {
            None
        }
    });
    let message = codec::decode_exact(&body[..got.bytes])
        .map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
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
    use mezcal_common::message::engine::FromKeeper;
    use mezcal_common::model::ids::EngineIndex;
    use std::io::{Read, Write};

    /// A socket at which a thread of another account listens, as an account that gets into a shared
    /// directory might leave one.
    fn listener_of(uid: u32, path: std::path::PathBuf) -> OwnedFd {
        let listen = move || {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            );
            let socket = socket.expect("a socket");
            rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("a short path"))
                .expect("bound");
            // SAFETY: without glibc's wrapper this changes the calling thread alone, which ends
            // with it.
            assert_eq!(
                unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) },
                0
            );
            rustix::net::listen(&socket, 8).expect("listens");
            socket
        };
        std::thread::spawn(listen).join().expect("it listens")
    }

    #[test]
    fn a_socket_at_which_somebody_else_listens_is_not_used() {
        let us = rustix::process::geteuid().as_raw();
        let dir = tempfile::tempdir().expect("a directory");
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let _ours = listener_of(us, ours.clone());
        let connected = connect(&ours, us).expect("ours");
        assert_eq!(peer(&connected).expect("a peer"), us);
        assert_eq!(
            connect(&dir.path().join("none"), us)
                .expect_err("nobody")
                .kind(),
            ErrorKind::NotFound
        );
        if us != 0 {
            // Past libtest's capture: a skipped test is never silent.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED a_socket_at_which_somebody_else_listens_is_not_used: not root"
            );
            return;
        }
        let _theirs = listener_of(1, theirs.clone());
        let refused = connect(&theirs, us).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        let said = refused.to_string();
        assert!(
            said.contains("uid 1 listens") && said.contains(&theirs.display().to_string()),
            "{said}"
        );
    }

    #[test]
    fn a_descriptor_travels_with_its_packet() {
        let (a, b) = pair().expect("a pair");
        let (mine, theirs) = stream_pair().expect("a pair");
        let link = FromKeeper::Link {
            engine: EngineIndex(3),
        };
        send(&a, &link, Some(theirs.as_fd())).expect("sent");
        drop(theirs);
        let (message, fd) = receive::<FromKeeper>(&b)
            .expect("received")
            .expect("a packet");
        assert_eq!(message, link);
        let mut far = std::os::unix::net::UnixStream::from(fd.expect("a descriptor"));
        far.write_all(b"x").expect("written");
        let mut byte = [0];
        std::os::unix::net::UnixStream::from(mine)
            .read_exact(&mut byte)
            .expect("read");
        assert_eq!(&byte, b"x");
        drop(a);
        assert!(receive::<FromKeeper>(&b).expect("an end").is_none());
    }

    #[test]
    fn whoever_leaves_without_reading_has_still_said_what_it_said() {
        let (a, b) = pair().expect("a pair");
        let link = FromKeeper::Link {
            engine: EngineIndex(3),
        };
        send(&a, &link, None).expect("sent");
        send(&b, &link, None).expect("sent");
        drop(a);
        assert_eq!(
            receive::<FromKeeper>(&b)
                .expect("received")
                .expect("a packet")
                .0,
            link
        );
        assert!(receive::<FromKeeper>(&b).expect("an end").is_none());
    }
}
