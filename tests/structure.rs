//! Sentences of ARCHITECTURE.md about what each part must not know, held against the source.

use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Rust files below a directory, with their text.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut ahead = vec![root().join(below)];
    while let Some(directory) = ahead.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                ahead.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// Lines of code that hold one of `words`, as `path:line: text`. Comments may name anything.
fn mentions(below: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(below) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_code_has_one_home() {
    let words = ["{", "fn", "impl", "extern"].map(|kind| ["unsafe", kind].join(" "));
    let words = words.each_ref().map(String::as_str);
    let all = ["master/src", "worker/src", "shared/src", "tests", "examples"].map(|below| mentions(below, &words));
    let home = root().join("shared/src/sys").display().to_string();
    let elsewhere: Vec<String> = all.concat().into_iter().filter(|place| !place.starts_with(&home)).collect();
    assert_none(&elsewhere);
}

#[test]
fn the_protocol_core_knows_no_descriptor() {
    assert!(!sources("worker/src/http").is_empty());
    assert_none(&mentions(
        "worker/src/http",
        &["RawFd", "OwnedFd", "BorrowedFd", "std::net::Tcp", "std::os::", "nix::", "libc::", "socket2"],
    ));
}

#[test]
fn the_event_loop_knows_no_http() {
    assert!(!sources("worker/src/event").is_empty());
    assert_none(&mentions("worker/src/event", &["http"]));
}

#[test]
fn the_master_parses_no_http() {
    assert_none(&mentions("master/src", &["httparse", "phalanx_worker::http"]));
    let manifest = fs::read_to_string(root().join("master/Cargo.toml")).unwrap();
    assert!(!manifest.contains("httparse"));
}

#[test]
fn dependencies_point_from_master_to_worker_to_shared() {
    let dependencies = |package: &str| {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let lines = manifest.lines().map(str::to_owned).collect::<Vec<_>>();
        lines.into_iter().filter(|line| line.starts_with("phalanx")).collect::<Vec<_>>().join("\n")
    };
    assert!(dependencies("master").contains("phalanx-worker") && dependencies("master").contains("phalanx-shared"));
    assert_eq!(dependencies("worker").lines().count(), 1);
    assert!(dependencies("worker").contains("phalanx-shared"));
    assert_eq!(dependencies("shared"), "");
}

#[test]
fn no_file_holds_more_than_one_noun_could_need() {
    let long: Vec<String> = ["master/src", "worker/src", "shared/src", "tests"]
        .iter()
        .flat_map(|below| sources(below))
        .filter(|(_, text)| text.lines().count() > MOST_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert_none(&long);
}
