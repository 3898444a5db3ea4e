//! What a well-behaved client sees: routes, files, connections, bodies, limits, listeners.

use crate::harness::{Client, HELLO, SOON, Server, Setup, beside_others, wait_until};

fn start() -> Server {
    let setup = Setup::new(1)
        .file("index.html", "<h1>index</h1>")
        .file("page.html", "<p>page</p>")
        .file("style.css", "p {}")
        .file("sub/index.html", "sub index")
        .file("empty/keep", "")
        .file("with space.txt", "space")
        .file("digits", "0123456789")
        .routes(
            r#"
[[site.route]]
path = "/old/"
redirect = { to = "/new/", status = 301 }
[[site.route]]
path = "/hello/"
respond = { status = 200, body = "prefix", type = "text/plain" }
[[site.route]]
path = "= /hello/exact"
respond = { status = 203, body = "exact", type = "text/x-exact" }
[[site.route]]
path = "/gone"
respond = { status = 410, body = "gone", type = "text/plain" }
[[site.route]]
path = "/nothing"
respond = { status = 204 }
"#,
        );
    setup.directory().write("secret.txt", "the secret");
    std::os::unix::fs::symlink("../secret.txt", setup.directory().path("site/link.txt")).unwrap();
    std::os::unix::fs::symlink("page.html", setup.directory().path("site/inside.html")).unwrap();
    setup.start()
}

#[test]
pub(crate) fn a_fixed_response_has_its_status_type_body_and_a_date() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let response = client.get("/hello");
    response.assert(200, HELLO);
    assert_eq!(response.header("content-type"), Some("text/plain"));
    let date = response.header("date").expect("a Date").to_owned();
    assert!(date.len() == 29 && date.ends_with(" GMT"), "an IMF-fixdate: {date:?}");
    client.get("/gone").assert(410, b"gone");
    client.get("/nothing").assert(204, b"");
    client.assert_usable();
}

#[test]
pub(crate) fn files_come_with_type_length_and_validators() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let page = client.get("/page.html");
    page.assert(200, b"<p>page</p>");
    assert!(page.header("content-type").is_some_and(|value| value.starts_with("text/html")), "{page}");
    assert!(page.header("etag").is_some_and(|value| value.contains('"')), "{page}");
    assert!(page.header("last-modified").is_some_and(|value| value.ends_with(" GMT")), "{page}");
    let style = client.get("/style.css?version=2");
    style.assert(200, b"p {}");
    assert!(style.header("content-type").is_some_and(|value| value.starts_with("text/css")), "{style}");
    client.get("/with%20space.txt").assert(200, b"space");
    client.get("/inside.html").assert(200, b"<p>page</p>");
}

#[test]
pub(crate) fn a_directory_gives_its_index_and_without_one_nothing() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    client.get("/").assert(200, b"<h1>index</h1>");
    client.get("/sub/").assert(200, b"sub index");
    let without_slash = client.get("/sub");
    assert!([301, 308].contains(&without_slash.status), "{without_slash}");
    assert!(without_slash.header("location").is_some_and(|to| to.ends_with("/sub/")), "{without_slash}");
    let no_index = client.get("/empty/");
    assert!([403, 404].contains(&no_index.status), "{no_index}");
    assert_eq!(client.get("/absent").status, 404);
    assert_eq!(client.get("/page.html/more").status, 404);
    client.assert_usable();
}

#[test]
pub(crate) fn head_is_get_without_the_body() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for (path, length) in [("/hello", "13"), ("/page.html", "11"), ("/", "14")] {
        let response = client.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        response.assert(200, b"");
        assert_eq!(response.header("content-length"), Some(length), "{response}");
    }
    client.assert_usable();
}

#[test]
pub(crate) fn a_redirect_names_its_target() {
    let _machine = beside_others();
    let server = start();
    let response = server.connect().get("/old/x");
    assert_eq!(response.status, 301, "{response}");
    assert!(response.header("location").is_some_and(|to| to.contains("/new/")), "{response}");
}

#[test]
fn the_longest_prefix_wins_and_an_exact_path_over_every_prefix() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    client.get("/hello/other").assert(200, b"prefix");
    client.get("/hello/exact?query").assert(203, b"exact");
    client.get("/hello/exact/").assert(200, b"prefix");
    client.get("/hello").assert(200, HELLO);
}

#[test]
pub(crate) fn a_connection_carries_many_requests_and_pipelined_ones_are_answered_in_order() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for _request in 0..200 {
        client.assert_usable();
    }
    let paths = ["/hello", "/page.html", "/absent", "/gone", "/digits"];
    let batch: String =
        paths.iter().cycle().take(200).map(|path| format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")).collect();
    client.send(batch.as_bytes());
    for path in paths.iter().cycle().take(200) {
        let response = client.answer();
        match *path {
            "/hello" => response.assert(200, HELLO),
            "/page.html" => response.assert(200, b"<p>page</p>"),
            "/gone" => response.assert(410, b"gone"),
            "/digits" => response.assert(200, b"0123456789"),
            _ => assert_eq!(response.status, 404, "{path}: {response}"),
        }
    }
    client.assert_usable();
    server.wait_total(401);
    assert_eq!(server.status().total("accepted"), 1);
}

#[test]
pub(crate) fn a_request_in_pieces_is_one_request() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for piece in ["GE", "T /hel", "lo HTTP/1.1\r", "\nHost: te", "st\r\n\r", "\n"] {
        client.send(piece.as_bytes());
        client.wait_taken();
    }
    client.answer().assert(200, HELLO);
    client.assert_usable();
}

#[test]
pub(crate) fn connection_close_is_honoured_and_announced() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let response = client.ask("GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    response.assert(200, HELLO);
    assert!(response.closes(), "{response}");
    client.assert_closed();
}

#[test]
pub(crate) fn a_client_that_sends_no_more_still_gets_its_answers() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    client.send(&b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n".repeat(2));
    client.finish_sending();
    client.answer().assert(200, HELLO);
    client.answer().assert(200, HELLO);
    client.assert_closed();
}

#[test]
pub(crate) fn http_1_0_closes_unless_asked_to_keep_the_connection() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let response = client.ask("GET /hello HTTP/1.0\r\n\r\n");
    response.assert(200, HELLO);
    client.assert_closed();
    let mut client = server.connect();
    let response = client.ask("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    response.assert(200, HELLO);
    assert_eq!(response.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"), "{response}");
    client.assert_usable();
}

#[test]
pub(crate) fn expect_100_continue_is_answered_before_the_body() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let interim = client.ask("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(interim.status, 100, "{interim}");
    client.send(b"12345");
    client.answer().assert(200, HELLO);
    client.assert_usable();
    server.wait_total(2);
}

#[test]
fn expect_100_continue_is_answered_for_a_request_that_comes_with_the_body_before_it() {
    const HEAD: &str = "POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    assert_eq!(client.ask(HEAD).status, 100);
    client.send(format!("12345{HEAD}").as_bytes());
    client.answer().assert(200, HELLO);
    let interim = client.answer();
    assert_eq!(interim.status, 100, "{interim}");
    client.send(b"12345");
    client.answer().assert(200, HELLO);
    client.assert_usable();
    server.wait_total(3);
}

#[test]
pub(crate) fn bodies_by_length_and_in_chunks_are_read_to_their_end() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    for size in [0, 1, 15_000, 16_384, 100_000, 1 << 20] {
        client.send(format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n").as_bytes());
        client.send(&vec![b'x'; size]);
        client.answer().assert(200, HELLO);
    }
    client.send(b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in ["5\r\nhello\r\n", "A;name=value\r\n0123456789\r\n", "0\r\n", "Trailer: x\r\n", "\r\n"] {
        client.send(chunk.as_bytes());
        client.wait_taken();
    }
    client.answer().assert(200, HELLO);
    client.send(b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _chunk in 0..50 {
        client.send(format!("1000\r\n{}\r\n", "y".repeat(0x1000)).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    client.answer().assert(200, HELLO);
    client.assert_usable();
}

#[test]
pub(crate) fn an_oversized_head_gets_431_and_a_close() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\nX-Long: ");
    // The server may close before all of this is sent.
    let _sent = client.try_send(&[b'a'; 12 * 1024]);
    let response = client.answer();
    assert_eq!(response.status, 431, "{response}");
    assert!(response.closes(), "{response}");
    client.assert_closed();
}

#[test]
pub(crate) fn an_oversized_body_gets_413_and_a_close() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let response = client.ask("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 1048577\r\n\r\n");
    assert_eq!(response.status, 413, "{response}");
    assert!(response.closes(), "{response}");
    client.assert_closed();
    let mut client = server.connect();
    client.send(b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x10000));
    for _chunk in 0..17 {
        let _sent = client.try_send(chunk.as_bytes());
    }
    let response = client.answer();
    assert_eq!(response.status, 413, "{response}");
}

#[test]
fn a_method_that_a_file_does_not_have_is_refused_with_those_it_has() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let response = client.ask("DELETE /page.html HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(response.status, 405, "{response}");
    assert!(
        response.header("allow").is_some_and(|value| value.contains("GET") && value.contains("HEAD")),
        "{response}"
    );
    client.assert_usable();
}

#[test]
pub(crate) fn conditional_requests_spare_the_body() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let first = client.get("/page.html");
    let (tag, modified) = (first.header("etag").unwrap(), first.header("last-modified").unwrap());
    let mut with = |name: &str, value: &str| {
        client.ask(&format!("GET /page.html HTTP/1.1\r\nHost: test\r\n{name}: {value}\r\n\r\n"))
    };
    let unchanged = with("If-None-Match", tag);
    unchanged.assert(304, b"");
    assert_eq!(unchanged.header("etag"), Some(tag));
    with("If-None-Match", &format!("\"other\", {tag}")).assert(304, b"");
    with("If-None-Match", "*").assert(304, b"");
    with("If-Modified-Since", modified).assert(304, b"");
    with("If-None-Match", "\"other\"").assert(200, b"<p>page</p>");
    with("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT").assert(200, b"<p>page</p>");
    with("If-Modified-Since", "no date").assert(200, b"<p>page</p>");
    client.assert_usable();
}

#[test]
pub(crate) fn one_byte_range_is_served_and_what_is_beyond_the_file_is_416() {
    let _machine = beside_others();
    let server = start();
    let mut client = server.connect();
    let mut range = |value: &str| client.ask(&format!("GET /digits HTTP/1.1\r\nHost: test\r\nRange: {value}\r\n\r\n"));
    for (value, body, content_range) in [
        ("bytes=0-3", "0123", "bytes 0-3/10"),
        ("bytes=4-", "456789", "bytes 4-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
        ("bytes=9-9", "9", "bytes 9-9/10"),
    ] {
        let response = range(value);
        response.assert(206, body.as_bytes());
        assert_eq!(response.header("content-range"), Some(content_range), "{value}: {response}");
    }
    let beyond = range("bytes=10-");
    assert_eq!(beyond.status, 416, "{beyond}");
    assert_eq!(beyond.header("content-range"), Some("bytes */10"), "{beyond}");
    for ignored in ["lines=1-2", "bytes=3-1", "bytes=x-", "bytes=0-4,5-9"] {
        range(ignored).assert(200, b"0123456789");
    }
    client.assert_usable();
}

#[test]
pub(crate) fn nothing_outside_the_root_is_served_however_it_is_written() {
    let _machine = beside_others();
    let server = start();
    let address = server.address();
    for path in [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/%252e%252e/secret.txt",
        "/.%2e/secret.txt",
        "//../secret.txt",
        "/sub/%2e%2e/%2e%2e/secret.txt",
        "/link.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/page.html%00.txt",
        "/proc/self/environ",
    ] {
        let response = Client::connect(&address).get(path);
        assert!([400, 403, 404].contains(&response.status), "{path}: {response}");
        assert!(!response.text().contains("the secret"), "{path}: {response}");
    }
}

#[test]
fn a_host_chooses_its_site_exact_names_before_wildcards_before_the_rest() {
    let _machine = beside_others();
    let site = |hosts: &str, body: &str| {
        format!(
            "[[site]]\n{hosts}\n[[site.route]]\npath = \"/\"\nrespond = {{ status = 200, body = \"{body}\", type = \"text/plain\" }}\n"
        )
    };
    let sites = site("", "any")
        + &site("hosts = [\"*.example.org\"]", "wild")
        + &site("hosts = [\"www.example.org\", \"example.org\"]", "exact");
    let server = Setup::new(1).sites(&sites).start();
    let mut client = server.connect();
    for (host, body) in [
        ("example.org", "exact"),
        ("www.example.org", "exact"),
        ("WWW.Example.ORG", "exact"),
        ("example.org:8080", "exact"),
        ("a.example.org", "wild"),
        ("a.b.example.org", "wild"),
        ("example.com", "any"),
        ("notexample.org", "any"),
        ("127.0.0.1", "any"),
    ] {
        let response = client.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(response.text(), body, "{host}: {response}");
    }
}

#[test]
pub(crate) fn unix_sockets_and_ipv6_addresses_are_listened_on_beside_ipv4() {
    let _machine = beside_others();
    let server = Setup::new(2).listen(&["127.0.0.1:0", "[::1]:0", "unix:{dir}/h"]).start();
    let listeners = server.status().listeners();
    assert_eq!(listeners.len(), 3, "{listeners:?}");
    assert!(listeners[1].starts_with("[::1]:") && listeners[2].starts_with("unix:/"), "{listeners:?}");
    for address in &listeners {
        for _connection in 0..4 {
            let mut client = Client::connect(address);
            client.assert_usable();
            client.assert_usable();
        }
    }
    server.wait_total(24);
}

#[test]
pub(crate) fn slow_heads_and_idle_connections_are_ended() {
    let _machine = beside_others();
    let server = Setup::new(1).set("timeouts", "head = \"300ms\"").set("timeouts", "idle = \"600ms\"").start();
    let mut slow = server.connect();
    slow.send(b"GET /hello HTTP/1.1\r\nHos");
    let response = slow.answer();
    assert_eq!(response.status, 408, "{response}");
    slow.assert_closed();
    let mut idle = server.connect();
    idle.assert_usable();
    idle.assert_closed();
    wait_until("no connection is left", SOON, || server.status().total("connections") == 0);
}

#[test]
pub(crate) fn the_access_log_has_a_whole_line_for_each_request() {
    let _machine = beside_others();
    for (format, first, second) in [
        ("combined", "\"GET /hello?a=b HTTP/1.1\" 200 13", "\"GET /absent HTTP/1.1\" 404"),
        ("json", "/hello?a=b", "/absent"),
    ] {
        let server = Setup::new(1)
            .set("log", "access = \"{dir}/access.log\"")
            .set("log", &format!("format = \"{format}\""))
            .start();
        let mut client = server.connect();
        client
            .ask("GET /hello?a=b HTTP/1.1\r\nHost: test\r\nUser-Agent: a \"quoted\" agent\r\n\r\n")
            .assert(200, HELLO);
        client.get("/absent");
        let lines = || server.directory().read("access.log").lines().map(str::to_owned).collect::<Vec<_>>();
        wait_until("two lines in the access log", SOON, || lines().len() >= 2);
        let lines = lines();
        assert!(lines.len() == 2 && lines[0].contains(first) && lines[1].contains(second), "{lines:#?}");
        if format == "json" {
            for line in lines {
                let value: serde_json::Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                assert!(value["status"].is_number(), "{value}");
            }
        }
    }
}
