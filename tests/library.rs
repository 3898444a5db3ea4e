//! Programs with handlers of their own: what a handler is told, what it may answer, and what becomes of it when workers die.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::chaos::nobody_notices_kills;
use crate::harness::processes::{self, Process};
use crate::harness::{
    Ask, Client, Load, Manners, SOON, Server, Setup, alone, beside_others, knob, pause, wait_for_moment, wait_until,
};

/// The handlers of the tests, Phalanx's own, in one worker.
fn native() -> Setup {
    Setup::of_example("trial", 1)
}

/// Those of axum.
fn axum() -> Setup {
    let setup = native().environment("TRIAL", "axum").set("workers", "model = \"coroutine\"");
    let directory = setup.directory().text().to_owned();
    setup.environment("TRIAL_DIR", &directory)
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The same in chunks of `size` bytes.
fn post_in_chunks(path: &str, body: &[u8], size: usize) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(size) {
        write!(request, "{:x}\r\n", chunk.len()).unwrap();
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

fn sum_of(body: &[u8]) -> String {
    format!("{} {}", body.len(), body.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}

#[track_caller]
fn sent(client: &mut Client, request: &[u8]) -> crate::harness::Response {
    client.send(request);
    client.answer_to("POST")
}

// ---- what handlers see and say ----

#[test]
fn a_handler_is_told_all_there_is_to_know() {
    let _machine = beside_others();
    for model in ["reactor", "reactor-pool", "multi-reactor", "thread", "process", "sync", "uring"] {
        let server = native().set("workers", &format!("model = \"{model}\"")).start();
        for place in ["", "/pooled"] {
            let mut client = Client::connect(&server.address());
            let head = format!("PUT {place}/tell/a%20b?q=c+d%21 HTTP/1.1\r\nHost: h\r\nX-A: e\r\n");
            let path: Vec<&str> = place.split('/').filter(|part| !part.is_empty()).chain(["tell", "a b"]).collect();
            for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
            {
                client.send(format!("{head}{body}").as_bytes());
                let text = client.answer_to("PUT").text();
                let expected = format!(
                    "PUT {place}/tell/a b segments={path:?} id=Some(\"a b\") q=Some(\"c d!\") x=Some(\"e\") fields=3 peer=true \
                     client=Some(127.0.0.1) body=\"hello\" deadline=true"
                );
                assert_eq!(text, expected, "{model}");
                // Who serves one connection at a time may have others wait.
                if model == "sync" {
                    client = Client::connect(&server.address());
                }
            }
        }
    }
}

#[test]
fn a_handler_that_panics_is_a_500_on_a_connection_that_lives_on() {
    let _machine = beside_others();
    let server = native().start();
    let worker = server.worker(0);
    let mut client = Client::connect(&server.address());
    for path in ["/panics", "/pooled/panics", "/invalid"] {
        assert_eq!(client.get(path).status, 500, "{path}");
        client.get("/").assert(200, b"Hello, World!");
    }
    assert_eq!(server.worker(0), worker);
    assert!(server.log().contains("\"X-A\""), "{}", server.log());
}

#[test]
fn methods_and_paths_that_have_no_handler_are_told_so() {
    let _machine = beside_others();
    let server = native().start();
    let mut client = Client::connect(&server.address());
    let response = sent(&mut client, &post("/", b""));
    assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    let response = client.ask("OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((response.status, response.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    assert_eq!(client.get("/no/such").status, 404);
    client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = client.answer_to("HEAD");
    assert_eq!((head.status, head.header("content-length")), (200, Some("13")));
}

#[test]
fn what_a_handler_answers_with_arrives_whole() {
    let _machine = beside_others();
    let setup = native().file("page.html", bytes(100_000));
    let page = setup.directory().path("site/page.html").display().to_string();
    let server = setup.start();
    let mut client = Client::connect(&server.address()).takes_chunks();
    let file = client.get(&format!("/file?path={page}"));
    file.assert(200, &bytes(100_000));
    assert_eq!(file.header("content-type"), Some("text/html"));
    assert_eq!(client.get("/file?path=/no/such").status, 404);
    for len in [0, 1, 70_000, 1_000_000] {
        let chunked = client.get(&format!("/reads/{len}"));
        chunked.assert(200, &vec![b'r'; len]);
        assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
        let stated = client.get(&format!("/reads/{len}?stated"));
        stated.assert(200, &vec![b'r'; len]);
        assert_eq!(stated.header("content-length"), Some(len.to_string().as_str()));
    }
    client.get("/pieces").assert(200, b"piece 0\npiece 1\npiece 2\n");
    // One that is not what it said is cut off.
    client.send(b"GET /breaks HTTP/1.1\r\nHost: h\r\n\r\n");
    let failure = client.try_answer("GET").unwrap_err();
    assert!(failure.truncated().is_some(), "{failure}");
}

#[test]
fn an_answer_without_a_body_has_none_whatever_its_handler_says() {
    let _machine = beside_others();
    let server = native().start();
    let mut client = Client::connect(&server.address());
    for status in [204, 205, 304] {
        for path in [format!("/bodiless/{status}"), format!("/bodiless/{status}?stream")] {
            client.get(&path).assert(status, b"");
            client.get("/").assert(200, b"Hello, World!");
        }
    }
}

#[test]
fn a_pooled_handler_that_waits_delays_nobody() {
    let _machine = alone();
    let server = native().start();
    let mut waiting: Vec<Client> = (0..32).map(|_| Client::connect(&server.address()).patient(SOON)).collect();
    waiting.iter_mut().for_each(|client| client.send(b"GET /waits HTTP/1.1\r\nHost: h\r\n\r\n"));
    Client::connect(&server.address()).get("/").assert(200, b"Hello, World!");
    assert!(waiting.iter().any(|client| !client.is_readable()), "all that waited were answered before");
    waiting.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
}

// ---- bodies ----

#[test]
fn bodies_of_every_length_and_coding_reach_their_handlers() {
    let _machine = beside_others();
    let server = native().set("limits", "body = \"4MiB\"").start();
    let mut client = Client::connect(&server.address());
    for len in [0, 1, 15_000, 16_384, 16_500, 100_000, 3_000_000] {
        let body = bytes(len);
        for path in ["/sum", "/size"] {
            let expected = if path == "/sum" { sum_of(&body) } else { len.to_string() };
            sent(&mut client, &post(path, &body)).assert(200, expected.as_bytes());
            sent(&mut client, &post_in_chunks(path, &body, 5000)).assert(200, expected.as_bytes());
        }
        // Two in a row, and what comes behind them.
        let both = [post("/sum", &body), post_in_chunks("/sum", &body, 16_384)].concat();
        client.send(&[both, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()].concat());
        client.answer_to("POST").assert(200, sum_of(&body).as_bytes());
        client.answer_to("POST").assert(200, sum_of(&body).as_bytes());
        client.answer().assert(200, b"Hello, World!");
    }
    let too_large = bytes(5_000_000);
    let mut client = Client::connect(&server.address());
    client.send(&post("/sum", &too_large)[..20_000]);
    assert_eq!(client.answer_to("POST").status, 413);
    let mut client = Client::connect(&server.address());
    let _it_may_close_first = client.try_send(&post_in_chunks("/sum", &too_large, 100_000));
    assert_eq!(client.answer_to("POST").status, 413);
}

#[test]
fn an_answer_that_comes_before_its_body_leaves_the_connection_in_order() {
    let _machine = beside_others();
    let models = ["reactor", "reactor-pool", "multi-reactor", "uring"];
    let setups = models.map(|model| (native().set("workers", &format!("model = \"{model}\"")), model));
    for (setup, name) in setups.into_iter().chain([(axum(), "axum")]) {
        let server = setup.start();
        let mut client = Client::connect(&server.address());
        for first in [30_000, 200, 16_500] {
            let request = post("/refuses", &bytes(300_000));
            let (first, rest) = request.split_at(first);
            client.send(first);
            client.answer_to("POST").assert(401, b"who are you?");
            // Only now does the client send the rest; what follows is the next request.
            client.send(rest);
            client.get("/").assert(200, b"Hello, World!");
        }
        assert_eq!(server.status().total("connections"), 1, "{name}");
    }
}

#[test]
fn a_slow_body_is_not_waited_for_for_ever() {
    let _machine = beside_others();
    for setup in [native(), axum()] {
        let server = setup.set("timeouts", "body = \"300ms\"").start();
        for path in ["/sum", "/count"] {
            let mut client = Client::connect(&server.address());
            client.send(&post(path, &bytes(100_000))[..50_000]);
            let status = client.answer_to("POST").status;
            assert!([404, 408].contains(&status), "{path}: {status}");
        }
        Client::connect(&server.address()).get("/").assert(200, b"Hello, World!");
    }
}

#[test]
fn a_slow_client_is_not_its_handlers_fault() {
    let _machine = beside_others();
    let server = native().set("workers", "request_timeout = \"1s\"").start();
    let worker = server.worker(0);
    let (request, begun) = (post("/sum", &bytes(100_000)), Instant::now());
    let mut client = Client::connect(&server.address()).patient(SOON);
    for (number, piece) in (1..).zip(request.chunks(20_000)) {
        client.send(piece);
        wait_for_moment(begun + Duration::from_millis(500) * number);
    }
    client.answer_to("POST").assert(200, sum_of(&bytes(100_000)).as_bytes());
    assert_eq!(server.worker(0), worker);
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_body_is_an_error_to_the_handler_and_nobody_else() {
    let _machine = beside_others();
    for setup in [native(), axum()] {
        let server = setup.start();
        for path in ["/sum", "/count"] {
            let mut client = Client::connect(&server.address()).quiet();
            client.send(&post(path, &bytes(100_000))[..50_000]);
            client.wait_taken();
        }
        wait_until("they are gone", SOON, || server.status().total("connections") == 0);
        Client::connect(&server.address()).get("/").assert(200, b"Hello, World!");
    }
}

#[test]
fn bodies_go_both_ways_at_once() {
    let _machine = beside_others();
    let server = axum().set("limits", "body = \"64MiB\"").start();
    let body = bytes(20_000_000);
    let stream = TcpStream::connect(server.address()).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let request = post("/mirror", &body);
    // Nobody could keep all of it: it is sent and read at the same time.
    let sending = std::thread::spawn(move || sender.write_all(&request));
    let mut client = Client::of(stream).takes_chunks();
    client.answer_to("POST").assert(200, &body);
    sending.join().unwrap().unwrap();
    client.get("/").assert(200, b"Hello, World!");
}

// ---- axum ----

#[test]
fn handlers_that_wait_answer_in_order_among_those_that_do_not() {
    let _machine = beside_others();
    let server = axum().start();
    let mut client = Client::connect(&server.address());
    let paths = ["/", "/sleeps/30", "/", "/sleeps/0", "/sleeps/5", "/", "/"];
    for _ in 0..5 {
        let requests = paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).concat();
        client.send(requests.as_bytes());
        for path in paths {
            let expected = path.strip_prefix("/sleeps/").unwrap_or("Hello, World!");
            client.answer().assert(200, expected.as_bytes());
        }
    }
    server.wait_total(35);
}

#[test]
fn a_panic_in_a_handler_or_in_a_task_of_its_own_ends_nothing_else() {
    let _machine = beside_others();
    let server = axum().start();
    let worker = server.worker(0);
    let mut client = Client::connect(&server.address());
    assert_eq!(client.get("/panics").status, 500);
    client.get("/stray").assert(200, b"it panicked alone");
    assert_eq!(server.worker(0), worker);
}

#[test]
fn a_response_whose_body_fails_is_seen_to_be_cut() {
    let _machine = beside_others();
    let server = axum().start();
    let mut client = Client::connect(&server.address()).takes_chunks();
    client.send(b"GET /cut HTTP/1.1\r\nHost: h\r\n\r\n");
    let failure = client.try_answer("GET").unwrap_err();
    assert!(failure.truncated().is_some_and(|part| part.ends_with(b"some\r\n")), "{failure}");
}

/// To such a client an orderly end of the connection is the end of the body.
#[test]
fn a_response_whose_body_fails_is_seen_to_be_cut_by_clients_of_http_1_0_too() {
    let _machine = beside_others();
    let server = axum().start();
    for path in ["/cut", "/bursts"] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let end = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset), "{path}");
    }
}

#[test]
fn a_client_that_goes_takes_its_handler_with_it() {
    let _machine = alone();
    let server = axum().start();
    let trace = server.directory().path("gone");
    let mut client = Client::connect(&server.address()).quiet();
    client.send(b"GET /forever/gone HTTP/1.1\r\nHost: h\r\n\r\n");
    client.wait_taken();
    assert!(!trace.exists());
    drop(client);
    let gone = Instant::now();
    while !trace.exists() {
        assert!(gone.elapsed() < Duration::from_millis(50), "its handler still waits after {:?}", gone.elapsed());
        pause();
    }
}

#[test]
fn a_program_that_cannot_serve_its_app_so_says_why() {
    let _machine = beside_others();
    let server = axum().set("workers", "model = \"reactor\"").write();
    server.cli("check", &[]).assert_said(2, &["the app \"main\" runs under the model coroutine only", "coroutine"]);
    let program = crate::harness::command::example("trial");
    let typed = ["run", "--listen", "127.0.0.1:0", "--model", "reactor"];
    let said = std::process::Command::new(program).args(typed).env("TRIAL", "axum").output().unwrap();
    let why = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.code() == Some(2) && why.contains("runs under the model coroutine only"), "{why}");
    let server = native().routes("[[site]]\n[[site.route]]\npath = \"/\"\napp = \"other\"\n").write();
    server.cli("check", &[]).assert_said(2, &["no app \"other\"", "this program has \"main\""]);
    let server = Setup::new(1).sites("[[site]]\n[[site.route]]\npath = \"/\"\napp = \"main\"\n").write();
    server.cli("check", &[]).assert_said(2, &["no app \"main\"", "Phalanx as a library"]);
}

#[test]
fn asynchronous_handlers_of_its_own_run_beside_others() {
    let _machine = beside_others();
    let server = native().environment("TRIAL", "tasks").start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    let requests = ["/", "/sleeps/20", "/", "/waits", "/sleeps/0"];
    client.send(requests.map(|path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).concat().as_bytes());
    for answer in ["Hello, World!", "20", "Hello, World!", "waited", "0"] {
        client.answer().assert(200, answer.as_bytes());
    }
    for len in [0, 10, 300_000] {
        sent(&mut client, &post("/count", &bytes(len))).assert(200, len.to_string().as_bytes());
    }
    assert_eq!(client.get("/does/abort").status, 502);
    client.send(b"GET /sleeps/300 HTTP/1.1\r\nHost: h\r\n\r\n");
    client.wait_taken();
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    client.answer().assert(200, b"300");
}

#[test]
fn a_handler_asks_other_servers() {
    let _machine = beside_others();
    let (server, other) = (axum().start(), native().start());
    let port = other.address().rsplit(':').next().unwrap().to_owned();
    let mut client = Client::connect(&server.address()).patient(SOON);
    for _ in 0..3 {
        let answer = client.get(&format!("/asks/{port}")).text();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("Hello, World!"), "{answer}");
    }
    assert!(client.get("/asks/1").text().contains("refused"));
}

#[test]
fn the_example_axum_app_speaks_json_and_sends_events() {
    let _machine = beside_others();
    let server = Setup::of_example("axum_app", 1).start();
    let mut client = Client::connect(&server.address()).takes_chunks();
    client.get("/greet/me").assert(200, br#"{"name":"me","visit":1}"#);
    let json = r#"{"name":"you","visit":7}"#;
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}", json.len());
    sent(&mut client, format!("{head}\r\n\r\n{json}").as_bytes()).assert(200, json.as_bytes());
    let wrong = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{";
    assert_eq!(sent(&mut client, wrong.as_bytes()).status, 400);
    client.send(b"GET /ticks HTTP/1.1\r\nHost: h\r\n\r\n");
    client.wait_said("data: 0");
    client.wait_said("data: 2");
}

#[test]
fn a_program_that_has_threads_already_is_told_which() {
    let _machine = beside_others();
    let server = native().environment("TRIAL", "threads").write();
    server
        .cli("start", &[])
        .assert_said(1, &["already runs 1 other thread", "too-early", "before anything that starts a thread"]);
}

// ---- deaths ----

#[test]
fn nobody_notices_200_kills_of_hello() {
    let asks = [Ask::get("/", "Hello, World!\n"), Ask::get("/you", "Hello, you!\n")];
    nobody_notices_kills(Setup::of_example("hello", 2), &asks, knob("PHALANX_LIBRARY_KILLS", 200));
}

#[test]
fn nobody_notices_200_kills_of_an_axum_app() {
    let asks = [Ask::get("/", "Hello, World!\n"), Ask::get("/slow", "slow\n"), Ask::get("/who", "127.0.0.1")];
    // Some of those that wait are met by one death after the other.
    let setup = Setup::of_example("axum_app", 2).set("rescue", "max_attempts = 10");
    nobody_notices_kills(setup, &asks, knob("PHALANX_LIBRARY_KILLS", 200));
}

/// A worker dies with requests of every kind in hand.
#[test]
fn a_death_amid_handlers_costs_what_the_table_says() {
    let _machine = beside_others();
    let server = axum().start();
    let address = server.address();
    let mut replayed = Client::connect(&address).patient(SOON);
    replayed.send(b"GET /sleeps/300 HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut not_idempotent = Client::connect(&address).patient(SOON);
    not_idempotent.send(&post("/sleeps/300", b""));
    let mut uploading = Client::connect(&address).patient(SOON);
    let request = post("/count", &bytes(200_000));
    uploading.send(&request[..100_000]);
    let mut streaming = Client::connect(&address).patient(SOON).takes_chunks();
    streaming.send(b"GET /lasts/9 HTTP/1.1\r\nHost: h\r\n\r\n");
    streaming.wait_said("data: 0");
    let mut behind = Client::connect(&address).patient(SOON);
    behind.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /sleeps/200 HTTP/1.1\r\nHost: h\r\n\r\n");
    behind.answer().assert(200, b"Hello, World!");
    let mut idle = Client::connect(&address);
    idle.get("/").assert(200, b"Hello, World!");
    for client in [&replayed, &not_idempotent, &uploading] {
        client.wait_taken();
    }
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    replayed.answer().assert(200, b"300");
    assert_eq!(not_idempotent.answer_to("POST").status, 500);
    assert_eq!(uploading.answer_to("POST").status, 500);
    assert!(streaming.try_answer("GET").is_err());
    behind.answer().assert(200, b"200");
    idle.get("/").assert(200, b"Hello, World!");
}

/// The answer has left, the body has not come whole, and its bytes look like requests: they are none, whoever reads on.
#[test]
fn the_rest_of_a_body_is_no_request_after_a_death() {
    let _machine = beside_others();
    for path in ["/sleeps/30", "/refuses"] {
        let server = axum().start();
        let mut client = Client::connect(&server.address()).patient(SOON);
        let body = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(800);
        let request = post(path, &body);
        client.send(&request[..200]);
        client.answer_to("POST");
        assert!(processes::signal(server.worker(0), Signal::SIGKILL));
        let _it_may_close_first = client.try_send(&request[200..]);
        let end = client.end();
        assert!(end.before_a_byte(), "{path}: {end}");
        server.wait_serving();
        assert!(server.status().total("requests") <= 1, "{}", server.status());
    }
}

fn upload_dies(server: &Server, path: &str) {
    let mut client = Client::connect(&server.address()).patient(SOON);
    client.send(&post(path, &bytes(200_000))[..100_000]);
    client.wait_taken();
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    assert_eq!(client.answer_to("POST").status, 500);
    wait_until("the next worker serves", SOON, || server.workers().iter().any(Process::lives));
}

#[test]
fn a_death_in_the_middle_of_a_body_is_a_500() {
    let _machine = beside_others();
    let server = native().start();
    for path in ["/sum", "/size"] {
        upload_dies(&server, path);
        server.wait_serving();
    }
    Client::connect(&server.address()).get("/").assert(200, b"Hello, World!");
}

/// Handlers do to their process whatever brings one down. Each costs its own request an error, and nobody else anything.
#[test]
fn nobody_notices_what_a_handler_does_to_its_process() {
    let _machine = alone();
    let server = Setup::of_example("victim", 2)
        .set("workers", "hang_timeout = \"1s\"")
        .set("workers", "hard_memory = \"256MiB\"")
        .start();
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/", "Hello, World!")]);
    load.wait_for(100);
    for (kind, status) in [("recursion", 500), ("abort", 500), ("segfault", 500), ("allocation", 500), ("loop", 504)] {
        let mut client = Client::connect(&server.address()).patient(SOON);
        assert_eq!(client.get(&format!("/attack/{kind}")).status, status, "{kind}");
        load.wait_for(100);
    }
    load.finish().assert_clean();
    assert_eq!(server.status().total("failed"), 5);
}

// ---- the test kit ----

#[test]
fn the_test_kit_says_that_nobody_notices_20_kills() {
    use phalanx::testing::TestServer;
    let _machine = alone();
    let server = TestServer::of(crate::harness::command::example("hello")).workers(2).start();
    assert_eq!((server.get("/you").status, server.get("/you").body.as_slice()), (200, &b"Hello, you!\n"[..]));
    let tally = server.under_load(4, "/", || {
        for kill in 0..20 {
            server.kill_worker(kill % 2);
            server.wait_serving();
        }
    });
    tally.assert_clean();
    assert!(server.restarts() >= 20 && server.requests() >= tally.answered, "{server:?}");
}
