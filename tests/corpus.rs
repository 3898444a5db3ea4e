//! The conformance corpus: `corpus/*.http`, a request beside what a strict server answers, in the notation of
//! [`harness::case`](crate::harness::case).
//!
//! Each file is played twice on its own connection: in one write, and byte by byte.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::harness::case::{self, Case, Value};
use crate::harness::{Client, Failure, HELLO, Server, Setup, beside_others};

/// Longer requests are not sent byte by byte.
const MOST_BYTEWISE: usize = 2000;

/// When every file of the site was last modified: Wed, 21 Oct 2015 07:28:00 GMT.
const MODIFIED: Duration = Duration::from_secs(1_445_412_480);

#[test]
fn every_case_of_the_corpus_is_answered_as_a_strict_server_would() {
    let _machine = beside_others();
    let texts = case::texts(&directory("corpus"));
    assert!(texts.len() >= 300, "{} files", texts.len());
    let server = start();
    let address = server.address();
    let mut etags = Etags::default();
    let mut failed = Vec::new();
    for (name, text) in &texts {
        let text = case::with_etags(text, |path| etags.of(&address, path));
        let case = Case::parse(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        for bytewise in [false, true] {
            if bytewise && case.request.len() > MOST_BYTEWISE {
                continue;
            }
            let mut client = Client::connect(&address);
            if let Err(why) = play(&case, &mut client, bytewise) {
                let how = if bytewise { "byte by byte" } else { "in one write" };
                failed.push(format!("{name}, {how}: {why}\n{}", client.transcript(20)));
            }
        }
    }
    assert!(failed.is_empty(), "{} plays failed:\n\n{}", failed.len(), failed.join("\n"));
    let status = server.status();
    assert_eq!(status.sum("restarts"), 0, "a request of the corpus has killed a worker: {status}");
}

#[test]
fn the_corpus_notation_means_what_it_says() {
    let case = Case::parse(
        "# why\nGET / HTTP/1.1\nA: \\x00\\t\\\\\\\n\\{ab*3}\n\nbody\\\n---\nfinish\nstatus 200 204\nheader A: b\nkeep\n",
    )
    .unwrap();
    assert_eq!(case.request, b"GET / HTTP/1.1\r\nA: \0\t\\ababab\r\n\r\nbody");
    assert_eq!(case.responses[0].statuses, [200, 204]);
    assert_eq!(case.responses[0].headers, [("A".to_owned(), Some(Value::Exactly("b".to_owned())))]);
    assert!(case.keep && case.finish);
    for wrong in [
        "GET /\n",
        "GET /\n---\nstatus x\nkeep\n",
        "GET /\n---\nheader A\nkeep\n",
        "GET /\n---\nstatus 200\n",
        "GET /\n---\nstatus 200\nbody-length x\nkeep\n",
        "GET /\n---\nkeep\nstatus 200\n",
        "\\q\n---\nkeep\n",
    ] {
        assert!(Case::parse(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(case::with_etags("a \\{etag:/x} b", |path| format!("<{path}>")), "a </x> b");
}

/// A directory beside this file.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name)
}

/// A server with the site that the corpus speaks of.
pub(crate) fn start() -> Server {
    let setup = site(Setup::new(1)).routes(
        r#"
[[site.route]]
path = "/old/"
redirect = { to = "/new/", status = 301 }
[[site.route]]
path = "/list"
files = { root = "{dir}/site", listing = true }
"#,
    );
    setup.start()
}

/// The files that the corpus speaks of, all of one age.
pub(crate) fn site(setup: Setup) -> Setup {
    let setup = setup
        .file("index.html", "index")
        .file("a b.txt", "a file")
        .file("digits", "0123456789")
        .file("empty", "")
        .file("large", "0123456789".repeat(10_000))
        .file("sub/index.html", "sub index")
        .file("bare/file", "no index beside it")
        .file(".hidden", "hidden")
        .file("list/a b.txt", "listed")
        .file("text.txt", "compressible ".repeat(1_000))
        .file("coded.css", "p { color: red }")
        .file("coded.css.gz", "as if it were gzip");
    make_old(&setup.directory().path("site"));
    setup
}

fn make_old(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => make_old(&entry.path()),
            false => {
                let file = std::fs::File::options().append(true).open(entry.path()).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + MODIFIED).unwrap();
            }
        }
    }
}

/// The entity tags of paths, asked for once each.
#[derive(Default)]
pub(crate) struct Etags(HashMap<String, String>);

impl Etags {
    pub(crate) fn of(&mut self, address: &str, path: &str) -> String {
        let ask = || Client::connect(address).get(path).header("etag").expect("an entity tag").to_owned();
        self.0.entry(path.to_owned()).or_insert_with(ask).clone()
    }
}

fn play(case: &Case, client: &mut Client, bytewise: bool) -> Result<(), String> {
    // A server that has refused the request may close before it has all of it.
    let _sent = match bytewise {
        false => client.try_send(&case.request),
        true => case.request.chunks(1).try_for_each(|byte| client.try_send(byte)),
    };
    if case.finish {
        client.finish_sending();
    }
    for (number, expected) in case.responses.iter().enumerate() {
        let method = if expected.bodyless { "HEAD" } else { "GET" };
        let response = client.try_answer(method).map_err(|failure| format!("response {}: {failure}", number + 1))?;
        expected.compare(&response).map_err(|why| format!("response {}: {why}: {response}", number + 1))?;
        let last = number + 1 == case.responses.len();
        // Who finishes sending ends the connection himself; the server need not announce it.
        if last && !case.finish && response.closes() == case.keep {
            return Err(format!("the connection's end is announced wrongly: {response}"));
        }
    }
    if case.keep {
        client.try_send(b"GET /hello HTTP/1.1\r\nHost: after\r\n\r\n").map_err(|error| error.to_string())?;
        let after = client.try_answer("GET").map_err(|failure| format!("the request after: {failure}"))?;
        return (after.status == 200 && after.body == HELLO).then_some(()).ok_or(format!("the request after: {after}"));
    }
    match client.end() {
        Failure::Closed(rest) if rest.is_empty() => Ok(()),
        other => Err(format!("not closed in good order: {other}")),
    }
}
