//! Paths that are answered as if nothing were there.

use wildmatch::WildMatch;

/// Whom no pattern means, but one that spells it out: what lies there is made to be found (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// The patterns of a route.
#[derive(Debug)]
pub(super) struct Deny {
    /// Held against each segment.
    segments: Vec<WildMatch>,
    /// Held against the whole path.
    paths: Vec<WildMatch>,
}

impl Deny {
    /// Patterns with a slash in front are for whole paths.
    pub(super) fn new(patterns: &[String]) -> Deny {
        let (paths, segments): (Vec<_>, Vec<_>) = patterns.iter().partition(|pattern| pattern.starts_with('/'));
        let ready = |patterns: Vec<&String>| patterns.into_iter().map(|pattern| WildMatch::new(pattern)).collect();
        Deny { segments: ready(segments), paths: ready(paths) }
    }

    /// Whether `path`, decoded, is one of them.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.paths.iter().any(|pattern| pattern.matches(path)) || path.split('/').any(|segment| self.hides(segment))
    }

    fn hides(&self, segment: &str) -> bool {
        let spelt_out = |pattern: &WildMatch| segment != WELL_KNOWN || pattern.pattern() == WELL_KNOWN;
        !segment.is_empty() && self.segments.iter().any(|pattern| pattern.matches(segment) && spelt_out(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_segments_or_whole_paths() {
        let deny = Deny::new(&[".*", "*~", "?.bak", "/private/*"].map(str::to_owned));
        for path in ["/.git/config", "/a/.x", "/a~", "/b~/c", "/x.bak", "/private/", "/private/a/b"] {
            assert!(deny.covers(path), "{path}");
        }
        for path in ["/", "/a", "/a.b/c", "/.well-known/acme", "/xy.bak", "/privat", "/x/private/y", "/~a"] {
            assert!(!deny.covers(path), "{path}");
        }
        assert!(Deny::new(&[WELL_KNOWN.to_owned()]).covers("/.well-known/x"));
        assert!(!Deny::new(&[]).covers("/.git"));
    }
}
