//! The `[[site]]` tables and their host names.

use std::net::Ipv6Addr;

use super::entry::Entry;
use super::problem::Refusal;
use super::resolved::{KnownApp, Site};
use super::route;
use super::source::Seen;
use super::table::Table;
use super::written::ROUTE;

/// Bytes of a host name and of one of its labels (RFC 1035, section 2.3.4, less two for the text form).
const NAME_MOST: usize = 253;
const LABEL_MOST: usize = 63;

/// What routes may do that not every service lets them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permitted<'a> {
    /// Break their worker on purpose, see `workers.allow_faults`.
    pub(super) faults: bool,
    /// Lead to these.
    pub(super) apps: &'a [KnownApp],
}

/// Hosts that sites met so far answer for; none stands for every host.
type SeenHosts = Seen<Option<String>>;

pub(super) fn sites(tables: Vec<Table<'_>>, permitted: Permitted<'_>) -> Vec<Site> {
    let mut seen = SeenHosts::new();
    tables.into_iter().map(|table| site(table, permitted, &mut seen)).collect()
}

fn site(mut table: Table<'_>, permitted: Permitted<'_>, seen: &mut SeenHosts) -> Site {
    let hosts = match table.entry("hosts") {
        Some(entry) => hosts(&entry, seen),
        None => every_host(&table, seen),
    };
    if !table.has("route") {
        table.refuse("this site has no [[site.route]]", "add [[site.route]] with a path and what to answer");
    }
    let routes = route::routes(table.tables("route", &ROUTE), permitted);
    table.finish();
    Site { hosts, routes }
}

fn every_host(table: &Table<'_>, seen: &mut SeenHosts) -> Vec<String> {
    if let Some(first) = seen.before(None, table.place()) {
        let text = format!("a second site without hosts, the first is on line {}", first.line);
        table.refuse(text, "give one of them hosts, or make them one site");
    }
    Vec::new()
}

fn hosts(entry: &Entry<'_>, seen: &mut SeenHosts) -> Vec<String> {
    let Some(entries) = entry.list("a list of host names") else { return Vec::new() };
    if entries.is_empty() {
        entry.refuse("the list is empty", "name a host, or leave hosts out to answer for every host");
    }
    entries.iter().filter_map(|entry| host(entry, seen)).collect()
}

fn host(entry: &Entry<'_>, seen: &mut SeenHosts) -> Option<String> {
    let host = entry.check(host_name(entry.text("a host name")?))?;
    if let Some(first) = seen.before(Some(host.clone()), entry.place()) {
        let text = format!("host {host:?} is taken already, see line {}", first.line);
        entry.refuse(text, "a host belongs to one site: remove it from the other, or put the routes together");
    }
    Some(host)
}

/// The host name in lower case, if it is one: `example.org`, `*.example.org`, `127.0.0.1`, `[::1]`.
fn host_name(written: &str) -> Result<String, Refusal> {
    let name = written.to_ascii_lowercase();
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => Ok(format!("[{address}]")),
            Err(_) => Err(not_a_host(written)),
        };
    }
    let suffix = name.strip_prefix("*.").unwrap_or(&name);
    let sound = suffix.len() <= NAME_MOST && suffix.split('.').all(is_label);
    if sound { Ok(name) } else { Err(not_a_host(written)) }
}

fn is_label(label: &str) -> bool {
    let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let edges = label.starts_with('-') || label.ends_with('-');
    letters && !edges && (1..=LABEL_MOST).contains(&label.len())
}

fn not_a_host(written: &str) -> Refusal {
    let hint = if written == "*" {
        "leave hosts out to answer for every host"
    } else if !written.is_ascii() {
        "write the name in its ASCII form (xn--…)"
    } else if written.contains("://") || written.contains('/') {
        "write the name alone, without scheme and path"
    } else if written.contains(':') {
        "write the name without port; an IPv6 address in brackets"
    } else if written.ends_with('.') {
        "write the name without the dot at its end"
    } else {
        "write a name such as \"example.org\" or \"*.example.org\""
    };
    Refusal::new(format!("{written:?} is not a host name"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_lower_cased() {
        let cases = [
            ("Example.ORG", "example.org"),
            ("*.Example.org", "*.example.org"),
            ("localhost", "localhost"),
            ("my_host-1", "my_host-1"),
            ("127.0.0.1", "127.0.0.1"),
            ("[0:0::1]", "[::1]"),
        ];
        for (written, expected) in cases {
            assert_eq!(host_name(written).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_host_name_is_refused_with_what_to_write() {
        let (label, name) = ("x".repeat(64), ["abcdefg"; 32].join("."));
        let cases = [
            ("", "such as"),
            ("*", "leave hosts out"),
            ("a.*.org", "such as"),
            ("a..b", "such as"),
            ("-a.org", "such as"),
            ("a b", "such as"),
            ("example.org.", "without the dot"),
            ("example.org:80", "without port"),
            ("http://example.org", "without scheme"),
            ("bücher.example", "ASCII form"),
            ("[::g]", "without port"),
            (&label, "such as"),
            (&name, "such as"),
        ];
        for (written, hint) in cases {
            let refusal = host_name(written).unwrap_err();
            assert!(refusal.hint.contains(hint), "{written}: {refusal:?}");
        }
    }
}
