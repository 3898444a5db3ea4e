//! What names and values of header fields may be made of (RFC 9110, section 5).

/// A byte of a token (RFC 9110, section 5.6.2).
#[inline]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether the text is a token (RFC 9110, section 5.6.2), as the name of a field is.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether the text is a value (RFC 9110, section 5.5), kept to ASCII, which every client reads alike, and not empty.
pub fn is_plain_value(text: &str) -> bool {
    let is_sound = |byte: u8| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic();
    !text.is_empty() && text.trim_matches([' ', '\t']) == text && text.bytes().all(is_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_visible_ascii_without_delimiters() {
        for text in ["X-Frame-Options", "utf-8", "a!#$%&'*+-.^_`|~9"] {
            assert!(is_token(text), "{text}");
        }
        for text in ["", "a b", "a:", "é", "a\"", "(a)", "a/b", "a\r\n", "\u{7f}"] {
            assert!(!is_token(text), "{text:?}");
        }
    }

    #[test]
    fn plain_values_are_lines_of_ascii() {
        for (text, sound) in [("a b\tc", true), ("", false), (" a", false), ("a\r\n", false), ("é", false)] {
            assert_eq!(is_plain_value(text), sound, "{text:?}");
        }
    }
}
