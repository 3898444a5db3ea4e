//! Processes as /proc shows them: whose child, in what state, under which title.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::wait_for_moment;

/// A process at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// As in /proc/PID/stat: `R`, `S`, `D`, `T`, `Z` …
    pub(crate) state: char,
    /// When it began, in clock ticks since boot: with the pid, a name that is never used again.
    pub(crate) began: u64,
    pub(crate) title: String,
}

impl Process {
    /// Reads /proc; none when there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let title = String::from_utf8_lossy(&title).replace('\0', " ").trim_end().to_owned();
        let (state, parent) = (fields.first()?.chars().next()?, fields.get(1)?.parse().ok()?);
        Some(Process { pid, parent, state, began: fields.get(19)?.parse().ok()?, title })
    }

    /// Slot and incarnation of a worker: `phalanx: worker 0 (incarnation 7)`.
    pub(crate) fn worker(&self) -> Option<(u32, u32)> {
        let (slot, rest) = self.title.strip_prefix("phalanx: worker ")?.split_once(" (incarnation ")?;
        Some((slot.parse().ok()?, rest.strip_suffix(')')?.parse().ok()?))
    }

    /// Slot of a keeper: `phalanx: keeper 0`. A worker has this title too until it has set its own.
    pub(crate) fn keeper(&self) -> Option<u32> {
        self.title.strip_prefix("phalanx: keeper ")?.parse().ok()
    }

    /// Neither gone nor a zombie.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// The children of a process, zombies included, in the order of their pids.
pub(crate) fn children(parent: i32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut children: Vec<Process> =
        pids.filter_map(Process::read).filter(|process| process.parent == parent).collect();
    children.sort_by_key(|process| process.pid);
    children
}

/// Processor time that a process has had, to a hundredth of a second.
pub(crate) fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split_ascii_whitespace();
    // utime and stime, in the ticks that every kernel tells them in.
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Whether the process exists and is no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    Process::read(pid).is_some_and(|process| process.lives())
}

/// Sends a signal; false when there is no such process any more.
pub(crate) fn signal(pid: i32, signal: Signal) -> bool {
    assert!(pid > 1, "a signal to pid {pid} would hit others");
    kill(Pid::from_raw(pid), signal).is_ok()
}

/// A line of /proc/PID/status, its value.
pub(crate) fn status_line(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// Bytes of private and shared memory resident in the process, files not counted.
pub(crate) fn resident(pid: i32) -> u64 {
    ["RssAnon", "RssShmem"]
        .iter()
        .filter_map(|name| status_line(pid, name)?.strip_suffix(" kB")?.parse::<u64>().ok())
        .sum::<u64>()
        * 1024
}

/// Open descriptors of the process.
pub(crate) fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Ledgers that the process could read or write.
pub(crate) fn ledgers(pid: i32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let open = |line: &&str| line.contains("phalanx-ledger") && line.split(' ').nth(1) != Some("---s");
    maps.lines().filter(open).count()
}

/// A thread of the process with that name.
pub(crate) fn thread_named(pid: i32, name: &str) -> Option<i32> {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = threads.find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name))?;
    found.file_name()?.to_str()?.parse().ok()
}

/// How long a thread could have run and had no processor (proc(5) schedstat).
pub(crate) fn time_waited(pid: i32, thread: &str) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
    let waited = text.split_ascii_whitespace().nth(1).and_then(|figure| figure.parse().ok());
    Duration::from_nanos(waited.unwrap_or(0))
}

/// The number that is no longer free when the process has opened so many more descriptors.
pub(crate) fn descriptor_after(pid: i32, more: usize) -> usize {
    let is_free = |number: &usize| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err();
    (0..).filter(is_free).nth(more).unwrap_or(0)
}

/// Processor time that a process has used since it began, its own and the kernel's for it.
fn time_used(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let fields = stat.rsplit_once(") ").unwrap().1.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs(ticks) / per_second as u32
}

/// Processor time that a process uses from now on, for so long.
pub(crate) fn time_used_in(pid: i32, span: Duration) -> Duration {
    let (start, before) = (Instant::now(), time_used(pid));
    wait_for_moment(start + span);
    time_used(pid) - before
}

/// Whether every thread of a process and of its children sleeps.
pub(crate) fn rests(pid: i32) -> bool {
    let all_sleep = |pid: i32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let mut threads = threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok());
        // One that has ended since has nothing to do either.
        threads.all(|thread| Process::read(thread).is_none_or(|thread| thread.state == 'S'))
    };
    all_sleep(pid) && children(pid).iter().all(|child| all_sleep(child.pid))
}

/// What the kernel may have to do with a failure: see the head of `tests/ungrouped`.
pub(crate) fn describe_machine() -> String {
    let line = |path: &str| match fs::read_to_string(path) {
        Ok(text) => text.lines().next().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    format!(
        "  Linux {}, sched_autogroup_enabled {}, waiting for a processor: {}",
        line("/proc/sys/kernel/osrelease"),
        line("/proc/sys/kernel/sched_autogroup_enabled"),
        line("/proc/pressure/cpu")
    )
}

/// All that /proc tells about a process and its children, for a failure's report.
pub(crate) fn describe_family(master: i32) -> String {
    let mut text = describe(master);
    for child in children(master) {
        text += &describe(child.pid);
    }
    text
}

/// All that /proc tells about a process.
pub(crate) fn describe(pid: i32) -> String {
    let Some(process) = Process::read(pid) else { return format!("  {pid}: gone\n") };
    let line = |name| status_line(pid, name).unwrap_or_default();
    let file = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    format!(
        "  {pid} ({}) state {} parent {} wchan {} syscall {} threads {} fds {} RssAnon {} RssShmem {} SigQ {} SigPnd {} \
         SigBlk {} SigIgn {} SigCgt {}\n    stack {}\n",
        process.title,
        process.state,
        process.parent,
        file("wchan"),
        file("syscall").trim(),
        line("Threads"),
        descriptors(pid),
        line("RssAnon"),
        line("RssShmem"),
        line("SigQ"),
        line("SigPnd"),
        line("SigBlk"),
        line("SigIgn"),
        line("SigCgt"),
        file("stack").lines().collect::<Vec<_>>().join(" < "),
    )
}
