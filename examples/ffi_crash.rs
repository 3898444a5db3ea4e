//! C code that crashes on some input. `/7` is doubled by it; `/crash` has it read where nothing is. That request is answered 500, and
//! nobody else notices; `/careful/crash` has a process of its own, and its worker does not notice either.

use std::ffi::CString;
use std::process::ExitCode;

use phalanx::{Request, Routes, Server, isolated};
use phalanx_shared::sys::careless;

/// What somebody might write who has not thought of every input.
fn double(request: &Request) -> String {
    let text = request.param("number").and_then(|text| text.parse::<u32>().ok()).map(|number| number.to_string());
    let text = text.and_then(|text| CString::new(text).ok());
    // The mistake: atoi(3) is called for no text too, and does not mind a null pointer until it is too late.
    format!("{}\n", careless::number_of(text.as_deref()) * 2)
}

fn main() -> ExitCode {
    Server::new(Routes::new().get("/{number}", double).get("/careful/{number}", isolated(double))).main()
}
