//! The text being read: it turns offsets into places, relative paths into absolute ones, and collects the problems.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::iter;
use std::path::{Path, PathBuf};

use super::problem::{Place, Problem, Problems, Refusal};

/// A configuration's text, where it comes from, and what was found wrong with it so far.
pub(super) struct Source<'a> {
    text: &'a str,
    /// The offset of each line's first byte.
    lines: Vec<usize>,
    origin: &'a Path,
    base: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Source<'a> {
    /// A text from the file `origin`, beside which its relative paths start.
    pub(super) fn new(text: &'a str, origin: &'a Path) -> Self {
        let absolute = std::path::absolute(origin).unwrap_or_else(|_| origin.to_owned());
        let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let lines = iter::once(0).chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        Self { text, lines, origin, base, problems: RefCell::default() }
    }

    /// Notes a problem at the byte `offset`.
    pub(super) fn report(&self, offset: usize, refusal: Refusal) {
        let Refusal { text, hint } = refusal;
        let problem = Problem { file: self.origin.to_owned(), place: Some(self.place(offset)), text, hint };
        self.problems.borrow_mut().push(problem);
    }

    /// The place of the byte `offset`.
    pub(super) fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        Place { line, column: self.text[start..offset].chars().count() + 1 }
    }

    /// The path as written, made absolute.
    pub(super) fn path(&self, written: &str) -> Result<PathBuf, Refusal> {
        absolute_path(written, &self.base)
    }

    /// Whether something was reported.
    pub(super) fn is_sound(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// All that was reported, in the order of the lines.
    pub(super) fn into_problems(self) -> Problems {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.place);
        Problems(problems)
    }
}

/// The path `written`, taken from `base` when it is relative.
pub(super) fn absolute_path(written: &str, base: &Path) -> Result<PathBuf, Refusal> {
    if written.is_empty() {
        return Err(Refusal::new("the path is empty", "write a path, or leave the key out"));
    }
    if written.contains('\0') {
        return Err(Refusal::new("the path has a NUL character", "remove the \\u0000: no path on Linux can have one"));
    }
    let joined = base.join(written);
    Ok(std::path::absolute(&joined).unwrap_or(joined))
}

/// Where each of several values that must differ was met first.
pub(super) struct Seen<T>(HashMap<T, Place>);

impl<T: Eq + Hash> Seen<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Where the value was met before; none: it is new, and noted.
    pub(super) fn before(&mut self, value: T, place: Place) -> Option<Place> {
        let first = *self.0.entry(value).or_insert(place);
        (first != place).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nß = \"é\" x\n";
        let source = Source::new(text, Path::new("a.toml"));
        assert_eq!(source.place(0), Place { line: 1, column: 1 });
        assert_eq!(source.place(text.find('x').unwrap()), Place { line: 2, column: 9 });
        assert_eq!(source.place(999), Place { line: 3, column: 1 });
    }

    #[test]
    fn relative_paths_start_beside_the_file() {
        let source = Source::new("", Path::new("/etc/phalanx/phalanx.toml"));
        assert_eq!(source.path("site").unwrap(), Path::new("/etc/phalanx/site"));
        assert_eq!(source.path("/srv/www").unwrap(), Path::new("/srv/www"));
        assert!(source.path("").is_err());
        assert!(source.path("a\0b").is_err());
    }
}
