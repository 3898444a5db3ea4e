//! The title of a process in `ps`, by overwriting the memory of its arguments.

use std::sync::OnceLock;

/// How a process that serves one connection is titled; the connection's number and its worker follow.
pub const CONNECTION: &str = "phalanx: connection ";

/// Whether process `pid` is titled as one that serves one connection.
pub fn is_connection(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(CONNECTION.as_bytes()))
}

/// Where the arguments and the environment stand in this process's memory.
struct Area {
    start: usize,
    len: usize,
}

static AREA: OnceLock<Option<Area>> = OnceLock::new();

/// Finds the argument area and moves the environment out of it. Called once, by the single-threaded master, before its first
/// fork; without it (or where /proc does not tell the addresses) [`set`] does nothing.
pub fn prepare() {
    AREA.get_or_init(|| {
        for (name, value) in std::env::vars_os() {
            // SAFETY: the process has one thread; setenv copies the variable to the heap.
            unsafe { std::env::set_var(name, value) };
        }
        argument_area()
    });
}

/// Fields 48 to 51 of /proc/self/stat (proc(5)): arg_start, arg_end, env_start, env_end.
fn argument_area() -> Option<Area> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let (start, arg_end, env_start, env_end) = (field(48)?, field(49)?, field(50)?, field(51)?);
    let end = if env_start == arg_end { env_end } else { arg_end };
    (start != 0 && end > start).then(|| Area { start, len: end - start })
}

/// Shows `title` as this process's command line, cut to the room there is.
pub fn set(title: &str) {
    let Some(Some(area)) = AREA.get() else { return };
    let len = title.len().min(area.len - 1);
    // SAFETY: the kernel placed the arguments and the environment there, writable, at exec; `prepare` moved the environment
    // to the heap, and std copied the arguments before main, so nothing else refers to these bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(area.start as *mut u8, area.len) };
    bytes[..len].copy_from_slice(&title.as_bytes()[..len]);
    bytes[len..].fill(0);
}
