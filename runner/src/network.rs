//! The network of a container that has its own: loopback, up.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{During, Result};

/// Brings the loopback interface of this network namespace up.
///
/// Preconditions: the process holds CAP_NET_ADMIN over the namespace.
pub fn loopback_up() -> Result<()> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .during("open a socket for the loopback interface")?;
    crate::sys::net::loopback_up(&socket).during("bring the loopback interface up")
}

/// The text of `/etc/hosts` for a container.
pub fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n")
}

/// The text of `/etc/resolv.conf` for a container: the host's, without name servers that only the host reaches.
pub fn resolv_conf(host: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(host.len());
    for line in host.split_inclusive(|byte| *byte == b'\n') {
        if !is_loopback_server(line) {
            text.extend_from_slice(line);
        }
    }
    text
}

fn is_loopback_server(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next() == Some(b"nameserver")
        && words.next().is_some_and(|word| word.starts_with(b"127.") || word == b"::1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_loopback_interface_are_dropped() {
        let host = b"search a\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\noptions x";
        assert_eq!(resolv_conf(host), b"search a\nnameserver 10.0.0.1\noptions x");
    }

    #[test]
    fn hosts_names_the_container() {
        assert!(hosts("web").lines().any(|line| line == "127.0.1.1\tweb"));
    }
}
