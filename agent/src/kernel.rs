//! The only code that uses these interfaces of the kernel: control groups, packets with
//! descriptors, the descriptors and signals of our own processes, and the files of jobs.

pub(crate) mod cgroup;
pub(crate) mod descriptors;
pub mod packet;
pub(crate) mod paths;
pub mod signals;
