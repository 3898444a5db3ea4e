//! The `[[site.route]]` tables: a path, the one thing that answers it, and what goes with every answer.

use super::action;
use super::headers::{header_value, headers};
use super::problem::Refusal;
use super::rate::limit;
use super::resolved::{Route, RoutePath};
use super::site::Permitted;
use super::source::Seen;
use super::table::Table;
use super::written::LIMIT;

/// The keys of which a route has exactly one; `proxy` is planned, and reported as such.
const ACTIONS: [&str; 7] = ["files", "respond", "redirect", "app", "health", "fault", "proxy"];

/// What `cache_control` holds.
const CACHE_CONTROL: &str = "a Cache-Control value such as \"max-age=3600\"";

/// The routes of one site. A route with a problem may be left out.
pub(super) fn routes(tables: Vec<Table<'_>>, permitted: Permitted<'_>) -> Vec<Route> {
    let mut seen = Seen::new();
    tables.into_iter().filter_map(|table| route(table, permitted, &mut seen)).collect()
}

fn route(mut table: Table<'_>, permitted: Permitted<'_>, seen: &mut Seen<RoutePath>) -> Option<Route> {
    check_one_action(&table);
    let path = path(&mut table, seen);
    let action = action::action(&mut table, permitted);
    let headers = table.entry("headers").and_then(|entry| headers(&entry)).unwrap_or_default();
    let cache_control = table.entry("cache_control").and_then(|entry| header_value(&entry, CACHE_CONTROL));
    let limit = table.optional("limit", &LIMIT).and_then(limit);
    table.finish();
    Some(Route { path: path?, action: action?, headers, cache_control, limit })
}

fn check_one_action(table: &Table<'_>) {
    let written: Vec<&str> = ACTIONS.into_iter().filter(|action| table.has(action)).collect();
    match written.as_slice() {
        [] => table.refuse("this route has no action", "add one of files, respond and redirect"),
        [_] => {}
        [.., last] => {
            let text = format!("a route has one action, this one has {}", written.join(" and "));
            table.refuse_key(last, text, "keep one, and give the other a [[site.route]] of its own");
        }
    }
}

fn path(table: &mut Table<'_>, seen: &mut Seen<RoutePath>) -> Option<RoutePath> {
    let entry = table.required("path")?;
    let path = entry.check(route_path(entry.text("a path such as \"/\"")?))?;
    if let Some(first) = seen.before(path.clone(), entry.place()) {
        let text =
            format!("path {path:?} is routed already in this site, see line {}", first.line, path = path.to_string());
        entry.refuse(text, "remove one of the two routes, or change its path");
    }
    Some(path)
}

/// Reads a path as a route has it: `/x` is the beginning of a path, `= /x` a whole one.
///
/// # Errors
/// What is wrong with it and what to write instead, in one line.
pub fn parse_route_path(written: &str) -> Result<RoutePath, String> {
    route_path(written).map_err(|refusal| format!("{}; {}", refusal.text, refusal.hint))
}

/// `/x` is the beginning of a path, `= /x` a whole one.
fn route_path(written: &str) -> Result<RoutePath, Refusal> {
    let (exact, path) = match written.strip_prefix('=') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, written),
    };
    if !path.starts_with('/') {
        let hint = format!("write \"/{}\"", path.trim_start());
        return Err(Refusal::new(format!("the path {written:?} does not start with \"/\""), hint));
    }
    if let Some(odd) = path.chars().find(|c| matches!(c, '?' | '#') || c.is_control() || c.is_whitespace()) {
        let hint = "write the path alone: no query, no fragment, no spaces, no control characters";
        return Err(Refusal::new(format!("the path {written:?} has {odd:?} in it, which no request can match"), hint));
    }
    Ok(if exact { RoutePath::Exact(path.to_owned()) } else { RoutePath::Prefix(path.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_beginning_unless_it_has_an_equals_sign() {
        assert_eq!(route_path("/").unwrap(), RoutePath::Prefix("/".into()));
        assert_eq!(route_path("= /x").unwrap(), RoutePath::Exact("/x".into()));
        assert_eq!(route_path("=/x").unwrap(), RoutePath::Exact("/x".into()));
    }

    #[test]
    fn what_no_request_can_match_is_refused() {
        let cases = [
            ("", "write \"/\""),
            ("x", "write \"/x\""),
            ("= x", "write \"/x\""),
            ("/a?b", "no query"),
            ("/a#b", "no fragment"),
            ("/a b", "no spaces"),
            ("/a\n", "no control characters"),
        ];
        for (written, hint) in cases {
            let refusal = route_path(written).unwrap_err();
            assert!(refusal.hint.contains(hint), "{written}: {refusal:?}");
        }
    }
}
