//! Faults that were found once, each by the way in which a client came across it.

use std::time::Duration;

use crate::harness::{Client, Failure, HELLO, SOON, Setup, beside_others, pattern, wait_until};

/// A client that has more connections than it may have must not take the room of the others: it could have all of it by not
/// closing what was turned away.
#[test]
fn who_is_turned_away_takes_nobodys_room() {
    let _machine = beside_others();
    let limits = |setup: Setup| setup.set("limits", "connections = 200").set("limits", "connections_per_client = 2");
    let server = limits(Setup::new(1)).start();
    let address = server.address();
    let mut within: Vec<Client> = (0..2).map(|_| Client::connect(&address)).collect();
    within.iter_mut().for_each(Client::assert_usable);
    let mut away: Vec<Client> = (0..150).map(|_| Client::connect(&address)).collect();
    let most = server.status().total("connections");
    assert!(most <= 2 + 64, "{most} connections");
    away.iter_mut().for_each(|client| client.answer().assert(503, b""));
    within.iter_mut().for_each(Client::assert_usable);
}

const HIDDEN: &str = r#"
[[site]]
[[site.route]]
path = "/"
files = { root = "{dir}/site", index = ["secret.html", "index.html"], fallback = "/.app.html" }
deny = [".*", "/secret.html"]
"#;

/// A denied path was answered once something else had brought its file into the cache; and an index file was served for its
/// directory though its own path is denied.
#[test]
fn what_is_denied_stays_so_whatever_was_served_before() {
    let _machine = beside_others();
    let files = [("secret.html", "secret"), ("index.html", "index"), (".app.html", "app")];
    let setup = files.into_iter().fold(Setup::new(1).sites(HIDDEN), |setup, (name, text)| setup.file(name, text));
    let server = setup.start();
    let mut client = server.connect();
    for _ in 0..3 {
        client.get("/").assert(200, b"index");
        client.get("/nowhere").assert(200, b"app");
        assert_eq!(client.get("/.app.html").status, 404);
        assert_eq!(client.get("/secret.html").status, 404);
    }
}

/// An HTTP/1.0 peer cannot tell the end of a stream from its breaking off, but by a reset.
#[test]
fn a_stream_that_breaks_off_resets_an_http_1_0_peer() {
    let _machine = beside_others();
    let route = "[[site.route]]\npath = \"/big/\"\nfiles = { root = \"{dir}/site\", compress = true }\n";
    let bytes = pattern(24 << 20, 1);
    let setup = Setup::new(1).routes(route).file("big/a.txt", &bytes);
    let path = setup.directory().path("site/big/a.txt");
    let server = setup.start();
    let mut client = Client::connect_narrow(&server.address()).patient(Duration::from_secs(20));
    client.send(b"GET /big/a.txt HTTP/1.0\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n");
    client.wait_stuck();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let end = client.end();
    assert!(matches!(end, Failure::Reset(_)), "{end}");
    server.connect().get("/hello").assert(200, HELLO);
    wait_until("the connection is gone", SOON, || server.status().total("connections") <= 1);
}

/// What certificate authorities and others look for is there, though its name begins with a dot (RFC 8615).
#[test]
fn well_known_files_are_served() {
    let _machine = beside_others();
    let server = Setup::new(1).file(".well-known/acme", "token").file(".well-known/.git", "no").start();
    let mut client = server.connect();
    client.get("/.well-known/acme").assert(200, b"token");
    assert_eq!(client.get("/.well-known/.git").status, 404);
}
