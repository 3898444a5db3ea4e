//! The configuration file's text.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::problem::{Problem, Refusal};
use super::source::Source;

/// Bytes a configuration may have: thousands of sites fit, a log or a core file named by mistake does not.
const MOST: u64 = 1 << 20;

/// The text of the file, or why there is none.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    let bytes = bytes(path).map_err(|refusal| Problem {
        file: path.to_owned(),
        place: None,
        text: refusal.text,
        hint: refusal.hint,
    })?;
    String::from_utf8(bytes).map_err(|error| not_utf8(path, error.as_bytes(), error.utf8_error().valid_up_to()))
}

fn bytes(path: &Path) -> Result<Vec<u8>, Refusal> {
    let mut file = File::open(path).map_err(|error| unreadable(&error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Refusal::new("this is a directory", "name the configuration file inside it"));
    }
    let mut bytes = Vec::new();
    Read::take(&mut file, MOST + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MOST {
        return Err(Refusal::new("the file is larger than 1MiB", "check that this is the configuration file"));
    }
    Ok(bytes)
}

fn unreadable(error: &io::Error) -> Refusal {
    let reason = match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    };
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the path given to -c",
        io::ErrorKind::PermissionDenied => "make it readable for this user, or run as one who may read it",
        _ => "check the path given to -c and the file system under it",
    };
    Refusal::new(format!("cannot read the configuration: {reason}"), hint)
}

fn not_utf8(path: &Path, bytes: &[u8], valid: usize) -> Problem {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    Problem {
        file: path.to_owned(),
        place: Some(Source::new(&before, path).place(before.len())),
        text: "this byte is not UTF-8".to_owned(),
        hint: "save the file in UTF-8".to_owned(),
    }
}
