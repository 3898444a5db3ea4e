//! A reload that brings, takes away and moves listeners: whoever is connected, queued or on the way notices nothing.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::command::free_port;
use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, beside_others, crowd, processes, wait_until,
};

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

fn table(address: &str) -> String {
    format!("[[listen]]\naddress = \"{address}\"\n")
}

/// Writes the file with these listeners instead of those that it has.
fn listen_on(server: &Server, tables: &[String]) {
    server.rewrite(|text| {
        let mut blocks: Vec<&str> = text.split_inclusive('\n').collect();
        while let Some(at) = blocks.iter().position(|line| line.starts_with("[[listen]]")) {
            let more = blocks[at + 1..].iter().take_while(|line| !line.starts_with('[')).count();
            blocks.drain(at..=at + more);
        }
        blocks.concat() + &tables.concat()
    });
}

#[track_caller]
fn assert_refused(address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let refused = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err();
    wait_until("nobody is let in any more", SOON, refused);
}

/// Each slot gets its share of connections to an address.
#[track_caller]
fn assert_served(address: &str) {
    for _ in 0..16 {
        Client::connect(address).assert_usable();
    }
}

#[test]
fn a_listener_comes_and_another_goes_and_no_connection_notices() {
    let _machine = beside_others();
    let first = free_address();
    let server = Setup::new(2).listen(&[&first]).start();
    let mut old: Vec<Client> = (0..8).map(|_| Client::connect(&first)).collect();
    old.iter_mut().for_each(Client::assert_usable);
    let second = free_address();
    // The new one stands before the old one in the file: what is on record of that one means the same as before.
    listen_on(&server, &[table(&second) + "proxy_protocol = true\n", table(&first)]);
    server.cli("reload", &[]).assert_code(0);
    old.iter_mut().for_each(Client::assert_usable);
    assert_served(&first);
    let mut proxied = Client::connect(&second);
    proxied.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nGET /hello HTTP/1.1\r\nHost: test\r\n\r\n");
    proxied.answer().assert(200, HELLO);
    let mut listeners = server.status().listeners();
    listeners.sort();
    let mut wanted = vec![first.clone(), second.clone()];
    wanted.sort();
    assert_eq!(listeners, wanted);

    listen_on(&server, &[table(&second)]);
    server.cli("reload", &[]).assert_code(0);
    assert_refused(&first);
    old.iter_mut().for_each(Client::assert_usable);
    proxied.assert_usable();
    assert_served(&second);
    assert_eq!(server.status().listeners(), [second]);
}

#[test]
fn who_comes_in_by_an_address_that_goes_is_answered() {
    let _machine = alone();
    let (first, second) = (free_address(), free_address());
    let server = Setup::new(4).listen(&[&first, &second]).start();
    let crowd = crowd(&first);
    let load = Load::start(&second, 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(500);
    listen_on(&server, &[table(&second)]);
    server.cli("reload", &[]).assert_code(0);
    let answered: u64 = crowd.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(answered > 100, "only {answered} were let in");
    load.wait_for(500);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered + answered);
    assert_refused(&first);
}

#[test]
fn an_address_that_another_program_has_changes_nothing_until_it_is_free() {
    let _machine = beside_others();
    let first = free_address();
    let server = Setup::new(2).listen(&[&first]).start();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap().to_string();
    let free = free_address();
    let before: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
    let descriptors = processes::descriptors(server.master());
    listen_on(&server, &[table(&free), table(&taken)]);
    for _attempt in 0..3 {
        let outcome = server.cli("reload", &[]);
        outcome.assert_said(outcome.code(), &[&taken, "in use", "nothing changes"]);
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
    assert_refused(&free);
    let after: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
    assert_eq!(after, before, "the workers have changed");
    assert_eq!(server.status().listeners(), std::slice::from_ref(&first));
    assert_served(&first);
    wait_until("no descriptor stays", SOON, || processes::descriptors(server.master()) <= descriptors);
    drop(stranger);
    server.cli("reload", &[]).assert_code(0);
    assert_served(&free);
    assert_served(&taken);
    assert_refused(&first);
}

#[test]
fn listeners_that_came_with_a_reload_live_through_kills_scales_and_upgrades() {
    let _machine = alone();
    let first = free_address();
    let server = Setup::new(2).listen(&[&first]).start();
    let socket = format!("unix:{}/s", server.directory().text());
    let (second, third) = (free_address(), free_address());
    listen_on(&server, &[table(&second), table(&first), table(&socket)]);
    server.cli("reload", &[]).assert_code(0);
    let load = Load::start(&second, 16, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(200);
    let all = |addresses: &[&str]| {
        load.wait_for(100);
        addresses.iter().for_each(|address| assert_served(address));
    };
    processes::signal(server.worker(0), Signal::SIGKILL);
    server.wait_serving();
    all(&[&first, &second, &socket]);
    let old = server.keeper(1);
    processes::signal(old, Signal::SIGKILL);
    wait_until("the slot has another keeper", SOON, || server.find_keeper(1).is_some_and(|keeper| keeper != old));
    server.wait_serving();
    all(&[&first, &second, &socket]);
    server.cli("scale", &["3"]).assert_code(0);
    all(&[&first, &second, &socket]);
    listen_on(&server, &[table(&third), table(&second), table(&socket)]);
    server.cli("reload", &[]).assert_code(0);
    all(&[&second, &third, &socket]);
    server.cli("upgrade", &[]).assert_code(0);
    all(&[&second, &third, &socket]);
    listen_on(&server, &[table(&second), table(&third)]);
    server.cli("reload", &[]).assert_code(0);
    all(&[&second, &third]);
    assert!(UnixStream::connect(socket.trim_start_matches("unix:")).is_err(), "the Unix socket is still there");
    assert_refused(&first);
    let tally = load.finish();
    tally.assert_clean();
}

#[test]
fn a_port_moves_from_one_interface_to_all_and_back() {
    let _machine = beside_others();
    let first = free_address();
    let port = first.rsplit_once(':').unwrap().1.to_owned();
    let everywhere = format!("0.0.0.0:{port}");
    let server = Setup::new(2).listen(&[&first]).start();
    let mut kept = Client::connect(&first);
    kept.assert_usable();
    for (address, other) in [(&everywhere, format!("127.0.0.2:{port}")), (&first, first.clone())] {
        listen_on(&server, &[table(address)]);
        server.cli("reload", &[]).assert_code(0);
        let since = Instant::now();
        // The address that has gone is a part of the one that has come: nobody is refused, but who meets the sockets that are on
        // their way out is let in by them a moment later.
        assert_served(&other);
        assert!(since.elapsed() < SOON);
        kept.assert_usable();
    }
}

#[test]
fn fifty_addresses_come_and_go_and_leave_nothing_behind() {
    let _machine = beside_others();
    let first = free_address();
    let server = Setup::new(1).listen(&[&first]).start();
    let count = || (processes::descriptors(server.master()), processes::descriptors(server.keeper(0)));
    let mut before = (0, 0);
    for round in 0..13 {
        let come: Vec<String> = (0..4).map(|_| free_address()).collect();
        let tables: Vec<String> = come.iter().map(|address| table(address)).chain([table(&first)]).collect();
        listen_on(&server, &tables);
        server.cli("reload", &[]).assert_code(0);
        come.iter().for_each(|address| Client::connect(address).assert_usable());
        if round == 2 {
            before = count();
        }
    }
    wait_until("as many descriptors as before", SOON, || count() <= before);
}
