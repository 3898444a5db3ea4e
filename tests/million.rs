//! `tests/bench/million` at a size for every day: tens of thousands of connections, all answered after a kill.

use std::path::Path;
use std::process::Command;

use crate::harness::command::{Directory, run};
use crate::harness::{alone, knob};

/// User memory that a connection may cost: the bar is 600 bytes, here in a debug build and with few to share what is fixed.
const MOST_BYTES_EACH: u64 = 600;

#[test]
fn every_connection_is_answered_after_a_kill_however_many() {
    let _machine = alone();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/bench/million");
    let count = knob("PHALANX_MILLION", 20_000);
    let mut command = Command::new(script);
    command.args(["--connections", &count.to_string(), "--hold", "0.5", "--deadline", "50"]);
    command.args(["--binary", env!("CARGO_BIN_EXE_phalanx")]);
    let outcome = run(&Directory::new(), &mut command);
    println!("{}", outcome.stdout);
    outcome.assert_said(0, &["all answered"]);
    let (_, rest) = outcome.stdout.split_once("user memory a connection: ").expect("the memory is told");
    let each: u64 = rest.split_once(' ').unwrap().0.replace(',', "").parse().unwrap();
    assert!(each <= MOST_BYTES_EACH, "{each} bytes a connection: {outcome}");
}
