//! Directories as pages.

use super::super::super::testing::with_request;
use super::*;

fn file(name: impl AsRef<[u8]>, size: u64) -> Entry {
    Entry { name: name.as_ref().to_vec(), is_dir: false, size, modified: 784_111_777 }
}

fn directory(name: &str) -> Entry {
    Entry { is_dir: true, ..file(name, 4096) }
}

fn names(entries: &[Entry]) -> Vec<String> {
    sorted(entries).iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

#[test]
fn directories_come_first_and_case_does_not_count() {
    let mut entries = ["b", "A", "a", "\u{c4}", "\u{e4}", "10", "z.txt", "Z.txt"].map(|name| file(name, 1)).to_vec();
    entries.extend(["y", "X"].map(directory));
    let expected = ["X", "y", "10", "A", "a", "b", "Z.txt", "z.txt", "\u{c4}", "\u{e4}"];
    assert_eq!(names(&entries), expected);
    let page = html("/", &entries, false);
    entries.reverse();
    assert_eq!(names(&entries), expected);
    assert_eq!(html("/", &entries, false), page);
}

#[test]
fn a_page_is_whole_and_says_what_is_there() {
    let page = html("/a b/", &[file("x.txt", 1_500_000), directory("sub")], false);
    for part in [
        "<!DOCTYPE html>\n<html lang=\"en\">",
        "<meta charset=\"utf-8\">",
        "name=\"viewport\"",
        "prefers-color-scheme:dark",
        "<title>Index of /a b/</title>",
        "<a href=\"../\">../</a>",
        "<a href=\"sub/\"><bdi>sub</bdi>/</a></td><td></td>",
        "<a href=\"x.txt\"><bdi>x.txt</bdi></a></td><td title=\"1,500,000 bytes\">1.4 MiB</td>",
        "<time datetime=\"1994-11-06T08:49:37Z\">1994-11-06 08:49</time>",
        "</body>\n</html>\n",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    for tag in ["table", "thead", "tbody", "tr", "td", "th", "a", "bdi", "time", "style", "h1", "title", "html", "body"]
    {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(!page.contains("<script") && !page.contains("more."));
}

#[test]
fn the_root_has_no_parent_and_what_is_missing_is_told() {
    assert!(!html("/", &[file("a", 1)], false).contains("../"));
    assert!(html("/", &[], false).contains("This directory is empty."));
    assert!(html("/", &[file("a", 1)], true).contains("Only 1 entries are shown; there are more."));
}

#[test]
fn no_name_leaves_its_place() {
    for (name, shown, link) in [
        (&b"<b>&\"'"[..], "&lt;b&gt;&amp;&quot;&#39;", "%3Cb%3E%26%22%27"),
        (b"javascript:x", "javascript:x", "javascript%3Ax"),
        (b"a?b#c%d", "a?b#c%d", "a%3Fb%23c%25d"),
        (b"a\nb\x7f", "a\u{fffd}b\u{fffd}", "a%0Ab%7F"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}", "%FF%FE"),
        ("\u{fc}".as_bytes(), "\u{fc}", "%C3%BC"),
        (b"a\\b c", "a\\b c", "a%5Cb%20c"),
    ] {
        let page = html("/", &[file(name, 0)], false);
        let cell = format!("<a href=\"{link}\"><bdi>{shown}</bdi></a></td><td title=\"0 bytes\">0 B</td>");
        assert!(page.contains(&cell), "{cell}\n{page}");
    }
    assert!(html("/<i>/", &[], false).contains("<title>Index of /&lt;i&gt;/</title>"));
}

#[test]
fn json_is_what_it_says() {
    let entries = [file("b\"\\\n", 7), file(b"\xffz", 0), directory("a")];
    let expected = "{\"path\":\"/x\\\"/\",\"entries\":[\
        {\"name\":\"a\",\"type\":\"directory\",\"size\":null,\"modified\":\"1994-11-06T08:49:37Z\"},\
        {\"name\":\"b\\\"\\\\\\n\",\"type\":\"file\",\"size\":7,\"modified\":\"1994-11-06T08:49:37Z\"},\
        {\"name\":\"\u{fffd}z\",\"type\":\"file\",\"size\":0,\"modified\":\"1994-11-06T08:49:37Z\"}],\"truncated\":true}\n";
    assert_eq!(json("/x\"/", &entries, true), expected);
    assert_eq!(json("/", &[], false), "{\"path\":\"/\",\"entries\":[],\"truncated\":false}\n");
}

#[test]
fn json_is_sent_to_who_likes_it_better() {
    for (accept, expected) in [
        (&[][..], false),
        (&["*/*"], false),
        (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], false),
        (&["application/json"], true),
        (&["APPLICATION/JSON"], true),
        (&["application/json, text/html"], false),
        (&["application/json, text/html;q=0.9"], true),
        (&["application/json;q=0.5, text/html;q=0.9"], false),
        (&["application/json;q=0.001"], true),
        (&["application/json;q=0"], false),
        (&["application/json", "*/*;q=0.1"], true),
        (&["application/json, */*"], false),
        (&["application/*, text/*;q=0.9"], true),
        (&["text/html;q=0, */*"], true),
        (&["application/json;charset=utf-8; q=1.0, */*;q=0.9"], true),
        (&["application/json;q=2, text/plain"], false),
        (&["application/json;q=0.1234"], false),
        (&["application/json;q="], false),
        (&["application/json;q=-1"], false),
        (&["application/jsonx"], false),
        (&["json"], false),
        (&[""], false),
        (&[",,;,/"], false),
    ] {
        let fields: String = accept.iter().map(|value| format!("Accept: {value}\r\n")).collect();
        assert_eq!(with_request("GET /", &fields, |request| wants_json(request.head)), expected, "{accept:?}");
    }
}

#[test]
fn sizes_are_short_and_exact_enough() {
    for (size, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1_048_063, "1023 KiB"),
        (1_048_064, "1.0 MiB"),
        (10_188, "9.9 KiB"),
        (10_189, "10 KiB"),
        (1_048_575, "1.0 MiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(human(size), text, "{size}");
    }
    for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), text);
    }
}

#[test]
fn times_are_written_as_rfc_3339_has_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_798_761_599, "2026-12-31T23:59:59Z"),
        (u64::MAX, "9999-12-31T23:59:59Z"),
    ] {
        assert_eq!(rfc3339(seconds), text);
    }
}
