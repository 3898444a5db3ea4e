//! A Phalanx of a test's own: its processes, what it says of itself, and its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::command::{Directory, Outcome, run, with_descriptors};
use super::processes::{self, Process};
use super::status::Status;
use super::{Client, SOON, pause, wait_until};

/// A Phalanx that a test runs, or could run. Dropped, all its processes are killed; in a panic, all about it is printed.
pub(crate) struct Server {
    directory: Directory,
    program: PathBuf,
    config: PathBuf,
    environment: Vec<(String, String)>,
    workers: usize,
    /// The most descriptors that its processes may hold, if not as many as the test's.
    descriptors: Option<u64>,
    child: Mutex<Option<Child>>,
    /// Every process ever seen of it: pid and beginning.
    seen: Mutex<BTreeMap<i32, u64>>,
}

impl Server {
    /// One that does not run yet.
    pub(crate) fn new(
        directory: Directory,
        (program, config): (PathBuf, PathBuf),
        environment: Vec<(String, String)>,
        workers: usize,
        descriptors: Option<u64>,
    ) -> Server {
        let (child, seen) = (Mutex::new(None), Mutex::default());
        Server { directory, program, config, environment, workers, descriptors, child, seen }
    }

    /// Starts `phalanx run` and does not wait for anything.
    pub(crate) fn run_foreground(&self) {
        let output = File::options().create(true).append(true).open(self.directory.path("server.log")).unwrap();
        let mut command = match self.descriptors {
            Some(most) => with_descriptors(&self.program, most),
            None => Command::new(&self.program),
        };
        command.args(["run", "-c"]).arg(&self.config).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
    }

    /// Waits until there is a slot for every worker configured and each is serving.
    #[track_caller]
    pub(crate) fn wait_serving(&self) {
        self.wait_slots(self.workers);
    }

    /// Waits until there are this many slots and each is serving.
    #[track_caller]
    pub(crate) fn wait_slots(&self, count: usize) {
        let start = Instant::now();
        loop {
            if let Some(child) = self.child.lock().unwrap().as_mut()
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("the server ended with {status}\n{}", self.log());
            }
            let outcome = self.cli("status", &["--json"]);
            if outcome.status.code() == Some(0) {
                let status = Status::parse(&outcome);
                let slots = status.slots();
                if slots.len() == count && slots.iter().all(|slot| slot["state"] == "serving") {
                    return;
                }
            }
            assert!(start.elapsed() < SOON, "not {count} serving slots within {SOON:?}; the last status:\n{outcome}");
            pause();
        }
    }

    /// `phalanx WORD -c FILE MORE…`, run to its end.
    #[track_caller]
    pub(crate) fn cli(&self, word: &str, more: &[&str]) -> Outcome {
        let environment = self.environment.iter().cloned();
        let mut command = Command::new(&self.program);
        run(&self.directory, command.arg(word).arg("-c").arg(&self.config).args(more).envs(environment))
    }

    /// `status --json`; panics when the server does not run.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        Status::parse(self.cli("status", &["--json"]).assert_code(0))
    }

    /// The first address it listens on.
    #[track_caller]
    pub(crate) fn address(&self) -> String {
        self.status().listeners().first().expect("a listener in the status").clone()
    }

    /// A new strict connection to the first address.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.address())
    }

    /// The master's pid.
    #[track_caller]
    pub(crate) fn master(&self) -> i32 {
        let child = self.child.lock().unwrap().as_ref().map(|child| child.id() as i32);
        let pid = child.unwrap_or_else(|| self.status().master());
        self.remember(Process::read(pid).into_iter().collect());
        pid
    }

    /// Keepers and workers, the living ones.
    #[track_caller]
    pub(crate) fn children(&self) -> Vec<Process> {
        let living: Vec<Process> = processes::children(self.master()).into_iter().filter(Process::lives).collect();
        self.remember(living.clone());
        living
    }

    /// The living workers, by title.
    #[track_caller]
    pub(crate) fn workers(&self) -> Vec<Process> {
        self.children().into_iter().filter(|process| process.worker().is_some()).collect()
    }

    /// The only worker of a slot; panics when there are none or two.
    #[track_caller]
    pub(crate) fn worker(&self, slot: u32) -> i32 {
        let workers = self.workers();
        let of_slot: Vec<_> = workers.iter().filter(|p| p.worker().is_some_and(|(of, _)| of == slot)).collect();
        assert_eq!(of_slot.len(), 1, "one worker in slot {slot}: {workers:?}");
        of_slot[0].pid
    }

    /// The keeper of a slot; none while it has none.
    #[track_caller]
    pub(crate) fn find_keeper(&self, slot: u32) -> Option<i32> {
        self.children().iter().find(|child| child.keeper() == Some(slot)).map(|child| child.pid)
    }

    /// The keeper of a slot; panics when there is none.
    #[track_caller]
    pub(crate) fn keeper(&self, slot: u32) -> i32 {
        self.find_keeper(slot).unwrap_or_else(|| panic!("no keeper of slot {slot}: {:?}", self.children()))
    }

    /// Signals the master.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        assert!(processes::signal(self.master(), signal), "the master is gone\n{}", self.log());
    }

    fn remember(&self, processes: Vec<Process>) {
        self.seen.lock().unwrap().extend(processes.into_iter().map(|process| (process.pid, process.began)));
    }

    /// Waits for the end of the foreground master.
    #[track_caller]
    pub(crate) fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let mut exit = None;
        wait_until("the master exits", limit, || {
            exit = self.child.lock().unwrap().as_mut().expect("run in the foreground").try_wait().unwrap();
            exit.is_some()
        });
        exit.unwrap()
    }

    /// What the server wrote on its standard streams and into its error log.
    pub(crate) fn log(&self) -> String {
        self.directory.read("server.log") + &self.directory.read("error.log")
    }

    /// Replaces the configuration file; `{dir}` may stand in it.
    pub(crate) fn rewrite(&self, edit: impl FnOnce(String) -> String) {
        let text = edit(fs::read_to_string(&self.config).unwrap());
        fs::write(&self.config, text.replace("{dir}", self.directory.text())).unwrap();
    }

    /// Waits until the service has counted exactly this many answered requests.
    #[track_caller]
    pub(crate) fn wait_total(&self, requests: u64) {
        let start = Instant::now();
        loop {
            let status = self.status();
            let total = status.total("requests");
            if total == requests {
                return;
            }
            assert!(start.elapsed() < SOON, "clients counted {requests} answers, the server {total}:\n{status}");
            pause();
        }
    }

    /// The crash reports so far: file name and content.
    pub(crate) fn crash_reports(&self) -> Vec<(String, Value)> {
        let entries = fs::read_dir(self.directory.path("crash")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
        files.sort();
        files
            .iter()
            .filter_map(|path| {
                Some((path.file_name()?.to_str()?.to_owned(), serde_json::from_slice(&fs::read(path).ok()?).ok()?))
            })
            .collect()
    }

    /// The test's directory.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    fn report(&self) {
        println!(
            "--- configuration {}\n{}",
            self.config.display(),
            fs::read_to_string(&self.config).unwrap_or_default()
        );
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        println!(
            "--- log ({} lines, the last 400)\n{}",
            lines.len(),
            lines[lines.len().saturating_sub(400)..].join("\n")
        );
        println!("--- crash reports");
        for (name, report) in self.crash_reports() {
            println!("{name}: {report}");
        }
        println!("--- machine\n{}", processes::describe_machine());
        println!("--- processes");
        self.living().into_iter().for_each(|pid| print!("{}", processes::describe(pid)));
        if let Some(master) = self.known_master() {
            println!("--- the master's family\n{}", processes::describe_family(master));
        }
    }

    /// Those of the processes seen that live, each still the one that it was.
    fn living(&self) -> Vec<i32> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(&pid, began): (&i32, &u64)| {
            Process::read(pid).is_some_and(|process| process.lives() && process.began == *began).then_some(pid)
        };
        seen.iter().filter_map(same).collect()
    }

    /// The master, as far as it is known without asking it.
    fn known_master(&self) -> Option<i32> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let child = child.as_ref().map(|child| child.id() as i32);
        let binary = fs::canonicalize(env!("CARGO_BIN_EXE_phalanx")).ok();
        let written = || {
            let pid = self.directory.read("pid").trim().parse().ok()?;
            (fs::read_link(format!("/proc/{pid}/exe")).ok() == binary).then_some(pid)
        };
        child.or_else(written)
    }

    /// Stops the master so that it clones nothing any more, kills its children, then it.
    fn kill_all(&self) {
        let master = self.known_master().filter(|&pid| processes::lives(pid));
        if let Some(master) = master {
            processes::signal(master, Signal::SIGSTOP);
            for _round in 0..20 {
                let living: Vec<Process> = processes::children(master).into_iter().filter(Process::lives).collect();
                if living.is_empty() {
                    break;
                }
                living.iter().for_each(|child| _ = processes::signal(child.pid, Signal::SIGKILL));
                pause();
            }
            processes::signal(master, Signal::SIGKILL);
        }
        self.living().into_iter().for_each(|pid| _ = processes::signal(pid, Signal::SIGKILL));
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ended_before = child.kill();
            let _status = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report();
        }
        self.kill_all();
    }
}
