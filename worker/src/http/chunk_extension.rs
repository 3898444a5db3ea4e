//! Chunk extensions (RFC 9112, 7.1.1): read by their grammar, byte by byte, and ignored.
//!
//! It owns what may stand between a chunk's size and its line end. Their bound is `body`'s.

use phalanx_shared::field::is_token_byte;

/// Where in the extensions of a chunk the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Blanks between the size and the first `;`.
    BehindSize,
    /// Behind a `;`: a name has to follow.
    NameAhead,
    /// A name.
    Name,
    /// Blanks behind a name.
    BehindName,
    /// Behind a `=`: a value has to follow.
    ValueAhead,
    /// A value that is a token.
    Token,
    /// Inside a quoted value.
    Quoted,
    /// Behind a backslash in a quoted value.
    Escaped,
    /// Behind the closing quote.
    Closed,
    /// Blanks behind a value.
    BehindValue,
}

/// What a byte leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The extensions go on.
    Part(Part),
    /// The byte was the CR of the line end.
    LineEnd,
}

impl Part {
    /// Behind one more byte; none if it may not stand here.
    pub(super) fn step(self, byte: u8) -> Option<Next> {
        use Part::*;
        Some(Next::Part(match (self, byte) {
            (Name | Token | Closed, b'\r') => return Some(Next::LineEnd),
            (BehindSize | Name | BehindName | Token | Closed | BehindValue, b';') => NameAhead,
            (Name | BehindName, b'=') => ValueAhead,
            (Quoted, b'"') => Closed,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_text_byte(byte) => Quoted,
            (Name, b' ' | b'\t') => BehindName,
            (Token | Closed, b' ' | b'\t') => BehindValue,
            (BehindSize | NameAhead | BehindName | ValueAhead | BehindValue, b' ' | b'\t') => self,
            (NameAhead | Name, _) if is_token_byte(byte) => Name,
            (ValueAhead | Token, _) if is_token_byte(byte) => Token,
            (ValueAhead, b'"') => Quoted,
            _ => return None,
        }))
    }
}

/// A byte that may stand in a field's value (RFC 9110, 5.5).
pub(super) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands behind a size is well formed, CR included.
    fn is_valid(text: &str) -> bool {
        let mut part = Part::BehindSize;
        for (at, byte) in text.bytes().enumerate() {
            match part.step(byte) {
                Some(Next::Part(next)) => part = next,
                Some(Next::LineEnd) => return at + 1 == text.len(),
                None => return false,
            }
        }
        false
    }

    #[test]
    fn extensions_are_names_with_or_without_values() {
        for text in [
            ";a\r",
            ";a;b\r",
            " ;\ta\r",
            ";a=b\r",
            ";a = b\r",
            ";a=\"b c;d=\\\"e\\\\\"\r",
            ";a=\"\"\r",
            ";a=\"b\";c=d ; e\r",
            ";a ;b\r",
            ";a=\"\u{e4}\t\"\r",
        ] {
            assert!(is_valid(text), "{text:?}");
        }
        for text in [
            "\r",
            " \r",
            "a\r",
            " a\r",
            "=b\r",
            ";\r",
            "; \r",
            ";;a\r",
            ";a;\r",
            ";=b\r",
            ";a=\r",
            ";a= \r",
            ";a=;b\r",
            ";a=b=c\r",
            ";a b\r",
            ";a=b c\r",
            ";a \r",
            ";a=b \r",
            ";a=\"b\" \r",
            ";a=\"b\r",
            ";a=\"b\\\r",
            ";a=\"b\"c\r",
            ";a=b\"c\"\r",
            ";\"a\"\r",
            ";a=\"\0\"\r",
            ";a=\"\\\0\"\r",
            ";\u{e4}\r",
            ";a=\u{e4}\r",
            ";a\n",
            ";a,b\r",
        ] {
            assert!(!is_valid(text), "{text:?}");
        }
    }
}
