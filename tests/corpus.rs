//! The conformance corpus: `corpus/*.http`, a request beside what a strict server answers.
//!
//! A file begins with comment lines (`# …`), then the bytes of the request, a line `---`, and the expectation. In the
//! request every line ends in CRLF, unless it ends in a backslash, which adds nothing; `\r \n \t \0 \\ \xHH` stand for
//! their bytes, and `\{text*count}` for many of them. The expectation is a list of lines:
//!
//! ```text
//! status 405 501        the next response has one of these; the lines below speak of it
//! header Allow: GET     it has this field with this value (`header Allow` alone: any value)
//! lacks Content-Type    it has no such field
//! body Hello, World!    exactly this body
//! bodyless              it answers a HEAD: no body whatever its length says
//! close                 (after all responses) the server closes, with nothing more sent
//! keep                  (after all responses) the connection carries another request
//! ```
//!
//! Each file is played twice on its own connection: in one write, and byte by byte.

use std::path::Path;

use crate::harness::{Client, HELLO, Setup, beside_others, readable};

/// Longer requests are not sent byte by byte.
const MOST_BYTEWISE: usize = 2000;

#[derive(Debug, Default)]
struct Case {
    request: Vec<u8>,
    responses: Vec<Expected>,
    keep: Option<bool>,
}

#[derive(Debug, Default)]
struct Expected {
    statuses: Vec<u16>,
    headers: Vec<(String, Option<String>)>,
    lacks: Vec<String>,
    body: Option<Vec<u8>>,
    bodyless: bool,
}

#[test]
fn every_case_of_the_corpus_is_answered_as_a_strict_server_would() {
    let _machine = beside_others();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "http"));
    files.sort();
    assert!(files.len() >= 40, "{} files", files.len());
    let server = Setup::new(1).file("index.html", "index").file("a b.txt", "a file").start();
    let address = server.address();
    let mut failed = Vec::new();
    for path in &files {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let case = Case::parse(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|why| panic!("{name}: {why}"));
        for bytewise in [false, true] {
            if bytewise && case.request.len() > MOST_BYTEWISE {
                continue;
            }
            let mut client = Client::connect(&address);
            if let Err(why) = case.play(&mut client, bytewise) {
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
        "# why\nGET / HTTP/1.1\nA: \\x00\\t\\\\\\\n\\{ab*3}\n\nbody\\\n---\nstatus 200 204\nheader A: b\nkeep\n",
    )
    .unwrap();
    assert_eq!(case.request, b"GET / HTTP/1.1\r\nA: \0\t\\ababab\r\n\r\nbody");
    assert_eq!(case.responses[0].statuses, [200, 204]);
    assert_eq!(case.responses[0].headers, [("A".to_owned(), Some("b".to_owned()))]);
    assert_eq!(case.keep, Some(true));
    for wrong in [
        "GET /\n",
        "GET /\n---\nstatus x\nkeep\n",
        "GET /\n---\nheader A\nkeep\n",
        "GET /\n---\nstatus 200\n",
        "\\q\n---\nkeep\n",
    ] {
        assert!(Case::parse(wrong).is_err(), "{wrong:?}");
    }
}

impl Case {
    fn parse(text: &str) -> Result<Case, String> {
        let text: String =
            text.lines().skip_while(|line| line.starts_with("# ")).flat_map(|line| [line, "\n"]).collect();
        let (request, expectation) = text.split_once("\n---\n").ok_or("no line ---")?;
        let mut case = Case { request: unescape_lines(request)?, ..Case::default() };
        for line in expectation.lines().filter(|line| !line.is_empty()) {
            case.expect(line).ok_or(format!("the expectation {line:?} says nothing"))?;
        }
        case.keep.is_some().then_some(case).ok_or("neither close nor keep".to_owned())
    }

    fn expect(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "status" => {
                let statuses = rest.split(' ').map(|status| status.parse().ok()).collect::<Option<Vec<_>>>()?;
                self.responses.push(Expected { statuses, ..Expected::default() });
            }
            "header" => {
                let (name, value) = match rest.split_once(": ") {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (rest, None),
                };
                self.responses.last_mut()?.headers.push((name.to_owned(), value));
            }
            "lacks" => self.responses.last_mut()?.lacks.push(rest.to_owned()),
            "body" => self.responses.last_mut()?.body = Some(rest.as_bytes().to_vec()),
            "bodyless" => self.responses.last_mut()?.bodyless = true,
            "keep" => self.keep = Some(true),
            "close" => self.keep = Some(false),
            _ => return None,
        }
        Some(())
    }

    fn play(&self, client: &mut Client, bytewise: bool) -> Result<(), String> {
        // A server that has refused the request may close before it has all of it.
        let _sent = match bytewise {
            false => client.try_send(&self.request),
            true => self.request.chunks(1).try_for_each(|byte| client.try_send(byte)),
        };
        for (number, expected) in self.responses.iter().enumerate() {
            let method = if expected.bodyless { "HEAD" } else { "GET" };
            let response =
                client.try_answer(method).map_err(|failure| format!("response {}: {failure}", number + 1))?;
            expected.compare(&response).map_err(|why| format!("response {}: {why}: {response}", number + 1))?;
            let last = number + 1 == self.responses.len();
            if last && response.closes() != (self.keep == Some(false)) {
                return Err(format!("the connection's end is announced wrongly: {response}"));
            }
        }
        match self.keep {
            Some(true) => {
                client.try_send(b"GET /hello HTTP/1.1\r\nHost: after\r\n\r\n").map_err(|error| error.to_string())?;
                let after = client.try_answer("GET").map_err(|failure| format!("the request after: {failure}"))?;
                (after.status == 200 && after.body == HELLO).then_some(()).ok_or(format!("the request after: {after}"))
            }
            _ => match client.end() {
                crate::harness::Failure::Closed(rest) if rest.is_empty() => Ok(()),
                other => Err(format!("not closed in good order: {other}")),
            },
        }
    }
}

impl Expected {
    fn compare(&self, response: &crate::harness::Response) -> Result<(), String> {
        if !self.statuses.contains(&response.status) {
            return Err(format!("not {:?}", self.statuses));
        }
        for (name, value) in &self.headers {
            match (response.header(name), value) {
                (None, _) => return Err(format!("no {name}")),
                (Some(got), Some(wanted)) if got != wanted => return Err(format!("{name} is {got:?}, not {wanted:?}")),
                _ => {}
            }
        }
        if let Some(name) = self.lacks.iter().find(|name| response.header(name).is_some()) {
            return Err(format!("has a {name}"));
        }
        match &self.body {
            Some(body) if *body != response.body => Err(format!("the body is not \"{}\"", readable(body))),
            _ => Ok(()),
        }
    }
}

fn unescape_lines(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for line in text.split('\n') {
        if !unescape(line, &mut bytes)? {
            bytes.extend(b"\r\n");
        }
    }
    Ok(bytes)
}

/// Adds the bytes of a line; true when a backslash at its end takes the place of CRLF.
fn unescape(line: &str, bytes: &mut Vec<u8>) -> Result<bool, String> {
    let mut rest = line;
    while let Some(at) = rest.find('\\') {
        bytes.extend(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let Some(sign) = rest.chars().next() else { return Ok(true) };
        rest = &rest[sign.len_utf8()..];
        match sign {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits = rest.get(..2).ok_or("\\x without digits")?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|error| format!("\\x{digits}: {error}"))?);
                rest = &rest[2..];
            }
            '{' => {
                let (inside, after) = rest.split_once('}').ok_or("\\{ without }")?;
                let (text, count) = inside.rsplit_once('*').ok_or("\\{ without *")?;
                let count = count.parse().map_err(|error| format!("\\{{…*{count}}}: {error}"))?;
                bytes.extend(text.repeat(count).bytes());
                rest = after;
            }
            other => return Err(format!("\\{other}")),
        }
    }
    bytes.extend(rest.as_bytes());
    Ok(false)
}
