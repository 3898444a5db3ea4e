//! What tells one configuration from another, for whoever reloads.

use serde_json::Value;

use super::Config;
use super::units::show_duration;

/// The longest value that is shown whole, in characters.
const LONGEST: usize = 60;
/// Names of the configuration as resolved that the file has other names for.
const NAMES: [(&str, &str); 3] = [("sites", "site"), ("routes", "route"), ("action", "")];

/// Every value that differs, a line each: its place as the file names it, what it was and what it is.
#[must_use]
pub fn differences(before: &Config, after: &Config) -> Vec<String> {
    let tree = |config: &Config| {
        let listen = config.listen.iter().filter(|listen| !listen.leaving).cloned().collect();
        serde_json::to_value(Config { listen, ..config.clone() }).unwrap_or(Value::Null)
    };
    let mut found = Vec::new();
    compare("", &tree(before), &tree(after), &mut found);
    found
}

fn compare(place: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(old), Value::Object(new)) if shown(before).is_none() && shown(after).is_none() => {
            for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                if is_of_the_file(name) {
                    let (old, new) = (old.get(name).unwrap_or(&Value::Null), new.get(name).unwrap_or(&Value::Null));
                    compare(&below(place, name), old, new, found);
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.iter().chain(new).any(|it| it.is_object() || it.is_array()) => {
            for index in 0..old.len().max(new.len()) {
                let (old, new) = (old.get(index).unwrap_or(&Value::Null), new.get(index).unwrap_or(&Value::Null));
                compare(&format!("{place}[{index}]"), old, new, found);
            }
        }
        _ => found.push(format!("{place}: {} -> {}", show(before), show(after))),
    }
}

/// Where a listener sits is the service's own affair.
fn is_of_the_file(name: &str) -> bool {
    !matches!(name, "seat" | "leaving")
}

fn below(place: &str, name: &str) -> String {
    let name = NAMES.iter().find(|(ours, _)| *ours == name).map_or(name, |(_, theirs)| theirs);
    match (place, name) {
        (_, "") => place.to_owned(),
        ("", _) => name.to_lowercase(),
        _ => format!("{place}.{}", name.to_lowercase()),
    }
}

/// A value that stands for itself, though it is written as an object: a duration, or one of several kinds of a thing.
fn shown(value: &Value) -> Option<String> {
    let object = value.as_object()?;
    if let (Some(seconds), Some(nanoseconds), 2) = (number(object, "secs"), number(object, "nanos"), object.len()) {
        let milliseconds = seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000);
        let shown = if milliseconds == 0 { "0s".to_owned() } else { show_duration(milliseconds) };
        return Some(format!("\"{shown}\""));
    }
    let (name, inner) = object.iter().next().filter(|_| object.len() == 1)?;
    let is_kind = name.starts_with(|first: char| first.is_ascii_uppercase());
    (is_kind && !inner.is_object()).then(|| show(inner))
}

fn number(object: &serde_json::Map<String, Value>, name: &str) -> Option<u64> {
    object.get(name)?.as_u64()
}

fn show(value: &Value) -> String {
    let text = match (shown(value), value) {
        (Some(text), _) => text,
        (None, Value::Null) => "nothing".to_owned(),
        (None, Value::Object(object)) => {
            let parts = object.iter().filter(|(name, value)| is_of_the_file(name) && !value.is_null());
            let parts: Vec<String> =
                parts.map(|(name, value)| format!("{} = {}", name.to_lowercase(), show(value))).collect();
            format!("{{ {} }}", parts.join(", "))
        }
        (None, value) => value.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    const FILE: &str = r#"
[workers]
count = 2
drain_timeout = "10s"
[[listen]]
address = "127.0.0.1:80"
[[site]]
[[site.route]]
path = "/"
respond = { status = 200, body = "a" }
"#;

    fn differences_to(edit: impl Fn(&str) -> String) -> Vec<String> {
        let read = |text: &str| parse(text, Path::new("/p.toml"), super::super::Known::default()).unwrap();
        differences(&read(FILE), &read(&edit(FILE)))
    }

    #[test]
    fn a_file_differs_from_itself_in_nothing() {
        assert!(differences_to(str::to_owned).is_empty());
    }

    #[test]
    fn values_are_told_by_their_place_and_as_they_are_written() {
        let found = differences_to(|file| file.replace("count = 2", "count = \"auto\"").replace("10s", "1m"));
        assert_eq!(found, ["workers.count: 2 -> \"Auto\"", "workers.drain_timeout: \"10s\" -> \"1m\""]);
    }

    #[test]
    fn a_listener_that_is_on_its_way_out_is_gone() {
        let before = parse(FILE, Path::new("/p.toml"), super::super::Known::default()).unwrap();
        let mut after = before.clone();
        after.listen[0].leaving = true;
        let found = differences(&before, &after);
        assert!(found.len() == 1 && found[0].ends_with(" -> nothing"), "{found:?}");
    }

    #[test]
    fn listeners_and_routes_that_come_are_told() {
        let more = "[[listen]]\naddress = \"unix:/s\"\n";
        let found =
            differences_to(|file| file.replace("[[site]]\n", &format!("{more}[[site]]\n")).replace("\"a\"", "\"b\""));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("listen[1]: nothing -> ") && found[0].contains("\"/s\""), "{found:?}");
        assert_eq!(found[1], "site[0].route[0].respond.body: \"a\" -> \"b\"");
    }
}
