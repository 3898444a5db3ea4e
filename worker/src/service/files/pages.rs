//! The pages that a route has of its own for errors. They are read when the worker boots, so that a page that is missing stops a
//! reload and not a visitor.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;

use phalanx_shared::config::FilesAction;

use super::open::{Disk, Found, OpenRootError, Root};
use super::representation::media_type;
use crate::service::dress::Page;

/// Bytes of an error's page: all of them stay in memory.
const MAX_PAGE: u64 = 1024 * 1024;

/// Reads every page that `action` names, by status.
pub(super) fn load(root: &Root, action: &FilesAction) -> Result<HashMap<u16, Page>, OpenRootError> {
    let mut pages = HashMap::new();
    for (&status, path) in &action.error_pages {
        let page = read(root, path).map_err(|source| {
            let path = PathBuf::from(format!("{}{path}", action.root.display()));
            OpenRootError { what: "error page", path, source }
        })?;
        let media_type = media_type(path, action.charset.as_deref()).into_owned();
        pages.insert(status, Page { media_type, body: page });
    }
    Ok(pages)
}

fn read(root: &Root, path: &str) -> io::Result<Vec<u8>> {
    let Ok(Found::File(file, stat)) = root.find(path, Disk::Any) else {
        return Err(io::Error::other("there is no file that may be read"));
    };
    if stat.st_size as u64 > MAX_PAGE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PAGE).read_to_end(&mut bytes)?;
    Ok(bytes)
}
