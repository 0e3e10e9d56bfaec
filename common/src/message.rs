//! What is said between the processes of a cluster. Only data: [`wire`](crate::wire) makes bytes of
//! it.

pub mod agent;
pub mod client;
pub mod engine;
