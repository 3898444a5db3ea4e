//! An app of the embedding program as a service: finds the handler, hands it the request, and takes its answer.

use super::dress::Dress;
use super::{Answer, Asked, Setting};
use crate::app::{self, App, Kind, Place};
use crate::http::Head;
use crate::http::reply::{Body, Reply, Response};
use crate::http::status::reason;
use crate::open_file::OpenFiles;

/// An app, on a route.
#[derive(Debug)]
pub(crate) struct Application {
    app: App,
    dress: Dress,
    /// What the route adds to each answer.
    lines: String,
    open_files: OpenFiles,
}

impl Application {
    /// The app of a name; none when the program has no such.
    pub(super) fn new(name: &str, dress: Dress, setting: &Setting) -> Option<Application> {
        let app = setting.application.find(name)?.clone();
        Some(Application { app, lines: dress.lines(), dress, open_files: setting.open_files.clone() })
    }

    pub(super) fn dress(&self) -> &Dress {
        &self.dress
    }

    /// Whether some handler runs in a thread.
    pub(super) fn needs_threads(&self) -> bool {
        let Kind::Routes(routes) = &self.app.0;
        routes.has(Place::Pooled)
    }

    /// Whether there is a handler that the body of a request could be for.
    pub(super) fn wants_body(&self, head: &Head<'_>, path: &str) -> bool {
        let Kind::Routes(routes) = &self.app.0;
        matches!(routes.find(head.method, path), app::Found::Endpoint(..))
    }

    #[inline]
    pub(super) fn answer(&self, asked: &Asked<'_>, path: &str) -> Answer<'_> {
        let Kind::Routes(routes) = &self.app.0;
        match routes.find(asked.head.method, path) {
            app::Found::Endpoint(endpoint, _) if asked.in_loop && endpoint.place() == Place::Pooled => Answer::Call,
            app::Found::Endpoint(endpoint, params) => {
                let request = app::Request::new(asked.head, path, params, asked.body, (asked.caller)());
                self.reply(endpoint.handle(&request))
            }
            app::Found::Others(methods) => Answer::Reply(Reply::Built(self.others(asked.head, &methods))),
            app::Found::Nothing => Answer::Reply(self.dress.error(404)),
        }
    }

    fn reply(&self, response: app::Response) -> Answer<'_> {
        Answer::Reply(Reply::Built(response.into_reply(&self.lines, &self.open_files)))
    }

    /// To a method that the path has no handler for (RFC 9110, 9.3.7 and 15.5.6).
    fn others(&self, head: &Head<'_>, methods: &str) -> Response {
        let status = if head.method == "OPTIONS" { 204 } else { 405 };
        let page = if status == 204 { String::new() } else { format!("{status} {}\n", reason(status)) };
        let headers = format!("Allow: {methods}\r\n{}", self.dress.fields()).into_bytes();
        let content_type = (status != 204).then_some("text/plain".into());
        Response { headers, content_type, body: Body::Bytes(page.into()), ..Response::new(status) }.reproducible(&())
    }
}
