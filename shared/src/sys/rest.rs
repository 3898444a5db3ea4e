//! Small questions to the kernel that fit nowhere else: none of them holds a resource.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockFilter, SockRef};

/// Resident bytes of another process (proc(5) stat); none when it is gone or unreadable.
pub fn resident_bytes(pid: nix::unistd::Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 24th field; the second may hold spaces and ends in a parenthesis.
    let pages: u64 = text.rsplit_once(") ")?.1.split_ascii_whitespace().nth(21)?.parse().ok()?;
    Some(pages * page_size())
}

/// Bytes of this process's memory that no other process shares with it (RssAnon of /proc/self/status); 0 when unreadable.
pub fn private_bytes() -> u64 {
    anonymous(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// RssAnon of proc(5) status, in bytes.
fn anonymous(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}

/// Forbids this process and its children to gain privileges by exec (`prctl(2)` PR_SET_NO_NEW_PRIVS).
pub fn set_no_new_privileges() -> io::Result<()> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// What the scheduler says of a process's first thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduling {
    /// The state letter of proc(5) stat.
    pub state: char,
    /// Time on a processor since it began (proc(5) schedstat).
    pub on_cpu: Duration,
    /// Time that it was runnable and had none.
    pub waited: Duration,
    /// Bytes of its memory that no other process shares with it (RssAnon).
    pub private_bytes: u64,
    /// The system call that it is in, by its number; none when it is in none, or the kernel does not tell.
    pub syscall: Option<u32>,
}

/// Reads it from /proc; none when the process is gone or unreadable.
pub fn scheduling(pid: nix::unistd::Pid) -> Option<Scheduling> {
    scheduling_in(&format!("/proc/{pid}"))
}

/// The same of a thread of this process.
pub fn thread_scheduling(thread: nix::unistd::Pid) -> Option<Scheduling> {
    scheduling_in(&format!("/proc/self/task/{thread}"))
}

fn scheduling_in(directory: &str) -> Option<Scheduling> {
    let read = |name: &str| std::fs::read_to_string(format!("{directory}/{name}")).ok();
    let state = read("stat")?.rsplit_once(") ")?.1.chars().next()?;
    let schedstat = read("schedstat").unwrap_or_default();
    let mut figures = schedstat.split_ascii_whitespace().map(|figure| figure.parse().unwrap_or(0));
    let mut next = || Duration::from_nanos(figures.next().unwrap_or(0));
    let (on_cpu, waited) = (next(), next());
    // Only for who may trace it; "running" when it is in none.
    let syscall = read("syscall").and_then(|text| text.split(' ').next()?.parse().ok());
    let private_bytes = anonymous(&read("status").unwrap_or_default());
    Some(Scheduling { state, on_cpu, waited, private_bytes, syscall })
}

/// This process's children, those that have ended and are not reaped too (proc(5): field 4 of stat).
pub fn children() -> Vec<nix::unistd::Pid> {
    let own = Some(nix::unistd::getpid());
    let pids = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.map(nix::unistd::Pid::from_raw).filter(|pid| parent(*pid) == own).collect()
}

/// Whose child a process is; none when there is no such process.
pub fn parent(pid: nix::unistd::Pid) -> Option<nix::unistd::Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    Some(nix::unistd::Pid::from_raw(parent))
}

/// An instruction of a classic BPF program.
fn code(code: u32, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf, k }
}

/// Sends new connections to some sockets of a SO_REUSEPORT group only, to each of them as often, at random. They are numbered
/// from 0 in the order of binding (socket(7) SO_ATTACH_REUSEPORT_CBPF). At most 1024 of them; with none, nothing changes.
pub fn steer_to(socket: &impl std::os::fd::AsFd, serving: &[u32]) -> io::Result<()> {
    let serving = &serving[..serving.len().min(1024)];
    if serving.is_empty() {
        return Ok(());
    }
    let mut program = vec![
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32),
        code(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, serving.len() as u32),
    ];
    for (number, socket) in serving.iter().enumerate() {
        // The number that was drawn: this socket; else on to the next.
        program.push(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number as u32));
        program.push(code(libc::BPF_RET | libc::BPF_K, 0, *socket));
    }
    program.push(code(libc::BPF_RET | libc::BPF_K, 0, serving[0]));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &filter)?)
}

/// Has a TCP listener drop what would begin a connection, as if the network had lost it; who has begun already comes in
/// (socket(7) SO_ATTACH_FILTER: a segment with SYN and without ACK, RFC 9293, 3.1).
pub fn refuse_connections(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    /// Where the flags stand in a segment.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let program = [
        code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, FLAGS),
        code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, SYN | ACK),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, SYN),
        code(libc::BPF_RET | libc::BPF_K, 0, 0),
        code(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ];
    let program = program.map(|it| SockFilter::new(it.code, it.jt, it.jf, it.k));
    SockRef::from(socket).attach_filter(&program)
}

/// Undoes [`refuse_connections`].
pub fn welcome_connections(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    match SockRef::from(socket).detach_filter() {
        // There was none.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

/// Undoes [`steer_to`]: the group spreads by hash over all its sockets again.
pub fn steer_to_all(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let zero: libc::c_int = 0;
    // SAFETY: the option takes an int that it ignores.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const zero).cast(),
            size_of_val(&zero) as libc::socklen_t,
        )
    };
    let error = io::Error::last_os_error();
    // ENOENT: there was none.
    if result < 0 && error.raw_os_error() != Some(libc::ENOENT) { Err(error) } else { Ok(()) }
}
