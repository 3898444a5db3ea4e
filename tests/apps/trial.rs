//! What the end-to-end tests have of handlers: those of Phalanx's own and, with `TRIAL=axum`, a router of axum.

#![allow(clippy::print_stderr, reason = "it is no server yet")]

use std::convert::Infallible;
use std::io::{self, Read, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{self, StatusCode};
use axum::response::{IntoResponse as _, Response as AxumResponse};
use axum::routing::{any, get, post};
use futures_util::stream::{self, StreamExt};
use phalanx::state::{self, Change, Counter, RateLimiter, Table, Verdict};
use phalanx::{Incoming, IntoResponse, PathParams, Request, Response, Routes, Server, Tower, isolated, pooled, task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Everything that a handler can know of a request.
fn tell(request: &Request) -> io::Result<String> {
    let fields = request.headers().count();
    Ok(format!(
        "{} {} segments={:?} id={:?} q={:?} x={:?} fields={fields} peer={} client={:?} body={:?} deadline={}",
        request.method(),
        request.path(),
        request.segments().collect::<Vec<_>>(),
        request.param("id"),
        request.query_value("q"),
        request.header("x-a"),
        request.peer().is_some(),
        request.client(),
        request.body().text()?,
        request.deadline().is_some(),
    ))
}

/// Adds up the bytes of a body as it comes.
fn sum(request: &Request) -> io::Result<String> {
    let (mut sum, mut count, mut bytes) = (0_u64, 0_u64, [0; 8192]);
    let mut reader = request.body().reader();
    loop {
        match reader.read(&mut bytes)? {
            0 => return Ok(format!("{count} {sum}")),
            more => {
                count += more as u64;
                sum += bytes[..more].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            }
        }
    }
}

fn size(request: &Request) -> io::Result<String> {
    Ok(request.body().bytes()?.len().to_string())
}

fn panics(_: &Request) -> Response {
    panic!("on purpose")
}

fn waits(_: &Request) -> &'static str {
    std::thread::sleep(Duration::from_millis(100));
    "waited"
}

fn refuses(_: &Request) -> impl IntoResponse + use<> {
    (401, "who are you?")
}

fn invalid(_: &Request) -> Response {
    Response::text("x").header("X-A", "a\r\nX-B: b")
}

fn file(request: &Request) -> io::Result<Response> {
    Response::file(request.query_value("path").unwrap_or_default().as_ref())
}

/// So many bytes that are made on the way.
fn reads(request: &Request) -> Response {
    let len = request.param("len").and_then(|len| len.parse().ok()).unwrap_or(0);
    let stated = request.query().is_some().then_some(len);
    Response::reader("application/octet-stream", io::repeat(b'r').take(len), stated)
}

/// Promises more than there is.
fn breaks(_: &Request) -> Response {
    Response::reader("text/plain", io::repeat(b'r').take(10), Some(20))
}

/// A body where none may be.
fn bodiless(request: &Request) -> Response {
    let status = request.param("status").and_then(|status| status.parse().ok()).unwrap_or(204);
    let response = match request.query() {
        Some(_) => Response::reader("text/plain", io::repeat(b'r').take(100_000), None),
        None => Response::bytes("text/plain", vec![b'b'; 100_000]),
    };
    response.status(status)
}

fn pieces(_: &Request) -> Response {
    Response::pieces("text/plain", (0..3).map(|number| Ok(format!("piece {number}\n").into())))
}

/// What the workers share.
#[derive(Clone, Copy)]
struct Shared {
    adds: Counter,
    table: Table,
    limiter: RateLimiter,
}

impl Shared {
    fn new() -> Result<Shared, state::Error> {
        // Another program has others, and more of them.
        let entries = std::env::var("TRIAL_ENTRIES").ok().and_then(|entries| entries.parse().ok());
        if entries.is_some() {
            Counter::new("before_total", "nothing")?;
        }
        Ok(Shared {
            adds: Counter::new("adds_total", "additions")?,
            table: Table::new("adds", entries.unwrap_or(100), 16, 8)?,
            limiter: RateLimiter::new("admissions", Duration::from_secs(3600), 50, 100, 16)?,
        })
    }

    /// One more of a key; `pause` is made while nobody else can change it.
    fn add(&self, request: &Request, pause: fn()) -> String {
        let key = request.param("key").unwrap_or_default().as_bytes();
        let mut value = 0;
        let updated = self.table.update(key, |old| {
            value = old.and_then(|old| Some(u64::from_le_bytes(old.try_into().ok()?))).unwrap_or(0) + 1;
            pause();
            Change::Set(value.to_le_bytes().to_vec(), None)
        });
        self.adds.increment();
        updated.map_or_else(|error| error.to_string(), |()| value.to_string())
    }

    fn admit(&self, request: &Request) -> (u16, String) {
        match self.limiter.admit(request.param("key").unwrap_or_default().as_bytes()) {
            Ok(Verdict::Admitted) => (200, "admitted".to_owned()),
            Ok(Verdict::Refused { retry_after }) => (429, format!("{}", retry_after.as_secs())),
            Err(error) => (400, error.to_string()),
        }
    }
}

/// Tells who holds, and does not go on.
fn for_ever() {
    let place = format!("{}/held", std::env::var("TRIAL_DIR").unwrap_or_default());
    let _best_effort = std::fs::write(format!("{place}.new"), std::process::id().to_string());
    let _best_effort = std::fs::rename(format!("{place}.new"), place);
    wait_for_ever()
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Goes deeper than any stack.
fn recurse(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + here[63] }
}

/// Does that to its process.
fn does(request: &Request) -> String {
    match request.param("what").unwrap_or_default() {
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "panic" => panic!("on purpose"),
        "recurse" => recurse(0).to_string(),
        "allocate" => std::hint::black_box(vec![1_u8; 256 << 20]).len().to_string(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "wait" => wait_for_ever(),
        _ => std::process::id().to_string(),
    }
}

fn native(shared: Shared) -> Routes {
    let limited = isolated(does).cpu(Duration::from_secs(1)).wall(Duration::from_secs(3)).memory(64 << 20);
    Routes::new()
        .any("/isolated/tell/{id}", isolated(tell))
        .post("/isolated/size", isolated(size))
        .get("/isolated/file", isolated(file))
        .get("/isolated/reads/{len}", isolated(reads))
        .get("/isolated/add/{key}", isolated(move |request: &Request| shared.add(request, || ())))
        .get("/isolated/waits", isolated(waits))
        .get("/isolated/early", isolated(early))
        .get("/early", early)
        .any("/does/{what}", limited)
        .get("/add/{key}", move |request: &Request| shared.add(request, || ()))
        .post("/hold/{key}", move |request: &Request| shared.add(request, for_ever))
        .get("/admit/{key}", move |request: &Request| shared.admit(request))
        .get("/metrics", |_: &Request| state::exposition("trial_"))
        .get("/environment", |_: &Request| std::env::vars().map(|(name, _)| name + "\n").collect::<String>())
        .get("/", |_: &Request| "Hello, World!")
        .get("/hello", |_: &Request| "Hello, World!")
        .any("/tell/{id}", tell)
        .any("/pooled/tell/{id}", pooled(tell))
        .post("/sum", pooled(sum).streamed())
        .post("/size", size)
        .post("/refuses", pooled(refuses).streamed())
        .get("/panics", panics)
        .get("/pooled/panics", pooled(panics))
        .get("/waits", pooled(waits))
        .get("/invalid", invalid)
        .get("/file", file)
        .get("/reads/{len}", reads)
        .get("/breaks", breaks)
        .get("/pieces", pieces)
        .get("/bodiless/{status}", bodiless)
}

/// Leaves a file when it is dropped.
struct Trace(std::path::PathBuf);

impl Drop for Trace {
    fn drop(&mut self) {
        let _best_effort = std::fs::write(&self.0, "gone");
    }
}

/// Waits for ever.
async fn forever(Path(name): Path<String>) -> &'static str {
    let _trace = Trace(format!("{}/{name}", std::env::var("TRIAL_DIR").unwrap_or_default()).into());
    std::future::pending().await
}

async fn sleeps(Path(milliseconds): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    milliseconds.to_string()
}

/// Sends back what comes as it comes.
async fn mirror(body: Body) -> AxumResponse {
    Body::from_stream(body.into_data_stream()).into_response()
}

async fn count(body: Body) -> Result<String, StatusCode> {
    let (mut bytes, mut body) = (0, body.into_data_stream());
    while let Some(piece) = body.next().await {
        bytes += piece.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(bytes.to_string())
}

/// A few pieces, and then an error.
async fn cut() -> AxumResponse {
    let pieces = [Ok(Bytes::from_static(b"some")), Err(io::Error::other("on purpose"))];
    let pieces = stream::iter(pieces).then(|piece| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        piece
    });
    Body::from_stream(pieces).into_response()
}

/// Asks another server as clients of asynchronous programs do.
async fn asks(Path(port): Path<u16>) -> io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A task of the program's own panics.
async fn stray() -> &'static str {
    let outcome = tokio::spawn(async { panic!("on purpose") }).await;
    if outcome.is_err() { "it panicked alone" } else { "?" }
}

/// A piece, and then a panic.
async fn bursts() -> AxumResponse {
    let pieces = stream::iter([0, 1]).map(|number| match number {
        0 => Ok::<_, Infallible>(Bytes::from_static(b"some")),
        _ => panic!("on purpose"),
    });
    Body::from_stream(pieces).into_response()
}

async fn lasts(Path(seconds): Path<u64>) -> AxumResponse {
    let ticks = stream::unfold(0, move |tick| async move {
        if tick > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        (tick < seconds).then(|| (Ok::<_, Infallible>(format!("data: {tick}\n\n")), tick + 1))
    });
    Body::from_stream(ticks).into_response()
}

fn axum() -> axum::Router {
    axum::Router::new()
        .route("/", get(|| async { "Hello, World!" }))
        .route("/hello", get(|| async { "Hello, World!" }))
        .route("/forever/{name}", get(forever))
        .route("/sleeps/{milliseconds}", get(sleeps).post(sleeps))
        .route("/mirror", post(mirror))
        .route("/count", post(count))
        .route("/cut", get(cut))
        .route("/bursts", get(bursts))
        .route("/asks/{port}", get(|port| async { asks(port).await.unwrap_or_else(|error| error.to_string()) }))
        .route("/stray", get(stray))
        .route("/lasts/{seconds}", get(lasts))
        .route("/refuses", any(|| async { (StatusCode::UNAUTHORIZED, "who are you?") }))
        .route("/panics", get(|| async { if true { panic!("on purpose") } else { "" } }))
}

/// Writes a line down for the test: by one write, since others do too.
fn note(line: &str) {
    let path = format!("{}/notes", std::env::var("TRIAL_DIR").unwrap_or_default());
    let file = std::fs::File::options().create(true).append(true).open(path);
    let _best_effort = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}

/// What the program has opened before there was a worker: in `main`, and in `on_start`.
static EARLY: [OnceLock<std::fs::File>; 2] = [OnceLock::new(), OnceLock::new()];

fn open_early(number: usize) -> io::Result<()> {
    let path = format!("{}/early{number}", std::env::var("TRIAL_DIR").unwrap_or_default());
    let file = std::fs::File::options().create(true).append(true).open(path)?;
    let _opened_once = EARLY[number].set(file);
    Ok(())
}

/// Writes to them.
fn early(_: &Request) -> io::Result<&'static str> {
    for mut file in EARLY.iter().filter_map(OnceLock::get) {
        file.write_all(b"x")?;
    }
    Ok("written")
}

/// Where the program before had something, this one dies with the key in its hand.
fn expect_nothing(old: Option<&[u8]>) -> Change {
    assert!(old.is_none(), "on purpose");
    Change::Keep
}

/// What a program may have open for as long as a worker lives, and never closes.
fn open_some() -> io::Result<()> {
    std::mem::forget(std::net::UdpSocket::bind("127.0.0.1:0")?);
    std::mem::forget(std::os::unix::net::UnixStream::pair()?);
    std::mem::forget(std::io::pipe()?);
    std::mem::forget(std::fs::File::open("/dev/null")?);
    Ok(())
}

fn with_hooks(shared: Shared) -> Server {
    Server::builder()
        .app(native(shared))
        .on_start(move || {
            note("start");
            open_early(1).map_err(|_| "nothing can be opened")?;
            match std::env::var("TRIAL_FAILS").as_deref() {
                Ok("start") => Err("no table today"),
                Ok("holding") => shared.table.update(b"key", expect_nothing).map_err(|_| "no such key"),
                _ => Ok(()),
            }
        })
        .after_fork(|worker| {
            note(&format!("fork {} {}", worker.slot, worker.incarnation));
            open_some().map_err(|_| "nothing can be opened")?;
            match std::env::var("TRIAL_FAILS").as_deref() {
                Ok("fork") => Err("no database today"),
                _ => Ok(()),
            }
        })
        .on_drain(|worker| note(&format!("drain {} {}", worker.slot, worker.incarnation)))
        .on_exit(|worker| note(&format!("exit {} {}", worker.slot, worker.incarnation)))
        .on_crash(|crash| note(&format!("crash {} {} {:?}", crash.slot, crash.cause, crash.request)))
        .background("only one", || {
            note(&format!("background {}", std::process::id()));
            wait_for_ever();
        })
        .every("100ms", || note("tick"))
        .build()
}

/// Asynchronous handlers of Phalanx's own, and others beside them.
fn tasks() -> Routes {
    let sleeps = |request: http::Request<Incoming>| async move {
        let params = request.extensions().get::<PathParams>();
        let wait = params.and_then(|params| params.get("milliseconds")?.parse().ok()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        wait.to_string()
    };
    let counts = |request: http::Request<Incoming>| async move {
        let (mut count, mut body) = (0, request.into_body());
        while let Some(piece) = std::future::poll_fn(|cx| body.poll_next(cx)).await {
            count += piece?.len();
        }
        io::Result::Ok(count.to_string())
    };
    Routes::new()
        .get("/", |_: &Request| "Hello, World!")
        .get("/hello", |_: &Request| "Hello, World!")
        .any("/sleeps/{milliseconds}", task(sleeps))
        .post("/count", task(counts))
        .get("/waits", pooled(waits))
        .get("/does/{what}", isolated(does))
}

fn main() -> ExitCode {
    let shared = match Shared::new() {
        Ok(shared) => shared,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if std::env::var("TRIAL").as_deref() == Ok("threads") {
        let early = std::thread::Builder::new().name("too-early".to_owned());
        let (begins, begun) = std::sync::mpsc::channel();
        let _runs_on = early.spawn(move || {
            // It has its name by now.
            let _waited_for = begins.send(());
            wait_for_ever()
        });
        let _begun = begun.recv();
    }
    match std::env::var("TRIAL").as_deref() {
        Ok("axum") => Server::new(Tower::new(axum()).connect_info()),
        Ok("tasks") => Server::new(tasks()),
        Ok("hooks") => match open_early(0) {
            Ok(()) => with_hooks(shared),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
        _ => Server::new(native(shared)),
    }
    .main()
}
