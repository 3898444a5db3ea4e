//! Files as clients see them: whatever changes on disk is seen by the very next request, whichever way the file is sent, and a
//! content coding is chosen, named and validated as RFC 9110 says (sections 8.4, 8.8, 12.5.3 and 13).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::harness::{self, Client, Response, SOON, Server, Setup, beside_others, decoded, text_pattern, wait_until};

const GZIP: &str = "Accept-Encoding: gzip\r\n";
const BROTLI: &str = "Accept-Encoding: br\r\n";
const ZSTD: &str = "Accept-Encoding: zstd\r\n";
/// Above 1 MiB a file is compressed on its way.
const STREAM_BYTES: usize = 3 << 19;

/// `GET path` with further lines in its head.
#[track_caller]
pub(crate) fn get(client: &mut Client, path: &str, lines: &str) -> Response {
    client.ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n"))
}

/// A file of the standard site, on disk.
fn on_disk(server: &Server, name: &str) -> PathBuf {
    server.directory().path(&format!("site/{name}"))
}

/// Puts a file in the place of another in one step.
fn replace(path: &std::path::Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}

/// The ways in which a file is sent: its name, how long it is, what the client takes.
const WAYS: [(&str, usize, &str); 8] = [
    ("small.bin", 1000, ""),
    ("kept.bin", 40 * 1024, ""),
    ("large.bin", 3 << 20, ""),
    ("gzip.txt", 50_000, GZIP),
    ("brotli.txt", 50_000, BROTLI),
    ("zstd.txt", 50_000, ZSTD),
    ("plain.txt", 50_000, ""),
    ("stream.txt", STREAM_BYTES, GZIP),
];

/// Changes each file in every way, and asks for it on connections that know it already.
fn every_change_is_seen(setup: Setup) {
    let server = WAYS.iter().fold(setup, |setup, (name, len, _)| setup.file(name, text_pattern(*len, 1))).start();
    let mut client = server.connect();
    for (name, len, lines) in WAYS {
        let (path, url) = (on_disk(&server, name), format!("/{name}"));
        let mut tags = Vec::new();
        let mut assert_now = |what: &str, client: &mut Client, bytes: &[u8]| {
            for round in 0..2 {
                let response = get(client, &url, lines);
                assert_eq!(response.status, 200, "{name} {what}, {round}: {response}");
                let got = decoded(&response);
                assert!(got == bytes, "{name} {what}, {round}: {}", harness::difference(&got, bytes));
                tags.push(response.header("etag").unwrap().to_owned());
            }
        };
        assert_now("at first", &mut client, &text_pattern(len, 1));
        fs::write(&path, text_pattern(len + 7, 2)).unwrap();
        assert_now("rewritten", &mut client, &text_pattern(len + 7, 2));
        replace(&path, &text_pattern(len + 9, 3));
        assert_now("replaced", &mut client, &text_pattern(len + 9, 3));
        fs::remove_file(&path).unwrap();
        assert_eq!(get(&mut client, &url, lines).status, 404, "{name} removed");
        fs::write(&path, text_pattern(len - 7, 4)).unwrap();
        assert_now("back", &mut client, &text_pattern(len - 7, 4));
        let tags: Vec<&String> = tags.iter().step_by(2).collect();
        assert!(tags.windows(2).all(|pair| pair[0] != pair[1]), "{name}: an entity tag for two contents: {tags:?}");
        // As long as the last one, and perhaps of the same tick of the clock: only the inode tells them apart.
        replace(&path, &text_pattern(len - 7, 5));
        assert!(decoded(&get(&mut client, &url, lines)) == text_pattern(len - 7, 5), "{name} replaced by its like");
    }
}

#[test]
pub(crate) fn a_file_that_changes_is_seen_by_the_next_request() {
    let _machine = beside_others();
    every_change_is_seen(Setup::new(1));
}

#[test]
fn a_file_that_changes_is_seen_where_nothing_is_kept() {
    let _machine = beside_others();
    every_change_is_seen(Setup::new(1).set("cache", "memory = 0").set("cache", "open_files = 0"));
}

#[test]
fn a_file_made_unreadable_is_refused_by_the_next_request() {
    let _machine = beside_others();
    let mut setup = WAYS.iter().fold(Setup::new(1), |setup, (name, len, _)| setup.file(name, text_pattern(*len, 1)));
    if nix::unistd::geteuid().is_root() {
        // Nothing is unreadable to root.
        setup = setup.set("master", "user = \"nobody\"");
    }
    let server = setup.start();
    let mut client = server.connect();
    for (name, _, lines) in WAYS {
        let (path, url) = (on_disk(&server, name), format!("/{name}"));
        assert_eq!(get(&mut client, &url, lines).status, 200, "{name}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(get(&mut client, &url, lines).status, 403, "{name}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(get(&mut client, &url, lines).status, 200, "{name}");
    }
}

#[test]
pub(crate) fn a_sidecar_is_seen_as_it_comes_changes_ages_and_goes() {
    let _machine = beside_others();
    let text = text_pattern(50_000, 1);
    let server = Setup::new(1).file("page.txt", &text).start();
    let (page, sidecar) = (on_disk(&server, "page.txt"), on_disk(&server, "page.txt.gz"));
    let mut client = server.connect();
    let made = get(&mut client, "/page.txt", GZIP);
    assert_eq!(decoded(&made), text);
    assert!(made.header("etag").unwrap().starts_with("W/"), "{made}");
    for content in ["as if it were gzip", "another"] {
        fs::write(&sidecar, content).unwrap();
        for _round in 0..2 {
            let kept = get(&mut client, "/page.txt", GZIP);
            kept.assert(200, content.as_bytes());
            assert_eq!(kept.header("content-encoding"), Some("gzip"), "{kept}");
            assert_eq!(kept.header("content-type"), made.header("content-type"), "{kept}");
            assert!(!kept.header("etag").unwrap().starts_with("W/"), "{kept}");
        }
        get(&mut client, "/page.txt", "").assert(200, &text);
    }
    let set_modified =
        |path: &PathBuf, time| fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    let modified = fs::metadata(&page).unwrap().modified().unwrap();
    set_modified(&sidecar, modified - Duration::from_secs(9));
    assert_eq!(decoded(&get(&mut client, "/page.txt", GZIP)), text, "an older sidecar is of an older file");
    fs::write(&sidecar, "fresh again").unwrap();
    get(&mut client, "/page.txt", GZIP).assert(200, b"fresh again");
    let rewritten = text_pattern(40_000, 2);
    fs::write(&page, &rewritten).unwrap();
    let now = fs::metadata(&page).unwrap().modified().unwrap();
    set_modified(&sidecar, now - Duration::from_millis(10));
    assert_eq!(decoded(&get(&mut client, "/page.txt", GZIP)), rewritten, "the file is younger now");
    fs::write(&sidecar, "the last").unwrap();
    get(&mut client, "/page.txt", GZIP).assert(200, b"the last");
    fs::remove_file(&sidecar).unwrap();
    let [made, again] = [(), ()].map(|()| get(&mut client, "/page.txt", GZIP));
    assert_eq!((made.header("etag"), &made.body), (again.header("etag"), &again.body));
    assert_eq!(decoded(&get(&mut client, "/page.txt", GZIP)), rewritten);
}

#[test]
fn only_sidecars_are_sent_coded_where_nothing_is_compressed() {
    let _machine = beside_others();
    let site = "[[site]]\n[[site.route]]\npath = \"/\"\nfiles = { root = \"{dir}/site\", compress = false }\n";
    let text = text_pattern(50_000, 1);
    let setup = Setup::new(1).sites(site).file("a.txt", &text).file("b.txt", &text).file("b.txt.br", "brotli");
    let server = setup.file("b.txt.gz", "gzip").start();
    let mut client = server.connect();
    let plain = get(&mut client, "/a.txt", GZIP);
    plain.assert(200, &text);
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("Accept-Encoding")), "{plain}");
    for (lines, body) in [(GZIP, "gzip"), (BROTLI, "brotli"), ("Accept-Encoding: gzip;q=0.5, br\r\n", "brotli")] {
        get(&mut client, "/b.txt", lines).assert(200, body.as_bytes());
    }
    get(&mut client, "/b.txt", ZSTD).assert(200, &text);
}

#[test]
fn a_coding_is_named_validated_and_told_from_the_plain_file() {
    let _machine = beside_others();
    let text = text_pattern(50_000, 1);
    let server = Setup::new(1).file("page.txt", &text).file("stream.txt", text_pattern(STREAM_BYTES, 2)).start();
    let mut client = server.connect();
    for path in ["/page.txt", "/stream.txt"] {
        let plain = get(&mut client, path, "");
        assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("Accept-Encoding")));
        let strong = plain.header("etag").unwrap().to_owned();
        assert!(strong.starts_with('"'), "{strong}");
        let mut tags = vec![strong.clone()];
        for (lines, coding) in [(GZIP, "gzip"), (BROTLI, "br"), (ZSTD, "zstd")] {
            let coded = get(&mut client, path, lines);
            assert_eq!(coded.header("content-encoding"), Some(coding), "{path}");
            assert_eq!(coded.header("vary"), Some("Accept-Encoding"), "{path}");
            assert_eq!(coded.header("accept-ranges"), None, "{path}");
            assert_eq!(decoded(&coded), plain.body, "{path} {coding}");
            let tag = coded.header("etag").unwrap().to_owned();
            assert!(tag.starts_with("W/\""), "{path} {coding}: {tag}");
            let unchanged = get(&mut client, path, &format!("{lines}If-None-Match: {tag}\r\n"));
            unchanged.assert(304, b"");
            assert_eq!(unchanged.header("etag"), Some(tag.as_str()), "{path} {coding}");
            assert_eq!(unchanged.header("vary"), Some("Accept-Encoding"), "{path} {coding}");
            assert_eq!(get(&mut client, path, &format!("{lines}If-None-Match: {strong}\r\n")).status, 200, "{coding}");
            let part = get(&mut client, path, &format!("{lines}Range: bytes=10-19\r\n"));
            part.assert(206, &plain.body[10..20]);
            assert_eq!((part.header("content-encoding"), part.header("etag")), (None, Some(strong.as_str())));
            tags.push(tag);
        }
        tags.sort();
        tags.dedup();
        assert!(tags.len() >= 3, "{path}: one tag for two representations: {tags:?}");
    }
}

#[test]
pub(crate) fn a_stream_decodes_to_the_file_for_whoever_takes_it() {
    let _machine = beside_others();
    let text = text_pattern(STREAM_BYTES, 3);
    let server = Setup::new(1).file("stream.txt", &text).start();
    for lines in [GZIP, BROTLI, ZSTD] {
        let mut client = server.connect();
        let response = get(&mut client, "/stream.txt", lines);
        assert_eq!(response.header("transfer-encoding"), Some("chunked"), "{lines}");
        assert!(decoded(&response) == text, "{lines}");
        client.assert_usable();
        // Whoever knows no chunks learns the end from the end of the connection, even if he wanted to keep it.
        for kept in ["", "Connection: keep-alive\r\n"] {
            let mut old = server.connect();
            let response = old.ask(&format!("GET /stream.txt HTTP/1.0\r\nHost: test\r\n{kept}{lines}\r\n"));
            assert_eq!((response.header("transfer-encoding"), response.header("content-length")), (None, None));
            assert!(response.closes() && decoded(&response) == text, "{lines}");
            old.assert_closed();
        }
        let head = client.ask(&format!("HEAD /stream.txt HTTP/1.1\r\nHost: test\r\n{lines}\r\n"));
        assert_eq!((head.status, head.header("content-encoding").is_some()), (200, true), "{head}");
        client.assert_usable();
    }
    let url = format!("http://{}/stream.txt", server.address());
    let output = Command::new("curl").args(["-sS", "--compressed", &url]).output().unwrap();
    assert!(output.status.success() && output.stdout == text, "{}", String::from_utf8_lossy(&output.stderr));
}

/// What stands before it in the same write is another request, with a line of its own.
#[test]
fn a_stream_is_written_down_as_what_was_asked_for_and_with_the_bytes_of_its_body() {
    let _machine = beside_others();
    let text = text_pattern(STREAM_BYTES, 3);
    let server = Setup::new(1).file("stream.txt", &text).set("log", "access = \"{dir}/access.log\"").start();
    let mut client = server.connect();
    // Warm: it need not wait for a thread, which would make it a batch of its own.
    let alone = get(&mut client, "/stream.txt", GZIP);
    client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\nGET /stream.txt HTTP/1.1\r\nHost: test\r\n");
    client.send(format!("{GZIP}\r\n").as_bytes());
    client.answer().assert(200, harness::HELLO);
    assert!(client.answer().body == alone.body);
    let lines = || server.directory().read("access.log").lines().map(str::to_owned).collect::<Vec<_>>();
    wait_until("three lines", SOON, || lines().len() == 3);
    let told = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[6].to_owned(), words[9].parse::<usize>().unwrap())
    };
    let told: Vec<(String, usize)> = lines().iter().map(|line| told(line)).collect();
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["/stream.txt", "/hello", "/stream.txt"]);
    // With the framing of its chunks, without its head.
    let framing = told[0].1 - alone.body.len();
    assert!((5..500).contains(&framing), "{told:?} for {} bytes", alone.body.len());
    assert_eq!((told[1].1, told[2].1), (harness::HELLO.len(), told[0].1));
}

#[test]
fn a_coding_that_saves_nothing_is_not_used() {
    let _machine = beside_others();
    let noise = harness::pattern(50_000, 5);
    let server = Setup::new(1).file("noise.txt", &noise).file("tiny.txt", "tiny").file("image.png", &noise).start();
    let mut client = server.connect();
    for (path, body) in [("/noise.txt", noise.as_slice()), ("/tiny.txt", b"tiny"), ("/image.png", &noise)] {
        for _round in 0..2 {
            let response = get(&mut client, path, "Accept-Encoding: gzip, br, zstd\r\n");
            response.assert(200, body);
            assert_eq!(response.header("content-encoding"), None, "{path}");
        }
    }
}
