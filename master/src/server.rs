//! The face of the library: a program's handlers, supervised and isolated from each other's crashes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use phalanx_shared::config::{
    self, Action, Config, Count, FilesAction, Known, ListenAddress, MOST_LISTENERS, Model, Route,
};
use phalanx_shared::field::is_plain_value;
use phalanx_worker::app::{App, Application, Crash, HookError, WorkerInfo};

use crate::cli::{self, Program};

/// The name that an app has if it is the only one.
const MAIN: &str = "main";

/// A server with handlers of the program's own.
///
/// [`Server::main`] is the program's command line: `run`, `start`, `stop`, `reload`, `upgrade`, `status` and the others that
/// `phalanx` itself has. Without a command it runs in the foreground.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use phalanx::{Request, Response, Server};
///
/// fn main() -> ExitCode {
///     Server::new(|request: &Request| Response::text(format!("Hello from {}\n", request.path()))).main()
/// }
/// ```
pub struct Server {
    builder: Builder,
}

/// A server that is told by code what a configuration file would say.
///
/// What is said here is the configuration of a program that is given no file. Where it is given one (`-c FILE`), the file alone is
/// the configuration, and the apps are what is left of this: its routes lead to them by `app = "NAME"`, and the first answers what
/// no route of the file is about unless some does.
#[must_use]
#[derive(Default)]
pub struct Builder {
    application: Application,
    /// What cannot be.
    problems: Vec<String>,
    settings: String,
    listen: Vec<String>,
    workers: Option<u16>,
    model: Option<String>,
    pid_file: Option<PathBuf>,
    control_socket: Option<PathBuf>,
    routes: Vec<Route>,
}

impl Server {
    /// A server that has `app` answer every request: a [`Handler`](crate::Handler), such as a closure, or
    /// [`Routes`](crate::Routes).
    pub fn new(app: impl Into<App>) -> Server {
        Server::builder().app(app).build()
    }

    /// A server that has a service of tower answer every request, such as a router of axum: see [`Tower`](crate::Tower).
    #[cfg(feature = "tower")]
    pub fn tower<S, B>(service: S) -> Server
    where
        S: tower_service::Service<http::Request<crate::Incoming>, Response = http::Response<B>>,
        S: Clone + Send + Sync + 'static,
        S::Error: Into<crate::BoxError>,
        S::Future: Send,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<crate::BoxError>,
    {
        Server::new(crate::Tower::new(service))
    }

    /// A server without anything yet.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs the program's command line, and the service if that says so. Call it before anything that starts a thread: workers are
    /// cloned, and a clone has one thread only. Where there are threads already, it says which, and fails.
    pub fn main(self) -> ExitCode {
        self.program().map_or_else(ExitCode::from, |program| cli::main_of(&program))
    }

    /// Runs the service in the foreground as the program's code says, whatever its command line is, until it is stopped. What
    /// [`Server::main`] says of threads is true here too.
    pub fn serve(self) -> ExitCode {
        self.program().map_or_else(ExitCode::from, |program| cli::serve_own(&program))
    }

    /// What the command line is about; else the exit code.
    fn program(self) -> Result<Program, u8> {
        let Builder { application, problems, .. } = &self.builder;
        if !problems.is_empty() {
            return Err(cli::complain(cli::BAD_USAGE, &problems.join("\n")));
        }
        let application = application.clone();
        let own = Box::new(move |listen, known: Known<'_>| self.builder.config(listen, known));
        Ok(Program { application, own: Some(own) })
    }
}

impl Builder {
    /// Has `app` answer what no other route is about.
    pub fn app(self, app: impl Into<App>) -> Builder {
        self.named_app(MAIN, app)
    }

    /// Adds an app under a name, for routes of a configuration file (`app = "NAME"`) and of [`Builder::app_at`] to lead to. The
    /// first of all apps answers what no other route is about, unless some route leads to an app.
    pub fn named_app(mut self, name: &str, app: impl Into<App>) -> Builder {
        let app = app.into();
        if self.application.known().iter().any(|known| known.name == name) {
            self.problems.push(format!("there are two apps called {name:?}: give one of them another name"));
        }
        self.problems.extend(app.problems().into_iter().map(|problem| format!("the app {name:?}: {problem}")));
        self.application = self.application.with(name, app);
        self
    }

    /// Listens on an address as well: `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/site.sock`. Without any: `127.0.0.1:8080`.
    pub fn listen(mut self, address: &str) -> Builder {
        self.listen.push(address.to_owned());
        self
    }

    /// How many workers there are, 1 to 1024. Without it as many as there are processors.
    pub fn workers(mut self, count: u16) -> Builder {
        self.workers = Some(count);
        self
    }

    /// The concurrency model of the workers, such as `reactor`.
    pub fn model(mut self, name: &str) -> Builder {
        self.model = Some(name.to_owned());
        self
    }

    /// The file that holds the master's process id while the service runs. Without it there is none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Builder {
        self.pid_file = Some(path.into());
        self
    }

    /// The Unix socket that `stop`, `status` and the like talk to. Without it, the service can be asked by signals only, or where
    /// `--control` names a socket.
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Builder {
        self.control_socket = Some(path.into());
        self
    }

    /// Serves the files below a directory at the paths that begin so.
    pub fn files(self, path: &str, root: impl Into<PathBuf>) -> Builder {
        let root = root.into();
        let root = std::path::absolute(&root).unwrap_or(root);
        self.at(path, Action::Files(FilesAction::new(root)))
    }

    /// Gives a fixed answer at the paths that begin so; with `= ` before it, at that path.
    pub fn respond(self, path: &str, status: u16, content_type: &str, body: &str) -> Builder {
        let effort = config::Effort::default();
        let (body, content_type) = (body.to_owned(), content_type.to_owned());
        self.at(path, Action::Respond { status, body, content_type, effort })
    }

    /// Sends clients elsewhere from the paths that begin so, with 302.
    pub fn redirect(self, path: &str, to: &str) -> Builder {
        self.at(path, Action::Redirect { to: to.to_owned(), status: 302 })
    }

    /// Has the app of a name answer at the paths that begin so.
    pub fn app_at(self, path: &str, name: &str) -> Builder {
        self.at(path, Action::App(name.to_owned()))
    }

    /// Runs in the master, before the first worker: for what all workers are to have in their memory without a copy for each, such as
    /// large tables. What it opens, and what `main` has opened before, is open in all of them; they share it, its position too. It must
    /// leave no thread behind. An error keeps the service from starting, and an upgrade from happening.
    pub fn on_start<E: Into<HookError>>(mut self, hook: impl Fn() -> Result<(), E> + Send + Sync + 'static) -> Builder {
        self.application.hooks.add_on_start(move || hook().map_err(Into::into));
        self
    }

    /// Runs in each worker before its first request, also in one that takes over from a dead one: for what a process must have for
    /// itself, such as connections to a database, threads, random seeds. Under the model `coroutine` it runs in the context of the
    /// worker's runtime, but cannot wait. An error is why the worker cannot begin.
    pub fn after_fork<E: Into<HookError>>(
        mut self,
        hook: impl Fn(&WorkerInfo) -> Result<(), E> + Send + Sync + 'static,
    ) -> Builder {
        self.application.hooks.add_after_fork(move |worker| hook(worker).map_err(Into::into));
        self
    }

    /// Runs in a worker that gets no new work any more: it is recycled, reloaded, or stopped, and ends what it has.
    pub fn on_drain(mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) -> Builder {
        self.application.hooks.add_on_drain(hook);
        self
    }

    /// Runs in a worker that leaves in good order; one that dies runs nothing.
    pub fn on_exit(mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) -> Builder {
        self.application.hooks.add_on_exit(hook);
        self
    }

    /// Runs for each death of a worker, in a process of its own that is the user of `master.user`, one death after the other, for a
    /// minute at most: whatever it does holds up neither the service nor its crash reports. Of more than 64 deaths that wait for it, and
    /// of those that it has not come to when the service stops or is upgraded, it is not told.
    pub fn on_crash(mut self, hook: impl Fn(&Crash) + Send + Sync + 'static) -> Builder {
        self.application.hooks.add_on_crash(hook);
        self
    }

    /// Runs beside the workers in a process of its own: exactly one for the whole service, however many workers there are, over their
    /// deaths, over reloads and upgrades. It is begun when all workers serve, and again when it ends, after a pause that grows to 10 s.
    /// A stop sends it SIGTERM when the workers have ended and, 2 s later, SIGKILL. An upgrade gives it 100 ms, and the new program
    /// begins its own at once. When the master dies, it is killed.
    pub fn background(mut self, name: &str, run: impl Fn() + Send + Sync + 'static) -> Builder {
        self.application.hooks.add_background(name, run);
        self
    }

    /// Does something again and again, such as `"5m"`: as [`Builder::background`], in a process of its own. The first time is one
    /// interval after that has begun: after the start, an upgrade, or a death of its own. What is to be done once a day, whatever
    /// happens, is better asked for more often, and looks itself when it was done last.
    pub fn every(mut self, interval: &str, run: impl Fn() + Send + Sync + 'static) -> Builder {
        match config::parse_duration(interval) {
            Ok(interval) if !interval.is_zero() => self.application.hooks.add_every(interval, run),
            Ok(_) => self.problems.push("every \"0s\" would be without end: write \"1s\" or more".to_owned()),
            Err(why) => self.problems.push(format!("every {interval:?}: {why}")),
        }
        self
    }

    /// Tables of a configuration file, for all that has no method here.
    ///
    /// ```
    /// # let builder = phalanx::Server::builder();
    /// builder.settings("[workers]\nmax_memory = \"512MiB\"\nrequest_timeout = \"10s\"");
    /// ```
    pub fn settings(mut self, tables: &str) -> Builder {
        self.settings += tables;
        self.settings.push('\n');
        self
    }

    /// The server.
    pub fn build(self) -> Server {
        Server { builder: self }
    }

    fn at(mut self, path: &str, action: Action) -> Builder {
        match config::parse_route_path(path) {
            Ok(path) if self.routes.iter().any(|route| route.path == path) => {
                self.problems.push(format!("path {:?} is routed twice: change one of the two", path.to_string()));
            }
            Ok(path) => self.routes.push(Route::new(path, action)),
            Err(why) => self.problems.push(why),
        }
        self
    }

    /// The configuration, listening on `typed` and nowhere else, if that is anything.
    fn config(&self, typed: Vec<ListenAddress>, known: Known<'_>) -> Result<Config, String> {
        let origin = Path::new("the program's settings");
        let mut config = config::settings(&self.settings, origin, known).map_err(|problems| problems.to_string())?;
        let written = self.listen.iter().map(|address| config::parse_listen(address));
        let is_typed = !typed.is_empty();
        let mut listen = if is_typed { typed } else { written.collect::<Result<_, _>>()? };
        if is_typed {
            config.listen.clear();
        }
        if listen.is_empty() && config.listen.is_empty() {
            listen.push(ListenAddress::Tcp(config::HERE.into()));
        }
        let count = listen.len() + config.listen.len();
        if count > MOST_LISTENERS {
            return Err(format!("{count} addresses to listen on; {MOST_LISTENERS} are possible"));
        }
        let workers = &mut config.workers;
        workers.count = match self.workers {
            Some(count) if !(1..=1024).contains(&count) => return Err(format!("{count} workers: from 1 to 1024")),
            Some(count) => Count::Fixed(count),
            None => workers.count,
        };
        if let Some(name) = &self.model {
            if !known.models.iter().any(|model| model.name == name) {
                let models: Vec<&str> = known.models.iter().map(|model| model.name).collect();
                return Err(format!("there is no model {name:?}\n  hint: {}", models.join(", ")));
            }
            workers.model = Model(name.clone());
        }
        config::check_workers(workers, known)?;
        let absolute =
            |path: &PathBuf| std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()));
        if let Some(path) = &self.pid_file {
            config.master.pid_file = Some(absolute(path)?);
        }
        if let Some(path) = &self.control_socket {
            config.master.control_socket = Some(absolute(path)?);
        }
        for route in &self.routes {
            check(route, known)?;
        }
        Ok(config::complete_settings(config, listen, self.routes.clone(), known))
    }
}

/// What a configuration file would be told.
fn check(route: &Route, known: Known<'_>) -> Result<(), String> {
    let path = &route.path;
    match &route.action {
        Action::Files(files) if !files.root.is_dir() => {
            Err(format!("files at {path}: {} is not a directory", files.root.display()))
        }
        Action::Respond { status, .. } if !(200..=599).contains(status) => {
            Err(format!("respond at {path}: the status {status}: from 200 to 599"))
        }
        Action::Respond { content_type: text, .. } | Action::Redirect { to: text, .. } if !is_plain_value(text) => {
            Err(format!("the route {path}: {text:?} cannot stand in a header field"))
        }
        Action::App(name) if !known.apps.iter().any(|app| app.name == *name) => {
            Err(format!("the route {path}: there is no app {name:?} in this program"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use phalanx_shared::config::RoutePath;

    use super::*;

    fn hello(_: &phalanx_worker::app::Request<'_>) -> phalanx_worker::app::Response {
        phalanx_worker::app::Response::text("hello")
    }

    fn config_of(builder: &Builder) -> Result<Config, String> {
        let apps = builder.application.known();
        builder.config(Vec::new(), Known { models: phalanx_worker::MODELS, apps: &apps })
    }

    #[test]
    fn an_app_answers_what_no_other_route_is_about() {
        let builder = Server::builder().app(hello).respond("= /ping", 200, "text/plain", "pong").files("/etc/", "/etc");
        let config = config_of(&builder).unwrap();
        assert_eq!(config.listen.len(), 1);
        assert_eq!((config.master.pid_file.is_none(), config.master.control_socket.is_none()), (true, true));
        let routes: Vec<String> = config.sites[0].routes.iter().map(|route| route.path.to_string()).collect();
        assert_eq!(routes, ["= /ping", "/etc/", "/"]);
        assert_eq!(config.sites[0].routes[2].action, Action::App(MAIN.to_owned()));
        assert_eq!(config.sites[0].routes[0].path, RoutePath::Exact("/ping".to_owned()));
    }

    #[test]
    fn what_is_typed_is_listened_on_and_nothing_else() {
        let builder =
            Server::builder().app(hello).listen("127.0.0.1:1").settings("[[listen]]\naddress = \"127.0.0.1:2\"");
        assert_eq!(config_of(&builder).unwrap().listen.len(), 2);
        let typed = vec![config::parse_listen("127.0.0.1:3").unwrap()];
        let config = builder.config(typed.clone(), Known { models: phalanx_worker::MODELS, apps: &[] }).unwrap();
        let addresses: Vec<ListenAddress> = config.listen.into_iter().map(|listen| listen.address).collect();
        assert_eq!(addresses, typed);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let poller = "[workers]\npoller = \"poll\"";
        let at = |builder: Builder| config_of(&builder).unwrap_err();
        assert!(at(Server::builder().app(hello).model("fiber")).contains("no model \"fiber\""));
        let unable = at(Server::builder().app(hello).model("coroutine").settings(poller));
        assert!(unable.contains("the model coroutine does not wait by poll"), "{unable}");
        assert!(at(Server::builder().app(hello).listen("nowhere")).contains("nowhere"));
        assert!(at(Server::builder().app(hello).workers(0)).contains("0 workers"));
        assert!(at(Server::builder().app(hello).files("/", "/no/such")).contains("/no/such is not a directory"));
        assert!(at(Server::builder().app(hello).app_at("/x", "other")).contains("no app \"other\""));
        assert!(at(Server::builder().app(hello).settings("[workers]\nmax_memry = 1")).contains("max_memory"));
        let twice = Server::builder().app(hello).app(hello).redirect("x", "/").redirect("/y", "/").redirect("/y", "/");
        assert_eq!(twice.problems.len(), 3, "{:?}", twice.problems);
    }
}
