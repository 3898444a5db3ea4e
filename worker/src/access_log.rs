//! The access log: a line a request, combined or JSON, whole lines only. Lines of a turn are written together, to a file that
//! the master opened for appending.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::RawFd;

use phalanx_shared::config::Format;
use phalanx_shared::log::{civil, timestamp};
use phalanx_shared::sys::table::borrow;

use crate::http::Head;

/// Written before the turn ends when this much has come together.
const ENOUGH: usize = 32 * 1024;
/// Bytes of a field that a peer chose, in a line.
const MAX_FIELD: usize = 1024;

/// The log of this worker.
pub struct AccessLog {
    to: Option<RawFd>,
    format: Format,
    lines: Vec<u8>,
    /// The second that `stamp` names.
    second: u64,
    stamp: String,
    /// Of the request that is added next.
    outcome: Option<Outcome>,
}

/// A line's content.
struct Line<'a> {
    /// None: it came by a Unix socket.
    client: Option<IpAddr>,
    method: &'a str,
    target: &'a str,
    version: &'a str,
    host: &'a str,
    referer: &'a [u8],
    agent: &'a [u8],
    status: u16,
    bytes: u64,
    outcome: Option<Outcome>,
}

/// What the death of a worker has made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was run again.
    Replayed,
    /// It got an error in place of an answer.
    Failed,
    /// Its connection was closed before its answer had left whole.
    Lost,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Replayed => "replayed",
            Outcome::Failed => "failed",
            Outcome::Lost => "lost",
        }
    }
}

impl AccessLog {
    /// A log to the descriptor `to`; none: no log.
    pub fn new(to: Option<RawFd>, format: Format) -> AccessLog {
        AccessLog { to, format, lines: Vec::new(), second: u64::MAX, stamp: String::new(), outcome: None }
    }

    /// The same, for another thread.
    pub fn for_another_thread(&self) -> AccessLog {
        AccessLog::new(self.to, self.format)
    }

    /// What the next request that is added has come to, if a worker died of it or with it.
    pub fn mark(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Adds a request that a service answered with so many bytes of body. `client`, asked only if there is a log, gives whose it
    /// was; none: one without an address.
    pub fn add(
        &mut self,
        client: impl FnOnce() -> Option<IpAddr>,
        head: &Head<'_>,
        status: u16,
        bytes: u64,
        second: u64,
    ) {
        if self.to.is_none() {
            return;
        }
        self.append(
            second,
            &Line {
                client: client(),
                method: head.method,
                target: head.target,
                version: if head.minor_version == 0 { "HTTP/1.0" } else { "HTTP/1.1" },
                host: head.host.unwrap_or(""),
                referer: head.header("referer").unwrap_or(b""),
                agent: head.header("user-agent").unwrap_or(b""),
                status,
                bytes,
                outcome: None,
            },
        );
    }

    /// Adds what could not be read as a request.
    pub fn add_refused(&mut self, client: Option<IpAddr>, status: u16, bytes: u64, second: u64) {
        if self.to.is_none() {
            return;
        }
        let line = Line {
            client,
            method: "-",
            target: "-",
            version: "-",
            host: "",
            referer: b"",
            agent: b"",
            status,
            bytes,
            outcome: None,
        };
        self.append(second, &line);
    }

    /// Writes what has come together: at the end of a turn.
    pub fn flush(&mut self) {
        let Some(to) = self.to else { return };
        if self.lines.is_empty() {
            return;
        }
        let mut rest = self.lines.as_slice();
        while !rest.is_empty() {
            match nix::unistd::write(borrow(to), rest) {
                Ok(0) => break,
                Ok(count) => rest = &rest[count..],
                Err(nix::errno::Errno::EINTR) => {}
                // A full disk or a reader that is gone costs log lines, not service.
                Err(_) => break,
            }
        }
        self.lines.clear();
    }

    fn append(&mut self, second: u64, line: &Line<'_>) {
        let line = &Line { outcome: self.outcome.take(), ..*line };
        if second != self.second {
            self.second = second;
            self.stamp = match self.format {
                Format::Combined => combined_stamp(second),
                Format::Json => timestamp(),
            };
        }
        match self.format {
            Format::Combined => combined(&mut self.lines, &self.stamp, line),
            Format::Json => json(&mut self.lines, &self.stamp, line),
        }
        if self.lines.len() > ENOUGH {
            self.flush();
        }
    }
}

fn combined_stamp(second: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day, of_day) = civil(second);
    let name = MONTHS[(month as usize - 1).min(11)];
    format!("{day:02}/{name}/{year:04}:{:02}:{:02}:{:02} +0000", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

fn write_client(out: &mut Vec<u8>, client: Option<IpAddr>) {
    // Writing to a Vec cannot fail.
    let _infallible = match client {
        Some(address) => write!(out, "{address}"),
        None => write!(out, "unix:"),
    };
}

fn combined(out: &mut Vec<u8>, stamp: &str, line: &Line<'_>) {
    write_client(out, line.client);
    let _infallible = write!(out, " - - [{stamp}] \"");
    if line.method == "-" {
        out.push(b'-');
    } else {
        escape(out, line.method.as_bytes(), Escape::Combined);
        out.push(b' ');
        escape(out, line.target.as_bytes(), Escape::Combined);
        let _infallible = write!(out, " {}", line.version);
    }
    let _infallible = write!(out, "\" {} {} \"", line.status, line.bytes);
    escape(out, or_dash(line.referer), Escape::Combined);
    out.extend_from_slice(b"\" \"");
    escape(out, or_dash(line.agent), Escape::Combined);
    out.push(b'"');
    if let Some(outcome) = line.outcome {
        let _infallible = write!(out, " outcome={}", outcome.word());
    }
    out.push(b'\n');
}

fn or_dash(value: &[u8]) -> &[u8] {
    if value.is_empty() { b"-" } else { value }
}

fn json(out: &mut Vec<u8>, stamp: &str, line: &Line<'_>) {
    let _infallible = write!(out, "{{\"time\":\"{stamp}\",\"client\":\"");
    write_client(out, line.client);
    let texts: [(&str, &[u8]); 6] = [
        ("method", line.method.as_bytes()),
        ("target", line.target.as_bytes()),
        ("version", line.version.as_bytes()),
        ("host", line.host.as_bytes()),
        ("referer", line.referer),
        ("user_agent", line.agent),
    ];
    for (name, value) in texts {
        let _infallible = write!(out, "\",\"{name}\":\"");
        escape(out, value, Escape::Json);
    }
    let _infallible = write!(out, "\",\"status\":{},\"bytes\":{}", line.status, line.bytes);
    if let Some(outcome) = line.outcome {
        let _infallible = write!(out, ",\"outcome\":\"{}\"", outcome.word());
    }
    out.extend_from_slice(b"}\n");
}

#[derive(Clone, Copy)]
enum Escape {
    Combined,
    Json,
}

/// Appends a peer's bytes so that they can neither end the field nor the line.
fn escape(out: &mut Vec<u8>, bytes: &[u8], how: Escape) {
    for &byte in bytes.iter().take(MAX_FIELD) {
        match (byte, how) {
            (b'"' | b'\\', Escape::Json) => out.extend_from_slice(&[b'\\', byte]),
            (0x20..=0x7e, _) if byte != b'"' && byte != b'\\' => out.push(byte),
            (_, Escape::Combined) => {
                let _infallible = write!(out, "\\x{byte:02X}");
            }
            (_, Escape::Json) => {
                let _infallible = write!(out, "\\u{byte:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(target: &'a str, agent: &'a [u8]) -> Line<'a> {
        Line {
            client: "192.0.2.1".parse().ok(),
            method: "GET",
            target,
            version: "HTTP/1.1",
            host: "h",
            referer: b"",
            agent,
            status: 200,
            outcome: None,
            bytes: 13,
        }
    }

    #[test]
    fn a_combined_line_cannot_be_forged_by_its_fields() {
        let mut out = Vec::new();
        combined(&mut out, &combined_stamp(0), &line("/a\"b", b"x\ny"));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "192.0.2.1 - - [01/Jan/1970:00:00:00 +0000] \"GET /a\\x22b HTTP/1.1\" 200 13 \"-\" \"x\\x0Ay\"\n"
        );
    }

    #[test]
    fn a_json_line_escapes_what_json_must() {
        let mut out = Vec::new();
        json(&mut out, "t", &line("/a\"b", b"\xff"));
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\"target\":\"/a\\\"b\"") && text.contains("\"user_agent\":\"\\u00ff\""), "{text}");
        assert!(text.ends_with("\"status\":200,\"bytes\":13}\n"));
    }
}
