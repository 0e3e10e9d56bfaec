//! The only code that uses these interfaces of the kernel: control groups, packets with
//! descriptors, what our own processes are started with and are told by signals, and the files of
//! jobs.

pub(crate) mod cgroup;
pub(crate) mod descriptors;
pub mod packet;
pub(crate) mod paths;
pub mod signals;
