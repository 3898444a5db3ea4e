//! A directory as a page: HTML for people, JSON for programs.
//!
//! It owns the order of the entries and how they look. Reading the directory, leaving out what is hidden, and the bound on
//! the number of entries are left to the caller. The same entries, in whatever order they come, give the same bytes.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt::Write;

use percent_encoding::percent_encode;
use phalanx_shared::log::rfc3339;
use serde::Serialize;

use super::reply::NOT_IN_A_PATH;
use crate::http::Head;
use crate::http::weight::{self, Weight};

/// What is in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name's bytes, without a slash. What is not UTF-8 is shown with replacement characters and linked by its bytes.
    pub(super) name: Vec<u8>,
    /// It is a directory, or a link to one.
    pub(super) is_dir: bool,
    /// Bytes; shown for files only.
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1b1b;--bg:#fff;--dim:#666;--line:#ddd;--link:#0b57d0;--over:#f2f5fa}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e6e6;--bg:#16181b;--dim:#9aa0a6;--line:#33373c;--link:#8ab4f8;--over:#22262b}}\
body{margin:0 auto;padding:1rem;max-width:60rem;font:1rem/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg)}\
h1{font-size:1.25rem;margin:.5rem;overflow-wrap:anywhere}\
p{margin:.5rem;color:var(--dim)}\
table{width:100%;border-collapse:collapse}\
th{text-align:left;font-weight:600;color:var(--dim);padding:.5rem}\
tr{border-bottom:1px solid var(--line)}\
tbody tr:hover{background:var(--over)}\
td{padding:0 .5rem;color:var(--dim);white-space:nowrap}\
td:first-child{width:100%;white-space:normal;overflow-wrap:anywhere}\
td:nth-child(2),th:nth-child(2){text-align:right;font-variant-numeric:tabular-nums}\
a{display:block;padding:.65rem 0;min-height:1.5rem;color:var(--link);text-decoration:none}\
a:hover,a:focus{text-decoration:underline}\
@media(max-width:40rem){thead{display:none}tbody tr{display:grid;grid-template-columns:1fr auto}\
td:first-child{grid-column:1/3;width:auto}td:nth-child(2){grid-column:2;grid-row:2}td:nth-child(3){grid-column:1;grid-row:2}\
td{padding-bottom:.35rem}a{padding-bottom:.25rem}}";

/// The directory `path` (decoded, with its slashes) as an HTML page that needs nothing else. `truncated`: there is more
/// than `entries`.
pub(super) fn html(path: &str, entries: &[Entry], truncated: bool) -> String {
    let title = text(path.as_bytes());
    let mut page = String::with_capacity(STYLE.len() + 1024 + entries.len() * 256);
    let _infallible = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Index of {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Index of <bdi>{title}</bdi></h1>\n\
         <table>\n<thead><tr><th>Name</th><th>Size</th><th>Modified</th></tr></thead>\n<tbody>\n"
    );
    if path != "/" {
        page.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    sorted(entries).into_iter().for_each(|entry| row(&mut page, entry));
    page.push_str("</tbody>\n</table>\n");
    match (entries.len(), truncated) {
        (0, false) => page.push_str("<p>This directory is empty.</p>\n"),
        (_, false) => {}
        (shown, true) => {
            let _infallible =
                writeln!(page, "<p>Only {} entries are shown; there are more.</p>", grouped(shown as u64));
        }
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn row(page: &mut String, entry: &Entry) {
    let link = percent_encode(&entry.name, NOT_IN_A_PATH);
    let (name, slash) = (text(&entry.name), if entry.is_dir { "/" } else { "" });
    // A name that is told to run from right to left shall not turn what stands around it.
    let _infallible = write!(page, "<tr><td><a href=\"{link}{slash}\"><bdi>{name}</bdi>{slash}</a></td>");
    let _infallible = match (entry.is_dir, entry.size) {
        (true, _) => write!(page, "<td></td>"),
        (false, 1) => write!(page, "<td title=\"1 byte\">1 B</td>"),
        (false, size) => write!(page, "<td title=\"{} bytes\">{}</td>", grouped(size), human(size)),
    };
    let time = rfc3339(entry.modified);
    let (day, minute) = (&time[..10], &time[11..16]);
    let _infallible = writeln!(page, "<td><time datetime=\"{time}\">{day} {minute}</time></td></tr>");
}

/// The directory as JSON: `{"path", "entries": [{"name", "type": "file" | "directory", "size", "modified"}], "truncated"}`;
/// a directory's size is null, times are as RFC 3339 writes them.
pub(super) fn json(path: &str, entries: &[Entry], truncated: bool) -> String {
    let shown = |entry: &Entry| Shown {
        name: String::from_utf8_lossy(&entry.name).into_owned(),
        kind: if entry.is_dir { "directory" } else { "file" },
        size: (!entry.is_dir).then_some(entry.size),
        modified: rfc3339(entry.modified),
    };
    let page = Page { path, entries: sorted(entries).into_iter().map(shown).collect(), truncated };
    // Strings and numbers: nothing that JSON could not say.
    serde_json::to_string(&page).unwrap_or_default() + "\n"
}

/// A directory as programs see it.
#[derive(Serialize)]
struct Page<'a> {
    path: &'a str,
    entries: Vec<Shown>,
    truncated: bool,
}

/// An entry as programs see it.
#[derive(Serialize)]
struct Shown {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    size: Option<u64>,
    modified: String,
}

/// Whether the client would rather have JSON (RFC 9110, 12.5.1): only when it likes it better than HTML.
pub(super) fn wants_json(head: &Head<'_>) -> bool {
    let quality = |kind: &str, subtype: &str| {
        let ranges = head.header_lines("accept").flat_map(|line| line.split(|byte| *byte == b','));
        let matching = ranges.filter_map(|range| weigh(range, kind, subtype));
        // The most specific range decides; of two alike the better one.
        matching.max().map_or(0, |(_specificity, quality)| quality)
    };
    quality("application", "json") > quality("text", "html")
}

/// How closely a media range names a media type, and the quality in thousandths that it gives it; none when it names another
/// or is malformed. Parameters of the type are passed over.
fn weigh(range: &[u8], kind: &str, subtype: &str) -> Option<(u8, Weight)> {
    let mut parts = std::str::from_utf8(range).ok()?.split(';').map(|part| part.trim_matches([' ', '\t']));
    let (ours, theirs) = ((kind, subtype), parts.next()?.split_once('/')?);
    let same = |one: &str, other: &str| one.eq_ignore_ascii_case(other);
    let specificity = match theirs {
        ("*", "*") => 0,
        (kind, "*") if same(kind, ours.0) => 1,
        (kind, subtype) if same(kind, ours.0) && same(subtype, ours.1) => 2,
        _ => return None,
    };
    let weight = parts.find(|part| part.starts_with("q=") || part.starts_with("Q="));
    Some((specificity, weight.map_or(Some(1000), |part| weight::of(part.as_bytes()))?))
}

/// Directories first, then by name without regard to case; names that differ in nothing else by their bytes.
fn sorted(entries: &[Entry]) -> Vec<&Entry> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_cached_key(|entry| {
        (Reverse(entry.is_dir), String::from_utf8_lossy(&entry.name).to_lowercase(), entry.name.clone())
    });
    sorted
}

/// Bytes as text in HTML, between tags or in a quoted attribute; control characters are not shown.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    let lossy = String::from_utf8_lossy(bytes);
    let is_plain = |letter: char| !letter.is_control() && !matches!(letter, '&' | '<' | '>' | '"' | '\'');
    if lossy.chars().all(is_plain) {
        return lossy;
    }
    let mut escaped = String::with_capacity(lossy.len() + 16);
    for letter in lossy.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            letter => escaped.push(letter),
        }
    }
    escaped.into()
}

/// `1.4 MiB`: two or three digits of the largest unit that gives at least one.
fn human(size: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let (mut tenths, mut unit) = (size as f64 / 102.4, 0);
    // What would be rounded to 1024 of a unit is one of the next.
    while (tenths / 10.0).round() >= 1024.0 {
        (tenths, unit) = (tenths / 1024.0, unit + 1);
    }
    match tenths.round() {
        tenths if tenths < 100.0 => format!("{:.1} {}", tenths / 10.0, UNITS[unit]),
        _ => format!("{:.0} {}", tenths / 10.0, UNITS[unit]),
    }
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
