//! What a route adds to its files: listings, a fallback, pages for errors, denied names, header fields, a charset.

use serde_json::Value;

use crate::files::get;
use crate::harness::{Server, Setup, beside_others, text_pattern};

const SITE: &str = r#"
[[site]]
[[site.route]]
path = "/"
files = { root = "{dir}/site", listing = true }
deny = [".*", "*.bak", "/private/*"]
error_pages = { 404 = "/errors/404.html", 403 = "/errors/403.txt" }
headers = { X-Frame-Options = "DENY" }
cache_control = "max-age=60"
charset = "iso-8859-1"
[[site.route]]
path = "/app/"
files = { root = "{dir}/site", fallback = "/app/index.html" }
charset = "off"
"#;

fn setup() -> Setup {
    Setup::new(1)
        .sites(SITE)
        .file("errors/404.html", "<p>not here</p>")
        .file("errors/403.txt", "not for you")
        .file("page.txt", text_pattern(2000, 1))
        .file("list/<b>&\"'.txt", "escaped")
        .file("list/a b", "spaced")
        .file("list/sub/x", "")
        .file("list/.hidden", "hidden")
        .file("list/old.bak", "old")
        .file("private/a", "private")
        .file("app/index.html", "<p>app</p>")
        .file("app/app.js", "start()")
}

fn start() -> Server {
    setup().start()
}

#[test]
pub(crate) fn a_listing_shows_what_may_be_seen_and_escapes_it() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let page = get(&mut client, "/list/", "");
    let text = page.text();
    assert_eq!((page.status, page.header("vary")), (200, Some("Accept")), "{page}");
    assert!(page.header("content-type").unwrap().starts_with("text/html"), "{page}");
    assert!(text.contains("a b") && text.contains("href=\"a%20b\"") && text.contains("href=\"sub/\""), "{text}");
    assert!(!text.contains("<b>") && text.contains("&lt;b&gt;&amp;"), "{text}");
    assert!(!text.contains("hidden") && !text.contains("old.bak"), "{text}");
    let json = get(&mut client, "/list/", "Accept: application/json\r\n");
    assert_eq!(json.header("content-type"), Some("application/json"), "{json}");
    let list: Value = serde_json::from_slice(&json.body).unwrap();
    let names: Vec<&str> = list["entries"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["sub", "<b>&\"'.txt", "a b"]);
    let root = get(&mut client, "/", "").text();
    assert!(root.contains("list/"), "{root}");
    let moved = get(&mut client, "/list?a=b", "");
    assert_eq!((moved.status, moved.header("location")), (301, Some("/list/?a=b")), "{moved}");
    std::fs::write(server.directory().path("site/list/new"), "").unwrap();
    assert!(get(&mut client, "/list/", "").text().contains("new"));
}

#[test]
fn a_fallback_answers_for_what_is_not_there() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for path in ["/app/", "/app/index.html", "/app/nothing", "/app/deep/er", "/app/nothing.txt"] {
        for _round in 0..2 {
            let response = get(&mut client, path, "");
            response.assert(200, b"<p>app</p>");
            assert_eq!(response.header("content-type"), Some("text/html"), "{path}");
        }
    }
    get(&mut client, "/app/app.js", "").assert(200, b"start()");
    get(&mut client, "/app/.hidden", "").assert(404, b"404 Not Found\n");
    std::fs::write(server.directory().path("site/app/index.html"), "another").unwrap();
    get(&mut client, "/app/nothing", "").assert(200, b"another");
    std::fs::write(server.directory().path("site/app/nothing"), "something").unwrap();
    get(&mut client, "/app/nothing", "").assert(200, b"something");
}

#[test]
fn what_is_denied_is_answered_as_if_it_were_not_there() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for path in ["/list/.hidden", "/list/old.bak", "/private/a", "/%70rivate/a", "/list/%2ehidden", "/nothing"] {
        for lines in ["", "Accept-Encoding: gzip\r\n", "Range: bytes=0-1\r\n"] {
            let response = get(&mut client, path, lines);
            response.assert(404, b"<p>not here</p>");
        }
    }
}

#[test]
fn fields_cache_control_and_charset_stand_where_they_belong() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let whole = get(&mut client, "/page.txt", "");
    let tag = whole.header("etag").unwrap().to_owned();
    let not_modified = format!("If-None-Match: {tag}\r\n");
    for (lines, status) in [
        ("", 200),
        ("Accept-Encoding: br\r\n", 200),
        ("Range: bytes=0-9\r\n", 206),
        ("Range: bytes=0-9,100-199\r\n", 206),
        (not_modified.as_str(), 304),
    ] {
        let response = get(&mut client, "/page.txt", lines);
        assert_eq!(response.status, status, "{lines}: {response}");
        assert_eq!(response.header("cache-control"), Some("max-age=60"), "{lines}: {response}");
        assert_eq!(response.header("x-frame-options"), Some("DENY"), "{lines}: {response}");
    }
    assert_eq!(whole.header("content-type"), Some("text/plain; charset=iso-8859-1"));
    let unsatisfiable = get(&mut client, "/page.txt", "Range: bytes=5000-\r\n");
    assert_eq!((unsatisfiable.status, unsatisfiable.header("x-frame-options")), (416, Some("DENY")));
    let missing = get(&mut client, "/missing", "");
    missing.assert(404, b"<p>not here</p>");
    assert_eq!(missing.header("content-type"), Some("text/html; charset=iso-8859-1"), "{missing}");
    assert_eq!((missing.header("x-frame-options"), missing.header("cache-control")), (Some("DENY"), None), "{missing}");
    let app = get(&mut client, "/app/app.js", "");
    assert_eq!(app.header("content-type"), Some("text/javascript"), "{app}");
    assert_eq!((app.header("x-frame-options"), app.header("cache-control")), (None, None), "{app}");
}

#[test]
fn a_missing_error_page_stops_a_start_and_changes_nothing_in_a_reload() {
    let _machine = beside_others();
    let site = SITE.replace("/errors/404.html", "/errors/absent.html");
    let server = setup().sites(&site).set("log", "error = \"{dir}/error.log\"").write();
    let outcome = server.cli("start", &[]);
    assert_ne!(outcome.code(), 0, "{outcome}");
    let said = format!("{}{}{}", outcome.stdout, outcome.stderr, server.log());
    assert!(said.contains("errors/absent.html") && said.contains("error page"), "{outcome}\n{}", server.log());

    let server = start();
    let mut client = server.connect();
    let generation = server.status().generation();
    server.rewrite(|text| text.replace("/errors/404.html", "/errors/absent.html").replace("DENY", "SAMEORIGIN"));
    let outcome = server.cli("reload", &[]);
    assert_ne!(outcome.code(), 0, "{outcome}");
    assert!(format!("{outcome}").contains("errors/absent.html"), "{outcome}");
    server.wait_serving();
    assert_eq!(server.status().generation(), generation);
    get(&mut client, "/missing", "").assert(404, b"<p>not here</p>");
    let response = get(&mut server.connect(), "/page.txt", "");
    assert_eq!(response.header("x-frame-options"), Some("DENY"), "{response}");
}
