//! `phalanx-bench-axum HOW PORT`: answers `/hello`, `/json` and `/ready` on 127.0.0.1 as the compared servers do. HOW is `axum` (a router by
//! `axum::serve` on a current-thread runtime), `axum-nodelay` (the same, without Nagle's algorithm), `tower` (the same router by
//! Phalanx) or `native` (handlers of Phalanx).

use std::error::Error;
use std::process::ExitCode;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use phalanx::{Request, Response, Routes, Server};
use serde::Serialize;
use tokio::net::TcpListener;

/// About 1 KiB in JSON.
#[derive(Serialize)]
struct Page {
    title: &'static str,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: u32,
    name: &'static str,
    active: bool,
}

fn page() -> Page {
    let row = |id| Row { id, name: "a name of some length, as names are", active: id % 2 == 0 };
    Page { title: "rows", rows: (100..115).map(row).collect() }
}

/// The page as it is told, made once.
static READY: LazyLock<Bytes> = LazyLock::new(|| serde_json::to_vec(&page()).unwrap_or_default().into());

fn router() -> Router {
    let hello = || async { ([(CONTENT_TYPE, "text/plain")], "Hello, World!") };
    let ready = || async { ([(CONTENT_TYPE, "application/json")], READY.clone()) };
    Router::new().route("/hello", get(hello)).route("/json", get(|| async { Json(page()) })).route("/ready", get(ready))
}

fn native() -> Routes {
    let hello = |_: &Request| Response::text("Hello, World!").of_type("text/plain");
    let ready = |_: &Request| Response::bytes("application/json", READY.clone());
    Routes::new().get("/hello", hello).get("/json", |_: &Request| Response::json(&page())).get("/ready", ready)
}

fn serve(port: u16, nodelay: bool) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let listener = listener.tap_io(move |stream| _ = stream.set_nodelay(nodelay));
        Ok(axum::serve(listener, router()).await?)
    })
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [how, port] = &words[..] else { return Err("phalanx-bench-axum HOW PORT".into()) };
    let app: phalanx::App = match how.as_str() {
        "axum" => return serve(port.parse()?, false).map(|()| ExitCode::SUCCESS),
        "axum-nodelay" => return serve(port.parse()?, true).map(|()| ExitCode::SUCCESS),
        "tower" => phalanx::Tower::new(router()).into(),
        _ => native().into(),
    };
    Ok(Server::builder().app(app).workers(1).listen(&format!("127.0.0.1:{port}")).build().serve())
}
