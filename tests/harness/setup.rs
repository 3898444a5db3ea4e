//! A configuration in the making, and the site that most tests serve.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::command::{Directory, example};
use super::how::How;
use super::server::Server;

/// The body of `/hello` in [`STANDARD_SITE`].
pub(crate) const HELLO: &[u8] = b"Hello, World!";

/// What is served unless a test says otherwise; `{dir}` is the test's directory.
pub(crate) const STANDARD_SITE: &str = r#"
[[site]]
[[site.route]]
path = "/"
files = { root = "{dir}/site", index = ["index.html"] }
[[site.route]]
path = "/hello"
respond = { status = 200, body = "Hello, World!", type = "text/plain" }
"#;

/// A configuration in the making.
pub(crate) struct Setup {
    directory: Directory,
    tables: BTreeMap<&'static str, BTreeMap<String, String>>,
    listen: Vec<String>,
    listener_lines: String,
    descriptors: Option<u64>,
    program: PathBuf,
    sites: String,
    environment: Vec<(String, String)>,
    workers: usize,
}

impl Setup {
    /// This many workers, of the model and the poller of [`How`], the standard site, `127.0.0.1` on any port, no access log.
    pub(crate) fn new(workers: usize) -> Setup {
        let how = How::here();
        let setup = Setup {
            directory: Directory::new(),
            tables: BTreeMap::new(),
            listen: vec!["127.0.0.1:0".into()],
            listener_lines: String::new(),
            descriptors: None,
            program: env!("CARGO_BIN_EXE_phalanx").into(),
            sites: STANDARD_SITE.into(),
            environment: Vec::new(),
            workers,
        };
        setup
            .set("master", "pid_file = \"{dir}/pid\"")
            .set("master", "control_socket = \"{dir}/c\"")
            .set("master", "crash_dir = \"{dir}/crash\"")
            .set("workers", &format!("count = {workers}"))
            .set("workers", &format!("model = \"{}\"", how.model))
            .set("workers", &format!("poller = \"{}\"", how.poller))
            .set("workers", "drain_timeout = \"10s\"")
            .set("log", "access = \"off\"")
            .set("log", "level = \"debug\"")
    }

    /// This many workers of an example, whose app answers everything, under the model that it likes.
    #[track_caller]
    pub(crate) fn of_example(name: &str, workers: usize) -> Setup {
        let setup = Setup::new(workers).unset("workers", "model").unset("workers", "poller").sites("");
        Setup { program: example(name), ..setup }
    }

    /// A line `key = value` of a table; replaces an earlier one with the same key.
    pub(crate) fn set(mut self, table: &'static str, line: &str) -> Setup {
        let (key, _) = line.split_once(" = ").expect("a line is `key = value`");
        self.tables.entry(table).or_default().insert(key.to_owned(), line.to_owned());
        self
    }

    /// Takes a key out of a table.
    pub(crate) fn unset(mut self, table: &'static str, key: &str) -> Setup {
        self.tables.entry(table).or_default().remove(key);
        self
    }

    /// Listens there instead; `{dir}` may stand in it.
    pub(crate) fn listen(mut self, addresses: &[&str]) -> Setup {
        self.listen = addresses.iter().map(|&address| address.into()).collect();
        self
    }

    /// Adds a line `key = value` to every `[[listen]]`.
    pub(crate) fn listeners(mut self, line: &str) -> Setup {
        self.listener_lines += &format!("{line}\n");
        self
    }

    /// The most descriptors that a process of the server may hold.
    pub(crate) fn descriptors(mut self, most: u64) -> Setup {
        self.descriptors = Some(most);
        self
    }

    /// Serves this instead, written as TOML.
    pub(crate) fn sites(mut self, toml: &str) -> Setup {
        self.sites = toml.into();
        self
    }

    /// Serves this too: routes of the standard site.
    pub(crate) fn routes(mut self, toml: &str) -> Setup {
        self.sites += toml;
        self
    }

    /// A file to be served by the standard site.
    pub(crate) fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Setup {
        self.directory.write(&format!("site/{name}"), bytes);
        self
    }

    /// A variable of the server's environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The test's directory.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The configuration as a file's text.
    pub(crate) fn toml(&self) -> String {
        let mut text = String::new();
        for (table, lines) in &self.tables {
            text += &format!("[{table}]\n");
            lines.values().for_each(|line| text += &format!("{line}\n"));
        }
        for address in &self.listen {
            text += &format!("[[listen]]\naddress = \"{address}\"\n{}", self.listener_lines);
        }
        text += &self.sites;
        text.replace("{dir}", self.directory.text())
    }

    /// Writes the configuration and leaves running it to the caller.
    pub(crate) fn write(self) -> Server {
        let config = self.directory.write("p.toml", self.toml());
        let Setup { directory, environment, workers, descriptors, program, .. } = self;
        Server::new(directory, (program, config), environment, workers, descriptors)
    }

    /// Runs it in the foreground and waits until every slot serves.
    #[track_caller]
    pub(crate) fn start(self) -> Server {
        let server = self.write();
        server.run_foreground();
        server.wait_serving();
        server
    }

    /// Starts it as a daemon; the error log goes to a file.
    #[track_caller]
    pub(crate) fn start_daemon(self) -> Server {
        let server = self.set("log", "error = \"{dir}/error.log\"").write();
        server.cli("start", &[]).assert_code(0);
        server.master();
        server
    }
}
