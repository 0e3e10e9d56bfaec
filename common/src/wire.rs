//! The wire: the messages between processes, and their transport.
//!
//! Messages ([`crate::message`], [`enrol`]) are plain data. [`codec`] frames them; [`tls`] proves
//! who speaks; [`endpoint`] carries frames over QUIC. No other code names quinn, rustls and
//! bincode, so each can be replaced.

pub mod bulk;
pub mod codec;
pub mod endpoint;
pub mod enrol;
pub mod tls;
