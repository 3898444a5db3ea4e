//! The `respond` service: one fixed answer to every request and every method.

use crate::http::reply::{Prepared, Reply, Text};

/// A reply that was encoded when the configuration was loaded.
#[derive(Debug, Clone)]
pub struct Respond(Prepared);

impl Respond {
    /// `content_type` is a sound header value, `headers` are complete lines; the body is dropped if the status allows none.
    pub fn new(status: u16, content_type: &str, body: &str, headers: &str) -> Respond {
        Respond(Prepared::new(&Text { status, content_type, headers, body }))
    }

    /// Always the same.
    #[inline]
    pub fn answer(&self) -> Reply<'_> {
        Reply::Prepared(&self.0)
    }

    /// The same, as it stands.
    pub(super) fn prepared(&self) -> &Prepared {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_the_route_says() {
        let respond = Respond::new(200, "text/plain", "Hello, World!", "");
        let reply = respond.answer();
        assert_eq!((reply.status(), reply.body_len()), (200, 13));
        assert_eq!(reply.validator(), Respond::new(200, "text/plain", "Hello, World!", "").answer().validator());
    }
}
