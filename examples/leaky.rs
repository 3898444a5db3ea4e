//! A handler that leaks a mebibyte with each request. Workers are replaced when they have taken 64 MiB, one after the other, without
//! losing a connection or a request.

use std::process::ExitCode;

use phalanx::{Request, Server};

fn leak(_: &Request) -> String {
    let leaked: &'static mut [u8] = vec![1; 1 << 20].leak();
    format!("leaked {} bytes in process {}\n", leaked.len(), std::process::id())
}

fn main() -> ExitCode {
    Server::builder().app(leak).settings("[workers]\nmax_memory = \"64MiB\"").build().main()
}
