//! Defaults, values that are taken, and the sample files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::written::{Shape, TABLES};
use super::*;

fn etc(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc").join(name)
}

fn addresses_of(config: &Config) -> Vec<ListenAddress> {
    config.listen.iter().map(|listen| listen.address.clone()).collect()
}

#[test]
fn an_almost_empty_file_has_the_documented_defaults() {
    let config = config_of(REST);
    assert_eq!(config.workers.count, Count::Auto);
    assert_eq!(config.workers.hang_timeout, Duration::from_secs(30));
    assert_eq!((config.workers.max_requests, config.workers.max_memory), (0, 0));
    assert_eq!(config.workers.on_master_death, OnMasterDeath::Drain);
    assert!(!config.workers.allow_faults);
    assert_eq!(config.rescue, Rescue { enabled: true, max_attempts: 2 });
    assert_eq!(
        config.limits,
        Limits {
            head: 8192,
            body: 1 << 20,
            connections: 16_384,
            connections_per_client: 0,
            requests_per_connection: 0,
        }
    );
    assert_eq!(config.timeouts.idle, Duration::from_secs(75));
    assert_eq!((config.timeouts.body_rate, config.timeouts.write_rate), (240, 240));
    assert_eq!(config.cache, Cache { memory: 32 << 20, file: 64 << 10, open_files: 256 });
    assert_eq!(config.workers.io_threads, 4);
    assert_eq!(config.listen, [Listen::from(parse_listen("127.0.0.1:8080").unwrap())]);
    assert_eq!((config.master.crash_dir, config.master.crash_reports), (None, 100));
    assert!(config.master.pid_file.unwrap().ends_with("phalanx.pid"));
    assert!(config.master.control_socket.unwrap().ends_with("control.sock"));
    assert_eq!((config.log.access, config.log.error, config.log.level), (Sink::Off, Sink::Stderr, Level::Info));
    let respond = Action::Respond {
        status: 200,
        body: String::new(),
        content_type: "text/plain".into(),
        effort: Effort::default(),
    };
    assert_eq!(config.sites[0].routes[0], Route::new(RoutePath::Prefix("/".into()), respond));
}

#[test]
fn values_are_taken_as_written() {
    let config = config_of(
        r#"
master = { user = "root", pid_file = "run/p.pid", crash_dir = "/c" }
workers.count = 4
workers.max_memory = "512MiB"
workers.on_master_death = "exit"
workers.allow_faults = true
limits = { head = "14KiB", body = 0 }
listen = [{ address = "unix:p.sock" }, { address = "[::1]:0" }, { address = "[::1]:0" }]
[log]
access = "/dev/null"
[[site]]
hosts = ["Example.org", "*.example.org"]
[[site.route]]
path = "= /x"
redirect = { to = "/y", status = 308 }
[[site.route]]
path = "/"
[site.route.files]
root = "/"
index = []
[[site.route]]
path = "/x"
fault = "hang"
"#,
    );
    assert_eq!((config.master.user.as_deref(), config.master.group.as_deref()), (Some("root"), Some("root")));
    assert_eq!(config.master.pid_file, Some("/etc/run/p.pid".into()));
    assert_eq!((config.workers.count, config.workers.max_memory), (Count::Fixed(4), 512 << 20));
    assert_eq!((config.limits.head, config.limits.body), (14 << 10, 0));
    let any_port = || ListenAddress::Tcp(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)));
    assert_eq!(addresses_of(&config), [ListenAddress::Unix("/etc/p.sock".into()), any_port(), any_port()]);
    assert_eq!(config.log.access, Sink::File("/dev/null".into()));
    assert_eq!(config.sites[0].hosts, ["example.org", "*.example.org"]);
    let actions: Vec<&Action> = config.sites[0].routes.iter().map(|route| &route.action).collect();
    assert_eq!(actions[0], &Action::Redirect { to: "/y".into(), status: 308 });
    assert_eq!(actions[1], &Action::Files(FilesAction { index: Vec::new(), ..FilesAction::new("/".into()) }));
    assert_eq!(actions[2], &Action::Fault(Fault { kind: FaultKind::Hang, pooled: false }));
}

#[test]
fn a_configuration_survives_the_way_to_a_worker() {
    let mut config = load(&etc("phalanx.toml"), KNOWN).unwrap();
    config.listen[0].trusted.networks = vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
    let route = &mut config.sites[0].routes[0];
    route.headers = vec![("X-A".into(), "a".into())];
    route.limit = Some(Rate { interval: Duration::from_nanos(333_333_333), burst: 5 });
    let Action::Files(files) = &mut route.action else { panic!("not files") };
    files.error_pages = [(404, "/404.html".into()), (500, "/500.html".into())].into();
    let blueprint = config.to_blueprint().unwrap();
    assert_eq!(Config::from_blueprint(&blueprint).unwrap(), config);
}

#[test]
fn the_sample_shows_every_key_at_its_default() {
    let sample = load(&etc("phalanx.toml"), KNOWN).unwrap_or_else(|problems| panic!("{problems}"));
    let expected = config_of(REST);
    assert_eq!(sample.master, expected.master);
    assert_eq!(sample.workers, expected.workers);
    assert_eq!(sample.rescue, expected.rescue);
    assert_eq!(sample.limits, expected.limits);
    assert_eq!(sample.timeouts, expected.timeouts);
    assert_eq!(sample.cache, expected.cache);
    assert_eq!(sample.log, expected.log);
    assert_eq!(sample.listen, expected.listen);
    let files = Action::Files(FilesAction::new(etc("site")));
    assert_eq!(sample.sites[0].routes, [Route::new(RoutePath::Prefix("/".into()), files)]);
}

#[test]
fn the_sample_names_every_declared_key_in_its_table() {
    let sample = std::fs::read_to_string(etc("phalanx.toml")).unwrap();
    for table in TABLES.iter().filter(|table| table.shape != Shape::Root) {
        let written = part_of(&sample, table.shape, table.name, &table.heading());
        for key in table.keys {
            let shown = written.contains(&format!("{} = ", key.name)) || written.contains(&format!(".{}]]", key.name));
            assert!(shown, "etc/phalanx.toml does not show {}", table.name_of(key.name));
        }
    }
}

/// What the sample says about a table: from its heading to the next other one, or the lines of an inline table.
fn part_of(sample: &str, shape: Shape, name: &str, heading: &str) -> String {
    let uncommented: Vec<&str> = sample.lines().map(|line| line.trim_start_matches("# ")).collect();
    if shape == Shape::Inline {
        let start = format!("{} = {{ ", name.rsplit('.').next().unwrap());
        return uncommented.into_iter().filter(|line| line.starts_with(&start)).collect();
    }
    let mut inside = false;
    let belongs = |line: &&str| {
        if line.starts_with('[') {
            inside = *line == heading || line.starts_with(&format!("[[{name}."));
        }
        inside
    };
    uncommented.into_iter().filter(belongs).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_minimal_sample_is_a_configuration() {
    let config = load(&etc("minimal.toml"), KNOWN).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(addresses_of(&config), [parse_listen("127.0.0.1:8080").unwrap()]);
}

#[test]
fn serving_a_directory_leaves_nothing_on_disk() {
    let listen = vec![parse_listen("8080").unwrap()];
    let config = serve_defaults(PathBuf::from("site"), listen.clone());
    assert_eq!(addresses_of(&config), listen);
    assert_eq!((config.master.pid_file, config.master.control_socket, config.master.crash_dir), (None, None, None));
    assert_eq!((config.log.access, config.log.error), (Sink::Off, Sink::Stderr));
    assert_eq!(config.workers, config_of(REST).workers);
    let Action::Files(files) = &config.sites[0].routes[0].action else { panic!("not files") };
    assert!(files.root.is_absolute() && files.root.ends_with("site"), "{:?}", files.root);
    assert_eq!(files, &FilesAction { listing: true, ..FilesAction::new(files.root.clone()) });
}
