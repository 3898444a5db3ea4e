//! Cases of the conformance corpus: a request beside what is to be answered, in one file.
//!
//! A file begins with comment lines (`# …`), then the bytes of the request, a line `---`, and the expectation. In the
//! request every line ends in CRLF, unless it ends in a backslash, which adds nothing; `\r \n \t \0 \\ \xHH` stand for
//! their bytes, and `\{text*count}` for many of them. `\{etag:/path}`, anywhere in the file, is the entity tag that the
//! server itself gives that path. The expectation is a list of lines:
//!
//! ```text
//! finish                    the client sends no more after the request, and still reads
//! status 405 501            the next response has one of these; the lines below speak of it
//! header Allow: GET         it has this field with this value (`header Allow` alone: any value)
//! header-like Vary: *coding it has this field; `*` stands for any text
//! lacks Content-Type        it has no such field
//! body Hello, World!        exactly this body; escapes as in the request
//! body-has <li>             this somewhere in the body
//! body-length 20000         a body of so many bytes
//! bodyless                  it answers a HEAD: no body whatever its length says
//! close                     (after all responses) the server closes, with nothing more sent
//! keep                      (after all responses) the connection carries another request
//! ```

use std::path::Path;

use super::client::Response;
use super::readable;

/// A request and what is to be answered.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) request: Vec<u8>,
    /// The client finishes sending.
    pub(crate) finish: bool,
    pub(crate) responses: Vec<Expected>,
    /// The connection carries another request afterwards.
    pub(crate) keep: bool,
}

/// What one response has to be.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) statuses: Vec<u16>,
    pub(crate) bodyless: bool,
    pub(crate) headers: Vec<(String, Option<Value>)>,
    lacks: Vec<String>,
    body: Vec<Body>,
}

/// What a field's value has to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Exactly(String),
    Like(String),
}

#[derive(Debug)]
enum Body {
    Exactly(Vec<u8>),
    Has(Vec<u8>),
    Length(usize),
}

/// The names, without `.http`, and texts of the files in a directory, sorted.
pub(crate) fn texts(directory: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut texts: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "http"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    texts.sort();
    texts
}

/// Puts what `etag` says of a path in the place of each `\{etag:/path}`.
pub(crate) fn with_etags(text: &str, mut etag: impl FnMut(&str) -> String) -> String {
    let mut pieces = text.split("\\{etag:");
    let mut done = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (path, rest) = piece.split_once('}').expect("\\{etag: ends in }");
        done += &etag(path);
        done += rest;
    }
    done
}

impl Case {
    /// Reads a file; says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Case, String> {
        let text: String =
            text.lines().skip_while(|line| line.starts_with("# ")).flat_map(|line| [line, "\n"]).collect();
        let (request, expectation) = text.split_once("\n---\n").ok_or("no line ---")?;
        let mut case = Case { request: unescape_lines(request)?, ..Case::default() };
        let mut lines: Vec<&str> = expectation.lines().filter(|line| !line.is_empty()).collect();
        case.keep = match lines.pop() {
            Some("keep") => true,
            Some("close") => false,
            _ => return Err("neither close nor keep at the end".to_owned()),
        };
        for line in lines {
            case.expect(line).ok_or(format!("the expectation {line:?} says nothing"))?;
        }
        Ok(case)
    }

    fn expect(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "finish" => self.finish = true,
            "status" => {
                let statuses = rest.split(' ').map(|status| status.parse().ok()).collect::<Option<Vec<_>>>()?;
                self.responses.push(Expected { statuses, ..Expected::default() });
            }
            _ => self.responses.last_mut()?.expect(word, rest)?,
        }
        Some(())
    }
}

impl Expected {
    fn expect(&mut self, word: &str, rest: &str) -> Option<()> {
        match word {
            "header" => self.headers.push(match rest.split_once(": ") {
                Some((name, value)) => (name.to_owned(), Some(Value::Exactly(value.to_owned()))),
                None => (rest.to_owned(), None),
            }),
            "header-like" => {
                let (name, pattern) = rest.split_once(": ")?;
                self.headers.push((name.to_owned(), Some(Value::Like(pattern.to_owned()))));
            }
            "lacks" => self.lacks.push(rest.to_owned()),
            "body" => self.body.push(Body::Exactly(unescaped(rest)?)),
            "body-has" => self.body.push(Body::Has(unescaped(rest)?)),
            "body-length" => self.body.push(Body::Length(rest.parse().ok()?)),
            "bodyless" => self.bodyless = true,
            _ => return None,
        }
        Some(())
    }

    /// Says what is wrong with a response.
    pub(crate) fn compare(&self, response: &Response) -> Result<(), String> {
        if !self.statuses.contains(&response.status) {
            return Err(format!("not {:?}", self.statuses));
        }
        for (name, value) in &self.headers {
            let got = response.header(name).ok_or(format!("no {name}"))?;
            if let Some(wanted) = value.as_ref().filter(|value| !value.is_met_by(got)) {
                return Err(format!("{name} is {got:?}, not {wanted:?}"));
            }
        }
        if let Some(name) = self.lacks.iter().find(|name| response.header(name).is_some()) {
            return Err(format!("has a {name}"));
        }
        match self.body.iter().find(|body| !body.is_met_by(&response.body)) {
            Some(Body::Exactly(body)) => Err(format!("the body is not \"{}\"", readable(body))),
            Some(Body::Has(part)) => Err(format!("the body has no \"{}\"", readable(part))),
            Some(Body::Length(length)) => Err(format!("the body has {} bytes, not {length}", response.body.len())),
            None => Ok(()),
        }
    }
}

impl Value {
    fn is_met_by(&self, got: &str) -> bool {
        match self {
            Value::Exactly(value) => got == value,
            Value::Like(pattern) => is_like(got, pattern),
        }
    }
}

impl Body {
    fn is_met_by(&self, got: &[u8]) -> bool {
        match self {
            Body::Exactly(body) => got == body,
            Body::Has(part) => got.windows(part.len().max(1)).any(|window| window == part),
            Body::Length(length) => got.len() == *length,
        }
    }
}

/// `*` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            (0..=text.len()).any(|skip| text.get(skip..).is_some_and(|behind| is_like(behind, rest)))
        }),
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

/// A text that is one line.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let joined = unescape(text, &mut bytes).ok()?;
    (!joined).then_some(bytes)
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
