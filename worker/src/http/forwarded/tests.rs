//! Ways through proxies as tables: well formed, forged, malformed, at the bound.

use super::super::head::{HeaderScratch, Progress, parse};
use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// 10.0.0.0/8 and fd00::/8 are trusted.
fn trusts(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 10,
        IpAddr::V6(address) => address.octets()[0] == 0xfd,
    }
}

/// The client, when 10.0.0.1 asks with these fields.
fn client(fields: &str) -> String {
    from("10.0.0.1", fields)
}

fn from(peer: &str, fields: &str) -> String {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let mut scratch = HeaderScratch::new();
    match parse(text.as_bytes(), 16_384, &mut scratch) {
        Ok(Progress::Done(head)) => client_of(&head, Some(address(peer)), trusts).unwrap().to_string(),
        other => panic!("{text:?}: {other:?}"),
    }
}

#[test]
fn a_peer_that_is_not_trusted_is_the_client_whatever_it_says() {
    for fields in ["", "X-Forwarded-For: 1.1.1.1\r\n", "Forwarded: for=1.1.1.1\r\n"] {
        assert_eq!(from("9.9.9.9", fields), "9.9.9.9");
        assert_eq!(from("2001:db8::1", fields), "2001:db8::1");
        assert_eq!(from("::ffff:9.9.9.9", fields), "9.9.9.9");
    }
}

#[test]
fn without_a_peer_address_there_is_no_client() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
    let mut scratch = HeaderScratch::new();
    let Ok(Progress::Done(head)) = parse(text.as_bytes(), 1024, &mut scratch) else { panic!() };
    assert_eq!(client_of(&head, None, |_| true), None);
}

#[test]
fn x_forwarded_for_is_read_from_the_right_over_trusted_addresses() {
    for (value, expected) in [
        ("1.1.1.1", "1.1.1.1"),
        ("1.1.1.1, 2.2.2.2", "2.2.2.2"),
        ("1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("1.1.1.1,10.0.0.2,10.0.0.3", "1.1.1.1"),
        ("6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("1.1.1.1 ,\t10.0.0.2 ", "1.1.1.1"),
        ("1.1.1.1, , 10.0.0.2,", "1.1.1.1"),
        ("1.1.1.1:80", "1.1.1.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:db8::1, fd00::1", "2001:db8::1"),
        ("1.1.1.1, ::ffff:10.0.0.2", "1.1.1.1"),
        ("::ffff:1.1.1.1", "1.1.1.1"),
        ("", "10.0.0.1"),
        (",", "10.0.0.1"),
        ("1.1.1.1, nonsense", "10.0.0.1"),
        ("1.1.1.1, nonsense, 10.0.0.2", "10.0.0.2"),
        ("unknown, 10.0.0.2", "10.0.0.2"),
        ("1.1.1.1 2.2.2.2", "10.0.0.1"),
        ("1.1.1.256", "10.0.0.1"),
        ("1.1.1.01", "10.0.0.1"),
        ("1.1.1.1:", "10.0.0.1"),
        ("1.1.1.1:65536", "10.0.0.1"),
        ("[::1", "10.0.0.1"),
        ("[1.1.1.1]", "10.0.0.1"),
        ("[::1]80", "10.0.0.1"),
        ("\u{e4}", "10.0.0.1"),
    ] {
        assert_eq!(client(&format!("X-Forwarded-For: {value}\r\n")), expected, "{value}");
    }
}

#[test]
fn forwarded_is_read_from_the_right_over_trusted_addresses() {
    for (value, expected) in [
        ("for=1.1.1.1", "1.1.1.1"),
        ("For=1.1.1.1;proto=https;by=10.0.0.1", "1.1.1.1"),
        ("proto=https;for=1.1.1.1", "1.1.1.1"),
        ("for=1.1.1.1, for=10.0.0.2", "1.1.1.1"),
        ("for=6.6.6.6, for=1.1.1.1, for=10.0.0.2", "1.1.1.1"),
        ("for=\"1.1.1.1:80\"", "1.1.1.1"),
        ("for=\"[2001:db8::1]\"", "2001:db8::1"),
        ("for=\"[2001:db8::1]:80\", for=\"[fd00::1]\"", "2001:db8::1"),
        ("for=\"1.1.1.1:_port\"", "1.1.1.1"),
        ("for=1.1.1.1:80", "1.1.1.1"),
        ("for=[2001:db8::1]", "2001:db8::1"),
        ("for=1.1.1.1;host=\"a, for=6.6.6.6\"", "1.1.1.1"),
        ("for=1.1.1.1;host=\"a\\\", for=6.6.6.6;x=\\\"\", for=10.0.0.2", "1.1.1.1"),
        ("for=1.1.1.1 ; proto=http , for=10.0.0.2", "1.1.1.1"),
        ("for=1.1.1.1;;, ,for=10.0.0.2;", "1.1.1.1"),
        ("for=1.1.1.1, for=unknown", "10.0.0.1"),
        ("for=1.1.1.1, for=_hidden, for=10.0.0.2", "10.0.0.2"),
        ("for=1.1.1.1, proto=https", "10.0.0.1"),
        ("for=1.1.1.1;for=2.2.2.2", "10.0.0.1"),
        ("for=", "10.0.0.1"),
        ("for", "10.0.0.1"),
        ("=1.1.1.1", "10.0.0.1"),
        ("for =1.1.1.1", "10.0.0.1"),
        ("for= 1.1.1.1", "10.0.0.1"),
        ("for=\"1.1.1.1", "10.0.0.1"),
        ("for=1.1.1.1\"", "10.0.0.1"),
        ("for=\"1.1.1.1\"x", "10.0.0.1"),
        ("for=\"1.1.1.1\\", "10.0.0.1"),
        ("for=\"\"", "10.0.0.1"),
        ("for=\"", "10.0.0.1"),
        ("for=\"1.1.1.1:\"", "10.0.0.1"),
        ("for=\"1.1.1.1:_\"", "10.0.0.1"),
        ("for=\"1.1.1.1, for=10.0.0.2", "10.0.0.1"),
        ("for=1.1.1.1;\u{e4}=b", "10.0.0.1"),
    ] {
        assert_eq!(client(&format!("Forwarded: {value}\r\n")), expected, "{value}");
    }
}

#[test]
fn several_lines_are_one_list_and_forwarded_is_preferred() {
    assert_eq!(client("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 10.0.0.2\r\n"), "1.1.1.1");
    assert_eq!(client("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n"), "2.2.2.2");
    assert_eq!(client("Forwarded: for=1.1.1.1\r\nFORWARDED: for=10.0.0.2\r\n"), "1.1.1.1");
    assert_eq!(client("Forwarded: for=\"1.1.1.1\r\nForwarded: for=10.0.0.2\r\n"), "10.0.0.2");
    assert_eq!(client("X-Forwarded-For: 6.6.6.6\r\nForwarded: for=1.1.1.1\r\n"), "1.1.1.1");
    assert_eq!(client("X-Forwarded-For: 6.6.6.6\r\nForwarded: nonsense\r\n"), "10.0.0.1");
}

#[test]
fn hops_are_counted_and_no_further_is_walked() {
    let way = |trusted: usize| format!("X-Forwarded-For: 1.1.1.1{}\r\n", ", 10.0.0.2".repeat(trusted));
    assert_eq!(client(&way(MAX_HOPS - 1)), "1.1.1.1");
    assert_eq!(client(&way(MAX_HOPS)), "10.0.0.2");
    let way = |trusted: usize| format!("Forwarded: for=1.1.1.1{}\r\n", ", for=10.0.0.2".repeat(trusted));
    assert_eq!(client(&way(MAX_HOPS - 1)), "1.1.1.1");
    assert_eq!(client(&way(MAX_HOPS)), "10.0.0.2");
}

#[test]
fn mangled_fields_never_panic() {
    let text = "for=\"[::1]:80\";a=\"\\\\\", for=1.1.1.1";
    for at in 0..text.len() {
        for byte in 0..=255 {
            let mut mangled = text.as_bytes().to_vec();
            mangled[at] = byte;
            forwarded_hops(&mangled).for_each(drop);
            forwarded_hops(&mangled[..at]).for_each(drop);
            x_forwarded_hops(&mangled).for_each(drop);
        }
    }
}
