//! The port on which a coordinator listens: with which credentials, or which process holds it.

use crate::exit::{Exit, chain};
use crate::service::versions::PROTOCOLS;
use mezcal_common::model::identity::Role;
use mezcal_common::wire::endpoint::{ListenError, Listener};
use mezcal_common::wire::tls::Credentials;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Reads a coordinator's credentials.
///
/// # Errors
/// Exit 3 naming the file.
pub fn credentials(identity: &Path) -> Result<Credentials, Exit> {
    Credentials::load(identity, Role::Coordinator).map_err(|e| Exit::unreachable(chain(&e)))
}

/// Listens for agents and clients with these credentials.
///
/// # Errors
/// Exit 3 naming the process that holds the address.
pub fn listen(address: SocketAddr, credentials: &Credentials) -> Result<Arc<Listener>, Exit> {
    Listener::bind(address, credentials, &PROTOCOLS)
        .map(Arc::new)
        .map_err(|e| {
            let holder = match &e {
                ListenError::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse => {
                    holder_of(address.port())
                }
                ListenError::Bind { .. } | ListenError::Credentials(_) => None,
            };
            Exit::unreachable(format!(
                "{}{}",
                chain(&e),
                holder.map_or(String::new(), |h| format!("; held by {h}"))
            ))
        })
}

/// The process that has a UDP port, as far as /proc shows it to us: the socket's inode from
/// /proc/net/udp{,6}, then the process that has it open.
pub(crate) fn holder_of(port: u16) -> Option<String> {
    let tables = ["/proc/net/udp", "/proc/net/udp6"]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables
        .iter()
        .flat_map(|t| t.lines().skip(1))
        .find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            (u16::from_str_radix(local, 16) == Ok(port))
                .then(|| fields.get(9).map(|i| (*i).to_owned()))?
        })?;
    let wanted = format!("socket:[{inode}]");
    let pid = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let mut open = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            open.any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|l| l.as_os_str() == wanted.as_str())
            })
            .then_some(pid)
        });
    let Some(pid) = pid else {
        return Some("a process of another user".into());
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!(
        "process {pid} ({})",
        mezcal_common::model::escape::for_terminal(words.trim_end())
    ))
}
