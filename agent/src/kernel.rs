//! The only code that uses these interfaces of the kernel: control groups, packets with
//! descriptors, and the files of jobs.

pub(crate) mod cgroup;
pub mod packet;
pub(crate) mod paths;
