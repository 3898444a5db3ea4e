//! Networks as written: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::net::IpAddr;
use std::str::FromStr;

use super::entry::Entry;
use super::nearest::nearest;
use super::problem::Refusal;
use super::resolved::{Network, Trusted, first_bits};

/// The word for the peers of a Unix socket.
const UNIX: &str = "unix";

/// The bits of a prefix that every IPv4-mapped IPv6 address has (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// The `trusted` of a listener.
pub(super) fn trusted(entry: &Entry<'_>) -> Option<Trusted> {
    let entries = entry.list("a list such as [\"10.0.0.0/8\", \"unix\"]")?;
    let mut trusted = Trusted::default();
    for entry in &entries {
        match entry.text("a network such as \"10.0.0.0/8\", or \"unix\"") {
            Some(UNIX) => trusted.unix = true,
            Some(written) => trusted.networks.extend(entry.check(network(written))),
            None => {}
        }
    }
    Some(trusted)
}

impl FromStr for Network {
    type Err = String;

    /// Reads a network, `10.0.0.0/8`, or an address, which is a network of one. An IPv4-mapped IPv6 network is the IPv4
    /// network it stands for.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, in one line.
    fn from_str(text: &str) -> Result<Network, String> {
        network(text).map_err(|refusal| format!("{}; {}", refusal.text, refusal.hint))
    }
}

fn network(written: &str) -> Result<Network, Refusal> {
    let (before, digits) = match written.split_once('/') {
        Some((before, digits)) => (before, Some(digits)),
        None => (written, None),
    };
    let address: IpAddr = before.parse().map_err(|_| not_a_network(written, before))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match digits {
        Some(digits) => prefix(written, digits, most)?,
        None => most,
    };
    match first_bits(address, prefix) {
        Some(first) if first == address => Ok(canonical(Network { address, prefix })),
        first => Err(bits_behind(written, address, first.unwrap_or(address), prefix)),
    }
}

fn prefix(written: &str, digits: &str, most: u8) -> Result<u8, Refusal> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u8>());
    match number {
        Some(Ok(prefix)) if prefix <= most => Ok(prefix),
        _ => {
            let text = format!("{written:?} has the prefix {digits:?}");
            Err(Refusal::new(text, format!("a prefix is a number of bits, here from 0 to {most}")))
        }
    }
}

fn bits_behind(written: &str, address: IpAddr, first: IpAddr, prefix: u8) -> Refusal {
    let text = format!("the network {written:?} has bits set behind its prefix");
    Refusal::new(text, format!("write \"{first}/{prefix}\" for the network, or \"{address}\" for the one address"))
}

/// The IPv4 network that an IPv4-mapped one stands for. With a prefix shorter than [`MAPPED`] it would have bits behind
/// it, and not be here.
fn canonical(network: Network) -> Network {
    let address = network.address.to_canonical();
    let mapped = address != network.address;
    Network { address, prefix: if mapped { network.prefix.saturating_sub(MAPPED) } else { network.prefix } }
}

fn not_a_network(written: &str, address: &str) -> Refusal {
    let bare = address.trim_matches(['[', ']']);
    let hint = if let Some(meant) = nearest(written, [UNIX]) {
        format!("did you mean \"{meant}\"?")
    } else if written.starts_with("unix:") {
        "write \"unix\" to trust the peers of a Unix socket".to_owned()
    } else if matches!(written, "*" | "all" | "any") {
        "write \"0.0.0.0/0\" and \"::/0\", if everybody may say who they are".to_owned()
    } else if written == "localhost" {
        "write \"127.0.0.0/8\" and \"::1\"; names are not looked up".to_owned()
    } else if bare.parse::<IpAddr>().is_ok() {
        format!("write \"{}\"", written.replace(['[', ']'], ""))
    } else if written.parse::<std::net::SocketAddr>().is_ok() {
        "write the address without its port".to_owned()
    } else {
        "write a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address; names are not looked up".to_owned()
    };
    Refusal::new(format!("{written:?} is not a network"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_with_and_without_prefix() {
        let cases = [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
        ];
        for (written, expected) in cases {
            assert_eq!(written.parse::<Network>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_to_write() {
        let cases = [
            ("", "such as \"10.0.0.0/8\""),
            ("10/8", "such as \"10.0.0.0/8\""),
            ("010.0.0.0/8", "such as \"10.0.0.0/8\""),
            ("example.org", "names are not looked up"),
            ("localhost", "write \"127.0.0.0/8\" and \"::1\""),
            ("*", "write \"0.0.0.0/0\" and \"::/0\""),
            ("[::1]", "write \"::1\""),
            ("[2001:db8::]/32", "write \"2001:db8::/32\""),
            ("127.0.0.1:80", "without its port"),
            ("[::1]:80", "without its port"),
            ("Unix", "did you mean \"unix\"?"),
            ("unix:/run/p.sock", "write \"unix\" to trust"),
            ("10.0.0.0/", "has the prefix \"\"; a prefix is a number of bits, here from 0 to 32"),
            ("10.0.0.0/33", "has the prefix \"33\""),
            ("10.0.0.0/+8", "has the prefix \"+8\""),
            ("10.0.0.0/255.0.0.0", "has the prefix \"255.0.0.0\""),
            ("::/129", "here from 0 to 128"),
            ("10.0.0.1/8", "write \"10.0.0.0/8\" for the network, or \"10.0.0.1\" for the one address"),
            ("2001:db8::1/32", "write \"2001:db8::/32\" for the network"),
            ("::ffff:10.0.0.0/95", "has bits set behind its prefix"),
        ];
        for (written, expected) in cases {
            let error = written.parse::<Network>().unwrap_err();
            assert!(error.contains(expected), "{written}: {error}");
        }
    }
}
