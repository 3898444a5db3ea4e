//! What a route adds to its answers: fields, `Cache-Control`, and pages of its own for errors.

use std::collections::HashMap;

use phalanx_shared::config::Route;

use crate::http::reply::{Prepared, Reply, Text};
use crate::http::status::{self, error_page};

/// A page that stands for an error.
pub(crate) struct Page {
    pub(crate) media_type: String,
    pub(crate) body: Vec<u8>,
}

/// A route's additions, as lines.
#[derive(Debug, Default)]
pub(crate) struct Dress {
    fields: String,
    cache_control: String,
    /// Where an error looks otherwise than the server's own.
    errors: HashMap<u16, Prepared>,
}

impl Dress {
    /// What `route` adds; `pages` by status.
    pub(crate) fn new(route: &Route, mut pages: HashMap<u16, Page>) -> Dress {
        let fields: String = route.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let cache_control = route.cache_control.as_ref().map(|value| format!("Cache-Control: {value}\r\n"));
        let mut errors = HashMap::new();
        for status in status::errors() {
            let page = pages.remove(&status);
            if page.is_some() || !fields.is_empty() {
                errors.insert(status, dressed(status, page, &fields));
            }
        }
        Dress { fields, cache_control: cache_control.unwrap_or_default(), errors }
    }

    /// The fields of every answer, and those of one that may be kept.
    pub(crate) fn lines(&self) -> String {
        format!("{}{}", self.cache_control, self.fields)
    }

    /// The fields of every answer.
    pub(crate) fn fields(&self) -> &str {
        &self.fields
    }

    /// The page of an error with further fields, complete lines.
    pub(crate) fn refusal(&self, status: u16, fields: &str) -> Prepared {
        dressed(status, None, &format!("{fields}{}", self.fields))
    }

    /// The page of an error.
    #[inline]
    pub(crate) fn error(&self, status: u16) -> Reply<'_> {
        Reply::Prepared(self.errors.get(&status).unwrap_or_else(|| error_page(status)))
    }
}

fn dressed(status: u16, page: Option<Page>, fields: &str) -> Prepared {
    let headers = format!("{}{fields}", status::fields_of(status));
    let page = page.unwrap_or_else(|| Page {
        media_type: "text/plain".to_owned(),
        body: format!("{status} {}\n", status::reason(status)).into_bytes(),
    });
    Prepared::new(&Text { status, content_type: &page.media_type, headers: &headers, body: page.body })
}
