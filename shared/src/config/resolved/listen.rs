//! What listens: addresses, what is said before a request on them, and whose word on the client's address counts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Where it listens.
    pub address: ListenAddress,
    /// Whether each connection begins with a PROXY protocol header, version 1 or 2.
    pub proxy_protocol: bool,
    /// The peers whose word on the client's address is taken.
    pub trusted: Trusted,
    /// Where the slots have its sockets, and what the records of its connections call it: by the order of the file at first; the
    /// master gives it another when the file has changed while the service runs.
    pub seat: u8,
    /// No longer in the file: what is queued is accepted, nobody else is.
    pub leaving: bool,
}

/// The most listeners of a configuration.
pub const MOST_LISTENERS: usize = 128;

/// An address to listen on. Displays as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ListenAddress {
    /// An IP address with its port; port 0 is any free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket, absolute, at most 107 bytes.
    Unix(PathBuf),
}

/// Peers that are trusted to say who their client is; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// Where trusted peers of TCP listeners, and trusted proxies before them, have their addresses.
    pub networks: Vec<Network>,
    /// Whether the peers of a Unix socket, which have no address, are trusted.
    pub unix: bool,
}

/// A range of IP addresses: those whose first `prefix` bits are those of `address`. Displays as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bits behind the prefix are 0. Never an IPv4-mapped IPv6 address.
    pub address: IpAddr,
    /// At most 32 for an IPv4 address, 128 for an IPv6 address.
    pub prefix: u8,
}

impl From<ListenAddress> for Listen {
    /// A listener at its defaults.
    fn from(address: ListenAddress) -> Self {
        Self { address, proxy_protocol: false, trusted: Trusted::default(), seat: 0, leaving: false }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Trusted {
    /// Whether the address is in one of the networks.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}

impl Network {
    /// Whether the address is in the network. An IPv4-mapped IPv6 address counts as the IPv4 address it stands for.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        first_bits(address.to_canonical(), self.prefix) == Some(self.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The address with all bits behind the prefix set to 0; none: it has fewer bits than that.
pub(in crate::config) fn first_bits(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let behind = 32_u32.checked_sub(prefix.into())?;
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            Some(IpAddr::V4((address.to_bits() & mask).into()))
        }
        IpAddr::V6(address) => {
            let behind = 128_u32.checked_sub(prefix.into())?;
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            Some(IpAddr::V6((address.to_bits() & mask).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix: u8) -> Network {
        Network { address: address.parse().unwrap(), prefix }
    }

    #[test]
    fn a_network_holds_the_addresses_that_begin_as_it_does() {
        let cases = [
            ("10.0.0.0", 8, "10.255.1.2", true),
            ("10.0.0.0", 8, "11.0.0.0", false),
            ("10.0.0.0", 8, "::ffff:10.1.2.3", true),
            ("10.0.0.0", 8, "::10.1.2.3", false),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.2", false),
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "::1", false),
            ("::", 0, "2001:db8::1", true),
            ("::", 0, "203.0.113.9", false),
            ("::", 0, "::ffff:203.0.113.9", false),
            ("2001:db8::", 33, "2001:db8:7fff::1", true),
            ("2001:db8::", 33, "2001:db8:8000::1", false),
            ("::1", 128, "::1", true),
        ];
        for (base, prefix, address, expected) in cases {
            let network = network(base, prefix);
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{address} in {network}");
        }
    }

    #[test]
    fn a_network_longer_than_its_address_holds_nothing() {
        assert!(!network("10.0.0.0", 33).contains("10.0.0.0".parse().unwrap()));
        assert!(!network("::", 129).contains("::".parse().unwrap()));
    }
}
