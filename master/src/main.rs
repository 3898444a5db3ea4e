//! The `phalanx` program: the command line of the library, with no application of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    phalanx::main()
}
