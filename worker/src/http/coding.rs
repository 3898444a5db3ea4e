//! Content codings (RFC 9110, 8.4.1 and 12.5.3): their names, and which of those at hand a peer wants.
//!
//! It owns how `Accept-Encoding` is read and what it prefers. Which codings there are for a representation, and who
//! makes them, is left to the service.

use phalanx_shared::field::is_token_byte;

use super::head::Head;
use super::weight::{self, Weight};

/// Members of `Accept-Encoding` that are looked at, over all lines: more codings than are registered. The rest is
/// ignored, as a peer that cares names what it wants first.
const MAX_MEMBERS: usize = 32;

/// A content coding that representations are kept or made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// Every coding, the densest first.
    pub const ALL: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

    /// Its name in `Content-Encoding` and `Accept-Encoding`.
    #[inline]
    pub const fn token(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }

    /// What the name of a file in this coding ends in, dot included.
    #[inline]
    pub const fn suffix(self) -> &'static str {
        match self {
            Coding::Gzip => ".gz",
            Coding::Brotli => ".br",
            Coding::Zstd => ".zst",
        }
    }
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The representation as it is.
    Identity,
    /// The representation in this coding.
    Coded(Coding),
}

/// What a request's `Accept-Encoding` lines say, all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    gzip: Option<Weight>,
    brotli: Option<Weight>,
    zstd: Option<Weight>,
    identity: Option<Weight>,
    /// Of `*`: whatever is not named.
    any: Option<Weight>,
}

impl Accepted {
    /// Reads every `Accept-Encoding` line of `head`. Malformed members are ignored; of a coding that is named twice the
    /// first member counts. Without such a line nothing but identity is wanted: RFC 9110 would allow any coding then,
    /// which no peer that leaves the field out expects.
    #[inline]
    pub fn of(head: &Head<'_>) -> Accepted {
        let mut lines = head.header_lines("accept-encoding").peekable();
        match lines.peek() {
            None => Accepted::default(),
            Some(_) => Accepted::read(lines),
        }
    }

    fn read<'v>(lines: impl Iterator<Item = &'v [u8]>) -> Accepted {
        let mut accepted = Accepted::default();
        let members = lines.flat_map(|line| line.split(|&byte| byte == b','));
        for (name, weight) in members.take(MAX_MEMBERS).filter_map(member) {
            if let Some(place) = accepted.place(name) {
                place.get_or_insert(weight);
            }
        }
        accepted
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<Weight>> {
        let named = |token: &str| name.eq_ignore_ascii_case(token.as_bytes());
        Some(match name {
            _ if named("gzip") || named("x-gzip") => &mut self.gzip,
            _ if named("br") => &mut self.brotli,
            _ if named("zstd") => &mut self.zstd,
            _ if named("identity") => &mut self.identity,
            b"*" => &mut self.any,
            _ => return None,
        })
    }

    /// The best of `available` and identity.
    ///
    /// The greatest weight wins, and among equals the one that stands first in `available`. Identity is chosen if none
    /// is acceptable, or if it is named and outweighs them all. Where a peer excludes everything, identity included, it
    /// gets identity nevertheless (RFC 9110, 12.5.3, allows to disregard the field): better than a 406 that nobody can
    /// read.
    #[inline]
    pub fn best(&self, available: &[Coding]) -> Choice {
        let mut best = (self.identity.unwrap_or(0), Choice::Identity);
        for &coding in available {
            let weight = self.weight(coding);
            let outweighs = match best.1 {
                Choice::Identity => weight > 0 && weight >= best.0,
                Choice::Coded(_) => weight > best.0,
            };
            if outweighs {
                best = (weight, Choice::Coded(coding));
            }
        }
        best.1
    }

    #[inline]
    fn weight(&self, coding: Coding) -> Weight {
        let named = match coding {
            Coding::Gzip => self.gzip,
            Coding::Brotli => self.brotli,
            Coding::Zstd => self.zstd,
        };
        named.or(self.any).unwrap_or(0)
    }
}

/// `coding [ OWS ";" OWS "q=" qvalue ]`; none if it is anything else.
fn member(text: &[u8]) -> Option<(&[u8], Weight)> {
    let text = text.trim_ascii();
    let (name, weight) = match memchr::memchr(b';', text) {
        None => (text, 1000),
        Some(at) => (text[..at].trim_ascii_end(), weight::of(text[at + 1..].trim_ascii_start())?),
    };
    (!name.is_empty() && name.iter().all(|&byte| is_token_byte(byte))).then_some((name, weight))
}

#[cfg(test)]
mod tests {
    use super::super::head::{HeaderScratch, Progress, parse};
    use super::Coding::{Brotli, Gzip, Zstd};
    use super::*;

    const CODINGS: [Coding; 3] = Coding::ALL;

    fn best(lines: &[&str], available: &[Coding]) -> Choice {
        let fields: String = lines.iter().map(|value| format!("Accept-Encoding: {value}\r\n")).collect();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut scratch = HeaderScratch::new();
        match parse(text.as_bytes(), 4096, &mut scratch) {
            Ok(Progress::Done(head)) => Accepted::of(&head).best(available),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn coded(coding: Coding) -> Choice {
        Choice::Coded(coding)
    }

    #[test]
    fn the_greatest_weight_wins_and_then_the_order_at_hand() {
        for (value, choice) in [
            ("gzip", coded(Gzip)),
            ("GZIP", coded(Gzip)),
            ("x-gzip", coded(Gzip)),
            ("gzip, br", coded(Brotli)),
            ("gzip, deflate, br, zstd", coded(Brotli)),
            ("gzip;q=0.9, br;q=0.8", coded(Gzip)),
            ("gzip;q=0.8, zstd;q=0.8", coded(Zstd)),
            ("br;q=0.001, gzip;q=0.002", coded(Gzip)),
            ("br;q=0, gzip", coded(Gzip)),
            ("br;q=0.000, gzip;q=0.", Choice::Identity),
            ("br;q=1.000, gzip;q=1.", coded(Brotli)),
            ("gzip ; q=0.5 , br ;\tQ=0.4", coded(Gzip)),
            ("*", coded(Brotli)),
            ("*;q=0.5, gzip", coded(Gzip)),
            ("*, br;q=0", coded(Zstd)),
            ("*;q=0, zstd", coded(Zstd)),
            ("gzip;q=0.5, gzip", coded(Gzip)),
            ("br;q=0, br", Choice::Identity),
        ] {
            assert_eq!(best(&[value], &CODINGS), choice, "{value}");
        }
        assert_eq!(best(&["gzip, br"], &[Gzip, Brotli]), coded(Gzip));
        assert_eq!(best(&["gzip, br"], &[Gzip]), coded(Gzip));
        assert_eq!(best(&["gzip, br"], &[Zstd]), Choice::Identity);
        assert_eq!(best(&["gzip, br"], &[]), Choice::Identity);
    }

    #[test]
    fn identity_is_chosen_when_it_outweighs_or_nothing_else_is_left() {
        for (value, choice) in [
            ("", Choice::Identity),
            ("identity", Choice::Identity),
            ("deflate, compress", Choice::Identity),
            ("identity, gzip", coded(Gzip)),
            ("identity;q=0.5, gzip;q=0.5", coded(Gzip)),
            ("identity;q=0.6, gzip;q=0.5", Choice::Identity),
            ("identity;q=0.6, gzip;q=0.5, br;q=0.7", coded(Brotli)),
            ("gzip;q=0.001", coded(Gzip)),
            ("identity;q=0, gzip", coded(Gzip)),
            ("identity;q=0", Choice::Identity),
            ("*;q=0", Choice::Identity),
            ("identity;q=0, *;q=0", Choice::Identity),
            ("*;q=0, identity;q=0.5", Choice::Identity),
            ("identity, *;q=0.5", Choice::Identity),
        ] {
            assert_eq!(best(&[value], &CODINGS), choice, "{value}");
        }
        assert_eq!(best(&[], &CODINGS), Choice::Identity);
    }

    #[test]
    fn malformed_members_are_ignored() {
        for member in [
            "br;q=2",
            "br;q=1.001",
            "br;q=0.1234",
            "br;q=.5",
            "br;q=-1",
            "br;q=",
            "br;q",
            "br;",
            "br;q =1",
            "br;q= 1",
            "br;q=1;q=1",
            "br;level=9",
            "br;q=a",
            "br;q=0,1a",
            "br zstd",
            "\"br\"",
            ";q=1",
            "b\u{e4}r",
            "b r;q=1",
        ] {
            assert_eq!(best(&[&format!("{member}, gzip;q=0.1")], &CODINGS), coded(Gzip), "{member}");
            assert_eq!(best(&[&format!(",, gzip;q=0.1 ,{member}")], &CODINGS), coded(Gzip), "{member}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(best(&["gzip;q=0.5", "br;q=0.4"], &CODINGS), coded(Gzip));
        assert_eq!(best(&["", "zstd"], &CODINGS), coded(Zstd));
        assert_eq!(best(&["identity", "gzip"], &CODINGS), coded(Gzip));
    }

    #[test]
    fn members_are_counted_and_the_rest_ignored() {
        let after = |count: usize| format!("{}gzip", "x,".repeat(count));
        assert_eq!(best(&[&after(MAX_MEMBERS - 1)], &CODINGS), coded(Gzip));
        assert_eq!(best(&[&after(MAX_MEMBERS)], &CODINGS), Choice::Identity);
        assert_eq!(best(&[&"x,".repeat(MAX_MEMBERS - 1), "gzip"], &CODINGS), Choice::Identity);
    }

    #[test]
    fn a_coding_has_a_token_and_a_suffix() {
        assert_eq!(CODINGS.map(Coding::token), ["br", "zstd", "gzip"]);
        assert_eq!(CODINGS.map(Coding::suffix), [".br", ".zst", ".gz"]);
    }
}
