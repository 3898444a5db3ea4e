//! An app of the embedding program as a service: finds the handler, hands it the request, and takes its answer.

use super::dress::Dress;
use super::{Answer, Asked, Asker, Intake, Setting};
use crate::app::{self, App, Kind, Needs, Place, Routes};
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

    pub(super) fn needs(&self) -> Needs {
        self.app.needs()
    }

    /// Whether there is a handler that the body of a request could be for.
    pub(super) fn wants_body(&self, head: &Head<'_>, path: &str) -> bool {
        match &self.app.0 {
            Kind::Routes(routes) => matches!(routes.find(head.method, path), app::Found::Endpoint(..)),
            #[cfg(feature = "tower")]
            Kind::Tower(_) => true,
        }
    }

    pub(super) fn intake(&self, head: &Head<'_>, path: &str) -> Intake {
        match &self.app.0 {
            Kind::Routes(routes) => match routes.find(head.method, path) {
                app::Found::Endpoint(endpoint, _) if endpoint.is_streamed() => Intake::Stream,
                app::Found::Endpoint(..) => Intake::Collect,
                _ => Intake::Discard,
            },
            #[cfg(feature = "tower")]
            Kind::Tower(_) => Intake::Stream,
        }
    }

    #[inline]
    pub(super) fn answer(&self, asked: &Asked<'_>, path: &str) -> Answer<'_> {
        match &self.app.0 {
            Kind::Routes(routes) => self.ask(routes, asked, path),
            #[cfg(feature = "tower")]
            Kind::Tower(tower) => self.begin(tower, asked),
        }
    }

    #[inline]
    fn ask(&self, routes: &Routes, asked: &Asked<'_>, path: &str) -> Answer<'_> {
        match routes.find(asked.head.method, path) {
            app::Found::Endpoint(endpoint, params) => match (endpoint.place(), asked.asker) {
                (Place::Pooled | Place::Isolated, Asker::Loop) => Answer::Call,
                #[cfg(feature = "tower")]
                (Place::Task, _) => self.begin_task(endpoint, asked, params),
                (Place::Isolated, Asker::Thread) => Answer::Isolate(endpoint.limits()),
                _ => {
                    let response = call(endpoint, asked, path, params);
                    Answer::Reply(Reply::Built(response.into_reply(&self.lines, &self.open_files)))
                }
            },
            app::Found::Others(methods) => Answer::Reply(Reply::Built(self.others(asked.head, &methods))),
            app::Found::Nothing => Answer::Reply(self.dress.error(404)),
        }
    }

    /// Asks a service.
    #[cfg(feature = "tower")]
    fn begin(&self, tower: &std::sync::Arc<app::Tower>, asked: &Asked<'_>) -> Answer<'_> {
        if app::tunnel::is_wanted(asked.head) {
            return Answer::Tunnel(super::Tunnel(tower.tunnel(asked.caller)));
        }
        let body = asked.body.to_incoming();
        let Some(answering) = tower.begin(asked.head, asked.bytes, body, asked.caller) else {
            return Answer::Reply(self.dress.error(400));
        };
        self.poll_once(answering, |response, lines, _| response.with_lines(lines))
    }

    /// The same for an asynchronous handler of the program's own.
    #[cfg(feature = "tower")]
    fn begin_task(
        &self,
        endpoint: &app::Endpoint,
        asked: &Asked<'_>,
        params: Option<matchit::Params<'_, '_>>,
    ) -> Answer<'_> {
        let mut request = http::Request::new(asked.body.to_incoming());
        if app::tower::fill(&mut request, asked.head, asked.bytes).is_none() {
            return Answer::Reply(self.dress.error(400));
        }
        if let Some(params) = params.filter(|params| !params.is_empty()) {
            let params = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            request.extensions_mut().insert(app::PathParams(params));
        }
        request.extensions_mut().insert((asked.caller)());
        let Some(beginning) = endpoint.begin(request) else { return Answer::Reply(self.dress.error(500)) };
        self.poll_once(beginning, app::Response::into_reply)
    }

    /// What is at hand is an answer at once: only what has to be waited for is worth a task.
    #[cfg(feature = "tower")]
    fn poll_once<T: 'static>(
        &self,
        mut beginning: impl Future<Output = T> + Send + Unpin + 'static,
        finish: fn(T, &str, &OpenFiles) -> Response,
    ) -> Answer<'_> {
        use std::pin::Pin;
        use std::task::{Context, Poll, Waker};
        match Pin::new(&mut beginning).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Answer::Reply(Reply::Built(finish(done, &self.lines, &self.open_files))),
            Poll::Pending => {
                let (lines, files) = (self.lines.clone(), self.open_files.clone());
                let answering = async move { finish(beginning.await, &lines, &files) };
                Answer::Task(super::Answering(Box::pin(answering)))
            }
        }
    }

    /// What the handler of a request says, with what the route adds; none where there is no handler that is called.
    pub(super) fn handle(&self, asked: &Asked<'_>, path: &str) -> Option<app::Response> {
        match &self.app.0 {
            Kind::Routes(routes) => match routes.find(asked.head.method, path) {
                app::Found::Endpoint(endpoint, params) => {
                    Some(call(endpoint, asked, path, params).with_lines(&self.lines))
                }
                _ => None,
            },
            #[cfg(feature = "tower")]
            Kind::Tower(_) => None,
        }
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

fn call(
    endpoint: &app::Endpoint,
    asked: &Asked<'_>,
    path: &str,
    params: Option<matchit::Params<'_, '_>>,
) -> app::Response {
    endpoint.handle(&app::Request::new(asked.head, path, params.as_ref(), asked.body, asked.caller))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use phalanx_shared::config;

    use super::super::testing::{asked, setting, with_head};
    use super::*;
    use crate::app::{Application as Program, Request, Response};

    fn application(app: App) -> Application {
        let config = config::serve_defaults("/".into(), vec![]);
        let setting = setting().with_application(Program::new().with("main", app));
        Application::new("main", Dress::new(&config.sites[0].routes[0], HashMap::new()), &setting).unwrap()
    }

    /// A request borrows what the peer sent, and so does all that a handler asks it for.
    #[test]
    fn a_request_is_handed_over_and_looked_at_without_an_allocation() {
        let handler = |request: &Request<'_>| {
            let all =
                request.method().len() + request.path().len() + request.segments().count() + request.headers().count();
            let query = request.query_value("q").map_or(0, |value| value.len());
            let id = request.param("id").map_or(0, str::len) + usize::from(request.id().position == 0);
            let fields = request.header("x-a").map_or(0, str::len) + request.host().map_or(0, str::len);
            assert!(request.peer().is_none() && request.client().is_none() && request.deadline().is_none());
            assert_eq!(all + query + id + fields, 3 + 12 + 3 + 2 + 2 + 1 + 1 + 3 + 11);
            Response::text("Hello, World!")
        };
        let application = application(Routes::new().get("/users/{id}/all", handler).into());
        with_head("GET /users/7/all?q=ok", "X-A: abc\r\n", |head| {
            let asked = asked(head);
            let mut status = 0;
            let counted = allocation_counter::measure(|| {
                let Answer::Reply(reply) = application.answer(&asked, "/users/7/all") else { return };
                status = reply.status();
            });
            assert_eq!((status, counted.count_total), (200, 0));
        });
    }
}
