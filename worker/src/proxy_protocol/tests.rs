//! Headers of both versions as tables, cut anywhere, mangled anywhere, at their bounds.

use super::*;

fn from(address: &str, len: usize) -> Result<Progress<Header>, Malformed> {
    Ok(Progress::Done(Header { len, source: Source::Address(address.parse().unwrap()) }))
}

fn unspecified(len: usize) -> Result<Progress<Header>, Malformed> {
    Ok(Progress::Done(Header { len, source: Source::Unspecified }))
}

const NEED_MORE: Result<Progress<Header>, Malformed> = Ok(Progress::NeedMore);

const VALID_V1: &[(&str, Option<&str>)] = &[
    ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Some("192.0.2.1:56324")),
    ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535")),
    ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Some("0.0.0.0:0")),
    ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Some("[2001:db8::1]:1")),
    ("PROXY TCP6 :: 1:: 1 2\r\n", Some("[::]:1")),
    ("PROXY TCP6 1:2:3:4:5:6:7:8 1::3:4:5:6:7:8 80 80\r\n", Some("[1:2:3:4:5:6:7:8]:80")),
    ("PROXY TCP6 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 80 80\r\n", Some("[1:2:3:4:5:6:7:0]:80")),
    (
        "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff FFFF:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
    ),
    ("PROXY UNKNOWN\r\n", None),
    ("PROXY UNKNOWN whatever it says\r\n", None),
    (
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        None,
    ),
];

/// Each with how many bytes of it can still become a header.
const INVALID_V1: &[(&str, usize)] = &[
    ("GET / HTTP/1.1\r\n", 0),
    ("proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", 0),
    ("PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n", 6),
    ("PROXY\tTCP4", 5),
    ("PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", 9),
    ("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n", 7),
    ("PROXY UNKNOWNX\r\n", 13),
    ("PROXY UNKNOWN a\nb\r\n", 15),
    ("PROXY UNKNOWN a\rb\r\n", 16),
    ("PROXY TCP4\r\n", 10),
    ("PROXY TCP4 \r\n", 11),
    ("PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n", 11),
    ("PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n", 19),
    ("PROXY TCP4 1.1.1.1 1.1.1.1  1 1\r\n", 27),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1  1\r\n", 29),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n", 30),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n", 28),
    ("PROXY TCP4 1.1.1.1 1.1.1.1\r\n", 26),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n", 30),
    ("PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n", 12),
    ("PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n", 19),
    ("PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n", 16),
    ("PROXY TCP4 1.1.1.1.1 1.1.1.1 1 1\r\n", 18),
    ("PROXY TCP4 ::1 ::1 1 1\r\n", 11),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", 28),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n", 31),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n", 27),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n", 27),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n", 30),
    ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\rX", 31),
    ("PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n", 12),
    ("PROXY TCP6 ::ffff:1.1.1.1 ::1 1 1\r\n", 19),
    ("PROXY TCP6 :::1 ::1 1 1\r\n", 13),
    ("PROXY TCP6 12345::1 ::1 1 1\r\n", 15),
    ("PROXY TCP6 1::2::3 ::1 1 1\r\n", 16),
    ("PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 1\r\n", 26),
    ("PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n", 18),
    ("PROXY TCP6 [::1] ::1 1 1\r\n", 11),
    ("PROXY TCP4 1.1.1.\u{e4} 1.1.1.1 1 1\r\n", 17),
];

#[test]
fn version_1_tells_the_source_and_where_the_header_ends() {
    for &(text, source) in VALID_V1 {
        let expected = source.map_or(unspecified(text.len()), |source| from(source, text.len()));
        assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        assert_eq!(parse(format!("{text}GET / HTTP/1.1\r\n").as_bytes()), expected, "{text:?}");
        for cut in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..cut]), NEED_MORE, "{:?}", &text[..cut]);
        }
    }
}

#[test]
fn version_1_is_refused_with_the_first_byte_that_cannot_be() {
    for &(text, possible) in INVALID_V1 {
        assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text:?}");
        for cut in 0..=text.len() {
            let expected = if cut <= possible { NEED_MORE } else { Err(Malformed) };
            assert_eq!(
                parse(&text.as_bytes()[..cut]),
                expected,
                "{:?}",
                String::from_utf8_lossy(&text.as_bytes()[..cut])
            );
        }
    }
}

#[test]
fn version_1_has_at_most_107_bytes() {
    let unknown = |len: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(len - "PROXY UNKNOWN \r\n".len()));
    assert_eq!(parse(unknown(MAX_V1).as_bytes()), unspecified(MAX_V1));
    assert_eq!(parse(&unknown(MAX_V1).as_bytes()[..MAX_V1 - 1]), NEED_MORE);
    assert_eq!(parse(unknown(MAX_V1 + 1).as_bytes()), Err(Malformed));
    assert_eq!(parse(&unknown(MAX_V1 + 1).as_bytes()[..MAX_V1 - 2]), NEED_MORE);
    assert_eq!(parse(&unknown(MAX_V1 + 1).as_bytes()[..MAX_V1 - 1]), Err(Malformed));
}

fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [V2_SIGNATURE, &[command, family], &len, payload].concat()
}

const TCP4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

fn tcp6() -> Vec<u8> {
    let source: Ipv6Addr = "2001:db8::1".parse().unwrap();
    [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0x01, 0xbb, 0, 80]].concat()
}

#[test]
fn version_2_tells_the_source_and_where_the_header_ends() {
    let with_values = [TCP4, &[0x03, 0, 4, 1, 2, 3, 4]].concat();
    for (bytes, source) in [
        (v2(0x21, 0x11, TCP4), Some("192.0.2.1:56324")),
        (v2(0x21, 0x11, &with_values), Some("192.0.2.1:56324")),
        (v2(0x21, 0x21, &tcp6()), Some("[2001:db8::1]:443")),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, TCP4), None),
        (v2(0x20, 0xff, &[1, 2, 3]), None),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, &[9; 20]), None),
        (v2(0x21, 0x12, TCP4), None),
        (v2(0x21, 0x22, &tcp6()), None),
        (v2(0x21, 0x31, &[b'/'; 216]), None),
        (v2(0x21, 0x32, &[b'/'; 216]), None),
    ] {
        let expected = source.map_or(unspecified(bytes.len()), |source| from(source, bytes.len()));
        assert_eq!(parse(&bytes), expected, "{bytes:?}");
        assert_eq!(parse(&[&bytes[..], b"GET"].concat()), expected, "{bytes:?}");
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), NEED_MORE, "{:?}", &bytes[..cut]);
        }
    }
}

#[test]
fn version_2_is_refused_with_the_first_byte_that_cannot_be() {
    for (bytes, possible) in [
        (v2(0x11, 0x11, TCP4), 12),
        (v2(0x31, 0x11, TCP4), 12),
        (v2(0x22, 0x11, TCP4), 12),
        (v2(0x21, 0x01, TCP4), 13),
        (v2(0x21, 0x10, TCP4), 13),
        (v2(0x21, 0x13, TCP4), 13),
        (v2(0x21, 0x41, &[0; 216]), 13),
        (v2(0x21, 0x11, &TCP4[1..]), 15),
        (v2(0x21, 0x12, &TCP4[1..]), 15),
        (v2(0x21, 0x21, &tcp6()[1..]), 15),
        (v2(0x21, 0x22, TCP4), 15),
        (v2(0x21, 0x31, &[0; 215]), 15),
        (v2(0x20, 0x00, &[0; MAX_V2_PAYLOAD + 1]), 15),
        (v2(0x20, 0x00, &[0; 0x300]), 14),
        (b"\r\n\r\n\0\r\nQUIT\r\x21".to_vec(), 11),
        (b"\r\n\r\nGET / HTTP/1.1\r\n".to_vec(), 4),
        (b"\rX".to_vec(), 1),
    ] {
        for cut in 0..=bytes.len() {
            let expected = if cut <= possible { NEED_MORE } else { Err(Malformed) };
            assert_eq!(parse(&bytes[..cut]), expected, "{:?}", &bytes[..cut]);
        }
    }
}

#[test]
fn version_2_has_at_most_536_bytes_of_payload() {
    let most = v2(0x21, 0x11, &[1; MAX_V2_PAYLOAD]);
    assert_eq!(parse(&most), from("1.1.1.1:257", V2_FIXED + MAX_V2_PAYLOAD));
    assert_eq!(parse(&v2(0x21, 0x11, &[1; MAX_V2_PAYLOAD + 1])), Err(Malformed));
}

#[test]
fn mangled_headers_never_panic() {
    let texts = VALID_V1.iter().map(|(text, _)| text.as_bytes().to_vec());
    for text in texts.chain([v2(0x21, 0x11, TCP4), v2(0x21, 0x21, &tcp6()), v2(0x20, 0, &[])]) {
        for at in 0..text.len() {
            for byte in 0..=255 {
                let mut mangled = text.clone();
                mangled[at] = byte;
                let whole = parse(&mangled);
                // What more bytes can mend was not refused, and what is complete stays what it is.
                if let Ok(Progress::Done(header)) = whole {
                    assert_eq!(parse(&mangled[..header.len]), whole);
                    assert!([at, at + 1].iter().all(|&cut| cut >= header.len || parse(&mangled[..cut]) == NEED_MORE));
                }
            }
        }
    }
}
