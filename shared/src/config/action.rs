//! What a route does: files, respond, redirect or fault.

use std::path::PathBuf;

use super::bounds::STATUS;
use super::entry::{Choices, Entry};
use super::problem::Refusal;
use super::resolved::{Action, Fault, FilesAction};
use super::site::Faults;
use super::table::Table;
use super::written::{FILES, REDIRECT, RESPOND};

/// Statuses whose answers have no content (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5).
const WITHOUT_BODY: [u16; 3] = [204, 205, 304];

/// Statuses that send a client to the Location (RFC 9110, section 15.4).
const REDIRECTS: [i64; 5] = [301, 302, 303, 307, 308];

const FAULTS: Choices<Fault> = Choices {
    what: "fault",
    known: &[
        ("segv", Fault::Segv),
        ("abort", Fault::Abort),
        ("panic", Fault::Panic),
        ("overflow", Fault::Overflow),
        ("hang", Fault::Hang),
        ("leak", Fault::Leak),
        ("exit", Fault::Exit),
    ],
    planned: &[],
};

/// The first action of the route that is written and sound.
pub(super) fn action(route: &mut Table<'_>, faults: Faults) -> Option<Action> {
    let files = route.optional("files", &FILES).and_then(files);
    let respond = route.optional("respond", &RESPOND).map(respond);
    let redirect = route.optional("redirect", &REDIRECT).and_then(redirect);
    let fault = route.entry("fault").and_then(|entry| fault(&entry, faults)).map(Action::Fault);
    files.or(respond).or(redirect).or(fault)
}

fn files(mut table: Table<'_>) -> Option<Action> {
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

fn respond(mut table: Table<'_>) -> Action {
    let status = table.number("status", 200, &STATUS);
    let body = table.entry("body").and_then(|entry| body(&entry, status)).unwrap_or_default();
    let content_type = table.entry("type").and_then(|entry| header_value(&entry, "a media type"));
    table.finish();
    Action::Respond { status, body, content_type: content_type.unwrap_or_else(|| "text/plain".to_owned()) }
}

fn body(entry: &Entry<'_>, status: u16) -> Option<String> {
    let body = entry.text("a string")?;
    if WITHOUT_BODY.contains(&status) && !body.is_empty() {
        entry.refuse(format!("an answer with status {status} has no body"), "remove the body, or change the status");
    }
    Some(body.to_owned())
}

fn redirect(mut table: Table<'_>) -> Option<Action> {
    let to = table.required("to").and_then(|entry| location(&entry));
    let status = table.entry("status").and_then(|entry| redirect_status(&entry)).unwrap_or(301);
    table.finish();
    Some(Action::Redirect { to: to?, status })
}

fn location(entry: &Entry<'_>) -> Option<String> {
    let to = header_value(entry, "a path or a URL")?;
    if to.contains(' ') {
        entry.refuse("a URL has no spaces", "write %20 for each space");
        return None;
    }
    Some(to)
}

fn redirect_status(entry: &Entry<'_>) -> Option<u16> {
    let status = entry.number()?;
    if !REDIRECTS.contains(&status) {
        entry.refuse(format!("{status} does not redirect"), "use 301, 302, 303, 307 or 308");
    }
    u16::try_from(status).ok()
}

/// A field value (RFC 9110, section 5.5), kept to ASCII, which every client reads alike.
fn header_value(entry: &Entry<'_>, what: &str) -> Option<String> {
    let written = entry.text(what)?;
    let sound = !written.is_empty()
        && written.trim_matches([' ', '\t']) == written
        && written.bytes().all(|byte| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic());
    if !sound {
        let hint = format!("write {what} in ASCII, without control characters and without spaces around it");
        entry.refuse(format!("{written:?} cannot stand in a header"), hint);
    }
    sound.then(|| written.to_owned())
}

fn fault(entry: &Entry<'_>, faults: Faults) -> Option<Fault> {
    let fault = entry.choice(&FAULTS)?;
    if faults == Faults::Refused {
        let hint = "set allow_faults = true in [workers] on a test machine, or remove the route";
        entry.refuse("fault routes are not allowed, they break the worker on purpose", hint);
    }
    Some(fault)
}
