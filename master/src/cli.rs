//! The command line as typed, and what each command does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use phalanx_shared::config::{self, Config, Count, ListenAddress, Model, Poller, Problems};
use phalanx_worker::MODELS;

use crate::chaos;
use crate::control::{Answer, Command, Deed, client};
use crate::start::Wanted;
use crate::status::{Draining, Status};
use crate::verdict::{self, Report};
use crate::{start, status};

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

#[derive(Subcommand)]
enum Action {
    /// Serve static files from a directory, in the foreground, without a configuration file
    Serve {
        /// The directory to serve
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Where to listen, for instance 127.0.0.1:8080, [::1]:8080 or unix:/run/site.sock; may be repeated
        #[arg(long, value_name = "ADDR", value_parser = config::parse_listen)]
        listen: Vec<ListenAddress>,
        /// How many workers; as many as there are processors when not given
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
        workers: Option<u16>,
        /// The concurrency model of the workers
        #[arg(long, value_name = "M", value_parser = model_names(), default_value = MODELS[0].name)]
        model: String,
        /// How the workers wait for events
        #[arg(long, value_name = "P", value_parser = poller_names(), default_value = Poller::ALL[0].name())]
        poller: String,
        /// A control socket, so that `phalanx status --control SOCKET` works
        #[arg(long, value_name = "SOCKET")]
        control: Option<PathBuf>,
    },
    /// Run in the foreground
    Run(ConfigFile),
    /// Validate a configuration file; binds nothing
    Check(ConfigFile),
    /// Start as a daemon; returns when every worker is ready, or with the reason why not
    Start(ConfigFile),
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

/// How the workers of a model are to wait, by its name. An error says what else there is.
fn poller_for(model: &str, name: &str) -> Result<Poller, String> {
    let able = MODELS.iter().find(|known| known.name == model).map_or(Poller::ALL, |model| model.pollers);
    able.iter().copied().find(|poller| poller.name() == name).ok_or_else(|| {
        let able: Vec<&str> = able.iter().map(|poller| poller.name()).collect();
        format!("serve: the model {model} does not wait by {name}\n  hint: --poller {}", able.join(" or "))
    })
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Service {
    /// The configuration file that the service runs from
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The service's control socket
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
}

/// Runs the command line of this process. Must be called before any thread is started.
pub fn main() -> ExitCode {
    let typed = match Typed::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            let _unprintable = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_USAGE } else { DONE });
        }
    };
    ExitCode::from(run(typed.action))
}

fn run(action: Action) -> u8 {
    match action {
        Action::Serve { dir, listen, workers, model, poller, control } => {
            let poller = match poller_for(&model, &poller) {
                Ok(poller) => poller,
                Err(why) => return complain(BAD_USAGE, &why),
            };
            let how = |config: &mut Config| {
                config.workers.count = workers.map_or(Count::Auto, Count::Fixed);
                config.workers.model = Model(model);
                config.workers.poller = poller;
            };
            serve(dir, listen, control, how)
        }
        Action::Run(file) => begin(&file.config, false),
        Action::Start(file) => begin(&file.config, true),
        Action::Check(file) => match config::load(&file.config, MODELS) {
            Ok(_) => {
                say(&format!("{}: the configuration is good", file.config.display()));
                DONE
            }
            Err(problems) => complain(BAD_USAGE, &problems.to_string()),
        },
        Action::Stop { service, fast } => ask(&service, &Command::Stop { fast }),
        Action::Reload { service, dry_run } => ask(&service, &Command::Reload { dry_run }),
        Action::Upgrade { program, service } => match program.map(std::path::absolute).transpose() {
            Ok(program) => ask(&service, &Command::Upgrade { program }),
            Err(error) => complain(BAD_USAGE, &format!("the program: {error}")),
        },
        Action::Recycle { slot, service } => ask(&service, &Command::Recycle { slot }),
        Action::Scale { count, service } => ask(&service, &Command::Scale { count: count.into() }),
        Action::Chaos { deed, service, slot, count } => {
            let ask = |command: &Command| answer(&service, command);
            chaos::run(deed, slot, count, &ask).unwrap_or_else(|code| code)
        }
        Action::Events(service) => tell_events(&service),
        Action::Draining { service, json } => tell_draining(&service, json),
        Action::Pardon { path, service } => ask(&service, &Command::Pardon { path }),
        Action::Status { service, json } => tell_status(&service, json),
        Action::Crashes { count, service, json } => tell_crashes(&service, (!json).then_some(count)),
    }
}

fn serve(dir: PathBuf, listen: Vec<ListenAddress>, control: Option<PathBuf>, how: impl FnOnce(&mut Config)) -> u8 {
    let root = match dir.canonicalize() {
        Ok(root) if root.is_dir() => root,
        Ok(root) => return complain(BAD_USAGE, &format!("{} is not a directory", root.display())),
        Err(error) => return complain(BAD_USAGE, &format!("serve {}: {error}", dir.display())),
    };
    let listen = if listen.is_empty() { vec![ListenAddress::Tcp(([127, 0, 0, 1], 8080).into())] } else { listen };
    let mut config = config::serve_defaults(root, listen);
    how(&mut config);
    config.master.control_socket = control.and_then(|path| std::path::absolute(path).ok());
    start::begin(Wanted { config: Ok(config), file: None, daemon: false })
}

fn begin(file: &Path, daemon: bool) -> u8 {
    let config = config::load(file, MODELS).map_err(|problems| problems.to_string());
    start::begin(Wanted { config, file: Some(file), daemon })
}

/// The control socket that `service` means.
fn socket_of(service: &Service) -> Result<PathBuf, Problems> {
    if let Some(socket) = &service.control {
        return Ok(socket.clone());
    }
    let file = service.config.clone().unwrap_or_default();
    let config = config::load(&file, MODELS)?;
    Ok(config.master.control_socket.unwrap_or_default())
}

/// The control socket of a configuration file that may be broken: a running service can be asked all the same.
fn lenient_socket_of(service: &Service) -> Result<PathBuf, String> {
    socket_of(service).or_else(|problems| {
        let file = service.config.clone().unwrap_or_default();
        config::control_socket_of(&file).ok_or_else(|| problems.to_string())
    })
}

/// What the service answers, if it does as it is asked; else the reason is told, and the exit code comes back.
fn answer(service: &Service, command: &Command) -> Result<Answer, u8> {
    let socket = lenient_socket_of(service).map_err(|text| complain(BAD_USAGE, &text))?;
    match client::ask(&socket, command) {
        Ok(answer) if answer.ok => Ok(answer),
        Ok(answer) => Err(complain(answer.code, &answer.text)),
        Err(error) => Err(complain(error.exit_code(), &error.to_string())),
    }
}

/// Asks, and prints what `show` makes of the answer.
fn tell(service: &Service, command: &Command, show: impl FnOnce(Answer) -> Option<String>) -> u8 {
    match answer(service, command) {
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

fn ask(service: &Service, command: &Command) -> u8 {
    tell(service, command, |answer| Some(answer.text))
}

fn tell_status(service: &Service, json: bool) -> u8 {
    let show = |status: Status| if json { status::as_json(&status) } else { status::as_table(&status) };
    tell(service, &Command::Status, |answer| answer.status.map(show))
}

fn tell_draining(service: &Service, json: bool) -> u8 {
    let show =
        |draining: Vec<Draining>| if json { status::as_json(&draining) } else { status::draining_as_text(&draining) };
    tell(service, &Command::Draining, |answer| answer.draining.map(show))
}

/// Without `count`: all, as JSON.
fn tell_crashes(service: &Service, count: Option<usize>) -> u8 {
    tell(service, &Command::Crashes, |Answer { crashes, crash_dir, .. }| {
        let shown = crashes?.into_iter().take(count.unwrap_or(usize::MAX));
        let whole: Vec<Report> = shown.map(|report| report.with_names(crash_dir.as_deref())).collect();
        Some(if count.is_none() { status::as_json(&whole) } else { verdict::as_text(&whole) })
    })
}

fn tell_events(service: &Service) -> u8 {
    let socket = match lenient_socket_of(service) {
        Ok(socket) => socket,
        Err(text) => return complain(BAD_USAGE, &text),
    };
    match client::listen(&socket, &mut std::io::stdout()) {
        Ok(()) => DONE,
        Err(error) => complain(error.exit_code(), &error.to_string()),
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
