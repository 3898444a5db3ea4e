//! What is wrong with a configuration: where, what, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// One thing that is wrong. Displays as `path:line:column: text`, then a line `  hint: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the operator named it.
    pub file: PathBuf,
    /// None: the file as a whole, because it cannot be read.
    pub place: Option<Place>,
    /// What is wrong: lower case, no full stop.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        write!(f, " {}\n  hint: {}", self.text, self.hint)
    }
}

impl std::error::Error for Problem {}

/// All that is wrong with a file, in the order of its lines; never empty. Displays one problem after the other, without
/// a final line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.0.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why a value is not taken, said by code that does not know where the value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As [`Problem::text`], without the key.
    pub(super) text: String,
    /// As [`Problem::hint`].
    pub(super) hint: String,
}

impl Refusal {
    pub(super) fn new(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { text: text.into(), hint: hint.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(place: Option<Place>) -> Problem {
        Problem { file: "etc/a.toml".into(), place, text: "it is wrong".into(), hint: "mend it".into() }
    }

    #[test]
    fn problems_show_place_text_and_hint_one_after_the_other() {
        let problems = Problems(vec![problem(Some(Place { line: 3, column: 7 })), problem(None)]);
        let shown = "etc/a.toml:3:7: it is wrong\n  hint: mend it\netc/a.toml: it is wrong\n  hint: mend it";
        assert_eq!(problems.to_string(), shown);
    }
}
