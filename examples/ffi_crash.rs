//! C code that crashes on some input. `/7` is doubled by it; `/crash` has it read where nothing is. That request is answered 500, and
//! nobody else notices; `/careful/crash` has a process of its own, and its worker does not notice either.
#![allow(unsafe_code, reason = "C is called")]

use std::ffi::{CString, c_char, c_int};
use std::process::ExitCode;

use phalanx::{Request, Routes, Server, isolated};

unsafe extern "C" {
    fn atoi(text: *const c_char) -> c_int;
}

/// What somebody might write who has not thought of every input.
fn double(request: &Request) -> String {
    let text = request.param("number").and_then(|text| text.parse::<u32>().ok()).map(|number| number.to_string());
    let text = text.and_then(|text| CString::new(text).ok());
    // The mistake: C does not mind a null pointer until it is too late.
    let pointer = text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: it is not, where the text is no number. That is what is shown.
    let number = unsafe { atoi(pointer) };
    format!("{}\n", number * 2)
}

fn main() -> ExitCode {
    Server::new(Routes::new().get("/{number}", double).get("/careful/{number}", isolated(double))).main()
}
