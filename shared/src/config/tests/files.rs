//! Files that cannot be read.

use std::fs;
use std::path::PathBuf;

use super::*;

/// A file of its own for a test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("phalanx-config-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn only_problem(path: &Path) -> Problem {
    let mut problems = load(path, KNOWN).unwrap_err().0;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[test]
fn a_missing_file_is_named_with_the_reason() {
    let problem = only_problem(Path::new("/nowhere/phalanx.toml"));
    let shown =
        "/nowhere/phalanx.toml: cannot read the configuration: no such file or directory\n  hint: check the path";
    assert!(problem.to_string().starts_with(shown), "{problem}");
}

#[test]
fn a_directory_is_no_configuration() {
    let problem = only_problem(Path::new("/"));
    assert_eq!(problem.text, "this is a directory");
    assert_eq!(problem.place, None);
}

#[test]
fn a_file_too_large_is_not_read_to_its_end() {
    let scratch = Scratch::new("large", &vec![b'#'; (1 << 20) + 1]);
    let problem = only_problem(&scratch.0);
    assert_eq!((problem.text.as_str(), problem.file), ("the file is larger than 1MiB", scratch.0.clone()));
}

#[test]
fn a_byte_that_is_not_utf8_has_a_place() {
    let scratch = Scratch::new("latin1", b"# one\n# \xc3\xa9t\xe9\n");
    let problem = only_problem(&scratch.0);
    assert_eq!(problem.place, Some(Place { line: 2, column: 5 }));
    assert_eq!(problem.text, "this byte is not UTF-8");
}

#[test]
fn relative_paths_start_beside_the_file_wherever_it_was_named_from() {
    let text = format!("[master]\npid_file = \"p.pid\"\n{REST}");
    let config = parse(&text, Path::new("phalanx.toml"), KNOWN).unwrap();
    assert_eq!(config.master.pid_file, Some(std::env::current_dir().unwrap().join("p.pid")));
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_text() {
    config_of(&format!("\u{feff}{REST}"));
}

#[test]
fn no_broken_file_makes_the_reader_panic() {
    let sample = include_str!("../../../../etc/phalanx.toml").replace("\n# ", "\n");
    for end in (0..=sample.len()).filter(|end| sample.is_char_boundary(*end)).step_by(7) {
        let _ = parse(&sample[..end], Path::new("/etc/phalanx.toml"), KNOWN);
        let _ = parse(&sample[end..], Path::new("/etc/phalanx.toml"), KNOWN);
    }
    for text in ["[]", "[[]]", "[", "[[", "= 1", "a.", "a = ", "[a.]", "\"", "a = {", "[site]\n[[site.route]]", "\0"] {
        assert!(parse(text, Path::new(""), KNOWN).is_err(), "{text}");
    }
}
