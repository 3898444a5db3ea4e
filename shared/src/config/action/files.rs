//! How a route serves files.

use std::path::PathBuf;

use super::super::entry::Entry;
use super::super::problem::Refusal;
use super::super::resolved::{Action, FilesAction};
use super::super::table::Table;

pub(super) fn files(mut table: Table<'_>) -> Option<Action> {
    let root = table.required("root").and_then(|entry| root(&entry));
    let index = table.entry("index").and_then(|entry| index(&entry));
    table.finish();
    let defaults = FilesAction::new(root?);
    Some(Action::Files(FilesAction { index: index.unwrap_or(defaults.index.clone()), ..defaults }))
}

fn root(entry: &Entry<'_>) -> Option<PathBuf> {
    let path = entry.check(entry.source().path(entry.text("a directory")?))?;
    if path.is_dir() {
        return Some(path);
    }
    let shown = path.display();
    if path.exists() {
        entry.refuse(format!("{shown} is not a directory"), "name the directory the files are in");
    } else {
        entry.refuse(format!("there is no directory {shown}"), "create it, or correct the path");
    }
    None
}

fn index(entry: &Entry<'_>) -> Option<Vec<String>> {
    let names = entry.list("a list of file names")?;
    Some(names.iter().filter_map(|entry| entry.check(file_name(entry.text("a file name")?))).collect())
}

fn file_name(written: &str) -> Result<String, Refusal> {
    if matches!(written, "" | "." | "..") || written.contains(['/', '\0']) {
        return Err(Refusal::new(format!("{written:?} is not a file name"), "write a name without \"/\""));
    }
    Ok(written.to_owned())
}
