//! `phalanx-bench-axum PORT`: answers `/hello` on 127.0.0.1 as the compared servers do.

use std::error::Error;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("which port?")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let hello = || async { ([(CONTENT_TYPE, "text/plain")], "Hello, World!") };
        let app = Router::new().route("/hello", get(hello));
        axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, app).await?;
        Ok(())
    })
}
