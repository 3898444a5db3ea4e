//! One router of axum whose handlers can bring their process down, by `axum::serve` (`victim axum PORT`) or by Phalanx (any other
//! command line). What `tests/chaos/attack` attacks.

use std::error::Error;
use std::process::ExitCode;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use phalanx::{Server, Tower};
use phalanx_shared::sys::careless;
use tokio::net::TcpListener;

/// Goes deeper than any stack.
fn recurse(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + here[63] }
}

async fn attack(Path(kind): Path<String>) -> String {
    match kind.as_str() {
        "recursion" => recurse(0).to_string(),
        "abort" => std::process::abort(),
        "segfault" => careless::number_of(None).to_string(),
        "allocation" => std::hint::black_box(vec![1_u8; 2 << 30]).len().to_string(),
        "loop" => loop {
            std::hint::spin_loop();
        },
        _ => "attack by recursion, abort, segfault, allocation or loop\n".to_owned(),
    }
}

fn serve(router: Router, port: u16) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, router).await?;
        Ok(())
    })
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let router = Router::new().route("/", get(|| async { "Hello, World!" })).route("/attack/{kind}", get(attack));
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [how, port] = &words[..]
        && how == "axum"
    {
        return serve(router, port.parse()?).map(|()| ExitCode::SUCCESS);
    }
    let server = Server::builder().app(Tower::new(router)).settings("[workers]\nhang_timeout = \"1s\"");
    Ok(server.build().main())
}
