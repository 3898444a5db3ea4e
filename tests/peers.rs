//! Clients that other people wrote, each of which gets what it expects: curl, Python's own and httpx, h2load, Chromium.
//!
//! `tests/run` installs them. One that is not there is a failure, so that none is left out in silence.

use std::path::{Path, PathBuf};
use std::process::Command;

use ruzstd::encoding::CompressionLevel;

use crate::harness::command::{self, Outcome};
use crate::harness::{self, SOON, Server, Setup, beside_others, processes, text_pattern, wait_until};

/// Bytes of `/large`.
const LARGE: usize = 200_000;
/// Bytes of `/text.txt`, which is compressed whole.
const TEXT: usize = 50_000;
/// Bytes of `/long.txt`, which is compressed on its way.
const LONG: usize = 3 << 19;

fn start() -> Server {
    Setup::new(1)
        .file("digits", "0123456789")
        .file("large", harness::pattern(LARGE, 4))
        .file("sub/index.html", "sub index")
        .file("page.html", PAGE)
        .file("style.css", format!("#colour {{ width: 123px }}\n{}", "/* What compresses well. */\n".repeat(500)))
        .file("text.txt", text_pattern(TEXT, 5))
        .file("long.txt", text_pattern(LONG, 6))
        .file("kept/frames.txt", "first second ".repeat(1000))
        .file("kept/frames.txt.zst", frames(["first second ".repeat(400), "first second ".repeat(600)]))
        .file("list/<b>&.txt", "escaped")
        .file("list/sub/x", "")
        .routes("[[site.route]]\npath = \"/kept\"\nfiles = { root = \"{dir}/site\", compress = false }\n")
        .routes("[[site.route]]\npath = \"/list\"\nfiles = { root = \"{dir}/site\", listing = true }\n")
        .file("script.js", "document.getElementById('script').textContent = 'script ran';")
        .file("image.svg", IMAGE)
        .start()
}

const PAGE: &str = r#"<!doctype html><title>page</title><link rel="stylesheet" href="style.css">
<p id="script"></p><p id="colour"></p><p id="image"></p><p id="fetched"></p><p id="coded"></p><p id="frames"></p>
<script src="script.js"></script>
<script>
const tell = (id, text) => { document.getElementById(id).textContent = text; };
addEventListener("load", () => tell("colour", getComputedStyle(document.getElementById("colour")).width));
const image = new Image();
image.onload = () => tell("image", "image " + image.naturalWidth);
image.src = "image.svg";
const request = new XMLHttpRequest();
request.open("GET", "digits", false);
request.setRequestHeader("Range", "bytes=3-5");
request.send();
tell("fetched", request.status + " " + request.responseText);
request.open("GET", "kept/frames.txt", false);
request.send();
const whole = request.responseText === "first second ".repeat(1000);
tell("frames", request.getResponseHeader("Content-Encoding") + " " + whole);
const sheet = performance.getEntriesByType("resource").find((entry) => entry.name.endsWith("style.css"));
tell("coded", sheet.encodedBodySize < sheet.decodedBodySize ? "coded" : "plain");
</script>"#;

const IMAGE: &str = r#"<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"></svg>"#;

/// A body of several frames of zstd, as a stream is.
fn frames(parts: [String; 2]) -> Vec<u8> {
    let frame = |part: String| ruzstd::encoding::compress_to_vec(part.as_bytes(), CompressionLevel::Fastest);
    parts.into_iter().flat_map(frame).collect()
}

/// curl with `arguments`, quiet but for errors, for ten seconds at most.
#[track_caller]
fn curl(server: &Server, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("curl");
    command::run(server.directory(), command.args(["-sS", "--max-time", "10"]).args(arguments))
}

/// What curl prints of the last response: its status, and how many connections it took.
const TELL: [&str; 4] = ["-o", "/dev/null", "-w", "%{http_code} %{num_connects}\\n"];

#[test]
fn curl_is_served() {
    let _machine = beside_others();
    let server = start();
    let url = |path: &str| format!("http://{}{path}", server.address());
    let (hello, large, digits) = (url("/hello"), url("/large"), url("/digits"));
    let target = server.directory().path("downloaded");
    let to = target.to_str().unwrap();
    let body = harness::pattern(LARGE, 4);
    curl(&server, &[&hello, &hello]).assert_said(0, &["Hello, World!Hello, World!"]);
    let reused = curl(&server, &[&TELL[..], &TELL[..2], &[&hello, &hello]].concat());
    assert_eq!(reused.stdout, "200 1\n200 0\n", "{reused}");
    curl(&server, &["-o", to, &large]).assert_code(0);
    assert!(std::fs::read(&target).unwrap() == body, "curl got other bytes");
    curl(&server, &["-I", &large]).assert_said(0, &["200 OK", "200000"]);
    curl(&server, &["-r", "3-5", &digits]).assert_said(0, &["345"]);
    std::fs::write(&target, &body[..70_000]).unwrap();
    curl(&server, &["--continue-at", "-", "-o", to, &large]).assert_code(0);
    assert!(std::fs::read(&target).unwrap() == body, "curl continued with other bytes");
    let absent = curl(&server, &[&TELL[..], &[&url("/absent")]].concat());
    assert_eq!(absent.stdout, "404 1\n", "{absent}");
    let above = curl(&server, &[&TELL[..], &["--path-as-is", &url("/../../etc/passwd")]].concat());
    assert_eq!(above.stdout, "400 1\n", "{above}");
}

#[test]
fn curl_gets_several_ranges() {
    let _machine = beside_others();
    let server = start();
    let text = format!("http://{}/text.txt", server.address());
    let answer = curl(&server, &["-i", "-r", "0-20,30000-30009,-1", &text]);
    answer.assert_said(0, &["206 Partial Content", "multipart/byteranges"]);
    let body = String::from_utf8(text_pattern(TEXT, 5)).unwrap();
    for (from, to) in [(0, 20), (30_000, 30_009), (TEXT - 1, TEXT - 1)] {
        let part = format!("Content-Range: bytes {from}-{to}/{TEXT}\r\n\r\n{}\r\n--", &body[from..=to]);
        assert!(answer.stdout.contains(&part), "no {part:?}: {answer}");
    }
}

#[test]
fn curl_decodes_what_is_compressed() {
    let _machine = beside_others();
    let server = start();
    let target = server.directory().path("downloaded");
    for (path, body) in [("text.txt", text_pattern(TEXT, 5)), ("long.txt", text_pattern(LONG, 6))] {
        for coding in ["gzip", "br", "zstd"] {
            let (url, header) = (format!("http://{}/{path}", server.address()), format!("Accept-Encoding: {coding}"));
            let told =
                ["--compressed", "-H", &header, "-o", target.to_str().unwrap(), "-w", "%header{content-encoding}"];
            let answer = curl(&server, &[&told[..], &[&url]].concat());
            assert_eq!(answer.stdout, coding, "{path}: {answer}");
            assert!(std::fs::read(&target).unwrap() == body, "{path}, {coding}: curl got other bytes");
        }
    }
}

#[test]
fn curl_does_not_notice_that_the_workers_of_its_download_are_killed() {
    // The kernel's buffers and curl's first gulp take a third of it, whatever its limit.
    const BYTES: usize = 32 << 20;
    let _machine = beside_others();
    let server = Setup::new(1).file("download", harness::pattern(BYTES, 7)).start();
    let target = server.directory().path("downloaded");
    let url = format!("http://{}/download", server.address());
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60", "--limit-rate", "8M", "-o"]).arg(&target).arg(&url);
    let mut downloading = command.spawn().unwrap();
    wait_until("curl has some of it", SOON, || std::fs::metadata(&target).is_ok_and(|file| file.len() > 0));
    let mut kills = 0;
    while downloading.try_wait().unwrap().is_none() {
        kills += 1;
        processes::signal(server.worker(0), nix::sys::signal::Signal::SIGKILL);
        wait_until("a successor", SOON, || server.status().sum("restarts") == kills);
        server.wait_serving();
    }
    assert!(downloading.wait().unwrap().success() && kills > 3, "{kills} kills");
    assert!(std::fs::read(&target).unwrap() == harness::pattern(BYTES, 7), "curl got other bytes");
    println!("{kills} kills in one download");
}

#[test]
fn curl_revalidates_what_it_has() {
    let _machine = beside_others();
    let server = start();
    let digits = format!("http://{}/digits", server.address());
    let (have, etag) = (server.directory().path("have"), server.directory().path("etag"));
    let (have, etag) = (have.to_str().unwrap(), etag.to_str().unwrap());
    curl(&server, &["-R", "-o", have, "--etag-save", etag, &digits]).assert_code(0);
    assert!(std::fs::read_to_string(etag).unwrap().starts_with('"'));
    for condition in [["-z", have], ["--etag-compare", etag]] {
        let known = curl(&server, &[&TELL[..], &condition, &[&digits]].concat());
        assert_eq!(known.stdout, "304 1\n", "{known}");
    }
    let changed = curl(&server, &[&TELL[..], &["-z", "1 Jan 2001", &digits]].concat());
    assert_eq!(changed.stdout, "200 1\n", "{changed}");
}

#[test]
fn curl_uploads_with_a_length_in_chunks_and_after_an_interim_answer() {
    let _machine = beside_others();
    let server = start();
    let hello = format!("http://{}/hello", server.address());
    let upload = server.directory().write("upload", vec![b'u'; 300_000]);
    let (path, data) = (upload.to_str().unwrap(), format!("@{}", upload.display()));
    curl(&server, &["--data-binary", &data, &hello]).assert_said(0, &["Hello, World!"]);
    let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", &data];
    curl(&server, &[&chunked[..], &[&hello]].concat()).assert_said(0, &["Hello, World!"]);
    let expecting = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "9", "--data-binary", &data];
    curl(&server, &[&expecting[..], &[&hello]].concat()).assert_said(0, &["HTTP/1.1 100 Continue", "Hello, World!"]);
    let piped = format!("cat '{path}' | curl -sS --max-time 10 -T - -X POST '{hello}'");
    command::run(server.directory(), Command::new("sh").args(["-c", &piped])).assert_said(0, &["Hello, World!"]);
    let refused = server.directory().write("too-large", vec![b'u'; 3 << 20]);
    let data = format!("@{}", refused.display());
    let answer = curl(&server, &[&TELL[..], &["--data-binary", &data, &hello]].concat());
    assert_eq!(answer.stdout, "413 1\n", "{answer}");
}

#[test]
fn pythons_http_client_is_served() {
    let _machine = beside_others();
    let server = start();
    let script = scripts().join("http_client.py");
    command::run(server.directory(), Command::new("python3").arg(script).arg(server.address()))
        .assert_said(0, &["served"]);
}

#[test]
fn httpx_is_served() {
    let _machine = beside_others();
    let server = start();
    let script = scripts().join("httpx_client.py");
    command::run(server.directory(), Command::new(python_with_httpx(&server)).arg(script).arg(server.address()))
        .assert_said(0, &["served"]);
}

#[test]
fn h2load_pipelines_sixteen_deep_and_loses_nothing() {
    let _machine = beside_others();
    let server = start();
    for path in ["/hello", "/digits", "/large"] {
        let url = format!("http://{}{path}", server.address());
        let mut command = Command::new("h2load");
        command.args(["--h1", "-n", "2000", "-c", "4", "-m", "16", &url]);
        command::run(server.directory(), &mut command)
            .assert_said(0, &["2000 succeeded, 0 failed, 0 errored, 0 timeout", "2000 2xx, 0 3xx, 0 4xx, 0 5xx"]);
    }
}

#[test]
fn chromium_shows_a_page_with_all_that_belongs_to_it() {
    let _machine = beside_others();
    let server = start();
    chromium(&server, "/page.html")
        .assert_said(0, &[">script ran<", ">123px<", ">image 7<", ">206 345<", ">coded<", ">zstd true<"]);
}

#[test]
fn chromium_shows_a_listing() {
    let _machine = beside_others();
    let server = start();
    chromium(&server, "/list/")
        .assert_said(0, &["href=\"sub/\"", ">&lt;b&gt;&amp;.txt<", "href=\"%3Cb%3E%26.txt\"", "width=device-width"]);
}

/// What Chromium makes of a page.
#[track_caller]
fn chromium(server: &Server, path: &str) -> Outcome {
    let url = format!("http://{}{path}", server.address());
    let profile = format!("--user-data-dir={}", server.directory().path("profile").display());
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &profile]);
    command.args(["--virtual-time-budget=5000", "--dump-dom", &url]);
    command::run(server.directory(), &mut command)
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers")
}

/// A Python that has httpx: an environment of its own beside the build, made when it is first wanted.
fn python_with_httpx(server: &Server) -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("httpx");
    let python = environment.join("bin/python");
    let complete = environment.join("complete");
    if !complete.exists() {
        let mut make = Command::new("python3");
        command::run(server.directory(), make.args(["-m", "venv", "--clear"]).arg(&environment)).assert_code(0);
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "httpx==0.28.1"]);
        command::run(server.directory(), &mut install).assert_code(0);
        std::fs::write(complete, "").unwrap();
    }
    python
}
