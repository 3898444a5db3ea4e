//! The smallest server: greets, on 127.0.0.1:8080. Kill its workers (`phalanx: worker …`) as you like.

use std::process::ExitCode;

use phalanx::{Request, Response, Routes, Server};

fn hello(request: &Request) -> Response {
    let name = request.param("name").unwrap_or("World");
    Response::text(format!("Hello, {name}!\n"))
}

fn main() -> ExitCode {
    Server::new(Routes::new().get("/", hello).get("/{name}", hello)).main()
}
