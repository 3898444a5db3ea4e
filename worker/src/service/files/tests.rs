//! The `files` service against a real directory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use phalanx_shared::config::{Action, RoutePath};

use super::super::testing::{setting, with_request};
use super::*;
use crate::http::Envelope;
use crate::http::encode;
use crate::http::reply::{Piece, Source, Tail};

const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const ETAG: &str = "\"ae1b981bc490a00-b\"";

/// A fresh directory with files in it, gone when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Tree {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("phalanx-files-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let tree = Tree(std::env::temp_dir().join(unique));
        for dir in ["www/dir", "www/empty", "www/.git", "www/.well-known/acme", "www/with space\\", "secret"] {
            fs::create_dir_all(tree.0.join(dir)).unwrap();
        }
        for file in ["www/hello.txt", "www/index.html", "www/dir/home.htm", "www/.git/config", "secret/key"] {
            tree.write(file, "hello world");
        }
        tree.write("www/.well-known/acme/x", "token");
        tree.write("www/.hidden", "hidden");
        tree.write("www/empty.txt", "");
        tree
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.0.join(path), text).unwrap();
        let file = File::options().write(true).open(self.0.join(path)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(784_111_777)).unwrap();
    }

    fn files(&self) -> Files {
        self.files_with(|_| {})
    }

    /// The files below `www`, with what `change` makes of the defaults.
    fn files_with(&self, change: impl FnOnce(&mut FilesAction)) -> Files {
        let mut action = FilesAction::new(self.0.join("www"));
        action.index = vec!["index.html".to_owned(), "home.htm".to_owned()];
        change(&mut action);
        let route = Route::new(RoutePath::Prefix("/".to_owned()), Action::Files(action.clone()));
        Files::new(0, &route, &action, &setting()).unwrap()
    }

    fn ask(&self, line: &str, fields: &str) -> Answered {
        ask(&self.files(), line, fields)
    }

    fn status(&self, line: &str) -> u16 {
        self.ask(line, "").status
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A reply as a client would see it.
#[derive(Debug, PartialEq, Eq)]
struct Answered {
    status: u16,
    /// The fields behind the date.
    head: String,
    body: Vec<u8>,
    validator: u64,
}

impl Answered {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Asks as the connection would, doing at once what has to be waited for.
fn ask(files: &Files, line: &str, fields: &str) -> Answered {
    with_request(line, fields, |request| {
        let mut answer = files.answer(request, None);
        while let Answer::Later(job) = answer {
            answer = files.answer(request, job.run().ok());
        }
        let Answer::Reply(reply) = answer else { panic!("{answer:?}") };
        sent(reply, request.head.is_head())
    })
}

fn sent(reply: Reply<'_>, head_only: bool) -> Answered {
    let envelope = Envelope { date: b"Sun, 06 Nov 1994 08:49:37 GMT", minor_version: 1, keep_alive: true, head_only };
    let (status, validator) = (reply.status(), reply.validator());
    let mut bytes = Vec::new();
    let head_len = encode::append(&mut bytes, &reply, &envelope);
    let mut body = bytes.split_off(head_len);
    let head = String::from_utf8(bytes).unwrap();
    let head = head.split_once("GMT\r\n").unwrap().1.strip_suffix("\r\n").unwrap().to_owned();
    if !head_only {
        match reply.into_tail() {
            Tail::None => {}
            Tail::Cached(prepared) => body.extend_from_slice(prepared.body()),
            Tail::Pieces(pieces) => pieces.into_iter().for_each(|piece| match piece {
                Piece::Bytes(bytes) => body.extend(bytes),
                Piece::File { file, offset, len } => {
                    let at = body.len();
                    body.resize(at + len as usize, 0);
                    file.read_exact_at(&mut body[at..], offset).unwrap();
                }
            }),
            Tail::Stream(Source::Made(mut producer), _) => while producer.next(&mut body).unwrap() {},
            Tail::Stream(..) => panic!("nobody waits for files"),
        }
    }
    Answered { status, head, body, validator }
}

#[test]
fn a_file_comes_with_type_and_validators() {
    let reply = Tree::new().ask("GET /hello.txt", "");
    let lines = format!(
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 11\r\nETag: {ETAG}\r\nLast-Modified: {MODIFIED}\r\nAccept-Ranges: bytes\r\nVary: Accept-Encoding\r\n"
    );
    assert_eq!((reply.status, reply.head.as_str(), reply.text()), (200, lines.as_str(), "hello world"));
}

#[test]
fn a_directory_gives_its_index_or_the_way_to_it() {
    let tree = Tree::new();
    assert_eq!(tree.ask("GET /", "").text(), "hello world");
    assert!(tree.ask("GET /dir/", "").head.contains("text/html; charset=utf-8"));
    assert_eq!(tree.status("GET /empty/"), 403);
    assert!(tree.ask("GET /dir?a=b", "").head.ends_with("Location: /dir/?a=b\r\n"));
    assert!(tree.ask("GET /with%20space%5C", "").head.ends_with("Location: /with%20space%5C/\r\n"));
    assert!(tree.ask("GET //dir", "").head.ends_with("Location: /dir/\r\n"));
    assert_eq!(tree.ask("HEAD /dir", "").status, 301);
}

#[test]
fn what_is_not_there_or_hidden_or_no_file_is_absent() {
    let tree = Tree::new();
    nix::unistd::mkfifo(&tree.0.join("www/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.0.join("www/socket")).unwrap();
    let long = format!("/{}", "a".repeat(300));
    for path in [
        "/absent",
        "/absent/",
        "/hello.txt/",
        "/hello.txt/a",
        "/.git",
        "/.git/",
        "/.git/config",
        "/.hidden",
        "/%2ehidden",
        "/fifo",
        "/socket",
        &long,
    ] {
        assert_eq!(tree.status(&format!("GET {path}")), 404, "{path}");
    }
    assert_eq!(tree.ask("GET /.well-known/acme/x", "").text(), "token");
}

#[test]
fn no_link_leads_out_of_the_root_and_those_within_are_followed() {
    let tree = Tree::new();
    let www = tree.0.join("www");
    symlink("/", www.join("slash")).unwrap();
    symlink("/etc/passwd", www.join("passwd")).unwrap();
    symlink("../secret", www.join("up")).unwrap();
    symlink("../secret/key", www.join("dir/key")).unwrap();
    symlink("../../secret/key", www.join("dir/key2")).unwrap();
    symlink(www.join("hello.txt"), www.join("absolute")).unwrap();
    symlink("loop", www.join("loop")).unwrap();
    symlink("/proc/self/root", www.join("magic")).unwrap();
    for path in [
        "/slash/",
        "/slash/etc/passwd",
        "/passwd",
        "/up/key",
        "/dir/key",
        "/dir/key2",
        "/absolute",
        "/loop",
        "/loop/",
        "/magic/etc/passwd",
    ] {
        assert_eq!(tree.status(&format!("GET {path}")), 404, "{path}");
    }
    symlink("../hello.txt", www.join("dir/sibling")).unwrap();
    symlink("dir", www.join("alias")).unwrap();
    assert_eq!(tree.ask("GET /dir/sibling", "").text(), "hello world");
    assert_eq!(tree.status("GET /alias/"), 200);
}

#[test]
fn only_get_and_head_are_served() {
    let tree = Tree::new();
    for (method, status) in
        [("HEAD", 200), ("POST", 405), ("PUT", 405), ("DELETE", 405), ("OPTIONS", 405), ("BREW", 501), ("get", 501)]
    {
        assert_eq!(tree.status(&format!("{method} /hello.txt")), status, "{method}");
    }
}

#[test]
fn a_range_gives_its_part() {
    let tree = Tree::new();
    let reply = tree.ask("GET /hello.txt", "Range: bytes=6-\r\n");
    assert_eq!((reply.status, reply.text()), (206, "world"));
    assert!(reply.head.ends_with("Vary: Accept-Encoding\r\nContent-Range: bytes 6-10/11\r\n"), "{reply:?}");
    let unsatisfiable = tree.ask("GET /hello.txt", "Range: bytes=11-\r\n");
    assert!(unsatisfiable.head.ends_with("Content-Range: bytes */11\r\n"), "{unsatisfiable:?}");
    assert_eq!(unsatisfiable.status, 416);
    for (line, fields) in [
        ("GET /hello.txt", "Range: bytes=0-4,5-10\r\n"),
        ("HEAD /hello.txt", "Range: bytes=0-1\r\n"),
        ("GET /hello.txt", "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n"),
    ] {
        assert_eq!(tree.ask(line, fields).status, 200, "{line} {fields}");
    }
    assert_eq!(tree.ask("GET /hello.txt", &format!("Range: bytes=0-1\r\nIf-Range: {ETAG}\r\n")).status, 206);
    assert_eq!(tree.ask("GET /hello.txt", &format!("Range: bytes=0-1\r\nIf-Range: {MODIFIED}\r\n")).status, 206);
}

#[test]
fn preconditions_are_kept_and_come_before_ranges() {
    let tree = Tree::new();
    let known = tree.ask("GET /hello.txt", &format!("If-None-Match: {ETAG}\r\nRange: bytes=99-\r\n"));
    assert_eq!((known.status, known.text()), (304, ""));
    assert_eq!(known.head, format!("ETag: {ETAG}\r\nLast-Modified: {MODIFIED}\r\nVary: Accept-Encoding\r\n"));
    for (fields, status) in [
        (format!("If-Modified-Since: {MODIFIED}\r\n"), 304),
        ("If-None-Match: \"x\"\r\n".to_owned(), 200),
        ("If-Match: \"x\"\r\n".to_owned(), 412),
        (format!("If-Match: {ETAG}\r\n"), 200),
    ] {
        assert_eq!(tree.ask("GET /hello.txt", &fields).status, status, "{fields}");
    }
}

#[test]
fn an_empty_file_has_an_empty_body() {
    let reply = Tree::new().ask("GET /empty.txt", "");
    assert_eq!((reply.status, reply.text()), (200, ""));
}

#[test]
fn the_validator_follows_the_file_and_the_range() {
    let tree = Tree::new();
    let validator = |fields: &str| tree.ask("GET /hello.txt", fields).validator;
    let before = validator("");
    assert_ne!(before, 0);
    assert_eq!(before, validator(""));
    assert_ne!(before, validator("Range: bytes=1-2\r\n"));
    assert_ne!(validator("Range: bytes=1-3\r\n"), validator("Range: bytes=1-2\r\n"));
    fs::remove_file(tree.0.join("www/hello.txt")).unwrap();
    tree.write("www/hello.txt", "HELLO WORLD");
    // Size and time of modification are the same again; the time of change is not.
    assert_ne!(before, validator(""));
}

#[test]
fn a_file_that_may_not_be_read_is_forbidden() {
    use std::os::unix::fs::PermissionsExt;
    let tree = Tree::new();
    let path = tree.0.join("www/hello.txt");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read everything, and the tests may run as root.
    let expected = if File::open(&path).is_ok() { 200 } else { 403 };
    assert_eq!(tree.status("GET /hello.txt"), expected);
}
