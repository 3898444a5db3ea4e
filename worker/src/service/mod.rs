//! The services: what answers a request.
//!
//! A service is handed a checked head and a decoded path and gives a reply; it knows no connection and no protocol
//! detail. Which one is asked is the router's decision. One kind of service, one file; `Service` is the registry.

pub(crate) mod fault;
pub mod files;
pub mod redirect;
pub mod respond;
pub mod router;

use phalanx_shared::config::{Action, Fault};

use crate::http::{Head, Reply};
use crate::pool::Job;

pub use files::{Files, OpenRootError};
pub use redirect::Redirect;
pub use respond::Respond;
pub use router::Router;

/// A request as services see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'b, 'h> {
    /// The head as parsed.
    pub head: &'h Head<'b>,
    /// The path, decoded and normalised by [`path::decode`](crate::http::path::decode).
    pub path: &'h str,
}

/// What the router decided.
#[derive(Debug)]
pub enum Answer<'r> {
    /// To be encoded and sent.
    Reply(Reply<'r>),
    /// Ask again, with what this comes to.
    Later(Job),
    /// To be carried out by the caller: the route breaks the worker on purpose.
    Fault(Fault),
}

/// What a route does, ready to do it.
#[derive(Debug)]
pub(crate) enum Service {
    Files(Files),
    Respond(Respond),
    Redirect(Redirect),
    Fault(Fault),
}

impl Service {
    /// Makes ready what a route's action needs: opens its root, encodes its reply.
    fn new(action: &Action) -> Result<Service, OpenRootError> {
        Ok(match action {
            Action::Files(files) => Service::Files(Files::new(&files.root, &files.index)?),
            Action::Respond { status, body, content_type } => {
                Service::Respond(Respond::new(*status, content_type, body))
            }
            Action::Redirect { to, status } => Service::Redirect(Redirect::new(to, *status)),
            Action::Fault(fault) => Service::Fault(*fault),
        })
    }

    fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        match self {
            Service::Files(files) => Some(files.descriptor()),
            _ => None,
        }
    }

    #[inline]
    fn answer(&self, request: &Request<'_, '_>) -> Answer<'_> {
        match self {
            Service::Respond(respond) => Answer::Reply(respond.answer()),
            Service::Files(files) => Answer::Reply(files.answer(request)),
            Service::Redirect(redirect) => Answer::Reply(redirect.answer()),
            Service::Fault(fault) => Answer::Fault(*fault),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Requests for the tests of services.

    use super::Request;
    use crate::http::{Head, HeaderScratch, Progress, parse, path};

    /// Parses `line`, a request line without version, with `fields`, complete lines; hands the head to `look`.
    pub(crate) fn with_head<T>(line: &str, fields: &str, look: impl FnOnce(&Head<'_>) -> T) -> T {
        let host = if fields.contains("Host:") { "" } else { "Host: example.org\r\n" };
        let text = format!("{line} HTTP/1.1\r\n{host}{fields}\r\n");
        let mut scratch = HeaderScratch::new();
        match parse(text.as_bytes(), 4096, &mut scratch) {
            Ok(Progress::Done(head)) => look(&head),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    /// The same, with the path decoded.
    pub(crate) fn with_request<T>(line: &str, fields: &str, look: impl FnOnce(&Request<'_, '_>) -> T) -> T {
        with_head(line, fields, |head| {
            let path = path::decode(head.path).unwrap();
            look(&Request { head, path: &path })
        })
    }
}
