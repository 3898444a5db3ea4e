//! Small questions to the kernel that fit nowhere else: none of them holds a resource.

use std::io;

/// What the kernel says of another process: scheduler state and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessFigures {
    /// The state letter of proc(5) stat: R, S, D, T, t, Z …
    pub state: char,
    /// Resident bytes.
    pub rss_bytes: u64,
}

/// Reads /proc/PID/stat; none when the process is gone or unreadable.
pub fn process_figures(pid: nix::unistd::Pid) -> Option<ProcessFigures> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let pages: u64 = fields.nth(20)?.parse().ok()?;
    Some(ProcessFigures { state, rss_bytes: pages * page_size() })
}

/// Bytes of this process's memory that no other process shares with it (RssAnon of /proc/self/status); 0 when unreadable.
pub fn private_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
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

/// Sends no traffic to the sockets of a SO_REUSEPORT group past the first `serving`: new connections go to one of those at
/// random. The order in a group is the order of binding (socket(7) SO_ATTACH_REUSEPORT_CBPF).
pub fn steer_to_first(socket: &impl std::os::fd::AsFd, serving: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let code = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32),
        code(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, serving.max(1)),
        code(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program of `len` instructions, both alive for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Undoes [`steer_to_first`]: the group spreads by hash over all its sockets again.
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
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
