//! The command line as typed, and what each command does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use phalanx_shared::config::{self, Config, Count, Known, ListenAddress, Model, Poller, Problems};
use phalanx_worker::MODELS;
use phalanx_worker::app::Application;

use crate::chaos;
use crate::control::{Answer, Command, Deed, client};
use crate::start::Wanted;
use crate::status::{Draining, Status};
use crate::verdict::{self, Report};
use crate::{start, status};

const SERVE_HINT: &str = "  hint: name the directory that the files are in";

/// Exit codes: done, failed, bad usage or configuration, not running.
pub(crate) const DONE: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const BAD_USAGE: u8 = 2;
pub(crate) const NOT_RUNNING: u8 = 3;
/// The service has ended itself: see `workers.give_up_after`.
pub(crate) const GAVE_UP: u8 = 4;

/// A pre-fork HTTP server: kill any worker, and no client notices.
#[derive(Parser)]
#[command(name = "phalanx", version, about, disable_help_subcommand = true)]
struct Typed {
    #[command(subcommand)]
    action: Action,
}

/// A server that is part of a program; without a command it runs in the foreground.
#[derive(Parser)]
#[command(disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
struct TypedToProgram {
    #[command(subcommand)]
    action: Option<ProgramAction>,
    #[command(flatten)]
    ways: Ways,
}

#[derive(Subcommand)]
enum Action {
    /// Serve static files from a directory, in the foreground, without a configuration file
    Serve {
        /// The directory to serve
        #[arg(default_value = ".")]
        dir: PathBuf,
        #[command(flatten)]
        manner: Manner,
    },
    /// Run in the foreground
    Run(ConfigFile),
    /// Start as a daemon; returns when every worker is ready, or with the reason why not
    Start(ConfigFile),
    #[command(flatten)]
    Any(AnyAction),
}

#[derive(Subcommand)]
enum ProgramAction {
    /// Run in the foreground
    Run(Ways),
    /// Start as a daemon; returns when every worker is ready, or with the reason why not
    Start(Ways),
    #[command(flatten)]
    Any(AnyAction),
}

/// Where a program's configuration comes from.
#[derive(Args, Default)]
struct Ways {
    /// The configuration file; without it the program's own configuration
    #[arg(short, long = "config", value_name = "FILE", conflicts_with_all = ["listen", "workers", "model", "poller", "control"])]
    config: Option<PathBuf>,
    #[command(flatten)]
    manner: Manner,
}

/// What may be said of a service without a configuration file.
#[derive(Args, Default)]
struct Manner {
    /// Where to listen, for instance 127.0.0.1:8080, [::1]:8080 or unix:/run/site.sock; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = config::parse_listen)]
    listen: Vec<ListenAddress>,
    /// How many workers; as many as there are processors when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// The concurrency model of the workers
    #[arg(long, value_name = "M", value_parser = model_names())]
    model: Option<String>,
    /// How the workers wait for events
    #[arg(long, value_name = "P", value_parser = poller_names())]
    poller: Option<String>,
    /// A control socket, so that `status --control SOCKET` works
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// What is the same for every program.
#[derive(Subcommand)]
enum AnyAction {
    /// Validate a configuration file; binds nothing
    Check(ConfigFile),
    /// Stop gracefully: end what is in flight, then exit
    Stop {
        #[command(flatten)]
        service: Service,
        /// Do not wait for what is in flight
        #[arg(long)]
        fast: bool,
    },
    /// Take up the changed configuration without losing a connection
    Reload {
        #[command(flatten)]
        service: Service,
        /// Only tell what it would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Go on as another program, without losing a connection: a new version of this one
    Upgrade {
        /// The program; without it the file that the service was started from
        #[arg(value_name = "PATH")]
        program: Option<PathBuf>,
        #[command(flatten)]
        service: Service,
    },
    /// Replace workers, one after the other, without losing a connection
    Recycle {
        /// The slot whose worker is replaced; without it each
        #[arg(value_name = "SLOT")]
        slot: Option<u32>,
        #[command(flatten)]
        service: Service,
    },
    /// Change the number of workers
    Scale {
        /// How many workers there are to be
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
        count: u16,
        #[command(flatten)]
        service: Service,
    },
    /// Break workers on purpose and tell what came of it; needs workers.allow_faults
    Chaos {
        /// What is done
        #[arg(value_name = "DEED")]
        deed: Deed,
        #[command(flatten)]
        service: Service,
        /// Whose worker; without it each in turn
        #[arg(long)]
        slot: Option<u32>,
        /// How often, one after the other
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
    },
    /// Run requests again that are answered 503 because they killed workers
    Pardon {
        /// Those of this path; without it all
        #[arg(value_name = "PATH")]
        path: Option<String>,
        #[command(flatten)]
        service: Service,
    },
    /// Tell everything that happens from now on, a JSON object a line, until the service has gone
    Events(Service),
    /// Tell which workers only end what they have, and whom they wait for
    Draining {
        #[command(flatten)]
        service: Service,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Tell which workers died, of what, and which request they were at
    Crashes {
        /// How many, the latest first
        #[arg(value_name = "N", default_value_t = 10, conflicts_with = "json")]
        count: usize,
        #[command(flatten)]
        service: Service,
        /// All that are remembered, for programs
        #[arg(long)]
        json: bool,
    },
    /// Tell how the service is
    Status {
        #[command(flatten)]
        service: Service,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

fn model_names() -> PossibleValuesParser {
    PossibleValuesParser::new(MODELS.iter().map(|model| model.name))
}

fn poller_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Poller::ALL.iter().map(|poller| poller.name()))
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
#[group(multiple = false)]
struct Service {
    /// The configuration file that the service runs from
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The service's control socket
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// What the command line is about: a program, and what it brings.
pub(crate) struct Program {
    pub(crate) application: Application,
    /// Its configuration where it is given no file; none: it is the bare server, which brings nothing.
    pub(crate) own: Option<OwnConfig>,
}

/// Makes a configuration, listening where it is told to or else where it likes.
pub(crate) type OwnConfig = Box<dyn Fn(Vec<ListenAddress>, Known<'_>) -> Result<Config, String>>;

/// Runs the command line of this process. Must be called before any thread is started.
pub fn main() -> ExitCode {
    let program = Program { application: Application::new(), own: None };
    ExitCode::from(match Typed::try_parse() {
        Ok(Typed { action: Action::Serve { dir, manner } }) => program.serve(&dir, manner),
        Ok(Typed { action: Action::Run(file) }) => program.begin_from(&file.config, false),
        Ok(Typed { action: Action::Start(file) }) => program.begin_from(&file.config, true),
        Ok(Typed { action: Action::Any(action) }) => program.run(action),
        Err(error) => tell_usage(&error),
    })
}

/// The same for a program that has something of its own to serve.
pub(crate) fn main_of(program: &Program) -> ExitCode {
    let name = std::env::current_exe().ok();
    let name = name.as_deref().and_then(Path::file_name).map_or_else(|| "server".into(), |name| name.to_string_lossy());
    let command = TypedToProgram::command().name(name.into_owned());
    let typed = command.try_get_matches().and_then(|matches| TypedToProgram::from_arg_matches(&matches));
    ExitCode::from(match typed {
        Ok(TypedToProgram { action: None, ways }) => program.begin(ways, false),
        Ok(TypedToProgram { action: Some(ProgramAction::Run(ways)), .. }) => program.begin(ways, false),
        Ok(TypedToProgram { action: Some(ProgramAction::Start(ways)), .. }) => program.begin(ways, true),
        Ok(TypedToProgram { action: Some(ProgramAction::Any(action)), .. }) => program.run(action),
        Err(error) => tell_usage(&error),
    })
}

/// Runs a program's service in the foreground as it says itself.
pub(crate) fn serve_own(program: &Program) -> ExitCode {
    ExitCode::from(program.begin(Ways::default(), false))
}

fn tell_usage(error: &clap::Error) -> u8 {
    let _unprintable = error.print();
    if error.use_stderr() { BAD_USAGE } else { DONE }
}

impl Manner {
    /// Puts what was typed into a configuration. An error says what cannot be, and what else there is.
    fn apply(self, config: &mut Config, known: Known<'_>) -> Result<(), String> {
        config.workers.count = self.workers.map_or(config.workers.count, Count::Fixed);
        config.workers.model = self.model.map_or_else(|| config.workers.model.clone(), Model);
        if let Some(control) = self.control {
            config.master.control_socket = Some(std::path::absolute(control).map_err(|error| error.to_string())?);
        }
        if let Some(poller) = self.poller.and_then(|name| Poller::ALL.iter().find(|poller| poller.name() == name)) {
            config.workers.poller = *poller;
        }
        config::check_workers(&config.workers, known)
    }
}

impl Program {
    fn run(&self, action: AnyAction) -> u8 {
        match action {
            AnyAction::Check(file) => match self.load(&file.config) {
                Ok(_) => {
                    say(&format!("{}: the configuration is good", file.config.display()));
                    DONE
                }
                Err(problems) => complain(BAD_USAGE, &problems.to_string()),
            },
            AnyAction::Stop { service, fast } => self.ask(&service, &Command::Stop { fast }),
            AnyAction::Reload { service, dry_run } => self.ask(&service, &Command::Reload { dry_run }),
            AnyAction::Upgrade { program, service } => match program.map(std::path::absolute).transpose() {
                Ok(program) => self.ask(&service, &Command::Upgrade { program }),
                Err(error) => complain(BAD_USAGE, &format!("the program: {error}")),
            },
            AnyAction::Recycle { slot, service } => self.ask(&service, &Command::Recycle { slot }),
            AnyAction::Scale { count, service } => self.ask(&service, &Command::Scale { count: count.into() }),
            AnyAction::Chaos { deed, service, slot, count } => {
                let ask = |command: &Command| self.answer(&service, command);
                chaos::run(deed, slot, count, &ask).unwrap_or_else(|code| code)
            }
            AnyAction::Events(service) => self.tell_events(&service),
            AnyAction::Draining { service, json } => self.tell_draining(&service, json),
            AnyAction::Pardon { path, service } => self.ask(&service, &Command::Pardon { path }),
            AnyAction::Status { service, json } => self.tell_status(&service, json),
            AnyAction::Crashes { count, service, json } => self.tell_crashes(&service, (!json).then_some(count)),
        }
    }

    fn serve(&self, dir: &Path, mut manner: Manner) -> u8 {
        let root = match dir.canonicalize() {
            Ok(root) if root.is_dir() => root,
            Ok(root) => {
                return complain(BAD_USAGE, &format!("serve {}: not a directory\n{SERVE_HINT}", root.display()));
            }
            Err(error) => return complain(BAD_USAGE, &format!("serve {}: {error}\n{SERVE_HINT}", dir.display())),
        };
        let mut listen = std::mem::take(&mut manner.listen);
        if listen.is_empty() {
            listen.push(ListenAddress::Tcp(config::HERE.into()));
        }
        let mut config = config::serve_defaults(root, listen);
        let config = manner.apply(&mut config, Known { models: MODELS, apps: &[] }).map(|()| config);
        self.start(config.map_err(|why| format!("serve: {why}")), None, false)
    }

    /// Begins as a file says or, without one, as the program does.
    fn begin(&self, ways: Ways, daemon: bool) -> u8 {
        let Ways { config, mut manner } = ways;
        if let Some(file) = config {
            return self.begin_from(&file, daemon);
        }
        let config = self.own_config(std::mem::take(&mut manner.listen));
        let apps = self.application.known();
        let known = Known { models: MODELS, apps: &apps };
        let config = config.and_then(|mut config| manner.apply(&mut config, known).map(|()| config));
        self.start(config, None, daemon)
    }

    fn begin_from(&self, file: &Path, daemon: bool) -> u8 {
        let config = self.load(file).map_err(|problems| problems.to_string());
        self.start(config, Some(file), daemon)
    }

    fn start(&self, config: Result<Config, String>, file: Option<&Path>, daemon: bool) -> u8 {
        start::begin(Wanted { config, file, daemon, application: self.application.clone() })
    }

    fn load(&self, file: &Path) -> Result<Config, Problems> {
        let apps = self.application.known();
        config::load(file, Known { models: MODELS, apps: &apps })
    }

    fn own_config(&self, listen: Vec<ListenAddress>) -> Result<Config, String> {
        let apps = self.application.known();
        let known = Known { models: MODELS, apps: &apps };
        self.own.as_ref().map_or_else(|| Err("there is no configuration".to_owned()), |own| own(listen, known))
    }

    /// The control socket that `service` means. If its configuration file is broken, what can be read of that decides: a running
    /// service can be asked all the same.
    fn socket_of(&self, service: &Service) -> Result<PathBuf, String> {
        if let Some(socket) = &service.control {
            return Ok(socket.clone());
        }
        if let Some(file) = &service.config {
            let socket = self.load(file).map(|config| config.master.control_socket.unwrap_or_default());
            return socket.or_else(|problems| config::control_socket_of(file).ok_or_else(|| problems.to_string()));
        }
        let own = self.own.as_ref().and_then(|_| self.own_config(Vec::new()).ok());
        own.and_then(|config| config.master.control_socket).ok_or_else(|| {
            "which service?\n  hint: -c FILE, the configuration that it runs from, or --control SOCKET".to_owned()
        })
    }

    /// What the service answers, if it does as it is asked; else the reason is told, and the exit code comes back.
    fn answer(&self, service: &Service, command: &Command) -> Result<Answer, u8> {
        let socket = self.socket_of(service).map_err(|text| complain(BAD_USAGE, &text))?;
        match client::ask(&socket, command) {
            Ok(answer) if answer.ok => Ok(answer),
            Ok(answer) => Err(complain(answer.code, &answer.text)),
            Err(error) => Err(complain(error.exit_code(), &error.to_string())),
        }
    }

    /// Asks, and prints what `show` makes of the answer.
    fn tell(&self, service: &Service, command: &Command, show: impl FnOnce(Answer) -> Option<String>) -> u8 {
        match self.answer(service, command) {
            Ok(answer) => match show(answer) {
                Some(text) => {
                    say(&text);
                    DONE
                }
                None => complain(FAILED, "the service did not answer what it was asked: it is of another version"),
            },
            Err(code) => code,
        }
    }

    fn ask(&self, service: &Service, command: &Command) -> u8 {
        self.tell(service, command, |answer| Some(answer.text))
    }

    fn tell_status(&self, service: &Service, json: bool) -> u8 {
        let show = |status: Status| if json { status::as_json(&status) } else { status::as_table(&status) };
        self.tell(service, &Command::Status, |answer| answer.status.map(show))
    }

    fn tell_draining(&self, service: &Service, json: bool) -> u8 {
        let show = |draining: Vec<Draining>| {
            if json { status::as_json(&draining) } else { status::draining_as_text(&draining) }
        };
        self.tell(service, &Command::Draining, |answer| answer.draining.map(show))
    }

    /// Without `count`: all, as JSON.
    fn tell_crashes(&self, service: &Service, count: Option<usize>) -> u8 {
        self.tell(service, &Command::Crashes, |Answer { crashes, crash_dir, .. }| {
            let shown = crashes?.into_iter().take(count.unwrap_or(usize::MAX));
            let whole: Vec<Report> = shown.map(|report| report.with_names(crash_dir.as_deref())).collect();
            Some(if count.is_none() { status::as_json(&whole) } else { verdict::as_text(&whole) })
        })
    }

    fn tell_events(&self, service: &Service) -> u8 {
        let socket = match self.socket_of(service) {
            Ok(socket) => socket,
            Err(text) => return complain(BAD_USAGE, &text),
        };
        match client::listen(&socket, &mut std::io::stdout()) {
            Ok(()) => DONE,
            Err(error) => complain(error.exit_code(), &error.to_string()),
        }
    }
}

/// Prints to standard output; a reader that has gone is no error.
#[allow(clippy::print_stdout)]
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    let _reader_gone = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Prints to standard error and returns `code`.
pub(crate) fn complain(code: u8, text: &str) -> u8 {
    use std::io::Write as _;
    let _reader_gone = writeln!(std::io::stderr(), "phalanx: {}", text.trim_end());
    code
}
