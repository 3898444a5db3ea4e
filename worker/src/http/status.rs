//! Status codes: their reason phrases (RFC 9110, 15) and the small page that goes with each error.

use std::sync::LazyLock;

use super::reply::{Prepared, Text};

/// The phrase that follows `status` in a status line; empty for a code that nobody registered.
#[inline]
pub fn reason(status: u16) -> &'static str {
    match PHRASES.binary_search_by_key(&status, |&(code, _)| code) {
        Ok(at) => PHRASES[at].1,
        Err(_) => "",
    }
}

/// The reply to a request that ends in an error: `404 Not Found` as plain text. Prepared once; costs nothing to use.
/// A status that is no error, or not registered, gets the page of 500.
pub fn error_page(status: u16) -> &'static Prepared {
    static PAGES: LazyLock<Vec<Prepared>> = LazyLock::new(|| {
        PHRASES.iter().filter(|&&(code, _)| code >= 400).map(|&(code, phrase)| page(code, phrase)).collect()
    });
    static FALLBACK: LazyLock<Prepared> = LazyLock::new(|| page(500, reason(500)));
    match PAGES.binary_search_by_key(&status, |page| page.status()) {
        Ok(at) => &PAGES[at],
        Err(_) => &FALLBACK,
    }
}

/// The statuses that have a page.
pub fn errors() -> impl Iterator<Item = u16> {
    PHRASES.iter().map(|&(code, _)| code).filter(|&code| code >= 400)
}

/// The lines that the page of an error has beside the usual ones.
pub fn fields_of(status: u16) -> &'static str {
    match status {
        // It has to name what is allowed (RFC 9110, 15.5.6); only files say 405, and they allow this.
        405 => "Allow: GET, HEAD\r\n",
        // What is short now is hardly short for long.
        503 => "Retry-After: 1\r\n",
        _ => "",
    }
}

fn page(status: u16, phrase: &str) -> Prepared {
    let headers = fields_of(status);
    Prepared::new(&Text { status, content_type: "text/plain", headers, body: format!("{status} {phrase}\n") })
}

/// In the order of the codes.
const PHRASES: &[(u16, &str)] = &[
    (100, "Continue"),
    (101, "Switching Protocols"),
    (103, "Early Hints"),
    (200, "OK"),
    (201, "Created"),
    (202, "Accepted"),
    (203, "Non-Authoritative Information"),
    (204, "No Content"),
    (205, "Reset Content"),
    (206, "Partial Content"),
    (300, "Multiple Choices"),
    (301, "Moved Permanently"),
    (302, "Found"),
    (303, "See Other"),
    (304, "Not Modified"),
    (307, "Temporary Redirect"),
    (308, "Permanent Redirect"),
    (400, "Bad Request"),
    (401, "Unauthorized"),
    (402, "Payment Required"),
    (403, "Forbidden"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (406, "Not Acceptable"),
    (407, "Proxy Authentication Required"),
    (408, "Request Timeout"),
    (409, "Conflict"),
    (410, "Gone"),
    (411, "Length Required"),
    (412, "Precondition Failed"),
    (413, "Content Too Large"),
    (414, "URI Too Long"),
    (415, "Unsupported Media Type"),
    (416, "Range Not Satisfiable"),
    (417, "Expectation Failed"),
    (418, "I'm a teapot"),
    (421, "Misdirected Request"),
    (422, "Unprocessable Content"),
    (423, "Locked"),
    (424, "Failed Dependency"),
    (425, "Too Early"),
    (426, "Upgrade Required"),
    (428, "Precondition Required"),
    (429, "Too Many Requests"),
    (431, "Request Header Fields Too Large"),
    (451, "Unavailable For Legal Reasons"),
    (500, "Internal Server Error"),
    (501, "Not Implemented"),
    (502, "Bad Gateway"),
    (503, "Service Unavailable"),
    (504, "Gateway Timeout"),
    (505, "HTTP Version Not Supported"),
    (507, "Insufficient Storage"),
    (508, "Loop Detected"),
    (511, "Network Authentication Required"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_in_order_so_that_the_search_finds_them() {
        assert!(PHRASES.is_sorted_by_key(|&(code, _)| code));
        for &(code, phrase) in PHRASES {
            assert_eq!(reason(code), phrase);
        }
        assert_eq!(reason(299), "");
    }

    #[test]
    fn every_error_has_its_page_and_the_rest_gets_that_of_500() {
        for &(code, _) in PHRASES.iter().filter(|&&(code, _)| code >= 400) {
            assert_eq!(error_page(code).status(), code);
        }
        assert_eq!(error_page(404).body(), b"404 Not Found\n");
        for code in [0, 200, 304, 499, 999] {
            assert_eq!(error_page(code).status(), 500, "{code}");
        }
    }
}
