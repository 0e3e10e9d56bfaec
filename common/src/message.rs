//! Messages between the processes of a cluster. Only data: [`wire`](crate::wire) encodes it.

pub mod agent;
pub mod client;
pub mod engine;
