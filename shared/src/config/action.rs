//! What a route does: files, respond, redirect or fault.

mod files;

use std::time::Duration;

use super::bounds::{EFFORT, STATUS};
use super::entry::{Choices, Entry};
use super::headers::header_value;
use super::resolved::{Action, Effort, Fault, FaultKind, Health};
use super::site::Permitted;
use super::table::Table;
use super::written::{REDIRECT, RESPOND};

/// Statuses whose answers have no content (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5).
const WITHOUT_BODY: [u16; 3] = [204, 205, 304];

/// Statuses that send a client to the Location (RFC 9110, section 15.4).
const REDIRECTS: [i64; 5] = [301, 302, 303, 307, 308];

const fn inline(kind: FaultKind) -> Fault {
    Fault { kind, pooled: false }
}

const fn pooled(kind: FaultKind) -> Fault {
    Fault { kind, pooled: true }
}

const HEALTH: Choices<Health> =
    Choices { what: "kind of health", known: &[("readiness", Health::Readiness), ("liveness", Health::Liveness)] };

const FAULTS: Choices<Fault> = Choices {
    what: "fault",
    known: &[
        ("segv", inline(FaultKind::Segv)),
        ("abort", inline(FaultKind::Abort)),
        ("panic", inline(FaultKind::Panic)),
        ("overflow", inline(FaultKind::Overflow)),
        ("hang", inline(FaultKind::Hang)),
        ("spin", inline(FaultKind::Spin)),
        ("deadlock", inline(FaultKind::Deadlock)),
        ("read", inline(FaultKind::Read)),
        ("leak", inline(FaultKind::Leak)),
        ("hoard", inline(FaultKind::Hoard)),
        ("exit", inline(FaultKind::Exit)),
        ("pooled-segv", pooled(FaultKind::Segv)),
        ("pooled-abort", pooled(FaultKind::Abort)),
        ("pooled-panic", pooled(FaultKind::Panic)),
        ("pooled-hang", pooled(FaultKind::Hang)),
        ("pooled-spin", pooled(FaultKind::Spin)),
        ("pooled-deadlock", pooled(FaultKind::Deadlock)),
        ("pooled-read", pooled(FaultKind::Read)),
    ],
};

/// The first action of the route that is written and sound.
pub(super) fn action(route: &mut Table<'_>, permitted: Permitted<'_>) -> Option<Action> {
    let files = files::files(route).map(Action::Files);
    let respond = route.optional("respond", &RESPOND).map(respond);
    let redirect = route.optional("redirect", &REDIRECT).and_then(redirect);
    let fault = route.entry("fault").and_then(|entry| fault(&entry, permitted)).map(Action::Fault);
    let app = route.entry("app").and_then(|entry| app(&entry, permitted)).map(Action::App);
    let health = route.entry("health").and_then(|entry| entry.choice(&HEALTH)).map(Action::Health);
    files.or(respond).or(redirect).or(app).or(health).or(fault)
}

fn respond(mut table: Table<'_>) -> Action {
    let status = table.number("status", 200, &STATUS);
    let body = table.entry("body").and_then(|entry| body(&entry, status)).unwrap_or_default();
    let content_type = table.entry("type").and_then(|entry| header_value(&entry, "a media type"));
    let mut time = |key| table.duration_within(key, Duration::ZERO, &EFFORT);
    let effort = Effort { work: time("work"), wait: time("wait") };
    table.finish();
    let content_type = content_type.unwrap_or_else(|| "text/plain".to_owned());
    Action::Respond { status, body, content_type, effort }
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

fn app(entry: &Entry<'_>, permitted: Permitted<'_>) -> Option<String> {
    let name = entry.text("the name of an app")?;
    if permitted.apps.iter().any(|app| app.name == name) {
        return Some(name.to_owned());
    }
    let known: Vec<String> = permitted.apps.iter().map(|app| format!("{:?}", app.name)).collect();
    let hint = match &known[..] {
        [] => "an app is part of a program that has Phalanx as a library: run that program".to_owned(),
        known => format!("this program has {}", known.join(" and ")),
    };
    entry.refuse(format!("there is no app {name:?} in this program"), hint);
    None
}

fn fault(entry: &Entry<'_>, permitted: Permitted<'_>) -> Option<Fault> {
    let fault = entry.choice(&FAULTS)?;
    if !permitted.faults {
        let hint = "set allow_faults = true in [workers] on a test machine, or remove the route";
        entry.refuse("fault routes are not allowed, they break the worker on purpose", hint);
    }
    Some(fault)
}
