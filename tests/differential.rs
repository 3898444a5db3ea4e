//! Every request of the corpus to Phalanx and to Debian's nginx with the same site: where the two answer differently,
//! `differences.txt` says so, and why. A difference that is not listed fails, and so does a listed one that is none.
//!
//! A paragraph of that file is a reason (lines `# …`) and the cases it explains, a line each: name, what Phalanx does, what
//! nginx does, separated by `|`. `PHALANX_DIFFERENCES=print` prints what would have to stand there.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::corpus;
use crate::harness::case::{self, Case};
use crate::harness::{SOON, Server, alone, wait_until};

/// The nginx whose ways are listed.
const NGINX: &str = "nginx/1.22";
/// After so long without a byte a server is taken to wait for its client.
const SILENCE: Duration = Duration::from_millis(500);
/// Cases that are tried at once: most of the time each is silent.
const OBSERVERS: usize = 64;

/// What two servers did with the same case.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    ours: String,
    nginx: String,
}

#[test]
fn every_difference_from_nginx_is_listed_and_explained() {
    let _machine = alone();
    let (ours, nginx) = (corpus::start(), Nginx::start());
    let found = differences(&ours.address(), &nginx.address);
    if std::env::var_os("PHALANX_DIFFERENCES").is_some() {
        found.iter().for_each(|(name, difference)| println!("{}", line(name, difference)));
    }
    let listed = listed(&std::fs::read_to_string(corpus::directory("differences.txt")).unwrap());
    let lines = |these: &BTreeMap<String, Difference>, those: &BTreeMap<String, Difference>| -> Vec<String> {
        these.iter().filter(|(name, it)| those.get(*name) != Some(it)).map(|(name, it)| line(name, it)).collect()
    };
    let (unexplained, vanished) = (lines(&found, &listed), lines(&listed, &found));
    assert!(
        unexplained.is_empty() && vanished.is_empty(),
        "not explained:\n{}\n\nlisted, and not so:\n{}",
        unexplained.join("\n"),
        vanished.join("\n")
    );
}

#[test]
fn the_list_of_differences_names_a_reason_for_each() {
    let text = std::fs::read_to_string(corpus::directory("differences.txt")).unwrap();
    for paragraph in text.split("\n\n") {
        assert!(paragraph.starts_with("# "), "no reason: {paragraph}");
    }
    let names: Vec<String> = case::texts(&corpus::directory("corpus")).into_iter().map(|(name, _)| name).collect();
    for name in listed(&text).keys() {
        assert!(names.contains(name), "{name} is no case of the corpus");
    }
}

fn line(name: &str, difference: &Difference) -> String {
    format!("{name} | {} | {}", difference.ours, difference.nginx)
}

fn listed(text: &str) -> BTreeMap<String, Difference> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cases = lines.map(|line| {
        let [name, ours, nginx] = line.split(" | ").collect::<Vec<_>>()[..] else { panic!("not three parts: {line}") };
        (name.to_owned(), Difference { ours: ours.to_owned(), nginx: nginx.to_owned() })
    });
    let mut listed = BTreeMap::new();
    for (name, difference) in cases {
        assert!(listed.insert(name.clone(), difference).is_none(), "{name} is listed twice");
    }
    listed
}

fn differences(ours: &str, nginx: &str) -> BTreeMap<String, Difference> {
    let mut etags = [corpus::Etags::default(), corpus::Etags::default()];
    let mut case_of = |at: usize, address: &str, text: &str| {
        Case::parse(&case::with_etags(text, |path| etags[at].of(address, path))).unwrap()
    };
    let texts = case::texts(&corpus::directory("corpus"));
    let pairs: Vec<(String, [Case; 2])> =
        (texts.into_iter()).map(|(name, text)| (name, [case_of(0, ours, &text), case_of(1, nginx, &text)])).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let compare = || {
        while let Some((name, [case, its_like])) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ((ours, our_bodies), (nginx, nginx_bodies)) = (observe(ours, case), observe(nginx, its_like));
            let other = if ours == nginx && our_bodies != nginx_bodies { ", another body" } else { "" };
            if ours != nginx || !other.is_empty() {
                let difference = Difference { ours: format!("{ours}{other}"), nginx };
                found.lock().unwrap().insert(name.clone(), difference);
            }
        }
    };
    std::thread::scope(|scope| {
        for _observer in 0..OBSERVERS {
            scope.spawn(compare);
        }
    });
    found.into_inner().unwrap()
}

/// What a server does with a case, in a few words, and the bodies of its good answers. Once nothing more comes the client finishes
/// sending: what the server still waits for never comes, and what it says to that counts too.
fn observe(address: &str, case: &Case) -> (String, Vec<Vec<u8>>) {
    let mut stream = TcpStream::connect(address).unwrap();
    // A server that has refused the request may have closed already; what it said can be read all the same.
    let _refused = stream.write_all(&case.request);
    let mut bytes = Vec::new();
    let mut by_itself = false;
    if !case.finish {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        by_itself = match stream.read_to_end(&mut bytes) {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
    }
    if !by_itself {
        let _reset = stream.shutdown(Shutdown::Write);
        stream.set_read_timeout(Some(SOON)).unwrap();
        let _reset = stream.read_to_end(&mut bytes);
    }
    let (mut words, mut bodies, mut rest, mut closes) = (Vec::new(), Vec::new(), bytes.as_slice(), by_itself);
    while !rest.is_empty() {
        let bodyless = case.responses.get(words.len()).is_some_and(|expected| expected.bodyless);
        let Some(answer) = Answer::read(rest, bodyless) else {
            words.push("no HTTP/1".to_owned());
            break;
        };
        words.push(answer.status.to_string());
        bodies.extend((200..300).contains(&answer.status).then(|| answer.body.to_vec()));
        closes = by_itself || answer.closes;
        rest = answer.rest;
    }
    words.push(match (bytes.is_empty(), closes) {
        (_, true) => "close".to_owned(),
        (true, false) => "no answer".to_owned(),
        (false, false) => "keep".to_owned(),
    });
    (words.join(" "), bodies)
}

/// A response as far as it is compared.
struct Answer<'b> {
    status: u16,
    closes: bool,
    body: &'b [u8],
    rest: &'b [u8],
}

impl<'b> Answer<'b> {
    fn read(bytes: &'b [u8], bodyless: bool) -> Option<Answer<'b>> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
        let status: u16 = head.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let behind = &bytes[end..];
        let length = match status {
            100..200 | 204 | 304 => 0,
            _ if bodyless => 0,
            _ if field("transfer-encoding").is_some() => behind.windows(5).position(|it| it == b"0\r\n\r\n")? + 5,
            _ => field("content-length").map_or(Some(behind.len()), |length| length.parse().ok())?,
        };
        let (body, rest) = behind.split_at_checked(length)?;
        Some(Answer { status, closes: field("connection") == Some("close"), body, rest })
    }
}

/// An nginx with the site of the corpus, in a directory of its own.
struct Nginx {
    process: Child,
    address: String,
    _site: Server,
}

impl Nginx {
    fn start() -> Nginx {
        let version = Command::new(program()).arg("-v").output().expect("nginx is installed by tests/run");
        let version = String::from_utf8_lossy(&version.stderr).into_owned();
        assert!(version.contains(NGINX), "the list speaks of {NGINX}, this is {version}");
        // Only its directory is used: the files, and what nginx writes.
        let site = corpus::site(crate::harness::Setup::new(1)).write();
        let directory = site.directory().text().to_owned();
        let address = format!("127.0.0.1:{}", crate::harness::command::free_port());
        let config = CONFIG.replace("{dir}", &directory).replace("{address}", &address);
        let config = site.directory().write("nginx.conf", config);
        let mut command = Command::new(program());
        command.arg("-p").arg(&directory).arg("-c").arg(config).args(["-e", "nginx.log"]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let nginx = Nginx { process, address, _site: site };
        wait_until("nginx serves", SOON, || TcpStream::connect(&nginx.address).is_ok());
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _gone = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// Debian puts it where not everybody looks.
fn program() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/nginx");
    if debian.exists() { debian } else { "nginx".into() }
}

/// The corpus's site, and Phalanx's default bounds where nginx has the like.
const CONFIG: &str = r#"
daemon off;
master_process off;
pid {dir}/nginx.pid;
events { worker_connections 256; }
http {
    access_log off;
    types { text/html html; text/css css; text/plain txt; }
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    client_header_buffer_size 8k;
    large_client_header_buffers 2 8k;
    client_max_body_size 1m;
    absolute_redirect off;
    server {
        listen {address};
        location / { root {dir}/site; index index.html; }
        location ~ /\. { return 404; }
        location /hello { default_type text/plain; return 200 "Hello, World!"; }
        location /old/ { return 301 /new/; }
        location /list { root {dir}/site; autoindex on; }
    }
}
"#;
