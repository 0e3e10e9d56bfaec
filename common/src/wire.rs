//! The wire: what processes say to each other, and how it gets there.
//!
//! Messages ([`crate::message`], [`enrol`]) are plain data. [`codec`] frames them; [`tls`] proves
//! who speaks; [`endpoint`] carries frames over QUIC. This is the only code that names quinn,
//! rustls and bincode, so each can be replaced.

pub mod bulk;
pub mod codec;
pub mod endpoint;
pub mod enrol;
pub mod tls;
