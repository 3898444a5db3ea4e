//! What a route adds to its answers, how it limits them, and how it serves files.

use std::collections::BTreeMap;
use std::time::Duration;

use super::problems::{check, check_routes};
use super::*;

const HEAD: &str = "[[listen]]\naddress = \"8080\"\n[[site]]\n[[site.route]]\npath = \"/\"\n";

/// The only route of a file, its keys as given.
fn route_of(keys: &str) -> Route {
    let mut config = config_of(&format!("{HEAD}{keys}"));
    config.sites.remove(0).routes.remove(0)
}

fn files_of(keys: &str) -> FilesAction {
    let Action::Files(files) = route_of(keys).action else { panic!("{keys}: not files") };
    files
}

#[test]
fn a_route_adds_nothing_and_limits_nobody_unless_told() {
    let route = route_of("redirect = { to = \"/\" }");
    let redirect = Action::Redirect { to: "/".into(), status: 301 };
    assert_eq!(route, Route::new(RoutePath::Prefix("/".into()), redirect));
    assert_eq!((route.headers, route.cache_control, route.limit), (vec![], None, None));
}

#[test]
fn headers_cache_control_and_limit_are_taken_as_written() {
    let route = route_of(
        r#"
respond = {}
headers = { "X-Frame-Options" = "DENY", x-a = "a b" }
cache_control = "public, max-age=3600"
limit = { rate = "30/m", burst = 10 }
"#,
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(route.headers, [pair("X-Frame-Options", "DENY"), pair("x-a", "a b")]);
    assert_eq!(route.cache_control.as_deref(), Some("public, max-age=3600"));
    assert_eq!(route.limit, Some(Rate { interval: Duration::from_secs(2), burst: 10 }));
    let headed = route_of("respond = {}\n[site.route.headers]\nX-B = \"b\"\n[site.route.limit]\nrate = \"5/s\"");
    assert_eq!(headed.headers, [pair("X-B", "b")]);
    assert_eq!(headed.limit, Some(Rate { interval: Duration::from_millis(200), burst: 1 }));
}

#[test]
fn as_many_headers_as_the_bounds_allow_are_taken() {
    let most: Vec<String> = (0..32).map(|nth| format!("X-{nth} = \"a\"")).collect();
    assert_eq!(route_of(&format!("respond = {{}}\nheaders = {{ {} }}", most.join(", "))).headers.len(), 32);
    let value = "x".repeat(4096 - "X: \r\n".len());
    assert_eq!(route_of(&format!("respond = {{}}\nheaders = {{ X = \"{value}\" }}")).headers[0].1, value);
}

#[test]
fn headers_are_sound_and_not_the_servers_own() {
    check_routes(&[
        ("respond = {}\nheaders = []", 7, 11, "site.route.headers: expected a table such as", "\"X-Frame-Options\""),
        (
            "respond = {}\n[[site.route.headers]]",
            7,
            14,
            "site.route.headers: expected a table such as { \"X-Frame-Options\" = \"DENY\" }, found a list of tables",
            "added to every answer",
        ),
        ("respond = {}\nheaders = { X-A = 1 }", 7, 19, "site.route.headers.X-A: expected a header value", "added to"),
        (
            "respond = {}\nheaders = { X.A = \"\" }",
            7,
            13,
            "headers.X: expected a header value, found a table",
            "write a",
        ),
        ("respond = {}\nheaders = { X = \"\" }", 7, 17, "headers.X: \"\" cannot stand in a header", "in ASCII"),
        ("respond = {}\nheaders = { X = \" a\" }", 7, 17, "cannot stand in a header", "without spaces around it"),
        ("respond = {}\nheaders = { X = \"a\\r\\nY: b\" }", 7, 17, "cannot stand in a header", "control characters"),
        ("respond = {}\nheaders = { \"X A\" = \"a\" }", 7, 13, "\"X A\" is not the name of a header", "write letters"),
        ("respond = {}\nheaders = { \"\" = \"a\" }", 7, 13, "\"\" is not the name of a header", "write letters"),
        ("respond = {}\nheaders = { \"X:\" = \"a\" }", 7, 13, "\"X:\" is not the name of a header", "write letters"),
        (
            "respond = {}\nheaders = { X-A = \"a\", x-a = \"b\" }",
            7,
            24,
            "site.route.headers: x-a is set already, see line 7 (case makes no difference)",
            "remove one",
        ),
        ("respond = {}\nheaders = { date = \"a\" }", 7, 13, "headers: the server sets date itself", "remove it"),
        (
            "respond = {}\nheaders = { Cache-Control = \"a\" }",
            7,
            13,
            "sets Cache-Control itself",
            "write cache_control =",
        ),
        ("respond = {}\nheaders = { Location = \"a\" }", 7, 13, "sets Location itself", "use redirect"),
        (
            "respond = {}\nheaders = { Content-Type = \"a\" }",
            7,
            13,
            "sets Content-Type itself",
            "write type in respond",
        ),
        ("respond = {}\ncache_control = \"\"", 7, 17, "cannot stand in a header", "a Cache-Control value such as"),
        ("respond = {}\ncache_control = 3600", 7, 17, "expected a Cache-Control value", "max-age=3600"),
        ("respond = {}\nheader = {}", 7, 1, "unknown key `site.route.header`", "did you mean `headers`?"),
    ]);
}

#[test]
fn every_header_that_the_server_owns_is_refused_in_any_case() {
    let owned = "Date Server Content-Length Transfer-Encoding Connection Keep-Alive Upgrade Content-Range Content-Encoding \
                 Trailer TE ETag Last-Modified Accept-Ranges Vary Location Content-Type Cache-Control";
    for name in owned.split_whitespace().flat_map(|name| [name.to_owned(), name.to_uppercase()]) {
        let expected = format!("the server sets {name} itself");
        let text = format!("respond = {{}}\nheaders = {{ {name} = \"a\" }}");
        check_routes(&[(&text, 7, 13, &expected, "")]);
    }
}

#[test]
fn headers_have_bounds() {
    let many: Vec<String> = (0..33).map(|nth| format!("X-{nth} = \"a\"")).collect();
    let many = format!("respond = {{}}\nheaders = {{ {} }}", many.join(", "));
    let large = format!("respond = {{}}\nheaders = {{ X = \"{}\" }}", "x".repeat(4097 - "X: \r\n".len()));
    check_routes(&[
        (&many, 7, 11, "site.route.headers: 33 headers are more than 32", "sent with every answer"),
        (&large, 7, 11, "these headers have 4097 bytes together, more than 4096", "shorten them"),
    ]);
}

#[test]
fn limits_have_a_rate_and_a_burst() {
    check_routes(&[
        (
            "respond = {}\nlimit = \"30/m\"",
            7,
            9,
            "site.route.limit: expected a table, limit = { … }",
            "a client address",
        ),
        ("respond = {}\nlimit = {}", 7, 9, "site.route.limit.rate is missing", "add rate to limit = { … }"),
        ("respond = {}\nlimit = { rate = 30 }", 7, 18, "limit.rate: expected a rate such as \"30/m\"", "\"5/s\""),
        ("respond = {}\nlimit = { rate = \"30\" }", 7, 18, "limit.rate: \"30\" is not a rate", "as in \"30/m\""),
        ("respond = {}\nlimit = { rate = \"30/min\" }", 7, 18, "unknown unit \"min\"", "write \"30/m\""),
        ("respond = {}\nlimit = { rate = \"30/w\" }", 7, 18, "unknown unit \"w\"", "units are s, m, h, d"),
        ("respond = {}\nlimit = { rate = \"0/s\" }", 7, 18, "\"0/s\" lets nobody in", "status = 403"),
        ("respond = {}\nlimit = { rate = \"2000000/s\" }", 7, 18, "more than 1000000 requests a second", "or less"),
        (
            "respond = {}\nlimit = { rate = \"1/s\", burst = 0 }",
            7,
            33,
            "limit.burst: 0 is less than 1",
            "use 1 to 100000",
        ),
        ("respond = {}\nlimit = { rate = \"1/s\", burst = 100001 }", 7, 33, "is more than 100000", "at once"),
        ("respond = {}\nlimit = { rate = \"1/s\", bust = 1 }", 7, 25, "unknown key `site.route.limit.bust`", "`burst`"),
    ]);
    check(&[("[limit]\nrate = \"1/s\"", 1, 2, "unknown table or key `limit`", "did you mean `limits`?")], REST);
}

#[test]
fn files_are_served_plainly_unless_told() {
    let files = files_of("files = { root = \"/\" }");
    assert_eq!(files, FilesAction::new("/".into()));
    assert_eq!((files.index, files.listing, files.fallback), (vec!["index.html".to_owned()], false, None));
    assert!(files.compress && files.precompressed);
    assert_eq!((files.charset.as_deref(), files.deny), (Some("utf-8"), vec![".*".to_owned()]));
    assert!(files.error_pages.is_empty());
}

#[test]
fn the_ways_to_serve_files_are_taken_as_written() {
    let files = files_of(
        r#"
files = { root = "/", index = [], listing = true, fallback = "/index.html", compress = false, precompressed = false }
charset = "off"
deny = ["*.bak", "/private/*"]
error_pages = { 404 = "/404.html", "403" = "/errors/403.html" }
"#,
    );
    let expected = FilesAction {
        root: "/".into(),
        index: Vec::new(),
        listing: true,
        fallback: Some("/index.html".into()),
        compress: false,
        precompressed: false,
        charset: None,
        deny: vec!["*.bak".into(), "/private/*".into()],
        error_pages: BTreeMap::from([(403, "/errors/403.html".into()), (404, "/404.html".into())]),
    };
    assert_eq!(files, expected);
    let other = files_of("files = { root = \"/\" }\ncharset = \"iso-8859-1\"\ndeny = []");
    assert_eq!((other.charset.as_deref(), other.deny.len()), (Some("iso-8859-1"), 0));
}

#[test]
fn keys_for_files_are_refused_on_other_routes() {
    check_routes(&[
        ("respond = {}\ncharset = \"utf-8\"", 7, 11, "site.route.charset: only a route with files", "remove charset"),
        ("respond = {}\ndeny = []", 7, 8, "site.route.deny: only a route with files has this key", "remove deny"),
        ("respond = {}\nerror_pages = {}", 7, 15, "site.route.error_pages: only a route", "serve files on this route"),
        (
            "files = { root = \"/\", deny = [] }",
            6,
            23,
            "unknown key `site.route.files.deny`",
            "belongs in [[site.route]]",
        ),
        (
            "files = { root = \"/\" }\nlisting = true",
            7,
            1,
            "unknown key `site.route.listing`",
            "belongs in files = { … }",
        ),
    ]);
}

#[test]
fn the_ways_to_serve_files_are_sound() {
    let many = format!("files = {{ root = \"/\" }}\ndeny = [{}]", "\"a\", ".repeat(65));
    check_routes(&[
        ("files = { root = \"/\", listing = 1 }", 6, 33, "files.listing: expected true or false", "list of files"),
        (
            "files = { root = \"/\", compress = \"gzip\" }",
            6,
            34,
            "files.compress: expected true or false",
            "compressed",
        ),
        (
            "files = { root = \"/\", precompressed = 0 }",
            6,
            39,
            "files.precompressed: expected true or false",
            "file.br",
        ),
        (
            "files = { root = \"/\", fallback = \"index.html\" }",
            6,
            34,
            "site.route.files.fallback: the path \"index.html\" does not start with \"/\"",
            "write \"/index.html\"",
        ),
        ("files = { root = \"/\", fallback = \"/../a\" }", 6, 34, "\"/../a\" has \"..\" in it", "from the root down"),
        ("files = { root = \"/\", fallback = \"/a\\u0000\" }", 6, 34, "has a NUL character", "remove the \\u0000"),
        (
            "files = { root = \"/\" }\ncharset = false",
            7,
            11,
            "expected a charset such as \"utf-8\", or \"off\"",
            "text",
        ),
        ("files = { root = \"/\" }\ncharset = \"OFF\"", 7, 11, "unknown charset \"OFF\"", "did you mean \"off\"?"),
        ("files = { root = \"/\" }\ncharset = \"utf 8\"", 7, 11, "\"utf 8\" is not a charset", "write a name such as"),
        ("files = { root = \"/\" }\ncharset = \"\"", 7, 11, "\"\" is not a charset", "or \"off\" for none"),
        (
            "files = { root = \"/\" }\ndeny = \".*\"",
            7,
            8,
            "expected a list of patterns such as [\".*\"]",
            "write a list",
        ),
        ("files = { root = \"/\" }\ndeny = [7]", 7, 9, "site.route.deny: expected a pattern", "write a pattern"),
        ("files = { root = \"/\" }\ndeny = [\"\"]", 7, 9, "site.route.deny: the pattern is empty", "matches nothing"),
        (
            "files = { root = \"/\" }\ndeny = [\"a/b\"]",
            7,
            9,
            "\"a/b\" has a \"/\" and does not start with it",
            "\"/a/b\"",
        ),
        (&many, 7, 8, "site.route.deny: 65 patterns are more than 64", "put some together"),
    ]);
}

#[test]
fn error_pages_are_paths_by_status() {
    let case = |pages: &str| format!("files = {{ root = \"/\" }}\nerror_pages = {pages}");
    let cases = [
        (case("[]"), 15, "site.route.error_pages: expected a table such as { 404 = \"/404.html\" }", "by status"),
        (case("{ 200 = \"/a\" }"), 17, "error_pages: \"200\" is not the status of an error", "use 400 to 599"),
        (case("{ 600 = \"/a\" }"), 17, "\"600\" is not the status of an error", "use 400 to 599"),
        (case("{ 0404 = \"/a\" }"), 17, "\"0404\" is not the status of an error", "use 400 to 599"),
        (case("{ 4xx = \"/a\" }"), 17, "\"4xx\" is not the status of an error", "use 400 to 599"),
        (case("{ 404 = 404 }"), 23, "error_pages.404: expected a path such as \"/index.html\"", "write a path"),
        (case("{ 404 = \"404.html\" }"), 23, "\"404.html\" does not start with \"/\"", "write \"/404.html\""),
        (case("{ 404 = \"/a/..\" }"), 23, "error_pages.404: the path \"/a/..\" has \"..\" in it", "root down"),
        (case("{ 404 = \"/\\u0000\" }"), 23, "has a NUL character", "remove the \\u0000"),
    ];
    let cases: Vec<_> =
        cases.iter().map(|(text, column, what, hint)| (text.as_str(), 7, *column, *what, *hint)).collect();
    check_routes(&cases);
}

#[test]
fn all_that_is_wrong_with_a_pair_is_reported() {
    let keys = "files = { root = \"/\" }\nheaders = { Date = \"\", \"é\" = 1 }\nerror_pages = { 99 = \"x\" }";
    let problems = problems_of(&format!("{HEAD}{keys}"));
    assert_eq!(problems.len(), 6, "{}", Problems(problems));
}
