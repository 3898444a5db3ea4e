//! Phalanx as an operator meets it: start, stop, status, pid files, users, logs, exit codes.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::command::{self, free_port, phalanx};
use crate::harness::{Client, HELLO, SOON, Server, Setup, beside_others, processes, wait_until};

#[test]
fn start_returns_when_every_worker_serves_and_stop_when_everything_is_gone() {
    let _machine = beside_others();
    let server = Setup::new(2).start_daemon();
    let status = server.status();
    assert!(status.slots().iter().all(|slot| slot["state"] == "serving"), "{status}");
    let (master, children) = (server.master(), server.children());
    assert_eq!(server.directory().read("pid").trim(), master.to_string());
    assert_ne!(
        nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(master))).unwrap(),
        nix::unistd::getsid(None).unwrap()
    );
    server.connect().assert_usable();
    server.cli("stop", &[]).assert_code(0);
    assert!(!processes::lives(master), "stop returned before the master was gone");
    let left: Vec<_> = children.iter().filter(|child| processes::lives(child.pid)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(!server.directory().path("pid").exists(), "the pid file is left");
    assert!(!server.directory().path("c").exists(), "the control socket is left");
}

#[test]
fn start_says_why_not_when_the_port_is_in_use() {
    let _machine = beside_others();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for word in ["start", "run"] {
        let server = Setup::new(1).listen(&[&address]).write();
        let outcome = server.cli(word, &[]);
        outcome.assert_said(1, &[&address, "in use"]);
        assert!(!server.directory().path("pid").exists(), "a pid file is left: {outcome}");
    }
}

#[test]
fn start_and_check_name_every_error_of_a_file_with_its_place_and_exit_2() {
    let _machine = beside_others();
    let server = Setup::new(1).write();
    server.cli("check", &[]).assert_code(0);
    server
        .rewrite(|text| text.replace("[workers]\n", "[workers]\nhang_timout = \"3s\"\nboot_timeout = \"3 parsecs\"\n"));
    let text = fs::read_to_string(server.config()).unwrap();
    let place = |word: &str| {
        let line = text.lines().position(|line| line.contains(word)).unwrap() + 1;
        format!("{}:{line}:", server.config().display())
    };
    let places = [place("hang_timout"), place("parsecs")];
    for word in ["check", "start", "run"] {
        server.cli(word, &[]).assert_said(2, &[&places[0], &places[1], "hang_timeout"]);
    }
    assert!(!server.directory().path("c").exists());
}

#[test]
fn bad_usage_and_a_missing_file_exit_2() {
    let _machine = beside_others();
    let server = Setup::new(1).write();
    let run = |words: &[&str]| command::run(server.directory(), phalanx().args(words));
    for words in [&["nonsense"][..], &["run"], &["scale", "x"], &["check", "-c", "/nonexistent.toml"]] {
        let outcome = run(words);
        outcome.assert_code(2);
        assert!(!outcome.stderr.is_empty(), "{outcome}");
    }
    run(&["--help"]).assert_code(0);
    run(&["--version"]).assert_code(0);
}

#[test]
fn check_binds_nothing() {
    let _machine = beside_others();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Setup::new(1).listen(&[&taken.local_addr().unwrap().to_string()]).write();
    server.cli("check", &[]).assert_code(0);
}

#[test]
fn a_second_start_is_refused_with_the_pid_that_runs() {
    let _machine = beside_others();
    let server = Setup::new(1).start_daemon();
    let master = server.master();
    for word in ["start", "run"] {
        server.cli(word, &[]).assert_said(1, &[&master.to_string()]);
    }
    // The same control socket, under another pid file.
    server.rewrite(|text| text.replace("/pid\"", "/pid2\""));
    server.cli("start", &[]).assert_said(1, &[&master.to_string()]);
    assert_eq!(server.status().master(), master);
    server.connect().assert_usable();
}

#[test]
fn a_stale_pid_file_and_a_stale_socket_stop_nobody() {
    let _machine = beside_others();
    let setup = Setup::new(1);
    // A pid that lives and is somebody else's: the lock decides, not the number.
    setup.directory().write("pid", format!("{}\n", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(setup.directory().path("c")).unwrap());
    let server = setup.start_daemon();
    server.connect().assert_usable();
    assert_eq!(server.directory().read("pid").trim(), server.master().to_string());
}

#[test]
fn commands_to_a_server_that_does_not_run_exit_3() {
    let _machine = beside_others();
    let server = Setup::new(1).write();
    for (word, more) in
        [("status", &[][..]), ("status", &["--json"]), ("stop", &[]), ("reload", &[]), ("scale", &["2"])]
    {
        let outcome = server.cli(word, more);
        outcome.assert_code(3);
        assert!(outcome.stderr.contains("not running"), "{outcome}");
    }
}

#[test]
fn status_is_a_table_for_people_and_reaches_the_server_by_its_socket_too() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let outcome = server.cli("status", &[]);
    outcome.assert_said(0, &["serving", &server.worker(0).to_string(), &server.worker(1).to_string()]);
    let socket = server.directory().path("c");
    let control = ["--control", socket.to_str().unwrap()];
    let by_socket = command::run(server.directory(), phalanx().arg("status").args(control));
    by_socket.assert_said(0, &["serving"]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Commands on the control socket, as `socat` sends them.
fn say(server: &Server, lines: &str) -> UnixStream {
    let mut stream = UnixStream::connect(server.directory().path("c")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(lines.as_bytes()).unwrap();
    stream
}

/// What comes until the server ends the connection, a line an answer.
fn hear_out(mut stream: UnixStream) -> Vec<serde_json::Value> {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap_or_else(|error| panic!("{error} after {text:?}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"))).collect()
}

#[test]
fn a_control_client_that_says_no_more_gets_all_its_answers() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    for asked in 1..=3 {
        let stream = say(&server, &"{\"command\":\"status\"}\n".repeat(asked));
        stream.shutdown(Shutdown::Write).unwrap();
        let answers = hear_out(stream);
        assert_eq!(answers.len(), asked, "{answers:#?}");
        for answer in answers {
            assert_eq!(answer["ok"], true, "{answer:#}");
            assert_eq!(answer["status"]["slots"].as_array().map(Vec::len), Some(2), "{answer:#}");
        }
    }
}

#[test]
fn control_clients_that_leave_or_say_no_more_during_their_command_cost_the_master_nothing() {
    let _machine = beside_others();
    let server = Setup::new(1).set("workers", "drain_timeout = \"60s\"").file("large", vec![b'l'; 32 << 20]).start();
    let mut busy = Client::connect_narrow(&server.address());
    busy.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    busy.take_part();
    let (leaves, waits) = (say(&server, "{\"command\":\"stop\"}\n"), say(&server, "{\"command\":\"stop\"}\n"));
    wait_until("the stop is under way", SOON, || server.status().slots()[0]["state"] == "draining");
    drop(leaves);
    waits.shutdown(Shutdown::Write).unwrap();
    let used = processes::time_used_in(server.master(), Duration::from_millis(500));
    assert!(used < Duration::from_millis(100), "{used:?} of processor time in 500 ms with nothing to do");
    drop(busy);
    let answers = hear_out(waits);
    assert_eq!(answers.len(), 1, "{answers:#?}");
    assert_eq!(answers[0]["ok"], true, "{answers:#?}");
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

#[test]
fn serve_says_what_it_wants_instead_of_what_is_no_directory() {
    let _machine = beside_others();
    let server = Setup::new(1).file("file", "").write();
    for (dir, why) in [("site/file", "not a directory"), ("nowhere", "No such file or directory")] {
        let output = phalanx().arg("serve").arg(server.directory().path(dir)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{dir}: {why}")) && said.contains("hint: name the directory"), "{said}");
    }
}

#[test]
fn serve_shows_a_directory_in_the_foreground_and_stops_on_ctrl_c() {
    let _machine = beside_others();
    let server = Setup::new(1).file("index.html", "served").write();
    let address = format!("127.0.0.1:{}", free_port());
    let log = fs::File::create(server.directory().path("server.log")).unwrap();
    let mut command = phalanx();
    command.arg("serve").arg(server.directory().path("site")).args(["--listen", &address, "--workers", "2"]);
    let mut child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let pid = child.id() as i32;
    let mut ended = false;
    wait_until("it serves, or ends", SOON, || {
        ended = child.try_wait().unwrap().is_some();
        ended || Client::try_connect(&address).is_ok()
    });
    let served = (!ended).then(|| Client::connect(&address).get("/"));
    // One worker answers before the last one is ready, and only then does the service say so.
    wait_until("it says that it is ready", SOON, || server.log().contains("ready: "));
    let family = processes::describe_family(pid);
    let interrupted = processes::signal(pid, Signal::SIGINT);
    let mut status = None;
    let start = std::time::Instant::now();
    while status.is_none() && start.elapsed() < SOON {
        status = child.try_wait().unwrap();
        crate::harness::pause();
    }
    let _gone = child.kill();
    let _status = child.wait();
    let log = server.log();
    assert!(!ended && interrupted, "serve ended by itself: {log}");
    served.expect("an answer").assert(200, b"served");
    assert_eq!(status.and_then(|status| status.code()), Some(0), "after SIGINT: {log}\n{family}");
    assert!(log.contains(&format!("http://{address}")), "no address to open is printed: {log}");
}

#[test]
fn sigint_stops_at_once_and_sigterm_lets_a_response_end() {
    let _machine = beside_others();
    let body = crate::harness::pattern(16 << 20, 5);
    for (signal, ends) in [(Signal::SIGTERM, true), (Signal::SIGQUIT, true), (Signal::SIGINT, false)] {
        let server = Setup::new(1).file("large", &body).start();
        let mut idle = server.connect();
        idle.assert_usable();
        let mut busy = Client::connect_narrow(&server.address()).patient(SOON);
        busy.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
        busy.take_part();
        server.signal(signal);
        idle.assert_closed();
        match ends {
            true => busy.answer().assert(200, &body),
            false => drop(busy.try_answer("GET").expect_err("a fast stop does not wait for a response")),
        }
        let status = server.wait_exit(SOON);
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[test]
fn a_second_sigterm_does_not_wait_any_longer() {
    let _machine = beside_others();
    let server = Setup::new(1).set("workers", "drain_timeout = \"60s\"").file("large", vec![b'l'; 32 << 20]).start();
    let address = server.address();
    let mut busy = Client::connect_narrow(&address).patient(SOON);
    busy.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    busy.take_part();
    server.signal(Signal::SIGTERM);
    wait_until("the listener is closed, or draining is shown", SOON, || {
        Client::try_connect(&address).is_err() || server.cli("status", &["--json"]).stdout.contains("draining")
    });
    server.signal(Signal::SIGTERM);
    server.wait_exit(SOON);
}

#[test]
fn processes_are_titled_by_what_they_are() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let master = processes::Process::read(server.master()).unwrap();
    assert_eq!(master.title, "phalanx: master");
    let titles: Vec<_> = server.children().into_iter().map(|child| child.title).collect();
    for title in [
        "phalanx: keeper 0",
        "phalanx: keeper 1",
        "phalanx: worker 0 (incarnation 1)",
        "phalanx: worker 1 (incarnation 1)",
    ] {
        assert!(titles.iter().any(|other| other == title), "no {title:?} in {titles:?}");
    }
    assert_eq!(titles.len(), 4, "{titles:?}");
}

#[test]
fn start_and_run_say_why_a_worker_cannot_boot_and_leave_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: no directory that the master may enter and the workers may not");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let _machine = beside_others();
    let server = Setup::new(2).set("master", "user = \"nobody\"").write();
    fs::set_permissions(server.directory().path("site"), fs::Permissions::from_mode(0o700)).unwrap();
    for word in ["start", "run"] {
        server.cli(word, &[]).assert_said(1, &["did not become ready", "open the root", "Permission denied"]);
        assert!(!server.directory().path("pid").exists() && !server.directory().path("c").exists());
    }
}

#[test]
fn a_master_that_is_root_gives_it_up_for_keepers_and_workers() {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: there is nothing to give up");
        return;
    }
    let _machine = beside_others();
    let server = Setup::new(1).set("master", "user = \"nobody\"").start();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let four = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join(" ");
    for child in server.children() {
        let line = |name| processes::status_line(child.pid, name).unwrap();
        assert_eq!(line("Uid"), four(nobody.uid.as_raw()), "{child:?}");
        assert_eq!(line("Gid"), four(nobody.gid.as_raw()), "{child:?}");
        assert!(["", &nobody.gid.to_string()].contains(&line("Groups").as_str()), "{child:?}: {}", line("Groups"));
        assert_eq!(line("NoNewPrivs"), "1", "{child:?}");
        assert_eq!(line("CapEff"), "0000000000000000", "{child:?}");
    }
    let before = server.worker(0);
    processes::signal(before, Signal::SIGKILL);
    wait_until("a successor", SOON, || server.workers().iter().any(|worker| worker.pid != before));
    server.wait_serving();
    assert_eq!(processes::status_line(server.worker(0), "Uid").unwrap(), four(nobody.uid.as_raw()));
    server.connect().assert_usable();
}

#[test]
fn usr1_reopens_the_logs() {
    let _machine = beside_others();
    let server = Setup::new(2).set("log", "access = \"{dir}/access.log\"").start();
    let mut client = server.connect();
    client.get("/hello?before").assert(200, HELLO);
    wait_until("the first line", SOON, || server.directory().read("access.log").contains("before"));
    fs::rename(server.directory().path("access.log"), server.directory().path("access.old")).unwrap();
    server.signal(Signal::SIGUSR1);
    wait_until("a new file", SOON, || server.directory().path("access.log").exists());
    let mut asked = 0;
    wait_until("a line in the new file", SOON, || {
        client.get(&format!("/hello?after-{asked}")).assert(200, HELLO);
        asked += 1;
        server.directory().read("access.log").contains("after")
    });
    wait_until("no line is lost between the files", SOON, || {
        let lines = |name| server.directory().read(name).lines().filter(|line| line.contains("after-")).count();
        lines("access.log") + lines("access.old") == asked
    });
    assert!(!server.directory().read("access.log").contains("before"));
}

#[test]
fn signals_that_mean_nothing_to_a_worker_do_nothing_to_it() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let worker = server.worker(0);
    let mut client = server.connect();
    client.assert_usable();
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        assert!(processes::signal(worker, signal));
        client.assert_usable();
    }
    server.wait_serving();
    assert_eq!(server.worker(0), worker);
    assert_eq!(server.status().sum("restarts"), 0);
}

#[test]
fn a_worker_that_gets_sigterm_is_recycled_and_its_connections_live_on() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let worker = server.worker(0);
    let mut client = server.connect();
    client.assert_usable();
    assert!(processes::signal(worker, Signal::SIGTERM));
    wait_until("the predecessor is gone", Duration::from_secs(15), || !processes::lives(worker));
    server.wait_serving();
    assert_ne!(server.worker(0), worker);
    client.assert_usable();
    server.wait_total(2);
}
