//! Header fields as an operator writes them: sound names and values, and none that the server sets itself.

use super::entry::{Entry, Pair};
use super::source::Seen;
use crate::field::{is_plain_value, is_token};

/// Fields of a route: they are sent with every answer.
const FIELDS_MOST: usize = 32;

/// Bytes of a route's fields with their colons and line ends: a client reads a head of 8 KiB, and half of it is ours.
const BYTES_MOST: usize = 4 << 10;

/// Fields that the server sets, in lower case, and what to do instead of writing them; empty: there is nothing to do.
const OWNED: &[(&str, &str)] = &[
    ("accept-ranges", ""),
    ("cache-control", "write cache_control = \"…\" on the route"),
    ("connection", ""),
    ("content-encoding", "see compress and precompressed in files = { … }"),
    ("content-length", ""),
    ("content-range", ""),
    ("content-type", "write type in respond = { … }, or charset beside files = { … }"),
    ("date", ""),
    ("etag", ""),
    ("keep-alive", ""),
    ("last-modified", ""),
    ("location", "use redirect = { … }"),
    ("server", ""),
    ("te", ""),
    ("trailer", ""),
    ("transfer-encoding", ""),
    ("upgrade", ""),
    ("vary", ""),
];

/// The `headers` of a route.
pub(super) fn headers(entry: &Entry<'_>) -> Option<Vec<(String, String)>> {
    let pairs = entry.pairs("a table such as { \"X-Frame-Options\" = \"DENY\" }")?;
    let mut seen = Seen::new();
    let mut headers = Vec::new();
    for pair in &pairs {
        let (name, value) = (name(pair, &mut seen), header_value(&pair.value, "a header value"));
        headers.extend(name.zip(value));
    }
    check_total(entry, &headers);
    Some(headers)
}

fn check_total(entry: &Entry<'_>, headers: &[(String, String)]) {
    if headers.len() > FIELDS_MOST {
        let text = format!("{} headers are more than {FIELDS_MOST}", headers.len());
        return entry.refuse(text, "keep the ones that matter: each is sent with every answer");
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + ": ".len() + value.len() + "\r\n".len()).sum();
    if bytes > BYTES_MOST {
        let text = format!("these headers have {bytes} bytes together, more than {BYTES_MOST}");
        entry.refuse(text, "shorten them: they are sent with every answer");
    }
}

fn name(pair: &Pair<'_>, seen: &mut Seen<String>) -> Option<String> {
    if !is_token(pair.name) {
        let text = format!("{:?} is not the name of a header", pair.name);
        pair.refuse_name(text, "write letters, digits and \"-\", as in \"X-Frame-Options\"");
        return None;
    }
    let lower = pair.name.to_ascii_lowercase();
    if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| *owned == lower) {
        let hint = if instead.is_empty() { "remove it" } else { instead };
        pair.refuse_name(format!("the server sets {} itself", pair.name), hint);
        return None;
    }
    if let Some(first) = seen.before(lower, pair.place()) {
        let text = format!("{} is set already, see line {} (case makes no difference)", pair.name, first.line);
        pair.refuse_name(text, "remove one of the two");
        return None;
    }
    Some(pair.name.to_owned())
}

/// A field value.
pub(super) fn header_value(entry: &Entry<'_>, what: &str) -> Option<String> {
    let written = entry.text(what)?;
    let sound = is_plain_value(written);
    if !sound {
        let hint = format!("write {what} in ASCII, without control characters and without spaces around it");
        entry.refuse(format!("{written:?} cannot stand in a header"), hint);
    }
    sound.then(|| written.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_names_are_in_lower_case_and_in_order() {
        assert!(OWNED.is_sorted_by(|a, b| a.0 < b.0));
        assert!(OWNED.iter().all(|(name, _)| is_token(name) && *name == name.to_ascii_lowercase()));
    }
}
