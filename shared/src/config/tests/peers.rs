//! Keys about peers and what a worker keeps for them: limits, timeouts, threads, cache, trust.

use std::net::IpAddr;

use super::problems::check;
use super::*;

#[test]
fn bounds_of_peers_and_caches_are_taken_as_written() {
    let config = config_of(&format!(
        r#"
workers.io_threads = 64
[limits]
connections_per_client = 100
requests_per_connection = 1000
[timeouts]
body_rate = "1KiB"
write_rate = 0
[cache]
memory = "1GiB"
file = "1GiB"
open_files = 4096
{REST}"#
    ));
    assert_eq!(config.workers.io_threads, 64);
    assert_eq!((config.limits.connections_per_client, config.limits.requests_per_connection), (100, 1000));
    assert_eq!((config.timeouts.body_rate, config.timeouts.write_rate), (1024, 0));
    assert_eq!(config.cache, Cache { memory: 1 << 30, file: 1 << 30, open_files: 4096 });
}

#[test]
fn a_cache_that_is_off_may_have_files_of_any_size() {
    let config = config_of(&format!("[cache]\nmemory = 0\nopen_files = 0\n{REST}"));
    assert_eq!(config.cache, Cache { memory: 0, file: 64 << 10, open_files: 0 });
}

#[test]
fn bounds_of_peers_and_caches_have_bounds_with_reasons() {
    check(
        &[
            ("[workers]\nio_threads = 0", 2, 14, "workers.io_threads: 0 is less than 1", "use 1 to 64: a disk"),
            ("[workers]\nio_threads = 65", 2, 14, "workers.io_threads: 65 is more than 64", "every worker"),
            ("[workers]\nio_threads = \"auto\"", 2, 14, "expected a whole number, found a string", "what may block"),
            ("[limits]\nconnections_per_client = -1", 2, 26, "-1 is less than 0", "as many as the client likes"),
            ("[limits]\nconnections_per_client = 1000001", 2, 26, "1000001 is more than 1000000", "use 0 to 1000000"),
            ("[limits]\nrequests_per_connection = -1", 2, 27, "-1 is less than 0", "no connection is closed for it"),
            ("[limits]\nrequests_per_connection = \"1\"", 2, 27, "expected a whole number", "is closed; 0 is never"),
            ("[timeouts]\nbody_rate = 240", 2, 13, "timeouts.body_rate: expected a size", "bytes a second"),
            ("[timeouts]\nbody_rate = \"2GiB\"", 2, 13, "2GiB is more than 1GiB", "use 0 to 1GiB: as bytes a second"),
            (
                "[timeouts]\nwrite_rate = \"1KB/s\"",
                2,
                14,
                "timeouts.write_rate: unknown unit \"KB/s\"",
                "like \"8KiB\"",
            ),
            ("[timeouts]\nwrite_rate = \"2GiB\"", 2, 14, "2GiB is more than 1GiB", "no peer is too slow"),
            ("[cache]\nmemory = 5", 2, 10, "cache.memory: expected a size", "keeps in memory"),
            ("[cache]\nopen_files = 4097", 2, 14, "cache.open_files: 4097 is more than 4096", "use 0 to 4096"),
            ("[cache]\nopen_files = -1", 2, 14, "-1 is less than 0", "descriptors that a worker has"),
            (
                "[cache]\nmemory = \"1MiB\"\nfile = \"2MiB\"",
                3,
                1,
                "cache.file: a file of 2MiB does not fit the memory of 1MiB",
                "write file = \"1MiB\" or less, or raise memory",
            ),
            ("[cache]\nfile = \"33MiB\"", 2, 1, "33MiB does not fit the memory of 32MiB", "raise memory"),
            ("[cache]\nmemory = \"50KB\"", 2, 1, "64KiB does not fit the memory of 50KB", "file = \"50KB\" or less"),
            ("[cache]\nmemroy = 0", 2, 1, "unknown key `cache.memroy`", "did you mean `memory`?"),
            ("[limits]\nopen_files = 1", 2, 1, "unknown key `limits.open_files`", "belongs in [cache]"),
        ],
        REST,
    );
}

#[test]
fn a_listener_trusts_networks_addresses_and_the_peers_of_unix_sockets() {
    let config = config_of(
        r#"
[[listen]]
address = "8080"
proxy_protocol = true
trusted = ["10.0.0.0/8", "::1", "unix"]
[[listen]]
address = "8081"
trusted = []
[[site]]
[[site.route]]
path = "/"
respond = {}
"#,
    );
    let [first, second] = &config.listen[..] else { panic!("{:?}", config.listen) };
    assert!(first.proxy_protocol && first.trusted.unix);
    let shown: Vec<String> = first.trusted.networks.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8", "::1/128"]);
    let contains = |address: &str| first.trusted.contains(address.parse::<IpAddr>().unwrap());
    assert!(contains("10.1.2.3") && contains("::ffff:10.1.2.3") && contains("::1"));
    assert!(!contains("11.0.0.0") && !contains("::2"));
    assert_eq!(second, &Listen { seat: 1, ..Listen::from(second.address.clone()) });
}

#[test]
fn what_cannot_be_trusted_is_refused() {
    let listen = "[[listen]]\naddress = \"8080\"\n";
    let cases = [
        (
            "proxy_protocol = \"v1\"",
            18,
            "listen.proxy_protocol: expected true or false, found a string",
            "version 1 or 2",
        ),
        ("trusted = \"::1\"", 11, "listen.trusted: expected a list such as", "write a list"),
        (
            "trusted = [1]",
            12,
            "listen.trusted: expected a network such as \"10.0.0.0/8\", or \"unix\"",
            "write a network",
        ),
        ("trusted = [\"::1\", \"10.0.0.1/8\"]", 19, "\"10.0.0.1/8\" has bits set", "write \"10.0.0.0/8\""),
        ("trusted = [\"10.0.0.0/40\"]", 12, "has the prefix \"40\"", "here from 0 to 32"),
        ("trusted = [\"example.org\"]", 12, "\"example.org\" is not a network", "names are not looked up"),
        ("trusted = [\"unxi\"]", 12, "\"unxi\" is not a network", "did you mean \"unix\"?"),
        ("truste = []", 1, "unknown key `listen.truste`", "did you mean `trusted`?"),
    ];
    let texts: Vec<String> = cases.iter().map(|case| format!("{listen}{}", case.0)).collect();
    let cases: Vec<_> =
        texts.iter().zip(cases).map(|(text, case)| (text.as_str(), 3, case.1, case.2, case.3)).collect();
    check(&cases, "[[site]]\n[[site.route]]\npath = \"/\"\nrespond = {}");
}
