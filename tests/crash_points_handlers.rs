//! The table of `crash_points` for handlers of a program, wherever they run: a worker kills itself at every point, the first and the
//! second time it comes by, and the client gets exactly what the row promises.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::crash_points::{Exchange, Row, play};
use crate::harness::{Client, Response, Setup, beside_others, pattern};

const FILE_BYTES: usize = 40_000;

/// A request, and the handler that it is for.
#[derive(Debug, Clone, Copy)]
struct Handler {
    /// The app of the program, and the model that it runs under.
    app: &'static str,
    model: &'static str,
    method: &'static str,
    path: &'static str,
    /// What its answer begins with.
    says: &'static str,
    /// A thread has a hand in it, or a task.
    elsewhere: Option<Elsewhere>,
    /// Its answer is promised to be the same whenever it is made.
    reproducible: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elsewhere {
    Thread,
    Task,
}

const fn handler(
    app: &'static str,
    model: &'static str,
    request: (&'static str, &'static str),
    says: &'static str,
) -> Handler {
    let (method, path) = request;
    Handler { app, model, method, path, says, elsewhere: None, reproducible: false }
}

const fn in_thread(handler: Handler) -> Handler {
    Handler { elsewhere: Some(Elsewhere::Thread), ..handler }
}

const fn in_task(handler: Handler) -> Handler {
    Handler { elsewhere: Some(Elsewhere::Task), ..handler }
}

const HANDLERS: [Handler; 12] = [
    handler("native", "reactor", ("GET", "/tell/7"), "GET /tell/7 segments="),
    handler("native", "reactor", ("POST", "/size"), "5"),
    Handler { reproducible: true, ..handler("native", "reactor", ("GET", "/file?path={file}"), "") },
    in_thread(handler("native", "reactor", ("GET", "/pooled/tell/7"), "GET /pooled/tell/7 segments=")),
    in_thread(handler("native", "reactor", ("POST", "/pooled/tell/7"), "POST /pooled/tell/7 segments=")),
    in_thread(handler("native", "reactor", ("GET", "/isolated/tell/7"), "GET /isolated/tell/7 segments=")),
    in_thread(handler("native", "reactor", ("POST", "/isolated/size"), "5")),
    in_thread(handler("native", "multi-reactor", ("GET", "/pooled/tell/7"), "GET /pooled/tell/7 segments=")),
    handler("axum", "coroutine", ("GET", "/"), "Hello, World!"),
    in_task(handler("axum", "coroutine", ("GET", "/sleeps/5"), "5")),
    in_task(handler("axum", "coroutine", ("POST", "/sleeps/5"), "5")),
    in_task(handler("tasks", "coroutine", ("GET", "/sleeps/5"), "5")),
];

impl Handler {
    fn setup(&self) -> Setup {
        let setup = Setup::of_example("trial", 1).environment("TRIAL", self.app);
        setup.set("workers", &format!("model = \"{}\"", self.model))
    }

    /// What a death at this point costs.
    fn row(&self, point: &str) -> Row {
        let begun = ["in-handler", "in-pool", "after-pool", "after-handler", "before-write"].contains(&point);
        match point {
            "in-pool" if self.elsewhere != Some(Elsewhere::Thread) => Row::Untested,
            "after-pool" if self.elsewhere.is_none() => Row::Untested,
            "after-partial-write" if !self.reproducible => Row::Truncated,
            _ if begun && self.method == "POST" => Row::Error,
            _ => Row::Unnoticed,
        }
    }
}

/// A handler, and the file that it may be asked for.
struct Asked {
    handler: Handler,
    file: String,
}

impl Exchange for Asked {
    fn ask(&self, client: &mut Client) {
        let Handler { method, path, .. } = self.handler;
        let path = path.replace("{file}", &self.file);
        let (length, body) = if method == "POST" { ("Content-Length: 5\r\n", "12345") } else { ("", "") };
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{length}\r\n{body}").as_bytes());
    }

    fn assert_right(&self, response: &Response) {
        response.assert_status(200);
        if self.handler.reproducible {
            response.assert(200, &pattern(FILE_BYTES, 1));
        }
        assert!(response.text().starts_with(self.handler.says), "{response}");
    }
}

/// Each test is a part of the table, so that they run side by side.
macro_rules! table {
    ($($name:ident: $($point:literal),*;)*) => {
        $(#[test]
        fn $name() {
            try_every_handler(&[$($point),*]);
        })*
    };
}

table! {
    a_death_before_a_handler_loses_nothing: "after-accept", "recording", "after-read", "before-handler";
    a_death_in_a_handler_replays_what_is_idempotent_and_answers_500_to_the_rest: "in-handler", "in-pool";
    a_death_after_a_handler_replays_what_is_idempotent_and_answers_500_to_the_rest: "after-pool", "after-handler", "before-write";
    a_death_amid_an_answer_continues_what_is_promised_to_be_the_same_and_shows_the_truncation_of_the_rest: "after-partial-write";
    a_death_after_an_answer_loses_nothing: "after-write", "retiring", "closing";
}

fn try_every_handler(points: &[&str]) {
    let _machine = beside_others();
    let mut failed = Vec::new();
    for (point, handler) in points.iter().flat_map(|point| HANDLERS.map(|handler| (*point, handler))) {
        let row = handler.row(point);
        for nth in [1, 2].into_iter().filter(|_| row != Row::Untested) {
            let setup = handler.setup().file("file", pattern(FILE_BYTES, 1));
            let asked = Asked { handler, file: setup.directory().path("site/file").display().to_string() };
            if catch_unwind(AssertUnwindSafe(|| play(setup, point, nth, row, &asked))).is_err() {
                failed.push(format!("{point} × {handler:?} × pass {nth}: {row:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}
