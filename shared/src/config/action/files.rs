//! How a route serves files: the `files` table, and the keys beside it that are for routes with files only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::entry::{Entry, Pair};
use super::super::nearest::nearest;
use super::super::problem::Refusal;
use super::super::resolved::FilesAction;
use super::super::table::Table;
use super::super::written::FILES;
use crate::field::is_token;

/// Characters of a charset's name (RFC 2978, section 2.3).
const CHARSET_MOST: usize = 40;

/// Patterns of a route: the path of every request is held against each of them.
const DENY_MOST: usize = 64;

/// The files of the route, if it has some that are sound.
pub(super) fn files(route: &mut Table<'_>) -> Option<FilesAction> {
    let files = route.optional("files", &FILES).and_then(below_the_key);
    let charset = of_files(route, "charset").map(|entry| charset(&entry));
    let deny = of_files(route, "deny").and_then(|entry| deny(&entry));
    let error_pages = of_files(route, "error_pages").and_then(|entry| error_pages(&entry));
    let files = files?;
    Some(FilesAction {
        charset: charset.unwrap_or(files.charset),
        deny: deny.unwrap_or(files.deny),
        error_pages: error_pages.unwrap_or(files.error_pages),
        ..files
    })
}

/// What `files = { … }` says, the rest at its default.
fn below_the_key(mut table: Table<'_>) -> Option<FilesAction> {
    let root = table.required("root").and_then(|entry| root(&entry));
    let defaults = FilesAction::new(root.clone().unwrap_or_default());
    let files = FilesAction {
        index: table.entry("index").and_then(|entry| index(&entry)).unwrap_or(defaults.index),
        listing: table.flag("listing", defaults.listing),
        fallback: table.entry("fallback").and_then(|entry| path_below_root(&entry)),
        compress: table.flag("compress", defaults.compress),
        precompressed: table.flag("precompressed", defaults.precompressed),
        ..defaults
    };
    table.finish();
    root.map(|_| files)
}

/// The value of a key beside `files`.
fn of_files<'a>(route: &mut Table<'a>, name: &'static str) -> Option<Entry<'a>> {
    let entry = route.entry(name)?;
    if route.has("files") {
        return Some(entry);
    }
    entry.refuse("only a route with files has this key", format!("remove {name}, or serve files on this route"));
    None
}

fn root(entry: &Entry<'_>) -> Option<PathBuf> {
    let path = entry.check(entry.source().path(entry.text("a directory")?))?;
    if path.is_dir() {
        return Some(path);
    }
    let shown = path.display();
    if path.exists() {
        entry.refuse(format!("{shown} is not a directory"), "name the directory the files are in");
    } else {
        entry.refuse(format!("there is no directory {shown}"), "create it, or correct the path");
    }
    None
}

fn index(entry: &Entry<'_>) -> Option<Vec<String>> {
    let names = entry.list("a list of file names")?;
    Some(names.iter().filter_map(|entry| entry.check(file_name(entry.text("a file name")?))).collect())
}

fn file_name(written: &str) -> Result<String, Refusal> {
    if matches!(written, "" | "." | "..") || written.contains(['/', '\0']) {
        return Err(Refusal::new(format!("{written:?} is not a file name"), "write a name without \"/\""));
    }
    Ok(written.to_owned())
}

fn charset(entry: &Entry<'_>) -> Option<String> {
    let written = entry.text("a charset such as \"utf-8\", or \"off\"")?;
    if written == "off" {
        return None;
    }
    if let Some(meant) = nearest(written, ["off"]) {
        entry.refuse(format!("unknown charset {written:?}"), format!("did you mean \"{meant}\"?"));
        return None;
    }
    if written.len() > CHARSET_MOST || !is_token(written) {
        entry.refuse(format!("{written:?} is not a charset"), "write a name such as \"utf-8\", or \"off\" for none");
        return None;
    }
    Some(written.to_owned())
}

fn deny(entry: &Entry<'_>) -> Option<Vec<String>> {
    let patterns = entry.list("a list of patterns such as [\".*\"]")?;
    if patterns.len() > DENY_MOST {
        let text = format!("{} patterns are more than {DENY_MOST}", patterns.len());
        entry.refuse(text, "put some together with * and ?: every request is held against each of them");
    }
    Some(patterns.iter().filter_map(|entry| entry.check(pattern(entry.text("a pattern")?))).collect())
}

/// `.*` is held against each segment of a path, `/private/*` against the whole of it.
fn pattern(written: &str) -> Result<String, Refusal> {
    if written.is_empty() {
        return Err(Refusal::new("the pattern is empty", "remove it: it matches nothing"));
    }
    if written.contains('/') && !written.starts_with('/') {
        let hint =
            format!("write \"/{written}\" to match whole paths, or a pattern without \"/\" to match parts of them");
        return Err(Refusal::new(format!("the pattern {written:?} has a \"/\" and does not start with it"), hint));
    }
    Ok(written.to_owned())
}

fn error_pages(entry: &Entry<'_>) -> Option<BTreeMap<u16, String>> {
    let pairs = entry.pairs("a table such as { 404 = \"/404.html\" }")?;
    let mut pages = BTreeMap::new();
    for pair in &pairs {
        let (status, path) = (error_status(pair), path_below_root(&pair.value));
        pages.extend(status.zip(path));
    }
    Some(pages)
}

fn error_status(pair: &Pair<'_>) -> Option<u16> {
    let digits = pair.name.len() == 3 && pair.name.bytes().all(|byte| byte.is_ascii_digit());
    let status = if digits { pair.name.parse().ok() } else { None };
    let error = status.filter(|status| (400..=599).contains(status));
    if error.is_none() {
        pair.refuse_name(format!("{:?} is not the status of an error", pair.name), "use 400 to 599");
    }
    error
}

fn path_below_root(entry: &Entry<'_>) -> Option<String> {
    let written = entry.text("a path such as \"/index.html\"")?;
    entry.check(check_path_below_root(written))
}

fn check_path_below_root(written: &str) -> Result<String, Refusal> {
    if !written.starts_with('/') {
        let hint = format!("write \"/{written}\": the path below the route's root");
        return Err(Refusal::new(format!("the path {written:?} does not start with \"/\""), hint));
    }
    if written.split('/').any(|segment| segment == "..") {
        return Err(Refusal::new(
            format!("the path {written:?} has \"..\" in it"),
            "write the path from the root down",
        ));
    }
    if written.contains('\0') {
        return Err(Refusal::new("the path has a NUL character", "remove the \\u0000: no path on Linux can have one"));
    }
    Ok(written.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_a_slash_at_their_start_or_none() {
        for written in [".*", "*.bak", "?", "/private/*", "/", "/a/b?"] {
            assert_eq!(pattern(written).unwrap(), written);
        }
        assert!(pattern("a/").unwrap_err().hint.starts_with("write \"/a/\" "));
        assert!(pattern("").unwrap_err().text.contains("empty"));
    }

    #[test]
    fn paths_below_the_root_do_not_leave_it() {
        for written in ["/", "/404.html", "/a..b/..c", "/errors/404.html"] {
            assert_eq!(check_path_below_root(written).unwrap(), written);
        }
        for written in ["/..", "/a/../b", "/a/..", "..", "", "/a\0"] {
            assert!(check_path_below_root(written).is_err(), "{written:?}");
        }
    }
}
