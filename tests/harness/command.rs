//! The binary under test as a command, and the directory that a test has for itself.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{pause, processes};

/// How long a command may take before it counts as hung.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A directory under /tmp with a path short enough for sockets; gone when dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// A fresh one.
    pub(crate) fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = PathBuf::from(format!("/tmp/phx-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let _left_by_an_earlier_run = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("site")).unwrap();
        fs::create_dir(path.join("crash")).unwrap();
        Directory(path)
    }

    /// The path of something inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Its own path, as it stands in a configuration.
    pub(crate) fn text(&self) -> &str {
        self.0.to_str().expect("the path is ASCII")
    }

    /// Writes a file, its directories too, and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A program of `text`, for the shell.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, format!("#!/bin/sh\n{text}\n"));
        make_executable(&path);
        path
    }

    /// A file's text; empty when there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

/// What a command said and how it ended.
pub(crate) struct Outcome {
    command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The exit code; panics when a signal ended the command.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {self}", self.status.signal()))
    }

    /// Panics unless the command ended with this code.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Outcome {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Panics unless the command ended with this code and said each of these on either stream.
    #[track_caller]
    pub(crate) fn assert_said(&self, code: i32, words: &[&str]) -> &Outcome {
        self.assert_code(code);
        for word in words {
            assert!(self.stdout.contains(word) || self.stderr.contains(word), "nothing about {word:?}: {self}");
        }
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { command, status, stdout, stderr } = self;
        write!(f, "`{command}` ended with {status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

/// A command of the binary under test.
pub(crate) fn phalanx() -> Command {
    Command::new(env!("CARGO_BIN_EXE_phalanx"))
}

pub(crate) fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The binary of an example, which `cargo test` builds beside the tests unless it is told to build one of them alone.
#[track_caller]
pub(crate) fn example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_phalanx")).with_file_name("examples").join(name);
    assert!(
        program.exists(),
        "no {}: cargo build -p phalanx --examples --features crash-points,axum",
        program.display()
    );
    program
}

/// A command of `program`, with a bound on the descriptors of its processes.
pub(crate) fn with_descriptors(program: &Path, most: u64) -> Command {
    let mut command = Command::new("/bin/sh");
    // The shell becomes the binary: its process is the master.
    command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program);
    command
}

/// Runs a command to its end. Its output goes through files, so that a daemon it leaves behind holds nobody up.
#[track_caller]
pub(crate) fn run(directory: &Directory, command: &mut Command) -> Outcome {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (out, err) = (directory.path(&format!("out-{number}")), directory.path(&format!("err-{number}")));
    command.stdin(Stdio::null()).stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let text = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{text}: {error}"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > COMMAND_LIMIT {
            break None;
        }
        pause();
    };
    let read = |path: &Path| {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let _best_effort = fs::remove_file(path);
        text
    };
    let Some(status) = status else {
        let state = processes::describe(child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("`{text}` hung\n{state}stdout: {}\nstderr: {}", read(&out), read(&err));
    };
    Outcome { command: text, status, stdout: read(&out), stderr: read(&err) }
}

/// A TCP port nobody listens on, outside the range that the kernel picks from, so that it stays free for the caller.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((std::process::id() + step) % 10_000) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
