//! Every problem, its place, what it says and what it advises.

use super::*;

/// Text, line, column, a fragment of what is said and one of the hint.
pub(super) type Case<'a> = (&'a str, usize, usize, &'a str, &'a str);

/// Each case's text, a `tail` added, has exactly one problem: the expected one.
pub(super) fn check(cases: &[Case<'_>], tail: &str) {
    for (text, line, column, what, hint) in cases {
        let problems = problems_of(&format!("{text}\n{tail}"));
        let shown = Problems(problems.clone()).to_string();
        assert_eq!(problems.len(), 1, "{text}\n{shown}");
        assert_eq!(problems[0].place, Some(Place { line: *line, column: *column }), "{text}\n{shown}");
        assert!(problems[0].text.contains(what), "{text}\n{shown}\nexpected: {what}");
        assert!(problems[0].hint.contains(hint), "{text}\n{shown}\nexpected: {hint}");
    }
}

#[test]
fn broken_toml_has_a_place() {
    let cases = [
        ("[workers\ncount = 1", 1, 9, "not TOML: ", "mend the TOML"),
        ("[workers]\ncount = auto", 2, 9, "not TOML: ", "double quotes"),
        ("[workers]\ncount = 1\n  count = 2", 3, 3, "duplicate key", "may stand once"),
        ("[workers]\n[rescue]\n[workers]", 3, 2, "duplicate key", "may stand once"),
    ];
    check(&cases, REST);
}

#[test]
fn unknown_keys_are_told_the_key_that_was_meant() {
    let cases = [
        ("[worker]", 1, 2, "unknown table or key `worker`", "did you mean `workers`?"),
        ("hang_timeout = \"1s\"", 1, 1, "unknown table or key `hang_timeout`", "belongs in [workers]"),
        (
            "[workers]\n  hang_timout = \"1s\"",
            2,
            3,
            "unknown key `workers.hang_timout`",
            "did you mean `hang_timeout`?",
        ),
        ("[limits]\nmax_attempts = 1", 2, 1, "unknown key `limits.max_attempts`", "`max_attempts` belongs in [rescue]"),
        ("[limits]\nidle = \"1s\"", 2, 1, "unknown key `limits.idle`", "`idle` belongs in [timeouts]"),
        ("[rescue]\ncolour = 1", 2, 1, "unknown key `rescue.colour`", "known here: enabled, max_attempts"),
        ("[log]\nacces = \"off\"", 2, 1, "unknown key `log.acces`", "did you mean `access`?"),
        ("workers.cuont = 1", 1, 9, "unknown key `workers.cuont`", "did you mean `count`?"),
    ];
    check(&cases, REST);
    let nested = [
        (
            "files = { root = \"/\", idnex = [] }",
            6,
            23,
            "unknown key `site.route.files.idnex`",
            "did you mean `index`?",
        ),
        ("respond = {}\nstatus = 200", 7, 1, "unknown key `site.route.status`", "respond = { … } or redirect = { … }"),
    ];
    check_routes(&nested);
}

#[test]
fn values_of_the_wrong_kind_are_told_the_right_one() {
    let cases = [
        (
            "[workers]\ncount = \"many\"",
            2,
            9,
            "workers.count: expected a whole number or \"auto\", found a string",
            "slots",
        ),
        (
            "[workers]\ncount = 1.5",
            2,
            9,
            "workers.count: expected a whole number or \"auto\", found a fraction",
            "write",
        ),
        (
            "[workers]\nmodel = 1",
            2,
            9,
            "workers.model: expected \"reactor\" or \"thread\", found a whole number",
            "write \"reactor\"",
        ),
        ("[workers]\nhang_timeout = 30", 2, 16, "expected a duration such as \"30s\", found a whole number", "silent"),
        (
            "[workers]\nmax_memory = 5",
            2,
            14,
            "expected a size such as \"8KiB\", found a whole number",
            "private memory",
        ),
        ("[workers]\nmax_requests = \"1\"", 2, 16, "expected a whole number, found a string", "recycled"),
        (
            "[rescue]\nenabled = \"yes\"",
            2,
            11,
            "rescue.enabled: expected true or false, found a string",
            "write true or",
        ),
        ("[master]\npid_file = []", 2, 12, "master.pid_file: expected a path, found a list", "process id"),
        ("workers = 4", 1, 11, "workers: expected a table, [workers], found a whole number", "[workers]"),
        ("[[workers]]", 1, 3, "workers: expected a table, [workers], found a list of tables", "[workers]"),
    ];
    check(&cases, REST);
}

#[test]
fn numbers_sizes_and_durations_have_bounds_with_reasons() {
    let cases = [
        ("[workers]\ncount = 0", 2, 9, "workers.count: 0 is less than 1", "use 1 to 1024"),
        ("[workers]\ncount = 1025", 2, 9, "workers.count: 1025 is more than 1024", "keeper"),
        ("[workers]\nmax_requests = -1", 2, 16, "-1 is less than 0", "0 means"),
        ("[workers]\nhang_timeout = \"0s\"", 2, 16, "workers.hang_timeout: 0 is less than 1ms", "more than zero"),
        ("[workers]\nboot_timeout = \"25h\"", 2, 16, "workers.boot_timeout: 25h is more than 24h", "at most a day"),
        ("[workers]\ndrain_timeout = \"30\"", 2, 17, "\"30\" has no unit", "units are ms, s, m, h"),
        ("[rescue]\nmax_attempts = 11", 2, 16, "rescue.max_attempts: 11 is more than 10", "use 0 to 10"),
        ("[limits]\nhead = \"15KiB\"", 2, 8, "limits.head: 15KiB is more than 14KiB", "ledger"),
        ("[limits]\nhead = 0", 2, 8, "limits.head: 0 is less than 1KiB", "use 1KiB to 14KiB"),
        ("[limits]\nbody = \"1mib\"", 2, 8, "limits.body: unknown unit \"mib\"", "write \"1MiB\""),
        ("[limits]\nconnections = 0", 2, 15, "limits.connections: 0 is less than 1", "record"),
        ("[limits]\nconnections = 1000001", 2, 15, "is more than 1000000", "record"),
        ("[timeouts]\nwrite = \"0ms\"", 2, 9, "timeouts.write: 0 is less than 1ms", "use 1ms to 24h"),
        ("[master]\ncrash_reports = 0", 2, 17, "master.crash_reports: 0 is less than 1", "leave crash_dir out"),
    ];
    check(&cases, REST);
}

#[test]
fn words_are_known_planned_or_misspelt() {
    let cases = [
        (
            "[workers]\nmodel = \"reacter\"",
            2,
            9,
            "workers.model: unknown model \"reacter\"",
            "did you mean \"reactor\"?",
        ),
        (
            "[workers]\npoller = \"kqueue\"",
            2,
            10,
            "workers.poller: unknown poller \"kqueue\"",
            "use \"epoll\", \"poll\" or \"select\"",
        ),
        (
            "[workers]\npoller = \"select\"\n[limits]\nconnections = 901",
            4,
            1,
            "limits.connections: 901 is more than 900, which is what workers.poller = \"select\" has room for",
            "poller = \"epoll\"",
        ),
        (
            "[workers]\nmodel = \"thread\"\npoller = \"select\"",
            3,
            1,
            "workers.poller: the model thread does not wait by select",
            "leave the poller out, or choose epoll or poll",
        ),
        ("[workers]\non_master_death = \"die\"", 2, 19, "\"die\"", "use \"drain\" or \"exit\""),
        ("[log]\nlevel = \"warning\"", 2, 9, "unknown level \"warning\"", "\"warn\""),
        ("[log]\nformat = \"JSON\"", 2, 10, "unknown format \"JSON\"", "did you mean \"json\"?"),
        (
            "[admin]\nlisten = \"127.0.0.1:9090\"",
            1,
            2,
            "the admin listener is not yet available",
            "remove the [admin] table",
        ),
    ];
    check(&cases, REST);
}

#[test]
fn users_groups_and_paths_must_exist_and_fit() {
    let long = format!("[master]\ncontrol_socket = \"/{}\"", "x".repeat(107));
    let cases = [
        ("[master]\nuser = \"nobody-here\"", 2, 8, "master.user: there is no user \"nobody-here\"", "create the user"),
        ("[master]\ngroup = \"none-here\"", 2, 9, "master.group: there is no group \"none-here\"", "create the group"),
        ("[master]\ncrash_dir = \"\"", 2, 13, "master.crash_dir: the path is empty", "leave the key out"),
        ("[master]\npid_file = \"a\\u0000\"", 2, 12, "NUL", "\\u0000"),
        (&long, 2, 18, "has 108 bytes, a socket's path at most 107", "shorter"),
        (
            "[log]\naccess = \"/nowhere/a.log\"",
            2,
            10,
            "log.access: there is no directory /nowhere",
            "mkdir -p /nowhere",
        ),
        ("[log]\nerror = \"/\"", 2, 9, "log.error: / is a directory", "a file inside it"),
        ("[log]\nerror = \"stdrr\"", 2, 9, "log.error: unknown log \"stdrr\"", "did you mean \"stderr\"?"),
    ];
    check(&cases, REST);
}

#[test]
fn listeners_and_sites_are_needed() {
    let site = "[[site]]\n[[site.route]]\npath = \"/\"\nrespond = {}";
    check(&[("", 1, 1, "no [[listen]]", "add [[listen]]")], site);
    check(&[("", 1, 1, "no [[site]]", "add [[site]]")], "[[listen]]\naddress = \"8080\"");
    let both = problems_of("");
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn listeners_have_one_sound_address_each() {
    let site = "[[site]]\n[[site.route]]\npath = \"/\"\nrespond = {}";
    let cases = [
        ("[[listen]]", 1, 1, "listen.address is missing", "add address to [[listen]]"),
        ("[[listen]]\naddress = 8080", 2, 11, "expected an address such as", "IP address"),
        ("[[listen]]\naddress = \"example.org:80\"", 2, 11, "\"example.org\" is not an IP address", "127.0.0.1:8080"),
        (
            "[[listen]]\naddress = \"0.0.0.0:80\"\n[[listen]]\naddress = \":80\"",
            4,
            11,
            "0.0.0.0:80 is listened on already, see line 2",
            "remove one",
        ),
        (
            "[[listen]]\naddress = \"unix:/a\"\n[[listen]]\naddress = \"unix:../a\"\n[[listen]]\naddress = \"unix:/a\"",
            6,
            11,
            "unix:/a is listened on already, see line 2",
            "remove one",
        ),
        (
            "[listen]\naddress = \"8080\"",
            1,
            2,
            "listen: expected tables headed [[listen]], found a table",
            "write [[listen]]",
        ),
        ("listen = [\"8080\"]", 1, 1, "expected tables headed [[listen]], found a list", "write [[listen]]"),
    ];
    check(&cases, site);
}

#[test]
fn hosts_belong_to_one_site() {
    let listen = "[[listen]]\naddress = \"8080\"";
    let route = "[[site.route]]\npath = \"/\"\nrespond = {}";
    let site = |hosts: &str| format!("[[site]]\n{hosts}\n{route}\n");
    let twice = site("hosts = [\"a.org\"]") + &site("hosts = [\"b.org\", \"A.org\"]");
    let every = site("") + &site("");
    let cases: &[(String, usize, usize, &str, &str)] = &[
        (twice, 7, 19, "site.hosts: host \"a.org\" is taken already, see line 2", "a host belongs to one site"),
        (every, 6, 1, "a second site without hosts, the first is on line 1", "give one of them hosts"),
        (site("hosts = [\"a.org\", \"a.org\"]"), 2, 19, "taken already, see line 2", "belongs to one site"),
        (site("hosts = [\"a b\"]"), 2, 10, "\"a b\" is not a host name", "example.org"),
        (site("hosts = \"a.org\""), 2, 9, "site.hosts: expected a list of host names, found a string", "write a list"),
        (site("hosts = [7]"), 2, 10, "site.hosts: expected a host name, found a whole number", "write a host name"),
        (site("hosts = []"), 2, 9, "site.hosts: the list is empty", "leave hosts out"),
        ("[[site]]".to_owned(), 1, 1, "this site has no [[site.route]]", "add [[site.route]]"),
        (route.to_owned(), 1, 3, "site: expected tables headed [[site]], found a table", "write [[site]]"),
        (
            site("").replace("[[site]]", "[site]"),
            1,
            2,
            "expected tables headed [[site]], found a table",
            "write [[site]]",
        ),
    ];
    let cases: Vec<Case<'_>> =
        cases.iter().map(|(text, l, c, what, hint)| (text.as_str(), *l, *c, *what, *hint)).collect();
    check(&cases, listen);
}

/// Cases of route keys below a path; the first of them stands on line 6.
pub(super) fn check_routes(cases: &[Case<'_>]) {
    let head = "[[listen]]\naddress = \"8080\"\n[[site]]\n[[site.route]]\npath = \"/\"\n";
    let texts: Vec<String> = cases.iter().map(|case| format!("{head}{}", case.0)).collect();
    let cases: Vec<Case<'_>> =
        texts.iter().zip(cases).map(|(text, case)| (text.as_str(), case.1, case.2, case.3, case.4)).collect();
    check(&cases, "");
}

#[test]
fn routes_have_one_path_and_one_action() {
    check_routes(&[
        ("", 4, 1, "this route has no action", "add one of files, respond and redirect"),
        ("respond = {}\nredirect = { to = \"/x\" }", 7, 1, "this one has respond and redirect", "keep one"),
        ("proxy = { to = [\"http://127.0.0.1:3000\"] }", 6, 1, "proxy is not yet available", "remove the route"),
        (
            "respond = {}\n[[site.route]]\nrespond = {}",
            7,
            1,
            "site.route.path is missing",
            "add path to [[site.route]]",
        ),
        ("respond = {}\n[[site.route]]\npath = \"x\"\nrespond = {}", 8, 8, "does not start with \"/\"", "write \"/x\""),
        (
            "respond = {}\n[[site.route]]\npath = \"/\"\nrespond = {}",
            8,
            8,
            "path \"/\" is routed already in this site, see line 5",
            "change its path",
        ),
        ("respond = \"x\"", 6, 11, "site.route.respond: expected a table, respond = { … }, found a string", "respond"),
        ("respond = {}\n[site.route.x]", 7, 13, "unknown key `site.route.x`", "known here: path, files"),
    ]);
}

#[test]
fn actions_are_sound() {
    check_routes(&[
        ("files = {}", 6, 9, "site.route.files.root is missing", "add root to files = { … }"),
        ("files = { root = \"/nowhere\" }", 6, 18, "there is no directory /nowhere", "create it"),
        ("files = { root = \"/dev/null\" }", 6, 18, "/dev/null is not a directory", "name the directory"),
        ("files = { root = \"/\", index = [\"a/b\"] }", 6, 32, "\"a/b\" is not a file name", "without \"/\""),
        ("files = { root = \"/\", index = \"a\" }", 6, 31, "expected a list of file names, found a string", "tried"),
        ("respond = { status = 199 }", 6, 22, "site.route.respond.status: 199 is less than 200", "use 200 to 599"),
        ("respond = { status = 600 }", 6, 22, "600 is more than 599", "use 200 to 599"),
        ("respond = { status = 204, body = \"x\" }", 6, 34, "status 204 has no body", "remove the body"),
        ("respond = { type = \"text/plain\\r\\nX: y\" }", 6, 20, "cannot stand in a header", "control characters"),
        ("respond = { type = \"\" }", 6, 20, "cannot stand in a header", "a media type"),
        ("redirect = {}", 6, 12, "site.route.redirect.to is missing", "add to to redirect = { … }"),
        ("redirect = { to = \"/\\n\" }", 6, 19, "cannot stand in a header", "control characters"),
        ("redirect = { to = \"/a b\" }", 6, 19, "a URL has no spaces", "%20"),
        ("redirect = { to = \"/\", status = 200 }", 6, 33, "200 does not redirect", "301, 302, 303, 307 or 308"),
        ("fault = \"segv\"", 6, 9, "fault routes are not allowed", "allow_faults = true in [workers]"),
        ("fault = \"segfault\"", 6, 9, "unknown fault \"segfault\"", "use \"segv\""),
    ]);
}

#[test]
fn all_problems_of_a_file_are_reported_at_once_in_the_order_of_its_lines() {
    let text = "[workers]\ncuont = 1\nhang_timeout = 5\n[log]\nlevel = \"loud\"\n[[listen]]\naddress = \"80\"\n[[site]]\n\
                hosts = [\"*\", \"a.org\", 1]\n[[site.route]]\npath = \"x\"\nrespond = { status = 1, typ = 1 }\n[nonsense]\n";
    let problems = problems_of(text);
    let lines: Vec<usize> = problems.iter().map(|problem| problem.place.unwrap().line).collect();
    assert_eq!(lines, [2, 3, 5, 9, 9, 11, 12, 12, 13], "{}", Problems(problems));
    let shown = Problems(problems).to_string();
    assert!(
        shown.starts_with("/etc/phalanx.toml:2:1: unknown key `workers.cuont`\n  hint: did you mean `count`?\n"),
        "{shown}"
    );
}
