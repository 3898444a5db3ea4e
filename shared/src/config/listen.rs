//! The `[[listen]]` tables, and addresses in general.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::entry::Entry;
use super::network::trusted;
use super::problem::Refusal;
use super::resolved::{Listen, ListenAddress};
use super::source::{Seen, absolute_path};
use super::table::Table;

/// Bytes in the path of a Unix socket: the kernel's `sun_path` holds 108, the last is NUL (unix(7)).
const SOCKET_PATH_MOST: usize = 107;

/// Reads an address to listen on: `0.0.0.0:8080`, `[::1]:80`, `localhost:8080` (127.0.0.1), `:8080` or `8080` (every
/// IPv4 address), `unix:/path`. A relative path is taken from the current directory.
///
/// # Errors
/// What is wrong with the address and what to write instead, in one line.
pub fn parse_listen(text: &str) -> Result<ListenAddress, String> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    address(text, &here).map_err(|refusal| format!("{}; {}", refusal.text, refusal.hint))
}

pub(super) fn listeners(tables: Vec<Table<'_>>) -> Vec<Listen> {
    let mut seen = Seen::new();
    let mut listens: Vec<Listen> = tables.into_iter().filter_map(|table| listener(table, &mut seen)).collect();
    for (listen, seat) in listens.iter_mut().zip(0..=u8::MAX) {
        listen.seat = seat;
    }
    listens
}

fn listener(mut table: Table<'_>, seen: &mut Seen<ListenAddress>) -> Option<Listen> {
    let entry = table.required("address");
    let proxy_protocol = table.flag("proxy_protocol", false);
    let trusted = table.entry("trusted").and_then(|entry| trusted(&entry)).unwrap_or_default();
    table.finish();
    let entry = entry?;
    let written = entry.text("an address such as \"127.0.0.1:8080\"")?;
    let base = entry.source().path(".").ok()?;
    let address = entry.check(address(written, &base))?;
    refuse_repeated(&entry, &address, seen);
    Some(Listen { proxy_protocol, trusted, ..Listen::from(address) })
}

fn refuse_repeated(entry: &Entry<'_>, address: &ListenAddress, seen: &mut Seen<ListenAddress>) {
    if is_any_port(address) {
        return;
    }
    if let Some(first) = seen.before(address.clone(), entry.place()) {
        entry.refuse(format!("{address} is listened on already, see line {}", first.line), "remove one of the two");
    }
}

/// Port 0 is a different free port each time.
fn is_any_port(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::Tcp(address) if address.port() == 0)
}

fn address(text: &str, base: &Path) -> Result<ListenAddress, Refusal> {
    if let Some(path) = text.strip_prefix("unix:") {
        return absolute_path(path, base).and_then(check_socket_path).map(ListenAddress::Unix);
    }
    if is_number(text) {
        return Ok(ListenAddress::Tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port(text)?)));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Refusal::new(format!("{text:?} has no port"), format!("write \"[{text}]:8080\"")));
    }
    let Some((host, digits)) = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else {
        return Err(without_port(text));
    };
    Ok(ListenAddress::Tcp(SocketAddr::new(ip(host, digits)?, port(digits)?)))
}

fn without_port(text: &str) -> Refusal {
    let hint = match text.contains('/') || text.is_empty() {
        true => "write \"127.0.0.1:8080\", or \"unix:/path\" for a Unix socket".to_owned(),
        false => format!("write \"{text}:8080\""),
    };
    Refusal::new(format!("{text:?} has no port"), hint)
}

fn ip(host: &str, port: &str) -> Result<IpAddr, Refusal> {
    if host.is_empty() {
        return Ok(Ipv4Addr::UNSPECIFIED.into());
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let parsed = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::from).ok(),
        None => host.parse::<Ipv4Addr>().map(IpAddr::from).ok(),
    };
    parsed.ok_or_else(|| not_an_ip(host, port))
}

fn not_an_ip(host: &str, port: &str) -> Refusal {
    let hint = match host {
        "*" => format!("write \"0.0.0.0:{port}\" or \"[::]:{port}\""),
        _ if host.parse::<Ipv6Addr>().is_ok() => format!("write \"[{host}]:{port}\""),
        _ => "write an IP address with its port, such as \"127.0.0.1:8080\"; names are not looked up".to_owned(),
    };
    Refusal::new(format!("{host:?} is not an IP address"), hint)
}

fn port(digits: &str) -> Result<u16, Refusal> {
    let number = if is_number(digits) { digits.parse().ok() } else { None };
    number.ok_or_else(|| Refusal::new(format!("{digits:?} is not a port"), "a port is a number from 0 to 65535"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Passes the path of a Unix socket if the kernel can hold it.
pub(super) fn check_socket_path(path: PathBuf) -> Result<PathBuf, Refusal> {
    let length = OsStr::as_bytes(path.as_os_str()).len();
    if length > SOCKET_PATH_MOST {
        let text = format!("{} has {length} bytes, a socket's path at most {SOCKET_PATH_MOST}", path.display());
        return Err(Refusal::new(text, "use a shorter path, for example under /run"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_short_form() {
        let cases = [
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            ("[::1]:80", "[::1]:80"),
            (":8080", "0.0.0.0:8080"),
            ("8080", "0.0.0.0:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("unix:/run/p.sock", "unix:/run/p.sock"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_listen(text).unwrap().to_string(), expected);
        }
        let ListenAddress::Unix(path) = parse_listen("unix:p.sock").unwrap() else { panic!("not a Unix socket") };
        assert!(path.is_absolute(), "{path:?}");
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_MOST));
        let cases = [
            ("", "has no port; write \"127.0.0.1:8080\""),
            ("127.0.0.1", "has no port; write \"127.0.0.1:8080\""),
            ("[::1]", "has no port; write \"[::1]:8080\""),
            ("::1", "has no port; write \"[::1]:8080\""),
            ("fe80:0:0:0:1:2:3:4:80", "is not an IP address; write \"[fe80:0:0:0:1:2:3:4]:80\""),
            ("/run/p.sock", "\"unix:/path\" for a Unix socket"),
            ("unix:", "the path is empty"),
            ("example.org:80", "names are not looked up"),
            ("*:80", "write \"0.0.0.0:80\""),
            ("127.0.0.1:http", "\"http\" is not a port"),
            ("127.0.0.1:+80", "\"+80\" is not a port"),
            ("99999", "\"99999\" is not a port; a port is a number from 0 to 65535"),
            (&long, "has 108 bytes, a socket's path at most 107"),
        ];
        for (text, expected) in cases {
            let error = parse_listen(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
