//! A call of C that does not mind what it is given, for the programs that show what becomes of such.

use std::ffi::{CStr, c_int};

/// The number that `text` begins with, by atoi(3): a real segmentation fault where there is no text.
pub fn number_of(text: Option<&CStr>) -> c_int {
    let pointer = std::hint::black_box(text.map_or(std::ptr::null(), CStr::as_ptr));
    // SAFETY: none where there is no text; this is the fault that the caller asks for. Any other pointer is that of a C string.
    unsafe { libc::atoi(pointer) }
}
