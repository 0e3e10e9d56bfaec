//! The messages to keepers of engines, and the numbers that tell keepers from any others.

use crate::kernel::packet;
use mezcal_common::message::engine::ToKeeper;
use mezcal_common::system::proc;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io::ErrorKind;

/// Messages that may wait for a keeper; beyond this number the oldest is dropped.
const WAITING: usize = 1024;

/// The keepers of a host, by the numbers of their sets.
pub(super) struct Keepers(Vec<Keeper>);

impl Keepers {
    pub(super) fn new(sockets: Vec<OwnedFd>) -> Self {
        Self(sockets.into_iter().map(Keeper::new).collect())
    }

    /// There is a keeper of this set: the first, or another one.
    pub(super) fn put(&mut self, set: usize, socket: OwnedFd) {
        let keeper = Keeper::new(socket);
        match self.0.get_mut(set) {
            Some(place) => *place = keeper,
            None => self.0.push(keeper),
        }
    }

    pub(super) fn tell(&mut self, set: usize, message: ToKeeper) {
        if let Some(keeper) = self.0.get_mut(set) {
            keeper.tell(Some(message));
        }
    }

    pub(super) fn tell_all(&mut self, message: &ToKeeper) {
        let say = |keeper: &mut Keeper| keeper.tell(Some(message.clone()));
        self.0.iter_mut().for_each(say);
    }

    /// Hands over as much as their sockets take.
    pub(super) fn flush(&mut self) {
        self.0.iter_mut().for_each(|keeper| keeper.tell(None));
    }

    pub(super) fn hang_up(&mut self, set: usize) {
        if let Some(keeper) = self.0.get_mut(set) {
            keeper.hang_up();
        }
    }

    pub(super) fn hang_up_all(&mut self) {
        self.0.iter_mut().for_each(Keeper::hang_up);
    }
}

/// A keeper, and the messages that its socket has not taken.
struct Keeper {
    socket: Option<OwnedFd>,
    waiting: VecDeque<ToKeeper>,
}

impl Keeper {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            waiting: VecDeque::new(),
        }
    }

    /// Hands over as much as the socket takes. A stopped keeper may miss the oldest messages; a
    /// lease is sent again and again.
    fn tell(&mut self, message: Option<ToKeeper>) {
        let Some(socket) = &self.socket else { return };
        self.waiting.extend(message);
        while let Some(message) = self.waiting.front() {
            // A keeper that is gone is noticed by the thread that listens to it.
            let full = packet::send(socket, message, None)
                .is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
            if full && self.waiting.len() < WAITING {
                break;
            }
            self.waiting.pop_front();
        }
    }

    fn hang_up(&mut self) {
        self.waiting.clear();
        if let Some(socket) = self.socket.take() {
            // The thread that listens has the socket, too.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}

/// A number that tells these keepers from any others on this boot.
pub(super) fn number(keepers: &[OwnedFd]) -> Option<u64> {
    let numbers = keepers
        .iter()
        .map(number_of)
        .collect::<Option<Vec<u64>>>()?;
    // One keeper's number is its own.
    numbers
        .into_iter()
        .reduce(|all, number| all.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number)
}

/// A number that tells one keeper from any other on this boot.
fn number_of(socket: &OwnedFd) -> Option<u64> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    proc::unique_number(peer.pid.as_raw_nonzero().get())
}
